"""`fsinbox export` and `fsinbox import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from .options import Failure, chosen, inbox_option, json_option, printable, yes_option

if TYPE_CHECKING:
    from ..operate.archive import Member

_PART = ".part"


@click.command()
@inbox_option
@json_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["in_flight", "waiting", "deferred", "failed", "done"]),
    default=["in_flight", "waiting", "deferred"],
    show_default=True,
    help="What to export; may be repeated.",
)
@yes_option
@click.argument("file")
def export(inbox: str | None, json: bool, states: tuple[str, ...], yes: bool, file: str) -> None:
    """Write elements to FILE, a tar archive; - is standard output. The inbox is not changed; what ends
    meanwhile may be missing.

    FILE appears when it is whole. If it was cut short, the same line goes on from FILE.part.
    """
    from ..operate import archive
    from ..store.layout import Layout
    from .text import say

    layout = Layout(chosen(inbox), create=False)
    order = tuple(state for state in archive.STATES if state in states)
    if file == "-":
        count = archive.write(layout, sys.stdout.buffer, order, progress=lambda done: None, skip=set())
        click.echo(f"fsinbox: exported {count} elements", err=True)
        return
    if os.path.exists(file) and not yes:
        raise click.UsageError(f"{file} is there: name another file, or give --yes to replace it")
    with _open_part(file + _PART) as part:
        before, end = archive.whole_part(part)
        if before:
            click.echo(f"fsinbox: going on with {file}{_PART}: {len(before)} elements are in it", err=True)
        part.seek(end)
        part.truncate()
        with _counting("exporting") as advance:
            count = archive.write(layout, part, order, progress=advance, skip=before)
        part.flush()
        os.fsync(part.fileno())
    os.rename(file + _PART, file)
    if json:
        say(file=os.path.abspath(file), exported=count + len(before))
    else:
        click.echo(f"exported {count + len(before)} elements to {file}")


def _open_part(path: str) -> IO[bytes]:
    """Open what an earlier export has left, or a new file, which only its owner may read."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")


@click.command("import")
@inbox_option
@json_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace values that wait here, too.  [default: they are kept, as the newer ones]",
)
@click.argument("file")
def import_(inbox: str | None, json: bool, replace: bool, file: str) -> None:
    """Queue the elements of FILE, which `fsinbox export` has written; - is standard input. They come behind
    what waits here.

    What had failed goes to failed/, with its reason. If it is cut short, the same line goes on from there
    (but for -).
    """
    from collections import Counter

    from ..inbox import Inbox
    from ..operate import archive
    from .text import say

    counts: Counter[str] = Counter()
    try:
        identity = os.urandom(16) if file == "-" else archive.identity(file)
        source: Any = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise click.UsageError(
            f"cannot read {file}: {error.strerror}: check the path and who may read it"
        ) from error
    with source, Inbox(chosen(inbox), codec="bytes") as target:
        work = archive.Import(target, identity, replace=replace)
        before = work.done
        if before:
            click.echo(f"fsinbox: going on: {before} elements were imported before", err=True)
        try:
            with _counting("importing") as advance:
                for index, member in enumerate(archive.members(source)):
                    if index < before:
                        continue
                    outcome = work.put(member)
                    counts[outcome] += 1
                    advance(work.done)
                    if outcome == "kept":
                        _tell_kept(member, json=json)
        except archive.ArchiveError as error:
            work.note()
            raise Failure(f"{file}: {error}; {counts.total()} elements were imported", 2) from error
        work.finish()
    if json:
        say(
            imported=counts["added"],
            failed=counts["failed"],
            kept=counts["kept"],
            skipped=counts["skipped"],
            before=before,
        )
    else:
        click.echo(
            f"imported {counts['added']} elements into {chosen(inbox)}, {counts['failed']} into failed/; "
            f"{counts['kept']} left out, for one of their key is here; {counts['skipped']} were done"
        )


def _tell_kept(member: Member, *, json: bool) -> None:
    from .text import say

    if json:
        say(key=member.key, outcome="kept", seq=member.seq)
    else:
        click.echo(f"{printable(member.key)}: left out: one of its key is here already", err=True)


@contextmanager
def _counting(label: str) -> Iterator[Callable[[int], object]]:
    """Show on the terminal how many are done; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done: bar.update(task, completed=done)
