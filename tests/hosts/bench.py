"""How quick an inbox on a network file system is: adds, takes, and how soon a consumer on one host wakes for another's add.

    python -m tests.hosts.bench [--on WHAT] [--seconds S] [--arrivals N]        in a lab: `scripts/hosts-lab bench`

Adds are beside the bare calls on the same mount: create a file, write 200 bytes, flush, close, rename it to another folder.
The lab's network is a cable within one machine, without the delays of a real one: compare the lines, not their size.
Wake-up is from the call that makes the element visible on host a until take returns on host b, for arrivals at random
moments after some idle time, which is when a consumer polls least often.
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


def repeat(work: Callable[[int], object], seconds: float) -> list[float]:
    """Do it again and again for some seconds; return how long each took."""
    times = []
    end = monotonic() + seconds
    began = monotonic()
    while began < end:
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


def line(what: str, times: list[float]) -> str:
    """Return a line of the first table."""
    milliseconds = sorted(seconds * 1000 for seconds in times)
    late = milliseconds[len(milliseconds) * 95 // 100]
    return f"{what:<44}{len(times) / sum(times):>8.0f}{statistics.median(milliseconds):>10.2f}{late:>10.2f}"


def speed(mount_a: str, mount_b: str, seconds: float) -> None:
    """Print adds and takes a second."""
    print(f"{'one process on host a, 200 bytes, flushed':<44}{'a second':>8}{'median ms':>10}{'95% ms':>10}")
    print(line("bare create, write, fsync, close, rename", repeat(bare(mount_a), seconds)), flush=True)
    with Inbox(os.path.join(mount_a, "speed"), codec="bytes") as inbox:
        print(line("Inbox.add, a new key each", repeat(lambda n: inbox.add(f"key-{n}", PAYLOAD), seconds)), flush=True)
        print(line("Inbox.add, one hot key", repeat(lambda n: inbox.add("hot", PAYLOAD), seconds)), flush=True)
        inbox.add_many((f"more-{n}", PAYLOAD) for n in range(200))
    with Inbox(os.path.join(mount_b, "speed"), codec="bytes") as inbox:
        take(inbox).ack()
        left = len(os.listdir(os.path.join(mount_b, "speed", "pending")))
        times = []
        end = monotonic() + seconds
        while left and monotonic() < end:
            began = monotonic()
            take(inbox).ack()
            times.append(monotonic() - began)
            left -= 1
    print(line("take and ack, on host b", times), flush=True)


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
    parser = argparse.ArgumentParser(description="Speed on a network file system; in a lab: see scripts/hosts-lab")
    parser.add_argument("--on", default="nfs4.2", help="what the lab is: only for the report")
    parser.add_argument("--seconds", type=float, default=5, help="for each line of the first table")
    parser.add_argument("--arrivals", type=int, default=20, help="for each line of the second table")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    mount_a, mount_b = os.environ["LAB_A"], os.environ["LAB_B"]
    (mount,) = [words for words in map(str.split, Path("/proc/mounts").read_text().splitlines()) if words[1] == mount_a]
    print(f"{options.on}: {mount[2]} {mount[3]}")
    speed(mount_a, mount_b, options.seconds)
    wake(mount_a, mount_b, options.arrivals, options.seed)


if __name__ == "__main__":
    main()
