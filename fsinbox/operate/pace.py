"""How quickly the work goes, and how long it takes until nothing is waiting: by what consumers write down."""

from __future__ import annotations

from dataclasses import dataclass
from time import time

from .census import Census
from .consumers import stats_of
from .stats import ConsumerStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..store.control import Requests

MINUTES = 5
"""Minutes over which a rate is taken."""

_STEADY = 10.0
"""Seconds of uninterrupted work from which the time to empty is estimated."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How quickly the work goes. Times in seconds since the epoch."""

    rate: float | None
    """Elements acknowledged a minute; None if a consumer writes no statistics."""
    window: float
    """The seconds over which that was so."""
    last: float | None
    """When an element was last acknowledged: the minute's beginning."""
    to_empty: float | None
    """Seconds until all that is waiting now is done, at this pace. None if it cannot be estimated ..."""
    why: str
    """... and why not."""


def pace(
    found: Census, every: list[ConsumerStats], consumers: list[dict[str, object]], asked: Requests
) -> Pace:
    """Return the pace of an inbox: by its census, the statistics of all its consumers, who consumes now, and
    what people have asked for."""
    now = time()
    start = _window_start(now)
    begun = max(start, min(map(_first, every), default=now))
    window = max(now - begun, 1.0)
    running = [one for one in consumers if one["holder"]]
    at_work = [stats for one in running if (stats := stats_of(one, every))]
    known = bool(every) and len(at_work) == len(running)
    rate = _acknowledged(every, begun) * 60 / window if known else None
    to_empty: float | None = 0.0
    why = ""
    if found.count["waiting"] > len(found.later["waiting"]):
        why = _unknown(found, consumers, asked) or ("" if known else _NO_STATISTICS)
        to_empty, why = (None, why) if why else _estimate(found, every, at_work, now)
    return Pace(rate, window, last_acknowledged(every), to_empty, why)


_NO_STATISTICS = "the consumer writes no statistics; only `fsinbox consume` does"


def _unknown(found: Census, consumers: list[dict[str, object]], asked: Requests) -> str:
    """Return why nothing can be said about the time to empty, "" if something can."""
    if not found.ready:
        return "every waiting key is on hold"
    if not any(one["holder"] for one in consumers):
        return "no consumer is running"
    if not all(one["holder"] for one in consumers):
        return "a shard has no consumer"
    return "consumers are paused" if asked.paused else ""


def _estimate(
    found: Census, every: list[ConsumerStats], at_work: list[ConsumerStats], now: float
) -> tuple[float | None, str]:
    """Return the seconds until all that is ready is done, or None and why that cannot be estimated.

    Only while something was waiting is it certain that the consumers worked all the time: a rate that counts
    their rests would be too low.
    """
    busy_since = max([found.oldest_ready / 1e9, *(stats.since for stats in at_work)])
    # From the next full minute on: the one it began in may count what was done before.
    begin = max(_window_start(now), -(-busy_since // 60) * 60)
    count = _acknowledged(every, begin)
    if now - begin < _STEADY:
        return None, "work has only just begun"
    if not count:
        return None, f"nothing was acknowledged for {int(now - begin)} s"
    return found.ready * (now - begin) / count, ""


def last_acknowledged(every: list[ConsumerStats]) -> float | None:
    """Return the beginning of the minute in which an element was last acknowledged, in seconds since the
    epoch; None if that is too long ago to be kept."""
    return max((minute[0] * 60.0 for stats in every for minute in stats.minutes if minute[1]), default=None)


def _window_start(now: float) -> float:
    return (now // 60 - MINUTES + 1) * 60


def _acknowledged(every: list[ConsumerStats], since: float) -> int:
    """Return how many were acknowledged in the minutes from `since` on (seconds since the epoch)."""
    return sum(minute[1] for stats in every for minute in stats.minutes if minute[0] >= since // 60)


def _first(stats: ConsumerStats) -> float:
    """Return since when these statistics are complete (seconds since the epoch)."""
    return min([stats.since, *(minute[0] * 60.0 for minute in stats.minutes[:1])])
