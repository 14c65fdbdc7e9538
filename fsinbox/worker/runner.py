"""Takes elements, has them handled, several at once, and ends each as its handler says.

The main thread owns the inbox: it takes, ends and requeues, and handles signals. Each element is handled in
one of `concurrency` threads, which only report. Reports, arrivals and signals wake the main thread through
the inbox's waker.
"""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time_ns
from types import FrameType

from ..element import Element
from ..inbox import Inbox
from ..store.errors import LeaseLost, WrongState
from .backoff import Retries
from .comings import leave, standing_by
from .crew import Crew
from .ending import Ending, SetAside, Tally
from .limits import Limits
from .observer import Audience, Observer
from .outcome import Handler, Outcome
from .pacing import Pacing
from .renewing import Renewal
from .sleeping import sooner
from .wakeups import wake_at_signals

log = logging.getLogger("fsinbox")

_FOLLOWED = 1.0
"""Seconds between two looks at least whether what is in flight is superseded: a file in drop/ may be finished
without an event."""


@dataclass
class Runner:
    """One run of a consumer. `inbox` must have been opened with max_inflight of at least `concurrency`."""

    inbox: Inbox
    handler: Handler
    concurrency: int = 1
    retries: Retries = field(default_factory=Retries)
    pacing: Pacing = field(default_factory=Pacing)
    """When the next element may be taken, beside that a handler is free."""
    timeout: float | None = None
    """Seconds that work on an element may take; the handler must be interruptible."""
    cancel_superseded: bool = False
    """End the work on an element as soon as a newer value of its key waits; the same."""
    shutdown_timeout: float | None = None
    """Seconds after a signal until what still runs is requeued, as at a second signal."""
    renewal: Renewal = field(default_factory=Renewal)
    """When to end, with `renewal.reason` said, to be started anew."""
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
        self._ending = Ending(self.tally, self.retries)
        self._audience = Audience(self.observers)
        self.pacing.tell(lambda until: self._audience.tell(lambda observer: observer.slowed(until)))
        self._crew = Crew(self.handler, lambda: self.waker.set())
        self._limits = Limits(self.handler, self.timeout, cancel_superseded=self.cancel_superseded)
        self._asleep_since: int | None = None
        self._stop_at: float | None = None
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
        aside = SetAside(self.tally)
        log.addFilter(aside)
        try:
            if self.standby:
                self._stand_by()
            else:
                self.inbox.become_consumer()
            if not self._signals:
                self._began = True
                self._audience.tell(lambda observer: observer.began())
            self._work_on()
        except LeaseLost:
            self.handler.stop_now()  # its elements are another consumer's now
            raise
        finally:
            log.removeFilter(aside)
            if self._began:
                restarts = self.to_be_renewed
                self._audience.tell(
                    lambda observer: observer.restarting() if restarts else observer.stopped()
                )
            if not self._signals:  # else a further one must not end us while the inbox is being closed
                for number, handler in previous.items():
                    signal.signal(number, handler)
            end_wakeups()
        return self.tally

    def _stand_by(self) -> None:
        """Become the consumer as soon as there is none, or the one there is counts as dead."""
        for holder in standing_by(self.inbox, lambda: self._signals > 0):
            if holder:
                log.info(
                    "standing by: %s is the consumer",
                    holder,
                    extra={"event": "standing_by", "holder": holder},
                )
            self._audience.tell(lambda observer: observer.standing_by())

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal ended the run."""
        return self._signals > 0

    @property
    def to_be_renewed(self) -> bool:
        """Whether the run ended only to be started anew."""
        over = self._signals or self.once or (self.drain and self._drained)
        return bool(self.renewal.reason) and not over

    # --- the loop -----------------------------------------------------------------------------------------

    def _work_on(self) -> None:
        while not self._finished():
            if self._work() or self._finished():
                continue
            if self._wants_more():
                with self.inbox.sleeper.listening() as watch:
                    if not self._work() and not self._finished():
                        self._asleep_since = time_ns()
                        watch.sleep(self._until(self.inbox.sleeper.limit()))
                        self._work()  # at once: leaving the watch takes longer than a take
                        self._asleep_since = None
            elif self._limits.follow_arrivals:
                with self.inbox.sleeper.listening() as watch:
                    if not self._work() and not self._wants_more():
                        watch.sleep(self._until(sooner(self._pause(), [monotonic() + _FOLLOWED])))
            else:
                self.waker.wait(self._until(self._pause()))

    def _until(self, limit: float | None) -> float | None:
        """Return for how many seconds to sleep at most, given another limit."""
        limit = sooner(limit, [] if self._stop_at is None else [self._stop_at])
        return self._audience.until_tick(self._limits.until(limit))

    def _work(self) -> bool:
        """End what was reported and start what can be started; tell whether anything was done."""
        self.waker.clear()
        self._audience.tick()
        self.inbox.check_lease()
        if self._signals and not self._told_stopping:
            self._told_stopping = True
            self._audience.tell(lambda observer: observer.stopping())
        if self._signals > 1:  # after clear(): a signal that comes later wakes
            self._requeue_all("at the second signal")
        if self._stop_at is not None and monotonic() >= self._stop_at:
            self._requeue_all("at the end of the shutdown timeout")
        self._limits.apply()
        busy = False
        for report in self._crew.reports():
            self._end(*report)
            busy = True
            if self._wants_more():
                # At once: handlers that end together would else all wait until the last one is ended.
                self._start_one()
        while self._wants_more() and self._start_one():
            busy = True
        return busy

    def _has_room(self) -> bool:
        if self._signals or self.renewal.reason or (self.once and self._started):
            return False
        return len(self._crew.running) < self.concurrency

    def _pause(self) -> float | None:
        """Return in how many seconds more may be taken: 0 for now, None for not before something ends."""
        return self.pacing.wait(len(self._crew.running)) if self._has_room() else None

    def _wants_more(self) -> bool:
        return self._pause() == 0

    def _finished(self) -> bool:
        if self._crew.running or self._signals > 1:
            return False
        if self._signals or self.renewal.reason or (self.once and self._started):
            return True
        return self.drain and self._drained

    _drained = False
    _told_stopping = False
    _began = False

    # --- one element --------------------------------------------------------------------------------------

    def _start_one(self) -> bool:
        element = self.inbox.take()
        if element is None:
            self._drained = not self._crew.running and self.inbox.next_look_in() is None
            return False
        self._started += 1
        self.pacing.took()
        self.renewal.took()
        if self.retries.is_deadly(element.attempts, element.deaths):
            self._refuse(element, _deadly(element.attempts - 1))
            return True
        asleep_since, self._asleep_since = self._asleep_since, None
        latency = None
        if asleep_since is not None and element.attempts == 1 and element.seq >= asleep_since:
            latency = max(0, time_ns() - element.seq) / 1e9
        self._audience.tell(lambda observer: observer.started(element, latency))
        self._limits.began(element)
        self._crew.start(element)
        return True

    def _refuse(self, element: Element, reason: str) -> None:
        """Give it up without a try."""
        outcome = Outcome("reject", reason, reason)
        became = self._ending.end(element, outcome)
        self._audience.tell(lambda observer: observer.ended(element, outcome, became, 0.0))

    def _end(self, element: Element, outcome: Outcome, seconds: float) -> None:
        outcome = self._limits.ended(element, outcome)
        self.pacing.ended(element, outcome)
        became = self._ending.end(element, outcome)
        self._audience.tell(lambda observer: observer.ended(element, outcome, became, seconds))
        self.renewal.ended()
        if self.progress:
            self.progress(self.tally)

    # --- signals ------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1 and self.shutdown_timeout is not None:
            self._stop_at = monotonic() + self.shutdown_timeout
        if self._signals == 1 and self._crew.running:
            text = (
                f"{signal.Signals(number).name}: waiting for {len(self._crew.running)} in flight; "
                "a second signal requeues at once"
            )
            os.write(2, self.stop_notice(text).encode())
        self.waker.set()

    def _requeue_all(self, when: str) -> None:
        """End the commands, requeue what is in flight, and exit without waiting for any thread."""
        for report in self._crew.reports():
            self._end(*report)  # what is done is done
        self.handler.stop_now()
        for element in self._crew.running:
            try:
                element.release()
            except WrongState:
                pass  # its handler has ended it
        self._audience.tell(lambda observer: observer.stopped())
        self.inbox.close()
        log.warning("requeued %d %s", len(self._crew.running), when, extra={"event": "requeued"})
        leave()


def _deadly(deaths: int) -> str:
    return f"a consumer died {deaths} times while it was in flight, the last time with nothing else in flight"
