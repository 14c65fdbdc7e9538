"""Records a workload on a real file system, builds the disks that power cuts leave, mounts each, recovers,
and judges."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, cycle
from pathlib import Path
from queue import SimpleQueue
from random import Random
from time import monotonic_ns, time_ns

from fsinbox.store.files import is_btrfs
from tests.driver import WAYS, Driver, Log, aftermath, all_died, read_log, spell
from tests.oracle import Event, judge

from .cuts import Cut, cuts_of, epochs_of, histories
from .disk import FILE_SYSTEMS, FileSystem, attached, make, mounted, recording
from .recorder import read_records
from .workloads import Workload

HOUR = 3600 * 10**9
MAX_OUT = 2

BTRFS_START_SYNC = 0x80089418
"""Btrfs begins to commit, as by itself every 30 s: linux/btrfs.h."""

_LIBC = ctypes.CDLL(None, use_errno=True)


# --- recording ----------------------------------------------------------------------------------------


class Recorded:
    """A recording: a folder with `base` (the image before), `log` (what was written to it), `events` and
    `about`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        name, since = (folder / "about").read_text().split()
        self.fs: FileSystem = FILE_SYSTEMS[name]
        self.events = sorted(read_log(folder / "events"), key=lambda event: event.t)
        self.epochs = epochs_of(read_records(str(folder / "log")))
        self.cuts = cuts_of(self.epochs, int(since))
        self.keys = sorted({event.key for event in self.events if event.what == "add_start"})

    def keep(self, folder: Path) -> None:
        """Copy the recording to a folder that does not exist yet."""
        folder.mkdir()
        for name in ("base", "log", "events", "about"):
            subprocess.run(["cp", "--sparse=always", self.folder / name, folder / name], check=True)


def record(fs: FileSystem, work: Workload, folder: Path, seed: int = 0) -> Recorded:
    """Run a workload on a fresh file system on a recording disk."""
    image = folder / "image"
    make(fs, image)
    subprocess.run(["cp", "--sparse=always", image, folder / "base"], check=True)
    with recording(folder, image) as device, mounted(fs, device, folder / "mnt") as mount:
        path = str(mount / "inbox")
        if not work.creates:
            Driver(path, Log("p")).do("create")
        since = monotonic_ns()
        events = run(work, path, seed)
    (folder / "events").write_bytes(b"".join(map(spell, events)))
    (folder / "about").write_text(f"{fs.name} {since}\n")
    return Recorded(folder)


def run(work: Workload, path: str, seed: int) -> list[Event]:
    """Run the programs of a workload, each in a thread; return what they announce."""
    done: SimpleQueue[bool] = SimpleQueue()  # a producer has done a word: True; or all of them: False

    def produce(name: str, words: Iterable[str]) -> list[Event]:
        driver = Driver(path, Log(name))
        try:
            for word in words:
                driver.do(word)
                done.put(True)
        finally:
            driver.close()
        return driver.log.events

    def consume() -> list[Event]:
        chance = Random(seed)
        driver = Driver(path, Log("c"), max_inflight=MAX_OUT)
        words = cycle(work.consumer)
        try:
            while done.get():
                for _ in range(chance.randint(0, 4)):
                    word = next(words)
                    driver.do("ack" if word == "take" and len(driver._out) == MAX_OUT else word)
                if not chance.randrange(8):
                    _write_back(path, chance)
        finally:
            driver.close()
        return driver.log.events

    with ThreadPoolExecutor() as pool:
        consumer = pool.submit(consume)
        producers = [pool.submit(produce, f"p{number}", words) for number, words in enumerate(work.producers)]
        try:
            events = [event for producer in producers for event in producer.result()]
        finally:
            done.put(False)
        return sorted(events + consumer.result(), key=lambda event: event.t)


