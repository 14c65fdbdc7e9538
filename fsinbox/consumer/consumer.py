"""What the one consumer knows: the lock that makes it the one, what waits and in which order, and what is in
flight.

The folders are the truth; this is a view of them that lets a take cost the same whatever waits. Its parts,
each with what holds of it:

 _waiting    the last listing of pending/, oldest last. Every name in it had been given out when the listing
             began, so for each key nothing older can turn up later: of two values the older is never
             delivered after the newer.
 _again      a heap of names that are ready again: requeued, no longer blocked, debounced, due
 _deferred   key -> its name in deferred/; no key is also waiting without _take noticing
 _in_flight  key -> the element that is in flight; at most one a key
 _returning  key -> an element that was to go back, but the lock could not be had, or the system refused: it
             stays in inflight/, and is tried again between takes. No key is also in _in_flight
 _refused    those keys of _returning that the system refused: nobody needs to wait for them
 _blocked    key -> a name that waits until the element of its key, which is in one of these two, is done
 _ended      keys of which an element was ended since inflight/ and deferred/ were last flushed: before
             another one of such a key is taken, they are flushed, so that a power cut cannot bring back the
             older one when the newer is gone
 _rescan     a step was cut short, or is running: the view is made anew before the next take
 _wishes     what people ask for (control/): a pause, keys on hold
 _held       names of deferred elements that are due, of keys on hold
 _done_names with keep_done: the names in done/, oldest first, of which only the last so many are kept
"""

from __future__ import annotations

import heapq
import logging
import os
import stat
from array import array
from dataclasses import dataclass
from itertools import compress, takewhile
from operator import itemgetter
from time import monotonic, sleep, time_ns

from ..store import transitions
from ..store.control import NONE, Requests, requests
from ..store.errors import UnusableInbox
from ..store.files import flush_pending, remove
from ..store.index import Busy, Index
from ..store.layout import Layout
from ..store.names import REASON, about, decode_key, element_name, parse_deferred, parse_element
from .attempts import Attempts, Note
from .ingest import Drops
from .ownership import WHOLE, ConsumerLock, Shard
from .watch import RESCAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("fsinbox")

MAX_DELAY = 7 * 24 * 3600.0
"""Longest back-off, in seconds."""

LITTER_AGE = 24 * 3600.0
"""Age in seconds after which a file in tmp/ has no living writer."""

_MOST_ENDED = 10_000
"""Keys in _ended: then they are flushed, to bound what is kept in memory."""

_LONG = 1000
"""Names in pending/: a listing of more is only done if there is something new, where that can be told; or
after RESCAN."""

_DROP_INTERVAL = (
    0.02  # seconds between looks into drop/, and into control/, while there is a backlog to work on
)

_WISH_INTERVAL = 1.0
"""Seconds between looks into control/ where each look is a question to a server, and while nothing may be
taken."""

_SOON = 0.05
"""Seconds until what could not be done for want of the lock is tried again."""

_STUCK = 1.0
"""Seconds after which a section that was left open on another host is followed by one of ours."""


@dataclass(slots=True)  # (frozen costs a microsecond a take)
class Taken:
    """An element that is in flight. Nobody changes one."""

    name: str
    number: int
    encoded: str
    key: str
    attempts: int
    alone: str
    size: int
    inode: int
    modified: int


