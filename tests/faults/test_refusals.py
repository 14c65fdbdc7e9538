"""Proves from outside that the commands tell the truth when a system call fails: strace fails each of their
calls in turn.

`fsinbox add`, `fsinbox consume --drain`, and scripts/fsinbox-add, there the calls of the shell and those of
each command that it runs, with ENOSPC, EIO, EDQUOT, EMFILE, EINTR, EACCES and EROFS. Other than
test_errors.py it reaches what Python itself calls, ctypes, threads, and programs that are not Python. Of each
run:

 - the fault hit;
 - an add that exits with 0 is delivered, and one that says that the value was not added is not; one whose
   flush failed does not exit with 0; a status other than 0 comes with a message, and never with a traceback;
 - a fresh producer and a fresh consumer work with what is left, and the oracle judges.

A failure prints a line that replays it:

    FSINBOX_REFUSAL=cli-new:openat.12=EMFILE:drain pytest tests/faults -k replay -rP
    FSINBOX_REFUSAL=sh-new:3:fsync.1=EIO:add pytest tests/faults -k replay -rP        (its fourth command; -1:
    the shell)

`--long` tries all errors at every call.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.driver import WAYS, Log, aftermath, all_died, payload, read_log
from tests.oracle import Event, judge

from .programs import Scenario, excused, hurry, prepared
from .test_errors import ERRORS
from .traced import ALL, Point, Shell, Zygote, hits, inject, points

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace"),
]

CONSUME = (
    "consume --drain --codec bytes --handler tests.faults.zygote:handle --retry-delay 0.001 --drop-settle 0"
)

COMMANDS = {
    "cli-new": ("add b -", "create"),
    "cli-replacing": ("add b -", "create add:b=1"),
    "cli-file": ("add --file VALUE b", "create add:b=1"),
    "cli-consume": (CONSUME, "create add:a=1 add:b=1 drop:c=1"),
    "cli-recover": (CONSUME, "create add:a=1 take add:a=2 add:b=1 take die"),
    "sh-new": ("", "create add:c=1"),
    "sh-replacing": ("", "create add:b=1"),
}
"""What is run (for scripts/fsinbox-add: nothing), and what words of programs.py prepare."""

FLUSHES = ("fsync", "fdatasync", "syncfs")

NOT_ADDED = ("was not added", "was not queued")


class Place:
    """Where the commands are run, one after the other: a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.zygote = Zygote(folder)
        self.shell = Shell(folder)
        self.value = folder / "value"
        self.value.write_bytes(payload("2"))

    def run(self, name: str, options: list[str]) -> tuple[int, str, str, list[Event]]:
        """Run a command with strace's options; return its status, what it said, the trace, and what was
        announced."""
        name, _, at = name.partition(":")
        words, setup = COMMANDS[name]
        log, said = self.folder / "log", self.folder / "said"
        for leftover in (log, said):
            leftover.unlink(missing_ok=True)
        if self.inbox.exists():
            shutil.rmtree(self.inbox)
        setup_log = Log("setup")
        prepared(Scenario(name, "", setup, inflight=2), str(self.inbox), setup_log).stop()
        adding = not words.startswith("consume")
        if adding:
            setup_log.tell("add_start", "b", "2")
        if words:
            command = ["--inbox", str(self.inbox), *words.replace("VALUE", str(self.value)).split()]
            job = {"command": command, "stdin": str(self.value), "stderr": str(said), "log": str(log)}
            status, trace = self.zygote.run(job, options)
            text = said.read_text()
        else:
            status, text, trace = self.shell.run(self.inbox, ("b", payload("2")), int(at), options)
        if adding and status == 0:
            setup_log.tell("add_end", "b", "2")
        return status, text, trace, [*setup_log.events, *read_log(log)]

    def refuse(self, name: str, point: Point, how: str, way: str) -> list[str]:
        """Let a call fail; return what is wrong then."""
        status, said, trace, events = self.run(name, inject(point, how))
        wrong = []
        if not hits(trace):
            wrong.append(f"it did not hit:\n{trace}")
        if (
            "Traceback" in said and "watchdog/" not in said
        ):  # (its thread may die: then the consumer looks every 30 s)
            wrong.append(f"it ended in a traceback: {said}")
        adding = not COMMANDS[name.partition(":")[0]][0].startswith("consume")
        if (
            adding and point.call in FLUSHES and how != "EINTR" and status == 0
        ):  # EINTR: Python tries it again
            wrong.append("a flush failed, and it said that all is well")
        # What cannot be written, or not be started, cannot say anything.
        if status and not said.strip() and point.call != "write" and not name.endswith(":-1"):
            wrong.append(f"it ended with {status}, and said nothing")
        if adding and status not in (0, 3) and not name.endswith(":-1"):
            wrong.append(f"it ended with {status}: {said}")
        hurry(str(self.inbox))
        try:
            after = aftermath(str(self.inbox), way, ["b"])
        except Exception as error:
            return [*wrong, f"afterwards: {type(error).__name__}: {error}"]
        if any(text in said for text in NOT_ADDED) and ("b", "2") in {
            (e.key, e.value) for e in after if e.what == "deliver"
        }:
            wrong.append(f"it was delivered: {said}")
        return wrong + judge(excused([*all_died(events), *after], str(self.inbox)))


