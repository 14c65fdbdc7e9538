"""What is no element: a foreign name, a directory, a link. It is moved to failed/, and stops nothing."""

from __future__ import annotations

import logging
import os
import stat

from ..store import transitions
from ..store.layout import Layout
from ..store.names import about, decode_key, parse_element

log = logging.getLogger("fsinbox")

NO_NAME = "its name is not <number>-<key>"
NOT_REGULAR = "it is not a regular file"


class Foreign:
    """Tells what is no element, and sets it aside. What cannot be moved is left, and said."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def parse(self, folder: str, name: str) -> tuple[int, str] | None:
        """Return (number, encoded key) of an element's name; None for any other, which is set aside."""
        parsed = parse_element(name)
        if parsed is None or decode_key(parsed[1]) is None:
            self.set_aside(folder, name, NO_NAME)
            return None
        return parsed

    def is_regular(self, folder: str, name: str) -> bool:
        """Tell whether it is a regular file; what is not is set aside. Raises OSError."""
        try:
            status = os.lstat(name, dir_fd=self._layout.folder(folder))
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode):
            self.set_aside(folder, name, NOT_REGULAR)
            return False
        return True

    def looks_regular(self, name: str) -> bool:
        """Tell whether a name in pending/ is of a regular file now. Nothing is done about it."""
        try:
            return stat.S_ISREG(os.lstat(name, dir_fd=self._layout.fresh("pending")).st_mode)
        except FileNotFoundError:
            return False

    def set_aside(self, folder: str, name: str, reason: str) -> None:
        """Move it to failed/, with the reason beside it."""
        try:
            aside = transitions.set_aside(
                self._layout, folder, name, f"{f'{folder}/{name}'!r} was set aside: {reason}\n"
            )
        except OSError as error:
            log.warning(
                "%r is no element (%s) and cannot be moved: %s",
                f"{folder}/{name}",
                reason,
                error.strerror,
                extra=about("not_set_aside", name),
            )
        else:
            log.warning(
                "set aside %r: %s (it is now %r)",
                f"{folder}/{name}",
                reason,
                f"failed/{aside}",
                extra=about("set_aside", name)
                | {"folder": folder, "file": name, "reason": reason, "aside": aside},
            )
