"""A file system in memory that loses what was not flushed: FUSE, by mfusepy.

It keeps what programs see, and beside it what would be left if the power failed now: the *disks*. A flush of
a file makes its content durable, a flush of a folder its entries; a rename is journaled whole, so a flush of
either folder makes both of its sides durable. File systems differ in what they write *besides* what they
must, so there are several disks at once:

    folder    nothing but what was flushed: the strictest reading of POSIX
    journal   every flush also commits every earlier change of a name, in order, as ext4, XFS and Btrfs do
    names     changes of names are written at once, content when it is flushed: a name may be there long
              before its content
    some      after every operation a part of what is not flushed is written, in no order (the seed says
              which)

A flush that fails really loses what it should have written, as on Linux. Of a file: the content is still
seen, counts as clean, and is never written; a second flush succeeds and does nothing. The error is reported
once to everyone who had the file open at the time. Of a folder: the journal stops. What is not durable by
then never will be, what is seen can still be read, but every change and every flush fails until the power was
off.

There is no cache above it (no times of validity, direct I/O), and no thread: operations come one by one, and
are counted.

Orders are given with setxattr on its root, attribute `user.lossy`; answers are read from the file `.lossy`
there (pickled):

    reset             an empty file system, power on, nothing recorded, no fault armed, operations counted
                      from 0
    save, load        remember the tree that is seen now, all of it durable; the same as reset, with that tree
    fail N ERRNO      the N-th operation from the last reset or load fails, and does nothing
    lose N            the N-th flush fails with EIO, and loses what it should have written
    forget N          the same, but of a folder: as of a file, worse than any file system with a journal
    heal              no fault is armed any more
    cut N DISK        after the N-th operation the power fails: until `on`, everything fails with EIO
    off DISK          the power fails now
    on                what is on that disk is all there is now; nothing is armed any more
    sync              what syncfs(2) would do, which FUSE is not told of: all is durable
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import pickle
import random
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic_ns, time_ns
from typing import Any, NamedTuple

import mfusepy

DISKS = ("folder", "journal", "names", "some")

ORDERS = "user.lossy"
ANSWERS = ".lossy"

ANSWER = 2**62
"""The handle of an open `.lossy`."""

NOREPLACE = 1  # renameat2(2)


class Moment(NamedTuple):
    """What the disks hold from the end of one operation on, up to the beginning of the next of these."""

    number: int
    operation: str
    begun: int  # monotonic nanoseconds
    ended: int
    disks: tuple[Any, ...]  # a tree for each of DISKS, see Disk.tree


class Answer(NamedTuple):
    """What `.lossy` holds."""

    operations: int
    flushes: int
    hit: str  # the operation that a fault hit, "" if none did
    stopped: bool  # whether the journal has stopped
    moments: list[Moment]


@dataclass(eq=False)
class Node:
    """A file, folder or symbolic link, as programs see it."""

    number: int
    mode: int
    content: bytes = b""  # of a link: its target
    entries: dict[str, Node] = field(default_factory=dict)
    links: int = 0
    modified: int = 0
    changed: int = 0
    dirty: bool = False
    errors: int = 0  # how many flushes of it have failed


@dataclass(eq=False)
class Handle:
    """An open file or folder."""

    node: Node
    errors: int  # how many failed flushes of the node its holder knows of
    append: bool = False


Change = tuple[frozenset[int], dict[tuple[int, str], Node | None]]
"""A change of names, whole or not at all: the numbers of the folders, and for each (folder, name) what it
names then."""


class Disk:
    """What is left when the power fails."""

    def __init__(self, habit: str, seed: str) -> None:
        self.habit = habit
        self.entries: dict[int, dict[str, Node]] = {}
        self.content: dict[int, tuple[int, bytes, int]] = {}  # number -> mode, content, time of modification
        self.waiting: list[Change] = []
        self.news = False
        self._random = random.Random(seed)

    def change(self, change: Change) -> None:
        """Note a change of names that nobody has flushed yet."""
        self.waiting.append(change)
        if self.habit == "names":
            self.commit(lambda folders: True)

    def commit(self, which: Callable[[frozenset[int]], bool]) -> None:
        """Write the changes of these folders, in order."""
        for number, (folders, names) in enumerate(self.waiting):
            if not which(folders):
                continue
            for (folder, name), node in names.items():
                # An earlier change of this name that is written later must not undo this one.
                for _, earlier in self.waiting[:number]:
                    earlier.pop((folder, name), None)
                at = self.entries.setdefault(folder, {})
                if node is None:
                    at.pop(name, None)
                else:
                    at[name] = node
            self.news = True
        self.waiting = [change for change in self.waiting if not which(change[0])]

    def flush(self, node: Node) -> None:
        """Write what must be written when somebody flushes this."""
        if not stat.S_ISDIR(node.mode) and node.dirty:
            self.content[node.number] = (node.mode, node.content, node.modified)
            self.news = True
        if self.habit == "journal":
            self.commit(lambda folders: True)
        elif stat.S_ISDIR(node.mode):
            self.commit(lambda folders: node.number in folders)

    def write_some(self) -> None:
        """Write a part of what nobody has flushed."""
        if self.habit == "some" and self.waiting and self._random.random() < 0.3:
            chosen = self._random.choice(self.waiting)
            self.commit(lambda folders: folders is chosen[0])

    def tree(self, node: Node) -> tuple[Any, ...]:
        """Return what is left of a folder: ((name, number, mode, content or tree, time of modification),
        ...)."""
        return tuple(
            self._leaf(name, child) for name, child in sorted(self.entries.get(node.number, {}).items())
        )

    def _leaf(self, name: str, node: Node) -> tuple[Any, ...]:
        if stat.S_ISDIR(node.mode):
            return name, node.number, node.mode, self.tree(node), 0
        if stat.S_ISLNK(node.mode):
            return name, node.number, node.mode, node.content, 0
        mode, content, modified = self.content[node.number]
        return name, node.number, mode, content, modified


CHANGES = frozenset(
    "create mkdir symlink link unlink rmdir rename write truncate chmod chown utimens".split()
)


def operation(method: Callable[..., Any]) -> Callable[..., Any]:
    """Count this method's calls, fail the one that is to fail, and note what each leaves on the disks."""

    @functools.wraps(method)
    def counted(self: Lossy, path: str | None, *arguments: Any) -> Any:
        if path == f"/{ANSWERS}" or arguments[-1:] == (ANSWER,):
            return method(self, path, *arguments)
        what = f"{method.__name__} {path or ''}"
        return self.counted(what, lambda: method(self, path, *arguments), changes=method.__name__ in CHANGES)

    return counted


