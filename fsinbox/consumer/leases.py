"""The leases that there are in an inbox that several hosts share, as anybody may read them. See lease."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from typing import NamedTuple

from ..store.files import create_temporary, discard_temporary
from ..store.folders import CLAIM, close_quietly
from ..store.layout import Layout
from ..store.printing import clean
from .ownership import Shard

FILE = ".lease"
"""In a consumer's folder: who it is, and for how long its lease lasts. Its times are the last heartbeat's."""

GONE = (errno.ENOENT, errno.ESTALE)
"""What the system says where a consumer's folder was."""


class Held(NamedTuple):
    """A consumer's folder in inflight/, and what its .lease says."""

    name: str
    shard: Shard
    epoch: int
    holder: str = ""
    lasts: float = 0.0
    """Seconds without a heartbeat after which it may be taken over."""
    locked: bool = False
    """Whether it holds the lock as well."""
    sign: int = 0
    """When it gave its last heartbeat, in nanoseconds, by the clock that sets files' times."""

    @property
    def needs_lock(self) -> bool:
        """Whether it counts as dead without the lock: it had it; or it died, or is paused, before it has left
        word."""
        return self.locked or not self.lasts


def leases(layout: Layout) -> list[Held]:
    """Return the consumers' folders that there are, dead ones included, the latest first. Raises OSError."""
    found = []
    for name in layout.names_in(layout.inflight_root()):
        held = _parse(name)
        if held:
            with suppress(FileNotFoundError):
                found.append(read(layout, held))
    return sorted(found, key=lambda held: held.epoch, reverse=True)


def server_clock(layout: Layout) -> int:
    """Return what time it is by the clock that sets the times of files in this inbox, in nanoseconds. Raises
    OSError."""
    drafts: list[str] = []
    fd = create_temporary(layout, drafts)
    try:
        os.utime(fd)
        return os.fstat(fd).st_mtime_ns
    finally:
        close_quietly(fd)
        discard_temporary(layout, drafts[0])


def _parse(name: str) -> Held | None:
    match = re.fullmatch(CLAIM + r"(\d{1,3})of(\d{1,3})-(\d{10})", name)
    return Held(name, Shard(int(match[1]), int(match[2])), int(match[3])) if match else None


def read(layout: Layout, held: Held) -> Held:
    """Read a lease. One without .lease (its holder has just begun, or has just ended) is as old as its
    folder. Raises FileNotFoundError if the folder is gone; OSError."""
    folder = layout.open_claim(held.name)
    try:
        try:
            fd = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return held._replace(sign=os.fstat(folder).st_mtime_ns)
        try:
            holder, _, terms = os.read(fd, 500).partition(b"\n")
            sign = os.fstat(fd).st_mtime_ns
        finally:
            close_quietly(fd)
    except OSError as error:
        if error.errno in GONE:
            raise FileNotFoundError(error.errno, error.strerror, held.name) from error
        raise
    finally:
        close_quietly(folder)
    lasts, _, lock = terms.decode("ascii", "replace").strip().partition(" ")
    seconds = float(lasts) if re.fullmatch(r"\d{1,7}(\.\d{1,3})?", lasts) else 0.0
    return held._replace(holder=clean(holder), lasts=seconds, locked=lock == "locked", sign=sign)
