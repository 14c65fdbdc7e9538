"""An inbox as a tar file: written beside producers and a consumer, read into another inbox; what was cut
short can go on.

A member is `<state>/<number>-<key>`; its header has the key (`FSINBOX.key`) and, of what failed, the reason
(`FSINBOX.reason`). What is put in first is what is first in the queue, so that reading it in order keeps the
order.
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
from .survey import Row, reason, rows

if TYPE_CHECKING:
    from ..inbox import Inbox

STATES = ("out", "waiting", "deferred", "failed", "done")

_KEY, _REASON = "FSINBOX.key", "FSINBOX.reason"

_LONGEST_REASON = 64 * 1024

_BATCH = 200
"""Elements after which it is noted how far an import has come."""


class ArchiveError(InboxError):
    """A file is no archive of ours, or not whole."""


def write(
    layout: Layout,
    file: IO[bytes],
    states: tuple[str, ...],
    *,
    progress: Callable[[int], object],
    skip: set[str],
) -> int:
    """Write the elements in these states to a tar file, but for members called as in `skip`; return how many.
    Raises OSError.

    `file` is written at its position; `progress` is called with the number written so far.
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
    """Write one element; False if it is gone, or no regular file."""
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
    """Return what an export that was cut short has written whole: the names of its members, and where they
    end (bytes)."""
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
        pass  # what follows is not whole
    return names, end


class Member:
    """One element in an archive."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        """Raises ArchiveError if it is none of ours."""
        state, _, file = info.name.partition("/")
        parsed = parse_element(file)
        key = info.pax_headers.get(_KEY) or (parsed and decode_key(parsed[1]))
        if state not in STATES or not parsed or not key or not info.isreg():
            raise ArchiveError(
                f"{info.name!r} in the archive is no element: it was not written by `fsinbox export`"
            )
        try:
            encode_key(key)
        except InvalidKey as error:
            raise ArchiveError(f"{info.name!r} in the archive has no key that could be: {error}") from error
        self.state = state
        self.key = key
        self.seq = parsed[0]
        self.size = info.size
        self.reason = info.pax_headers.get(_REASON, "")
        self._tar = tar
        self._info = info

    def open(self) -> BinaryIO:
        """Return its payload, to read from."""
        return cast("BinaryIO", self._tar.extractfile(self._info))  # (None is for what is no regular file)


def members(file: IO[bytes]) -> Iterator[Member]:
    """Go through an archive, from the file's position on. Raises ArchiveError at what is not whole, or not
    ours."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                yield Member(tar, info)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(
            f"the archive cannot be read: {error}: it is no tar file, or was cut short; export it again"
        ) from error


class Import:
    """Reads an archive into an inbox, in order. What it has done is noted in control/, so that it can go
    on."""

    def __init__(self, inbox: Inbox, identity: bytes, *, replace: bool) -> None:
        """`identity`: what makes this archive this one. `replace`: in place of what waits in the inbox
        already."""
        self._inbox = inbox
        self._layout = inbox.layout
        self._replace = replace
        self._note = f"import-{sha256(identity).hexdigest()[:32]}"
        self.done = self._read_note()
        """Members that were read, this time and before."""

    def put(self, member: Member) -> str:
        """Queue an element: "added", or "kept" if a value of its key waits; what failed: "failed", or "kept";
        what is done is "skipped". Raises AddFailed.
        """
        outcome = self._put(member)
        self.done += 1
        if self.done % _BATCH == 0:
            self.note()
        return outcome

    def _put(self, member: Member) -> str:
        from ..store.transfer import Stream

        if member.state == "done":
            return "skipped"
        stream = member.open()
        if member.state != "failed" and self._replace:
            self._inbox.add_stream(member.key, stream)
            return "added"
        encoded = encode_key(member.key)
        try:
            kept = True
            drafts: list[str] = []
            try:
                Stream(stream).write(self._layout, drafts, durable=True)
                temporary = drafts[0]
                index = self._inbox.index
                if member.state == "failed":
                    step = transitions.put_into_failed
                    kept = not index.locked(step, self._layout, temporary, member.seq, encoded, member.reason)
                else:
                    kept = not index.locked(
                        transitions.add_if_none_waits, self._layout, index, temporary, encoded
                    )
            finally:
                if kept and drafts:
                    files.discard_temporary(self._layout, drafts[0])
        except OSError as error:
            raise AddFailed(
                error.errno,
                f"cannot add key {member.key!r} to inbox {self._layout.path}: {error.strerror or error}: "
                "mend that, and import "
                "again: it goes on from there",
                maybe_added=True,
            ) from error
        if kept:
            return "kept"
        return "failed" if member.state == "failed" else "added"

    def note(self) -> None:
        """Make what was done last, and note it. Raises OSError."""
        files.flush_pending(self._layout)
        control.put(self._layout, self._note, str(self.done))

    def finish(self) -> None:
        """All was read: make it last, and forget how far it is. Raises OSError."""
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
    """Return what makes the archive at `path` this one: its size, and its first and last blocks. Raises
    OSError."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(65536)
        file.seek(max(0, size - 65536))
        return b"%d" % size + head + file.read(65536)
