"""Figures, ratios and targets: what is kept of a run, and how it is judged."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass
class Target:
    """What a group is to reach: its `ours` divided by `theirs`, round by round; or its figure itself, if
    `theirs` is empty."""

    text: str
    ours: str
    theirs: list[str] = field(default_factory=list)
    """Names of figures; of several, the one that does best in the round counts."""
    at_least: float | None = None
    at_most: float | None = None


@dataclass
class Group:
    """Figures that are compared with each other: for each name one a round."""

    title: str
    unit: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    more_is_better: bool = True
    notes: list[str] = field(default_factory=list)

    def reached(self, target: Target) -> float | None:
        """Return the median over the rounds of what a target is about; None if it was not measured. What
        failed (or is not there) of several others does not count."""
        ours = self.figures.get(target.ours)
        theirs = [self.figures[name] for name in target.theirs if name in self.figures]
        if not ours or (target.theirs and not theirs):
            return None
        if not theirs:
            return median(ours)
        best = max if self.more_is_better else min
        against = [best(values) for values in zip(*theirs, strict=True)]
        return median(mine / other for mine, other in zip(ours, against, strict=True))

    def is_met(self, target: Target) -> bool | None:
        """Tell whether a target is reached; None if it was not measured, or is only for comparison."""
        reached = self.reached(target)
        if reached is None or target.at_least is target.at_most is None:
            return None
        return (target.at_least is None or reached >= target.at_least) and (
            target.at_most is None or reached <= target.at_most
        )


@dataclass
class Case:
    """What is measured, and shown, together."""

    number: int
    title: str
    groups: list[Group] = field(default_factory=list)


def machine(folder: Path) -> dict[str, str]:
    """Return what the figures are measured on. `boot` is another on every machine; `load` says how busy this
    one was before."""
    from fsinbox.store.boot import boot_tag
    from fsinbox.store.mounts import file_system_type, has_no_journal

    lacks = ", without a journal" if has_no_journal(os.fspath(folder)) else ""
    return {
        "boot": boot_tag(),
        "system": f"{platform.system()} {platform.release()}",
        "processors": str(os.cpu_count()),
        "file system": file_system_type(os.fspath(folder)) + lacks,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def save(path: Path, about: dict[str, str], cases: list[Case]) -> None:
    """Keep a run; cases that it did not measure stay as they were. Raises OtherMachine."""
    kept = {case.number: case for case in kept_of(path, about)}
    kept.update((case.number, case) for case in cases)
    rounded = json.loads(
        json.dumps([asdict(kept[number]) for number in sorted(kept)]),
        parse_float=lambda text: float(f"{float(text):.5g}"),
    )
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps({"machine": about, "cases": rounded}, indent=1) + "\n")


class OtherMachine(Exception):
    """What is kept was measured on another machine, or on this one before it was started anew."""


def kept_of(path: Path, about: dict[str, str]) -> list[Case]:
    """Return the cases that were kept of this very machine. Raises OtherMachine."""
    if not path.exists():
        return []
    before, cases = load(path)
    other = [f"{n} {before.get(n)}" for n in about if n != "load" and before.get(n) != about[n]]
    if other:
        raise OtherMachine(
            f"{path} is of another machine ({', '.join(other)}): measure --all, or say another --out"
        )
    return cases


def load(path: Path) -> tuple[dict[str, str], list[Case]]:
    """Read what was kept."""
    kept = json.loads(path.read_text())
    return kept["machine"], [_case(case) for case in kept["cases"]]


def _case(kept: dict[str, Any]) -> Case:
    groups = [
        Group(**(group | {"targets": [Target(**target) for target in group["targets"]]}))
        for group in kept["groups"]
    ]
    return Case(kept["number"], kept["title"], groups)
