"""Steps real producers and a real consumer through every interleaving of their file operations.

An actor is a producer or a consumer: a script of calls to a real Inbox, on a real directory, in a greenlet.
In place of `os` and `fcntl` the modules of fsinbox find Files and Locks, which pass every call on to the real
ones, but give control to the scheduler just before a call that others could notice. So a *step* of an actor
is one such call and everything the actor then does up to the next. An actor may also *crash* before a step:
nothing of it runs any more, its descriptors are closed and its locks are thereby free. When all actors are
done or dead, a fresh consumer takes and acknowledges until nothing is left, and the oracle judges the
history.

These calls are not steps:
 - what only concerns the caller's own files and descriptors: all in tmp/ (names are unique there), open of
   `index` and `consumer.lock`, close, fstat, fsync, leases, and the text in consumer.lock;
 - reads of `index` by whoever holds its lock: nobody else writes it, so what it says then is part of what the
   locking gives;
 - unlocking: it only lets others go on, so it might as well happen at once after the step before it;
 - a producer's look whether an element is in flight: it only decides between "new" and "behind";
 - everything in drop/, in a scenario where nobody drops anything.
In a scenario that says `keeps=True` a producer keeps what waits: there a look at what is in flight is a step,
and so is writing the times of what was for later. `limits` is only read and written by who holds the lock of
`index`, and counts as a part of it.

What nobody else looks at is a step before which its actor may crash, but nobody else runs in between, for it
would make no difference to either: the lines of `index` (its header is read without the lock, so writing that
is a step), and what only consumers touch, inflight/, deferred/, failed/ and attempts/. In attempts/ a
consumer crashes only in scenarios that say `notes=True`. In a scenario's `meets` are those of these folders
that the consumer changes while others look there: a producer that makes the index anew, or a person who
brings something back. With `loses` somebody removes `index`, and opening it is a step; or empties it or
writes an old copy over it without the lock, and what is done to its lines is a step as well.

Whoever tries to lock, and finds that another has the lock, gives up at once: no time passes here. It tries
again later.

A listing is one step, or several: in a scenario with `listing=(1, 0)` a listing of pending/ first sees the
odd numbers that are there, and later the even ones. For readdir is not atomic: an entry that comes or goes
meanwhile is seen or is not.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

import fsinbox.consumer.consumer
import fsinbox.consumer.ingest
import fsinbox.consumer.listing
import fsinbox.consumer.ownership
import fsinbox.consumer.recovery
import fsinbox.consumer.taking
import fsinbox.inbox
import fsinbox.store.bounds
import fsinbox.store.exchanging
import fsinbox.store.files
import fsinbox.store.folders
import fsinbox.store.handle
import fsinbox.store.held
import fsinbox.store.index
import fsinbox.store.layout
import fsinbox.store.lines
import fsinbox.store.section
import fsinbox.store.table
import fsinbox.store.transitions
from fsinbox import Inbox
from fsinbox.store.bounds import set_limits
from fsinbox.store.files import for_later
from fsinbox.store.folders import FOLDERS
from fsinbox.store.ignoring import FILE
from fsinbox.store.layout import Layout
from fsinbox.store.lines import header_line
from fsinbox.store.names import element_name
from tests.oracle import Event

from . import scenarios
from .scenarios import PROBE, Role, Scenario

CONTENTS = ("index", "pending", "inflight", "deferred", "failed", "drop", "attempts")

TAG = "now-now-"
FIRST = 10
"""The first number that is given out: there is room below it."""

LANDINGS = (
    (fsinbox.store.index.Index, "admit make_anew"),
    (fsinbox.store.transitions, "take go_back come_due coalesce"),
    (fsinbox.consumer.listing.Listing, "read"),
    (fsinbox.consumer.taking.Taking, "take"),
)
"""Functions after which an actor has forgotten all results, but for what its variables hold: no call of them
is within an expression of which a part was worked out before, or in a loop over what is not in a variable."""

IRRELEVANT = ("others", "numbers", "fd", "until")
"""Variables that do not matter: some only decide what add returns, one is of the same file whatever its
number, and one is a time that nobody looks at any more."""

TOLD = "waits"
"""One that only decides what add returns, but where values are exchanged."""

MAX_LEFT = 50
"""More elements than a scenario has: whoever takes that many runs in circles."""

UNSEEN, NOTED, PRIVATE, SHARED = range(4)
"""What a call is: no step; a step that others do not notice, and before which nobody crashes; one before
which its actor may crash, but that others do not notice; a step."""


_ADDRESS = re.compile(" at 0x[0-9a-f]+")


class Died(BaseException):
    """Thrown into a greenlet whose actor crashes, and again at every call it makes on its way out."""


class Status(NamedTuple):
    """What lstat and fstat tell, with the same numbers in every replay."""

    st_mode: int
    st_ino: Any
    st_dev: int
    st_size: int
    st_nlink: int
    st_mtime_ns: int = 1
    st_atime_ns: int = 1
    st_ctime_ns: int = 2  # after the content's: so that a file in drop/ counts as renamed in
    st_uid: int = os.geteuid()


# --- in place of os and fcntl -------------------------------------------------------------------------


class Files:
    """Passes calls on to os. Those that others could notice are steps."""

    def __init__(self, world: World, *, identity: bool) -> None:
        """`identity`: the module looks at what lstat tells of a file, not only whether it is there."""
        self._world = world
        self._identity = identity

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        setattr(self, name, value)
        return value

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        world = self._world
        folder = world.folders.get(dir_fd, "")
        if folder == "." and path == "index":
            what = "open", "index", flags & os.O_CREAT
            kind = SHARED if world.run.scenario.loses == "removed" else UNSEEN
            fd = world.call(what, ("index",), lambda: world.open_index(flags), world.generation, kind=kind)
        elif path == "." or folder in ("", "."):
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            world.folders[fd] = folder if path == "." else path
        elif folder == "tmp":
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            world.files[os.fstat(fd).st_ino] = path
        else:
            # The clock here is long ago, so a read would set an atime that the system leaves in earnest.
            flags |= os.O_NOATIME
            fd = world.call(
                ("open", folder, path), (folder,), lambda: os.open(path, flags, mode, dir_fd=dir_fd), "a file"
            )
        world.opened(fd)
        return fd

    def close(self, fd: int) -> None:
        self._world.closed(fd)
        os.close(fd)

    def rename(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        one, two = self._world.folders[src_dir_fd], self._world.folders[dst_dir_fd]

        def rename() -> None:
            os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self._world.check_bound(one)

        return self._world.call(("rename", one, src, two, dst), (one, two), rename)

    def link(
        self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True
    ) -> None:
        one, two = self._world.folders[src_dir_fd], self._world.folders[dst_dir_fd]
        return self._world.call(
            ("link", one, src, two, dst),
            (one, two),
            lambda: os.link(
                src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
            ),
        )

    def unlink(self, name: str, *, dir_fd: int) -> None:
        folder = self._world.folders[dir_fd]
        return self._world.call(("unlink", folder, name), (folder,), lambda: os.unlink(name, dir_fd=dir_fd))

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        folder = self._world.folders[dir_fd]
        return self._world.call(
            ("symlink", folder, name, target), (folder,), lambda: os.symlink(target, name, dir_fd=dir_fd)
        )

    def readlink(self, name: str, *, dir_fd: int | None = None) -> str:
        if dir_fd is None:
            return os.readlink(name)
        folder = self._world.folders[dir_fd]
        return self._world.call(
            ("readlink", folder, name), (folder,), lambda: os.readlink(name, dir_fd=dir_fd)
        )

    def lstat(self, name: str, *, dir_fd: int) -> Status:
        folder = self._world.folders[dir_fd]
        return self._world.call(
            ("lstat" if self._identity else "exists", folder, name),
            (folder,),
            lambda: self._world.same_for_all(os.lstat(name, dir_fd=dir_fd)),
            None if self._identity else "there",
            kind=self._kind_of_look(folder, name),
        )

    def _kind_of_look(self, folder: str, name: str) -> int | None:
        """Return what kind of step a look at a name in a folder is, None: the usual one."""
        if name == FILE:
            return UNSEEN  # nobody makes one
        if folder != "inflight" or (self._identity and self._world.run.scenario.keeps):
            return None
        return (
            PRIVATE if self._world.is_consumer() else UNSEEN
        )  # who moves all that is in it; who only wants to tell "behind"

    def utime(self, path: int | str, *, ns: tuple[int, int], dir_fd: int | None = None, **how: bool) -> None:
        if dir_fd is None:  # a draft's
            os.utime(path, ns=ns)
            return
        folder = self._world.folders[dir_fd]
        self._world.call(
            ("utime", folder, path, ns), (folder,), lambda: os.utime(path, ns=ns, dir_fd=dir_fd, **how)
        )

    def stat(self, path: str) -> Status:
        return self._world.same_for_all(os.stat(path))

    def fstat(self, fd: int) -> Status:
        return self._world.same_for_all(os.fstat(fd))

    def listdir(self, fd: int | str) -> list[str]:
        if isinstance(fd, str):
            return os.listdir(fd)
        folder = self._world.folders[fd]
        order = self._world.listing_order(folder)
        if not order:
            kind = PRIVATE if folder == "inflight" and self._world.is_consumer() else None
            return self._world.call(("listdir", folder), (folder,), lambda: sorted(os.listdir(fd)), kind=kind)
        names: list[str] = []
        for part in order:
            names += self._world.call(
                ("listdir", folder, part), (folder,), lambda part=part: _part(fd, part, len(order))
            )
        return names

    @contextmanager
    def scandir(self, fd: int) -> Iterator[Any]:
        yield [_Entry(name) for name in self.listdir(fd)]

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        world = self._world
        if world.folders[fd] == "limits":
            return os.pread(fd, length, offset)
        # (The header is read just after the file was locked: what happens in between might as well have
        # happened before.)
        kind = SHARED if world.is_written_to() and offset else UNSEEN
        return world.call_index("pread", fd, (offset,), lambda: os.pread(fd, length, offset), kind)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        world = self._world
        if world.folders[fd] == "limits":
            return world.call(
                ("pwrite", "limits", data), ("limits",), lambda: os.pwrite(fd, data, offset), kind=PRIVATE
            )
        if world.folders[fd] != "index":
            return os.pwrite(fd, data, offset)

        def write() -> int:
            if offset == 0:
                world.highest = max(world.highest, int(data[:19]))
            return os.pwrite(fd, data, offset)

        return world.call_index("pwrite", fd, (offset, data), write, world.index_kind() if offset else SHARED)

    def ftruncate(self, fd: int, length: int) -> None:
        if self._world.folders[fd] != "index":
            return os.ftruncate(fd, length)
        return self._world.call_index(
            "ftruncate", fd, (length,), lambda: os.ftruncate(fd, length), self._world.index_kind()
        )

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        kind = self._world.index_kind()
        self._world.call_index(
            "allocate", fd, (length,), lambda: os.posix_fallocate(fd, offset, length), kind
        )


class _Entry(NamedTuple):
    name: str


def _part(fd: int, part: int, parts: int) -> list[str]:
    """Return the names whose number is `part` modulo `parts` (foreign names, whose last digit is none, with
    part 0)."""
    return sorted(
        name for name in os.listdir(fd) if (int(name[:19]) if name[:19].isdigit() else 0) % parts == part
    )


class Locks:
    """Passes calls on to fcntl. A lock that is held by another keeps its actor from going on."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        value = getattr(fcntl, name)
        setattr(self, name, value)
        return value

    def flock(self, fd: int, how: int) -> None:
        if how & fcntl.LOCK_UN:
            self._world.unlock(fd)
            return
        world = self._world
        if world.folders[fd] != "index":
            fcntl.flock(fd, how)
            return
        tries = bool(how & fcntl.LOCK_NB)

        def lock() -> tuple[Any, ...]:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return world.learnt_by_locking(fd)

        what = ("try_lock" if tries else "lock", "index", world.generation(fd))
        world.call(what, ("index",), lock, lock=fd, kind=SHARED)


