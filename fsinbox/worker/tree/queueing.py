"""Queues changed files: which payload they get, many with one flush, and recorded when the inbox has them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from io import RawIOBase
from typing import TYPE_CHECKING, NamedTuple, cast

from ...inbox import Inbox
from ...store.errors import AddFailed, InvalidKey
from .folders import Fingerprint, Tree, fingerprint
from .state import State

if TYPE_CHECKING:
    from typing import BinaryIO

log = logging.getLogger("fsinbox")

PAYLOADS = ("json", "path", "file")

_LARGE = 1 << 20
"""Bytes from which a file's content is queued by itself, and not read into memory."""
_BATCH_FILES, _BATCH_BYTES = 1000, 1 << 24
"""What is added at once, at most."""


_TRIES = 20
"""Values that an inbox may refuse, of a batch, before the rest is left for later."""


class Change(NamedTuple):
    """A file that is to be queued."""

    tree: Tree
    name: str
    seen: Fingerprint | None
    """None: it is not there any more."""
    hurry: bool = False
    """It changes all the time: take it as it is."""


class Left(NamedTuple):
    """What was not queued."""

    unsteady: list[Change]
    """Files that were written to meanwhile."""
    refused: list[Change]
    """What the inbox did not take; in the order in which to try it again."""
    errors: list[AddFailed]
    """Why: InboxFull, if it has bounds."""


class Unsteady(Exception):
    """The file was written to, or removed, while it was read."""


class Unreadable(Exception):
    """The system does not let us read the file. (No OSError: those are the inbox's.)"""


