"""Runs the driver's programs on the file system that loses what was not flushed, and recovers what is left of
them.

A *run* is one program from an empty inbox to its end, perhaps with one fault. The file system says what its
disks held after every operation; each such disk is laid out as files (on a file system in memory), a fresh
producer and a fresh consumer work with it, and the oracle judges what was announced before the cut together
with what they announce. What was announced between two operations may or may not have been when the power
failed: each possibility is judged.

Some runs are really cut: the file system fails every operation from the N-th on, and the aftermath runs on
the mount itself.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import pickle
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB
from pathlib import Path
from time import time_ns
from typing import Any, Self
from unittest import mock

from greenlet import getcurrent, greenlet

import fsinbox.store.layout
import fsinbox.store.mounts
from fsinbox.store.errors import InboxError
from tests.driver import WAYS, Driver, Log, aftermath, all_died
from tests.machine import served
from tests.oracle import Event, judge
from tests.shim import intercepted

from .filesystem import ANSWERS, DISKS, ORDERS, Answer

BOOT = "afterwar"
"""The boot tag after a power cut."""

AGAIN = "again"
"""What is added to each key after a fault, and must be accepted then."""

PROGRAMS = {
    "adds": ["add:a=1 add:b=1 add:a=2 new:c=1 add:c=2 add:d=1"],
    "consumer": ["add:a=1 add:b=1 take add:a=2 ack take ack add:b=2 take ack"],
    "endings": ["add:a=1 add:b=1 take nack take defer take release take fail add:a=2 take fail take ack"],
    "restarts": ["add:a=1 add:b=1 take restart take add:a=2 restart take ack restart"],
    "files": ["file:a=1 move:b=1 move:a=2 take file:b=2 ack"],
    "many": ["many:a=1,b=1,c=1 many:a=2,b=2,c=2,d=2,e=2 take many:a=3,b=3,c=3,d=3,e=3 ack"],
    "mv": ["mv:a=1 add:a=2 mv:b=1 take mv:a=3 ack add:b=2 mv:c=1 take ack"],
    "sh": ["sh:a=1 sh:a=2 take sh:a=3 ack sh:b=1"],
    "create": ["create add:a=1 take ack"],
    "two": [
        "add:a=1 add:b=1 add:a=2",
        "add:a=x many:b=x,c=x add:a=y",
        "take ack take nack take ack take ack",
    ],
}
"""Words for the driver, see there. Several programs run at once, in turns that a seed decides."""

Turn = Callable[[], None]


# --- the mount ----------------------------------------------------------------------------------------


class Mount:
    """The mounted file system, and its orders."""

    def __init__(self, folder: Path, seed: str = "0") -> None:
        """It is mounted at `folder`/mnt in a `with` block. Skips the test where that is not possible."""
        self.point = folder / "mnt"
        self.inbox = str(self.point / "inbox")
        self.point.mkdir()
        code = "from tests.lossy.filesystem import main; main()"  # (not -m: its answers name its module)
        self._served = served(self.point, "-c", code, self.point, seed)

    def __enter__(self) -> Self:
        self._served.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._served.__exit__(None, None, None)

    def order(self, *words: object) -> None:
        """Give an order, see filesystem.py."""
        os.setxattr(self.point, ORDERS, " ".join(map(str, words)).encode())

    def answer(self) -> Answer:
        """Return what has happened since the last answer."""
        return pickle.loads((self.point / ANSWERS).read_bytes())


class _Library:
    """The C library, with a syncfs(2) that our file system hears of: the kernel does not tell FUSE of it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._real = _REAL_LIBRARY(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def syncfs(self, fd: int) -> int:
        try:
            os.setxattr(fd, ORDERS, b"sync")
        except OSError as error:
            if error.errno == errno.ENOTSUP:  # where disks are laid out
                return self._real.syncfs(fd)
            ctypes.set_errno(error.errno or errno.EIO)
            return -1
        return 0


_REAL_LIBRARY = ctypes.CDLL


@contextmanager
def as_local() -> Iterator[None]:
    """While this lasts, an inbox that is created says it is `local`, although FUSE may be anything: else its
    boot tag would be `network`, and never change. And syncfs works."""
    with (
        mock.patch.object(fsinbox.store.mounts, "is_network_type", lambda kind: False),
        # For the shell's producer, which looks itself.
        mock.patch("fsinbox.store.creating.format_for_one_host", lambda *_, **__: "local forced -"),
        mock.patch.object(ctypes, "CDLL", _Library),
    ):
        yield


# --- one run ------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What happened in a run."""

    events: list[Event] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answer: Answer = field(default_factory=lambda: Answer(0, 0, "", False, []))
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One run: a program and perhaps a fault. Its text is what replays it."""

    program: str
    fault: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.program} {self.seed} {self.fault}".strip()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the case that a text stands for."""
        program, seed, *fault = text.split()
        return cls(program, " ".join(fault), int(seed))

    def run(self, mount: Mount) -> Run:
        """Run it, from an empty inbox (or, where the inbox is to be created, from nothing)."""
        run = Run()
        mount.order("reset" if self.program == "create" else "load")
        if self.fault:
            mount.order(*self.fault.split())
        logs = [Log(f"p{number}") for number, _ in enumerate(PROGRAMS[self.program])]
        programs = [
            functools.partial(_do_all, words.split(), Driver(mount.inbox, log), run)
            for words, log in zip(PROGRAMS[self.program], logs, strict=True)
        ]
        with as_local():
            if len(programs) == 1:
                programs[0]()
            else:
                take_turns(programs, self.seed)
            if not self.fault.startswith("cut"):
                run.answer = mount.answer()
            if run.answer.hit and not run.answer.stopped:
                self._add_again(mount, logs[0], run)
                run.answer = run.answer._replace(moments=run.answer.moments + mount.answer().moments)
        run.events = sorted(
            itertools.chain.from_iterable(log.events for log in logs), key=lambda event: event.t
        )
        run.keys = sorted({event.key for event in run.events if event.what == "add_start"})
        return run

    def _add_again(self, mount: Mount, log: Log, run: Run) -> None:
        """There was a fault, and it is over: now everything must work."""
        mount.order("heal")
        driver = Driver(mount.inbox, log)
        words = ["create", *(f"add:{key}={AGAIN}" for key in "abc"), "take", "ack"]
        for word in words:
            try:
                driver.do(word)
            except Exception as error:
                run.wrong.append(f"after the fault, {word!r} raised {error!r}")
        driver.close()


def _do_all(words: list[str], driver: Driver, run: Run) -> None:
    for word in [*words, "close"]:
        try:
            if word == "close":
                driver.close()
            else:
                driver.do(word)
        except (InboxError, OSError, subprocess.CalledProcessError) as error:
            run.raised.append(f"{word}: {type(error).__name__}: {error}")
        except Exception as error:
            run.wrong.append(f"{word!r} raised {error!r}")


def take_turns(programs: list[Turn], seed: int) -> None:
    """Run programs at once, in one thread: before every system call a seeded choice says who goes on."""
    chance = random.Random(seed)
    scheduler = getcurrent()

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        scheduler.switch()
        while name == "flock" and arguments[1] == LOCK_EX:
            try:
                return call(arguments[0], LOCK_EX | LOCK_NB)
            except BlockingIOError:
                scheduler.switch()  # to the one that holds the lock, sooner or later
        return call(*arguments, **more)

    # (Each is as a thread of its own: a signal handler that meets a section of its own thread must not wait
    # for it.)
    with intercepted(hook), mock.patch("fsinbox.store.section.get_ident", lambda: id(getcurrent())):
        actors = [greenlet(program) for program in programs]
        while actors:
            chance.choice(actors).switch()
            actors = [actor for actor in actors if not actor.dead]


# --- what is left -------------------------------------------------------------------------------------


def lay_out(tree: tuple[Any, ...], path: str, links: dict[int, str] | None = None) -> None:
    """Make real files of a disk's tree, in the folder `path`, which exists."""
    links = {} if links is None else links
    for name, number, mode, content, modified in tree:
        here = f"{path}/{name}"
        if stat.S_ISDIR(mode):
            os.mkdir(here, stat.S_IMODE(mode))
            lay_out(content, here, links)
        elif stat.S_ISLNK(mode):
            os.symlink(content, here)
        elif number in links:
            os.link(links[number], here)
        else:
            fd = os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IMODE(mode))
            os.write(fd, content)
            os.utime(fd, ns=(modified, modified))
            os.close(fd)
            links[number] = here


