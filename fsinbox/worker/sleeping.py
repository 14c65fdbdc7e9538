"""How long the worker sleeps."""

from collections.abc import Iterable
from time import monotonic


def sooner(limit: float | None, times: Iterable[float]) -> float | None:
    """Return the seconds until the first of these monotonic times, or `limit`, if that is less; None: no
    bound."""
    first = min(times, default=None)
    if first is None:
        return limit
    left = max(0.0, first - monotonic())
    return left if limit is None else min(limit, left)
