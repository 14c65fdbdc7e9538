"""Looking at a tree: never through a symlink, and never into the inbox that lies in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .patterns import Patterns
from .roots import Root

_OPEN_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FOLDER = _OPEN_ROOT | os.O_NOFOLLOW
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a path that is not there, or has become a link or a file."""

_UNMOUNTED = (
    "it is empty, and on another file system than before: is it mounted? (If it is meant to be empty, put "
    "any file into it)"
)

_LARGEST = (1 << 63) - 1
"""What a column of SQLite holds. (A file's owner may set its time to any year.)"""

Identity = tuple[int, int]
"""Device and inode."""


class Fingerprint(NamedTuple):
    """By which a changed file is known.

    The time of change (ctime) is set by the kernel alone: a new content of the same size whose modification
    time was set back is seen. The inode is not part of it: some file systems number files anew.
    """

    size: int
    modified: int
    """Nanoseconds since the epoch, as `changed`."""
    changed: int


class Listing(NamedTuple):
    """What one folder holds."""

    files: dict[str, Fingerprint]
    """Name -> fingerprint, of the wanted regular files."""
    folders: list[str]
    """Names of the folders that are looked into."""


class RootGone(OSError):
    """The root itself cannot be opened: it says nothing of what was in it."""


class Tree:
    """A folder that is watched. Paths in it are relative to it, "/" between their parts; "" is itself."""

    def __init__(self, root: Root, patterns: Patterns, excluded: frozenset[Identity]) -> None:
        """`excluded`: folders that are not part of it, wherever they lie."""
        self.root = root
        self.local = root.local
        self.device: int | None = None
        """The file system on which it lay, if that is known."""
        self._patterns = patterns
        self._excluded = excluded

    @contextmanager
    def opened(self, folder: str) -> Iterator[int]:
        """Open a folder of the tree, for a `with` block; give its descriptor.

        Raises RootGone; FileNotFoundError if it is not there or not part of the tree; else OSError.
        """
        if not self._patterns.enters(folder):
            raise FileNotFoundError(errno.ENOENT, "ignored", folder)
        fd = self._open_root()
        try:
            for part in filter(None, folder.split("/")):
                inner = _open(part, _OPEN_FOLDER, fd)
                os.close(fd)
                fd = inner
                if identity(fd) in self._excluded:
                    raise FileNotFoundError(errno.ENOENT, "not part of the tree", folder)
            yield fd
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        try:
            fd = os.open(self.root.path, _OPEN_ROOT)
        except OSError as error:
            raise RootGone(error.errno, error.strerror, self.root.path) from error
        device = os.fstat(fd).st_dev
        if self.device not in (None, device):
            # Another file system: mounted here, or what is under a mount point that has lost its mount?
            if not os.listdir(fd):
                os.close(fd)
                raise RootGone(errno.ENOENT, _UNMOUNTED, self.root.path)
            self.device = device
        return fd

    def list(self, fd: int, folder: str) -> Listing:
        """Return what a folder holds, given its descriptor. Raises OSError."""
        files, folders = {}, []
        before = f"{folder}/" if folder else ""
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if self._patterns.enters(before + entry.name):
                        folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False) and self._patterns.wants(before + entry.name):
                    try:
                        files[entry.name] = fingerprint(entry.stat(follow_symlinks=False))
                    except FileNotFoundError:
                        continue  # removed meanwhile
        return Listing(files, folders)

    def look(self, name: str) -> Fingerprint | None:
        """Return a file's fingerprint; None if the tree has no such file. Raises RootGone, OSError."""
        folder, _, last = name.rpartition("/")
        if not self._patterns.wants(name):
            return None
        try:
            with self.opened(folder) as fd:
                status = os.lstat(last, dir_fd=fd)
        except FileNotFoundError:
            return None
        return fingerprint(status) if stat.S_ISREG(status.st_mode) else None

    def holds_folder(self, name: str) -> bool:
        """Tell whether there is a folder of this name that is looked into. Raises RootGone, OSError."""
        try:
            with self.opened(name):
                return True
        except FileNotFoundError:
            return False

    def open_file(self, name: str) -> int:
        """Open a file of the tree for reading; return its descriptor. Raises FileNotFoundError, OSError."""
        folder, _, last = name.rpartition("/")
        with self.opened(folder) as fd:
            file = _open(last, _OPEN_FILE, fd)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", name)


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _GONE:
            raise FileNotFoundError(error.errno, error.strerror, name) from error
        raise


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint of a file of this status."""
    return Fingerprint(status.st_size, status.st_mtime_ns & _LARGEST, status.st_ctime_ns & _LARGEST)


def identity(target: int | str) -> Identity:
    """Return the identity of an open or named folder. Raises OSError."""
    status = os.stat(target)
    return status.st_dev, status.st_ino
