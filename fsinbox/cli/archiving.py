"""`fsinbox export` and `fsinbox import`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import click

from .exits import EXIT_FAILED, EXIT_FULL, EXIT_UNUSABLE, EXIT_USAGE
from .options import (
    DURATION,
    SIZE,
    Failure,
    Renamed,
    State,
    chosen,
    create_option,
    inbox_option,
    json_option,
    printable,
    yes_option,
)

if TYPE_CHECKING:
    from ..operate.archive import Member, Written
    from ..store.layout import Layout

# --- export -------------------------------------------------------------------------------------------


@click.command()
@inbox_option
@json_option
@click.option(
    "--state",
    "states",
    cls=Renamed,
    multiple=True,
    type=State(["in_flight", "waiting", "deferred", "failed", "done"]),
    default=["in_flight", "waiting", "deferred"],
    show_default=True,
    help="What to export; may be repeated.",
)
@yes_option
@click.argument("file")
def export(inbox: str | None, json: bool, states: tuple[str, ...], yes: bool, file: str) -> None:
    """Write elements to an archive.

    FILE is a tar archive; - is standard output. The inbox is not changed.

    An export is not an atomic snapshot: what is added, taken or done meanwhile may be missing. FILE appears
    when it is complete, and only you may read it. What is in other states, or in drop/, is left out: the last
    line counts it. Exit status 1 if an element could not be read.
    """
    from ..operate import archive
    from ..store.layout import Layout

    layout = Layout(chosen(inbox), create=False)
    order = tuple(state for state in archive.STATES if state in states)
    if file == "-":
        written = _to_standard_output(layout, order)
    else:
        if os.path.exists(file) and not yes:
            raise click.UsageError(f"{file} exists: name another file, or add --yes to replace it")
        written = _to_file(layout, order, file)
    _tell_export(written, file, json=json)
    if written.unreadable:
        sys.exit(EXIT_FAILED)


def _to_standard_output(layout: Layout, order: tuple[str, ...]) -> Written:
    from ..operate import archive

    if sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: redirect it, or name a file instead of -")
    try:
        written = archive.write(layout, sys.stdout.buffer, order, progress=lambda done: None)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise Failure("the archive is incomplete: its reader has closed the pipe", EXIT_UNUSABLE) from error
    return written


def _to_file(layout: Layout, order: tuple[str, ...], file: str) -> Written:
    from ..operate import archive
    from ..store.replacing import Replacement

    try:
        replacement = Replacement(file, 0o600, durable=True)  # which only its owner may read
    except OSError as error:
        text = f"cannot write {file}: {error.strerror}: check its folder, or name another file"
        raise Failure(text, EXIT_UNUSABLE) from error
    with replacement as draft, _counting("exporting") as advance:
        return archive.write(layout, draft, order, progress=advance)


def _tell_export(written: Written, file: str, *, json: bool) -> None:
    """Print what was exported and what was not; on standard error if the archive is on standard output."""
    from ..operate.rows import label
    from ..operate.units import counted
    from .text import say

    for key, why in written.unreadable.items():
        click.echo(f"fsinbox: {printable(key)}: left out: cannot be read: {why}", err=True)
    counts = [
        f"{count} {'in drop/' if state == 'drop' else label(state)}"
        for state, count in written.left_out.items()
    ]
    others = f"; left out: {', '.join(counts)}" if counts else ""
    if file == "-":
        click.echo(f"fsinbox: exported {counted(written.exported)}{others}", err=True)
    elif json:
        say(
            file=os.path.abspath(file),
            exported=written.exported,
            unreadable=len(written.unreadable),
            left_out=written.left_out,
        )
    else:
        click.echo(f"exported {counted(written.exported)} to {printable(file)}{others}")


# --- import -------------------------------------------------------------------------------------------


@click.command("import")
@inbox_option
@json_option
@click.option("--replace", is_flag=True, help="Replace waiting values.  [default: they are newer, and stay]")
@click.option("--max-size", type=SIZE, help="Skip larger elements.  [default: no limit]")
@click.option("--timeout", type=DURATION, default=0.0, help="Wait for room for each, if it is full.")
@create_option
@click.argument("file")
def import_(
    inbox: str | None,
    json: bool,
    replace: bool,
    max_size: int | None,
    timeout: float,
    create: bool,
    file: str,
) -> None:
    """Queue the elements of an export.

    FILE is what `fsinbox export` has written; - is standard input. They stand behind what is waiting.

    Failed elements go to failed/, with their reasons. If it is interrupted, FILE is incomplete, or the inbox
    is full, the next run continues there. Exit status: 1 if an element was too large, 2 if FILE is damaged or
    incomplete, 6 if the inbox is full (fsinbox limit).
    """
    from itertools import chain, islice

    from ..inbox import Inbox
    from ..operate import archive
    from ..operate.units import counted
    from ..store.errors import InboxFull

    counts: Counter[str] = Counter()
    with _source(file) as source, Inbox(chosen(inbox), codec="bytes", create=create) as target:
        try:
            found = archive.members(source)
            first = [*islice(found, 1)]
            work = archive.Import(
                target, _identity(file, first), replace=replace, max_size=max_size, timeout=timeout
            )
            before = work.done
            if before:
                click.echo(f"fsinbox: continuing; imported before: {counted(before)}", err=True)
            with _counting("importing") as advance:

                def tell(member: Member, outcome: str) -> None:
                    counts[outcome] += 1
                    advance(work.done)
                    _tell_member(member, outcome, json=json)

                work.put_all(chain(first, found), tell)
        except archive.ArchiveError as error:
            raise Failure(
                f"{printable(file)}: {error}: imported so far: {counted(counts.total())}; export or copy it "
                "again, and import that: it continues there",
                EXIT_USAGE,
            ) from error
        except InboxFull as error:
            raise Failure(
                f"{error}: imported so far: {counted(counts.total())}; import {printable(file)} again when "
                "there is room, or with --timeout: it continues there",
                EXIT_FULL,
            ) from error
    _tell_import(counts, before, chosen(inbox), json=json)
    if counts["large"]:
        sys.exit(EXIT_FAILED)


def _source(file: str) -> IO[bytes]:
    if file == "-" and sys.stdin and sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal: redirect it, or name a file instead of -")
    try:
        return sys.stdin.buffer if file == "-" else open(file, "rb")
    except OSError as error:
        text = f"cannot read {file}: {error.strerror}: check the path, and who may read it"
        raise click.UsageError(text) from error


def _identity(file: str, first: list[Member]) -> bytes:
    """Return what tells the archive from others. One of an earlier version in a pipe is like no other."""
    from ..operate import archive

    if file == "-" and not (first and first[0].export):
        return os.urandom(16)
    return archive.identity(file, first[0] if first else None)


_SKIPPED = {
    "kept": "skipped: its key is there already",
    "large": "skipped: larger than --max-size",
}


def _tell_member(member: Member, outcome: str, *, json: bool) -> None:
    from .text import say

    if outcome not in _SKIPPED:
        return
    if json:
        say(key=member.key, outcome=outcome, seq=member.seq)
    else:
        click.echo(f"{printable(member.key)}: {_SKIPPED[outcome]}", err=True)


def _tell_import(counts: Counter[str], before: int, inbox: str, *, json: bool) -> None:
    from ..operate.units import counted
    from .text import say

    names = {"added": "imported", "failed": "failed", "kept": "kept", "skipped": "skipped", "large": "large"}
    if json:
        say(**{name: counts[outcome] for outcome, name in names.items()}, before=before)
        return
    skipped = {"kept": "key already there", "skipped": "done", "large": "too large"}
    rest = "".join(
        f"; {counts[outcome]} skipped ({why})" for outcome, why in skipped.items() if counts[outcome]
    )
    failed = f", {counts['failed']} into failed/" if counts["failed"] else ""
    click.echo(f"imported {counted(counts['added'])} into {printable(inbox)}{failed}{rest}")


@contextmanager
def _counting(label: str) -> Iterator[Callable[[int], object]]:
    """Show the progress, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done: bar.update(task, completed=done)
