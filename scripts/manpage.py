"""Writes the manual pages, made from the commands, to a folder: scripts/man, to docs/man."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import click

from fsinbox.cli.catalogue import GROUPS
from fsinbox.cli.commands import cli
from fsinbox.cli.exits import MEANINGS
from fsinbox.cli.options import variable
from fsinbox.cli.settings import settable

FILES = [
    (
        "inbox/",
        "The inbox, unless --inbox or FSINBOX_DIR names another; its folders are explained in "
        "docs/protocol.md.",
    ),
    ("inbox/drop/", "Files that are moved here are queued; the name is the key."),
    ("inbox/failed/", "What was given up on, each with its reason in <name>~reason.txt beside it."),
    (
        "pyproject.toml",
        "Settings, in [tool.fsinbox] and [tool.fsinbox.COMMAND]: the nearest one upwards that has such a "
        "table.",
    ),
]
VARIABLES = [
    ("FSINBOX_DIR", "The inbox."),
    (
        "FSINBOX_<COMMAND>_<OPTION>",
        "Sets an option of a command, for example FSINBOX_CONSUME_CONCURRENCY=4. Any other name that begins "
        "with FSINBOX_ is a warning, and consume refuses it.",
    ),
    ("FSINBOX_SETTINGS", "A file to read settings from instead of pyproject.toml; empty: none."),
]
STATUSES = [(str(status), text) for status, text in MEANINGS.items()]


def pages() -> dict[str, str]:
    """Return the manual pages, for man(7), by the names of their files."""
    root = click.Context(cli, info_name="fsinbox", auto_envvar_prefix="FSINBOX")
    made = {"fsinbox.1": first_page()}
    for _, commands in GROUPS:
        for name, _, summary in commands:
            command = cli.get_command(root, name)
            assert command is not None
            ctx = click.Context(command, parent=root, info_name=name)
            made[f"fsinbox-{name}.1"] = command_page(ctx, command, summary)
    return {name: "\n".join(lines) + "\n" for name, lines in made.items()}


def title(name: str, summary: str) -> list[str]:
    """Return how a page begins."""
    return [
        f'.TH {quoted(name.upper())} 1 "" "fsinbox {version("fsinbox")}" "User Commands"',
        ".SH NAME",
        rf"{roff(name)} \- {roff(summary)}",
        ".SH SYNOPSIS",
    ]


def first_page() -> list[str]:
    """Return the lines of fsinbox(1)."""
    lines = [
        *title("fsinbox", "a keyed, acknowledged FIFO queue in a directory"),
        r".B fsinbox",
        r"[\fB\-\-inbox\fR \fIDIR\fR] \fICOMMAND\fR [\fIoption\fR]... [\fIargument\fR]...",
        ".SH DESCRIPTION",
        *paragraphs(cli.help or ""),
        ".SH OPTIONS",
        *options(click.Context(cli), cli),
        ".SH COMMANDS",
    ]
    for group, commands in GROUPS:
        lines.append(f".SS {quoted(group)}")
        for name, _, summary in commands:
            lines += [".TP", f".BR {roff(f'fsinbox-{name}')} (1)", roff(summary)]
    for what, rows in (("ENVIRONMENT", VARIABLES), ("FILES", FILES), ("EXIT STATUS", STATUSES)):
        lines.append(f".SH {quoted(what)}")
        for name, text in rows:
            lines += [".TP", rf".B {roff(name)}", roff(text)]
    return [*lines, ".SH SEE ALSO", ".BR mv (1),", ".BR flock (1),", ".BR inotify (7)"]


def command_page(ctx: click.Context, command: click.Command, summary: str) -> list[str]:
    """Return the lines of a command's page."""
    name = f"fsinbox-{ctx.info_name}"
    arguments = [one.make_metavar(ctx) for one in command.params if isinstance(one, click.Argument)]
    usage = rf"\fBfsinbox {roff(ctx.info_name or '')}\fR [\fIoption\fR]..." + "".join(
        rf" \fI{roff(argument)}\fR" for argument in arguments
    )
    lines = [
        *title(name, summary.rstrip(".")),
        usage,
        ".SH DESCRIPTION",
        *paragraphs(command.help or ""),
        ".SH OPTIONS",
        *options(ctx, command),
    ]
    settings = settable(command).values()
    if settings:
        example = variable(ctx, max(settings, key=lambda option: not option.is_flag))
        text = f"Each option has an environment variable: {example} and so on. So has a settings file."
        lines += [".SH ENVIRONMENT", roff(text)]
    return [*lines, ".SH SEE ALSO", ".BR fsinbox (1),", "for exit statuses, files and settings."]


def options(ctx: click.Context, command: click.Command) -> list[str]:
    """Return what is said of a command's options; of one that has them in sections, by these."""
    lines: list[str] = []
    here = ""
    for option in sorted(command.get_params(ctx), key=lambda one: not hasattr(one, "section")):
        record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
        if record:
            section = getattr(option, "section", "Other options" if here else "")
            if section != here:
                lines.append(f".SS {quoted(section)}")
                here = section
            lines += [".TP", rf"\fB{roff(record[0])}\fR", roff(record[1])]
    return lines


def paragraphs(text: str) -> list[str]:
    """Return a docstring, as click reads it, in paragraphs; one that begins with \\b keeps its lines."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", text.split("\f")[0].strip()):
        kept = [line.rstrip() for line in paragraph.splitlines()]
        if kept[0].strip() == "\b":
            lines += [".PP", ".nf", *map(roff, kept[1:]), ".fi"]
        else:
            lines += [".PP", roff(" ".join(line.strip() for line in kept))]
    return lines


def quoted(text: str) -> str:
    """Return a macro's argument."""
    return '"' + roff(text).replace('"', r"\(dq") + '"'


def roff(text: str) -> str:
    """Return text so that it means itself."""
    text = (
        text.replace("\\", r"\e")
        .replace("-", r"\-")
        .replace("'", r"\(aq")
        .replace("`", r"\(ga")
        .replace("^", r"\(ha")
    )
    text = "".join(
        letter if letter.isascii() else rf"\[u{ord(letter):04X}]" for letter in text.replace("~", r"\(ti")
    )
    return rf"\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.1"):
        old.unlink()
    for name, text in pages().items():
        (folder / name).write_text(text)
