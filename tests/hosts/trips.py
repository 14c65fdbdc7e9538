"""How many requests an NFS client makes to its server for what fsinbox does: none may creep in.

    python -m tests.hosts.trips [--on WHAT]        in a lab: `scripts/hosts-lab trips`

The client counts them itself, in /proc/self/mountstats. Prints each figure beside the most that it may be,
and which requests they are; ends with 1 if one is above that. A lease is renewed meanwhile, now and then, and
an attribute that the client has kept for a minute is asked for again: so the bounds leave a tenth.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import sleep

from fsinbox import Inbox
from tests.hosts.bench import PAYLOAD, bare
from tests.usual import take

MOST = {
    "add, new keys": 14.3,
    "add, one hot key": 14.3,
    "add_many, 100 new keys a call": 5.4,
    "add_many, beside another host": 5.4,
    "take and acknowledge": 5.5,
    "take, read and acknowledge": 9.6,
    "an idle consumer, a second": 4.0,
    "a standby, a second": 1.0,
}
"""Requests for each, on NFS 4.2. (A consumer looks into drop/ every 20 ms: on a machine that has much else to
do, with each take.)"""

SECONDS = 20
"""For which the idle ones are watched."""


def requests(mount: str) -> Counter[str]:
    """Return how often an NFS client has asked its server so far, by kind of request."""
    whole = Path("/proc/self/mountstats").read_text()
    ours = whole.partition(f" mounted on {mount} ")[2].partition("\ndevice ")[0]
    lines = ours.partition("per-op statistics\n")[2].splitlines()
    return Counter({line.partition(":")[0].strip(): int(line.split()[1]) for line in lines if ":" in line})


class Trips:
    """Counts, and prints. `too_many`: what was above its bound."""

    def __init__(self) -> None:
        self.too_many: list[str] = []

    def count(self, what: str, mount: str, work: Callable[[], object], times: float, tries: int = 1) -> None:
        """Print how many requests `work` takes, for each of so many elements, or seconds. If they are too
        many, it is done again, so often: a busy machine adds some, and never takes any away."""
        most = MOST.get(what)
        for _ in range(tries):
            before = requests(mount)
            work()
            made = requests(mount) - before
            number = made.total() / times
            kinds = " ".join(f"{kind} {count / times:.2g}" for kind, count in made.most_common())
            print(f"{what:<32}{number:>6.2f}  {f'at most {most:g}' if most else '':<14}{kinds}", flush=True)
            if not most or number <= most:
                return
        self.too_many.append(what)


def add_and_take(trips: Trips, mount_a: str, mount_b: str) -> None:
    """Count for producers on host a and a consumer on host b."""
    count = trips.count
    plain = bare(mount_a)
    count("create, write, flush, rename", mount_a, lambda: [plain(n) for n in range(50)], 50)
    with Inbox(os.path.join(mount_a, "trips"), codec="bytes") as inbox:

        def add_many(name: str) -> None:
            for call in range(5):
                inbox.add_many((f"{name}-{call}-{n}", PAYLOAD) for n in range(100))

        add_many("first")  # what is remembered from then on
        count("add, new keys", mount_a, lambda: [inbox.add(f"{n}", PAYLOAD) for n in range(100)], 100)
        count("add, one hot key", mount_a, lambda: [inbox.add("hot", PAYLOAD) for n in range(100)], 100)
        count("add_many, 100 new keys a call", mount_a, lambda: add_many("more"), 500)
        with Inbox(os.path.join(mount_b, "trips"), codec="bytes") as other:

            def take_turns() -> None:
                for call in range(5):
                    other.add("from the other host", PAYLOAD)
                    inbox.add_many((f"turn-{call}-{n}", PAYLOAD) for n in range(100))

            count("add_many, beside another host", mount_a, take_turns, 500)
            take(other).ack()
            count("take and acknowledge", mount_b, lambda: [take(other).ack() for _ in range(200)], 200)

            def read() -> None:
                element = take(other)
                assert element.value == PAYLOAD
                element.ack()

            count("take, read and acknowledge", mount_b, lambda: [read() for _ in range(200)], 200)


def idle(trips: Trips, mount_a: str, mount_b: str) -> None:
    """Count for `fsinbox consume` on host a that has nothing to do, and its standby on host b."""
    Inbox(os.path.join(mount_a, "idle")).close()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "handlers.py").write_text("def run(element):\n    pass\n")
        consumers = []
        try:
            consumers.append(_consume("a", mount_a, folder))
            sleep(8)
            trips.count("an idle consumer, a second", mount_a, lambda: sleep(SECONDS), SECONDS, 3)
            consumers.append(_consume("b", mount_b, folder, "--standby"))
            sleep(5)
            trips.count("a standby, a second", mount_b, lambda: sleep(SECONDS), SECONDS, 3)
        finally:
            for consumer in consumers:
                consumer.kill()
                consumer.wait()


def _consume(host: str, mount: str, folder: str, *more: str) -> subprocess.Popen[bytes]:
    command = ["lab-control", "on", host, sys.executable, "-m", "fsinbox", "--inbox", f"{mount}/idle"]
    command += ["consume", "--handler", "handlers:run", *more]
    path = f"{os.getcwd()}:{folder}"
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def main() -> None:
    """Count, print, and end with 1 if anything takes more requests than it may."""
    parser = argparse.ArgumentParser(description="Requests to an NFS server; in a lab: see scripts/hosts-lab")
    parser.add_argument("--on", default="nfs4.2", help="what the lab is: only there the bounds hold")
    on = parser.parse_args().on
    trips = Trips()
    mounts = os.environ["LAB_A"], os.environ["LAB_B"]
    add_and_take(trips, *mounts)
    idle(trips, *mounts)
    if on == "nfs4.2" and trips.too_many:
        sys.exit(f"more requests than there may be: {', '.join(trips.too_many)}")


if __name__ == "__main__":
    main()
