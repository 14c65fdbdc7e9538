"""Charts, as numbers for a template that draws inline SVG: it needs no script and no inline style."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..operate.stats import MINUTES, ConsumerStats

HEIGHT = 100
"""Units from the bottom of a chart to its top."""


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of the chart, `ago` minutes before now."""

    ago: int
    acknowledged: int
    failures: int
    arrived: int


@dataclass(frozen=True, slots=True)
class Activity:
    """The last hour. `top`: the number at the top of the chart."""

    minutes: list[Minute]
    top: int

    @property
    def acknowledged(self) -> int:
        return sum(minute.acknowledged for minute in self.minutes)

    @property
    def failures(self) -> int:
        return sum(minute.failures for minute in self.minutes)

    @property
    def arrived(self) -> int:
        return sum(minute.arrived for minute in self.minutes)

    def height(self, number: int) -> float:
        """Return the height of a bar."""
        return round(number / self.top * HEIGHT, 2)

    @property
    def line(self) -> str:
        """The points of the line of arrivals."""
        return " ".join(
            f"{MINUTES - 1 - minute.ago + step},{round(HEIGHT - self.height(minute.arrived), 2)}"
            for minute in self.minutes
            for step in (0, 1)
        )


def activity(every: Iterable[ConsumerStats], now: float) -> Activity:
    """Add up what all consumers did in each of the last minutes; `now` in seconds since the epoch."""
    this = int(now // 60)
    sums = {minute: [0, 0, 0] for minute in range(this - MINUTES + 1, this + 1)}
    for stats in every:
        for minute, *numbers in stats.minutes:
            if minute in sums:
                sums[minute] = [before + more for before, more in zip(sums[minute], numbers, strict=True)]
    minutes = [Minute(this - minute, *numbers) for minute, numbers in sums.items()]
    return Activity(
        minutes, _rounded(max(max(one.acknowledged + one.failures, one.arrived) for one in minutes))
    )


def _rounded(number: int) -> int:
    """Return the next round number for the top of a scale."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if number <= factor * size and factor * size >= 4:
                return factor * size
        size *= 10
