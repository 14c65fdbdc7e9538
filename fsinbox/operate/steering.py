"""What people do to elements: `fsinbox retry`, `requeue`, `replay`, `discard`. Safe beside producers and a
consumer.

    failed/    -- retry -->   its place in pending/
    deferred/  -- requeue --> its place in pending/
    done/      -- replay -->  its place in pending/, as a copy
    any of these, and pending/ -- discard --> removed

An element returns to the number it had, so to the front of the queue. If a newer value of its key is waiting,
in flight or deferred, it is left where it is: no newer value is ever lost (transitions.return_to_place).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..store import files, transitions
from ..store.control import ask_rescan
from ..store.errors import UnusableInbox
from ..store.layout import Layout
from ..store.names import REASON, encode_key
from ..store.opening import open_index
from .rows import Row, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

FLUSHED_EVERY = 500
"""After this many changes they are flushed."""


class Steering:
    """An open inbox to steer. Use it in a `with` block: changes are flushed at its end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UnusableInbox if there is no inbox at `path`."""
        self.layout = Layout(os.fspath(path), create=False)
        self._index = open_index(self.layout)
        self._changed: set[str] = set()
        self._reasons: list[str] = []
        self._rescan = False
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
        """Go through the elements in these states (rows.STATES, or "done"); only those of `keys`, if
        given."""
        wanted = None if keys is None else set(keys)
        for row in rows(self.layout, tuple(states)):
            if wanted is None or row.key in wanted:
                yield row

    def retry(self, row: Row) -> str:
        """Queue a failed element again. Raises UnusableInbox.

        Returns "queued"; or, with nothing changed: "newer" if a newer value of its key is waiting, in flight
        or deferred, "foreign" if it is not a regular file, "gone" if it is not there any more.
        """
        self._renew(row)
        outcome = self._return(row)
        if outcome == "queued":
            self._reasons.append(row.file + REASON)
        return outcome

    def requeue(self, row: Row) -> str:
        """End the back-off of a deferred element now. Returns, and raises, as retry does."""
        return self._return(row)

    def end_delay(self, row: Row) -> str:
        """Have a waiting element that was added for later handed out now: "queued", or "gone". Raises
        UnusableInbox."""
        with self._refusals(row):
            try:
                files.end_delay(self.layout, row.folder, row.file)
                os.utime(self.layout.folder(row.folder))  # so that it is seen to have changed (web.version)
            except FileNotFoundError:
                return "gone"
        self._have_changed(row, rescan=False)
        return "queued"

    def replay(self, row: Row) -> str:
        """Queue a copy of an element in done/. Returns, and raises, as retry does."""
        from .drafts import draft_of

        wrong = self._wrong(row)
        if wrong:
            return wrong
        with self._refusals(row):
            try:
                source = os.fdopen(files.open_for_reading(self.layout, row.folder, row.file), "rb")
            except FileNotFoundError:
                return "gone"
            with source, draft_of(self.layout, source) as draft:
                outcome = self._bring_back(row, "tmp", draft.name)
                draft.published = outcome == "queued"
        return outcome

    def discard(self, row: Row) -> str:
        """Remove an element that is waiting, deferred, failed or done, or what has its name there.

        Returns "discarded"; "gone" if it is not there any more; "full" for a directory with something in it,
        which is left. If a newer value has just replaced a waiting element, that value is removed. Raises
        UnusableInbox; ValueError for an element in flight, which only its consumer may end.
        """
        if row.state == "in_flight":
            raise ValueError("an element in flight can only be ended by its consumer")
        with self._refusals(row):
            outcome = files.remove_any(self.layout, row.folder, row.file)
        if outcome != "removed":
            return outcome
        if row.state == "failed":
            self._reasons.append(row.file + REASON)
        self._have_changed(row, rescan=row.state == "deferred")
        return "discarded"

    def flush(self) -> None:
        """Make the changes so far survive a power cut. Raises UnusableInbox."""
        changed, self._changed = self._changed, set()
        reasons, self._reasons = self._reasons, []
        self._count = 0
        try:
            if self._rescan:
                self._rescan = False
                ask_rescan(self.layout)
            # pending/ first: a power cut in between leaves the element in two places, not in none.
            for folder in sorted(changed, key="pending".__ne__):
                files.flush_folder(self.layout, folder)
            for reason in reasons:  # only now: an element that a power cut returns to failed/ needs it
                files.remove_any(self.layout, "failed", reason)
        except OSError as error:
            raise UnusableInbox(
                f"cannot flush changes of inbox {self.layout.path}: {error}: they are made, but a power cut "
                "may undo them"
            ) from error

    def _renew(self, row: Row) -> None:
        """Have the value count as queued now: else what was given up for its age would be so again."""
        try:
            os.utime(row.file, dir_fd=self.layout.folder(row.folder), follow_symlinks=False)
        except OSError:
            pass  # gone, or another user's: it is moved all the same, if it can be

    def _return(self, row: Row) -> str:
        return self._wrong(row) or self._bring_back(row, row.folder, row.file)

    def _wrong(self, row: Row) -> str:
        """Return why it cannot go back: "foreign" or "gone"; "" if it can."""
        with self._refusals(row):
            try:
                status = os.lstat(row.file, dir_fd=self.layout.folder(row.folder))
            except FileNotFoundError:
                return "gone"
        return "" if stat.S_ISREG(status.st_mode) else "foreign"

    def _bring_back(self, row: Row, folder: str, file: str) -> str:
        """Move `file` of a folder to the element's place in pending/. Raises UnusableInbox."""
        with self._refusals(row):
            step = transitions.return_to_place
            outcome = self._index.locked(
                step, self.layout, self._index, folder, file, row.seq, encode_key(row.key)
            )
        if outcome == "queued":
            self._have_changed(row, rescan=True)
        return outcome

    def _have_changed(self, row: Row, *, rescan: bool) -> None:
        self._rescan |= rescan
        self._changed |= {"pending", row.folder}
        self._count += 1
        if self._count == FLUSHED_EVERY:
            self.flush()

    @contextmanager
    def _refusals(self, row: Row) -> Iterator[None]:
        """Raise a system error during a change of this element as UnusableInbox."""
        try:
            yield
        except OSError as error:
            where = f"{self.layout.path}/{row.folder}/{row.file}"
            why = error.strerror or error
            raise UnusableInbox(
                f"cannot change {where}: {why}: it is unchanged; fix that, then try again"
            ) from error


def size_and_time(layout: Layout, row: Row) -> tuple[int, int] | None:
    """Return an element's size in bytes, and when it moved to where it is (nanoseconds since the epoch); None
    if it is not there any more."""
    try:
        status = os.lstat(row.file, dir_fd=layout.folder(row.folder))
    except FileNotFoundError:
        return None
    return status.st_size, status.st_ctime_ns
