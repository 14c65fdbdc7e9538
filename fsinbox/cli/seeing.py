"""`fsinbox status` and `fsinbox metrics`: how an inbox stands, for people, for programs and for what watches
over them; and `fsinbox show`: one element."""

from __future__ import annotations

import click

from .options import COUNT, DURATION, chosen, inbox_option, json_option, key_argument, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..operate.ages import Ages
    from ..operate.status import Summary


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --max-age, --max-waiting and --max-failed to a command."""
    for option in (
        click.option("--max-failed", type=COUNT, help="Critical if more have failed."),
        click.option(
            "--max-waiting", "--max-pending", "max_waiting", type=COUNT, help="Critical if more wait."
        ),
        click.option(
            "--max-age",
            type=DURATION,
            help="Critical if one that is not done is older: 90, 15m, 2h, 1d.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@inbox_option
@json_option
@click.option(
    "--nagios",
    is_flag=True,
    help="Be a monitoring plugin: one line with performance data; exit status 0 OK, 1 warning, 2 critical, "
    "3 unknown.",
)
@limit_options
def status(
    inbox: str | None,
    json: bool,
    nagios: bool,
    max_age: float | None,
    max_waiting: int | None,
    max_failed: int | None,
) -> None:
    """Tell how the inbox stands, with a verdict.

    Who consumes, what waits and for how long, how quickly the work goes.

    Exit status: 0; with --max-age, --max-waiting or --max-failed 1 if one of them is exceeded; 3 if the inbox
    cannot be looked at. Each column of the histogram counts elements up to this age, but older than the
    previous column.
    """
    import sys
    from dataclasses import asdict

    from ..operate.report import Limits, verdict
    from ..operate.status import summary
    from ..store.layout import Layout
    from .exits import EXIT_FAILED
    from .text import say

    if json and nagios:
        raise click.UsageError("--json and --nagios exclude each other")
    found = summary(Layout(chosen(inbox), create=False))
    limits = Limits(max_age, max_waiting, max_failed)
    level, text = verdict(found, limits)
    if nagios:
        from . import plugin

        click.echo(plugin.line(level, text, plugin.performance(found, limits)))
        sys.exit(plugin.STATUSES[level])
    if json:
        say(**asdict(found), level=level, verdict=text)
    else:
        for line in [*lines(found), f"{level}: {text}"]:
            click.echo(line)
    if level == "CRITICAL":
        sys.exit(EXIT_FAILED)


def lines(found: Summary) -> list[str]:
    """Return what `status` prints, but for the verdict."""
    from ..operate.report import later, pause, rate
    from ..operate.units import length, seconds
    from ..store.ignoring import OF_FILE

    def aged(age: float | None, state: str = "") -> str:
        oldest = "" if age is None else f"oldest {seconds(age)}"
        notes = ", ".join(filter(None, [oldest, later(found, state) if state else ""]))
        return f"  ({notes})" if notes else ""

    text = [
        f"inbox     {found.path}",
        f"consumer  {found.consumer or 'none'}" if len(found.consumers) == 1 else "consumers",
    ]
    for one in found.consumers:
        lease = ""
        if one.get("heartbeat") is not None:
            lease = f"epoch {one['epoch']}, heartbeat {seconds(float(str(one['heartbeat'])))} ago"
            lease += ", lapsed" if one["lapsed"] else ""
        if len(found.consumers) > 1:
            text.append(
                f"  {one['shard']:<6}  "
                f"{one['holder'] or 'NONE: its keys wait'}{f'  ({lease})' if lease else ''}"
            )
        elif lease:
            text.append(f"lease     {lease}")
    text += [
        f"waiting   {found.waiting}{aged(found.oldest_waiting, 'waiting')}",
        f"in flight {found.in_flight}{aged(found.oldest_in_flight)}",
        f"deferred  {found.deferred}{aged(found.oldest_deferred, 'deferred')}",
        f"failed    {found.failed}",
    ]
    if found.max_waiting or found.min_free:
        text.append(f"bounds    {_bounds(found)}")
    if found.dropped:
        text.append(f"dropped   {found.dropped}  (not ingested yet)")
    if found.ignored:
        where = f" and {OF_FILE}" if found.ignoring["file"] else ""
        text.append(
            f"ignored   {found.ignored} of these  (by the built-in list{where}: see `fsinbox doctor`)"
        )
    if found.held:
        some = ", ".join(map(printable, found.held[:5]))
        text.append(f"on hold   {len(found.held)}  ({some}{', ...' if len(found.held) > 5 else ''})")
    if found.paused:
        text.append(f"paused    {pause(found).removeprefix('paused ')}")
    text.append(f"rate      {rate(found)}")
    if found.ready:
        pace = found.pace
        text.append(
            "to empty  "
            f"{f'unknown: {pace.why}' if pace.to_empty is None else f'about {length(pace.to_empty)}'}"
        )
        text += histogram(found.ages)
    return text


def _bounds(found: Summary) -> str:
    most = free = ""
    if found.max_waiting:
        most = f"{found.waiting + found.deferred} of {found.max_waiting} may wait"
    if found.min_free:
        free = f"{found.min_free} bytes must stay free"
    return ", ".join(filter(None, (most, free)))


def histogram(ages: Ages) -> list[str]:
    """Draw what waits by age, as Postfix's qshape does: a row for all, and one for each of the commonest
    prefixes of keys."""
    heads = ["T", *(f"{limit // 60}m" for limit in ages.limits), f"{ages.limits[-1] // 60}m+"]
    rows = {"  TOTAL": ages.total} | {
        f"  {printable(prefix)}": counts for prefix, counts in ages.prefixes.items()
    }
    cells = {name: [str(sum(counts)), *map(str, counts)] for name, counts in rows.items()}
    widths = [max(map(len, column)) for column in zip(heads, *cells.values(), strict=True)]
    first = max(map(len, ["ages    ", *(name[:30] for name in cells)]))

    def line(name: str, values: list[str]) -> str:
        return f"{name[:30]:<{first}}  " + " ".join(
            f"{value:>{width}}" for value, width in zip(values, widths, strict=True)
        )

    return [line("ages", heads), *(line(name, values) for name, values in cells.items())]


@click.command()
@inbox_option
@json_option
@click.option("--raw", is_flag=True, help="Print the bytes as they are on a terminal, too.")
@key_argument
def show(inbox: str | None, json: bool, raw: bool, key: str) -> None:
    """Print the payload of KEY.

    It is the one that waits, else the one in flight, deferred or failed.

    On a terminal, characters that it would obey are printed as escapes (\\x1b), unless --raw is given.
    """
    import base64

    from ..operate.rows import find, reason
    from ..operate.units import when
    from ..store.files import open_for_reading
    from ..store.layout import Layout
    from ..store.printing import escaped
    from .exits import EXIT_FAILED
    from .options import Failure
    from .text import say

    layout = Layout(chosen(inbox), create=False)
    row = find(layout, key)
    if row is None:
        raise Failure(
            f"no element of key {key!r} in {layout.path}: `fsinbox ls` shows what there is", EXIT_FAILED
        )
    try:
        with open(open_for_reading(layout, row.folder, row.file), "rb") as file:
            data = file.read()
    except OSError as error:
        raise Failure(f"cannot read {row.folder}/{row.file}: {error.strerror}", EXIT_FAILED) from error
    except MemoryError as error:
        path = f"{layout.path}/{row.folder}/{row.file}"
        raise Failure(f"{path} is too large for the memory: look at it there", EXIT_FAILED) from error
    why = reason(layout, row) if row.state == "failed" else None
    if not json:
        if why:
            click.echo(escaped(why), err=True)
        _write(data, raw=raw)
        return
    due = (row.look(layout) or (0, None))[1]
    members: dict[str, object] = {
        "key": row.key,
        "state": row.state,
        "seq": row.seq,
        "added_at": when(row.seq),
        "path": f"{layout.path}/{row.folder}/{row.file}",
        "size": len(data),
        "due": None if due is None else when(due),
    }
    try:
        members["text"] = data.decode("utf-8")
    except UnicodeDecodeError:
        members["base64"] = base64.b64encode(data).decode("ascii")
    if why:
        members["reason"] = why
    say(**members)


def _write(data: bytes, *, raw: bool) -> None:
    """Write a payload to standard output, if there is one; to a terminal escaped, unless `raw`."""
    import sys

    from ..store.printing import escaped

    if sys.stdout is None:
        return
    if sys.stdout.isatty() and not raw:
        text = escaped(data.decode("utf-8", "surrogateescape"))
        data = text.encode(sys.stdout.encoding, "backslashreplace")
    sys.stdout.buffer.write(data)


@click.command()
@inbox_option
def metrics(inbox: str | None) -> None:
    """Print metrics for Prometheus, once.

    For an inbox whose consumer does not serve them itself.

    For node_exporter, from a timer: fsinbox metrics >fsinbox.prom.new && mv fsinbox.prom.new fsinbox.prom
    """
    from ..store.layout import Layout

    try:
        from ..worker.metrics import once
    except ImportError as error:
        raise click.UsageError(str(error)) from error

    click.echo(once(Layout(chosen(inbox), create=False)), nl=False)
