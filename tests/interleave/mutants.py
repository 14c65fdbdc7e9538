"""Wrong variants of the real code, to see that the check finds them.

A mutant is the source text of one or more functions with a piece replaced. The text must occur exactly once: when the code
changes, its mutants have to be looked at again.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import NamedTuple


class Edit(NamedTuple):
    """In function `where` ("module:name" below fsinbox) replace `old` by `new`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A wrong variant, and what goes wrong with it."""

    name: str
    why: str
    scenarios: tuple[str, ...]  # that find it
    edits: tuple[Edit, ...]
    finds: tuple[str, ...] = ("missed", "older")  # what is found


@contextmanager
def mutated(edits: tuple[Edit, ...]) -> Iterator[None]:
    """While this lasts, the functions are as edited, wherever they have been imported to."""
    functions = {edit.where: _find(edit.where) for edit in edits}
    originals = {where: function.__code__ for where, function in functions.items()}
    try:
        for where, function in functions.items():
            function.__code__ = _edited(function, [edit for edit in edits if edit.where == where])
        yield
    finally:
        for where, code in originals.items():
            functions[where].__code__ = code


def _find(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: object = importlib.import_module(f"fsinbox.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    function = inspect.unwrap(found)  # type: ignore[arg-type]
    assert isinstance(function, FunctionType)
    return function


def _edited(function: FunctionType, edits: list[Edit]) -> CodeType:
    """Return the code of a function with its source edited."""
    source = textwrap.dedent(inspect.getsource(function))
    for where, old, new in edits:
        times = source.count(old)
        assert times == 1, f"{where} holds this {times} times, not once; the code has changed, so look at its mutants:\n{old}"
        source = source.replace(old, new)
    names: dict[str, FunctionType] = {}
    # (Annotations are not looked up: some of their names are only imported for type checks.)
    whole = "from __future__ import annotations\n" + source
    exec(compile(whole, f"<{function.__qualname__}, mutated>", "exec"), dict(function.__globals__), names)
    return names[function.__name__].__code__


_DROP_INSIDE = """
        if dropped is not None:
            # Inside the lock: outside, the place could be given up and a newer drop be moved to it.
            waits |= move_drop(layout, sequence, "drop", dropped, number, encoded)
"""
_DROP_OUTSIDE = """
    if dropped is not None:
        waits |= move_drop(layout, sequence, "drop", dropped, number, encoded)
"""


MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "number-outside-lock",
            "two producers are given the same place, or the older add the higher one",
            ("dropped", "dropped-nack"),
            (Edit("protocol:find_place", "with sequence:", "if True:"),),
        ),
        Mutant(
            "hint-outside-lock",
            "an older place's hint replaces a newer one's",
            ("one-out-of-two",),
            (
                Edit("protocol:admit", "    write_hint(layout, encoded, number, sequence.boot)\n", ""),
                Edit(
                    "protocol:find_place",
                    "    return number, waits",
                    "    write_hint(layout, encoded, number, sequence.boot)\n    return number, waits",
                ),
            ),
        ),
        Mutant(
            "put-back-by-rename",
            "it overwrites a newer value that landed there meanwhile",
            ("two-adds-nack", "deferred-twice"),
            (
                Edit(
                    "protocol:put_back",
                    'os.link(name, name, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"), '
                    "follow_symlinks=False)",
                    'os.rename(name, name, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"))',
                ),
            ),
        ),
        Mutant(
            "fold-highest-only",
            "the middle, older value is delivered after the newest",
            ("late-publisher",),
            (Edit("protocol:fold", "for number in numbers[1:]:", "for number in numbers[-1:]:"),),
        ),
        Mutant(
            "no-confirm",
            "a value published at a place that was given up is delivered after a newer one",
            ("late-publisher",),
            (Edit("protocol:confirm", "    with sequence:", "    return\n    with sequence:"),),
        ),
        Mutant(
            "no-mark",
            "a listing that shows only the later of two numbers is believed: a key is taken before its turn",
            ("even-first-in-order",),
            (Edit("consumer:Consumer._list_pending", "element_name(mark + 1, ", "element_name(mark + 1000, "),),
            finds=("order",),
        ),
        Mutant(
            "hint-kept",
            "adds go on at a place that has been taken, before keys that came earlier",
            ("two-adds-nack",),
            (Edit("protocol:take", "remove_hint(layout, encoded)", "pass"),),
            finds=("left over",),
        ),
        Mutant(
            "deferred-kept",
            "what was deferred comes back after the newer value that superseded it",
            ("deferred-twice",),
            (Edit("consumer:Consumer._take_waiting", "if older and older[20:] <= name:", "if False:"),),
        ),
        Mutant(
            "drop-overlooked",
            "a dropped file is adopted over a value that was added after it",
            ("dropped", "dropped-nack"),
            (Edit("protocol:find_place", "    if dropped is None:\n", "    dropped = None\n    if dropped is None:\n"),),
        ),
    )
}
