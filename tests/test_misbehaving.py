"""Handlers that misbehave, with the real worker: each row says what becomes of the element, and that is so;
the elements before and behind it are handled exactly once, and the consumer ends as it should."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import Consumer, wait_until

import fsinbox.worker.limits
from fsinbox import Element, Inbox
from fsinbox.cli.commands import cli
from fsinbox.store.names import encoded_of, is_element
from fsinbox.worker.backoff import Backoff, Retries
from fsinbox.worker.commands import CommandHandler
from fsinbox.worker.ending import Tally
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.outcome import Handler
from fsinbox.worker.runner import Runner
from tests import misbehaviour as does
from tests.usual import soon

KEYS = ["before", "odd", "behind"]

FOLDERS = ("pending", "inflight", "deferred", "failed", "done")


@dataclass(frozen=True)
class Row:
    """What becomes of the element of a handler that misbehaves."""

    does: Any
    """The handler: a function, a command, or the name of one of `BEHAVIOURS`."""
    where: str = "done"
    """The folder in which it is at last; "": none."""
    calls: int = 1
    """How often it was handled."""
    reason: str = ""
    """What stands in the reason beside it."""
    content: str | None = None
    """Its payload, if that was changed; a link is what it leads to."""
    tally: Tally | None = None
    """Of the run. None: what follows from the others."""
    statuses: tuple[int, ...] = ()
    """Of the consumers, one after the other. None given: one, that tells whether something failed."""
    timeout: float | None = None

    @property
    def counted(self) -> Tally:
        """What the run has counted."""
        if self.tally:
            return self.tally
        failed = int(self.where == "failed")
        return Tally(acknowledged=3 - failed, retried=self.calls - 1, failed=failed)


def failed(does: Any, reason: str, calls: int = 2, **more: Any) -> Row:
    """Return a row whose element is in failed/, after the two attempts that it has here."""
    return Row(does, "failed", calls, reason, **more)


def where_is(inbox: Path, key: str) -> dict[str, Path]:
    """Return folder -> path, of the elements of a key: the newest of each folder."""
    return {
        folder: path
        for folder in FOLDERS
        if (inbox / folder).is_dir()
        for path in sorted((inbox / folder).iterdir())
        if is_element(path.name) and encoded_of(path.name) == key
    }


def check(home: Path, row: Row, others: str = "done") -> None:
    """Judge what has become of the three elements."""
    calls = (home / "handled").read_text().split()
    assert [calls.count(key) for key in KEYS] == [1, row.calls, 1]
    assert set(calls) == set(KEYS)
    for key in ("before", "behind"):
        assert list(where_is(home / "inbox", key)) == [others]
    found = where_is(home / "inbox", "odd")
    assert list(found) == ([row.where] if row.where else [])
    if row.where == "failed":
        path = found["failed"]
        assert row.reason and row.reason in Path(f"{path}~reason.txt").read_text()
    if row.content is not None:
        path = found[row.where]
        assert (os.readlink(path) if path.is_symlink() else path.read_text()) == row.content
    assert (home / "secret").read_text() == "secret"
    assert os.listdir(home / "inbox" / "inflight") == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with an inbox of three elements, of which the second is to be mishandled."""
    (tmp_path / "secret").write_text("secret")
    with Inbox(tmp_path / "inbox") as inbox:
        for key in KEYS:
            inbox.add(key, "first")
    return tmp_path


def consume(home: Path, handler: Handler, row: Row) -> Tally:
    """Run the worker in this process until it is drained."""
    with soon(), Inbox(home / "inbox", keep_done=9) as inbox:
        retries = Retries(2, backoff=Backoff(0.001, 0.001))
        return Runner(inbox, handler, retries=retries, drain=True, timeout=row.timeout).run()


# --- functions ----------------------------------------------------------------------------------------

