"""Runs a storm: starts its programs, kills one after the other at random, and starts each anew; then drains
the inbox.

    python -m tests.storm.director FOLDER STORM         STORM is a Storm as JSON; the figures come out as JSON

The programs are forked from this process, which has one thread and has imported all they need. It adopts what
they leave behind (PR_SET_CHILD_SUBREAPER), so that it can wait until a killed program is gone with all its
children: whoever is started next begins after it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, monotonic_ns, sleep

import fsinbox.cli.commands
import fsinbox.cli.consuming
import fsinbox.consumer.consumer
import fsinbox.consumer.watch
import fsinbox.worker.runner  # noqa: F401 - imported for those who are forked
from fsinbox import Inbox
from fsinbox.store.layout import Layout
from tests.driver import spell
from tests.interleave.mutants import MUTANTS, mutated
from tests.oracle import Event

from .programs import CONSUMERS, PATIENT, PRODUCERS, Me, hook, release_all

ROOT = Path(__file__).parents[2]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Storm:
    """How hard it blows, and until when."""

    name: str
    seed: int
    producers: tuple[str, ...]  # kinds; each is one process at a time
    least: dict[str, int]  # kind of program -> adds, or deliveries, at the least
    adds: int  # at the least, all kinds together
    kills: int  # at the least
    pause: float = 0.1  # mean seconds between two kills
    in_line: bool = False  # consumers take one at a time: so the order of arrival must be kept
    scope: str = "local"  # "network": as on a server whose clients share the inbox
    consumers: tuple[str, ...] = tuple(CONSUMERS)  # kinds; one process at a time, of one of these
    stops: int = 0  # how often a producer is stopped inside the section, and continued
    wide: bool = False  # the windows in which races happen are widened
    fault: str = (
        ""  # a mutant (tests/interleave/mutants.py) that all programs are, to see that the storm finds it
    )
    limit: float = 240.0  # seconds after which it is a failure that it has not got that far

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*dict.fromkeys(self.producers), *self.consumers)


class Director:
    """One storm. Leaves the logs, and the drained inbox, in `folder`."""

    def __init__(self, storm: Storm, folder: Path) -> None:
        self.storm = storm
        self.folder = folder
        self.random = random.Random(storm.seed)
        self.counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # shared with those who are forked
        self.kills: Counter[str] = Counter()
        self.started = 0
        self.stops = 0
        self.running: dict[int, tuple[str, str]] = {}  # process -> its kind, its name
        (folder / "logs").mkdir()
        (folder / "heard").touch()
        Inbox(folder / "inbox", scope=storm.scope).close()
        self.log = os.open(folder / "logs" / "director.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    # --- programs ---

    def start(self, kind: str) -> None:
        """Start a program."""
        self.started += 1
        who = f"{kind}-{self.started}"
        pid = os.fork()
        if pid == 0:
            self._be(kind, who)
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass  # it has done it, or is dead
        self.running[pid] = kind, who

    def _be(self, kind: str, who: str) -> None:
        """In the forked process: be that program. Never returns."""
        try:
            os.setpgid(0, 0)  # its group: with its children, for the kill
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            errors = os.open(self.folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if kind in PRODUCERS:
                # The consumer gets its share (it does not run when it has nothing to do), and those that
                # start a program an add get less of it than those that are cheap.
                os.nice(8 if kind in ("sh", "mv") else 5)
                os.dup2(errors, 2)
            else:  # what `fsinbox consume` says of failed attempts is no error of the storm's
                logging.getLogger("fsinbox").setLevel(logging.CRITICAL)
                os.dup2(
                    os.open(self.folder / f"errors-{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2
                )
            index = self.storm.kinds.index(kind)
            storm = self.storm
            me = Me(
                self.folder, who, storm.seed, self.counters, index, in_line=storm.in_line, wide=storm.wide
            )
            hook(me)
            (PRODUCERS | CONSUMERS)[kind](me)
            os.write(errors, f"{who} came to an end\n".encode())
        except BaseException:
            os.write(errors, f"{who}: {traceback.format_exc()}\n".encode())
        finally:
            os._exit(1)

    def start_consumer(self) -> None:
        """Start a consumer: of the kind that has delivered the least of its goal, or of any kind."""
        done, least = self.done(), self.storm.least
        neediest = min(self.storm.consumers, key=lambda kind: done[kind] / least[kind])
        self.start(neediest if self.random.random() < 0.5 else self.random.choice(self.storm.consumers))

    def kill(self, pid: int) -> str:
        """Kill a program and all its children, and wait until they are gone; return its kind."""
        kind, who = self.running.pop(pid)
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status) and not self.storm.fault:
            raise AssertionError(f"{who} had ended by itself: {(self.folder / 'errors').read_text()}")
        while True:
            try:
                os.waitpid(-pid, 0)  # what was its children, and has come to us
            except ChildProcessError:
                break
        self.kills[kind] += 1
        if kind in CONSUMERS:
            for orphan in orphans(
                set(self.running)
            ):  # commands have sessions of their own, and die with their consumer
                os.waitpid(orphan, 0)
            os.write(self.log, spell(Event("died", who, t=monotonic_ns())))
        return kind

    def stop(self) -> None:
        """Have a producer stop inside the section, and continue it a while later. Nobody is killed
        meanwhile."""
        self.counters[-1] = 1
        until = monotonic() + 10
        while monotonic() < until:
            for pid, (kind, _) in self.running.items():
                if kind in PRODUCERS and is_stopped(pid):
                    began = monotonic_ns()
                    sleep(self.random.uniform(0.1, 0.5))
                    with (self.folder / "stops").open("a") as file:
                        file.write(f"{began} {monotonic_ns()}\n")
                    os.kill(pid, signal.SIGCONT)
                    self.stops += 1
                    return
            sleep(0.001)
        raise AssertionError("no producer came into the section for 10 s")

    # --- how far it is ---

    def done(self) -> dict[str, int]:
        """Return how many adds, or deliveries, each kind has done."""
        return dict(zip(self.storm.kinds, self.counters, strict=False)) | {
            "command": (self.folder / "heard").stat().st_size
        }

    def missing(self) -> list[str]:
        """Return what the storm has not reached yet."""
        storm, done = self.storm, self.done()
        adds = sum(done[kind] for kind in set(storm.producers))
        goals = [
            ("adds", adds, storm.adds),
            ("kills", self.kills.total(), storm.kills),
            ("stops", self.stops, storm.stops),
        ]
        goals += [(kind, done[kind], storm.least[kind]) for kind in storm.kinds]
        goals += [
            (f"kills of {kind}", self.kills[kind], storm.kills // (3 * len(storm.kinds)))
            for kind in storm.kinds
        ]
        return [f"{name}: {number} of {goal}" for name, number, goal in goals if number < goal]

    def blow(self) -> None:
        """Kill at random, until all goals are reached; then kill everybody."""
        began = monotonic()
        gc.collect()
        gc.freeze()  # those who are forked need not copy what is here
        for kind in self.storm.producers:
            self.start(kind)
        self.start_consumer()
        try:
            while missing := self.missing():
                if monotonic() - began > self.storm.limit:
                    raise AssertionError(f"after {self.storm.limit} s there are {', '.join(missing)}")
                self._calm()
                if self.stops < self.storm.stops and self.random.random() < 0.1:
                    self.stop()
                consumers = [pid for pid, (kind, _) in self.running.items() if kind in CONSUMERS]
                producers = [pid for pid, (kind, _) in self.running.items() if kind in PRODUCERS]
                kind = self.kill(self.random.choice(consumers if self.random.random() < 0.35 else producers))
                if kind in PRODUCERS:
                    self.start(kind)
                else:
                    self.start_consumer()
        finally:
            for pid in list(self.running):
                self.kill(pid)

    def _calm(self) -> None:
        """Wait until the next kill: mostly a while, at times not long enough for a consumer to have
        recovered."""
        pause = self.storm.pause
        sleep(
            self.random.random() * 0.005
            if self.random.random() < 0.25
            else self.random.expovariate(1 / (pause * 4 / 3))
        )

    def drain(self) -> None:
        """Let the command take all that is left, and nothing be on hold."""
        release_all(Layout(str(self.folder / "inbox")))
        words = [
            sys.executable,
            "-m",
            "fsinbox",
            "--inbox",
            str(self.folder / "inbox"),
            "consume",
            "--drain",
            *PATIENT,
        ]
        words += ["--handler", "tests.storm.programs:handle"]
        environment = os.environ | {"STORM": str(self.folder), "PYTHONPATH": str(ROOT)}
        subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=300)


def is_stopped(pid: int) -> bool:
    """Tell whether a child has been stopped since this was last asked."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def orphans(known: set[int]) -> list[int]:
    """Return our children that we have not started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and int(entry) not in known:
                found.append(int(entry))
    return found


def main() -> None:
    folder, text = sys.argv[1:]
    storm = Storm(**json.loads(text))
    director = Director(storm, Path(folder))
    began = monotonic()
    with mutated(MUTANTS[storm.fault].edits if storm.fault else ()):
        director.blow()
    blown = monotonic()
    director.drain()
    figures = {
        "kills": director.kills,
        "done": director.done(),
        "blow": blown - began,
        "drain": monotonic() - blown,
    }
    print(json.dumps(figures))


def run(storm: Storm, folder: Path) -> dict[str, dict[str, int]]:
    """Run a storm in a process of its own; return its figures. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "tests.storm.director", str(folder), json.dumps(asdict(storm))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=storm.limit + 400
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
