"""Wrong variants of the real code, to see that the check finds them.

A mutant is the source text of one or more functions with a piece replaced. The text must occur exactly once:
when the code changes, its mutants have to be looked at again.

Not here, for no scenario shows anything wrong with it: `come_due` without the lock. What is due and taken
while a newer value is added is only handled before that, as if it had been taken a moment earlier.
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
        assert times == 1, (
            f"{where} holds this {times} times, not once; the code has changed, so look at its mutants:\n"
            f"{old}"
        )
        source = source.replace(old, new)
    names: dict[str, FunctionType] = {}
    # (Annotations are not looked up: some of their names are only imported for type checks.)
    whole = "from __future__ import annotations\n" + source
    exec(compile(whole, f"<{function.__qualname__}, mutated>", "exec"), dict(function.__globals__), names)
    return names[function.__name__].__code__


_LOCKED = """self._index.locked(
        publish,
        layout,
        self._index,
        drafts,
        self._published,
        self._terms.keep,
        self._let_in,
        self._swap,
    )"""
_TRIED = (
    "self._index.try_locked(\n"
    "            transitions.go_back, self._layout, self._index, way.name, way.folder, way.new\n"
    "        )"
)
_NOT_TRIED = "transitions.go_back(self._layout, self._index, way.name, way.folder, way.new)"

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "published-after-the-section",
            "the place may have been taken, and a newer value have come and gone, before the older is "
            "published there",
            ("replaced-thrice",),
            (
                Edit(
                    "store.adding:Add._try_to_publish",
                    _LOCKED,
                    "place = self._index.locked(self._index.admit, drafts[0][1])\n"
                    "    found = type('', (), {'admit': lambda *_: place})()\n"
                    "    publish(self._layout, found, drafts, self._published)",
                ),
            ),
        ),
        Mutant(
            "exchange-with-what-was-taken",
            "what was to be exchanged was taken meanwhile, so nothing was published",
            ("exchanged",),
            (
                Edit(
                    "store.exchanging:swap",
                    "return False  # taken meanwhile",
                    "discard_temporary(layout, temporary); return True",
                ),
            ),
        ),
        Mutant(
            "exchanged-and-renamed",
            "what came back by the exchange is published over what it was exchanged for",
            ("exchanged",),
            (
                Edit(
                    "store.exchanging:swap",
                    "    discard_temporary(layout, temporary)\n    return True",
                    "    return False",
                ),
            ),
        ),
        Mutant(
            "number-outside-lock",
            "two producers are given the same place, or the older add the higher one",
            ("two-adds-one-add",),
            (Edit("store.section:Section._enter", "self._flock(fcntl.LOCK_EX)", "pass"),),
        ),
        Mutant(
            "requeued-without-lock",
            "it is renamed over a newer value, or above one that nobody can see is newer",
            ("two-adds-nack", "replaced-nack"),
            (Edit("consumer.returning:Returning.send", _TRIED, _NOT_TRIED),),
        ),
        Mutant(
            "deferred-without-lock",
            "a newer value is published under the number of what is deferred; when a person ends the "
            "back-off it is overlooked",
            ("requeued", "requeued-at-once"),
            (
                Edit(
                    "consumer.returning:Returning.send",
                    _TRIED,
                    f"{_NOT_TRIED} if way.folder == 'deferred' else {_TRIED}",
                ),
            ),
        ),
        Mutant(
            "newer-at-its-place-overlooked",
            "what goes back is renamed over a newer value that was published under its own number while it "
            "was taken",
            ("replaced-nack",),
            (
                Edit(
                    "store.transitions:newer_waits",
                    ' or layout.exists("pending", element_name(number, encoded))',
                    "",
                ),
            ),
        ),
        Mutant(
            "deferred-kept",
            "what was deferred comes back after the newer value that superseded it",
            ("deferred-twice",),
            (
                Edit(
                    "consumer.taking:Taking._take_waiting",
                    "if older and element_of(older) <= name:",
                    "if False:",
                ),
            ),
        ),
        Mutant(
            "deferred-removed-late",
            "a consumer that dies when the newer value is done leaves the older one to be delivered after it",
            ("deferred", "deferred-twice"),
            (
                Edit(
                    "consumer.taking:Taking._discard_overtaken",
                    'discard(self._layout, "deferred", deferred, OVERTAKEN)',
                    "self._older = deferred",
                ),
                Edit(
                    "consumer.consumer:Consumer.acknowledge",
                    "    self.attempts.forget(taken.name)\n",
                    "    self.attempts.forget(taken.name)\n"
                    "    if getattr(self._taking, '_older', None):\n"
                    "        why = transitions.OVERTAKEN\n"
                    "        transitions.discard(self._layout, 'deferred', self._taking._older, why)\n",
                ),
            ),
        ),
        Mutant(
            "coalesced-from-the-top",
            "the middle, older value is delivered after the newest",
            ("scattered",),
            (
                Edit(
                    "consumer.coalescing:Coalescing._coalesce",
                    "for number in others:",
                    "for number in others[::-1]:",
                ),
            ),
        ),
        Mutant(
            "coalesced-the-highest-only",
            "the middle, older value is delivered after the newest",
            ("scattered",),
            (
                Edit(
                    "consumer.coalescing:Coalescing._coalesce",
                    "for number in others:",
                    "for number in others[-1:]:",
                ),
            ),
        ),
        Mutant(
            "coalesced-while-in-flight",
            "the newer value ends up below the one that is in flight, which then counts as newer when it "
            "comes back",
            ("by-hand",),
            (
                Edit(
                    "consumer.coalescing:Coalescing.of",
                    "or is_held(encoded)",
                    "",
                ),
            ),
        ),
        Mutant(
            "no-mark",
            "a listing that shows only the later of two numbers is believed: a key is taken before its turn",
            ("odd-first-in-order", "even-first-in-order"),
            (
                Edit(
                    "consumer.listing:Listing.read",
                    "element_name(mark + 1, ",
                    "element_name(mark + 1000, ",
                ),
            ),
            finds=("order",),
        ),
        Mutant(
            "lines-for-what-is-in-flight",
            "a line names an old place, below what is in flight: the next value is published there, and "
            "counts as older",
            ("by-hand-boot",),
            (Edit("store.index:Index.make_anew", '("pending", "inflight", "deferred")', '("pending",)'),),
        ),
        Mutant(
            "line-believed",
            "a key is given a place of another, or one that was taken: before its turn",
            ("same-crc",),
            (Edit("store.index:Index._look", "self._waits(element_name(number, encoded))", "True"),),
            finds=("order",),
        ),
        Mutant(
            "line-for-what-was-requeued",
            "a line names the place of what came back, although a newer value that is not known waits above "
            "it",
            ("scattered-other",),
            (
                Edit(
                    "store.transitions:go_back",
                    "    try:\n        _rename",
                    "    if to == 'pending' and index._lines:\n"
                    "        crc = index._crc(encoded, index.tag)\n"
                    "        slot = index._look(encoded, crc)[2]\n"
                    "        if slot > 0:\n"
                    "            index._write_line(crc, number, slot)\n"
                    "    try:\n        _rename",
                ),
            ),
        ),
        Mutant(
            "drop-overlooked",
            "a dropped file is ingested over a value that was added after it",
            ("dropped", "dropped-nack"),
            (Edit("store.adding:Add._try_to_publish", "finished_drop(layout, key)", "None"),),
        ),
        Mutant(
            "handed-out-too-soon",
            "nobody looks for when a value is",
            ("later", "later-nack"),
            (Edit("consumer.taking:Taking._have_taken", "max(0, not_before(status) - ", "min(0, 0 * "),),
            finds=("error",),
        ),
        Mutant(
            "delay-not-ended",
            "a producer whose clock is behind takes what was handed out to be put off, and adds nothing",
            ("kept-later",),
            (
                Edit(
                    "consumer.taking:Taking._have_taken", 'end_delay(self._layout, "inflight", name)', "pass"
                ),
            ),
            finds=("kept",),
        ),
        Mutant(
            "kept-for-what-is-in-flight",
            "an add is told that a value waits, and that one has been taken long ago",
            ("kept-waiting", "kept-defer"),
            (Edit("store.held:Held._is_too_soon", "> time_ns()", ">= 0"),),
            finds=("kept",),
        ),
        Mutant(
            "not-kept-for-what-is-deferred",
            "what waits for its time is replaced by an add that should have kept it",
            ("kept-later",),
            (Edit("store.held:Held.has", "encoded in self._deferred or any(", "any("),),
            finds=("kept",),
        ),
        Mutant(
            "not-kept-for-what-is-put-off",
            "the same, in the moment in which the consumer has it to find that it is too soon",
            ("kept-later",),
            (Edit("store.held:Held._is_too_soon", "> time_ns()", "< 0"),),
            finds=("kept",),
        ),
        Mutant(
            "not-counted",
            "more wait than may",
            ("bounded", "bounded-alone"),
            (
                Edit(
                    "store.bounds:_demand_room",
                    'os.pwrite(fd, b"%010d" % min(counted + 1, 10**10 - 1), 28)',
                    "pass",
                ),
            ),
            finds=("error",),
        ),
        Mutant(
            "never-counted-anew",
            "an inbox that was full once stays full",
            ("bounded", "bounded-two"),
            (Edit("store.bounds:_demand_room", "(counted >= most and _is_old(counted, when))", "False"),),
            finds=("bound",),
        ),
        Mutant(
            "refused-to-replace",
            "a full inbox refuses a value that would replace one",
            ("bounded-alone",),
            (Edit("store.adding:Add._bound", "if not self._index.find(encoded):", "if True:"),),
            finds=("bound",),
        ),
    )
}
