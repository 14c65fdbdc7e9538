"""The command line of scripts/bench."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import click

from . import bench, cases, commands, disks, report, results

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "performance"

FIRST = 4
"""The case that answers the first question: how does it compare, from end to end?"""

CASES: dict[int, Callable[[bench.Bench], results.Case]] = {
    1: cases.durable_add,
    2: cases.durable_many,
    3: cases.durable_take,
    FIRST: cases.compare,
    5: cases.overhead,
    6: cases.replace,
    8: commands.wake_up,
    9: cases.fairness,
    10: commands.cold,
    11: commands.concurrency,
    12: commands.journal,
    7: commands.depth,  # last: it leaves a million files
}

_ROOM = 10 << 30
"""Bytes of a fresh disk: a million elements, and what databases leave."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    type=click.IntRange(1, max(CASES)),
    multiple=True,
    metavar="N",
    help="Only this case; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="All twelve cases: 20 minutes, 10 GB.")
@click.option("--tiny", is_flag=True, help="All at a tiny size: proves that it runs, measures nothing.")
@click.option("--rounds", type=click.IntRange(1), help="How often each is measured [default: 5; brief: 3].")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work [default: a folder in .].",
)
@click.option(
    "--fresh", is_flag=True, help="Work on a fresh ext4 with a journal, in a loop device there: for root."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep figures and plots here.")
@click.option(
    "--docs",
    is_flag=True,
    help="Keep them in docs/performance/, and put them into docs/performance.md and README.md; with --fresh, "
    "where it can be had and --dir says nothing else.",
)
@click.option("--redraw", is_flag=True, help="Measure nothing: draw and write what was kept anew.")
def main(
    only: tuple[int, ...],
    everything: bool,
    tiny: bool,
    rounds: int | None,
    folder: Path | None,
    fresh: bool,
    out: Path | None,
    docs: bool,
    redraw: bool,
) -> None:
    """Measure fsinbox beside what a user would pick instead, and beside the bare system calls.

    Leave the machine alone meanwhile. Two minutes tell how it compares from end to end: one process adds,
    another takes. The rest is in twelve cases: --only and --all. A contender that fails is left out, and
    named; if a case fails, the exit status is 1.
    """
    # Else a fresh disk would stay mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = PAGES if docs else out
    whole = everything or (tiny and not only)
    failed: list[str] = []
    if not redraw:
        brief = not (only or whole)
        scale = bench.TINY if tiny else bench.BRIEF if brief else bench.FULL
        wanted = tuple(CASES) if whole else only or (FIRST,)
        fresh = fresh or (docs and not folder and not disks.missing())
        if fresh and disks.missing():
            raise click.UsageError(f"--fresh: {disks.missing()}")
        if whole and out:
            (out / "results.json").unlink(missing_ok=True)  # figures of one run are of one run
        with _place(folder or Path(), fresh=fresh) as place:
            failed = measure(wanted, replace(scale, rounds=rounds or scale.rounds), place, out, fresh=fresh)
    if out and (out / "results.json").exists():
        about, kept = results.load(out / "results.json")
        for case in kept:
            report.plot(case, out)
        if docs:
            report.plot(report.shown_first(kept), out)
            for page in (PAGES.with_suffix(".md"), ROOT / "README.md"):
                report.fill_page(page, about, kept, PAGES.name)
    if failed:
        raise click.ClickException("; ".join(failed))


@contextmanager
def _place(folder: Path, *, fresh: bool) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not fresh:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=folder))
            yield Path(work).resolve()
            return
        try:
            place = stack.enter_context(disks.fresh(folder, _ROOM))
        except OSError as error:
            raise click.UsageError(f"no fresh disk in {folder}: {error}: name another --dir") from error
        yield place


def measure(
    wanted: tuple[int, ...], scale: bench.Scale, place: Path, out: Path | None, *, fresh: bool
) -> list[str]:
    """Measure some cases in a folder, print each, and keep it. Return which failed, and why."""
    begun = monotonic()
    failed = []

    def say(text: str) -> None:
        click.echo(f"[{monotonic() - begun:6.0f} s] {text}", err=True)

    about = results.machine(place)
    try:
        if out:
            results.kept_of(out / "results.json", about)
    except results.OtherMachine as error:
        raise click.UsageError(str(error)) from error
    for number in wanted:
        try:
            case = CASES[number](bench.Bench(scale, place, ROOT, say, fresh))
        except Exception as error:
            click.echo(traceback.format_exc(), err=True)
            failed.append(f"case {number} failed: {error}")
            continue
        click.echo(f"\n## {case.number}. {case.title}\n\n{report.section(case, out and '.')}\n")
        if out:
            results.save(out / "results.json", about, [case])
    click.echo(f"Measured on: {report.machine(about)}")
    return failed


if __name__ == "__main__":
    main()
