"""Inbox and Element: what a program calls."""

from __future__ import annotations

import os
from _thread import RLock
from _weakref import ref
from time import monotonic

from .store import files, index
from .store.adding import Add
from .store.codecs import check_codec, decode, encode
from .store.drops import DRAFTS, finished_drop
from .store.errors import (
    AddFailed,
    InboxError,
    InvalidKey,
    InvalidPayload,
    LeaseLost,
    UnusableInbox,
    WrongState,
)
from .store.index import open_index
from .store.layout import Layout
from .store.names import decode_key, element_name, encode_key, parse_deferred, parse_element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from types import TracebackType
    from typing import Any, BinaryIO, Self, TypeVar

    from .consumer.consumer import Consumer, Taken
    from .consumer.watch import Waker, Watch
    from .store.adding import Added

    Found = TypeVar("Found")

_BATCH = 1000
"""Elements that add_many flushes at once: bounds what lies in tmp/, and how often the caller hears of
progress."""

_LAST_PATIENCE = 1.0
"""Seconds for which close() tries to get the lock for what could not go back before."""

_open: set[ref[Inbox]] = set()
"""The open inboxes of this process. (A weakref.WeakSet: importing that is a tenth of what a cold producer
imports.)"""


class Waiting:
    """An element as it waits: what `peek` and iteration give. Reading it may fail if it is taken
    meanwhile."""

    __slots__ = ("_inbox", "_folder", "_file", "key", "seq", "__weakref__")

    key: str
    """The key it was added with."""
    seq: int
    """Its number: its place in the order, and the time of its arrival in nanoseconds since the epoch."""

    def __init__(self, inbox: Inbox, folder: str, file: str, key: str, seq: int) -> None:
        self._inbox = inbox
        self._folder = folder
        self._file = file
        self.key = key
        self.seq = seq

    @property
    def data(self) -> bytes:
        """The payload, read now. Raises OSError."""
        return files.read_payload(self._inbox._layout, self._folder, self._file)

    def open(self) -> int:
        """Return a descriptor of its file, open for reading, for the caller to close. Raises OSError."""
        return files.open_for_reading(self._inbox._layout, self._folder, self._file)

    @property
    def value(self) -> Any:
        """The payload, decoded with the inbox's codec. Raises InvalidPayload, OSError."""
        return decode(self._inbox.codec, self.key, self.data)

    @property
    def path(self) -> str:
        """Path of its file, to stream from."""
        return os.path.join(self._inbox.path, self._folder, self._file)

    @property
    def added_at(self) -> datetime:
        """When its key joined the queue (UTC). A newer value that replaces a waiting one keeps the place, and
        this."""
        from datetime import UTC, datetime

        return datetime.fromtimestamp(self.seq / 1e9, UTC)

    def __iter__(self) -> Iterator[Any]:
        yield self.key
        yield self.value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} {self.seq} in {self._folder}/>"


