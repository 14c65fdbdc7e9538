"""Proves that no power cut loses what an add had promised, tears a value, or delivers an older value after a
newer one.

Real programs are traced (Python, scripts/fsinbox-add, `mv` into drop/, the consumer; two producers at once;
the creation of the inbox itself). Every state of the disk that a power cut may leave of what they did is
built, under three models of what a file system keeps (recording.py); a fresh producer and consumer work with
it; and the oracle judges what was announced before and after the cut. So are the states that a power cut
during the recovery leaves; and those that a kill leaves, with the index lost, old, torn or full of foreign
lines.

    workloads.py    what is traced: every sequence of up to three queue operations, and longer stories
    races.py        a producer and a consumer, call by call in orders of our choice
    trace.py        from strace's output to a recording
    recording.py    the recording, and the states that a power cut may leave of it
    check.py        lays a state out, lets it be recovered, judges

A failure prints a line that replays it:

    FSINBOX_CUT='posix:27:65:create add:a=1 take | add:a=2 ack' pytest tests/crash -k replay -rP

that is: model, how many recorded items had been done, which combination of what was not certain, workload.
The states of a workload with two processes differ from run to run. `--long` goes through longer sequences,
more races and more recoveries.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import fsinbox.store.index

from .check import AGAIN, RECOVERY, REPAIR, Checker, Trace, announced, trace
from .races import RACES, Race, run
from .recording import MODELS, Recording, State, states
from .workloads import BASES, LINES, STORIES, Workload, sequences, story

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace"),
    pytest.mark.timeout(900),
]

Figure = Callable[[str], None]

MOST = 300
"""States of one sequence, in one model, that are checked in the short version; of more, as many by chance."""


@pytest.fixture
def folder(tmp_path: Path, quiet: None) -> Iterator[Path]:
    """A folder, and indexes that are small: what a power cut leaves is worked out, not tried."""
    with mock.patch.object(fsinbox.store.index, "FEWEST_LINES", LINES):
        yield tmp_path


def report(checker: Checker, figure: Figure, least: int) -> None:
    """Say how much was tried; it must have been as much as promised, and all of it right."""
    result = checker.result
    figure(f"{result.states:,} different states after a power cut, {len(result.wrong)} bad")
    assert not result.wrong, f"{len(result.wrong)} of {result.states} states are bad:\n" + "\n".join(
        result.wrong[:5]
    )
    assert result.states >= least


def check_all(workloads: list[Workload], folder: Path, most: int | None) -> Checker:
    """Trace workloads, and check their states in all models."""
    checker = Checker(folder)
    for first in range(0, len(workloads), 100):
        for traced in trace(workloads[first : first + 100], folder / "traced"):
            for model in MODELS:
                checker.check(traced, model, most)
    return checker


LEAST = {"empty": 9_000, "waiting": 6_000, "out": 25_000, "behind": 12_000, "deferred": 10_000}


@pytest.mark.parametrize("base", BASES)
def test_any_sequence_of_up_to_three_operations(base: str, folder: Path, figure: Figure) -> None:
    workloads = [workload for length in (1, 2, 3) for workload in sequences(base, length)]
    report(check_all(workloads, folder, MOST), figure, LEAST[base])


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("base", BASES)
def test_any_sequence_of_four_operations(base: str, folder: Path, figure: Figure) -> None:
    report(check_all(list(sequences(base, 4, ("add", "add+b", "mv"))), folder, None), figure, LEAST[base])


def test_longer_stories(folder: Path, figure: Figure) -> None:
    report(check_all(STORIES, folder, None), figure, 10_000)


@pytest.mark.parametrize("half", [0, 1])
def test_a_producer_and_a_consumer_at_once(half: int, folder: Path, figure: Figure) -> None:
    """The producer is stopped at each of its calls, and the consumer does all it has to; then the producer
    goes on."""
    checker = Checker(folder)
    for race in RACES[half::2]:
        for traced in _plans(race, folder):
            for model in race.models:
                checker.check(traced, model, 120)
    report(checker, figure, 15_000)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name.replace("/", ":"))
def test_a_producer_and_a_consumer_in_turns(race: Race, folder: Path, figure: Figure) -> None:
    """The same, and the producer goes on after any number of the consumer's calls."""
    checker = Checker(folder)
    calls = _run(race, folder, 10**6, 0)[1]
    for m in range(1, calls[1]):
        for traced in _plans(race, folder, m):
            for model in race.models:
                checker.check(traced, model, 100)
    report(checker, figure, 50_000)


