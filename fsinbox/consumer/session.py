"""What one process takes from an open inbox: the consumer that it is, and the elements that were handed out.

Threads share a session; the consumer works under its lock. A process that forks leaves its session with the
parent. At every line an exception out of a signal handler may end a call: then nothing stays in flight that
nobody has, and no lock stays taken.
"""

from __future__ import annotations

import os
from _thread import RLock
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..store.errors import InboxError, LeaseLost, UnusableInbox, WrongState
from ..store.handle import Handle
from .consumer import Consumer
from .ownership import parse_shard
from .settings import Settings
from .sleeper import Sleeper
from .taking import Taken

if TYPE_CHECKING:
    from .rival import Rival

Found = TypeVar("Found")

_LAST_PATIENCE = 1.0
"""Seconds for which close() tries to get the lock for what could not go back before."""


class Claim:
    """An element that was handed out. It is ended once.

    Each way to end it raises WrongState if it was ended before, LeaseLost if another consumer has taken over,
    and UnusableInbox if the system refuses: then it stays in flight, and goes back later. (An exception out
    of a signal handler leaves it as it was, or ended: whoever ends it again is told which.)
    """

    __slots__ = ("session", "taken", "_consumer", "_ended")

    def __init__(self, session: Session, consumer: Consumer, taken: Taken) -> None:
        self.session = session
        self.taken = taken
        self._consumer = consumer
        self._ended = ""

    @property
    def ended(self) -> str:
        """How it was ended; "" if it was not."""
        return self._ended

    def acknowledge(self) -> None:
        """It is done."""
        self._end("acknowledged", self._consumer.acknowledge, self.taken)

    def requeue(self, delay: float = 0.0, *, counted: bool) -> bool:
        """Return it to its place, now or in `delay` seconds; False if a newer value waits and it was
        dropped."""
        if delay:
            return self._end("requeued", lambda: self._consumer.defer(self.taken, delay, counted=counted))
        return self._end("requeued", lambda: self._consumer.requeue(self.taken, counted=counted))

    def fail(self, reason: str) -> bool:
        """Give it up; False if a newer value waits and it was dropped."""
        return self._end("given up", lambda: self._consumer.fail(self.taken, reason))

    def newer_waits(self) -> bool:
        """Ingest what is finished in drop/; tell whether a newer value waits than this, which is in flight.
        Raises OSError."""
        consumer, taken = self._consumer, self.taken
        with self.session.alone("ask"):
            if not consumer.has(taken):
                return False
            if not consumer.controls.paused:
                consumer.drops.ingest()
            return self.session.has_newer(taken)

    def check_lease(self) -> None:
        """Raise LeaseLost if another consumer has taken over: asked when something is not where it was."""
        self.session.check(self._consumer)

    def requeue_at_close(self) -> None:
        """The session is being closed: requeue it, unless it was ended."""
        if self._consumer.has(self.taken):
            self._end_now("requeued", lambda: self._consumer.requeue(self.taken, counted=True))

    def _end(self, how: str, step: Callable[..., Found], *arguments: Taken) -> Found:
        with self.session.alone("end it"):
            result = self._end_now(how, step, *arguments)
        # Not from within: a signal handler that came then would leave the lock taken.
        return result  # noqa: RET504

    def _end_now(self, how: str, step: Callable[..., Found], *arguments: Taken) -> Found:
        self._check()
        session = self.session
        try:
            result = step(*arguments)
        except LeaseLost:
            self._have_ended(how)
            session.stop(self._consumer)
            raise
        except OSError as error:
            self._have_ended(how)
            session.check(self._consumer)
            raise UnusableInbox(
                f"the element of key {self.taken.key!r} in {session.path} could not be {how}: {error}: "
                "it stays in flight until that is mended, or a consumer starts next"
            ) from error
        self._have_ended(how)
        return result

    def _check(self) -> None:
        """Raise WrongState, or LeaseLost, if it is not for us to end it."""
        session, consumer, key = self.session, self._consumer, self.taken.key
        is_here = session.pid == os.getpid()
        is_ours = is_here and session.consumer is consumer
        if self._ended or (is_ours and not consumer.has(self.taken)):
            self._have_ended(self._ended or "ended")
            raise WrongState(f"the element of key {key!r} was {self._ended} before: end each element once")
        if not is_here:
            raise WrongState(
                f"the element of key {key!r} is in flight in the process that took it "
                f"({session.pid}): end it there"
            )
        if consumer.ownership.lost:
            session.check(consumer)
        if session.consumer is not consumer:
            raise WrongState(f"inbox {session.path} was closed, which requeued the element of key {key!r}")

    def _have_ended(self, how: str) -> None:
        self._ended = how
        self.session.forget(self)


