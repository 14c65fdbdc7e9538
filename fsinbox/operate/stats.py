"""Statistics of a consumer: stats/<i>of<n>.json, for `fsinbox status`, `top`, `web` and metrics.

`fsinbox consume` writes them, at most once a second and only while something happens; each write replaces the
whole file. The totals continue where the consumer before left off. No promise depends on them: they are not
flushed, and a reader ignores a file that is not as we would write it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from time import time
from typing import Any, TypeVar

from ..consumer.ownership import Shard, parse_shard
from ..store.files import write_whole
from ..store.layout import Layout

Made = TypeVar("Made", "ConsumerStats", "Totals", "Running", "Failure")

MINUTES = 60
"""Minutes whose numbers are kept, one by one."""

FAILURES = 20
"""The newest failures that are kept."""

_LARGEST = 1 << 20

_HIGHEST = 10**19
"""No number of ours reaches it, nor is one below 0. (NaN is neither.)"""

_TIMES = {"since": 25e10, "at": 25e10, "started": 25e10}
"""Member -> the same for times, in seconds since the epoch: the year 9892, which a calendar still has."""

_LAST_MINUTE = 4 * 10**9
"""The same for minutes."""


@dataclass(slots=True)
class Totals:
    """What consumers of this shard have done since the inbox was made."""

    taken: int = 0
    """Elements handed to a handler: each attempt."""
    arrived: int = 0
    """Taken for the first time."""
    replaced: int = 0
    """Of those, how many stood for several adds: a newer value had replaced a waiting one."""
    acknowledged: int = 0
    retried: int = 0
    superseded: int = 0
    """Dropped because a newer value of their key was waiting."""
    failed: int = 0
    handled: float = 0.0
    """Seconds in handlers, all together."""
    woken: int = 0
    """Elements that woke an idle consumer ..."""
    latency: float = 0.0
    """... and the seconds from when they were queued until their handler was called, all together."""


@dataclass(slots=True)
class Running:
    """An element that is in flight. Times in seconds since the epoch."""

    key: str
    seq: int
    attempts: int
    started: float


@dataclass(slots=True)
class Failure:
    """A failed attempt, in one line. `last`: it was the last one, so the element moved to failed/."""

    key: str
    seq: int
    at: float
    summary: str
    last: bool


@dataclass(slots=True)
class ConsumerStats:
    """The statistics of one consumer. Times in seconds since the epoch."""

    shard: str = "1/1"
    pid: int = 0
    host: str = ""
    handler: str = ""
    concurrency: int = 1
    since: float = 0.0
    at: float = 0.0
    """When this was written."""
    stopped: bool = False
    """Whether it stopped in an orderly way. (The lock tells whether it runs: see consumers.)"""
    slowed_until: float = 0.0
    """When an element is tried next, because many in a row have failed; 0.0: it is not slowed down."""
    totals: Totals = field(default_factory=Totals)
    minutes: list[list[int]] = field(default_factory=list)
    """The last MINUTES in which something happened: [minute since the epoch, acknowledged, failed attempts,
    arrived]."""
    running: list[Running] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """The newest failed attempts, newest first."""


class StatsWriter:
    """Counts what a consumer does, and writes it down."""

    def __init__(self, layout: Layout, shard: Shard, handler: str, concurrency: int) -> None:
        """Continue from what the consumer before wrote last."""
        self._layout = layout
        self._name = f"{shard.index}of{shard.count}.json"
        before = _read(layout, self._name) or ConsumerStats()
        self.stats = ConsumerStats(
            str(shard), os.getpid(), os.uname().nodename, handler, concurrency, since=time(),
            totals=before.totals, minutes=before.minutes, failures=before.failures,
        )  # fmt: skip
        self._running: dict[int, Running] = {}
        self._failures: deque[Failure] = deque(before.failures, FAILURES)

    def started(self, key: str, seq: int, attempts: int, *, replaced: bool, latency: float | None) -> None:
        """Count an element that is handed to a handler. `latency`: seconds since it was queued, if it woke
        the consumer."""
        totals = self.stats.totals
        totals.taken += 1
        if attempts == 1:
            totals.arrived += 1
            totals.replaced += replaced
            self._minute()[3] += 1
        if latency is not None:
            totals.woken += 1
            totals.latency += latency
        self._running[seq] = Running(key, seq, attempts, time())

    def ended(self, key: str, seq: int, became: str, summary: str, seconds: float) -> None:
        """Count what became of it: "acknowledged", "retried", "superseded" or "failed"."""
        totals = self.stats.totals
        setattr(totals, became, getattr(totals, became) + 1)
        totals.handled += seconds
        self._running.pop(seq, None)
        if became == "acknowledged":
            self._minute()[1] += 1
        elif summary:
            self._minute()[2] += 1
            self._failures.appendleft(Failure(key, seq, time(), summary, became == "failed"))

    def write(self, *, stopped: bool = False) -> None:
        """Write the statistics. Raises OSError."""
        stats = self.stats
        stats.at, stats.stopped = time(), stopped
        stats.running = sorted(self._running.values(), key=lambda running: running.started)
        stats.failures = list(self._failures)
        self._layout.make("stats")
        write_whole(self._layout, "stats", self._name, json.dumps(asdict(stats)).encode())

    def _minute(self) -> list[int]:
        minutes = self.stats.minutes
        now = int(time() // 60)
        if not minutes or minutes[-1][0] != now:
            minutes.append([now, 0, 0, 0])
            del minutes[:-MINUTES]
        return minutes[-1]


def read_stats(layout: Layout) -> list[ConsumerStats]:
    """Return the statistics of the last consumer of each shard."""
    if not layout.has("stats"):
        return []
    found = [_read(layout, name) for name in sorted(layout.names("stats")) if name.endswith(".json")]
    return [stats for stats in found if stats]


def sum_of(every: list[ConsumerStats]) -> Totals:
    """Return the totals of all shards together."""
    total = Totals()
    for stats in every:
        for name in Totals.__slots__:
            setattr(total, name, getattr(total, name) + getattr(stats.totals, name))
    return total


def _read(layout: Layout, name: str) -> ConsumerStats | None:
    """Return the statistics in a file; None if there are none, or they are not as we would write them."""
    if not layout.has("stats"):
        return None
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.folder("stats")
        )
        with open(fd, "rb") as file:
            stats = _parse(json.loads(file.read(_LARGEST)))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return stats if name == f"{stats.shard.replace('/', 'of')}.json" else None


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def _parse(raw: Any) -> ConsumerStats:
    """Raises TypeError, ValueError, LookupError for anything that we would not write."""
    stats = _typed(ConsumerStats, raw)
    if str(parse_shard(stats.shard)) != stats.shard:
        raise ValueError("no name of a shard")
    stats.totals = _typed(Totals, raw["totals"])
    stats.running = [_typed(Running, one) for one in raw["running"]]
    stats.failures = [_typed(Failure, one) for one in raw["failures"]]
    stats.minutes = [minute for minute in raw["minutes"] if len(minute) == 4]
    for minute, *counts in stats.minutes:
        _check("minute", minute, (int,), _LAST_MINUTE)
        for count in counts:
            _check("count", count, (int,), _HIGHEST)
    return stats


def _typed(kind: type[Made], raw: Any) -> Made:
    """Make a dataclass of ours from the members that it knows. Raises TypeError, ValueError if one has
    another type, or is out of range."""
    if not isinstance(raw, dict):
        raise TypeError("not an object")
    values: dict[str, Any] = {}
    for member in fields(kind):
        expected = _TYPES.get(str(member.type))
        if expected and member.name in raw:
            value: Any = raw[member.name]
            _check(member.name, value, expected, _TIMES.get(member.name, _HIGHEST))
            values[member.name] = value
    return kind(**values)


def _check(name: str, value: Any, expected: tuple[type, ...], highest: float) -> None:
    if type(value) not in expected:
        raise TypeError(f"{name} has another type")
    if isinstance(value, (int, float)) and not 0 <= value < highest:
        raise ValueError(f"{name} is out of range")
