"""Text from anywhere as HTML: keys, reasons and payloads may hold any byte and any character."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from ..store.printing import escaped

ESCAPE = "\ue000"
"""Not printable, so never in a text that was escaped: stands around an escape until that is HTML."""


def marked(text: str) -> Markup:
    """Return it as HTML, in which an escape looks different from the same characters in the text."""
    if text.isprintable():
        return escape(text)
    pieces = escaped(text, lambda spelt: f"{ESCAPE}{spelt}{ESCAPE}").split(ESCAPE)
    spans = [Markup('<span class="escaped">{}</span>').format(piece) for piece in pieces[1::2]]
    return Markup("").join([piece for pair in zip(pieces[::2], [*spans, ""], strict=True) for piece in pair])


def coded(text: str) -> Markup:
    """Return the same, with what is between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(marked(text))))  # noqa: S704 - it is escaped
