"""What a consumer says of its work: stats/<i>of<n>.json, for `fsinbox status`, `top`, `web` and whoever else
wants to know.

Written by `fsinbox consume`, at most once a second and only while something happens; each write replaces the
file whole. The totals go on where the consumer before has left off. Nothing rests on it: it is not flushed,
and whoever reads it takes what does not fit for not there.
"""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from time import time
from typing import Any, TypeVar

from ..consumer.ownership import Shard
from ..store.files import write_whole
from ..store.layout import Layout

Made = TypeVar("Made", "Record", "Totals", "Running", "Failure")

MINUTES = 60
"""Minutes of which the numbers are kept one by one."""

FAILURES = 20
"""The newest failures that are kept."""

_LARGEST = 1 << 20

_HIGHEST = 10**19
"""What no number of ours reaches; NaN is not below it either."""


@dataclass(slots=True)
class Totals:
    """What consumers of this shard have done, since the inbox was made. Seconds are of handlers, and of
    wake-ups."""

    taken: int = 0
    """Handed to a handler: each attempt."""
    arrived: int = 0
    """Taken for the first time."""
    replaced: int = 0
    """Of those, how many stood for more than one add: a newer value had replaced one that waited."""
    acknowledged: int = 0
    retried: int = 0
    superseded: int = 0
    """Ended because a newer value of their key waited."""
    failed: int = 0
    handled: float = 0.0
    """Seconds in handlers, all together."""
    woken: int = 0
    """Elements that woke an idle consumer ..."""
    latency: float = 0.0
    """... and the seconds from when they were queued until their handler was called, all together."""


@dataclass(slots=True)
class Running:
    """An element that is being handled. Times in seconds since the epoch."""

    key: str
    seq: int
    attempts: int
    started: float


@dataclass(slots=True)
class Failure:
    """An attempt that failed, in one line. `last`: whether it was the last, so that the element is in failed/
    now."""

    key: str
    seq: int
    at: float
    summary: str
    last: bool


@dataclass(slots=True)
class Record:
    """One consumer's account. Times in seconds since the epoch."""

    shard: str = "1/1"
    pid: int = 0
    host: str = ""
    handler: str = ""
    concurrency: int = 1
    since: float = 0.0
    at: float = 0.0
    """When this was written."""
    stopped: bool = False
    """Whether it has come to an end by itself. (Whether one is running, the lock tells: see
    survey.consumers.)"""
    totals: Totals = field(default_factory=Totals)
    minutes: list[list[int]] = field(default_factory=list)
    """The last MINUTES in which something happened: [minute since the epoch, acknowledged, failed attempts,
    arrived]."""
    running: list[Running] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """The newest failed attempts, newest first."""


class Account:
    """Keeps a Record and writes it down."""

    def __init__(self, layout: Layout, shard: Shard, handler: str, concurrency: int) -> None:
        """Go on from what the consumer before has left."""
        self._layout = layout
        self._name = f"{shard.index}of{shard.count}.json"
        before = _read(layout, self._name) or Record()
        self.record = Record(
            str(shard), os.getpid(), os.uname().nodename, handler, concurrency, since=time(),
            totals=before.totals, minutes=before.minutes, failures=before.failures,
        )  # fmt: skip
        self._running: dict[int, Running] = {}
        self._failures: deque[Failure] = deque(before.failures, FAILURES)

    def started(self, key: str, seq: int, attempts: int, *, replaced: bool, latency: float | None) -> None:
        """An element was handed to a handler; `latency` in seconds, if it woke us."""
        totals = self.record.totals
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
        """A handler is done with it. `became`: "acknowledged", "retried", "superseded" or "failed"."""
        totals = self.record.totals
        setattr(totals, became, getattr(totals, became) + 1)
        totals.handled += seconds
        self._running.pop(seq, None)
        if became == "acknowledged":
            self._minute()[1] += 1
        elif summary:
            self._minute()[2] += 1
            self._failures.appendleft(Failure(key, seq, time(), summary, became == "failed"))

    def write(self, *, stopped: bool = False) -> None:
        """Write it down. Raises OSError."""
        record = self.record
        record.at, record.stopped = time(), stopped
        record.running = sorted(self._running.values(), key=lambda running: running.started)
        record.failures = list(self._failures)
        self._layout.make("stats")
        write_whole(self._layout, "stats", self._name, json.dumps(asdict(record)).encode())

    def _minute(self) -> list[int]:
        minutes = self.record.minutes
        now = int(time() // 60)
        if not minutes or minutes[-1][0] != now:
            minutes.append([now, 0, 0, 0])
            del minutes[:-MINUTES]
        return minutes[-1]


def records(layout: Layout) -> list[Record]:
    """Return the accounts of all consumers there have been: one a shard."""
    if not layout.has("stats"):
        return []
    found = [_read(layout, name) for name in sorted(layout.names("stats")) if name.endswith(".json")]
    return [record for record in found if record]


def _read(layout: Layout, name: str) -> Record | None:
    """Return an account; None if there is none, or it is not what we would have written."""
    if not layout.has("stats"):
        return None
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.folder("stats")
        )
        with open(fd, "rb") as file:
            return _parse(json.loads(file.read(_LARGEST)))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _parse(raw: Any) -> Record:
    """Raises TypeError, ValueError, LookupError for what is no account."""
    record = _typed(Record, raw)
    record.totals = _typed(Totals, raw["totals"])
    record.running = [_typed(Running, one) for one in raw["running"]]
    record.failures = [_typed(Failure, one) for one in raw["failures"]]
    record.minutes = [[int(number) for number in minute] for minute in raw["minutes"] if len(minute) == 4]
    return record


def _typed(kind: type[Made], raw: Any) -> Made:
    """Make one of our dataclasses of the members that it knows. Raises TypeError if one is of another
    type."""
    if not isinstance(raw, dict):
        raise TypeError("no object")
    values: dict[str, Any] = {}
    for member in fields(kind):
        expected = _TYPES.get(str(member.type))
        if expected and member.name in raw:
            value: Any = raw[member.name]
            if not isinstance(value, expected) or (
                isinstance(value, (int, float)) and not abs(value) < _HIGHEST
            ):
                raise TypeError(f"{member.name} is of another type, or no such number")
            values[member.name] = value
    return kind(**values)
