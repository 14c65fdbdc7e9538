"""The table of `index`, made whole: of a million places each line is written twice, in large pieces.

A line's bucket depends on its key, so places come in no order of the table. They are sorted by *piece*: those
of a piece are put down in the file, in the room that the piece itself will have, and once all are known each
piece is read, put in order in memory, and written. So the memory is the same whatever waits. Nobody reads the
table meanwhile: the header says that there is none.
"""

from __future__ import annotations

import os
from binascii import crc32

from .lines import BUCKET, HEADER, LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PIECE = 256
"""Buckets of a piece: 256 KiB."""

_MEMORY = 1 << 19
"""Bytes that are kept of all pieces before they are put down."""

_NUMBER = slice(11, 30)
NOWHERE = "0" * 19
"""In place of a number: the key is not to be known, whatever else is said of it."""


class Table:
    """The lines of a new table. What it says of a CRC that is noted twice is nothing."""

    def __init__(self, fd: int, lines: int, write: Callable[[bytes, int], object]) -> None:
        """`write(data, offset)` writes all of it to the file of `fd`, whose table is blank, or raises."""
        self._fd = fd
        self._buckets = lines // BUCKET
        self._write = write
        pieces = -(-self._buckets // PIECE)
        self._noted = [bytearray() for _ in range(pieces)]
        self._put_down = [0] * pieces  # bytes of each in the file
        self._most = max(LINE, _MEMORY // pieces)

    def note(self, places: Iterable[tuple[str, str]]) -> None:
        """Have these (number, encoded key) be known: 19 digits, and ASCII. Raises OSError."""
        buckets, noted, most = self._buckets, self._noted, self._most
        for number, encoded in places:
            crc = crc32(encoded.encode())
            piece = crc % buckets // PIECE
            lines = noted[piece]
            lines += b"%010d %b \n" % (crc, number.encode())
            if len(lines) >= most:
                self._put(piece)

    def finish(self) -> None:
        """Write it. Raises OSError."""
        for piece, noted in enumerate(self._noted):
            if noted or self._put_down[piece]:
                self._write(self._in_order(piece), self._at(piece))

    def _at(self, piece: int) -> int:
        return HEADER + piece * PIECE * BUCKET * LINE

    def _size(self, piece: int) -> int:
        return min(PIECE, self._buckets - piece * PIECE) * BUCKET * LINE

    def _put(self, piece: int) -> None:
        """Put down what was noted of a piece. If that is more than there is room for, nothing of it will be
        known: a part might name the lower of two places."""
        lines, done = self._noted[piece], self._put_down[piece]
        if done + len(lines) <= self._size(piece):
            self._write(bytes(lines), self._at(piece) + done)
        self._put_down[piece] += len(lines)
        lines.clear()

    def _in_order(self, piece: int) -> bytes:
        """Return the lines of a piece, each in its bucket."""
        done = self._put_down[piece]
        if done > self._size(piece):
            return bytes(self._size(piece))
        noted = os.pread(self._fd, done, self._at(piece)) + self._noted[piece]
        lines = [noted[at : at + LINE] for at in range(0, len(noted), LINE)]
        known = {line[:10]: line for line in lines}
        if len(known) < len(lines):
            known = _without_double(lines)
        buckets: list[list[bytes]] = [[] for _ in range(self._size(piece) // (BUCKET * LINE))]
        first, none = piece * PIECE, NOWHERE.encode()
        for crc, line in known.items():
            if line[_NUMBER] != none:
                buckets[int(crc) % self._buckets - first].append(line)
        return b"".join([b"".join(bucket[:BUCKET]).ljust(BUCKET * LINE, b"\0") for bucket in buckets])


def _without_double(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return the lines by their CRC, but for those of which there are two."""
    known: dict[bytes, bytes] = {}
    double = set()
    for line in lines:
        crc = line[:10]
        if crc in known:
            double.add(crc)
        known[crc] = line
    return {crc: line for crc, line in known.items() if crc not in double}
