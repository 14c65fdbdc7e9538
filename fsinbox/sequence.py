"""The admission lock and the next number.

`sequence` holds `<last number> <boot>`: the last number given out, and a tag of the boot (of the kernel) it was given out in.
Whoever holds an flock on the file may give out the next one:

    next = max(last + 1, nanoseconds since the epoch)

so numbers strictly increase even when the clock steps back, and each is the time of arrival. The file is not flushed: a
power cut may bring an old state of it back, and the clock may come back wrong as well. Therefore the first admission
after a boot (the tag differs), or after the file was lost or damaged, looks through the folders for the highest number
before it gives out another: see protocol.begin_boot.

The lock is flock(2), blocking: the kernel queues those who wait, and frees it when a process dies. Not filelock: importing
that costs a cold producer more than the whole add, and it polls.
"""

import errno
import fcntl
import os
import sys
from _thread import allocate_lock
from time import time_ns

from .errors import UnusableInbox
from .layout import Layout, let_go

UNKNOWN = ""

HIGHEST = 9 * 10**18
"""A last number as high as this (the year 2255) is damage, not time: there would be no room for the next ones."""


def boot_tag(scope: str) -> str:
    """Return a tag that changes with every boot, or "network" for an inbox that several hosts share.

    A server that acknowledged a rename has made it durable (RFC 8881, section 18.26: rename is not cached), so on a network
    file system no host's power cut can bring back an old state, and the tag must not differ between hosts.
    Source: /proc/sys/kernel/random/boot_id, in random(4).
    """
    if scope == "network":
        return "network"
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
            return file.read(8).decode("ascii")
    except FileNotFoundError:
        if sys.platform == "darwin":  # pragma: no cover - macOS only
            return _boot_session()
        raise OSError("no /proc/sys/kernel/random/boot_id here: mount /proc, or this system is not supported") from None


def _boot_session() -> str:  # pragma: no cover - macOS only
    """The same for macOS, from sysctl kern.bootsessionuuid."""
    import ctypes

    size = ctypes.c_size_t(64)
    text = ctypes.create_string_buffer(64)
    if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, 0):
        raise OSError("sysctl kern.bootsessionuuid failed")
    return text.value[:8].decode("ascii").lower()


class Sequence:
    """The file `sequence` of an open inbox, its lock, and the number in it.

    `with sequence:` holds the admission lock, against other processes and against other threads of this one.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._threads = allocate_lock()  # an flock belongs to the open file: it does not exclude our own threads
        self._fd = -1
        try:
            self.boot = boot_tag(layout.scope)
        except OSError as error:
            raise UnusableInbox(f"cannot use inbox {layout.path}: {error}: mend that, then open it again") from error

    def __enter__(self) -> "Sequence":
        self._threads.acquire()
        try:
            self._lock(fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise
        return self

    def try_lock(self) -> bool:
        """Take the lock if it is free; the caller leaves it with unlock(). The consumer never waits for a producer."""
        if not self._threads.acquire(False):
            return False
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._threads.release()
            return False
        except BaseException:
            self._threads.release()
            raise
        return True

    def unlock(self) -> None:
        """Leave the lock. If the system will not have it, by closing the file: others must not wait for us."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError:
            self.close()
        finally:
            self._threads.release()

    def _lock(self, how: int) -> None:
        while True:
            if self._fd < 0:
                self._open()
            fcntl.flock(self._fd, how)
            try:
                if os.fstat(self._fd).st_nlink:
                    return
            except BaseException:
                self.close()  # which lets go of the lock
                raise
            self.close()  # somebody removed the file: a lock on it excludes nobody who comes now

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def read(self) -> tuple[int, str]:
        """Return (last number, boot it was given out in); (0, UNKNOWN) if the file is new or damaged.

        Without the lock the answer may be old, never too high.
        """
        if self._fd < 0:
            self._open()
        words = os.pread(self._fd, 64, 0).partition(b"\n")[0].split()
        if len(words) == 2 and words[0].isdigit() and int(words[0]) < HIGHEST:
            return int(words[0]), words[1].decode("ascii", "replace")
        return 0, UNKNOWN

    def advance(self, last: int) -> int:
        """Give out the number after `last`. The caller holds the lock."""
        now = time_ns()
        number = max(last + 1, now if now < HIGHEST else 0)  # a clock that is wrong by centuries does not count
        self.write(number)
        return number

    def write(self, last: int) -> None:
        """Record `last` as the last number given out, in this boot. The caller holds the lock."""
        # In place and of constant length: within one block, a kill or a full disk cannot leave half of it.
        line = f"{last:019d} {self.boot}\n".encode("ascii")
        if os.pwrite(self._fd, line, 0) != len(line):
            raise OSError(errno.ENOSPC, "only a part could be written", "sequence")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = self._layout.open_own("sequence", flags)

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            let_go(fd)
