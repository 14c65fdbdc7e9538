"""The beginning of a payload, as an element's page shows it."""

from __future__ import annotations

import json
import os
from codecs import getincrementaldecoder
from dataclasses import dataclass

from ..operate.rows import Row
from ..store.files import open_for_reading
from ..store.layout import Layout

SHOWN = 64 * 1024
"""Bytes of a text that are shown."""

_DUMPED = 1024
"""Bytes of anything else."""

_WIDEST = 4 * SHOWN
"""Characters to which indentation may blow up a payload of JSON: deep nesting makes megabytes of a few
bytes."""


@dataclass(frozen=True, slots=True)
class Payload:
    """`kind`: "JSON", "text" or "binary". `shown`: how many of its `size` bytes are in `text`."""

    kind: str
    text: str
    size: int
    shown: int
    indented: bool = False


def read(layout: Layout, row: Row, *, as_stored: bool = False) -> Payload:
    """Read the beginning of an element's payload; `as_stored`: do not indent JSON. Raises OSError."""
    with open(open_for_reading(layout, row.folder, row.file), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(SHOWN)
    whole = len(data) >= size
    try:
        text = getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return Payload("binary", _dump(data[:_DUMPED]), size, min(len(data), _DUMPED))
    indented = _indented(text) if whole else None
    text = text.replace("\r\n", "\n")
    if indented is None:
        return Payload("text", text, size, len(data))
    return (
        Payload("JSON", text, size, len(data))
        if as_stored
        else Payload("JSON", indented, size, len(data), indented=True)
    )


def _indented(text: str) -> str | None:
    """Return JSON, indented; None if it is not JSON, or would become too large."""
    try:
        pieces = []
        room = _WIDEST
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                return None
        return "".join(pieces)
    except (ValueError, RecursionError):
        return None


def _dump(data: bytes) -> str:
    """Return bytes as `hexdump -C` prints them."""
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        seen = "".join([chr(byte) if 32 <= byte < 127 else "." for byte in row])
        lines.append(f"{start:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{seen}|")
    return "\n".join(lines)
