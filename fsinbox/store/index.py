"""The file `index`: the admission lock, the last number given out, and where each waiting key waits.

Every add finds its place and publishes in one *section*: while it holds an exclusive flock(2) on this very
file. So does everything that goes back to pending/. Whoever holds the lock may give out the next number:

    next = max(last + 1, nanoseconds since the epoch)

so numbers strictly increase even when the clock steps back, and each is the time of arrival.

    header   64 bytes: `<last number> <tag> <lines>`, padded with spaces. The tag names the boot of the kernel
    table    lines of 32 bytes: `<CRC-32 of the encoded key> <number>`, or blank (NUL), in buckets of 32. A
             key's line is one of those of bucket `crc mod (lines / 32)`: one read finds it, one write sets it

The table is a cache. A line is believed only if `pending/<number>-<key>` is there, so a line that is lost,
old, torn or another key's means "not known". A key that waits and is not known is given a second, higher
place, and the consumer coalesces the two. What must not happen is a line that names a *lower* place of a key
than its newest. Therefore:

    a number is used only once its line is written (else the add fails before anything can be seen of it)
    of several lines of one CRC the highest number is looked at first, and the lowest goes first. (So all are
    in one bucket.) no line is written but for a number just given out, or by make_anew, which leaves out keys
    that are at several places

The file is not flushed: a power cut may bring back an old state. So whoever finds another tag than this
boot's, or damage, or no table (`lines` is 0), makes it anew from what lies in the folders, under the lock.
The lock is flock(2), blocking: the kernel queues those who wait, and frees it when a process dies. Not
filelock: importing that costs a cold producer more than the whole add, and it polls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from _thread import RLock, get_ident
from binascii import crc32
from time import monotonic, sleep, time_ns

from .errors import UnusableInbox, WrongState
from .layout import Layout, close_quietly
from .names import element_name, element_of, parse_element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    Found = TypeVar("Found")

HEADER = 64
LINE = 32
BUCKET = 32
"""Lines in which a key's may be."""

FEWEST_LINES = 4096
LINES_A_KEY = 8
"""Lines of a new table for each element that waits. A full bucket (then it is made anew) comes at a third of
them in use."""

HIGHEST = 9 * 10**18
"""A number as high as this (the year 2255) is damage, not time: there would be no room for the next ones."""

FUTURE = 24 * 3600 * 10**9
"""How far ahead of the clock, in nanoseconds, a number found in pending/ or failed/ is believed."""

PATIENCE = 0.05
"""Seconds for which the consumer tries to get the lock."""

_inside: set[tuple[tuple[int, int], int]] = set()
"""(inbox, thread) of who is in a section, or on the way there: a signal handler that interrupts it must not
wait for it."""


def forget_sections() -> None:
    """In a forked child: its parent's threads are not there."""
    _inside.clear()


class Busy(Exception):
    """The lock could not be had in time."""


