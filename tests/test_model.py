"""Proves that an inbox does what the model below does: forty lines of plain Python, without a file.

Hypothesis makes up programs of 50 steps: several producers add, in batches and one by one, for later, only if
none waits, and to a full inbox; they drop files and bring failed elements back by mv; people retry what
failed, end back-offs, hold keys and release them; a consumer takes, acknowledges, requeues, defers, gives up,
closes, dies; somebody else holds the lock; the system boots; the clock steps back and forward. Each step is
done to real Inbox objects on a real directory and to the model, and what they answer must be equal: what is
taken, in which order, at which attempt, what `add` returns, what waits. In a second machine somebody also
removes or damages the index, or blanks its lines, which docs/protocol.md calls safe at any time: of a key
that had several files just then, or waited and is not known any more, an older value may be delivered once
more before the newest, and in another place; nothing else may change.

The programs are the same in every run. A failure prints the shortest program that shows it, and the line that
runs the test again:

    pytest 'tests/test_model.py::test_an_inbox_does_what_the_model_does[exact-1]'

`--long` runs fifty times as many.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from time import time_ns
from typing import ClassVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fsinbox.consumer.consumer
import fsinbox.consumer.listing
import fsinbox.consumer.ownership
import fsinbox.consumer.recovery
import fsinbox.consumer.returning
import fsinbox.consumer.taking
import fsinbox.store.bounds
import fsinbox.store.files
import fsinbox.store.held
import fsinbox.store.index
import fsinbox.store.section
import fsinbox.store.terms
import fsinbox.store.transitions
from fsinbox import Element, Inbox, InboxFull
from fsinbox.operate.steering import Steering
from fsinbox.store import control
from fsinbox.store.bounds import set_limits
from fsinbox.store.names import element_of, encode_key, encoded_of
from tests.driver import forget

pytestmark = pytest.mark.model

KEYS = ("a", "b", "c", "d")
AT_ONCE = 3
SECOND = 10**9
WEEK = 7 * 24 * 3600 * SECOND
START = 1_800_000_000 * SECOND
NEW = 1 << 70  # above all numbers
# Hypothesis would draw numbers from the modules that happen to be loaded: other programs in each worker.
NO_CONSTANTS = providers.Constants()
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# --- the model ----------------------------------------------------------------------------------------


@dataclass
class Item:
    """A value, and what is known of it."""

    number: int
    value: str
    attempts: int = 0
    suspect: str = ""  # "died" or "suspect": it was in flight when a consumer died
    shadowed: bool = (
        False  # it replaced a suspect: until the consumer has coalesced the two, it may be held back like one
    )
    due: int = 0  # if it is deferred: by the clock ...
    left: int = 0  # ... and by how much time has passed, which is what a running consumer goes by
    ripe: bool = False  # it is deferred, and a consumer has seen that it is due
    not_before: int = 0  # by the clock: it was added for later, and was not handed out yet


class Model:
    """What an inbox is to do. `clock`, nanoseconds since the epoch, and `passed`, nanoseconds that have
    really passed, are set by whoever uses it.

    A place in the line is a number. A new one is higher than all before it; which it is, the machine learns
    by looking.
    """

    def __init__(self) -> None:
        self.clock = START
        self.passed = 0
        self.last = NEW
        self.line: dict[str, Item] = {}  # key -> what waits; the lowest number is the next
        self.drops: dict[
            str, tuple[int, str]
        ] = {}  # key -> (time of arrival, value): in drop/, not yet noticed
        self.out: dict[str, Item] = {}
        self.deferred: dict[str, Item] = {}
        self.failed: list[tuple[str, Item]] = []
        self.orphaned = False  # whether what is out was a dead consumer's
        self.held: set[str] = set()
        self.put_off = 0  # how often

    def add(self, key: str, value: str, *, delay: int = 0, keep: bool = False) -> str:
        """Return what add returns."""
        if key in self.drops:
            self._place(key, self.drops.pop(key)[1])  # it came earlier
        if keep and (key in self.line or key in self.deferred):
            return "kept"
        answer = "replaced" if key in self.line else "behind" if key in self.out else "new"
        self._place(key, value)
        self.line[key].not_before = self.clock + delay if delay else 0
        return answer

    def _place(self, key: str, value: str) -> None:
        """Queue it: in place of the value that waits, or last. It supersedes what is deferred."""
        waits = self.line.get(key)
        if not waits:
            self.last += 1
            self.deferred.pop(key, None)
        shadowed = bool(waits and (waits.suspect or waits.shadowed))
        self.line[key] = Item(waits.number if waits else self.last, value, shadowed=shadowed)

    def notice_drops(self) -> None:
        for key, (_, value) in sorted(self.drops.items(), key=lambda drop: (drop[1][0], drop[0])):
            self._place(key, value)
        self.drops.clear()

    def recover(self) -> None:
        """A consumer starts: what a dead one held comes back."""
        if self.orphaned:
            how = "died" if len(self.out) == 1 else "suspect"
            for key in list(self.out):
                self._requeue(key, how)
        self.orphaned = False
        for item in self.deferred.values():
            # What is left of it by the clock; but never more than the whole, should that have been set back.
            item.ripe = False
            left = min(item.due - self.clock, item.due - time_ns())
            item.left = self.passed + (left if left <= WEEK else 0)

    def ready(self) -> dict[str, Item]:
        """Return what may be taken now, key by key: nothing of a key that is out."""
        for item in self.deferred.values():
            item.ripe |= item.left <= self.passed
        ready = self.line | {key: item for key, item in self.deferred.items() if item.ripe}
        return {key: item for key, item in ready.items() if key not in self.out and key not in self.held}

    def take(self, besides: set[str]) -> tuple[str, Item] | None:
        """Take the one with the lowest number, besides some keys. But a suspect is out alone."""
        while True:
            ready = self.ready()
            key = min(ready.keys() - besides, key=lambda key: ready[key].number, default=None)
            if key is None or (
                self.out and (ready[key].suspect or any(item.suspect for item in self.out.values()))
            ):
                return None
            item = self.line.pop(key, None) or self.deferred.pop(key)
            if item.not_before <= self.clock:
                self.out[key] = item
                item.attempts += 1
                item.not_before = 0  # whatever becomes of the clock
                return key, item
            self._put_off(key, item)

    def _put_off(self, key: str, item: Item) -> None:
        """It was for later, and that is not yet."""
        delay = min(item.not_before - self.clock, WEEK)
        self.deferred[key] = item
        item.suspect, item.shadowed = "", False
        item.due, item.left, item.ripe = self.clock + delay, self.passed + delay, False
        self.put_off += 1

    def ack(self, key: str) -> None:
        del self.out[key]

    def nack(self, key: str, delay: int = 0, *, counted: bool = True) -> bool:
        """Return False if a newer value waits, and it was dropped."""
        self.out[key].attempts -= not counted
        if not delay or key in self.line:
            return self._requeue(key, "")
        item = self.deferred[key] = self.out.pop(key)
        item.suspect = ""
        item.due, item.left, item.ripe = self.clock + delay, self.passed + delay, False
        return True

    def _requeue(self, key: str, suspect: str) -> bool:
        item = self.out.pop(key)
        item.suspect = suspect
        return self.line.setdefault(key, item) is item

    def fail(self, key: str) -> bool:
        item = self.out.pop(key)
        if key not in self.line:
            self.failed.append((key, item))
        return key not in self.line

    def retry(self, key: str, item: Item) -> str:
        """Bring a failed element back to its place, if nothing newer is there. Only numbers decide: all are
        known by now."""
        others = [where[key].number for where in (self.line, self.out, self.deferred) if key in where]
        if any(number > item.number for number in others):
            return "newer"
        self.failed.remove((key, item))
        self.deferred.pop(key, None)
        waits = self.line.get(key)
        shadowed = bool(waits and (waits.suspect or waits.shadowed))
        self.line[key] = Item(waits.number if waits else item.number, item.value, shadowed=shadowed)
        return "queued"

    def requeue(self, key: str) -> None:
        """End a back-off, or a delay."""
        self.line[key] = self.deferred.pop(key)
        self.line[key].not_before = 0

    def close(self) -> None:
        """The consumer closes the inbox."""
        for key in list(self.out):
            self.nack(key)


# --- the machine: each step is done to both -----------------------------------------------------------

CLOCK_STEPS = [1, SECOND, 90 * SECOND, 3600 * SECOND]
keys = st.sampled_from(KEYS)
which = st.integers(0, AT_ONCE - 1)


class Machine(RuleBasedStateMachine):
    """Random programs. What the inbox answers must be what the model answers."""

    tally: ClassVar[Counter[str]] = (
        Counter()
    )  # how many programs and steps, and how often what matters came about

    delays: ClassVar[list[int]] = [0, 1, 60, 8 * 24 * 3600]  # seconds: from now, or longer than any back-off

    steps: ClassVar[list[int]] = [*CLOCK_STEPS, 8 * 24 * 3600 * SECOND, 30 * 365 * 24 * 3600 * SECOND]

    def __init__(self) -> None:
        super().__init__()
        self.tally["programs"] += 1
        self.model = Model()
        self.folder = tempfile.mkdtemp(prefix="model-", dir=MEMORY)
        self.path = f"{self.folder}/inbox"
        self.boots = 0
        self.values = 0
        self.ages: dict[str, int] = {}  # value -> when it was added last: a number that increases
        self.delivered: dict[str, int] = {}  # key -> the age that the value delivered last had then
        self.loose: set[str] = (
            set()
        )  # keys of which an older value may be delivered before the newest, and at any place
        self.unsure: set[str] = set()  # keys of which add may not know that a value waits
        self.patches = ExitStack()
        consumer = fsinbox.consumer
        store = fsinbox.store
        clocked = (store.index, store.transitions, store.held, store.terms, store.files)
        for module in (*clocked, consumer.ownership, consumer.recovery):
            self.patches.enter_context(mock.patch.object(module, "time_ns", lambda: self.model.clock))
        # The kernel's clock is decades ahead at times: it would touch an atime that is behind it.
        self.patches.enter_context(mock.patch.object(store.files, "_FAR", 100 * 365 * 24 * 3600 * SECOND))
        self.patches.enter_context(
            mock.patch.object(fsinbox.store.index, "boot_tag", lambda: f"boot{self.boots:04d}")
        )
        for module in (
            consumer.consumer,
            consumer.taking,
            consumer.returning,
            consumer.recovery,
            consumer.listing,
        ):
            self.patches.enter_context(
                mock.patch.object(module, "monotonic", lambda: 1e6 + self.model.passed / SECOND)
            )
        self._open()

    def _open(self) -> None:
        """Open it thrice: a producer that flushes, one that does not, and the consumer (which may add as
        well)."""
        self.elements: dict[str, Element] = {}
        self.consumer = Inbox(self.path, codec="bytes", max_inflight=AT_ONCE, drop_settle=0)
        self.producers = [
            self.consumer,
            Inbox(self.path, codec="bytes"),
            Inbox(self.path, codec="bytes", durable=False),
        ]

    def teardown(self) -> None:
        for inbox in self.producers:
            inbox.close()
        self.patches.close()
        shutil.rmtree(self.folder)

    def _new_value(self, key: str) -> str:
        self.values += 1
        value = f"{key}{self.values}"
        if key in self.model.deferred:
            self.tally["superseded while deferred"] += 1
        if key in self.model.out:
            self.tally["superseded while in flight"] += 1
        if any(key == failed for failed, _ in self.model.failed):
            self.tally["superseded when failed"] += 1
        self.ages[value] = self.values
        self._may_get_a_second_place(key)
        return value

    def _may_get_a_second_place(self, key: str) -> None:
        """A value is added: if it is not known that one waits, it goes to another place, and the other may be
        taken first."""
        if key in self.unsure and key in self.model.line:
            self.loose.add(key)

    # --- producers ---

    @rule(key=keys, which=which)
    def add(self, key: str, which: int) -> None:
        value = self._new_value(key)
        expected = self.model.add(key, value)
        answer = self.producers[which].add(key, value.encode())
        assert answer == expected or key in self.loose | self.unsure, f"add said {answer}, not {expected}"

    @precondition(lambda self: self.values % 3 == 1)  # (else what else there is becomes rare)
    @rule(key=keys, which=which, delay=st.integers(0, 3), keep=st.booleans())
    def add_for_later_or_keep(self, key: str, which: int, delay: int, keep: bool) -> None:
        if key in self.loose | self.unsure:
            return  # whether it waits is not known
        seconds = self.delays[delay % len(self.delays)]
        value = self._new_value(key)
        expected = self.model.add(key, value, delay=seconds * SECOND, keep=keep)
        if_waiting = "keep" if keep else "replace"
        answer = self.producers[which].add(key, value.encode(), delay=seconds, if_waiting=if_waiting)
        assert answer == expected, f"add said {answer}, not {expected}"
        self.tally["kept"] += answer == "kept"

    @precondition(lambda self: self.values % 4 == 2)  # (the same)
    @rule(several=st.lists(keys, min_size=1, max_size=4), which=which, room=st.integers(0, 2))
    def add_to_a_bounded_inbox(self, several: list[str], which: int, room: int) -> None:
        """Some may be added until it is full; one is taken in the midst of that."""
        if self.loose | self.unsure:
            return
        inbox = self.producers[which]
        most = max(1, self._waiting() + room)
        set_limits(inbox.layout, inbox.index, most, None)
        inbox._adder._next_check = 0.0
        with mock.patch.object(fsinbox.store.bounds, "RECOUNT_SHARE", 0):  # it is always time to count anew
            for done, key in enumerate(several):
                # (Not the first take: what it requeues was in flight when they were counted.)
                is_free = len(self.elements) < AT_ONCE and not self.model.drops
                if done == 2 and is_free and self.consumer._taking().consumer:
                    self._take()
                self._add_if_there_is_room(inbox, key, most)
        set_limits(inbox.layout, inbox.index, 0, None)

    def _add_if_there_is_room(self, inbox: Inbox, key: str, most: int) -> None:
        full = self._waiting() >= most and key not in self.model.line
        self.values += 1
        value = f"{key}{self.values}"
        try:
            answer = inbox.add(key, value.encode())
        except InboxFull:
            assert full, f"{most} may wait, {self._waiting()} do, and key {key} was refused"
            self.tally["refused"] += 1
            return
        assert not full, f"{most} may wait, {self._waiting()} do, and key {key} was added"
        self.ages[value] = self.values
        expected = self.model.add(key, value)
        assert answer == expected, f"add said {answer}, not {expected}"

    def _waiting(self) -> int:
        layout = self.producers[1].layout
        return len(layout.names("pending")) + len(layout.names("deferred"))

    @rule(several=st.lists(keys, min_size=1, max_size=5), which=which)
    def add_many(self, several: list[str], which: int) -> None:
        pairs = [(key, self._new_value(key)) for key in several]
        expected = {"new": 0, "replaced": 0, "behind": 0}
        for key, value in pairs:
            expected[self.model.add(key, value)] += 1
        answer = self.producers[which].add_many((key, value.encode()) for key, value in pairs)
        assert answer == expected or (self.loose | self.unsure).intersection(several), (
            f"add_many said {answer}, not {expected}"
        )

    @rule(key=keys)
    def mv(self, key: str) -> None:
        value = self._new_value(key)
        draft = f"{self.folder}/draft"
        with open(draft, "wb") as file:
            file.write(value.encode())
        self._move(draft, key, value)

    @precondition(lambda self: self.model.failed)
    @rule(which=st.integers(0, 9))
    def mv_a_failed_element_back(self, which: int) -> None:
        key, item = self.model.failed.pop(which % len(self.model.failed))
        self.values += 1
        self.ages[item.value] = self.values
        self._move(f"{self.path}/failed/{item.number:019d}-{key}", key, item.value)

    def _move(self, file: str, key: str, value: str) -> None:
        os.lstat(
            file
        )  # as mv does: so that the kernel gives two files that are moved one after the other different times
        os.rename(file, f"{self.path}/drop/{key}")
        self.model.drops[key] = (os.lstat(f"{self.path}/drop/{key}").st_ctime_ns, value)

    # --- people ---

    @precondition(lambda self: self.model.failed)
    @rule(which=st.integers(0, 9))
    def retry(self, which: int) -> None:
        key, item = self.model.failed[which % len(self.model.failed)]
        if key in self.loose | self.unsure:
            return  # what is newer may not be known
        expected = self.model.retry(key, item)
        with Steering(self.path) as steering:
            (row,) = [row for row in steering.rows(("failed",), [key]) if row.seq == item.number]
            answer = steering.retry(row)
        assert answer == expected, f"retry said {answer}, not {expected}"
        self.tally[f"retried: {answer}"] += 1
        if answer == "queued":
            self.unsure.add(key)  # the line of its number may have been written over
            self.values += 1
            self.ages[item.value] = self.values

    @precondition(lambda self: self.model.deferred)
    @rule()
    def requeue(self) -> None:
        key = min(self.model.deferred)
        if key in self.loose | self.unsure:
            return
        self.model.requeue(key)
        with Steering(self.path) as steering:
            (row,) = steering.rows(("deferred",), [key])
            assert steering.requeue(row) == "queued"
        self.tally["back-offs ended"] += 1

    @precondition(lambda self: self.model.failed)
    @rule(which=which)
    def add_for_one_that_failed(self, which: int) -> None:
        """(A rule of its own: else it is rare.)"""
        self.add(self.model.failed[0][0], which)

    @precondition(lambda self: self.values % 5 == 4)  # (else half of all steps)
    @rule(key=keys)
    def hold_or_release(self, key: str) -> None:
        layout = self.producers[1].layout
        if key in self.model.held:
            assert control.release(layout, key)
        else:
            control.hold(layout, key)
        self.model.held ^= {key}
        self.tally["held or released"] += 1

    # --- the consumer ---

    @precondition(lambda self: len(self.elements) < AT_ONCE)
    @rule()
    def take(self) -> None:
        self._take()

    @precondition(lambda self: self.elements)
    @rule(which=which)
    def ack_and_take(self, which: int) -> None:
        """(A rule of its own: else most steps would be something else.)"""
        self._ack(which)
        self._take()

    def _learn_what_was_put_off(self) -> None:
        """It may have put some off before it came to one that it must not take."""
        deferred = {encoded_of(element_of(name)) for name in self.producers[1].layout.names("deferred")}
        for key, item in list(self.model.line.items()):
            if item.not_before > self.model.clock and encode_key(key) in deferred:
                self.model._put_off(key, self.model.line.pop(key))

    def _take(self) -> None:
        model = self.model
        if self.consumer._taking().consumer is None:
            self.consumer._taking()._consume()  # as the first take does
            self.tally["back from the dead"] += len(model.out)
            model.recover()
        # When it looks into drop/ is a matter of time (each 20 ms, and when it lists pending/): here it is
        # each time.
        self.consumer._taking()._consume().drops.ingest()
        for key in model.drops:
            self._may_get_a_second_place(key)
        model.notice_drops()
        self.consumer._taking()._consume()._next_look = 0.0  # the same for control/
        element = self.consumer.take()
        if (
            element is None
            and model.out
            and (self.loose or any(item.shadowed for item in model.ready().values()))
        ):
            self._learn_what_was_put_off()
            return  # for a suspect, perhaps
        ripe = [item for item in model.ready().values() if item.not_before <= model.clock]
        assert element or model.out or not ripe, "took nothing"
        loose = element and element.key in self.loose
        expected = self._loosely(element) if loose else model.take(besides=self.loose)
        assert bool(element) == bool(expected), f"took {element}, not {expected}"
        if element and expected:
            key, item = expected
            self._learn(item, element.seq)
            value = element.data.decode()
            got = (element.key, value, element.attempts, element.suspect, element.poison)
            assert got == (key, item.value, item.attempts, bool(item.suspect), item.suspect == "died")
            assert self.ages[value] >= self.delivered.get(key, 0), "an older value after a newer"
            self.tally["taken"] += 1
            self.tally["tried again"] += item.attempts > 1
            self.delivered[key] = self.ages[value]
            self.elements[key] = element

    def _loosely(self, element: Element) -> tuple[str, Item]:
        """Tell the model what was taken: the newest value of its key, or, since hints were lost, one before
        it."""
        key, value = element.key, element.data.decode()
        self._learn_what_was_put_off()
        assert key in self.model.ready(), f"took {element}, and nothing of its key may be taken"
        newest = self.model.line.get(key) or self.model.deferred[key]
        if value == newest.value:
            self.model.line.pop(key, None)
            self.model.deferred.pop(key, None)
            self.loose.discard(key)
        else:
            self.tally["an older value once more"] += 1
        how = "died" if element.poison else "suspect" if element.suspect else ""
        item = self.model.out[key] = Item(element.seq, value, element.attempts, how)
        return key, item

    def _learn(self, item: Item, number: int) -> None:
        """A new place has a number not below the time; an old one keeps it."""
        assert number >= self.model.clock if item.number > NEW else number == item.number
        item.number = number

    def _end(self, which: int) -> tuple[str, Element]:
        key = sorted(self.elements)[which % len(self.elements)]
        return key, self.elements.pop(key)

    def _ack(self, which: int) -> None:
        key, element = self._end(which)
        element.ack()
        self.model.ack(key)

    @precondition(lambda self: self.elements)
    @rule(which=which, delay=st.sampled_from([0, 0, 1, 60, WEEK // SECOND]), counted=st.booleans())
    def nack(self, which: int, delay: int, counted: bool) -> None:
        key, element = self._end(which)
        expected = self.model.nack(key, delay * SECOND, counted=counted)
        answer = (element.nack if counted else element.release)(delay)
        assert answer == expected or key in self.loose | self.unsure, f"nack said {answer}, not {expected}"
        if answer != expected:
            self.loose.add(key)

    @precondition(lambda self: self.elements and not self.model.drops)
    @rule(which=which, delay=st.sampled_from([0, 1, 60]))
    def nack_while_somebody_has_the_lock(self, which: int, delay: int) -> None:
        """It stays in flight, and goes back when the lock can be had; meanwhile others are taken and
        acknowledged."""
        key, element = self._end(which)
        if key in self.loose | self.unsure:
            self.elements[key] = element
            return
        holder = os.open(f"{self.path}/index", os.O_RDWR)
        ticks = count(0.0, 0.02)
        with (
            mock.patch.object(fsinbox.store.section, "sleep"),
            mock.patch.object(fsinbox.store.section, "monotonic", lambda: next(ticks)),
        ):
            fcntl.flock(holder, fcntl.LOCK_EX)
            try:
                assert element.nack(delay)
                assert os.path.exists(f"{self.path}/inflight/{element.seq:019d}-{key}")
                # (What is due, or at two places, waits for the lock as well.
                # And what has ended keeps nothing from being taken, even if one of them is suspect: its
                # handler is done.)
                suspect = any(item.suspect for item in (*self.model.out.values(), *self.model.line.values()))
                free = (
                    not self.model.deferred
                    and not self.loose | self.unsure
                    and len(self.elements) < AT_ONCE - 1
                )
                if free and not suspect:
                    self._take()
                    self.tally["looked for more while somebody had the lock"] += 1
            finally:
                os.close(holder)
        self.consumer._taking()._consume().returning.try_again()
        assert not os.path.exists(f"{self.path}/inflight/{element.seq:019d}-{key}")
        self.model.nack(key, delay * SECOND)

    @precondition(lambda self: self.elements)
    @rule(which=which, fail=st.booleans())
    def ack_or_fail(self, which: int, fail: bool) -> None:
        if not fail:
            self._ack(which)
            return
        key, element = self._end(which)
        item = self.model.out[key]
        expected = self.model.fail(key)
        answer = element.fail("as the rule says")
        assert answer == expected or key in self.loose | self.unsure, f"fail said {answer}, not {expected}"
        if answer and not expected:
            self.model.failed.append((key, item))
        if answer != expected:
            self.loose.add(key)

    @precondition(lambda self: self.elements and self.values % 3 == 2)
    @rule(which=which, newer=st.booleans())
    def fail_and_retry(self, which: int, newer: bool) -> None:
        """(A rule of its own: else it is rare.)"""
        self.ack_or_fail(which, fail=True)
        if newer and self.model.failed:
            self.add_for_one_that_failed(which)
        if self.model.failed:
            self.retry(-1)

    # --- what happens to all of them ---

    @rule(what=st.sampled_from(["restart", "die", "boot"]))
    def leave(self, what: str) -> None:
        getattr(self, f"_{what}")()

    def _restart(self) -> None:
        """The consumer closes the inbox, which puts back what is out, and opens it again."""
        self.consumer.close()
        if not self.model.orphaned:
            self.model.close()
        for inbox in self.producers:
            inbox.close()
        self._open()

    def _die(self) -> None:
        """The consumer's process is gone, its lock with it; what was out is still in inflight/."""
        if self.consumer._taking().consumer:
            self.consumer._taking().consumer.close()
            self.consumer._taking().consumer = None
        self.consumer._taking().claims.clear()
        self.elements.clear()
        self.model.orphaned |= bool(self.model.out)
        self.consumer.close()
        self.consumer = self.producers[0] = Inbox(
            self.path, codec="bytes", max_inflight=AT_ONCE, drop_settle=0
        )

    def _boot(self) -> None:
        """All processes are gone, and nothing on the disk is lost (what a power cut loses is not tried
        here)."""
        self._die()
        for inbox in self.producers:
            inbox.close()
        self.boots += 1
        self._unknown_when_made_anew()
        self._open()
        self._make_index_anew()

    def _make_index_anew(self) -> None:
        """As the next one in a section would: by then other keys might be at several places."""
        index = self.producers[1].index
        index.locked(index.last_number)

    def _unknown_when_made_anew(self) -> set[str]:
        """The index is to be made anew: of keys at several places, in flight or deferred add does not know
        then that a value waits. Return those at several places."""
        self.unsure |= self.model.out.keys() | self.model.deferred.keys()
        several = self._with_several_files()
        self.unsure |= several
        return several

    def _with_several_files(self) -> set[str]:
        """Return the keys that are at several places."""
        files = [
            name[20:] for folder in ("pending", "inflight") for name in os.listdir(f"{self.path}/{folder}")
        ]
        files += [name[40:] for name in os.listdir(f"{self.path}/deferred")]
        return {key for key in KEYS if files.count(key) > 1}

    @rule(step=st.integers(0, 99), back=st.booleans())
    def clock(self, step: int, back: bool) -> None:
        """Time passes; or somebody sets the clock back."""
        nanoseconds = self.steps[step % len(self.steps)]
        if back and self.model.clock - nanoseconds > START // 10:
            self.model.clock -= nanoseconds
        else:
            self.model.clock += nanoseconds
            self.model.passed += nanoseconds

    # --- looking ---

    @invariant()
    def looks_the_same(self) -> None:
        self.tally["steps"] += 1
        self.tally["put off"] += self.model.put_off
        self.model.put_off = 0
        for key in list(self.unsure):  # gone from everywhere: the next one is known again
            if (
                key
                not in self.model.line.keys()
                | self.model.out.keys()
                | self.model.deferred.keys()
                | self.model.drops.keys()
            ):
                self.unsure.discard(key)
        model, inbox = self.model, self.producers[1]
        line = sorted(model.line, key=lambda key: model.line[key].number)
        waiting = list(inbox)
        assert {one.key: one.data.decode() for one in waiting} == {
            key: item.value for key, item in model.line.items()
        }
        assert [one.key for one in waiting if one.key not in self.loose] == [
            key for key in line if key not in self.loose
        ]
        for one in waiting:
            if one.key not in self.loose:
                self._learn(model.line[one.key], one.seq)
        there = model.line.keys() | model.deferred.keys()
        assert len(inbox) == len(there)
        key = KEYS[self.tally["steps"] % len(KEYS)]  # one a step: these list folders
        assert (key in inbox) == (key in there)
        if key not in self.loose:
            found = inbox.find(key)
            assert found.data.decode() == model.line[key].value if found else key not in model.line
        for key, element in self.elements.items():
            assert (
                element.superseded() == (key in model.line or key in model.drops)
                or key in self.loose | self.unsure
            )
        failed = sorted(name for name in os.listdir(f"{self.path}/failed") if "~" not in name)
        assert failed == sorted(f"{item.number:019d}-{key}" for key, item in model.failed)


