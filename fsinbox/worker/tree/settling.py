"""Debounce: a file is queued after it has lain still. Knows no file system: what was seen is told to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

from .folders import Fingerprint

Item = TypeVar("Item")

TICK = 0.05
"""Seconds between two looks at a file at least. A change within one tick of the file system's clock (up to 10
ms) leaves the same times: the second look, and what is read after it, is beyond that."""


@dataclass
class _Entry:
    limit: float
    due: float
    seen: Fingerprint | None


class Settling(Generic[Item]):
    """The files that have changed and may still be changing. Times are monotonic seconds."""

    def __init__(self, settle: float, longest: float) -> None:
        """`settle`: seconds that a file must lie still. After `longest` it is due, still or not."""
        self.settle = max(settle, TICK)
        self._longest = max(longest, self.settle)
        self._entries: dict[Item, _Entry] = {}
        self._heap: list[tuple[float, int, Item]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._entries

    def saw(self, item: Item, seen: Fingerprint | None, now: float) -> None:
        """It has changed, and looked like this (None: not there): wait from now on."""
        entry = self._entries.get(item)
        if entry is None:
            entry = self._entries[item] = _Entry(now + self._longest, 0.0, seen)
        entry.seen = seen
        self._wait(item, entry, min(now + self.settle, entry.limit))

    def postpone(self, item: Item, seen: Fingerprint | None, until: float) -> None:
        """It could not be queued: look at it again at this time."""
        entry = self._entries[item] = _Entry(until, 0.0, seen)
        self._wait(item, entry, until)

    def is_still(self, item: Item, seen: Fingerprint | None, now: float) -> bool:
        """It is due, and looks like this: tell whether it has lain still. It then needs no more waiting; else
        it is waited for from now on."""
        if self._entries[item].seen == seen:
            del self._entries[item]
            return True
        self.saw(item, seen, now)
        return False

    def is_overdue(self, item: Item, now: float) -> bool:
        """Tell whether it has been waited for long enough, still or not."""
        return now >= self._entries[item].limit

    def forget(self, item: Item) -> None:
        """It needs no waiting."""
        self._entries.pop(item, None)

    def due(self, now: float) -> Iterator[Item]:
        """Go through what is due; each must be told to `is_still`, `saw`, `postpone` or `forget`."""
        while self._heap and self._heap[0][0] <= now:
            time, _, item = heappop(self._heap)
            entry = self._entries.get(item)
            if entry and entry.due == time:
                yield item

    def next_due(self) -> float | None:
        """Return when something is due next, or earlier; None if nothing is waited for."""
        return self._heap[0][0] if self._heap else None

    def _wait(self, item: Item, entry: _Entry, due: float) -> None:
        entry.due = due
        self._serial += 1
        heappush(self._heap, (due, self._serial, item))
