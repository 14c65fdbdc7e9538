"""Proves, for small numbers of producers, adds and takes, that no interleaving of file operations, and no
crash before any of them, loses an update, delivers an older value after a newer one, delivers two elements of
a key at once, keeps a key from its turn, or ends in a deadlock: on the real code and a real directory (see
stepper.py and explore.py). Nor does a lost index.

It also proves that the check can tell: with a mutant of the code (mutants.py) it finds what is wrong.

A failure prints a line that replays it, step by step:

    FSINBOX_SCHEDULE=two-producers:ABBAC pytest tests/interleave -k replay -rP

(with a mutant: replaced-nack+requeued-without-lock:CCAAA). Small letters are crashes. `--long` goes through
larger ones, too.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .explore import Explorer, Result, check, replay
from .mutants import MUTANTS, Mutant, mutated
from .scenarios import SCENARIOS, Scenario
from .stepper import World

pytestmark = pytest.mark.interleave

LIMIT = 20_000_000
"""States: far more than any scenario has, unless its actors can go round in circles."""

MEMORY = "/dev/shm"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A directory to step actors in: in memory, if there is a file system in memory. Nothing here needs a
    disk."""
    folder = tempfile.mkdtemp(prefix="interleave-", dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path)
    logging.disable()
    try:
        with World(f"{folder}/inbox") as world:
            yield world
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder)


def _all() -> list[object]:
    return [
        pytest.param(
            scenario,
            id=scenario.name,
            marks=[pytest.mark.long, pytest.mark.timeout(3600)] if scenario.long else [],
        )
        for scenario in SCENARIOS.values()
    ]


@pytest.mark.parametrize("scenario", _all())
def test_nothing_is_wrong(world: World, scenario: Scenario) -> None:
    result = check(world, scenario, limit=LIMIT)
    print(_summary(scenario, result))
    assert not result.wrong, _report(world, scenario, result)
    assert result.states < LIMIT, f"{scenario.name} does not come to an end"


@pytest.mark.parametrize(
    ("mutant", "scenario"),
    [
        pytest.param(mutant, SCENARIOS[name], id=f"{mutant.name}-{name}")
        for mutant in MUTANTS.values()
        for name in mutant.scenarios
    ],
)
def test_a_mutant_is_found(world: World, mutant: Mutant, scenario: Scenario) -> None:
    with mutated(mutant.edits):
        result = Explorer(world, scenario).explore(limit=LIMIT)
        print(_summary(scenario, result), *result.wrong, f"{scenario.name}+{mutant.name}:{result.schedule}")
        assert any(wrong.startswith(mutant.finds) for wrong in result.wrong), (
            f"{mutant.name} was not found: {mutant.why}"
        )
        assert replay(world, scenario, result.schedule)[0] == result.wrong


def test_the_search_knows_what_really_happens(world: World) -> None:
    """The states that the search works out are those that runs get into, step by step, whatever is chosen."""
    explorer = Explorer(world, SCENARIOS["two-producers-nack"])
    explorer.explore()
    assert explorer.check_by_running(samples=300) > 3000


def test_replay(world: World) -> None:
    """Replay one schedule, from the environment, and show it."""
    text = os.environ.get("FSINBOX_SCHEDULE", "two-producers:")
    names, _, schedule = text.partition(":")
    scenario, _, mutant = names.partition("+")
    with mutated(MUTANTS[mutant].edits if mutant else ()):
        wrong, steps = replay(world, SCENARIOS[scenario], schedule)
    print("\n".join(steps))
    assert not wrong, wrong


def _summary(scenario: Scenario, result: Result) -> str:
    return (
        f"{scenario.name}: {result.states} states, {result.steps} steps between them, {result.ends} ends, "
        f"{result.learnt} runs"
    )


def _report(world: World, scenario: Scenario, result: Result) -> str:
    _, steps = replay(world, scenario, result.schedule)
    again = f"FSINBOX_SCHEDULE={scenario.name}:{result.schedule} pytest tests/interleave -k replay -rP"
    return "\n".join([*result.wrong, again, *steps])
