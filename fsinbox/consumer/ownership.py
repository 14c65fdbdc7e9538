"""Who is the consumer: a lock for each shard, and the word that its holder leaves.

An flock, through filelock, on a descriptor of our own (FileLock would walk the path again, and follow what it
finds there). The kernel frees it the moment its holder dies, so what a dead consumer held comes back without
waiting for a lease. In an inbox that several hosts share a lock is not enough, and the consumer holds a lease
as well: see lease.

Shards. The consumer of all keys is shard 1 of 1, and locks `consumer.lock` for itself. That of shard 2 of 4
shares that lock with the others, and locks `consumer-2of4.lock` for itself. So there is never one of all
beside one of some. Whoever is about to be shard 2 of 4 also looks whether somebody holds a lock of a division
by another number.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from time import sleep, strftime, time_ns
from zlib import crc32

from ..store.errors import InboxBusy, UnusableInbox
from ..store.folders import close_quietly
from ..store.layout import Layout
from ..store.printing import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_TRIES = 5
"""Whoever asks if there is a consumer (is_locked) holds the lock for an instant."""


@dataclass(frozen=True)
class Shard:
    """One of `count` parts into which the keys are divided; `index` counts from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def lock_file(self) -> str:
        """Name of the file that its consumer locks for itself."""
        return "consumer.lock" if self.count == 1 else f"consumer-{self.index}of{self.count}.lock"

    def has(self, encoded: str) -> bool:
        """Tell whether a key, as its file name has it, is of this shard: by its CRC-32. "", which is none, is
        the first's."""
        return (
            self.count == 1
            or crc32(encoded.encode("ascii", "surrogateescape")) % self.count == self.index - 1
        )


WHOLE = Shard(1, 1)

MOST_SHARDS = 999


def parse_shard(text: str) -> Shard:
    """Return the shard that "2/4" means. Raises ValueError."""
    index, slash, count = text.partition("/")
    if not (
        slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= MOST_SHARDS
    ):
        raise ValueError(
            f"a shard is I/N, with I from 1 to N and N at most {MOST_SHARDS}, like 1/4: not {text!r}"
        )
    return Shard(int(index), int(count))


def shard_of_lock(name: str) -> Shard | None:
    """Return whose lock a file of this name is."""
    if name == "consumer.lock":
        return WHOLE
    match = re.fullmatch(r"consumer-([1-9]\d{0,2})of([1-9]\d{0,2})\.lock", name)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    return shard if shard and shard.count > 1 and shard.index <= shard.count else None


