"""How quick an inbox on a network file system is: adds, takes, and how soon a consumer on one host wakes for
another's add.

    python -m tests.hosts.bench [--on WHAT] [--seconds S] [--arrivals N]        in a lab: `scripts/hosts-lab
    bench`

Adds are beside the bare calls on the same mount: create a file, write 200 bytes, flush, close, rename it to
another folder. The lab's network is a cable within one machine, without the delays of a real one: compare the
lines, not their size. Wake-up is from the call that makes the element visible on host a until take returns on
host b, for arrivals at random moments after some idle time, which is when a consumer polls least often.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, sleep

from fsinbox import Inbox
from tests.usual import take

PAYLOAD = b"x" * 200
INTERVALS = (0.1, 0.5, 1.0, 5.0)


def repeat(work: Callable[[int], object], seconds: float, most: int) -> list[float]:
    """Do it again and again for some seconds, at most so often; return how long each took."""
    times: list[float] = []
    end = monotonic() + seconds
    began = monotonic()
    while began < end and len(times) < most:
        work(len(times))
        now = monotonic()
        times.append(now - began)
        began = now
    return times


def bare(mount: str) -> Callable[[int], None]:
    """Return what adds with the bare calls, new names each time."""
    root = os.path.join(mount, "bare")
    for name in ("tmp", "pending"):
        os.makedirs(os.path.join(root, name), exist_ok=True)

    def add(number: int) -> None:
        draft = os.path.join(root, "tmp", f"{number}")
        fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, PAYLOAD)
        os.fsync(fd)
        os.close(fd)
        os.rename(draft, os.path.join(root, "pending", f"{number}"))

    return add


def asked(mount: str) -> int:
    """Return how often an NFS client has asked its server so far, by /proc/self/mountstats; 0 for other file
    systems."""
    ours = (
        Path("/proc/self/mountstats")
        .read_text()
        .partition(f" mounted on {mount} ")[2]
        .partition("\ndevice ")[0]
    )
    operations = ours.partition("per-op statistics\n")[2].splitlines()
    return sum(int(line.split()[1]) for line in operations if ":" in line)


def measure(
    what: str,
    mount: str,
    work: Callable[[int], object],
    seconds: float,
    *,
    elements: int = 1,
    most: int = 1_000_000,
) -> None:
    """Print a line of the first table. `elements`: how many each call of `work` is for; `most`: calls."""
    work(-1)  # what is remembered from then on
    before = asked(mount)
    times = repeat(work, seconds, most)
    trips = (asked(mount) - before) / len(times) / elements
    milliseconds = sorted(time * 1000 / elements for time in times)
    late = milliseconds[len(milliseconds) * 95 // 100]
    middle = statistics.median(milliseconds)
    print(
        f"{what:<44}{len(times) * elements / sum(times):>8.0f}{middle:>10.2f}{late:>10.2f}{trips:>12.1f}",
        flush=True,
    )


def speed(mount_a: str, mount_b: str, seconds: float) -> None:
    """Print adds and takes a second."""
    print(
        f"{'one process, 200 bytes, flushed':<44}{'a second':>8}{'median ms':>10}{'95% ms':>10}"
        f"{'round trips':>12}"
    )
    measure("bare create, write, fsync, close, rename", mount_a, bare(mount_a), seconds)
    with Inbox(os.path.join(mount_a, "speed"), codec="bytes") as inbox:
        measure("Inbox.add, a new key each", mount_a, lambda n: inbox.add(f"key-{n}", PAYLOAD), seconds)
        measure("Inbox.add, one hot key", mount_a, lambda n: inbox.add("hot", PAYLOAD), seconds)

        def add_many(number: int) -> None:
            inbox.add_many((f"more-{number}-{n}", PAYLOAD) for n in range(100))

        measure("Inbox.add_many, 100 new keys", mount_a, add_many, seconds, elements=100)
    with Inbox(os.path.join(mount_b, "speed"), codec="bytes") as inbox:
        measure("take and nack, on host b", mount_b, lambda n: take(inbox).nack(), seconds / 2)
        left = len(os.listdir(os.path.join(mount_b, "speed", "pending"))) - 1
        measure("take and ack, on host b", mount_b, lambda n: take(inbox).ack(), seconds, most=left)


def consume(path: str, interval: float, arrivals: int, tell: Connection) -> None:
    """On host b: tell when each element was taken."""
    with Inbox(path, codec="bytes", poll_interval=interval) as inbox:
        inbox.take()
        tell.send("ready")
        for _ in range(arrivals):
            element = take(inbox, timeout=120)
            tell.send(monotonic())
            element.ack()


class Shown:
    """When an element was last made visible: the rename, or link, that has its key in the name."""

    at = 0.0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.link") and str(arguments[1]).endswith("-awaited"):
            self.at = monotonic()


def wake(mount_a: str, mount_b: str, arrivals: int, seed: int) -> None:
    """Print how soon the consumer on host b returns from take."""
    shown = Shown()
    sys.addaudithook(shown)
    chance = random.Random(seed)
    context = get_context("fork")
    print(f"\n{'wake-up on host b, seconds':<44}{'median':>8}{'mean':>10}{'worst':>10}")
    for interval in INTERVALS:
        path = os.path.join(mount_a, f"wake-{interval}")
        Inbox(path, codec="bytes").close()
        mine, theirs = context.Pipe()
        other = os.path.join(mount_b, f"wake-{interval}")
        consumer = context.Process(target=consume, args=(other, interval, arrivals, theirs), daemon=True)
        consumer.start()
        assert mine.recv() == "ready"
        delays = []
        with Inbox(path, codec="bytes") as inbox:
            for _ in range(arrivals):
                sleep(chance.uniform(0.5, 1 + 2 * interval))
                inbox.add("awaited", PAYLOAD)
                delays.append(mine.recv() - shown.at)
        consumer.join()
        found = f"{statistics.median(delays):>8.3f}{statistics.mean(delays):>10.3f}{max(delays):>10.3f}"
        print(f"{f'poll_interval={interval:g}, {arrivals} arrivals':<44}{found}", flush=True)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description="Speed on a network file system; in a lab: see scripts/hosts-lab"
    )
    parser.add_argument("--on", default="nfs4.2", help="what the lab is: only for the report")
    parser.add_argument("--seconds", type=float, default=5, help="for each line of the first table")
    parser.add_argument("--arrivals", type=int, default=20, help="for each line of the second table")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    mount_a, mount_b = os.environ["LAB_A"], os.environ["LAB_B"]
    (mount,) = [
        words
        for words in map(str.split, Path("/proc/mounts").read_text().splitlines())
        if words[1] == mount_a
    ]
    print(f"{options.on}: {mount[2]} {mount[3]}")
    speed(mount_a, mount_b, options.seconds)
    wake(mount_a, mount_b, options.arrivals, options.seed)


if __name__ == "__main__":
    main()
