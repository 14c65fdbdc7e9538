"""The threads that handle elements. They only report; the main thread ends what they have handled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import monotonic

from ..element import Element
from .ending import about
from .outcome import Handler, Outcome

log = logging.getLogger("fsinbox")

Report = tuple[Element, Outcome, float]
"""An element, what its handler says of it, and how many seconds that took."""


class Crew:
    """Threads, made as they are needed, that have a handler work on elements."""

    def __init__(self, handler: Handler, wake: Callable[[], object]) -> None:
        """`wake` is called, in any thread, when there is a report."""
        self.running: set[Element] = set()
        """Handed out, and not reported yet."""
        self._handler = handler
        self._wake = wake
        self._jobs: SimpleQueue[Element] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._threads = 0

    def start(self, element: Element) -> None:
        """Have an element handled."""
        self.running.add(element)
        if self._threads < len(self.running):
            self._threads += 1
            threading.Thread(target=self._work, name=f"fsinbox-{self._threads}", daemon=True).start()
        self._jobs.put(element)

    def reports(self) -> Iterator[Report]:
        """Go through what was reported, also while you do."""
        while not self._reports.empty():
            report = self._reports.get()
            self.running.discard(report[0])
            yield report

    def report(self, element: Element, outcome: Outcome, seconds: float) -> None:
        """The handler is done with an element. Called in any thread."""
        self._reports.put((element, outcome, seconds))
        self._wake()

    def _work(self) -> None:
        while True:
            element = self._jobs.get()
            started = monotonic()
            outcome = self._handler.handle(element)
            seconds = monotonic() - started
            if log.isEnabledFor(logging.DEBUG):  # to collect what it would say costs each element time
                log.debug(
                    "key %r: %s after %.3f s",
                    element.key,
                    outcome.kind,
                    seconds,
                    extra=about(element, "handled", seconds=seconds, outcome=outcome.kind),
                )
            self.report(element, outcome, seconds)