def _modules() -> list[ModuleType]:
    """Return the modules of fsinbox that producers and consumers use."""
    return [module for name, module in sys.modules.items() if name.startswith("fsinbox.")]


# --- the world ----------------------------------------------------------------------------------------


CLOCKED = (fsinbox.consumer.ownership, fsinbox.consumer.recovery, fsinbox.store.files, fsinbox.store.held)
"""The modules that ask for the time of day, but for the index."""


class KeptLayout(Layout):
    """A Layout that is used for one replay after the other: close() leaves it open."""

    def close(self) -> None:
        """Leave it open."""

    def end(self) -> None:
        """Close it."""
        super().close()


class World:
    """A directory with an inbox, the modules' view of it, and whose turn it is."""

    def __init__(self, path: str) -> None:
        """`path`: of a folder that does not exist yet."""
        self.path = path
        self.actor: Actor | None = None  # None: nobody is stepped, every call is just passed on
        self.run: Run | None = None
        self.folders: dict[int, str] = {}  # what a descriptor is of
        self.files: dict[int, str] = {}  # inode -> a name that is the same in every replay
        self.main = getcurrent()
        self.layouts: dict[str, KeptLayout] = {}
        self.base = KeptLayout(path)
        self.highest = 0  # number that was given out
        self._indexes: list[int] = []  # each file that was `index`, in the order in which they were made
        self._inodes: dict[int, int] = {}  # of these, to which of them it is, from 1
        self._times = count(1)
        self._patches = [
            mock.patch.object(fsinbox.store.handle, "Layout", self._layout),
            mock.patch.object(fsinbox.store.index, "boot_tag", lambda: TAG),
            mock.patch.object(
                fsinbox.store.section, "get_ident", lambda: self.actor.letter if self.actor else ""
            ),
            # As the scenario says: the table is one bucket.
            mock.patch.object(fsinbox.store.index, "BUCKET", 0),
            mock.patch.object(fsinbox.store.lines, "BUCKET", 0),
            mock.patch.object(fsinbox.store.table, "BUCKET", 0),
            mock.patch.object(fsinbox.store.index, "FEWEST_LINES", 0),
            mock.patch.object(fsinbox.store.index, "LINES_A_KEY", 1),
            # Who finds the inbox full counts anew: enough time has passed.
            mock.patch.object(fsinbox.store.bounds, "RECOUNT_SHARE", 0),
            # An actor's descriptors are closed when it ends.
            mock.patch.object(fsinbox.consumer.ownership.ConsumerLock, "__del__", lambda lock: None),
            mock.patch.object(fsinbox.store.files, "unused_temporary", self._unused_temporary),
            mock.patch.object(
                fsinbox.store.exchanging, "exchange", self._exchange(fsinbox.store.exchanging.exchange)
            ),
            # So it is always time to look into drop/ again.
            mock.patch.object(fsinbox.consumer.consumer, "_LOOK_INTERVAL", 0),
        ]
        for module in _modules():
            stand_ins = {
                "os": Files(self, identity=module not in (fsinbox.store.layout, fsinbox.store.folders)),
                "fcntl": Locks(self),
                "time_ns": self._clock if module in CLOCKED else lambda: 0,
                "monotonic": self._monotonic,
                "sleep": self._sleep,
            }
            if module is fsinbox.store.index:
                stand_ins["time_ns"] = self._now  # numbers are 11, 12, 13 ...
            if module is fsinbox.store.section:
                # Any patience is over when the lock was asked for once.
                stand_ins["monotonic"] = lambda: next(self._times) * 1000
            self._patches += [
                mock.patch.object(module, name, stand_in)
                for name, stand_in in stand_ins.items()
                if name in vars(module)
            ]
        for owner, names in LANDINGS:
            self._patches += [
                mock.patch.object(owner, name, self._landing(getattr(owner, name))) for name in names.split()
            ]

    def __enter__(self) -> World:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()
        self._forget_indexes()
        for layout in (*self.layouts.values(), self.base):
            layout.end()

    def _layout(
        self, path: str, *, create: bool, shared: bool, scope: str = "", force: bool = False
    ) -> KeptLayout:
        """Return the open layout of whoever opens an inbox now: opening one is no step, so it need not be
        done each time."""
        actor = self.actor
        who = actor.letter if actor else ""
        layout = self.layouts.get(who)
        if layout is None:
            with self.nobody():  # the descriptors do not die with the actor
                layout = self.layouts[who] = KeptLayout(path)
                for name in FOLDERS:
                    self.folders[layout.folder(name)] = name
            self.folders[layout.root] = "."
        return layout

    def _clock(self) -> int:
        return self.actor.clock if self.actor else self.run.clock

    def _monotonic(self) -> float:
        return self._clock() / 1e9

    def _sleep(self, seconds: float) -> None:
        """All patience is over after it: who else has the lock has it as long."""
        self.actor.clock += int(seconds * 1e12)

    def _now(self) -> int:
        """Return the time for a number: stopped, unless the scenario has a clock that runs."""
        return self.highest + 1 if self.run.scenario.clock_runs else 0

    def _landing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            result = function(*arguments, **more)
            if self.actor and not self.actor.quiet:
                self.actor.remember_only(result, sys._getframe(1))
            return result

        return call

    def _exchange(self, exchange: Callable[..., None]) -> Callable[..., None]:
        """Return what exchanges two names as a step."""

        def step(folder: int, name: str, other: int, new: str) -> None:
            one, two = self.folders[folder], self.folders[other]
            self.call(
                ("exchange", one, name, two, new), (one, two), lambda: exchange(folder, name, other, new)
            )

        return step

    def _unused_temporary(self, layout: Layout) -> str:
        actor = self.actor
        if actor is None:
            self.run.temporaries += 1
            return f"-{self.run.temporaries}"
        actor.temporaries += 1
        return f"{actor.letter}{actor.position}.{actor.temporaries}"

    @contextmanager
    def nobody(self) -> Iterator[None]:
        """While this lasts, calls are just passed on."""
        actor, self.actor = self.actor, None
        try:
            yield
        finally:
            self.actor = actor

    # what Files and Locks call

    def call(
        self,
        what: tuple[Any, ...],
        where: tuple[str, ...],
        act: Callable[[], Any],
        result_is: Any = None,
        lock: int = -1,
        kind: int | None = None,
    ) -> Any:
        """Do `act`, as a step of the actor whose turn it is if others could notice. `result_is`: instead of
        the result, what the actor can know of it, or a function of it that tells. `kind`: of step, if it is
        not as usual in this folder."""
        actor = self.actor
        if actor is None or actor.quiet:
            return act()
        if actor.dead:
            raise Died
        if kind is None:
            kind = actor.kind_of(where)
        if kind:
            actor.pause(what, lock, kind)
        try:
            result = act()
        except OSError as error:
            if kind:
                actor.note(what, errno.errorcode[error.errno])
            raise
        if what[0] in ("lock", "try_lock"):
            actor.holds, actor.locked = what[2], lock
        if kind:
            actor.note(
                what, result if result_is is None else result_is(result) if callable(result_is) else result_is
            )
        return result

    def call_index(self, name: str, fd: int, more: tuple[Any, ...], act: Callable[[], Any], kind: int) -> Any:
        """Do something to `index`, which is of this kind for who holds its lock."""
        actor = self.actor
        if actor is None or actor.quiet:
            return act()
        generation = self.generation(fd)
        kind = kind if actor.holds == generation else SHARED
        return self.call((name, "index", generation, *more), ("index",), act, kind=kind)

    def index_kind(self) -> int:
        """Return what kind of step a change of the table is."""
        return SHARED if self.is_written_to() else PRIVATE

    def is_written_to(self) -> bool:
        """Tell whether somebody writes to `index` without its lock in this scenario."""
        return self.run.scenario.loses in ("emptied", "old")

    def unlock(self, fd: int) -> None:
        """Unlock: no step. (So does an actor that dies.)"""
        if self.actor and not self.actor.quiet:
            self.actor.holds, self.actor.locked = 0, -1
        fcntl.flock(fd, fcntl.LOCK_UN)

    # index

    def open_index(self, flags: int) -> int:
        """Open `index`; know this file from one that is put in its place."""
        fd = os.open("index", flags, 0o600, dir_fd=self.base.root)
        self.folders[fd] = "index"
        inode = os.fstat(fd).st_ino
        if inode not in self._inodes:
            self._indexes.append(
                os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            )  # (kept, so that no other has this inode)
            self._inodes[inode] = len(self._indexes)
        return fd

    def generation(self, fd: int) -> int:
        """Return which of the files that have been `index` it is: the first is 1."""
        return self._inodes[os.fstat(fd).st_ino]

    def learnt_by_locking(self, fd: int) -> tuple[Any, ...]:
        """Return what whoever locks `index` knows by that: what it says, for nobody else can write it now."""
        status = os.fstat(fd)
        if self.is_written_to():
            return status.st_nlink, status.st_size, self._now(), os.pread(fd, fsinbox.store.lines.HEADER, 0)
        return (status.st_nlink, _state_of(os.pread(fd, 1 << 20, 0)), self.read_limits())

    def read_limits(self) -> bytes:
        """Return what `limits` says."""
        try:
            fd = os.open("limits", os.O_RDONLY, dir_fd=self.base.root)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, fsinbox.store.bounds.SIZE, 0)
        finally:
            os.close(fd)

    def check_bound(self, folder: str) -> None:
        """A producer has published something: does more wait than may? (What goes back may exceed it.)"""
        most = self.run.scenario.max_waiting
        if most and self.actor and folder == "tmp":
            waiting = sum(len(os.listdir(self.base.folder(place))) for place in ("pending", "deferred"))
            assert waiting <= most, f"{waiting} wait, and {most} may"

    def _forget_indexes(self) -> None:
        for fd in self._indexes:
            os.close(fd)
        self._indexes.clear()
        self._inodes.clear()

    def write_index(self, content: bytes) -> None:
        """Have `index` hold this, and nothing else."""
        fd = os.open("index", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self.base.root)
        os.write(fd, content)
        os.close(fd)

    def lose_index(self) -> None:
        """A step of somebody who does the index some harm."""
        acts = {
            "removed": lambda: os.unlink("index", dir_fd=self.base.root),
            "emptied": lambda: self.write_index(b""),
            "old": lambda: self.write_index(self.run.old_index),
        }
        how = self.run.scenario.loses
        self.call((how, "index"), ("index",), acts[how], kind=SHARED)

    def read_index(self, generation: int) -> bytes:
        """Return all that this file says."""
        return os.pread(self._indexes[generation - 1], 1 << 20, 0)

    # whose descriptors

    def is_consumer(self) -> bool:
        """Tell whether it is the turn of one."""
        return bool(self.actor and self.actor.role.consumer)

    def opened(self, fd: int) -> None:
        """Remember a descriptor of the actor's."""
        if self.actor:
            self.actor.descriptors.add(fd)

    def closed(self, fd: int) -> None:
        """Forget it, and the lock on it."""
        if self.actor:
            self.actor.descriptors.discard(fd)
            if fd == self.actor.locked:
                self.actor.holds, self.actor.locked = 0, -1

    def create(self, folder: str, name: str, content: str) -> None:
        """Create a finished file."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.base.folder(folder))
        os.write(fd, content.encode())
        self.files[os.fstat(fd).st_ino] = name
        os.close(fd)

    def same_for_all(self, status: os.stat_result) -> Status:
        """Return what is the same in every replay."""
        inode = self.files.get(status.st_ino, "?")
        plain = Status(status.st_mode, inode, 0, status.st_size, status.st_nlink)
        if not for_later(status):
            return plain
        return plain._replace(st_mtime_ns=status.st_mtime_ns, st_atime_ns=status.st_atime_ns)

    def listing_order(self, folder: str) -> tuple[int, ...]:
        """Return in which order a listing sees the numbers, () if at once."""
        return (
            self.run.scenario.listing
            if self.actor and self.actor.role.consumer and folder == "pending"
            else ()
        )

    # the state on disk

    def clear(self) -> None:
        """Make the inbox as good as new, and its index hold nothing."""
        self.files.clear()
        fsinbox.store.section.forget_sections()
        for folder in FOLDERS:
            fd = self.base.folder(folder)
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
        if self.read_limits():
            os.unlink("limits", dir_fd=self.base.root)
        self._forget_indexes()
        self.write_index(blank_index(FIRST - 1))
        os.close(self.open_index(os.O_RDWR))
        self.highest = FIRST - 1

    def contents(self) -> tuple[Any, ...]:
        """Return what is on disk, but for tmp/, where each actor's files are its own business."""
        indexes = tuple((os.fstat(fd).st_nlink, _state_of(os.pread(fd, 1 << 20, 0))) for fd in self._indexes)
        found: list[Any] = [(indexes, self.highest, self.read_limits())]
        for folder in CONTENTS[1:6]:
            with os.scandir(self.base.folder(folder)) as entries:
                found.append(tuple(sorted(map(self._entry, entries))))
        for folder in CONTENTS[6:]:
            fd = self.base.folder(folder)
            found.append(tuple((name, os.readlink(name, dir_fd=fd)) for name in sorted(os.listdir(fd))))
        return tuple(found)

    def _entry(self, entry: os.DirEntry[str]) -> tuple[Any, ...]:
        """Return what is to be known of a file: its name, and which it is; if it is for later, its times."""
        status = entry.stat(follow_symlinks=False)
        times = (status.st_mtime_ns, status.st_atime_ns) if for_later(status) else ()
        return (entry.name, self.files.get(entry.inode(), "?"), *times)

    def is_free(self, fd: int) -> bool:
        """Tell whether this descriptor could lock its file now."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True


def blank_index(last: int, tag: str = TAG) -> bytes:
    """Return the content of an index that knows of no key."""
    lines = fsinbox.store.index.FEWEST_LINES
    return header_line(last, tag, lines) + bytes(lines * fsinbox.store.lines.LINE)


def _state_of(content: bytes) -> str:
    """Return the content of an index as text, without its blank lines at the end."""
    return f"{len(content)}: " + content.rstrip(b"\0").decode("ascii", "replace").replace("\0" * 32, "-")


# --- one run ------------------------------------------------------------------------------------------


class Actor:
    """One producer or consumer in a run."""

    def __init__(self, run: Run, index: int, role: Role) -> None:
        self.run = run
        self.world = run.world
        self.index = index
        self.role = role
        self.letter = chr(ord("A") + index)
        self.begun = False  # its first step was made
        self.holds = 0  # the lock of this generation of `index`
        self.locked = -1  # the descriptor by which it does
        self.ended = False
        self.dead = False
        self.quiet = False
        self.error: Exception | None = None
        self.taken: list[Any] = []  # before it all began
        self.descriptors: set[int] = set()
        self.clock = 0
        self.temporaries = 0
        self.node = 0  # stands for all it has seen since it last forgot
        self.position = 0
        self.waiting: tuple[Any, ...] = ()  # the step it will make next
        self.lock = -1  # the descriptor it wants to lock with that
        self.kind = SHARED  # what kind of step that is
        self.result: Any = None  # of the last step
        self._announced: list[tuple[str, str, str]] = []
        self.may_crash = not run.scenario.crashers or self.letter in run.scenario.crashers
        self._kinds: dict[tuple[str, ...], int] = {}
        self._greenlet = greenlet(self._live)

    def open(self) -> None:
        """Open the inbox, and become its consumer if it has been that for long."""
        with self.unstepped():
            role = self.role
            self.inbox = Inbox(
                self.world.path, codec="text", max_inflight=role.inflight, volatile=role.volatile
            )
            self.layout = self.inbox._handle.layout
            if self.role.opened:
                assert self.inbox.take() is None

    @contextmanager
    def unstepped(self) -> Iterator[None]:
        """While this lasts, the calls of this actor are no steps."""
        before, self.world.actor, self.quiet = self.world.actor, self, True
        try:
            yield
        finally:
            self.world.actor, self.quiet = before, False

    def take_before(self) -> None:
        """Take an element."""
        with self.unstepped():
            element = self.inbox.take()
            self.taken.append(element)
            self.run.happened("deliver", self.letter, element.key, element.value)

    def start(self) -> None:
        """Run up to the first step."""
        self._switch()

    def _switch(self, *throw: type[BaseException]) -> None:
        self.world.actor = self
        if throw:
            self._greenlet.throw(*throw)
        else:
            self._greenlet.switch()
        self.world.actor = None
        if self._greenlet.dead:
            self.ended = True
            for fd in self.descriptors:
                os.close(fd)
            self.descriptors.clear()

    def _live(self) -> None:
        try:
            if self.role.after is not None:
                self.pause(("begin",), -1, SHARED)
                self.note(("begin",), None)
            self.role.script(self)
        except Died:
            pass
        except Exception as error:
            self.error = error

    # what a run does with it

    def may_start(self) -> bool:
        """Tell whether the one it waits for has ended."""
        return self.role.after is None or self.run.actors[self.role.after].ended

    def is_enabled(self) -> bool:
        """Tell whether it can make a step now."""
        waits = self.lock >= 0 and self.waiting[0] == "lock"
        return not self.ended and self.may_start() and (not waits or self.world.is_free(self.lock))

    def step(self) -> None:
        """Make the next step."""
        self.begun = True
        self.flush()
        self._switch()

    def crash(self) -> None:
        """Die here."""
        self.dead = True
        self._announced.clear()
        if self.role.consumer:
            self.run.happened("died", self.letter)
        self._switch(Died)
        assert self.ended, "a crashed actor went on"

    # what its script calls

    def will(self, what: str, key: str, value: str = "") -> None:
        """Say what begins with the next step. (What begins is noted as late as it may be, what ends as early:
        the order the oracle knows is the strictest that is true.)"""
        self._announced.append((what, key, value))

    def flush(self) -> None:
        """Note what was said to begin."""
        for what, key, value in self._announced:
            self.run.happened(what, self.letter, key, value)
        self._announced.clear()

    def did(self, what: str, key: str = "", value: str = "") -> None:
        """Note what happened."""
        self.flush()
        self.run.happened(what, self.letter, key, value)

    def forget(self) -> None:
        """Between two calls of its script: what it does next only depends on its inbox."""
        self.position += 1
        self.temporaries = 0
        self.node = self.run.node(("between", self.position, self._remembered(), self.clock))

    def remember_only(self, result: Any, frame: FrameType | None) -> None:
        """In the midst of a call of its script: what it does next only depends on what its variables and its
        inbox hold."""
        frames: list[Any] = []
        while frame and frame.f_globals is not vars(
            scenarios
        ):  # the script's own are as they were between two calls
            variables = [
                (name, _known_to(value))
                for name, value in frame.f_locals.items()
                if name not in IRRELEVANT and (name != TOLD or self.role.volatile)
            ]
            frames.append((frame.f_code.co_qualname, _place(frame.f_code, frame.f_lasti), variables))
            frame = frame.f_back
        if type(result) is tuple:
            result = result[: 1 + self.role.volatile]  # what admit returns: the rest is only told
        plain = _ADDRESS.sub("", repr((result, frames)))
        self.node = self.run.node(
            ("within", self.position, self.temporaries, plain, self._remembered(), self.clock)
        )

    def _remembered(self) -> str:
        index = self.inbox._handle.index
        knows: list[Any] = [_memory(self.inbox)] if self.role.consumer else []
        if self.holds:
            knows += [self.holds, index._last, index._lines, index._is_ours]
            if not self.world.is_written_to():
                knows += [self.world.read_index(self.holds), self.world.read_limits()]
        elif self.run.scenario.loses == "removed" and index._fd >= 0:
            knows.append(self.world.generation(index._fd))
        if self.run.scenario.loses:
            knows.append(index._highest)
        return repr(knows)

    # what its calls do

    def kind_of(self, where: tuple[str, ...]) -> int:
        """Return what a call in these folders is."""
        kind = self._kinds.get(where)
        if kind is None:
            kind = self._kinds[where] = max(map(self._kind_of, where))
        return kind

    def _kind_of(self, folder: str) -> int:
        scenario = self.run.scenario
        if folder == "pending" or (folder == "drop" and scenario.drops):
            return SHARED
        if folder in scenario.meets:
            return SHARED
        if folder in ("tmp", "consumer.lock") or not self.role.consumer:
            return UNSEEN
        if folder in ("inflight", "deferred", "failed") or (folder == "attempts" and scenario.notes):
            return PRIVATE
        return NOTED

    def pause(self, what: tuple[Any, ...], lock: int, kind: int) -> None:
        """Wait until it is this actor's turn, to do `what`."""
        self.waiting = what
        self.lock = lock
        self.kind = kind
        self.world.main.switch()
        self.lock = -1
        if self.dead:
            raise Died

    def note(self, what: tuple[Any, ...], result: Any) -> None:
        """Remember the result of a call."""
        if type(result) is list:
            result = tuple(result)
        self.result = result
        self.node = self.run.node((self.node, what, result))
        if self.run.trace is not None:
            self.run.trace.append((self.letter, what, result))


