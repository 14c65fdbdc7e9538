"""The elements of an inbox, one by one, by the names of their files alone.

A look changes nothing and needs no lock. It lists each folder once, so it is quick with a million elements.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop
from operator import itemgetter
from time import time_ns

from ..store.files import not_before, open_for_reading
from ..store.layout import Layout
from ..store.names import REASON, decode_key, encode_key, parse_deferred, parse_element

STATES = {"in_flight": "inflight", "waiting": "pending", "deferred": "deferred", "failed": "failed"}
"""State of an element -> the folder that it lies in. Elements that are kept after their end are "done"."""

_LONGEST_REASON = 1 << 20
"""Characters of a reason that are read: far more than any of ours has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One element, and where it lies.

    seq   its number: its place in the order, and when it arrived, in nanoseconds since the epoch
    due   when a deferred element is due, in nanoseconds since the epoch; None in any other state
    """

    key: str
    state: str
    seq: int
    folder: str
    file: str
    due: int | None = None

    def size(self, layout: Layout) -> int | None:
        """Return its size in bytes, or None if it has left this place."""
        looked = self.look(layout)
        return looked and looked[0]

    def look(self, layout: Layout) -> tuple[int, int | None] | None:
        """Return its size in bytes, and until when it is not handed out (nanoseconds since the epoch; None:
        it may be); or None if it has left this place.

        A value for later waits like any other, until a consumer finds that it is too soon, and defers it.
        """
        try:
            status = os.lstat(self.file, dir_fd=layout.folder(self.folder))
        except FileNotFoundError:
            return None
        due = max(self.due or 0, not_before(status) if self.state in STATES else 0)
        return status.st_size, due if self.due is not None or due > time_ns() else None


def rows(layout: Layout, states: tuple[str, ...] = tuple(STATES)) -> Iterator[Row]:
    """Go through the elements, state by state, the oldest of each first. A key in several places has a row
    for each.

    `states`: of STATES, or "done". Raises OSError.
    """
    for state in states:
        if state == "deferred":
            yield from _by_due(places(layout, state))
        elif state == "in_flight":
            found = sorted(places(layout, state), key=itemgetter(1))
            yield from (row for place in found if (row := row_of(state, *place)))
        elif state != "done" or layout.has(state):
            yield from _by_name(state, folder_of(state), layout.names(folder_of(state)))


def _by_name(state: str, folder: str, names: list[str]) -> Iterator[Row]:
    """Go through elements whose names begin with their numbers: the first at once, however many there are.
    (Of names alone: as many pairs would take twice the time.)"""
    heapify(names)
    while names:
        row = row_of(state, folder, heappop(names))
        if row:
            yield row


def _by_due(found: list[tuple[str, str]]) -> Iterator[Row]:
    """Go through what is deferred: its names begin with when it is due."""
    known = (row for place in found if (row := row_of("deferred", *place)))
    yield from sorted(known, key=lambda row: row.seq)


def row_of(state: str, folder: str, file: str) -> Row | None:
    """Return the element that a file name stands for; None if it is not the name of an element."""
    due, name = (parse_deferred(file) or (None, "")) if state == "deferred" else (None, file)
    parsed = parse_element(name)
    key = parsed and decode_key(parsed[1])  # None for a reason: its name has `~`, which no key encodes to
    return Row(key, state, parsed[0], folder, file, due) if parsed and key is not None else None


def label(state: str) -> str:
    """Return a state as people read it: "in flight"."""
    return state.replace("_", " ")


def folder_of(state: str) -> str:
    """Return the folder that elements in a state lie in."""
    return STATES.get(state, state)


def places(layout: Layout, state: str) -> list[tuple[str, str]]:
    """Return (folder, file name) of all that lies where elements in a state do, in no order. Raises
    OSError."""
    if state == "in_flight":
        return layout.in_flight()
    folder = folder_of(state)
    return [(folder, name) for name in layout.names(folder)]


def find(layout: Layout, key: str) -> Row | None:
    """Return the element of `key` that a person means: the newest that is waiting, else the one that is in
    flight, deferred or failed. Raises InvalidKey."""
    encode_key(key)  # a clear error for what cannot be a key
    for state in ("waiting", "in_flight", "deferred", "failed"):
        matches = [row for row in rows(layout, (state,)) if row.key == key]
        if matches:
            return matches[-1]
    return None


def reason(layout: Layout, row: Row, most: int = _LONGEST_REASON) -> str | None:
    """Return why an element failed, `most` characters of it; None if no reason is kept."""
    try:
        fd = open_for_reading(layout, "failed", row.file + REASON)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(most)
