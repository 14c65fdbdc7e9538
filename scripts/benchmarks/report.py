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


def verdict(group: Group, target: Target) -> str:
    """Say in a line what was to be reached, and what was."""
    reached, met = group.reached(target), group.is_met(target)
    if reached is None:
        return f"{target.text}: not measured"
    if target.theirs:
        figure = f"{number(reached)}x"
    else:
        figure = number(reached) if group.unit in ("x", "%") else f"{number(reached)} {group.unit}"
    figure = figure if group.unit != "x" or target.theirs else f"{figure}x"
    return f"{'reached' if met else '**missed**'}: {group.title}: {target.text}: {figure}{' %' if group.unit == '%' else ''}"


def table(case: Case) -> Iterator[str]:
    """Give the lines of a table: a line a contender, a column a group, the median of each."""
    names = list(dict.fromkeys(name for group in case.groups for name in group.figures))
    yield "| | " + " | ".join(f"{group.title} ({group.unit})" for group in case.groups) + " |"
    yield "|---" * (len(case.groups) + 1) + "|"
    for name in names:
        cells = [number(median(group.figures[name])) if name in group.figures else "" for group in case.groups]
        label = f"**{name}**" if name.startswith(Fsinbox.name) else name
        yield f"| {label} | " + " | ".join(cells) + " |"


def section(case: Case, plots: str) -> str:
    """Return what a page says of a case, its plot included."""
    lines = [*table(case), ""]
    lines += [f"- {verdict(group, target)}" for group in case.groups for target in group.targets]
    lines += [f"- {group.title}: {note}" for group in case.groups for note in group.notes]
    lines += ["", f"![{case.title}]({plots}/case-{case.number:02}.svg)"]
    return "\n".join(lines)


def fill_page(page: Path, cases: list[Case], plots: str) -> None:
    """Put each case between its marks in a page: <!-- case 1 --> ... <!-- /case 1 -->."""
    text = page.read_text(encoding="utf-8")
    for case in cases:
        begin, end = f"<!-- case {case.number} -->", f"<!-- /case {case.number} -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        filled = f"{begin}\n{section(case, plots)}\n{end}"
        text = pattern.sub(lambda _, filled=filled: filled, text)
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
        rows, columns, figsize=(4.3 * columns, rows * (0.9 + 0.24 * bars)), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(case.groups) :]:
        panel.set_visible(False)
    for panel, group in zip(panels.flat, case.groups, strict=False):
        names = sorted(group.figures, key=lambda name: median(group.figures[name]), reverse=not group.more_is_better)
        if case.number == 7:
            names = list(reversed(group.figures))
        middles = [median(group.figures[name]) for name in names]
        spans = [
            [middle - min(group.figures[name]) for name, middle in zip(names, middles, strict=True)],
            [max(group.figures[name]) - middle for name, middle in zip(names, middles, strict=True)],
        ]
        colours = [
            "#c4622d" if name.startswith(Fsinbox.name) else "#b9c0c7" if "bare system" in name else "#5b7f95" for name in names
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
