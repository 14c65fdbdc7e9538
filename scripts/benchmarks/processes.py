"""Runs a contender in one process or many, for a slice of time, and brings back what they measured.

Processes are forked from one that has no threads, open the queue each for itself, wait for each other, and
work until the slice ends. What they bring back is plain figures.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from time import monotonic, perf_counter, perf_counter_ns
from typing import Any, NamedTuple

from .queues import Queue, make

FORK = multiprocessing.get_context("fork")

PATIENCE = 120
"""Seconds after which a slice is given up: whoever is not done by then never will be."""


@contextmanager
def scratch(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """A fresh folder, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="slice-", dir=folder))
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


class Worked(NamedTuple):
    """What one process did: how many operations in how many seconds, and how long each took (nanoseconds), if
    asked for."""

    operations: int
    seconds: float
    latencies: list[int]


def rate(done: list[Worked]) -> float:
    """Return operations per second, of all processes together."""
    return sum(worked.operations for worked in done) / max(worked.seconds for worked in done)


def adding(
    kind: type[Queue],
    durability: str,
    folder: Path,
    *,
    processes: int = 1,
    seconds: float,
    size: int,
    keys: Callable[[int, int], str] = "p{}-{}".format,
    latencies: bool = False,
    prepare: Callable[[Queue], object] | None = None,
) -> list[Worked]:
    """Have some processes add payloads of `size` bytes for some seconds. `keys` gives the key of (process,
    number)."""
    with scratch(folder) as path:
        queue = make(kind, path, durability)
        if prepare:
            prepare(queue)
        queue.close()

        def work(process: int, wait: Callable[[], object]) -> Worked:
            queue = make(kind, path, durability)
            # Distinct in each call, so that whoever drops equal values has none to drop.
            payload = random.Random(process).randbytes(size - 16)
            wait()
            taken: list[int] = []
            number, begun = 0, perf_counter()
            until = begun + seconds
            while (now := perf_counter()) < until:
                data = payload + b"%016d" % number
                if latencies:
                    before = perf_counter_ns()
                    queue.add(keys(process, number), data)
                    taken.append(perf_counter_ns() - before)
                else:
                    queue.add(keys(process, number), data)
                number += 1
            queue.close()
            return Worked(number, now - begun, taken)

        return in_processes(processes, work)


def taking(
    kind: type[Queue], durability: str, folder: Path, *, elements: int, seconds: float, size: int
) -> float:
    """Return how many elements a second are taken and acknowledged, of so many that wait, until they or the
    seconds end."""
    with scratch(folder) as path:
        fill(kind, durability, path, elements, size)
        queue = make(kind, path, durability)
        first = queue.take()  # opening, and becoming the consumer, is not what is measured here
        queue.ack(first)
        number, begun = 0, perf_counter()
        until = begun + seconds
        while (now := perf_counter()) < until:
            token = queue.take()
            if token is None:
                break
            queue.ack(token)
            number += 1
        queue.close()
        return number / (now - begun)


def end_to_end(kind: type[Queue], durability: str, folder: Path, *, elements: int, size: int) -> float:
    """Return how many elements a second get from one producer through one consumer, both at work at once.

    Two processes; two threads where the queue is one process's alone.
    """
    with scratch(folder) as path:
        payload = random.Random(1).randbytes(size - 16)

        def produce(queue: Queue) -> None:
            for number in range(elements):
                queue.add(f"key{number}", payload + b"%016d" % number)

        def consume(queue: Queue) -> None:
            for _ in range(elements):
                while (token := queue.take()) is None:
                    os.sched_yield()
                queue.ack(token)

        queue = make(kind, path, durability)
        if not kind.shared:
            begun = perf_counter()
            producer = threading.Thread(target=produce, args=[queue])
            producer.start()
            consume(queue)
            producer.join()
            return elements / (perf_counter() - begun)
        queue.close()

        def work(process: int, wait: Callable[[], object]) -> Worked:
            queue = make(kind, path, durability)
            wait()
            begun = perf_counter()
            (consume if process else produce)(queue)
            seconds = perf_counter() - begun
            queue.close()
            return Worked(elements, seconds, [])

        return elements / max(worked.seconds for worked in in_processes(2, work))


def fill(kind: type[Queue], durability: str, path: Path, elements: int, size: int) -> None:
    """Put so many elements into a queue, in the quickest way it has."""
    quick = "quick" if "quick" in kind.classes else durability
    queue = make(kind, path, quick)
    payload = random.Random(2).randbytes(size - 16)
    queue.add_many([(f"key{number}", payload + b"%016d" % number) for number in range(elements)])
    queue.close()


def in_processes(processes: int, work: Callable[[int, Callable[[], object]], Worked]) -> list[Worked]:
    """Run `work(number, wait)` in so many processes, which all go on from `wait` at once; return what each
    returns."""
    barrier = FORK.Barrier(processes)

    def run(number: int, sender: Any) -> None:
        try:
            result: Any = work(number, lambda: barrier.wait(120))
        except Exception as error:
            result = RuntimeError(f"process {number}: {type(error).__name__}: {error}")
        sender.send(result)

    running, receivers = [], []
    for number in range(processes):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=run, args=[number, sender])
        process.start()
        sender.close()  # so that a process that dies is an end of file here
        running.append(process)
        receivers.append(receiver)
    try:
        return _results(receivers)
    finally:
        for process in running:
            process.kill()  # those that still wait for one that failed
            process.join()


def _results(receivers: list[Any]) -> list[Worked]:
    """Return what each process sends, in their order; raise what the first that fails sends."""
    results: dict[Any, Worked] = {}
    until = monotonic() + PATIENCE
    while len(results) < len(receivers):
        ready = wait_for([receiver for receiver in receivers if receiver not in results], until - monotonic())
        if not ready:
            raise TimeoutError(
                f"{len(receivers) - len(results)} of {len(receivers)} processes are not done after "
                f"{PATIENCE} s"
            )
        for receiver in ready:
            try:
                result = receiver.recv()
            except EOFError:
                raise RuntimeError("a process died before it was done") from None
            if isinstance(result, Exception):
                raise result
            results[receiver] = result
    return [results[receiver] for receiver in receivers]
