"""How a worker comes to be the consumer, handles signals, and leaves at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..consumer.waker import Waker
from ..element import Element
from ..inbox import Inbox
from ..store.errors import InboxBusy, WrongState

_STANDBY = 1.0
"""Seconds between two looks whether another consumer is still there."""


def standing_by(inbox: Inbox, stopped: Callable[[], bool]) -> Iterator[str]:
    """Become the consumer as soon as there is none, or the one there is counts as dead, unless `stopped`.

    Gives, at each look that found one: who it is the first time, then "".
    """
    said = False
    while not stopped():
        try:
            if not said or inbox.may_become_consumer():
                inbox.become_consumer()
                return
            yield ""
        except InboxBusy as error:
            yield "" if said else error.holder or "another one"
            said = True
        inbox.sleeper.waker.wait(_STANDBY)


@contextmanager
def signals_handled(
    handle: Callable[[int, FrameType | None], None], waker: Waker, *, keep: Callable[[], bool]
) -> Iterator[None]:
    """Have `handle` called at SIGTERM and SIGINT, and the sleeper woken at every signal, while this lasts;
    SIGTERM and SIGINT stay handled at its end if `keep` says so. For the main thread."""
    # Python's own handler runs only between two bytecodes: a signal just before the sleep would be handled
    # when something else ends it.
    before_this = signal.set_wakeup_fd(waker.writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if not keep():
            for number, before in previous.items():
                signal.signal(number, before)
        signal.set_wakeup_fd(before_this)


def requeue(elements: Iterable[Element]) -> None:
    """Requeue elements, uncounted, but those that their handler has ended. Raises LeaseLost,
    UnusableInbox."""
    for element in elements:
        try:
            element.release()
        except WrongState:
            continue


def leave() -> None:
    """End this process at once, with status 0: without waiting for any thread."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(0)
