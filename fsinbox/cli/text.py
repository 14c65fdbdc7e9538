"""Times, for people; and lines, for programs."""

from datetime import UTC, datetime
from time import time_ns

import click


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


def say(**members: object) -> None:
    """Print one JSON object on a line."""
    from json import dumps

    text = dumps(members, ensure_ascii=False)
    # A key that came from a file name may hold bytes that are not text: escaped, then.
    click.echo(text if text.isprintable() else dumps(members))
