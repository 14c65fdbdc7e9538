"""The files of an inbox: written whole, flushed, opened for reading without following anything. Every flush
is here."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from time import time_ns

from .folders import close_quietly
from .layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_BTRFS_FS_INFO, _BTRFS_SYNC = 0x8400941F, 0x9408
"""Numbers of ioctl(2), from linux/btrfs.h; any user may call them."""

_FAR = 3650 * 86_400 * 10**9
"""Nanoseconds between the times of a file that was for later, once it may be handed out: ten years."""

_FEW = 4
"""Up to so many files are flushed one by one: syncfs also writes out whatever else waits on their file
system."""

# --- written ------------------------------------------------------------------------------------------


def unused_temporary(layout: Layout) -> str:
    """Return a name for a file in tmp/ that no other process, thread or host will choose."""
    return f"{layout.token}.{next(layout.serial)}"


def create_temporary(layout: Layout, drafts: list[str]) -> int:
    """Create a new file in tmp/; return a descriptor to write to it. Its name is added to `drafts` first, so
    that whoever is interrupted, at any line, knows what to discard."""
    flags = _CREATE
    if layout.sharing and layout.sharing.slow_exclusive and not layout.file_mode & 0o066:
        # Nobody else can put a file into tmp/, and of our own processes each has a token of 64 random bits.
        flags &= ~os.O_EXCL
    while True:
        drafts.append(unused_temporary(layout))
        try:
            fd = os.open(drafts[-1], flags, layout.file_mode, dir_fd=layout.folder("tmp"))
        except FileExistsError:
            drafts.pop()
            continue
        if layout.file_mode & 0o060:
            try:
                os.fchmod(fd, layout.file_mode)  # shared on request: the umask must not take it back
            except BaseException:
                close_quietly(fd)
                raise
        return fd


def write_payload(
    layout: Layout, data: bytes, drafts: list[str], *, durable: bool, not_before: int = 0
) -> None:
    """Write `data` to a new file in tmp/, whose name is added to `drafts`. `not_before`: see
    mark_not_before."""
    fd = create_temporary(layout, drafts)
    try:
        written = os.write(fd, data)
        if written != len(data):
            write_all(fd, data[written:])
        if not_before:
            mark_not_before(fd, not_before)
        if durable:
            flush(fd)  # before the rename: a name must never become durable before what it names
    finally:
        os.close(fd)


def mark_not_before(fd: int, moment: int) -> None:
    """Say of an open draft that it is not to be handed out before a moment (nanoseconds since the epoch): its
    mode has the sticky bit, which means nothing else for a file, and its mtime is the moment (its atime is
    when that was said). Flush it after that. Raises OSError, also if the file system does not keep it."""
    os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | stat.S_ISVTX)
    added = min(time_ns(), moment)
    for more in (0, 2 * 10**9):  # some file systems cut times to a second, or two: rather late than early
        os.utime(fd, ns=(added, moment + more))
        if not_before(os.fstat(fd)) >= moment:
            return
    raise OSError(errno.ENOTSUP, "this file system cannot keep a value for later (mode and time of a file)")


def not_before(status: os.stat_result) -> int:
    """Return the moment before which a file is not to be handed out, in nanoseconds since the epoch; 0: at
    once."""
    is_over = status.st_atime_ns == status.st_mtime_ns + _FAR
    return status.st_mtime_ns if for_later(status) and not is_over else 0


def for_later(status: os.stat_result) -> bool:
    """Tell whether a file was added for later, whatever became of that."""
    return status.st_mode & stat.S_ISVTX != 0


def end_delay(layout: Layout, folder: str, name: str) -> None:
    """A file may be handed out from now on, whatever becomes of the clock: its atime is ten years above its
    mtime, where no read puts it, and none takes it away (relatime). The mtime says since when: now, if it was
    to come. Not flushed. Raises OSError.

    (That cannot be said of another user's file; but if it may be written to, its moment becomes now.)
    """
    fd = layout.folder(folder)
    moment = not_before(os.lstat(name, dir_fd=fd))
    if not moment:
        return
    now = time_ns()
    since = min(moment, now)
    try:
        os.utime(name, ns=(since + _FAR, since), dir_fd=fd, follow_symlinks=False)
    except PermissionError:
        if moment > now:
            os.utime(name, dir_fd=fd, follow_symlinks=False)


def write_whole(layout: Layout, folder: str, name: str, data: bytes) -> None:
    """Write a small file, whole or not at all, in place of what has its name. Not flushed. Raises OSError."""
    drafts: list[str] = []
    try:
        write_payload(layout, data, drafts, durable=False)
        os.rename(drafts[0], name, src_dir_fd=layout.folder("tmp"), dst_dir_fd=layout.folder(folder))
    except BaseException:
        for draft in drafts:
            discard_interrupted(layout, draft)
        raise


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`: one write may do only a part, on a full disk for one."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def discard_temporary(layout: Layout, name: str) -> None:
    """Remove a file in tmp/ that will not be published, if it is there."""
    try:
        os.unlink(name, dir_fd=layout.folder("tmp"))
    except OSError:
        pass  # litter; the consumer sweeps tmp/


def discard_interrupted(layout: Layout, name: str) -> None:
    """Discard a draft whose writer was interrupted, and close what it may have left open."""
    discard_temporary(layout, name)
    close_interrupted(name)


def close_interrupted(name: str) -> None:
    """Close what the writer of a draft may have left open when it was interrupted."""
    try:
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)").endswith(f"/{name}"):
                    close_quietly(int(fd))
            except FileNotFoundError:
                continue
    except OSError:
        pass  # no /proc: a descriptor too many


# --- flushed ------------------------------------------------------------------------------------------


def flush(fd: int) -> None:
    """Make a file's data, or a folder's entries, survive a power cut. Never call it again after it failed.

    On macOS fsync does not empty the drive's cache; F_FULLFSYNC does (fcntl(2) there).
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def flush_folder(layout: Layout, name: str) -> None:
    """Make every rename into and out of a folder so far survive a power cut, whole. Raises OSError."""
    flush_shared(layout, layout.folder(name))


def flush_shared(layout: Layout, fd: int) -> None:
    """Flush a folder, or a file that others may rename meanwhile: one in drop/. Raises OSError.

    On Btrfs fsync will not do: it copies names to a log while others rename, and may keep the half of a
    rename that it has seen. A commit of the file system waits for each rename that has begun.
    """
    if layout.commits is None:
        layout.commits = is_btrfs(fd)
    if layout.commits:
        commit(fd)
    else:
        flush(fd)


def commit(fd: int) -> None:
    """Make all there is on the Btrfs of an open file or folder survive a power cut. Raises OSError, also if
    it failed before."""
    fcntl.ioctl(fd, _BTRFS_SYNC)


def is_btrfs(fd: int) -> bool:
    """Tell whether an open file or folder is on Btrfs."""
    if os.major(os.fstat(fd).st_dev):
        # on a disk or partition: a volume of Btrfs has a device number of its own, as network mounts have
        return False
    try:
        fcntl.ioctl(fd, _BTRFS_FS_INFO, bytes(1024))
    except OSError:
        return False  # (ENOTTY, as a rule)
    return True


def flush_pending(layout: Layout) -> None:
    """The same for pending/. (`index` is never flushed: it is made anew after a power cut.)"""
    flush_folder(layout, "pending")


def flush_all(layout: Layout, folder: str, names: list[str]) -> None:
    """Make the content of these files survive a power cut, in one go (syncfs(2)) if they are many and the
    system can.

    A file that is gone by now is passed over. Raises OSError.
    """
    if folder.startswith("drop") and is_btrfs(layout.folder(folder)):
        commit(layout.folder(folder))  # as in flush_shared
        return
    syncfs = None
    if len(names) > _FEW:
        import ctypes

        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs:
        if syncfs(layout.folder(folder)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), folder)
        return
    for name in names:
        try:
            fd = os.open(name, READ, dir_fd=layout.folder(folder))
        except FileNotFoundError:
            continue
        try:
            flush(fd)
        finally:
            os.close(fd)