@pytest.fixture
def place(tmp_path: Path, quiet: None) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.zygote.close()


def sweep(place: Place, name: str, *, errors: int) -> int:
    """Let each call of a command fail with so many of ERRORS, in turn; return how many faults there were."""
    tried = 0
    for program in programs(place, name):
        _, _, trace, _ = place.run(program, ALL)
        found = points(trace)
        assert len(found) > 5, (program, trace)
        # A close that strace fails is not done, and a pipe is left open for ever: test_errors.py does it as
        # Linux does. And a shell takes an error when it reads its script for the end of it: no script can
        # help that.
        unfit = ("close", "read") if program.endswith(":-1") else ("close",)
        found = [point for point in found if point.call not in unfit]
        for point in found:
            for _ in range(errors):
                how, way = ERRORS[tried % len(ERRORS)], WAYS[tried % len(WAYS)]
                tried += 1
                wrong = place.refuse(program, point, how, way)
                assert not wrong, (
                    f"{wrong}\nFSINBOX_REFUSAL={program}:{point}={how}:{way} pytest tests/faults -k replay "
                    "-rP"
                )
    return tried


def programs(place: Place, name: str) -> list[str]:
    """Return `name`, or, of the shell, `name:N` for the shell itself (-1) and for each command that it
    runs."""
    if COMMANDS[name][0]:
        return [name]
    place.run(f"{name}:0", ALL)
    assert place.shell.commands() >= 6
    return [f"{name}:{at}" for at in range(-1, place.shell.commands())]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_tells_the_truth_about_an_error(
    place: Place, name: str, figure: Callable[[str], None]
) -> None:
    figure(f"{sweep(place, name, errors=4 if COMMANDS[name][0] else 2):,} errors, 0 bad")


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_tells_the_truth_about_every_error(
    place: Place, name: str, figure: Callable[[str], None]
) -> None:
    figure(f"{sweep(place, name, errors=len(ERRORS)):,} errors, 0 bad")


def test_replay_a_refusal(place: Place) -> None:
    text = os.environ.get("FSINBOX_REFUSAL")
    if not text:
        pytest.skip("for a line that a failure has printed: FSINBOX_REFUSAL=...")
    name, point, way = text.rsplit(":", 2)
    point, _, how = point.partition("=")
    call, _, number = point.partition(".")
    status, said, trace, events = place.run(name, inject(Point(call, int(number)), how))
    print(status, said, trace, *events, sep="\n")
    assert not place.refuse(name, Point(call, int(number)), how, way)
