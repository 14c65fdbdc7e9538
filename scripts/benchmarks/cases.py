"""The cases in which queues are compared, each as an object in Python. Each returns groups of figures, and
says what a group is to reach; the targets are those of the project's plan, as it writes them."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from threading import Thread
from time import perf_counter

from fsinbox import AsyncInbox

from . import bare, consuming
from .bare import BareCalls
from .bench import BARE, OURS, SQLITE, Bench, each, label, libraries
from .processes import adding, end_to_end, fill, rate, scratch, taking
from .queues import (
    DURABLE,
    QUICK,
    BareSQLite,
    BareSQLiteLazyConsumer,
    DirQ,
    Draft,
    Fsinbox,
    FsinboxVolatile,
    PersistAck,
    Queue,
    make,
    peers,
)
from .results import Case, Group, Target

TOGETHER = 8
"""Threads, and tasks, that share one inbox."""


def durable_add(bench: Bench) -> Case:
    """1. An add that survives a power cut, by 1, 4 and 16 processes at once; by threads, and by tasks."""
    case = Case(1, "Durable add, by several producers at once")
    kinds = [Fsinbox, BareCalls, *peers(DURABLE, lambda kind: kind.shared)]
    for size in (200, 65536):
        for processes in bench.scale.producers:
            targets = [
                Target("within 1.1x of the bare calls", OURS, [BARE], at_least=1 / 1.1),
                Target("beside bare SQLite FULL", OURS, [SQLITE]),
            ]
            if processes == 16:
                targets[1:] = [
                    Target("3x bare SQLite FULL", OURS, [SQLITE], at_least=3),
                    Target("ahead of every library", OURS, libraries(kinds), at_least=1),
                ]
            contenders = each(
                kinds, _adds, bench, DURABLE, processes=processes, seconds=bench.scale.seconds, size=size
            )
            title = f"{processes} producer{'s' * (processes > 1)}, {label(size)}"
            case.groups.append(bench.group(title, "adds/s", contenders, *targets))
    one, threads, tasks = "fsinbox, 1 thread", f"fsinbox, {TOGETHER} threads", f"fsinbox, {TOGETHER} tasks"
    case.groups.append(
        bench.group(
            "one process, 200 B",
            "adds/s",
            {
                one: partial(_by_threads, bench, 1),
                threads: partial(_by_threads, bench, TOGETHER),
                tasks: partial(_by_tasks, bench),
            },
            Target(f"{TOGETHER} threads: 3x of one", threads, [one], at_least=3),
            Target(f"asyncio, {TOGETHER} tasks: 3x of one", tasks, [one], at_least=3),
        )
    )
    return case


def _adds(kind: type[Queue], bench: Bench, durability: str, **how: object) -> float:
    return rate(adding(kind, durability, bench.folder, **how))  # type: ignore[arg-type]


def _by_threads(bench: Bench, threads: int) -> float:
    """Return the durable adds a second of some threads that share an inbox."""
    with scratch(bench.folder) as path:
        queue = make(Fsinbox, path, DURABLE)
        counts = [0] * threads
        begun = perf_counter()

        def work(thread: int) -> None:
            while perf_counter() < begun + bench.scale.seconds:
                queue.add(f"p{thread}-{counts[thread]}", bytes(200))
                counts[thread] += 1

        workers = [Thread(target=work, args=[thread]) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = perf_counter() - begun
        queue.close()
    return sum(counts) / seconds


def _by_tasks(bench: Bench) -> float:
    """The same of tasks in an event loop."""

    async def work(inbox: AsyncInbox, task: int, until: float) -> int:
        number = 0
        while perf_counter() < until:
            await inbox.add(f"p{task}-{number}", bytes(200))
            number += 1
        return number

    async def run(path: Path) -> float:
        async with AsyncInbox(path / "inbox", codec="bytes") as inbox:
            begun = perf_counter()
            until = begun + bench.scale.seconds
            done = await asyncio.gather(*(work(inbox, task, until) for task in range(TOGETHER)))
            return sum(done) / (perf_counter() - begun)

    with scratch(bench.folder) as path:
        return asyncio.run(run(path))


def durable_many(bench: Bench) -> Case:
    """2. Many adds in one call."""
    elements = bench.scale.elements * 5
    one_by_one = f"{SQLITE}, one by one"

    def many(kind: type[Queue]) -> float:
        with scratch(bench.folder) as path:
            queue = make(kind, path, DURABLE)
            items = [(f"key{number}", bytes(184) + b"%016d" % number) for number in range(elements)]
            begun = perf_counter()
            queue.add_many(items)
            seconds = perf_counter() - begun
            queue.close()
        return elements / seconds

    contenders = each((Fsinbox, BareCalls), many) | {
        f"{SQLITE}, one transaction": partial(many, BareSQLite),
        one_by_one: partial(_adds, BareSQLite, bench, DURABLE, seconds=bench.scale.seconds, size=200),
    }
    group = bench.group(
        f"{elements:,} elements, 200 B",
        "adds/s",
        contenders,
        Target("6x bare SQLite FULL committing one by one", OURS, [one_by_one], at_least=6),
    )
    return Case(2, "Durable add_many", [group])


def durable_take(bench: Bench) -> Case:
    """3. Take and acknowledge, with the promise that nothing is missed after a power cut."""
    case = Case(3, "Take and acknowledge, durable: each at least once after a power cut")
    lazy = BareSQLiteLazyConsumer
    kinds = [Fsinbox, BareCalls, lazy, *peers(DURABLE, lambda kind: kind.acknowledges)]
    scale = bench.scale
    for size, elements in ((200, scale.elements), (65536, scale.elements // 4)):
        contenders = each(
            kinds, taking, DURABLE, bench.folder, elements=elements, seconds=scale.seconds, size=size
        )
        case.groups.append(
            bench.group(
                label(size),
                "elements/s",
                contenders,
                Target("14x bare SQLite FULL", OURS, [SQLITE], at_least=14),
                Target("level with SQLite whose consumer is NORMAL", OURS, [lazy.name], at_least=1),
                Target("ahead of every library of the same promise", OURS, libraries(kinds), at_least=1),
            )
        )
    return case


def compare(bench: Bench) -> Case:
    """4. The first question: how does it compare, from one process that adds to another that takes?"""
    case = Case(4, "From end to end: one process adds, another takes and acknowledges")
    for durability, size in ((DURABLE, 200), (QUICK, 200), (QUICK, 65536)):
        kinds = [Fsinbox, BareCalls, *peers(durability)]
        elements = bench.scale.elements // (3 if durability == DURABLE else 1)
        others = libraries(kind for kind in kinds if kind is not DirQ)
        targets = [Target("beside the best library", OURS, others)]
        if durability == QUICK:
            targets = [
                Target("1.05x of dirq, whose elements have no keys", OURS, [DirQ.name], at_least=1.05),
                Target("ahead of every other library", OURS, others, at_least=1),
            ]
        title = f"{'durable' if durability == DURABLE else 'not durable'}, {label(size)}"
        contenders = each(kinds, end_to_end, durability, bench.folder, elements=elements, size=size)
        case.groups.append(bench.group(title, "elements/s", contenders, *targets))
    return case


def overhead(bench: Bench) -> Case:
    """5. What the code costs beside the system calls it makes."""
    case = Case(5, "Own overhead, beside the same system calls in a bare loop")
    elements = bench.scale.elements

    def cost(kind: type[Queue], step: str) -> float:
        """Microseconds of one step."""
        with scratch(bench.folder) as path:
            queue = make(kind, path, QUICK)
            data = bytes(200)
            queue.add("first", data)
            queue.ack(queue.take())  # opens what is opened at first use
            begun = perf_counter()
            for number in range(elements):
                queue.add(f"key{number}", data)
            if step == "replace":
                begun = perf_counter()
                for number in range(elements):
                    queue.add(f"key{number}", data)
            if step == "take + ack":
                begun = perf_counter()
                for _ in range(elements):
                    queue.ack(queue.take())
            seconds = perf_counter() - begun
            queue.close()
        return seconds / elements * 1e6

    def in_c(step: str) -> float:
        with scratch(bench.folder) as path:
            return bare.in_c(path, elements)[step]

    for step in ("add", "take + ack", "replace"):
        contenders = each((Fsinbox, BareCalls), cost, step)
        if step != "replace" and bare.compiler():
            contenders["bare system calls, in C"] = partial(in_c, step)
        group = bench.group(
            f"new {step}" if step == "add" else step,
            "us",
            contenders,
            Target("1.15x of the bare calls", OURS, [BARE], at_most=1.15),
            more_is_better=False,
            rounds=bench.scale.rounds * 2,
        )
        for kind in (Fsinbox, BareCalls) if shutil.which("strace") else ():
            with scratch(bench.folder) as path:
                counted = bare.calls(kind, step, path / "counted")
            calls = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
            group.notes.append(f"{kind.name}: {sum(counted.values())} system calls ({calls})")
        case.groups.append(group)
    case.groups.append(_consume(bench))
    return case


def _consume(bench: Bench) -> Group:
    """An empty handler, beside the same takes and acknowledgements in a program."""
    elements = bench.scale.elements * 2

    def consume(*words: str) -> float:
        with scratch(bench.folder) as path:
            fill(Fsinbox, QUICK, path, elements, 200)
            return consuming.handled(path, "empty", *words) * 1e6

    def library() -> float:
        return 1e6 / taking(Fsinbox, QUICK, bench.folder, elements=elements, seconds=60, size=200)

    alone, one, two = "fsinbox, in a program", "fsinbox consume", "fsinbox consume --processes 2"
    return bench.group(
        "an empty handler, an element",
        "us",
        {alone: library, one: consume, two: partial(consume, "--processes", "2")},
        Target("consume: at most 1.5x of take + ack in a program", one, [alone], at_most=1.5),
        Target("--processes: at most 3x of take + ack in a program", two, [alone], at_most=3),
        more_is_better=False,
    )


def replace(bench: Bench) -> Case:
    """6. A value for a key that waits."""
    case = Case(6, "Replace the value of a key that waits, again and again")
    wanted = {
        QUICK: [
            Target("0.35x of SQLite without flushes", OURS, [SQLITE], at_least=0.35),
            Target(
                "volatile=True: 0.35x of SQLite without flushes",
                FsinboxVolatile.name,
                [SQLITE],
                at_least=0.35,
            ),
        ],
        DURABLE: [
            Target("1.5x of the SQLAlchemy draft", OURS, [Draft.name], at_least=1.5),
            Target("0.7x of bare SQLite FULL", OURS, [SQLITE], at_least=0.7),
        ],
    }
    for durability, targets in wanted.items():
        volatile = [FsinboxVolatile] * (durability == QUICK)
        kinds = [Fsinbox, *volatile, BareCalls, *peers(durability, lambda kind: kind.replaces)]
        contenders = each(
            kinds, _adds, bench, durability, seconds=bench.scale.seconds, size=200, keys=lambda *_: "hot"
        )
        case.groups.append(bench.group(f"one hot key, {durability}", "adds/s", contenders, *targets))
    return case


def fairness(bench: Bench) -> Case:
    """9. The slowest add of sixteen producers, and the slowest producer."""
    case = Case(9, "Sixteen producers on one inbox: the tail, and the slowest of them")

    def crowd(kind: type[Queue], durability: str) -> tuple[float, float]:
        done = adding(
            kind,
            durability,
            bench.folder,
            processes=bench.scale.producers[-1],
            seconds=bench.scale.seconds * 5,
            size=200,
            latencies=True,
        )
        latencies = sorted(latency for worked in done for latency in worked.latencies)
        counts = [worked.operations for worked in done]
        p99 = quantiles(latencies, n=100, method="inclusive")[98] if len(latencies) > 1 else latencies[0]
        return p99 / median(latencies), min(counts) * len(counts) / sum(counts) * 100

    for durability, also in ((DURABLE, [Draft, PersistAck]), (QUICK, [])):
        tail = Group(f"{durability}: p99 of add, in multiples of its p50", "x", more_is_better=False)
        slowest = Group(f"{durability}: adds of the slowest producer, as a share of the mean", "%")
        bench.interleave(
            [tail, slowest],
            each([Fsinbox, BareCalls, BareSQLite, *also], crowd, durability),
            min(3, bench.scale.rounds),
        )
        slowest.targets.append(Target("no producer under 80 % of the mean", OURS, at_least=80))
        if durability == QUICK:  # nobody sleeps: the tail is the scheduler's, and the bare calls have it, too
            tail.targets.append(
                Target("beside the bare calls: what is not the scheduler's part", OURS, [BARE], at_most=1.1)
            )
        else:
            tail.targets.append(Target("p99 at most 10x p50", OURS, at_most=10))
        case.groups += [tail, slowest]
    return case