def boot_tag() -> str:
    """Return a tag of 8 characters that changes with every boot. Raises OSError.

    Source: /proc/sys/kernel/random/boot_id, in random(4).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
            return file.read(8).decode("ascii")
    except FileNotFoundError:
        if sys.platform == "darwin":  # pragma: no cover - macOS only
            return _boot_session()
        raise OSError(
            "no /proc/sys/kernel/random/boot_id here: mount /proc, or this system is not supported"
        ) from None


def _boot_session() -> str:  # pragma: no cover - macOS only
    """The same for macOS, from sysctl kern.bootsessionuuid."""
    import ctypes

    size = ctypes.c_size_t(64)
    text = ctypes.create_string_buffer(64)
    if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, 0):
        raise OSError("sysctl kern.bootsessionuuid failed")
    return text.value[:8].decode("ascii").lower()


class Index:
    """The index of an inbox of one host. `locked` and `try_locked` run a step inside the section; only such a
    step may call what is below *Inside the section*."""

    def __init__(self, layout: Layout) -> None:
        """Raises UnusableInbox."""
        self._layout = layout
        self._threads = RLock()  # an flock belongs to the open file: it does not exclude our own threads
        self._fd = -1
        self._seen, self._seen_tag, self._seen_lines = b"", "", 0  # the header, and what it says
        self._last = 0
        self._highest = 0  # the highest last number that was ever seen here
        self._lines = 0  # 0: nothing is known, or the table is not of this boot
        self._is_ours = False
        self._was_busy = False
        try:
            self.tag = self._own_tag()
        except OSError as error:
            raise UnusableInbox(
                f"cannot use inbox {layout.path}: {error}: mend that, then open it again"
            ) from error

    def _own_tag(self) -> str:
        return boot_tag()

    # --- the lock -------------------------------------------------------------------------------------

    def locked(self, step: Callable[..., Found], *arguments: Any) -> Found:
        """Run a step inside the section, and return what it returns. Waits for the lock.

        An exception out of a signal handler, at any line, leaves no lock behind. Raises WrongState in a
        handler that interrupted a section of this inbox; what the step raises; OSError.
        """
        return self._run(None, step, arguments)

    def try_locked(self, step: Callable[..., Found], *arguments: Any, patience: float = PATIENCE) -> Found:
        """The same, but raises Busy if the lock is not to be had within `patience` seconds: at once if it was
        not before."""
        return self._run(0 if self._was_busy else patience, step, arguments)

    def _run(self, patience: float | None, step: Callable[..., Found], arguments: tuple[Any, ...]) -> Found:
        here = (self._layout.identity, get_ident())
        if here in _inside:
            raise WrongState(
                f"inbox {self._layout.path} is being changed by the very call that this signal handler "
                "interrupted: "
                "have the handler set a flag, and add later"
            )
        # Twice: the first may be interrupted before it does anything. (What is done twice by _leave does no
        # harm.)
        try:
            try:
                _inside.add(here)
                self._enter(patience)
                result = step(*arguments)
                self._finish()
                return result
            finally:
                self._leave(here)
        except BaseException:
            for _ in range(100):
                try:
                    self._leave(here)
                    break
                except BaseException:  # noqa: BLE001, S112 - the first signal is on its way to the caller
                    continue
            raise

    def _enter(self, patience: float | None) -> None:
        self._was_busy = patience is not None
        if patience is None:
            self._threads.acquire()
        elif not self._threads.acquire(timeout=patience):
            raise Busy
        until = None if patience is None else monotonic() + patience
        while True:
            if self._fd < 0:
                self._fd = self._layout.open_own(
                    "index", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            if until is None:
                self._flock(fcntl.LOCK_EX)
            else:
                self._try_until(until)
            status = os.fstat(self._fd)
            if status.st_nlink:
                break
            self.close()  # somebody removed the file: a lock on it excludes nobody who comes now
        self._was_busy = False
        self._begin(os.pread(self._fd, HEADER, 0), status.st_size)

    def _try_until(self, until: float) -> None:
        pause = 0.0005
        while True:
            try:
                self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if monotonic() + pause > until:
                    raise Busy from None
            sleep(pause)
            pause = min(2 * pause, 0.01)

    def _leave(self, here: tuple[tuple[int, int], int]) -> None:
        """Leave the lock, if it is held. If the system will not have it, by closing the file: others must not
        wait for us."""
        if self._threads._is_owned():  # type: ignore[attr-defined]
            if self._fd >= 0:
                try:
                    self._flock(fcntl.LOCK_UN)
                except OSError:
                    self.close()
            self._threads.release()
        _inside.discard(here)

    def _flock(self, how: int) -> None:
        fcntl.flock(self._fd, how)

    def close(self) -> None:
        """Close the descriptor, and with it leave the lock. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)

    # --- without the lock -----------------------------------------------------------------------------

    def peek(self) -> int:
        """Return the last number given out: perhaps an old one, never too high; 0 if the file is new, gone or
        damaged."""
        try:
            last, tag, _ = self._words(self.peek_header())
        except FileNotFoundError:
            return 0
        if tag == self.tag:
            self._highest = max(self._highest, last)
        return (
            last if tag or self._layout.sharing else self._highest
        )  # (a full disk may keep us from writing what we know)

    def mark(self) -> int:
        """Return the number up to which a listing of pending/ that begins now shows all that was ever
        there."""
        return self.peek()

    def _words(self, header: bytes) -> tuple[int, str, int]:
        """Return (last number, tag, lines of the table) of a header, (0, "", 0) if it is damaged."""
        return read_header(header)

    def peek_header(self) -> bytes:
        """Return the header as it is now: perhaps an old one."""
        # Opened anew: the lock's descriptor belongs to whoever is in a section; and on a network file system
        # a descriptor that was open all the time shows what this host remembers.
        fd = self._open_to_read()
        try:
            return os.pread(fd, HEADER, 0)
        finally:
            close_quietly(fd)

    def peek_place(self, encoded: str) -> int:
        """Return the number at which a key is known to wait, else 0."""
        for number in self.peek_numbers(encoded):
            if self._layout.exists("pending", element_name(number, encoded)):
                return number
        return 0

    def peek_numbers(self, encoded: str) -> list[int]:
        """Return numbers that were given out for a key, the highest first: those that the table still has. It
        forgets keys that do not wait when it is made anew. (Another key may have the same CRC.)"""
        try:
            fd = self._open_to_read()
        except FileNotFoundError:
            return []
        try:
            header = os.pread(fd, HEADER, 0)
            _, tag, lines = self._words(header)
            crc = self._crc(encoded, tag)
            is_known = lines and (tag == self.tag or self._layout.sharing)
            bucket = os.pread(fd, BUCKET * LINE, _home(crc, lines)) if is_known else b""
        finally:
            close_quietly(fd)
        return [number for number, _ in _lines_of(bucket, crc)]

    def _open_to_read(self) -> int:
        return self._layout.open_own("index", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    # --- Inside the section: the last number, and the next ones ---------------------------------------

    def _begin(self, header: bytes, size: int) -> None:
        """The lock was taken: learn what the header says."""
        if header != self._seen:  # (else it is as we have read or left it)
            self._last, self._seen_tag, self._seen_lines = self._words(header)
            self._seen = header
        self._is_ours = self._seen_tag == self.tag
        # lost, or an old copy was put in its place: its lines may name places of before
        if self._last < self._highest:
            self._last, self._is_ours, self._seen = self._highest, False, b""
        elif self._is_ours:
            self._highest = self._last
        self._lines = self._seen_lines if self._is_ours and size >= HEADER + self._seen_lines * LINE else 0

    def settle(self) -> None:
        """Do nothing. (Where several hosts share the inbox: follow a section that was left open by one that
        is done.)"""

    def doubt(self) -> None:
        """Do nothing. (Where several hosts share the inbox: a number above the last one was found. If it may
        be one that was given out, so that `last` was set back, make the index anew.)"""

    def _finish(self) -> None:
        """The step is done, and the lock still held."""

    def last_number(self) -> int:
        """Return the last number given out; after a boot, or damage, make the index anew first."""
        if not self._is_ours:
            self.make_anew()
        return self._last

    def sure_last_number(self) -> int:
        """The same, where a number above it was found: without a table the header alone may be an old one."""
        if not self._lines:
            self.make_anew()
        return self._last

    def admit(self, encoded: str, expected: int = 1) -> tuple[int, bool, list[int]]:
        """Return (a key's place, whether a value waits there, numbers that may be this key's and do not
        wait).

        The place is where the key waits, or the next number. `expected` places will be asked for in this
        section, this one included. Raises OSError; then the place must not be used.
        """
        if not self._lines:
            self.make_anew()
        crc = self._crc(encoded, self.tag)
        place, numbers, slot = self._look(encoded, crc)
        if not place and slot < 0:
            self._make_room()
            place, numbers, slot = self._look(encoded, crc)
        if place:
            self.will_publish()
            return place, True, []
        number = self._give_out(expected)
        self._write_line(crc, number, slot if slot >= 0 else self._lowest(crc))
        return number, False, numbers

    def find(self, encoded: str) -> int:
        """Return the number at which a key is known to wait, else 0."""
        return self._look(encoded, self._crc(encoded, self.tag))[0] if self._lines else 0

    def will_publish(self) -> None:
        """Something will be moved to a place that was found. (Where several hosts share the inbox others must
        know.)"""

    def _give_out(self, expected: int) -> int:
        now = time_ns()
        if now >= HIGHEST:
            now = 0  # a clock that is wrong by centuries does not count
        number = max(self._last + 1, now)
        self._write_header(number, self._lines)
        return number

    def _write_header(self, last: int, lines: int) -> None:
        # In place and of constant length: within one block, a kill or a full disk cannot leave half of it.
        self._seen = b""  # until all of it is done: an exception out of a signal handler may come at any line
        header = header_line(last, self.tag, lines)
        self._write(header, 0)
        self._last = self._highest = last
        self._seen_tag, self._seen_lines, self._seen = self.tag, lines, header

    def _write(self, data: bytes, offset: int) -> None:
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(errno.ENOSPC, "only a part could be written", "index")

    # --- the table ------------------------------------------------------------------------------------

    def _crc(self, encoded: str, tag: str) -> int:
        return crc32(encoded.encode("ascii"))

    def _waits(self, name: str) -> bool:
        return self._layout.exists("pending", name)

    def _look(self, encoded: str, crc: int) -> tuple[int, list[int], int]:
        """Return (the number at which the key is known to wait, else 0; all numbers in lines of its CRC; the
        offset of the line to write for it, -1 if the bucket is full)."""
        home = _home(crc, self._lines)
        bucket = os.pread(self._fd, BUCKET * LINE, home)
        mine = _lines_of(bucket, crc)
        for number, _ in mine:
            if self._waits(element_name(number, encoded)):
                return number, [], home
        numbers = [number for number, _ in mine]
        blank = bucket.find(b"\0")  # (a torn line counts as blank)
        if blank >= 0 and len(mine) < 2:  # two keys in a million have one CRC: so each may have a line
            return 0, numbers, home + blank - blank % LINE
        return 0, numbers, home + mine[-1][1] if mine else -1

    def _write_line(self, crc: int, number: int, slot: int) -> None:
        self._write(b"%010d %019d \n" % (crc, number), slot)

    def _lowest(self, crc: int) -> int:
        """Return the offset of the line in a CRC's bucket that is written over when it is full: the
        oldest."""
        home = _home(crc, self._lines)
        bucket = os.pread(self._fd, BUCKET * LINE, home)
        return home + min(range(0, len(bucket), LINE), key=lambda at: bucket[at + 11 : at + 30])

    def _make_room(self) -> None:
        """A bucket is full."""
        self.make_anew()

    # --- made anew ------------------------------------------------------------------------------------

    def make_anew(self) -> None:
        """Make header and table from what lies in the folders: after a boot, damage, or when a bucket was
        full.

        `last` becomes the highest number in use. Of pending/ and failed/, where anybody may put a file,
        absurd numbers are skipped; what is in flight or deferred is believed beyond the clock, which may have
        been set back. A key that is at more than one place, or in flight or deferred as well, is made
        unknown: a line must not name the lower of two. (The consumer takes meanwhile. What it takes was seen
        to wait, or is seen in flight after that.)
        """
        last, waiting = self._highest_in_use()
        self._highest = max(self._highest, last)
        self._write_header(last, 0)  # says that there is no table, should this be cut short
        self._is_ours = True
        lines = max(FEWEST_LINES, -(-LINES_A_KEY * waiting // BUCKET) * BUCKET)
        self._allocate(lines)
        self._lines = lines
        for folder in ("pending", "inflight", "deferred"):
            for number, encoded in _elements(self._layout, folder):
                self._note(encoded, number if folder == "pending" and number <= last else 0)
        self._write_header(last, lines)

    def _highest_in_use(self) -> tuple[int, int]:
        """Return (the highest number in use, how many elements wait)."""
        limit = max(self._last, time_ns()) + FUTURE
        last, waiting = self._last, 0
        for folder in ("pending", "failed", "inflight", "deferred"):
            for number, _ in _elements(self._layout, folder):
                if number <= limit or folder in ("inflight", "deferred"):
                    last = max(last, number)
                    waiting += folder == "pending"
        return last, waiting

    def _note(self, encoded: str, number: int) -> None:
        """Have a line of a new table name a place; with a second place of its CRC, or 0, it names none from
        then on."""
        crc = self._crc(encoded, self.tag)
        home = _home(crc, self._lines)
        bucket = os.pread(self._fd, BUCKET * LINE, home)
        mine, blank = _lines_of(bucket, crc), bucket.find(b"\0")
        if mine:
            self._write_line(crc, 0, home + mine[0][1])
        elif number and blank >= 0:
            self._write_line(crc, number, home + blank)

    def _allocate(self, lines: int) -> None:
        """Empty the table, and have room for so many lines, so that a full disk does not refuse one later."""
        self._lines = 0
        os.ftruncate(self._fd, HEADER)
        size = HEADER + lines * LINE
        try:
            os.posix_fallocate(self._fd, 0, size)
        except (OSError, AttributeError) as error:  # (AttributeError: macOS has no such call)
            if getattr(error, "errno", errno.ENOSYS) not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(self._fd, size)


def header_line(last: int, tag: str, lines: int, more: bytes = b"") -> bytes:
    """Return the 64 bytes of a header. `more`: what follows in an inbox that several hosts share."""
    return (b"%019d %b %010d%b" % (last, tag.encode("ascii"), lines, more)).ljust(HEADER - 1) + b"\n"


_LAST, _TAG, _LINES = slice(19), slice(20, 28), slice(29, 39)
"""Where the parts of a header stand."""


def read_header(header: bytes, more: bytes = b"") -> tuple[int, str, int]:
    """Return (last number, tag, lines of the table); (0, "", 0) for a header that is damaged in any way."""
    last, tag, lines = header[_LAST], header[_TAG], header[_LINES]
    if (
        len(header) == HEADER
        and last.isdigit()
        and lines.isdigit()
        and tag.isascii()
        and int(last) < HIGHEST
        and not int(lines) % BUCKET
    ):
        found = int(last), tag.decode("ascii"), int(lines)
        if header_line(*found, more) == header:
            return found
    return 0, "", 0


def _home(crc: int, lines: int) -> int:
    """Return the offset of a CRC's bucket."""
    return HEADER + crc % (lines // BUCKET) * BUCKET * LINE


def _lines_of(bucket: bytes, crc: int) -> list[tuple[int, int]]:
    """Return (number, offset) of the lines in a bucket that bear this CRC, the highest number first."""
    stamp = b"%010d " % crc
    found = []
    at = bucket.find(stamp)
    while at >= 0:
        digits = bucket[at + 11 : at + 30]
        if at % LINE == 0 and digits.isdigit() and bucket[at + 30 : at + LINE] == b" \n":
            found.append((int(digits), at))
        at = bucket.find(stamp, at + 1)
    if len(found) > 1:
        found.sort(reverse=True)
    return found


def _elements(layout: Layout, folder: str) -> Iterator[tuple[int, str]]:
    """Go through (number, encoded key) of a folder's elements, without keeping a million names."""
    for name in layout.names_one_by_one(folder):
        parsed = parse_element(element_of(name) if folder == "deferred" else name)
        if parsed and parsed[0] < HIGHEST and parsed[1].isascii():
            yield parsed
