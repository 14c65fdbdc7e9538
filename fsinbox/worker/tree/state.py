"""What was queued last of each file of a tree: a small SQLite file.

It is written after the inbox has acknowledged: a kill in between has a file queued again, and never missed.
It may lag behind the inbox after a power cut (it is not flushed at each commit), and is never ahead.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...store.errors import InboxBusy, UnusableInbox
from .folders import Fingerprint

log = logging.getLogger("fsinbox")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    folder BLOB NOT NULL, name BLOB NOT NULL,
    size INTEGER NOT NULL, modified INTEGER NOT NULL, changed INTEGER NOT NULL,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
"""


class State:
    """The state of one tree. One process at a time has it open, in one thread."""

    def __init__(self, path: str) -> None:
        """Open the file at `path`, or create it; what is damaged is set aside. Raises InboxBusy if another
        process has it, UnusableInbox."""
        self.path = path
        with self._told():
            try:
                self._database = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = f"{path}.damaged"
                os.replace(path, aside)
                log.warning(
                    "%s is damaged (%s): it is %s now, and every file is queued anew",
                    path,
                    error,
                    aside,
                    extra={"event": "state_damaged", "path": path},
                )
                self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        for name in (self.path, f"{self.path}-wal", f"{self.path}-journal"):
            if os.path.islink(name):  # SQLite would follow it, and write wherever it leads
                raise OSError(errno.ELOOP, "it is a symlink, which is not followed", name)
        database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            # Exclusive: needs no shared memory, which a network file system has not; and keeps others away.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # sound after a power cut, if not the newest
            database.execute("BEGIN EXCLUSIVE")
            database.execute("COMMIT")
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Let others open it."""
        with self._told():
            self._database.close()

    # --- what it is about -----------------------------------------------------------------------------

    def remembered(self, name: str) -> str | None:
        """Return what was noted under a name. Raises UnusableInbox."""
        with self._told():
            row = self._database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def note(self, name: str, value: str) -> None:
        """Note a text under a name. Raises UnusableInbox."""
        with self._told():
            self._database.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    # --- files ----------------------------------------------------------------------------------------

    def any(self) -> bool:
        """Tell whether any file was queued. Raises UnusableInbox."""
        with self._told():
            return self._database.execute("SELECT 1 FROM files LIMIT 1").fetchone() is not None

    def get(self, name: str) -> Fingerprint | None:
        """Return the fingerprint under which a file was queued last; None if it was not, or as removed."""
        with self._told():
            row = self._database.execute(
                "SELECT size, modified, changed FROM files WHERE folder = ? AND name = ?", _split(name)
            ).fetchone()
        return Fingerprint(*row) if row else None

    def files(self, folder: str) -> dict[str, Fingerprint]:
        """Return the files of one folder that were queued, by their last names."""
        with self._told():
            rows = self._database.execute(
                "SELECT name, size, modified, changed FROM files WHERE folder = ?", (os.fsencode(folder),)
            )
            return {os.fsdecode(name): Fingerprint(*rest) for name, *rest in rows}

    def folders(self, folder: str) -> list[str]:
        """Return the folders in which files were queued: of this one and those below it."""
        first = os.fsencode(folder)
        with self._told():
            if not folder:
                rows = self._database.execute("SELECT DISTINCT folder FROM files")
            else:
                rows = self._database.execute(
                    "SELECT DISTINCT folder FROM files WHERE folder = ? OR (folder > ? AND folder < ?)",
                    (first, first + b"/", first + b"0"),  # "0" is the character after "/"
                )
            return [os.fsdecode(found) for (found,) in rows]

    def record(self, changes: Iterable[tuple[str, Fingerprint | None]]) -> None:
        """These were queued as they are here; None: as removed. All or none is recorded."""
        with self._told():
            self._database.execute("BEGIN")
            try:
                for name, found in changes:
                    if found is None:
                        self._database.execute(
                            "DELETE FROM files WHERE folder = ? AND name = ?", _split(name)
                        )
                    else:
                        self._database.execute(
                            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*_split(name), *found)
                        )
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise

    def clear(self) -> None:
        """Nothing was queued."""
        with self._told():
            self._database.execute("DELETE FROM files")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise InboxBusy(
                    f"another `fsinbox watch` queues this folder in this inbox, and has {self.path}: stop "
                    "it, then try again"
                ) from error
            raise UnusableInbox(
                f"cannot use {self.path}, which says what was queued: {error}: free what is short or mend "
                "what is wrong; if you remove it, every file is queued anew"
            ) from error


def _split(name: str) -> tuple[bytes, bytes]:
    folder, _, last = name.rpartition("/")
    return os.fsencode(folder), os.fsencode(last)
