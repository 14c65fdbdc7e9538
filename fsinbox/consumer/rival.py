"""The consumer that is in the way of one that waits to be the next, where several hosts share the inbox.

Whoever waits need not do each time all that it takes to become the consumer. It asks for the lock, with one
request: who has died leaves it, as a rule. And it looks at the heartbeat, but not before that may have been
missed: the time of the last one, and how long the lease lasts without one, say when.

Where files do not get their times from one clock, nothing follows from how old a heartbeat looks. There it is
looked at every second, and counts as missed if it was seen, by the own clock alone, not to change for as long
as the lease lasts.
"""

from __future__ import annotations

import fcntl
import os
from time import monotonic
from typing import TYPE_CHECKING

from ..store.folders import close_quietly
from .leases import Held, read
from .ownership import try_lock

if TYPE_CHECKING:
    from ..store.layout import Layout

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_ASK = 2.0
"""Seconds between two requests for the lock."""


class Rival:
    """What has been seen of it. Lasts as long as the inbox is open."""

    def __init__(self) -> None:
        self._held: Held | None = None
        self._lapses = 0.0  # its lease, if it sends no heartbeat from now on (monotonic seconds)
        self._next = 0.0  # when to ask for the lock
        self._fd = -1

    def lapses(self, held: Held, lasts: float, left: float | None = None) -> float:
        """It was seen with this heartbeat, which lasts so many seconds, of which `left` are left, if that can
        be told. Return when its lease lapses (monotonic seconds)."""
        before = self._held
        if before is None or (before.name, before.sign) != (held.name, held.sign):
            self._held = held._replace(lasts=lasts)
            self._lapses = monotonic() + lasts
        if left is not None:
            self._lapses = monotonic() + left
        return self._lapses

    def may_be_gone(self, layout: Layout) -> bool:
        """Tell whether the consumer that was there may have ended, or may count as dead. Raises OSError."""
        now = monotonic()
        if self._held is None or layout.sharing is None:
            return True
        is_due = now >= self._lapses or not layout.sharing.one_clock
        if is_due and self._has_missed(layout, self._held):
            return True
        if now < self._next:
            return False
        self._next = now + _ASK
        return self._has_left_lock(layout, self._held)

    def _has_missed(self, layout: Layout, held: Held) -> bool:
        try:
            seen = read(layout, held)
        except FileNotFoundError:
            return True
        if seen.sign == held.sign:
            return monotonic() >= self._lapses
        if layout.sharing and layout.sharing.one_clock:
            self._lapses += (seen.sign - held.sign) / 1e9
        else:
            self._lapses = monotonic() + held.lasts
        self._held = seen._replace(lasts=held.lasts)
        return False

    def _has_left_lock(self, layout: Layout, held: Held) -> bool:
        if self._fd < 0:
            try:
                self._fd = layout.open_own(held.shard.lock_file, _OPEN)
            except FileNotFoundError:
                return True
        if not try_lock(layout, self._fd, fcntl.LOCK_EX, looking=True):
            return False
        self.close()
        return True

    def close(self) -> None:
        """Give up the descriptor, and with it the lock. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
