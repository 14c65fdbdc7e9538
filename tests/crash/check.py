"""Traces workloads, builds the states that a power cut may leave, lets a consumer recover each, and has the
oracle judge."""

from __future__ import annotations

import os
import random
import shutil
import sys
import traceback
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import NamedTuple
from unittest import mock

import fsinbox.store.index
from fsinbox import Inbox
from fsinbox.store.folders import FOLDERS
from fsinbox.store.lines import HEADER, read_header
from tests.driver import TORN, WAYS, aftermath, all_died, value_of
from tests.oracle import Event, judge

from .recording import Recording, State, Told, Tree, clear, in_process, lay, read_tree, states
from .trace import read, strace
from .workloads import END, SETTLED, Workload

ROOT = Path(__file__).parents[2]
ENOUGH_WRONG = 20
"""Bad states after which no more are looked at."""

RECOVERY, REPAIR = AGAIN = (" >> recovery", " >> repair")
"""At the end of a name: of what a recovery, or the doctor's repair, did with the state that is named before
it."""

HOUR = 3600 * 10**9


class Trace(NamedTuple):
    """A recording, what it is of, and from how many items on the power is cut: earlier cuts are those of a
    shorter workload."""

    name: str
    recording: Recording
    first: int = 0


def trace(workloads: list[Workload], folder: Path) -> list[Trace]:
    """Run workloads under strace, and record what they do."""
    work = folder / "work"
    work.mkdir(parents=True)
    names = folder / "names"
    names.write_text("".join(f"{number} {workload.name}\n" for number, workload in enumerate(workloads)))
    program = f"exec {sys.executable} -m tests.crash.workloads {work} <{names}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    strace(["sh", "-c", program], folder / "trace", environment)
    recordings = [Recording() for _ in workloads]
    ends = [0] * len(workloads)
    prefix = f"{work}/"

    def find(path: str) -> tuple[Recording, str] | None:
        number, _, inside = path.removeprefix(prefix).partition("/")
        return (recordings[int(number)], inside) if path.startswith(prefix) else None

    def announced(recording: Recording, event: Event) -> None:
        recording.event(event)
        if event.what == "mark" and event.key == SETTLED:
            recording.settle()
        elif event.what == "mark" and event.key == END:
            ends[recordings.index(recording)] = len(recording.items)

    read(folder / "trace", find, announced)
    traces = []
    for number, (workload, recording, end) in enumerate(zip(workloads, recordings, ends, strict=True)):
        seen, real = recording.tree(), read_tree(f"{work}/{number}")
        assert seen == real | {"LOG": b""}, f"the trace of {workload.name!r} does not lead to what is there"
        del recording.items[end:]
        traces.append(Trace(workload.name, recording, 0 if workload.every else _last_mark(recording)))
    shutil.rmtree(folder)
    return traces


def _last_mark(recording: Recording) -> int:
    """Return where the last word begins. (The very last mark is the end.)"""
    marks = [
        index for index, item in enumerate(recording.items) if isinstance(item, Event) and item.what == "mark"
    ]
    return marks[-2]


def announced(recording: Recording, state: State) -> list[Event]:
    """Return what had been announced when the power was cut."""
    return [*recording.before, *(item for item in recording.items[: state.done] if isinstance(item, Event))]


# --- judging ------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came of many states."""

    states: int = 0
    """Different ones: what is on the disk but for tmp/, and how much had been announced."""
    wrong: list[str] = field(default_factory=list)