def _write_back(path: str, chance: Random) -> None:
    """As the kernel does at any moment: write everything to the disk; or, Btrfs, all names, and no content
    not flushed."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if is_btrfs(fd) and chance.randrange(2):
            fcntl.ioctl(fd, BTRFS_START_SYNC, bytes(8))
        else:
            _LIBC.syncfs(fd)
    finally:
        os.close(fd)


# --- cutting the power --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of one disk."""

    cut: Cut
    wrong: list[str]
    history: list[Event]


def cut_power(recorded: Recorded, cuts: Iterable[Cut]) -> Iterator[Verdict]:
    """Build the disk of each cut (in order), mount it, recover, judge."""
    folder = recorded.folder
    shutil.rmtree(folder / "mnt", ignore_errors=True)
    so_far, work = folder / "so-far", folder / "work"
    subprocess.run(["cp", "--sparse=always", folder / "base", so_far], check=True)
    work.write_bytes(b"")
    os.truncate(work, recorded.fs.size)
    applied = 0
    with attached(work) as device, _no_logging():
        source, target = os.open(so_far, os.O_RDWR), os.open(work, os.O_RDWR)
        try:
            for cut in cuts:
                for epoch in recorded.epochs[applied : cut.epoch]:
                    for block in epoch.blocks():
                        os.pwrite(source, block.data, block.offset)
                applied = cut.epoch
                _copy(source, target, recorded.fs.size)
                for block in cut.blocks:
                    os.pwrite(target, block.data, block.offset)
                yield _recover(recorded, cut, device)
        finally:
            os.close(source)
            os.close(target)


def _recover(recorded: Recorded, cut: Cut, device: str) -> Verdict:
    way = WAYS[cut.chance(len(WAYS))]
    clock = time_ns() - HOUR if cut.chance(4) == 0 else None  # it may have stepped back
    try:
        with mounted(recorded.fs, device, recorded.folder / "mnt") as mount:
            after = aftermath(str(mount / "inbox"), way, recorded.keys, boot="aftercut", clock=clock)
    except Exception as error:
        return Verdict(cut, [f"{way}: {type(error).__name__}: {error}"], [])
    for before in histories(cut, recorded.events):
        if wrong := judge_cut(before, after):
            return Verdict(cut, [f"{way}: {each}" for each in wrong], [*all_died(before), *after])
    return Verdict(cut, [], [])


def judge_cut(before: list[Event], after: list[Event]) -> list[str]:
    """Return what is wrong with a history in which the power was cut: key by key, since it may undo what
    nobody flushed.

    A consumer takes what it sees, and that may be a value whose add is still busy flushing. If the power is
    cut then, this value may be gone, and the one before it be there again: it had been added, and the other
    had not. So a value that was delivered when its add had not returned is judged as delivered, or as if it
    never had been.
    """
    wrong = []
    for key in sorted({event.key for event in before + after if event.key}):
        mine = [event for event in before if event.key in (key, "")]
        ended = {event.value for event in mine if event.what == "add_end"}
        doubtful = {event.value for event in mine if event.what == "deliver"} - ended
        undone = [
            set(chosen)
            for number in range(len(doubtful) + 1)
            for chosen in combinations(sorted(doubtful), number)
        ]
        rest = [event for event in after if event.key == key]
        verdicts = (judge([*all_died(_without(mine, values)), *rest]) for values in undone)
        wrong += min(verdicts, key=bool)
    return wrong


def _without(events: list[Event], values: set[str]) -> Iterator[Event]:
    """Yield a key's events, but the deliveries of these values, and how they ended."""
    left_out = False
    for event in events:
        if event.what == "deliver":
            left_out = event.value in values
        if not (left_out and event.what in ("deliver", "ack", "nack")):
            yield event


def _copy(source: int, target: int, size: int) -> None:
    """Copy an image, holes as holes."""
    os.ftruncate(target, 0)
    os.ftruncate(target, size)
    end = 0
    while True:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(target, source, start, end - start)


@contextmanager
def _no_logging() -> Iterator[None]:
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
