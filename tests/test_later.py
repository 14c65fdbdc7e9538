"""Later, and only if none waits: `delay`, `not_before`, `if_waiting`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox import AddFailed, AsyncInbox, Element, Inbox
from fsinbox.operate.steering import Steering
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


@contextmanager
def clock(seconds: float) -> Iterator[None]:
    """While this lasts, a consumer's clock is ahead of a producer's."""
    real = time.time_ns

    def shifted() -> int:
        return real() + int(seconds * 1e9)

    with (
        mock.patch("fsinbox.consumer.ownership.time_ns", shifted),
        mock.patch("fsinbox.consumer.recovery.time_ns", shifted),
    ):
        yield


@contextmanager
def another_users_file() -> Iterator[None]:
    """While this lasts, the times of files cannot be set, but to now."""

    def refuse(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "utime" and "ns" in more:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return call(*arguments, **more)

    with intercepted(refuse):
        yield


def taken(inbox: Inbox) -> Element:
    """Take an element once it may be: every 20 ms a consumer looks at the clock."""
    found: list[Element] = []
    wait_until(lambda: found.extend(filter(None, [inbox.take()])) or found)
    return found[0]


# --- later --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"delay": 1.5},
        {"delay": timedelta(seconds=1.5)},
        {"not_before": lambda: time.time() + 1.5},
        {"not_before": lambda: datetime.now(UTC) + timedelta(seconds=1.5)},
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
    assert time.time() - began >= 1.49
    assert (element.key, element.value, element.attempts, element.replaced) == ("a", "later", 1, False)
    element.ack()
    assert len(inbox) == 0


def test_it_counts_no_attempt_that_it_was_too_soon(inbox: Inbox) -> None:
    inbox.add("a", "later", delay=3600)
    for _ in range(3):
        assert inbox.take() is None
    assert names(inbox, "pending") == []
    with clock(3601):
        element = taken(inbox)
    assert element.attempts == 1
    element.nack()
    element = inbox.take()
    assert element
    assert element.attempts == 2  # the same: it was handed out, whatever the clock says


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
    assert inbox.add("a", "late", delay=3600) == "replaced"
    assert inbox.take() is None
    with clock(3601):
        assert taken(inbox).value == "late"


@pytest.mark.parametrize("delay", [0, 3600])
def test_a_newer_value_replaces_one_that_was_put_off(inbox: Inbox, delay: float) -> None:
    inbox.add("a", "old", delay=1800)
    assert inbox.take() is None
    assert len(names(inbox, "deferred")) == 1
    inbox.add("a", "new", delay=delay)
    if delay:
        assert inbox.take() is None
        assert len(names(inbox, "deferred")) == 1
        with clock(1801):
            assert inbox.take() is None
    with clock(delay + 1):
        element = taken(inbox)
    assert element.value == "new"
    element.ack()
    assert inbox.take() is None
    assert names(inbox, "deferred") == names(inbox, "pending") == []


def test_it_survives_a_restart_and_a_clock_that_is_set_back(inbox_dir: Path) -> None:
    """It is the clock that counts, whatever is done to it."""
    with Inbox(inbox_dir, codec="text") as inbox:
        inbox.add("a", "1", delay=60)
        assert inbox.take() is None
    with clock(-3600), Inbox(inbox_dir, codec="text") as inbox:
        assert inbox.take() is None
    with clock(59), Inbox(inbox_dir, codec="text") as inbox:
        assert inbox.take() is None
    with clock(61), Inbox(inbox_dir, codec="text") as inbox:
        element = inbox.take()
        assert element
        assert element.value == "1"


def test_a_longer_time_than_any_back_off_is_waited_for_in_parts(inbox: Inbox, tmp_path: Path) -> None:
    began = time.time_ns()
    inbox.add("a", "1", delay=9 * 86_400)
    assert inbox.take() is None
    (deferred,) = names(inbox, "deferred")
    assert int(deferred[:19]) <= time.time_ns() + 7 * 86_400 * 10**9
    with clock(8 * 86_400):
        assert inbox.next_look_in()
        with Inbox(copy_of(inbox, tmp_path), codec="text") as restarted:
            assert restarted.take() is None  # due, and put off again
            (deferred,) = names(restarted, "deferred")
            assert int(deferred[:19]) >= began + 9 * 86_400 * 10**9
    with clock(9 * 86_400 + 60), Inbox(restarted.path, codec="text") as restarted:
        assert restarted.take()


def copy_of(inbox: Inbox, folder: Path) -> Path:
    """Return a copy of an inbox, as a backup has it."""
    shutil.copytree(inbox.path, folder / "copy", symlinks=True)
    return folder / "copy"


@pytest.mark.parametrize("debounced", [0, 0.01])
def test_a_clock_that_is_set_forward_counts(inbox_dir: Path, debounced: float) -> None:
    """Or a computer that slept: the clock that timers go by stands still then."""
    with Inbox(inbox_dir, codec="text", settle=debounced, max_inflight=2) as inbox:
        inbox.add("b", "2")
        taken(inbox)
        inbox.add("a", "1", delay=3600)
        wait_until(lambda: inbox.take() is None and names(inbox, "deferred"))
        with clock(3601):
            element = taken(inbox)
        assert (element.key, element.attempts) == ("a", 1)
        assert inbox.in_flight == ["b", "a"]


def test_a_dead_consumer_that_was_putting_it_off_counts_no_attempt(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=3600)
    (name,) = names(inbox, "pending")
    os.rename(f"{inbox.path}/pending/{name}", f"{inbox.path}/inflight/{name}")  # taken; then it died
    assert inbox.take() is None
    with clock(3601):
        element = taken(inbox)
    assert (element.attempts, element.suspect) == (1, False)


def test_no_attempt_of_another_users_file_is_counted_either(inbox: Inbox) -> None:
    """Its mark stays, and with its mtime the note of its attempts would."""
    for key in ("taken", "was-in-flight"):
        inbox.add(key, "1", delay=3600)
    name = names(inbox, "pending")[1]
    os.rename(f"{inbox.path}/pending/{name}", f"{inbox.path}/inflight/{name}")  # by one that died then
    assert inbox.take() is None
    assert len(names(inbox, "deferred")) == 2
    inbox.max_inflight = 2
    late = time.time_ns() + 3601 * 10**9
    ahead = mock.patch("fsinbox.store.files.time_ns", lambda: late)
    with clock(3601), ahead, another_users_file():
        for _ in range(2):
            element = taken(inbox)
            assert (element.attempts, element.suspect) == (1, False)


def test_a_dead_consumer_that_had_it_counts_an_attempt(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=3600)
    with clock(3601):
        assert inbox.take()
    consumer = inbox._taking().consumer
    assert consumer
    consumer.close()  # its lock, as if it had died
    with Inbox(inbox.path, codec="text") as other:
        element = other.take()  # (and the clock was set back)
        assert element
        assert (element.attempts, element.suspect) == (2, True)


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_file_system_that_cuts_times_down_hands_it_out_late_rather_than_early(
    inbox: Inbox, seconds: int
) -> None:
    def cut(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "utime":
            more["ns"] = tuple(time - time % (seconds * 10**9) for time in more["ns"])
        return call(*arguments, **more)

    moment = time.time() + 3600.5
    with intercepted(cut):
        inbox.add("a", "1", not_before=moment)
    (file,) = Path(inbox.path, "pending").iterdir()
    assert moment - 0.001 <= file.stat().st_mtime <= moment + 2


def test_a_file_system_that_keeps_no_such_bit_is_told_of(inbox: Inbox) -> None:
    def without(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        return call(*arguments, **more) if name != "fchmod" else None

    with intercepted(without), pytest.raises(AddFailed, match="cannot keep a value for later"):
        inbox.add("a", "1", delay=60)
    assert names(inbox, "tmp") == names(inbox, "pending") == []


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
    end_it(inbox)
    assert inbox.take(timeout=5)


def test_a_retry_by_people_ends_the_delay_of_one_that_nobody_has_looked_at(
    inbox: Inbox, tmp_path: Path
) -> None:
    inbox.add("a", "1", delay=3600)
    where = ("--inbox", inbox.path)
    (row,) = Steering(inbox.path).rows(["waiting"])
    assert run(*where, "retry", "a", cwd=tmp_path).stdout == "a: queued\n"
    assert run(*where, "retry", "a", cwd=tmp_path).stdout == "a: nothing to do: it is waiting\n"
    assert inbox.take()
    with Steering(inbox.path) as steering:
        assert steering.end_delay(row) == "gone"
    assert row.look(inbox.layout) is None


def end_it(inbox: Inbox) -> None:
    with Steering(inbox.path) as steering:
        (row,) = steering.rows(["deferred"])
        assert steering.requeue(row) == "queued"


def test_people_end_the_delay_of_another_users_file_too(inbox: Inbox) -> None:
    """They may write to it, but not change its mode."""
    inbox.add("a", "1", delay=3600)
    assert inbox.take() is None
    with another_users_file():
        end_it(inbox)
    (file,) = Path(inbox.path, "pending").iterdir()
    assert file.stat().st_mode & stat.S_ISVTX
    assert file.stat().st_mtime <= time.time()
    with another_users_file():
        assert taken(inbox).attempts == 1


@pytest.mark.parametrize("way", ["bytes", "file", "move", "stream", "many"])
def test_every_way_of_adding_takes_a_delay(inbox: Inbox, tmp_path: Path, way: str) -> None:
    source = tmp_path / "source"
    source.write_text("1")
    if way == "bytes":
        inbox.add_bytes("a", b"1", delay=3600)
    elif way == "stream":
        with source.open("rb") as stream:
            inbox.add_stream("a", stream, delay=3600)
    elif way == "many":
        inbox.add_many([("a", "1")], delay=3600)
    else:
        inbox.add_file("a", source, move=way == "move", delay=3600)
    assert inbox.take() is None
    with clock(3601):
        assert taken(inbox).value == "1"


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
        ({"delay": -1}, "delay: invalid duration -1: use 90"),
        ({"delay": float("nan")}, "delay: invalid duration nan: use 90"),
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
    assert inbox.add("a", "second", delay=1, if_waiting="keep") == "kept"
    with clock(3601):
        element = taken(inbox)
    assert element.value == "first"
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
    element = inbox.take()
    assert element
    inflight = inbox.layout.folder("inflight")

    def done(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "lstat" and more.get("dir_fd") == inflight and not element.ended:
            element.ack()
        return call(*arguments, **more)

    with intercepted(done):
        assert inbox.add("a", "second", if_waiting="keep") == "new"
    assert element.ended
    (found,) = inbox
    assert found.value == "second"


def test_what_is_handed_out_is_not_kept_even_if_the_clock_was_set_back(inbox: Inbox) -> None:
    """Else a producer would be told that a value waits which a handler has had before."""
    inbox.add("a", "first", delay=3600)
    with clock(3601):
        element = inbox.take()
        assert element
    assert inbox.add("a", "second", if_waiting="keep") == "behind"  # by its own clock that is an hour early
    element.ack()
    element = inbox.take()
    assert element
    assert element.value == "second"


def test_what_is_kept_uses_up_no_number(inbox: Inbox) -> None:
    """Else the lines of a key that is deferred would be written over, and it would not be known to wait once
    it is back."""
    inbox.add("a", "first", delay=3600)
    assert inbox.take() is None
    with open(f"{inbox.path}/index", "rb") as file:
        before = file.read()
        for _ in range(3):
            assert inbox.add("a", "more", if_waiting="keep") == "kept"
        file.seek(0)
        assert file.read() == before
    with clock(3601):
        element = taken(inbox)
    element.nack()
    assert inbox.add("a", "late", if_waiting="keep") == "kept"


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


def test_ls_and_show_say_when_it_is_due(inbox: Inbox, tmp_path: Path) -> None:
    where = ("--inbox", inbox.path)
    inbox.add("a", "1", delay=9 * 86_400 + 60)
    inbox.add("b", "1")
    for state in ("waiting", "deferred"):
        lines = run(*where, "ls", cwd=tmp_path).stdout.splitlines()
        assert [line.split()[0] for line in lines if line.endswith("  a  (in 9d)")] == [state]
        (row,) = [row for row in map(json.loads, listed(inbox, tmp_path)) if row["key"] == "a"]
        shown = json.loads(run(*where, "show", "--json", "a", cwd=tmp_path).stdout)
        moment = datetime.now(UTC) + timedelta(days=9)
        assert timedelta(0) < datetime.fromisoformat(row["due"]) - moment < timedelta(seconds=60)
        assert shown["due"] == row["due"]
        if element := inbox.take():
            element.release()
    assert [json.loads(line)["due"] for line in listed(inbox, tmp_path) if '"b"' in line] == [None]


def listed(inbox: Inbox, tmp_path: Path) -> list[str]:
    return run("--inbox", inbox.path, "ls", "--json", cwd=tmp_path).stdout.splitlines()


@pytest.mark.parametrize("words", [[], ["--replace"]], ids=str)
@pytest.mark.parametrize("put_off", [True, False])
def test_an_export_keeps_the_moment(inbox: Inbox, tmp_path: Path, words: list[str], put_off: bool) -> None:
    moment = time.time() + 3600
    inbox.add("a", "1", not_before=moment)
    if put_off:
        assert inbox.take() is None
    run("--inbox", inbox.path, "export", "all.tar", cwd=tmp_path)
    run("--inbox", "other", "import", "--create", *words, "all.tar", cwd=tmp_path)
    with Inbox(tmp_path / "other", codec="text") as other:
        (file,) = Path(other.path, "pending").iterdir()
        assert moment <= file.stat().st_mtime <= moment + 0.001
        assert other.take() is None
        with clock(3601):
            assert taken(other).value == "1"


def test_an_archive_with_a_time_that_cannot_be_is_refused(inbox: Inbox, tmp_path: Path) -> None:
    inbox.add("a", "1", delay=3600)
    (file,) = Path(inbox.path, "pending").iterdir()
    os.utime(file, (1, time.time() + 2 * LONGEST))
    run("--inbox", inbox.path, "export", "all.tar", cwd=tmp_path)
    done = run("--inbox", "other", "import", "--create", "all.tar", cwd=tmp_path, status=2)
    assert "is for later, and its time cannot be" in done.stderr


def test_an_idle_consumer_wakes_when_it_is_time(inbox: Inbox) -> None:
    inbox.add("a", "1", delay=0.3)
    wait_until(lambda: inbox.take(timeout=1))
