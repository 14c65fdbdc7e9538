"""What a program did to a directory tree, one operation after the other, and what of it a power cut may
leave.

A Recording is told each operation as it is done (by trace.py, from strace; or by in_process below, from this
process's own calls). It keeps inodes and directory entries apart, as a file system does: an *entry operation*
(create, rename, link, unlink, symlink, mkdir) sets or removes names; a *data operation* changes the content
of an inode; a *sync* makes some of what was done before it certain.

What is not certain may be missing. Three models say what that means:

 ordered   entry operations reach the disk in their order, so a prefix of them is there; any sync makes all
           earlier ones certain, wherever they were done (ext4 and XFS: one journal)
 posix     any subset of them is there; a sync of a folder makes those certain that touch this folder. (An
           operation is there whole or not at all: a rename never leaves both names, or neither.)

 halves    the same, but of a rename whose file has been replaced or removed since, a sync of one folder makes
           only this folder's half certain: what had been moved may be back where it came from (Btrfs)

In all of them, content that was not synced is missing, half there, all zeros, or whole, whatever became of
its name; what is written over bytes that were there before is old or new. A sync that failed makes nothing
certain.

The file `index` is never flushed, and nothing rests on it. So it is not combined with all else: each state is
given one of the things that may have become of it (INDEXES), by chance. A fourth model, `index`, is of no
power cut: whoever did it is killed, all else is there, the boot is the same, and each of them is tried.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

from fsinbox.store.lines import BUCKET, HEADER, LINE
from tests.driver import Log
from tests.oracle import Event
from tests.shim import Hook, intercepted

TOP = 0
"""The inode of the folder that all paths begin at."""

MODELS = ("ordered", "posix", "halves", "index")

INDEXES = (
    "whole",
    "lost",
    "old",
    "empty",
    "cut",
    "zeros",
    "no lines",
    "old header",
    "old lines",
    "torn lines",
    "foreign",
    "rubbish",
)
"""What may have become of `index`. "foreign": full of the lines of another inbox, or of this one at another
time."""

MOST = 512
"""Combinations that are all built, at one point of a recording; of more, each operation missing alone and
there alone, and as many more by chance."""

BY_CHANCE = 96

Tree = dict[str, "bytes | tuple[str] | None"]
"""Path -> content of a file (bytes), target of a symbolic link (a tuple of one), or None for a folder."""


class Entry(NamedTuple):
    """An entry operation: for each (folder, name) the inode that it names from now on, or None."""

    changes: tuple[tuple[int, str, int | None], ...]


class Data(NamedTuple):
    """A data operation: `data` at `offset` of an inode; or, with data None, its length becomes `offset`."""

    inode: int
    offset: int
    data: bytes | None


class Sync(NamedTuple):
    """A flush of an inode, or of everything (None), that began when `begun` items had been done."""

    inode: int | None
    begun: int


class Recording:
    """Operations in their order, among them what the programs announced; and the tree as it is now."""

    def __init__(self, tree: Tree | None = None) -> None:
        """`tree`: what is there, and certain, before it begins."""
        self.items: list[Entry | Data | Sync | Event]
        self.links: dict[int, str] = {}  # inode -> target
        self.folders = {TOP}
        self.content: dict[int, bytes] = {}  # of files, now
        self.entries: dict[tuple[int, str], int] = {}  # now
        self._inodes = TOP
        self._after: dict[int, tuple[int, bytes]] = {}  # of files: what was in them after so many items
        self.before: list[Event] = []
        self.items = []
        for path, what in (tree or {}).items():
            folder, name = self._place(path)
            self.entries[folder, name] = self._new(what)
        self.settle()

    def settle(self) -> None:
        """All that was done so far is certain: recording begins anew. What was announced is kept, in
        `before`."""
        self.before += [item for item in self.items if isinstance(item, Event)]
        self.items = []
        self.first_entries = dict(self.entries)
        self.first_content = dict(self.content)

    # --- what is done ---------------------------------------------------------------------------------

    def _new(self, what: bytes | tuple[str] | None) -> int:
        self._inodes += 1
        if what is None:
            self.folders.add(self._inodes)
        elif isinstance(what, tuple):
            self.links[self._inodes] = what[0]
        else:
            self.content[self._inodes] = what
        return self._inodes

    def find(self, path: str) -> int | None:
        """Return the inode that a path names now."""
        inode: int | None = TOP
        for name in path.split("/"):
            inode = self.entries.get((inode, name)) if inode is not None and name else inode
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        inode = self.find(folder) if folder else TOP
        assert inode is not None, f"{path} is in no folder that was seen to be made"
        return inode, name

    def _entry(self, *changes: tuple[tuple[int, str], int | None]) -> None:
        for place, inode in changes:
            if inode is None:
                self.entries.pop(place, None)
            else:
                self.entries[place] = inode
        self.items.append(Entry(tuple((*place, inode) for place, inode in changes)))

    def create(self, path: str, what: bytes | tuple[str] | None = b"") -> None:
        """A file, a link (its target in a tuple) or a folder (None) was made."""
        if not path:
            return  # the top itself: it is there for good
        content = what if isinstance(what, bytes) else b""
        self._entry((self._place(path), self._new(b"" if content else what)))
        self.write(path, 0, content)

    def rename(self, old: str, new: str) -> None:
        """It was renamed, maybe over another. Two names of one file stay as they are: rename(2)."""
        inode = self.find(old)
        if inode != self.find(new):
            self._entry((self._place(old), None), (self._place(new), inode))

    def exchange(self, old: str, new: str) -> None:
        """Two files have exchanged their names."""
        self._entry((self._place(old), self.find(new)), (self._place(new), self.find(old)))

    def link(self, old: str, new: str) -> None:
        """A file was given another name."""
        self._entry((self._place(new), self.find(old)))

    def unlink(self, path: str) -> None:
        """A name was removed."""
        self._entry((self._place(path), None))

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Bytes were written."""
        inode = self.find(path)
        if inode is not None and data:  # (a file without a name is of no interest)
            self.content[inode] = _written(self.content[inode], offset, data)
            self.items.append(Data(inode, offset, data))

    def truncate(self, path: str, length: int = 0) -> None:
        """A file's length was set."""
        inode = self.find(path)
        if inode is not None and len(self.content[inode]) != length:
            self.content[inode] = self.content[inode][:length].ljust(length, b"\0")
            self.items.append(Data(inode, length, None))

    def allocate(self, path: str, length: int) -> None:
        """A file was made at least so long."""
        inode = self.find(path)
        if inode is not None and len(self.content[inode]) < length:
            self.truncate(path, length)

    def sync(self, path: str | None, begun: int | None = None) -> None:
        """A file, a folder, or everything (None) was flushed, and that succeeded."""
        inode = None if path is None else self.find(path)
        if path is None or inode is not None:
            self.items.append(Sync(inode, len(self.items) if begun is None else begun))

    def event(self, event: Event) -> None:
        """A program announced something."""
        self.items.append(event)

    def entries_after(self, done: int) -> dict[tuple[int, str], int]:
        """Return what was named what when so many items had been done."""
        entries = dict(self.first_entries)
        for item in self.items[:done]:
            if isinstance(item, Entry):
                for folder, name, inode in item.changes:
                    if inode is None:
                        entries.pop((folder, name), None)
                    else:
                        entries[folder, name] = inode
        return entries

    def content_after(self, inode: int, done: int) -> bytes:
        """Return what was in a file when so many items had been done."""
        if self._after.get(inode, (-1, b""))[0] != done:
            content = self.first_content.get(inode, b"")
            for item in self.items[:done]:
                if isinstance(item, Data) and item.inode == inode:
                    content = _done(content, item)
            self._after[inode] = done, content
        return self._after[inode][1]

    def tree(
        self, entries: dict[tuple[int, str], int] | None = None, content: dict[int, bytes] | None = None
    ) -> Tree:
        """Return the tree as it is now, or as these entries and contents make it."""
        entries = self.entries if entries is None else entries
        content = self.content if content is None else content
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), inode in entries.items():
            inside.setdefault(folder, []).append((name, inode))
        tree: Tree = {}
        todo = [("", TOP)]
        while todo:
            path, folder = todo.pop()
            for name, inode in sorted(inside.get(folder, ())):
                if inode in self.folders:
                    tree[path + name] = None
                    todo.append((f"{path}{name}/", inode))
                else:
                    tree[path + name] = (self.links[inode],) if inode in self.links else content[inode]
        return tree


