"""`fsinbox top`: a live view of an inbox on a terminal."""

from __future__ import annotations

import click

from .options import Duration, chosen, inbox_option, printable
from .seeing import limit_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rich.console import Console, RenderableType

    from ..operate.report import Limits
    from ..operate.stats import ConsumerStats
    from ..operate.status import Summary
    from ..store.layout import Layout

HISTORY = 60
"""Columns of a plot: minutes, or looks."""

LISTED = 10
"""Elements at work that are shown, and failures."""

_SHARE = 5
"""A look takes one part in so many of the time at most: with millions waiting the view is renewed less often
than asked."""

_BARS, _PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"

_STYLES = {"OK": "bold green", "WARNING": "bold yellow", "CRITICAL": "bold red"}


@click.command()
@inbox_option
@limit_options
@click.option(
    "--interval",
    type=Duration("100ms", "1h"),
    default="2s",
    show_default=True,
    help="From one look to the next.",
)
def top(
    inbox: str | None, max_age: float | None, max_waiting: int | None, max_failed: int | None, interval: float
) -> None:
    """Watch the inbox on the terminal.

    How it stands, how quickly the work goes, what is in flight, what failed last.

    The plots are of the last hour, a column a minute, and of what waited since this was started, a column a
    look. q or Ctrl-C quits. For scripts there is `fsinbox status --json`.
    """
    import sys

    from rich.console import Console

    from ..operate.report import Limits
    from ..store.layout import Layout

    layout = Layout(chosen(inbox), create=False)
    console = Console()
    if not (sys.stdin and sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        raise click.UsageError(
            "top needs a terminal to draw on: for scripts, pipes and plain terminals there is `fsinbox "
            "status`"
        )
    # A key may have characters that this terminal lacks.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        watch(layout, Limits(max_age, max_waiting, max_failed), interval, console)
    except KeyboardInterrupt:
        pass


def watch(layout: Layout, limits: Limits, interval: float, console: Console) -> None:
    """Show the view until q is pressed. Raises KeyboardInterrupt; UnusableInbox, OSError if the inbox can no
    longer be seen."""
    from time import monotonic

    from rich.live import Live

    view = View(layout, limits, plain=not console.encoding.startswith("utf"))
    with keyboard() as quits_within, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begun = monotonic()
            live.update(view.look(console.width), refresh=True)
            if quits_within(max(interval, (monotonic() - begun) * _SHARE)):
                return


def keyboard() -> AbstractContextManager[Callable[[float], bool]]:
    """Read single keys of the terminal, without echo, as long as this lasts; then it is as it was, also after
    SIGTERM or SIGHUP.

    Gives a function that waits so many seconds, less if a key is pressed, and tells whether it was one to
    quit.
    """
    import os
    import select
    import signal
    import sys
    import termios
    from contextlib import contextmanager, suppress
    from tty import setcbreak

    ear, voice = os.pipe()

    @contextmanager
    def reading():  # type: ignore[no-untyped-def]
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        # A signal that comes just before we begin to wait would else only be noticed when the wait is over.
        os.set_blocking(ear, False)
        os.set_blocking(voice, False)
        heard = signal.set_wakeup_fd(voice)
        try:
            setcbreak(fd)
            modes = termios.tcgetattr(fd)
            modes[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell on our screen
            modes[6][termios.VMIN] = 0  # a read never waits: Ctrl-C takes back what was typed before it
            termios.tcsetattr(fd, termios.TCSANOW, modes)
            yield quits_within
        finally:
            signal.set_wakeup_fd(heard)
            with suppress(termios.error):  # it may have gone
                termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def quits_within(seconds: float) -> bool:
        fd = sys.stdin.fileno()
        if fd not in select.select([fd, ear], [], [], seconds)[0]:
            return False
        pressed = os.read(fd, 100)
        if not pressed:
            return bool(select.select([fd], [], [], 0)[0])  # whether the terminal has gone
        return bool(set(pressed) & set(b"qQ\x04"))

    return reading()


class View:
    """What is shown. It remembers how many waited at each look."""

    def __init__(self, layout: Layout, limits: Limits, *, plain: bool) -> None:
        """`plain`: draw with ASCII only."""
        from collections import deque

        self._layout = layout
        self._limits = limits
        self._bars = _PLAIN if plain else _BARS
        self._depth: deque[int] = deque(maxlen=HISTORY)

    def look(self, width: int) -> RenderableType:
        """Look at the inbox and return what is to be shown, `width` columns wide. Raises UnusableInbox,
        OSError."""
        from rich.console import Group

        from ..operate.stats import read_stats
        from ..operate.status import summary
        from ..store.errors import UnusableInbox

        if gone := self._layout.where_it_went():
            raise UnusableInbox(f"inbox {self._layout.path} {gone} while it was being watched")
        found = summary(self._layout)
        every = read_stats(self._layout)
        self._depth.append(found.waiting)
        return Group(
            *head(found, every, self._limits),
            *self._plots(every, width),
            *at_work(found, every),
            *failures(every),
        )

    def _plots(self, every: list[ConsumerStats], width: int) -> list[RenderableType]:
        from rich.text import Text

        columns = max(10, min(HISTORY, width - 20))
        lines: list[RenderableType] = [
            Text(""),
            Text(f"{'last hour':<13}{'':<{columns}}  peak", style="bold"),
        ]
        series = {
            name: by_minute(every, column)
            for column, name in enumerate(("acknowledged", "failed", "arrived"), 1)
        }
        for name, values in {**series, "waiting": list(self._depth)}.items():
            shown = bars(values[-columns:], self._bars)
            lines.append(
                Text.assemble(
                    f"{name:<13}", (f"{shown:>{columns}}", "cyan"), f" {short(max(values)):>5}", no_wrap=True
                )
            )
        return lines


def head(found: Summary, every: list[ConsumerStats], limits: Limits) -> list[RenderableType]:
    """Return the lines of how the inbox stands."""
    from time import strftime

    from rich.text import Text

    from ..operate.consumers import stats_of
    from ..operate.report import later, rate, verdict
    from ..operate.rows import label
    from ..operate.units import length, seconds

    def line(*parts: str | tuple[str, str]) -> Text:
        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    level, text = verdict(found, limits)
    clock = strftime("%H:%M:%S")
    lines: list[RenderableType] = [
        line(("fsinbox top", "bold"), (f"  {clock}  q quits  ", "dim"), printable(found.path)),
        line((level, _STYLES[level]), f": {text}"),
    ]
    for one in found.consumers[:4]:
        stats = stats_of(one, every)
        does = f": {printable(stats.handler)}, {stats.concurrency} at once" if stats else ""
        lines.append(line(("consumer  ", "bold"), f"{one['shard']}  {one['holder'] or 'none'}{does}"))
    if len(found.consumers) > 4:
        lines.append(line(f"          and {len(found.consumers) - 4} more: see `fsinbox status`"))
    counts: list[str | tuple[str, str]] = []
    ages = {
        "waiting": found.oldest_waiting,
        "in_flight": found.oldest_in_flight,
        "deferred": found.oldest_deferred,
    }
    for state in ("waiting", "in_flight", "deferred", "failed", "dropped"):
        age = ages.get(state)
        aged = "" if age is None else seconds(age)
        notes = ", ".join(filter(None, [aged, later(found, state) if state in found.later else ""]))
        counts += [
            (f"{label(state)} ", "bold"),
            f"{getattr(found, state)}{f' ({notes})' if notes else ''}   ",
        ]
    counts += [("on hold ", "bold"), str(len(found.held))]
    ends = (
        found.pace.why
        if found.pace.to_empty is None
        else f"about {length(found.pace.to_empty)}"
        if found.ready
        else "now"
    )
    return [
        *lines,
        Text(""),
        line(*counts),
        line(("rate ", "bold"), f"{rate(found)}   ", ("empty ", "bold"), ends),
    ]


def at_work(found: Summary, every: list[ConsumerStats]) -> list[RenderableType]:
    """Return the lines of what is in flight, the longest first."""
    from time import time

    from ..operate.consumers import stats_of
    from ..operate.units import length

    now = time()
    current = [stats for one in found.consumers if (stats := stats_of(one, every))]
    running = sorted((one for stats in current for one in stats.running), key=lambda one: one.started)
    rows = [(length(now - one.started), f"attempt {one.attempts}", printable(one.key)) for one in running]
    return listing(f"in flight: {len(running)}", rows)


def failures(every: list[ConsumerStats]) -> list[RenderableType]:
    """Return the lines of the newest failures, the newest first."""
    from time import time

    from ..operate.units import length

    now = time()
    newest = sorted((one for stats in every for one in stats.failures), key=lambda one: one.at, reverse=True)
    rows = [
        (
            length(now - one.at),
            "given up" if one.last else "tried again",
            f"{printable(one.key)}: {printable(one.summary)}",
        )
        for one in newest
    ]
    return listing("newest failures" if rows else "no failures", rows)


def listing(title: str, rows: Sequence[tuple[str, str, str]]) -> list[RenderableType]:
    """Return a title and rows of three cells, LISTED at most."""
    from rich.text import Text

    lines = [Text(""), Text(title, style="bold")]
    for age, what, text in rows[:LISTED]:
        lines.append(Text(f"{age:>8}  {what:<11}  {text}", no_wrap=True, overflow="ellipsis"))
    if len(rows) > LISTED:
        lines.append(Text(f"{'':>8}  and {len(rows) - LISTED} more", style="dim"))
    return [*lines]


def by_minute(every: list[ConsumerStats], column: int) -> list[int]:
    """Return the numbers of the last HISTORY minutes, this one last. `column`: of ConsumerStats.minutes."""
    from time import time

    now = int(time() // 60)
    values = [0] * HISTORY
    for stats in every:
        for minute in stats.minutes:
            if 0 <= now - minute[0] < HISTORY:
                values[HISTORY - 1 - (now - minute[0])] += minute[column]
    return values


def bars(values: Sequence[int], levels: str) -> str:
    """Draw numbers as a line of bars, the highest as high as it gets; what is not 0 is seen."""
    peak = max(values, default=0) or 1
    return "".join(levels[-(-value * (len(levels) - 1) // peak)] for value in values)


def short(number: int) -> str:
    """Return a number in five characters at most: 99999, 1.2M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**5, "")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if unit else f"{number // 1000}k"
    return str(number)