def read_in(path: str) -> tuple[Any, ...]:
    """Return the tree of a folder, in the form of a disk's, without numbers and times."""
    found = []
    for name in sorted(os.listdir(path)):
        here = f"{path}/{name}"
        mode = os.lstat(here).st_mode
        if stat.S_ISDIR(mode):
            found.append((name, mode, read_in(here)))
        else:
            found.append(
                (
                    name,
                    mode,
                    os.fsencode(os.readlink(here)) if stat.S_ISLNK(mode) else Path(here).read_bytes(),
                )
            )
    return tuple(found)


def bare(tree: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a disk's tree without numbers and times."""
    return tuple(
        (name, mode, bare(content) if stat.S_ISDIR(mode) else content)
        for name, number, mode, content, modified in tree
    )


def recover(path: str, way: str, keys: list[str], clock: int | None) -> tuple[list[Event], list[str]]:
    """Let a fresh producer and consumer work with what is left; return (what they announce, what they could
    not do)."""
    with as_local():
        try:
            return aftermath(path, way, keys, boot=BOOT, clock=clock), []
        except Exception as error:
            return [], [f"recovery raised {error!r}"]


def judged(before: list[Event], after: list[Event]) -> list[str]:
    """Return what is wrong with a history that a power cut has parted.

    An add that had not returned by then had promised nothing, even if a consumer had its value already: the
    power cut may have undone it, and what came of it. So whether its deliveries before the cut count is open:
    one answer must do.
    """
    promised = {(event.key, event.value) for event in before if event.what == "add_end"}
    open_ = sorted({(event.key, event.value) for event in before if event.what == "deliver"} - promised)
    wrong: list[str] = []
    for number in range(len(open_) + 1):
        for undone in itertools.combinations(open_, number):
            found = judge([*all_died(_without(before, set(undone))), *after])
            if not found:
                return []
            wrong = wrong or found
    return wrong


def _without(events: list[Event], undone: set[tuple[str, str]]) -> list[Event]:
    """Return the events without the deliveries of these values, and what ended them."""
    left = []
    out: dict[str, str] = {}
    for event in events:
        if event.what == "deliver":
            out[event.key] = event.value
        if event.what not in ("deliver", "ack", "nack") or (event.key, out.get(event.key, "")) not in undone:
            left.append(event)
    return left


# --- many of them -------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How many of what was tried, and what was bad."""

    runs: int = 0
    hits: int = 0  # runs in which the fault hit
    disks: int = 0  # that differ from the others of their run
    recovered: int = 0
    bad: list[str] = field(default_factory=list)

    def tell(self) -> str:
        """Return the figures as text."""
        return (
            f"{self.hits:,} faults, {self.disks:,} different disks, {self.recovered:,} recoveries, "
            f"{len(self.bad)} bad"
        )

    def report(self) -> str:
        """Return what is bad, the first few."""
        return "\n".join([f"{len(self.bad)} bad:", *self.bad[:5]])


class Judge:
    """Recovers the disks of runs, and judges them."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._turn = 0

    def look_at(self, case: Case, run: Run, *, every: int = 1, ways: int = len(WAYS)) -> None:
        """Recover each `every`-th of the different disks of a run, each in so many of the ways."""
        tally = self.tally
        tally.runs += 1
        tally.hits += bool(run.answer.hit)
        tally.bad += [self._bad(case, what) for what in run.wrong]
        prefixes: dict[Any, set[int]] = {}
        where: dict[Any, str] = {}
        moments = run.answer.moments
        for moment, after in itertools.zip_longest(moments, moments[1:]):
            told = [
                number
                for number in range(len(run.events) + 1)
                if (number == len(run.events) or run.events[number].t >= moment.ended)
                and (number == 0 or after is None or run.events[number - 1].t <= after.begun)
            ]
            for disk, tree in zip(DISKS, moment.disks, strict=True):
                prefixes.setdefault(tree, set()).update(told)
                where.setdefault(
                    tree, f"the power fails after operation {moment.number} ({moment.operation}), disk {disk}"
                )
        tally.disks += len(prefixes)
        for tree, told in prefixes.items():
            self._turn += 1
            if self._turn % every == 0:
                for number in range(ways):
                    self._recover(
                        case, run, tree, WAYS[(self._turn // every + number) % len(WAYS)], told, where[tree]
                    )

    def _recover(self, case: Case, run: Run, tree: Any, way: str, told: set[int], where: str) -> None:
        self.tally.recovered += 1
        clock = time_ns() - 3600 * 10**9 if self._turn % 2 else None  # it may come back wrong
        folder = tempfile.mkdtemp(prefix="fsinbox-lossy-")
        try:
            lay_out(tree, folder)
            after, wrong = recover(f"{folder}/inbox", way, run.keys, clock)
        finally:
            shutil.rmtree(folder)
        for number in sorted(told):
            wrong = wrong or judged(run.events[:number], after)
        self.tally.bad += [
            self._bad(case, f"{where}, way {way}, clock {'back' if clock else 'right'}: {what}")
            for what in wrong
        ]

    def really_cut(self, case: Case, mount: Mount) -> Run:
        """Run a case with a cut, turn the power on again, and recover on the mount itself."""
        run = case.run(mount)
        mount.order("on")
        run.answer = mount.answer()
        if not run.answer.hit:
            return run
        self._turn += 1
        self.tally.runs += 1
        self.tally.hits += 1
        disk = case.fault.split()[-1]
        wrong = [*run.wrong]
        if run.answer.moments:
            tree = run.answer.moments[-1].disks[DISKS.index(disk)]
            if read_in(str(mount.point)) != bare(tree):
                wrong.append("the mount does not show what the disk held")
        way = WAYS[self._turn % len(WAYS)]
        after, failed = recover(mount.inbox, way, run.keys, None)
        wrong += failed or judged(run.events, after)
        self.tally.bad += [self._bad(case, f"after {run.answer.hit}, way {way}: {what}") for what in wrong]
        return run

    @staticmethod
    def _bad(case: Case, what: str) -> str:
        return f"{what}\n    replay: LOSSY='{case}' python -m pytest tests/lossy -k replay"
