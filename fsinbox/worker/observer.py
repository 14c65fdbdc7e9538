"""Who is told what a run of the consumer does: the statistics in stats/, metrics, the service manager."""

from __future__ import annotations

import logging
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from ..consumer.ownership import Shard
from ..operate.stats import StatsWriter
from ..store.layout import Layout
from .outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..element import Element

log = logging.getLogger("fsinbox")

_INTERVAL = 1.0
"""Seconds between two writes of the statistics, at least."""


class Observer:
    """Told of what happens, by one thread at a time. What it raises is logged once, and stops nothing."""

    what = ""
    """What it does, for a message about its failure; "" for a program's own."""

    def standing_by(self) -> None:
        """Another process is the consumer, and this one waits: told about every second, before `began`."""

    def began(self) -> None:
        """This process is the consumer now."""

    def started(self, element: Element, latency: float | None) -> None:
        """An element is handed to a handler. `latency`: seconds since it was queued, if it woke an idle
        consumer."""

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        """It was handled, in `seconds`, and has become "acknowledged", "retried", "superseded" or
        "failed"."""

    def slowed(self, until: float) -> None:
        """Many elements in a row have failed: none is taken before this time (seconds since the epoch), then
        one at a time. 0.0: that is over."""

    def due(self) -> float | None:
        """Return when (monotonic seconds) `tick` is to be called next; None if it need not be."""
        return None

    def tick(self) -> None:
        """It is due."""

    def stopping(self) -> None:
        """No more elements are taken; what runs is finished."""

    def stopped(self) -> None:
        """The run has come to an end. Not told if it had not begun."""

    def restarting(self) -> None:
        """The same, and the process starts anew at once."""
        self.stopped()


class Audience:
    """The observers of a run. That one of them fails (a full disk) must not stop the work."""

    def __init__(self, observers: list[Observer]) -> None:
        """The list may still grow."""
        self._observers = observers
        self._complained: set[Observer] = set()

    def tell(self, what: Callable[[Observer], object], only: list[Observer] | None = None) -> None:
        """Call `what` with each observer, or with those of `only`."""
        for observer in self._observers if only is None else only:
            try:
                what(observer)
            except Exception as error:  # noqa: BLE001 - whatever it is
                if observer not in self._complained:
                    name = type(observer).__name__
                    log.warning(
                        "%s: %s: the work continues; this is said only once",
                        observer.what or name,
                        (isinstance(error, OSError) and error.strerror) or error,
                        extra={"event": "observer_failed", "observer": name},
                    )
                self._complained.add(observer)

    def tick(self) -> None:
        """Call the observers that are due."""
        now = monotonic()
        for observer in self._observers:
            due = observer.due()
            if due is not None and due <= now:
                self.tell(lambda observer: observer.tick(), [observer])

    def due(self) -> float:
        """Return when (monotonic seconds) the next of them is due; infinity if none is."""
        next_due = inf
        for observer in self._observers:
            due = observer.due()
            if due is not None and due < next_due:
                next_due = due
        return next_due


class StatsObserver(Observer):
    """Writes the statistics in stats/."""

    what = "cannot write the statistics in stats/"

    def __init__(self, layout: Layout, shard: Shard, handler: str, concurrency: int) -> None:
        self._open = partial(StatsWriter, layout, shard, handler, concurrency)
        self._next = 0.0
        self._dirty = False

    def began(self) -> None:
        self.writer = self._open()  # only now: a standby continues from what the consumer before wrote last
        self._dirty = True

    def started(self, element: Element, latency: float | None) -> None:
        self.writer.started(
            element.key, element.seq, element.attempts, replaced=element.replaced, latency=latency
        )
        self._dirty = True

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        self.writer.ended(element.key, element.seq, became, outcome.summary, seconds)
        self._dirty = True

    def slowed(self, until: float) -> None:
        self.writer.stats.slowed_until = until
        self._dirty = True

    def due(self) -> float | None:
        return self._next if self._dirty else None

    def tick(self) -> None:
        self._dirty = False
        self._next = monotonic() + _INTERVAL
        self.writer.write()

    def stopped(self) -> None:
        self.writer.write(stopped=True)
