"""Two programs at once, call by call in an order of our choice, recorded: what a power cut may leave in the
middle of both.

Each is a driver (tests/driver.py) with an Inbox of its own, in a greenlet of this process: before every call
that the package makes, the other may have its turn. A plan (n, m) lets the first make n calls, then the
second m, then the first run to its end, then the second.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

import fsinbox.store.index
import fsinbox.store.section
from tests.driver import Driver, Log

from .recording import MODELS, Recording, Told, in_process, read_tree
from .workloads import MAX_OUT


class Race(NamedTuple):
    """Words that were done and settled before, by the second; and the words of each."""

    before: str
    one: str
    two: str

    @property
    def name(self) -> str:
        """All of it, as one text."""
        return f"{self.before} | {self.one} | {self.two}"

    @property
    def models(self) -> tuple[str, ...]:
        """What a power cut may leave of it: the models of recording.py in which it must be right.

        Not `halves` where an add moves a dropped file to its place and its own over it: nothing waits for a
        disk inside the section, so drop/ is flushed after it, and after pending/. If flushing pending/ kept
        only the half of that first rename which is in pending/, the older value would be in drop/ again once
        the newer has been taken and acknowledged. On Btrfs, of which `halves` tells, a flush is a commit of
        the whole file system, and keeps both halves.
        """
        return tuple(model for model in MODELS if model != "halves" or "mv:" not in self.before)


RACES = [
    Race(*text.split(" | "))
    for text in (
        "create add:a=1 take | add:a=2 | ack take ack add:c=9",
        "create add:a=1 take | add:a=2 | nack take ack add:c=9",
        "create add:a=1 take | add:a=2 | defer take ack add:c=9",
        "create add:a=1 take | add:a=2 | fail take ack add:c=9",
        "create add:a=1 take defer | add:a=2 | take ack add:c=9",
        "create add:a=1 take | add:a=2 | die take ack add:c=9",
        "create add:a=1 take postpone | add:a=2 | take ack add:c=9",
        "create add:a=1 | add:a=2 | take ack take ack add:c=9",
        "create add:a=1 take ack | add:a=2 | add:a=3 take ack",
        "create | add:a=1 | add:a=2 add:b=3",
        "create add:a=1 | move:a=2 | take nack take ack",
        "create mv:a=1 | add:a=2 | take ack take ack",
    )
]


class Turns:
    """Whose turn it is."""

    def __init__(self, programs: list[Callable[[], None]]) -> None:
        self._main = getcurrent()
        self._greenlets = [greenlet(program) for program in programs]
        self._blocked = False
        self.calls = [0, 0]

    def hook(
        self, name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> Any:
        """Wait for the caller's turn, then make its call."""
        self._main.switch()
        if name != "flock" or arguments[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN):
            return call(*arguments, **more)
        while True:
            try:
                return call(arguments[0], arguments[1] | fcntl.LOCK_NB)
            except BlockingIOError:
                self._blocked = True  # the other has the lock: let it go on
                self._main.switch()

    def run(self, n: int, m: int) -> None:
        """Run both to their ends: by the plan, but whoever waits for the other's lock lets it go first."""
        for index, most in ((0, n), (1, m), (0, None), (1, None)):
            while not self._greenlets[index].dead and (most is None or self.calls[index] < most):
                self._blocked = False
                self.calls[index] += 1
                self._greenlets[index].switch()
                if self._blocked:
                    self._greenlets[1 - index].switch()


def run(race: Race, top: str, n: int, m: int) -> tuple[Recording, list[int]]:
    """Run a race by the plan (n, m) in the folder `top`, which is empty; return what was recorded, and the
    calls of each."""
    path = f"{top}/inbox"
    log = Log("two")
    second = Driver(path, log, max_inflight=MAX_OUT)
    first = Driver(path, Log("one"), max_inflight=MAX_OUT)
    for word in race.before.split():
        second.do(word)
    _ = first.inbox
    recording = Recording(read_tree(top))
    recording.before = log.events
    second.log, first.log = Told("two", recording), Told("one", recording)
    turns = Turns([_program(first, race.one), _program(second, race.two)])
    clock = count(0.0, 0.02)
    try:
        with (
            in_process(recording, top, turns.hook),
            # To the package they are two threads; and who tries for the lock a while does not try for long.
            mock.patch.object(fsinbox.store.section, "get_ident", lambda: id(getcurrent())),
            mock.patch.object(fsinbox.store.section, "monotonic", lambda: next(clock)),
            mock.patch.object(fsinbox.store.section, "sleep", lambda seconds: None),
        ):
            turns.run(n, m)
        # (Before they are closed: what could not be requeued for want of the lock goes back then.)
        assert recording.tree() == read_tree(top), "the recording does not lead to what is there"
    finally:
        first.log = second.log = Log("over")
        first.close()
        second.close()
    return recording, turns.calls


def _program(driver: Driver, words: str) -> Callable[[], None]:
    def program() -> None:
        for word in words.split():
            driver.do(word)

    return program
