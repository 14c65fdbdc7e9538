"""Handlers for `fsinbox consume`, as the measurements need them."""

import mmap
import os
import socket
import struct
from threading import Lock
from time import monotonic_ns, sleep

from fsinbox import Element

_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


class _Times:
    """When the first handler of this process began, when the last one ended, and how many there were: in a
    file of BENCH_TIMES that is mapped into memory, so that they are there however the process ends."""

    def __init__(self) -> None:
        with open(f"{os.environ['BENCH_TIMES']}/{os.getpid()}", "w+b") as file:
            file.truncate(24)
            self._file = mmap.mmap(file.fileno(), 24)
        self._count, self._first = 0, 0
        self._lock = Lock()

    def note(self, began: int) -> None:
        with self._lock:
            self._count += 1
            self._first = self._first or began
            struct.pack_into("qqq", self._file, 0, self._first, monotonic_ns(), self._count)


_times = _Times() if "BENCH_TIMES" in os.environ else None


def note(element: Element) -> None:
    """Tell the bench when the handler's first line was reached."""
    now = monotonic_ns()
    _socket.sendto(b"%d" % now, os.environ["BENCH_SOCKET"])


def wait(element: Element) -> None:
    """Wait 10 ms, as for an answer from somewhere else."""
    began = monotonic_ns()
    sleep(0.01)
    assert _times
    _times.note(began)


def empty(element: Element) -> None:
    """Do nothing."""
    assert _times
    _times.note(monotonic_ns())
