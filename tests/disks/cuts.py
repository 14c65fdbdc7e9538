"""What may be on a disk after a power cut: the cuts of a recording.

An epoch is what lies between two flushes of the disk's cache. All of the epochs before a cut is on the disk;
of its own epoch anything may be: a prefix (`p`), a prefix and the first half of the write after it (`t`,
torn), or a subset (`s`) of its blocks. A block has 4096 bytes: today's disks do not tear one.

When a cut can be: after the last write that it holds came, and before the flush that ends its epoch was
answered. So the events announced by then are at least those before that write, and at most those before that
flush; a disk must be right with each number of events in between. (An add that returned before the flush
cannot have relied on it.)
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

from tests.oracle import Event

from .recorder import Record

BLOCK = 4096

SUBSETS = 3
"""How many subsets of an epoch's blocks are looked at."""

NEVER = 1 << 63


@dataclass(frozen=True)
class Block:
    """One block, or a part of one, as one write wrote it."""

    t: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Epoch:
    """The writes between two flushes, block by block."""

    writes: list[list[Block]]
    end: int  # when the flush came that ended it

    def blocks(self) -> list[Block]:
        return [block for write in self.writes for block in write]


@dataclass(frozen=True)
class Cut:
    """A disk that a power cut leaves: all before the epoch, and of it these blocks."""

    epoch: int
    name: str  # p3: the first three writes; t3: and half of the next; s1: a subset, the seed is 1
    blocks: list[Block]
    first: int  # the cut is after this time...
    last: int  # ...and before this

    def __str__(self) -> str:
        return f"{self.epoch}{self.name}"

    def chance(self, choices: int) -> int:
        """Return a number below `choices`, always the same for a cut."""
        return crc32(str(self).encode()) % choices


def epochs_of(records: Iterable[Record]) -> list[Epoch]:
    """Return the epochs of a recording. A flush with nothing before it ends none."""
    epochs = []
    writes: list[list[Block]] = []
    for record in records:
        if record.data is not None:
            writes.append(list(_split(record)))
        elif writes:
            epochs.append(Epoch(writes, record.t))
            writes = []
    return [*epochs, Epoch(writes, NEVER)]


def _split(record: Record) -> Iterator[Block]:
    start = 0
    while start < len(record.data):
        end = min(len(record.data), start + BLOCK - (record.offset + start) % BLOCK)
        yield Block(record.t, record.offset + start, record.data[start:end])
        start = end


def cuts_of(epochs: list[Epoch], since: int) -> list[Cut]:
    """Return the cuts after the time `since`, each disk once."""
    cuts = []
    last_write = 0
    for number, epoch in enumerate(epochs):
        if epoch.end > since:
            seen = set()
            for name, blocks in _choices(number, epoch):
                # All of an epoch is the same as nothing of the next.
                same = tuple(sorted({block.offset: block.data for block in blocks}.items()))
                if same not in seen and (len(blocks) < len(epoch.blocks()) or not blocks):
                    seen.add(same)
                    first = max([last_write, since, *(block.t for block in blocks)])
                    cuts.append(Cut(number, name, blocks, first, epoch.end))
        last_write = max([last_write, *(write[0].t for write in epoch.writes)])
    return cuts


def _choices(number: int, epoch: Epoch) -> Iterator[tuple[str, list[Block]]]:
    before: list[Block] = []
    for count, write in enumerate(epoch.writes):
        yield f"p{count}", list(before)
        if len(write) > 1:
            yield f"t{count}", before + write[: len(write) // 2]
        before += write
    if not epoch.writes:
        yield "p0", []
    for seed in range(SUBSETS):
        chance = random.Random(f"{number} {seed}")
        yield f"s{seed}", [block for block in before if chance.random() < 0.5]


def some(cuts: list[Cut], number: int, seed: int) -> list[Cut]:
    """Return so many of the cuts, in their order, chosen by the seed: half of them at a flush, if there are
    so many."""
    chance = random.Random(seed)
    order = chance.sample(range(len(cuts)), len(cuts))
    order.sort(key=lambda index: cuts[index].name != "p0")
    at_flush = sum(cut.name == "p0" for cut in cuts)
    half = min(at_flush, max(number // 2, number - (len(cuts) - at_flush)))
    return [cuts[index] for index in sorted(order[:half] + order[at_flush : at_flush + number - half])]


def histories(cut: Cut, events: list[Event]) -> Iterator[list[Event]]:
    """Yield each beginning of `events` (in the order of their times) that may have happened when the power
    was cut."""
    times = [event.t for event in events]
    for count in range(bisect_left(times, cut.first), bisect_left(times, cut.last) + 1):
        yield events[:count]
