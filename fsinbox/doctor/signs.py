"""What one look at an inbox notes: its signs, and the few questions that every part of the look asks."""

from __future__ import annotations

import os
import stat
from time import time_ns

from ..store.layout import Layout
from .findings import Sign

MINUTE = 60.0
"""Seconds after which a probe or a draft of a note has no living owner."""
HOUR = 3600.0
"""The same for a draft of `format`, and the doctor's own folder."""


class Signs:
    """The signs that were seen in an open inbox."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.found: set[Sign] = set()

    def see(self, kind: str, where: str, seen: object = "") -> None:
        """Note a sign."""
        self.found.add(Sign(kind, where, str(seen)))

    def status(self, folder: str, name: str) -> os.stat_result | None:
        """Return a file's status, or None if it is gone."""
        try:
            return os.lstat(name, dir_fd=self.layout.folder(folder))
        except FileNotFoundError:
            return None

    def older(self, folder: str, name: str, age: float) -> bool:
        """Tell whether nobody has touched a file for `age` seconds."""
        status = self.status(folder, name)
        return status is not None and time_ns() - status.st_ctime_ns > age * 1e9


def kind_of(status: os.stat_result) -> str:
    """Return what a file is, in words."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a device")


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
