"""Why an element failed, in one line: by the text that is kept beside it, or by its exception."""

from __future__ import annotations

import re

NONE = "no reason is kept"

_HEADER = re.compile(r"key: .*?\nattempts: \d+\nadded: \S+\n\n", re.DOTALL)
"""What Element.fail writes above a reason."""

_FRAME = re.compile(r'^(?:  [|] )*  File ".*", line \d+.*$', re.MULTILINE)
_TRACEBACK = re.compile(r"^(?:  [+] Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE)


_FIELD = re.compile(r"(?:(?P<field>\S.*)\n)?  (?P<why>\S.*?)(?: [\[(]type=.*)?$", re.MULTILINE)
"""What pydantic writes below "2 validation errors for Invoice": the first field (none: the whole) and its
message."""


def summary(reason: str | None) -> str:
    """Return a reason in one line ("" if there is none in it): of a traceback the exception's type and the
    first line of its message, of anything else its first line."""
    if reason is None:
        return NONE
    header = _HEADER.match(reason)
    body = reason[header.end() :] if header else reason
    begun = _TRACEBACK.match(body)
    if begun:
        last = [begun, *_FRAME.finditer(body)][-1]
        raised = _raised(body[last.end() :])
        if raised:
            return raised
    return headline(body)


def _raised(text: str) -> str:
    """Return what was raised, of what stands below a traceback's last frame: source lines, then that."""
    lines = text.removeprefix("\n").split("\n")
    bare = [line.removeprefix("  | ") for line in lines]
    place = next((number for number, line in enumerate(bare) if line and not line.startswith(" ")), None)
    return "" if place is None else headline("\n".join(bare[place:]))


def headline(text: str) -> str:
    """Return the first line of a text; and the next one, where that ends with a colon; and the first field
    with its message, where it is a validation error of pydantic."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if " validation error" in lines[0] and (first := _FIELD.match(text.lstrip().partition("\n")[2])):
        return ": ".join([lines[0], *filter(None, first.group("field", "why"))])
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
