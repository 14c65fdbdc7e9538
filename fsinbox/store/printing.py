"""Text from anywhere, made safe for a terminal, and short; and what becomes of it when nobody reads it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def discard(fd: int) -> None:
    """Discard what is written to a descriptor from now on: nobody reads it, or it cannot be written."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)
    except OSError:
        pass  # no descriptor is left


def clean(raw: bytes) -> str:
    """Return the text of a file so that it cannot play tricks on a terminal."""
    text = raw.decode("utf-8", "replace").strip()
    return "".join(character if character.isprintable() else "?" for character in text)


def escaped(text: str, spell: Callable[[str], str] = str) -> str:
    r"""Return `text` with an escape in place of each character that a terminal obeys, or that is not seen:
    `\x1b`, `\u202e`; `\xff` for a byte that is not UTF-8. Lines, tabs and spaces stay. `spell` marks an
    escape."""
    return text if text.isprintable() else "".join([_escaped(character, spell) for character in text])


def _escaped(character: str, spell: Callable[[str], str]) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    from unicodedata import category

    if category(character) == "Zs":
        return character
    code = ord(character)
    return spell(
        f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
    )


def cut(text: str, most: int) -> str:
    """Return `text`; of a longer one than `most` characters its beginning and its end, and how much is
    missing."""
    if len(text) <= most:
        return text
    kept = most // 2
    return f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters left out) ... {text[-kept:]}"
