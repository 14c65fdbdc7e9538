"""The folders, as a page shows them: listed anew for each page, by names alone, and bounded however much lies
there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from math import inf
from time import monotonic, time_ns
from urllib.parse import unquote

from ..operate.reasons import summary
from ..operate.rows import Row, folder_of, places, reason, row_of
from ..store.layout import Layout
from ..store.names import element_of, encoded_of, parse_element

MOST = 100_000
"""Names of one folder that are looked at: a tenth of a second."""

PAGE = 50
"""Elements on a page."""

PATIENCE = 5.0
"""Seconds in which reasons are read for one answer: 100,000 take three, where the disk need not be asked."""

_REASON = 64 * 1024
"""Characters of a reason that are looked at to find its line."""

_WILD = frozenset("*?[")

NEWEST_FIRST = ("failed", "done")


class Glance(Layout):
    """An open inbox to look at. No folder is listed beyond MOST names, whichever come first; failed/ beyond
    twice as many.

    `cut`: the folders that have more.
    """

    def __init__(self, path: str) -> None:
        """Raises UnusableInbox."""
        self.cut: set[str] = set()
        super().__init__(path, create=False)

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        """Return the names in a folder, in no order: MOST at most."""
        most = _most(folder)
        if self.sharing:  # only a complete listing is certain to be current
            found = super().names(folder, hidden=hidden)
        else:
            shown = (name for name in super().names_one_by_one(folder) if hidden or name[0] != ".")
            found = list(islice(shown, most + 1))
        if len(found) > most:
            self.cut.add(folder)
        return found[:most]

    def names_one_by_one(self, folder: str) -> Iterator[str]:
        """Go through the names in a folder: MOST at most, but for what is in flight."""
        if self.sharing and folder != "inflight":
            yield from self.names(folder)
            return
        most = inf if folder == "inflight" else _most(folder)
        for number, name in enumerate(super().names_one_by_one(folder)):
            if number == most:
                self.cut.add(folder)
                return
            yield name

    def states(self) -> list[str]:
        """Return the states that elements may be in here, in the order of an element's life."""
        return ["waiting", "in_flight", "deferred", "failed", *(["done"] if self.has("done") else [])]


def _most(folder: str) -> int:
    return 2 * MOST if folder == "failed" else MOST  # (each element and its reason)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing. `count`: elements that match, on all pages; `number` counts from 1; `unread`: see
    Matching."""

    rows: list[Row]
    count: int
    number: int
    pages: int
    unread: int


@dataclass(frozen=True, slots=True)
class Matching:
    """(folder, file name) of elements that are meant, in the order of a page. `unread`: how many come after
    them whose reasons were not read, as PATIENCE had ended."""

    places: list[tuple[str, str]]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Which elements of a list are meant. `key`: a part of their keys, or a pattern as shells have them;
    `why`: a part of the line that sums up why they failed. In upper or lower case; "" is anything."""

    key: str = ""
    why: str = ""

    @property
    def query(self) -> dict[str, str]:
        """Return it as the parameters of a page's address."""
        return {name: text for name, text in (("q", self.key), ("why", self.why)) if text}

    def says(self) -> str:
        """Return it in words."""
        pattern = "matches" if _is_pattern(self.key) else "contains"
        words = [f"whose key {pattern} “{self.key}”"] if self.key else []
        words += [f"whose reason contains “{self.why}”"] if self.why else []
        return " and ".join(words) or "that had failed when this page was made"


def matching(layout: Glance, state: str, narrowed: Narrowed) -> Matching:
    """Return the elements in a state that are meant."""
    found = sorted(_elements(layout, state), key=lambda place: place[1], reverse=state in NEWEST_FIRST)
    key, why = narrowed.key.casefold(), narrowed.why.casefold()
    if key:
        found = [place for place in found if _fits(_key(_inner(state, place[1])).casefold(), key)]
    return _by_reason(layout, found, why) if why and state == "failed" else Matching(found)


def _by_reason(layout: Glance, places: list[tuple[str, str]], why: str) -> Matching:
    end = monotonic() + PATIENCE
    found: list[tuple[str, str]] = []
    for number, place in enumerate(places):
        if monotonic() > end:
            return Matching(found, len(places) - number)
        if why in _summary(layout, place[1]).casefold():
            found.append(place)
    return Matching(found)


def page(layout: Glance, state: str, narrowed: Narrowed, number: int) -> Page:
    """Return a page of the elements in a state that are meant."""
    matches = matching(layout, state, narrowed)
    found = matches.places
    pages = max(1, -(-len(found) // PAGE))
    number = min(max(1, number), pages)
    shown = found[(number - 1) * PAGE : number * PAGE]
    rows = [row for place in shown if (row := row_of(state, *place))]
    return Page(rows, len(found), number, pages, matches.unread)


def _elements(layout: Glance, state: str) -> list[tuple[str, str]]:
    """Return (folder, file name) of the elements in a state, and perhaps of files that only look like one:
    this check is cheap, as it is made for each name; row_of checks what a page shows."""
    return [
        place
        for place in places(layout, state)
        if "~" not in place[1] and parse_element(_inner(state, place[1]))
    ]


def _is_pattern(text: str) -> bool:
    return not _WILD.isdisjoint(text)


def _fits(key: str, wanted: str) -> bool:
    return fnmatchcase(key, wanted) if _is_pattern(wanted) else wanted in key


def _summary(layout: Glance, file: str) -> str:
    row = row_of("failed", "failed", file)
    return summary(reason(layout, row, _REASON)) if row else ""


def _inner(state: str, file: str) -> str:
    """Return the element's name in the name of its file."""
    return element_of(file) if state == "deferred" else file


def _key(name: str) -> str:
    return unquote(encoded_of(name), errors="surrogateescape")


def locate(layout: Glance, state: str, file: str) -> Row | None:
    """Return the element of this file name, if it is there now."""
    if state == "in_flight":  # it may lie in the folder of any consumer
        here = (place for place in places(layout, state) if place[1] == file)
        return next((row for place in here if (row := row_of(state, *place))), None)
    row = row_of(state, folder_of(state), file)
    return row if row and layout.exists(row.folder, file) else None


def moved_to(layout: Glance, state: str, file: str) -> Row | None:
    """Return where an element is now that was in `state` under this file name; None if it is not found."""
    before = row_of(state, folder_of(state), file)
    if before is None:
        return None
    name = _inner(state, file)
    for other in layout.states():
        candidates = [name]
        if other == "deferred":
            candidates = [file for _, file in _elements(layout, other) if element_of(file) == name]
        for there in candidates:
            row = locate(layout, other, there)
            if row and row.seq == before.seq:
                return row
    return None


def ago(ns: int) -> float:
    """Return how many seconds ago a time (nanoseconds since the epoch) is; negative if it is to come."""
    return (time_ns() - ns) / 1e9
