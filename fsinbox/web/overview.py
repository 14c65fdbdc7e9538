"""The figures of the first page: those of `fsinbox status` and `fsinbox top`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from time import time
from urllib.parse import quote

from ..operate import survey
from ..operate.report import Limits, rate, verdict
from ..operate.stats import Failure, Record, Running, records
from ..operate.units import length
from ..store.errors import InvalidKey
from ..store.names import element_name, encode_key
from . import charts, look

_FAILURES = 8
_RUNNING = 20
_LARGEST = 1e11
"""Up to which number of anything, seconds since the epoch included, an account is believed."""


@dataclass(frozen=True, slots=True)
class Card:
    """One state in figures. `oldest` in seconds; `more`: there are more than were looked at."""

    state: str
    count: int
    oldest: float | None
    more: bool
    says: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an age histogram. `share`: of the largest one, in per cent."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Happening:
    """An element that is handled, or an attempt that failed: since when, or when, in seconds ago; and where
    it may be seen."""

    key: str
    ago: float
    address: str
    attempts: int = 0
    summary: str = ""
    last: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """How an inbox stands."""

    summary: survey.Summary
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
    accounts: dict[str, Record]
    """Of those who consume now: by their shard."""
    running: list[Happening]
    more_running: int
    failures: list[Happening]
    at: float


def overview(layout: look.Glance, limits: Limits) -> Figures:
    """Look at all of it, once. Raises OSError."""
    found = survey.summary(layout)
    kept = [record for record in records(layout) if _plausible(record)]
    now = time()
    accounts = {
        str(one["shard"]): account
        for one in found.consumers
        if one["holder"] and (account := survey.account_of(one, kept))
    }
    running = [_running(one, now) for account in accounts.values() for one in account.running]
    failures = sorted((one for record in kept for one in record.failures), key=lambda one: -one.at)[
        :_FAILURES
    ]
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
        activity=charts.activity(kept, now),
        columns=_columns(found.ages),
        prefixes=[(name, sum(counts)) for name, counts in found.ages.prefixes.items()],
        accounts=accounts,
        running=sorted(running, key=lambda one: -one.ago)[:_RUNNING],
        more_running=max(0, len(running) - _RUNNING),
        failures=[_failure(one, now) for one in failures],
        at=now,
    )


def _cards(found: survey.Summary, cut: set[str]) -> list[Card]:
    return [
        Card("waiting", found.waiting, found.oldest_waiting, "pending" in cut, "Waiting"),
        Card("out", found.out, found.oldest_out, "inflight" in cut, "Being handled"),
        Card(
            "deferred", found.deferred, found.oldest_deferred, "deferred" in cut, "Waiting to be tried again"
        ),
        Card("failed", found.failed, None, "failed" in cut, "Failed"),
        Card("dropped", found.dropped, None, "drop" in cut, "In drop/, not adopted yet"),
    ]


def _to_empty(found: survey.Summary, *, cut: bool) -> str:
    if not found.waiting:
        return "nothing waits"
    if cut:
        return "unknown: there is more than is counted here"
    return (
        f"unknown: {found.pace.why}"
        if found.pace.to_empty is None
        else f"about {length(found.pace.to_empty)}"
    )


def _columns(ages: survey.Ages) -> list[Column]:
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


def _plausible(record: Record) -> bool:
    """Tell whether the numbers of an account can be shown. Whoever may write to the inbox may have written
    it."""
    numbers = [record.since, *(number for minute in record.minutes for number in minute)]
    numbers += [running.started for running in record.running] + [failure.at for failure in record.failures]
    return all(0 <= number <= _LARGEST for number in numbers)


def _running(one: Running, now: float) -> Happening:
    return Happening(one.key, max(0.0, now - one.started), _address("out", one.key, one.seq), one.attempts)


def _failure(one: Failure, now: float) -> Happening:
    ago = max(0.0, now - one.at)
    return Happening(one.key, ago, _address("failed", one.key, one.seq), summary=one.summary, last=one.last)


def _address(state: str, key: str, seq: int) -> str:
    """Return where an element may be seen; "" if it cannot be one."""
    try:
        return f"/elements/{state}/{quote(element_name(seq, encode_key(key)), safe='')}"
    except InvalidKey:
        return ""
