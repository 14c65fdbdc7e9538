"""For the site: what the reference takes from the code. A page says where by a comment: <!-- settings -->."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import click


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what was made from the code where a page asks for it."""
    for name, make in MADE.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return markdown


def commands() -> Iterator[tuple[click.Context, click.Command]]:
    """Go through the commands, each in its context."""
    from fsinbox.cli.commands import cli

    group = click.Context(
        cli, info_name="fsinbox", auto_envvar_prefix="FSINBOX", terminal_width=80, max_content_width=80
    )
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        assert command is not None
        yield click.Context(command, info_name=name, parent=group, terminal_width=80), command


def help_texts() -> str:
    """Return what each command says of itself."""
    return "\n".join(
        f"## fsinbox {ctx.info_name}\n\n```text\n{command.get_help(ctx)}\n```\n"
        for ctx, command in commands()
    )


def settings() -> str:
    """Return a table of settings for each command."""
    tables = [(ctx.info_name, _table(ctx, command)) for ctx, command in commands()]
    return "\n\n".join(f"## {name}\n\n{table}" for name, table in tables if table)


def _table(ctx: click.Context, command: click.Command) -> str:
    from fsinbox.cli.options import variable
    from fsinbox.cli.settings import settable

    rows = []
    for option in {id(one): one for one in settable(command).values()}.values():
        record = option.get_help_record(ctx)
        if record is None:
            continue  # another name, of before
        text, _, default = record[1].partition("[default: ")
        rows.append(
            [
                f"`{max(option.opts, key=len)[2:]}`",
                _type(option, ctx),
                _cell(default.rstrip("]")) or ("false" if option.is_flag else "-"),
                f"`{variable(ctx, option)}`",
                _cell(text),
            ]
        )
    return _rows(["setting", "value", "default", "variable", "what it does"], rows) if rows else ""


def _type(option: click.Option, ctx: click.Context) -> str:
    if option.is_flag:
        return "true, false"
    if isinstance(option.type, click.Choice):
        words = ", ".join(map(str, option.type.choices))
    else:
        words = option.make_metavar(ctx)
    return _cell(f"a list of {words}" if option.multiple else words)


def statuses() -> str:
    """Return a table of the exit statuses."""
    from fsinbox.cli.exits import MEANINGS

    return _rows(["status", "meaning"], [[str(status), _cell(text)] for status, text in MEANINGS.items()])


def files() -> str:
    """Return a table of what lies in an inbox, by what the modules say that make it."""
    from fsinbox.store import control, folders

    optional = {*folders.OPTIONAL, *folders.OPTIONAL_FILES}
    rows = []
    for module in (folders, control):
        for name, text in described(module.__doc__ or ""):
            made = name.strip("/") in optional or module is control
            rows.append([f"`{name}`", _cell(text), "when it is needed" if made else "always"])
    return _rows(["name", "what", "there"], rows)


def described(text: str) -> list[tuple[str, str]]:
    """Return (name, what is said of it) of the columns in a docstring."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        first = re.match(r"    (\S+) {2,}(\S.*)", line)
        if first and not line.startswith("     "):
            found.append((first[1], first[2]))
        elif re.match(r" {12}", line) and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return text so that it means itself in a table of Markdown; what is between backticks is code."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    plain = [re.sub(r"([*_\[\]])", r"\\\1", html.escape(piece, quote=False)) for piece in pieces[::2]]
    return "`".join(piece for pair in zip_longest(plain, pieces[1::2]) for piece in pair if piece is not None)


MADE = {"commands": help_texts, "settings": settings, "statuses": statuses, "files": files}
"""What a page may ask for."""
