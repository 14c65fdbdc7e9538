"""The command line of scripts/bench."""

from __future__ import annotations

import os
import sys
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
    "--only", type=click.IntRange(1, len(cases.CASES)), multiple=True, metavar="N", help="Only this case; may be repeated."
)
@click.option("--tiny", is_flag=True, help="A minute's worth: proves that everything runs, measures nothing.")
@click.option("--rounds", type=click.IntRange(1), help="How often each is measured [default: 5].")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Where to work [default: a folder in .].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep figures and plots here.")
@click.option("--docs", is_flag=True, help="Keep them in docs/performance/, and put them into docs/performance.md.")
def main(only: tuple[int, ...], tiny: bool, rounds: int | None, folder: Path | None, out: Path | None, docs: bool) -> None:
    """Measure fsinbox beside what a user would pick instead, and beside the bare system calls.

    Leave the machine alone meanwhile. All twelve cases take about half an hour and 8 GB.
    """
    begun = monotonic()

    def say(text: str) -> None:
        click.echo(f"[{monotonic() - begun:6.0f} s] {text}", err=True)

    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    out = PAGES if docs else out
    measured = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder or os.curdir) as work:
        about = results.machine(Path(work).resolve())
        scale = cases.TINY if tiny else cases.FULL
        if rounds:
            scale = replace(scale, rounds=rounds)
        bench = cases.Bench(scale, Path(work).resolve(), ROOT, say)
        for wanted in only or cases.CASES:
            case = cases.CASES[wanted](bench)
            measured.append(case)
            click.echo(f"\n## {case.number}. {case.title}\n")
            click.echo(report.section(case, "."))
            click.echo()
            if out:
                results.save(out / "results.json", about, [case])
                report.plot(case, out)
    click.echo("Measured on: " + ", ".join(f"{name} {value}" for name, value in about.items()))
    if docs:
        report.fill_page(ROOT / "docs" / "performance.md", measured, "performance")
    missed = [
        f"case {case.number}: {report.verdict(group, target)}"
        for case in measured
        for group in case.groups
        for target in group.targets
        if not group.is_met(target)
    ]
    if missed and not tiny:
        click.echo("\nNot reached:\n" + "\n".join(missed))
    sys.exit(0)


if __name__ == "__main__":
    main()
