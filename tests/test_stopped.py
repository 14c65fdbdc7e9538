"""A process that is stopped in the midst of its add, with the lock: a consumer's thread never waits for it
without bound."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsinbox import Inbox
from tests.usual import drain, is_free, names, take

SOON = 0.2
"""Seconds within which an end returns."""

PRODUCER = """
import os, signal, sys
from fsinbox import Inbox
from fsinbox.store import transitions as protocol

with Inbox(sys.argv[1]) as inbox:
    rename = protocol._rename
    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGSTOP)
        rename(*arguments)
    protocol._rename = stop
    inbox.add(sys.argv[2], "from the stopped one")
"""

KEYS = [f"k{number}" for number in range(12)]


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, max_inflight=20) as inbox:
        inbox.add_many((key, 1) for key in KEYS)
        assert inbox.wait(0)
        take(inbox).release()  # it is the consumer, and has listed
        yield inbox


@pytest.fixture
def stop(
    inbox: Inbox, start_python: Callable[..., subprocess.Popen[str]]
) -> Callable[[str], subprocess.Popen[str]]:
    """Start a producer that stops itself just before it publishes; return when it is stopped."""

    def start(key: str = "x") -> subprocess.Popen[str]:
        child = start_python(PRODUCER, inbox.path, key)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert not is_free(inbox.path)
        return child

    return start


def go_on(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGCONT)
    assert child.wait(20) == 0


def taken_in(seconds: float, call: Callable[[], object]) -> object:
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < seconds
    return result


def test_takes_and_acknowledgements_go_on(inbox: Inbox, stop: Callable[..., subprocess.Popen[str]]) -> None:
    child = stop()
    began = time.monotonic()
    assert drain(inbox) == [(key, 1) for key in KEYS]
    assert time.monotonic() - began < 1
    go_on(child)
    assert drain(inbox) == [("x", "from the stopped one")]


@pytest.mark.parametrize("end", ["nack", "defer", "fail"])
def test_what_goes_back_stays_in_flight_and_goes_when_the_lock_is_free(
    inbox: Inbox, stop: Callable[..., subprocess.Popen[str]], end: str
) -> None:
    first, second = take(inbox), take(inbox)
    child = stop()
    for element in (first, second):
        ends = {
            "nack": element.nack,
            "defer": lambda e=element: e.nack(0.000_001),
            "fail": lambda e=element: e.fail("no"),
        }
        taken_in(SOON, ends[end])
    assert [name[20:] for name in names(inbox, "inflight")] == KEYS[:2]
    assert (
        taken_in(SOON, lambda: take(inbox).key) == KEYS[2]
    )  # the others go on, and it is tried again in between
    take(inbox).ack()
    assert [name[20:] for name in names(inbox, "inflight")] == KEYS[:3]
    go_on(child)
    if end == "fail":
        time.sleep(0.05)
        assert inbox.take(timeout=0.1)
        assert [name[20:] for name in names(inbox, "failed") if "~" not in name] == KEYS[:2]
    else:
        time.sleep(0.05)
        again = [take(inbox, timeout=1), take(inbox, timeout=1)]
        assert [(element.key, element.attempts) for element in again] == [(key, 2) for key in KEYS[:2]]


def test_a_newer_value_of_what_could_not_go_back_is_delivered_once_it_is_gone(
    inbox: Inbox, stop: Callable[..., subprocess.Popen[str]]
) -> None:
    """The stopped producer's own: it supersedes the older one, which is never delivered after it."""
    element = take(inbox)
    child = stop(element.key)
    taken_in(SOON, element.nack)
    go_on(child)
    time.sleep(0.05)
    assert dict(drain(inbox))[KEYS[0]] in (1, "from the stopped one")
    found = []
    while another := inbox.take(timeout=0.2):
        found.append((another.key, another.value))
        another.ack()
    assert found in ([], [(KEYS[0], "from the stopped one")])
    assert names(inbox, "inflight") == names(inbox, "pending") == []


def test_an_idle_consumer_tries_again_by_itself(
    inbox: Inbox, stop: Callable[..., subprocess.Popen[str]]
) -> None:
    element = take(inbox)
    drain(inbox)
    child = stop()
    element.nack()
    assert inbox.take(timeout=0.2) is None
    look = inbox.next_look_in()
    assert look is not None and look < 0.2
    go_on(child)
    assert sorted([take(inbox, timeout=5).key, take(inbox, timeout=5).key]) == [KEYS[0], "x"]


@pytest.mark.parametrize("ended", [False, True])
def test_close_does_not_wait_for_it(
    inbox: Inbox, stop: Callable[..., subprocess.Popen[str]], ended: bool
) -> None:
    elements = [take(inbox) for _ in KEYS]
    child = stop()
    if ended:
        for element in elements:
            element.nack()
    taken_in(2, inbox.close)
    with Inbox(inbox.path, max_inflight=20) as again:
        assert len(names(again, "inflight")) == len(KEYS)
        taken_in(2, again.take)  # becoming the consumer does not wait either
        go_on(child)
        found = []
        while element := again.take(timeout=0.3):
            found.append(element.key)
            element.ack()
        assert sorted(found) == sorted([*KEYS, "x"])
        assert names(again, "inflight") == []


def test_dropped_files_wait_and_stop_nothing(
    inbox: Inbox, stop: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    child = stop()
    draft = tmp_path / "draft"
    draft.write_text("1")
    os.utime(draft, (1, 1))
    draft.rename(Path(inbox.path, "drop", "d"))
    began = time.monotonic()
    assert len(drain(inbox)) == len(KEYS)
    assert time.monotonic() - began < 2
    go_on(child)
    assert sorted([take(inbox, timeout=5).key, take(inbox, timeout=5).key]) == ["d", "x"]
