"""How long what is waiting has waited: a histogram of ages, as Postfix's qshape draws it."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from dataclasses import dataclass

from ..store.names import DIGITS, decode_key

LIMITS = tuple(300 << doubled for doubled in range(9))
"""Upper limits of the columns, in seconds: 5, 10, 20 ... 1280 minutes, those of qshape."""

PREFIXES = 8
"""Rows: the commonest prefixes of keys."""

_PREFIX = re.compile(r"(?:[-.]|%2F|%3A)*[^-.%]*(?:%(?!2F|3A)[^-.%]*)*")
"""What an encoded key begins with, up to the first `/`, `:`, `-` or `.` behind another character."""


@dataclass(frozen=True, slots=True)
class Ages:
    """A row is counts by age: up to limits[0], up to limits[1] but older than that ..., older than all of
    them."""

    limits: tuple[int, ...]
    """In seconds."""
    total: list[int]
    prefixes: dict[str, list[int]]
    """The same for the commonest prefixes of keys, those of two keys or more, the commonest first."""


def ages(waiting: dict[str, str], now: int) -> Ages:
    """Return the histogram of what is waiting (see Census.waiting), at a time in nanoseconds since the
    epoch."""
    limits = [f"{max(0, now - limit * 10**9):0{DIGITS}d}" for limit in reversed(LIMITS)]
    total = Counter(bisect(limits, digits) for digits in waiting.values())
    common = Counter(map(_prefix, waiting))
    top = [name for name, count in common.most_common(PREFIXES) if count > 1]
    wanted = set(top)
    cells = Counter(
        (prefix, bisect(limits, digits))
        for encoded, digits in waiting.items()
        if (prefix := _prefix(encoded)) in wanted
    )
    newest_first = range(len(limits), -1, -1)
    return Ages(
        LIMITS,
        [total[column] for column in newest_first],
        {decode_key(name) or name: [cells[name, column] for column in newest_first] for name in top},
    )


def _prefix(encoded: str) -> str:
    match = _PREFIX.match(encoded)
    return match[0] if match else encoded
