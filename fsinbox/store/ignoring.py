"""Names in drop/ that are nobody's values: partial uploads, and what desktops leave behind.

Patterns are gitignore's. Three lists are in force, and of several matches the last counts: BUILT_IN, whatever
the case of its letters; the file drop/.fsinboxignore; and what the consumer was given (`consume --ignore`),
which can only add names. Producers go by the first two: whoever adds a key must know whether a file of its
name is a value. So what takes a name off the list (`!4913`) belongs in the file.

Importing this costs nothing; the patterns are compiled, and their library is imported, when there is a name
to look at.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache

from .files import READ
from .folders import close_quietly
from .layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

BUILT_IN = (
    # being uploaded, or downloaded
    "*.tmp", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.download", "*.opdownload", "*.aria2",
    "~syncthing~*", "*.~*",
    # being edited
    "*.swp", "*.swo", "*.swx", "*~", "~$*", "#*#", "4913",
    # of a desktop
    "thumbs.db", "desktop.ini",
)  # fmt: skip
"""Names that are ignored unless .fsinboxignore says otherwise, in lower case. Hidden names always are."""

FILE = ".fsinboxignore"
OF_FILE = f"drop/{FILE}"

_LARGEST = 1 << 16
"""Bytes of .fsinboxignore; it has a handful of lines."""

_MOST_KNOWN = 1 << 17
"""Names of which it is remembered whether they are ignored; or twice those that were asked for."""

_MOST_STARS = 3
"""With a fourth `*` in a pattern a name of 255 bytes, which anybody may choose, could take seconds to
match."""

_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""For str.translate: ASCII letters only, so that a shell can do the same."""


class BadPattern(ValueError):
    """A pattern that cannot be used."""


