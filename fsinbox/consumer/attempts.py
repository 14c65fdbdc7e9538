"""attempts/: the consumer's notes of how often an element was taken and not acknowledged.

A note is a symbolic link named like the element, to `<attempts>.<inode>.<mtime ns>.<alone>`. What waits is
believed to be meant only if it is the very file: a newer value in the same place starts afresh. What is in
flight has no other's note, for that is forgotten when it is taken, and nothing takes its place there. So a
note of its name is its own, even if the handler wrote to the file, or put another there.

A consumer that finds elements in inflight/ counts the attempt for each. If there was one, it was this one
that its consumer died of; if there were several, each is a *suspect* and is next taken alone, so that the
guilty one is found without blame on the others.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from ..store.layout import Layout
from ..store.names import about, encoded_of
from .ownership import Shard

log = logging.getLogger("fsinbox")


@dataclass(frozen=True, slots=True)
class Note:
    """How often an element was taken, of which file that is true, and whether it is suspect."""

    attempts: int
    inode: int
    modified: int
    # "" | "suspect": in flight with others when a consumer died | "died": in flight alone when a consumer
    # died | "died2", "died3", ...: that often in a row
    alone: str


def deaths_alone(alone: str) -> int:
    """Return how often in a row a consumer died with nothing else in flight, by `alone` of a note."""
    return int(alone[len("died") :] or 1) if alone.startswith("died") else 0


def died_alone(before: str) -> str:
    """Return what a note says after one more such death; `before` is what it said."""
    count = deaths_alone(before) + 1
    return "died" if count == 1 else f"died{count}"


class Attempts:
    """The notes of one consumer. Every note it has in memory is on disk too, unless the disk refused it."""

    def __init__(self, layout: Layout, shard: Shard) -> None:
        """`shard`: the consumer's."""
        self._layout = layout
        self._draft = f".draft-{shard.index}"
        self._mine = shard.has
        self._notes: dict[str, Note] = {}

    def load(self) -> None:
        """Read what an earlier consumer has noted."""
        folder = self._layout.folder("attempts")
        for name in self._layout.names("attempts"):
            if not self._mine(encoded_of(name)):
                continue
            try:
                attempts, inode, modified, alone = os.readlink(name, dir_fd=folder).split(".")
                deaths_alone(alone)
                self._notes[name] = Note(int(attempts), int(inode), int(modified), alone)
            except (OSError, ValueError):
                continue  # no note of ours

    def of(self, name: str, status: os.stat_result) -> Note | None:
        """Return the note of an element whose file this is."""
        note = self._notes.get(name)
        if note and (note.inode, note.modified) == (status.st_ino, status.st_mtime_ns):
            return note
        return None

    def of_taken(self, name: str, status: os.stat_result) -> Note | None:
        """Return the note of an element that was just taken; forget one of a value that it has replaced."""
        if name not in self._notes:
            return None  # as a rule
        note = self.of(name, status)
        if note is None:
            self.forget(name)
        return note

    def of_in_flight(self, name: str) -> Note | None:
        """Return the note of an element that a consumer has taken, whatever became of its file since."""
        return self._notes.get(name)

    def is_suspect(self, name: str) -> bool:
        """Tell whether what waits under this name was in flight when a consumer died."""
        note = self._notes.get(name)
        if not note or not note.alone:
            return False
        try:
            return self.of(name, os.lstat(name, dir_fd=self._layout.folder("pending"))) is not None
        except FileNotFoundError:
            return True  # it waits in deferred/, where nothing replaces it

    def write(self, name: str, note: Note) -> None:
        """Note it, in memory and on disk."""
        self._notes[name] = note
        folder = self._layout.folder("attempts")
        try:
            try:
                os.unlink(self._draft, dir_fd=folder)
            except FileNotFoundError:
                pass
            os.symlink(
                f"{note.attempts}.{note.inode}.{note.modified}.{note.alone}", self._draft, dir_fd=folder
            )
            os.rename(self._draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            log.warning(
                "cannot note the attempts at %r on disk: %s: a restart will not know of them",
                name,
                error.strerror,
                extra=about("not_noted", name),
            )

    def forget(self, name: str) -> None:
        """The element is done, or dropped."""
        if self._notes.pop(name, None) is None:
            return
        try:
            os.unlink(name, dir_fd=self._layout.folder("attempts"))
        except OSError:
            pass  # gone; or it is left: should the consumer die, a newer value may get its attempts

    def forget_idle(self, deferred: set[str]) -> None:
        """Forget all that neither waits nor is one of these."""
        for name in list(self._notes):
            if name not in deferred and not self._layout.exists("pending", name):
                self.forget(name)
