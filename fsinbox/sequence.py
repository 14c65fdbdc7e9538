"""The admission lock and the next number.

`sequence` holds `<last number> <boot>`: the last number given out, and a tag of the boot (of the kernel) it was given out in.
Whoever holds an flock on the file may give out the next one:

    next = max(last + 1, nanoseconds since the epoch)

so numbers strictly increase even when the clock steps back, and each is the time of arrival. The file is not flushed: a
power cut may bring an old state of it back, and the clock may come back wrong as well. Therefore the first admission
after a boot (the tag differs), or after the file was lost or damaged, looks through the folders for the highest number
before it gives out another: see protocol.begin_boot.

In an inbox that several hosts share, a host may lose the lock while it is cut off, and not be told: what it was about to do
is done late, when the network is back. There the file holds two words more,

    <last number> <tag> <sections> <open|done>

and every add is a *section* under the lock: "open" is written, and flushed, before a hint; "done", and flushed, after the
element is in its place. Both go through the lock: the server refuses them to who has lost it (NFS 4), which ends that add
with an error. Whoever finds "open" knows that the one before died, or was cut off, and that its hint may still come. So it
changes the tag, and a hint with another tag counts for nobody. (On such a file system there is nothing to be found out
after a power cut: a server has flushed what it has acknowledged.)

The lock is flock(2), blocking: the kernel queues those who wait, and frees it when a process dies. Not filelock: importing
that costs a cold producer more than the whole add, and it polls.
"""

from __future__ import annotations

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
    """Return a tag that changes with every boot; "" for an inbox that several hosts share, where `sequence` has the tag.

    Source: /proc/sys/kernel/random/boot_id, in random(4).
    """
    if scope == "network":
        return UNKNOWN
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
        self._shared = layout.sharing is not None
        self._sections = 0
        self._seen = b""
        self._range_locks = layout.sharing is not None and layout.sharing.range_locks
        try:
            self.boot = boot_tag(layout.scope)
        except OSError as error:
            raise UnusableInbox(f"cannot use inbox {layout.path}: {error}: mend that, then open it again") from error

    def __enter__(self) -> Sequence:
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
            self._flock(fcntl.LOCK_UN)
        except OSError:
            self.close()
        finally:
            self._threads.release()

    def _lock(self, how: int) -> None:
        while True:
            if self._fd < 0:
                self._open()
            self._flock(how)
            try:
                if os.fstat(self._fd).st_nlink:
                    if self._shared:
                        self._begin()
                    return
            except BaseException:
                self.close()  # which lets go of the lock
                raise
            self.close()  # somebody removed the file: a lock on it excludes nobody who comes now

    def _flock(self, how: int) -> None:
        if self._range_locks:
            from .hosts import range_lock

            range_lock(self._fd, how)
        else:
            fcntl.flock(self._fd, how)

    def _begin(self) -> None:
        """The lock of a shared inbox was taken: learn the tag, or choose another one."""
        self._seen = os.pread(self._fd, 64, 0)
        words = self._seen.split()
        self._sections = int(words[2]) if len(words) == 4 and words[2].isdigit() else 0
        self.boot = words[1].decode("ascii", "replace") if len(words) == 4 and words[3] == b"done" else os.urandom(4).hex()

    def finish(self) -> None:
        """End a section of a shared inbox: all of it is done, and the lock was held until now. Raises OSError if it was not.

        In an inbox of one host, nothing.
        """
        if self._shared:
            self._sections += 1
            self._write(self.read()[0], b"done")

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def read(self) -> tuple[int, str]:
        """Return (last number, boot it was given out in); (0, UNKNOWN) if the file is new or damaged.

        Without the lock the answer may be old, never too high.
        """
        words = self._words()
        if len(words) == (4 if self._shared else 2) and words[0].isdigit() and int(words[0]) < HIGHEST:
            return int(words[0]), words[1].decode("ascii", "replace")
        return 0, UNKNOWN

    def peek(self) -> int:
        """Return the last number given out, without the lock: perhaps an old one, never too high."""
        if not self._shared:
            return self.read()[0]
        digits = self.peek_line()[:19]
        return int(digits) if digits.isdigit() and int(digits) < HIGHEST else 0

    def peek_line(self) -> bytes:
        """Return what the file of a shared inbox says, without the lock: perhaps an old state. It changes with every section."""
        # Opened anew: a descriptor that was open all the time shows what this host remembers.
        fd = self._layout.open_own("sequence", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(fd, 64, 0)
        finally:
            let_go(fd)

    def is_known(self, last: int, boot: str) -> bool:
        """Tell whether what read() gave is the last number indeed: given out in this boot, or kept by a server."""
        return boot != UNKNOWN if self._shared else boot == self.boot

    def _words(self) -> list[bytes]:
        if self._fd < 0:
            self._open()
        return os.pread(self._fd, 64, 0).partition(b"\n")[0].split()

    def advance(self, last: int) -> int:
        """Give out the number after `last`. The caller holds the lock."""
        now = time_ns()
        number = max(last + 1, now if now < HIGHEST else 0)  # a clock that is wrong by centuries does not count
        self.write(number)
        return number

    def write(self, last: int) -> None:
        """Record `last` as the last number given out, in this boot. The caller holds the lock."""
        # In place and of constant length: within one block, a kill or a full disk cannot leave half of it.
        if self._shared:
            self._write(last, b"open")
            return
        line = f"{last:019d} {self.boot}\n".encode("ascii")
        if os.pwrite(self._fd, line, 0) != len(line):
            raise OSError(errno.ENOSPC, "only a part could be written", "sequence")

    def _write(self, last: int, state: bytes) -> None:
        """Write the words of a shared inbox, if the lock is still ours. Raises OSError."""
        if os.pread(self._fd, 64, 0) != self._seen:  # not every server refuses a write to who has lost the lock
            raise OSError(errno.ESTALE, "this host was cut off, and another one has had the lock since", "sequence")
        line = b"%019d %s %012d %s\n" % (last, self.boot.encode("ascii"), self._sections, state)
        if os.pwrite(self._fd, line, 0) != len(line):
            raise OSError(errno.ENOSPC, "only a part could be written", "sequence")
        os.fsync(self._fd)  # else whether the server has taken it shows only when the lock is left
        self._seen = line

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = self._layout.open_own("sequence", flags)

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            let_go(fd)
