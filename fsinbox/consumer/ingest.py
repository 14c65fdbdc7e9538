"""drop/: what is an element and what is set aside, and why.

Anyone may `mv` a file into drop/; its name is the key. Hidden files, and names that are known to be nobody's
(ignoring.py), are left alone: they are somebody's drafts. What is not a readable regular file of a sensible
size is set aside. The rest must be *finished*:

 - a file that some process has open for writing is not (asked of the kernel with a read lease, where it
   tells);
 - one that was seen to be renamed in, or whose status changed after its content did (ctime after mtime: it
   was renamed in, or had its times set, as the last thing that was done to it) is;
 - any other may be under the hand of a writer that cannot rename (scp, sftp): it must lie still for the
   settle time, which is longer where no lease tells. A writer that keeps coming back cannot put it off for
   ever: the ceiling ends the wait.

What others may still write to then is copied (copying.py), and the copy ingested.
"""

from __future__ import annotations

import os
import stat
from time import monotonic, time_ns
from typing import NamedTuple

from ..store import transitions
from ..store.bounds import NAME as LIMITS
from ..store.bounds import let_in
from ..store.drops import CLOSED, NEVER, UNTOLD, has_writer, open_drop, renamed_in
from ..store.errors import Full, InvalidKey
from ..store.files import flush_all, flush_pending
from ..store.folders import close_quietly
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import element_name, encode_key
from ..store.section import Busy
from ..store.subfolders import Within, flush_content, flush_folders
from .arrivals import Arrivals, tell
from .copying import ENOUGH, Copies, Copy, close_to_others
from .settings import Settings

_BATCH = 100
"""Files ingested in one go: with two flushes, before the consumer gets on with its work. New keys wait as
long for the lock."""


FULL_PAUSE = 0.5
"""Seconds until what found no room in the inbox is tried again."""

_LONG_LOOK = 0.005
"""Seconds: where a look into drop/ and its subfolders takes longer ..."""

_REST = 9
"""... there is none for so many times as long."""


_REPLACED = "it was replaced while it was ingested, and others may write to it: retry it, or drop it again"


class Finished(NamedTuple):
    """A file in drop/ that may be ingested. `copy`: of one that others may write to."""

    name: str
    encoded: str
    copy: Copy | None


class Stillness:
    """How long a file in drop/ is to be left alone that may be unfinished."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        """Of the settings it goes by drop_settle and max_settle."""
        self._layout = layout
        given = settings.drop_settle
        self.closed, self._untold = (CLOSED, UNTOLD) if given is None else (given, given)
        self._ceiling = max(settings.max_settle, self._untold)
        # name -> first seen, still since, its stamp
        self._seen: dict[str, tuple[float, float, tuple[int, int]]] = {}
        self.moved_in: set[str] = set()
        """Names that were seen to be renamed in: finished, whatever their times say."""

    def keep(self, names: set[str]) -> None:
        """Forget all other names."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        # Not emptied each time, for one may just have come: only names that others took away are left for
        # long.
        if not names and len(self.moved_in) > 10_000:
            self.moved_in.clear()

    def time_left(self, name: str, status: os.stat_result, *, writer: bool | None) -> float:
        """Return how many seconds to leave a file alone; 0 if it is finished."""
        if writer is not True and (renamed_in(status) or name in self.moved_in):
            self.moved_in.discard(name)
            return 0
        now = monotonic()
        stamp = (status.st_mtime_ns, status.st_size)
        first, still, known = self._seen.get(name, (now, now, stamp))
        if known != stamp:
            still = now
        self._seen[name] = (first, still, stamp)
        if writer:
            return max(self.closed, 0.05)  # somebody has it open now: no ceiling, half a file helps nobody
        quiet = now - still
        if self._layout.sharing is None:  # else the clock that has set its times is another one than ours
            quiet = max(quiet, (time_ns() - status.st_ctime_ns) / 1e9)
        settle = self._untold if writer is None else self.closed
        return max(0.0, min(settle - quiet, self._ceiling - (now - first)))


