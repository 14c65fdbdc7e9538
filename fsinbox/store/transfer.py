"""The content of a file or a stream as a payload: handed over, cloned or copied, never whole in memory."""

from __future__ import annotations

import errno
import os
import stat

from .errors import AddFailed
from .files import create_temporary, discard_temporary, flush, mark_not_before, unused_temporary, write_all
from .folders import close_quietly
from .layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

_FICLONE = 0x40049409  # ioctl_ficlone(2): share the blocks, on file systems that can
_PIECE = 1 << 24  # bytes a copying system call is asked for at once


def _unreadable(path: str, error: OSError) -> AddFailed:
    return AddFailed(
        error.errno,
        f"cannot read {path}: {error.strerror}: nothing was added; check the path and who may read it",
        maybe_added=False,
    )


class Source:
    """A file whose content is to be queued."""

    def __init__(self, path: str, *, move: bool) -> None:
        """Open the file at `path`. Raises AddFailed if that is not possible or it is not a regular file."""
        self._path: str | None = path if move else None
        self._moved_from: str | None = None
        try:
            # O_NONBLOCK: a FIFO must give an error, not wait for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise AddFailed(
                    errno.EINVAL,
                    f"{path} is not a regular file: pipe it in (fsinbox add KEY -), or copy it to one",
                    maybe_added=False,
                )
        except AddFailed:
            close_quietly(self._fd)
            raise
        except OSError as error:
            close_quietly(self._fd)
            raise _unreadable(path, error) from error

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        close_quietly(self._fd)
        if kind is None and self._path is not None:
            try:
                os.unlink(self._path)  # it was to be moved, but lies on another file system
            except OSError as error:
                raise AddFailed(
                    error.errno,
                    f"{self._path} was added, but cannot be removed: {error.strerror}: remove it yourself",
                    maybe_added=True,
                ) from error

    def write(self, layout: Layout, drafts: list[str], *, durable: bool, not_before: int = 0) -> None:
        """Bring the content to a file in tmp/, whose name is added to `drafts`. Raises OSError."""
        if self._path is not None:
            drafts.append(unused_temporary(layout))
            self._moved_from = self._path
            if self._hand_over(layout, drafts[0]):
                self._path = None
                os.fchmod(self._fd, layout.file_mode)
                _finish(self._fd, durable=durable, not_before=not_before)
                return
            self._moved_from = None
            drafts.clear()
        fd = create_temporary(layout, drafts)
        try:
            _copy(self._fd, fd)
            _finish(fd, durable=durable, not_before=not_before)
        finally:
            os.close(fd)

    def discard(self, layout: Layout, name: str) -> None:
        """It was not queued: give the caller back what was handed over, else remove the copy in tmp/."""
        if self._moved_from is None:
            self._path = None  # it is where it was, and stays there
            discard_temporary(layout, name)
            return
        try:
            try:
                # A link: if somebody has put another file there meanwhile, both are kept, ours in tmp/ for a
                # day.
                os.link(name, self._moved_from, src_dir_fd=layout.folder("tmp"))
            except FileExistsError:
                raise
            except FileNotFoundError:
                if not layout.exists("tmp", name):
                    return  # it was not moved; or it is queued
                raise
            except OSError:  # no links on this file system, or a passing error
                os.rename(name, self._moved_from, src_dir_fd=layout.folder("tmp"))
                return
        except OSError as error:
            if self._path is not None and os.path.lexists(self._moved_from):
                return  # it was not moved: it is there
            raise OSError(
                error.errno,
                f"{error.strerror} (and {self._moved_from} could not be moved back: it is tmp/{name} in "
                f"{layout.path} now)",
            ) from error
        discard_temporary(layout, name)

    def _hand_over(self, layout: Layout, name: str) -> bool:
        assert self._path is not None
        if os.path.islink(self._path) or os.fstat(self._fd).st_uid != os.geteuid():
            return False  # the link would move, not what it names; its owner could go on writing to it
        try:
            os.rename(self._path, name, dst_dir_fd=layout.folder("tmp"))
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True


class Stream:
    """What a binary stream gives, to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, layout: Layout, drafts: list[str], *, durable: bool, not_before: int = 0) -> None:
        """Bring the content to a file in tmp/, whose name is added to `drafts`. Raises OSError."""
        fd = create_temporary(layout, drafts)
        try:
            while piece := self._stream.read(1 << 20):
                write_all(fd, piece)
            _finish(fd, durable=durable, not_before=not_before)
        finally:
            os.close(fd)

    def discard(self, layout: Layout, name: str) -> None:
        """It was not queued: remove the file in tmp/."""
        discard_temporary(layout, name)


def _finish(fd: int, *, durable: bool, not_before: int) -> None:
    """All is written."""
    if not_before:
        mark_not_before(fd, not_before)
    if durable:
        flush(fd)


def copy_part(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes of an open file that others may be writing to: shared blocks if the file
    system can (then it may be more). Holes stay holes, so that it takes no more room. Raises OSError."""
    if _clone(source, target):
        return
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = min(size, os.lseek(source, offset, os.SEEK_HOLE))
        os.lseek(target, offset, os.SEEK_SET)
        while offset < end:
            piece = os.pread(source, min(end - offset, 1 << 20), offset)
            if not piece:
                return  # it was cut short meanwhile
            write_all(target, piece)
            offset += len(piece)


def _clone(source: int, target: int) -> bool:
    """Have one open file share the other's blocks; False if the file system cannot."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # not on this file system, or not between these two
    return True


def _copy(source: int, target: int) -> None:
    """Copy one open file to another: shared blocks if the file system can, else inside the kernel, else by
    hand."""
    if _clone(source, target):
        return
    offset = 0
    try:
        while copied := os.copy_file_range(source, target, _PIECE, offset, offset):
            offset += copied
        if offset:
            return
    except (OSError, AttributeError):
        if offset:
            raise
    while piece := os.pread(source, 1 << 20, offset):
        offset += len(piece)
        write_all(target, piece)
