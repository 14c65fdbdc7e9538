"""When the next element may be taken: gates between the inbox and the handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic, time
from typing import Protocol

from ..element import Element
from .backoff import Backoff
from .outcome import Outcome

log = logging.getLogger("fsinbox")


class Gate(Protocol):
    """Lets elements through, or not yet."""

    def wait(self, running: int) -> float | None:
        """Return in how many seconds another element may be taken while `running` are in flight: 0 for now,
        None for not before one of them ends."""

    def took(self) -> None:
        """An element was taken."""

    def ended(self, element: Element, outcome: Outcome) -> None:
        """The handler is done with an element."""

    tell: Callable[[float], object]
    """Called when it slows the consumer down, with the time (seconds since the epoch) until when it at least
    will, and with 0.0 when it does not any more."""


class Pacing:
    """Several gates, all of which must be open."""

    def __init__(self, *gates: Gate) -> None:
        self._gates = gates

    def wait(self, running: int) -> float | None:
        """As a Gate's."""
        longest = 0.0
        for gate in self._gates:
            wait = gate.wait(running)
            if wait is None:
                return None
            longest = max(longest, wait)
        return longest

    def took(self) -> None:
        """As a Gate's."""
        for gate in self._gates:
            gate.took()

    def tell(self, tell: Callable[[float], object]) -> None:
        """Have every gate that slows the consumer down tell of it so."""
        for gate in self._gates:
            gate.tell = tell

    def ended(self, element: Element, outcome: Outcome) -> None:
        """As a Gate's."""
        for gate in self._gates:
            gate.ended(element, outcome)


class Breaker:
    """A circuit breaker: once `threshold` different elements in a row have failed, it is not them.

    Then it lets one element through at a time, with a pause before each that doubles as long as they fail.
    The first that is done closes it. Only failed attempts count: what is rejected, or put off uncounted, says
    nothing of the others.
    """

    def __init__(self, threshold: int, pauses: Backoff | None = None) -> None:
        """Pauses are of 1 second to a minute, unless something else is asked for."""
        self.tell: Callable[[float], object] = lambda until: None
        self._threshold = threshold
        self._backoff = pauses or Backoff(1.0, 60.0)
        self._failed: set[int] = set()
        self._pauses = 0
        self._until = 0.0

    def wait(self, running: int) -> float | None:
        if not self._pauses:
            return 0.0
        return None if running else max(0.0, self._until - monotonic())

    def took(self) -> None:
        pass  # what is in flight is told to `wait`

    def ended(self, element: Element, outcome: Outcome) -> None:
        if outcome.kind == "done":
            self._close()
        elif outcome.kind == "retry":
            self._failed.add(element.seq)
            if self._pauses:
                if monotonic() >= self._until:  # else it began before the pause
                    self._pause(outcome)
            elif len(self._failed) >= self._threshold:
                self._pause(outcome)

    def _pause(self, outcome: Outcome) -> None:
        self._pauses += 1
        pause = self._backoff.after(self._pauses)
        self._until = monotonic() + pause
        log.log(
            logging.WARNING if self._pauses == 1 else logging.INFO,
            "slowed down: %d elements in a row failed, the last one: %s; the next is tried alone in %.1f s",
            len(self._failed),
            outcome.summary,
            pause,
            extra={"event": "slowed", "failed": len(self._failed), "delay": pause, "reason": outcome.summary},
        )
        self.tell(time() + pause)

    def _close(self) -> None:
        self._failed.clear()
        if self._pauses:
            self._pauses = 0
            log.info("no longer slowed down: an element is done", extra={"event": "sped_up"})
            self.tell(0.0)


class Rate:
    """A token bucket: `rate` elements a second, evenly, and at most a second's worth at once (or one)."""

    def __init__(self, rate: float) -> None:
        self.tell: Callable[[float], object] = lambda until: None
        self._rate = rate
        self._most = max(1.0, rate)
        self._tokens = self._most
        self._filled = monotonic()

    def wait(self, running: int) -> float | None:
        now = monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._rate

    def took(self) -> None:
        self._tokens -= 1

    def ended(self, element: Element, outcome: Outcome) -> None:
        pass  # what counts is that it began
