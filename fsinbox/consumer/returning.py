"""The ways back: an element that is in flight goes to pending/, deferred/ or failed/, inside the section.

The consumer never waits for the lock without bound. What cannot go back at once, since the lock is not to be
had or the system refuses, stays in inflight/ and is tried again between takes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic, sleep

from ..store import transitions
from ..store.files import remove_any
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import REASON, about, encoded_of
from ..store.section import Busy
from .attempts import Attempts
from .listing import STUCK
from .ownership import ConsumerLock
from .ready import Ready

log = logging.getLogger("fsinbox")

_MOST_ENDED = 10_000
"""Keys in Ended: then they are flushed, to bound what is kept in memory."""

SOON = 0.05
"""Seconds until what could not be done for want of the lock is tried again."""

_PAUSE = SOON / 5
"""Seconds between two tries where the caller is patient."""


class Ended(set[str]):
    """Encoded keys of which an element was ended since inflight/ and deferred/ were last flushed.

    Before another one of such a key is taken they are flushed, so that a power cut cannot bring back the
    older one when the newer is gone.
    """

    def __init__(self, layout: Layout, *, durable: bool) -> None:
        super().__init__()
        self._layout = layout
        self._durable = durable

    def flush(self) -> None:
        """Make every end so far survive a power cut. Raises OSError."""
        if self._durable:
            transitions.flush_ended(self._layout)
        self.clear()

    def flush_before(self, encoded: str) -> None:
        """An element of this key is about to be taken. Raises OSError."""
        if encoded in self or len(self) > _MOST_ENDED:
            self.flush()


@dataclass(frozen=True, slots=True)
class WayBack:
    """Where an element that is in flight is to go: to `folder`, under the name `new`. `delay` in seconds."""

    name: str
    encoded: str
    folder: str
    new: str
    delay: float = 0.0


def requeued(name: str) -> WayBack:
    """Return the way of an element back to its place."""
    return WayBack(name, encoded_of(name), "pending", name)


class Returning:
    """Elements on their way back. What is in here lies in inflight/, and nobody has it.

    `ways`: encoded key -> where its element is to go. `refused`: those keys that the system refused; nobody
    needs to wait for them.
    """

    def __init__(
        self,
        layout: Layout,
        index: Index,
        ownership: ConsumerLock,
        ready: Ready,
        attempts: Attempts,
        ended: Ended,
    ) -> None:
        self._layout = layout
        self._index = index
        self._ownership = ownership
        self._ready = ready
        self._attempts = attempts
        self._ended = ended
        self.ways: dict[str, WayBack] = {}
        self.refused: set[str] = set()

    @property
    def is_soon(self) -> bool:
        """Whether something waits for no more than the lock."""
        return len(self.ways) > len(self.refused)

    def next_look(self) -> float | None:
        """Return when (monotonic seconds) what the system refused is to be tried again; None if nothing was.
        A drain does not wait for it."""
        return monotonic() + STUCK if self.refused else None

    def later(self, way: WayBack) -> None:
        """Have it tried between takes."""
        self.ways[way.encoded] = way

    def send(self, way: WayBack) -> bool:
        """Send an element its way; False if a newer value waits and it was dropped, or if it is gone.

        If the lock is not to be had it is tried again later; so it is if the system refuses, which is raised:
        OSError. Raises LeaseLost.
        """
        try:
            outcome = self._index.try_locked(
                transitions.go_back, self._layout, self._index, way.name, way.folder, way.new
            )
            if outcome == "newer":
                transitions.discard(self._layout, "inflight", way.name, transitions.SUPERSEDED)
        except Busy:
            self.ways[way.encoded] = way
            return True
        except OSError:
            self.ways[way.encoded] = way
            self.refused.add(way.encoded)
            raise
        if outcome == "gone":
            self._ownership.verify()
        self.ways.pop(way.encoded, None)
        self.refused.discard(way.encoded)
        self._have_sent(way, moved=outcome == "moved")
        return outcome == "moved"

    def _have_sent(self, way: WayBack, *, moved: bool) -> None:
        self._ended.add(way.encoded)
        self._ready.unblock(way.encoded)
        if moved and way.folder == "pending":
            self._ready.push(way.name)
        elif moved and way.folder == "deferred":
            self._ready.defer(way.encoded, way.new, monotonic() + max(0.0, way.delay))
        else:
            if not moved:
                self.push_if_there(way.name)
            self._attempts.forget(way.name)
            if way.folder == "failed" and not moved:
                remove_any(self._layout, "failed", way.name + REASON)

    def push_if_there(self, name: str) -> bool:
        """Tell whether something waits under the name of what was dropped: then it is ready, for nothing
        newer of its key may be taken first."""
        there = self._layout.exists("pending", name)
        if there:
            self._ready.push(name)
        return there

    def try_again(self, patience: float = 0.0) -> OSError | None:
        """Try again what could not go back, for `patience` seconds in all.

        Returns why the system refused the last such one. Raises LeaseLost.
        """
        refused = None
        until = monotonic() + patience
        for way in list(self.ways.values()):
            said = way.encoded in self.refused
            try:
                self.send(way)
                while way.encoded in self.ways and monotonic() < until:
                    sleep(_PAUSE)
                    self.send(way)
            except OSError as error:
                refused = error
                self._ownership.verify()
                if not said:
                    log.error(
                        "cannot move %r of inflight/ to %s/: %s: it stays there, and is tried again",
                        way.name,
                        way.folder,
                        error.strerror,
                        extra=about("stranded", way.name),
                    )
        return refused