class Ignored:
    """Tells which names in drop/ are ignored, by the lists as they are now."""

    def __init__(self, layout: Layout, more: Sequence[str] = ()) -> None:
        """`more`: the consumer's own patterns, as `check_patterns` accepts them."""
        self._layout = layout
        self.more = tuple(more)
        self.lines: tuple[str, ...] = ()
        """The patterns of .fsinboxignore."""
        self.refused = ""
        """Why .fsinboxignore is there and not in force, in words."""
        self._stamp: tuple[int, ...] = ()
        self._compiled: tuple[Any, list[str], list[str]] | None = None
        self._known: dict[str, bool] = {}

    def refresh(self) -> None:
        """Read .fsinboxignore again if it has changed. Raises OSError if it should be in force, and cannot be
        read now."""
        stamp: tuple[int, ...] = ()
        lines: tuple[str, ...] = ()
        refused = ""
        try:
            status = os.lstat(FILE, dir_fd=self._layout.fresh("drop"))
        except FileNotFoundError:
            status = None
        if status:
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if stamp == self._stamp:
                return
            refused = _why_refused(self._layout, status)
            lines = () if refused else _patterns(_read(self._layout))
        self._stamp, self.refused, self.lines, self._compiled = stamp, refused, lines, None
        self._known.clear()

    def left(self, names: Iterable[str]) -> list[str]:
        """Return those of the names in drop/ that are not ignored, in their order, as of the last refresh."""
        names = list(names)
        if len(self._known) > max(2 * len(names), _MOST_KNOWN):
            self._known.clear()
        return [name for name in names if not self._is_ignored(name)]

    def is_folder_left_alone(self, name: str) -> bool:
        """Tell whether a folder in drop/ is ignored, as of the last refresh."""
        known = self._known.get(f"{name}/")
        if known is None:
            known = self._known[f"{name}/"] = bool(self.why(name, folder=True))
        return known

    def _is_ignored(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = bool(self.why(name))
        return known

    def why(self, name: str, *, folder: bool = False) -> str:
        """Return by which pattern a name (a path, in subfolders) is ignored, and where that stands; "" if it
        is not ignored."""
        if name[0] == "." or "/." in name:
            return "hidden"
        if folder:
            name += "/"
        name = name.replace("\n", "\0")  # a `$` of a regular expression does not mind a newline at the end
        matched = _built_in().check_file(name.translate(_LOWER)).index
        found = "" if matched is None else f"{BUILT_IN[matched]} of the built-in list"
        if self.lines or self.more:
            spec, places, _ = self._compile()
            last = spec.check_file(name)
            if last.include is not None:
                found = places[last.index] if last.include else ""
        return found

    def lists(self) -> dict[str, list[str]]:
        """Return the lists in force, for programs."""
        return {"built_in": list(BUILT_IN), "file": list(self.lines), "given": list(self.more)}

    def bad_lines(self) -> list[str]:
        """Return what is wrong with lines of .fsinboxignore, in words. They are passed over."""
        return self._compile()[2] if self.lines else []

    def _compile(self) -> tuple[Any, list[str], list[str]]:
        """Return the patterns, compiled; where each of them stands; and what is wrong with others."""
        if self._compiled is None:
            good, bad = [], []
            for line in self.lines:
                try:
                    check_pattern(line)
                    good.append(line)
                except BadPattern as error:
                    bad.append(str(error))
            places = [f"{line} of {OF_FILE}" for line in good] + [f"{line} of --ignore" for line in self.more]
            self._compiled = _spec_of([*good, *self.more]), places, bad
        return self._compiled

    def __str__(self) -> str:
        """Return which lists are in force, for people."""
        text = f"{', '.join(BUILT_IN)} (built in)"
        for lines, where in ((self.lines, OF_FILE), (self.more, "--ignore")):
            if lines:
                text += (
                    f"; {', '.join(line if line.isprintable() else repr(line) for line in lines)} ({where})"
                )
        return text


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of a consumer. Raises BadPattern."""
    checked = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in checked:
        if pattern[:1] == "!":
            raise BadPattern(
                f"pattern {pattern!r} takes names off the list, and producers must know of that: write it "
                f"into {OF_FILE}"
            )
        if not _patterns(pattern) or "\n" in pattern:
            raise BadPattern(f"pattern {pattern!r} matches no name: give one line of a .gitignore")
        check_pattern(pattern)
    return checked


def check_pattern(pattern: str) -> None:
    """Raises BadPattern for what cannot be used."""
    from re import error as not_regular

    if pattern.count("*") > _MOST_STARS:
        raise BadPattern(f"pattern {pattern!r} has more than {_MOST_STARS} `*`: use fewer")
    try:
        _spec_of((pattern,))
    except (ValueError, not_regular, RecursionError, OverflowError) as error:
        raise BadPattern(f"pattern {pattern!r} is none: {error}") from error


def looked_up(layout: Layout, more: Sequence[str] = ()) -> Ignored:
    """Return what is ignored, for whoever only looks: if .fsinboxignore cannot be read, it is `refused`."""
    ignored = Ignored(layout, more)
    try:
        ignored.refresh()
    except OSError as error:
        ignored.refused = f"it cannot be read: {error.strerror}"
    return ignored


def ignored_by_all(layout: Layout, name: str) -> bool:
    """Tell a producer whether a name in drop/ is ignored by whoever consumes. Raises OSError if it cannot be
    told."""
    ignored = Ignored(layout)
    ignored.refresh()
    path = ""
    for part in name.split("/"):  # as it is looked for: from above
        path = f"{path}/{part}" if path else part
        if ignored.why(path) or (path != name and ignored.why(path, folder=True)):
            return True
    return False


@cache
def _built_in() -> Any:
    return _spec_of([line.replace("#", "\\#") for line in BUILT_IN])


def _spec_of(lines: Iterable[str]) -> Any:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _patterns(text: str) -> tuple[str, ...]:
    """Return the lines that are patterns, not comments."""
    return tuple(line for line in text.split("\n") if line.strip() and line[0] != "#")


def _why_refused(layout: Layout, status: os.stat_result) -> str:
    """Return why a .fsinboxignore is not used, "" if it is: anybody may have put it there."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return "it is not a regular file with one name"
    if status.st_uid not in (0, os.fstat(layout.root).st_uid):
        return f"it belongs to user {status.st_uid}, and not to the owner of the inbox: chown it"
    if status.st_mode & 0o022:
        return "others may write to it: chmod go-w it"
    if status.st_size > _LARGEST:
        return f"it has {status.st_size} bytes, {_LARGEST} at most are read"
    return ""


def _read(layout: Layout) -> str:
    """Return the text of .fsinboxignore. Raises OSError, also if it is another file by now."""
    fd = os.open(FILE, READ, dir_fd=layout.folder("drop"))
    try:
        if refused := _why_refused(layout, os.fstat(fd)):
            raise OSError(errno.EAGAIN, refused, OF_FILE)
        return os.read(fd, _LARGEST).decode("utf-8", "surrogateescape")
    finally:
        close_quietly(fd)
