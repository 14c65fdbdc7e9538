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
    of several lines of one CRC the highest number is looked at first, and the lowest goes first (so all are
    in one bucket)
    no line is written but for a number just given out, or by make_anew, which leaves out keys that are at
    several places

The file is not flushed: a power cut may bring back an old state. So whoever finds another tag than this
boot's, or damage, or no table (`lines` is 0), makes it anew from what lies in the folders, under the lock.
"""

from __future__ import annotations

import errno
import os
from binascii import crc32
from time import time_ns

from .boot import boot_tag
from .errors import UnusableInbox
from .folders import close_quietly
from .layout import Layout
from .lines import BUCKET, HEADER, HIGHEST, LINE, allocate, bucket_at, header_line, lines_with, read_header
from .names import digits_of, element_name, element_of, split_name
from .section import Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FEWEST_LINES = 4096
LINES_A_KEY = 8
"""Lines of a new table for each element that waits. A full bucket (then it is made anew) comes at a third of
them in use."""

_HIGHEST = str(HIGHEST)

FUTURE = 24 * 3600 * 10**9
"""How far ahead of the clock, in nanoseconds, a number found in pending/ or failed/ is believed."""


class Index(Section):
    """The index of an inbox of one host. `locked` and `try_locked` run a step inside the section; only such a
    step may call what is below *Inside the section*."""

    def __init__(self, layout: Layout) -> None:
        """Raises UnusableInbox."""
        super().__init__(layout)
        self._seen, self._seen_tag, self._seen_lines = b"", "", 0  # the header, and what it says
        self._last = 0
        self._highest = 0  # the highest last number that was ever seen here
        self._lines = 0  # 0: nothing is known, or the table is not of this boot
        self._is_ours = False
        try:
            self.tag = self._own_tag()
        except OSError as error:
            raise UnusableInbox(
                f"cannot use inbox {layout.path}: {error}: mend that, then open it again"
            ) from error

    def _own_tag(self) -> str:
        return boot_tag()

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
            bucket = os.pread(fd, BUCKET * LINE, bucket_at(crc, lines)) if is_known else b""
        finally:
            close_quietly(fd)
        return [number for number, _ in lines_with(bucket, crc)]

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
        home = bucket_at(crc, self._lines)
        bucket = os.pread(self._fd, BUCKET * LINE, home)
        mine = lines_with(bucket, crc)
        numbers = []
        for number, _ in mine:
            if self._waits(element_name(number, encoded)):
                return number, [], home
            numbers.append(number)
        blank = bucket.find(b"\0")  # (a torn line counts as blank)
        if blank >= 0 and len(mine) < 2:  # two keys in a million have one CRC: so each may have a line
            return 0, numbers, home + blank - blank % LINE
        return 0, numbers, home + mine[-1][1] if mine else -1

    def _write_line(self, crc: int, number: int, slot: int) -> None:
        self._write(b"%010d %019d \n" % (crc, number), slot)

    def _lowest(self, crc: int) -> int:
        """Return the offset of the line in a CRC's bucket that is written over when it is full: the
        oldest."""
        home = bucket_at(crc, self._lines)
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
        from .table import NOWHERE, Table  # not at the top: most producers find one

        last, waiting = in_use(self._layout, self._last)
        self._highest = max(self._highest, last)
        self._write_header(last, 0)  # says that there is no table, should this be cut short
        self._is_ours = True
        self._lines = 0
        lines = max(FEWEST_LINES, -(-LINES_A_KEY * waiting // BUCKET) * BUCKET)
        allocate(self._fd, lines)
        table, highest = Table(self._fd, lines, self._write), digits_of(last)
        for folder in ("pending", "inflight", "deferred"):
            table.note(
                (number if folder == "pending" and number <= highest else NOWHERE, encoded)
                for number, encoded in _elements(self._layout, folder)
            )
        table.finish()
        self._write_header(last, lines)
        self._lines = lines


def in_use(layout: Layout, last: int) -> tuple[int, int]:
    """Return (the highest number in use, `last` at least; how many elements wait)."""
    limit = digits_of(max(last, time_ns()) + FUTURE)
    highest = digits_of(last)
    waiting = 0
    for folder in ("pending", "failed", "inflight", "deferred"):
        for number, _ in _elements(layout, folder):
            waiting += folder == "pending"
            if number > highest and (number <= limit or folder in ("inflight", "deferred")):
                highest = number
    return int(highest), waiting


def _elements(layout: Layout, folder: str) -> Iterator[tuple[str, str]]:
    """Go through (number, encoded key) of a folder's elements, without keeping a million names. The number
    as 19 digits, which are in order as text, too."""
    for name in layout.names_one_by_one(folder):
        parts = split_name(element_of(name) if folder == "deferred" else name)
        if parts and parts[0] < _HIGHEST and parts[1].isascii():
            yield parts
