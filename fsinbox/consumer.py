"""What the one consumer knows: the lock that makes it the one, what waits and in which order, and what is out.

The folders are the truth; this is a view of them that lets a take cost the same whatever waits. Its parts, each with
what holds of it:

 _waiting    the last listing of pending/, oldest last. Every name in it had been given out when the listing began, so for
             each key nothing older can turn up later: of two values the older is never delivered after the newer.
 _again      a heap of names that came back or were held: put back, no longer blocked, settled
 _deferred   key -> its name in deferred/; no key is also waiting without _take noticing
 _out        key -> the element that is out; at most one a key
 _blocked    key -> a name that waits until the element of its key, which is out, is done
 _back       key -> a name that was put back since the last listing, which may show a late value below it
 _ended      keys of which an element was ended since inflight/ and deferred/ were last flushed: before another one of such a
             key is taken, they are flushed, so that a power cut cannot bring back the older one when the newer is gone
 _stranded   key -> a name in inflight/ that cannot be put back; what is newer supersedes it
 _in_doubt   a take failed halfway: the view is made anew before the next one
 _wishes     what people ask for (control/): a pause, keys on hold
 _held       names of deferred elements that are due, of keys on hold
 _done       with keep_done: the names in done/, oldest first, of which only the last so many are kept
 _notes      name -> how often it was taken (attempts/), only for those that came back or were out when a consumer died

Attempts. A note is believed only for the very file it was written for (inode and modification time): a newer value in the
same place starts afresh. A consumer that finds elements in inflight/ counts the attempt for each. If there was one, it
was this one that its consumer died of; if there were several, each is a *suspect* and is next taken alone, so that the
guilty one is found without blame on the others.
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
from time import monotonic, time_ns

from . import protocol
from .adopt import Drops
from .control import NONE, Wishes, wishes
from .errors import UnusableInbox
from .layout import Layout
from .lock import WHOLE, Hold, Shard
from .names import decode_key, element_name, parse_deferred, parse_element
from .sequence import Sequence
from .watch import RESCAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("fsinbox")

MAX_DELAY = 7 * 24 * 3600.0
"""Longest back-off, in seconds. A due time further ahead than this means that the clock was set back."""

LITTER_AGE = 24 * 3600.0
"""Age in seconds after which a file in tmp/ has no living writer."""

_MOST_ENDED = 10_000
"""Keys in _ended: then they are flushed, to bound what is kept in memory."""

_LONG = 1000
"""Names in pending/: a listing of more is only done if there is something new, where that can be told; or after RESCAN."""

_DROP_INTERVAL = 0.02  # seconds between looks into drop/, and into control/, while there is a backlog to work on

_WISH_INTERVAL = 1.0
"""Seconds between looks into control/ where each look is a question to a server, and while nothing may be taken."""


@dataclass(frozen=True, slots=True)
class Note:
    """What attempts/ says of an element: how often it was taken, of which file that is true, and whether it is suspect."""

    attempts: int
    inode: int
    modified: int
    alone: str  # "" | "suspect": out with others when a consumer died | "died": out alone when a consumer died


@dataclass(slots=True)  # (frozen costs a microsecond a take)
class Taken:
    """An element that is out. Nobody changes one."""

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


def _about(event: str, name: str) -> dict[str, object]:
    """Return what a structured log says of the element of this name, for `extra`."""
    number, encoded = parse_element(name) or (None, "")
    key = decode_key(encoded)
    return {"event": event} if key is None else {"event": event, "key": key, "seq": number}


def _hold(layout: Layout, settings: Settings) -> Hold:
    """Become the one consumer: by a lock, or where several hosts share the inbox by a lease. Raises InboxBusy, OSError."""
    if layout.sharing is None:
        return Hold(layout, settings.shard)
    from .lease import Lease

    return Lease(layout, settings.shard, settings.lease)


class Consumer:
    """The one consumer of an inbox. Not safe for threads: its caller holds a lock around every call."""

    def __init__(self, layout: Layout, sequence: Sequence, settings: Settings) -> None:
        """Become the consumer and put back what a dead one held. Raises InboxBusy."""
        self._layout = layout
        self._sequence = sequence
        self._settings = settings
        self.drops = Drops(
            layout,
            sequence,
            settle=settings.drop_settle,
            ceiling=max(settings.max_settle, settings.drop_settle),
            max_size=settings.max_drop_size,
            mine=settings.shard.has if settings.shard.count > 1 else None,
        )
        self._waiting: list[str] = []
        self._again: list[str] = []
        self._deferred: dict[str, str] = {}
        self._due: list[tuple[int, str]] = []
        self._settling: list[tuple[float, str]] = []
        self._out: dict[str, Taken] = {}
        self._blocked: dict[str, str] = {}
        self._back: dict[str, str] = {}
        self._ended: set[str] = set()
        self._stranded: dict[str, str] = {}
        self._in_doubt = False
        self._notes: dict[str, Note] = {}
        self._more = False
        self._listed = False
        self._next_drop_look = 0.0
        self._next_wish_look = 0.0
        self._wishes: Wishes = NONE
        self._held: list[str] = []
        self._done_names: dict[str, None] | None = None
        self._line = b""
        self._list_anew = 0.0
        self._long = False
        self._clock = 0  # the highest it was since deferred elements were last looked at
        self._mine = settings.shard.has
        self._hold = _hold(layout, settings)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop being the consumer. What is out stays in inflight/ for the next one: put it back first."""
        self._hold.close()

    def abandon_after_fork(self) -> None:
        """In a forked child: let go of the lock, which the parent holds on to."""
        self._hold.abandon()

    def _now(self) -> int:
        """Return the time by the clock that sets the times of files, in nanoseconds: another host's, perhaps."""
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

    @property
    def out(self) -> list[Taken]:
        """The elements that are out."""
        return list(self._out.values())

    # --- becoming the consumer ---------------------------------------------------------------------------------

    def _recover(self) -> None:
        # (Where hosts share it, only if `sequence` is new or damaged: a host that died may hold the lock for long.)
        if self._layout.sharing is None or not self._sequence.peek():
            with self._sequence:
                protocol.last_number(self._layout, self._sequence)
                self._sequence.finish()
        # What the consumer before has ended must not come back after what this one ends, and what is dropped here for a
        # newer value must not be lost together with it: first of all, all that there is to be seen is there for good.
        self._flush_ended()
        self._load_notes()
        self._look_afresh(died=True)
        self._forget_idle_notes()
        self._sweep_litter()

    def _look_afresh(self, *, died: bool) -> None:
        """Make the view anew from what lies in the folders. What is in inflight/ and not known to be out is put back.

        `died`: a dead consumer left it there; else a take that failed.
        """
        self._waiting, self._again, self._due, self._settling, self._held, self._deferred = [], [], [], [], [], {}
        orphans = [orphan for orphan in self._list_inflight() if orphan[1] not in self._out]
        deferred = self._list_deferred()
        returning = {encoded for _, encoded in orphans} | deferred.keys()
        self._ended |= returning
        waiting = self._highest_waiting(returning)
        self._put_back_orphans(orphans, waiting, died=died)
        for encoded, name in deferred.items():
            if waiting.get(encoded, -1) >= int(name[20:39]):
                protocol.drop_deferred(self._layout, name)
            else:
                self._remember_deferred(encoded, name)

    def _list_inflight(self) -> list[tuple[int, str]]:
        """Return (number, encoded key) of what a dead consumer held, the newest of each key; older ones are dropped."""
        newest: dict[str, int] = {}
        for name in sorted(self._layout.names("inflight")):
            parsed = self._parse("inflight", name)
            if parsed is None or not self._is_regular("inflight", name):
                continue
            number, encoded = parsed
            if self._layout.sharing is None and not self._mine(encoded):
                continue  # out with the consumer of another shard
            if encoded in newest:
                protocol.acknowledge(self._layout, element_name(newest[encoded], encoded))
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
                protocol.drop_deferred(self._layout, deferred)
                continue
            if other:
                protocol.drop_deferred(self._layout, other[1])
            newest[encoded] = number, deferred
        return {encoded: deferred for encoded, (_, deferred) in newest.items()}

    def _highest_waiting(self, keys: set[str]) -> dict[str, int]:
        """Return the highest number in pending/ of each of these encoded keys, with or without a hint."""
        highest: dict[str, int] = {}
        for name in self._layout.names("pending") if keys else ():
            parsed = parse_element(name)
            if parsed and parsed[1] in keys:
                highest[parsed[1]] = max(parsed[0], highest.get(parsed[1], 0))
        return highest

    def _put_back_orphans(self, orphans: list[tuple[int, str]], waiting: dict[str, int], *, died: bool) -> None:
        alone = "died" if len(orphans) == 1 else "suspect"
        for number, encoded in sorted(orphans):
            name = element_name(number, encoded)
            if waiting.get(encoded, -1) > number:
                protocol.acknowledge(self._layout, name)
                log.info(
                    "dropped what a dead consumer held of key %r: a newer value waits",
                    decode_key(encoded),
                    extra=_about("superseded", name),
                )
                continue
            if died:
                status = os.lstat(name, dir_fd=self._layout.folder("inflight"))
                note = self._note_of(name, status)
                self._write_note(name, Note((note.attempts if note else 0) + 1, status.st_ino, status.st_mtime_ns, alone))
            try:
                if protocol.put_back(self._layout, name, number, encoded):
                    what = "a consumer died with key %r out: put back" if died else "key %r was half taken: put back"
                    log.warning(what, decode_key(encoded), extra=_about("recovered", name))
            except OSError as error:
                self._hold.verify()  # else it is not that the lease was lost
                self._stranded[encoded] = name
                log.error(
                    "cannot put back inflight/%s: %s: it stays there until the next start",
                    name,
                    error.strerror,
                    extra=_about("stranded", name),
                )

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
        """Put drop/ and pending/ in order, as a take would first do, and look closely at these names in pending/.

        For the doctor. A producer may publish at a name in pending/ at any moment; so what is no regular file is taken
        first, and set aside from inflight/, where nothing replaces it.
        """
        self._list_pending()
        for name in doubtful + [name for name in self._waiting if not parse_element(name)]:
            taken = self._take(name, None)
            if taken:
                self.put_back(taken, counted=False)

    # --- what to take next -------------------------------------------------------------------------------------

    def take(self) -> Taken | None:
        """Take the oldest element that may be taken now; None if there is none."""
        if self._layout.sharing:
            self._hold.check()
        if self._in_doubt:
            self._look_afresh(died=False)
            self._in_doubt = False
        try:
            return self._take_next()
        except BaseException:
            # In the middle of a step: an element may be in inflight/, or in deferred/, that this view does not know of. It
            # must not be left there until a newer one is done, and come back after it.
            self._in_doubt = True
            raise

    def _take_next(self) -> Taken | None:
        if monotonic() >= self._next_drop_look:
            self._heed_wishes()
            if self._waiting and not self._wishes.paused:
                self.drops.adopt()
                self._log_drops()
            self._next_drop_look = monotonic() + _DROP_INTERVAL
        if self._wishes.paused:
            return None
        listed = False
        while True:
            self._wake_up_deferred()
            name = self._oldest()
            if name is None or not self._listed:  # (else what is due in deferred/ would go before what came earlier)
                if listed and not self._more:
                    return None
                listed = True
                self._list_pending()
                continue
            if self._wishes.held and self._pass_over(name):
                continue
            if self._out and self._is_suspect(name):
                return None  # a suspect is only out alone: wait until the others are done
            if self._out and any(taken.alone for taken in self._out.values()):
                return None
            deferred = self._pop(name)
            taken = self._take(name, deferred)
            if taken:
                return taken

    def _heed_wishes(self) -> None:
        """Look at what people ask for (control/)."""
        now = monotonic()
        if now < self._next_wish_look:
            return
        if self._layout.sharing:
            self._next_wish_look = now + _WISH_INTERVAL
        before, self._wishes = self._wishes, wishes(self._layout)
        if before.paused != self._wishes.paused:
            if self._wishes.paused:
                log.warning("paused by %s: nothing is taken", self._wishes.by or "somebody", extra={"event": "paused"})
            else:
                log.warning("resumed", extra={"event": "resumed"})
        if before.look != self._wishes.look:
            self._listed = False
            self._forget_discarded()
        if before.held - self._wishes.held:  # what was passed over is in no view: make it anew
            self._listed = False
            self._again += self._held
            heapq.heapify(self._again)
            self._held.clear()

    def _forget_discarded(self) -> None:
        """Forget what people have removed from deferred/: nobody needs to wait for it."""
        for encoded, deferred in list(self._deferred.items()):
            if not self._layout.exists("deferred", deferred) and not self._layout.exists("pending", deferred[20:]):
                del self._deferred[encoded]
                self._forget_note(deferred[20:])

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
        """Return when (monotonic seconds) something may become takeable without any event; None if nothing will."""
        if self._wishes.paused:
            return None
        times = [] if self.drops.look_again is None else [self.drops.look_again]
        if self._settling:
            times.append(self._settling[0][0])
        while self._due and not self._is_deferred(self._due[0][1]):
            heapq.heappop(self._due)  # superseded, or moved by hand
        if self._due:
            times.append(monotonic() + max(0.0, (self._due[0][0] - self._now()) / 1e9))
        return min(times, default=None)

    def _oldest(self) -> str | None:
        """Return the lowest of the names that may be taken: waiting, come back, or deferred and due."""
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
        if not self._due and not self._settling:
            return
        now = self._now()
        if now < self._clock:  # it was set back: perhaps by more than any back-off
            for encoded, deferred in self._deferred.items():
                self._remember_deferred(encoded, deferred)
        self._clock = now
        while self._due and self._due[0][0] <= now:
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
        if self._is_late(name, encoded):
            protocol.drop_late(self._layout, name)
            return None
        if encoded in self._out:
            self._blocked[encoded] = min(name, self._blocked.get(encoded, name))
            return None
        if encoded in self._ended or len(self._ended) > _MOST_ENDED:
            self._flush_ended()
        if deferred:
            del self._deferred[encoded]
            if not protocol.take_deferred(self._layout, deferred, name, number, encoded):
                self._ended.add(encoded)
                if self._layout.exists("pending", name):
                    # A person has ended its back-off (or a late producer has published there): it counts as put back. Else a
                    # value below it would not be seen to be late.
                    self._back[encoded] = name
                    heapq.heappush(self._again, name)
                else:
                    self._forget_note(name)
                return None
        elif not self._take_waiting(name, number, encoded):
            return None
        return self._have_taken(name, number, encoded, key)

    def _take_waiting(self, name: str, number: int, encoded: str) -> bool:
        if self._settings.settle and not self._settled(name, number):
            return False
        outcome = protocol.take(self._layout, name, number, encoded)
        if self._back.get(encoded) == name:
            del self._back[encoded]
        if outcome == "fold":
            self._list_pending()
            return False
        if outcome == "gone":
            self._hold.verify()
            return False
        stranded = self._stranded.pop(encoded, name)
        if stranded != name:
            # Superseded, too: it must not come back, at the next start, after what was just taken.
            protocol.drop_stranded(self._layout, stranded)
            self._forget_note(stranded)
        older = self._deferred.get(encoded)
        if older and older[20:] <= name:
            # Superseded by what was just taken: dropped at once, whatever its back-off said.
            del self._deferred[encoded]
            protocol.supersede_deferred(self._layout, older)
            if older[20:] != name and self._looks_regular(older[20:]):
                protocol.drop_late(self._layout, older[20:])  # a person has ended its back-off meanwhile
            if older[20:] != name:
                self._forget_note(older[20:])
        return True

    def _settled(self, name: str, number: int) -> bool:
        """Tell whether a waiting element has been left alone for the settle time, or has waited up to the ceiling."""
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
            protocol.flush_ended(self._layout)
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
        if status.st_nlink > 1 and protocol.release_twin(self._layout, name):
            heapq.heappush(self._again, name)
            return None
        note = self._note_of(name, status)
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
        self._out[encoded] = taken
        return taken

    # --- listing pending/ --------------------------------------------------------------------------------------

    def _list_pending(self) -> None:
        """Look at drop/ and pending/ afresh; fold what has more than one place."""
        if self._layout.is_removed():
            raise UnusableInbox(f"inbox {self._layout.path} was removed: stop, or create it again and start anew")
        self._hold.check()
        self.drops.adopt()
        self._log_drops()
        if self._nothing_new():
            return
        # A listing is not a moment: of two names that come while it runs it may show only the later one. So what was
        # not given out before it began is left for the next.
        mark = self._sequence.peek()
        self._more = False
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
        self._back.clear()  # what was put back before is seen, and folded with what lies below it
        # (What is foreign among the others is set aside when its turn comes: to look at each of a million takes a second.)
        self._waiting = self._fold_all(names)
        held = set(self._blocked.values()) | {name for _, name in self._settling} if self._blocked or self._settling else ()
        if held:
            self._waiting = [name for name in self._waiting if name not in held]
        self._again = [name for name in self._again if self._deferred_again(name)]
        heapq.heapify(self._again)
        self._listed = True

    def _nothing_new(self) -> bool:
        """Tell whether a long listing can be spared: no add has ended since the last one, and nothing is in doubt.

        Only where several hosts share the inbox: there every add ends with a change of `sequence`, after its element is in
        its place. What is done by hand, or is not seen on this host, is seen when the listing is old.
        """
        if self._layout.sharing is None:
            return False
        line = self._sequence.peek_line()
        same = line == self._line and monotonic() < self._list_anew and self._long and self._listed
        if same and not (self._waiting or self._more or self._back or self._in_doubt):
            return True
        self._line, self._list_anew = line, monotonic() + RESCAN
        return False

    def _deferred_again(self, name: str) -> bool:
        """Tell whether a name that came back waits in deferred/, where a listing of pending/ does not show it."""
        parsed = parse_element(name)
        return bool(parsed and self._deferred.get(parsed[1], "").endswith(name))

    def _sort_out_future(self, names: list[str]) -> bool:
        """Tell whether any of these names, which are above the mark, is for the next listing.

        Those whose number nobody has given out (a careless copy into pending/) are given one of ours.
        """
        last = self._sequence.peek()
        forged = [name for name in names if int(name[:19]) > last]
        more = len(forged) < len(names)
        if forged and self._sequence.try_lock():
            try:
                # (Not just read: the file may have been lost or damaged, and then it is mended here.)
                last = protocol.last_number(self._layout, self._sequence)
                for name in sorted(forged):
                    more |= int(name[:19]) <= last or self._renumber(name)
                self._sequence.finish()
            finally:
                self._sequence.unlock()
        return more

    def _renumber(self, name: str) -> bool:
        """Queue a file with a number nobody gave out as if it came now. The caller holds the admission lock."""
        parsed = self._parse("pending", name)
        if parsed is None:
            return False
        try:
            number, waits = protocol.admit(self._layout, self._sequence, parsed[1])
            if waits:  # it must not overwrite what was added properly, and there is no telling which is newer
                self._set_aside("pending", name, "its number was never given out, and a proper value of its key waits")
                return False
            log.warning(
                "pending/%s has a number that was never given out: it is queued as if it came now",
                name,
                extra=_about("renumbered", name) | {"seq": number},
            )
            return protocol.move_drop(self._layout, self._sequence, "pending", name, number, parsed[1])
        except OSError as error:
            log.warning(
                "cannot queue pending/%s: %s: it is tried again", name, error.strerror, extra=_about("not_renumbered", name)
            )
            return False

    def _fold_all(self, names: list[str]) -> list[str]:
        """Fold every key that has several places; return `names` (newest first) with one place a key."""
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
                for number in numbers:  # no key's: it has no hint to remove, and `..` is no name for one
                    self._set_aside("pending", element_name(number, encoded), "its name is not <number>-<key>")
                gone.update(element_name(number, encoded) for number in numbers)
            elif len(numbers) > 1:
                late = [number for number in numbers if self._is_late(element_name(number, encoded), encoded)]
                for number in late:
                    protocol.drop_late(self._layout, element_name(number, encoded))
                    gone.add(element_name(number, encoded))
                # A directory among them could be renamed neither over nor under a file. It is set aside when it is taken:
                # here, a producer may be about to publish in its place.
                left = [number for number in numbers if number not in late]
                regular = [number for number in left if self._looks_regular(element_name(number, encoded))]
                if len(regular) > 1:
                    protocol.fold(self._layout, encoded, regular)
                if len(regular) < len(left):
                    protocol.remove_hint(self._layout, encoded)  # it would send whoever takes one of them back here to fold
                gone.update(element_name(number, encoded) for number in regular[1:])
        return [name for name in names if name not in gone]

    def _is_late(self, name: str, encoded: str) -> bool:
        """Tell whether a value waits below the element of its key that is out, deferred, or was just put back.

        Its producer had found this place before that element's was given out, so it is older, or overlaps. It is dropped.
        Nothing of this key may be folded to this place: what is out may come back, and would count as the newer (I2).
        """
        if not (self._out or self._deferred or self._stranded or self._back):
            return False
        back = self._back.get(encoded, "")
        if name < back and self._layout.exists("pending", back):
            return self._looks_regular(name)
        out, deferred = self._out.get(encoded), self._deferred.get(encoded, "")
        held = max(out.name if out else "", deferred[20:], self._stranded.get(encoded, ""))
        return name < held and self._looks_regular(name)

    # --- the ways out ------------------------------------------------------------------------------------------

    def acknowledge(self, taken: Taken) -> None:
        """The element is done."""
        keep = self._settings.keep_done
        if not (self._keep_done(taken.name, keep) if keep else protocol.acknowledge(self._layout, taken.name)):
            self._hold.verify()
        self._forget_note(taken.name)
        self._done(taken)

    def _keep_done(self, name: str, most: int) -> bool:
        """Acknowledge an element by moving it to done/, and remove the oldest there above so many."""
        if self._done_names is None:
            self._layout.make("done")
            found = protocol.oldest_first(self._layout, "done")
            self._done_names = dict.fromkeys(name for name in found if self._mine(name[20:]))
        try:
            if not protocol.keep_done(self._layout, name):
                return False
        except OSError as error:
            log.warning(
                "cannot keep %s in done/: %s: it is acknowledged, and removed",
                name,
                error.strerror,
                extra=_about("not_kept", name),
            )
            return protocol.acknowledge(self._layout, name)
        self._done_names.pop(name, None)  # from before it was replayed
        self._done_names[name] = None
        while len(self._done_names) > most:
            oldest = next(iter(self._done_names))
            del self._done_names[oldest]
            protocol.remove_leftover(self._layout, "done", oldest)
        return True

    def put_back(self, taken: Taken, *, counted: bool) -> bool:
        """Return the element to its place. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        waits = protocol.put_back(self._layout, taken.name, taken.number, taken.encoded)
        if not waits:
            self._hold.verify()
        self._done(taken)
        if waits:
            heapq.heappush(self._again, taken.name)
            self._back[taken.encoded] = taken.name
        else:
            self._forget_note(taken.name)
        return waits

    def defer(self, taken: Taken, delay: float, *, counted: bool) -> bool:
        """Lay the element aside for `delay` seconds. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        now = self._now()
        self._clock = max(self._clock, now)
        due = now + int(min(delay, MAX_DELAY) * 1e9)
        deferred = protocol.defer(self._layout, taken.name, taken.number, taken.encoded, due)
        if deferred is None:
            self._hold.verify()
        self._done(taken)
        if deferred is None:
            self._forget_note(taken.name)
            return False
        self._remember_deferred(taken.encoded, deferred)
        return True

    def fail(self, taken: Taken, reason: str) -> bool:
        """Give the element up. False if a newer value waits and it was dropped."""
        failed = protocol.fail(self._layout, taken.name, taken.number, taken.encoded, reason)
        if not failed:
            self._hold.verify()
        self._forget_note(taken.name)
        self._done(taken)
        return failed

    def _done(self, taken: Taken) -> None:
        del self._out[taken.encoded]
        self._ended.add(taken.encoded)
        blocked = self._blocked.pop(taken.encoded, None)
        if blocked:
            heapq.heappush(self._again, blocked)

    def _remember_deferred(self, encoded: str, deferred: str) -> None:
        due = int(deferred[:19])
        if due > self._now() + int(MAX_DELAY * 1e9):
            due = 0  # the clock was set back since
        self._deferred[encoded] = deferred
        heapq.heappush(self._due, (due, deferred))

    # --- notes -------------------------------------------------------------------------------------------------

    def _count(self, taken: Taken, *, counted: bool) -> None:
        attempts = taken.attempts if counted else taken.attempts - 1
        # Whoever comes back alive is no suspect any more.
        if attempts:
            self._write_note(taken.name, Note(attempts, taken.inode, taken.modified, ""))
        else:
            self._forget_note(taken.name)

    def _note_of(self, name: str, status: os.stat_result) -> Note | None:
        note = self._notes.get(name)
        if note and (note.inode, note.modified) == (status.st_ino, status.st_mtime_ns):
            return note
        return None

    def _is_suspect(self, name: str) -> bool:
        """Tell whether what waits under this name was out when a consumer died."""
        note = self._notes.get(name)
        if not note or not note.alone:
            return False
        try:
            return self._note_of(name, os.lstat(name, dir_fd=self._layout.folder("pending"))) is not None
        except FileNotFoundError:
            return True  # it waits in deferred/, where nothing replaces it

    def _write_note(self, name: str, note: Note) -> None:
        self._notes[name] = note
        folder = self._layout.folder("attempts")
        draft = f".draft-{self._settings.shard.index}"
        try:
            try:
                os.unlink(draft, dir_fd=folder)
            except FileNotFoundError:
                pass
            os.symlink(f"{note.attempts}.{note.inode}.{note.modified}.{note.alone}", draft, dir_fd=folder)
            os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            log.warning(
                "cannot note the attempts at %s on disk: %s: a restart will not know of them",
                name,
                error.strerror,
                extra=_about("not_noted", name),
            )

    def _forget_note(self, name: str) -> None:
        if self._notes.pop(name, None) is None:
            return
        try:
            os.unlink(name, dir_fd=self._layout.folder("attempts"))
        except OSError:
            pass  # gone; or it is left there, and only believed for the very file it names

    def _load_notes(self) -> None:
        folder = self._layout.folder("attempts")
        for name in self._layout.names("attempts"):
            if not self._mine(name[20:]):
                continue
            try:
                attempts, inode, modified, alone = os.readlink(name, dir_fd=folder).split(".")
                self._notes[name] = Note(int(attempts), int(inode), int(modified), alone)
            except (OSError, ValueError):
                continue  # no note of ours

    def _forget_idle_notes(self) -> None:
        deferred = {name[20:] for name in self._deferred.values()}
        for name in list(self._notes):
            if name not in deferred and not self._layout.exists("pending", name):
                self._forget_note(name)

    # --- what is no element ------------------------------------------------------------------------------------

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
            aside = protocol.set_aside(self._layout, folder, name, f"{folder}/{name} was set aside: {reason}\n")
        except OSError as error:
            log.warning(
                "%s/%s is no element (%s) and cannot be moved: %s",
                folder,
                name,
                reason,
                error.strerror,
                extra=_about("not_set_aside", name),
            )
        else:
            log.warning(
                "set aside %s/%s: %s (it is now failed/%s)",
                folder,
                name,
                reason,
                aside,
                extra=_about("set_aside", name) | {"folder": folder, "file": name, "reason": reason, "aside": aside},
            )

    def _log_drops(self) -> None:
        for event, name, message in self.drops.messages:
            log.warning("%s", message, extra={"event": event, "key": name, "folder": "drop"})
        self.drops.messages.clear()