class ConsumerLock:
    """That this process is the consumer of a shard, from when it is made until close()."""

    lost = False
    """Whether another consumer may have taken over. Only a lease can be lost."""
    offset = 0
    """How far the clock that sets the times of files here is ahead of ours, in nanoseconds."""
    tell: Callable[[], object] | None = None
    """Called in another thread when it was lost."""

    def __init__(self, layout: Layout, shard: Shard) -> None:
        """Raises InboxBusy, OSError."""
        self.layout = layout
        self.shard = shard
        self._fds: list[int] = []
        try:
            if not self.lock():
                raise self.busy()
            self.write_owner()
        except BaseException:
            self.close()
            raise

    def now(self) -> int:
        """Return the time by the clock that sets the times of files, in nanoseconds: another host's,
        perhaps."""
        return time_ns() + self.offset

    def lock(self) -> bool:
        """Take the locks; tell whether all could be had. Raises OSError."""
        if self.shard.count == 1:
            return self._lock("consumer.lock", fcntl.LOCK_EX)
        if not (
            self._lock("consumer.lock", fcntl.LOCK_SH) and self._lock(self.shard.lock_file, fcntl.LOCK_EX)
        ):
            return False
        for name in os.listdir(self.layout.root):
            other = shard_of_lock(name)
            if other and other.count not in (1, self.shard.count) and is_locked(self.layout, name):
                raise InboxBusy(
                    f"inbox {self.layout.path} is divided into {other.count} shards by a running consumer "
                    f"({read_holder(self.layout, name) or 'it did not say who it is'}): stop those first, "
                    "or be one of them"
                )
        return True

    def _lock(self, name: str, how: int) -> bool:
        fd = self.layout.open_own(name, _OPEN)
        self._fds.append(fd)
        for tries_left in reversed(range(_TRIES)):
            if try_lock(self.layout, fd, how):
                return True
            if tries_left:
                sleep(0.02)
        return False

    def busy(self, holder: str = "") -> InboxBusy:
        """Return the error that says who is the consumer."""
        # (If only the first lock was tried: it is the consumer of all keys that has it.)
        holder = holder or read_holder(
            self.layout, self.shard.lock_file if len(self._fds) > 1 else "consumer.lock"
        )
        what = (
            f"inbox {self.layout.path}"
            if self.shard.count == 1
            else f"shard {self.shard} of inbox {self.layout.path}"
        )
        return InboxBusy(
            f"{what} already has a consumer ({holder or 'it did not say who it is'}): stop that one first, "
            "or give it more to do at once with --concurrency",
            holder,
        )

    def write_owner(self) -> None:
        """Write into the lock's file who holds it."""
        try:
            os.ftruncate(self._fds[-1], 0)
            os.pwrite(self._fds[-1], owner_text().encode("utf-8", "replace"), 0)
        except OSError:
            pass  # a full disk: the lock is what counts

    def check(self) -> None:
        """Raise UnusableInbox if the lock's file was removed: whoever comes then locks another one."""
        if not os.fstat(self._fds[-1]).st_nlink:
            raise UnusableInbox(
                f"{self.layout.path}/{self.shard.lock_file} was removed: another consumer may be at work; "
                "start anew"
            )

    def verify(self) -> None:
        """Raise LeaseLost if another consumer has taken over: asked when something of ours is not where it
        was."""

    def abandon(self) -> None:
        """In a forked child: the parent goes on."""
        self.unlock()

    def unlock(self) -> None:
        """Let go of the locks."""
        fds, self._fds = self._fds, []
        for fd in fds:
            close_quietly(fd)

    def close(self) -> None:
        """Stop being the consumer. Safe to call twice."""
        self.unlock()

    def __del__(self) -> None:
        """Nobody has it: a signal handler's exception came just when it was made."""
        if hasattr(self, "_fds"):
            self.unlock()


def owner_text() -> str:
    """Return what a consumer says of itself: "pid 123 on host since 2026-01-31T12:00:00+0000", and a
    newline."""
    return f"pid {os.getpid()} on {os.uname().nodename} since {strftime('%Y-%m-%dT%H:%M:%S%z')}\n"


def try_lock(layout: Layout, fd: int, how: int, *, looking: bool = False) -> bool:
    """Lock an open file of the inbox, without waiting; False if it is locked. `looking`: to see whether it
    is. Raises OSError."""
    if how == fcntl.LOCK_EX and not looking and not (layout.sharing and layout.sharing.range_locks):
        from filelock import lock_descriptor  # here, and not at the top: who only looks does without

        return lock_descriptor(fd, blocking=False)
    try:
        if layout.sharing and layout.sharing.range_locks:
            from ..store.network.sharing import range_lock

            range_lock(fd, how | fcntl.LOCK_NB)
        else:
            # filelock knows no shared lock on a descriptor; and imported, it costs `status` 20 ms.
            fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_holder(layout: Layout, name: str = "consumer.lock") -> str:
    """Return what the last consumer left as word of itself: "pid 123 on host since 2026-01-31T12:00:00+0000",
    or ""."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except OSError:
        return ""
    try:
        return clean(os.read(fd, 300))
    except OSError:
        return ""  # no regular file
    finally:
        os.close(fd)


def is_locked(layout: Layout, name: str) -> bool:
    """Tell whether some process has locked a file of the inbox now, or has a share of its lock. Raises
    OSError."""
    # For reading only: whoever may only look must be told, too. (A network file system refuses such a lock:
    # EBADF.)
    flags = os.O_RDWR if layout.sharing else os.O_RDONLY
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(layout, fd, fcntl.LOCK_EX, looking=True)
    finally:
        os.close(fd)
