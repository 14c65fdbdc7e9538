"""Whose turn it is to end elements and take the next ones: one thread's at a time.

The main thread has the turn, but while it sleeps. Then a thread that has handled an element takes it: it ends
that element, and goes on with what it has taken. So as long as there is work no thread wakes another one.

Where handlers work elsewhere (`--processes`) the main thread has each turn: who sleeps waits for them all.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import Lock, get_ident
from time import monotonic
from typing import TYPE_CHECKING

from .crew import Crew
from .sleeping import seconds_until

if TYPE_CHECKING:
    from ..consumer.sleeper import Sleeper
    from ..element import Element

_NEAR = 0.001
"""Seconds by which the main thread may wake late."""


class Turn:
    """The turn in one run. Who has made it, the main thread, has it, and never gives it back for good: what a
    handler that is left behind reports is nobody's."""

    def __init__(
        self,
        sleeper: Sleeper,
        crew: Crew,
        step: Callable[[], bool],
        has_room: Callable[[], bool],
        due: Callable[[], float],
    ) -> None:
        """`step` ends what was reported, and starts what can be started; it tells whether there was any.
        `has_room()`: more might be. `due()`: until when (monotonic seconds) the main thread may sleep,
        whatever comes."""
        self._sleeper = sleeper
        self._waker = sleeper.waker  # (which an inbox that was closed does not give any more)
        self._crew = crew
        self._step = step
        self._has_room = has_room
        self._due = due
        if crew.detached:
            self._waker.more = crew.detached.readers
        self._lock = Lock()
        self._lock.acquire()
        self._awake_at = inf
        self._is_awake = True
        self.broken: BaseException | None = None
        """What a step has raised in another thread, for the main one to raise."""

    def rest(self, sleep: Callable[[float | None], object], limit: float | None) -> None:
        """Sleep until something is due, for `limit` seconds at most, and leave the turn to others
        meanwhile."""
        limit = seconds_until(self._due(), limit)
        self._awake_at = inf if limit is None else monotonic() + limit
        self._is_awake = False
        self._lock.release()
        try:
            sleep(limit)
        finally:
            self._is_awake = True
            self._lock.acquire()

    def step(self) -> bool:
        """Make a step, in the thread that has the turn. What it ends wakes nobody: it takes what is next
        itself."""
        self._sleeper.quiet = get_ident()
        try:
            return self._step()
        finally:
            self._sleeper.quiet = 0

    def _has_turn(self) -> bool:
        """Tell whether this thread of the crew has the turn now. Another one has it for a moment only; the
        main thread goes first, and has it as long as it is awake."""
        if self._crew.detached or self.broken:
            return False
        if not self._lock.acquire(blocking=False):
            if self._is_awake:
                return False
            self._lock.acquire()
        if self.broken:
            self._lock.release()
        return not self.broken

    def go_on(self) -> list[Element] | None:
        """This thread of the crew has reported: make a step, unless the main thread has the turn, and return
        what this one handles next. Wakes the main thread if that has to see to anything."""
        if not self._has_turn():
            self._waker.set()  # (the main thread may have looked before this was reported)
            return None
        kept = self._crew.kept = []
        is_due = True
        try:
            self.step()
            is_due = self._has_room() or self._due() < self._awake_at - _NEAR
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.broken = error
        self._crew.kept = None
        self._lock.release()
        if is_due or not kept:
            self._waker.set()
        return kept[0] if kept else None
