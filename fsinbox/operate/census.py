"""How many elements there are in each state, and how old the oldest is: by names alone, millions of them, but
for what is for later.

Nothing is kept of what is waiting but a hash of each key, so a million take some 20 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from time import time_ns

from ..consumer.coalescing import twins
from ..consumer.ownership import WHOLE, Shard
from ..store.errors import InvalidKey
from ..store.layout import Layout
from ..store.names import element_of, encode_key, split_name
from ..store.subfolders import dropped
from .ages import Ages, Histogram
from .later import Looked, look_at_deferred, look_at_waiting
from .rows import STATES, places


@dataclass(frozen=True, slots=True)
class Census:
    """How many elements of each state there are, and when the oldest arrived (nanoseconds since the
    epoch)."""

    count: dict[str, int]
    """Of STATES, and "dropped": files in drop/ that are not ingested yet."""
    oldest: dict[str, int]
    """Of those STATES of which there are any; what is for later is not old, but from when its time came."""
    ready: int
    """How many of those that are waiting are neither on hold nor known to be for later ..."""
    oldest_ready: int
    """... and when the oldest of them arrived; 0 if there is none."""
    ages: Ages
    """Of those that are waiting and not known to be for later."""
    later: dict[str, set[str]]
    """Of what is "waiting" and "deferred", the encoded keys of what is known to be for later ..."""
    later_known: bool
    """... and whether that is all of it: see later."""


_NONE = "a"
"""Above all digits: in place of those of the oldest, where there is none."""


class _Waiting:
    """What is waiting, counted place by place. `later`, `held`: encoded keys."""

    def __init__(self, held: frozenset[str], later: set[str], histogram: Histogram) -> None:
        self.count = self.ready = 0
        self.first, self.oldest_ready = (_NONE, ""), _NONE
        self.histogram = histogram
        self._held = held
        self._later = later

    def add(self, place: tuple[str, str]) -> None:
        """Count a place: (number as digits, encoded key)."""
        self.count += 1
        digits, encoded = place
        if digits < self.first[0]:
            self.first = place
        if encoded in self._later:
            return
        self.histogram.add(digits, encoded)
        if encoded not in self._held:
            self.ready += 1
            if digits < self.oldest_ready:
                self.oldest_ready = digits


def census(
    layout: Layout, shard: Shard = WHOLE, held: frozenset[str] = frozenset(), now: int | None = None
) -> Census:
    """Count the elements of a shard. A key that is waiting in several places counts once. `held`: encoded
    keys on hold; `now`: nanoseconds since the epoch. Raises OSError."""
    now = time_ns() if now is None else now
    waiting, looked_at_waiting = _waiting(layout, shard, held, now)
    deferred = [
        (encoded, digits, file)
        for _, file in places(layout, "deferred")
        for digits, encoded in _parts(element_of(file), shard)
    ]
    looked = {"waiting": looked_at_waiting, "deferred": look_at_deferred(layout, deferred, now)}
    count = {"waiting": waiting.count, "deferred": len(deferred)}
    oldest = {state: found.since for state, found in looked.items() if found.since is not None}
    for state in ("in_flight", "failed"):
        first, count[state] = _NONE, 0
        for digits, _ in _elements(layout, state, shard):
            count[state] += 1
            first = min(first, digits)
        if count[state]:
            oldest[state] = int(first)
    drops = dropped(layout)
    count["dropped"] = len(drops) if shard == WHOLE else sum(map(shard.has, map(_encoded, drops)))
    return Census(
        count,
        oldest,
        waiting.ready,
        int(waiting.oldest_ready) if waiting.ready else 0,
        waiting.histogram.result(),
        {state: found.later for state, found in looked.items()},
        all(found.whole for found in looked.values()),
    )


def _waiting(layout: Layout, shard: Shard, held: frozenset[str], now: int) -> tuple[_Waiting, Looked]:
    """Count the oldest place of each key that is waiting. Looks twice where a key has several, where some are
    for later, or where there were too many prefixes to be counted at once."""
    found = _Waiting(held, set(), Histogram(now))
    hashes = array("q")
    for place in _elements(layout, "waiting", shard):
        hashes.append(hash(place[1]))
        found.add(place)
    places = partial(_elements, layout, "waiting", shard)
    looked = look_at_waiting(layout, places, found.first, found.count, now)
    twice = twins(hashes)
    if not (twice or looked.later or found.histogram.is_rough):
        return found, looked
    only = found.histogram.top() if found.histogram.is_rough else None
    found = _Waiting(held, looked.later, Histogram(now, only))
    first: dict[str, str] = {}
    for place in places():
        digits, encoded = place
        if hash(encoded) in twice:
            first[encoded] = min(digits, first.get(encoded, digits))
        else:
            found.add(place)
    for encoded, digits in first.items():
        found.add((digits, encoded))
    return found, looked


def _elements(layout: Layout, state: str, shard: Shard) -> Iterator[tuple[str, str]]:
    """Go through (number as digits, encoded key) of the elements in a state, in no order. No key is decoded:
    that would take twice the time."""
    for name in layout.names_one_by_one(STATES[state]):
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
