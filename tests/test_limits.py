"""How long it may take: the time limit of a handler, of a shutdown, and of the consumer itself."""

from __future__ import annotations

import asyncio
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any, cast

import click
import pytest
from helpers import json_lines, reason, wait_until
from test_consume import Place

from fsinbox import Element, Inbox
from fsinbox.cli import handling
from fsinbox.worker import limits, renewing
from fsinbox.worker.backoff import Retries
from fsinbox.worker.commands import CommandHandler
from fsinbox.worker.ending import Tally
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.renewing import Renewal, Restart
from fsinbox.worker.runner import Runner
from fsinbox.worker.service import Service
from fsinbox.worker.sleeping import seconds_until


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


@pytest.fixture
def inbox(inbox_dir: Path) -> Inbox:
    with Inbox(inbox_dir, durable=False) as inbox:
        inbox.add("a", 1)
        yield inbox


def is_alive(pid: str) -> bool:
    """Tell whether a process runs. (Not what has ended, and waits for its parent to ask.)"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- of a handler -------------------------------------------------------------------------------------


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_has_started(place: Place) -> None:
    place.add("a", "b")
    script = place.path / "work"
    script.write_text(
        '#!/bin/sh\n[ "$FSINBOX_KEY" = b ] && exit 0\necho working\nsleep 3600 & echo $! >child; wait\n'
    )
    script.chmod(0o755)
    words = ("--exec", "./work", "--drain", "--timeout", "0.5", "--max-attempts", "2", "--retry-delay", "0.1")
    began = time.monotonic()
    done = place.consume(*words, status=1)
    assert time.monotonic() - began < 30
    assert "attempt 1 of 2 failed: timed out after 0.5 s" in done.stderr
    why = reason(place.inbox, "a")
    assert "timed out after 0.5 s" in why
    assert "was killed by SIGTERM" in why and "working" in why
    assert not is_alive((place.path / "child").read_text().strip())
    assert place.left() == {"failed": ["a"]}


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.2)
    handler = CommandHandler("trap '' TERM; sleep 3600 & wait; wait", shell=True)
    tally = Runner(inbox, handler, retries=Retries(1), timeout=0.2, drain=True).run()
    assert tally.failed == 1
    (why,) = (Path(inbox.path) / "failed").glob("*~reason.txt")
    assert "was killed by SIGKILL" in why.read_text()


def test_what_is_done_in_the_last_moment_is_done(inbox: Inbox) -> None:
    handler = CommandHandler("trap 'exit 0' TERM; sleep 3600 & wait; exit 1", shell=True)
    assert Runner(inbox, handler, timeout=0.3, drain=True).run().acknowledged == 1


def test_a_coroutine_that_takes_too_long_is_cancelled_and_cleans_up_before_the_next_try(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.1)
    said = []

    async def handle(element: Element) -> None:
        said.append(f"begins {element.attempts}")
        if element.attempts > 1:
            return
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            said.append("cancelled")
            try:
                await asyncio.sleep(3600)  # it does not want to; it is cancelled again
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)
                said.append("cleaned up")
                raise

    handler = FunctionHandler("handle", handle)
    assert handler.interruptible
    tally = Runner(inbox, handler, timeout=0.2, drain=True).run()
    assert said == ["begins 1", "cancelled", "cleaned up", "begins 2"]
    assert (tally.retried, tally.acknowledged) == (1, 1)


def test_what_is_not_at_work_any_more_is_not_interrupted(inbox: Inbox) -> None:
    async def handle(element: Element) -> None: ...

    element = inbox.take()
    assert element
    for handler in (CommandHandler("true"), FunctionHandler("handle", handle)):
        handler.handle(element)
        assert not handler.interrupt(element, force=True)


class Worker:
    async def __call__(self, element: Element) -> None: ...


def test_a_function_in_a_thread_cannot_be_ended_so_a_time_limit_for_it_is_refused(place: Place) -> None:
    assert FunctionHandler("w", Worker()).interruptible
    place.jobs("def job(key, value): note(key)")
    place.add("a")
    done = place.consume("--handler", "jobs:job", "--timeout", "1", "--drain", status=2)
    assert "--timeout: jobs:job runs in a thread, which nothing can end" in done.stderr
    assert place.notes == []


def test_a_killed_consumer_takes_its_command_along_and_the_attempt_counts(place: Place) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    place.add("a")
    line = "echo $$ >>pids; [ $FSINBOX_ATTEMPTS = 2 ] || exec sleep 3600"
    words = ("--exec", line, "--shell", "--timeout", "1h")
    with place.consumer(*words) as consumer:
        consumer.until(lambda: (place.path / "pids").exists() and (place.path / "pids").read_text())
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    place.consume("--drain", *words)
    first, second = (place.path / "pids").read_text().split()
    wait_until(lambda: not is_alive(first))
    assert first != second
    assert place.left() == {}


# --- of a shutdown ------------------------------------------------------------------------------------


def test_what_still_runs_at_the_end_of_the_shutdown_timeout_is_requeued_uncounted(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    wait_for('never')")
    place.add("a")
    with place.consumer("--handler", "jobs:job", "--shutdown-timeout", "0.3") as consumer:
        consumer.until(lambda: place.notes)
        consumer.signal(signal.SIGTERM)
        consumer.end(0, patience=20)
    assert "requeued 1 at the end of the shutdown timeout" in consumer.log
    assert place.left() == {"pending": ["a"]}
    place.jobs("def job(element): note(element.attempts)")
    place.drain()
    assert place.notes == ["1", "1"]


def test_what_ends_within_the_shutdown_timeout_is_acknowledged(place: Place) -> None:
    place.jobs("def job(element):\n    note('began')\n    wait_for('go')")
    place.add("a", "b")
    with place.consumer("--handler", "jobs:job", "--shutdown-timeout", "1m") as consumer:
        consumer.until(lambda: place.notes)
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        place.make("go")
        consumer.end(0)
    assert place.left() == {"pending": ["b"]}


# --- of the consumer itself ---------------------------------------------------------------------------


def test_after_so_many_elements_it_starts_anew_as_the_same_process(place: Place) -> None:
    place.jobs(
        "note('imported', os.getpid())\n"
        "def job(element):\n"
        "    os.chdir('/')\n"
        "    os.chdir(HERE)\n"
        "    note(element.key)\n"
        "    if element.key == 'b': raise OSError('down')\n"
        "HERE = os.getcwd()\n"
    )
    place.add(*"abcde")
    done = place.drain("--max-elements", "2", "--max-attempts", "1", "--log-format", "json", status=1)
    pids = {note for note in place.notes if note.startswith("imported")}
    assert len(pids) == 1
    assert place.notes.count(pids.pop()) == 3
    assert [note for note in place.notes if len(note) == 1] == list("abcde")
    events = json_lines(done.stderr)
    assert [event["event"] for event in events].count("renewed") == 2
    assert (events[-1]["acknowledged"], events[-1]["failed"]) == (4, 1)  # of all three


def test_once_and_a_signal_end_it_all_the_same(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.key)\n    if element.key == 'b': wait_for('go')")
    place.add("a", "b")
    place.consume("--handler", "jobs:job", "--once", "--max-elements", "1")
    with place.consumer("--handler", "jobs:job", "--max-elements", "1") as consumer:
        consumer.until(lambda: place.notes == ["a", "b"])
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for" in consumer.log)
        place.make("go")
        consumer.end(0)
    assert place.left() == {}


def test_a_killed_consumer_that_would_have_started_anew_is_one_like_others(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.key, element.attempts)\n    wait_for('go')")
    place.add("a", "b")
    with place.consumer("--handler", "jobs:job", "--max-elements", "1") as consumer:
        consumer.until(lambda: place.notes)
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    place.make("go")
    place.drain("--max-elements", "1")
    assert place.notes == ["a 1", "a 2", "b 1"]
    assert place.left() == {}


def test_a_handler_that_leaks_makes_it_start_anew(place: Place) -> None:
    place.jobs("note('imported')\nkept = []\ndef job(element):\n    kept.append(b'x' * (60 << 20))\n")
    place.add(*"abc")
    done = place.drain("--max-memory", "60M")
    assert place.notes.count("imported") >= 3
    assert "starting anew: it uses" in done.stderr
    assert place.left() == {}


def test_a_limit_of_memory_is_refused_where_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "_STATM", "/proc/nothing")
    handler = CommandHandler("true")
    with pytest.raises(click.UsageError, match="how much memory"):
        asked = {"timeout": None, "cancel_superseded": False, "batch": None, "max_memory": 1}
        handling.check_limits(handler, asked)


def test_what_is_not_a_tally_of_ours_is_ignored() -> None:
    for text in ("", "{}", "[]", '{"acknowledged": "many"}', "1"):
        environment = {"_FSINBOX_TALLY": text, "HOME": "/root"}
        assert Restart(environment).before() == Tally()
        assert environment == {"HOME": "/root"}


def test_a_run_without_limits_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "_STATM", "/proc/nothing")
    renewal = Renewal()
    renewal.took()
    renewal.ended()
    assert renewal.reason == ""


def test_the_service_manager_is_not_told_that_it_stops_when_it_starts_anew(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        service = Service(str(tmp_path / "notify"), None)
        service.began()
        assert b"READY=1" in manager.recv(1000)
        service.restarting()
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)


def test_the_sooner_of_two_limits_counts() -> None:
    now = time.monotonic()
    assert seconds_until(math.inf) is None
    assert seconds_until(math.inf, 5.0) == 5.0
    assert seconds_until(now + 60, 5.0) == 5.0
    assert seconds_until(now - 60) == 0.0
    assert 50 < (seconds_until(now + 60) or 0) <= 60


def test_work_that_has_begun_only_after_it_was_handed_over_has_its_time_from_then(tmp_path: Path) -> None:
    class Late:
        def __init__(self) -> None:
            self.interrupted: list[Element] = []

        def began(self, element: Element) -> float:
            return time.monotonic()  # just now

        def interrupt(self, element: Element, *, force: bool) -> bool:
            self.interrupted.append(element)
            return True

    handler = Late()
    watch = limits.Limits(cast("Any", handler), timeout=0.02)
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        watch.began(element)
        time.sleep(0.03)
        watch.apply()
        assert handler.interrupted == []
        assert time.monotonic() - 5 < watch.due() < math.inf
