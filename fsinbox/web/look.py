"""What a page shows of the folders: read for that page, from names alone, and bounded however much lies
there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from time import time_ns
from urllib.parse import unquote

from ..operate.survey import STATES, Row
from ..store.layout import Layout
from ..store.names import DIGITS, decode_key, parse_deferred, parse_element

MOST = 100_000
"""Names of one folder that are looked at: a tenth of a second."""

PAGE = 50
"""Elements on a page."""

NEWEST_FIRST = ("failed", "done")


class Glance(Layout):
    """An open inbox, to be looked at: no folder is listed further than MOST names, whichever come first.

    `cut`: the folders that have more.
    """

    def __init__(self, path: str) -> None:
        """Raises UnusableInbox."""
        self.cut: set[str] = set()
        super().__init__(path, create=False)

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        """Return the names in a folder, in no order: MOST at most."""
        if self.sharing:  # only a whole listing is sure to be current
            found = super().names(folder, hidden=hidden)
        else:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder(folder))
            try:
                with os.scandir(fd) as entries:
                    shown = (entry.name for entry in entries if hidden or entry.name[0] != ".")
                    found = list(islice(shown, MOST + 1))
            finally:
                os.close(fd)
        if len(found) > MOST:
            self.cut.add(folder)
        return found[:MOST]

    def states(self) -> list[str]:
        """Return the states that elements may be in here, in the order of an element's life."""
        return ["waiting", "out", "deferred", "failed", *(["done"] if self.has("done") else [])]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing. `count`: elements that match, on all pages; `number` counts from 1."""

    rows: list[Row]
    count: int
    number: int
    pages: int


def folder_of(state: str) -> str:
    """Return the folder that elements of a state lie in."""
    return STATES.get(state, state)


def places(layout: Glance, state: str) -> list[tuple[str, str]]:
    """Return (folder, file name) of the elements in a state, and perhaps of some that only look like it, in
    no order."""
    found = (
        layout.out()
        if state == "out"
        else [(folder_of(state), name) for name in layout.names(folder_of(state))]
    )
    start = DIGITS + 1 if state == "deferred" else 0
    # Cheap, for it is asked of each name; what a page shows is looked at closely (row_of).
    return [place for place in found if "~" not in place[1] and parse_element(place[1][start:])]


def row_of(state: str, folder: str, file: str) -> Row | None:
    """Return the element that a file name stands for; None if it is not the name of one."""
    due, name = (parse_deferred(file) or (None, "")) if state == "deferred" else (None, file)
    parsed = parse_element(name)
    key = parsed and decode_key(parsed[1])
    return Row(key, state, parsed[0], folder, file, due) if parsed and key is not None else None


def page(layout: Glance, state: str, text: str, number: int) -> Page:
    """Return a page of the elements in a state: of those whose key has `text` in it, in whatever case."""
    found = sorted(places(layout, state), key=lambda place: place[1], reverse=state in NEWEST_FIRST)
    if text:
        wanted = text.casefold()
        start = 2 * (DIGITS + 1) if state == "deferred" else DIGITS + 1
        found = [
            place
            for place in found
            if wanted in unquote(place[1][start:], errors="surrogateescape").casefold()
        ]
    pages = max(1, -(-len(found) // PAGE))
    number = min(max(1, number), pages)
    shown = found[(number - 1) * PAGE : number * PAGE]
    return Page([row for place in shown if (row := row_of(state, *place))], len(found), number, pages)


def locate(layout: Glance, state: str, file: str) -> Row | None:
    """Return the element of this file name, if it is there now."""
    if state == "out":
        return next(
            (row for folder, name in layout.out() if name == file and (row := row_of(state, folder, name))),
            None,
        )
    row = row_of(state, folder_of(state), file)
    return row if row and layout.exists(row.folder, file) else None


def moved_to(layout: Glance, state: str, file: str) -> Row | None:
    """Return where an element is that was in `state` under this file name; None if it is nowhere to be
    seen."""
    before = row_of(state, folder_of(state), file)
    if before is None:
        return None
    name = before.file[DIGITS + 1 :] if state == "deferred" else file
    for other in layout.states():
        deferred = other == "deferred"
        for there in (
            [file for _, file in places(layout, other) if file.endswith(f"-{name}")] if deferred else [name]
        ):
            row = locate(layout, other, there)
            if row and row.seq == before.seq:
                return row
    return None


def ago(ns: int) -> float:
    """Return how many seconds ago a time (nanoseconds since the epoch) is; less than nothing if it is to
    come."""
    return (time_ns() - ns) / 1e9
