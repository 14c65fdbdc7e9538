"""What is traced: every sequence of up to three queue operations, and longer stories chosen by hand; as a
program, runs them.

    python -m tests.crash.workloads FOLDER     reads lines `<number> <words before> | <words>` from standard
                                               input

Each workload gets a folder of its own, FOLDER/<number>, with the inbox and drafts in it, and a log
FOLDER/<number>/LOG. What the words before the bar did counts as settled: on the disk for good.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import fsinbox.store.index
from tests.driver import Driver, Log

SETTLED = "settled"
"""Announced (as a mark of this name) when the words before the bar are done."""


END = "end"
"""Announced when all words are done: what comes then is tidying up, not recorded."""


class Workload(NamedTuple):
    """Words for tests/driver.py. `every`: cut the power at every point, not only from the last word on."""

    before: tuple[str, ...]
    words: tuple[str, ...]
    every: bool = False

    @property
    def name(self) -> str:
        """The words, as one text."""
        return f"{' '.join(self.before)} | {' '.join(self.words)}"


BASES = {
    "empty": "create",
    "waiting": "create add add+b",
    "out": "create add add+b take",
    "behind": "create add take add",
    "deferred": "create add add+b take defer",
}
"""What an inbox may be like before: `add` is of key a, `add+b` of key b."""

MAX_OUT = 2

LINES = 64
"""Lines of the index's table at the least: of a hundred thousand disks none need hold 4,096."""

PRODUCERS = ("add", "add+b", "sh", "mv")
CONSUMER = ("take", "ack", "nack", "defer", "fail")


def sequences(base: str, length: int, producers: tuple[str, ...] = PRODUCERS) -> Iterator[Workload]:
    """Go through all sequences of so many operations: all that can be done (nothing is ended that is not
    out).

    Only what happens from the last operation on is new: the rest is a shorter sequence's.
    """
    before = BASES[base].split()

    def extend(words: list[str]) -> Iterator[list[str]]:
        if len(words) == length:
            yield words
            return
        out = _out(before + words)
        for word in producers + CONSUMER:
            if (
                word in producers
                or (word == "take" and out < MAX_OUT)
                or (word in ("ack", "nack", "defer", "fail") and out)
            ):
                yield from extend([*words, word])

    for words in extend([]):
        numbered = iter(_numbered(before + words))
        yield Workload(tuple(next(numbered) for _ in before), tuple(numbered))


def _out(words: list[str]) -> int:
    """Return how many elements are out after these words."""
    waiting: dict[str, None] = {}
    out: list[str] = []
    for word in words:
        if word in PRODUCERS:
            waiting[word.partition("+")[2] or "a"] = None
        elif word == "take":
            key = next((key for key in waiting if key not in out), None)
            if key:
                del waiting[key]
                out.append(key)
        elif word in ("nack", "defer"):
            waiting = {out.pop(0): None, **waiting}
        elif word in ("ack", "fail"):
            out.pop(0)
    return len(out)


def _numbered(words: list[str]) -> Iterator[str]:
    """Give each add a value of its own."""
    numbers = count(1)
    for word in words:
        name, _, key = word.partition("+")
        yield f"{name}:{key or 'a'}={next(numbers)}" if name in ("add", "sh", "mv") else word


def story(text: str) -> Workload:
    """Return the workload that a line stands for."""
    before, _, words = text.partition("|")
    return Workload(tuple(before.split()), tuple(words.split()), every=True)


