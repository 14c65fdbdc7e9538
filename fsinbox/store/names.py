"""Key <-> file name, and number <-> prefix: total, reversible, readable.

An element's file is called `<number>-<key>`: 19 decimal digits, a dash, the encoded key. In the encoded key
the bytes of PLAIN stand for themselves and every other byte of the key's UTF-8 is `%XX` (upper-case
hexadecimal), as is a leading dot. So a plain key stays plain, `/` and NUL cannot occur, no name is hidden,
and `~` is free to mark what is not an element (`~reason.txt` in failed/). A name is only accepted if it is
exactly what its key encodes to.

Keys that came from file names which are not UTF-8 carry those bytes as surrogates, as `os.fsdecode` makes
them.
"""

from __future__ import annotations

import os
from _operator import itemgetter

from .errors import InvalidKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+@=,"
DIGITS = 19
MAX_ENCODED = 200
"""Longest encoded key, in bytes. `<due>-<number>-<key>` and `<number>-<key>~reason.txt` then fit the usual
255."""

REASON = "~reason.txt"

_IS_PLAIN = dict.fromkeys(PLAIN)
"""For str.translate: removes what needs no escape."""

_ESCAPED = [chr(byte) if byte in PLAIN else f"%{byte:02X}" for byte in range(256)]


def encode_key(key: str) -> str:
    """Return the file-name form of `key` (1 to 200 ASCII characters). Raises InvalidKey."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key must be text (str), not {type(key).__name__}: pass str(key)")
    if not key:
        raise InvalidKey(
            "a key must not be empty (an unset shell variable, perhaps?): name what the value is for"
        )
    try:
        raw = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidKey(f"key {key!r} holds a lone surrogate, which is not text: replace it first") from None
    if raw.translate(None, PLAIN) or raw[0] == 46:
        name = "".join([_ESCAPED[byte] for byte in raw])
        if raw[0] == 46:
            name = "%2E" + name[1:]
    else:
        name = raw.decode("ascii")
    if len(name) > MAX_ENCODED:
        raise InvalidKey(
            f"key {key[:40]!r}... needs {len(name)} bytes as a file name, {MAX_ENCODED} at most: "
            "shorten it, or use a digest of it as the key"
        )
    return name


def decode_key(name: str) -> str | None:
    """Return the key that `name` encodes, or None if `name` is not the encoding of any key."""
    if not name.translate(_IS_PLAIN) and name and name[0] != "." and len(name) <= MAX_ENCODED:
        return name
    if "%" in name:
        head, *escapes = name.split("%")
        raw = bytearray(head, "ascii", "replace")
        for part in escapes:
            try:
                raw.append(int(part[:2], 16))
            except ValueError:
                return None
            raw += part[2:].encode("ascii", "replace")
        key = raw.decode("utf-8", "surrogateescape")
    else:
        key = name
    try:
        return key if encode_key(key) == name else None
    except InvalidKey:
        return None


def element_name(number: int, encoded: str) -> str:
    """Return the file name of the element with this number and encoded key."""
    return f"{number:019d}-{encoded}"


def digits_of(number: int) -> str:
    """Return a number as it stands in a name."""
    return f"{number:019d}"


def parse_element(name: str) -> tuple[int, str] | None:
    """Return (number, encoded key) of an element's file name, or None for a foreign name. The key is not
    decoded."""
    digits = name[:DIGITS]
    if len(name) > DIGITS + 1 and name[DIGITS] == "-" and digits.isdecimal() and digits.isascii():
        return int(digits), name[DIGITS + 1 :]
    return None


def split_name(name: str) -> tuple[str, str] | None:
    """Return the same without making a number of the digits: in half the time, for a million names."""
    digits, encoded = name[:DIGITS], name[DIGITS + 1 :]
    if encoded and name[DIGITS] == "-" and digits.isdecimal() and digits.isascii():
        return digits, encoded
    return None


# The parts of a name that is known to be an element's, or at least to be cut like one. (Cutting is what a
# million names can bear; parse_element is for a name that nobody has looked at.)


def number_of(name: str) -> int:
    """Return the number of an element's name."""
    return int(name[:DIGITS])


encoded_of: Callable[[str], str] = itemgetter(slice(DIGITS + 1, None))
"""Return the encoded key of an element's name."""

element_of: Callable[[str], str] = encoded_of
"""Return the element's name of a name in deferred/."""


def deferred_name(due: int, name: str) -> str:
    """Return the name in deferred/ of element `name`, due at `due` (nanoseconds since the epoch)."""
    return f"{due:0{DIGITS}d}-{name}"


def parse_deferred(name: str) -> tuple[int, str] | None:
    """Return (due, element name) of a file name in deferred/, or None for a foreign name."""
    outer = parse_element(name)
    return outer if outer and is_element(outer[1]) else None


def is_element(name: str) -> bool:
    """Tell whether `name` is an element's file name, its key included."""
    parsed = parse_element(name)
    return parsed is not None and decode_key(parsed[1]) is not None


def label_for(name: str) -> str:
    """Return an encoded key that resembles a foreign file name: what fits of it, for a human to recognise."""
    label = ""
    for character in name.lstrip("."):
        piece = "".join([_ESCAPED[byte] for byte in os.fsencode(character)])
        if len(label) + len(piece) > MAX_ENCODED:
            break
        label += piece
    return label or "unnamed"


def about(event: str, name: str) -> dict[str, object]:
    """Return what a structured log says of the element of this name, for `extra`."""
    number, encoded = parse_element(name) or (None, "")
    key = decode_key(encoded)
    return {"event": event} if key is None else {"event": event, "key": key, "seq": number}
