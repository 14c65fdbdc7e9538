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
