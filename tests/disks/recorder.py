"""A disk that notes what is written to it, in order: a FUSE file system with one file, the disk's image.

    python -m tests.disks.recorder FOLDER IMAGE LOG

mounts it on FOLDER and serves until it is unmounted. A loop device over FOLDER/disk is a block device with a
volatile cache: what the kernel writes to it comes here as a write, and a barrier (REQ_PREFLUSH, REQ_FUA) as
an fsync. Each becomes a record in LOG, with the time at which it came (the clock that tests/driver.py
announces with), before it is answered. There is one thread, no write-back cache and one worker of the loop
device, so that the order in LOG is what the disk saw.

The disk can be told to break: after `echo N >FOLDER/break` it does N more writes, then each write and flush
fails with EIO; after `echo >FOLDER/break` it works again.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

DISK = "disk"
BREAK = "break"

RECORD = struct.Struct("=QQq")
"""A record of the log: when, where, and how many bytes follow; of a flush: FLUSH bytes."""

FLUSH = -1

NEVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class Record:
    """A write to the disk, or a flush of its cache."""

    t: int
    offset: int
    data: bytes | None  # None: a flush


def read_records(path: str) -> list[Record]:
    """Return what a disk's log holds."""
    records = []
    with open(path, "rb") as file:
        while header := file.read(RECORD.size):
            t, offset, length = RECORD.unpack(header)
            records.append(Record(t, offset, None if length == FLUSH else file.read(length)))
    return records


def main() -> None:
    """Serve the disk. Says `ready` on standard output when it is mounted."""
    import mfusepy

    folder, image, log = sys.argv[1:]

    class Disk(mfusepy.Operations):
        use_ns = True

        def __init__(self) -> None:
            self.image = os.open(image, os.O_RDWR)
            self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self.left = NEVER  # writes until it breaks

        def init(self, path: str) -> None:
            print("ready", flush=True)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path not in (f"/{DISK}", f"/{BREAK}"):
                raise mfusepy.FuseOSError(errno.ENOENT)
            size = os.fstat(self.image).st_size if path == f"/{DISK}" else 0
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [DISK, BREAK]

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            if path != f"/{BREAK}":
                raise mfusepy.FuseOSError(errno.EPERM)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(self.image, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            t = monotonic_ns()
            if path == f"/{BREAK}":
                self.left = int(data.strip() or NEVER)
                return len(data)
            if self.left == 0:
                raise mfusepy.FuseOSError(errno.EIO)
            self.left -= 1
            os.pwrite(self.image, data, offset)
            os.write(self.log, RECORD.pack(t, offset, len(data)) + data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            if self.left == 0:
                raise mfusepy.FuseOSError(errno.EIO)
            os.write(self.log, RECORD.pack(monotonic_ns(), 0, FLUSH))

    mfusepy.FUSE(Disk(), folder, foreground=True, nothreads=True, fsname="fsinbox-recorder")


if __name__ == "__main__":
    main()
