"""drop/: what is an element and what is set aside, and why.

Anyone may `mv` a file into drop/; its name is the key. Hidden files, `*.tmp` and `*.part` are left alone:
they are somebody's drafts. What is not a readable regular file of a sensible size is set aside. The rest must
be *finished*:

 - a file that some process has open for writing is not (asked of the kernel with a read lease, where it
   tells);
 - one that was seen to be renamed in, or whose status changed after its content did (ctime after mtime: it
   was renamed in, or had its times set, as the last thing that was done to it) is;
 - any other may be under the hand of a writer that cannot rename (scp, sftp): it must lie still for the
   settle time. A writer that keeps coming back cannot put it off for ever: the ceiling ends the wait.
"""

from __future__ import annotations

import logging
import os
import stat
from time import monotonic, time_ns

from ..store import transitions
from ..store.drops import DRAFTS, NEVER, has_writer, open_drop, renamed_in
from ..store.errors import InvalidKey
from ..store.files import flush_all, flush_folder, flush_pending
from ..store.folders import close_quietly
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import element_name, encode_key
from ..store.section import Busy
from .settings import Settings

log = logging.getLogger("fsinbox")

_BATCH = 100
"""Files ingested in one go: with two flushes, before the consumer gets on with its work. New keys wait as
long for the lock."""


