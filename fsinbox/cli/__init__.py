"""The command line. It parses and prints; the storeys below do the work.

Start-up is part of the product: cron jobs and scripts call `fsinbox add` all day. So the common forms of
`add` are parsed by hand here, with few imports. Every other line, and every mistake, goes to click, which
prints errors and help.
"""

import os
import sys

EXIT_FAILED = 1
"""Something moved to failed/ (drain, once), or there is no such element."""
EXIT_USAGE = 2
EXIT_UNUSABLE = 3
EXIT_BUSY = 4
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it."""

_LARGEST = 1 << 20
"""Bytes of a pyproject.toml that are read to see whether it has settings of ours."""


def main() -> None:
    """Run the command line of this process; ends it."""
    try:
        simple = simple_add(sys.argv[1:])
        if simple is not None:
            from .adding import add

            sys.exit(add(*simple))
        from .commands import run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def settings_file() -> str | None:
    """Return the path of the pyproject.toml that has our settings: the nearest one, from the working
    directory upwards.

    $FSINBOX_SETTINGS names another file; if it is empty, there are no settings. A file that cannot be read is
    skipped.
    """
    named = os.environ.get("FSINBOX_SETTINGS")
    if named is not None:
        return named or None
    try:
        folder = os.getcwd()
    except OSError:
        return None  # it was removed
    while True:
        path = f"{folder.rstrip('/')}/pyproject.toml"
        if _has_settings(path):
            return path
        if folder == "/":
            return None
        folder = os.path.dirname(folder)


def _has_settings(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return b"[tool.fsinbox" in os.read(fd, _LARGEST)
    except OSError:
        return False  # a folder of that name
    finally:
        os.close(fd)


def simple_add(words: list[str]) -> tuple[str, str | None, str | None, str] | None:
    """Read `[--inbox DIR] add [--inbox DIR] [--file F] KEY [VALUE]` into (KEY, VALUE, F, DIR).

    None for anything else, and for every mistake: click reads it, and says what is wrong.
    """
    if any(name.startswith("FSINBOX_ADD_") for name in os.environ):
        return None
    found: dict[str, str | None] = {"key": None, "value": None, "file": None, "inbox": None}
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
    return found["key"], found["value"], found["file"], inbox
