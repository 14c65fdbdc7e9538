"""Settings from `[tool.fsinbox]` of a pyproject.toml, and `fsinbox settings`, which shows what is in force
and why.

The command line comes before the environment, that before the file, that before the default. Each setting is
an option of a command, checked as click checks the option: `inbox` stands in [tool.fsinbox], the others in
[tool.fsinbox.<command>].
"""

from __future__ import annotations

from typing import Any

import click

from .locating import LARGEST, open_settings
from .options import Failure, chosen, inbox_option, json_option, printable, variable
from .variables import INBOX


class Settings(dict[str, Any]):
    """What a file says, as click's default_map: a table for each command. Only names are checked; see
    `check`."""

    def __init__(self, path: str, commands: list[str]) -> None:
        """Read the file. Raises Failure."""
        import os
        import tomllib

        super().__init__()
        self.path = path
        try:
            fd, status = open_settings(path)
            with open(fd, encoding="utf-8") as file:
                self._check_owner(status.st_uid)
                table = tomllib.loads(file.read(LARGEST)).get("tool", {}).get("fsinbox", {})
        except (OSError, ValueError, RecursionError) as error:
            raise self._wrong(f"cannot be read: {error}") from error
        for name, value in table.items():
            if name == "inbox":
                if not (isinstance(value, str) and value):
                    raise self._wrong(
                        f"inbox in [tool.fsinbox] is {value!r}: write the path of a directory, in quotes"
                    )
                value = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(value))
            elif name not in commands:
                raise self._wrong(
                    f"[tool.fsinbox] has {name!r}: it may have inbox, and a table for each of "
                    f"{', '.join(commands)}"
                )
            elif not isinstance(value, dict):
                raise self._wrong(
                    f"{name} in [tool.fsinbox] is {value!r}: make it a table, [tool.fsinbox.{name}]"
                )
            self[name] = value

    def _check_owner(self, owner: int) -> None:
        import os

        if owner not in (0, os.geteuid()) and "FSINBOX_SETTINGS" not in os.environ:
            raise self._wrong(
                f"belongs to user {owner}, whose settings could run commands as you: "
                f"to use it, set FSINBOX_SETTINGS={self.path}; to do without, set FSINBOX_SETTINGS to nothing"
            )

    def check(self, name: str, command: click.Command) -> None:
        """Check the table of a command, and name its settings as click does. Raises Failure."""
        table = self.get(name)
        if table is None:
            return
        options = settable(command)
        checked = {}
        for key, value in table.items():
            option = options.get(key.replace("_", "-"))
            if option is None:
                hint = (
                    "that stands in [tool.fsinbox], for all commands"
                    if key == "inbox"
                    else f"it may have {', '.join(options)}"
                )
                raise self._wrong(f"[tool.fsinbox.{name}] has {key!r}: {hint}")
            try:
                checked[option.name] = _typed(option, value)
                option.type_cast_value(click.Context(command), checked[option.name])
            except click.BadParameter as error:
                reason = error.message.rstrip(".")
                raise self._wrong(
                    f"{key} in [tool.fsinbox.{name}] is {value!r}: {reason}: correct it there"
                ) from error
        self[name] = checked

    def _wrong(self, text: str) -> Failure:
        from .exits import EXIT_USAGE

        return Failure(f"settings: {printable(self.path)}: {text}", EXIT_USAGE)


