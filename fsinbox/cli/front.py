"""What `fsinbox --help` and `--version` show. Without click: less than a third of the time that it would take
with it."""

import os
import sys

from .catalogue import GROUPS
from .variables import INBOX
from .version import __version__

ABOUT = (
    "A keyed, acknowledged FIFO queue in a directory.",
    "Add from anywhere (`fsinbox add KEY VALUE`, `mv KEY inbox/drop/`, Python), consume in one place "
    "(`fsinbox consume --handler module:func`). Each option has an environment variable, "
    "FSINBOX_<COMMAND>_<OPTION>.",
)

OPTIONS = (
    ("--inbox DIR", f"The inbox.  [default: ${INBOX}, or ./inbox]"),
    ("-V, --version", "Show the version and exit."),
    ("-h, --help", "Show this message and exit."),
)

NARROWEST, WIDEST = 40, 110
"""Columns of a text."""


def show(text: str) -> int:
    """Print it; return the exit status."""
    if sys.stdout is None:
        return 0
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        from ..store.printing import discard
        from .exits import EXIT_UNUSABLE

        discard(1)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"fsinbox: cannot write the output: {error.strerror}\n")
            return EXIT_UNUSABLE
    return 0


def fill_descriptors() -> None:
    """Have 0, 1 and 2 open: else a file of an inbox may get the number of a closed one (`ls >&-`)."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)


def version() -> str:
    """Return what `--version` shows."""
    return f"fsinbox {__version__}"


def page() -> str:
    """Return the help of `fsinbox` itself, as wide as the terminal is."""
    columns = width()
    lines = ["Usage: fsinbox [--inbox DIR] COMMAND [ARGUMENT]...", ""]
    for paragraph in ABOUT:
        lines += [*wrapped(paragraph, columns, 2), ""]
    for title, commands in GROUPS:
        lines += [f"{title}:", *table([(name, text) for name, _, text in commands], columns, 12), ""]
    lines += ["Options:", *table(OPTIONS, columns, 15), ""]
    lines += wrapped("`fsinbox help COMMAND` shows a command's options.", columns, 0)
    return "\n".join(lines)


def table(rows: tuple[tuple[str, str], ...] | list[tuple[str, str]], columns: int, first: int) -> list[str]:
    """Return two columns, of which the first has the width `first`."""
    lines = []
    for name, text in rows:
        head, *rest = wrapped(text, columns, first + 2)
        lines += [f"  {name:<{first}}{head.lstrip()}", *rest]
    return lines


def wrapped(text: str, columns: int, indent: int) -> list[str]:
    """Return the lines of a paragraph."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > columns - indent:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [" " * indent + one for one in [*lines, line]]


def width() -> int:
    """Return the columns of the terminal, within bounds; 80 where there is none."""
    columns = os.environ.get("COLUMNS", "")
    try:
        found = int(columns) if columns.isdigit() else os.get_terminal_size(1).columns
    except OSError:
        found = 0
    return min(max(found or 80, NARROWEST), WIDEST)
