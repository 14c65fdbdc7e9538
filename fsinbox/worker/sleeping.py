"""How long the worker sleeps."""

from collections.abc import Sequence
from time import monotonic


def sooner(limit: float | None, times: Sequence[float]) -> float | None:
    """Return the seconds until the first of these monotonic times, or `limit`, if that is less; None: no
    bound."""
    if not times:
        return limit
    left = max(0.0, min(times) - monotonic())
    return left if limit is None else min(limit, left)
