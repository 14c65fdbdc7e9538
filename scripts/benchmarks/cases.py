"""The twelve cases, and the first question. Each returns groups of figures, and says what a group is to
reach."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

from . import bare, consuming
from .bare import BareCalls
from .processes import Worked, adding, end_to_end, fill, rate, scratch, taking
from .queues import (
    DURABLE,
    QUICK,
    BareSQLite,
    BareSQLiteLazyConsumer,
    Draft,
    Fsinbox,
    FsinboxVolatile,
    PersistAck,
    Queue,
    make,
    peers,
)
from .results import Case, Group, Target

SIZES = {"200 B": 200, "64 KiB": 65536}
OURS, BARE, SQLITE = Fsinbox.name, BareCalls.name, BareSQLite.name


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a slice in which adds are counted."""
    elements: int
    """That are taken, or go from end to end, in a slice."""
    depths: tuple[int, ...]
    wakes: int
    idle: float
    """Seconds for which an idle consumer is watched."""
    starts: int
    waits: int
    """Elements whose handler waits 10 ms."""
    largest: int
    """Bytes of the largest file that is added."""
    producers: tuple[int, ...] = (1, 4, 16)


FULL = Scale(5, 0.6, 3_000, (1_000, 100_000, 1_000_000), 300, 20.0, 25, 1_600, 1 << 30)
BRIEF = replace_fields(FULL, rounds=3, elements=1_000)
TINY = Scale(1, 0.05, 60, (10, 50, 100), 5, 0.5, 1, 16, 1 << 22, (1, 4))


@dataclass
class Bench:
    """What a case gets to work with."""

    scale: Scale
    folder: Path
    root: Path
    """Of the project, where its scripts are."""
    say: Callable[[str], object]

    def interleave(self, group: Group, contenders: dict[str, Callable[[], float]], rounds: int = 0) -> Group:
        """Run every contender once a round, each round in another order, and keep what each returns."""
        rounds = rounds or self.scale.rounds
        group.figures = {name: [] for name in contenders}
        for turn in range(rounds):
            self.say(f"{group.title}: round {turn + 1} of {rounds}")
            order = list(contenders)
            random.Random(turn).shuffle(order)
            for name in order:
                group.figures[name].append(contenders[name]())
        return group


def names(kinds: Iterable[type[Queue]]) -> list[str]:
    """Return the names of contenders."""
    return [kind.name for kind in kinds]


def libraries(kinds: list[type[Queue]]) -> list[str]:
    """Return the names of those that are more than bare calls: what a user would install, or write."""
    return [
        kind.name for kind in kinds if kind not in (Fsinbox, BareCalls) and not issubclass(kind, BareSQLite)
    ]


def is_shared(kind: type[Queue]) -> bool:
    return kind.shared


def acknowledges(kind: type[Queue]) -> bool:
    return kind.acknowledges


def replaces(kind: type[Queue]) -> bool:
    return kind.replaces


def compare(bench: Bench) -> Case:
    """0. The first question: how does it compare, from one process that adds to another that takes?"""
    case = Case(0, "From end to end: one process adds, another takes and acknowledges")
    for durability, label in ((DURABLE, "200 B"), (QUICK, "200 B"), (QUICK, "64 KiB")):
        kinds = [Fsinbox, BareCalls, *peers(durability)]
        group = Group(f"{'durable' if durability == DURABLE else 'not durable'}, {label}", "elements/s")
        group.targets.append(Target("ahead of every library", OURS, libraries(kinds), at_least=1))

        def work(kind: type[Queue], durability: str = durability, size: int = SIZES[label]) -> float:
            elements = bench.scale.elements // (3 if durability == DURABLE else 1)
            return end_to_end(kind, durability, bench.folder, elements=elements, size=size)

        case.groups.append(
            bench.interleave(group, {kind.name: lambda kind=kind: work(kind) for kind in kinds})
        )
    return case


