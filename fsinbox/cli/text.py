"""What is printed: lines for programs, and on a terminal a little colour."""

from __future__ import annotations

import os
import sys

import click


def say(**members: object) -> None:
    """Print one JSON object on a line."""
    from json import dumps

    text = dumps(members, ensure_ascii=False)
    # A key that came from a file name may hold bytes that are not text: escaped, then.
    line(text if text.isprintable() else dumps(members))


def line(text: str) -> None:
    """Print a line, if there is a standard output. (click.echo flushes each: with a million that takes most
    of the time.)"""
    if sys.stdout:
        sys.stdout.write(f"{text}\n")


def on_terminal() -> bool:
    """Tell whether people read standard output: then there are headers."""
    return bool(sys.stdout and sys.stdout.isatty())


def styled(text: str, **style: bool | str | None) -> str:
    """Return a text in a style (see click.style) where that can be seen, and no NO_COLOR is set."""
    wanted = on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, **style) if wanted and any(style.values()) else text  # type: ignore[arg-type]
