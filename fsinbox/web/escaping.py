"""Text from anywhere, made safe to show: keys, reasons and payloads may hold any byte and any character."""

from __future__ import annotations

import re
from collections.abc import Callable
from unicodedata import category

from markupsafe import Markup, escape


def plain(text: str) -> str:
    r"""Return `text` with what is not printable as an escape: `\x1b`, `\u202e`; `\xff` for a byte that is not
    UTF-8."""
    return (
        text if text.isprintable() else "".join([_one(character, lambda spelt: spelt) for character in text])
    )


def marked(text: str) -> Markup:
    """Return the same as HTML, in which an escape looks different from the same characters in the text."""
    if text.isprintable():
        return escape(text)
    return Markup("").join(
        [_one(character, Markup('<span class="escaped">{}</span>').format) for character in text]
    )


def coded(text: str) -> Markup:
    """Return the same, with what is between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(marked(text))))  # noqa: S704 - it is escaped


def _one(character: str, spell: Callable[[str], str]) -> str:
    if character.isprintable() or character in "\n\t" or category(character) == "Zs":
        return character
    code = ord(character)
    return spell(
        f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
    )