@dataclass(frozen=True, slots=True)
class WayBack:
    """Where an element that is in flight is to go: to `folder`, under the name `new`."""

    name: str
    encoded: str
    folder: str
    new: str
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a consumer behaves. Times in seconds, sizes in bytes."""

    settle: float = 0.0
    max_settle: float = 60.0
    drop_settle: float = 1.0
    max_drop_size: int = 1 << 30
    durable: bool = True
    shard: Shard = WHOLE
    lease: float = 15.0
    keep_done: int = 0


_encoded_key = itemgetter(slice(20, None))


def _hashes_of_twins(names: list[str]) -> set[int]:
    """Return the hashes of what follows the number in more than one of these names.

    In parts, and by hashes: a set of a million names would be more than all else that a consumer keeps.
    """
    hashes = array("q", map(hash, map(_encoded_key, names)))
    a_byte_of_each = bytes(memoryview(hashes).cast("B")[:: hashes.itemsize])
    parts = 1 + len(hashes) // 250_000
    twice: set[int] = set()
    for part in range(parts):
        is_in_part = a_byte_of_each.translate(bytes(byte % parts == part for byte in range(256)))
        if len(set(compress(hashes, is_in_part))) < is_in_part.count(1):
            seen: set[int] = set()
            for number in compress(hashes, is_in_part):
                (twice if number in seen else seen).add(number)
    return twice


def _hold(layout: Layout, settings: Settings) -> ConsumerLock:
    """Become the one consumer: by a lock, or where several hosts share the inbox by a lease. Raises
    InboxBusy, OSError."""
    if layout.sharing is None:
        return ConsumerLock(layout, settings.shard)
    from .lease import Lease

    return Lease(layout, settings.shard, settings.lease)


class Consumer:
    """The one consumer of an inbox. Not safe for threads: its caller holds a lock around every call."""

    def __init__(self, layout: Layout, index: Index, settings: Settings) -> None:
        """Become the consumer and requeue what a dead one held. Raises InboxBusy."""
        self._layout = layout
        self._index = index
        self._settings = settings
        self._mine = settings.shard.has
        self.drops = Drops(
            layout,
            index,
            settle=settings.drop_settle,
            ceiling=max(settings.max_settle, settings.drop_settle),
            max_size=settings.max_drop_size,
            mine=self._mine if settings.shard.count > 1 else None,
        )
        self._waiting: list[str] = []
        self._again: list[str] = []
        self._deferred: dict[str, str] = {}
        self._due: list[tuple[float, str]] = []
        self._settling: list[tuple[float, str]] = []
        self._in_flight: dict[str, Taken] = {}
        self._returning: dict[str, WayBack] = {}
        self._refused: set[str] = set()
        self._blocked: dict[str, str] = {}
        self._ended: set[str] = set()
        self._rescan = False
        self._attempts = Attempts(layout, settings.shard.index, self._mine)
        self._more = False
        self._more_since = 0.0
        self._listed = False
        self._next_drop_look = 0.0
        self._next_wish_look = 0.0
        self._wishes: Requests = NONE
        self._held: list[str] = []
        self._done_names: dict[str, None] | None = None
        self._seen_header = b""
        self._list_anew = 0.0
        self._long = False
        self._hold = _hold(layout, settings)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop being the consumer. What is in flight stays in inflight/ for the next one: requeue it
        first."""
        self._hold.close()

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of the lock, which the parent holds on to."""
        self._hold.abandon()

    def _now(self) -> int:
        """Return the time by the clock that sets the times of files, in nanoseconds: another host's,
        perhaps."""
        return time_ns() + self._hold.offset

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Have `tell` called, in another thread, when another consumer is found to have taken over."""
        self._hold.tell = tell

    @property
    def lost(self) -> bool:
        """Whether another consumer has taken over."""
        return self._hold.lost

    def verify(self) -> None:
        """Raise LeaseLost if another consumer has taken over (in an inbox that several hosts share)."""
        self._hold.verify()

    def has(self, taken: Taken) -> bool:
        """Tell whether this element is in flight here, and was not ended."""
        return self._in_flight.get(taken.encoded) is taken

    # --- becoming the consumer ------------------------------------------------------------------------

    def _recover(self) -> None:
        # (Where hosts share it, only if `index` is new or damaged: a host that died may hold the lock for
        # long.)
        if self._layout.sharing is None or not self._index.peek():
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
        # What the consumer before has ended must not come back after what this one ends, and what is dropped
        # here for a newer value must not be lost together with it: first of all, all that there is to be seen
        # is there for good.
        self._flush_ended()
        self._attempts.load()
        self._look_afresh(died=True)
        if self._returning:
            self.send_back_again(_STUCK)  # else what came later would be taken first
        self._attempts.forget_idle({name[20:] for name in self._deferred.values()})
        self._sweep_litter()

    def _look_afresh(self, *, died: bool) -> None:
        """Make the view anew from what lies in the folders. What is in inflight/, and not known to be in
        flight, is requeued.

        `died`: a dead consumer left it there; else a step that was cut short.
        """
        self._waiting, self._again, self._due, self._settling, self._held = [], [], [], [], []
        self._deferred, self._listed = {}, False
        known = self._in_flight.keys() | self._returning.keys()
        orphans = [orphan for orphan in self._list_inflight() if orphan[1] not in known]
        deferred = self._list_deferred()
        going_back = {encoded for _, encoded in orphans} | deferred.keys()
        self._ended |= going_back
        waiting = self._highest_waiting(going_back)
        self._requeue_orphans(orphans, waiting, died=died)
        for encoded, name in deferred.items():
            if waiting.get(encoded, -1) >= int(name[20:39]):
                remove(self._layout, "deferred", name)
            else:
                self._remember_deferred(encoded, name, self._left_of(name))

    def _list_inflight(self) -> list[tuple[int, str]]:
        """Return (number, encoded key) of what a dead consumer held, the newest of each key; older ones are
        dropped."""
        newest: dict[str, int] = {}
        for name in sorted(self._layout.names("inflight")):
            parsed = self._parse("inflight", name)
            if parsed is None or not self._is_regular("inflight", name):
                continue
            number, encoded = parsed
            if self._layout.sharing is None and not self._mine(encoded):
                continue  # in flight with the consumer of another shard
            if encoded in newest:
                transitions.acknowledge(self._layout, element_name(newest[encoded], encoded))
            newest[encoded] = number
        return [(number, encoded) for encoded, number in newest.items()]

    def _list_deferred(self) -> dict[str, str]:
        """Return encoded key -> name in deferred/, the newest of each key; older ones are dropped."""
        newest: dict[str, tuple[int, str]] = {}
        for deferred in self._layout.names("deferred"):
            split = parse_deferred(deferred)
            parsed = split and parse_element(split[1])
            if not self._mine(parsed[1] if parsed else ""):
                continue
            if not parsed:
                self._set_aside("deferred", deferred, "its name is not <due>-<number>-<key>")
                continue
            if not self._is_regular("deferred", deferred):
                continue
            number, encoded = parsed
            other = newest.get(encoded)
            if other and other[0] >= number:
                remove(self._layout, "deferred", deferred)
                continue
            if other:
                remove(self._layout, "deferred", other[1])
            newest[encoded] = number, deferred
        return {encoded: deferred for encoded, (_, deferred) in newest.items()}

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
        alone = "died" if len(orphans) == 1 else "suspect"
        for number, encoded in sorted(orphans):
            name = element_name(number, encoded)
            if waiting.get(encoded, -1) > number:
                transitions.drop_superseded(self._layout, "inflight", name)
                log.info(
                    "dropped what a dead consumer held of key %r: a newer value waits",
                    decode_key(encoded),
                    extra=about("superseded", name),
                )
                continue
            if died:
                status = os.lstat(name, dir_fd=self._layout.folder("inflight"))
                note = self._attempts.of(name, status)
                attempts = (note.attempts if note else 0) + 1
                self._attempts.write(name, Note(attempts, status.st_ino, status.st_mtime_ns, alone))
            try:
                requeued = self._send_back(WayBack(name, encoded, "pending", name))
            except OSError:
                self._hold.verify()  # else it is not that the lease was lost
                self._refused.discard(encoded)  # said when it is tried again
            else:
                if requeued and encoded not in self._returning:
                    what = (
                        "a consumer died with key %r in flight: requeued"
                        if died
                        else "key %r was half taken: requeued"
                    )
                    log.warning(what, decode_key(encoded), extra=about("recovered", name))

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

    def tidy(self, doubtful: list[str]) -> None:
        """Put drop/ and pending/ in order, as a take would first do, and look closely at these names in
        pending/.

        For the doctor. A producer may publish at a name in pending/ at any moment; so what is no regular file
        is taken first, and set aside from inflight/, where nothing replaces it.
        """
        self._list_pending()
        for name in doubtful + [name for name in self._waiting if not parse_element(name)]:
            taken = self._take(name, None)
            if taken:
                self.requeue(taken, counted=False)

    # --- what to take next ----------------------------------------------------------------------------

    def take(self) -> Taken | None:
        """Take the oldest element that may be taken now; None if there is none."""
        if self._layout.sharing:
            self._hold.check()
        self.mend()
        # In the middle of this an element may be in inflight/, or in deferred/, that this view does not know
        # of. Whatever cuts it short, it must not be left there until a newer one is done, and come back after
        # it.
        self._rescan = True
        taken = self._take_next()
        self._rescan = False
        return taken

    def mend(self) -> None:
        """If a step was cut short, make the view anew. What it had taken, and nobody has, is requeued."""
        if self._rescan:
            self._look_afresh(died=False)
            self._rescan = False

    def disown(self, owned: Mapping[str, object]) -> None:
        """Requeue what is in flight, but for these keys (encoded): a take was cut short before it was handed
        over."""
        for encoded in self._in_flight.keys() - owned.keys():
            del self._in_flight[encoded]
            self._rescan = True
        self.mend()

    def _take_next(self) -> Taken | None:
        if monotonic() >= self._next_drop_look:
            self._apply_control()
            if self._waiting and not self._wishes.paused:
                self.drops.adopt()
                self._log_drops()
            self._next_drop_look = monotonic() + _DROP_INTERVAL
            self.send_back_again()
        if self._wishes.paused:
            return None
        listings = 0
        while True:
            self._wake_up_deferred()
            name = self._oldest()
            if (
                name is None or not self._listed
            ):  # (else what is due in deferred/ would go before what came earlier)
                if listings > (1 if self._more else 0):
                    return None
                listings += 1
                self._list_pending()
                continue
            if self._wishes.held and self._pass_over(name):
                continue
            if self._in_flight and self._attempts.is_suspect(name):
                return None  # a suspect is only in flight alone: wait until the others are done
            if self._in_flight and any(taken.alone for taken in self._in_flight.values()):
                return None
            deferred = self._pop(name)
            taken = self._take(name, deferred)
            if taken:
                return taken

    def _apply_control(self) -> None:
        """Look at what people ask for (control/)."""
        now = monotonic()
        if now < self._next_wish_look:
            return
        if self._layout.sharing:
            self._next_wish_look = now + _WISH_INTERVAL
        before, self._wishes = self._wishes, requests(self._layout)
        if before.paused != self._wishes.paused:
            if self._wishes.paused:
                log.warning(
                    "paused by %s: nothing is taken", self._wishes.by or "somebody", extra={"event": "paused"}
                )
            else:
                log.warning("resumed", extra={"event": "resumed"})
        if before.rescan:
            self._listed = False
            self._forget_moved()
        if before.held - self._wishes.held:  # what was passed over is in no view: make it anew
            self._listed = False
            self._again += self._held
            heapq.heapify(self._again)
            self._held.clear()

    def _forget_moved(self) -> None:
        """Forget what people have removed from deferred/, or requeued: it waits in pending/ then."""
        for encoded, deferred in list(self._deferred.items()):
            if not self._layout.exists("deferred", deferred):
                del self._deferred[encoded]
                self._ended.add(encoded)
                if not self._layout.exists("pending", deferred[20:]):
                    self._attempts.forget(deferred[20:])

    def _pass_over(self, name: str) -> bool:
        """Tell whether the key of this name, which is next, is on hold; then it is passed over."""
        if name[20:] not in self._wishes.held:
            return False
        if self._pop(name):
            self._held.append(name)  # deferred, and due (what waits in pending/ is found there again)
        return True

    @property
    def paused(self) -> bool:
        """Whether people asked, when last looked at, that nothing be taken."""
        return self._wishes.paused

    def next_wish(self) -> float | None:
        """Return when (monotonic seconds) to look at control/ again; None if nothing is asked for."""
        return monotonic() + _WISH_INTERVAL if self._wishes.paused or self._wishes.held else None

    def next_look(self) -> float | None:
        """Return when (monotonic seconds) something may become takeable without any event; None if nothing
        will."""
        times = [monotonic() + _SOON] if self._returning.keys() - self._refused or self._rescan else []
        if self._wishes.paused:
            return min(times, default=None)
        if self._more:
            times.append(monotonic() + _SOON)
        if self.drops.look_again is not None:
            times.append(self.drops.look_again)
        if self._settling:
            times.append(self._settling[0][0])
        while self._due and not self._is_deferred(self._due[0][1]):
            heapq.heappop(self._due)  # superseded, or moved by hand
        if self._due:
            times.append(self._due[0][0])
        return min(times, default=None)

    def _oldest(self) -> str | None:
        """Return the lowest of the names that may be taken: waiting, ready again, or deferred and due."""
        if not self._again:
            return self._waiting[-1] if self._waiting else None
        return min(self._again[0], self._waiting[-1]) if self._waiting else self._again[0]

    def _pop(self, name: str) -> str | None:
        """Remove `name` from the view; return its name in deferred/ if that is where it is."""
        if self._waiting and self._waiting[-1] == name:
            self._waiting.pop()
            return None  # (what is deferred under the same name is older, and is dropped when this is taken)
        while self._again and self._again[0] == name:
            heapq.heappop(self._again)
        parsed = parse_element(name)
        deferred = parsed and self._deferred.get(parsed[1])
        return deferred if deferred and deferred.endswith(name) else None

    def _wake_up_deferred(self) -> None:
        while self._due and self._due[0][0] <= monotonic():
            _, deferred = heapq.heappop(self._due)
            if self._is_deferred(deferred):
                heapq.heappush(self._again, deferred[20:])
        while self._settling and self._settling[0][0] <= monotonic():
            heapq.heappush(self._again, heapq.heappop(self._settling)[1])

    def _is_deferred(self, deferred: str) -> bool:
        """Tell whether this view still knows of an element under this name in deferred/."""
        return self._deferred.get(deferred[40:]) == deferred

    def _take(self, name: str, deferred: str | None) -> Taken | None:
        """Try to take `name`; None if that did not give an element."""
        parsed = parse_element(name)
        key = parsed and decode_key(parsed[1])
        if not parsed or key is None:
            self._set_aside("pending", name, "its name is not <number>-<key>")
            return None
        number, encoded = parsed
        if encoded in self._in_flight or encoded in self._returning:
            self._blocked[encoded] = min(name, self._blocked.get(encoded, name))
            return None
        if encoded in self._ended or len(self._ended) > _MOST_ENDED:
            self._flush_ended()
        if deferred:
            if not self._take_due(deferred, name, encoded):
                return None
        elif not self._take_waiting(name, number, encoded):
            return None
        return self._have_taken(name, number, encoded, key)

    def _take_due(self, deferred: str, name: str, encoded: str) -> bool:
        try:
            outcome = self._index.try_locked(transitions.come_due, self._layout, self._index, deferred, name)
        except Busy:
            heapq.heappush(self._due, (monotonic() + _SOON, deferred))
            return False
        del self._deferred[encoded]
        if outcome == "moved":
            return True
        if outcome == "newer":
            transitions.drop_superseded(self._layout, "deferred", deferred)
        self._ended.add(encoded)
        if not self._is_ready_again(name):  # (else a person has ended its back-off)
            self._attempts.forget(name)
        return False

    def _is_ready_again(self, name: str) -> bool:
        """Tell whether something waits under the name of what was dropped; then nothing newer of its key may
        be taken first."""
        there = self._layout.exists("pending", name)
        if there:
            heapq.heappush(self._again, name)
        return there

    def _take_waiting(self, name: str, number: int, encoded: str) -> bool:
        if self._settings.settle and not self._settled(name, number):
            return False
        if not transitions.take(self._layout, name):
            self._hold.verify()
            return False
        older = self._deferred.get(encoded)
        if older and older[20:] <= name:
            # Superseded by what was just taken: dropped at once, whatever its back-off said.
            del self._deferred[encoded]
            transitions.supersede_deferred(self._layout, older)
            if older[20:] != name:
                if self._looks_regular(older[20:]):
                    remove(self._layout, "pending", older[20:])  # a person has ended its back-off meanwhile
                self._attempts.forget(older[20:])
        return True

    def _settled(self, name: str, number: int) -> bool:
        """Tell whether a waiting element has been left alone for the settle time, or has waited up to the
        ceiling."""
        try:
            status = os.lstat(name, dir_fd=self._layout.fresh("pending"))
        except FileNotFoundError:
            return True
        now = self._now()
        left = min(
            self._settings.settle - max(0, now - status.st_ctime_ns) / 1e9,
            self._settings.max_settle - max(0, now - number) / 1e9,
        )
        if left <= 0:
            return True
        heapq.heappush(self._settling, (monotonic() + left, name))
        return False

    def _flush_ended(self) -> None:
        if self._settings.durable:
            transitions.flush_ended(self._layout)
        self._ended.clear()

    def _have_taken(self, name: str, number: int, encoded: str, key: str) -> Taken | None:
        try:
            status = os.lstat(name, dir_fd=self._layout.folder("inflight"))
        except FileNotFoundError:
            self._hold.verify()
            return None  # removed by hand, this instant
        if not stat.S_ISREG(status.st_mode):
            self._set_aside("inflight", name, "it is not a regular file")
            return None
        note = self._attempts.of(name, status)
        taken = Taken(
            name,
            number,
            encoded,
            key,
            attempts=(note.attempts if note else 0) + 1,
            alone=note.alone if note else "",
            size=status.st_size,
            inode=status.st_ino,
            modified=status.st_mtime_ns,
        )
        self._in_flight[encoded] = taken
        return taken

    # --- listing pending/ -----------------------------------------------------------------------------

    def _list_pending(self) -> None:
        """Look at drop/ and pending/ afresh; coalesce what has more than one place."""
        if gone := self._layout.where_it_went():
            raise UnusableInbox(
                f"inbox {self._layout.path} {gone}: stop, and start anew on the one that is meant"
            )
        self._hold.check()
        self.drops.adopt()
        self._log_drops()
        if self._nothing_new():
            return
        # A listing is not atomic: of two names that come while it runs it may show only the later one. So
        # what was not given out before it began is left for the next.
        mark = self._index.mark()
        names = self._layout.names("pending")
        self._long = len(names) > _LONG
        if self._settings.shard.count > 1:
            names = [name for name in names if self._mine(name[20:] if parse_element(name) else "")]
        names.sort(reverse=True)
        above = list(takewhile(element_name(mark + 1, "").__le__, names))
        del names[: len(above)]
        future = []
        for name in above:
            if parse_element(name):
                future.append(name)
            else:
                self._set_aside("pending", name, "its name is not <number>-<key>")
        self._more = self._sort_out_future(future)
        # (What is foreign among the others is set aside when its turn comes: to look at each of a million
        # takes a second.)
        self._waiting = self._coalesce_all(names)
        held = (
            set(self._blocked.values()) | {name for _, name in self._settling}
            if self._blocked or self._settling
            else ()
        )
        if held:
            self._waiting = [name for name in self._waiting if name not in held]
        self._again = [name for name in self._again if self._deferred_again(name)]
        heapq.heapify(self._again)
        self._listed = True

    def _nothing_new(self) -> bool:
        """Tell whether a long listing can be spared: no add has ended since the last one, and nothing is in
        doubt.

        Only where several hosts share the inbox: there every add ends with a change of the header, after its
        element is in its place. What is done by hand, or is not seen on this host, is seen when the listing
        is old.
        """
        if self._layout.sharing is None:
            return False
        header = self._index.peek_header()
        same = header == self._seen_header and monotonic() < self._list_anew and self._long and self._listed
        if same and not (self._waiting or self._more or self._returning):
            return True
        self._seen_header, self._list_anew = header, monotonic() + RESCAN
        return False

    def _deferred_again(self, name: str) -> bool:
        """Tell whether a name that is ready again waits in deferred/, where a listing of pending/ does not
        show it."""
        parsed = parse_element(name)
        return bool(parsed and self._deferred.get(parsed[1], "").endswith(name))

    def _sort_out_future(self, names: list[str]) -> bool:
        """Tell whether any of these names, which are above the mark, is for the next listing.

        Those whose number nobody has given out (a careless copy into pending/) are given one of ours.
        """
        last = self._index.peek()
        forged = [name for name in names if int(name[:19]) > last]
        more = len(forged) < len(names)
        try:
            if forged:
                more |= self._index.try_locked(self._renumber_all, forged, patience=0)
            elif more and self._layout.sharing and self._more and monotonic() > self._more_since + _STUCK:
                self._more_since = monotonic()
                self._settle()
        except Busy:
            pass
        if not (more and self._more):
            self._more_since = monotonic()
        return more

    def _settle(self) -> None:
        """A host was cut off, or died, in its section: follow it by one of ours, so that what it published
        counts."""
        try:
            self._index.try_locked(self._index.settle)
        except OSError:
            pass  # it is tried again; whoever adds does it as well, and is told of the error

    def _renumber_all(self, names: list[str]) -> bool:
        """Give these numbers of ours; tell whether any is for the next listing. Inside the section."""
        # (Not just read: the file may have been lost or damaged, and then it is mended here.)
        last = self._index.sure_last_number()
        if int(max(names)[:19]) > last:
            self._index.doubt()
            last = self._index.sure_last_number()
        more = False
        for name in sorted(names):
            more |= int(name[:19]) <= last or self._renumber(name)
        return more

    def _renumber(self, name: str) -> bool:
        """Queue a file with a number nobody gave out as if it came now. Inside the section."""
        parsed = self._parse("pending", name)
        if parsed is None:
            return False
        try:
            number, waits, _ = self._index.admit(parsed[1])
            if number == parsed[0]:  # its line knows it: so the last number is an old one
                self._index.make_anew()
                return True
            if waits:  # it must not overwrite what was added properly, and there is no telling which is newer
                self._set_aside(
                    "pending", name, "its number was never given out, and a proper value of its key waits"
                )
                return False
            log.warning(
                "pending/%s has a number that was never given out: it is queued as if it came now",
                name,
                extra=about("renumbered", name) | {"seq": number},
            )
            return transitions.move_drop(self._layout, name, element_name(number, parsed[1]), "pending")
        except OSError as error:
            log.warning(
                "cannot queue pending/%s: %s: it is tried again",
                name,
                error.strerror,
                extra=about("not_renumbered", name),
            )
            return False

    def _coalesce_all(self, names: list[str]) -> list[str]:
        """Coalesce every key that has several places; return `names` (newest first) with one place a key.

        But for keys that are in flight or deferred: what comes back would count as newer than a value below
        it (I2).
        """
        twice = _hashes_of_twins(names)
        if not twice:
            return names
        places: dict[str, list[int]] = {}
        for name in reversed(names):
            parsed = parse_element(name) if hash(name[20:]) in twice else None
            if parsed:
                places.setdefault(parsed[1], []).append(parsed[0])
        gone: set[str] = set()
        for encoded, numbers in places.items():
            if len(numbers) > 1 and decode_key(encoded) is None:
                for number in numbers:
                    self._set_aside(
                        "pending", element_name(number, encoded), "its name is not <number>-<key>"
                    )
                gone.update(element_name(number, encoded) for number in numbers)
            elif len(numbers) > 1 and not any(
                encoded in view for view in (self._in_flight, self._returning, self._deferred)
            ):
                gone.update(self._coalesce(encoded, numbers))
        return [name for name in names if name not in gone]

    def _coalesce(self, encoded: str, numbers: list[int]) -> list[str]:
        """Make one of a key's places, as far as the lock can be had; return the names that are gone.
        `numbers` ascend."""
        # A directory among them could be renamed neither over nor under a file. It is set aside when it is
        # taken: here, a producer may be about to publish in its place.
        lowest, *others = [
            number for number in numbers if self._looks_regular(element_name(number, encoded))
        ] or [0]
        gone: list[str] = []
        for number in others:
            if gone:
                flush_pending(
                    self._layout
                )  # a power cut must not keep the later of two renames without the earlier
            try:
                self._index.try_locked(
                    transitions.coalesce, self._layout, self._index, encoded, lowest, number
                )
            except Busy:
                self._more = True
                break
            gone.append(element_name(number, encoded))
        return gone

    # --- the ways out ---------------------------------------------------------------------------------

    def acknowledge(self, taken: Taken) -> None:
        """The element is done."""
        keep = self._settings.keep_done
        try:
            was_there = (
                self._keep_done(taken.name, keep)
                if keep
                else transitions.acknowledge(self._layout, taken.name)
            )
        except OSError:
            self._returning[taken.encoded] = WayBack(taken.name, taken.encoded, "pending", taken.name)
            self._done(taken)
            raise
        if not was_there:
            self._hold.verify()
        self._attempts.forget(taken.name)
        self._done(taken)

    def _keep_done(self, name: str, most: int) -> bool:
        """Acknowledge an element by moving it to done/, and remove the oldest there above so many."""
        if self._done_names is None:
            self._layout.make("done")
            found = self._layout.oldest_first("done")
            self._done_names = dict.fromkeys(name for name in found if self._mine(name[20:]))
        try:
            if not transitions.keep_done(self._layout, name):
                return False
        except OSError as error:
            log.warning(
                "cannot keep %s in done/: %s: it is acknowledged, and removed",
                name,
                error.strerror,
                extra=about("not_kept", name),
            )
            return transitions.acknowledge(self._layout, name)
        self._done_names.pop(name, None)  # from before it was replayed
        self._done_names[name] = None
        while len(self._done_names) > most:
            oldest = next(iter(self._done_names))
            del self._done_names[oldest]
            remove(self._layout, "done", oldest)
        return True

    def requeue(self, taken: Taken, *, counted: bool) -> bool:
        """Return the element to its place. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        return self._end(taken, WayBack(taken.name, taken.encoded, "pending", taken.name))

    def defer(self, taken: Taken, delay: float, *, counted: bool) -> bool:
        """Defer the element for `delay` seconds. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        delay = min(delay, MAX_DELAY)
        deferred = transitions.name_deferred(self._now() + int(delay * 1e9), taken.name)
        return self._end(taken, WayBack(taken.name, taken.encoded, "deferred", deferred, delay))

    def fail(self, taken: Taken, reason: str) -> bool:
        """Give the element up. False if a newer value waits and it was dropped."""
        transitions.write_reason(self._layout, taken.name, reason)  # first: what has failed has a reason
        return self._end(taken, WayBack(taken.name, taken.encoded, "failed", taken.name))

    def _end(self, taken: Taken, way: WayBack) -> bool:
        doubt, self._rescan = self._rescan, True
        try:
            moved = self._send_back(way)
        except OSError:
            self._done(taken)
            raise
        self._done(taken)
        self._rescan = doubt
        return moved

    def _send_back(self, way: WayBack) -> bool:
        """Send an element its way; False if a newer value waits and it was dropped, or if it is gone.

        If the lock is not to be had it is tried again later; so it is if the system refuses, which is raised:
        OSError.
        """
        try:
            step = transitions.go_back
            outcome = self._index.try_locked(step, self._layout, self._index, way.name, way.folder, way.new)
            if outcome == "newer":
                transitions.drop_superseded(self._layout, "inflight", way.name)
        except Busy:
            self._returning[way.encoded] = way
            return True
        except OSError:
            self._returning[way.encoded] = way
            self._refused.add(way.encoded)
            raise
        if outcome == "gone":
            self._hold.verify()
        self._have_sent_back(way, outcome == "moved")
        return outcome == "moved"

    def _have_sent_back(self, way: WayBack, moved: bool) -> None:
        self._returning.pop(way.encoded, None)
        self._refused.discard(way.encoded)
        self._ended.add(way.encoded)
        self._unblock(way.encoded)
        if moved and way.folder == "pending":
            heapq.heappush(self._again, way.name)
        elif moved and way.folder == "deferred":
            self._remember_deferred(way.encoded, way.new, way.delay)
        else:
            if not moved:
                self._is_ready_again(way.name)
            self._attempts.forget(way.name)
            if way.folder == "failed" and not moved:
                remove(self._layout, "failed", way.name + REASON)

    def send_back_again(self, patience: float = 0.0) -> OSError | None:
        """Try again what could not go back, for `patience` seconds in all. Returns why the system refused the
        last such one."""
        refused = None
        until = monotonic() + patience
        for way in list(self._returning.values()):
            said = way.encoded in self._refused
            try:
                self._send_back(way)
                while way.encoded in self._returning and monotonic() < until:
                    sleep(_SOON / 5)
                    self._send_back(way)
            except OSError as error:
                refused = error
                self._hold.verify()
                self._next_drop_look = monotonic() + _STUCK
                if said:
                    continue
                log.error(
                    "cannot move inflight/%s to %s/: %s: it stays there, and is tried again",
                    way.name,
                    way.folder,
                    error.strerror,
                    extra=about("stranded", way.name),
                )
        return refused

    def _done(self, taken: Taken) -> None:
        if self._in_flight.get(taken.encoded) is taken:
            del self._in_flight[taken.encoded]
        self._ended.add(taken.encoded)
        self._unblock(taken.encoded)

    def _unblock(self, encoded: str) -> None:
        if encoded in self._returning:
            return
        blocked = self._blocked.pop(encoded, None)
        if blocked:
            heapq.heappush(self._again, blocked)

    def _remember_deferred(self, encoded: str, deferred: str, left: float) -> None:
        """It is due in `left` seconds, by the monotonic clock: the other one may be set."""
        self._deferred[encoded] = deferred
        heapq.heappush(self._due, (monotonic() + max(0.0, left), deferred))

    def _left_of(self, deferred: str) -> float:
        """Return how many seconds of its back-off are left. Never more than the whole, if the clock was set
        back since."""
        due = int(deferred[:19])
        try:
            began = os.lstat(deferred, dir_fd=self._layout.folder("deferred")).st_ctime_ns
        except FileNotFoundError:
            return 0.0
        return min((due - self._now()) / 1e9, (due - began) / 1e9, MAX_DELAY)

    def _count(self, taken: Taken, *, counted: bool) -> None:
        attempts = taken.attempts if counted else taken.attempts - 1
        # Whoever comes back alive is no suspect any more.
        if attempts:
            self._attempts.write(taken.name, Note(attempts, taken.inode, taken.modified, ""))
        else:
            self._attempts.forget(taken.name)

    # --- what is no element ---------------------------------------------------------------------------

    def _parse(self, folder: str, name: str) -> tuple[int, str] | None:
        parsed = parse_element(name)
        if parsed is None or decode_key(parsed[1]) is None:
            self._set_aside(folder, name, "its name is not <number>-<key>")
            return None
        return parsed

    def _is_regular(self, folder: str, name: str) -> bool:
        """Tell whether it is a regular file; what is not is set aside."""
        try:
            status = os.lstat(name, dir_fd=self._layout.folder(folder))
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode):
            self._set_aside(folder, name, "it is not a regular file")
            return False
        return True

    def _looks_regular(self, name: str) -> bool:
        """Tell whether a name in pending/ is of a regular file now. Nothing is done about it."""
        try:
            return stat.S_ISREG(os.lstat(name, dir_fd=self._layout.fresh("pending")).st_mode)
        except FileNotFoundError:
            return False

    def _set_aside(self, folder: str, name: str, reason: str) -> None:
        try:
            aside = transitions.set_aside(
                self._layout, folder, name, f"{folder}/{name} was set aside: {reason}\n"
            )
        except OSError as error:
            log.warning(
                "%s/%s is no element (%s) and cannot be moved: %s",
                folder,
                name,
                reason,
                error.strerror,
                extra=about("not_set_aside", name),
            )
        else:
            log.warning(
                "set aside %s/%s: %s (it is now failed/%s)",
                folder,
                name,
                reason,
                aside,
                extra=about("set_aside", name)
                | {"folder": folder, "file": name, "reason": reason, "aside": aside},
            )

    def _log_drops(self) -> None:
        for event, name, message in self.drops.messages:
            log.warning("%s", message, extra={"event": event, "key": name, "folder": "drop"})
        self.drops.messages.clear()
