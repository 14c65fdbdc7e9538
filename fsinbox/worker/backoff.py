"""How long to wait before another try."""

import random
from dataclasses import dataclass
from time import time


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with jitter: `first` seconds after the first failure, twice as long after each, up to
    `longest`."""

    first: float = 1.0
    longest: float = 3600.0

    def after(self, attempts: int) -> float:
        """Return the seconds to wait after that many failed attempts (1 and up), give or take a quarter."""
        return self._jitter(self.first * 2.0 ** min(attempts - 1, 60))

    def by_age(self, added: float) -> float:
        """Return the seconds to wait for what is not counted: as long as it is old (as Postfix does), within
        the bounds.

        `added` is the time of its arrival, in seconds since the epoch.
        """
        return self._jitter(max(self.first, time() - added))

    def _jitter(self, delay: float) -> float:
        # At random, to spread retries.
        return min(delay, self.longest) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


MAX_ATTEMPTS = 45
"""Attempts of an element unless something else is asked for: with the back-off's defaults, the last one is
made more than a day after the first, whatever the jitter."""

MAX_DEATHS = 5
"""After so many deaths of the consumer in a row, with nothing else in flight, an element is given up,
whatever the bound of its attempts: each death stops everybody's work."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a failing element is tried again."""

    max_attempts: int = MAX_ATTEMPTS
    """0: as often as it takes."""
    give_up_after: float | None = None
    """Seconds since it was queued, after which no further attempt is made. None: no bound."""
    backoff: Backoff = Backoff()

    def why_no_more(self, attempts: int, age: float) -> str:
        """Return why there is no attempt after this many, at this age (seconds); "" if there is."""
        if self.max_attempts and attempts >= self.max_attempts:
            return f"attempt {attempts} of {self.max_attempts} failed"
        if self.give_up_after is not None and age >= self.give_up_after:
            return f"attempt {attempts} failed, {age:.0f} s after it was queued"
        return ""

    def is_deadly(self, attempts: int, deaths: int) -> bool:
        """Tell whether it has killed the consumer too often; `attempts` has the one that begins now."""
        return deaths >= MAX_DEATHS or (deaths > 0 and 0 < self.max_attempts < attempts)

    def of(self, attempts: int) -> str:
        """Return which attempt that is, for people: "2 of 45", "2"."""
        return f"{attempts} of {self.max_attempts}" if self.max_attempts else str(attempts)
