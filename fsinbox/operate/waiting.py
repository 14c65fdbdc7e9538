"""Waiting until keys are done, from outside: looks at the folders, less often where a look takes long."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic, sleep

from ..store.layout import Layout
from ..store.names import encode_key
from ..store.opening import open_index
from ..store.subfolders import dropped
from .rows import rows

_SHORTEST, _LONGEST = 0.02, 0.5
"""Seconds between two looks."""

_SHARE = 20
"""Looking takes at most one part in this many of the time."""


def not_done(layout: Layout, keys: Iterable[str] | None) -> set[str]:
    """Return which of these keys (None: of all keys) are waiting, in drop/, in flight or deferred. Raises
    OSError.

    The folders are listed in the order in which elements move, and those they may return to once more, so
    that none is missed on its way.
    """
    wanted = None if keys is None else set(keys)
    found = {name for name in dropped(layout) if wanted is None or name in wanted}
    for state in ("waiting", "in_flight", "deferred", "waiting", "in_flight"):
        found |= {row.key for row in rows(layout, (state,)) if wanted is None or row.key in wanted}
    return found


def unknown(layout: Layout, keys: Iterable[str]) -> list[str]:
    """Return which of these keys have left no trace: no element in any state, and nothing in the index. (It
    forgets keys that are done at a boot, and when it is made anew.) Raises InvalidKey, OSError."""
    encoded = {key: encode_key(key) for key in keys}
    seen = not_done(layout, encoded) | {row.key for row in rows(layout, ("failed", "done"))}
    index = open_index(layout)
    try:
        return [key for key, name in encoded.items() if key not in seen and not index.peek_numbers(name)]
    finally:
        index.close()


def wait_for(layout: Layout, keys: Iterable[str] | None, timeout: float | None) -> set[str]:
    """Wait until these keys (None: all keys) are done; return those that are not after `timeout` seconds.
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
