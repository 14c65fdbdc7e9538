"""The index of an inbox that several hosts share: what a host that was cut off may do late does no harm.

A host may be cut off at any line, lose its lock, be told late or never, and do what it was about to do when
the network is back: a rename or a write that *arrives late*. So there the header holds three words more,

    <last number> <tag> <lines> <sections> <open|done> <reserved>

and says "open" before anything is published, and "done" when all is. Both are flushed, and go through the
lock: an NFS 4 server refuses them to who has lost it, which ends that add with an error. Whoever finds "open"
knows that the one before died, or was cut off, and that its rename may still come, to a place that it had
found. So it begins an empty table under another *tag*, which is part of every line's CRC: no place of before
is used again, and each key is given a second place at its next add. A line that such a host writes late is
nobody's. A section that takes long asks again before it publishes.

`reserved` is how many of the last numbers are being published in the section that is open: a listing must not
count on them.

An NFS 3 server that was restarted while a host was cut off takes what that host writes late, headers too.
Whoever has seen a later one, or finds a line with a higher number than the last, takes such a header for
damage.

There is nothing to find out after a power cut: a server has flushed what it has acknowledged. A table is
never made from a listing, for it would show places of before.
"""

from __future__ import annotations

import errno
import fcntl
import os
from binascii import crc32
from threading import Event, Lock, Thread
from time import monotonic, time_ns

from ..folders import close_quietly
from ..index import Index, in_use
from ..lines import HEADER, HIGHEST, LINE, header_line, read_header
from ..section import Busy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LINES = 65_536
"""Lines of a table: 2 MB. When a bucket is full its oldest line is written over."""

HEX = "0123456789abcdef"

LONG = 1.0
"""Seconds after which a section asks whether the lock is still its own before it publishes anything more. No
server takes a lock away sooner; but a process, its machine or the network may stand still for any time."""


_MANY = 32
"""Places asked for in one section from which on the whole table is read at once: 2 to 16 requests, and not
one a key."""

KEPT = 0.1
"""Seconds for which a turn is kept for who is to come back for it."""


class Turn:
    """A place in the queue for the lock, held by a thread: a server hands the lock to those who wait for it,
    and who only asks now and then may never have it. (On NFS 3 not once in 138 times, beside six
    producers.)"""

    def __init__(self, fd: int, lock: Callable[[int, int], None]) -> None:
        """`fd`: of the file, for this alone; `lock(fd, how)`."""
        self.pid = os.getpid()
        self.is_over = False
        self._fd = fd
        self._lock = lock
        self._mutex = Lock()
        self._had, self._claimed = Event(), Event()
        Thread(target=self._wait, name="fsinbox-turn", daemon=True).start()

    def _wait(self) -> None:
        try:
            self._lock(self._fd, fcntl.LOCK_EX)
        except OSError:
            self.is_over = True
        self._had.set()
        if not self.is_over:
            self._claimed.wait(KEPT)
        with self._mutex:
            if not self._claimed.is_set():
                self.is_over = True
                close_quietly(self._fd)

    def claim(self, seconds: float) -> int:
        """Return the descriptor that has the lock, from then on the caller's; -1 if it does not get it in
        this time."""
        self._had.wait(max(0.0, seconds))
        with self._mutex:
            if self.is_over or not self._had.is_set():
                return -1
            self.is_over = True
            self._claimed.set()
            return self._fd

    def give_up(self) -> None:
        """Let go of it as soon as it comes."""
        self.is_over = True


