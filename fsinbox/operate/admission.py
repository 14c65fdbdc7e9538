"""Who holds the admission lock: while somebody does, every add waits."""

from __future__ import annotations

import fcntl
import os
from time import monotonic, sleep

from ..store.layout import Layout
from ..store.lines import HIGHEST
from ..store.names import DIGITS
from ..store.printing import clean
from .units import when

PATIENCE = 1.0
"""Seconds after which a lock that cannot be had is worth reporting: an add holds it for some 50
microseconds."""


def held_by(layout: Layout) -> str | None:
    """Return who has held the admission lock for PATIENCE; None if it is free, or there is no index."""
    try:
        fd = os.open("index", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except OSError:
        return None  # `doctor` reports that
    try:
        return share_lock(layout, fd)
    finally:
        os.close(fd)


def share_lock(layout: Layout, fd: int) -> str | None:
    """Share the admission lock until `fd`, open on `index`, is closed; None, or who has held it for PATIENCE.

    In words: "process 123 (python3, stopped); the last number was given out at 2026-01-31T12:00:00+00:00".
    """
    until = monotonic() + PATIENCE
    while True:
        try:
            _try_to_share(layout, fd)
            return None
        except BlockingIOError:
            if monotonic() > until:
                return _holder_of(fd) + _last_given_out(fd)
            sleep(0.01)
        except OSError:
            return None  # a file system that locks nothing for a reader


def _try_to_share(layout: Layout, fd: int) -> None:
    """Raises BlockingIOError while somebody holds it."""
    if layout.sharing and layout.sharing.range_locks:
        from ..store.network.sharing import range_lock

        range_lock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    else:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _holder_of(fd: int) -> str:
    """Return which process holds an flock on this file, as far as the kernel says. See proc(5),
    /proc/locks."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK" and words[5] == device and words[4].isdigit():
                    return f"process {words[4]}{_program(words[4])}"
    except OSError:
        pass
    return "a process that cannot be seen from here"


def _last_given_out(fd: int) -> str:
    """Return when the last number was given out: the lock has been held since then, or since later. (When a
    lock was taken is recorded nowhere.)"""
    digits = os.pread(fd, DIGITS, 0)
    if not digits.isdigit() or int(digits) >= HIGHEST:
        return ""
    return f"; the last number was given out at {when(int(digits), 'seconds')}"


def _program(pid: str) -> str:
    """Return " (python3, stopped)" for a process, "" if its name cannot be read. See proc(5),
    /proc/PID/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
    except FileNotFoundError:
        return " (it has ended; a child of it still holds the lock)"
    except OSError:
        return ""
    return f" ({clean(name)}{', stopped' if rest[1:2] in (b'T', b't') else ''})"
