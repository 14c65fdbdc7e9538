"""One element, from its place to inflight/: whatever lies there under its name, and whatever else does."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from ..store import transitions
from ..store.files import end_delay, for_later, not_before
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import decode_key, element_of, parse_element
from ..store.section import Busy
from ..store.transitions import DUPLICATE, OVERTAKEN, SUPERSEDED, discard
from .attempts import Attempts
from .foreign import NO_NAME, NOT_REGULAR, Foreign
from .ownership import ConsumerLock
from .ready import Ready
from .returning import SOON, Ended, Returning
from .settings import Settings


@dataclass(slots=True)  # (frozen costs a microsecond a take)
class Taken:
    """An element that is in flight. Nobody changes one. Size in bytes, times in nanoseconds."""

    name: str
    number: int
    encoded: str
    key: str
    attempts: int
    alone: str
    size: int
    inode: int
    modified: int
    not_before: int
    """For when it was added for later, in nanoseconds since the epoch; 0: it was not."""
    too_soon: int
    """Nanoseconds for which it is not to be handed out yet; 0: it may be."""


class Taking:
    """Takes what is ready. `in_flight` is the consumer's: what it has."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        ownership: ConsumerLock,
        settings: Settings,
        ready: Ready,
        in_flight: Mapping[str, Taken],
        attempts: Attempts,
        returning: Returning,
        ended: Ended,
        foreign: Foreign,
    ) -> None:
        self._layout = layout
        self._index = index
        self._ownership = ownership
        self._settings = settings
        self._ready = ready
        self._in_flight = in_flight
        self._attempts = attempts
        self._returning = returning
        self._ended = ended
        self._foreign = foreign

    def take(self, name: str, deferred: str | None) -> Taken | None:
        """Try to take the element of this name; None if that did not give one."""
        parsed = parse_element(name)
        key = parsed and decode_key(parsed[1])
        if not parsed or key is None:
            self._foreign.set_aside("pending", name, NO_NAME)
            return None
        number, encoded = parsed
        if encoded in self._in_flight or encoded in self._returning.ways:
            self._ready.block(encoded, name)
            return None
        self._ended.flush_before(encoded)
        if deferred:
            is_taken = self._take_due(deferred, name, encoded)
        else:
            is_taken = self._take_waiting(name, number, encoded)
        return self._have_taken(name, number, encoded, key) if is_taken else None

    def _take_due(self, deferred: str, name: str, encoded: str) -> bool:
        try:
            outcome = self._index.try_locked(transitions.come_due, self._layout, self._index, deferred, name)
        except Busy:
            self._ready.defer(encoded, deferred, monotonic() + SOON)
            return False
        del self._ready.deferred[encoded]
        if outcome == "moved":
            return True
        if outcome == "newer":
            discard(self._layout, "deferred", deferred, SUPERSEDED)
        self._ended.add(encoded)
        if not self._returning.push_if_there(name):  # (else a person has ended its back-off)
            self._attempts.forget(name)
        return False

    def _take_waiting(self, name: str, number: int, encoded: str) -> bool:
        if self._settings.settle and not self._is_left_alone(name, number):
            return False
        if not transitions.take(self._layout, name):
            self._ownership.verify()
            return False
        older = self._ready.deferred.get(encoded)
        if older and element_of(older) <= name:
            del self._ready.deferred[encoded]
            self._discard_overtaken(older, name)
        return True

    def _discard_overtaken(self, deferred: str, name: str) -> None:
        """A newer value, `name`, was taken: at once, whatever the back-off said."""
        discard(self._layout, "deferred", deferred, OVERTAKEN)
        older = element_of(deferred)
        if older != name:
            if self._foreign.looks_regular(older):
                discard(
                    self._layout, "pending", older, DUPLICATE
                )  # a person has ended its back-off meanwhile
            self._attempts.forget(older)

    def _is_left_alone(self, name: str, number: int) -> bool:
        """Tell whether a waiting element was left alone for the debounce time, or has waited for the longest;
        else it is debounced."""
        try:
            status = os.lstat(name, dir_fd=self._layout.fresh("pending"))
        except FileNotFoundError:
            return True
        now = self._ownership.now()
        left = min(
            self._settings.settle - max(0, now - status.st_ctime_ns) / 1e9,
            self._settings.max_settle - max(0, now - number) / 1e9,
        )
        if left > 0:
            self._ready.debounce(name, monotonic() + left)
        return left <= 0

    def _have_taken(self, name: str, number: int, encoded: str, key: str) -> Taken | None:
        folder, too_soon = self._layout.folder("inflight"), 0
        try:
            status = os.lstat(name, dir_fd=folder)
            later = for_later(status)
            if later and stat.S_ISREG(status.st_mode):
                too_soon = max(0, not_before(status) - self._ownership.now())
                if not too_soon:
                    end_delay(self._layout, "inflight", name)  # else producers take it to be put off
                    status = os.lstat(name, dir_fd=folder)
        except FileNotFoundError:
            self._ownership.verify()
            return None  # removed by hand, this instant
        if not stat.S_ISREG(status.st_mode):
            self._foreign.set_aside("inflight", name, NOT_REGULAR)
            return None
        note = self._attempts.of_taken(name, status)
        attempts, alone = (note.attempts + 1, note.alone) if note else (1, "")
        modified = status.st_mtime_ns
        moment = modified if later else 0
        # (By place: with names it costs half as much again.)
        return Taken(
            name,
            number,
            encoded,
            key,
            attempts,
            alone,
            status.st_size,
            status.st_ino,
            modified,
            moment,
            too_soon,
        )


def file_of(layout: Layout, taken: Taken) -> tuple[int, int]:
    """Return the inode and mtime of its file, as they are now: a handler may have written to it, and its
    attempts must count nevertheless."""
    try:
        status = os.lstat(taken.name, dir_fd=layout.folder("inflight"))
    except OSError:  # removed: then there is nothing to be tried again
        return taken.inode, taken.modified
    return status.st_ino, status.st_mtime_ns