class NetworkIndex(Index):
    """The index of an inbox that several hosts share."""

    def _own_tag(self) -> str:
        sharing = self._layout.sharing
        self._range_locks = sharing is not None and sharing.range_locks
        self._sections = 0
        self._reserved = self._spare = 0
        self._is_open = self._is_fresh = self._is_read = False
        self._turn: Turn | None = None
        self._told = 0.0  # when the server last took a header of ours
        self._highest = self._mark = 0  # the highest last number, and mark, that were ever seen here
        return ""

    def _flock(self, how: int) -> None:
        self._lock_file(self._fd, how)

    def _lock_file(self, fd: int, how: int) -> None:
        if self._range_locks:
            from .sharing import range_lock

            range_lock(fd, how)
        else:
            fcntl.flock(fd, how)

    def _try_until(self, until: float) -> None:
        turn = self._turn
        if turn is None or turn.is_over or turn.pid != os.getpid():
            try:
                self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                own = self._layout.open_own("index", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                turn = self._turn = Turn(own, self._lock_file)
        fd = turn.claim(until - monotonic())
        if fd < 0:
            raise Busy
        before, self._fd = self._fd, fd
        close_quietly(before)

    def close(self) -> None:
        if self._turn is not None:
            self._turn.give_up()
        super().close()

    def _begin(self, header: bytes, size: int) -> None:
        self._seen = header
        self._reserved = self._spare = 0
        self._is_open = self._is_fresh = self._is_read = False
        self._last, tag, lines, self._sections, done = read_words(header)
        self._is_ours = tag != ""
        if self._last < self._highest:  # lost, or set back by a write that came late
            self._last, self._is_ours, done = self._highest, False, False
        self.tag = tag if done else _new_tag()
        self._lines = lines if done and size >= HEADER + lines * LINE else 0

    def _finish(self) -> None:
        """End the section: all of it is done, and the lock was held until now, else this raises OSError."""
        if self._is_open:
            self._sections += 1
            self._set(self._last, b"done", 0)

    def settle(self) -> None:
        """Do nothing, in a section: so that one that was left open is followed by one that is done."""
        self.last_number()
        self.will_publish()

    def sure_last_number(self) -> int:
        return self.last_number()

    def admit(self, encoded: str, expected: int = 1) -> tuple[int, bool, list[int]]:
        if expected > _MANY and not self._is_read:
            os.pread(self._fd, self._lines * LINE, HEADER)  # into this host's memory, which a lock empties
            self._is_read = True
        place = super().admit(encoded, expected)
        if place[0] <= self._last:
            return place
        self.doubt()  # a line that is believed, above the last number: the header was set back
        return super().admit(encoded, expected)

    def doubt(self) -> None:
        self.tag, self._is_ours = _new_tag(), False
        self.make_anew()

    def will_publish(self) -> None:
        if not self._is_open or monotonic() - self._told > LONG:
            self._set(self._last, b"open", self._reserved)

    def _give_out(self, expected: int) -> int:
        if self._spare:
            self.will_publish()
        else:
            now = time_ns()
            first = max(self._last + 1, now if now < HIGHEST else 0)
            self._set(first + expected - 1, b"open", expected)
            self._spare = expected
        self._spare -= 1
        return self._last - self._spare

    def _waits(self, name: str) -> bool:
        # Once a section: what others do meanwhile, without the lock, is taking. Publishing in the place of
        # what was just taken is publishing like any other.
        if not self._is_fresh:
            self._layout.fresh("pending")
            self._is_fresh = True
        return os.access(name, os.F_OK, dir_fd=self._layout.folder("pending"), follow_symlinks=False)

    def _write_header(self, last: int, lines: int) -> None:
        self._lines = lines
        self._set(last, b"open", 0)

    def _set(self, last: int, state: bytes, reserved: int) -> None:
        """Write the header, if the lock is still ours, and flush it. Raises OSError."""
        # NFS 3 does not refuse a write to who has lost the lock.
        if os.pread(self._fd, HEADER, 0) != self._seen:
            raise OSError(
                errno.ESTALE, "this host was cut off, and another one has had the lock since", "index"
            )
        header = header_line(last, self.tag, self._lines, _more(self._sections, state, reserved))
        self._write(header, 0)
        os.fsync(self._fd)  # else whether the server has taken it shows only when the lock is left
        self._told = monotonic()
        self._seen = header
        self._last, self._reserved = last, reserved
        self._highest = max(self._highest, last)
        self._is_open = state == b"open"
        if not self._is_open:
            self._mark = max(self._mark, last)

    def _crc(self, encoded: str, tag: str) -> int:
        return crc32(encoded.encode("ascii"), crc32(tag.encode("ascii")))

    def _words(self, header: bytes) -> tuple[int, str, int]:
        last, tag, lines, _, done = read_words(header)
        return last, tag, lines if done else 0  # (an open section: its end decides whose the lines are)

    def peek_header(self) -> bytes:
        try:
            return super().peek_header()
        except FileNotFoundError:
            return b""

    def mark(self) -> int:
        header = self.peek_header()
        last, tag, *_ = read_words(header)
        if tag:
            self._highest = max(self._highest, last)
            self._mark = max(self._mark, last - int(header[58:63]))
        return self._mark  # (what was ever seen as the mark is one, also if the file was lost or set back)

    def _make_room(self) -> None:
        """A bucket is full: its oldest line is written over."""

    def make_anew(self) -> None:
        """Begin an empty table; if the header was damaged, find the last number in use."""
        last = self._last if self._is_ours else in_use(self._layout, self._last)[0]
        self._is_ours, self._spare = True, 0
        self._write_header(last, 0)
        self._lines = 0
        os.ftruncate(self._fd, HEADER)
        os.ftruncate(self._fd, HEADER + LINES * LINE)
        self._write_header(last, LINES)


def _new_tag() -> str:
    return os.urandom(4).hex()


def _more(sections: int, state: bytes, reserved: int) -> bytes:
    return b" %012d %b %05d" % (sections, state, reserved)


def read_words(header: bytes) -> tuple[int, str, int, int, bool]:
    """Return (last number, tag, lines, sections, whether the last one is done), (0, "", 0, 0, False) if
    damaged."""
    sections, state, reserved = header[40:52], header[53:57], header[58:63]
    is_state = state == b"open" or (state == b"done" and reserved == b"00000")
    if sections.isdigit() and reserved.isdigit() and is_state:
        last, tag, lines = read_header(header, _more(int(sections), state, int(reserved)))
        if tag and not tag.strip(HEX) and int(sections) < 10**12 - 1 and int(reserved) <= last:
            return last, tag, lines, int(sections), state == b"done"
    return 0, "", 0, 0, False
