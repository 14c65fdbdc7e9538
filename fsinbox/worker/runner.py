"""Takes elements, has them handled, several at once, and ends each as its handler says.

Each element, or batch of elements, is handled in one of `concurrency` threads. The main thread handles
signals, and whatever is due at some time; it, or a thread that has handled an element, ends that and takes
the next one (see turn). Arrivals, signals, and reports while another thread is at work wake the main thread
through the inbox's waker.
"""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from time import monotonic, time_ns
from types import FrameType

from ..inbox import Inbox
from ..store.errors import LeaseLost
from .backoff import Retries
from .comings import leave, requeue, signals_handled, standing_by
from .crew import Crew
from .ending import Ending, Tally
from .intake import Batching, Intake
from .limits import Limits
from .observer import Audience, Observer
from .outcome import Handler
from .pacing import Pacing
from .renewing import Renewal
from .settling import Settling
from .turn import Turn

log = logging.getLogger("fsinbox")

_LONG = 1.0
"""Seconds of a pause that a drain does not wait for without a look whether anything is left."""

_HANDLER_FIRST = 0.001
"""Seconds for which a handler that was woken has the interpreter to itself."""

_FOLLOWED = 1.0
"""Seconds between two looks at least whether what is in flight is superseded: a file in drop/ may be finished
without an event."""


