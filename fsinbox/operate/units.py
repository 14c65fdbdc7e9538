"""Times and lengths of time, as people read them."""

from datetime import UTC, datetime
from time import time_ns


def when(ns: int) -> str:
    """Return a time in nanoseconds since the epoch as ISO 8601, UTC, to the microsecond."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="microseconds")


def age(ns: int) -> str:
    """Return how long ago a time (nanoseconds since the epoch) is."""
    return seconds((time_ns() - ns) / 1e9)


def seconds(length: float) -> str:
    """Return a length of time in its largest fitting unit: 12s, 5m, 3h, 2d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if length >= size:
            return f"{int(length // size)}{unit}"
    return f"{max(0, int(length))}s"


def length(whole: float) -> str:
    """Return a length of time (seconds) in its two largest units: 1h5m, 12s."""
    for size, unit, less, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{int(whole // size)}{unit}{int(whole % size // less)}{part}"
    return f"{max(1, round(whole))}s"
