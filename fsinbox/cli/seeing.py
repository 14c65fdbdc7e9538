"""`fsinbox status` and `fsinbox metrics`: how an inbox stands, for people, for programs and for what watches
over them."""

from __future__ import annotations

import click

from .options import DURATION, chosen, inbox_option, json_option, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..operate.survey import Ages, Summary


class Limits:
    """What an inbox must not exceed, each None for no limit. `age` in seconds, of the oldest that is not
    done."""

    def __init__(
        self, age: float | None = None, pending: int | None = None, failed: int | None = None
    ) -> None:
        self.age = age
        self.pending = pending
        self.failed = failed


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --max-age, --max-pending and --max-failed to a command."""
    for option in (
        click.option(
            "--max-failed", type=click.IntRange(0), metavar="N", help="Critical if more have failed."
        ),
        click.option("--max-pending", type=click.IntRange(0), metavar="N", help="Critical if more wait."),
        click.option(
            "--max-age",
            type=DURATION,
            metavar="DURATION",
            help="Critical if one that is not done is older: 90, 15m, 2h, 1d.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@inbox_option
@json_option
@limit_options
def status(
    inbox: str | None, json: bool, max_age: float | None, max_pending: int | None, max_failed: int | None
) -> None:
    """Tell how the inbox stands: who consumes, what waits and for how long, how quickly the work goes, and a
    verdict.

    Exit status: 0; with --max-age, --max-pending or --max-failed 1 if one of them is exceeded; 3 if the inbox
    cannot be looked at. Each column of the histogram counts what has waited for so long, and longer than the
    column before says.
    """
    import sys
    from dataclasses import asdict

    from ..operate import survey
    from ..store.layout import Layout
    from . import EXIT_FAILED
    from .text import say

    found = survey.summary(Layout(chosen(inbox), create=False))
    level, text = verdict(found, Limits(max_age, max_pending, max_failed))
    if json:
        say(**asdict(found), level=level, verdict=text)
    else:
        for line in [*lines(found), f"{level}: {text}"]:
            click.echo(line)
    if level == "CRITICAL":
        sys.exit(EXIT_FAILED)


def verdict(found: Summary, limits: Limits) -> tuple[str, str]:
    """Return how it is in one line: "OK", "WARNING" (a person may want to know) or "CRITICAL" (a limit is
    exceeded), and why."""
    from .text import seconds

    oldest = max(
        (age for age in (found.oldest_waiting, found.oldest_out, found.oldest_deferred) if age is not None),
        default=0.0,
    )
    broken = []
    if limits.age is not None and oldest > limits.age:
        broken.append(f"the oldest is there for {seconds(oldest)}, more than {seconds(limits.age)}")
    if limits.pending is not None and found.waiting > limits.pending:
        broken.append(f"{found.waiting} wait, more than {limits.pending}")
    if limits.failed is not None and found.failed > limits.failed:
        broken.append(f"{found.failed} failed, more than {limits.failed}")
    odd = oddities(found, failures=limits.failed is None)
    if broken:
        return "CRITICAL", "; ".join(broken + odd)
    if odd:
        return "WARNING", "; ".join(odd)
    if not found.waiting:
        return "OK", "nothing waits"
    text = f"{found.waiting} {'waits' if found.waiting == 1 else 'wait'}"
    return "OK", f"{text}, done in about {length(found.pace.to_empty)}" if found.pace.to_empty else text


def oddities(found: Summary, *, failures: bool) -> list[str]:
    """Return what a person may want to know though no limit says so; that something has failed only if
    `failures`."""
    odd = []
    if found.stuck is not None:
        odd.append(f"the lock is held, and all adds wait: {found.stuck}")
    missing = [str(one["shard"]) for one in found.consumers if not one["holder"]]
    there = found.waiting + found.out + found.deferred + found.dropped
    if found.consumer is None and there:
        odd.append(f"nobody consumes, and {there} {'is' if there == 1 else 'are'} there")
    elif missing and found.consumer:
        odd.append(f"no consumer of shard {', '.join(missing)}: its keys wait")
    odd += [f"the lease of {one['holder']} has lapsed" for one in found.consumers if one.get("lapsed")]
    if found.paused:
        odd.append(pause(found))
    if found.failed and failures:
        odd.append(f"{found.failed} failed: see `fsinbox failed`")
    return odd


def pause(found: Summary) -> str:
    """Return who has paused the consumer, and until when."""
    from .text import when

    until = (
        "until it is resumed"
        if found.paused_until is None
        else f"until {when(int(found.paused_until * 1e9))[:19]}+00:00"
    )
    return f"paused {until}{f' by {found.paused_by}' if found.paused_by else ''}"


def lines(found: Summary) -> list[str]:
    """Return what `status` prints, but for the verdict."""
    from .text import seconds

    def aged(age: float | None) -> str:
        return "" if age is None else f"  (oldest {seconds(age)})"

    text = [
        f"inbox     {found.path}",
        f"consumer  {found.consumer or 'none'}" if len(found.consumers) == 1 else "consumers",
    ]
    for one in found.consumers:
        lease = ""
        if one.get("sign") is not None:
            lease = f"epoch {one['epoch']}, sign of life {seconds(float(str(one['sign'])))} ago"
            lease += ", lapsed" if one["lapsed"] else ""
        if len(found.consumers) > 1:
            text.append(
                f"  {one['shard']:<6}  "
                f"{one['holder'] or 'NONE: its keys wait'}{f'  ({lease})' if lease else ''}"
            )
        elif lease:
            text.append(f"lease     {lease}")
    text += [
        f"waiting   {found.waiting}{aged(found.oldest_waiting)}",
        f"out       {found.out}{aged(found.oldest_out)}",
        f"deferred  {found.deferred}{aged(found.oldest_deferred)}",
        f"failed    {found.failed}",
    ]
    if found.dropped:
        text.append(f"dropped   {found.dropped}  (not adopted yet)")
    if found.held:
        some = ", ".join(map(printable, found.held[:5]))
        text.append(f"on hold   {len(found.held)}  ({some}{', ...' if len(found.held) > 5 else ''})")
    if found.paused:
        text.append(f"paused    {pause(found).removeprefix('paused ')}")
    text.append(f"rate      {rate(found)}")
    if found.waiting:
        pace = found.pace
        text.append(
            "to empty  "
            f"{f'unknown: {pace.why}' if pace.to_empty is None else f'about {length(pace.to_empty)}'}"
        )
        text += histogram(found.ages)
    return text


def rate(found: Summary) -> str:
    """Return how quickly the work goes: "12.3/min over the last 4m"."""
    from time import time

    from .text import seconds

    pace = found.pace
    if pace.rate is None:
        return "unknown: only `fsinbox consume` keeps an account"
    last = "" if pace.last is None else f"; the last {seconds(time() - pace.last)} ago"
    return f"{pace.rate:.4g}/min acknowledged over the last {seconds(pace.window)}{'' if pace.rate else last}"


def length(whole: float) -> str:
    """Return a length of time (seconds) in its two largest units: 1h5m, 12s."""
    for size, unit, less, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{int(whole // size)}{unit}{int(whole % size // less)}{part}"
    return f"{max(1, round(whole))}s"


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
def metrics(inbox: str | None) -> None:
    """Print metrics as Prometheus reads them, once: for an inbox whose consumer does not serve them itself.

    For node_exporter, from a timer: fsinbox metrics >fsinbox.prom.new && mv fsinbox.prom.new fsinbox.prom
    """
    from ..store.layout import Layout

    try:
        from ..worker.metrics import once
    except ImportError as error:
        raise click.UsageError(str(error)) from error

    click.echo(once(Layout(chosen(inbox), create=False)), nl=False)
