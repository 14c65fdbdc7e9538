"""The threads that handle elements, and report. A thread that has reported goes on with what it is given.

What a handler works on elsewhere needs none of them, but where it would have to wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import monotonic
from typing import cast

from ..element import Element
from .ending import about
from .outcome import BatchHandler, DetachedHandler, Handler, Outcome

log = logging.getLogger("fsinbox")

Report = tuple[list[Element], Outcome, float]
"""A batch of elements, what its handler says of it, and how many seconds that took."""


class Crew:
    """Threads, made as they are needed, that work on batches of elements."""

    def __init__(
        self, handler: Handler, go_on: Callable[[], list[Element] | None], *, is_batch: bool = False
    ) -> None:
        """`is_batch`: the handler is a BatchHandler, and is to be called as such. `go_on` is called in the
        thread that has just reported; it returns a batch that was kept for this thread, or None."""
        self.running: list[list[Element]] = []
        """Batches that were handed out, and not reported yet."""
        self.count = 0
        """Elements in them."""
        self.kept: list[list[Element]] | None = None
        """If a list: of what is started next, one batch is kept here, for the thread that starts it."""
        self.detached = handler if isinstance(handler, DetachedHandler) else None
        """The handler, if it works elsewhere."""
        work = handler.handle
        self._handle: Callable[[list[Element]], Outcome] = (
            cast(BatchHandler, handler).handle_batch if is_batch else lambda batch: work(batch[0])
        )
        self._go_on = go_on
        self._is_batch = is_batch
        self._jobs: SimpleQueue[tuple[list[Element], float]] = SimpleQueue()
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
        if self.detached and self.detached.begin(batch, is_batch=self._is_batch):
            return
        self._to_a_thread(batch, 0.0)

    def _to_a_thread(self, batch: list[Element], began: float) -> None:
        """`began`: when (monotonic seconds) the work on it did; 0.0: it begins in the thread."""
        if self._threads < len(self.running):  # (also for one that is kept: others may be queued)
            self._threads += 1
            threading.Thread(target=self._work, name=f"fsinbox-{self._threads}", daemon=True).start()
        if self.kept == []:
            self.kept.append(batch)
        else:
            self._jobs.put((batch, began))

    def reports(self) -> Iterator[Report]:
        """Go through what was reported, also while you do."""
        if self.detached:
            self._hear(self.detached)
        while not self._reports.empty():
            report = self._reports.get()
            self.running.remove(report[0])
            self.count -= len(report[0])
            yield report

    def _hear(self, detached: DetachedHandler) -> None:
        for batch, outcome, began in detached.answers():
            if outcome:
                self._done(batch, outcome, monotonic() - began)
            else:
                self._to_a_thread(batch, began)

    def report(self, batch: list[Element], outcome: Outcome, seconds: float) -> None:
        """The handler is done with a batch. Called in any thread."""
        self._reports.put((batch, outcome, seconds))

    def _done(self, batch: list[Element], outcome: Outcome, seconds: float) -> None:
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

    def _work(self) -> None:
        kept = None
        while True:
            batch, began = (kept, 0.0) if kept else self._jobs.get()
            began = began or monotonic()
            outcome = self._handle(batch)
            self._done(batch, outcome, monotonic() - began)
            kept = self._go_on()