class Session:
    """The consumer that a process is, from its first take to close(), and what it has handed out."""

    def __init__(
        self,
        handle: Handle,
        settings: Settings,
        max_inflight: Callable[[], int],
        watch: tuple[str, float],
    ) -> None:
        self.pid = os.getpid()
        self.consumer: Consumer | None = None
        self.claims: dict[str, Claim] = {}
        self.sleeper = Sleeper(handle, lambda: self.consumer, *watch)
        self._handle = handle
        self._settings = settings
        self._max_inflight = max_inflight
        self._mutex = RLock()
        self._rival: Rival | None = None

    @property
    def path(self) -> str:
        """Absolute path of the inbox."""
        return self._handle.path

    def alone(self, later: str) -> RLock:
        """Return the lock under which the consumer works.

        Raises WrongState in a signal handler that interrupted who has it.
        """
        if self._mutex._is_owned():  # type: ignore[attr-defined]
            raise WrongState(
                f"inbox {self.path} is being worked on by what this signal handler interrupted: {later} later"
            )
        return self._mutex

    # --- take ---------------------------------------------------------------------------------------------

    def take(self, handed: list[Claim]) -> Claim | None:
        """Take the oldest element, if one may be taken now, and add it to `handed`.

        Raises WrongState, InboxBusy, LeaseLost, UnusableInbox.
        """
        call = object()
        try:
            self._handle.begin(call)
            with self.alone("take"):
                if self._handle.closed:
                    self._handle.current()  # which says so
                claim = self._take(handed)
            self._handle.end(call)
            return claim
        except BaseException:
            self._handle.end(call)
            raise

    def _take(self, handed: list[Claim]) -> Claim | None:
        consumer = self.consumer or self._consume()
        if len(self.claims) >= self._max_inflight():
            raise WrongState(self._too_many())
        try:
            taken = consumer.take()
            if taken is None:
                return None
            claim = Claim(self, consumer, taken)
            handed.append(claim)
            self.claims[taken.encoded] = claim
        except LeaseLost:
            self.stop(consumer)
            raise
        except OSError as error:
            self.check(consumer)
            raise UnusableInbox(
                f"cannot take from inbox {self.path}: {error}: nothing was lost; mend that, take again"
            ) from error
        except InboxError:
            raise
        except BaseException:  # out of a signal handler: nobody will have what was taken
            handed.clear()
            consumer.disown(self.claims)
            raise
        self.sleeper.found()
        return claim

    def _too_many(self) -> str:
        keys = ", ".join(repr(claim.taken.key) for claim in list(self.claims.values())[:3])
        most = self._max_inflight()
        number = "an element is" if most == 1 else f"{most} elements are"
        return (
            f"{number} in flight ({keys}): "
            "commit() or rollback() first, or open the inbox with a larger max_inflight"
        )

    def the_one_in_flight(self, what: str) -> Claim:
        """Return what was handed out. Raises WrongState if that is nothing, or several."""
        with self._mutex:
            if not self.claims:
                raise WrongState(
                    f"nothing to {what}: no element of inbox {self.path} is in flight; take() one first"
                )
            if len(self.claims) > 1:
                raise WrongState(
                    f"{len(self.claims)} elements are in flight: say which one to {what}, "
                    "with element.ack() or element.nack()"
                )
            return next(iter(self.claims.values()))

    def has_newer(self, taken: Taken) -> bool:
        """Tell whether a newer value waits in pending/. Raises OSError."""
        place = self._handle.index.peek_place(taken.encoded)
        return place > taken.number or self._handle.layout.exists("pending", taken.name)

    def forget(self, claim: Claim) -> None:
        """It was ended."""
        if self.claims.get(claim.taken.encoded) is claim:
            del self.claims[claim.taken.encoded]
        self.sleeper.ended()

    # --- being the consumer -------------------------------------------------------------------------------

    def become_consumer(self) -> None:
        """Become the consumer now. Raises InboxBusy, UnusableInbox."""
        with self._mutex:
            self._consume()

    def may_become_consumer(self) -> bool:
        """Tell whether the consumer that was last found in the way may be gone. Raises OSError."""
        rival = self._of_other_hosts()
        return rival is None or rival.may_be_gone(self._handle.layout)

    def _of_other_hosts(self) -> Rival | None:
        """Return what is known of who is in the way, where several hosts share the inbox."""
        if self._rival is None and self._handle.layout.sharing:
            from .rival import Rival

            self._rival = Rival()
        return self._rival

    def _consume(self) -> Consumer:
        if self.consumer is None:
            try:
                self.consumer = Consumer(
                    self._handle.layout, self._handle.index, self._settings, self._of_other_hosts()
                )
            except OSError as error:
                raise UnusableInbox(
                    f"cannot consume inbox {self.path}: {error}: nothing was lost; mend that, try again"
                ) from error
            self.consumer.ownership.tell = self.sleeper.wake
            self.consumer.drops.arrivals.entering = self.sleeper.watch_folder
            self._handle.at_fork = self.consumer.ownership.abandon
        return self.consumer

    def check_lease(self) -> None:
        """Raise LeaseLost if another consumer is known to have taken over."""
        with self._mutex:
            if self.consumer and self.consumer.ownership.lost:
                self.check(self.consumer)

    def check(self, consumer: Consumer) -> None:
        """Raise LeaseLost if that is why something could not be done."""
        try:
            consumer.ownership.verify()
        except LeaseLost:
            self.stop(consumer)
            raise

    def stop(self, consumer: Consumer) -> None:
        """Another consumer has taken over: the next take begins anew. What is in flight is not ours any
        more."""
        if (
            self.consumer is consumer
        ):  # else the next take has been, and this is told of an element from before
            self.consumer = self._handle.at_fork = None
            self.claims.clear()
        consumer.close()

    # --- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Requeue what is in flight, and stop being the consumer. Raises UnusableInbox."""
        try:
            with self._mutex:
                if self.consumer:
                    self._requeue_all(self.consumer)
        finally:
            if self._rival:
                self._rival.close()
            self.sleeper.close()
            with self._mutex:
                if self.consumer:
                    self.consumer.close()
                    self.consumer = self._handle.at_fork = None

    def _requeue_all(self, consumer: Consumer) -> None:
        try:
            for claim in list(self.claims.values()):
                claim.requeue_at_close()
            try:
                consumer.disown({})
                if refused := consumer.returning.try_again(_LAST_PATIENCE):
                    raise refused
            except OSError as error:
                raise UnusableInbox(
                    f"cannot requeue what is in flight in inbox {self.path}: {error}: "
                    "it comes back when a consumer starts next"
                ) from error
        except LeaseLost:
            pass  # what was in flight is with another consumer


def open_session(
    handle: Handle, room: Callable[[], int], watch: tuple[str, float], shard: str, consuming: dict[str, Any]
) -> Session:
    """Return a session for what an Inbox was given. Raises ValueError for a shard that cannot be meant."""
    return Session(handle, Settings(shard=parse_shard(shard), **consuming), room, watch)