STORIES = [
    story(text)
    for text in (
        "| create",
        "| create add:a=1",
        "| mkdir create add:a=1",
        "create | new:a=1 new:b=2 new:a=3",
        "create | sh:a=1 sh:b=2 sh:a=3",
        "create | many:a=1,b=2,a=3",
        "create | many:a=1,b=2,c=3,d=4,e=5,f=6",
        "create | file:a=1 file:a=2",
        "create | stream:a=1 stream:a=2",
        "create | move:a=1 move:a=2",
        "create | mv:a=1 mv:b=2 take add:a=3 ack take ack",
        "create mv:a=1 | add:a=2 take ack",
        "create | ln:a=1 ln:b=2 take add:a=3 ack take ack",
        "create add:a=1 | ln:a=2 take ack",
        "create ln:a=1 | take add:a=2 ack take ack add:c=3",
        "create mv:a=1 | sh:a=2 take ack",
        # What was done with an older value must not outlive what was done with a newer one.
        "create add:a=1 take | add:a=2 ack take ack add:c=3",
        "create add:a=1 take | ack add:a=2 take ack add:a=3 take ack add:c=4",
        "create add:a=1 take | nack take ack add:a=2 take ack add:c=3",
        "create add:a=1 take | defer add:a=2 take ack add:c=3",
        "create add:a=1 take | postpone add:a=2 take ack add:c=3",
        "create add:a=1 take defer | add:a=2 take ack add:c=3",
        "create add:a=1 take | fail add:a=2 take ack add:c=3",
        "create add:a=1 take | add:a=2 defer take ack add:c=3",
        "create add:a=1 take | add:a=2 nack take ack add:c=3",
        "create mv:a=1 | take add:a=2 ack take ack add:c=3",
        "create add:a=1 take | restart add:a=2 take ack add:c=3",
        "create add:a=1 take | ack restart add:a=2 take ack add:c=3",
        "create add:a=1 take | die take ack add:a=2 take ack add:c=3",
        "create add:a=1 add:b=2 take take | release add:b=3 take ack take ack",
        # What people do, and what is kept of what is done.
        "create add:a=1 take postpone | requeue take ack add:a=2 take ack add:c=3",
        "create add:a=1 take postpone | add:a=2 requeue take ack add:a=3 take ack",
        "create add:a=1 add:b=2 take postpone | requeue add:a=3 take nack take ack take ack",
        "create keep add:a=1 take | ack add:a=2 take ack add:a=3 take ack add:c=4",
        "create keep add:a=1 take | add:a=2 ack take nack take ack add:c=3",
        # For later, and only if none waits. (A person ends the delay.)
        "create | delay:a=1 take add:a=2 take ack add:c=3",
        "create add:a=1 | delay:a=2 take requeue take ack add:a=3 take ack",
        "create delay:a=1 take | delay:a=2 take requeue take ack add:c=3",
        "create add:a=1 take | delay:a=2 ack take requeue take ack add:a=3 take ack add:c=4",
        "create | soon:a=1 take first:a=2 nack take ack add:c=3",
        "create delay:a=1 take | first:a=2 requeue take first:a=3 ack take ack",
        "create | first:a=1 first:a=2 take first:a=3 ack take ack",
        "create mv:a=1 | first:a=2 take first:a=3 ack take ack",
        # Bounds, and an inbox that is full.
        "create | bound add:a=1 add:b=2 full:c=3 add:a=4",
        "create bound add:a=1 add:b=2 take | ack take ack",
        "create bound add:a=1 add:b=2 | full:c=3 take ack add:c=4 take ack",
        "create bound add:a=1 add:b=2 | take add:a=3 full:c=4 nack take ack",
        "create bound add:a=1 | add:b=2 take add:c=3 restart full:d=4 take ack take ack add:d=5",
        # Several places of one key.
        "create add:a=1 forget add:a=2 | take ack add:a=3",
        "create add:a=1 forget add:a=2 forget add:a=3 | take ack",
        "create add:a=1 forget add:a=2 forget add:a=3 take | forget add:a=4 ack take ack",
        # What was not flushed (its value begins with q) may be lost, or torn, but must not harm what was.
        "create | quick:a=q1 add:a=2 take ack add:c=3",
        "create add:a=1 | take quick:b=q2 ack add:b=3 take ack add:c=4",
        # The same, exchanged with what waits.
        "create quick:a=q1 | swap:a=q2 add:a=3 take ack add:c=4",
        "create add:b=1 quick:a=q1 | swap:a=q2 add:b=2 take nack take ack add:a=3 take ack",
        "create quick:a=q1 | swap:a=q2 take add:a=3 ack take ack add:c=4",
        # Two producers at once.
        *(f"create | both:a=1,a={number}" for number in range(2, 10)),
        *(f"create add:a=1 take ack | both:a=2,b={number}" for number in range(3, 11)),
    )
]


def main() -> None:
    """Run the workloads that standard input names."""
    logging.disable()
    fsinbox.store.index.FEWEST_LINES = LINES
    folder = sys.argv[1]
    for line in sys.stdin:
        number, _, text = line.strip().partition(" ")
        workload = story(text)
        top = f"{folder}/{number}"
        os.mkdir(top)
        log = Log("p", f"{top}/LOG")
        driver = Driver(f"{top}/inbox", log, max_inflight=MAX_OUT)
        for word in workload.before:
            driver.do(word)
        log.tell("mark", SETTLED)
        for word in workload.words:
            log.tell("mark", word.partition(":")[0])
            driver.do(word)
        log.tell("mark", END)
        driver.close()
        log.close()


if __name__ == "__main__":
    main()
