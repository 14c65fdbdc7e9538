"""`consume --on-failed COMMAND`: told when an element moves to failed/."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from test_consume import Place

from fsinbox import Inbox, Reject
from fsinbox.worker import telling
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.runner import Runner
from fsinbox.worker.telling import OnFailed

TELL = 'printf "%s|%s|%s|" "$FSINBOX_KEY" "$FSINBOX_ATTEMPTS" "$FSINBOX_REASON" >>notes; tail -n 1 >>notes'


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


def test_a_command_is_run_for_what_failed_and_for_nothing_else(place: Place) -> None:
    place.jobs(
        "from fsinbox import Reject\n"
        "def job(element):\n"
        "    if element.key.startswith('bad'): raise Reject(element.value)\n"
        "    if element.key == 'flaky' and element.attempts < 3: raise OSError\n"
    )
    place.add("flaky", **{"bad; rm -rf $HOME\0": "no\0ne", "bad2": "none"})
    place.drain("--on-failed", TELL, "--retry-delay", "0.01", status=1)
    assert sorted(place.notes) == [
        "bad2|1|rejected: none|fsinbox.store.errors.Reject: none",
        "bad; rm -rf $HOME\\0|1|rejected: no\\0ne|fsinbox.store.errors.Reject: no\0ne",
    ]


def test_a_command_that_hangs_holds_up_nothing_and_is_killed(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "_TIMEOUT", 0.3)

    def handle(key: str, value: object) -> None:
        raise Reject("no")

    with Inbox(inbox_dir, durable=False) as inbox:
        for key in "abc":
            inbox.add(key, 1)
        observer = OnFailed('[ "$FSINBOX_KEY" = a ] && exec sleep 3600; [ "$FSINBOX_KEY" = b ]', inbox.path)
        tally = Runner(inbox, FunctionHandler("handle", handle), drain=True, observers=[observer]).run()
    assert tally.failed == 3
    assert "took longer than 0.3 s, and was killed, for key 'a'" in caplog.text
    assert "exited with 1, for key 'c'" in caplog.text
    assert "key 'b'" not in caplog.text.replace("key 'b' moved to failed/", "")


def test_what_cannot_be_told_in_time_is_counted(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "_PATIENCE", 0.2)
    monkeypatch.setattr(telling, "_MOST", 2)

    def handle(key: str, value: object) -> None:
        raise Reject("no")

    with Inbox(inbox_dir, durable=False) as inbox:
        for key in "abcdef":
            inbox.add(key, 1)
        began = time.monotonic()
        observer = OnFailed("exec sleep 2", inbox.path)
        Runner(inbox, FunctionHandler("handle", handle), drain=True, observers=[observer]).run()
    assert time.monotonic() - began < 2
    assert "--on-failed: not told of 6" in caplog.text


def test_a_command_that_cannot_be_started_is_said(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(key: str, value: object) -> None:
        raise Reject("no")

    monkeypatch.setenv("TOO_LONG", "x" * (1 << 18))  # for an environment (E2BIG)
    with Inbox(inbox_dir, durable=False) as inbox:
        inbox.add("a", 1)
        observer = OnFailed("true", inbox.path)
        Runner(inbox, FunctionHandler("handle", handle), drain=True, observers=[observer]).run()
    assert "could not be started" in caplog.text


def test_a_kill_while_it_is_told_leaves_the_element_in_failed_and_the_rest_as_it_was(place: Place) -> None:
    place.jobs("from fsinbox import Reject\ndef job(element):\n    note(element.key)\n    raise Reject('no')")
    place.add("a")
    words = ("--handler", "jobs:job", "--on-failed", "echo told >>notes; sleep 10")
    with place.consumer(*words) as consumer:
        consumer.until(lambda: "told" in place.notes)
        place.add("b")
        consumer.until(lambda: "b" in place.notes)  # nothing was held up
        consumer.until(lambda: place.left() == {"failed": ["a", "b"]})
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    assert place.left() == {"failed": ["a", "b"]}
