"""The section: a step that is run while this process, and of it this thread, alone holds the admission lock.

The lock is flock(2) on the file `index`, blocking: the kernel queues those who wait, and frees it when a
process dies. Not filelock: importing that costs a cold producer more than the whole add, and it polls.

An exception out of a signal handler may come at any line: none leaves the lock behind.
"""

from __future__ import annotations

import fcntl
import os
from _thread import RLock, get_ident
from time import monotonic, sleep

from .errors import WrongState
from .folders import close_quietly
from .layout import Layout
from .lines import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Found = TypeVar("Found")

PATIENCE = 0.05
"""Seconds for which the consumer tries to get the lock."""

_inside: set[tuple[tuple[int, int], int]] = set()
"""(inbox, thread) of who is in a section, or on the way there: a signal handler that interrupts it must not
wait for it."""


def forget_sections() -> None:
    """In a forked child: its parent's threads are not there."""
    _inside.clear()


class Busy(Exception):
    """The lock could not be had in time."""


class Section:
    """The lock of an inbox, and how a step is run under it. Whoever derives from it is told by `_begin` what
    the file says (its header, and its size in bytes), and by `_finish` that the step is done."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._threads = RLock()  # an flock belongs to the open file: it does not exclude our own threads
        self._fd = -1
        self._was_busy = False

    def _begin(self, header: bytes, size: int) -> None:
        """The lock was taken."""

    def _finish(self) -> None:
        """The step is done, and the lock still held."""

    def locked(self, step: Callable[..., Found], *arguments: Any) -> Found:
        """Run a step inside the section, and return what it returns. Waits for the lock.

        An exception out of a signal handler, at any line, leaves no lock behind. Raises WrongState in a
        handler that interrupted a section of this inbox; what the step raises; OSError.
        """
        return self._run(None, step, arguments)

    def try_locked(self, step: Callable[..., Found], *arguments: Any, patience: float = PATIENCE) -> Found:
        """The same, but raises Busy if the lock is not to be had within `patience` seconds: at once if it was
        not before."""
        return self._run(0 if self._was_busy else patience, step, arguments)

    def _run(self, patience: float | None, step: Callable[..., Found], arguments: tuple[Any, ...]) -> Found:
        here = (self._layout.identity, get_ident())
        if here in _inside:
            raise WrongState(
                f"inbox {self._layout.path} is being changed by the very call that this signal handler "
                "interrupted: have the handler set a flag, and add later"
            )
        # Twice: the first may be interrupted before it does anything. (What is done twice by _leave does no
        # harm.)
        try:
            try:
                _inside.add(here)
                self._enter(patience)
                result = step(*arguments)
                self._finish()
                return result
            finally:
                self._leave(here)
        except BaseException:
            for _ in range(100):
                try:
                    self._leave(here)
                    break
                except BaseException:  # noqa: BLE001, S112 - the first signal is on its way to the caller
                    continue
            raise

    def _enter(self, patience: float | None) -> None:
        self._was_busy = patience is not None
        if patience is None:
            self._threads.acquire()
        elif not self._threads.acquire(timeout=patience):
            raise Busy
        until = None if patience is None else monotonic() + patience
        while True:
            if self._fd < 0:
                self._fd = self._layout.open_own(
                    "index", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            if until is None:
                self._flock(fcntl.LOCK_EX)
            else:
                self._try_until(until)
            status = os.fstat(self._fd)
            if status.st_nlink:
                break
            self.close()  # somebody removed the file: a lock on it excludes nobody who comes now
        self._was_busy = False
        self._begin(os.pread(self._fd, HEADER, 0), status.st_size)

    def _try_until(self, until: float) -> None:
        pause = 0.0005
        while True:
            try:
                self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if monotonic() + pause > until:
                    raise Busy from None
            sleep(pause)
            pause = min(2 * pause, 0.01)

    def _leave(self, here: tuple[tuple[int, int], int]) -> None:
        """Leave the lock, if it is held. If the system will not have it, by closing the file: others must not
        wait for us."""
        if self._threads._is_owned():  # type: ignore[attr-defined]
            if self._fd >= 0:
                try:
                    self._flock(fcntl.LOCK_UN)
                except OSError:
                    self.close()
            self._threads.release()
        _inside.discard(here)

    def _flock(self, how: int) -> None:
        fcntl.flock(self._fd, how)

    def close(self) -> None:
        """Close the descriptor, and with it leave the lock. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
