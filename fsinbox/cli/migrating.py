"""`fsinbox migrate`: from a queue in a database table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from .exits import EXIT_FAILED, EXIT_FULL
from .options import DURATION, Count, Failure, chosen, create_option, inbox_option, json_option, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..inbox import Inbox
    from ..operate.migration import Place, Rows


@click.command()
@inbox_option
@json_option
@click.option(
    "--table",
    metavar="NAME",
    default="inbox",
    show_default=True,
    help="The table; schema.table, if it has a schema.",
)
@click.option("--key-column", metavar="NAME", default="key", show_default=True, help="The column of keys.")
@click.option(
    "--value-column", metavar="NAME", default="value", show_default=True, help="The column of values."
)
@click.option(
    "--locked-column",
    metavar="NAME",
    default="locked",
    show_default=True,
    help="The column that says that a row was taken: true, not 0, a time or a name. Such rows go first.",
)
@click.option(
    "--order-by", metavar="NAME", help="The column of the order of arrival.  [default: the primary key]"
)
@click.option("--batch", type=Count(1), default=1000, show_default=True, help="Rows to read at once.")
@click.option(
    "--restart", is_flag=True, help="Begin with the first row, even if the last run was interrupted."
)
@click.option("--timeout", type=DURATION, default=0.0, help="Wait for room for each, if it is full.")
@create_option
@click.argument("url", envvar="FSINBOX_MIGRATE_URL", metavar="URL")
def migrate(
    inbox: str | None,
    json: bool,
    table: str,
    key_column: str,
    value_column: str,
    locked_column: str,
    order_by: str | None,
    batch: int,
    restart: bool,
    timeout: float,
    create: bool,
    url: str,
) -> None:
    """Queue the rows of a database table, oldest first.

    URL is SQLAlchemy's: sqlite:///jobs.db, postgresql://host/db.

    Stop the programs that add to the table and that take from it, run this, and start them on the inbox.
    Nothing is deleted from the table. A run that was interrupted, or found the inbox full (exit status 6), is
    continued by the next one; after a complete run it begins again, and replaces waiting values. A row that
    cannot be an element is named and skipped: exit status 1. (Every user of this host sees a password in URL:
    put the URL into $FSINBOX_MIGRATE_URL.)
    """
    from contextlib import closing

    from ..inbox import Inbox
    from ..operate.migration import Place, Source
    from .text import say

    total = Counter(new=0, replaced=0, behind=0, skipped=0)
    with closing(Source(url, table, key_column, value_column, locked_column, order_by)) as source:
        count = source.count()
        with Inbox(chosen(inbox), codec="bytes", create=create) as target:
            place = Place(target.layout, source.identity)
            start = None if restart else place.read()
            if start:
                click.echo("fsinbox: continuing the run that was interrupted", err=True)
            with _bar(count) as advance:
                for rows in source.batches(start, batch):
                    total.update(_add(target, rows, place, timeout))
                    total["skipped"] += len(rows.bad)
                    for name, reason in rows.bad:
                        click.echo(
                            f"fsinbox: skipped the row of {printable(name)}: {printable(reason)}", err=True
                        )
                    place.write(rows.after)
                    advance(len(rows.good) + len(rows.bad))
            place.forget()
    if json:
        say(path=target.path, table=table, **total)
    else:
        _tell(target.path, table, total)
    if total["skipped"]:
        click.get_current_context().exit(EXIT_FAILED)


def _add(target: Inbox, rows: Rows, place: Place, timeout: float) -> Counter[str]:
    """Queue some rows. If the inbox is full, the next run begins behind those that were queued."""
    from ..store.errors import InboxFull

    try:
        return Counter(target.add_many(rows.good, timeout=timeout))
    except InboxFull as error:
        if error.added:
            place.write(rows.ends[error.added - 1])
        raise Failure(
            f"{error}: run this again when there is room, or with --timeout: it goes on there", EXIT_FULL
        ) from error


@contextmanager
def _bar(count: int) -> Iterator[Callable[[int], object]]:
    """Show a bar, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda rows: None
        return
    with click.progressbar(length=count, label="copying", file=sys.stderr) as bar:
        yield bar.update


def _tell(path: str, table: str, total: Counter[str]) -> None:
    counts = ", ".join(f"{total[outcome]} {outcome}" for outcome in ("new", "replaced", "behind"))
    queued = total.total() - total["skipped"]
    click.echo(f"queued {queued} of table {table!r} in {path}: {counts}; {total['skipped']} skipped")
    click.echo("nothing was deleted from the table: drop it yourself when the consumer has drained the inbox")
    click.echo(f"next: fsinbox --inbox {path} consume --handler MODULE:FUNC")
