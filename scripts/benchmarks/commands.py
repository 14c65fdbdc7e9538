"""The cases in which fsinbox's commands are measured, each as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from statistics import median, quantiles
from time import perf_counter

from . import consuming, disks
from .bare import BareCalls
from .bench import Bench
from .processes import fill, scratch
from .queues import DURABLE, QUICK, Fsinbox, Queue, make
from .results import Case, Group, Target


def depth(bench: Bench) -> Case:
    """7. Whether it matters how many wait: to who adds and takes, and to who looks."""
    few, some, many = bench.scale.depths
    labels = {number: f"{number:,} waiting" for number in bench.scale.depths}

    def less(title: str, unit: str, *targets: Target) -> Group:
        return Group(title, unit, targets=list(targets), more_is_better=False)

    flat = partial(Target, ours=labels[many], theirs=[labels[few]])
    groups = [
        less("add", "us", flat("at a million at most 1.5x of a thousand's", at_most=1.5)),
        less("take + ack", "us", flat("at a million at most 1.5x of a thousand's", at_most=1.5)),
        less("open and first take", "s", Target("under 2 s at a million", labels[many], at_most=2)),
        less(
            "memory of a consumer, an element",
            "bytes",
            Target("under 150 at a million", labels[many], at_most=150),
        ),
        less("memory of a producer", "MiB", flat("flat", at_most=1.05)),
        less(
            "status",
            "s",
            Target("0.3 s at 100,000", labels[some], at_most=0.3),
            Target("3 s at a million", labels[many], at_most=3),
        ),
        less(
            "memory of status",
            "MiB",
            Target("bounded: under 128 MiB at a million", labels[many], at_most=128),
        ),
        less("ls --limit 40", "s", Target("0.1 s at 100,000", labels[some], at_most=0.1)),
        less("web, its first page", "s", Target("0.3 s at 100,000", labels[some], at_most=0.3)),
    ]
    operations = min(1000, few // 2)
    turns = iter(range(10**6))
    with scratch(bench.folder, keep=bench.is_fresh) as top:  # (removing a million files takes a minute)
        for number in bench.scale.depths:
            bench.say(f"filling an inbox with {number:,}")
            (top / str(number)).mkdir()
            fill(Fsinbox, QUICK, top / str(number), number, 200)
        os.sync()

        def look(number: int) -> tuple[float | None, ...]:
            path = top / str(number)
            first, peak = consuming.run("first_take", path)
            add, producer = consuming.run("added", path, next(turns), operations)
            take = consuming.run("taken", path, operations)
            status, memory = consuming.run("looked", path, "status")
            listed, _ = consuming.run("looked", path, "ls", "--limit", 40)
            # of fewer, what is there of itself would count for each
            own = peak / number if number == many else None
            return add, take, first, own, producer, status, memory, listed, consuming.page(path)

        contenders = {labels[number]: partial(look, number) for number in bench.scale.depths}
        bench.interleave(groups, contenders, min(3, bench.scale.rounds))
    return Case(7, "Depth: a thousand waiting, a hundred thousand, a million", groups)


def wake_up(bench: Bench) -> Case:
    """8. To the handler's first line, and what being ready for it costs."""
    add, mv = "fsinbox consume, add", "fsinbox consume, mv into drop/"
    ways = {
        mv: consuming.wakes_by_mv,
        add: consuming.wakes_by_add,
        "watchdog, its default observer": consuming.wakes_of_watchdog,
        "bare inotify, in Python: nothing is done": consuming.wakes_of_inotify,
    }

    def wake(name: str) -> tuple[float, float]:
        with scratch(bench.folder) as path:
            took = sorted(ways[name](path, max(2, bench.scale.wakes // bench.scale.rounds)))
        return median(took) * 1e3, quantiles(took, n=100, method="inclusive")[98] * 1e3

    halves = Group("median", "ms", more_is_better=False)
    halves.targets += [Target("add: 0.5 ms", add, at_most=0.5), Target("mv: 1.2 ms", mv, at_most=1.2)]
    last = Group("99th percentile", "ms", more_is_better=False)
    last.targets += [Target("add: 5 ms", add, at_most=5), Target("mv: 5 ms", mv, at_most=5)]
    bench.interleave([halves, last], {name: partial(wake, name) for name in ways})

    def idle() -> tuple[float, float]:
        with scratch(bench.folder) as path:
            return consuming.idle(path, bench.scale.idle)

    switches = Group("context switches of an idle consumer", "a second", more_is_better=False)
    # The stated rescan is every 30 s, and takes a few: it may fall into what is watched.
    bound = 10 / bench.scale.idle
    switches.targets.append(Target("none, but for the rescan every 30 s", "idle", at_most=bound))
    used = Group("CPU time of an idle consumer", "us a second", more_is_better=False)
    used.targets.append(Target("none, but for the rescan: under 0.1 %", "idle", at_most=1000))
    bench.interleave([switches, used], {"idle": idle}, 1)
    title = "Wake-up of an idle consumer, from add or mv to the handler's first line"
    return Case(8, title, [halves, last, switches, used])


def cold(bench: Bench) -> Case:
    """10. A whole process."""
    nothing, size = "python -c pass", "x" * 200
    python, ours = (
        sys.executable,
        [os.path.join(os.path.dirname(sys.executable), "fsinbox"), "--inbox", "inbox"],
    )
    in_python = "import sys; from fsinbox import Inbox; Inbox('inbox', codec='text').add(*sys.argv[1:])"
    in_sqlite = (
        "import sys, sqlite3; db = sqlite3.connect('q.db', isolation_level=None); "
        "db.execute('PRAGMA journal_mode=WAL'); "
        "db.execute('CREATE TABLE IF NOT EXISTS q (key PRIMARY KEY, value)'); "
        "db.execute('INSERT OR REPLACE INTO q VALUES (?, ?)', sys.argv[1:])"
    )
    commands: dict[str, list[str]] = {
        nothing: [python, "-c", "pass"],
        "fsinbox add": [*ours, "add", "{key}", size],
        "fsinbox status": [*ours, "status"],
        "fsinbox --help": [ours[0], "--help"],
        "python -c 'from fsinbox import Inbox; ...'": [python, "-c", in_python, "{key}", size],
        "python -c, sqlite3, WAL, FULL": [python, "-c", in_sqlite, "{key}", size],
        "sh -c :": ["sh", "-c", ":"],
        "scripts/fsinbox-add": ["sh", f"{bench.root}/scripts/fsinbox-add", *ours[1:], "{key}", size],
    }
    targets = [
        Target(f"{name}: {most:g}x of {nothing}", name, [nothing], at_most=most)
        for name, most in (("fsinbox add", 1.4), ("fsinbox status", 3), ("fsinbox --help", 3))
    ]
    with scratch(bench.folder) as path:
        make(Fsinbox, path, DURABLE).close()
        keys = map("key{}".format, range(10**9))

        def run(words: list[str]) -> float:
            key = next(keys)
            return consuming.whole_process([word.format(key=key) for word in words], path) * 1e3

        contenders = {name: partial(run, words) for name, words in commands.items()}
        for contender in contenders.values():
            contender()  # once for the cache
        group = bench.group(
            "durable, 200 B", "ms", contenders, *targets, more_is_better=False, rounds=bench.scale.starts
        )
    return Case(10, "Cold start: a whole process", [group])


def concurrency(bench: Bench) -> Case:
    """11. Handlers that wait, eight at a time."""

    def share(threads: int) -> float:
        with scratch(bench.folder) as path:
            fill(Fsinbox, QUICK, path, bench.scale.waits * threads // 8, 200)
            return 0.01 / threads / consuming.handled(path, "wait", "--concurrency", str(threads)) * 100

    def loop(kind: type[Queue] | None) -> float:
        with scratch(bench.folder) as path:
            if kind:
                fill(kind, QUICK, path, bench.scale.waits, 200)
            name = kind.name if kind else ""
            return 0.01 / 8 / consuming.run("waited", path, name, 8, bench.scale.waits // 8) * 100

    names = {threads: f"fsinbox consume --concurrency {threads}" for threads in (1, 8)}
    calls, limit = "8 threads, bare system calls", "8 threads that only wait"
    group = bench.group(
        "of what handlers at once could do at best",
        "%",
        {
            **{name: partial(share, threads) for threads, name in names.items()},
            "fsinbox, 8 threads of a program": partial(loop, Fsinbox),
            calls: partial(loop, BareCalls),
            limit: partial(loop, None),
        },
        Target("97 % of 8x", names[8], at_least=97),
        Target("beside the bare calls", names[8], [calls]),
        Target("beside threads that only wait", names[8], [limit]),
    )
    return Case(11, "consume --concurrency 8, with a handler that waits 10 ms", [group])


def journal(bench: Bench) -> Case:
    """12. ext4 without a journal, beside the same with one."""
    case = Case(12, "Quick add to a queue that is in use: ext4 without a journal, beside one with")
    elements = bench.scale.elements
    group = Group(f"add, {elements:,} in a row, 200 B", "us", more_is_better=False)
    without, with_one = "fsinbox, ext4 without a journal", "fsinbox, ext4 with a journal"
    group.targets.append(Target("at most 2x of the same with a journal", without, [with_one], at_most=2))
    case.groups.append(group)
    why = disks.missing()
    if why:
        group.notes.append(f"not measured: {why}")
        return case

    def turn_over(queue: Queue) -> float:
        """Add, then take all of it: what is removed leaves the inodes that the next adds pass over."""
        begun = perf_counter()
        for number in range(elements):
            queue.add(f"key{number}", bytes(200))
        seconds = perf_counter() - begun
        while token := queue.take():
            queue.ack(token)
        return seconds / elements * 1e6

    with ExitStack() as stack:
        contenders: dict[str, Callable[[], float]] = {}
        for name, has_journal in ((with_one, True), (without, False)):
            place = stack.enter_context(disks.fresh(bench.folder, 1 << 30, has_journal=has_journal))
            queue = stack.enter_context(closing(make(Fsinbox, place, QUICK)))
            for _ in range(6):  # until what was removed is everywhere
                turn_over(queue)
            contenders[name] = partial(turn_over, queue)
        bench.interleave([group], contenders)
    return case
