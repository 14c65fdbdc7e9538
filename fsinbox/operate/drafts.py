"""A copy of a payload in tmp/, on its way to another folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..store.files import discard_temporary
from ..store.layout import Layout
from ..store.transfer import Stream


class Draft:
    """A file in tmp/, called `name`. Set `published` once it has left tmp/."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.published = False


@contextmanager
def draft_of(layout: Layout, source: BinaryIO, *, not_before: int = 0) -> Iterator[Draft]:
    """Copy a stream into tmp/ and flush it (`not_before`: see files.mark_not_before); remove the copy at the
    end of the block unless it was published. Raises OSError."""
    names: list[str] = []
    published = False
    try:
        Stream(source).write(layout, names, durable=True, not_before=not_before)
        draft = Draft(names[0])
        yield draft
        published = draft.published
    finally:
        if names and not published:
            discard_temporary(layout, names[0])
