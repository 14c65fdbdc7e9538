"""Prints the manual page, made from the commands: scripts/man writes it to docs/man/fsinbox.1."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version

import click

from fsinbox.cli.commands import cli
from fsinbox.cli.exits import MEANINGS

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


def page() -> str:
    """Return the manual page, for man(7)."""
    lines = [
        f'.TH FSINBOX 1 "" "fsinbox {version("fsinbox")}" "User Commands"',
        ".SH NAME",
        r"fsinbox \- a keyed, acknowledged FIFO queue in a directory",
        ".SH SYNOPSIS",
        r".B fsinbox",
        r"[\fB\-\-inbox\fR \fIDIR\fR] \fICOMMAND\fR [\fIoption\fR]... [\fIargument\fR]...",
        ".SH DESCRIPTION",
        *paragraphs(cli.help or ""),
        ".SH OPTIONS",
        *options(cli, skip=""),
        ".SH COMMANDS",
    ]
    ctx = click.Context(cli, info_name="fsinbox")
    for name in cli.list_commands(ctx):
        command = cli.get_command(ctx, name)
        assert command is not None
        if not command.hidden:
            lines += section(ctx, name, command)
    for title, rows in (("ENVIRONMENT", VARIABLES), ("FILES", FILES), ("EXIT STATUS", STATUSES)):
        lines.append(f".SH {quoted(title)}")
        for name, text in rows:
            lines += [".TP", rf".B {roff(name)}", roff(text)]
    lines += [".SH SEE ALSO", ".BR mv (1),", ".BR flock (1),", ".BR inotify (7)"]
    return "\n".join(lines) + "\n"


def section(ctx: click.Context, name: str, command: click.Command) -> list[str]:
    """Return what is said of a command."""
    arguments = [
        parameter.make_metavar(ctx) for parameter in command.params if isinstance(parameter, click.Argument)
    ]
    usage = rf"\fBfsinbox {roff(name)}\fR [\fIoption\fR]..." + "".join(
        rf" \fI{roff(argument)}\fR" for argument in arguments
    )
    return [f".SS {quoted(name)}", usage, *paragraphs(command.help or ""), *options(command)]


def options(command: click.Command, skip: str = "inbox") -> list[str]:
    """Return what is said of a command's options, but --help, and the one that all have."""
    ctx = click.Context(command)
    lines = []
    for option in command.params:
        record = (
            option.get_help_record(ctx) if isinstance(option, click.Option) and option.name != skip else None
        )
        if record:
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
    sys.stdout.write(page())
