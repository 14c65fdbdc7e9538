"""How many elements there are in each state, and how old the oldest is: by names alone, millions of them, but
for what is for later.

Names are counted some thousands at a time, each step for all of them at once: half the time of one by one.
Nothing is kept of what is waiting but a hash of each key, so a million take some 20 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from time import time_ns

from ..consumer.ownership import WHOLE, Shard
from ..consumer.twins import twins
from ..store.errors import InvalidKey
from ..store.layout import Layout
from ..store.names import element_of, encode_key, split_name
from ..store.subfolders import dropped
from .ages import PLACES, Ages, Histogram, Place
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


_NONE = ("a", "", "")
"""Above all places: in place of the oldest, where there is none."""

_AT_ONCE = 5000
"""Names that are counted at once."""


class _Waiting:
    """What is waiting, counted. `later`, `held`: encoded keys."""

    def __init__(self, held: frozenset[str], later: set[str], histogram: Histogram) -> None:
        self.count = self.ready = 0
        self.first = self.oldest_ready = _NONE
        self.histogram = histogram
        self._held = held
        self._later = later

    def add(self, places: list[Place]) -> None:
        """Count some places."""
        self.count += len(places)
        self.first = min(self.first, min(places, default=_NONE))
        places = _without(places, self._later)
        self.histogram.add(places)
        places = _without(places, self._held)
        self.ready += len(places)
        self.oldest_ready = min(self.oldest_ready, min(places, default=_NONE))


def _without(places: list[Place], keys: frozenset[str] | set[str]) -> list[Place]:
    """Return the places of other keys than these encoded ones."""
    return [place for place in places if place[1] not in keys] if keys else places


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
        for some in _elements(layout, state, shard):
            count[state] += len(some)
            first = min(first, min(some, default=_NONE))
        if count[state]:
            oldest[state] = int(first[0])
    drops = dropped(layout)
    count["dropped"] = len(drops) if shard == WHOLE else sum(map(shard.has, map(_encoded, drops)))
    return Census(
        count,
        oldest,
        waiting.ready,
        int(waiting.oldest_ready[0]) if waiting.ready else 0,
        waiting.histogram.result(),
        {state: found.later for state, found in looked.items()},
        all(found.whole for found in looked.values()),
    )


def _waiting(layout: Layout, shard: Shard, held: frozenset[str], now: int) -> tuple[_Waiting, Looked]:
    """Count the oldest place of each key that is waiting. Looks twice where a key has several, where some are
    for later, or where there were too many prefixes to be counted at once."""

    def all_places() -> Iterator[list[Place]]:
        return _elements(layout, "waiting", shard)

    found = _Waiting(held, set(), Histogram(now))
    hashes = array("q")
    for some in all_places():
        hashes.extend([hash(place[1]) for place in some])
        found.add(some)
    one_by_one = chain.from_iterable
    looked = look_at_waiting(layout, lambda: one_by_one(all_places()), found.first, found.count, now)
    twice = twins(hashes)
    if not (twice or looked.later or found.histogram.is_rough):
        return found, looked
    only = found.histogram.top() if found.histogram.is_rough else None
    found = _Waiting(held, looked.later, Histogram(now, only))
    first: dict[str, Place] = {}
    for some in all_places():
        if twice:
            for place in some:
                if hash(place[1]) in twice:
                    first[place[1]] = min(place, first.get(place[1], place))
            some = [place for place in some if hash(place[1]) not in twice]
        found.add(some)
    found.add(list(first.values()))
    return found, looked


def _elements(layout: Layout, state: str, shard: Shard) -> Iterator[list[Place]]:
    """Go through the elements in a state, some thousands at a time, in no order. No key is decoded: that
    would take twice the time."""
    names = layout.names_one_by_one(STATES[state])
    while some := list(islice(names, _AT_ONCE)):
        text = "/".join(["", *some])
        if "~" in text:  # reasons, beside what has failed
            text = "/".join(["", *(name for name in some if "~" not in name)])
        found: list[Place] = PLACES.findall(text)
        yield found if shard == WHOLE else [place for place in found if shard.has(place[1])]


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