class Careless(Machine):
    """The same, and somebody deletes what may be deleted at any time."""

    delays: ClassVar[list[int]] = [0]  # what is put off would be in no view of those that follow
    steps = CLOCK_STEPS  # in all less than a day: numbers above that are not believed, once the index is lost

    @rule(what=st.sampled_from(["lines", "removed", "emptied", "rubbish"]))
    def lose(self, what: str) -> None:
        # It may not be known any more that a newer value waits beside an older one.
        self.loose |= self._unknown_when_made_anew()
        self.tally[f"index: {what}"] += 1
        if what == "lines":
            self.unsure |= self.model.line.keys()
            forget(self.path)
        elif what == "removed":
            _remove(f"{self.path}/index")
        else:
            with open(f"{self.path}/index", "w") as file:
                file.write("" if what == "emptied" else "rubbish\n")
        self._make_index_anew()


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


SITUATIONS: dict[type[Machine], list[str]] = {
    Machine: [
        "retried: queued",
        "retried: newer",
        "back-offs ended",
        "held or released",
        "put off",
        "kept",
        "refused",
        "tried again",
        "back from the dead",
        "superseded while in flight",
        "superseded while deferred",
        "superseded when failed",
        "looked for more while somebody had the lock",
    ],
    Careless: ["tried again", "an older value once more"],
}
"""What must have come about, once in a hundred programs at the least."""