def durable_add(bench: Bench) -> Case:
    """1. An add that survives a power cut, by 1, 4 and 16 processes at once."""
    case = Case(1, "Durable add, by several producers at once")
    kinds = [Fsinbox, BareCalls, *peers(DURABLE, is_shared)]
    for label, size in SIZES.items():
        for processes in bench.scale.producers:
            targets = [
                Target("ahead of every library of the same promise", OURS, libraries(kinds), at_least=1)
            ]
            if processes == 16 and size == 200:
                targets.append(Target("4x bare SQLite FULL", OURS, [SQLITE], at_least=4))
            if processes == 1 and size == 200:
                targets.append(Target("0.8x bare SQLite FULL", OURS, [SQLITE], at_least=0.8))
            producers = "1 producer" if processes == 1 else f"{processes} producers"
            group = Group(f"{producers}, {label}", "adds/s", targets=targets)

            def add(kind: type[Queue], processes: int = processes, size: int = size) -> float:
                return rate(
                    adding(
                        kind,
                        DURABLE,
                        bench.folder,
                        processes=processes,
                        seconds=bench.scale.seconds,
                        size=size,
                    )
                )

            case.groups.append(
                bench.interleave(group, {kind.name: lambda kind=kind: add(kind) for kind in kinds})
            )
    return case


def durable_many(bench: Bench) -> Case:
    """2. Many adds in one call."""
    case = Case(2, "Durable add_many")
    elements = bench.scale.elements * 10 // 3
    one_by_one = "bare SQLite, one by one"
    in_one = "bare SQLite, one transaction"
    group = Group(
        f"{elements:,} elements, 200 B",
        "adds/s",
        targets=[
            Target("5x bare SQLite FULL committing one by one", OURS, [one_by_one], at_least=5),
            Target("within 1.3x of the bare calls", OURS, [BARE], at_least=1 / 1.3),
        ],
    )

    def many(kind: type[Queue]) -> float:
        with scratch(bench.folder) as path:
            queue = make(kind, path, DURABLE)
            items = [(f"key{number}", bytes(184) + b"%016d" % number) for number in range(elements)]
            begun = perf_counter()
            queue.add_many(items)
            seconds = perf_counter() - begun
            queue.close()
        return elements / seconds

    def one(kind: type[Queue]) -> float:
        return rate(adding(kind, DURABLE, bench.folder, seconds=bench.scale.seconds, size=200))

    contenders: dict[str, Callable[[], float]] = {
        kind.name: lambda kind=kind: many(kind) for kind in (Fsinbox, BareCalls)
    }
    contenders |= {in_one: lambda: many(BareSQLite), one_by_one: lambda: one(BareSQLite)}
    case.groups.append(bench.interleave(group, contenders))
    return case


def durable_take(bench: Bench) -> Case:
    """3. Take and acknowledge, with the promise that nothing is missed after a power cut."""
    case = Case(3, "Take and acknowledge, durable: each at least once after a power cut")
    kinds = [Fsinbox, BareCalls, BareSQLiteLazyConsumer, *peers(DURABLE, acknowledges)]
    for label, size in SIZES.items():
        group = Group(
            label,
            "elements/s",
            targets=[
                Target("10x bare SQLite FULL", OURS, [SQLITE], at_least=10),
                Target("ahead of every library of the same promise", OURS, libraries(kinds), at_least=1),
            ],
        )

        def take(kind: type[Queue], size: int = size) -> float:
            return taking(
                kind,
                DURABLE,
                bench.folder,
                elements=bench.scale.elements,
                seconds=bench.scale.seconds,
                size=size,
            )

        case.groups.append(
            bench.interleave(group, {kind.name: lambda kind=kind: take(kind) for kind in kinds})
        )
    return case


