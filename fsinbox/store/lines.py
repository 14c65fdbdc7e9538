"""How the file `index` is written: its header and the lines of its table. See index for what they mean."""

from __future__ import annotations

import errno
import os

HEADER = 64
LINE = 32
BUCKET = 32
"""Lines in which a key's may be."""

HIGHEST = 9 * 10**18
"""A number as high as this (the year 2255) is damage, not time: there would be no room for the next ones."""


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


def bucket_at(crc: int, lines: int) -> int:
    """Return the offset of a CRC's bucket."""
    return HEADER + crc % (lines // BUCKET) * BUCKET * LINE


def lines_with(bucket: bytes, crc: int) -> list[tuple[int, int]]:
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


def allocate(fd: int, lines: int) -> None:
    """Empty the table, and have room for so many lines, so that a full disk does not refuse one later. Raises
    OSError."""
    os.ftruncate(fd, HEADER)
    size = HEADER + lines * LINE
    try:
        os.posix_fallocate(fd, 0, size)
    except (OSError, AttributeError) as error:  # (AttributeError: macOS has no such call)
        if getattr(error, "errno", errno.ENOSYS) not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, size)
