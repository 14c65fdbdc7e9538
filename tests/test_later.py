"""Later, and only if none waits: `delay`, `not_before`, `if_waiting`."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox import AsyncInbox, Inbox
from fsinbox.operate.steering import Steering
from fsinbox.store import transitions
from fsinbox.store.names import element_name
from fsinbox.store.terms import LONGEST, terms_of
from tests.helpers import run, wait_until
from tests.machine import another_file_system
from tests.shim import intercepted


@pytest.fixture
def inbox(inbox_dir: Path) -> Any:
    with Inbox(inbox_dir, codec="text") as opened:
        yield opened


def names(inbox: Inbox, folder: str) -> list[str]:
    return sorted(os.listdir(f"{inbox.path}/{folder}"))


# --- later --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"delay": 0.5},
        {"delay": timedelta(seconds=0.5)},
        {"not_before": lambda: time.time() + 0.5},
        {"not_before": lambda: datetime.now(UTC) + timedelta(seconds=0.5)},
    ],
    ids=["delay", "timedelta", "seconds", "datetime"],
)
def test_a_value_for_later_is_handed_out_when_it_is_time_and_not_before(
    inbox: Inbox, how: dict[str, Any]
) -> None:
    began = time.time()
    given = {name: value() if callable(value) else value for name, value in how.items()}
    assert inbox.add("a", "later", **given) == "new"
    inbox.add("b", "now")
    first = inbox.take()
    assert first
    assert first.key == "b"
    first.ack()
    element = inbox.take(timeout=5)
    assert element
    assert time.time() - began >= 0.49
    assert (element.key, element.value, element.attempts, element.replaced) == ("a", "later", 1, False)
    element.ack()
    assert len(inbox) == 0


def test_it_counts_no_attempt_that_it_was_too_soon(inbox: Inbox) -> None:
    inbox.add("a", "later", delay=3600)
    for _ in range(3):
        assert inbox.take() is None
    assert names(inbox, "pending") == []
    with Steering(inbox.path) as steering:
        (row,) = steering.rows(["deferred"])
        steering.requeue(row)
    element = inbox.take(timeout=5)
    assert element
    assert element.attempts == 1


def test_a_moment_in_the_past_is_now(inbox: Inbox) -> None:
    inbox.add("a", "1", not_before=time.time() - 5)
    inbox.add("b", "1", delay=0)
    assert [element.key for element in (inbox.take(),) if element] == ["a"]
    (waiting,) = Path(inbox.path, "pending").iterdir()
    assert not stat.S_IMODE(waiting.stat().st_mode) & stat.S_ISVTX


def test_a_newer_value_brings_its_own_time(inbox: Inbox) -> None:
    inbox.add("a", "old", delay=3600)
    assert inbox.add("a", "new") == "replaced"  # it still waits in its place
    element = inbox.take()
    assert element
    assert element.value == "new"
    element.ack()
    inbox.add("a", "soon")
    began = time.time()
    assert inbox.add("a", "late", delay=0.1) == "replaced"
    element = inbox.take(timeout=5)
    assert element
    assert element.value == "late"
    assert time.time() - began >= 0.09


@pytest.mark.parametrize("delay", [0, 0.1])
def test_a_newer_value_replaces_one_that_was_put_off(inbox: Inbox, delay: float) -> None:
    inbox.add("a", "old", delay=3600)
    assert inbox.take() is None
    assert len(names(inbox, "deferred")) == 1
    inbox.add("a", "new", delay=delay)
    element = inbox.take(timeout=5)
    assert element
    assert element.value == "new"
    element.ack()
    assert inbox.take() is None
    assert names(inbox, "deferred") == names(inbox, "pending") == []


def test_it_survives_a_restart(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as inbox:
        began = time.time()
        inbox.add("a", "1", delay=0.5)
        assert not inbox.take() or time.time() - began >= 0.49
    with Inbox(inbox_dir, codec="text") as inbox:
        element = inbox.take(timeout=5)
        assert element
        assert element.value == "1"
        assert time.time() - began >= 0.49


def test_a_longer_time_than_any_back_off_is_waited_for_in_parts(inbox: Inbox) -> None:
    real = time.time_ns
    inbox.add("a", "1", delay=9 * 86_400)
    with Inbox(inbox.path, codec="text") as consumer:
        assert consumer.take() is None
    (deferred,) = names(inbox, "deferred")
    assert int(deferred[:19]) <= real() + 7 * 86_400 * 10**9
    days = 8

    def shifted() -> int:
        return real() + days * 86_400 * 10**9

    with (
        mock.patch("fsinbox.consumer.ownership.time_ns", shifted),
        mock.patch("fsinbox.consumer.recovery.time_ns", shifted),
    ):
        with Inbox(inbox.path, codec="text") as consumer:
            assert consumer.take() is None  # due, and put off again
        (deferred,) = names(inbox, "deferred")
        days = 10
        with Inbox(inbox.path, codec="text") as consumer:
            assert consumer.take()


def test_a_dead_consumer_that_was_putting_it_off_counts_no_attempt(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=0.3)
    (name,) = names(inbox, "pending")
    os.rename(f"{inbox.path}/pending/{name}", f"{inbox.path}/inflight/{name}")  # taken; then it died
    element = inbox.take(timeout=5)
    assert element
    assert (element.attempts, element.suspect) == (1, False)


def test_the_time_is_flushed_with_the_content(inbox: Inbox) -> None:
    order = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name in ("utime", "fsync", "rename"):
            order.append(name)
        return call(*arguments, **more)

    with intercepted(note):
        inbox.add("a", "1", delay=60)
    assert order[:3] == ["utime", "fsync", "rename"]


def test_a_retry_by_people_ends_the_delay(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=3600)
    assert inbox.take() is None
    with Steering(inbox.path) as steering:
        (row,) = steering.rows(["deferred"])
        assert steering.requeue(row) == "queued"
    element = inbox.take(timeout=5)
    assert element
    assert element.value == "1"


@pytest.mark.parametrize("way", ["bytes", "file", "move", "stream", "many"])
def test_every_way_of_adding_takes_a_delay(inbox: Inbox, tmp_path: Path, way: str) -> None:
    source = tmp_path / "source"
    source.write_text("1")
    began = time.time()
    if way == "bytes":
        inbox.add_bytes("a", b"1", delay=0.1)
    elif way == "stream":
        with source.open("rb") as stream:
            inbox.add_stream("a", stream, delay=0.1)
    elif way == "many":
        inbox.add_many([("a", "1")], delay=0.1)
    else:
        inbox.add_file("a", source, move=way == "move", delay=0.1)
    element = inbox.take(timeout=5)
    assert element
    assert time.time() - began >= 0.09
    assert element.value == "1"


def test_an_async_inbox_takes_the_same(inbox_dir: Path) -> None:
    async def program() -> None:
        async with AsyncInbox(inbox_dir, codec="text") as inbox:
            await inbox.add("a", "1", delay=0.1)
            assert await inbox.add("a", "2", if_waiting="keep") == "kept"
            element = await inbox.take(timeout=5)
            assert element
            assert element.value == "1"

    asyncio.run(program())


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"delay": -1}, "delay must be 0 or more, not -1"),
        ({"delay": float("nan")}, "can be delayed for 3650 days at most"),
        ({"delay": LONGEST + 1}, "can be delayed for 3650 days at most"),
        ({"delay": 1, "not_before": 1}, "give one of them"),
        ({"if_waiting": "drop"}, "unknown if_waiting 'drop': use 'replace' or 'keep'"),
    ],
)
def test_what_cannot_be_meant_is_refused(inbox: Inbox, how: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        inbox.add("a", "1", **how)
    assert len(inbox) == 0


def test_who_asks_for_nothing_gets_the_same_terms_each_time() -> None:
    assert terms_of(True) is terms_of(False, durable=True)
    assert terms_of(False) is terms_of(True, durable=False)


# --- only if none waits -------------------------------------------------------------------------------


def test_the_first_is_kept(inbox: Inbox) -> None:
    assert inbox.add("a", "first", if_waiting="keep") == "new"
    assert inbox.add("a", "second", if_waiting="keep") == "kept"
    assert inbox.add_many([("a", "third"), ("b", "1")], if_waiting="keep") == {
        "new": 1,
        "replaced": 0,
        "behind": 0,
        "kept": 1,
    }
    assert names(inbox, "tmp") == []
    element = inbox.take()
    assert element
    assert element.value == "first"
    assert inbox.add("a", "next", if_waiting="keep") == "behind"  # nothing waits: it is in flight


def test_one_that_was_put_off_or_waits_out_a_back_off_is_kept(inbox: Inbox) -> None:
    inbox.add("a", "first", delay=3600)
    assert inbox.take() is None
    assert len(names(inbox, "deferred")) == 1
    assert inbox.add("a", "second", delay=0.2, if_waiting="keep") == "kept"
    inbox.add("a", "other")
    element = inbox.take(timeout=5)
    assert element
    element.nack(3600)
    assert inbox.add("a", "third", if_waiting="keep") == "kept"


def test_one_that_is_on_its_way_to_be_put_off_is_kept(inbox: Inbox) -> None:
    inbox.add("a", "first", delay=3600)
    (name,) = names(inbox, "pending")
    os.rename(f"{inbox.path}/pending/{name}", f"{inbox.path}/inflight/{name}")
    assert inbox.add("a", "second", if_waiting="keep") == "kept"
    assert inbox.add("b", "other", if_waiting="keep") == "new"


def test_one_that_is_done_while_it_is_looked_at_is_not_kept(inbox: Inbox) -> None:
    inbox.add("a", "first")
    assert inbox.take()
    listed = [("inflight", element_name(1, "a"))]
    with mock.patch.object(inbox.layout, "in_flight", lambda: listed):
        assert transitions.is_put_off(inbox.layout, "a") is False


def test_a_dropped_file_came_first_and_is_kept(inbox: Inbox, inbox_dir: Path) -> None:
    draft = inbox_dir / "tmp" / "draft"
    draft.write_text("dropped")
    draft.rename(inbox_dir / "drop" / "a")
    assert inbox.add("a", "second", if_waiting="keep") == "kept"
    element = inbox.take(timeout=5)
    assert element
    assert element.value == "dropped"


@pytest.mark.parametrize("move", [True, False])
def test_a_file_that_was_not_added_stays_where_it_is(inbox: Inbox, tmp_path: Path, move: bool) -> None:
    source = tmp_path / "source"
    source.write_text("second")
    inbox.add("a", "first")
    assert inbox.add_file("a", source, move=move, if_waiting="keep") == "kept"
    assert source.read_text() == "second"
    assert names(inbox, "tmp") == []


def test_a_file_that_was_not_added_stays_on_another_file_system_too(inbox: Inbox) -> None:
    source = another_file_system(Path(inbox.path)) / f"fsinbox-test-{os.getpid()}"
    source.write_text("second")
    try:
        inbox.add("a", "first")
        assert inbox.add_file("a", source, move=True, if_waiting="keep") == "kept"
        assert source.read_text() == "second"
    finally:
        source.unlink()


# --- from the shell -----------------------------------------------------------------------------------


def test_the_same_from_the_shell(tmp_path: Path) -> None:
    run("init", cwd=tmp_path)
    done = run("add", "--delay", "1h", "--json", "a", "later", cwd=tmp_path)
    assert '"outcome": "new"' in done.stdout
    done = run("add", "--if-waiting", "keep", "--json", "a", "second", cwd=tmp_path)
    assert '"outcome": "kept"' in done.stdout
    run("add", "--not-before", "2001-02-03 04:05", "b", "now", cwd=tmp_path)
    with Inbox(tmp_path / "inbox", codec="text") as inbox:
        element = inbox.take()
        assert element
        assert element.key == "b"
        assert "a" in inbox  # put off


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--delay", "soon"], "soon"),
        (["--not-before", "tomorrow-ish"], "tomorrow-ish"),
        (["--delay", "1m", "--not-before", "2030-01-01"], "give one of them"),
        (["--delay", "5000d"], "3650 days"),
    ],
)
def test_from_the_shell_a_time_that_is_none_is_refused(tmp_path: Path, words: list[str], why: str) -> None:
    run("init", cwd=tmp_path)
    done = run("add", *words, "a", "1", cwd=tmp_path, status=2)
    assert why in done.stderr


def test_an_idle_consumer_wakes_when_it_is_time(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=0.3)
    wait_until(lambda: inbox.take(timeout=1))
