"""How long work on an element may last: what ends it from outside, kindly and then by force.

Work is ended when it takes too long, and, if that is asked for, as soon as a newer value of the key waits."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import monotonic

from ..element import Element
from .outcome import Handler, Outcome

GRACE = 5.0
"""Seconds between two attempts to end the same work; all but the first are by force."""

_SOON = 0.05
"""Seconds until it is tried again what has only begun, so that there is nothing to be ended yet."""


@dataclass(slots=True)
class _Work:
    """Work on an element. Times are monotonic seconds."""

    until: float | None
    outcome: Outcome | None = None
    """What becomes of the element, once its work is to be ended."""
    interrupted: bool = False


class Limits:
    """Ends work that is not to go on. Not safe for threads."""

    def __init__(
        self, handler: Handler, timeout: float | None = None, *, cancel_superseded: bool = False
    ) -> None:
        """`timeout`: seconds that work on an element may take; None: as long as it wants.
        `cancel_superseded`: end it when a newer value waits."""
        self._handler = handler
        self._timeout = timeout
        self._cancel = cancel_superseded
        self._works: dict[Element, _Work] = {}

    def began(self, element: Element) -> None:
        """The handler works on an element now."""
        if self._timeout is not None or self._cancel:
            self._works[element] = _Work(None if self._timeout is None else monotonic() + self._timeout)

    @property
    def follow_arrivals(self) -> bool:
        """Whether each arrival may end some work: then call `apply`."""
        return self._cancel and bool(self._works)

    def apply(self) -> None:
        """End what is overdue, or superseded."""
        now = monotonic()
        for element, work in self._works.items():
            if work.until is not None and now >= work.until:
                if work.outcome is None and self._has_time(element, work, now):
                    continue
                self._end(element, work, work.outcome or self._timed_out())
            elif self._cancel and work.outcome is None and element.newer_waits():
                self._end(element, work, Outcome("cancelled"))

    def due(self) -> float:
        """Return when (monotonic seconds) to call `apply` next; infinity if it need not be."""
        if not self._works:
            return inf
        return min((work.until for work in self._works.values() if work.until is not None), default=inf)

    def ended(self, element: Element, outcome: Outcome) -> Outcome:
        """The handler is done with an element. Return what becomes of it: if its work was ended from outside
        before it was done, what was said then."""
        work = self._works.pop(element, None)
        if work is None or work.outcome is None or outcome.kind == "done":
            return outcome
        said = work.outcome
        return Outcome(said.kind, said.summary, f"{said.detail}\n\n{outcome.detail}")

    def _has_time(self, element: Element, work: _Work, now: float) -> bool:
        """Tell whether the work has begun only after it was handed over, so that it has time left."""
        assert self._timeout is not None
        end = self._handler.began(element) + self._timeout
        if end > now:
            work.until = end if end < inf else now + self._timeout
        return end > now

    def _timed_out(self) -> Outcome:
        why = f"timed out after {self._timeout:g} s"
        return Outcome("retry", why, why)

    def _end(self, element: Element, work: _Work, outcome: Outcome) -> None:
        work.outcome = outcome
        if self._handler.interrupt(element, force=work.interrupted):
            work.interrupted = True
            work.until = monotonic() + GRACE
        else:
            work.until = monotonic() + _SOON
