"""How long work on an element may last: what ends it from outside, kindly and then by force."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from ..element import Element
from .outcome import Handler, Outcome
from .sleeping import sooner

GRACE = 5.0
"""Seconds between two attempts to end the same work; all but the first are by force."""


@dataclass(slots=True)
class _Work:
    """Work on an element. Times are monotonic seconds."""

    until: float | None
    outcome: Outcome | None = None
    """What becomes of the element, once its work is to be ended."""


class Limits:
    """Ends work that takes too long. Not safe for threads."""

    def __init__(self, handler: Handler, timeout: float | None = None) -> None:
        """`timeout`: seconds that work on an element may take; None: as long as it wants."""
        self._handler = handler
        self._timeout = timeout
        self._works: dict[Element, _Work] = {}

    def began(self, element: Element) -> None:
        """The handler works on an element now."""
        if self._timeout is not None:
            self._works[element] = _Work(monotonic() + self._timeout)

    def apply(self) -> None:
        """End what is overdue."""
        now = monotonic()
        for element, work in self._works.items():
            if work.until is not None and now >= work.until:
                self._end(element, work, f"timed out after {self._timeout:g} s")

    def until(self, limit: float | None) -> float | None:
        """Return for how many seconds to sleep at most, given another limit."""
        times = [work.until for work in self._works.values() if work.until is not None]
        return sooner(limit, times)

    def ended(self, element: Element, outcome: Outcome) -> Outcome:
        """The handler is done with an element. Return what becomes of it: if its work was ended from outside
        before it was done, what was said then."""
        work = self._works.pop(element, None)
        if work is None or work.outcome is None or outcome.kind == "done":
            return outcome
        said = work.outcome
        return Outcome(said.kind, said.summary, f"{outcome.detail}\n\n{said.detail}")

    def _end(self, element: Element, work: _Work, why: str) -> None:
        force = work.outcome is not None
        work.outcome = work.outcome or Outcome("retry", why, why)
        work.until = monotonic() + GRACE
        self._handler.interrupt(element, force=force)
