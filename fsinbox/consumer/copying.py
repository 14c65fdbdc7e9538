"""Copies of dropped files that others may write to, though they will be elements: they could change what
waits, or let it grow past any limit.

Such a file belongs to another user, or has a second name (a hard link) somewhere. It is copied into tmp/ as
it is, with its blocks shared where the file system can; if it changed meanwhile, it was not finished. How the
copy takes its place: transitions.move_drop_as_copy.
"""

from __future__ import annotations

import os
import stat
from time import monotonic
from typing import NamedTuple

from ..store.drops import has_writer
from ..store.files import create_temporary, discard_interrupted, discard_temporary
from ..store.layout import Layout
from ..store.transfer import copy_part

ENOUGH = 64 << 20
"""Bytes that are copied in one go, before the consumer gets on with its work: at least one file."""

PATIENCE = 5.0
"""Seconds after which a file is copied again that changed meanwhile, or could not be copied."""


_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Copy(NamedTuple):
    """A copy: its name in tmp/, and how the file was."""

    name: str
    seen: os.stat_result


class Copies:
    """The copies that a consumer has in tmp/, by their files' names in drop/."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._copies: dict[str, Copy] = {}
        self._later: dict[str, float] = {}
        self.size = 0
        """Bytes copied since `size` was set to 0."""

    def are_needed(self, status: os.stat_result) -> bool:
        """Tell whether others may write to a file, and cannot be kept from it. (The owner of the inbox is no
        other: all that is in it is his.)"""
        if status.st_nlink > 1:
            return True
        if status.st_uid == os.geteuid():
            return False
        return status.st_uid != os.fstat(self._layout.root).st_uid or _is_open_to_others(self._layout, status)

    def wait(self, name: str) -> float:
        """Return for how many seconds a file is not copied again; 0: it may be."""
        return max(0.0, self._later.get(name, 0.0) - monotonic())

    def make(self, name: str, fd: int, status: os.stat_result) -> Copy | None:
        """Copy an open file from drop/, or return the copy that there is; None: not now. Raises OSError."""
        there = self._copies.get(name)
        if there and _stamp(there.seen) == _stamp(status):
            self.size += status.st_size
            return there
        if self.wait(name):
            return None
        self.discard(name)
        draft = self._copy(fd, status)
        if draft is None:
            return None
        del self._later[name]
        self._copies[name] = Copy(draft, status)
        return self._copies[name]

    def _copy(self, fd: int, status: os.stat_result) -> str | None:
        """Return the name of a copy of an open file in tmp/; None if the file has changed meanwhile."""
        drafts: list[str] = []
        self.size += status.st_size
        try:
            target = create_temporary(self._layout, drafts)
            try:
                copy_part(fd, target, status.st_size)
                _copy_trace(fd, target)
                size = os.fstat(target).st_size
            finally:
                os.close(target)
            if size == status.st_size and _stamp(os.fstat(fd)) == _stamp(status):
                return drafts[0]
        except BaseException:
            for draft in drafts:
                discard_interrupted(self._layout, draft)
            raise
        discard_temporary(self._layout, drafts[0])
        return None

    def forget(self, name: str) -> None:
        """The copy has taken its place."""
        del self._copies[name]

    def discard(self, name: str) -> None:
        """Remove the copy of a file, if there is one. The file is not copied again at once."""
        self._later[name] = monotonic() + PATIENCE
        if there := self._copies.pop(name, None):
            discard_temporary(self._layout, there.name)

    def keep(self, names: set[str]) -> None:
        """Discard what belongs to other names."""
        for name in self._copies.keys() - names:
            self.discard(name)
        self._later = {name: at for name, at in self._later.items() if name in names}


def _copy_trace(source: int, target: int) -> None:
    """Let a producer's trace go along (docs/running.md). It is less than the element: what cannot be done is
    left."""
    try:
        for name in os.listxattr(source):
            if name.startswith("user.fsinbox."):
                os.setxattr(target, name, os.getxattr(source, name))
    except (OSError, AttributeError):
        pass


def close_to_others(layout: Layout, fd: int, status: os.stat_result) -> bool:
    """Take from others the right to write to a file of ours, if they have it. False if it is being written
    now. Raises OSError."""
    if not _is_open_to_others(layout, status):
        return True
    os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~_OTHERS)
    return layout.sharing is not None or not has_writer(fd)


def _is_open_to_others(layout: Layout, status: os.stat_result) -> bool:
    """Tell whether users may write to a file who may not write to the inbox's."""
    return bool(status.st_mode & _OTHERS & ~layout.file_mode)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes with each change of a file."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
