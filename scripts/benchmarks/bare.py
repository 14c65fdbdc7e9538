"""The limit: the system calls that fsinbox makes for an add, a take and an ack, in bare loops.

What is not here is what fsinbox does beside them: checking names and states, errors, and the order of what
waits. `calls` counts both with strace, so that nobody has to believe that they are the same calls.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from time import time_ns
from typing import Any
from zlib import crc32

from .queues import DURABLE, Queue

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH, _SECTION = 1000, 100  # as in fsinbox
_BUCKETS = 128


class BareCalls(Queue):
    """The same system calls, and nothing else."""

    name = "bare system calls"
    replaces = True

    def __init__(self, path: str, durability: str) -> None:
        self.folders = []
        for folder in ("tmp", "drop", "pending", "inflight"):
            os.makedirs(f"{path}/bare/{folder}", exist_ok=True)
            self.folders.append(os.open(f"{path}/bare/{folder}", _FOLDER))
        self.index = os.open(f"{path}/bare/index", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self.index, 0, 64 + _BUCKETS * 1024)
        self.durable = durability == DURABLE
        self.unique = map(f"{os.urandom(4).hex()}.{os.getpid()}.{{}}".format, count())
        self.waiting: deque[str] = deque()
        self.libc = ctypes.CDLL(None)

    def add(self, key: str, data: bytes) -> None:
        name = self.write(data, self.durable)
        self.publish([(name, key)])
        if self.durable:
            os.fsync(self.folders[2])

    def write(self, data: bytes, durable: bool) -> str:
        name = next(self.unique)
        fd = os.open(name, _CREATE, 0o600, dir_fd=self.folders[0])
        os.write(fd, data)
        if durable:
            os.fsync(fd)
        os.close(fd)
        return name

    def publish(self, names: list[tuple[str, str]]) -> None:
        tmp, drop, pending, _ = self.folders
        for _, key in names:
            _is_there(key, drop)
        fcntl.flock(self.index, fcntl.LOCK_EX)
        os.fstat(self.index)
        os.pread(self.index, 64, 0)
        for name, key in names:
            crc = crc32(key.encode())
            home = 64 + crc % _BUCKETS * 1024
            bucket = os.pread(self.index, 1024, home)
            at = bucket.find(b"%010d " % crc)
            number = bucket[at + 11 : at + 30].decode() if at >= 0 else ""
            if not number or not _is_there(f"{number}-{key}", pending):
                number = f"{time_ns():019d}"
                os.pwrite(self.index, f"{number} abcdefgh 0000004096".ljust(63).encode() + b"\n", 0)
                os.pwrite(
                    self.index, b"%010d %b \n" % (crc, number.encode()), home + max(at, bucket.find(b"\0"))
                )
            os.rename(name, f"{number}-{key}", src_dir_fd=tmp, dst_dir_fd=pending)
        fcntl.flock(self.index, fcntl.LOCK_UN)

    def add_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        todo = list(items)
        for first in range(0, len(todo), _BATCH):
            batch = todo[first : first + _BATCH]
            names = [(self.write(data, False), key) for key, data in batch]
            if self.durable:
                self.libc.syncfs(self.folders[0])
            for start in range(0, len(names), _SECTION):
                self.publish(names[start : start + _SECTION])
            if self.durable:
                os.fsync(self.folders[2])

    def list(self, folder: int) -> list[str]:
        fd = os.open(".", _FOLDER, dir_fd=folder)
        names = os.listdir(fd)
        os.close(fd)
        return names

    def take(self) -> Any:
        _, drop, pending, inflight = self.folders
        if not self.waiting:
            self.list(drop)
            self.waiting = deque(sorted(self.list(pending)))
        if not self.waiting:
            return None
        name = self.waiting.popleft()
        os.rename(name, name, src_dir_fd=pending, dst_dir_fd=inflight)
        os.lstat(name, dir_fd=inflight)
        fd = os.open(name, _READ, dir_fd=inflight)
        os.read(fd, os.fstat(fd).st_size + 1)
        os.close(fd)
        return name

    def ack(self, token: Any) -> None:
        os.unlink(token, dir_fd=self.folders[3])

    def close(self) -> None:
        for fd in (*self.folders, self.index):
            os.close(fd)


def _is_there(name: str, folder: int) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def compiler() -> str | None:
    """Return the C compiler there is, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def in_c(path: Path, elements: int) -> dict[str, float]:
    """Return the microseconds that a new add, and a take with its ack, take in C (bare.c). Needs a
    compiler."""
    with tempfile.TemporaryDirectory() as built:
        program = f"{built}/bare"
        subprocess.run(
            [compiler() or "cc", "-O2", "-o", program, Path(__file__).with_name("bare.c")], check=True
        )
        done = subprocess.run([program, path, str(elements)], check=True, capture_output=True, text=True)
    add, take = done.stdout.split()
    return {"add": float(add), "take + ack": float(take)}


def calls(kind: type[Queue], step: str, path: Path) -> dict[str, int]:
    """Return how often which system call is made for one `step` ("add", "replace" or "take + ack"), as strace
    counts them."""
    elements = 20
    program = (
        f"from {kind.__module__} import {kind.__name__}\n"
        "from benchmarks.queues import QUICK\nimport os\n"
        f"os.makedirs({str(path)!r})\n"
        f"queue = {kind.__name__}({str(path)!r}, QUICK)\n"
        "def add(keys):\n    for key in keys: queue.add(f'key{key}', bytes(200))\n"
        "def take(keys):\n    for key in keys: queue.ack(queue.take())\n"
        f"keys = range(10, {elements} + 10)\n"
        "add(range(10)); take(range(2))\n"
        + {"add": "", "replace": "add(keys)\n", "take + ack": "add(keys); take(range(4))\n"}[step]
        + "os.sched_yield()\n"
        + {"add": "add(keys)", "replace": "add(keys)", "take + ack": "take(keys)"}[step]
        + "\nos.sched_yield()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.NamedTemporaryFile("r") as trace:
        subprocess.run(
            ["strace", "-o", trace.name, sys.executable, "-c", program], check=True, env=environment
        )
        inside = trace.read().split("sched_yield()")[1]
    counted: dict[str, int] = {}
    for name in re.findall(r"^(\w+)\(", inside, re.MULTILINE):
        counted[name] = counted.get(name, 0) + 1
    return {name: round(number / elements) for name, number in counted.items() if number >= elements}