class Queue:
    """Queues changes in one inbox."""

    def __init__(self, inbox: Inbox, states: dict[Tree, State], payload: str) -> None:
        """`payload`: one of PAYLOADS. `inbox` must be open with codec "bytes"."""
        self._inbox = inbox
        self._states = states
        self._payload = payload
        self._skipped: set[tuple[Tree, str]] = set()
        self._shortened: set[tuple[Tree, str]] = set()
        self._refuses = False  # the inbox did not take all that it was given last
        self.counts = {"queued": 0, "removed": 0}

    @property
    def skipped(self) -> int:
        """How many files could not be queued, so far."""
        return len(self._skipped)

    def put(self, changes: Iterable[Change]) -> Left:
        """Queue changes, and record those that the inbox has acknowledged. Return what was not queued.
        Raises UnusableInbox."""
        left = Left([], [], [])
        batch: list[tuple[Change, str, bytes]] = []
        size = 0
        for change in changes:
            try:
                key = self._key(change)
                found, data = self._encoded(change, key)
            except Unsteady:
                left.unsteady.append(change)
            except AddFailed as error:
                left.refused.append(change)
                left.errors.append(error)
            except (Unreadable, InvalidKey) as error:
                self.skip(change.tree, change.name, error)
            else:
                if data is None:
                    self._record([(found, key)])
                    continue
                batch.append((found, key, data))
                size += len(data)
                if len(batch) == _BATCH_FILES or size > _BATCH_BYTES:
                    self._add(batch, left)
                    batch, size = [], 0
        if batch:
            self._add(batch, left)
        self._refuses = bool(left.errors)
        return left

    def skip(self, tree: Tree, name: str, why: object) -> None:
        """Say that a file or folder cannot be looked at, or queued: once, until it can."""
        if (tree, name) not in self._skipped:
            self._skipped.add((tree, name))
            path = tree.root.path_of(name)
            log.warning("skipped %s: %s", path, why, extra={"event": "skipped", "path": path})

    def readable(self, tree: Tree, name: str) -> None:
        """What was skipped can be looked at now."""
        self._skipped.discard((tree, name))

    def _add(self, batch: list[tuple[Change, str, bytes]], left: Left) -> None:
        if not self._refuses:
            try:
                self._inbox.add_many((key, data) for _, key, data in batch)
                self._record([(change, key) for change, key, _ in batch])
                return
            except AddFailed:
                pass
        self._add_singly(batch, left)

    def _add_singly(self, batch: list[tuple[Change, str, bytes]], left: Left) -> None:
        """The inbox did not take all: give it what it takes, one by one. (A full one takes what replaces a
        waiting value. Of a batch nobody would know which, and the same would be queued again and again.)"""
        tried: list[Change] = []
        for number, (change, key, data) in enumerate(batch):
            try:
                self._inbox.add_bytes(key, data)
            except AddFailed as error:
                left.errors.append(error)
                tried.append(change)
                if len(tried) == _TRIES:
                    left.refused.extend(
                        later for later, _, _ in batch[number + 1 :]
                    )  # these first, next time
                    break
            else:
                self._record([(change, key)])
        left.refused.extend(tried)

    def _record(self, added: list[tuple[Change, str]]) -> None:
        """The inbox has these: only now is it noted that they were queued."""
        by_tree: dict[Tree, list[tuple[str, Fingerprint | None]]] = {}
        for change, key in added:
            by_tree.setdefault(change.tree, []).append((change.name, change.seen))
            what = "queued" if change.seen else "removed"
            self.counts[what] += 1
            self._skipped.discard((change.tree, change.name))
            log.debug("%s %r", what, key, extra={"event": what, "key": key})
        for tree, changes in by_tree.items():
            self._states[tree].record(changes)

    def _key(self, change: Change) -> str:
        """Return the key of a file. Raises InvalidKey if it cannot have one."""
        root = change.tree.root
        try:
            return root.key_of(change.name)
        except InvalidKey as error:
            if self._payload == "file":  # the handler would not know which file it is
                way = "with --payload json or path the key is shortened, and the payload has the path"
                raise InvalidKey(f"its path is too long for a key: {way}") from error
        key = root.short_key_of(change.name)
        if (change.tree, change.name) not in self._shortened:
            self._shortened.add((change.tree, change.name))
            path = root.path_of(change.name)
            text = "the path of %s is too long for a key: its key is %r, and its payload has the path"
            log.info(text, path, key, extra={"event": "shortened", "path": path, "key": key})
        return key

    # --- payloads -------------------------------------------------------------------------------------

    def _encoded(self, change: Change, key: str) -> tuple[Change, bytes | None]:
        """Return the change, as it is now, and its payload; None if it was large and is queued already."""
        if self._payload == "file":
            return (change, b"") if change.seen is None else self._content(change, key)
        path = change.tree.root.path_of(change.name)
        return change, os.fsencode(path) if self._payload == "path" else _json(path, change.seen)

    def _content(self, change: Change, key: str) -> tuple[Change, bytes | None]:
        try:
            fd = change.tree.open_file(change.name)
        except FileNotFoundError as error:
            raise Unsteady from error
        except OSError as error:
            raise Unreadable(error.strerror) from error
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = fingerprint(os.fstat(fd))
            if found != change.seen and not change.hurry:
                raise Unsteady
            content = _Content(file, None if change.hurry else found)
            now = change._replace(seen=found)
            if found.size < _LARGE:
                return now, b"".join(iter(lambda: content.read(_LARGE), b""))
            self._inbox.add_stream(key, cast("BinaryIO", content))
            return now, None


class _Content:
    """A file as a stream that raises at its end, before anything is queued, if the file has changed."""

    def __init__(self, file: RawIOBase, steady: Fingerprint | None) -> None:
        """`steady`: what it must look like at its end; None: whatever it likes."""
        self._file = file
        self._steady = steady

    def read(self, size: int) -> bytes:
        """Return the next piece; b"" at the end. Raises Unsteady, Unreadable."""
        try:
            piece: bytes = self._file.read(size) or b""
            if not piece and self._steady not in (None, fingerprint(os.fstat(self._file.fileno()))):
                raise Unsteady
        except OSError as error:
            raise Unreadable(error.strerror) from error
        return piece


def _json(path: str, seen: Fingerprint | None) -> bytes:
    members: dict[str, object] = {"path": path, "removed": seen is None}
    if seen is not None:
        members |= {"size": seen.size, "modified": seen.modified / 1e9}
    try:
        return json.dumps(members, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a name that is not UTF-8: as os.fsdecode has it
        return json.dumps(members).encode()
