"""Compares a tree with what was queued of it last, folder by folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .folders import Fingerprint, Listing, RootGone, Tree
from .queueing import Queue
from .state import State

log = logging.getLogger("fsinbox")


class Difference(NamedTuple):
    """A file that is not as it was queued last."""

    name: str
    seen: Fingerprint | None
    """None: it is not there."""


class Scanner:
    """Scans one tree, and has each folder that it sees watched."""

    def __init__(self, tree: Tree, state: State, queue: Queue) -> None:
        self.tree = tree
        self.state = state
        self.watch: Callable[[Tree, str, int], object] = lambda tree, folder, fd: None
        """Called with each folder, open, before it is listed."""
        self._queue = queue
        self.root_gone = False
        """Whether the root could not be looked into, at the last try."""
        noted = state.remembered("device")
        self._noted_device = tree.device = int(noted) if noted and state.any() else None

    def differences(self, folder: str = "") -> Iterator[list[Difference]]:
        """Go through a folder and all below it: for each folder, give what differs. At the end comes what was
        queued of folders that are not there any more.

        A folder that cannot be read is said, and nothing in it counts as removed; nor if the root is not
        there. Raises UnusableInbox (the state cannot be read).
        """
        gone = set(self.state.folders(folder))
        waiting = [folder]
        while waiting:
            now = waiting.pop()
            listing = self._list(now)
            if listing is None:  # not readable: nothing is known of it
                gone -= {known for known in gone if _is_below(known, now)}
                if not now:
                    return
            elif listing is not _NOTHING:
                gone.discard(now)
                before = f"{now}/" if now else ""
                waiting += [before + name for name in sorted(listing.folders, reverse=True)]
                yield self._compare(now, listing)
        for one in sorted(gone):
            yield [Difference(_join(one, name), None) for name in self.state.files(one)]

    def _compare(self, folder: str, listing: Listing) -> list[Difference]:
        queued = self.state.files(folder)
        found = [
            Difference(_join(folder, name), seen)
            for name, seen in listing.files.items()
            if queued.pop(name, None) != seen
        ]
        return found + [Difference(_join(folder, name), None) for name in queued]

    def _list(self, folder: str) -> Listing | None:
        """Watch a folder, then list it. _NOTHING if it is not there; None if it cannot be read."""
        try:
            with self.tree.opened(folder) as fd:
                self.watch(self.tree, folder, fd)
                listing = self.tree.list(fd, folder)
                if not folder:
                    self._note_root(fd)
        except RootGone as error:
            self._say_gone(str(error.strerror))
            return None
        except FileNotFoundError:
            return _NOTHING
        except OSError as error:
            self._queue.skip(self.tree, folder, f"{error.strerror}: what was queued of it stays as it is")
            return None
        self._queue.readable(self.tree, folder)
        return listing

    def _note_root(self, fd: int) -> None:
        """The root is there: note where."""
        device = os.fstat(fd).st_dev
        if self._noted_device != device:
            self.state.note("device", str(device))
            self.tree.device = self._noted_device = device
        if self.root_gone:
            self.root_gone = False
            log.info("%s is there again", self.tree.root.path, extra={"event": "root_back"})

    def _say_gone(self, why: str) -> None:
        if not self.root_gone:
            log.warning(
                "cannot look into %s: %s. Nothing counts as removed; it is tried again",
                self.tree.root.path,
                why,
                extra={"event": "root_gone", "path": self.tree.root.path},
            )
        self.root_gone = True


_NOTHING = Listing({}, [])


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_below(folder: str, other: str) -> bool:
    return not other or folder == other or folder.startswith(other + "/")
