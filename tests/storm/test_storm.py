"""Proves on real processes: many producers of every kind, one consumer killed again and again, nothing missed.

Eight producers (Python one by one and in batches, flushed and not, scripts/fsinbox-add, and `mv` into drop/) add at once to the
same keys; `fsinbox consume` handles them and is killed with SIGKILL all the while. Every program announces what it does in
a log of its own; the oracle that the interleavings use judges all of it: the last value of every key is delivered, none
after a newer one, none torn, no key twice at once.

    pytest tests/storm --long        more adds, and producers are killed, too
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from fsinbox import Inbox
from tests.oracle import Event, judge

pytestmark = pytest.mark.storm

ROOT = Path(__file__).parents[2]

KINDS = ["python", "python", "python", "durable", "many", "many", "sh", "mv"]


@dataclass(frozen=True)
class Storm:
    """How hard it blows. `counts`: adds of each producer, by kind."""

    counts: dict[str, int]
    keys: int
    seed: int
    kill_producers: bool = False

    def describe(self) -> str:
        return f"seed {self.seed}, {sum(self.counts[kind] for kind in KINDS)} adds over {self.keys} keys"


SHORT = Storm({"python": 9_000, "durable": 5_000, "many": 9_000, "sh": 400, "mv": 800}, keys=500, seed=1)
LONG = Storm({"python": 100_000, "durable": 20_000, "many": 100_000, "sh": 3_000, "mv": 6_000}, 500, 2, kill_producers=True)


class Scene:
    """The processes of one storm, and their logs."""

    def __init__(self, storm: Storm, folder: Path) -> None:
        self.storm = storm
        self.folder = folder
        self.inbox = folder / "inbox"
        self.random = random.Random(storm.seed)
        self.kills = 0
        self.consumers = 0
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        Inbox(self.inbox).close()

    def start_producer(self, kind: str, name: str) -> subprocess.Popen[bytes]:
        storm = self.storm
        arguments = [
            kind,
            self.inbox,
            self.folder / f"{name}.log",
            name,
            storm.counts[kind],
            storm.keys,
            self.random.randrange(2**30),
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.storm.producers", *map(str, arguments)], cwd=ROOT, env=self.environment
        )

    def start_consumer(self, *options: str) -> subprocess.Popen[bytes]:
        self.consumers += 1
        log = self.folder / f"consumer-{self.consumers}.log"
        command = [sys.executable, "-m", "fsinbox", "--inbox", str(self.inbox), "consume"]
        command += ["--handler", "tests.storm.consumer:handle", "--concurrency", "3", "--retry-delay", "0.01"]
        # A retry is never given up here, and a consumer's death counts an attempt: the oracle wants all of them delivered.
        command += ["--max-attempts", "1000", "--max-retry-delay", "0.1", "--drop-settle", "0.3", "-q", *options]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment | {"STORM_LOG": str(log)}, stderr=subprocess.DEVNULL)

    def blow(self) -> None:
        """Run it: until every producer is done, kill the consumer after random times; then let one drain in peace."""
        producers = {f"{kind}{index}": self.start_producer(kind, f"{kind}{index}") for index, kind in enumerate(KINDS)}
        generation = 0
        try:
            while any(producer.poll() is None for producer in producers.values()):
                consumer = self.start_consumer()
                sleep(0.3 + self.random.random() * 0.7)
                consumer.kill()
                consumer.wait()
                self.kills += 1
                if self.storm.kill_producers and self.random.random() < 0.3:
                    name = self.random.choice(sorted(producers))
                    if producers[name].poll() is None:
                        producers[name].kill()
                        producers[name].wait()
                        self.kills += 1
                        generation += 1
                        kind = name.partition("-")[0].rstrip("0123456789")
                        producers[f"{kind}-{generation}"] = self.start_producer(kind, f"{kind}-{generation}")
                        if generation > 40:
                            break
        finally:
            if generation <= 40:
                for producer in producers.values():
                    producer.wait(120)
            for producer in producers.values():
                producer.kill()
                producer.wait()
        for producer in producers.values():
            assert self.storm.kill_producers or producer.returncode == 0
        assert self.start_consumer("--drain").wait(300) == 0

    def history(self) -> Iterator[Event]:
        """Bring all logs together, in the order of time."""
        whats = {"S": "add_start", "E": "add_end", "D": "deliver", "A": "ack"}
        events = []
        for log in self.folder.glob("*.log"):
            last = 0
            for line in log.read_text().splitlines():
                what, key, value, t = line.split(" ")
                last = int(t)
                events.append(Event(whats[what], log.stem, key, value, last))
            if log.stem.startswith("consumer-"):
                events.append(Event("died", log.stem, t=last))
        # An add that begins in the same nanosecond as another ends overlaps it.
        order = {"add_start": 0, "deliver": 1, "add_end": 2, "ack": 3, "died": 4}
        return iter(sorted(events, key=lambda event: (event.t, order[event.what])))


def with_retries(events: Iterator[Event]) -> Iterator[Event]:
    """Tell the oracle of failed attempts: a second delivery to one consumer means that the first came back to it."""
    out: dict[tuple[str, str], bool] = {}
    for event in events:
        if event.what == "deliver":
            if out.get((event.who, event.key)):
                yield Event("nack", event.who, event.key, event.value, event.t)
            out[event.who, event.key] = True
        elif event.what == "ack":
            out[event.who, event.key] = False
        yield event


def weather(storm: Storm, folder: Path) -> None:
    started = monotonic()
    scene = Scene(storm, folder)
    scene.blow()
    events = list(with_retries(scene.history()))
    wrong = judge(events)
    adds = sum(event.what == "add_end" for event in events)
    deliveries = sum(event.what == "deliver" for event in events)
    print(f"{adds} adds, {deliveries} deliveries, {scene.kills} kills in {monotonic() - started:.0f} s; {storm.describe()}")
    assert not wrong, f"{len(wrong)} of {storm.describe()}:\n" + "\n".join(wrong[:20])
    assert not list((scene.inbox / "pending").iterdir())
    assert not list((scene.inbox / "failed").iterdir())


@pytest.mark.timeout(600)
def test_the_last_value_of_every_key_is_delivered_and_none_after_a_newer_one(tmp_path: Path) -> None:
    weather(SHORT, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_same_with_more_of_everything_and_dying_producers(tmp_path: Path) -> None:
    weather(LONG, tmp_path)
