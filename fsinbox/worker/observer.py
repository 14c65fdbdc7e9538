"""Who is told what a run of the consumer does: the statistics in stats/, metrics, the service manager."""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from ..consumer.ownership import Shard
from ..operate.stats import StatsWriter
from ..store.layout import Layout
from .outcome import Outcome

if TYPE_CHECKING:
    from ..element import Element

log = logging.getLogger("fsinbox")

_INTERVAL = 1.0
"""Seconds between two writes of the statistics, at least."""


class Observer:
    """Told of what happens, in the main thread. What it raises is logged, once, and stops nothing."""

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

    def due(self) -> float | None:
        """Return when (monotonic seconds) `tick` is to be called next; None if it need not be."""
        return None

    def tick(self) -> None:
        """It is due."""

    def stopping(self) -> None:
        """No more elements are taken; what runs is finished."""

    def stopped(self) -> None:
        """The run has come to an end. Not told if it had not begun."""


class StatsObserver(Observer):
    """Writes the statistics in stats/."""

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

    def due(self) -> float | None:
        return self._next if self._dirty else None

    def tick(self) -> None:
        self._dirty = False
        self._next = monotonic() + _INTERVAL
        self.writer.write()

    def stopped(self) -> None:
        self.writer.write(stopped=True)
