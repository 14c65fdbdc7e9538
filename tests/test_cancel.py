"""`consume --cancel-superseded`: a newer value ends the work on the old one."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytest
from helpers import contents, keys_in, run
from test_consume import Place
from test_limits import is_alive

from fsinbox import Element, Inbox
from fsinbox.worker.backoff import Retries
from fsinbox.worker.commands import CommandHandler
from fsinbox.worker.ending import Ending, Tally
from fsinbox.worker.limits import Limits
from fsinbox.worker.outcome import Outcome


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


WORK = "    note(element.key, element.value, element.attempts)\n    while element.value == 'old':\n"
HANDLERS = {
    "command": ("--exec", "./work"),
    "async": ("--handler", "jobs:later"),
    "processes": ("--handler", "jobs:job", "--processes", "1"),
}


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("watch", ["events", "poll"])
def test_a_newer_value_ends_the_work_on_the_old_one_and_is_next(place: Place, kind: str, watch: str) -> None:
    place.jobs(
        f"import asyncio\ndef job(element):\n{WORK}        time.sleep(0.01)\n"
        f"async def later(element):\n{WORK}        await asyncio.sleep(0.01)\n"
    )
    work = place.path / "work"
    work.write_text(
        "#!/bin/sh\n"
        "value=$(cat)\n"
        "case $value in *old*) sleep 3600 & echo $! >>children;; esac\n"
        'echo "$FSINBOX_KEY" $value $FSINBOX_ATTEMPTS | tr -d \'"\' >>notes\n'
        "wait\n"
    )
    work.chmod(0o755)
    place.add(a="old", b="other")
    began = time.monotonic()
    with place.consumer(*HANDLERS[kind], "--cancel-superseded", "--drain", "--watch", watch) as consumer:
        consumer.until(lambda: place.notes)
        place.add(a="new")
        consumer.end(0)
    assert time.monotonic() - began < 60
    assert place.notes == ["a old 1", "b other 1", "a new 1"]
    assert "key 'a': ended the work on it, for a newer value waits" in consumer.log
    assert "2 acknowledged, 0 requeued, 1 dropped for a newer value, 0 failed" in consumer.log
    assert place.left() == {}
    if kind == "command":
        assert not any(map(is_alive, (place.path / "children").read_text().split()))


def test_a_value_that_is_dropped_ends_the_work_too(place: Place) -> None:
    place.add(a="old")
    line = "grep -q old && exec sleep 3600; echo new >>notes"
    with place.consumer("--exec", line, "--shell", "--cancel-superseded", "--drain") as consumer:
        consumer.until(lambda: keys_in(place.inbox, "inflight"))
        draft = place.inbox / "drop/.a"
        draft.write_text("new")
        draft.rename(place.inbox / "drop/a")
        consumer.end(0)
    assert place.notes == ["new"]


def test_a_value_of_another_key_ends_nothing_and_what_is_done_first_is_done(place: Place) -> None:
    place.jobs(
        "import asyncio\n"
        "async def job(element):\n"
        "    note(element.key)\n"
        "    while not Path('go').exists(): await asyncio.sleep(0.01)\n"
    )
    place.add("a")
    with place.consumer("--handler", "jobs:job", "--cancel-superseded", "--drain") as consumer:
        consumer.until(lambda: place.notes)
        place.add("b", "c")
        time.sleep(0.3)
        place.make("go")
        consumer.end(0)
    assert place.notes == ["a", "b", "c"]
    assert "3 acknowledged, 0 requeued, 0 dropped" in consumer.log


def test_a_kill_before_the_old_work_has_ended_leaves_the_newer_value_only(place: Place) -> None:
    place.add(a="old")
    line = "trap '' TERM; echo $FSINBOX_ATTEMPTS >>notes; grep -q old || exit 0; while :; do sleep 0.1; done"
    words = ("--exec", line, "--shell", "--cancel-superseded")
    with place.consumer(*words) as consumer:
        consumer.until(lambda: place.notes)
        place.add(a="new")
        time.sleep(0.3)  # it has had its SIGTERM, and is not killed yet
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    assert contents(place.inbox) == {"a": b'"new"'}
    place.consume("--drain", *words)
    assert place.notes == ["1", "1"]
    assert place.left() == {}


def test_if_the_newer_value_is_removed_meanwhile_the_old_one_is_requeued_uncounted(inbox_dir: Path) -> None:
    tally = Tally()
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        assert Ending(tally, Retries()).end(element, Outcome("cancelled")) == "retried"
        again = inbox.take()
        assert again
        assert again.attempts == 1


def test_a_superseded_element_is_interrupted_once_and_by_force_only_after_the_grace(inbox_dir: Path) -> None:
    calls = []

    class Handler(CommandHandler):
        def interrupt(self, element: Element, *, force: bool) -> bool:
            calls.append(force)
            return len(calls) > 1

    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        limits = Limits(Handler("true"), cancel_superseded=True)
        assert not limits.follow_arrivals
        limits.began(element)
        limits.apply()
        assert (limits.follow_arrivals, limits.due(), calls) == (True, math.inf, [])
        inbox.add("a", 2)
        limits.apply()
        limits.apply()
        assert calls == [False]  # it has only begun
        time.sleep(0.06)
        limits.apply()
        limits.apply()
        assert calls == [False, False]
        assert 0 < limits.due() - time.monotonic() <= 5
        assert limits.ended(element, Outcome("retry")).kind == "cancelled"


def test_a_function_in_a_thread_cannot_be_cancelled(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    done = place.consume("--handler", "jobs:job", "--cancel-superseded", status=2)
    assert "--cancel-superseded: jobs:job runs in a thread" in done.stderr


def test_what_was_ended_is_not_superseded_and_a_pause_leaves_drop_alone(place: Place) -> None:
    with Inbox(place.inbox, max_inflight=2) as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        run("pause", cwd=place.path)
        assert inbox.take() is None
        draft = place.inbox / "drop/.a"
        draft.write_text("2")
        time.sleep(0.02)
        draft.rename(place.inbox / "drop/a")
        assert not element.newer_waits()
        run("resume", cwd=place.path)
        while not element.newer_waits():
            inbox.take()
        element.ack()
        assert not element.newer_waits()
