"""An inbox as a tar file: written beside producers and a consumer, read into another inbox. What was
interrupted can be resumed.

A member is called `<state>/<number>-<key>`. Its header has the key (`FSINBOX.key`) and, for a failed element,
the reason (`FSINBOX.reason`). Members are in the order of the queue, so reading them in order keeps it.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from ..store import control, files, transitions
from ..store.errors import AddFailed, InboxError, InvalidKey
from ..store.layout import Layout
from ..store.names import decode_key, element_name, encode_key, parse_element
from .drafts import draft_of
from .rows import Row, reason, rows

if TYPE_CHECKING:
    from ..inbox import Inbox

STATES = ("in_flight", "waiting", "deferred", "failed", "done")

_KEY, _REASON = "FSINBOX.key", "FSINBOX.reason"

_LONGEST_REASON = 64 * 1024

_BATCH = 200
"""After this many elements the progress of an import is noted."""


class ArchiveError(InboxError):
    """A file is not an archive of ours, or is incomplete."""


def write(
    layout: Layout,
    file: IO[bytes],
    states: tuple[str, ...],
    *,
    progress: Callable[[int], object],
    skip: set[str],
) -> int:
    """Write the elements in these states to a tar file, except the members named in `skip`; return how many
    were written. Raises OSError.

    `file` is written from its position on; `progress` is called with the number written so far.
    """
    done = 0
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for row in rows(layout, states):
            name = f"{row.state}/{element_name(row.seq, encode_key(row.key))}"
            if name not in skip and _put(layout, tar, row, name):
                done += 1
                progress(done)
    return done


def _put(layout: Layout, tar: tarfile.TarFile, row: Row, name: str) -> bool:
    """Write one element; False if it is not there any more, or is not a regular file."""
    try:
        fd = files.open_for_reading(layout, row.folder, row.file)
    except OSError:
        return False
    with open(fd, "rb") as payload:
        status = os.fstat(fd)
        member = tarfile.TarInfo(name)
        member.size = status.st_size
        member.mtime = status.st_mtime_ns / 1e9  # PAX keeps the fraction
        member.mode = stat.S_IMODE(status.st_mode)
        member.pax_headers = {_KEY: row.key}
        if row.state == "failed":
            member.pax_headers[_REASON] = (reason(layout, row) or "")[-_LONGEST_REASON:]
        tar.addfile(member, payload)
    return True


def whole_part(file: IO[bytes]) -> tuple[set[str], int]:
    """Return what an interrupted export has written completely: the names of its members, and the offset in
    bytes at which they end."""
    names: set[str] = set()
    end = 0
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                behind = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if behind > size:
                    break
                names.add(member.name)
                end = behind
    except tarfile.TarError:
        pass  # what follows is incomplete
    return names, end


class Member:
    """One element in an archive."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        """Raises ArchiveError if it is not a member that `write` has written."""
        state, _, file = info.name.partition("/")
        parsed = parse_element(file)
        key = info.pax_headers.get(_KEY) or (parsed and decode_key(parsed[1]))
        if state not in STATES or not parsed or not key or not info.isreg():
            raise ArchiveError(
                f"{info.name!r} in the archive is not an element: `fsinbox export` did not write it"
            )
        try:
            encode_key(key)
        except InvalidKey as error:
            raise ArchiveError(f"{info.name!r} in the archive has an invalid key: {error}") from error
        self.state = state
        self.key = key
        self.seq = parsed[0]
        self.size = info.size
        self.reason = info.pax_headers.get(_REASON, "")
        self._tar = tar
        self._info = info

    def open(self) -> BinaryIO:
        """Return its payload, open for reading."""
        return cast("BinaryIO", self._tar.extractfile(self._info))  # (None: not a regular file)


def members(file: IO[bytes]) -> Iterator[Member]:
    """Go through an archive, from the file's position on. Raises ArchiveError where it is incomplete, or not
    ours."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                yield Member(tar, info)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(
            f"cannot read the archive: {error}: it is not a tar file, or is incomplete; export it again"
        ) from error


class Import:
    """Reads an archive into an inbox, in order. Its progress is noted in control/, so that it can be
    resumed."""

    def __init__(self, inbox: Inbox, identity: bytes, *, replace: bool) -> None:
        """`identity`: tells this archive from others. `replace`: its values replace waiting ones."""
        self._inbox = inbox
        self._layout = inbox.layout
        self._replace = replace
        self._note = f"import-{sha256(identity).hexdigest()[:32]}"
        self.done = self._read_note()
        """Members that were read, by this run and those before it."""

    def put(self, member: Member) -> str:
        """Queue one element. Raises AddFailed.

        Returns "added"; "failed" for a failed element, which is put into failed/; "kept" if a value of its
        key is there already, which stays; "skipped" for what is done.
        """
        outcome = self._put(member)
        self.done += 1
        if self.done % _BATCH == 0:
            self.note()
        return outcome

    def _put(self, member: Member) -> str:
        if member.state == "done":
            return "skipped"
        if member.state != "failed" and self._replace:
            self._inbox.add_stream(member.key, member.open())
            return "added"
        try:
            with draft_of(self._layout, member.open()) as draft:
                draft.published = self._publish(member, draft.name)
        except OSError as error:
            raise AddFailed(
                error.errno,
                f"cannot add key {member.key!r} to inbox {self._layout.path}: {error.strerror or error}: "
                "fix that, then import again: it continues from there",
                maybe_added=True,
            ) from error
        if not draft.published:
            return "kept"
        return "failed" if member.state == "failed" else "added"

    def _publish(self, member: Member, temporary: str) -> bool:
        """Move a file in tmp/ to the element's place, unless one is there; tell whether it was moved."""
        index, encoded = self._inbox.index, encode_key(member.key)
        if member.state == "failed":
            step = transitions.put_into_failed
            return index.locked(step, self._layout, temporary, member.seq, encoded, member.reason)
        return index.locked(transitions.add_if_none_waits, self._layout, index, temporary, encoded)

    def note(self) -> None:
        """Flush what was queued, and note the progress. Raises OSError."""
        files.flush_pending(self._layout)
        control.put(self._layout, self._note, str(self.done))

    def finish(self) -> None:
        """The archive is read: flush, and remove the note. Raises OSError."""
        self.note()
        os.unlink(self._note, dir_fd=self._layout.folder("control"))

    def _read_note(self) -> int:
        try:
            return (
                int(os.readlink(self._note, dir_fd=self._layout.folder("control")))
                if self._layout.has("control")
                else 0
            )
        except (OSError, ValueError):
            return 0


def identity(path: str) -> bytes:
    """Return what tells the archive at `path` from others: its size, its first and its last blocks. Raises
    OSError."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(65536)
        file.seek(max(0, size - 65536))
        return b"%d" % size + head + file.read(65536)
