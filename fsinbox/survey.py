"""What is in the folders, for people: a look at names and sizes that changes nothing and needs no lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from time import time_ns

from .layout import Layout
from .lock import is_consumed, read_holder
from .names import REASON, decode_key, encode_key, parse_deferred, parse_element
from .protocol import open_for_reading

STATES = {"out": "inflight", "waiting": "pending", "deferred": "deferred", "failed": "failed"}
"""State of an element -> the folder it lies in then."""

_LONGEST_REASON = 1 << 20
"""Characters of a reason that are shown: far more than any of ours has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One element. `due` in nanoseconds since the epoch, for a deferred one; `seq` is its time of arrival, likewise."""

    key: str
    state: str
    seq: int
    file: str
    due: int | None = None

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return STATES[self.state]

    def size(self, layout: Layout) -> int | None:
        """Return its size in bytes, or None if it is gone by now."""
        try:
            return os.lstat(self.file, dir_fd=layout.folder(self.folder)).st_size
        except FileNotFoundError:
            return None


def rows(layout: Layout, states: tuple[str, ...] = tuple(STATES)) -> Iterator[Row]:
    """Go through the elements, state by state, the oldest of each first. A key with several places shows each."""
    for state in states:
        found = []
        for file in layout.names(STATES[state]):
            due = None
            name = file
            if state == "deferred":
                split = parse_deferred(file)
                if split is None:
                    continue
                due, name = split
            parsed = parse_element(name)
            key = parsed and decode_key(parsed[1])
            if parsed and key is not None:  # a reason's name has `~`, which no key encodes to
                found.append(Row(key, state, parsed[0], file, due))
        found.sort(key=lambda row: row.seq)
        yield from found


def find(layout: Layout, key: str) -> Row | None:
    """Return the element of `key` that a person means: the newest that waits, else is out, is deferred, has failed."""
    encode_key(key)  # a clear error for what cannot be a key
    for state in ("waiting", "out", "deferred", "failed"):
        matches = [row for row in rows(layout, (state,)) if row.key == key]
        if matches:
            return matches[-1]
    return None


def reason(layout: Layout, row: Row) -> str | None:
    """Return why an element failed, or None if no reason is kept."""
    try:
        fd = open_for_reading(layout, "failed", row.file + REASON)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST_REASON)


@dataclass(frozen=True, slots=True)
class Summary:
    """How an inbox stands. Ages in seconds."""

    path: str
    waiting: int
    out: int
    deferred: int
    failed: int
    dropped: int
    oldest_waiting: float | None
    oldest_out: float | None
    consumer: str | None


def summary(layout: Layout) -> Summary:
    """Count what is there. `dropped`: files in drop/ that are not adopted yet; `consumer`: who holds it now, if anyone."""
    count = dict.fromkeys(STATES, 0)
    oldest: dict[str, int] = {}
    for state, folder in STATES.items():
        keys = set()
        for file in layout.names(folder):
            name = file[20:] if state == "deferred" else file
            parsed = parse_element(name)
            if parsed and "~" not in parsed[1]:
                keys.add(parsed[1])
                oldest[state] = min(parsed[0], oldest.get(state, parsed[0]))
                count[state] += 1
        if state == "waiting":
            count[state] = len(keys)
    now = time_ns()

    def age(state: str) -> float | None:
        return max(0, now - oldest[state]) / 1e9 if state in oldest else None

    return Summary(
        path=layout.path,
        waiting=count["waiting"],
        out=count["out"],
        deferred=count["deferred"],
        failed=count["failed"],
        dropped=len(layout.names("drop")),
        oldest_waiting=age("waiting"),
        oldest_out=age("out"),
        consumer=read_holder(layout) or "unknown" if is_consumed(layout) else None,
    )
