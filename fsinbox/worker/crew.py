"""The threads that handle elements, and report. A thread that has reported goes on with what it is given."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import monotonic

from ..element import Element
from .ending import about
from .outcome import Outcome

log = logging.getLogger("fsinbox")

Report = tuple[list[Element], Outcome, float]
"""A batch of elements, what its handler says of it, and how many seconds that took."""


class Crew:
    """Threads, made as they are needed, that work on batches of elements."""

    def __init__(
        self, work: Callable[[list[Element]], Outcome], go_on: Callable[[], list[Element] | None]
    ) -> None:
        """`work` handles a batch, and never raises. `go_on` is called in the thread that has just reported;
        it returns a batch that was kept for this thread, or None."""
        self.running: list[list[Element]] = []
        """Batches that were handed out, and not reported yet."""
        self.count = 0
        """Elements in them."""
        self.kept: list[list[Element]] | None = None
        """If a list: of what is started next, one batch is kept here, for the thread that starts it."""
        self._handle = work
        self._go_on = go_on
        self._jobs: SimpleQueue[list[Element]] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._threads = 0

    @property
    def elements(self) -> list[Element]:
        """The elements of the batches that run."""
        return [element for batch in self.running for element in batch]

    def start(self, batch: list[Element]) -> None:
        """Have a batch handled."""
        self.running.append(batch)
        self.count += len(batch)
        if self.kept == []:
            self.kept.append(batch)
            return
        if self._threads < len(self.running):
            self._threads += 1
            threading.Thread(target=self._work, name=f"fsinbox-{self._threads}", daemon=True).start()
        self._jobs.put(batch)

    def reports(self) -> Iterator[Report]:
        """Go through what was reported, also while you do."""
        while not self._reports.empty():
            report = self._reports.get()
            self.running.remove(report[0])
            self.count -= len(report[0])
            yield report

    def report(self, batch: list[Element], outcome: Outcome, seconds: float) -> None:
        """The handler is done with a batch. Called in any thread."""
        self._reports.put((batch, outcome, seconds))

    def _work(self) -> None:
        batch = None
        while True:
            batch = batch or self._jobs.get()
            started = monotonic()
            outcome = self._handle(batch)
            seconds = monotonic() - started
            if log.isEnabledFor(logging.DEBUG):  # to collect what it would say costs each element time
                for element in batch:
                    log.debug(
                        "key %r: %s after %.3f s",
                        element.key,
                        outcome.kind,
                        seconds,
                        extra=about(element, "handled", seconds=seconds, outcome=outcome.kind),
                    )
            self.report(batch, outcome, seconds)
            batch = self._go_on()
