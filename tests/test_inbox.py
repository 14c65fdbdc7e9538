"""Inbox and Element: what a program is promised, on real files and with real processes."""

from __future__ import annotations

import copy
import ctypes
import errno
import gc
import json
import multiprocessing
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import fsinbox
from fsinbox import (
    AddFailed,
    AsyncInbox,
    Element,
    Inbox,
    InboxBusy,
    InboxError,
    InvalidKey,
    InvalidPayload,
    UnusableInbox,
    WrongState,
)
from tests.machine import another_file_system
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, take

fork = multiprocessing.get_context("fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def in_a_child(function: Callable[..., object], *arguments: object) -> int | None:
    """Call in a forked child; return its exit code."""
    child = fork.Process(target=function, args=arguments)
    child.start()
    child.join(30)
    return child.exitcode


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir) as inbox:
        yield inbox


@pytest.fixture
def wide(inbox_dir: Path) -> Iterator[Inbox]:
    """An inbox of which three elements may be out."""
    with Inbox(inbox_dir, max_inflight=3) as inbox:
        yield inbox


# --- the example --------------------------------------------------------------------------------------


def test_the_example_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Inbox("inbox") as inbox:
        inbox.add("a", {"a": 1})
        inbox.add("b", {"b": 2})
        inbox.add("a", {"a": 3})
        key, value = inbox.take()  # type: ignore[misc]
        assert (key, value) == ("a", {"a": 3})
        with pytest.raises(WrongState, match=r"commit\(\) or rollback\(\) first"):
            inbox.take()
        inbox.commit()
        element = inbox.take(timeout=30)
        assert element is not None
        assert tuple(element) == ("b", {"b": 2})
        element.ack()
        assert inbox.take() is None


# --- order, replacing, and what add says --------------------------------------------------------------


def test_elements_come_in_order_of_first_arrival(inbox: Inbox) -> None:
    keys = [str(number) for number in range(40)]
    random.Random(1).shuffle(keys)
    for key in keys:
        inbox.add(key, key, durable=False)
    assert drain(inbox) == [(key, key) for key in keys]


def test_a_newer_value_replaces_the_waiting_one_and_keeps_its_place(inbox: Inbox) -> None:
    assert [inbox.add(key, 1) for key in "abc"] == ["new"] * 3
    assert inbox.add("b", 2) == "replaced"
    assert inbox.add("a", 2) == "replaced"
    assert len(names(inbox, "pending")) == 3
    assert drain(inbox) == [("a", 2), ("b", 2), ("c", 1)]


def test_the_order_outlives_many_processes(inbox_dir: Path, run_python: Callable[..., str]) -> None:
    code = (
        "import sys; from fsinbox import Inbox\nwith Inbox(sys.argv[1]) as i: print(i.add(sys.argv[2], "
        "sys.argv[3]))"
    )
    assert [run_python(code, inbox_dir, key, n) for n, key in enumerate("zyxz")] == [
        "new",
        "new",
        "new",
        "replaced",
    ]
    with Inbox(inbox_dir) as inbox:
        assert drain(inbox) == [("z", "3"), ("y", "1"), ("x", "2")]