class Drops:
    """The consumer's watch over drop/: ingests what is finished, sets aside what cannot be an element."""

    def __init__(self, layout: Layout, index: Index, settings: Settings) -> None:
        """Of the settings it goes by drop_settle, max_settle, max_drop_size and the shard."""
        self._layout = layout
        self._index = index
        self._shard = settings.shard
        self._settle = settings.drop_settle
        self._ceiling = max(settings.max_settle, settings.drop_settle)
        self._max_size = settings.max_drop_size
        self._arrived: list[str] = []  # of the last listing, what has not been looked at
        # name -> first seen, still since, its stamp
        self._seen: dict[str, tuple[float, float, tuple[int, int]]] = {}
        self._stuck: set[str] = set()
        self.moved_in: set[str] = set()
        """Names that were seen to be renamed in (the watch adds them): finished, whatever their times say."""
        self.look_again: float | None = None
        """When a file will have lain still (monotonic seconds), or None."""

    def ingest(self) -> int:
        """Ingest finished files, in order of arrival, up to a batch of them. Return how many."""
        self.look_again = None
        if not self._arrived:
            self._list()
        batch, self._arrived = self._arrived[:_BATCH], self._arrived[_BATCH:]
        finished = [entry for name in batch if (entry := self._inspect(name))]
        if self._arrived:
            self.look_again = monotonic()
        return self._admit_all(finished) if finished else 0

    def _list(self) -> None:
        """List drop/ into _arrived, the earliest arrival (ctime) first."""
        arrived = []
        for name in self._layout.names("drop"):
            if name.lower().endswith(DRAFTS) or not self._is_mine(name):
                continue
            try:
                status = os.lstat(name, dir_fd=self._layout.folder("drop"))
            except FileNotFoundError:
                continue
            except OSError:
                arrived.append((0, name))  # left alone when it is inspected: it must not keep the others
                continue
            arrived.append((status.st_ctime_ns, name))
        arrived.sort()
        self._arrived = [name for _, name in arrived]
        names = set(self._arrived)
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        self._stuck &= names
        # Not emptied each time, for one may just have come: only names that others took away are left for
        # long.
        if not names and len(self.moved_in) > 10_000:
            self.moved_in.clear()

    def _is_mine(self, name: str) -> bool:
        if self._shard.count == 1:
            return True
        try:
            return self._shard.has(encode_key(name))
        except InvalidKey:
            return self._shard.has("")

    def _inspect(self, name: str) -> tuple[str, str] | None:
        """Return (name, encoded key) of a file that may be ingested now; set aside what never may."""
        try:
            status = os.lstat(name, dir_fd=self._layout.folder("drop"))
            encoded = encode_key(name)
        except FileNotFoundError:
            return None
        except InvalidKey as error:
            self._set_aside(name, f"its name cannot be a key: {error}")
            return None
        except OSError as error:
            self._leave(
                name, f"cannot look at {name!r} now: {error.strerror}: it stays in drop/ and is tried again"
            )
            return None
        if status.st_size > self._max_size and stat.S_ISREG(status.st_mode):
            self._set_aside(
                name,
                f"it has {status.st_size} bytes, more than the limit of {self._max_size}: raise --max-size, "
                "or split it",
            )
            return None
        try:
            fd = open_drop(self._layout, name, status)
        except FileNotFoundError:
            return None
        except (
            BlockingIOError
        ):  # somebody has a lease on it (Samba takes them), and has just been asked to give it back
            again = monotonic() + max(self._settle, 0.05)
            self.look_again = min(self.look_again or again, again)
            return None
        except OSError as error:
            if error.errno in NEVER:
                self._set_aside(name, str(error.strerror))
            else:
                self._leave(
                    name, f"cannot open {name!r} now: {error.strerror}: it stays in drop/ and is tried again"
                )
            return None
        try:
            left = self._time_left(
                name, os.fstat(fd), writer=None if self._layout.sharing else has_writer(fd)
            )
        except OSError as error:
            self._leave(
                name, f"cannot look at {name!r} now: {error.strerror}: it stays in drop/ and is tried again"
            )
            return None
        finally:
            close_quietly(fd)
        if left > 0:
            now = monotonic()
            self.look_again = min(self.look_again or now + left, now + left)
            return None
        return name, encoded

    def _time_left(self, name: str, status: os.stat_result, *, writer: bool | None) -> float:
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
            return max(self._settle, 0.05)  # somebody has it open now: no ceiling, half a file helps nobody
        quiet = now - still
        if self._layout.sharing is None:  # else the clock that has set its times is another one than ours
            quiet = max(quiet, (time_ns() - status.st_ctime_ns) / 1e9)
        return max(0.0, min(self._settle - quiet, self._ceiling - (now - first)))

    def _admit_all(self, finished: list[tuple[str, str]]) -> int:
        """Make these files the waiting values of their keys; return of how many."""
        names = [name for name, _ in finished]
        try:
            # Their writers need not have done it: in pending/ a name must not outlive its content.
            flush_all(self._layout, "drop", names)
        except OSError as error:
            if (
                len(finished) > 1
            ):  # one may have been replaced by what cannot be flushed: it must not stop the others
                return sum(self._admit_all([entry]) for entry in finished)
            self._leave(
                names[0],
                f"cannot flush {names[0]!r} to the disk: {error.strerror}: it stays in drop/ and is tried "
                "again",
            )
            return 0
        moved = 0
        try:
            moved = self._index.try_locked(self._admit, finished)
            if moved:
                flush_pending(self._layout)  # first: what was moved must not be lost in between
                flush_folder(self._layout, "drop")
        except Busy:
            self.look_again = monotonic() + 0.01
        except OSError as error:
            self._leave(names[0], f"cannot ingest dropped files now: {error.strerror}: they are tried again")
        return moved

    def _admit(self, finished: list[tuple[str, str]]) -> int:
        """Move them to pending/; return how many. Inside the section."""
        moved = 0
        for done, (name, encoded) in enumerate(finished):
            try:
                number, _, _ = self._index.admit(encoded, len(finished) - done)
                moved += transitions.move_drop(self._layout, name, element_name(number, encoded))
            except OSError as error:
                self._leave(
                    name,
                    f"cannot ingest {name!r} now: {error.strerror}: it stays in drop/ and is tried again",
                )
        return moved

    def _set_aside(self, name: str, reason: str) -> None:
        try:
            aside = transitions.set_aside(
                self._layout, "drop", name, f"dropped file {name!r} was set aside: {reason}\n"
            )
        except FileNotFoundError:
            return
        except OSError as error:
            self._leave(
                name, f"dropped file {name!r} is no element ({reason}) and cannot be moved: {error.strerror}"
            )
            return
        _tell("set_aside", name, f"set aside dropped file {name!r}: {reason} (it is now failed/{aside})")

    def _leave(self, name: str, message: str) -> None:
        if name not in self._stuck:
            self._stuck.add(name)
            _tell("left", name, message)


def _tell(event: str, name: str, message: str) -> None:
    log.warning("%s", message, extra={"event": event, "key": name, "folder": "drop"})
