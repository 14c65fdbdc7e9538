"""A file system that does little of what fsinbox relies on: FUSE, by mfusepy, over a folder. For the doctor
to find it out.

It takes `A` for `a`, and both ways to write `é` for one; a rename over a file leaves a moment without any;
there are no links of either kind; a name has at most 100 bytes; modes are not kept; folders cannot be
flushed; its clock is an hour ahead, and goes in steps of a second; there is little room.

    python -m tests.odd FOLDER MOUNTPOINT      serves until it is unmounted; writes a line when it is mounted
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import sys
import unicodedata
from time import sleep
from typing import Any

import mfusepy

LONGEST = 100
AHEAD = 3600


class Odd(mfusepy.Operations):
    """The file system."""

    use_ns = True

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _real(self, path: str) -> str:
        name = os.path.basename(path)
        if len(os.fsencode(name)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, name)
        return self._folder + unicodedata.normalize("NFC", path).lower()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._real(path))
        second = (status.st_mtime_ns // 10**9 + AHEAD) * 10**9
        mode = stat.S_IFMT(status.st_mode) | 0o777
        more = {name: getattr(status, name) for name in ("st_ino", "st_nlink", "st_size", "st_uid", "st_gid")}
        return more | {"st_mode": mode, "st_mtime": second, "st_ctime": second, "st_atime": second}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._real(path), length)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        raise OSError(errno.EINVAL, "folders cannot be flushed")

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path))
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        if os.path.lexists(self._real(new)):
            os.unlink(self._real(new))
            sleep(0.005)
        os.rename(self._real(old), self._real(new))
        return 0

    def link(self, target: str, source: str) -> int:
        raise OSError(errno.EPERM, "no links")

    def symlink(self, target: str, source: str) -> int:
        raise OSError(errno.EPERM, "no links")

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {
            "f_bsize": 4096,
            "f_frsize": 4096,
            "f_blocks": 9000,
            "f_bfree": 2560,
            "f_bavail": 2560,
            "f_files": 900,
            "f_favail": 500,
        }

    def init_with_config(self, connection: Any, config: Any) -> None:
        config.entry_timeout = config.attr_timeout = config.negative_timeout = 0.0
        config.direct_io = 1
        os.write(1, b"mounted\n")


def main() -> None:
    """Serve."""
    folder, mountpoint = sys.argv[1:]
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it does not outlive the test
    mfusepy.FUSE(Odd(folder), mountpoint, foreground=True, fsname="odd")


if __name__ == "__main__":
    main()
