"""Inbox: what a program calls."""

from __future__ import annotations

import os

from .element import Element, Looks
from .store.adding import Adder
from .store.amounts import checked, patience, size
from .store.codecs import check_codec
from .store.handle import Handle, Looking
from .store.producing import Adds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Self

    from .consumer.session import Claim, Session
    from .consumer.sleeper import Sleeper
    from .store.amounts import Size, Time
    from .store.index import Index
    from .store.layout import Layout


class Inbox(Adds, Looks):
    """A keyed, acknowledged FIFO queue in a directory.

    Any number of processes and threads may open it and add. One process at a time may take; it becomes the
    consumer with its first take and stays it until close(). Use it in a `with` block, or call close().

    Times are seconds, "5m", "1h30m" or a timedelta; sizes are bytes or "10MB".

    path           the directory; if it is not there, it is created, durably
    codec          "json", "text" or "bytes": what a value is, and how it becomes a file's content
    durable        whether add returns only when a power cut can no longer lose the element (False:
                   neither adds nor what the consumer does is flushed)
    volatile       what is added without a flush may be lost in a power cut with the value that it replaces,
                   as the file system does not write it out at once: so replacing is quicker on ext4
    create         False: raise UnusableInbox if there is no inbox
    shared         when creating: let the group read and write (default: only the user)
    max_inflight   how many elements may be in flight at once; never two of one key
    settle         debounce: how long a key must have been left alone before its element is taken ...
    max_settle     ... but once it has waited this long it is taken anyway
    drop_settle    how long a file in drop/ must lie still that may be unfinished (None: 1 s; 5 s if untold)
    ignore         more patterns, as in a .gitignore, of names in drop/ that are left alone
    drop_recursive subfolders of drop/ are looked into: drop/a/b.pdf is ingested as key "a/b.pdf"
    max_drop_size  a larger file in drop/ is set aside
    watch          "auto", "events" or "poll": how an idle consumer notices arrivals
    poll_interval  time between polls at most, where it polls
    shard          "I/N": consume only the I-th of N parts of the keys; one consumer for each
    lease          time without a heartbeat after which another host's consumer takes over
    scope          when creating: "local" or "network", whether several hosts share it; "auto": as the
                   file system is
    force          with scope="local": only this host uses it, although it lies on a network or FUSE mount
    keep_done      how many acknowledged elements to keep in done/, the last ones
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "inbox",
        *,
        codec: str = "json",
        durable: bool = True,
        volatile: bool = False,
        create: bool = True,
        shared: bool = False,
        max_inflight: int = 1,
        settle: Time = 0.0,
        max_settle: Time = 60.0,
        drop_settle: Time | None = None,
        ignore: Sequence[str] = (),
        drop_recursive: bool = False,
        max_drop_size: Size = 1 << 30,
        watch: str = "auto",
        poll_interval: Time = 1.0,
        shard: str = "1/1",
        lease: Time = 15.0,
        scope: str = "auto",
        force: bool = False,
        keep_done: int = 0,
    ) -> None:
        """Open it. Raises UnusableInbox, ValueError."""
        self.codec = check_codec(codec)
        self.durable = durable
        times = checked(settle=settle, max_settle=max_settle, poll_interval=poll_interval, lease=lease)
        _check(max_inflight, watch, times["poll_interval"])
        _check_more(scope, keep_done, times["lease"], force=force)
        self._ignore = _check_patterns(shard, ignore)
        self.max_inflight = max_inflight
        self._watch = (watch, times["poll_interval"])
        self._shard = shard
        self._consuming: dict[str, Any] = {
            "settle": times["settle"],
            "max_settle": times["max_settle"],
            "drop_settle": None if drop_settle is None else checked(drop_settle=drop_settle)["drop_settle"],
            "ignore": self._ignore,
            "drop_recursive": drop_recursive,
            "max_drop_size": _bytes(max_drop_size),
            "durable": durable,
            "lease": times["lease"],
            "keep_done": keep_done,
        }
        self._sessions: dict[int, Session] = {}  # by process: a forked child has its own
        self._handle = Handle(os.fspath(path), create=create, shared=shared, scope=scope, force=force)
        self._handle.layout.exchanges = volatile and self._handle.layout.sharing is None
        self._adder = Adder(self._handle)

    @property
    def path(self) -> str:
        """Absolute path of the inbox."""
        return self._handle.path

    @property
    def layout(self) -> Layout:
        """The open folders, for what looks at them: see fsinbox.operate. Raises WrongState if it was
        closed."""
        return self._handle.current()

    @property
    def index(self) -> Index:
        """The open index: its steps are run inside the section."""
        self._handle.current()
        return self._handle.index

    # --- taking -------------------------------------------------------------------------------------------

    def take(self, timeout: Time | None = 0.0) -> Element | None:
        """Take the oldest element; None if none may be taken within `timeout` (None: wait for ever).

        The first take makes this process the consumer, and requeues what a dead one held. Raises WrongState
        while max_inflight elements are in flight, InboxBusy if there is another consumer.
        """
        handed: list[Claim] = []
        try:
            session = self._taking()
            claim = session.take(handed)
            if not claim and timeout != 0:
                claim = session.sleeper.wait_for(lambda: session.take(handed), patience(timeout))
            return Element(self._handle, self.codec, claim) if claim else None
        except BaseException:
            for claim in handed:  # by an exception out of a signal handler
                claim.requeue(counted=False)
            raise

    def commit(self) -> None:
        """Acknowledge the element that is in flight. Raises WrongState if none is, or several are."""
        self._taking().the_one_in_flight("commit").acknowledge()

    def rollback(self) -> bool:
        """Return the element that is in flight to its place; False if a newer value waits and it was
        dropped."""
        return self._taking().the_one_in_flight("rollback").requeue(counted=True)

    def become_consumer(self) -> None:
        """Become the consumer now, and not with the first take. Raises InboxBusy, UnusableInbox."""
        with Looking(self._handle):
            self._taking().become_consumer()

    def may_become_consumer(self) -> bool:
        """Tell, after InboxBusy, whether it is worth while to try again. Raises UnusableInbox."""
        with Looking(self._handle):
            return self._taking().may_become_consumer()

    def check_lease(self) -> None:
        """Raise LeaseLost if another consumer is known to have taken over (where several hosts share it)."""
        if self._handle.layout.sharing:
            self._taking().check_lease()

    @property
    def in_flight(self) -> list[str]:
        """The keys of the elements that were taken here, and not ended."""
        return [claim.taken.key for claim in list(self._taking().claims.values())]

    @property
    def paused(self) -> bool:
        """Whether people have paused the consumer that this is (`fsinbox pause`): then `take` gives
        nothing."""
        consumer = self._taking().consumer
        return bool(consumer and consumer.controls.paused)

    def _taking(self) -> Session:
        """Return this process's session, made at the first call: a producer has none, and does not import
        it."""
        session = self._sessions.get(os.getpid())
        if session is None:
            from .consumer.session import open_session

            room = lambda: self.max_inflight  # noqa: E731
            session = open_session(self._handle, room, self._watch, self._shard, self._consuming)
            session = self._sessions.setdefault(session.pid, session)  # (another thread may be quicker)
        return session

    # --- waiting ------------------------------------------------------------------------------------------

    def wait(self, timeout: Time | None = None) -> bool:
        """Wait until an element waits (or a file in drop/); False if none came within `timeout`.
        Takes nothing."""
        return self.anything() or bool(self.sleeper.wait_for(self.anything, patience(timeout)))

    @property
    def sleeper(self) -> Sleeper:
        """What sleeps until something may be taken, for a loop of one's own. Raises WrongState if it was
        closed."""
        return self._taking().sleeper

    def next_look_in(self) -> float | None:
        """Return in how many seconds something may become takeable by itself (a back-off, a debounce, a
        value for later); None if nothing will, or people hold it back."""
        return self.sleeper.next_look_in()

    # --- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Requeue what is in flight, stop being the consumer, and close. Safe to call twice.

        A call that runs in another thread goes on to its end, or raises WrongState. Raises UnusableInbox.
        """
        if not self._handle.closed:
            self._handle.current()  # in a forked child: its own
            session = self._sessions.get(os.getpid())
            self._handle.close(session.close if session else lambda: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Inbox {self.path!r}>"


def _check(max_inflight: int, watch: str, poll_interval: float) -> None:
    """Raise ValueError for what cannot be meant."""
    if max_inflight < 1:
        raise ValueError(f"max_inflight must be at least 1, not {max_inflight}")
    if watch not in ("auto", "events", "poll"):
        raise ValueError(f"unknown watch mode {watch!r}: use 'auto', 'events' or 'poll'")
    if not poll_interval:
        raise ValueError("poll_interval must be more than 0")


def _bytes(max_drop_size: Size) -> int:
    try:
        return size(max_drop_size)
    except ValueError as error:
        raise ValueError(f"max_drop_size: {error}") from None


def _check_more(scope: str, keep_done: int, lease: float, *, force: bool) -> None:
    if scope not in ("auto", "local", "network"):
        raise ValueError(f"unknown scope {scope!r}: use 'auto', 'local' or 'network'")
    if force and scope != "local":
        raise ValueError(f"force is for scope 'local', not {scope!r}")
    if keep_done < 0:
        raise ValueError(f"keep_done must be 0 or more, not {keep_done}")
    if not 1 <= lease <= 86400:
        raise ValueError(f"lease must be 1 to 86400 seconds (a day), not {lease}")


def _check_patterns(shard: str, ignore: Sequence[str]) -> tuple[str, ...]:
    """Check these, and import what does that only where there is something to check."""
    if shard != "1/1":
        from .consumer.ownership import parse_shard

        parse_shard(shard)
    if ignore:
        from .store.ignoring import check_patterns

        return check_patterns(ignore)
    return ()


__all__ = ["Inbox"]
