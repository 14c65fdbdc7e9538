"""What the commands share: the inbox that a line names, errors with our exit statuses, names that may be
printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import click

from ..store.amounts import rate, seconds, size
from .variables import INBOX

Command = Callable[..., Any]


def variable(ctx: click.Context, option: click.Option) -> str:
    """Return the environment variable of an option: FSINBOX_<COMMAND>_<OPTION>, by its long name."""
    return f"{ctx.auto_envvar_prefix}_{max(option.opts, key=len)[2:].upper().replace('-', '_')}"


class Renamed(click.Option):
    """An option whose parameter has another name than it: its variable is named as the option is."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return os.environ.get(variable(ctx, self)) or None


class Failure(click.ClickException):
    """An error of ours, with our exit status."""

    log: ClassVar[Callable[[str], object] | None] = None
    """Takes the message, where standard error is a log for programs."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        if Failure.log:
            Failure.log(self.message)
        else:
            from ..store.printing import escaped

            click.echo(f"fsinbox: {escaped(self.message)}", err=True)


def _directories(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


class _Inbox(click.Option):
    """--inbox: once in a line, before the command's name or behind it."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        parser.add_option(self, opts=self.opts, dest=self.name, action="append", nargs=1)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        given = opts.get("inbox") or []
        group = ctx.parent.get_parameter_source("inbox") if ctx.parent else None
        twice = len(given) > 1 or (given and group == click.core.ParameterSource.COMMANDLINE)
        if twice and not ctx.resilient_parsing:  # (a shell asks for completions of what is half typed)
            raise click.UsageError("--inbox is given more than once: give it once", ctx)
        return super().consume_value(ctx, {**opts, "inbox": given[-1]} if given else opts)


def inbox_option(command: Command) -> Command:
    """Add --inbox to a command: it may stand before the command's name or behind it."""
    return click.option(
        "--inbox",
        cls=_Inbox,
        metavar="DIR",
        envvar=INBOX,
        allow_from_autoenv=False,  # one variable for it, whatever the command
        shell_complete=_directories,
        help=f"The inbox.  [default: ${INBOX}, or ./inbox]",
    )(command)


def create_option(command: Command) -> Command:
    """Add --create to a command that adds."""
    return click.option("--create", is_flag=True, help="Create the inbox if there is none.")(command)


def json_option(command: Command) -> Command:
    """Add --json to a command."""
    return click.option(
        "--json", is_flag=True, help="Print JSON, one object a line; ignore members you do not know."
    )(command)


def chosen(inbox: str | None, ctx: click.Context | None = None) -> str:
    """Return the inbox that the line names: behind the command, before it, in the environment, in a file, or
    ./inbox."""
    ctx = ctx or click.get_current_context()
    source = ctx.get_parameter_source("inbox")
    before = ctx.find_root().params.get("inbox")
    if source == click.core.ParameterSource.COMMANDLINE:
        return inbox or "inbox"
    return before or inbox or "inbox"


def outranked(*names: str) -> list[str]:
    """Return which of these options, of which one may be given, give way to another: what was typed outranks
    the environment, and that outranks a file."""
    ctx = click.get_current_context()
    rank = list(click.core.ParameterSource).index
    given = [name for name in names if ctx.params[name] is not None]
    ranks = {name: rank(ctx.get_parameter_source(name)) for name in given}  # type: ignore[arg-type]
    return [name for name in ranks if ranks[name] > min(ranks.values())]


def printable(key: str) -> str:
    """Return a key so that it cannot play tricks on a terminal."""
    return key if key.isprintable() else repr(key)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A duration: "90", "90s", "15m", "2h", "7d", "1h30m". Converts to seconds."""

    name = "time"  # what help shows: TIME

    def __init__(self, least: str = "0s", most: str = "") -> None:
        """It is from `least` to `most`; "": no bound."""
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if found < seconds(self._least) or (self._most and found > seconds(self._most)):
            most = f" to {self._most}" if self._most else " or more"
            self.fail(f"{value!r} is not {self._least}{most}", param, ctx)
        return found


class Count(type(click.INT)):  # type: ignore[misc]  # click has no public name for it
    """A whole number of at least `least`; help shows COUNT."""

    name = "count"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if number < self._least:
            self.fail(f"{value!r} is not {self._least} or more", param, ctx)
        return number


COUNT = Count()


class Pattern(click.ParamType):  # type: ignore[type-arg]
    """A pattern of names in drop/, as in a .gitignore."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ..store.ignoring import BadPattern, check_patterns

        try:
            return check_patterns([str(value)])[0]
        except BadPattern as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()

_MOMENTS = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]


def terms_options(command: Command) -> Command:
    """Add --delay, --not-before and --if-waiting to a command that adds."""
    for option in (
        click.option(
            "--if-waiting",
            type=click.Choice(["replace", "keep"]),
            default="replace",
            show_default=True,
            help="What becomes of a value of KEY that waits; keep: VALUE is not added.",
        ),
        click.option(
            "--not-before",
            type=click.DateTime(_MOMENTS),
            metavar="WHEN",
            help="Hand it out at WHEN (2031-12-24 18:00, local time) at the earliest.",
        ),
        click.option(
            "--delay",
            type=DURATION,
            help="Hand it out after TIME (90, 15m, 2h) at the earliest.",
        ),
    ):
        command = option(command)
    return command


class Size(click.ParamType):  # type: ignore[type-arg]
    """A size: "90", "500MB" (powers of 1000), "2G" or "2GiB" (powers of 1024). Converts to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()


class Rate(click.ParamType):  # type: ignore[type-arg]
    """So many in a time: "10/s", "100/m", "1/30s". Converts to a number a second."""

    name = "count/time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


RATE = Rate()


class State(click.Choice):  # type: ignore[type-arg]
    """A state of an element; "in-flight" and "in flight" are in_flight."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(value).replace("-", "_").replace(" ", "_"), param, ctx)


def keys_argument(command: Command) -> Command:
    """Add KEY... to a command; "-" stands for keys on standard input."""
    return click.argument("keys", nargs=-1, metavar="[KEY]... | -", shell_complete=complete_keys)(command)


def yes_option(command: Command) -> Command:
    """Add --yes to a command that asks."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def key_argument(command: Command) -> Command:
    """Add the argument KEY to a command; a shell completes it."""
    return click.argument("key", shell_complete=complete_keys)(command)


def complete_keys(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the keys in the inbox that begin so, for a shell's completion. What a shell could not show is
    left out."""
    from ..operate.rows import rows
    from ..store.errors import InboxError
    from ..store.layout import Layout

    try:
        layout = Layout(chosen(ctx.params.get("inbox"), ctx), create=False)
        keys = {row.key for row in rows(layout) if row.key.startswith(incomplete) and row.key.isprintable()}
    except (InboxError, OSError):
        return []
    return sorted(keys.difference(ctx.params.get("keys") or ()))