def quick(bench: Bench) -> Case:
    """4. Without flushes: add, take and acknowledge, and both at once from end to end."""
    case = Case(4, "Not durable: add, take and acknowledge, end to end")
    kinds = [Fsinbox, BareCalls, *peers(QUICK)]
    elements, seconds = bench.scale.elements, bench.scale.seconds
    for label, size in SIZES.items():
        steps: dict[str, tuple[str, Callable[[type[Queue]], float]]] = {
            "add": (
                "adds/s",
                lambda kind, size=size: rate(adding(kind, QUICK, bench.folder, seconds=seconds, size=size)),
            ),
            "take + ack": (
                "elements/s",
                lambda kind, size=size: taking(
                    kind, QUICK, bench.folder, elements=elements, seconds=seconds, size=size
                ),
            ),
            "end to end": (
                "elements/s",
                lambda kind, size=size: end_to_end(kind, QUICK, bench.folder, elements=elements, size=size),
            ),
        }
        for title, (unit, step) in steps.items():
            group = Group(f"{title}, {label}", unit)
            if title == "end to end":
                group.targets.append(Target("ahead of every library", OURS, libraries(kinds), at_least=1))
            contenders = {kind.name: lambda kind=kind, step=step: step(kind) for kind in kinds}
            case.groups.append(bench.interleave(group, contenders))
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
            added = perf_counter()
            for number in range(elements if step == "replace" else 0):
                queue.add(f"key{number}", data)
            replaced = perf_counter()
            for _ in range(elements if step == "take + ack" else 0):
                queue.ack(queue.take())
            taken = perf_counter()
            queue.close()
        seconds = {"add": added - begun, "replace": replaced - added, "take + ack": taken - replaced}[step]
        return seconds / elements * 1e6

    def in_c(step: str) -> float:
        with scratch(bench.folder) as path:
            return bare.in_c(path, elements)[step]

    for step in ("add", "take + ack", "replace"):
        group = Group(
            f"new {step}" if step == "add" else step,
            "us",
            more_is_better=False,
            targets=[Target("1.25x of the bare calls", OURS, [BARE], at_most=1.25)]
            if step != "replace"
            else [],
        )
        contenders: dict[str, Callable[[], float]] = {
            kind.name: lambda kind=kind, step=step: cost(kind, step) for kind in (Fsinbox, BareCalls)
        }
        if step != "replace" and bare.compiler():
            contenders["bare system calls, in C"] = lambda step=step: in_c(step)
        bench.interleave(group, contenders)
        if shutil.which("strace"):
            for kind in (Fsinbox, BareCalls):
                with scratch(bench.folder) as path:
                    counted = bare.calls(kind, step, path / "counted")
                calls = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
                group.notes.append(f"{kind.name}: {sum(counted.values())} system calls ({calls})")
        case.groups.append(group)
    return case


def replace(bench: Bench) -> Case:
    """6. A value for a key that waits."""
    case = Case(6, "Replace the value of a key that waits")
    crowd = bench.scale.depths[1]

    def hot(kind: type[Queue], durability: str, keys: int, among: int) -> float:
        def prepare(queue: Queue) -> None:
            queue.add_many([(f"cold{number}", b"%0200d" % number) for number in range(among)])

        return rate(
            adding(
                kind,
                durability,
                bench.folder,
                seconds=bench.scale.seconds,
                size=200,
                keys=lambda _, number: f"hot{number % keys}",
                prepare=prepare,
            )
        )

    for durability in (DURABLE, QUICK):
        theirs = peers(durability, replaces)
        kinds = [Fsinbox, *[FsinboxVolatile] * (durability == QUICK), BareCalls, *theirs]
        for keys, among in ((1, 0), (100, crowd)):
            title = f"{durability}: " + ("one hot key" if keys == 1 else f"{keys} hot keys among {among:,}")
            group = Group(
                title,
                "adds/s",
                targets=[Target("ahead of every peer that can replace", OURS, names(theirs), at_least=1)],
            )
            contenders = {
                kind.name: lambda kind=kind, durability=durability, keys=keys, among=among: hot(
                    kind, durability, keys, among
                )
                for kind in (kinds if keys == 1 else [kind for kind in kinds if kind is not Draft])
            }
            group.targets = [
                Target(
                    target.text, OURS, [name for name in target.theirs if name in contenders], target.at_least
                )
                for target in group.targets
            ]
            case.groups.append(bench.interleave(group, contenders))
    return case


