"""`fsinbox migrate`: from an inbox in a database table."""

from __future__ import annotations

import click

from .options import chosen, create_option, inbox_option, json_option, printable


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
@click.option("--key-column", metavar="NAME", default="key", show_default=True, help="What is the key.")
@click.option("--value-column", metavar="NAME", default="value", show_default=True, help="What is the value.")
@click.option(
    "--locked-column",
    metavar="NAME",
    default="locked",
    show_default=True,
    help="The column that tells that a row was taken: true, not 0, a time or a name. Such rows go first.",
)
@click.option(
    "--order-by", metavar="NAME", help="What tells the order of arrival.  [default: the primary key]"
)
@click.option(
    "--batch", type=click.IntRange(1), default=1000, show_default=True, help="Rows that are read at once."
)
@click.option(
    "--restart", is_flag=True, help="Begin with the first row, even if a run before was interrupted."
)
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
    create: bool,
    url: str,
) -> None:
    """Queue the rows of a database table, oldest first. URL is SQLAlchemy's: sqlite:///jobs.db,
    postgresql://host/db.

    Stop what adds to the table and what takes from it, run this, and start them again on the inbox. Nothing
    is deleted from the table. A run that was interrupted goes on where it was; a run after a whole one begins
    anew, and replaces what still waits. A row that cannot be an element is told, and left: exit status 1. (A
    password in URL is seen by every user of this host: put the URL into $FSINBOX_MIGRATE_URL.)
    """
    import sys
    from contextlib import closing, nullcontext

    from ..inbox import Inbox
    from ..operate.migration import Place, Source
    from .exits import EXIT_FAILED
    from .text import say

    with closing(Source(url, table, key_column, value_column, locked_column, order_by)) as source:
        count = source.count()
        with Inbox(chosen(inbox), codec="bytes", create=create) as target:
            path = target.path
            place = Place(target.layout, source.identity)
            start = None if restart else place.read()
            if start:
                click.echo("fsinbox: going on where the run before was interrupted", err=True)
            total = {"new": 0, "replaced": 0, "behind": 0}
            left = 0
            on_terminal = sys.stderr.isatty()
            with (
                click.progressbar(length=count, label="copying", file=sys.stderr)
                if on_terminal
                else nullcontext() as bar
            ):
                for rows in source.batches(start, batch):
                    for outcome, number in target.add_many(rows.good).items():
                        total[outcome] += number
                    for name, reason in rows.bad:
                        left += 1
                        click.echo(
                            f"fsinbox: left out the row with {printable(name)}: {printable(reason)}", err=True
                        )
                    place.write(rows.after)
                    if bar:
                        bar.update(len(rows.good) + len(rows.bad))
            place.forget()
    if json:
        say(path=path, table=table, **total, left_out=left)
    else:
        counts = ", ".join(f"{number} {outcome}" for outcome, number in total.items())
        click.echo(f"queued {sum(total.values())} of table {table!r} in {path}: {counts}; {left} left out")
        click.echo("nothing was deleted from the table: drop it yourself when the consumer is through")
        click.echo(f"next: fsinbox --inbox {path} consume --handler MODULE:FUNC")
    if left:
        click.get_current_context().exit(EXIT_FAILED)