def _plans(race: Race, folder: Path, m: int = 10**6) -> Iterator[Trace]:
    """Run a race with each number of calls that the first may make before the second does `m`."""
    n, calls = 0, 1
    while n < calls:
        traced, (calls, _) = _run(race, folder, n, m)
        yield traced
        n += 1


def _run(race: Race, folder: Path, n: int, m: int) -> tuple[Trace, list[int]]:
    top = folder / "race"
    top.mkdir()
    recording, calls = run(race, str(top), n, m)
    shutil.rmtree(top)
    return Trace(f"{n},{m}:{race.name}", recording), calls


def check_again(then: str, folder: Path, samples: int, most: int) -> Checker:
    """Check what a power cut leaves of the work with what an earlier one had left."""
    checker = Checker(folder)
    workloads = [workload for base in BASES for workload in sequences(base, 2, ("add", "mv"))]
    # (Not the creation, which the doctor leaves to init; nor torn values: what is made of them is free.)
    torn = ("quick:", "swap:")
    whole = [workload for workload in STORIES if not any(word in workload.name for word in torn)]
    stories = [workload for workload in whole if workload.before]
    for traced in trace([*workloads, *stories], folder / "traced"):
        for model in ("ordered", "posix"):
            checker.check_again(traced, model, then, samples=samples, most=most)
    return checker


def test_a_power_cut_while_recovering_from_one(folder: Path, figure: Figure) -> None:
    report(check_again(RECOVERY, folder, samples=2, most=30), figure, 6_000)


def test_a_power_cut_while_the_doctor_mends(folder: Path, figure: Figure) -> None:
    report(check_again(REPAIR, folder, samples=2, most=30), figure, 1_500)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("then", AGAIN)
def test_more_power_cuts_after_one(then: str, folder: Path, figure: Figure) -> None:
    report(check_again(then, folder, samples=50, most=100), figure, 40_000)


def test_one_workload(folder: Path) -> None:
    """All states of one workload, or of a race with every plan, from the environment."""
    name = os.environ.get("FSINBOX_WORKLOAD", "create | add:a=1 take")
    checker = Checker(folder)
    if name.count(" | ") == 2:
        race = Race(*name.split(" | "))
        for traced in _plans(race, folder):
            for model in race.models:
                checker.check(traced, model)
    else:
        checker = check_all([story(name)], folder, None)
    assert not checker.result.wrong, checker.result.wrong[0]


def test_replay(folder: Path) -> None:
    """Replay one state, from the environment (or the last of some workload), and show it."""
    checker = Checker(folder)
    text = os.environ.get("FSINBOX_CUT") or _last_cut("posix", "create add:a=1 take | add:a=2 ack", folder)
    recording, state = _find(text, checker, folder)
    print(*recording.items[: state.done], sep="\n")
    print(*(f"{path}: {what!r}" for path, what in state.tree.items()), sep="\n")
    checker.check_state(state, announced(recording, state), text)
    assert not checker.result.wrong, checker.result.wrong


def _last_cut(model: str, name: str, folder: Path) -> str:
    """Return the name of the last state of a workload."""
    *_, state = states(trace([story(name)], folder / "traced")[0].recording, model)
    return f"{model}:{state.done}:{state.choice}:{name}"


def _find(text: str, checker: Checker, folder: Path) -> tuple[Recording, State]:
    """Return the state that a name stands for, and the recording it is of."""
    model, done, choice, name = text.split(":", 3)
    before = name.removesuffix(RECOVERY).removesuffix(REPAIR)
    plan, _, race = name.partition(":")
    if before != name:
        recording, state = _find(before, checker, folder)
        recording = checker.record(name.removeprefix(before), state.tree, announced(recording, state))
    elif race and plan.replace(",", "").isdecimal():
        n, _, m = plan.partition(",")
        recording = _run(Race(*race.split(" | ")), folder, int(n), int(m))[0].recording
    else:
        recording = trace([story(name)], folder / "traced")[0].recording
    for state in states(recording, model, int(done)):
        if (state.done, state.choice) == (int(done), int(choice)):
            return recording, state
    raise LookupError(
        f"there is no state {model}:{done}:{choice} of this workload: has the code changed since it was "
        "named?"
    )
