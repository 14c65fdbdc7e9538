"""The programs of the storm: producers that announce what they add, each in a process of its own.

    python -m tests.storm.producers KIND INBOX LOG NAME COUNT KEYS SEED

KIND is `python`, `durable` (the same, flushed), `many` (add_many), `sh` (scripts/fsinbox-add) or `mv` (a rename into drop/).
Each line of LOG is `S|E <key> <value> <monotonic ns>`, written before and after the add, with one system call: it survives
any kill. CLOCK_MONOTONIC is the same for all processes of a machine.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from time import monotonic_ns

from fsinbox import Inbox

SCRIPT = Path(__file__).parents[2] / "scripts" / "fsinbox-add"


def payload(name: str, number: int) -> dict:
    """Return a value that tells who made it, with enough of itself repeated to show a tear."""
    mark = f"{name}:{number}"
    return {"value": mark, "body": [mark] * (number % 40), "end": mark}


class Announcer:
    """Writes a log line by line."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, event: str, key: str, value: str) -> None:
        os.write(self._fd, f"{event} {key} {value} {monotonic_ns()}\n".encode())


def main() -> None:
    kind, inbox, log, name, count, keys, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    announcer = Announcer(log)
    plan = [(f"key{rng.randrange(int(keys))}", number) for number in range(int(count))]
    if kind in ("python", "durable", "many"):
        with Inbox(inbox, durable=kind == "durable") as target:
            (add_in_batches if kind == "many" else add_one_by_one)(target, plan, name, announcer)
        return
    for key, number in plan:
        value = payload(name, number)
        announcer.tell("S", key, value["value"])
        text = json.dumps(value)
        if kind == "sh":
            command = [str(SCRIPT), "--not-durable", key]
            subprocess.run(command, input=text.encode(), env=os.environ | {"FSINBOX_DIR": inbox}, check=True)
        else:
            draft = Path(inbox).with_name(f"draft-{name}")
            draft.write_text(text)
            subprocess.run(["mv", draft, f"{inbox}/drop/{key}"], check=True)
        announcer.tell("E", key, value["value"])


def add_one_by_one(target: Inbox, plan: list[tuple[str, int]], name: str, announcer: Announcer) -> None:
    for key, number in plan:
        value = payload(name, number)
        announcer.tell("S", key, value["value"])
        target.add(key, value)
        announcer.tell("E", key, value["value"])


def add_in_batches(target: Inbox, plan: list[tuple[str, int]], name: str, announcer: Announcer) -> None:
    for first in range(0, len(plan), 50):
        batch = [(key, payload(name, number)) for key, number in plan[first : first + 50]]
        for key, value in batch:
            announcer.tell("S", key, value["value"])
        target.add_many(batch)
        for key, value in batch:
            announcer.tell("E", key, value["value"])


if __name__ == "__main__":
    main()