def depth(bench: Bench) -> Case:
    """7. Whether it matters how many wait."""
    case = Case(7, "Depth: a thousand waiting, a hundred thousand, a million")
    few, many = bench.scale.depths[0], bench.scale.depths[-1]
    labels = {number: f"{number:,} waiting" for number in bench.scale.depths}
    adds = Group("add", "us", more_is_better=False)
    takes = Group("take + ack", "us", more_is_better=False)
    opening = Group("open and first take, in a fresh process", "s", more_is_better=False)
    memory = Group(
        "memory of a consumer at its peak, for each element that waits", "bytes", more_is_better=False
    )
    producer = Group("memory of a producer", "MiB", more_is_better=False)
    for group, what in ((adds, "add"), (takes, "take")):
        group.targets.append(
            Target(
                f"{what}: at a million at most 1.5x of a thousand's", labels[many], [labels[few]], at_most=1.5
            )
        )
    opening.targets.append(Target("under 2 s at a million", labels[many], at_most=2))
    memory.targets.append(Target("under 150 bytes at a million", labels[many], at_most=150))
    producer.targets.append(Target("flat", labels[many], [labels[few]], at_most=1.05))
    operations = min(1000, few // 2)
    with scratch(bench.folder) as top:
        for number in bench.scale.depths:
            for group in (adds, takes, opening, producer):
                group.figures[labels[number]] = []
            bench.say(f"filling an inbox with {number:,}")
            (top / str(number)).mkdir()
            fill(Fsinbox, QUICK, top / str(number), number, 200)
        os.sync()
        for turn in range(bench.scale.rounds):
            for number in random.Random(turn).sample(bench.scale.depths, len(bench.scale.depths)):
                bench.say(f"depth {number:,}: round {turn + 1} of {bench.scale.rounds}")
                path, label = top / str(number), labels[number]
                first, peak = consuming.first_take(path)
                opening.figures.setdefault(label, []).append(first)
                added, kept = consuming.added(path, turn, operations)
                adds.figures.setdefault(label, []).append(added)
                producer.figures.setdefault(label, []).append(kept)
                takes.figures.setdefault(label, []).append(consuming.taken(path, operations))
                if number == many:  # of fewer, what is there of itself would count for each
                    memory.figures.setdefault(label, []).append(peak / number)
    case.groups += [adds, takes, opening, memory, producer]
    return case


def wake_up(bench: Bench) -> Case:
    """8. From `mv` to the handler's first line, and what being ready for it costs."""
    case = Case(8, "Wake-up of an idle consumer, from mv to the handler's first line")
    halves, ninety_nine = (
        Group("median", "ms", more_is_better=False),
        Group("99th percentile", "ms", more_is_better=False),
    )
    ways = {
        "fsinbox consume, mv into drop/": consuming.wakes_by_mv,
        "fsinbox consume, add": consuming.wakes_by_add,
        "watchdog, its default observer": consuming.wakes_of_watchdog,
        "bare inotify, in Python: nothing is done": consuming.wakes_of_inotify,
    }
    mv = next(iter(ways))
    halves.targets.append(Target("p50 under 0.7 ms", mv, at_most=0.7))
    ninety_nine.targets.append(Target("p99 under 5 ms", mv, at_most=5))
    for turn in range(bench.scale.rounds):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            bench.say(f"{name}: round {turn + 1} of {bench.scale.rounds}")
            with scratch(bench.folder) as path:
                latencies = sorted(
                    ways[name](path, bench.root, max(2, bench.scale.wakes // bench.scale.rounds))
                )
            halves.figures.setdefault(name, []).append(median(latencies) * 1e3)
            ninety_nine.figures.setdefault(name, []).append(
                quantiles(latencies, n=100, method="inclusive")[98] * 1e3
            )
    bench.say(f"an idle consumer, for {bench.scale.idle:g} s")
    idle = Group("context switches of an idle consumer", "a second", more_is_better=False)
    with scratch(bench.folder) as path:
        switches = consuming.switches_while_idle(path, bench.root, bench.scale.idle)
    idle.figures["fsinbox consume"] = [switches]
    # The stated rescan is every 30 s, and takes a few: it may fall into what is watched.
    idle.targets.append(
        Target("0 a second, but for the rescan every 30 s", "fsinbox consume", at_most=10 / bench.scale.idle)
    )
    case.groups += [halves, ninety_nine, idle]
    return case


def fairness(bench: Bench) -> Case:
    """9. The slowest add of sixteen producers, and the slowest producer."""
    case = Case(9, "Sixteen producers on one inbox: the tail, and the slowest of them")
    processes = bench.scale.producers[-1]
    ways = {"new keys": "p{}-{}".format, "the same keys": lambda _, number: f"key{number % 100}"}
    for durability in (DURABLE, QUICK):
        for title, keys in ways.items():
            tail = Group(
                f"{durability}, {title}: p99 of add, in multiples of its p50", "x", more_is_better=False
            )
            slowest = Group(
                f"{durability}, {title}: adds of the slowest producer, as a share of the mean", "%"
            )
            kinds: list[type[Queue]] = [Fsinbox, BareCalls, BareSQLite]
            if durability == DURABLE:
                kinds += [Draft, PersistAck]
            for turn in range(bench.scale.rounds):
                bench.say(f"{tail.title}: round {turn + 1} of {bench.scale.rounds}")
                for kind in random.Random(turn).sample(kinds, len(kinds)):
                    done = adding(
                        kind,
                        durability,
                        bench.folder,
                        processes=processes,
                        seconds=bench.scale.seconds * 3,
                        size=200,
                        keys=keys,
                        latencies=True,
                    )
                    worst, share = _tail(done)
                    tail.figures.setdefault(kind.name, []).append(worst)
                    slowest.figures.setdefault(kind.name, []).append(share * 100)
            if durability == DURABLE:
                tail.targets.append(Target("p99 at most 10x p50", OURS, at_most=10))
            slowest.targets.append(
                Target("no producer starves: half of the mean at least", OURS, at_least=50)
            )
            case.groups += [tail, slowest]
    return case


def _tail(done: list[Worked]) -> tuple[float, float]:
    latencies = sorted(latency for worked in done for latency in worked.latencies)
    counts = [worked.operations for worked in done]
    p99 = quantiles(latencies, n=100, method="inclusive")[98] if len(latencies) > 1 else latencies[0]
    return p99 / median(latencies), min(counts) * len(counts) / sum(counts)


def cold(bench: Bench) -> Case:
    """10. A whole process that adds one element."""
    case = Case(10, "Cold start: a whole process that adds one element")
    bin = Path(sys.executable).parent
    group = Group("durable, 200 B", "ms", more_is_better=False)
    nothing, ours, shell, empty = "python -c pass", "fsinbox add", "scripts/fsinbox-add", "sh -c :"
    group.targets += [
        Target("fsinbox add: 1.6x of python -c pass", ours, [nothing], at_most=1.6),
        Target("fsinbox-add: 10 ms", shell, at_most=10),
    ]
    commands = {
        nothing: [sys.executable, "-c", "pass"],
        ours: [bin / "fsinbox", "--inbox", "inbox", "add", "{key}", "x" * 200],
        "python -c 'from fsinbox import Inbox; ...'": [
            sys.executable,
            "-c",
            "import sys; from fsinbox import Inbox; Inbox('inbox', codec='text').add(sys.argv[1], "
            "sys.argv[2])",
            "{key}",
            "x" * 200,
        ],
        "python -c, sqlite3, WAL, FULL": [
            sys.executable,
            "-c",
            "import sys, sqlite3; db = sqlite3.connect('q.db', isolation_level=None); db.execute('PRAGMA "
            "journal_mode=WAL'); "
            "db.execute('CREATE TABLE IF NOT EXISTS q (key PRIMARY KEY, value)'); "
            "db.execute('INSERT OR REPLACE INTO q VALUES (?, ?)', sys.argv[1:])",
            "{key}",
            "x" * 200,
        ],
        "python -c, persist-queue": [
            sys.executable,
            "-c",
            "import sys; from persistqueue import SQLiteAckQueue; SQLiteAckQueue('pq').put(sys.argv[1:])",
            "{key}",
            "x" * 200,
        ],
        empty: ["sh", "-c", ":"],
        shell: ["sh", bench.root / "scripts" / "fsinbox-add", "--inbox", "inbox", "{key}", "x" * 200],
    }
    with scratch(bench.folder) as path:
        make(Fsinbox, path, DURABLE).close()
        serial = iter(range(10**9))

        def run(words: list[str | Path]) -> float:
            key = f"key{next(serial)}"
            return consuming.whole_process([str(word).format(key=key) for word in words], path) * 1e3

        contenders = {name: partial(run, words) for name, words in commands.items()}
        for contender in contenders.values():
            contender()  # once for the cache
        case.groups.append(bench.interleave(group, contenders, bench.scale.starts))
    return case


def concurrency(bench: Bench) -> Case:
    """11. Handlers that wait, eight at a time."""
    case = Case(11, "consume --concurrency 8, with a handler that waits 10 ms")
    group = Group("of what eight handlers at once could do at best", "%")
    group.targets.append(Target("95 % of 8x", "fsinbox consume --concurrency 8", at_least=95))
    contenders = {}
    for threads in (1, 8):

        def share(threads: int = threads) -> float:
            with scratch(bench.folder) as path:
                fill(Fsinbox, QUICK, path, bench.scale.waits * threads // 8, 200)
                return consuming.share_of_ideal(path, bench.root, threads) * 100

        contenders[f"fsinbox consume --concurrency {threads}"] = share
    case.groups.append(bench.interleave(group, contenders))
    return case


def large(bench: Bench) -> Case:
    """12. Files of up to a gibibyte."""
    case = Case(12, "add_file(move=True) on one file system: no copy")
    sizes = [1 << 20, 1 << 25, bench.scale.largest]
    labels = {size: f"{size / (1 << 20):,.0f} MiB" for size in sizes}
    group = Group("durable; the file had been flushed", "ms", more_is_better=False)
    group.targets.append(Target("constant time", labels[sizes[-1]], [labels[sizes[0]]], at_most=1.5))
    copy = Group("for comparison: cp and a flush", "ms", more_is_better=False)
    with scratch(bench.folder) as path:
        queue = make(Fsinbox, path, DURABLE)
        assert isinstance(queue, Fsinbox)
        for size in sizes:
            with open(path / str(size), "wb") as file:
                for _ in range(size >> 20):
                    file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())

        def hand_over(size: int) -> float:
            begun = perf_counter()
            queue.inbox.add_file(labels[size], path / str(size), move=True)
            seconds = perf_counter() - begun
            element = queue.inbox.take()
            assert element is not None
            os.rename(element.path, path / str(size))
            element.ack()
            os.sync()
            return seconds * 1e3

        def copied(size: int) -> float:
            begun = perf_counter()
            shutil.copyfile(path / str(size), path / "copy")
            with open(path / "copy", "rb") as file:
                os.fsync(file.fileno())
            seconds = perf_counter() - begun
            os.unlink(path / "copy")
            return seconds * 1e3

        bench.interleave(
            group, {labels[size]: lambda size=size: hand_over(size) for size in sizes}, bench.scale.rounds * 4
        )
        bench.interleave(
            copy, {labels[size]: lambda size=size: copied(size) for size in sizes}, min(3, bench.scale.rounds)
        )
        queue.close()
    case.groups += [group, copy]
    return case


CASES: dict[int, Callable[[Bench], Case]] = dict(
    enumerate(
        (
            compare,
            durable_add,
            durable_many,
            durable_take,
            quick,
            overhead,
            replace,
            depth,
            wake_up,
            fairness,
            cold,
            concurrency,
            large,
        )
    )
)
