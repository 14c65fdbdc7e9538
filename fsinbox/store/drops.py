"""When a dropped file is finished, and what may be one: for the consumer that ingests it, and the producer
that must not be overtaken by it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from time import sleep, time_ns

from .files import flush_shared, open_for_reading
from .folders import close_quietly
from .layout import Layout

UNTOLD = 5.0
"""Seconds for which a file must have been left alone if nothing tells that it is finished."""

CLOSED = 1.0
"""The same where the kernel tells that nobody has it open for writing: for writers that come back."""

NEVER = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO}
"""Why a file that cannot be opened is no element. All else (no descriptors, an error of the disk) may
pass."""

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_drop(layout: Layout, name: str, status: os.stat_result, folder: str = "drop") -> int:
    """Open a dropped file for reading. Raises OSError, whose strerror says in plain words why it cannot be an
    element."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        # Not even opened: opening some devices does something.
        raise OSError(
            errno.EINVAL, f"it is {_KINDS.get(kind, 'not a regular file')}: only regular files are ingested"
        )
    try:
        return open_for_reading(layout, folder, name)
    except PermissionError:
        raise OSError(
            errno.EACCES,
            f"it cannot be read by the consumer (user {os.geteuid()}; it belongs to user {status.st_uid}, "
            f"mode {stat.S_IMODE(status.st_mode):04o}): make it readable and drop it again",
        ) from None


def finished_drop(layout: Layout, key: str) -> str | None:
    """Return the key's name in drop/ if a finished file lies there: for a producer, which must not be
    overtaken by it.

    Raises OSError.
    """
    if "\0" in key or key[0] == ".":
        return None
    if "/" not in key:
        return key if _is_finished(layout, key, "drop", key) else None
    from .subfolders import Within, are_ingested, may_be_path  # not at the top: most keys are no path

    if not (may_be_path(key) and are_ingested(layout)):
        return None
    try:
        with Within(layout, key) as (folder, name):
            return key if _is_finished(layout, key, folder, name) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EXDEV):
            return None
        raise


def _is_finished(layout: Layout, key: str, folder: str, name: str) -> bool:
    """Tell whether a finished file lies there, which is flushed then."""
    try:
        status = os.lstat(name, dir_fd=layout.fresh(folder))
    except FileNotFoundError:
        return False
    from .ignoring import ignored_by_all  # not at the top: most producers meet no drop

    if ignored_by_all(layout, key):
        return False
    try:
        fd = open_drop(layout, name, status, folder)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and stat.S_ISREG(
            status.st_mode
        ):  # another user's, to be read by the consumer
            return renamed_in(status) or _lies_still(layout, folder, name, status)
        if error.errno in NEVER or error.errno == errno.ENOENT:
            return False
        # it may be one: to add now and have it ingested later would put an older value in place of a newer
        raise
    try:
        writer = None if layout.sharing else has_writer(fd)
        status = os.fstat(fd)
        if writer or (
            writer is None and not renamed_in(status) and not _lies_still(layout, folder, name, status)
        ):
            return False  # unfinished: it arrives later than this add
        flush_shared(layout, fd)
    finally:
        close_quietly(fd)
    return True


def _lies_still(layout: Layout, folder: str, name: str, before: os.stat_result) -> bool:
    """Wait until a dropped file has been left alone for UNTOLD seconds; tell whether it was.

    Where no lease tells (another user's file, another host's writer), this is left of finding out whether it
    is being written, or was renamed in within a tick of the clock after it was.
    """
    quiet = 0.0
    if layout.sharing is None:  # else the clock that has set its times is another one than ours
        quiet = min(max(0.0, (time_ns() - before.st_ctime_ns) / 1e9), UNTOLD)
    sleep(UNTOLD - quiet)
    try:
        now = os.lstat(name, dir_fd=layout.fresh(folder))
    except FileNotFoundError:
        return False  # ingested; or removed
    return (before.st_ino, before.st_size, before.st_mtime_ns) == (now.st_ino, now.st_size, now.st_mtime_ns)


def renamed_in(status: os.stat_result) -> bool:
    """Tell whether the last thing done to a file was not writing."""
    return status.st_ctime_ns > status.st_mtime_ns


def has_writer(fd: int) -> bool | None:
    """Tell whether any process has the file open for writing; None where the kernel does not say.

    Asks for a read lease, which fcntl(2) refuses with EAGAIN while there is a writer, and gives it back at
    once. (An NFS client refuses it whenever the server has not delegated the file to it, and does not know of
    other hosts' writers: in an inbox that several hosts share it is not asked.)
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    from signal import SIGURG  # not at the top: a producer that meets no drop does not pay for it

    try:
        # A writer that comes in this instant breaks the lease; the signal for that must not be the deadly
        # SIGIO.
        fcntl.fcntl(fd, fcntl.F_SETSIG, SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
