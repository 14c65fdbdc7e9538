"""What lies in drop/, and in its subfolders if they are ingested: all but what is ignored."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..store.errors import InvalidKey
from ..store.ignoring import FILE, OF_FILE, Ignored
from ..store.layout import Layout
from ..store.names import encode_key
from ..store.subfolders import MOST, Walk
from .settings import Settings

log = logging.getLogger("fsinbox")


class Arrivals:
    """What lies in drop/, of this consumer's shard, and is not ignored."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        """Of the settings it goes by ignore and the shard."""
        self._layout = layout
        self._shard = settings.shard
        self._ignored = Ignored(layout, settings.ignore)
        self._recursive = settings.drop_recursive
        self._told = ""
        self.entering: Callable[[int], object] = lambda fd: None
        """Called with the descriptor of each subfolder that is looked into, before it is listed."""
        self._left: set[str] = set()  # the subfolders of which it was said that they are left; "": too many

    def oldest_last(self) -> list[str] | None:
        """Return the names, the earliest arrival (ctime) last; None if what is ignored cannot be told now.
        Of what lies in subfolders, the paths. The first call says what is ignored."""
        if not self._refresh() and self._layout.names("drop"):
            return None
        walk = Walk(self._layout, self._ignored, recursive=self._recursive, entering=self.entering)
        arrived = [
            # (One that cannot be looked at is left alone when it is inspected: it must not keep the others.)
            (status.st_ctime_ns if status else 0, name)
            for name, status in walk
            if self._is_mine(name)
        ]
        self._tell_of_left(walk)
        return [name for _, name in sorted(arrived, reverse=True)]

    def _tell_of_left(self, walk: Walk) -> None:
        """Say, once, which subfolders were not looked into."""
        why = {
            path: f"cannot look into {path!r} now: {error.strerror}: it stays in drop/ and is tried again"
            for path, error in walk.unread.items()
        }
        if walk.left:
            why[""] = (
                f"drop/ has more than {MOST} subfolders: {walk.left} or more are left until there are fewer: "
                "remove the empty ones"
            )
        for path in why.keys() - self._left:
            tell("left", path, why[path])
        self._left = set(why)

    def _is_mine(self, name: str) -> bool:
        if self._shard.count == 1:
            return True
        try:
            return self._shard.has(encode_key(name))
        except InvalidKey:
            return self._shard.has("")

    def _refresh(self) -> bool:
        """Read .fsinboxignore, and say what is ignored if that was not said yet; tell whether it is known."""
        ignored = self._ignored
        try:
            ignored.refresh()
        except OSError as error:
            if self._told != str(error):
                self._told = str(error)
                tell(
                    "left",
                    FILE,
                    f"cannot read {OF_FILE} now: {error.strerror}: nothing is ingested until it can be",
                )
            return False
        if (text := f"{ignored}{ignored.refused}") != self._told:
            self._told = text
            own = ignored.lines or ignored.more or ignored.refused
            log.log(
                logging.INFO if own else logging.DEBUG,
                "ignoring in drop/: %s",
                ignored,
                extra={"event": "ignoring", "folder": "drop", **ignored.lists()},
            )
            for what in filter(None, [ignored.refused, *ignored.bad_lines()]):
                tell("ignore_file", FILE, f"{OF_FILE}, or a line of it, is not in force: {what}")
        return True


def tell(event: str, name: str, message: str) -> None:
    """Say what becomes of something in drop/."""
    log.warning("%s", message, extra={"event": event, "key": name, "folder": "drop"})
