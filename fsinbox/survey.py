"""What is in the folders, for people: a look at names and sizes that changes nothing and needs no lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from time import time_ns

from .layout import Layout
from .lock import WHOLE, Shard, is_locked, read_holder, shard_of_lock
from .names import REASON, decode_key, encode_key, parse_deferred, parse_element
from .protocol import open_for_reading

STATES = {"out": "inflight", "waiting": "pending", "deferred": "deferred", "failed": "failed"}
"""State of an element -> the folder it lies in then."""

_LONGEST_REASON = 1 << 20
"""Characters of a reason that are shown: far more than any of ours has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One element, and where it lies. `seq`, its arrival, and `due`, of a deferred one, in nanoseconds since the epoch."""

    key: str
    state: str
    seq: int
    folder: str
    file: str
    due: int | None = None

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
        for folder, file in _files(layout, state):
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
                found.append(Row(key, state, parsed[0], folder, file, due))
        found.sort(key=lambda row: row.seq)
        yield from found


def _files(layout: Layout, state: str) -> list[tuple[str, str]]:
    """Return (folder, name) of what lies where elements of a state do."""
    folder = STATES[state]
    return layout.out() if state == "out" else [(folder, name) for name in layout.names(folder)]


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
    consumers: list[dict[str, object]]
    scope: str


def summary(layout: Layout) -> Summary:
    """Count what is there. `dropped`: files in drop/ that are not adopted yet; `consumer`: who holds it now, if anyone."""
    count = dict.fromkeys(STATES, 0)
    oldest: dict[str, int] = {}
    for state in STATES:
        keys = set()
        for _, file in _files(layout, state):
            name = file[20:] if state == "deferred" else file
            parsed = parse_element(name)
            if parsed and "~" not in parsed[1]:
                keys.add(parsed[1])
                oldest[state] = min(parsed[0], oldest.get(state, parsed[0]))
                count[state] += 1
        if state == "waiting":
            count[state] = len(keys)
    now = time_ns()
    found = consumers(layout)

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
        consumer="; ".join(str(one["holder"]) for one in found if one["holder"]) or None,
        consumers=found,
        scope=layout.scope,
    )


def consumers(layout: Layout) -> list[dict[str, object]]:
    """Return who consumes: for each shard its name ("1/1" for all keys), and its holder or None.

    Where several hosts share the inbox, `sign` is how many seconds ago it gave its last sign of life, and `epoch` counts the
    consumers. Shards that nobody consumes are there as soon as one of their division was.
    """
    found: dict[Shard, dict[str, object]] = {}
    if layout.sharing:
        from .lease import leases, server_clock

        now = 0
        for held in leases(layout):
            try:
                now = now or server_clock(layout)
            except OSError:
                now = time_ns()  # the disk is full, or we may only look
            age = (now - held.sign) / 1e9
            lapsed = age > (held.lasts or 15.0)
            found.setdefault(
                held.shard,
                {"holder": held.holder or "unknown", "sign": round(age, 1), "lapsed": lapsed, "epoch": held.epoch},
            )
    else:
        for shard in _locks(layout):
            if is_locked(layout, shard.lock_file):
                found[shard] = {"holder": read_holder(layout, shard.lock_file) or "unknown"}
        if len(found) > 1:
            found.pop(WHOLE, None)  # a share of its lock is each of the others'
    counts = {shard.count for shard in found}
    if not counts:  # none at all: of the division that was there last, all are missing
        counts = {shard.count for shard in _locks(layout)[:1]}
    for count in counts:
        for index in range(1, count + 1):
            found.setdefault(Shard(index, count), {"holder": None})
    return [{"shard": str(shard)} | found[shard] for shard in sorted(found, key=lambda shard: (shard.count, shard.index))]


def _locks(layout: Layout) -> list[Shard]:
    """Return the shards that have had a consumer, that of the latest start first."""
    times = []
    for name in os.listdir(layout.root):
        shard = shard_of_lock(name)
        if shard:
            times.append((os.lstat(name, dir_fd=layout.root).st_mtime_ns, shard))
    return [shard for _, shard in sorted(times, key=lambda pair: pair[0], reverse=True)]
