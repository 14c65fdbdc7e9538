"""What people ask of this consumer, as it was when it last looked into control/."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic

from ..store.control import NONE, Requests, requests
from ..store.layout import Layout

log = logging.getLogger("fsinbox")

INTERVAL = 1.0
"""Seconds between looks where each look is a question to a server, and while nothing may be taken."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has changed since the look before: a rescan was asked for; keys are held no more."""

    rescan: bool
    released: bool


class Controls:
    """What was asked for last: to take nothing, or to leave some keys alone."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.asked: Requests = NONE
        self._next_look = 0.0

    @property
    def paused(self) -> bool:
        """Whether nothing may be taken."""
        return self.asked.paused

    def look(self) -> Change | None:
        """Look into control/; None if it is not yet time. Raises OSError."""
        now = monotonic()
        if now < self._next_look:
            return None
        if self._layout.sharing:
            self._next_look = now + INTERVAL
        before, self.asked = self.asked, requests(self._layout)
        if before.paused != self.asked.paused:
            if self.asked.paused:
                log.warning(
                    "paused by %s: nothing is taken", self.asked.by or "somebody", extra={"event": "paused"}
                )
            else:
                log.warning("resumed", extra={"event": "resumed"})
        return Change(before.rescan != self.asked.rescan, bool(before.held - self.asked.held))

    def next_look(self) -> float | None:
        """Return when (monotonic seconds) to look again; None if nothing is asked for."""
        return monotonic() + INTERVAL if self.asked.paused or self.asked.held else None
