"""Proves that a system call that fails loses nothing: each of the package's file operations is refused in
turn.

Every scenario of programs.py is run once for each of its calls and each error (ENOSPC, EIO, EDQUOT, EMFILE,
EINTR, EACCES, EROFS; and a write that does only a part); with two errors, the second one or more calls after
the first, which meets the clean-up; and with errors from one call on, until the program is done (a full disk
that is emptied later). Then, of each run:

 - every fault hit;
 - what was raised is an InboxError that names the inbox, the reason and the way out; an add that says it was
   not added is not delivered; an add whose flush failed has raised;
 - the same open Inbox goes on adding, and taking; no descriptor and no lock is left behind;
 - what was added is delivered, the latest of each key, none torn, none older after a newer (tests/oracle.py).

The calls are made by the real system, in this process; tests/shim.py stands between. A failure prints a line
that replays it:

    FSINBOX_FAULT=ack:17=EIO,18=EIO pytest tests/faults -k replay -rP
    (a call's number = its error; `17-=ENOSPC`: every call from this one on)

`--long` goes through all pairs, and all of drain, add and recover-add after each.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fsinbox.consumer.consumer
from fsinbox import AddFailed, Inbox
from tests.driver import WAYS, Log, aftermath, all_died
from tests.oracle import judge
from tests.shim import intercepted, refusing

from .programs import DURABLE, SCENARIOS, Program, Scenario, excused, hurry, lock_is_free, prepared

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EINTR", "EACCES", "EROFS")

RETRIED = frozenset(
    (
        "open read pread write pwrite fsync fstat fchmod ftruncate fcntl flock copy_file_range "
        "lock_descriptor"
    ).split()
)
"""Calls that Python itself repeats after EINTR (PEP 475), or, of copy_file_range and the lock, that do not
give it here."""

REASONS = {how: os.strerror(getattr(errno, how)) for how in ERRORS} | {
    "short": "only a part could be written"
}

PARTIAL = frozenset(("write", "pwrite", "copy_file_range"))
"""Calls that may do only a part of what they were asked for."""

# --- the fault ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which calls go wrong, and how: an error's name, or "short" for a write that does half. `last`: for ever
    from there on."""

    faults: tuple[tuple[int, str], ...]
    onwards: bool = False

    def __str__(self) -> str:
        return ",".join(f"{call}{'-' if self.onwards else ''}={how}" for call, how in self.faults)


def plan_of(text: str) -> Plan:
    """Return the plan that a text stands for."""
    faults = tuple(
        (int(call.rstrip("-")), how) for call, _, how in (fault.partition("=") for fault in text.split(","))
    )
    return Plan(faults, onwards="-=" in text)


