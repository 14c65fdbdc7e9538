"""What the commands share: the inbox that a line names, errors with our exit statuses, names that may be printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


class Failure(click.ClickException):
    """An error of ours, with our exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"fsinbox: {self.message}", err=True)


def inbox_option(command: Command) -> Command:
    """Add --inbox to a command, so that it may stand behind the command's name as well as before it."""
    return click.option(
        "--inbox",
        metavar="DIR",
        envvar="FSINBOX_DIR",
        allow_from_autoenv=False,  # one variable for it, whatever the command
        help="The inbox.  [default: $FSINBOX_DIR, or ./inbox]",
    )(command)


def json_option(command: Command) -> Command:
    """Add --json to a command."""
    return click.option("--json", is_flag=True, help="Print JSON, one object a line; ignore members you do not know.")(command)


def chosen(inbox: str | None) -> str:
    """Return the inbox that the line names: behind the command, before it, in the environment, or ./inbox."""
    ctx = click.get_current_context()
    source = ctx.get_parameter_source("inbox")
    before = ctx.find_root().params.get("inbox")
    if source == click.core.ParameterSource.COMMANDLINE:
        return inbox or "inbox"
    return before or inbox or "inbox"


def printable(key: str) -> str:
    """Return a key so that it cannot play tricks on a terminal."""
    return key if key.isprintable() else repr(key)
