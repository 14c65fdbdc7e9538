"""Waiting until keys are done, from outside: looks at the folders, the less often the longer a look takes."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic, sleep

from ..store.layout import Layout
from .survey import rows

_SHORTEST, _LONGEST = 0.02, 0.5
"""Seconds between two looks."""

_SHARE = 20
"""A look costs at most one such part of the time."""


def not_done(layout: Layout, keys: Iterable[str] | None) -> set[str]:
    """Return which of these keys (None: of all) wait, lie in drop/, are out or deferred. Raises OSError.

    In the order in which elements go, and what can go back twice: so none is missed on its way.
    """
    wanted = None if keys is None else set(keys)
    found = {name for name in layout.names("drop") if wanted is None or name in wanted}
    for state in ("waiting", "out", "deferred", "waiting", "out"):
        found |= {row.key for row in rows(layout, (state,)) if wanted is None or row.key in wanted}
    return found


def wait_for(layout: Layout, keys: Iterable[str] | None, timeout: float | None) -> set[str]:
    """Wait until these keys are done (None: until nothing waits); return what is not after `timeout` seconds.
    Raises OSError."""
    deadline = None if timeout is None else monotonic() + timeout
    wanted = None if keys is None else list(keys)
    pause = _SHORTEST
    while True:
        began = monotonic()
        left = not_done(layout, wanted)
        now = monotonic()
        if not left or (deadline is not None and now >= deadline):
            return left
        pause = min(pause * 1.3, _LONGEST)
        length = max(pause, (now - began) * _SHARE)
        sleep(length if deadline is None else min(length, deadline - now))