@dataclass
class Runner:
    """One run of a consumer. `inbox` must have been opened with max_inflight of at least `concurrency`, times
    the elements of a batch."""

    inbox: Inbox
    handler: Handler
    concurrency: int = 1
    batching: Batching | None = None
    """Hand elements out in batches: the handler is a BatchHandler."""
    retries: Retries = field(default_factory=Retries)
    pacing: Pacing = field(default_factory=Pacing)
    """When the next element may be taken, beside that a handler is free."""
    expire: float | None = None
    """What was queued more than this many seconds ago fails without a try."""
    timeout: float | None = None
    """Seconds that work on an element, or a batch, may take; the handler must be interruptible."""
    cancel_superseded: bool = False
    """End the work on an element as soon as a newer value of its key waits; the same."""
    shutdown_timeout: float | None = None
    """Seconds after a signal until what still runs is requeued, as at a second signal."""
    renewal: Renewal = field(default_factory=Renewal)
    """When to end, with `renewal.reason` said, to be started anew."""
    drain: bool = False
    """Stop when nothing waits, is in flight or deferred."""
    once: bool = False
    """Stop after one element, or batch."""
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
        self._audience = Audience(self.observers)
        self.pacing.tell(lambda until: self._audience.tell(lambda observer: observer.slowed(until)))
        self._limits = Limits(self.handler, self.timeout, cancel_superseded=self.cancel_superseded)
        self._settling = Settling(
            Ending(self.tally, self.retries),
            self._audience,
            self.pacing,
            self._limits,
            self.renewal,
            lambda elements: self._intake.alone.extend(elements),
            lambda: self.progress and self.progress(self.tally),
        )
        self._intake = Intake(
            self.inbox,
            self.retries,
            self.pacing,
            self.renewal,
            self.batching or Batching(),
            self.expire,
            self._settling.refuse,
        )
        self._crew = Crew(self.handler, lambda: self._turn.go_on(), is_batch=self.batching is not None)
        self._asleep_since: int | None = None
        self._stop_at = inf
        self._signals = 0

    def run(self) -> Tally:
        """Work until told to stop by SIGTERM or SIGINT, or until drained. Call it in the main thread.

        A first signal lets running handlers finish. A second requeues what they have and ends the process at
        once. Raises InboxBusy, LeaseLost, UnusableInbox.
        """
        self.waker = self.inbox.sleeper.waker
        layout = self.inbox.layout
        # (While a signal ends the run, a further one must not end us before the inbox is closed.)
        with signals_handled(self._on_signal, self.waker, keep=lambda: self._signals > 0):
            try:
                self._become_consumer()
                self._work_on()
            except LeaseLost:
                self.handler.stop_now()  # its elements are another consumer's now
                raise
            finally:
                self.tally.set_aside = layout.set_aside
                if self._began:
                    anew = self.to_be_renewed
                    self._audience.tell(lambda one: one.restarting() if anew else one.stopped())
        return self.tally

    def _become_consumer(self) -> None:
        self._stand_by() if self.standby else self.inbox.become_consumer()
        if not self._signals:
            self._began = True
            self._audience.tell(lambda observer: observer.began())

    def _stand_by(self) -> None:
        """Become the consumer as soon as there is none, or the one there is counts as dead."""
        for holder in standing_by(self.inbox, lambda: self._signals > 0):
            if holder:
                about = {"event": "standing_by", "holder": holder}
                log.info("standing by: %s is the consumer", holder, extra=about)
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
        self._turn = Turn(self.inbox.sleeper, self._crew, self._step, self._has_room, self._due)
        is_idle = False
        while not self._finished():
            is_idle = (is_idle or not self._work()) and not self._finished() and self._sleep()
        requeue(self._intake.held)

    def _sleep(self) -> bool:
        """Sleep until there may be something to do; tell whether there is not, as far as was looked."""
        pause = self._pause()
        if pause != 0 and not self._limits.follow_arrivals:
            self._drained = bool(self.drain and pause and pause >= _LONG and self._nothing_waits())
            if not self._drained:
                self._turn.rest(self.waker.wait, pause)
            return False
        with self.inbox.sleeper.listening() as watch:
            if not watch.polling and (self._work() or self._finished()):  # (who polls has looked just now)
                return False
            if pause != 0:
                pause = self._pause()
                self._turn.rest(watch.sleep, _FOLLOWED if pause is None else min(pause, _FOLLOWED))
                return False
            self._asleep_since = time_ns()
            self._turn.rest(watch.sleep, self.inbox.sleeper.limit())
            if (found := self._work()) and not self._has_room():  # at once, and the handler goes first:
                self._turn.rest(self.waker.wait, _HANDLER_FIRST)  # to disarm takes longer
            self._asleep_since = None
            return not found

    def _due(self) -> float:
        """Return when (monotonic seconds) there is something to do, whatever comes; infinity: never."""
        own = min(self._stop_at, self._intake.due()) if self._has_room() else self._stop_at
        return min(own, self._limits.due(), self._audience.due())

    def _work(self) -> bool:
        """Do all that there is to be done in the main thread; tell whether anything was."""
        self.waker.clear()
        if self._turn.broken:
            raise self._turn.broken
        if self._signals and not self._told_stopping:
            self._told_stopping = True
            self._audience.tell(lambda observer: observer.stopping())
        if self._signals > 1:  # after clear(): a signal that comes later wakes
            self._requeue_all("at the second signal")
        if monotonic() >= self._stop_at:
            self._requeue_all("at the end of the shutdown timeout")
        return self._turn.step()

    def _step(self) -> bool:
        """End what was reported and start what can be started; tell whether anything was done."""
        self._audience.tick()
        self.inbox.check_lease()
        self._limits.apply()
        busy = False
        for report in self._crew.reports():
            self._settling.end(*report)
            busy = True
            if self._wants_more():
                # At once: handlers that end together would else all wait until the last one is ended.
                self._start_one()
            if self._crew.kept:
                return True  # this thread goes on with it: each of the others ends its own
        while not self._crew.kept and self._wants_more() and self._start_one():
            busy = True
        return busy

    def _has_room(self) -> bool:
        return not (self._signals or self._is_over()) and len(self._crew.running) < self.concurrency

    def _is_over(self) -> bool:
        """Tell whether nothing more is to be started."""
        if self._intake.alone:
            return False
        return bool(self.renewal.reason and not self._intake.held) or (self.once and self._intake.begun > 0)

    def _pause(self) -> float | None:
        """Return in how many seconds more may be taken: 0 for now, None for not before something ends."""
        return self._intake.pause(self._crew.count) if self._has_room() else None

    def _wants_more(self) -> bool:
        return self._pause() == 0

    def _finished(self) -> bool:
        if self._crew.running or self._signals > 1:
            return False
        return bool(self._signals) or self._is_over() or (self.drain and self._drained)

    def _nothing_waits(self) -> bool:
        """Tell whether nothing is left for a drain, without a take. Lists the folders."""
        return not (self._is_busy() or self.inbox.wait(0) or self.inbox.next_look_in() is not None)

    def _is_busy(self) -> bool:
        return bool(self._crew.running or self._intake.held)

    _drained = _told_stopping = _began = False

    # --- an element, or a batch ---------------------------------------------------------------------------

    def _start_one(self) -> bool:
        begun = self._intake.begun
        batch = self._intake.next()
        if batch is None:
            self._drained = not self._is_busy() and self.inbox.next_look_in() is None
            return False
        if self._intake.begun > begun:  # else it is an element of a batch that failed
            self._settling.begin(batch, self._asleep_since)
            self._asleep_since = None
        if batch:
            self._limits.began(batch[0])
            self._crew.start(batch)
        return True

    # --- signals ------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1 and self.shutdown_timeout is not None:
            self._stop_at = monotonic() + self.shutdown_timeout
        if self._signals == 1 and self._crew.running:
            name, count = signal.Signals(number).name, self._crew.count
            text = f"{name}: waiting for {count} in flight; a second signal requeues at once"
            os.write(2, self.stop_notice(text).encode())
        self.waker.set()

    def _requeue_all(self, when: str) -> None:
        """End the commands, requeue what is in flight, and exit without waiting for any thread."""
        for report in self._crew.reports():
            self._settling.end(*report)  # what is done is done
        self.handler.stop_now()
        in_flight = self._crew.elements + self._intake.held
        requeue(in_flight)
        self._audience.tell(lambda observer: observer.stopped())
        self.inbox.close()
        log.warning("requeued %d %s", len(in_flight), when, extra={"event": "requeued"})
        leave()