MACHINES: dict[str, tuple[type[Machine], int]] = {
    "exact-1": (Machine, 1),
    "exact-2": (Machine, 2),
    "careless-1": (Careless, 1),
    "careless-2": (Careless, 2),
}


def run(name: str, programs: int, figure: Callable[[str], None]) -> None:
    """Run one machine; its name says its seed."""
    base, number = MACHINES[name]
    machine = seed(number)(type(base.__name__, (base,), {"tally": Counter()}))
    phases = (Phase.generate, Phase.shrink)
    more = {"deadline": None, "database": None, "phases": phases, "suppress_health_check": list(HealthCheck)}
    logging.disable()  # of dead consumers
    try:
        with mock.patch.object(providers, "_get_local_constants", lambda: NO_CONSTANTS, create=True):
            run_state_machine_as_test(
                machine, settings=settings(max_examples=programs, stateful_step_count=50, **more)
            )
    finally:
        logging.disable(logging.NOTSET)
    tally = machine.tally
    assert tally["programs"] >= programs
    assert tally["steps"] >= 30 * programs  # (Hypothesis ends one early at times)
    for what in SITUATIONS[base]:
        assert tally[what] >= programs // 100, f"{what}: only {tally[what]} times"
    figure(", ".join(f"{number:,} {what}" for what, number in tally.items()) + ", 0 bad")


def _replay(request: pytest.FixtureRequest) -> None:
    print(f"to run this again: pytest '{request.node.nodeid}'")


@pytest.mark.parametrize("name", MACHINES)
def test_an_inbox_does_what_the_model_does(
    name: str, figure: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    _replay(request)
    run(name, 330, figure)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", MACHINES)
def test_an_inbox_does_what_the_model_does_a_hundred_thousand_times(
    name: str, figure: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    _replay(request)
    run(name, 25_000, figure)
