"""Proves that a process may be killed at any system call: nothing that was added is lost, and the inbox works
afterwards.

Real processes die by SIGKILL at each of their system calls in turn (strace injects it; the call is not made):
the programs of programs.py, `fsinbox add`, and scripts/fsinbox-add, there the shell as well as each command
that it runs. After each, a fresh producer and a fresh consumer work with what is left, in one of three ways,
and the oracle judges the announcements of both. Every kill is asserted to have hit, and to have been at the
call that was meant.

What this cannot see is a power cut: the kernel goes on, and writes what the dead process wrote. See
docs/reliability.md.

A failure prints a line that replays it:

    FSINBOX_KILL=ack:renameat.2:drain pytest tests/faults -k replay -rP        (the second renameat; then
    `drain`) FSINBOX_KILL=sh-new:3:fsync.1:add pytest tests/faults -k replay -rP        (its fourth command;
    -1: the shell)

`--long` does all of drain, add and recover-add after each kill.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsinbox import Inbox
from tests.driver import WAYS, Log, aftermath, all_died, payload, read_log
from tests.oracle import Event, judge

from .programs import SCENARIOS, hurry
from .traced import ALL, Point, Shell, Zygote, hits, inject, points

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace"),
]

SHARDS = 6
"""Tests that the programs are dealt out to: for xdist."""

PROGRAMS = [name for name, scenario in SCENARIOS.items() if name != "look" and not scenario.timed]
"""All but those whose number of calls depends on time, and one that changes nothing."""

COMMANDS = {"cli-new": [], "cli-replacing": ["a=1"]}
"""`fsinbox add b` with these adds before."""

SHELLS = {"sh-new": ["c=1"], "sh-replacing": ["b=1"]}
"""The same with scripts/fsinbox-add. (The index is made: else it runs commands at the same time, which have
no order.)"""

TRIES = 3
"""Times that a point is tried until it is reached: now and then a run makes a call less than the one
before."""


class Place:
    """Where processes are killed: a directory, and who starts them."""

    def __init__(self, folder: Path, elsewhere: Path) -> None:
        self.folder = folder
        self.elsewhere = str(elsewhere)
        self._zygote: Zygote | None = None
        self._shell: Shell | None = None
        self.kills = 0

    @property
    def zygote(self) -> Zygote:
        self._zygote = self._zygote or Zygote(self.folder)
        return self._zygote

    @property
    def shell(self) -> Shell:
        self._shell = self._shell or Shell(self.folder)
        return self._shell

    def close(self) -> None:
        if self._zygote:
            self._zygote.close()

    def fresh(self) -> tuple[Path, Path]:
        """Return paths of an inbox and a log that do not exist."""
        for leftover in (self.folder / "inbox", self.folder / "log"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            leftover.unlink(missing_ok=True)
        return self.folder / "inbox", self.folder / "log"

    def run(self, name: str, options: list[str]) -> tuple[bool, str, list[Event]]:
        """Run a program with strace's options; return whether it was killed, the trace, and what was
        announced."""
        inbox, path = self.fresh()
        if name in SCENARIOS:
            job = {"scenario": name, "inbox": str(inbox), "log": str(path), "elsewhere": self.elsewhere}
            status, trace = self.zygote.run(job, options)
            return status == -9, trace, read_log(path)
        log = Log("program")
        before = (COMMANDS | SHELLS)[name.partition(":")[0]]
        with Inbox(inbox, codec="bytes") as producer:
            for pair in before:
                _announced(log, pair, lambda key, value: producer.add_bytes(key, payload(value)))
        log.tell("add_start", "b", "2")
        if name in COMMANDS:
            value = self.folder / "value"
            value.write_bytes(payload("2"))
            files = {"stdin": str(value), "stderr": str(self.folder / "stderr"), "log": str(path)}
            status, trace = self.zygote.run(
                {"command": ["--inbox", str(inbox), "add", "b", "-"], **files}, options
            )
        else:
            status, _, trace = self.shell.run(
                inbox, ("b", payload("2")), int(name.partition(":")[2]), options
            )
        if status == 0:
            log.tell("add_end", "b", "2")
        return "killed by SIGKILL" in trace or status == -9, trace, log.events

    def kill(self, name: str, point: Point, way: str) -> list[str]:
        """Kill a program at a point; return what is wrong then."""
        for _ in range(TRIES):
            killed, trace, events = self.run(name, inject(point, "SIGKILL"))
            if killed:
                break
        else:
            return [f"it was not killed:\n{trace}"]
        if hits(trace) != 1:
            return [f"{hits(trace)} kills in place of one:\n{trace}"]
        self.kills += 1
        inbox = str(self.folder / "inbox")
        hurry(inbox)
        try:
            after = aftermath(inbox, way, sorted({event.key for event in events if event.key}))
        except Exception as error:
            return [f"afterwards: {type(error).__name__}: {error}"]
        return judge([*all_died(events), *after])


def _announced(log: Log, pair: str, add: Callable[[str, str], object]) -> None:
    key, _, value = pair.partition("=")
    log.tell("add_start", key, value)
    add(key, value)
    log.tell("add_end", key, value)


@pytest.fixture
def place(tmp_path: Path, quiet: None) -> Iterator[Place]:
    for name in ("runs", "elsewhere"):
        (tmp_path / name).mkdir()
    place = Place(tmp_path / "runs", tmp_path / "elsewhere")
    yield place
    place.close()


def points_of(place: Place, name: str) -> list[Point]:
    """Return the points of a program: the calls that it makes when nobody kills it."""
    killed, trace, _ = place.run(name, ALL)
    assert not killed
    found = points(trace)
    assert len(found) > 10, f"{name}: so few calls?\n{trace}"
    return found


def sweep(place: Place, names: list[str], *, every: bool) -> int:
    """Kill each of these programs at each of its points; return how many points there were."""
    tried = 0
    for name in names:
        for number, point in enumerate(points_of(place, name)):
            for way in WAYS if every else WAYS[number % 3 :][:1]:
                wrong = place.kill(name, point, way)
                assert not wrong, (
                    f"{wrong}\nFSINBOX_KILL={name}:{point}:{way} pytest tests/faults -k replay -rP"
                )
                tried += 1
    assert place.kills == tried
    return tried


def shell_names(place: Place, names: list[str]) -> list[str]:
    """Return `name:N` for the shell itself (-1), and for each command that it runs."""
    found = []
    for name in names:
        place.run(f"{name}:0", ALL)
        found += [f"{name}:{at}" for at in range(-1, place.shell.commands())]
    assert len(found) >= 7 * len(names)
    return found


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_kill_at_any_call_of_the_package_loses_nothing(
    place: Place, shard: int, figure: Callable[[str], None]
) -> None:
    names = PROGRAMS[shard::SHARDS]
    kills = sweep(place, names, every=False)
    assert kills > 400
    figure(f"{kills:,} kills in {len(names)} programs, 0 bad")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_any_call_of_the_command_line_loses_nothing(
    place: Place, name: str, figure: Callable[[str], None]
) -> None:
    figure(f"{sweep(place, [name], every=False):,} kills, 0 bad")


@pytest.mark.parametrize("name", SHELLS)
def test_a_kill_at_any_call_of_the_shell_producer_loses_nothing(
    place: Place, name: str, figure: Callable[[str], None]
) -> None:
    names = shell_names(place, [name])
    figure(
        f"{sweep(place, names, every=False):,} kills of the shell and its {len(names) - 1} commands, 0 bad"
    )


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_kill_at_any_call_and_all_that_may_follow(
    place: Place, shard: int, figure: Callable[[str], None]
) -> None:
    names = [*PROGRAMS, *COMMANDS, *shell_names(place, list(SHELLS))][shard::SHARDS]
    figure(f"{sweep(place, names, every=True):,} kills, 0 bad")


def test_replay_a_kill(place: Place) -> None:
    text = os.environ.get("FSINBOX_KILL")
    if not text:
        pytest.skip("for a line that a failure has printed: FSINBOX_KILL=...")
    name, point, way = text.rsplit(":", 2)
    call, _, number = point.partition(".")
    _, trace, events = place.run(name, ALL)
    print("not killed:", trace, *events, sep="\n")
    assert not place.kill(name, Point(call, int(number)), way)
