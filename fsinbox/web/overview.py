"""The figures of the first page: those of `fsinbox status` and `fsinbox top`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from time import time
from urllib.parse import quote

from ..operate.ages import Ages
from ..operate.consumers import stats_of
from ..operate.report import Limits, later, rate, verdict
from ..operate.stats import ConsumerStats, Failure, Running, read_stats
from ..operate.status import Summary, summary
from ..operate.units import length
from ..store.errors import InvalidKey
from ..store.names import element_name, encode_key
from . import charts
from .listing import Glance

_FAILURES = 8
_RUNNING = 20


@dataclass(frozen=True, slots=True)
class Card:
    """The figures of one state. `oldest` in seconds; `more`: there are more than were looked at; `later`: how
    many are for later, in words."""

    state: str
    count: int
    oldest: float | None
    more: bool
    says: str
    later: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an age histogram. `share`: of the largest one, in per cent."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Happening:
    """An element in flight, or a failed attempt. `ago`: seconds since it began, or failed; `address`: its
    page, or ""."""

    key: str
    ago: float
    address: str
    attempts: int = 0
    summary: str = ""
    last: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """How an inbox stands."""

    summary: Summary
    level: str
    verdict: str
    cards: list[Card]
    cut: bool
    """A folder has more than was looked at."""
    rate: str
    to_empty: str
    activity: charts.Activity
    columns: list[Column]
    prefixes: list[tuple[str, int]]
    stats: dict[str, ConsumerStats]
    """Of the consumers that run now, by their shard."""
    running: list[Happening]
    more_running: int
    failures: list[Happening]
    at: float


def overview(layout: Glance, limits: Limits) -> Figures:
    """Return the figures of an inbox. Raises OSError."""
    found = summary(layout)
    every = read_stats(layout)
    now = time()
    current = {
        str(one["shard"]): stats
        for one in found.consumers
        if one["holder"] and (stats := stats_of(one, every))
    }
    running = [_running(one, now) for stats in current.values() for one in stats.running]
    failures = sorted((one for stats in every for one in stats.failures), key=lambda one: -one.at)
    level, text = verdict(found, limits)
    cut = bool(layout.cut)
    return Figures(
        summary=found,
        level=level,
        verdict=text,
        cards=_cards(found, layout.cut),
        cut=cut,
        rate=rate(found),
        to_empty=_to_empty(found, cut=cut),
        activity=charts.activity(every, now),
        columns=_columns(found.ages),
        prefixes=[(name, sum(counts)) for name, counts in found.ages.prefixes.items()],
        stats=current,
        running=sorted(running, key=lambda one: -one.ago)[:_RUNNING],
        more_running=max(0, len(running) - _RUNNING),
        failures=[_failure(one, now) for one in failures[:_FAILURES]],
        at=now,
    )


def _cards(found: Summary, cut: set[str]) -> list[Card]:
    return [
        Card(
            "waiting",
            found.waiting,
            found.oldest_waiting,
            "pending" in cut,
            "Waiting",
            later(found, "waiting"),
        ),
        Card("in_flight", found.in_flight, found.oldest_in_flight, "inflight" in cut, "In flight"),
        Card(
            "deferred",
            found.deferred,
            found.oldest_deferred,
            "deferred" in cut,
            "Deferred until the next try, or its time",
            later(found, "deferred"),
        ),
        Card("failed", found.failed, None, "failed" in cut, "Failed"),
        Card("dropped", found.dropped, None, "drop" in cut, "In drop/, not ingested yet"),
    ]


def _to_empty(found: Summary, *, cut: bool) -> str:
    if not found.waiting:
        return "no elements are waiting"
    if not found.ready:
        return "all that is waiting is for later"
    if cut:
        return "unknown: not all elements are counted here"
    return (
        f"unknown: {found.pace.why}"
        if found.pace.to_empty is None
        else f"about {length(found.pace.to_empty)}"
    )


def _columns(ages: Ages) -> list[Column]:
    minutes = [limit // 60 for limit in ages.limits]
    labels = [f"up to {_minutes(minutes[0])}"]
    labels += [f"{_minutes(low)} to {_minutes(high)}" for low, high in pairwise(minutes)]
    labels.append(f"over {_minutes(minutes[-1])}")
    most = max(*ages.total, 1)
    return [
        Column(label, count, round(100 * count / most, 1))
        for label, count in zip(labels, ages.total, strict=True)
    ]


def _minutes(number: int) -> str:
    hours, rest = divmod(number, 60)
    return f"{rest} m" if not hours else f"{hours} h {rest} m" if rest else f"{hours} h"


def _running(one: Running, now: float) -> Happening:
    return Happening(
        one.key, max(0.0, now - one.started), _address("in_flight", one.key, one.seq), one.attempts
    )


def _failure(one: Failure, now: float) -> Happening:
    ago = max(0.0, now - one.at)
    return Happening(one.key, ago, _address("failed", one.key, one.seq), summary=one.summary, last=one.last)


def _address(state: str, key: str, seq: int) -> str:
    """Return the address of an element's page; "" if there can be no such element."""
    try:
        return f"/elements/{state}/{quote(element_name(seq, encode_key(key)), safe='')}"
    except InvalidKey:
        return ""
