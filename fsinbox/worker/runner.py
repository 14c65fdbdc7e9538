"""Takes elements, has them handled, several at once, and ends each as its handler says.

The main thread owns the inbox: it takes, ends and requeues, and handles signals. Each element is handled in
one of `concurrency` threads, which only report. Reports, arrivals and signals wake the main thread through
the inbox's waker.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic, time_ns
from types import FrameType

from ..element import Element
from ..inbox import Inbox
from ..store.errors import InboxBusy, LeaseLost, WrongState
from .backoff import Backoff
from .ending import Ending, Tally, about
from .observer import Audience, Observer
from .outcome import Handler, Outcome
from .wakeups import wake_at_signals

log = logging.getLogger("fsinbox")

_STANDBY = 1.0
"""Seconds between two looks whether another consumer is still there."""


@dataclass
class Runner:
    """One run of a consumer. `inbox` must have been opened with max_inflight of at least `concurrency`."""

    inbox: Inbox
    handler: Handler
    concurrency: int = 1
    max_attempts: int = 5
    backoff: Backoff = field(default_factory=Backoff)
    drain: bool = False
    """Stop when nothing waits, is in flight or deferred."""
    once: bool = False
    """Stop after one element."""
    standby: bool = False
    """While there is another consumer, wait until it ends or is dead."""
    progress: Callable[[Tally], object] | None = None
    """Called after each element."""
    stop_notice: Callable[[str], str] = "fsinbox: {}\n".format
    """Makes a line for standard error of what is said at a signal."""
    observers: list[Observer] = field(default_factory=list)
    """Told of all that happens."""

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._ending = Ending(self.tally, self.max_attempts, self.backoff)
        self._audience = Audience(self.observers)
        self._jobs: SimpleQueue[Element] = SimpleQueue()
        self._reports: SimpleQueue[tuple[Element, Outcome, float]] = SimpleQueue()
        self._asleep_since: int | None = None
        self._running: set[Element] = set()
        self._threads = 0
        self._signals = 0
        self._started = 0

    def run(self) -> Tally:
        """Work until told to stop by SIGTERM or SIGINT, or until drained. Call it in the main thread.

        A first signal lets running handlers finish. A second requeues what they have and ends the process at
        once. Raises InboxBusy, LeaseLost, UnusableInbox.
        """
        self.waker = self.inbox.sleeper.waker
        end_wakeups = wake_at_signals(self.waker.set)
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        layout = self.inbox.layout
        try:
            if self.standby:
                self._stand_by()
            else:
                self.inbox.become_consumer()
            if not self._signals:
                self._began = True
                self._audience.tell(lambda observer: observer.began())
            while not self._finished():
                if self._work() or self._finished():
                    continue
                if self._wants_more():
                    with self.inbox.sleeper.listening() as watch:
                        if not self._work() and not self._finished():
                            self._asleep_since = time_ns()
                            watch.sleep(self._audience.until_tick(self.inbox.sleeper.limit()))
                            self._work()  # at once: leaving the watch takes longer than a take
                            self._asleep_since = None
                else:
                    self.waker.wait(self._audience.until_tick(None))
        except LeaseLost:
            self.handler.stop_now()  # its elements are another consumer's now
            raise
        finally:
            self.tally.set_aside = layout.set_aside
            if self._began:
                self._audience.tell(lambda observer: observer.stopped())
            if not self._signals:  # else a further one must not end us while the inbox is being closed
                for number, handler in previous.items():
                    signal.signal(number, handler)
            end_wakeups()
        return self.tally

    def _stand_by(self) -> None:
        """Become the consumer as soon as there is none, or the one there is counts as dead."""
        said = False
        while not self._signals:
            try:
                self.inbox.become_consumer()
                return
            except InboxBusy as error:
                if not said:
                    holder = error.holder or "another one"
                    log.info(
                        "standing by: %s is the consumer",
                        holder,
                        extra={"event": "standing_by", "holder": holder},
                    )
                said = True
                self._audience.tell(lambda observer: observer.standing_by())
            self.waker.wait(_STANDBY)

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal ended the run."""
        return self._signals > 0

    def _work(self) -> bool:
        """End what was reported and start what can be started; tell whether anything was done."""
        self.waker.clear()
        self._audience.tick()
        self.inbox.check_lease()
        if self._signals and not self._told_stopping:
            self._told_stopping = True
            self._audience.tell(lambda observer: observer.stopping())
        if self._signals > 1:  # after clear(): a signal that comes later wakes
            self._requeue_all()
        busy = False
        while not self._reports.empty():
            self._end(*self._reports.get())
            busy = True
            if self._wants_more():
                # At once: handlers that end together would else all wait until the last one is ended.
                self._start_one()
        while self._wants_more() and self._start_one():
            busy = True
        return busy

    def _wants_more(self) -> bool:
        if self._signals or (self.once and self._started):
            return False
        return len(self._running) < self.concurrency

    def _finished(self) -> bool:
        if self._running or self._signals > 1:
            return False
        if self._signals or (self.once and self._started):
            return True
        return self.drain and self._drained

    _drained = False
    _told_stopping = False
    _began = False

    def _start_one(self) -> bool:
        element = self.inbox.take()
        if element is None:
            self._drained = not self._running and self.inbox.next_look_in() is None
            return False
        self._started += 1
        if element.poison and element.attempts > self.max_attempts:
            died = element.attempts - 1
            reason = (
                f"a consumer died {died} times while it was in flight, the last time with nothing else in "
                "flight"
            )
            outcome = Outcome("reject", reason, reason)
            became = self._ending.end(element, outcome)
            self._audience.tell(lambda observer: observer.ended(element, outcome, became, 0.0))
            return True
        asleep_since, self._asleep_since = self._asleep_since, None
        latency = None
        if asleep_since is not None and element.attempts == 1 and element.seq >= asleep_since:
            latency = max(0, time_ns() - element.seq) / 1e9
        self._audience.tell(lambda observer: observer.started(element, latency))
        self._running.add(element)
        if self._threads < len(self._running):
            self._threads += 1
            threading.Thread(target=self._handle_jobs, name=f"fsinbox-{self._threads}", daemon=True).start()
        self._jobs.put(element)
        return True

    def _handle_jobs(self) -> None:
        while True:
            element = self._jobs.get()
            started = monotonic()
            outcome = self.handler.handle(element)
            seconds = monotonic() - started
            if log.isEnabledFor(logging.DEBUG):  # to collect what it would say costs each element time
                log.debug(
                    "key %r: %s after %.3f s",
                    element.key,
                    outcome.kind,
                    seconds,
                    extra=about(element, "handled", seconds=seconds, outcome=outcome.kind),
                )
            self._reports.put((element, outcome, seconds))
            self.waker.set()

    def _end(self, element: Element, outcome: Outcome, seconds: float) -> None:
        self._running.discard(element)
        became = self._ending.end(element, outcome)
        self._audience.tell(lambda observer: observer.ended(element, outcome, became, seconds))
        if self.progress:
            self.progress(self.tally)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1 and self._running:
            text = (
                f"{signal.Signals(number).name}: waiting for {len(self._running)} in flight; "
                "a second signal requeues at once"
            )
            os.write(2, self.stop_notice(text).encode())
        self.waker.set()

    def _requeue_all(self) -> None:
        """A second signal: end the commands, requeue what is in flight, and exit without waiting for any
        thread."""
        while not self._reports.empty():
            self._end(*self._reports.get())  # what is done is done
        self.handler.stop_now()
        for element in self._running:
            try:
                element.release()
            except WrongState:
                pass  # its handler has ended it
        self._audience.tell(lambda observer: observer.stopped())
        self.inbox.close()
        log.warning("requeued %d at the second signal", len(self._running), extra={"event": "requeued"})
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        os._exit(0)