def test_a_key_added_while_it_is_out_is_queued_anew_behind(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    element = take(inbox)
    assert inbox.add("a", 2) == "behind"
    assert inbox.add("a", 3) == "replaced"
    element.ack()
    assert drain(inbox) == [("b", 1), ("a", 3)]


def test_a_key_can_be_queued_again_after_it_was_done(inbox: Inbox) -> None:
    for value in range(3):
        assert inbox.add("a", value) == "new"
        assert drain(inbox) == [("a", value)]


def test_a_file_in_pending_is_exactly_the_payload(inbox: Inbox) -> None:
    inbox.add("a b", {"ü": [1, None]})
    (name,) = names(inbox, "pending")
    assert name.endswith("-a%20b")
    assert Path(inbox.path, "pending", name).read_text(encoding="utf-8") == '{"ü":[1,null]}'


# --- giving back --------------------------------------------------------------------------------------


def test_rollback_returns_an_element_to_its_place(inbox: Inbox) -> None:
    for key in "abc":
        inbox.add(key, 1)
    take(inbox)
    assert inbox.rollback() is True
    assert drain(inbox) == [("a", 1), ("b", 1), ("c", 1)]


def test_an_add_after_a_rollback_replaces_what_was_put_back(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    take(inbox).nack()
    assert inbox.add("a", 2) == "replaced"
    assert sorted(drain(inbox)) == [("a", 2), ("b", 1)]


def test_rollback_with_a_newer_value_waiting_drops_the_older(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    take(inbox)
    inbox.add("a", 2)
    assert inbox.rollback() is False
    assert drain(inbox) == [("b", 1), ("a", 2)]


def test_the_with_block_puts_back_what_is_out(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        for key in "ab":
            inbox.add(key, 1)
        take(inbox)
    with pytest.raises(ZeroDivisionError), Inbox(inbox_dir) as inbox:
        assert take(inbox).key == "a"
        raise ZeroDivisionError
    with Inbox(inbox_dir) as inbox:
        assert drain(inbox) == [("a", 1), ("b", 1)]


def test_taking_more_than_allowed_raises_and_names_what_is_out(wide: Inbox) -> None:
    for key in "abcd":
        wide.add(key, 1)
    for _ in range(3):
        take(wide)
    with pytest.raises(WrongState, match=r"3 elements are in flight \('a', 'b', 'c'\)"):
        wide.take()
    with pytest.raises(WrongState, match=r"element\.ack\(\)"):
        wide.commit()


def test_taking_more_than_allowed_raises_even_when_nothing_waits(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox)
    with pytest.raises(WrongState):
        inbox.take()
    with pytest.raises(WrongState):
        inbox.take(timeout=5)


def test_never_two_of_one_key_are_out(wide: Inbox) -> None:
    wide.add("a", 1)
    first = take(wide)
    wide.add("a", 2)
    wide.add("b", 1)
    assert take(wide).key == "b"
    assert wide.take() is None
    wide.add("a", 3)
    assert wide.take() is None
    first.ack()
    assert tuple(take(wide)) == ("a", 3)


def test_never_two_of_one_key_are_out_in_a_long_random_run(wide: Inbox) -> None:
    choose = random.Random(2)
    out: list[Element] = []
    newest: dict[str, int] = {}
    delivered: dict[str, int] = {}
    for step in range(1500):
        what = choose.random()
        if what < 0.4:
            key = choose.choice("abcde")
            newest[key] = step
            wide.add(key, step, durable=False)
        elif what < 0.7 and len(out) < 3:
            element = wide.take()
            if element:
                assert element.value >= delivered.get(element.key, 0), "an older value after a newer one"
                delivered[element.key] = element.value
                out.append(element)
        elif out:
            element = out.pop(choose.randrange(len(out)))
            choose.choice([element.ack, element.ack, element.nack, lambda e=element: e.nack(0.001)])()
        assert len({element.key for element in out}) == len(out)
    for element in out:
        element.ack()
    time.sleep(0.002)
    delivered.update(drain(wide))
    assert delivered == newest
    assert [names(wide, folder) for folder in ("pending", "inflight", "deferred", "attempts", "tmp")] == [
        []
    ] * 5


# --- the wrong state ----------------------------------------------------------------------------------


def test_commit_and_rollback_without_an_element_are_errors(inbox: Inbox) -> None:
    for call in (inbox.commit, inbox.rollback):
        with pytest.raises(WrongState, match=r"take\(\) one first"):
            call()


def test_two_commits_are_an_error(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox)
    inbox.commit()
    with pytest.raises(WrongState, match="nothing to commit"):
        inbox.commit()


ENDS: dict[str, Callable[[Element], object]] = {
    "ack": lambda element: element.ack(),
    "nack": lambda element: element.nack(),
    "defer": lambda element: element.nack(delay=5),
    "release": lambda element: element.release(),
    "fail": lambda element: element.fail("no"),
}


@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_an_element_is_ended_once(inbox: Inbox, first: str, second: str) -> None:
    inbox.add("k", 1)
    element = take(inbox)
    ENDS[first](element)
    before = [names(inbox, folder) for folder in ("pending", "deferred", "failed")]
    with pytest.raises(WrongState, match=r"'k' was (acknowledged|requeued|given up) before"):
        ENDS[second](element)
    assert [names(inbox, folder) for folder in ("pending", "deferred", "failed")] == before


def test_an_ack_after_a_rollback_does_not_touch_the_same_element_taken_again(inbox: Inbox) -> None:
    inbox.add("k", 1)
    stale = take(inbox)
    inbox.rollback()
    again = take(inbox)
    with pytest.raises(WrongState):
        stale.ack()
    again.ack()


@pytest.mark.parametrize("end", ENDS)
def test_ending_an_element_after_close_is_an_error_that_says_what_became_of_it(
    inbox_dir: Path, end: str
) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("k", 1)
        element = take(inbox)
    with pytest.raises(WrongState, match="requeued"):
        ENDS[end](element)
    assert len(names(inbox, "pending")) == 1


def test_every_use_after_close_is_an_error(inbox_dir: Path) -> None:
    inbox = Inbox(inbox_dir)
    inbox.close()
    inbox.close()
    uses: list[Callable[[], object]] = [
        lambda: inbox.add("a", 1),
        lambda: inbox.add_bytes("a", b"1"),
        lambda: inbox.add_many([("a", 1)]),
        inbox.take,
        lambda: inbox.take(timeout=1),
        lambda: inbox.wait(1),
        lambda: len(inbox),
        lambda: "a" in inbox,
        lambda: list(inbox),
        inbox.peek,
        lambda: inbox.find("a"),
    ]
    for use in uses:
        with pytest.raises(WrongState, match="closed: open it again"):
            use()


def test_the_errors_are_one_hierarchy_and_fit_the_built_in_ones() -> None:
    kinds = [UnusableInbox, InboxBusy, InvalidKey, InvalidPayload, WrongState, AddFailed]
    assert all(issubclass(kind, InboxError) for kind in kinds)
    assert issubclass(InvalidKey, ValueError)
    assert issubclass(AddFailed, OSError)


def test_wrong_options_are_refused_at_once(inbox_dir: Path) -> None:
    for options in ({"codec": "pickle"}, {"max_inflight": 0}, {"watch": "sometimes"}):
        with pytest.raises(ValueError, match=r"pickle|max_inflight|sometimes"):
            Inbox(inbox_dir, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [-1, 7 * 24 * 3600 + 1, float("nan")])
def test_a_senseless_delay_is_refused_and_the_element_stays_out(inbox: Inbox, delay: float) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    with pytest.raises(ValueError, match=r"7 days|delay: invalid duration"):
        element.nack(delay)
    element.ack()


# --- a step by hand while an element is out -----------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_an_element_that_was_removed_by_hand_is_ended_without_harm(inbox: Inbox, end: str) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    os.unlink(element.path)
    ENDS[end](element)
    inbox.add("a", 2)
    assert drain(inbox) == [("a", 2)]


# --- one consumer -------------------------------------------------------------------------------------

_CONSUME = """
import sys
from fsinbox import Inbox
inbox = Inbox(sys.argv[1])
inbox.take()
print("holding", flush=True)
sys.stdin.readline()
inbox.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def test_a_second_consumer_is_told_who_is_the_first(
    inbox: Inbox, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start_python(_CONSUME, inbox.path)
    assert child.stdout
    assert child.stdin
    assert child.stdout.readline() == "holding\n"
    with pytest.raises(InboxBusy, match=f"pid {child.pid} ") as caught:
        inbox.take()
    assert f"pid {child.pid} " in caught.value.holder
    with pytest.raises(InboxBusy):
        inbox.take(timeout=5)  # at once: waiting would be to wait for what may never end
    inbox.add("a", 1)  # adding needs no lock
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"  # but the process lives on
    assert tuple(take(inbox)) == ("a", 1)


def test_a_second_inbox_in_the_same_process_is_a_second_consumer(inbox: Inbox) -> None:
    assert inbox.take() is None
    with Inbox(inbox.path) as second:
        with pytest.raises(InboxBusy, match=f"pid {os.getpid()} "):
            second.take()
        inbox.close()
        assert second.take() is None


def test_a_killed_consumer_s_lock_is_free(
    inbox: Inbox, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start_python(_CONSUME, inbox.path)
    assert child.stdout
    assert child.stdout.readline() == "holding\n"
    child.kill()
    child.wait()
    assert inbox.take() is None


def test_a_subprocess_does_not_inherit_the_lock(inbox: Inbox) -> None:
    assert inbox.take() is None
    sleeper = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        inbox.close()
        with Inbox(inbox.path) as second:
            assert second.take() is None
    finally:
        sleeper.kill()
        sleeper.wait()


# --- dying --------------------------------------------------------------------------------------------


def take_and_die(path: str, count: int, how: str) -> None:
    inbox = Inbox(path, max_inflight=count)
    for _ in range(count):
        assert inbox.take()
    if how == "exit":
        os._exit(9)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_dying_puts_back_and_counts_an_attempt(inbox: Inbox, how: str) -> None:
    for key in "abc":
        inbox.add(key, 1)
    for attempt in range(2, 5):
        assert in_a_child(take_and_die, inbox.path, 1, how) in (9, -signal.SIGKILL)
        element = take(inbox)
        assert (element.key, element.attempts, element.suspect, element.poison) == ("a", attempt, True, True)
        element.release()
        inbox.close()
        inbox = Inbox(inbox.path)
    assert [key for key, _ in drain(inbox)] == ["a", "b", "c"]
    inbox.close()


def test_dying_with_a_newer_value_waiting_drops_the_older(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    in_a_child(take_and_die, inbox.path, 1, "kill")
    assert inbox.add("a", 2) == "behind"
    assert drain(inbox) == [("b", 1), ("a", 2)]
    assert names(inbox, "attempts") == []


def test_a_child_of_which_python_was_not_told_has_descriptors_of_its_own(inbox: Inbox) -> None:
    """uWSGI forks its workers so: sharing the parent's, they would share its locks, and lose adds."""
    inbox.add("a", 1)
    child = ctypes.PyDLL(None).fork()
    if not child:
        try:
            inbox.add("b", 1)
            os._exit(0 if inbox._handle.pid == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(inbox) == 2


def test_attempts_survive_restarts_and_are_of_one_value(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        for attempts in (1, 2, 3):
            element = take(inbox)
            assert element.attempts == attempts
            element.nack()
    with Inbox(inbox_dir) as inbox:
        assert take(inbox).attempts == 4  # and leaving the block gives it back: that counts
    with Inbox(inbox_dir) as inbox:
        assert take(inbox).attempts == 5
        inbox.rollback()
        inbox.add("a", 2)
        element = take(inbox)
        assert (element.value, element.attempts) == (2, 1)
        element.ack()
        assert names(inbox, "attempts") == []


def test_a_newer_value_that_its_consumer_dies_of_has_attempts_of_its_own(inbox: Inbox) -> None:
    inbox.add("a", 1)
    for _ in range(3):
        take(inbox).nack()
    inbox.add("a", 2)  # in its place: the note is of the older value
    inbox.close()
    in_a_child(take_and_die, inbox.path, 1, "kill")
    with Inbox(inbox.path) as inbox:
        element = take(inbox)
        assert (element.value, element.attempts, element.poison) == (2, 2, True)
        element.ack()
        assert names(inbox, "attempts") == []


def test_release_does_not_count(inbox: Inbox) -> None:
    inbox.add("a", 1)
    for _ in range(3):
        element = take(inbox)
        assert element.attempts == 1
        element.release()
    take(inbox).nack()
    element = take(inbox)
    assert element.attempts == 2
    element.release(delay=0.01)
    element = take(inbox, timeout=5)
    assert element.attempts == 2


def test_suspects_are_taken_alone(wide: Inbox) -> None:
    for key in "abcd":
        wide.add(key, 1)
    in_a_child(take_and_die, wide.path, 3, "kill")
    for key in "abc":
        element = take(wide)
        assert (element.key, element.attempts, element.suspect, element.poison) == (key, 2, True, False)
        assert wide.take() is None
        element.ack()
    last = take(wide)
    assert (last.key, last.attempts, last.suspect, last.poison) == ("d", 1, False, False)


def test_a_suspect_waits_until_the_others_are_done(wide: Inbox) -> None:
    wide.add("a", 1)
    wide.add("b", 1)
    in_a_child(take_and_die, wide.path, 2, "kill")
    first = take(wide)
    first.release()  # alive: no suspect any more
    first = take(wide)
    assert (first.key, first.suspect) == ("a", False)
    assert wide.take() is None  # b is one still
    first.ack()
    assert take(wide).key == "b"


def test_a_suspect_s_own_death_finds_the_culprit(wide: Inbox) -> None:
    for key in "abc":
        wide.add(key, 1)
    in_a_child(take_and_die, wide.path, 3, "kill")
    in_a_child(take_and_die, wide.path, 1, "kill")  # takes a, alone
    element = take(wide)
    assert (element.key, element.attempts, element.poison) == ("a", 3, True)
    assert wide.take() is None
    element.ack()
    element = take(wide)
    assert (element.key, element.attempts, element.suspect, element.poison) == ("b", 2, True, False)


def test_a_newer_value_in_a_suspect_s_place_is_not_suspect(wide: Inbox) -> None:
    for key in "ab":
        wide.add(key, 1)
    in_a_child(take_and_die, wide.path, 2, "kill")
    take(wide).release()  # what the dead one held is put back
    place = wide.find("b")
    assert place
    wide.add("b", 2)
    wide.close()
    with Inbox(wide.path, max_inflight=3) as inbox:
        assert take(inbox).key == "a"
        element = take(inbox)  # beside it
        assert (element.seq, element.value, element.attempts, element.suspect) == (place.seq, 2, 1, False)


# --- waiting ------------------------------------------------------------------------------------------


def test_take_gives_up_after_its_timeout(inbox: Inbox) -> None:
    began = time.monotonic()
    assert inbox.take(timeout=0.2) is None
    assert 0.2 <= time.monotonic() - began < 0.5


def test_a_waiting_take_is_woken_by_another_process(
    inbox: Inbox, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import sys, time; from fsinbox import Inbox\n"
        "inbox = Inbox(sys.argv[1]); print(flush=True); sys.stdin.readline(); time.sleep(0.15); "
        "inbox.add('a', time.monotonic())"
    )
    child = start_python(code, inbox.path)
    assert child.stdout
    assert child.stdin
    child.stdout.readline()
    child.stdin.write("\n")
    child.stdin.flush()
    element = take(inbox, timeout=10)
    assert time.monotonic() - element.value < 0.3


def test_a_waiting_take_is_woken_by_another_thread_of_the_same_inbox(inbox: Inbox) -> None:
    timer = threading.Timer(0.1, inbox.add, ("a", 1))
    timer.start()
    began = time.monotonic()
    take(inbox, timeout=10)
    assert time.monotonic() - began < 0.5
    timer.join()


@pytest.mark.parametrize("how", ["ack", "nack", "defer"])
def test_a_waiting_take_is_woken_when_another_thread_makes_something_takeable(wide: Inbox, how: str) -> None:
    """One thread waits in take, for the key of an element that another thread has out."""
    wide.add("a", 1)
    element = take(wide)
    if how == "ack":
        wide.add("a", 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wide.take, 2)
        time.sleep(0.1)
        began = time.monotonic()
        if how == "defer":
            element.nack(delay=0.1)
        else:
            getattr(element, how)()
        taken = waiting.result()
        assert taken is not None
        assert time.monotonic() - began < 0.5
        assert taken.value == (2 if how == "ack" else 1)


def test_two_threads_that_wait_in_take_are_both_woken(wide: Inbox) -> None:
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wide.take, 5), pool.submit(wide.take, 5)]
        time.sleep(0.1)
        began = time.monotonic()
        wide.add("a", 1)
        time.sleep(0.1)
        wide.add("b", 1)
        elements = [future.result() for future in waiting]
        assert time.monotonic() - began < 1
    assert sorted(element.key for element in elements if element) == ["a", "b"]


def test_closing_ends_another_thread_s_wait(wide: Inbox) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wide.take, 5)
        time.sleep(0.1)
        began = time.monotonic()
        wide.close()
        with pytest.raises(WrongState, match="closed"):
            waiting.result()
        assert time.monotonic() - began < 0.5


def test_wait_tells_whether_something_waits_and_takes_nothing(inbox: Inbox) -> None:
    assert inbox.wait(0) is False
    assert inbox.wait(0.05) is False
    timer = threading.Timer(0.1, inbox.add, ("a", 1))
    timer.start()
    began = time.monotonic()
    assert inbox.wait(10) is True
    assert time.monotonic() - began < 0.5
    assert inbox.wait() is True
    timer.join()
    assert names(inbox, "inflight") == []
    with Inbox(inbox.path) as other:  # and does not make a consumer
        assert other.take()


# --- being superseded, back-off, failing --------------------------------------------------------------


def test_an_element_knows_when_it_is_superseded(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    element = take(inbox)
    assert not element.superseded()
    inbox.add("b", 2)
    assert not element.superseded()
    inbox.add("a", 2)
    assert element.superseded()


def test_an_element_is_superseded_by_a_dropped_file(inbox: Inbox, tmp_path: Path) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    (tmp_path / "a").write_text("2")
    os.utime(tmp_path / "a", (1, 1))
    (tmp_path / "a").rename(os.path.join(inbox.path, "drop", "a"))
    assert element.superseded()
    element.nack()
    assert drain(inbox)[-1] == ("a", 2)


def test_a_deferred_element_lets_others_go_on_and_comes_back(inbox: Inbox) -> None:
    for key in "abc":
        inbox.add(key, 1)
    began = time.monotonic()
    assert take(inbox).nack(delay=0.2) is True
    assert "a" in inbox
    assert len(inbox) == 3
    assert drain(inbox) == [("b", 1), ("c", 1)]
    element = take(inbox, timeout=5)
    assert 0.2 <= time.monotonic() - began < 0.5
    assert (element.key, element.value, element.attempts) == ("a", 1, 2)
    element.ack()
    assert len(inbox) == 0


def test_a_newer_value_supersedes_a_deferred_one_at_once(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox).nack(delay=3600)
    assert inbox.take() is None
    inbox.add("a", 2)
    element = take(inbox)
    assert (element.value, element.attempts) == (2, 1)
    element.ack()
    assert names(inbox, "deferred") == []
    assert names(inbox, "attempts") == []
    assert len(inbox) == 0


def test_a_deferred_element_survives_a_restart(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        began = time.monotonic()
        take(inbox).nack(delay=0.3)
    with Inbox(inbox_dir) as inbox:
        assert inbox.take() is None
        element = take(inbox, timeout=5)
        assert time.monotonic() - began >= 0.3
        assert element.attempts == 2


def test_deferring_with_a_newer_value_waiting_drops_the_older(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    inbox.add("a", 2)
    assert element.nack(delay=3600) is False
    assert drain(inbox) == [("a", 2)]


def test_fail_moves_an_element_to_failed_with_its_reason(inbox: Inbox) -> None:
    inbox.add("a/b", {"x": 1})
    take(inbox).nack()
    element = take(inbox)
    assert element.fail("it does not add up\nat all") is True
    name, reason = names(inbox, "failed")
    assert name.endswith("-a%2Fb")
    assert reason == name + "~reason.txt"
    failed = Path(inbox.path, "failed")
    assert json.loads((failed / name).read_text()) == {"x": 1}
    text = (failed / reason).read_text()
    assert "key: a/b" in text
    assert "attempts: 2" in text
    assert text.endswith("it does not add up\nat all\n")
    assert inbox.take() is None
    assert inbox.add("a/b", 2) == "new"


def test_fail_with_a_newer_value_waiting_drops_the_older(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    inbox.add("a", 2)
    assert element.fail("no") is False
    assert names(inbox, "failed") == []
    assert drain(inbox) == [("a", 2)]


def test_a_reason_may_hold_any_text(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox).fail("lone \udcff, nul \0, 🙂")
    _, reason = names(inbox, "failed")
    assert "🙂" in Path(inbox.path, "failed", reason).read_text(encoding="utf-8")


def test_a_failed_element_moved_back_to_drop_is_taken_again(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox).fail("no")
    name, _ = names(inbox, "failed")
    os.rename(Path(inbox.path, "failed", name), Path(inbox.path, "drop", "a"))
    assert drain(inbox) == [("a", 1)]


def test_a_failed_element_moved_back_to_pending_is_taken_again(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 1)
    take(inbox).fail("no")
    name, _ = names(inbox, "failed")
    os.rename(Path(inbox.path, "failed", name), Path(inbox.path, "pending", name))
    assert sorted(drain(inbox)) == [("a", 1), ("b", 1)]


# --- what an element is -------------------------------------------------------------------------------


def test_an_element_tells_all_about_itself(inbox: Inbox) -> None:
    before = time.time_ns()
    inbox.add("a", {"x": "é"})
    after = time.time_ns()
    element = take(inbox)
    key, value = element
    assert (key, value) == (element.key, element.value) == ("a", {"x": "é"})
    assert element.data == '{"x":"é"}'.encode()
    assert element.size == len(element.data)
    assert Path(element.path).read_bytes() == element.data
    assert Path(element.path).parent == Path(inbox.path, "inflight")
    assert before <= element.seq <= after
    assert abs(element.added_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert element.attempts == 1
    assert not element.suspect
    assert not element.poison
    assert "'a'" in repr(element)


def test_a_value_can_be_read_more_than_once_and_is_fresh_each_time(inbox: Inbox) -> None:
    inbox.add("a", [1])
    element = take(inbox)
    element.value.append(2)
    assert element.value == [1]


def test_a_replaced_element_keeps_its_number_and_its_time(inbox: Inbox) -> None:
    inbox.add("a", 1)
    first = inbox.peek()
    assert first
    inbox.add("a", 2)
    element = take(inbox)
    assert (element.seq, element.added_at) == (first.seq, first.added_at)


# --- looking ------------------------------------------------------------------------------------------


def test_looking_takes_nothing(inbox: Inbox) -> None:
    assert len(inbox) == 0
    assert inbox.peek() is None
    assert list(inbox) == []
    assert inbox
    for key in ("a", "b/c", "d"):
        inbox.add(key, key.upper())
    inbox.add("a", "AA")
    assert len(inbox) == 3
    assert "b/c" in inbox
    assert "x" not in inbox
    assert 7 not in inbox
    assert [tuple(waiting) for waiting in inbox] == [("a", "AA"), ("b/c", "B/C"), ("d", "D")]
    first = inbox.peek()
    assert first
    assert tuple(first) == ("a", "AA")
    found = inbox.find("b/c")
    assert found
    assert (found.key, found.value, found.data) == ("b/c", "B/C", b'"B/C"')
    assert Path(found.path).read_bytes() == b'"B/C"'
    assert inbox.find("x") is None
    assert drain(inbox) == [("a", "AA"), ("b/c", "B/C"), ("d", "D")]


def test_what_is_out_does_not_wait(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    assert "a" not in inbox
    assert len(inbox) == 0
    assert inbox.peek() is None
    element.nack()
    assert "a" in inbox
    assert inbox.find("a")


@pytest.mark.parametrize("key", ["", "k" * 500])
def test_what_cannot_be_a_key_is_not_in_an_inbox(inbox: Inbox, key: str) -> None:
    assert key not in inbox


def test_foreign_files_are_not_counted(inbox: Inbox) -> None:
    inbox.add("a", 1)
    for name in ("README", ".x.swp", "1234567890123456789-%41", "12-a"):
        Path(inbox.path, "pending", name).touch()
    assert [waiting.key for waiting in inbox] == ["a"]
    assert len(inbox) == 1


# --- codecs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "value", "data"),
    [
        ("json", {"a": [1, 2.5, None, True, "é🙂"]}, '{"a":[1,2.5,null,true,"é🙂"]}'.encode()),
        ("json", None, b"null"),
        ("json", "", b'""'),
        ("text", "é\n", "é\n".encode()),
        ("text", "", b""),
        ("bytes", b"\0\xff", b"\0\xff"),
        ("bytes", b"", b""),
        ("bytes", bytearray(b"x"), b"x"),
        ("bytes", memoryview(b"xyz")[1:], b"yz"),
    ],
)
def test_a_codec_makes_a_value_and_its_payload_of_each_other(
    inbox_dir: Path, codec: str, value: object, data: bytes
) -> None:
    with Inbox(inbox_dir, codec=codec) as inbox:
        inbox.add("k", value)
        element = take(inbox)
        assert element.data == data
        assert element.value == value


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("json", float("nan")),
        ("json", [float("inf")]),
        ("json", {1, 2}),
        ("json", b"x"),
        ("json", object()),
        ("json", "\ud800"),
        ("text", 1),
        ("text", b"x"),
        ("text", "\ud800"),
        ("bytes", "x"),
        ("bytes", 3),
    ],
)
def test_a_value_that_does_not_fit_the_codec_is_an_error_and_queues_nothing(
    inbox_dir: Path, codec: str, value: object
) -> None:
    with Inbox(inbox_dir, codec=codec) as inbox:
        with pytest.raises(InvalidPayload, match="'k'") as caught:
            inbox.add("k", value)
        assert isinstance(caught.value, ValueError)
        assert [names(inbox, folder) for folder in ("pending", "tmp")] == [[]] * 2


def test_a_value_that_is_circular_or_too_deep_is_an_error(inbox: Inbox) -> None:
    circular: list[object] = []
    circular.append(circular)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circular, deep):
        with pytest.raises(InvalidPayload):
            inbox.add("k", value)
    while deep:  # take it apart: freeing it is as deep
        deep = deep.pop()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("codec", "data"), [("json", b"{"), ("json", b"\xff"), ("json", b""), ("text", b"\xff")]
)
def test_a_payload_that_cannot_be_decoded_is_an_error_and_its_bytes_are_there(
    inbox_dir: Path, codec: str, data: bytes
) -> None:
    with Inbox(inbox_dir, codec=codec) as inbox:
        inbox.add_bytes("k", data)
        element = take(inbox)
        with pytest.raises(InvalidPayload, match=r"'k'.*another codec"):
            _ = element.value
        assert element.data == data
        element.ack()


def test_an_invalid_key_queues_nothing(inbox: Inbox) -> None:
    for key in ("", "k" * 201, "\ud800"):
        with pytest.raises(InvalidKey):
            inbox.add(key, 1)
        with pytest.raises(InvalidKey):
            inbox.add_many([(key, 1)])
    assert [names(inbox, folder) for folder in ("pending", "tmp")] == [[]] * 2


@pytest.mark.parametrize(
    "key",
    [".hidden", "../../etc/passwd", "a/b", "nul\0", "ü", "-rf", "a" * 200, "x.tmp", "x.part", "~", "%41"],
)
def test_any_key_is_delivered_as_it_was_given(inbox: Inbox, key: str) -> None:
    assert inbox.add(key, 1) == "new"
    assert inbox.add(key, 2) == "replaced"
    assert key in inbox
    assert drain(inbox) == [(key, 2)]


# --- many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_add_many_queues_all_in_order_and_counts(inbox: Inbox, durable: bool) -> None:
    inbox.add("b", 0)
    inbox.add("out", 0)
    inbox.find("b")
    assert take(inbox).ack() is None
    element = take(inbox)
    assert element.key == "out"
    items = [("a", 1), ("c", 1), ("a", 2), ("out", 1), ("d", 1), ("c", 2)]
    assert inbox.add_many(iter(items), durable=durable) == {"new": 3, "replaced": 2, "behind": 1}
    element.ack()
    assert drain(inbox) == [("a", 2), ("c", 2), ("out", 1), ("d", 1)]


def test_add_many_of_nothing_is_nothing(inbox: Inbox) -> None:
    assert inbox.add_many([]) == {"new": 0, "replaced": 0, "behind": 0}


def test_add_many_tells_its_progress_batch_by_batch(inbox: Inbox) -> None:
    progress: list[int] = []
    total = inbox.add_many(((str(n), n) for n in range(2500)), durable=False, progress=progress.append)
    assert total["new"] == 2500
    assert progress == [1000, 2000, 2500]
    assert len(names(inbox, "pending")) == 2500
    assert names(inbox, "tmp") == []


def test_progress_is_told_after_what_it_tells_is_queued(inbox: Inbox) -> None:
    counts = []
    inbox.add_many([(str(n), n) for n in range(3)], progress=lambda done: counts.append((done, len(inbox))))
    assert counts == [(3, 3)]


@pytest.mark.parametrize("bad", [("", 1), ("k", {1})])
def test_an_invalid_item_in_the_middle_keeps_the_earlier_ones(inbox: Inbox, bad: tuple[str, object]) -> None:
    with pytest.raises((InvalidKey, InvalidPayload)):
        inbox.add_many([("a", 1), ("b", 1), bad, ("c", 1)])
    assert names(inbox, "tmp") == []
    assert drain(inbox) == [("a", 1), ("b", 1)]


def test_what_raises_in_add_many_s_iterable_or_progress_is_passed_on(inbox: Inbox) -> None:
    def items() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inbox.add_many(items())
    with pytest.raises(ZeroDivisionError):
        inbox.add_many([("b", 1)], progress=lambda done: 1 // 0)
    assert drain(inbox) == [("a", 1), ("b", 1)]


# --- files --------------------------------------------------------------------------------------------


def test_add_file_copies(inbox: Inbox, tmp_path: Path) -> None:
    payload = os.urandom(3_000_001)
    (tmp_path / "big").write_bytes(payload)
    assert inbox.add_file("k", tmp_path / "big") == "new"
    assert inbox.add_file("k", str(tmp_path / "big")) == "replaced"
    assert (tmp_path / "big").read_bytes() == payload
    element = take(inbox)
    assert element.size == len(payload)
    assert element.data == payload
    assert os.stat(element.path).st_ino != (tmp_path / "big").stat().st_ino


def test_add_file_of_an_empty_file(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    inbox.add_file("k", tmp_path / "empty")
    assert take(inbox).data == b""


@linux
def test_add_file_of_a_file_without_a_size(inbox: Inbox) -> None:
    """Files in /proc say that they are empty, and are not."""
    inbox.add_file("k", "/proc/self/status")
    assert b"Name:" in take(inbox).data


def test_add_file_can_hand_the_file_itself_over(inbox: Inbox, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(b"payload")
    inode = source.stat().st_ino
    assert inbox.add_file("k", source, move=True) == "new"
    assert not source.exists()
    element = take(inbox)
    assert element.data == b"payload"
    assert os.stat(element.path).st_ino == inode


def test_add_file_with_move_across_file_systems_copies_and_removes(inbox: Inbox, tmp_path: Path) -> None:
    source = another_file_system(tmp_path) / f"fsinbox-test-{os.getpid()}-{time.time_ns()}"
    try:
        source.write_bytes(b"payload")
        inbox.add_file("k", source, move=True)
        assert not source.exists()
    finally:
        source.unlink(missing_ok=True)
    assert take(inbox).data == b"payload"


def test_add_file_follows_a_link_and_with_move_removes_only_the_link(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"payload")
    for move in (False, True):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        inbox.add_file("k", tmp_path / "link", move=move)
        element = take(inbox)
        assert not os.path.islink(element.path)
        assert element.data == b"payload"
        element.ack()
        assert (tmp_path / "real").read_bytes() == b"payload"
    assert not os.path.lexists(tmp_path / "link")


@pytest.mark.parametrize("kind", ["missing", "fifo", "directory", "dangling"])
@pytest.mark.parametrize("move", [False, True])
def test_add_file_of_what_is_no_file_is_an_error_at_once(
    inbox: Inbox, tmp_path: Path, kind: str, move: bool
) -> None:
    source = tmp_path / "source"
    {
        "missing": lambda: None,
        "fifo": lambda: os.mkfifo(source),
        "directory": source.mkdir,
        "dangling": lambda: source.symlink_to("x"),
    }[kind]()
    with pytest.raises(AddFailed, match=str(source)) as caught:
        inbox.add_file("k", source, move=move)
    assert caught.value.errno in (errno.ENOENT, errno.EINVAL)
    assert caught.value.maybe_added is False
    assert os.path.lexists(source) == (kind != "missing")
    assert [names(inbox, folder) for folder in ("pending", "tmp")] == [[]] * 2


def test_add_file_with_an_invalid_key_leaves_the_file_alone(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"payload")
    with pytest.raises(InvalidKey):
        inbox.add_file("", tmp_path / "a", move=True)
    assert (tmp_path / "a").read_bytes() == b"payload"


@pytest.mark.parametrize("name", ["index", "pending"])
def test_a_file_that_could_not_be_handed_over_is_still_the_caller_s(
    inbox: Inbox, tmp_path: Path, name: str
) -> None:
    """ "It was not added" must not mean that it is nowhere."""
    source = tmp_path / "a"
    source.write_bytes(b"payload")
    path = Path(inbox.path, name)
    path.rename(tmp_path / name)
    path.mkdir() if name == "index" else path.write_text("")
    with pytest.raises(InboxError):
        inbox.add_file("k", source, move=True)
    assert source.read_bytes() == b"payload"


def hand_over_another_s_file(folder: str) -> None:
    """To be called in a process of its own, as root: becomes somebody else."""
    os.chown(folder, 65534, 65534)
    source = Path(folder, "root's")
    source.write_bytes(b"payload")
    source.chmod(0o644)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    with Inbox(os.path.join(folder, "inbox"), codec="bytes") as inbox:
        try:
            inbox.add_file("k", source, move=True)
        except AddFailed:
            assert source.read_bytes() == b"payload"
        else:
            assert not source.exists()
            assert drain(inbox) == [("k", b"payload")]


def test_a_file_of_another_user_is_handed_over_or_left_where_it_was() -> None:
    if os.geteuid():
        pytest.skip("only root can make files of another user")
    for module in ("consumer.session", "store.transfer"):
        import_module(f"fsinbox.{module}")  # now: as another user the child may not be able to read it
    with tempfile.TemporaryDirectory() as folder:
        assert in_a_child(hand_over_another_s_file, folder) == 0


# --- durable ------------------------------------------------------------------------------------------


def test_durable_is_one_keyword_of_the_inbox_or_of_an_add(inbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    for whole in (True, False):
        with Inbox(inbox_dir, durable=whole) as inbox:
            for one in (None, True, False):
                inbox.add("a", 1, durable=one)
                inbox.add_bytes("b", b"1", durable=one)
                inbox.add_many([("c", 1)], durable=one)
                inbox.add_file("d", tmp_path / "f", durable=one)
                assert drain(inbox) == [(key, 1) for key in "abcd"]


@linux
@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_add_flushes_before_and_after_the_rename_and_the_other_does_not(
    inbox_dir: Path, run_python: Callable[..., str], durable: bool
) -> None:
    code = """
import sys, os
from fsinbox import Inbox
inbox = Inbox(sys.argv[1], durable=sys.argv[2] == "True")
inbox.add("warm", 1)
calls = []
for name in ("fsync", "rename"):
    def record(*arguments, _name=name, _real=getattr(os, name), **options):
        calls.append(_name)
        return _real(*arguments, **options)
    setattr(os, name, record)
inbox.add("a", 1)
print(*calls)
"""
    assert run_python(code, inbox_dir, durable) == ("fsync rename fsync" if durable else "rename")


# --- settling -----------------------------------------------------------------------------------------


def test_a_key_is_taken_once_it_was_left_alone_for_the_settle_time(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, settle=0.2) as inbox:
        inbox.add("a", 1)
        assert inbox.take() is None
        time.sleep(0.1)
        began = time.monotonic()
        inbox.add("a", 2)
        inbox.add("b", 1)
        element = take(inbox, timeout=5)
        assert 0.19 <= time.monotonic() - began < 0.4
        assert tuple(element) == ("a", 2)
        element.ack()
        assert take(inbox, timeout=5).key == "b"


def test_a_storm_cannot_postpone_a_key_beyond_the_ceiling(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, settle=5, max_settle=0.6, durable=False) as inbox:
        stop = threading.Event()

        def storm() -> None:
            with Inbox(inbox_dir, durable=False) as producer:
                value = 0
                while not stop.wait(0.05):
                    value += 1
                    producer.add("a", value)

        thread = threading.Thread(target=storm)
        thread.start()
        began = time.monotonic()
        try:
            element = take(inbox, timeout=10)
        finally:
            stop.set()
            thread.join()
        assert 0.5 < time.monotonic() - began < 4
        assert element.value > 5  # one of the last


# --- processes and threads ----------------------------------------------------------------------------


def test_forked_children_add_to_an_inbox_whose_parent_consumes_it(inbox: Inbox) -> None:
    assert inbox.take() is None
    inbox.add("parent", 1)
    element = take(inbox)

    def add(child: int) -> None:
        for number in range(50):
            inbox.add(f"k{number % 7}", [child, number], durable=False)
        inbox.add(f"child{child}", child)

    children = [fork.Process(target=add, args=(child,)) for child in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert Path(element.path).exists()  # none of them ended it
    element.ack()
    numbers = [waiting.seq for waiting in inbox]
    assert len(set(numbers)) == len(numbers) == 7 + 8
    last = {
        number: 49 - (49 - number) % 7 for number in range(7)
    }  # the last number a child adds for each key
    delivered = dict(drain(inbox))
    assert {f"child{child}": child for child in range(8)}.items() <= delivered.items()
    assert [delivered[f"k{number}"][1] for number in range(7)] == [last[number] for number in range(7)]
    assert [names(inbox, folder) for folder in ("pending", "tmp", "drop")] == [[]] * 3


def test_a_forked_child_that_adds_nothing_and_outlives_its_parent_does_not_keep_the_lock(
    inbox_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import os, sys, time
from fsinbox import Inbox
inbox = Inbox(sys.argv[1])
inbox.add("a", 1)
inbox.take()
child = os.fork()
if not child:
    time.sleep(60)
print(child, flush=True)
sys.stdin.readline()
os._exit(0)
"""
    parent = start_python(code, inbox_dir)
    assert parent.stdout
    assert parent.stdin
    child = int(parent.stdout.readline())
    try:
        with Inbox(inbox_dir) as inbox:
            with pytest.raises(InboxBusy):
                inbox.take()
            parent.stdin.write("\n")
            parent.stdin.flush()
            parent.wait(10)
            os.kill(child, 0)  # it lives
            element = take(inbox)
            assert (element.key, element.attempts) == ("a", 2)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_takes_is_a_second_consumer(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = take(inbox)

    def try_to_take() -> None:
        try:
            inbox.take()
        except InboxBusy:
            os._exit(7)

    assert in_a_child(try_to_take) == 7
    element.ack()


def test_a_forked_child_that_leaves_the_with_block_does_not_put_back_what_its_parent_has_out(
    inbox: Inbox,
) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    assert in_a_child(inbox.close) == 0
    assert Path(element.path).exists()
    with Inbox(inbox.path) as second, pytest.raises(InboxBusy):
        second.take()
    element.ack()


@pytest.mark.parametrize("end", ENDS)
def test_a_forked_child_cannot_end_its_parent_s_element(inbox: Inbox, end: str) -> None:
    inbox.add("a", 1)
    element = take(inbox)

    def try_to_end() -> None:
        try:
            ENDS[end](element)
        except WrongState:
            os._exit(7)

    assert in_a_child(try_to_end) == 7
    assert Path(element.path).exists()
    element.ack()


def test_a_forked_child_that_outlives_its_parent_does_not_keep_others_from_adding(
    inbox_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """The fork was made while another thread of the parent was being admitted, and the parent was killed
    right then."""
    code = """
import os, sys, time
from fsinbox import Inbox
inbox = Inbox(sys.argv[1])
inbox.add("a", 1)

def fork():
    child = os.fork()
    if not child:
        time.sleep(60)
    print(child, flush=True)
    os._exit(0)

inbox._handle.index.locked(fork)
"""
    parent = start_python(code, inbox_dir)
    assert parent.stdout
    child = int(parent.stdout.readline())
    try:
        parent.wait(10)
        add = start_python(
            "import sys; from fsinbox import Inbox; print(Inbox(sys.argv[1]).add('b', 1))", inbox_dir
        )
        output, _ = add.communicate(timeout=5)
        assert output == "new\n"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_of_a_producer_adds(inbox: Inbox) -> None:
    inbox.add("a", 1)
    assert in_a_child(inbox.add, "b", 2) == 0
    assert drain(inbox) == [("a", 1), ("b", 2)]


def test_a_forked_child_of_a_waiting_consumer_can_wait_itself(inbox: Inbox) -> None:
    assert inbox.take(timeout=0.01) is None  # its watch has a thread, which a fork does not copy

    def wait() -> None:
        os._exit(7 if inbox.wait(10) else 1)

    child = fork.Process(target=wait)
    child.start()
    time.sleep(0.1)
    inbox.add("a", 1)
    child.join(5)
    assert child.exitcode == 7


def test_threads_add_at_once_and_nothing_is_lost(inbox: Inbox) -> None:
    def add(thread: int) -> None:
        for number in range(40):
            inbox.add(f"shared{number % 5}", [thread, number], durable=False)
            inbox.add(f"own{thread}-{number}", number, durable=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    numbers = [waiting.seq for waiting in inbox]
    assert len(set(numbers)) == len(numbers) == 5 + 8 * 40
    delivered = dict(drain(inbox))
    assert all(delivered[f"own{thread}-{number}"] == number for thread in range(8) for number in range(40))
    assert all(delivered[f"shared{key}"][1] == 35 + key for key in range(5))
    assert names(inbox, "tmp") == []


def test_producers_in_threads_and_processes_against_a_consumer_lose_nothing_and_keep_the_order_of_a_key(
    inbox_dir: Path,
) -> None:
    rounds, several = 120, 3

    def produce(number: int) -> None:
        with Inbox(inbox_dir, durable=False) as inbox:
            for value in range(rounds):
                inbox.add(f"p{number}-{value % 4}", value)

    children = [fork.Process(target=produce, args=(number,)) for number in range(several)]
    delivered: dict[str, list[int]] = {}
    with Inbox(inbox_dir, durable=False) as inbox:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children) or len(inbox):
            element = inbox.take(timeout=0.02)
            if element:
                delivered.setdefault(element.key, []).append(element.value)
                element.ack()
    assert all(child.exitcode == 0 for child in children)
    for number in range(several):
        for key in range(4):
            values = delivered[f"p{number}-{key}"]
            assert values == sorted(values), "an older value after a newer one"
            assert values[-1] == rounds - 4 + key


# --- clocks, and damage to what numbers come from -----------------------------------------------------


def test_numbers_increase_when_the_clock_steps_back(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.add("a", 1)
    real = time.time_ns
    monkeypatch.setattr("fsinbox.store.index.time_ns", lambda: real() - 1000 * 10**9)
    inbox.add("b", 1)
    with Inbox(inbox.path) as other:
        other.add("c", 1)
    inbox.add("a", 2)
    numbers = [waiting.seq for waiting in inbox]
    assert numbers == sorted(set(numbers))
    assert numbers[2] == numbers[0] + 2
    assert drain(inbox) == [("a", 2), ("b", 1), ("c", 1)]


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "deleted": None,
    "empty": lambda index: b"",
    "garbage": lambda index: b"\xff\xfe\0garbage",
    "zeros": lambda index: bytes(len(index)),
    "half a number": lambda index: index[:8],
    "a header and no table": lambda index: index[:64],
    "cut in the table": lambda index: index[:-1],
    "no lines": lambda index: index[:29] + b"0" * 10 + index[39:],
    "more lines than there are": lambda index: index[:29] + b"9" * 10 + index[39:],
    "another boot": lambda index: b"%019d deadbeef" % 1 + index[28:],
    "an old number of another boot": lambda index: b"1700000000000000000 deadbeef" + index[28:],
    "a forged number of another boot": lambda index: b"9" * 19 + b" deadbeef" + index[28:],
    "a tag that is no text": lambda index: index[:20] + b"\xff" * 8 + index[28:],
    "a header of another kind": lambda index: index[:40] + b"more".ljust(23) + index[63:],
}


def damage(inbox: Inbox, how: str) -> None:
    path = Path(inbox.path, "index")
    spoil = DAMAGES[how]
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGES)
def test_numbers_go_on_above_every_one_in_use_when_the_index_is_damaged(
    wide: Inbox, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock comes back wrong as well, so that only a look at the folders can tell."""
    for key in "abc":
        wide.add(key, 1)
    a, b = take(wide), take(wide)
    a.nack(delay=0.001)
    b.fail("no")
    wide.close()
    highest = max(int(name[:19]) for name in names(wide, "pending"))
    damage(wide, how)
    real = time.time_ns
    monkeypatch.setattr("fsinbox.store.index.time_ns", lambda: real() - 70_000 * 10**9)
    with Inbox(wide.path) as again:
        again.add("d", 1)
        again.add("e", 1)
        (d, e) = (again.find("d"), again.find("e"))
        assert d and e
        assert highest < d.seq < e.seq < highest + 86_400 * 10**9
        time.sleep(0.002)
        assert drain(again) == [("a", 1), ("c", 1), ("d", 1), ("e", 1)]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_running_consumer_misses_nothing_when_the_index_is_damaged(inbox: Inbox, how: str) -> None:
    assert inbox.take() is None
    with Inbox(inbox.path) as producer:
        producer.add("a", 1)
        assert drain(inbox) == [("a", 1)]
        damage(inbox, how)
        for key in "bcd":
            producer.add(key, 1)
        assert drain(inbox) == [("b", 1), ("c", 1), ("d", 1)]
        producer.add("e", 1)
        assert drain(inbox) == [("e", 1)]


@pytest.mark.parametrize("how", DAMAGES)
def test_what_waits_keeps_its_place_when_the_index_is_damaged_under_a_running_consumer(
    inbox: Inbox, how: str
) -> None:
    for key in "abcd":
        inbox.add(key, 1)
    take(inbox).nack()
    inbox.close()
    again = Inbox(inbox.path)
    element = take(again)
    assert element.key == "a"
    damage(again, how)
    element.nack()
    again.add("e", 1)
    assert drain(again) == [(key, 1) for key in "abcde"]
    again.close()


@pytest.mark.parametrize("number", [b"9999999999999999999", b"8999999999999999900"])
def test_an_index_forged_in_this_boot_does_not_stop_the_queue(inbox: Inbox, number: bytes) -> None:
    """The worst that a hand in the file can do."""
    inbox.add("a", 1)
    index = Path(inbox.path, "index")
    index.write_bytes(number + index.read_bytes()[19:])
    inbox.add("b", 1)
    assert sorted(drain(inbox)) == [("a", 1), ("b", 1)]
    inbox.add("c", 1)
    assert drain(inbox) == [("c", 1)]


@pytest.mark.parametrize("number", ["9999999999999999999", "4000000000000000000"])
@pytest.mark.parametrize("consuming", [False, True])
def test_a_forged_number_in_pending_does_not_poison(inbox: Inbox, number: str, consuming: bool) -> None:
    if consuming:
        assert inbox.take() is None
    Path(inbox.path, "pending", f"{number}-x").write_text("1")
    inbox.add("a", 1)
    assert sorted(drain(inbox)) == [("a", 1), ("x", 1)]
    inbox.add("b", 1)
    inbox.add("x", 2)
    numbers = [waiting.seq for waiting in inbox]
    assert all(number < time.time_ns() + 10**9 for number in numbers)
    assert drain(inbox) == [("b", 1), ("x", 2)]


@pytest.mark.parametrize("folder", ["inflight", "failed"])
def test_a_forged_number_in_another_folder_does_not_poison(inbox: Inbox, folder: str) -> None:
    Path(inbox.path, folder, "9999999999999999999-x").write_text("1")
    inbox.add("a", 1)
    assert ("a", 1) in drain(inbox)
    inbox.add("b", 1)
    found = inbox.find("b")
    assert found
    assert found.seq < time.time_ns()
    assert drain(inbox) == [("b", 1)]


def test_a_value_added_after_a_forged_number_is_delivered_after_it(inbox: Inbox) -> None:
    Path(inbox.path, "pending", "9999999999999999999-x").write_text("1")
    inbox.add("x", 2)
    values = [value for _, value in drain(inbox)]
    assert 2 in values


def test_lost_lines_lose_no_value_and_no_place(inbox: Inbox) -> None:
    """The table is a cache, not the truth."""
    for key in "abc":
        inbox.add(key, 1)
    index = Path(inbox.path, "index")
    whole = index.read_bytes()
    index.write_bytes(whole[:64] + bytes(len(whole) - 64))
    for key in "cba":
        assert inbox.add(key, 2) == "new"  # at a second place: it is not known that it waits
    assert drain(inbox) == [("a", 2), ("b", 2), ("c", 2)]


# --- an inbox that is moved away ----------------------------------------------------------------------


def move_away(inbox: Inbox, *, replace: bool) -> None:
    """Rename the inbox's folder, and have another inbox in its place."""
    os.rename(inbox.path, inbox.path + ".old")
    if replace:
        Inbox(inbox.path).close()


@pytest.mark.parametrize("replace", [False, True])
def test_a_consumer_whose_inbox_was_moved_away_says_so(inbox: Inbox, replace: bool) -> None:
    """It must not go on with the old one in silence."""
    inbox.add("a", 1)
    take(inbox).ack()
    move_away(inbox, replace=replace)
    with pytest.raises(
        UnusableInbox, match="something else is in its place" if replace else "was removed, or moved away"
    ):
        inbox.take()
    if replace:
        with Inbox(inbox.path) as other:
            other.add("b", 1)
            with pytest.raises(UnusableInbox, match="start anew on the one that is meant"):
                inbox.take(timeout=5)
            assert drain(other) == [("b", 1)]


@pytest.mark.parametrize("replace", [False, True])
def test_a_consumer_that_waits_in_an_inbox_that_is_moved_away_says_so(inbox_dir: Path, replace: bool) -> None:
    with Inbox(inbox_dir, watch="poll", poll_interval=0.05) as inbox, ThreadPoolExecutor() as pool:
        waiting = pool.submit(inbox.take, None)
        time.sleep(0.1)
        move_away(inbox, replace=replace)
        with pytest.raises(UnusableInbox, match="moved away"):
            waiting.result(5)


@pytest.mark.parametrize("replace", [False, True])
def test_a_producer_whose_inbox_was_moved_away_says_so_within_a_second(inbox: Inbox, replace: bool) -> None:
    inbox.add("a", 1)
    move_away(inbox, replace=replace)
    began = time.monotonic()
    with pytest.raises(UnusableInbox, match=r"moved away.*nothing was added"):
        while time.monotonic() < began + 5:
            inbox.add("b", 1)
            time.sleep(0.01)
    assert time.monotonic() - began < 1.2
    for call in (lambda: inbox.add_many([("c", 1)]), lambda: inbox.add_bytes("c", b"1")):
        with pytest.raises(UnusableInbox, match="moved away"):
            time.sleep(1)
            call()


# --- litter, leaks ------------------------------------------------------------------------------------


def test_a_consumer_sweeps_old_drafts_and_leaves_young_ones(inbox: Inbox) -> None:
    tmp = Path(inbox.path, "tmp")
    (tmp / "young").write_text("a living writer's")
    assert inbox.take() is None
    assert names(inbox, "tmp") == ["young"]


@linux
def test_opening_adding_taking_and_closing_leaks_no_descriptor(inbox_dir: Path) -> None:
    def once() -> None:
        with Inbox(inbox_dir, durable=False) as inbox:
            inbox.add("a", 1)
            inbox.add_many([("b", 1)])
            take(inbox).ack()
            take(inbox)

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        once()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_package_offers_what_it_names() -> None:
    assert all(getattr(fsinbox, name) for name in fsinbox.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        fsinbox.nothing  # noqa: B018


def test_a_lock_on_a_removed_index_is_given_up_for_the_new_one(inbox: Inbox) -> None:
    """It would exclude nobody who comes later, and nobody would learn of the numbers given out under it."""
    inbox.add("a", 1)
    index = Path(inbox.path, "index")
    index.unlink()
    with Inbox(inbox.path) as other:
        other.add("b", 2)
    inbox.add("c", 3)
    numbers = [waiting.seq for waiting in inbox]
    assert numbers == sorted(numbers)
    assert int(index.read_bytes()[:19]) == numbers[-1]


# --- what the system refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["ack", "nack", "fail"])
def test_an_element_that_the_system_will_not_let_end_comes_back_at_the_next_start(
    inbox: Inbox, end: str
) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    with (
        refusing(
            **{"unlink" if end == "ack" else "rename": errno.EROFS}, when=lambda name, *_: name.endswith("-a")
        ),
        pytest.raises(UnusableInbox, match="stays in flight until that is mended, or a consumer starts next"),
    ):
        element.fail("no") if end == "fail" else getattr(element, end)()
    with pytest.raises(WrongState, match="before"):
        element.ack()
    inbox.close()
    with Inbox(inbox.path) as again:
        assert drain(again) == ([] if end == "fail" else [("a", 1)])
        assert [name[20:] for name in names(again, "failed")] == (
            ["a", "a~reason.txt"] if end == "fail" else []
        )


def test_a_waiting_take_tries_a_refused_end_again_and_again(inbox: Inbox) -> None:
    """Not only when its own time is over, however much that is."""
    inbox.add("a", 1)
    element = take(inbox)
    with refusing(rename=errno.EIO, times=3):
        with pytest.raises(UnusableInbox, match="stays in flight"):
            element.nack()
        began = time.monotonic()
        again = inbox.take(timeout=60)
    assert again
    assert time.monotonic() - began < 20
    assert again.key == "a"


@pytest.mark.parametrize("end", ["ack", "nack", "release", "fail"])
def test_an_element_that_the_system_will_not_let_end_goes_on_when_it_does(inbox: Inbox, end: str) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    with refusing(
        **{"unlink" if end == "ack" else "rename": errno.EROFS}, when=lambda name, *_: name.endswith("-a")
    ):
        with pytest.raises(UnusableInbox, match="stays in flight"):
            ENDS[end](element)
        consumer = inbox._taking()._consume()
        consumer._next_look = time.monotonic() + 60  # (else it might be tried again in this very take)
        assert inbox.take() is None
    consumer._next_look = 0.0
    assert [name[20:] for name in names(inbox, "inflight")] == ["a"]
    again = inbox.take(timeout=2 if end == "fail" else 10)
    assert (again is None) == (end == "fail")
    assert len(names(inbox, "failed")) == (2 if end == "fail" else 0)


def test_closing_closes_even_if_nothing_can_be_requeued(wide: Inbox) -> None:
    for key in "ab":
        wide.add(key, 1)
    first, second = take(wide), take(wide)
    with refusing(rename=errno.EIO), pytest.raises(UnusableInbox, match="key 'a'"):
        wide.close()
    with pytest.raises(WrongState, match="before"):
        first.ack()
    with pytest.raises(WrongState, match="was closed"):
        second.ack()
    with Inbox(wide.path) as again:
        assert drain(again) == [("a", 1), ("b", 1)]


@pytest.mark.parametrize("refused", [False, True])
def test_what_an_interrupted_take_left_is_requeued_at_the_end(inbox: Inbox, refused: bool) -> None:
    """Interrupted between the consumer's take and the making of the Element: nobody has it to end it."""
    inbox.add("a", 1)
    assert inbox._taking()._consume().take()
    if refused:
        with (
            refusing(rename=errno.EIO),
            pytest.raises(UnusableInbox, match="cannot requeue what is in flight"),
        ):
            inbox.close()
    else:
        inbox.close()
        assert len(names(inbox, "pending")) == 1
    with Inbox(inbox.path) as again:
        assert drain(again) == [("a", 1)]


LOOKS: dict[str, Callable[[Inbox], object]] = {
    "len": len,
    "list": list,
    "wait": lambda inbox: inbox.wait(0),
    "find": lambda inbox: inbox.find("a"),
    "in": lambda inbox: "a" in inbox,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_that_the_system_refuses_changes_nothing_and_says_so(inbox: Inbox, look: str) -> None:
    inbox.add("a", 1)
    with refusing(open=errno.EIO), pytest.raises(UnusableInbox, match="nothing was changed"):
        LOOKS[look](inbox)
    assert LOOKS[look](inbox)


def test_a_take_that_the_system_refuses_loses_nothing_and_says_so(inbox: Inbox) -> None:
    inbox.add("a", 1)
    with refusing(rename=errno.EROFS), pytest.raises(UnusableInbox, match="nothing was lost"):
        inbox.take()
    assert drain(inbox) == [("a", 1)]


@pytest.mark.parametrize(
    "options",
    [{"settle": -1}, {"max_settle": -1}, {"drop_settle": -0.1}, {"max_drop_size": -1}, {"poll_interval": 0}],
)
def test_senseless_times_and_sizes_are_refused(inbox_dir: Path, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}(: invalid| must be more)"):
        Inbox(inbox_dir, **options)  # type: ignore[arg-type]
    assert not inbox_dir.exists()


@linux
def test_who_does_not_consume_is_woken_by_a_drop_too(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with inbox.sleeper.listening() as watch:
        watch.noticed()
        (tmp_path / "a").rename(Path(inbox.path, "drop", "a"))
        assert select.select(watch.descriptors, [], [], 10)[0]
    assert take(inbox, timeout=10).key == "a"


def test_who_waits_behind_another_thread_gives_up_at_its_own_deadline(inbox: Inbox) -> None:
    with inbox._taking().sleeper._lock:  # as a thread that waits for ever holds it
        assert inbox.wait(0.01) is False
        assert inbox.take(0.01) is None


def test_a_payload_is_whole_however_little_the_system_writes_at_once(inbox: Inbox) -> None:
    def a_part(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "write":
            return call(arguments[0], bytes(arguments[1])[:7])
        return call(*arguments, **more)

    with intercepted(a_part):
        inbox.add_bytes("a", bytes(range(256)))
    assert inbox.take().data == bytes(range(256))


def test_a_payload_that_grows_or_shrinks_while_it_is_read_is_read_to_its_end(inbox: Inbox) -> None:
    inbox.add_bytes("a", b"12345")
    element = inbox.take()
    assert element
    for content in (b"1234567890", b"123"):
        with meanwhile("read", partial(Path(element.path).write_bytes, content)):
            assert element.data == content


def test_what_is_open_cannot_be_pickled_or_copied_and_says_what_to_pass_on(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("k", 1)
        element = inbox.take()
        for pickled in (inbox, element, inbox.peek, AsyncInbox(inbox_dir)):
            with pytest.raises(TypeError, match=r"pickled or copied: pass on its (path|key)"):
                pickle.dumps(pickled)
        with pytest.raises(TypeError, match="pass on its path, and open it there"):
            copy.copy(inbox)


def test_a_value_that_is_read_too_late_says_whose_it_was(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a/b", 1)
        waiting = inbox.peek()
        element = inbox.take()
        assert waiting and element
        element.ack()
        for read in (lambda: waiting.value, waiting.open, lambda: element.value, element.open):
            with pytest.raises(FileNotFoundError, match="key 'a/b' was taken, or ended, meanwhile"):
                read()
