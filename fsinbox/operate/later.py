"""What waits for its time: told from what is late, by the mark on its file.

Names do not tell, and a look at a file takes twice as long as a look at a name. So of each state LOOKS files
are looked at, at most: 20 ms, beside seconds for a million names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from operator import itemgetter

from ..store.files import for_later, not_before
from ..store.layout import Layout
from ..store.names import element_name

LOOKS = 10_000
"""Files of a state that are looked at, at most."""


@dataclass(slots=True)
class Looked:
    """What a look at some files has shown."""

    later: set[str] = field(default_factory=set)
    """Encoded keys of those that are not to be handed out yet."""
    since: int | None = None
    """Since when the oldest of the others waits: since it arrived, or since its time came. Nanoseconds since
    the epoch."""
    whole: bool = True
    """Whether these were all."""


def look_at_waiting(layout: Layout, waiting: dict[str, str], now: int) -> Looked:
    """Look at what waits (Census.waiting). If there are more than LOOKS, at some, the oldest among them.
    Raises OSError."""
    places: Iterable[tuple[str, str]] = waiting.items()
    whole = len(waiting) <= LOOKS
    if not whole:
        first = min(waiting.values())  # (half as long as by a key)
        oldest = next(place for place in places if place[1] == first)
        status = _status(layout, "pending", _file(oldest))
        if status and for_later(status):  # then the one that waits for longest is behind it: seldom
            places = nsmallest(LOOKS, places, key=itemgetter(1))
        else:
            places = [oldest, *islice(places, LOOKS - 1)]
    found = _look(layout, "pending", ((*place, _file(place)) for place in places), now)
    found.whole = whole
    if found.since is None and not whole:  # all of these are for later; whoever is next is not known
        found.since = int(max(digits for _, digits in places))
    return found


def look_at_deferred(layout: Layout, deferred: list[tuple[str, str, str]], now: int) -> Looked:
    """The same for what is deferred: (encoded key, its number as digits, file). If there are more than LOOKS,
    at those that are due first: what is to be retried is, before what is for next week."""
    some = deferred if len(deferred) <= LOOKS else nsmallest(LOOKS, deferred, key=itemgetter(2))
    found = _look(layout, "deferred", some, now)
    found.whole = some is deferred
    return found


def _look(layout: Layout, folder: str, files: Iterable[tuple[str, str, str]], now: int) -> Looked:
    found = Looked()
    for encoded, digits, file in files:
        status = _status(layout, folder, file)
        if status and not_before(status) > now:
            found.later.add(encoded)
            continue
        since = max(int(digits), status.st_mtime_ns) if status and for_later(status) else int(digits)
        found.since = since if found.since is None else min(found.since, since)
    return found


def _file(place: tuple[str, str]) -> str:
    encoded, digits = place
    return element_name(int(digits), encoded)


def _status(layout: Layout, folder: str, file: str) -> os.stat_result | None:
    """Return a file's status; None if it is gone."""
    try:
        return os.lstat(file, dir_fd=layout.folder(folder))
    except FileNotFoundError:
        return None
