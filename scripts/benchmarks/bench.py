"""What a case gets to work with: how much is measured, where, and rounds in which contenders alternate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .bare import BareCalls
from .queues import BareSQLite, Fsinbox, Queue
from .results import Group, Target

OURS, BARE, SQLITE = Fsinbox.name, BareCalls.name, BareSQLite.name

Figures = float | Iterable[float | None]


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
    producers: tuple[int, ...] = (1, 4, 16)


FULL = Scale(5, 0.6, 2_000, (1_000, 100_000, 1_000_000), 300, 20.0, 30, 1_600)
BRIEF = Scale(3, 0.6, 1_000, (), 0, 0, 0, 0)
TINY = Scale(1, 0.05, 60, (10, 50, 100), 5, 0.5, 1, 16, (1, 4))


@dataclass
class Bench:
    """Where a case works, and how."""

    scale: Scale
    folder: Path
    root: Path
    """Of the project, where its scripts are."""
    say: Callable[[str], object]
    is_fresh: bool = False
    """The folder is a disk of its own, which goes when all is measured."""

    def group(
        self,
        title: str,
        unit: str,
        contenders: Mapping[str, Callable[[], float]],
        *targets: Target,
        more_is_better: bool = True,
        rounds: int = 0,
    ) -> Group:
        """Return what the contenders do in some rounds [default: those of the scale], and what is to be
        reached."""
        group = Group(title, unit, targets=list(targets), more_is_better=more_is_better)
        self.interleave([group], contenders, rounds)
        return group

    def interleave(
        self, groups: list[Group], contenders: Mapping[str, Callable[[], Figures]], rounds: int = 0
    ) -> None:
        """Run every contender once a round, each round in another order, and keep what each returns: a
        figure for each group (None: none for this one). One that fails is left out from then on, and a note
        says why."""
        rounds = rounds or self.scale.rounds
        kept: dict[str, list[tuple[float | None, ...]]] = {name: [] for name in contenders}
        for turn in range(rounds):
            self.say(f"{groups[0].title}: round {turn + 1} of {rounds}")
            for name in random.Random(turn).sample(list(kept), len(kept)):
                try:
                    figures = contenders[name]()
                except Exception as error:
                    del kept[name]
                    groups[0].notes.append(f"{name} failed: {type(error).__name__}: {error}")
                    self.say(groups[0].notes[-1])
                    continue
                kept[name].append((figures,) if isinstance(figures, float) else tuple(figures))
        for name, figures_of in kept.items():
            for group, column in zip(groups, zip(*figures_of, strict=True), strict=True):
                if None not in column:
                    group.figures[name] = list(column)


def each(
    kinds: Iterable[type[Queue]], work: Callable[..., Any], *words: Any, **named: Any
) -> dict[str, Callable[[], Any]]:
    """Return the contenders of some kinds, which all do `work(kind, ...)`."""
    return {kind.name: partial(work, kind, *words, **named) for kind in kinds}


def libraries(kinds: Iterable[type[Queue]]) -> list[str]:
    """Return the names of those that are more than bare calls: what a user would install, or write."""
    return [
        kind.name for kind in kinds if kind not in (Fsinbox, BareCalls) and not issubclass(kind, BareSQLite)
    ]


def label(size: int) -> str:
    """Say how large a payload is."""
    return f"{size} B" if size < 1024 else f"{size >> 10} KiB"
