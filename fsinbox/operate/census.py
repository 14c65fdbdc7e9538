"""How many elements there are in each state, and how old the oldest is: by names alone, millions of them, but
for what is for later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import time_ns

from ..consumer.ownership import WHOLE, Shard
from ..store.errors import InvalidKey
from ..store.layout import Layout
from ..store.names import element_of, encode_key, split_name
from ..store.subfolders import dropped
from .later import look_at_deferred, look_at_waiting
from .rows import places


@dataclass(frozen=True, slots=True)
class Census:
    """How many elements of each state there are, and when the oldest arrived (nanoseconds since the
    epoch)."""

    count: dict[str, int]
    """Of STATES, and "dropped": files in drop/ that are not ingested yet."""
    oldest: dict[str, int]
    """Of those STATES of which there are any; what is for later is not old, but from when its time came."""
    waiting: dict[str, str]
    """Of what is waiting: encoded key -> the number of its place, as digits."""
    later: dict[str, set[str]]
    """Of what is "waiting" and "deferred", the encoded keys of what is known to be for later ..."""
    later_known: bool
    """... and whether that is all of it: see later."""


def census(layout: Layout, shard: Shard = WHOLE) -> Census:
    """Count the elements of a shard. A key that is waiting in several places counts once. Raises OSError."""
    now = time_ns()
    waiting = _waiting(layout, shard)
    deferred = [
        (encoded, digits, file)
        for _, file in places(layout, "deferred")
        for digits, encoded in _parts(element_of(file), shard)
    ]
    looked = {
        "waiting": look_at_waiting(layout, waiting, now),
        "deferred": look_at_deferred(layout, deferred, now),
    }
    count = {"waiting": len(waiting), "deferred": len(deferred)}
    oldest = {state: found.since for state, found in looked.items() if found.since is not None}
    for state in ("in_flight", "failed"):
        numbers = [digits for digits, _ in _elements(layout, state, shard)]
        count[state] = len(numbers)
        if numbers:
            oldest[state] = int(min(numbers))
    drops = dropped(layout)
    count["dropped"] = len(drops) if shard == WHOLE else sum(map(shard.has, map(_encoded, drops)))
    return Census(
        count,
        oldest,
        waiting,
        {state: found.later for state, found in looked.items()},
        all(found.whole for found in looked.values()),
    )


def ready(found: Census) -> dict[str, str]:
    """Return what is waiting and not for later: as Census.waiting."""
    later = found.later["waiting"]
    if not later:
        return found.waiting
    return {encoded: digits for encoded, digits in found.waiting.items() if encoded not in later}


def _waiting(layout: Layout, shard: Shard) -> dict[str, str]:
    """Return the oldest place of each key that is waiting."""
    found: dict[str, str] = {}
    for digits, encoded in _elements(layout, "waiting", shard):
        if digits < found.get(encoded, "a"):
            found[encoded] = digits
    return found


def _elements(layout: Layout, state: str, shard: Shard) -> Iterator[tuple[str, str]]:
    """Go through (number as digits, encoded key) of the elements in a state, in no order. No key is decoded:
    that would take twice the time."""
    for _, name in places(layout, state):
        split = split_name(name)
        if split and "~" not in split[1] and shard.has(split[1]):
            yield split


def _parts(name: str, shard: Shard) -> list[tuple[str, str]]:
    """Return (number as digits, encoded key) of an element's name; [] if it is none of this shard."""
    split = split_name(name)
    return [split] if split and "~" not in split[1] and shard.has(split[1]) else []


def _encoded(name: str) -> str:
    """Return the encoded key of a file in drop/, "" if it has none: shards divide them by it."""
    try:
        return encode_key(name)
    except InvalidKey:
        return ""
