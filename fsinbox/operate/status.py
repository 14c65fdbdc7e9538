"""How an inbox stands, in figures: what `fsinbox status`, `top` and `web` show."""

from __future__ import annotations

from dataclasses import dataclass
from time import time_ns

from ..store.bounds import limits
from ..store.control import requests
from ..store.ignoring import Ignored, looked_up
from ..store.layout import Layout
from ..store.names import decode_key
from ..store.subfolders import dropped
from .admission import held_by
from .ages import Ages
from .census import Census, census
from .consumers import consumers, stats_of
from .pace import Pace, pace
from .stats import ConsumerStats, Totals, read_stats, sum_of


@dataclass(frozen=True, slots=True)
class Summary:
    """How an inbox stands. Ages in seconds."""

    path: str
    waiting: int
    in_flight: int
    deferred: int
    failed: int
    dropped: int
    """Files in drop/ that are not ingested yet ..."""
    oldest_waiting: float | None
    oldest_in_flight: float | None
    consumer: str | None
    """Who consumes now, if anyone."""
    consumers: list[dict[str, object]]
    scope: str
    oldest_deferred: float | None
    """Since it arrived."""
    held: list[str]
    """Keys on hold."""
    paused: bool
    paused_until: float | None
    """When the pause ends by itself, in seconds since the epoch."""
    paused_by: str | None
    slowed_until: float | None
    """When a consumer that is slowed down, because many elements in a row have failed, tries the next one, in
    seconds since the epoch."""
    ages: Ages
    pace: Pace
    totals: Totals
    """Of all consumers since the inbox was made."""
    max_waiting: int
    """How many may wait, those deferred included; 0: no bound."""
    min_free: int
    """Bytes that must stay free on its file system; 0: no bound."""
    stuck: str | None
    """Who holds the admission lock, so that all adds wait; None if it is free. (See admission.held_by.)"""
    ignored: int
    """... of which so many will not be, for their names (see store.ignoring)."""
    ignoring: dict[str, list[str]]
    """The lists of such names; what a consumer was given in addition is only in its log."""
    later: dict[str, int]
    """How many of those "waiting" and "deferred" are for later: not to be handed out before their time ..."""
    later_known: bool
    """... and whether that is all of them (see operate.later)."""

    @property
    def ready(self) -> int:
        """How many are waiting that are not for later."""
        return self.waiting - self.later["waiting"]


def summary(layout: Layout) -> Summary:
    """Return how the inbox stands. Raises OSError."""
    now = time_ns()
    asked = requests(layout)
    found = census(layout, held=asked.held, now=now)
    running = consumers(layout)
    every = read_stats(layout)
    bounds = limits(layout)
    ignored = looked_up(layout)
    return Summary(
        path=layout.path,
        waiting=found.count["waiting"],
        in_flight=found.count["in_flight"],
        deferred=found.count["deferred"],
        failed=found.count["failed"],
        dropped=found.count["dropped"],
        oldest_waiting=_age(found, "waiting", now),
        oldest_in_flight=_age(found, "in_flight", now),
        consumer="; ".join(str(one["holder"]) for one in running if one["holder"]) or None,
        consumers=running,
        scope=layout.scope,
        oldest_deferred=_age(found, "deferred", now),
        held=sorted(filter(None, map(decode_key, asked.held))),
        paused=asked.paused,
        paused_until=asked.until / 1e9 if asked.paused and asked.until else None,
        paused_by=asked.by or None if asked.paused else None,
        ages=found.ages,
        slowed_until=min(_slowed(running, every), default=None),
        pace=pace(found, every, running, asked),
        totals=sum_of(every),
        max_waiting=bounds.max_waiting,
        min_free=bounds.min_free,
        stuck=held_by(layout),
        ignored=_count(layout, ignored) if found.count["dropped"] else 0,
        ignoring=ignored.lists(),
        later={state: len(keys) for state, keys in found.later.items()},
        later_known=found.later_known,
    )


def _slowed(running: list[dict[str, object]], every: list[ConsumerStats]) -> list[float]:
    """Return when the consumers that are slowed down try the next element."""
    found = [stats_of(one, every) for one in running]
    return [stats.slowed_until for stats in found if stats and stats.slowed_until]


def _count(layout: Layout, ignored: Ignored) -> int:
    """Return how many files in drop/ are ignored."""
    names = dropped(layout)
    return len(names) - len(ignored.left(names))


def _age(found: Census, state: str, now: int) -> float | None:
    return max(0, now - found.oldest[state]) / 1e9 if state in found.oldest else None
