"""Whether a page has changed, at the price of a few system calls: a page that is open asks every two seconds,
however many elements there are.

What is returned stays the same while the page does, for a `visitor` (the secret of a session, or ""). It may
change without need. What it does not see, figures in subfolders of drop/ and times that are reached, is seen
after FRESH seconds.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b
from time import time_ns

from ..operate.consumers import consumers
from ..operate.rows import Row, folder_of
from ..store.layout import Layout
from ..store.names import REASON

FRESH = 30
"""Seconds after which a page counts as changed in any case: ages grow, and what is for later comes due."""

_SETTLED = 2 * 10**9
"""Nanoseconds. What changed so lately may change again without a newer time: clocks of file systems tick."""

_FOLDERS = (".", "pending", "inflight", "deferred", "failed", "drop", "done", "stats", "control")

_SITE = secrets.token_hex(8)
"""Another one after each start: a new version of the site may show the same in another way."""


def of_overview(layout: Layout, visitor: str) -> str:
    """Return the version of the overview. Raises OSError."""
    found = [] if layout.sharing else consumers(layout)
    running = [(one["shard"], one["holder"]) for one in found]
    return _version(layout, visitor, _changes(layout, _FOLDERS), running)


def of_list(layout: Layout, visitor: str, state: str) -> str:
    """Return the version of a list of the elements in a state. Raises OSError.

    No file of an inbox is written to where it lies, so its folder tells.
    """
    return _version(layout, visitor, _changes(layout, (folder_of(state),)))


def of_element(layout: Layout, visitor: str, row: Row) -> str:
    """Return the version of an element's page, while the element is where `row` says. Raises OSError."""
    found = []
    for name in (row.file, row.file + REASON):
        try:
            found.append(os.lstat(name, dir_fd=layout.folder(row.folder)))
        except FileNotFoundError:
            continue  # the reason, mostly; or it has just left
    changes = [one.st_ctime_ns for one in found]
    return _version(
        layout, visitor, changes, row, [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]
    )


def _changes(layout: Layout, folders: tuple[str, ...]) -> list[int]:
    """Return when each folder that is there has changed last, in nanoseconds since the epoch."""
    return [
        os.stat(".", dir_fd=layout.folder(folder)).st_mtime_ns
        for folder in folders
        if folder == "." or layout.has(folder)
    ]


def _version(layout: Layout, visitor: str, changes: list[int], *more: object) -> str:
    now = time_ns()
    if layout.sharing or max(changes, default=0) > now - _SETTLED:
        return secrets.token_hex(12)  # (other hosts' changes are only certain to be seen by listing)
    seen = (_SITE, visitor, now // (FRESH * 10**9), changes, more)
    return blake2b(repr(seen).encode(), digest_size=12).hexdigest()