class Checker:
    """Lays states out, one after the other in the same folder, and lets a consumer recover them."""

    def __init__(self, folder: Path) -> None:
        self.top = str(folder / "disk")
        self.result = Result()
        self._name = ""
        self._seen: set[int] = set()  # what another model has left of this recording, too
        self._now = time_ns()
        self._folders: set[str] | None = None

    def check(self, traced: Trace, model: str, most: int | None = None) -> None:
        """Check every state that a power cut may leave of a recording; or so many of them, by chance."""
        recording = traced.recording
        if self._name != traced.name:
            self._name, self._seen = traced.name, set()
        different: dict[int, State] = {}
        for state in states(recording, model, traced.first):
            different.setdefault(hash((len(announced(recording, state)), _essence(state.tree, model))), state)
        different = {essence: state for essence, state in different.items() if essence not in self._seen}
        self._seen |= different.keys()
        chosen = list(different.values())
        if most is not None and most < len(chosen):
            chosen = random.Random(traced.name).sample(chosen, most)
        for state in chosen:
            if len(self.result.wrong) >= ENOUGH_WRONG:
                return
            self.check_state(
                state, announced(recording, state), f"{model}:{state.done}:{state.choice}:{traced.name}"
            )
        self.result.states += len(chosen)

    def check_state(self, state: State, events: list[Event], name: str) -> None:
        """Recover one state, and judge. A newer value hides that an older one was lost, so each is just
        drained once; of every other one also another way is tried. Which, and with what clock, depends on its
        name."""
        draw = zlib.crc32(name.encode())
        for way in ("drain", WAYS[1 + draw % 2])[: 1 + (draw >> 1) % 2]:
            # (Of the index, all else is there: the boot is the same, and so is the clock.)
            killed = name.startswith("index:")
            wrong = self.recover(
                state.tree, events, way, clock_back=bool(draw & 64) and not killed, boot=not killed
            )
            if wrong:
                self.result.wrong.append(
                    f"{way}: {'; '.join(wrong)}\n    FSINBOX_CUT='{name}' pytest tests/crash -k replay -rP"
                )

    def recover(
        self, tree: Tree, events: list[Event], way: str, *, clock_back: bool, boot: bool = True
    ) -> list[str]:
        """Lay a state out, and let a producer and a consumer work with it; return what is wrong. `boot`: in
        another boot."""
        self.lay(tree)
        keys = sorted({event.key for event in events if event.what == "add_start"})
        clock = self._now - HOUR if clock_back else None
        unflushed = any(event.value.startswith("q") for event in events)
        try:
            after = aftermath(f"{self.top}/inbox", way, keys, boot="aftercut" if boot else None, clock=clock)
        except Exception:
            return [f"recovery failed:\n{traceback.format_exc()}"]
        if unflushed:
            after = [event for event in after if event.value != TORN]
        wrong = judge([*all_died(event for event in events if _counts(event)), *after])
        left = [
            f"{folder}/{name}"
            for folder in ("pending", "inflight", "deferred")
            for name in os.listdir(f"{self.top}/inbox/{folder}")
        ]
        return wrong + ([f"left over: {', '.join(left)}"] if left else [])

    def check_again(self, traced: Trace, model: str, then: str, *, samples: int, most: int) -> None:
        """Of some states, record a recovery or a repair, cut the power at any point of that, and recover from
        what it leaves."""
        recording = traced.recording
        several = list(states(recording, model, traced.first))
        for state in random.Random(traced.name).sample(several, min(samples, len(several))):
            second = self.record(then, state.tree, announced(recording, state))
            self.check(Trace(f"{model}:{state.done}:{state.choice}:{traced.name}{then}", second), model, most)

    def record(self, then: str, tree: Tree, events: list[Event]) -> Recording:
        """Record what is done with a state: RECOVERY, take and acknowledge what is there; or REPAIR, call the
        doctor."""
        self.lay(tree)
        recording = Recording(read_tree(self.top))
        recording.before = all_died(event for event in events if _counts(event))
        path = f"{self.top}/inbox"
        with (
            mock.patch.object(fsinbox.store.index, "boot_tag", lambda: "recovery"),
            in_process(recording, self.top),
        ):
            if then == REPAIR:
                from fsinbox.doctor import repair

                repair(path)
                return recording
            log = Told("recovery", recording)
            with Inbox(path, codec="bytes", drop_settle=0) as inbox:
                while element := inbox.take():
                    log.tell("deliver", element.key, value_of(element.data))
                    log.tell("ack", element.key)
                    element.ack()
        return recording

    def lay(self, tree: Tree) -> None:
        """Make what is on the disk this tree."""
        folders = {path for path, what in tree.items() if what is None}
        if self._folders is not None and self._folders <= folders:
            clear(self.top)
        else:
            shutil.rmtree(self.top, ignore_errors=True)
        # What recovery makes is there for the next state: a folder that is not in its tree must go.
        self._folders = folders if folders >= {"inbox/" + name for name in FOLDERS} else {"none"}
        lay(tree, self.top)


def _counts(event: Event) -> bool:
    """Tell whether an event counts when the power is cut: an unflushed add (its value begins with q) promises
    nothing."""
    return event.what != "mark" and not (event.what == "add_end" and event.value.startswith("q"))


def _essence(tree: Tree, model: str) -> tuple[tuple[str, bytes | tuple[str] | None], ...]:
    """Return of a tree what matters: what is in tmp/, the word that a consumer left of itself, and, after a
    boot, what is in the index but its last number, do not."""
    matters = {
        path: what
        for path, what in tree.items()
        if not path.startswith("inbox/tmp/") and path != "inbox/consumer.lock"
    }
    index = matters.get("inbox/index")
    if isinstance(index, bytes) and model != "index":
        matters["inbox/index"] = read_header(index[:HEADER])[0].to_bytes(8, "big")
    return tuple(sorted(matters.items()))