FUNCTIONS = {
    "raises an error": failed(does.raises(ValueError("an error")), "ValueError: an error"),
    "raises KeyboardInterrupt": failed(does.raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "raises SystemExit with 0": failed(does.raises(SystemExit(0)), "SystemExit: 0"),
    "raises SystemExit with a text": failed(does.raises(SystemExit("a text")), "SystemExit: a text"),
    "raises GeneratorExit": failed(does.raises(GeneratorExit()), "GeneratorExit"),
    "raises StopIteration": failed(does.raises(StopIteration(1)), "StopIteration: 1"),
    "raises MemoryError": failed(does.raises(MemoryError()), "MemoryError"),
    "raises CancelledError": failed(does.raises(asyncio.CancelledError()), "CancelledError"),
    "raises an exception of its own family": failed(does.raises(does.Own("own")), "Own: own"),
    "recurses without end": failed(does.recurses, "RecursionError"),
    "raises what cannot be shown": failed(does.raises(does.Unprintable()), "Unprintable: <exception str()"),
    "raises a group": failed(
        does.raises(ExceptionGroup("both", [ValueError("one"), KeyError("two")])), "ExceptionGroup: both"
    ),
    "raises a huge text": failed(does.raises(ValueError("x\n" * 10_000_000)), "ValueError: x"),
    "raises surrogates": failed(does.raises(ValueError("\ud800\udcff")), "ValueError: "),
    "raises NUL and escapes": failed(does.raises(ValueError("\0\x1b[2J\r")), "ValueError: "),
    "raises a circle of causes": failed(does.raises_a_circle, "ValueError: one"),
    "rejects": failed(does.rejects, "Reject: never", 1),
    "asks to try later": Row(does.asks_to_try_later_once, calls=2),
    "returns False": Row(lambda element: False),
    "returns an exception": Row(lambda element: ValueError("returned")),
    "returns 100 MB": Row(lambda element: bytes(100_000_000)),
    "returns what cannot be looked at": Row(lambda element: does.TrueOnlyOnce()),
    "returns a generator": failed(does.returns_a_generator, "returned a generator"),
    "returns an async generator": failed(does.returns_an_async_generator, "returned a generator"),
    "returns a coroutine": Row(lambda element: asyncio.sleep(0)),
    "returns a coroutine that raises": failed(does.returns_a_coroutine_that_raises, "in the coroutine"),
    "acks": Row(does.acks),
    "acks twice": Row(does.acks_twice),
    "nacks once": Row(does.nacks_once, calls=2),
    "nacks once and raises": Row(does.nacks_once_and_raises, calls=2),
    "releases once": Row(does.releases_once, calls=2),
    "fails": failed(does.fails, "by the handler", 1),
    "fails and acks": failed(does.fails_and_acks, "by the handler", 1),
    "removes its file": Row(does.removes_its_file, "", tally=Tally(3)),
    "removes its file and raises": Row(does.removes_its_file_and_raises, "", tally=Tally(2, failed=1)),
    "removes its file and nacks": Row(does.removes_its_file_and_nacks, "", tally=Tally(2, retried=1)),
    "replaces its file and raises": failed(
        does.replaces_its_file_and_raises, "after that", content="replaced"
    ),
    "truncates its file and raises": failed(does.truncates_its_file_and_raises, "after that", content=""),
    "forbids its file and raises": failed(does.forbids_its_file_and_raises, "after that"),
    "makes its file a link": Row(does.makes_its_file_a_link, content="../../secret"),
    "makes its file a link and raises": failed(
        does.makes_its_file_a_link_and_raises,
        "it is not a regular file",
        calls=1,
        content="../../secret",
        tally=Tally(2, retried=1, set_aside=1),
    ),
    "takes with another inbox": failed(does.takes_with_another_inbox, "InboxBusy: "),
    "adds its own key": Row(does.adds_its_own_key_once, calls=2, content='"second"', tally=Tally(4)),
    "adds its own key and raises": Row(
        does.adds_its_own_key_once_and_raises, calls=2, content='"second"', tally=Tally(3, superseded=1)
    ),
}


@pytest.mark.parametrize("row", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function(home: Path, row: Row, quiet: None) -> None:
    def handle(element: Element) -> Any:
        does.note(home / "handled", element.key)
        return row.does(element) if element.key == "odd" else None

    assert consume(home, FunctionHandler("odd", handle), row) == row.counted
    check(home, row)


COROUTINES = {
    "raises": failed(does.raises_in_the_loop, "ValueError: in the loop"),
    "exits": failed(does.exits_in_the_loop, "SystemExit: in the loop"),
    "raises KeyboardInterrupt": failed(does.interrupts_the_loop, "KeyboardInterrupt"),
    "cancels itself": failed(does.cancels_itself, "CancelledError"),
    "stops the loop": Row(does.stops_the_loop),
    "closes the loop": failed(does.closes_the_loop, "Cannot close a running event loop"),
    "waits for ever": failed(does.waits_for_ever, "timed out after 0.2 s", timeout=0.2),
    "leaves a task that raises": Row(does.leaves_a_task_that_raises),
}


@pytest.mark.parametrize("row", COROUTINES.values(), ids=COROUTINES)
def test_an_async_function(home: Path, row: Row, quiet: None) -> None:
    async def handle(element: Element) -> Any:
        does.note(home / "handled", element.key)
        return await row.does(element) if element.key == "odd" else None

    assert consume(home, FunctionHandler("odd", handle), row) == row.counted
    check(home, row)


def test_one_that_takes_from_the_inbox_itself(home: Path, quiet: None) -> None:
    """The worker's own inbox: there is no more room in flight."""
    row = failed(None, "WrongState: ")
    with soon(), Inbox(home / "inbox", keep_done=9) as inbox:

        def handle(element: Element) -> None:
            does.note(home / "handled", element.key)
            if element.key == "odd":
                inbox.take()

        retries = Retries(2, backoff=Backoff(0.001, 0.001))
        runner = Runner(inbox, FunctionHandler("odd", handle), retries=retries, drain=True)
        assert runner.run() == row.counted
    check(home, row)


# --- commands -----------------------------------------------------------------------------------------

AGAIN = 'if [ -e "$HANDLED.again" ]; then exit 0; else : > "$HANDLED.again"; fi'
"""For a shell: what follows is done at the first call only."""

COMMANDS = {
    "exits with 1": failed("exit 1", "exited with 1"),
    "exits with 255": failed("exit 255", "exited with 255"),
    "exits with 64": failed("exit 64", "exited with 64", 1),
    "exits with 65": failed("exit 65", "exited with 65", 1),
    "exits with 78": failed("exit 78", "exited with 78", 1),
    "exits with 75": Row(f"{AGAIN}; exit 75", calls=2),
    "kills itself": failed("kill -9 $$", "was killed by SIGKILL"),
    "closes its input": Row("exec <&-"),
    "closes its output": Row("exec >&- 2>&-; sleep 0.01"),
    "prints no text and fails": failed("printf '\\377\\0\\033[2J'; exit 1", "exited with 1"),
    "prints without end": failed("exec yes", "timed out after 0.3 s", timeout=0.3),
    "ignores SIGTERM": failed(
        "trap '' TERM; while :; do sleep 0.05; done", "timed out after 0.2 s", timeout=0.2
    ),
    "leaves a process that has its output": Row("sleep 30 & echo $! > $HANDLED.pid"),
    "removes its file": Row("rm {}", "", tally=Tally(3)),
    "removes its file and fails": Row("rm {}; exit 1", "", tally=Tally(2, failed=1)),
    "writes into its file and fails": failed("echo more > {}; exit 1", "exited with 1", content="more\n"),
}


@pytest.mark.parametrize("row", COMMANDS.values(), ids=COMMANDS)
def test_a_command(home: Path, row: Row, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDLED", str(home / "handled"))
    monkeypatch.setattr(fsinbox.worker.limits, "GRACE", 0.2)
    with (home / "printed").open("w") as printed:
        monkeypatch.setattr(sys, "stdout", printed)
        odd = f'echo $FSINBOX_KEY >> "$HANDLED"; [ $FSINBOX_KEY = odd ] || exit 0; {row.does}'
        assert consume(home, CommandHandler(odd, shell=True), row) == row.counted
    check(home, row)
    if (home / "handled.pid").exists():
        os.kill(int((home / "handled.pid").read_text()), signal.SIGKILL)


# --- what harms the process: in one of its own --------------------------------------------------------

PROCESSES = [
    Row("changes_and_removes_the_working_directory"),
    failed("masks_all_modes_and_raises", "after that"),
    Row("closes_the_standard_streams"),
    failed("closes_its_streams_and_raises", "after that"),
    Row("forks_and_the_child_returns"),
    Row("forks_and_the_child_raises"),
    Row("forks_and_the_child_exits"),
    Row("forks_and_the_child_leaves"),
    Row("leaves_a_thread_that_raises"),
    Row("leaves_a_daemon_that_never_ends"),
    failed("sets_a_signal_handler", "only works in main thread"),
    Row("changes_locale_and_time_zone"),
    failed("silences_logging_and_raises", "after that"),
    Row("empties_the_environment"),
    Row("upsets_the_interpreter"),
    failed("closes_all_other_descriptors", "a consumer died 2 times", statuses=(3, 3, 1)),
    failed("leaves", "a consumer died 2 times", statuses=(7, 7, 1)),
    failed("writes_into_its_file_and_leaves", "a consumer died 2 times", statuses=(7, 7, 1)),
    failed("replaces_its_file_and_leaves", "a consumer died 2 times", statuses=(7, 7, 1)),
    failed("kills", "a consumer died 2 times", statuses=(-9, -9, 1)),
    failed("aborts", "a consumer died 2 times", statuses=(-6, -6, 1)),
    Row("terminates", statuses=(0, 0)),
    Row("interrupts", statuses=(0, 0)),
    Row("removes_the_inbox", statuses=(0,)),
]

TRACEBACKS = {"leaves_a_thread_that_raises", "forks_and_the_child_raises", "closes_all_other_descriptors"}
"""What has one on standard error: of a thread or a child, not of the consumer."""


def consumer(home: Path, name: str) -> Consumer:
    return Consumer(
        *("--handler", "tests.misbehaviour:handle", "--drain", "--keep-done", "9"),
        *("--max-attempts", "2", "--retry-delay", "0.001", "--max-retry-delay", "0.001"),
        cwd=home,
        MISBEHAVIOUR=name,
        HANDLED=str(home / "handled"),
    )


@pytest.mark.parametrize("row", [pytest.param(row, id=row.does) for row in PROCESSES])
def test_a_process(home: Path, row: Row) -> None:
    for status in row.statuses or (row.counted.failed,):
        with consumer(home, row.does) as process:
            process.end(status, patience=40)
        assert row.does in TRACEBACKS or "Traceback" not in process.log, process.log
    check(home, row)


def test_one_that_stops_its_process_goes_on_when_that_is_continued(home: Path) -> None:
    with consumer(home, "stops_the_process") as process:
        state = Path(f"/proc/{process.process.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(") ")[2].startswith("T"))
        assert list(where_is(home / "inbox", "odd")) == ["inflight"]
        process.signal(signal.SIGCONT)
        process.end(0)
    check(home, Row(None))


# --- what is refused at start -------------------------------------------------------------------------

REFUSED = {
    "is_a_generator": "is a generator",
    "is_an_async_generator": "is a generator",
    "takes_three": "can be called neither as",
    "takes_nothing": "can be called neither as",
    "is_no_function": "is int, not a function",
    "not_there": "has no 'not_there'",
}


@pytest.mark.parametrize(("name", "why"), REFUSED.items(), ids=REFUSED)
def test_refused_at_start(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str) -> None:
    monkeypatch.chdir(home)
    done = CliRunner().invoke(cli, ["consume", "--drain", "--handler", f"tests.misbehaviour:{name}"])
    assert (done.exit_code, why in done.stderr) == (2, True), done.output
    assert [list(where_is(home / "inbox", key)) for key in KEYS] == [["pending"]] * 3


def test_there_are_enough_of_them() -> None:
    assert len(FUNCTIONS) + len(COROUTINES) + len(COMMANDS) + len(PROCESSES) + len(REFUSED) >= 52
