"""Tables, plots, and the pages that show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from .queues import BareSQLite, Fsinbox
from .results import Case, Group, Target

_WORDS = {True: "reached", False: "**missed**", None: ""}

_README = (
    (1, "16 producers, 200 B", "Durable add: 16 producers"),
    (3, "200 B", "Durable: take and acknowledge"),
    (4, "not durable, 200 B", "Not durable: from end to end"),
)
"""Groups of the README's plot, by case and title: those in which a user recognises his own case."""


def number(value: float) -> str:
    """Write a figure with three digits that count, as a reader wants it: 14,300; 83.1; 0.42."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def reached(group: Group, target: Target) -> str:
    """Say what was reached of a target, in its unit."""
    figure = group.reached(target)
    if figure is None:
        return "not measured"
    if target.theirs or group.unit == "x":
        return f"{number(figure)}x"
    return f"{number(figure)} {group.unit}"


def verdict(group: Group, target: Target) -> str:
    """Say in a line what was to be reached, and what was."""
    return (
        f"{_WORDS[group.is_met(target)] or 'beside'}: {group.title}: {target.text}: {reached(group, target)}"
    )


def summary(cases: list[Case]) -> str:
    """Return a table of all targets."""
    lines = ["| case | target | figure | |", "|---|---|---|---|"]
    for case in cases:
        for group in case.groups:
            for target in group.targets:
                word = _WORDS[group.is_met(target)]
                lines.append(
                    f"| {case.number} | {group.title}: {target.text} | {reached(group, target)} | {word} |"
                )
    return "\n".join(lines)


def table(case: Case) -> Iterator[str]:
    """Give the lines of a table: a line a contender, a column a group, the median of each."""
    names = list(dict.fromkeys(name for group in case.groups for name in group.figures))
    yield "| | " + " | ".join(f"{group.title} ({group.unit})" for group in case.groups) + " |"
    yield "|---" * (len(case.groups) + 1) + "|"
    for name in names:
        cells = [
            number(median(group.figures[name])) if name in group.figures else "" for group in case.groups
        ]
        label = f"**{name}**" if name.startswith(Fsinbox.name) else name
        yield f"| {label} | " + " | ".join(cells) + " |"


def section(case: Case, plots: str | None) -> str:
    """Return what a page says of a case, its plot included, if there is one."""
    lines = [*table(case), ""]
    lines += [f"- {verdict(group, target)}" for group in case.groups for target in group.targets]
    lines += [f"- {group.title}: {note}" for group in case.groups for note in group.notes]
    if plots:
        lines += ["", f"![{case.title}]({plots}/case-{case.number:02}.svg)"]
    return "\n".join(lines)


def machine(about: dict[str, str]) -> str:
    """Say what was measured on. (Which boot of it is for comparing runs.)"""
    return ", ".join(f"{name} {value}" for name, value in about.items() if name != "boot")


def lone(cases: list[Case]) -> str:
    """Say which part of SQLite's rate a lone durable producer has, as the README does; "" if that was not
    measured."""
    for case in cases:
        for group in case.groups:
            for target in group.targets:
                if (case.number, group.title, target.theirs) == (1, "1 producer, 200 B", [BareSQLite.name]):
                    return f"{group.reached(target) or 0:.1f}"
    return ""


def fill_page(page: Path, about: dict[str, str], cases: list[Case], plots: str) -> None:
    """Put what was measured between its marks in a page: <!-- case 1 --> ... <!-- /case 1 -->, and machine,
    summary and lone. A case that was not measured in this run shows nothing of another."""
    parts = {f"case {case.number}": section(case, plots) for case in cases}
    parts |= {"machine": f"Measured on: {machine(about)}.", "summary": summary(cases), "lone": lone(cases)}

    def fill(found: re.Match[str]) -> str:
        begin, name, line, end = found.groups()
        return f"{begin}{line}{parts.get(name) or 'Not measured in this run.'}{line}{end}"

    pattern = re.compile(r"(<!-- (\w[^>]*) -->)(\n?).*?(<!-- /\2 -->)", re.DOTALL)
    page.write_text(pattern.sub(fill, page.read_text(encoding="utf-8")), encoding="utf-8")


def shown_first(cases: list[Case]) -> Case:
    """Return what the README's plot (case-00.svg) shows, of what the same run measured."""
    found = {(case.number, group.title): group for case in cases for group in case.groups}
    groups = [
        replace(found[number, title], title=shown)
        for number, title, shown in _README
        if (number, title) in found
    ]
    return Case(0, "Elements of 200 bytes, a second", groups)


def plot(case: Case, folder: Path) -> None:
    """Draw a case: a panel a group, a bar a contender, with the range of its rounds. Nothing, if nothing was
    measured."""
    groups = [group for group in case.groups if group.figures]
    if not groups:
        return
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fsinbox"  # the same picture gives the same file
    matplotlib.rcParams["font.size"] = 8
    from matplotlib import pyplot

    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    bars = max(len(group.figures) for group in groups)
    size = (4.3 * columns, rows * (0.9 + 0.24 * bars))
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    for panel, group in zip(panels.flat, groups, strict=False):
        _draw(panel, group, is_sorted=case.number != 7)
    figure.suptitle(case.title, fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"case-{case.number:02}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _draw(panel: Any, group: Group, *, is_sorted: bool) -> None:
    middle = {name: median(figures) for name, figures in group.figures.items()}
    names = sorted(middle, key=middle.__getitem__, reverse=not group.more_is_better)
    if not is_sorted:
        names = list(reversed(middle))
    middles = [middle[name] for name in names]
    spans = [
        [middle[name] - min(group.figures[name]) for name in names],
        [max(group.figures[name]) - middle[name] for name in names],
    ]
    colours = [
        "#c4622d"
        if name.startswith(Fsinbox.name)
        else "#b9c0c7"
        if name.startswith(("bare system", "bare inotify"))
        else "#5b7f95"
        for name in names
    ]
    panel.barh(names, middles, color=colours, xerr=spans, error_kw={"lw": 0.7, "ecolor": "#333333"})
    for position, name in enumerate(names):
        panel.text(max(group.figures[name]), position, f"  {number(middle[name])}", va="center", fontsize=7)
    panel.set_title(group.title, fontsize=8)
    panel.set_xlabel(f"{group.unit} ({'more' if group.more_is_better else 'less'} is better)", fontsize=7)
    panel.set_xlim(0, max(max(values) for values in group.figures.values()) * 1.22 or 1)
    panel.locator_params(axis="x", nbins=5)
    panel.spines[["top", "right"]].set_visible(False)
