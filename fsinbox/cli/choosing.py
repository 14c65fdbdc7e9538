"""What the commands that steer share: the keys that a line names, a question, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .options import Renamed, inbox_option, json_option, keys_argument, yes_option

if TYPE_CHECKING:
    from ..operate.rows import Row

_MANY = 200
"""From this many elements on, a bar shows the progress."""

all_option = click.option("--all", "everything", cls=Renamed, is_flag=True, help="All of them; asks first.")


def keys_of(words: tuple[str, ...]) -> list[str]:
    """Return the keys that a line names, each once. Raises click.UsageError.

    "-" is standard input: a key a line, or a JSON object with a member `key`, as `fsinbox ls --json` prints.
    """
    found: dict[str, None] = {}
    for word in words:
        if word == "-":
            found.update(dict.fromkeys(_keys_on_standard_input()))
        else:
            found[word] = None
    return list(found)


def matching(words: tuple[str, ...]) -> Callable[[str], bool]:
    """Return whether a key is among those that a line names. One may be a pattern, as shells have them; no
    words are all keys. Raises click.UsageError."""
    if not words:
        return lambda key: True
    from fnmatch import fnmatchcase

    keys = dict.fromkeys(keys_of(words))
    patterns = [key for key in keys if set("*?[") & set(key)]
    return lambda key: key in keys or any(fnmatchcase(key, pattern) for pattern in patterns)


def _keys_on_standard_input() -> Iterator[str]:
    from json import loads

    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.startswith("{"):
            try:
                text = loads(text)["key"]
            except (ValueError, KeyError):
                text = ""
            if not text or not isinstance(text, str):
                raise click.UsageError(
                    f"standard input: not a JSON object with a member `key`: {line.strip()[:80]!r}"
                )
        if text:
            yield text


def confirm(question: str, words: tuple[str, ...], *, yes: bool) -> None:
    """Ask, unless `yes`. Raises click.Abort; KeyboardInterrupt; click.UsageError where it cannot ask."""
    if yes:
        return
    if "-" in words:
        raise click.UsageError("cannot prompt: standard input has the keys. Add --yes")
    if not sys.stdin.isatty():
        raise click.UsageError("cannot prompt: standard input is not a terminal. Add --yes")
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def selected(words: tuple[str, ...], *, everything: bool) -> list[str] | None:
    """Return the keys that a line names, or None for all. Raises click.UsageError for neither, and for
    both."""
    if everything == bool(words):
        raise click.UsageError("name keys (- reads them from standard input), or give --all")
    if everything:
        return None
    from ..store.names import encode_key

    keys = keys_of(words)
    for key in keys:
        encode_key(key)  # a clear error for what cannot be a key
    return keys


@contextmanager
def progress(rows: list[Row], label: str) -> Iterator[Iterable[Row]]:
    """Show a bar on the terminal if there are many."""
    if len(rows) < _MANY or not sys.stderr.isatty():
        yield rows
        return
    with click.progressbar(rows, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar


def steers(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options and arguments of commands that change elements."""
    taken: Callable[..., None] = inbox_option(json_option(all_option(yes_option(keys_argument(command)))))
    return taken
