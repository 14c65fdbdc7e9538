"""What an exception says, in one line for the log and in full for failed/: bounded before it is formatted.

A text of 50 MB took Python 20 s to format, line by line, in the process that has all other handlers.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import NamedTuple

from ..operate.reasons import headline
from ..store.printing import cut

LONGEST = 96 * 1024
"""Characters of one exception's text; of what is longer the middle is left out."""

LONGEST_NOTES = 16 * 1024
"""The same for its notes, which Python formats line by line."""

_DEEPEST = 100
"""Exceptions of a chain or of groups that are described, if one of them is too long."""


class Described(NamedTuple):
    """An exception: its name, its text, its traceback with causes and notes; and in one line its name and the
    first line of its text."""

    name: str
    text: str
    full: str
    summary: str


def describe(error: BaseException) -> Described:
    """Describe an exception. Takes little longer than its own __str__."""
    found = traceback.TracebackException.from_exception(_bounded(error))
    said = list(found.format_exception_only())
    name, _, text = "".join(said).strip().partition(": ")
    # A SyntaxError begins with where it is; notes stand at the end.
    raised = next((part for part in said if not part.startswith(" ")), name)
    return Described(name, text, "".join(found.format()), headline(raised))


def _bounded(error: BaseException) -> BaseException:
    """Return `error`; or, if it or another of its chain is too long, one that is formatted as it is, but
    short."""
    chain = list(_chain(error))
    said = {id(one): _said(one) for one in chain}
    if not any(one.is_long for one in said.values()):
        return error
    short: dict[int, BaseException] = {}
    for one in chain:
        short[id(one)] = _stand_in(one, said[id(one)], short)
    for one in chain:
        stand_in = short[id(one)]
        stand_in.__cause__ = short.get(id(one.__cause__))
        stand_in.__context__ = short.get(id(one.__context__))
        stand_in.__suppress_context__ = one.__suppress_context__
    return short[id(error)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Go through an exception, its causes and contexts, and what groups have: members before their group."""
    seen: set[int] = set()

    def walk(one: BaseException | None) -> Iterator[BaseException]:
        if one is None or id(one) in seen or len(seen) >= _DEEPEST:
            return
        seen.add(id(one))
        for member in one.exceptions if isinstance(one, BaseExceptionGroup) else ():
            yield from walk(member)
        yield from walk(one.__cause__)
        yield from walk(one.__context__)
        yield one

    return walk(error)


class _Said(NamedTuple):
    """The text of an exception, and its notes as one text."""

    text: str
    notes: str
    is_long: bool


def _said(error: BaseException) -> _Said:
    notes = getattr(error, "__notes__", None)
    note = "\n".join(cut(str(one), LONGEST_NOTES + 1) for one in notes) if isinstance(notes, list) else ""
    shown = type(error).__str__
    arguments = error.args
    # What Python would show of them is cut before: to show bytes takes longer than to cut them.
    if shown in (BaseException.__str__, KeyError.__str__) and any(map(_is_long, arguments)):
        kind = KeyError if shown is KeyError.__str__ else Exception
        return _Said(str(kind(*map(_cut_value, arguments))), note, True)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own __str__
        text = "<exception str() failed>"
    return _Said(text, note, _is_long(text) or len(note) > LONGEST_NOTES)


def _is_long(value: object) -> bool:
    return isinstance(value, (str, bytes, bytearray)) and len(value) > LONGEST


def _cut_value(value: object) -> object:
    if isinstance(value, str):
        return cut(value, LONGEST)
    return value[:LONGEST] if isinstance(value, (bytes, bytearray)) else value


def _stand_in(error: BaseException, said: _Said, short: dict[int, BaseException]) -> BaseException:
    """Return an exception of the same name, traceback, text and notes; the latter two cut."""
    kind, text = type(error), cut(said.text, LONGEST)
    names: dict[str, object] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__str__": lambda _: text,  # (a group's own would count its members)
    }
    if isinstance(error, BaseExceptionGroup):
        members = [short[id(member)] for member in error.exceptions if id(member) in short]
        made = type(kind.__name__, (BaseExceptionGroup,), names)("", members or [error])
    else:
        made = type(kind.__name__, (Exception,), names)()
    if said.notes:
        made.add_note(cut(said.notes, LONGEST_NOTES))
    stand_in: BaseException = made.with_traceback(error.__traceback__)
    return stand_in