class Faults:
    """The hook: counts the calls, and lets those of the plan go wrong."""

    def __init__(self, plan: Plan, now: Callable[[], str] = lambda: "") -> None:
        """`now`: tells which word is being done."""
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.hits: list[tuple[str, str, str]] = []
        """(word, call, how) of each fault."""
        self._plan = dict(plan.faults)
        self._onwards = plan.faults[0] if plan.onwards else None
        self._now = now

    def __call__(
        self, name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> Any:
        number = len(self.calls)
        self.calls.append((name, arguments))
        how = self._plan.get(number)
        if self._onwards and number >= self._onwards[0]:
            how = self._onwards[1]
        if how is None or not fits(name, how, arguments):
            return call(*arguments, **more)
        self.hits.append((self._now(), name, how))
        if how == "short":
            if name == "copy_file_range":
                return call(arguments[0], arguments[1], 100, *arguments[3:])
            return call(arguments[0], bytes(arguments[1])[: max(1, len(arguments[1]) // 2)], *arguments[2:])
        if name == "close":
            call(*arguments)  # on Linux the descriptor is gone, whatever close says
        number = getattr(errno, how)
        raise OSError(number, os.strerror(number), *[a for a in arguments[:1] if isinstance(a, str)])


def fits(name: str, how: str, arguments: tuple[Any, ...]) -> bool:
    """Tell whether a call can go wrong in this way."""
    if how == "short":
        return name in PARTIAL
    if how == "EINTR":
        return name not in RETRIED
    # A producer that has no right to read a dropped file (it alone is opened by a key's name) cannot tell if
    # it is finished.
    return how != "EACCES" or not (
        name == "fstat" or (name == "open" and str(arguments[0]).isalpha() and len(arguments[0]) == 1)
    )


# --- one run ------------------------------------------------------------------------------------------


class World:
    """Where the runs are done: directories, one after the other."""

    def __init__(self, folder: str, elsewhere: str) -> None:
        self.folder = folder
        self.elsewhere = elsewhere
        self.runs = 0

    def run(self, scenario: Scenario, plan: Plan, way: str, *, same: bool) -> tuple[list[str], Faults]:
        """Run a scenario with a plan; return what is wrong, and the faults.

        `same`: first let the very Inbox that met the fault take what it can.
        """
        self.runs += 1
        path = os.path.join(self.folder, f"{self.runs}", "inbox")
        os.mkdir(os.path.dirname(path))
        descriptors = open_descriptors()
        log = Log("program")
        program = prepared(scenario, path, log, self.elsewhere)
        faults = Faults(plan, lambda: program.word)
        with intercepted(faults):
            for word in scenario.words.split():
                program.do(word)
        wrong = program.wrong
        wrong += wrong_words(program, faults, path)
        if scenario.setup:
            told = {word for word, _, _ in faults.hits}
            wrong += [
                f"{word} was refused without a fault: {error}"
                for word, error in program.refused
                if word not in told
            ]
        if os.path.exists(f"{path}/format"):
            if not lock_is_free(path):
                wrong.append("the admission lock was left held")
            goes_on(program, same=same)
        if open_descriptors() != descriptors:
            wrong.append(f"{open_descriptors() - descriptors} descriptors were left open")
        hurry(path)
        history = [*all_died(log.events), *aftermath(path, way, scenario.keys)]
        history = excused(history, path)
        wrong += judge(history)
        delivered = {(event.key, event.value) for event in history if event.what == "deliver"}
        wrong += [
            f"{key}={value} was delivered, and its add had said that it was not added"
            for key, value in program.not_added
            if (key, value) in delivered
        ]
        shutil.rmtree(os.path.dirname(path))
        return wrong, faults


def goes_on(program: Program, *, same: bool) -> None:
    """The Inbox that met a fault adds, takes and closes as if nothing had been."""
    refused = len(program.refused)
    program.do("add:probe=1")
    if same:
        program.do("ack")
        program.do("ack")
        for _ in range(20):
            program.do("take")
            program.do("ack")
    try:
        program.stop()
    except Exception as error:
        program.wrong.append(f"close raised {type(error).__name__}: {error}")
    program.wrong += [f"afterwards {word} was refused: {error}" for word, error in program.refused[refused:]]


def wrong_words(program: Program, faults: Faults, path: str) -> list[str]:
    """Return what is wrong with what the program was told."""
    wrong = []
    for word, call, _ in faults.hits:
        aside = os.path.isdir(f"{path}/failed") and os.listdir(
            f"{path}/failed"
        )  # it was a dropped file's flush
        if call == "fsync" and word.partition(":")[0] in DURABLE and not aside and not program.refuses(word):
            wrong.append(f"{word} did not raise although its flush failed")
    for word, error in program.refused:
        text = str(error)
        # (A write that does half is tried again, or refused: then the reason is our own.)
        reasons = [REASONS[how] for at, _, how in faults.hits if at == word]
        if path not in text and "draft-" not in text:
            wrong.append(f"{word}: the message names neither the inbox nor the file: {text}")
        if reasons and not any(reason in text for reason in reasons):
            wrong.append(f"{word}: the message does not give the reason: {text}")
        if text.endswith(tuple(reasons)) or ": " not in text:
            wrong.append(f"{word}: the message does not tell the way out: {text}")
    return wrong


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


# --- the sweep ----------------------------------------------------------------------------------------

SHARDS = 6
"""Tests that the scenarios are dealt out to: for xdist."""


def plans(calls: list[tuple[str, tuple[Any, ...]]], *, every: bool) -> Iterator[Plan]:
    """Go through what is to be tried of a scenario that makes these calls.

    Each call with each error that fits; each with the errors in turn, followed by another one or two calls
    later; each as the first of many. `every`: with every error, and at any distance.
    """
    hows = (*ERRORS, "short")
    for call, (name, arguments) in enumerate(calls):
        fitting = [how for how in hows if fits(name, how, arguments)]
        for how in fitting:
            yield Plan(((call, how),))
        for how in fitting if every else fitting[call % len(fitting) :][:1]:
            yield Plan(((call, how),), onwards=True)
        for further in range(1, 40 if every else 3):
            first, second = (
                fitting[(call + further) % len(fitting)],
                ERRORS[(call * 3 + further) % len(ERRORS)],
            )
            yield Plan(((call, first), (call + further, second)))


def calls_of(world: World, scenario: Scenario) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the calls that a scenario makes when nothing is amiss."""
    wrong, faults = world.run(scenario, Plan(()), "drain", same=True)
    assert not wrong, (scenario.name, wrong)
    return faults.calls


def attempt(
    world: World, scenario: Scenario, plan: Plan, way: str, *, same: bool
) -> tuple[list[str], Faults | None]:
    """Run it; an exception afterwards is something wrong, too."""
    try:
        return world.run(scenario, plan, way, same=same)
    except Exception as error:
        return [f"afterwards: {type(error).__name__}: {error}"], None


def sweep(world: World, scenarios: list[Scenario], *, every: bool) -> dict[str, int]:
    """Try all that is to be tried of these scenarios; return how many faults of each kind hit."""
    hit = dict.fromkeys(("single", "two in a row", "onwards"), 0)
    for scenario in scenarios:
        for number, plan in enumerate(plans(calls_of(world, scenario), every=every)):
            ways = WAYS if every and len(plan.faults) == 1 else WAYS[number % 3 :][:1]
            for way in ways:
                same = bool(number % 2)
                wrong, faults = attempt(world, scenario, plan, way, same=same)
                replay = (
                    f"FSINBOX_FAULT={scenario.name}:{plan}:{way}{':same' if same else ''} pytest "
                    "tests/faults -k replay -rP"
                )
                assert not wrong, f"{wrong}\n{replay}"
                assert faults
                # After an error a run is shorter, or goes another way: there may be no second call to fail,
                # or not in this way.
                assert faults.hits or scenario.timed, f"no fault hit\n{replay}"
                if faults.hits:
                    hit[
                        "onwards" if plan.onwards else "two in a row" if len(faults.hits) > 1 else "single"
                    ] += 1
    return hit


@pytest.fixture
def world(tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> World:
    # Else the number of a run's calls would depend on how long it takes.
    monkeypatch.setattr(fsinbox.consumer.consumer, "_LOOK_INTERVAL", 0.0)
    for name in ("runs", "elsewhere"):
        (tmp_path / name).mkdir()
    return World(str(tmp_path / "runs"), str(tmp_path / "elsewhere"))


def dealt(shard: int) -> list[Scenario]:
    """Return the scenarios of a shard."""
    return list(SCENARIOS.values())[shard::SHARDS]


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_error_of_the_system_loses_anything(
    world: World, shard: int, figure: Callable[[str], None]
) -> None:
    hit = sweep(world, dealt(shard), every=False)
    assert sum(hit.values()) >= 3_500, hit
    figure(
        ", ".join(f"{count:,} {kind}" for kind, count in hit.items())
        + f" errors in {len(dealt(shard))} programs, 0 bad"
    )


@pytest.mark.long
@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_pair_of_errors_loses_anything(world: World, shard: int, figure: Callable[[str], None]) -> None:
    hit = sweep(world, dealt(shard), every=True)
    figure(
        ", ".join(f"{count:,} {kind}" for kind, count in hit.items())
        + f" errors in {len(dealt(shard))} programs, 0 bad"
    )


@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "ftruncate"])
def test_what_cannot_be_written_to_the_index_is_not_added_and_the_consumer_goes_on(
    tmp_path: Path, call: str, how: str
) -> None:
    """Nothing of such an add is to be seen."""
    with Inbox(tmp_path / "inbox", codec="bytes", max_inflight=3) as inbox:
        for key in "abc":
            inbox.add_bytes(key, b"1")
        elements = [inbox.take(), inbox.take()]
        if call != "pwrite":  # these are only called to make it anew
            Path(inbox.path, "index").unlink()
        with refusing(**{call: getattr(errno, how)}):
            with pytest.raises(AddFailed) as refused:
                inbox.add_bytes("d", b"1")
            assert not refused.value.maybe_added
            assert [name[20:] for name in os.listdir(tmp_path / "inbox" / "pending")] == ["c"]
            assert os.listdir(tmp_path / "inbox" / "tmp") == []
            elements[0].ack()
            assert elements[1].nack()
            again = inbox.take(timeout=1)
            assert again.key == "b"
            again.ack()
            assert inbox.take(timeout=1).key == "c"
        assert inbox.add_bytes("d", b"2") == "new"
        assert inbox.take(timeout=1).data == b"2"


def test_replay(world: World) -> None:
    text = os.environ.get("FSINBOX_FAULT")
    if not text:
        pytest.skip("for a line that a failure has printed: FSINBOX_FAULT=...")
    name, plan, way, *same = text.split(":")
    wrong, faults = attempt(world, SCENARIOS[name], plan_of(plan), way, same=bool(same))
    for number, (call, arguments) in enumerate(faults.calls if faults else ()):
        print(number, call, *arguments)
    print("hit:", *(faults.hits if faults else ()), sep="\n  ")
    assert not wrong
