"""Which files of a tree are wanted: patterns as .gitignore has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pathspec import GitIgnoreSpec

_REMEMBERED = 10_000
"""Folders whose answer is remembered."""


class Patterns:
    """The patterns of --include and --ignore. What lies in an ignored folder is ignored, as git has it."""

    def __init__(self, include: Sequence[str] = (), ignore: Sequence[str] = ()) -> None:
        """Raises ValueError for what is no pattern."""
        self._include = _spec("--include", include) if include else None
        self._ignore = _spec("--ignore", ignore)
        self.enters = lru_cache(_REMEMBERED)(self._enters)
        """Tells whether a folder, relative to the root ("" is the root), is looked into."""

    def wants(self, name: str) -> bool:
        """Tell whether a file, relative to the root, is wanted."""
        if self._ignore.match_file(name) or not self.enters(name.rpartition("/")[0]):
            return False
        return self._include is None or self._include.match_file(name)

    def _enters(self, folder: str) -> bool:
        if not folder:
            return True
        return not self._ignore.match_file(folder + "/") and self.enters(folder.rpartition("/")[0])


def _spec(option: str, patterns: Sequence[str]) -> GitIgnoreSpec:
    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise ValueError(f"{option} {pattern!r} is not a pattern of gitignore(5): {error}") from error
    return GitIgnoreSpec.from_lines(patterns)