class Element(Waiting):
    """An element that was taken. End it with ack(), nack() or fail(); unpacks as `(key, value)`."""

    __slots__ = ("_taken", "_consumer", "_ended", "attempts")

    attempts: int
    """How often this value has been taken, this time included: 1 the first time. Survives restarts."""

    def __init__(self, inbox: Inbox, consumer: Consumer, taken: Taken) -> None:
        self._inbox = inbox
        self._folder = inbox._layout.inflight
        self._file = taken.name
        self.key = taken.key
        self.seq = taken.number
        self._taken = taken
        self._consumer = consumer
        self._ended = ""
        self.attempts = taken.attempts

    @property
    def size(self) -> int:
        """Length of the payload in bytes."""
        return self._taken.size

    @property
    def replaced(self) -> bool:
        """Whether it stands for more than one add: this value has replaced one that waited, as the file's
        time tells.

        (The kernel's clock for files ticks every few milliseconds: a value replaced within that time of its
        arrival is not told. Nor is any where another host's clock sets the times.)
        """
        return self._inbox._layout.sharing is None and self._taken.modified > self.seq

    @property
    def suspect(self) -> bool:
        """Whether a consumer died while this was out. Such an element is never out together with another."""
        return bool(self._taken.alone)

    @property
    def culprit(self) -> bool:
        """Whether a consumer died while this, and nothing else, was out."""
        return self._taken.alone == "died"

    @property
    def data(self) -> bytes:
        """The payload, read now. Raises OSError, LeaseLost."""
        try:
            return super().data
        except OSError:
            self._inbox._check_lease(self._consumer)
            raise

    def superseded(self) -> bool:
        """Tell whether a newer value for the key waits, so that work on this one may stop early."""
        inbox = self._inbox
        with _Looking(inbox) as layout:
            if inbox._index.peek_place(self._taken.encoded) > self.seq or layout.exists(
                "pending", self._taken.name
            ):
                return True
            return finished_drop(layout, self.key) is not None

    def ack(self) -> None:
        """It is done: remove it. Raises WrongState if it was ended before."""
        self._end("acknowledged", lambda consumer: consumer.acknowledge(self._taken))

    def nack(self, delay: float = 0.0) -> bool:
        """It is not done: return it to its place, or have it wait `delay` seconds (7 days at most). Counts an
        attempt.

        Returns False if a newer value for the key waits: then this one is dropped instead. Raises WrongState.
        """
        return self._give_back(delay, counted=True)

    def release(self, delay: float = 0.0) -> bool:
        """The same as nack, as if it had not been taken: the attempt does not count."""
        return self._give_back(delay, counted=False)

    def fail(self, reason: str) -> bool:
        """Give up: move it to failed/, with `reason` beside it as text. False if a newer value waits: then it
        is dropped."""
        header = f"key: {self.key}\nattempts: {self.attempts}\nadded: {self.added_at.isoformat()}\n\n"
        return self._end(
            "given up", lambda consumer: consumer.fail(self._taken, header + reason.rstrip("\n") + "\n")
        )

    def _give_back(self, delay: float, *, counted: bool) -> bool:
        if not 0 <= delay <= 7 * 24 * 3600:
            raise ValueError(f"delay must be 0 to 604800 seconds (7 days), not {delay}")
        if delay:
            return self._end("requeued", lambda consumer: consumer.defer(self._taken, delay, counted=counted))
        return self._end("requeued", lambda consumer: consumer.requeue(self._taken, counted=counted))

    def _requeue_now(self) -> None:
        """The inbox is being closed."""
        self._end_now("requeued", lambda consumer: consumer.requeue(self._taken, counted=True))

    def _end(self, how: str, step: Callable[[Consumer], Found]) -> Found:
        """End it by `step`, once. If the system refuses, it stays in flight, and goes back later.

        (An exception out of a signal handler leaves it as it was, or ended: whoever ends it again is told
        which.)
        """
        with self._inbox._alone("end it"):
            result = self._end_now(how, step)
        return result  # noqa: RET504 - not from within: a signal handler that came then would leave the lock taken

    def _end_now(self, how: str, step: Callable[[Consumer], Found]) -> Found:
        inbox = self._inbox
        consumer = self._consumer
        if self._ended or (
            inbox._consumer is consumer and inbox._pid == os.getpid() and not consumer.has(self._taken)
        ):
            self._have_ended(self._ended or "ended")
            raise WrongState(
                f"the element of key {self.key!r} was {self._ended} before: end each element once"
            )
        if inbox._pid != os.getpid():
            raise WrongState(
                f"the element of key {self.key!r} is in flight in the process that took it ({inbox._pid}): "
                "end it there"
            )
        if consumer.lost:
            inbox._check_lease(consumer)
        if inbox._consumer is not consumer:
            raise WrongState(f"inbox {inbox.path} was closed, which requeued the element of key {self.key!r}")
        try:
            result = step(consumer)
        except LeaseLost:
            self._have_ended(how)
            inbox._stop_consuming(consumer)
            raise
        except OSError as error:
            self._have_ended(how)
            inbox._check_lease(consumer)
            raise UnusableInbox(
                f"the element of key {self.key!r} in {inbox.path} could not be {how}: {error}: "
                "it stays in flight until that is mended, or a consumer starts next"
            ) from error
        self._have_ended(how)
        return result

    def _have_ended(self, how: str) -> None:
        inbox = self._inbox
        self._ended = how
        if inbox._elements.get(self._taken.encoded) is self:
            del inbox._elements[self._taken.encoded]
        inbox._wake()  # another thread may wait for this key, or for a place among max_inflight