class Told(Log):
    """Announces to a recording."""

    def __init__(self, who: str, recording: Recording) -> None:
        super().__init__(who)
        self._recording = recording

    def tell(self, what: str, key: str = "", value: str = "") -> None:
        super().tell(what, key, value)
        self._recording.event(self.events[-1])


def _written(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


# --- what a power cut may leave -----------------------------------------------------------------------


class State(NamedTuple):
    """What may be on the disk after a power cut when `done` items had been done; `choice` tells it from
    others there."""

    done: int
    choice: int
    tree: Tree


def states(recording: Recording, model: str, first: int = 0) -> Iterator[State]:
    """Go through all states that a power cut may leave after `first` or more items. The same in every run."""
    items = recording.items
    certain = _certain_from(recording, model) if model != "index" else {}
    for done in range(first, len(items) + 1):
        if done < len(items) and isinstance(items[done], Event):
            continue  # what is announced next may as well have been: it promises more
        if model == "index":
            yield from _killed_at(recording, done)
        else:
            yield from _states_at(recording, model, done, certain)


Part = tuple[int, int]
"""A change of an entry operation, or a data operation: the number of its item, and which of the item's
changes it is."""


def _certain_from(recording: Recording, model: str) -> dict[Part, float]:
    """Return for each part how many items must have been done for it to be certain."""
    items = recording.items
    certain: dict[Part, float] = {}
    for index, item in enumerate(items):
        if isinstance(item, (Entry, Data)):
            certain.update(
                ((index, part), inf) for part in range(len(item.changes) if isinstance(item, Entry) else 1)
            )
    for position, sync in enumerate(items):
        if isinstance(sync, Sync):
            named = set(recording.entries_after(sync.begun).values())
            for index, part in certain:
                if (
                    index < sync.begun
                    and certain[index, part] > position
                    and _covers(items, sync, index, part, model, named)
                ):
                    certain[index, part] = position + 1
    return certain


def _covers(items: list[Any], sync: Sync, index: int, part: int, model: str, named: set[int]) -> bool:
    """Tell whether a flush makes a part certain that had been done when it began. `named`: inodes that had a
    name then."""
    item = items[index]
    if sync.inode is None:
        return True
    if isinstance(item, Data):
        return item.inode == sync.inode
    if model == "ordered":
        return True
    if item.changes[part][0] == sync.inode:
        return True
    if model == "halves" and item.changes[-1][2] not in named:
        return False
    return any(change[0] == sync.inode for change in item.changes)


def _states_at(recording: Recording, model: str, done: int, certain: dict[Part, float]) -> Iterator[State]:
    items = recording.items[:done]
    doubtful: dict[int, list[int]] = {}  # item -> its parts that are not certain
    for (index, part), when in certain.items():
        if index < done < when:
            doubtful.setdefault(index, []).append(part)
    doubtful_data = {items[index].inode for index in doubtful if isinstance(items[index], Data)}
    lost_index = random.Random(f"index {model} {done}")
    units: list[tuple[Part, ...]] = []  # that are there together, or not
    for index, parts in doubtful.items():
        if isinstance(items[index], Entry):
            together = len(parts) == len(items[index].changes)
            units += (
                [tuple((index, part) for part in parts)] if together else [((index, part),) for part in parts]
            )
    rng = random.Random(f"{model} {done} {len(units)}")
    choice = 0
    for chosen in _subsets(list(range(len(units))), model, rng):
        there = {part for number in chosen for part in units[number]}
        entries = dict(recording.first_entries)
        for index, item in enumerate(items):
            if not isinstance(item, Entry):
                continue
            for part, (folder, name, inode) in enumerate(item.changes):
                if certain[index, part] > done and (index, part) not in there:
                    continue
                if inode is None:
                    entries.pop((folder, name), None)
                else:
                    entries[folder, name] = inode
        variants = {
            inode: _contents(recording, inode, done, certain, inode in doubtful_data)
            for inode in set(entries.values())
            if inode not in recording.folders and inode not in recording.links and inode != _index_in(entries)
        }
        for contents in _combinations(list(variants.values()), rng):
            content = dict(zip(variants, contents, strict=True))
            how = lost_index.choice(INDEXES)
            yield State(done, choice, _with_index(recording, entries, content, done, how, lost_index))
            choice += 1


def _killed_at(recording: Recording, done: int) -> Iterator[State]:
    """The same where nothing is lost but `index`."""
    entries = recording.entries_after(done)
    content = {
        inode: recording.content_after(inode, done)
        for inode in set(entries.values())
        if inode in recording.content
    }
    keys = [name[20:] for (_, name) in entries if re.match(r"\d{19}-", name)]
    for choice, how in enumerate(INDEXES):
        if how in ("old", "old lines", "torn lines") and len(set(keys)) < len(keys):
            continue  # they may say a lower place of a key that is at two: the one thing that no line may say
        yield State(
            done, choice, _with_index(recording, entries, content, done, how, random.Random(f"{done} {how}"))
        )


def _index_in(entries: dict[tuple[int, str], int]) -> int | None:
    return next((inode for (_, name), inode in entries.items() if name == "index"), None)


def _with_index(
    recording: Recording,
    entries: dict[tuple[int, str], int],
    content: dict[int, bytes],
    done: int,
    how: str,
    rng: random.Random,
) -> Tree:
    """Return the tree that these entries and contents make, in which something (one of INDEXES) has become of
    `index`."""
    inode = _index_in(entries)
    if inode is None:
        return recording.tree(entries, content)
    whole = recording.content_after(inode, done)
    old = recording.content_after(inode, rng.randrange(done + 1))
    head, table = whole[:HEADER], whole[HEADER:]
    lines = [line for line in re.split(rb"\0+", table) if line] if how in ("torn lines", "foreign") else []
    if how == "torn lines" and lines:
        at, so_far = whole.index(rng.choice(lines)), rng.randrange(LINE)  # (the first of some neighbours)
        whole = whole[: at + so_far].ljust(at + LINE, b"\0") + whole[at + LINE :]
    elif how == "foreign" and table:
        # Lines with the CRCs of our keys, too, and with the numbers of our elements: but no lower place of a
        # key that is at two.
        highest = {
            name[20:]: name[:19] for name in sorted(name for _, name in entries) if re.match(r"\d{19}-", name)
        }
        numbers = [*highest.values(), "0000000000000000007"]
        crcs = [line[:10] for line in lines[:8]] + [b"%010d" % rng.randrange(2**32) for _ in range(BUCKET)]
        bucket = [b"%b %b \n" % (rng.choice(crcs), rng.choice(numbers).encode()) for _ in range(BUCKET)]
        whole = head + (b"".join(bucket) * (len(table) // LINE // BUCKET + 1))[: len(table)]
    else:
        whole = {
            "old": old,
            "empty": b"",
            "cut": whole[: rng.randrange(len(whole) + 1)],
            "zeros": bytes(len(whole)),
            "no lines": head.ljust(len(whole), b"\0"),
            "old header": old[:HEADER].ljust(HEADER, b"\0") + table,
            "old lines": head + old[HEADER:].ljust(len(table), b"\0")[: len(table)],
            "rubbish": b"rubbish\n" * rng.randrange(40),
        }.get(how, whole)
    if how == "lost":
        entries = {place: named for place, named in entries.items() if named != inode}
    return recording.tree(entries, content | {inode: whole})


def _subsets(doubtful: list[int], model: str, rng: random.Random) -> Iterator[frozenset[int]]:
    """Go through what may be there of entry operations that are not certain."""
    if model == "ordered":
        for length in range(len(doubtful) + 1):
            yield frozenset(doubtful[:length])
        return
    if 2 ** len(doubtful) <= MOST:
        for there in product((True, False), repeat=len(doubtful)):
            yield frozenset(index for index, is_there in zip(doubtful, there, strict=True) if is_there)
        return
    yield frozenset()
    yield frozenset(doubtful)
    for index in doubtful:
        yield frozenset({index})
        yield frozenset(doubtful) - {index}
    for length in range(2, len(doubtful) - 1):
        yield frozenset(doubtful[:length])
    for _ in range(BY_CHANCE):
        yield frozenset(index for index in doubtful if rng.random() < 0.5)


def _combinations(variants: list[list[bytes]], rng: random.Random) -> Iterator[tuple[bytes, ...]]:
    if prod(map(len, variants)) <= 64:
        yield from product(*variants)
        return
    for _ in range(64):
        yield tuple(rng.choice(several) for several in variants)


def _contents(
    recording: Recording, inode: int, done: int, certain: dict[Part, float], doubtful: bool
) -> list[bytes]:
    """Return what may be in a file."""
    sure = whole = recording.first_content.get(inode, b"")
    last: Data | None = None
    for index, item in enumerate(recording.items[:done]):
        if isinstance(item, Data) and item.inode == inode:
            whole = _done(whole, item)
            if certain[index, 0] <= done:
                sure = _done(sure, item)
            else:
                last = item
    if not doubtful or last is None or sure == whole:
        return [whole]
    if last.data is None or last.offset + len(last.data) <= len(sure):
        return [whole, sure]  # in place: within a block it is old or new
    half = whole[: len(sure) + (len(whole) - len(sure)) // 2]
    zeros = sure.ljust(len(whole), b"\0")
    return list(dict.fromkeys([whole, sure, half, zeros]))


def _done(content: bytes, item: Data) -> bytes:
    if item.data is None:
        return content[: item.offset].ljust(item.offset, b"\0")
    return _written(content, item.offset, item.data)


# --- this process's own calls -------------------------------------------------------------------------


def _just_call(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
    return call(*arguments, **more)


@contextmanager
def in_process(recording: Recording, top: str, inner: Hook = _just_call) -> Iterator[None]:
    """While this lasts, what the package does below the folder `top` is recorded. `inner`: another hook, to
    make the calls."""

    def path_of(path: str, dir_fd: int | None) -> str:
        if dir_fd is not None and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        return os.path.relpath(os.path.abspath(path), top)

    def hook(name: str, real: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            return inner(name, real, arguments, more)

        dir_fd = more.get("dir_fd")
        if name == "open":
            result = call(*arguments, **more)
            if arguments[1] & os.O_CREAT and recording.find(path_of(arguments[0], dir_fd)) is None:
                recording.create(path_of(arguments[0], dir_fd))
            elif arguments[1] & os.O_TRUNC:
                recording.truncate(path_of(arguments[0], dir_fd))
            return result
        if name in ("rename", "link"):
            old, new = (
                path_of(arguments[0], more.get("src_dir_fd")),
                path_of(arguments[1], more.get("dst_dir_fd")),
            )
            call(*arguments, **more)
            if recording.find(old) is None:  # a draft that was written by nobody who is recorded
                with open(f"{top}/{new}", "rb") as file:
                    recording.create(old, file.read())
            getattr(recording, name)(old, new)
            return None
        offset = os.lseek(arguments[0], 0, os.SEEK_CUR) if name == "write" else 0
        result = call(*arguments, **more)
        if name in ("write", "pwrite"):
            offset = arguments[2] if name == "pwrite" else offset
            recording.write(path_of("", arguments[0]), offset, bytes(arguments[1][:result]))
        elif name == "ftruncate":
            recording.truncate(path_of("", arguments[0]), arguments[1])
        elif name == "posix_fallocate":
            recording.allocate(path_of("", arguments[0]), arguments[1] + arguments[2])
        elif name == "symlink":
            recording.create(path_of(arguments[1], dir_fd), (arguments[0],))
        elif name == "mkdir":
            recording.create(path_of(arguments[0], dir_fd), None)
        elif name == "unlink":
            recording.unlink(path_of(arguments[0], dir_fd))
        elif name == "fsync":
            recording.sync(path_of("", arguments[0]))
        elif name in ("replace", "rmdir", "truncate", "copy_file_range"):
            raise AssertionError(f"os.{name} is not recorded yet: add it")
        return result

    with intercepted(hook):
        yield


def lay(tree: Tree, top: str) -> None:
    """Make the folder `top`, and in it the tree."""
    os.makedirs(top, exist_ok=True)
    for path, what in tree.items():
        place = f"{top}/{path}"
        if what is None:
            try:
                os.mkdir(place, 0o700)
            except FileExistsError:
                pass
        elif isinstance(what, tuple):
            os.symlink(what[0], place)
        else:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, what)
            os.close(fd)


def clear(top: str) -> None:
    """Remove everything in `top` but folders."""
    for entry in os.scandir(top):
        if entry.is_dir(follow_symlinks=False):
            clear(entry.path)
        else:
            os.unlink(entry.path)


def read_tree(top: str) -> Tree:
    """Return the tree in the folder `top`."""
    tree: Tree = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            try:
                what: bytes | tuple[str] | None = (os.readlink(path),)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                what = None if os.path.isdir(path) else Path(path).read_bytes()
            tree[os.path.relpath(path, top)] = what
    return dict(sorted(tree.items()))
