"""What a dead consumer left, or a step that was cut short: the folders are the truth, and are looked at anew.

What is in inflight/, and not known to be in flight, is requeued; what is in deferred/ is remembered. Of a key
that is there twice only the newest stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Set as AbstractSet
from time import monotonic, time_ns

from ..store.files import not_before
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import (
    about,
    decode_key,
    element_name,
    element_of,
    encoded_of,
    number_of,
    parse_deferred,
    parse_element,
)
from ..store.section import Busy
from ..store.transitions import DUPLICATE, SUPERSEDED, discard
from .attempts import Attempts, Note, died_alone
from .foreign import Foreign
from .listing import STUCK
from .ownership import ConsumerLock
from .ready import Ready
from .returning import Ended, Returning, requeued
from .settings import MAX_DELAY

log = logging.getLogger("fsinbox")

_JUMP = 1.0
"""Seconds by which the clock and the monotonic one may drift apart from one look to the next."""

LITTER_AGE = 24 * 3600.0
"""Age in seconds after which a file in tmp/ has no living writer."""


class Recovery:
    """Makes a consumer's view of inflight/ and deferred/ anew."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        ownership: ConsumerLock,
        foreign: Foreign,
        ready: Ready,
        attempts: Attempts,
        returning: Returning,
        ended: Ended,
    ) -> None:
        self._layout = layout
        self._index = index
        self._ownership = ownership
        self._mine = ownership.shard.has
        self._foreign = foreign
        self._ready = ready
        self._attempts = attempts
        self._returning = returning
        self._ended = ended
        self._ahead = ownership.now() / 1e9 - monotonic()

    def recover(self) -> None:
        """Requeue what a dead consumer held. Raises OSError."""
        # (Where hosts share it, only if `index` is new or damaged: a host that died may hold the lock for
        # long.)
        if self._layout.sharing is None or not self._index.peek():
            self._have_an_index()
        # What the consumer before has ended must not come back after what this one ends, and what is dropped
        # here for a newer value must not be lost together with it: first of all, what is to be seen is made
        # to last.
        self._ended.flush()
        self._attempts.load()
        self.rescan(set(), died=True)
        self._returning.try_again(STUCK)  # else what came later would be taken first
        self._attempts.forget_idle({element_of(deferred) for deferred in self._ready.deferred.values()})
        self._sweep_litter()

    def _have_an_index(self) -> None:
        try:
            self._index.try_locked(self._index.last_number)
        except Busy:
            pass  # whoever has the lock does it, or will
        except OSError as error:
            log.warning(
                "cannot make the index anew: %s: adds may fail until that is mended",
                error,
                extra={"event": "no_index"},
            )

    def rescan(self, in_flight: AbstractSet[str], *, died: bool) -> None:
        """Look at inflight/ and deferred/ anew; `in_flight`: the encoded keys that are known to be.

        `died`: a dead consumer left it there; else a step that was cut short. Raises OSError, LeaseLost.
        """
        self._ready.clear()
        known = in_flight | self._returning.ways.keys()
        orphans = [orphan for orphan in self._list_inflight() if orphan[1] not in known]
        deferred = self._list_deferred()
        going_back = {encoded for _, encoded in orphans} | deferred.keys()
        self._ended |= going_back
        waiting = self._highest_waiting(going_back)
        self._requeue_orphans(orphans, waiting, died=died)
        for encoded, name in deferred.items():
            if waiting.get(encoded, -1) >= number_of(element_of(name)):
                discard(self._layout, "deferred", name, DUPLICATE)
            else:
                self._ready.defer(encoded, name, monotonic() + max(0.0, self.left_of(name)))

    def notice_clock(self) -> bool:
        """Tell whether the clock was set forward since the last time, or the system slept: then what is
        deferred may be due earlier than its timers say, and a rescan is next."""
        ahead = self._ownership.now() / 1e9 - monotonic()
        jumped = ahead > self._ahead + _JUMP
        self._ahead = ahead
        return jumped

    def _list_inflight(self) -> list[tuple[int, str]]:
        """Return (number, encoded key) of what nobody may have, the newest of each key; older ones are
        dropped."""
        newest: dict[str, int] = {}
        for name in sorted(self._layout.names("inflight")):
            parsed = self._foreign.parse("inflight", name)
            if parsed is None or not self._foreign.is_regular("inflight", name):
                continue
            number, encoded = parsed
            if self._layout.sharing is None and not self._mine(encoded):
                continue  # in flight with the consumer of another shard
            if encoded in newest:
                discard(self._layout, "inflight", element_name(newest[encoded], encoded), DUPLICATE)
            newest[encoded] = number
        return [(number, encoded) for encoded, number in newest.items()]

    def _list_deferred(self) -> dict[str, str]:
        """Return encoded key -> name in deferred/, the newest of each key; older ones are dropped."""
        newest: dict[str, str] = {}
        for deferred in self._layout.names("deferred"):
            is_ours = parse_deferred(deferred) is not None
            name = element_of(deferred)
            if not self._mine(encoded_of(name) if is_ours else ""):
                continue
            if not is_ours:
                self._foreign.set_aside("deferred", deferred, "its name is not <due>-<number>-<key>")
                continue
            if not self._foreign.is_regular("deferred", deferred):
                continue
            other = newest.get(encoded_of(name))
            if other is None or number_of(element_of(other)) < number_of(name):
                newest[encoded_of(name)], other = deferred, other
            else:
                other = deferred
            if other:
                discard(self._layout, "deferred", other, DUPLICATE)
        return newest

    def _highest_waiting(self, keys: set[str]) -> dict[str, int]:
        """Return the highest number in pending/ of each of these encoded keys, known in the index or not."""
        highest: dict[str, int] = {}
        for name in self._layout.names("pending") if keys else ():
            parsed = parse_element(name)
            if parsed and parsed[1] in keys:
                highest[parsed[1]] = max(parsed[0], highest.get(parsed[1], 0))
        return highest

    def _requeue_orphans(
        self, orphans: list[tuple[int, str]], waiting: dict[str, int], *, died: bool
    ) -> None:
        for number, encoded in sorted(orphans):
            name = element_name(number, encoded)
            if waiting.get(encoded, -1) > number:
                discard(self._layout, "inflight", name, SUPERSEDED)
                log.info(
                    "dropped what a dead consumer held of key %r: a newer value waits",
                    decode_key(encoded),
                    extra=about("superseded", name),
                )
                continue
            if died:
                self._count(name, alone=len(orphans) == 1)
            self._requeue(name, encoded, died=died)

    def _count(self, name: str, *, alone: bool) -> None:
        """The consumer died with this in flight; `alone`: and with nothing else."""
        status = os.lstat(name, dir_fd=self._layout.folder("inflight"))
        if not_before(status) > self._ownership.now():
            return  # nobody had it: it was on its way to deferred/
        note = self._attempts.of_in_flight(name)
        attempts = (note.attempts if note else 0) + 1
        suspicion = died_alone(note.alone if note else "") if alone else "suspect"
        self._attempts.write(name, Note(attempts, status.st_ino, status.st_mtime_ns, suspicion))

    def _requeue(self, name: str, encoded: str, *, died: bool) -> None:
        try:
            is_back = self._returning.send(requeued(name))
        except OSError:
            self._ownership.verify()  # else it is not that the lease was lost
            self._returning.refused.discard(encoded)  # said when it is tried again
        else:
            if is_back and encoded not in self._returning.ways:
                what = (
                    "a consumer died with key %r in flight: requeued"
                    if died
                    else "key %r was half taken: requeued"
                )
                log.warning(what, decode_key(encoded), extra=about("recovered", name))

    def left_of(self, deferred: str) -> float:
        """Return how many seconds of its back-off are left. Never more than the whole, if the clock was set
        back since."""
        due = number_of(deferred)
        try:
            began = os.lstat(deferred, dir_fd=self._layout.folder("deferred")).st_ctime_ns
        except FileNotFoundError:
            return 0.0
        left = min(due - self._ownership.now(), due - began) / 1e9
        return left if left <= MAX_DELAY else 0.0  # no back-off is as long: its name is not ours

    def _sweep_litter(self) -> None:
        """Remove what dead writers left in tmp/. Never what is young: its writer may live, and need it."""
        tmp = self._layout.folder("tmp")
        now = time_ns()
        for name in self._layout.names("tmp"):
            try:
                if now - os.lstat(name, dir_fd=tmp).st_ctime_ns > LITTER_AGE * 1e9:
                    os.unlink(name, dir_fd=tmp)
            except OSError:
                continue