class _Looking:
    """Around a look at the folders: what the system says against it is told as an error of ours."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __enter__(self) -> Layout:
        return self._inbox._begin_call(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inbox._end_call(self)
        if isinstance(error, OSError) and not isinstance(error, InboxError):
            raise UnusableInbox(
                f"cannot look into inbox {self._inbox.path}: {error}: nothing was changed; mend that, look "
                "again"
            ) from error


class Inbox:
    """A keyed, acknowledged FIFO queue in a directory.

    Any number of processes and threads may open it and add. One process at a time may take; it becomes the
    consumer with its first take and stays it until close(). Use it in a `with` block, or call close().
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "inbox",
        *,
        codec: str = "json",
        durable: bool = True,
        create: bool = True,
        shared: bool = False,
        max_inflight: int = 1,
        settle: float = 0.0,
        max_settle: float = 60.0,
        drop_settle: float = 1.0,
        max_drop_size: int = 1 << 30,
        watch: str = "auto",
        poll_interval: float = 1.0,
        shard: str = "1/1",
        lease: float = 15.0,
        scope: str = "auto",
        keep_done: int = 0,
    ) -> None:
        """Open the inbox at `path`, and create it, durably, if it is not there.

        codec          "json", "text" or "bytes": what a value is, and how it becomes a file's content
        durable        whether add returns only when a power cut can no longer lose the element (False:
                       neither adds nor what the consumer does is flushed)
        create         False: raise UnusableInbox if there is no inbox
        shared         when creating: let the group read and write (default: only the user)
        max_inflight   how many elements may be out at once; never two of one key
        settle         seconds that a key must have been left alone before its element is taken ...
        max_settle     ... but once it has waited this many seconds it is taken anyway
        drop_settle    seconds that a file in drop/ must lie still if it may be under its writer's hand
        max_drop_size  bytes; a larger file in drop/ is set aside
        watch          "auto", "events" or "poll": how an idle consumer notices arrivals
        poll_interval  seconds between polls at most, where it polls
        shard          "I/N": consume only the I-th of N parts of the keys; one consumer for each
        lease          seconds without a sign of life after which another host's consumer takes over, in a
                       shared inbox
        scope          when creating: "local" or "network", whether several hosts share it; "auto": as the
                       file system is
        keep_done      how many acknowledged elements to keep in done/, the last ones, to look at or to replay

        Raises UnusableInbox, ValueError.
        """
        self.codec = check_codec(codec)
        self.durable = durable
        if max_inflight < 1:
            raise ValueError(f"max_inflight must be at least 1, not {max_inflight}")
        self.max_inflight = max_inflight
        if watch not in ("auto", "events", "poll"):
            raise ValueError(f"unknown watch mode {watch!r}: use 'auto', 'events' or 'poll'")
        if not (min(settle, max_settle, drop_settle, max_drop_size) >= 0 and poll_interval > 0):
            raise ValueError(
                "settle, max_settle, drop_settle and max_drop_size must be 0 or more, poll_interval more "
                "than 0"
            )
        if scope not in ("auto", "local", "network"):
            raise ValueError(f"unknown scope {scope!r}: use 'auto', 'local' or 'network'")
        if keep_done < 0:
            raise ValueError(f"keep_done must be 0 or more, not {keep_done}")
        if not 1 <= lease <= 86400:
            raise ValueError(f"lease must be 1 to 86400 seconds (a day), not {lease}")
        self._shard = shard
        if shard != "1/1":
            from .consumer.ownership import parse_shard

            parse_shard(shard)
        self._settings = (settle, max_settle, drop_settle, max_drop_size, durable)
        self._lease = lease
        self._keep_done = keep_done
        self._watch_settings = (watch, poll_interval)
        self._mutex = RLock()
        self._sleeper = RLock()
        self._consumer: Consumer | None = None
        self._watching: Watch | None = None
        self._elements: dict[str, Element] = {}
        self._calls: set[object] = (
            set()
        )  # those that run: the last one to end closes what was closed meanwhile
        self._next_check = 0.0
        self._pid = os.getpid()
        self._closed = False
        self._layout = Layout(
            os.fspath(path), create=create, shared=shared, scope="" if scope == "auto" else scope
        )
        try:
            self._index = open_index(self._layout)
        except BaseException:
            self._layout.close()
            raise
        _open.add(ref(self, _open.discard))

    @property
    def path(self) -> str:
        """Absolute path of the inbox."""
        return self._layout.path

    # --- adding ---------------------------------------------------------------------------------------

    def add(self, key: str, value: object, *, durable: bool | None = None) -> Added:
        """Queue `value` for `key`. It replaces a waiting value of that key and keeps its place.

        Returns "new"; "replaced" (a waiting value); or "behind": the key's element is being worked on, and
        this is queued anew. Raises InvalidKey, InvalidPayload, AddFailed.
        """
        return self._add(key, encode(self.codec, key, value), durable)

    def add_bytes(self, key: str, data: bytes, *, durable: bool | None = None) -> Added:
        """The same for a payload that is already encoded: the file's content will be exactly `data`."""
        return self._add(key, data, durable)

    def add_file(
        self, key: str, path: str | os.PathLike[str], *, move: bool = False, durable: bool | None = None
    ) -> Added:
        """Queue the content of the file at `path`, of any size.

        move=True hands the file itself over: a rename, if it lies on the inbox's file system (else a copy,
        and the original is removed once the element is queued); nobody may write to it afterwards. Otherwise
        it is copied, by reference where the file system can (Btrfs, XFS). Raises InvalidKey, AddFailed. A
        file that could not be handed over is where it was; if it was a flush that failed, write it anew: what
        the system had cached of it may be lost.
        """
        from .store.transfer import Source

        with Source(os.fspath(path), move=move) as source:
            return self._add(key, source, durable)

    def add_stream(self, key: str, stream: BinaryIO, *, durable: bool | None = None) -> Added:
        """Queue what a binary stream gives, to its end. Raises InvalidKey, AddFailed."""
        from .store.transfer import Stream

        return self._add(key, Stream(stream), durable)

    def add_many(
        self,
        items: Iterable[tuple[str, object]],
        *,
        durable: bool | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> dict[Added, int]:
        """Queue every (key, value), in order, with one flush for many. Returns how many were new, replaced,
        behind.

        `progress` is called with the number queued so far, after each batch: those are then as durable as
        asked. If it raises, or an item is invalid, what was queued before stays queued. Raises InvalidKey,
        InvalidPayload, AddFailed.
        """
        durable = self.durable if durable is None else durable
        total: dict[Added, int] = {"new": 0, "replaced": 0, "behind": 0}
        batch: list[tuple[str, str, bytes]] = []
        done = 0

        def finish() -> None:
            nonlocal done
            now = batch[:]
            batch.clear()  # first: it is tried once
            for outcome in self._run_add(now[0][0], lambda add: add.many(now), durable):
                total[outcome] += 1
            done += len(now)
            if progress:
                progress(done)

        try:
            for key, value in items:
                batch.append((key, encode_key(key), encode(self.codec, key, value)))
                if len(batch) == _BATCH:
                    finish()
        finally:
            if batch:
                finish()
        return total

    def _add(self, key: str, payload: Any, durable: bool | None) -> Added:
        encoded = encode_key(key)
        return self._run_add(key, lambda add: add.one(key, encoded, payload), durable)

    def _run_add(self, key: str, step: Callable[[Add], Found], durable: bool | None) -> Found:
        call = object()
        try:
            layout = self._begin_call(call)
            self._check_place()
            add = Add(layout, self._index, durable=self.durable if durable is None else durable)
            try:
                result = step(add)
            except OSError as error:
                raise self._add_failed(error, key, maybe_added=add.may_be_there(error)) from error
            self._end_call(call)
            return result
        except BaseException:
            self._end_call(call)
            raise

    def _check_place(self) -> None:
        """Raise UnusableInbox if the path leads elsewhere by now: nobody may ever look at what is added
        here."""
        now = monotonic()
        if now >= self._next_check:
            self._next_check = now + 1
            if gone := self._layout.where_it_went():
                raise UnusableInbox(
                    f"inbox {self.path} {gone}: nothing was added; start anew, on the inbox that is meant"
                )

    def _add_failed(self, error: OSError, key: str, *, maybe_added: bool) -> AddFailed:
        if maybe_added:
            outcome = "it may or may not be delivered; add it again to be sure (the newest value wins)"
        else:
            outcome = "it was not added; free what is short or mend what is wrong, then add it again"
        return AddFailed(
            error.errno,
            f"cannot add key {key!r} to inbox {self.path}: {error.strerror or error}: {outcome}",
            maybe_added=maybe_added,
        )

    def _alone(self, later: str) -> RLock:
        """Return the lock under which the consumer works. Raises WrongState in a signal handler that
        interrupted who has it."""
        if self._mutex._is_owned():  # type: ignore[attr-defined]
            raise WrongState(
                f"inbox {self.path} is being worked on by what this signal handler interrupted: {later} later"
            )
        return self._mutex

    def _begin_call(self, call: object) -> Layout:
        """Have the folders stay open until _end_call(call). Raises WrongState if the inbox was closed."""
        self._calls.add(call)  # first: close() looks at it after it has set _closed
        return self._layout if self._pid == os.getpid() and not self._closed else self._open_layout()

    def _end_call(self, call: object) -> None:
        self._calls.discard(call)
        if self._closed and not self._calls:
            self._close_files()

    def _close_files(self) -> None:
        self._index.close()
        self._layout.close()

    def _open_layout(self) -> Layout:
        """Return the layout, opened anew in a forked child: it must not share the parent's locks and
        descriptors."""
        if self._closed:
            raise WrongState(f"inbox {self.path} was closed: open it again")
        if self._pid != os.getpid():
            self._reopen_after_fork()
        return self._layout

    def _reopen_after_fork(self) -> None:
        self._pid = os.getpid()
        if self._consumer:
            self._consumer.abandon_after_fork()
            self._consumer = None
        self._watching = None
        self._elements = {}
        self._mutex = RLock()
        self._sleeper = RLock()
        self._close_files()
        self._layout = Layout(self._layout.path, create=False)
        self._index = open_index(self._layout)

    # --- taking ---------------------------------------------------------------------------------------

    def take(self, timeout: float | None = 0.0) -> Element | None:
        """Take the oldest element; None if none may be taken within `timeout` seconds (None: wait for ever).

        The first take makes this process the consumer, and puts back what a dead one held.
        Raises WrongState while max_inflight elements are out, InboxBusy if there is another consumer.
        """
        handed: list[Element] = []
        try:
            return self._take_now(handed) or (
                None if timeout == 0 else self._wait_for(lambda: self._take_now(handed), timeout)
            )
        except BaseException:
            for element in handed:  # by an exception out of a signal handler
                element.release()
            raise

    def commit(self) -> None:
        """Acknowledge the element that is out. Raises WrongState if none is, or several are."""
        self._the_one_out("commit").ack()

    def rollback(self) -> bool:
        """Return the element that is out to its place; False if a newer value waits and it was dropped."""
        return self._the_one_out("rollback").nack()

    def _the_one_out(self, what: str) -> Element:
        with self._mutex:
            if not self._elements:
                raise WrongState(
                    f"nothing to {what}: no element of inbox {self.path} is out; take() one first"
                )
            if len(self._elements) > 1:
                raise WrongState(
                    f"{len(self._elements)} elements are out: say which one to {what}, with element.ack() or "
                    "element.nack()"
                )
            return next(iter(self._elements.values()))

    def _take_now(self, handed: list[Element]) -> Element | None:
        """Take the oldest element, if one may be taken now, and add it to `handed`."""
        call = object()
        try:
            self._begin_call(call)
            with self._alone("take"):
                if self._closed:
                    self._open_layout()  # which says so
                element = self._take_next(handed)
            self._end_call(call)
            return element
        except BaseException:
            self._end_call(call)
            raise

    def _take_next(self, handed: list[Element]) -> Element | None:
        consumer = self._consume()
        if len(self._elements) >= self.max_inflight:
            keys = ", ".join(repr(element.key) for element in list(self._elements.values())[:3])
            raise WrongState(
                f"{'an element is' if self.max_inflight == 1 else f'{self.max_inflight} elements are'} in "
                f"flight ({keys}): "
                "commit() or rollback() first, or open the inbox with a larger max_inflight"
            )
        try:
            taken = consumer.take()
            if taken is None:
                return None
            element = Element(self, consumer, taken)
            handed.append(element)
            self._elements[taken.encoded] = element
        except LeaseLost:
            self._stop_consuming(consumer)
            raise
        except OSError as error:
            self._check_lease(consumer)
            raise UnusableInbox(
                f"cannot take from inbox {self.path}: {error}: nothing was lost; mend that, take again"
            ) from error
        except InboxError:
            raise
        except BaseException:  # out of a signal handler: nobody will have what was taken
            handed.clear()
            consumer.disown(self._elements)
            raise
        if self._watching:
            self._watching.found()
        return element

    def become_consumer(self) -> None:
        """Become the consumer now, and not with the first take. Raises InboxBusy, UnusableInbox."""
        with _Looking(self), self._mutex:
            self._consume()

    def check_lease(self) -> None:
        """Raise LeaseLost if another consumer is known to have taken over (in an inbox that several hosts
        share)."""
        with self._mutex:
            if self._consumer and self._consumer.lost:
                self._check_lease(self._consumer)

    def _check_lease(self, consumer: Consumer) -> None:
        """Raise LeaseLost if that is why something could not be done."""
        try:
            consumer.verify()
        except LeaseLost:
            self._stop_consuming(consumer)
            raise

    def _stop_consuming(self, consumer: Consumer) -> None:
        """Another consumer has taken over: the next take begins anew. What is out is not ours any more."""
        if (
            self._consumer is consumer
        ):  # else the next take has been, and this is told of an element from before
            self._consumer = None
            self._elements.clear()
        consumer.close()

    def _consume(self) -> Consumer:
        if self._consumer is None:
            from .consumer.consumer import Consumer, Settings
            from .consumer.ownership import parse_shard

            settings = Settings(*self._settings, parse_shard(self._shard), self._lease, self._keep_done)
            try:
                self._consumer = Consumer(self._layout, self._index, settings)
                self._consumer.when_lost(self._wake)
            except OSError as error:
                raise UnusableInbox(
                    f"cannot consume inbox {self.path}: {error}: nothing was lost; mend that, try again"
                ) from error
        return self._consumer

    # --- waiting --------------------------------------------------------------------------------------

    def listening(self) -> AbstractContextManager[Watch]:
        """While this lasts, arrivals are noticed: a context manager that gives the Watch (see
        fsinbox.consumer.watch)."""
        watch = self._watch()
        watch.start()
        return watch.armed()

    def _watch(self) -> Watch:
        layout = self._open_layout()
        with self._mutex:
            if self._watching is None:
                from .consumer.watch import Watch

                mode, poll = self._watch_settings
                self._watching = Watch(layout, self._moved_in, mode=mode, poll=poll)
            return self._watching

    @property
    def layout(self) -> Layout:
        """The open folders, for what looks at them: see fsinbox.operate.survey."""
        return self._open_layout()

    @property
    def waker(self) -> Waker:
        """What wakes this inbox's sleeper; `set()` it from any thread or signal handler."""
        return self._watch().waker

    def _wake(self) -> None:
        if self._watching:
            self._watching.waker.set()

    def next_look_in(self) -> float | None:
        """Return in how many seconds something may become takeable by itself (a back-off, a settle time), or
        None.

        None, too, while people have paused it, and for what they hold: that is for them to end.
        """
        look = self._consumer.next_look() if self._consumer else None
        return None if look is None else max(0.0, look - monotonic())

    def sleep_limit(self) -> float | None:
        """Return for how many seconds to sleep at most before the next look, or None: until something
        arrives."""
        return self._limit(None)

    @property
    def paused(self) -> bool:
        """Whether people have paused the consumer that this is (`fsinbox pause`): then `take` gives
        nothing."""
        return bool(self._consumer and self._consumer.paused)

    def _moved_in(self, name: str) -> None:
        consumer = self._consumer
        if consumer:
            consumer.drops.moved_in.add(name)

    def _limit(self, left: float | None) -> float | None:
        """Return how long the consumer may sleep, given the caller's own limit (seconds)."""
        consumer = self._consumer
        now = monotonic()
        looks = (consumer.next_look(), consumer.next_wish()) if consumer else ()
        limits = [max(0.0, look - now) for look in looks if look is not None]
        return min(limits if left is None else [left, *limits], default=None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until an element waits (or a file in drop/); False if none came within `timeout` seconds.
        Takes nothing."""
        return self._anything() or bool(self._wait_for(self._anything, timeout))

    def _wait_for(self, look: Callable[[], Found], timeout: float | None) -> Found | None:
        """Look at each arrival until `look` finds something; None if it does not within `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        # One sleeper at a time: a wake reaches one. The next thread in line gives up at its own deadline.
        try:
            if not self._sleeper.acquire(timeout=-1 if timeout is None else timeout):
                return None
            with self.listening() as watch:
                while True:
                    watch.waker.clear()
                    found = look()
                    if found:
                        return found
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return None
                    watch.sleep(self._limit(left))
        finally:
            if self._sleeper._is_owned():  # type: ignore[attr-defined]
                self._sleeper.release()

    def _anything(self) -> bool:
        with _Looking(self) as layout:
            if any(parse_element(name) for name in layout.names("pending")):
                return True
            return any(not name.lower().endswith(DRAFTS) for name in layout.names("drop"))

    # --- looking --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Waiting]:
        """Go through what waits, oldest first, without taking it. Lists the folder: costs with its size."""
        with _Looking(self) as layout:
            places = self._places(layout)
        for seq, _, key, file in places:
            yield Waiting(self, "pending", file, key, seq)

    def _places(self, layout: Layout) -> list[tuple[int, str, str, str]]:
        """Return (number, encoded key, key, file name) of what waits, oldest first: per key the oldest place,
        the newest file."""
        places: dict[str, tuple[int, str, str, str]] = {}
        for name in sorted(layout.names("pending")):
            parsed = parse_element(name)
            key = parsed and decode_key(parsed[1])
            if parsed and key is not None:
                first = places.get(parsed[1])
                places[parsed[1]] = (first[0] if first else parsed[0], parsed[1], key, name)
        return sorted(places.values())

    def peek(self) -> Waiting | None:
        """Return the oldest waiting element without taking it, or None."""
        return next(iter(self), None)

    def find(self, key: str) -> Waiting | None:
        """Return the waiting element of `key`, or None. Quick where the index knows it; else it lists the
        folder."""
        encoded = encode_key(key)
        with _Looking(self):
            place = self._index.peek_place(encoded)
        if place:
            return Waiting(self, "pending", element_name(place, encoded), key, place)
        return next((waiting for waiting in self if waiting.key == key), None)

    def __contains__(self, key: object) -> bool:
        """Tell whether an element of `key` waits (one that waits out a back-off included)."""
        try:
            suffix = "-" + encode_key(key)  # type: ignore[arg-type]
        except InvalidKey:
            return False
        if self.find(decode_key(suffix[1:]) or ""):
            return True
        with _Looking(self) as layout:
            return any(name[39:] == suffix for name in layout.names("deferred") if parse_deferred(name))

    def __len__(self) -> int:
        """Return how many elements wait, those that wait out a back-off included, files in drop/ not. Lists
        the folders."""
        with _Looking(self) as layout:
            deferred = {name[40:] for name in layout.names("deferred") if parse_deferred(name)}
            return len({encoded for _, encoded, _, _ in self._places(layout)} | deferred)

    def __bool__(self) -> bool:
        """An open inbox is true, also when it is empty: `if inbox:` must not list a million files."""
        return True

    # --- the end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Requeue what is in flight, stop being the consumer, and close. Safe to call twice.

        A call that runs in another thread goes on to its end, or raises WrongState.
        """
        if self._closed:
            return
        if self._pid != os.getpid():
            self._reopen_after_fork()
        call = object()
        self._calls.add(call)
        self._closed = True
        try:
            with self._mutex:
                if self._consumer:
                    self._requeue_all(self._consumer)
        finally:
            self._wake()
            if self._watching:
                self._watching.close()
            with self._mutex:
                if self._consumer:
                    self._consumer.close()
                    self._consumer = None
            self._end_call(call)

    def _requeue_all(self, consumer: Consumer) -> None:
        try:
            for element in list(self._elements.values()):
                if consumer.has(element._taken):
                    element._requeue_now()
            try:
                consumer.disown({})
                if refused := consumer.send_back_again(_LAST_PATIENCE):
                    raise refused
            except OSError as error:
                raise UnusableInbox(
                    f"cannot requeue what is in flight in inbox {self.path}: {error}: it comes back when a "
                    "consumer starts next"
                ) from error
        except LeaseLost:
            pass  # what was in flight is with another consumer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Inbox {self.path!r}>"


def _let_go_after_fork() -> None:
    """In a forked child: let go of the parent's locks, which the child would otherwise hold on to after its
    death."""
    index.forget_sections()
    for inbox in filter(None, [known() for known in list(_open)]):
        inbox._calls.clear()  # of threads that are not here
        inbox._index.close()
        if inbox._consumer:
            inbox._consumer.abandon_after_fork()


os.register_at_fork(after_in_child=_let_go_after_fork)

__all__ = ["Element", "Inbox", "InvalidPayload", "Waiting"]
