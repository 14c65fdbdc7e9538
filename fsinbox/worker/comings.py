"""How a worker comes to be the consumer, and how it leaves at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator

from ..inbox import Inbox
from ..store.errors import InboxBusy

_STANDBY = 1.0
"""Seconds between two looks whether another consumer is still there."""


def standing_by(inbox: Inbox, stopped: Callable[[], bool]) -> Iterator[str]:
    """Become the consumer as soon as there is none, or the one there is counts as dead, unless `stopped`.

    Gives, at each look that found one: who it is the first time, then "".
    """
    said = False
    while not stopped():
        try:
            inbox.become_consumer()
            return
        except InboxBusy as error:
            yield "" if said else error.holder or "another one"
            said = True
        inbox.sleeper.waker.wait(_STANDBY)


def leave() -> None:
    """End this process at once, with status 0: without waiting for any thread."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(0)