# --- read ---------------------------------------------------------------------------------------------


def open_for_reading(layout: Layout, folder: str, name: str) -> int:
    """Open an element's file: never through a link, never waiting for a FIFO's writer. Raises OSError."""
    return _open_regular(layout, folder, name)[0]


def _open_regular(layout: Layout, folder: str, name: str) -> tuple[int, int]:
    """The same, and the file's size in bytes."""
    fd = os.open(name, READ, dir_fd=layout.folder(folder))
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
    except BaseException:
        close_quietly(fd)
        raise
    return fd, status.st_size


def read_payload(layout: Layout, folder: str, name: str) -> bytes:
    """Return an element's content. Raises OSError."""
    fd, size = _open_regular(layout, folder, name)
    try:
        data = os.read(fd, size + 1)
        if len(data) != size:
            return data + _read_rest(fd)  # one read gives at most 2 GiB; or somebody is writing to it
        return data
    finally:
        close_quietly(fd)


def _read_rest(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 1 << 24):
        pieces.append(piece)
    return b"".join(pieces)


# --- removed ------------------------------------------------------------------------------------------


def remove(layout: Layout, folder: str, name: str) -> bool:
    """Remove a file of the inbox; tell whether it was there. Raises OSError."""
    try:
        os.unlink(name, dir_fd=layout.folder(folder))
    except FileNotFoundError:
        return False
    return True


def remove_any(layout: Layout, folder: str, name: str) -> str:
    """Remove what has a name, whatever it is: "removed", "gone", or "full" for a directory that is not empty.
    Nothing is followed. Raises OSError."""
    fd = layout.folder(folder)
    try:
        try:
            os.unlink(name, dir_fd=fd)
        except (IsADirectoryError, PermissionError) as error:  # (POSIX has EPERM for a directory)
            if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                raise error from None
            os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        return "gone"
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return "full"
        raise
    return "removed"


label: Callable[[Layout, str], object] | None = None
"""Called with each file in tmp/ that is about to be published: fsinbox.tracing leaves a producer's trace on
it."""
