"""What people do to elements: `fsinbox retry`, `discard`, `requeue`, `replay`. Safe beside producers and a
consumer.

    failed/    -- retry -->   its place in pending/     (left where it is if a newer value of its key is
               about)
    deferred/  -- requeue --> its place in pending/     (the same)
    done/      -- replay -->  its place in pending/, as a copy
    any of these, and pending/ -- discard --> gone

An element goes back to the number it had, so to the front: it has waited long enough, and a newer value can
not be lost by it (transitions.return_to_place).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..store import files, transitions
from ..store.control import ask_rescan
from ..store.errors import UnusableInbox
from ..store.index import open_index
from ..store.layout import Layout
from ..store.names import REASON, encode_key
from .survey import Row, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

FLUSHED_EVERY = 500
"""Elements after which what was done is flushed."""


class Steering:
    """An open inbox to steer. Use it in a `with` block: what was done is flushed at its end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UnusableInbox if there is no inbox at `path`."""
        self.layout = Layout(os.fspath(path), create=False)
        self._index = open_index(self.layout)
        self._changed: set[str] = set()
        self._reasons: list[str] = []
        self._look_again = False
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._index.close()
            self.layout.close()

    def rows(self, states: Iterable[str], keys: Iterable[str] | None = None) -> Iterator[Row]:
        """Go through the elements in these states (survey.STATES, or "done"), those of `keys` only if
        given."""
        wanted = None if keys is None else set(keys)
        for row in rows(self.layout, tuple(states)):
            if wanted is None or row.key in wanted:
                yield row

    def retry(self, row: Row) -> str:
        """Queue an element that failed again: "queued"; "newer" if a newer value of its key waits, is out or
        deferred, or "foreign" if it is no regular file: then nothing is done; "gone" if it is not there.
        Raises UnusableInbox.
        """
        outcome = self._return(row)
        if outcome == "queued":
            self._reasons.append(row.file + REASON)
        return outcome

    def requeue(self, row: Row) -> str:
        """Have a deferred element's back-off end now: the same as retry."""
        return self._return(row)

    def replay(self, row: Row) -> str:
        """Queue a copy of an element in done/: the same as retry."""
        from ..store.transfer import Stream

        with self._refusals(row):
            try:
                source = os.fdopen(files.open_for_reading(self.layout, row.folder, row.file), "rb")
            except FileNotFoundError:
                return "gone"
        outcome = ""
        drafts: list[str] = []
        try:
            with source, self._refusals(row):
                Stream(source).write(self.layout, drafts, durable=True)
            outcome = self._bring_back(row, "tmp", drafts[0])
        finally:
            if outcome != "queued" and drafts:
                files.discard_temporary(self.layout, drafts[0])
        return outcome

    def discard(self, row: Row) -> bool:
        """Remove an element that waits, is deferred, has failed or is done, whatever it is; False if it was
        gone.

        What waits is removed as it is then: if a newer value has just replaced it, that one. Raises
        UnusableInbox.
        """
        if row.state == "out":
            raise ValueError("an element that is out is its consumer's to end")
        folder = self.layout.folder(row.folder)
        with self._refusals(row):
            try:
                os.unlink(row.file, dir_fd=folder)
            except FileNotFoundError:
                return False
            except IsADirectoryError:
                os.rmdir(row.file, dir_fd=folder)  # somebody's, set aside there: not what is in it
        if row.state == "failed":
            self._reasons.append(row.file + REASON)
        self._have_changed(row, look=row.state == "deferred")
        return True

    def flush(self) -> None:
        """Make what was done so far survive a power cut. Raises UnusableInbox."""
        changed, self._changed = self._changed, set()
        reasons, self._reasons = self._reasons, []
        self._count = 0
        try:
            if self._look_again:
                self._look_again = False
                ask_rescan(self.layout)
            for folder in sorted(
                changed, key="pending".__ne__
            ):  # pending/ first: better there twice than nowhere
                files.flush_folder(self.layout, folder)
            for reason in reasons:  # only now: what has come back to failed/ must have one
                files.remove(self.layout, "failed", reason)
        except OSError as error:
            raise UnusableInbox(
                f"cannot make it last in inbox {self.layout.path}: {error}: it is done, but a power cut may "
                "undo it"
            ) from error

    def _return(self, row: Row) -> str:
        with self._refusals(row):
            try:
                if not stat.S_ISREG(os.lstat(row.file, dir_fd=self.layout.folder(row.folder)).st_mode):
                    return "foreign"
            except FileNotFoundError:
                return "gone"
        return self._bring_back(row, row.folder, row.file)

    def _bring_back(self, row: Row, folder: str, file: str) -> str:
        """Move what lies in a folder as `file` to the element's place. Raises UnusableInbox."""
        with self._refusals(row):
            step = transitions.return_to_place
            outcome = self._index.locked(
                step, self.layout, self._index, folder, file, row.seq, encode_key(row.key)
            )
        if outcome == "queued":
            self._have_changed(row, look=True)
        return outcome

    def _have_changed(self, row: Row, *, look: bool) -> None:
        self._look_again |= look
        self._changed |= {"pending", row.folder}
        self._count += 1
        if self._count == FLUSHED_EVERY:
            self.flush()

    @contextmanager
    def _refusals(self, row: Row) -> Iterator[None]:
        """What the system has against a change of this element is told as UnusableInbox."""
        try:
            yield
        except OSError as error:
            where = f"{self.layout.path}/{row.folder}/{row.file}"
            text = f"cannot change {where}: {error.strerror or error}: it is as it was; mend that, try again"
            raise UnusableInbox(text) from error


def size_and_time(layout: Layout, row: Row) -> tuple[int, int] | None:
    """Return an element's size in bytes, and when it came to where it is (ns since the epoch); None if it is
    gone."""
    try:
        status = os.lstat(row.file, dir_fd=layout.folder(row.folder))
    except FileNotFoundError:
        return None
    return status.st_size, status.st_ctime_ns
