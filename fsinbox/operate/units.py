"""Times, lengths of time and numbers of things, as people read them."""

from datetime import UTC, datetime
from time import time_ns


def when(ns: int, precision: str = "microseconds") -> str:
    """Return a time in nanoseconds since the epoch as ISO 8601, UTC. `precision`: also "seconds"."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec=precision)


def counted(number: int, noun: str = "element") -> str:
    """Return a number of things: "1 element", "2,000 elements"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(ns: int) -> str:
    """Return a time in nanoseconds since the epoch for a table: 2026-01-31 12:00:00, UTC."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(ns: int) -> str:
    """Return the time of day of a time in nanoseconds since the epoch: 12:00:00, UTC."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%H:%M:%S")


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
