"""How long what is waiting has waited: a histogram of ages, as Postfix's qshape draws it."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from heapq import nlargest

from ..store.names import DIGITS, decode_key

LIMITS = tuple(300 << doubled for doubled in range(9))
"""Upper limits of the columns, in seconds: 5, 10, 20 ... 1280 minutes, those of qshape."""

PREFIXES = 8
"""Rows: the commonest prefixes of keys."""

MOST_PREFIXES = 20_000
"""Prefixes that are counted at once. If keys have more, those of few are forgotten, and the commonest counted
again."""

Place = tuple[str, str, str]
"""Of an element: its number as digits, its encoded key, and the prefix of that."""

_PREFIX = r"(?:[-.]|%2F|%3A)*[^-.%/]*(?:%(?!2F|3A)[^-.%/]*)*"
"""What an encoded key begins with, up to the first `/`, `:`, `-` or `.` behind another character."""

PLACES = re.compile(rf"(?<=/)([0-9]{{{DIGITS}}})-((?=[^/])({_PREFIX})[^/]*)")
"""Finds the places in names of elements with a `/`, which no name has, before each. What is no such name is
skipped. (One search of some thousands takes half the time of a look at each.)"""


@dataclass(frozen=True, slots=True)
class Ages:
    """A row is counts by age: up to limits[0], up to limits[1] but older than that ..., older than all of
    them."""

    limits: tuple[int, ...]
    """In seconds."""
    total: list[int]
    prefixes: dict[str, list[int]]
    """The same for the commonest prefixes of keys, those of two keys or more, the commonest first."""


class Histogram:
    """Counts elements by age and prefix."""

    def __init__(self, now: int, only: list[str] | None = None) -> None:
        """`now`: nanoseconds since the epoch. `only`: prefixes, of which alone rows are counted."""
        self._limits = [f"{max(0, now - limit * 10**9):0{DIGITS}d}" for limit in reversed(LIMITS)]
        self._total = self._row()
        self._rows = {prefix: self._row() for prefix in only or ()}
        self._grows = only is None
        self.is_rough = False
        """Whether there were too many prefixes, so that those of one element were forgotten now and then."""

    def _row(self) -> list[int]:
        """Return a row of zeros, the oldest first."""
        return [0] * (len(LIMITS) + 1)

    def add(self, places: list[Place]) -> None:
        """Count some elements."""
        columns = [bisect(self._limits, digits) for digits, _, _ in places]
        prefixes = [prefix for _, _, prefix in places]
        for (prefix, column), count in Counter(zip(prefixes, columns, strict=True)).items():
            self._total[column] += count
            row = self._rows.get(prefix)
            if row is None:
                if not self._grows:
                    continue
                row = self._rows[prefix] = self._row()
                if len(self._rows) > MOST_PREFIXES:
                    self._forget_rare()
            row[column] += count

    def _forget_rare(self) -> None:
        self.is_rough = True
        rare = 1
        while len(self._rows) > MOST_PREFIXES // 2:
            self._rows = {prefix: row for prefix, row in self._rows.items() if sum(row) > rare}
            rare *= 2

    def top(self) -> list[str]:
        """Return the commonest prefixes, those of two keys or more, the commonest first."""
        counts = {prefix: sum(row) for prefix, row in self._rows.items()}
        return nlargest(
            PREFIXES, [prefix for prefix, count in counts.items() if count > 1], counts.__getitem__
        )

    def result(self) -> Ages:
        """Return what was counted."""
        rows = {decode_key(prefix) or prefix: self._rows[prefix][::-1] for prefix in self.top()}
        return Ages(LIMITS, self._total[::-1], rows)
