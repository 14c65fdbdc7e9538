"""Takes elements, has them handled, several at once, and ends each as its handler says.

The main thread owns the inbox: it takes, acknowledges and puts back, and handles signals. Each element is
handled in one of `concurrency` threads, which only report. Both, and arrivals, wake the main thread through
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
from time import monotonic, sleep, time_ns
from types import FrameType

from ..element import Element
from ..inbox import Inbox
from ..store.errors import InboxBusy, LeaseLost
from .backoff import Backoff
from .observer import Observer
from .outcome import Handler, Outcome

log = logging.getLogger("fsinbox")

_STANDBY = 1.0
"""Seconds between two looks whether there still is another consumer."""


def about(element: Element, event: str, **more: object) -> dict[str, object]:
    """Return what a structured log says of an element, for `extra`."""
    return {"event": event, "key": element.key, "seq": element.seq, "attempts": element.attempts, **more}


def _something(pipe: int) -> bool:
    """Wait for something in a pipe, and read it; False when its other end is closed."""
    try:
        return bool(os.read(pipe, 100))
    except OSError:  # a system in trouble: a wake too many does no harm
        sleep(0.1)
        return True


@dataclass(slots=True)
class Tally:
    """What became of the elements of one run."""

    acknowledged: int = 0
    retried: int = 0
    superseded: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {self.retried} put back for another try, "
            f"{self.superseded} dropped for a newer value, {self.failed} failed"
        )


@dataclass
class Runner:
    """One run of a consumer. `inbox` must have been opened with max_inflight of at least `concurrency`."""

    inbox: Inbox
    handler: Handler
    concurrency: int = 1
    max_attempts: int = 5
    backoff: Backoff = field(default_factory=Backoff)
    drain: bool = False
    """Stop when nothing waits, is out, or waits out a back-off."""
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
        self._jobs: SimpleQueue[Element] = SimpleQueue()
        self._reports: SimpleQueue[tuple[Element, Outcome, float]] = SimpleQueue()
        self._asleep_since: int | None = None
        self._complained: set[Observer] = set()
        self._running: set[Element] = set()
        self._threads = 0
        self._signals = 0
        self._started = 0

    def run(self) -> Tally:
        """Work until told to stop by SIGTERM or SIGINT, or until drained. Call it in the main thread.

        A first signal lets running handlers finish. A second gives back what they hold and ends the process
        at once. Raises InboxBusy, LeaseLost, UnusableInbox.
        """
        self.waker = self.inbox.waker
        end_wakeups = self._wake_at_signals()
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            if self.standby:
                self._stand_by()
            else:
                self.inbox.become_consumer()
            if not self._signals:
                self._began = True
                self._tell(lambda observer: observer.began())
            while not self._finished():
                if self._work() or self._finished():
                    continue
                if self._wants_more():
                    with self.inbox.listening() as watch:
                        if not self._work() and not self._finished():
                            self._asleep_since = time_ns()
                            watch.sleep(self._until_tick(self.inbox.sleep_limit()))
                            self._work()  # at once: to leave the watch takes longer than a take
                            self._asleep_since = None
                else:
                    self.waker.wait(self._until_tick(None))
        except LeaseLost:
            self.handler.stop_now()  # its elements are another consumer's now
            raise
        finally:
            if self._began:
                self._tell(lambda observer: observer.stopped())
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
                self._tell(lambda observer: observer.standing_by())
            self.waker.wait(_STANDBY)

    def _wake_at_signals(self) -> Callable[[], None]:
        """Have a thread set the waker at each signal; return what ends that.

        Python's own handler runs in the main thread only between two bytecodes: a signal that comes just
        before the main thread begins to wait would be handled when something else wakes it.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def pass_on() -> None:
            while _something(reader):
                self.waker.set()
            os.close(reader)

        threading.Thread(target=pass_on, name="fsinbox-signals", daemon=True).start()

        def end() -> None:
            signal.set_wakeup_fd(before)
            os.close(writer)

        return end

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal ended the run."""
        return self._signals > 0

    def _work(self) -> bool:
        """End what was reported and start what can be started; tell whether anything was done."""
        self.waker.clear()
        self._tick()
        self.inbox.check_lease()
        if self._signals and not self._told_stopping:
            self._told_stopping = True
            self._tell(lambda observer: observer.stopping())
        if self._signals > 1:  # asked only after clear(): a signal that comes later wakes
            self._give_back()
        busy = False
        while not self._reports.empty():
            self._end(*self._reports.get())
            busy = True
            if self._wants_more():
                # at once, not when all are ended: handlers that end together would all wait for the last
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

    def _tick(self) -> None:
        now = monotonic()
        for observer in self.observers:
            due = observer.due()
            if due is not None and due <= now:
                self._tell(lambda observer: observer.tick(), [observer])

    def _until_tick(self, limit: float | None) -> float | None:
        """Return how long to sleep at most, given another limit (seconds): until an observer wants to be
        called."""
        times = [due for due in (observer.due() for observer in self.observers) if due is not None]
        if not times:
            return limit
        left = max(0.0, min(times) - monotonic())
        return left if limit is None else min(limit, left)

    def _tell(self, what: Callable[[Observer], object], observers: list[Observer] | None = None) -> None:
        """Tell the observers. That one of them fails (a full disk) must not stop the work."""
        for observer in self.observers if observers is None else observers:
            try:
                what(observer)
            except Exception as error:  # noqa: BLE001 - whatever it is
                if observer not in self._complained:
                    name = type(observer).__name__
                    log.warning(
                        "%s: %s: the work goes on; this is only said once",
                        name,
                        error,
                        extra={"event": "observer_failed", "observer": name},
                    )
                self._complained.add(observer)

    def _start_one(self) -> bool:
        element = self.inbox.take()
        if element is None:
            self._drained = not self._running and self.inbox.next_look_in() is None
            return False
        self._started += 1
        if element.poison and element.attempts > self.max_attempts:
            died = element.attempts - 1
            reason = (
                f"a consumer died {died} times while it was being handled, the last time with nothing else "
                "out"
            )
            outcome = Outcome("reject", reason, reason)
            became = self._count_failure(element, outcome)
            self._tell(lambda observer: observer.ended(element, outcome, became, 0.0))
            return True
        asleep_since, self._asleep_since = self._asleep_since, None
        latency = None
        if asleep_since is not None and element.attempts == 1 and element.seq >= asleep_since:
            latency = max(0, time_ns() - element.seq) / 1e9
        self._tell(lambda observer: observer.started(element, latency))
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
            if log.isEnabledFor(
                logging.DEBUG
            ):  # asked for each element: what a log would say of it is not for nothing
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
        if outcome.kind == "done":
            element.ack()
            self.tally.acknowledged += 1
            became = "acknowledged"
        elif outcome.kind == "later":
            delay = self.backoff.by_age(element.seq / 1e9)
            log.info(
                "key %r: %s; again in %.1f s, uncounted",
                element.key,
                outcome.summary,
                delay,
                extra=about(element, "later", delay=delay, reason=outcome.summary),
            )
            became = self._count_retry(element.release(delay))
        elif outcome.kind == "reject" or element.attempts >= self.max_attempts:
            became = self._count_failure(element, outcome)
        else:
            delay = self.backoff.after(element.attempts)
            log.warning(
                "key %r: attempt %d of %d failed: %s; again in %.1f s",
                element.key,
                element.attempts,
                self.max_attempts,
                outcome.summary,
                delay,
                extra=about(element, "retry", delay=delay, reason=outcome.summary),
            )
            became = self._count_retry(element.nack(delay))
        self._tell(lambda observer: observer.ended(element, outcome, became, seconds))
        if self.progress:
            self.progress(self.tally)

    def _count_retry(self, waits: bool) -> str:
        if waits:
            self.tally.retried += 1
            return "retried"
        self.tally.superseded += 1
        return "superseded"

    def _count_failure(self, element: Element, outcome: Outcome) -> str:
        if element.fail(outcome.detail):
            self.tally.failed += 1
            log.error(
                "key %r went to failed/ after attempt %d: %s",
                element.key,
                element.attempts,
                outcome.summary,
                extra=about(element, "failed", reason=outcome.summary),
            )
            return "failed"
        self.tally.superseded += 1
        return "superseded"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1 and self._running:
            text = (
                f"{signal.Signals(number).name}: waiting for {len(self._running)} running; again to give "
                "back at once"
            )
            os.write(2, self.stop_notice(text).encode())
        self.waker.set()

    def _give_back(self) -> None:
        """A second signal: end the commands, put back what is out, and leave without waiting for any
        thread."""
        while not self._reports.empty():
            self._end(*self._reports.get())  # what is done is done
        self.handler.stop_now()
        for element in self._running:
            element.release()
        self._tell(lambda observer: observer.stopped())
        self.inbox.close()
        log.warning("gave back %d at the second signal", len(self._running), extra={"event": "gave_back"})
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        os._exit(0)