def settable(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that can be set, by their long names without dashes; a second name
    finds it, too."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value and option.name != "inbox":
            for name in option.opts:
                if name.startswith("--"):
                    found[name[2:]] = option
    return found


def _typed(option: click.Option, value: Any) -> Any:
    """Return a value of a TOML file if it is of the type that the option wants. Raises click.BadParameter."""
    if option.multiple:
        return [_typed_one(option, one) for one in (value if isinstance(value, list) else [value])]
    return _typed_one(option, value)


def _typed_one(option: click.Option, value: Any) -> Any:
    types = click.types
    wanted: tuple[type, ...]
    if option.is_flag:
        wanted, words = (bool,), "true or false"
    elif isinstance(option.type, types.IntParamType):
        wanted, words = (int,), "a whole number"
    elif isinstance(option.type, (types.StringParamType, types.Choice, types.Path)):
        wanted, words = (str,), "text, in quotes"
    else:
        wanted, words = (str, int, float), "a number, or text in quotes"
    if not isinstance(value, wanted) or (isinstance(value, bool) and not option.is_flag):
        raise click.BadParameter(f"it must be {words}")
    return value


@click.command()
@inbox_option
@json_option
@click.argument("command", required=False)
def settings(inbox: str | None, json: bool, command: str | None) -> None:
    """Print what each option is set to, and by what.

    Only those of COMMAND, if it is given.

    An option of the command line comes before its environment variable, that before [tool.fsinbox] in the
    nearest pyproject.toml upwards ($FSINBOX_SETTINGS names another file; empty, none), and that before the
    default.
    """
    from .text import say

    ctx = click.get_current_context()
    rows = [_inbox_row(ctx, inbox)] if command is None else []
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    names = group.list_commands(ctx)
    if command is not None and command not in names:
        raise click.UsageError(f"there is no command {command!r}: there are {', '.join(names)}")
    for name in names if command is None else [command]:
        rows += _rows(ctx.find_root(), group, name)
    if json:
        for name, value, origin, where in rows:
            say(name=name, value=value, origin=origin, where=where)
        return
    widths = [max(len(row[0]) for row in rows), max(min(30, len(_text(row[1]))) for row in rows)]
    for name, value, origin, where in rows:
        click.echo(
            f"{name:<{widths[0]}}  {_text(value):<{widths[1]}}  {printable(where) if where else origin}"
        )


Row = tuple[str, Any, str, str | None]
"""Name; value; "command line", "environment", "file" or "default"; which variable, or file."""


def _inbox_row(ctx: click.Context, inbox: str | None) -> Row:
    root = ctx.find_root()
    sources = [ctx.get_parameter_source("inbox"), root.get_parameter_source("inbox")]
    where: tuple[str, str | None] = ("default", None)
    if click.core.ParameterSource.COMMANDLINE in sources:
        where = ("command line", None)
    elif click.core.ParameterSource.ENVIRONMENT in sources:
        where = ("environment", f"${INBOX}")
    elif click.core.ParameterSource.DEFAULT_MAP in sources:
        where = ("file", root.default_map.path)  # type: ignore[union-attr]
    return "inbox", chosen(inbox), *where


def _rows(root: click.Context, group: click.Group, name: str) -> list[Row]:
    command = group.get_command(root, name)
    assert command is not None
    if isinstance(root.default_map, Settings):
        root.default_map.check(name, command)
    ctx = click.Context(command, parent=root, info_name=name)
    rows: list[Row] = []
    for option in {id(option): option for option in settable(command).values()}.values():
        label = f"{name}.{max(option.opts, key=len)[2:]}"
        raw, source = option.consume_value(ctx, {})
        if source == click.core.ParameterSource.ENVIRONMENT:
            name = variable(ctx, option)
            try:
                rows.append((label, _plain(option.type_cast_value(ctx, raw)), "environment", f"${name}"))
            except click.BadParameter as error:
                from .exits import EXIT_USAGE

                raise Failure(
                    f"${name} is {raw!r}: {error.message} Correct it, or unset it.", EXIT_USAGE
                ) from error
        elif source == click.core.ParameterSource.DEFAULT_MAP:
            rows.append((label, _plain(raw), "file", root.default_map.path))  # type: ignore[union-attr]
        else:
            rows.append((label, _plain(option.to_info_dict()["default"]), "default", None))
    return rows


def _plain(value: Any) -> Any:
    """Return a value as JSON can say it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else printable(str(value))
