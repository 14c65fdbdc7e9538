"""Whether an overview has changed, at the price of a few system calls: a page that is open asks every two
seconds, however many elements there are."""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b
from time import time_ns

from ..operate.consumers import consumers
from ..store.layout import Layout

FRESH = 30
"""Seconds after which figures count as changed in any case: ages grow, and what is for later comes due."""

_SETTLED = 2 * 10**9
"""Nanoseconds. A folder that changed so lately may change again without a newer time: clocks of file systems
tick."""

_FOLDERS = (".", "pending", "inflight", "deferred", "failed", "drop", "done", "stats", "control")

_SITE = secrets.token_hex(8)
"""Another one after each start: a new version of the site may show the same in another way."""


def version(layout: Layout, visitor: str) -> str:
    """Return what stays the same while the overview does, for a `visitor` (the secret of a session, or "").

    It may change without need. What it does not see, figures in subfolders of drop/ and times that are
    reached, is seen after FRESH seconds. Raises OSError.
    """
    now = time_ns()
    times = [
        os.stat(".", dir_fd=layout.folder(folder)).st_mtime_ns
        for folder in _FOLDERS
        if folder == "." or layout.has(folder)
    ]
    if layout.sharing or max(times) > now - _SETTLED:
        return secrets.token_hex(12)  # (other hosts' changes are only certain to be seen by listing)
    running = [(one["shard"], one["holder"]) for one in consumers(layout)]
    seen = (_SITE, visitor, now // (FRESH * 10**9), times, running)
    return blake2b(repr(seen).encode(), digest_size=12).hexdigest()
