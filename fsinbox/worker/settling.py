"""What follows when elements have been handled: for them, for those who are told, and for what is taken
next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time_ns

from ..element import Element
from .ending import Ending
from .limits import Limits
from .observer import Audience
from .outcome import DONE, Outcome
from .pacing import Pacing
from .renewing import Renewal

log = logging.getLogger("fsinbox")


class Settling:
    """Ends elements, and tells of it. Not safe for threads."""

    def __init__(
        self,
        ending: Ending,
        audience: Audience,
        pacing: Pacing,
        limits: Limits,
        renewal: Renewal,
        alone: Callable[[list[Element]], object],
        progress: Callable[[], object],
    ) -> None:
        """`alone` is called with elements of a batch that failed, each of which is to be tried alone next;
        `progress` after each element."""
        self._ending = ending
        self._audience = audience
        self._pacing = pacing
        self._limits = limits
        self._renewal = renewal
        self._alone = alone
        self._progress = progress

    def begin(self, batch: list[Element], asleep_since: int | None) -> None:
        """Tell that a batch is handed to a handler. `asleep_since`: nanoseconds since the epoch, if it woke
        an idle consumer."""
        for element in batch:
            woke = asleep_since is not None and element.attempts == 1 and element.seq >= asleep_since
            latency = max(0, time_ns() - element.seq) / 1e9 if woke else None
            self._audience.tell(lambda observer: observer.started(element, latency))  # noqa: B023 - at once

    def refuse(self, element: Element, reason: str) -> None:
        """Give an element up without a try."""
        self._end(element, Outcome("reject", reason, reason), 0.0)

    def end(self, batch: list[Element], outcome: Outcome, seconds: float) -> None:
        """A batch was handled, in so many seconds. Raises LeaseLost, UnusableInbox."""
        outcome = self._limits.ended(batch[0], outcome)
        if len(batch) > 1 and outcome.kind in ("retry", "reject"):
            log.warning(
                "a batch of %d failed: %s; each is tried alone next",
                len(batch),
                outcome.summary,
                extra={"event": "batch_failed", "elements": len(batch), "reason": outcome.summary},
            )
            self._alone([element for element in batch if not element.ended])
            batch = [element for element in batch if element.ended]
            outcome = DONE
        for element in batch:
            self._pacing.ended(element, outcome)
            self._end(element, outcome, seconds / len(batch))

    def _end(self, element: Element, outcome: Outcome, seconds: float) -> None:
        became = self._ending.end(element, outcome)
        self._audience.tell(lambda observer: observer.ended(element, outcome, became, seconds))
        self._renewal.ended()
        self._progress()
