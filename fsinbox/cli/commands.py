"""The commands, for click: options, help, and what is printed."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from ..store.errors import AddFailed, InboxBusy, InboxError, InboxFull, LeaseLost, UnusableInbox
from ..store.printing import discard
from .catalogue import HOMES, NAMES
from .exits import EXIT_BUSY, EXIT_FULL, EXIT_INTERRUPTED, EXIT_UNUSABLE, EXIT_USAGE
from .front import ABOUT, WIDEST, page
from .locating import settings_file
from .options import (
    DURATION,
    Failure,
    chosen,
    create_option,
    inbox_option,
    json_option,
    key_argument,
    printable,
    terms_options,
)
from .variables import complaint, unknown
from .version import __version__


def _no_command(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, NAMES, 1)
    meant = f"Did you mean {close[0]!r}?" if close else "`fsinbox --help` lists them."
    return f"There is no command {word!r}. {meant}"


def _unusable(error: OSError) -> Failure:
    discard(1)  # it may be what cannot be written
    what = "cannot use the inbox, or write the output"
    if error.filename is not None:
        what = f"cannot use the inbox ({printable(str(error.filename))})"
    return Failure(f"{what}: {error.strerror or error}: fix that, then try again", EXIT_UNUSABLE)


class Commands(click.Group):
    """Finds the commands, and turns errors of the package into messages and exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return NAMES

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = HOMES.get(cmd_name)
        if home is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(
            import_module(f".{home}", __package__), cmd_name.replace("import", "import_")
        )
        return command

    def get_help(self, ctx: click.Context) -> str:
        return page()

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        path = settings_file()
        if path is not None:
            from .settings import Settings

            try:
                extra["default_map"] = Settings(path, self.list_commands(click.Context(self)))
            except Failure:
                if not extra.get("resilient_parsing"):  # completion goes on without
                    raise
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.NoSuchOption as error:
            if error.possibilities:
                raise
            hint = "options of a command stand behind its name, as in `fsinbox add --create KEY VALUE`"
            raise click.UsageError(f"No such option {error.option_name!r}: {hint}", error.ctx) from error
        except OSError as error:  # (--version prints)
            raise _unusable(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in NAMES and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(_no_command(args[0]), ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if name != "consume" and not ctx.resilient_parsing:
            for stranger in unknown():
                click.echo(f"fsinbox: warning: {complaint(stranger)}; it is ignored", err=True)
        if ctx.default_map and name and command and not ctx.resilient_parsing:
            ctx.default_map.check(name, command)  # type: ignore[attr-defined]  # Settings
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)  # (click would say 1)
        except BrokenPipeError:
            # The reader of our output has enough (`fsinbox ls | head`). Keep Python from complaining while it
            # shuts down.
            discard(1)
            ctx.exit(0)
        except (InboxBusy, LeaseLost) as error:
            raise Failure(str(error), EXIT_BUSY) from error
        except InboxFull as error:
            raise Failure(str(error), EXIT_FULL) from error
        except (AddFailed, UnusableInbox) as error:
            raise Failure(str(error), EXIT_UNUSABLE) from error
        except InboxError as error:
            raise Failure(str(error), EXIT_USAGE) from error
        except OSError as error:
            raise _unusable(error) from error


@click.group(
    cls=Commands,
    help="\n\n".join(ABOUT),
    context_settings={
        "auto_envvar_prefix": "FSINBOX",
        "help_option_names": ["-h", "--help"],
        "max_content_width": WIDEST,
    },
)
@inbox_option
@click.version_option(
    __version__,
    "-V",
    "--version",
    message="%(prog)s %(version)s",
    allow_from_autoenv=False,  # (many set FSINBOX_VERSION, for images for one)
)
def cli(inbox: str | None) -> None:
    pass


@cli.command()
@inbox_option
@json_option
@click.option("--file", "file", metavar="FILE", help="Take the value from FILE; - is standard input.")
@click.option("--move", is_flag=True, help="With --file: move FILE into the inbox instead of copying it.")
@create_option
@click.option(
    "--durable/--not-durable",
    default=True,
    help="Wait until a power cut can no longer lose it.  [default: durable]",
)
@terms_options
@click.option("--timeout", type=DURATION, default=0.0, help="Wait for room if it is full.")
@key_argument
@click.argument("value", required=False)
def add(inbox: str | None, file: str | None, key: str, value: str | None, **how: Any) -> None:
    """Queue VALUE for KEY. It replaces a waiting value of that key.

    The value is stored byte for byte. With - in its place it is read from standard input.
    """
    from .adding import add as add_element

    if value is not None and file is not None:
        raise click.UsageError("VALUE and --file exclude each other")
    if how["move"] and (file is None or file == "-"):
        raise click.UsageError("--move needs --file FILE")
    if value is None and file is None:
        raise click.UsageError("no value: give VALUE, --file FILE, or - to read it from standard input")
    sys.exit(add_element(key, value, file, chosen(inbox), **how))


@cli.command()
@inbox_option
@json_option
@click.option("--repair", is_flag=True, help="Mend what is wrong. Producers may run; so may a consumer.")
def doctor(inbox: str | None, json: bool, repair: bool) -> None:
    """Measure this file system, and check the inbox.

    It says what was found, and what follows. Where there is no inbox yet, only the file system is measured.
    Exit status: 0 if all is well, 1 if something needs a repair or a person, 3 if the inbox cannot be used.
    """
    from .checkup import checkup

    sys.exit(checkup(chosen(inbox), repair=repair, json=json))


def _complete_commands(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in NAMES if name.startswith(incomplete)]


@cli.command("help")
@click.argument("command", required=False, shell_complete=_complete_commands)
def help_(command: str | None) -> None:
    """Show the help of COMMAND.

    Without it, list the commands.
    """
    ctx = click.get_current_context()
    root, group = ctx.find_root(), cli
    if command is None:
        click.echo(page())
        return
    name, found, _ = group.resolve_command(root, [command])
    assert name and found
    click.echo(found.get_help(click.Context(found, parent=root, info_name=name)))


def run() -> None:
    """Run the command line of this process."""
    if "_FSINBOX_COMPLETE" in os.environ:
        from . import shells  # noqa: F401 - tells click of them
    if "status" in sys.argv and "--nagios" in sys.argv:
        from . import plugin

        sys.exit(plugin.run(cli))
    cli(prog_name="fsinbox")
