"""The command line. It parses and prints; the storeys below do the work.

Start-up is part of the product: cron jobs and scripts call `fsinbox add` all day. So the common forms of
`add` are parsed by hand here, with few imports. Every other line, and every mistake, goes to click, which
prints errors and help.
"""

from __future__ import annotations

import os
import sys

from .locating import settings_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VERSION = ("--version", "-V")
_ALONE = [[word] for word in ("--help", "-h", "help", *_VERSION)]

_USUAL = ("FSINBOX_DIR", "FSINBOX_SETTINGS")


def main() -> None:
    """Run the command line of this process; ends it."""
    try:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            from .front import fill_descriptors

            fill_descriptors()
        if sys.argv[1:] in _ALONE and "_FSINBOX_COMPLETE" not in os.environ:
            from .front import page, show, version

            sys.exit(show(version() if sys.argv[1] in _VERSION else page()))
        simple = simple_add(sys.argv[1:])
        if simple is not None:
            from .adding import add

            key, value, file, inbox, how = simple
            sys.exit(add(key, value, file, inbox, **how))
        from .commands import run

        run()
    except KeyboardInterrupt:
        from .exits import EXIT_INTERRUPTED

        sys.exit(EXIT_INTERRUPTED)


def simple_add(words: list[str]) -> tuple[str, str | None, str | None, str, dict[str, Any]] | None:
    """Read `[--inbox DIR] add [--inbox DIR] [--not-durable] [--file F] KEY [VALUE]` into (KEY, VALUE, F, DIR,
    options).

    None for anything else, and for every mistake: click reads it, and says what is wrong.
    """
    ours = [name for name in os.environ if name.startswith("FSINBOX_") and name not in _USUAL]
    if ours and _means_something(ours):
        return None
    found: dict[str, str | None] = {"key": None, "value": None, "file": None, "inbox": None}
    how: dict[str, Any] = {}
    command = False
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word in ("--inbox", "--file") and index < len(words) and (command or word == "--inbox"):
            if not words[index] or (word == "--inbox" and found["inbox"]):
                return None
            found[word[2:]] = words[index]
            index += 1
        elif not command and word == "add":
            command = True
        elif command and word == "--not-durable":
            how = {"durable": False}
        elif not command or (word.startswith("-") and word != "-") or found["value"] is not None:
            return None
        elif found["key"] is None:
            found["key"] = word
        else:
            found["value"] = word
    if found["key"] is None or (found["value"] is None) == (found["file"] is None):
        return None
    if settings_file() is not None:
        return None
    inbox = found["inbox"] or os.environ.get("FSINBOX_DIR") or "inbox"
    return found["key"], found["value"], found["file"], inbox, how


def _means_something(ours: list[str]) -> bool:
    """Tell whether one of these variables is an option of add, or is to be complained of."""
    from .variables import unknown

    return any(name.startswith("FSINBOX_ADD_") for name in ours) or bool(unknown())