class Lossy(mfusepy.Operations):
    """The file system."""

    use_ns = True

    def __init__(self, seed: str = "0") -> None:
        self._seed = seed
        self._number = 1
        self._saved: tuple[Any, ...] = ()
        self._load(())

    def _load(self, tree: tuple[Any, ...]) -> None:
        """Begin anew with this tree, all of it durable."""
        self._operations = self._flushes = self._fail_at = self._lose_at = self._cut_at = 0
        self._errno = errno.EIO
        self._cut_to = self._hit = ""
        self._off = self._stopped = self._forget = False
        self._moments: list[Moment] = []
        self._mount(tree)

    def _mount(self, tree: tuple[Any, ...]) -> None:
        """What is in this tree is all there is. Whatever is open is dead."""
        self._handles: dict[int, Handle] = {}
        self._disks = [Disk(habit, f"{self._seed} {habit}") for habit in DISKS]
        self._nodes: dict[int, Node] = {}
        self._root = Node(1, stat.S_IFDIR | 0o755, links=2)
        self._grow(self._root, tree)

    def _grow(self, folder: Node, tree: tuple[Any, ...]) -> None:
        now = time_ns()
        for name, number, mode, content, modified in tree:
            node = self._nodes.setdefault(number, Node(number, mode, modified=modified, changed=now))
            node.links += 1
            folder.entries[name] = node
            for disk in self._disks:
                disk.entries.setdefault(folder.number, {})[name] = node
            if stat.S_ISDIR(mode):
                self._grow(node, content)
            else:
                node.content = content
                for disk in self._disks:
                    disk.content[number] = (mode, content, modified)

    # --- orders ---------------------------------------------------------------------------------------

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if name != ORDERS:
            raise OSError(errno.ENOTSUP, name)
        order, *numbers = value.decode().split()
        if order == "sync":
            self.counted("sync", self._sync)
        elif order == "reset":
            self._load(())
        elif order == "save":
            self._sync()
            self._saved = self._disks[0].tree(self._root)
        elif order == "load":
            self._load(self._saved)
        elif order == "fail":
            self._fail_at, self._errno = map(int, numbers)
        elif order in ("lose", "forget"):
            self._lose_at = int(numbers[0])
            self._forget = order == "forget"
        elif order == "cut":
            self._cut_at, self._cut_to = int(numbers[0]), numbers[1]
        elif order == "off":
            self._power_off(numbers[0])
        elif order == "heal":
            self._fail_at = self._lose_at = 0
        elif order == "on":
            self._off = self._stopped = False
            self._fail_at = self._lose_at = self._cut_at = 0
        else:
            raise OSError(errno.EINVAL, order)
        return 0

    def counted(self, what: str, do: Callable[[], Any], *, changes: bool = False) -> Any:
        """Do an operation, unless it is to fail."""
        if self._off and what.startswith("flush"):
            return 0  # nobody closes anything any more
        if self._off:
            raise OSError(errno.EIO, "the power is off")
        self._operations += 1
        if self._operations == self._fail_at:
            self._hit = what
            raise OSError(self._errno, what)
        if changes and self._stopped:
            raise OSError(errno.EROFS, "the journal has stopped")
        begun = monotonic_ns()
        try:
            return do()
        finally:
            for disk in self._disks:
                disk.write_some()
            if any(disk.news for disk in self._disks):
                trees = tuple(disk.tree(self._root) for disk in self._disks)
                self._moments.append(Moment(self._operations, what, begun, monotonic_ns(), trees))
                for disk in self._disks:
                    disk.news = False
            if self._operations == self._cut_at:
                self._hit = what
                self._power_off(self._cut_to)

    def _power_off(self, disk: str) -> None:
        """What is on this disk is all there is from now on."""
        self._mount(self._disks[DISKS.index(disk)].tree(self._root))
        self._off = True

    # --- flushes --------------------------------------------------------------------------------------

    def _flush(self, nodes: list[Node], handle: Handle | None = None) -> int:
        self._flushes += 1
        if self._flushes == self._lose_at:
            self._lose(nodes)
            if handle:
                handle.errors = handle.node.errors
            raise OSError(errno.EIO, "lost")
        if self._stopped:
            raise OSError(errno.EIO, "the journal has stopped")
        if handle and handle.node.errors > handle.errors:
            handle.errors = handle.node.errors
            raise OSError(errno.EIO, "lost earlier")
        for node in nodes:
            for disk in self._disks:
                disk.flush(node)
            node.dirty = False
        return 0

    def _lose(self, nodes: list[Node]) -> None:
        self._hit = f"flush {self._flushes}"
        self._stopped = not self._forget and any(stat.S_ISDIR(node.mode) for node in nodes)
        for node in nodes:
            node.dirty = False
            node.errors += 1
            for disk in self._disks:
                disk.waiting = [
                    (folders, names)
                    for folders, names in disk.waiting
                    if node.number not in folders and not self._stopped
                ]

    @operation
    def fsync(self, path: str | None, datasync: int, handle: int) -> int:
        return self._flush([self._open(handle).node], self._open(handle))

    @operation
    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> int:
        return self._flush([self._open(handle).node], self._open(handle))

    def _sync(self) -> int:
        return self._flush([self._root, *self._nodes.values()])

    # --- finding --------------------------------------------------------------------------------------

    def _find(self, path: str) -> Node:
        node = self._root
        for name in path.split("/"):
            if name:
                if name not in node.entries:
                    raise OSError(errno.ENOENT, path)
                node = node.entries[name]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        folder, _, name = path.rpartition("/")
        return self._find(folder), name

    def _open(self, handle: int) -> Handle:
        if handle not in self._handles:
            raise OSError(errno.EIO, "opened before the power failed")
        return self._handles[handle]

    def _new_handle(self, node: Node, flags: int = 0) -> int:
        self._number += 1
        self._handles[self._number] = Handle(node, node.errors, bool(flags & os.O_APPEND))
        return self._number

    @operation
    def getattr(self, path: str | None, handle: int | None = None) -> dict[str, Any]:
        if path == f"/{ANSWERS}":
            return {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1}
        node = self._find(path) if path else self._open(handle or 0).node
        return {
            "st_ino": node.number,
            "st_mode": node.mode,
            "st_nlink": node.links,
            "st_size": len(node.content),
            "st_uid": os.geteuid(),
            "st_gid": os.getegid(),
            "st_mtime": node.modified,
            "st_ctime": node.changed,
        }

    @operation
    def readlink(self, path: str) -> str:
        return os.fsdecode(self._find(path).content)

    @operation
    def opendir(self, path: str) -> int:
        return self._new_handle(self._find(path))

    @operation
    def readdir(self, path: str | None, handle: int) -> list[tuple[str, dict[str, int], int]]:
        folder = self._open(handle).node
        entries = {".": folder, "..": folder, **folder.entries}
        return [(name, {"st_ino": node.number, "st_mode": node.mode}, 0) for name, node in entries.items()]

    # --- changing names -------------------------------------------------------------------------------

    def _change(self, *changes: tuple[Node, str, Node | None]) -> None:
        now = time_ns()
        for folder, name, node in changes:
            before = folder.entries.pop(name, None)
            for one, step in ((before, -1), (node, 1)):
                if one:
                    one.links += step
                    one.changed = now
            if node:
                folder.entries[name] = node
            folder.modified = folder.changed = now
        folders = frozenset(folder.number for folder, _, _ in changes)
        for disk in self._disks:
            disk.change((folders, {(folder.number, name): node for folder, name, node in changes}))

    def _new(self, path: str, mode: int, content: bytes = b"") -> Node:
        folder, name = self._place(path)
        if name in folder.entries:
            raise OSError(errno.EEXIST, path)
        self._number += 1
        now = time_ns()
        node = self._nodes[self._number] = Node(self._number, mode, content, modified=now, changed=now)
        for disk in self._disks:
            disk.content[node.number] = (mode, b"", now)  # all that there is until it is flushed
        self._change((folder, name, node))
        return node

    @operation
    def create(self, path: str, mode: int, flags: int) -> int:
        return self._new_handle(self._new(path, stat.S_IFREG | stat.S_IMODE(mode)), flags)

    @operation
    def mkdir(self, path: str, mode: int) -> int:
        self._new(path, stat.S_IFDIR | stat.S_IMODE(mode)).links += 1
        return 0

    @operation
    def symlink(self, path: str, target: str) -> int:
        self._new(path, stat.S_IFLNK | 0o777, os.fsencode(target))
        return 0

    @operation
    def link(self, path: str, existing: str) -> int:
        folder, name = self._place(path)
        if name in folder.entries:
            raise OSError(errno.EEXIST, path)
        self._change((folder, name, self._find(existing)))
        return 0

    @operation
    def unlink(self, path: str) -> int:
        self._find(path)
        self._change((*self._place(path), None))
        return 0

    @operation
    def rmdir(self, path: str) -> int:
        if self._find(path).entries:
            raise OSError(errno.ENOTEMPTY, path)
        self._change((*self._place(path), None))
        return 0

    @operation
    def rename(self, old: str, new: str, flags: int = 0) -> int:
        node, (folder, name) = self._find(old), self._place(new)
        there = folder.entries.get(name)
        if flags & ~NOREPLACE:
            raise OSError(errno.EINVAL, "only RENAME_NOREPLACE")
        if there and flags & NOREPLACE:
            raise OSError(errno.EEXIST, new)
        if there and stat.S_ISDIR(there.mode) != stat.S_ISDIR(node.mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(there.mode) else errno.ENOTDIR, new)
        if there and there.entries:
            raise OSError(errno.ENOTEMPTY, new)
        if there is not node:  # two names of one file: both stay, says rename(2)
            self._change((*self._place(old), None), (folder, name, node))
        return 0

    # --- content --------------------------------------------------------------------------------------

    def _write(self, node: Node, content: bytes) -> None:
        node.content = content
        node.modified = node.changed = time_ns()
        node.dirty = True

    @operation
    def open(self, path: str, flags: int) -> int:
        if path == f"/{ANSWERS}":
            answer = Answer(self._operations, self._flushes, self._hit, self._stopped, self._moments)
            self._moments = []
            self._handles[ANSWER] = Handle(Node(0, 0, pickle.dumps(answer)), 0)
            return ANSWER
        node = self._find(path)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE:
            self._write(node, b"")
        return self._new_handle(node, flags)

    @operation
    def read(self, path: str | None, size: int, offset: int, handle: int) -> bytes:
        return self._open(handle).node.content[offset : offset + size]

    @operation
    def write(self, path: str | None, data: bytes, offset: int, handle: int) -> int:
        opened = self._open(handle)
        content = opened.node.content
        offset = len(content) if opened.append else offset
        self._write(opened.node, content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :])
        return len(data)

    @operation
    def truncate(self, path: str | None, length: int, handle: int | None = None) -> int:
        node = self._open(handle).node if handle else self._find(path or "")
        self._write(node, node.content[:length].ljust(length, b"\0"))
        return 0

    @operation
    def flush(self, path: str | None, handle: int) -> int:
        """A close(2): some file systems report errors only here."""
        self._open(handle)
        return 0

    def release(self, path: str | None, handle: int) -> int:
        self._handles.pop(handle, None)
        return 0

    releasedir = release

    @operation
    def chmod(self, path: str, mode: int) -> int:
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.changed = time_ns()
        node.dirty = True
        return 0

    @operation
    def chown(self, path: str, uid: int, gid: int) -> int:
        self._find(path).changed = time_ns()  # who owns it is of no interest here
        return 0

    @operation
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        node = self._find(path)
        node.modified = times[1] if times else time_ns()
        node.changed = time_ns()
        node.dirty = True
        return 0

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Nothing is cached above us; a removed file that is open is ours to keep; then say that we are
        there."""
        if config is None:
            # libfuse would go on without us, and whoever waits for "mounted" would wait for ever.
            os.write(2, b"fuse: this is libfuse 2, and 3 is needed\n")
            os._exit(1)
        readdirplus, readdirplus_auto = 1 << 13, 1 << 14
        connection.want &= ~(readdirplus | readdirplus_auto)
        config.entry_timeout = config.attr_timeout = config.negative_timeout = 0.0
        config.direct_io = config.use_ino = config.hard_remove = config.nullpath_ok = 1
        os.write(1, b"mounted\n")


class Mount(mfusepy.FUSE):
    """mfusepy's, but that it tells of a rename's flags, which mv(1) uses."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)


def main() -> None:
    """Serve until unmounted: `python -c 'from tests.lossy.filesystem import main; main()' MOUNTPOINT
    [SEED]`."""
    mountpoint, *seed = sys.argv[1:]
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it does not outlive the test
    Mount(Lossy(*seed), mountpoint, foreground=True, nothreads=True, fsname="lossy")
