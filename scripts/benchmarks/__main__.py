"""The command line of scripts/bench."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from time import monotonic

import click

from . import cases, report, results

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "performance"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    type=click.IntRange(0, max(cases.CASES)),
    multiple=True,
    metavar="N",
    help="Only this case; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="All twelve cases: half an hour, 8 GB.")
@click.option("--tiny", is_flag=True, help="A minute's worth of all: proves that it runs, measures nothing.")
@click.option("--rounds", type=click.IntRange(1), help="How often each is measured [default: 5; brief: 3].")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work [default: a folder in .].",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep figures and plots here.")
@click.option(
    "--docs", is_flag=True, help="Keep them in docs/performance/, and put them into docs/performance.md."
)
@click.option("--redraw", is_flag=True, help="Measure nothing: draw and write what was kept anew.")
def main(
    only: tuple[int, ...],
    everything: bool,
    tiny: bool,
    rounds: int | None,
    folder: Path | None,
    out: Path | None,
    docs: bool,
    redraw: bool,
) -> None:
    """Measure fsinbox beside what a user would pick instead, and beside the bare system calls.

    Leave the machine alone meanwhile. Two minutes tell how it compares from end to end: one process adds,
    another takes. The rest is in twelve cases: --only and --all.
    """
    out = PAGES if docs else out
    if not redraw:
        brief = not (only or everything or tiny)
        scale = cases.TINY if tiny else cases.BRIEF if brief else cases.FULL
        wanted = (0,) if brief else only or tuple(number for number in cases.CASES if number)
        measure(wanted, replace(scale, rounds=rounds or scale.rounds), folder or Path(), out)
    if out and (out / "results.json").exists():
        about, kept = results.load(out / "results.json")
        for case in kept:
            report.plot(case, out)
        if docs:
            report.fill_page(PAGES.with_suffix(".md"), about, kept, PAGES.name)


def measure(wanted: tuple[int, ...], scale: cases.Scale, folder: Path, out: Path | None) -> None:
    """Measure some cases in a folder, print each, and keep it."""
    begun = monotonic()

    def say(text: str) -> None:
        click.echo(f"[{monotonic() - begun:6.0f} s] {text}", err=True)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as work:
        place = Path(work).resolve()
        about = results.machine(place)
        for number in wanted:
            case = cases.CASES[number](cases.Bench(scale, place, ROOT, say))
            click.echo(f"\n## {case.number}. {case.title}\n\n{report.section(case, out and '.')}\n")
            if out:
                results.save(out / "results.json", about, [case])
    click.echo("Measured on: " + ", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
