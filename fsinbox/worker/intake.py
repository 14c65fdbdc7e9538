"""What the handlers get next: which elements are taken, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic

from ..element import Element
from ..inbox import Inbox
from ..operate.units import length
from .backoff import Retries
from .pacing import Pacing
from .renewing import Renewal


@dataclass(frozen=True, slots=True)
class Batching:
    """How many elements a handler gets at once."""

    most: int = 1
    wait: float = 0.0
    """Seconds to wait, from the first one, for a batch to become full."""


class Intake:
    """Takes elements and hands them out, in batches. Not safe for threads."""

    def __init__(
        self,
        inbox: Inbox,
        retries: Retries,
        pacing: Pacing,
        renewal: Renewal,
        batching: Batching,
        expire: float | None,
        refuse: Callable[[Element, str], object],
    ) -> None:
        """`expire`: seconds after which an element is not tried any more. `refuse` gives one up, with the
        reason."""
        self.begun = 0
        """Batches handed out."""
        self.alone: deque[Element] = deque()
        """Elements of batches that failed: each is handed out alone, before anything else."""
        self._inbox = inbox
        self._retries = retries
        self._pacing = pacing
        self._renewal = renewal
        self._batching = batching
        self._expire = expire
        self._refuse = refuse
        self._filling: list[Element] = []
        self._until = 0.0

    @property
    def held(self) -> list[Element]:
        """What is in flight, and not handed out."""
        return [*self._filling, *self.alone]

    def due(self) -> float:
        """Return when (monotonic seconds) a batch is handed out although it is not full; infinity: it is
        not."""
        return self._until if self._filling and self._batching.wait else inf

    def pause(self, running: int) -> float | None:
        """Return in how many seconds to call `next`: 0 for now, None for not before something ends; `running`
        elements are at work."""
        if self.alone or self._is_due():
            return 0.0
        pause = self._pacing.wait(running + len(self._filling))
        if pause != 0 and self._filling and not self._batching.wait:
            self._until = 0.0  # no more may come now
            return 0.0
        return pause

    def next(self) -> list[Element] | None:
        """Take one step: return what is to be handled now, [] if there was something else to do, None if
        there was nothing.

        Raises LeaseLost, UnusableInbox.
        """
        if self.alone:
            return [self.alone.popleft()]
        if not self._is_due():
            element = self._inbox.take()
            if element:
                self._add(element)
            elif self._filling and not self._batching.wait:
                self._until = 0.0  # no more is there now
            else:
                return None
        return self._hand_out() if self._is_due() else []

    def _add(self, element: Element) -> None:
        self._pacing.took()
        self._renewal.took()
        if why := self._why_not(element):
            self._refuse(element, why)
            return
        if not self._filling:
            self._until = monotonic() + self._batching.wait if self._batching.wait else inf
        if element.suspect:
            self._until = 0.0  # it is in flight alone: nothing else comes
        self._filling.append(element)

    def _why_not(self, element: Element) -> str:
        """Return why it is given up without a try, or ""."""
        if self._retries.is_deadly(element.attempts, element.deaths):
            return (
                f"a consumer died {element.attempts - 1} times while it was in flight, the last time with "
                "nothing else in flight"
            )
        if self._expire is not None and (age := element.age) > self._expire:
            return f"expired: queued {length(age)} ago, more than {length(self._expire)}"
        return ""

    def _is_due(self) -> bool:
        if not self._filling:
            return False
        full = len(self._filling) >= self._batching.most or bool(self._renewal.reason)
        return full or monotonic() >= self._until

    def _hand_out(self) -> list[Element]:
        batch, self._filling = self._filling, []
        self.begun += 1
        return batch
