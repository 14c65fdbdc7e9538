"""`fsinbox ls` and `failed`: the elements, line by line. The first line is there once the folder is listed,
however many there are.

(Lines, and no table of rich: that would be shown when the last element is known, and costs 30 ms to import.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from .choosing import matching
from .options import DURATION, Count, State, chosen, inbox_option, json_option, keys_argument, printable

if TYPE_CHECKING:
    from ..operate.rows import Row
    from ..store.layout import Layout

_COLOURS = {"failed": "red", "deferred": "yellow", "in_flight": "green"}


def narrowing(what: str) -> Callable[..., Any]:
    """Add --limit, --since and KEY to a command that lists; --since goes by when elements `what`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--since", type=DURATION, help=f"Only those that {what} at most this long ago: 1h."),
            click.option("--limit", type=Count(1), help="At most so many.  [default: all]"),
        ):
            command = option(command)
        taken: Callable[..., Any] = keys_argument(command)
        return taken

    return add


@click.command()
@inbox_option
@json_option
@click.option(
    "--state",
    multiple=True,
    type=State(["in_flight", "waiting", "deferred", "failed", "done"]),
    help="Only these; may be repeated.  [default: all but done]",
)
@narrowing("arrived")
def ls(
    inbox: str | None,
    json: bool,
    state: tuple[str, ...],
    limit: int | None,
    since: float | None,
    keys: tuple[str, ...],
) -> None:
    """List the elements.

    What is in flight, waits (oldest first), is deferred, failed; of KEY only, if it is given, which may be a
    pattern: 'user:*'. Of what is not to be handed out yet it says in how long it will be.
    """
    from time import time_ns

    from ..operate.rows import STATES, label, rows
    from ..operate.units import age, seconds, when
    from ..store.layout import Layout
    from .text import line, say, styled

    layout = Layout(chosen(inbox), create=False)
    found = rows(layout, state or tuple(STATES))
    begin = 0 if since is None else time_ns() - int(since * 1e9)
    _header(f"{'STATE':<9}  {'AGE':>6}  {'SIZE':>10}  KEY", json=json)
    names = {one: styled(f"{label(one):<9}", fg=_COLOURS.get(one)) for one in (*STATES, "done")}
    wanted = (row for row in _named(found, keys) if row.seq >= begin)
    for row, size, due in islice(_looked_at(layout, wanted), limit):
        if json:
            moment = None if due is None else when(due)
            say(key=row.key, state=row.state, seq=row.seq, added_at=when(row.seq), size=size, due=moment)
        else:
            later = "" if due is None else f"  (in {seconds((due - time_ns()) / 1e9)})"
            line(f"{names[row.state]}  {age(row.seq):>6}  {size:>10}  {printable(row.key)}{later}")


@click.command()
@inbox_option
@json_option
@click.option("--traceback", is_flag=True, help="Print each reason in full, with its traceback.")
@narrowing("failed")
def failed(
    inbox: str | None,
    json: bool,
    traceback: bool,
    limit: int | None,
    since: float | None,
    keys: tuple[str, ...],
) -> None:
    """List the failed elements, and why they failed.

    All, or those of KEY, which may be a pattern ('user:*'); the oldest first. Of an exception its type and
    the first line of its message are shown, of a command its exit status and the last line that it printed.
    """
    from time import time_ns

    from ..operate.reasons import summary
    from ..operate.rows import reason, rows
    from ..operate.steering import size_and_time
    from ..operate.units import age, when
    from ..store.layout import Layout
    from .text import line, say

    layout = Layout(chosen(inbox), create=False)
    begin = 0 if since is None else time_ns() - int(since * 1e9)
    _header(f"{'AGE':>6}  {'SIZE':>10}  KEY: REASON", json=json)
    found = ((row, size_and_time(layout, row)) for row in _named(rows(layout, ("failed",)), keys))
    wanted = ((row, *about) for row, about in found if about and about[1] >= begin)
    for row, size, at in islice(wanted, limit):
        why = reason(layout, row)
        if json:
            say(
                key=row.key,
                seq=row.seq,
                added_at=when(row.seq),
                failed_at=when(at),
                size=size,
                summary=summary(why),
                reason=why or "",
                path=f"{layout.path}/failed/{row.file}",
            )
            continue
        line(f"{age(at):>6}  {size:>10}  {printable(row.key)}: {printable(summary(why))}")
        if traceback and why:
            line("".join(f"    {printable(one)}\n" for one in why.splitlines()))


def _named(found: Iterable[Row], words: tuple[str, ...]) -> Iterator[Row]:
    """Go through those whose keys a line names. Reads standard input, if that has them, at once."""
    wanted = matching(words)
    return (row for row in found if wanted(row.key))


def _looked_at(layout: Layout, found: Iterable[Row]) -> Iterator[tuple[Row, int, int | None]]:
    """Go through those that are still there, with size and when they are due."""
    for row in found:
        looked = row.look(layout)
        if looked is not None:
            yield row, *looked


def _header(text: str, *, json: bool) -> None:
    from .text import on_terminal, styled

    if on_terminal() and not json:
        click.echo(styled(text, bold=True))