@functools.cache
def _place(code: CodeType, instruction: int) -> tuple[int | None, ...]:
    """Return which piece of the source is being executed. (Not by the number of the instruction: that of one
    and the same call may differ by the time the interpreter has adapted to what is called there.)"""
    return next(islice(code.co_positions(), instruction // 2, None))


FIXED = {
    *"_layout _index _settings _shard _mine ownership _ownership _foreign _forged _coalescing".split(),
    *"_taking ready listing returning recovery attempts controls drops done ended".split(),
    *"_ready _attempts _ended _copies _still arrivals _ignored entering".split(),
}
"""What a consumer has, and does not change; and its parts, each of which is looked at by itself."""


def _known_to(value: Any) -> Any:
    """Return what a variable holds."""
    if isinstance(value, fsinbox.consumer.recovery.Recovery):
        return _recovering(value)
    return sorted(value._deferred or ()) if isinstance(value, fsinbox.store.held.Held) else value


def _recovering(knows: fsinbox.consumer.recovery.Recovery) -> list[Any]:
    """Return what a consumer knows that is just beginning, and that its inbox does not have yet."""
    return [*map(_kept_by, (knows._ready, knows._returning, knows._attempts)), list(knows._ended)]


def _kept_by(part: object) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(part).items() if name not in FIXED]


def _memory(inbox: Inbox) -> str:
    """Return what a consumer knows."""
    knows = inbox._taking().consumer
    if knows is None:
        return "nothing"
    parts = (
        knows.ready,
        knows.listing,
        knows.returning,
        knows.attempts,
        knows.controls,
        knows.drops,
        knows.drops._still,
        knows.drops.arrivals,
        knows.done,
    )
    return repr([*map(_kept_by, (knows, *parts)), list(knows.ended)])


class Run:
    """One run of a scenario, step by step."""

    def __init__(
        self, world: World, scenario: Scenario, nodes: dict[Any, int], trace: list[Any] | None = None
    ) -> None:
        self.world = world
        self.scenario = scenario
        self.events: list[Event] = []
        self.crashed = 0
        self.temporaries = 0
        self.clock = 0
        self.trace = trace
        self._nodes = nodes
        world.run = self
        fsinbox.store.index.BUCKET = fsinbox.store.lines.BUCKET = scenario.bucket
        fsinbox.store.table.BUCKET = scenario.bucket
        fsinbox.store.index.FEWEST_LINES = scenario.bucket
        world.clear()
        if scenario.max_waiting:
            with Inbox(world.path, codec="text") as inbox:
                set_limits(inbox.layout, inbox.index, scenario.max_waiting, None)
        self.actors = [Actor(self, index, role) for index, role in enumerate(scenario.roles)]
        for actor in self.actors:
            actor.open()
        for actor in self.actors:
            if (
                actor.role.old
            ):  # from long ago, and nobody knows what became of it: it may be delivered at any time, or never
                self.happened("add_start", actor.letter, *actor.role.old)
        if scenario.before:
            self._add_before()
        for actor in self.actors:
            if actor.role.holds:
                actor.take_before()
        if scenario.by_hand:
            number, key, value = scenario.by_hand
            self.events.insert(0, Event("add_start", "-", key, value))
            world.create("pending", element_name(number, key), value)
        self.old_index = world.read_index(1)
        if scenario.fresh_boot:
            world.write_index(self.old_index.replace(TAG.encode(), b"old-old-"))
        for actor in self.actors:
            actor.start()

    def _add_before(self) -> None:
        with Inbox(self.world.path, codec="text") as inbox:
            for key, value in self.scenario.before:
                self.happened("add_start", "-", key, value)
                inbox.add(key, value, durable=False)
                self.happened("add_end", "-", key, value)
                if self.scenario.scattered:
                    self.world.write_index(blank_index(inbox._handle.index.peek()))

    def node(self, seen: tuple[Any, ...]) -> int:
        """Return a number that stands for this, and nothing else."""
        return self._nodes.setdefault(seen, len(self._nodes) + 1)

    def happened(self, what: str, who: str, key: str = "", value: str = "") -> None:
        """Add to the history."""
        self.events.append(Event(what, who, key, value, len(self.events)))

    def choices(self) -> list[int]:
        """Return what can happen next: the index of an actor that makes a step; -1 - index of one that
        crashes."""
        able = [actor for actor in self.actors if not actor.ended and actor.may_start()]
        for actor in able:
            if actor.kind != SHARED:
                able = [actor]
                break
        steps = [actor.index for actor in able if actor.is_enabled()]
        if self.crashed == self.scenario.crashes:
            return steps
        return steps + [
            -1 - actor.index for actor in able if actor.begun and actor.kind != NOTED and actor.may_crash
        ]

    def do(self, choice: int) -> Actor:
        """Let it happen; return the actor it happened to."""
        actor = self.actors[choice if choice >= 0 else -1 - choice]
        if choice >= 0:
            actor.step()
        else:
            self.crashed += 1
            if self.trace is not None:
                self.trace.append((actor.letter, ("dies before", *actor.waiting), None))
            actor.crash()
        if actor.ended:
            actor.node = self.node(("ended", repr(actor.error)))
        return actor

    def drain(self) -> tuple[list[tuple[str, str]], str]:
        """When all have ended: let a fresh consumer take all that is left. Return (keys and values, what it
        left)."""
        self.clock = 10 * PROBE
        taken = []
        with Inbox(self.world.path, codec="text") as inbox:
            while len(taken) < MAX_LEFT and (element := inbox.take()):
                taken.append((element.key, element.value))
                element.ack()
        left = dict(zip(CONTENTS, self.world.contents(), strict=True))
        del left["index"]
        return taken, ", ".join(f"{folder}/: {names}" for folder, names in left.items() if names)

    def end(self) -> None:
        """Leave nothing running."""
        for actor in self.actors:
            if not actor.ended:
                actor.dead = True
                actor._switch(Died)


# --- schedules ----------------------------------------------------------------------------------------


def spell(path: list[int]) -> str:
    """Return a path as text: a letter a step, of the actor that makes it; a small letter where it crashes."""
    return "".join(chr(ord("A") + choice) if choice >= 0 else chr(ord("a") - 1 - choice) for choice in path)


def unspell(schedule: str) -> list[int]:
    """Return the path that a text stands for."""
    return [
        ord(letter) - ord("A") if letter.isupper() else -1 - (ord(letter) - ord("a")) for letter in schedule
    ]
