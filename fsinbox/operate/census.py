"""How many elements there are in each state, and how old the oldest is: by names alone, millions of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..consumer.ownership import WHOLE, Shard
from ..store.errors import InvalidKey
from ..store.layout import Layout
from ..store.names import element_of, encode_key, split_name
from ..store.subfolders import dropped
from .rows import STATES, places


@dataclass(frozen=True, slots=True)
class Census:
    """How many elements of each state there are, and when the oldest arrived (nanoseconds since the
    epoch)."""

    count: dict[str, int]
    """Of STATES, and "dropped": files in drop/ that are not ingested yet."""
    oldest: dict[str, int]
    """Of those STATES of which there are any."""
    waiting: dict[str, str]
    """Of what is waiting: encoded key -> the number of its place, as digits."""


def census(layout: Layout, shard: Shard = WHOLE) -> Census:
    """Count the elements of a shard. A key that is waiting in several places counts once. Raises OSError."""
    count, oldest = {}, {}
    waiting = _waiting(layout, shard)
    for state in STATES:
        if state == "waiting":
            numbers = list(waiting.values())
        else:
            numbers = [digits for digits, _ in _elements(layout, state, shard)]
        count[state] = len(numbers)
        if numbers:
            oldest[state] = int(min(numbers))
    drops = dropped(layout)
    count["dropped"] = len(drops) if shard == WHOLE else sum(map(shard.has, map(_encoded, drops)))
    return Census(count, oldest, waiting)


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
        split = split_name(element_of(name) if state == "deferred" else name)
        if split and "~" not in split[1] and shard.has(split[1]):
            yield split


def _encoded(name: str) -> str:
    """Return the encoded key of a file in drop/, "" if it has none: shards divide them by it."""
    try:
        return encode_key(name)
    except InvalidKey:
        return ""
