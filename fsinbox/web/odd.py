"""Text from anywhere, made safe to look at: keys, reasons and payloads may hold any byte, and any character
of Unicode."""

from __future__ import annotations

import re
from collections.abc import Callable
from unicodedata import category

from markupsafe import Markup, escape


def plain(text: str) -> str:
    r"""Return `text` with what is not printable spelt out: `\x1b`, `\u202e`; `\xff` for a byte that was no
    UTF-8."""
    return (
        text if text.isprintable() else "".join([_one(character, lambda spelt: spelt) for character in text])
    )


def marked(text: str) -> Markup:
    """The same as HTML, where what is spelt out cannot be taken for what was there."""
    if text.isprintable():
        return escape(text)
    return Markup("").join(
        [_one(character, Markup('<span class="odd">{}</span>').format) for character in text]
    )


def coded(text: str) -> Markup:
    """The same, where what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(marked(text))))  # noqa: S704 - it is escaped


def _one(character: str, spell: Callable[[str], str]) -> str:
    if character.isprintable() or character in "\n\t" or category(character) == "Zs":
        return character
    code = ord(character)
    return spell(
        f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
    )
