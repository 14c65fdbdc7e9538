"""Messages between the consumer and its worker processes: through a pipe, a length and then plain values.

They take turns, so that a read gets no more than one message; nearly each is got with a single one. What is
read runs nothing: it is not pickled.
"""

from __future__ import annotations

import marshal
import os
import struct
from typing import Any

AT_ONCE = 4096
"""Bytes that an empty pipe takes without a wait, however little room the system leaves a user's pipes."""

_LENGTH = struct.Struct("=Q")

_LARGE = 1 << 20
"""Bytes that are read at once of what is larger than AT_ONCE."""


def packed(values: Any) -> bytes:
    """Return a message: of tuples, lists, text, numbers and None."""
    content = marshal.dumps(values)
    return _LENGTH.pack(len(content)) + content


def send(writer: int, message: bytes) -> None:
    """Write a whole message. Raises OSError if nobody reads it any more."""
    while message:
        message = message[os.write(writer, message) :]


class Incoming:
    """The messages that come out of a pipe."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._kept = bytearray()

    def read(self) -> bytes | None:
        """Read once; return the content of a message if it is whole by now. Waits only if there is nothing to
        read. Raises EOFError at the end of the pipe, OSError."""
        piece = os.read(self._reader, _LARGE if self._kept else AT_ONCE)
        if not piece:
            raise EOFError("the other end of the pipe was closed")
        self._kept += piece
        kept, begin = self._kept, _LENGTH.size
        if len(kept) < begin or len(kept) < begin + _LENGTH.unpack_from(kept)[0]:
            return None
        self._kept = bytearray()
        return bytes(memoryview(kept)[begin:])

    def receive(self) -> Any:
        """Wait for a message, and return its values. Raises as `read` does."""
        while (content := self.read()) is None:
            pass
        return values_of(content)


def values_of(content: bytes) -> Any:
    """Return the values of a message."""
    return marshal.loads(content)  # noqa: S302 - it is another process of this program that wrote it
