"""What waits for its time: told from what is late, by the mark on its file.

Names do not tell, and a look at a file takes twice as long as a look at a name. So of each state LOOKS files
are looked at, at most: 20 ms, beside seconds for a million names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from operator import itemgetter

from ..store.files import for_later, not_before
from ..store.layout import Layout
from ..store.names import element_name
from .ages import Place

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


def look_at_waiting(
    layout: Layout, places: Callable[[], Iterable[Place]], oldest: Place, count: int, now: int
) -> Looked:
    """Look at what waits: `places` goes through all, `count` of them, the `oldest` among them. If there are
    more than LOOKS, at some, with the oldest. Raises OSError."""
    whole = count <= LOOKS
    some: list[Place] = []
    if whole:
        some = sorted(places())
    else:
        status = _status(layout, "pending", _file(oldest))
        if status and for_later(status):  # then the one that waits for longest is behind it: seldom
            some = nsmallest(LOOKS, places())
        else:
            some = [oldest, *islice(places(), LOOKS - 1)]
    first: dict[str, Place] = {}  # of a key at several places, the oldest of these
    for place in some:
        first.setdefault(place[1], place)
    files = [(encoded, place[0], _file(place)) for encoded, place in first.items()]
    found = _look(layout, "pending", files, now)
    found.whole = whole
    if found.since is None and not whole:  # all of these are for later; who is next is not known
        found.since = int(max(some)[0])
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
    first = ""  # of those that were never for later
    for encoded, digits, file in files:
        status = _status(layout, folder, file)
        if not status or not for_later(status):
            if not first or digits < first:
                first = digits
        elif not_before(status) > now:
            found.later.add(encoded)
        else:
            since = max(int(digits), status.st_mtime_ns)
            found.since = since if found.since is None else min(found.since, since)
    if first:
        found.since = int(first) if found.since is None else min(found.since, int(first))
    return found


def _file(place: Place) -> str:
    return element_name(int(place[0]), place[1])


def _status(layout: Layout, folder: str, file: str) -> os.stat_result | None:
    """Return a file's status; None if it is gone."""
    try:
        return os.lstat(file, dir_fd=layout.folder(folder))
    except FileNotFoundError:
        return None
