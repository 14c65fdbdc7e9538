"""What is running when the power is cut: a few programs in the words of tests/driver.py, chosen at random by
a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count

PYTHON = ("add", "add", "add", "new", "many", "file", "move")
NO_DRAFT = PYTHON[:5]  # without those that need a draft beside the inbox: only one producer has it
SHELL = ("sh", "sh", "sh", "add")
DROPS = ("mv", "mv", "add")

ENDS = ("ack", "ack", "ack", "nack", "defer", "fail", "release", "restart")


@dataclass(frozen=True)
class Workload:
    """Producers that work at once, and a consumer beside them."""

    producers: list[list[str]]
    consumer: list[str]  # a few of these each time when a producer has done a word
    creates: bool = False  # the producers create the inbox; else it is there

    @property
    def keys(self) -> set[str]:
        """All keys that are added."""
        words = [word for words in self.producers for word in words]
        return {
            pair.partition("=")[0] for word in words for pair in word.partition(":")[2].split(",") if pair
        }


def workload(name: str, seed: int) -> Workload:
    """Return a workload of WORKLOADS, the same for the same seed."""
    chance = random.Random(f"{name} {seed}")
    values = count(1)

    def adds(names: tuple[str, ...], number: int, keys: str = "abc") -> list[str]:
        return [_add(chance, chance.choice(names), keys, values) for _ in range(number)]

    consumer: list[str] = []
    while len(consumer) < 1000:
        consumer += ["take"] * chance.choice((1, 1, 2)) + [chance.choice(ENDS)] * chance.choice((0, 1, 1, 2))
    if name == "creation":
        return Workload(
            [["create", *adds(PYTHON, 12)], ["create", *adds(NO_DRAFT, 12)]], consumer, creates=True
        )
    if name == "one-producer":
        return Workload([adds(PYTHON, 40)], consumer)
    if name == "two-producers":
        return Workload([adds(PYTHON, 30), adds(NO_DRAFT, 30)], consumer)
    if name == "shell":
        return Workload([adds(SHELL, 30), adds(("sh",), 15)], consumer)
    if name == "drops":
        return Workload([adds(DROPS, 40)], consumer)
    if name == "all-at-once":
        return Workload(
            [adds(NO_DRAFT, 25, "abcdefgh"), adds(("sh",), 10, "abcdefgh"), adds(DROPS, 25, "abcdefgh")],
            consumer,
        )
    raise ValueError(f"there is no workload {name!r}")


WORKLOADS = ("creation", "one-producer", "two-producers", "shell", "drops", "all-at-once")


def _add(chance: random.Random, name: str, keys: str, values: count[int]) -> str:
    number = chance.randint(2, 6) if name == "many" else 1
    chosen = chance.choices(keys, k=number)
    return f"{name}:{','.join(f'{key}={next(values)}' for key in chosen)}"
