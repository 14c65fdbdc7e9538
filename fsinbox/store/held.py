"""Whether a value of a key is there already, for an add that keeps the first."""

from __future__ import annotations

import os
from time import time_ns

from .files import not_before
from .index import Index
from .layout import Layout
from .names import element_of, encoded_of


class Held:
    """What an add that keeps the first value looks at, inside one section."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index
        self._deferred: set[str] | None = None

    def has(self, encoded: str) -> bool:
        """Tell whether a value of a key is known to wait, is deferred, or is about to be: taken too soon, and
        on its way there. Lists inflight/; and deferred/ the first time. Raises OSError."""
        self._index.sure_last_number()
        if self._index.find(encoded):
            return True
        if self._deferred is None:  # nothing is put there meanwhile
            self._deferred = {encoded_of(element_of(name)) for name in self._layout.names("deferred")}
        return encoded in self._deferred or any(
            self._is_too_soon(folder, name)
            for folder, name in self._layout.in_flight()
            if encoded_of(name) == encoded
        )

    def _is_too_soon(self, folder: str, name: str) -> bool:
        """Tell whether nobody has what is in flight. (What is handed out was said to be, first.)"""
        try:
            return not_before(os.lstat(name, dir_fd=self._layout.folder(folder))) > time_ns()
        except FileNotFoundError:
            return False  # it was done just now
