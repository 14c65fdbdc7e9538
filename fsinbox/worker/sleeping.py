"""How long the worker sleeps."""

from math import inf
from time import monotonic


def seconds_until(at: float, limit: float | None = None) -> float | None:
    """Return the seconds until this monotonic time (infinity: never), or `limit`, if that is less; None: no
    bound."""
    if at == inf:
        return limit
    left = max(0.0, at - monotonic())
    return left if limit is None else min(limit, left)
