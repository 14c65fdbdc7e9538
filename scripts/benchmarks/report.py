"""Tables, plots, and the pages that show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from .queues import Fsinbox
from .results import Case, Group, Target


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
    word = {True: "reached", False: "**missed**", None: "open"}[group.is_met(target)]
    return f"{word}: {group.title}: {target.text}: {reached(group, target)}"


def summary(cases: list[Case]) -> str:
    """Return a table of all targets."""
    lines = ["| case | target | figure | |", "|---|---|---|---|"]
    for case in cases:
        for group in case.groups:
            for target in group.targets:
                word = {True: "reached", False: "**missed**", None: ""}[group.is_met(target)]
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


def fill_page(page: Path, about: dict[str, str], cases: list[Case], plots: str) -> None:
    """Put what was measured between its marks in a page: <!-- case 1 --> ... <!-- /case 1 -->, and machine,
    and summary."""
    parts = {f"case {case.number}": section(case, plots) for case in cases}
    parts["machine"] = "Measured on: " + ", ".join(f"{name} {value}" for name, value in about.items()) + "."
    parts["summary"] = summary(cases)
    text = page.read_text(encoding="utf-8")
    for mark, part in parts.items():
        pattern = re.compile(f"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        text = pattern.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")


def plot(case: Case, folder: Path) -> None:
    """Draw a case: a panel a group, a bar a contender, with the range of its rounds; as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fsinbox"  # the same picture gives the same file
    matplotlib.rcParams["font.size"] = 8
    from matplotlib import pyplot

    columns = min(3, len(case.groups))
    rows = -(-len(case.groups) // columns)
    bars = max(len(group.figures) for group in case.groups)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(4.3 * columns, rows * (0.9 + 0.24 * bars)),
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat[len(case.groups) :]:
        panel.set_visible(False)
    for panel, group in zip(panels.flat, case.groups, strict=False):
        names = sorted(
            group.figures, key=lambda name: median(group.figures[name]), reverse=not group.more_is_better
        )
        if case.number == 7:
            names = list(reversed(group.figures))
        middles = [median(group.figures[name]) for name in names]
        spans = [
            [middle - min(group.figures[name]) for name, middle in zip(names, middles, strict=True)],
            [max(group.figures[name]) - middle for name, middle in zip(names, middles, strict=True)],
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
        for position, (name, middle) in enumerate(zip(names, middles, strict=True)):
            panel.text(max(group.figures[name]), position, f"  {number(middle)}", va="center", fontsize=7)
        panel.set_title(group.title, fontsize=8)
        panel.set_xlabel(f"{group.unit} ({'more' if group.more_is_better else 'less'} is better)", fontsize=7)
        panel.set_xlim(0, max(max(values) for values in group.figures.values()) * 1.22 or 1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(case.title, fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(folder / f"case-{case.number:02}.{suffix}", dpi=110, metadata=metadata)
    pyplot.close(figure)