class Drops:
    """The consumer's watch over drop/: ingests what is finished, sets aside what cannot be an element."""

    def __init__(self, layout: Layout, index: Index, settings: Settings) -> None:
        """Of the settings it goes by drop_settle, max_settle, max_drop_size, ignore, drop_recursive and the
        shard."""
        self._layout = layout
        self._index = index
        self._still = Stillness(layout, settings)
        self.moved_in = self._still.moved_in
        """Names that were seen to be renamed in: the watch adds them."""
        self._max_size = settings.max_drop_size
        self._recursive = settings.drop_recursive
        self.arrivals = Arrivals(layout, settings)
        self._copies = Copies(layout)
        self._arrived: list[str] = []  # of the last listing, what has not been looked at
        self._stuck: set[str] = set()
        self.look_again: float | None = None
        """When a file will have lain still (monotonic seconds), or None."""
        self._full_until = 0.0  # the inbox was full: when to look again (monotonic seconds)
        self._rest_until = 0.0  # the last look took long: the same

    def close(self) -> None:
        """Remove what was not ingested after all from tmp/."""
        self._copies.keep(set())

    def ingest(self) -> int:
        """Ingest finished files, in order of arrival, up to a batch of them. Return how many."""
        self.look_again = None
        until = self._full_until if self._arrived else max(self._full_until, self._rest_until)
        if monotonic() < until:
            self.look_again = until
            return 0
        if not self._arrived:
            self._list()
        finished: list[Finished] = []
        self._copies.size = 0
        for _ in range(_BATCH):
            if not self._arrived or self._copies.size >= ENOUGH:
                break
            if entry := self._inspect(self._arrived.pop()):
                finished.append(entry)
        if self._arrived:
            self.look_again = monotonic()
        return self._admit_all(finished) if finished else 0

    def _list(self) -> None:
        """List drop/ into _arrived, the earliest arrival (ctime) last."""
        began = monotonic()
        arrived = self.arrivals.oldest_last()
        if arrived is None:
            return
        self._arrived = arrived
        names = set(arrived)
        if self._recursive:
            took = monotonic() - began
            self._rest_until = monotonic() + _REST * took if took > _LONG_LOOK else 0.0
        self._still.keep(names)
        self._stuck &= names
        self._copies.keep(names)

    def _inspect(self, name: str) -> Finished | None:
        """Return a file that may be ingested now; set aside what never may."""
        try:
            with Within(self._layout, name) as (folder, last):
                return self._inspect_in(name, folder, last)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._leave_for_now(name, "look at", error)
            return None

    def _inspect_in(self, name: str, folder: str, last: str) -> Finished | None:
        """The same, in its open folder."""
        try:
            status = os.lstat(last, dir_fd=self._layout.folder(folder))
            encoded = encode_key(name)
        except FileNotFoundError:
            return None
        except InvalidKey as error:
            self._set_aside(name, f"its name cannot be a key: {error}")
            return None
        except OSError as error:
            self._leave_for_now(name, "look at", error)
            return None
        if stat.S_ISREG(status.st_mode) and self._is_too_large(name, status):
            return None
        fd = self._open(name, folder, last, status)
        if fd is None:
            return None
        doing = "look at"
        try:
            status = os.fstat(fd)
            writer = None if self._layout.sharing else has_writer(fd)
            left = self._still.time_left(name, status, writer=writer)
            if left > 0:
                self._look_in(left)
                return None
            if not self._copies.are_needed(status):
                if close_to_others(self._layout, fd, status):
                    return Finished(name, encoded, None)
                self._look_in(max(self._still.closed, 0.05))
                return None
            if self._is_too_large(name, status):  # (it has grown just now)
                return None
            doing = "copy"
            if copy := self._copies.make(name, fd, status):
                return Finished(name, encoded, copy)
        except OSError as error:
            self._leave_for_now(name, doing, error)
            return None
        finally:
            close_quietly(fd)
        self._look_in(self._copies.wait(name))
        return None

    def _open(self, name: str, folder: str, last: str, status: os.stat_result) -> int | None:
        """Open a file; set aside what never may be; None if it is not for now."""
        try:
            return open_drop(self._layout, last, status, folder)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            # somebody has a lease on it (Samba takes them), and has just been asked to give it back
            self._look_in(max(self._still.closed, 0.05))
        except OSError as error:
            if error.errno in NEVER:
                self._set_aside(name, str(error.strerror))
            else:
                self._leave_for_now(name, "open", error)
        return None

    def _is_too_large(self, name: str, status: os.stat_result) -> bool:
        """Tell whether a file is, and set it aside."""
        if status.st_size <= self._max_size:
            return False
        self._set_aside(
            name,
            f"it has {status.st_size} bytes, more than the limit of {self._max_size}: raise --max-size, "
            "or split it",
        )
        return True

    def _look_in(self, seconds: float) -> None:
        """Look at drop/ again in so many seconds, or before."""
        at = monotonic() + seconds
        self.look_again = min(self.look_again or at, at)

    def _admit_all(self, finished: list[Finished]) -> int:
        """Make these files the waiting values of their keys; return of how many."""
        first = finished[0].name
        try:
            # Their writers need not have done it: in pending/ a name must not outlive its content.
            if names := [entry.name for entry in finished if not entry.copy]:
                flush_content(self._layout, names)
            if copies := [entry.copy.name for entry in finished if entry.copy]:
                flush_all(self._layout, "tmp", copies)
        except OSError as error:
            for entry in finished:
                if entry.copy:  # what could not be flushed must not be flushed again
                    self._copies.discard(entry.name)
                    self._leave_for_now(entry.name, "flush a copy of", error)
            if (
                len(finished) > 1
            ):  # one may have been replaced by what cannot be flushed: not to stop the others
                return sum(self._admit_all([entry]) for entry in finished if not entry.copy)
            self._leave_for_now(first, "flush", error, "to the disk")
            return 0
        moved = 0
        try:
            moved = self._index.try_locked(self._admit, finished)
            if moved:
                flush_pending(self._layout)  # first: what was moved must not be lost in between
                flush_folders(self._layout, [entry.name for entry in finished])
        except Busy:
            self.look_again = monotonic() + 0.01
        except OSError as error:
            self._leave(first, f"cannot ingest dropped files now: {error.strerror}: they are tried again")
        return moved

    def _admit(self, finished: list[Finished]) -> int:
        """Move them to pending/, those for which there is room; return how many. Inside the section."""
        moved = 0
        bounded = self._layout.has(LIMITS)
        for done, entry in enumerate(finished):
            try:
                number, waits, _ = self._index.admit(entry.encoded, len(finished) - done)
                if bounded and not waits:
                    let_in(self._layout, self._index)
                moved += self._move(entry, element_name(number, entry.encoded))
            except OSError as error:
                if isinstance(error, Full):
                    self._full_until = self.look_again = monotonic() + FULL_PAUSE
                self._copies.discard(entry.name)
                self._leave_for_now(entry.name, "ingest", error)
        return moved

    def _move(self, entry: Finished, place: str) -> bool:
        """Move a file, or our copy of it, to its place in pending/; tell whether something is there now."""
        if not entry.copy:
            return transitions.move_drop(self._layout, entry.name, place)
        outcome = transitions.move_drop_as_copy(
            self._layout, entry.name, entry.copy.seen, entry.copy.name, place
        )
        if outcome == "copied":
            self._copies.forget(entry.name)
            return True
        self._copies.discard(entry.name)
        if outcome == "unsafe":
            self._set_aside(entry.name, _REPLACED, place)
        elif outcome == "bare":
            self._leave(
                entry.name, f"cannot put a copy in place of {entry.name!r}: others may write to it still"
            )
        elif outcome == "changed":
            self._look_in(self._copies.wait(entry.name))
        return outcome in ("bare", "unsafe")

    def _set_aside(self, name: str, reason: str, place: str = "") -> None:
        """Move it to failed/ from drop/, or from its place in pending/."""
        said = f"dropped file {name!r} was set aside: {reason}\n"
        try:
            if place:
                aside = transitions.set_aside(self._layout, "pending", place, said)
            else:
                with Within(self._layout, name) as (folder, last):
                    aside = transitions.set_aside(self._layout, folder, last, said, label=name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._leave(
                name, f"dropped file {name!r} is no element ({reason}) and cannot be moved: {error.strerror}"
            )
            return
        tell("set_aside", name, f"set aside dropped file {name!r}: {reason} (it is now failed/{aside})")

    def _leave_for_now(self, name: str, what: str, error: OSError, how: str = "now") -> None:
        self._leave(
            name, f"cannot {what} {name!r} {how}: {error.strerror}: it stays in drop/ and is tried again"
        )

    def _leave(self, name: str, message: str) -> None:
        if name not in self._stuck:
            self._stuck.add(name)
            tell("left", name, message)
