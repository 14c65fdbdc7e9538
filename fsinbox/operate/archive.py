"""An inbox as a tar file: written beside producers and a consumer, read into another inbox. An import that
was interrupted can be resumed.

A member is called `<state>/<number>-<key>`. Its header has the key (`FSINBOX.key`), for a failed element the
reason (`FSINBOX.reason`), and what tells this export from others (`FSINBOX.export`). Members are in the order
of the queue, so reading them in order keeps it. An archive is not trusted: nothing in it is unpacked by name,
and whatever is wrong with it is an ArchiveError.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from time import time
from typing import IO, TYPE_CHECKING, BinaryIO, NoReturn, Self, cast

from ..store import control, files, transitions
from ..store.bounds import let_in, when_there_is_room
from ..store.errors import AddFailed, Full, InboxError, InboxFull, InvalidKey
from ..store.layout import Layout
from ..store.names import decode_key, element_name, encode_key, parse_element
from ..store.subfolders import dropped
from ..store.terms import LONGEST, terms_of
from .drafts import draft_of
from .rows import Row, reason, rows

if TYPE_CHECKING:
    from ..inbox import Inbox

STATES = ("in_flight", "waiting", "deferred", "failed", "done")

_OF_OLD = {"out": "in_flight"}
"""What a state was called in archives of earlier versions."""

_KEY, _REASON, _EXPORT = "FSINBOX.key", "FSINBOX.reason", "FSINBOX.export"

_LONGEST_REASON = 64 * 1024
"""Bytes of a reason that go into a header: the last ones."""

_LARGEST_HEADER = 128 * 1024
"""Bytes of an extended header that are read: tarfile would read any number into memory."""

_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_BATCH = 200
"""After this many elements the progress of an import is noted."""


class ArchiveError(InboxError):
    """A file is not an archive of ours, or is incomplete."""


@dataclass(slots=True)
class Written:
    """What an export has written, and what it has not."""

    exported: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key -> why its element could not be read."""
    left_out: dict[str, int] = field(default_factory=dict)
    """State that was not asked for, or "drop" -> how many there are."""


def write(
    layout: Layout, file: IO[bytes], states: tuple[str, ...], *, progress: Callable[[int], object]
) -> Written:
    """Write the elements in these states to a tar file. Raises OSError.

    `file` is written from its position on; `progress` is called with the number written so far.
    """
    written = Written()
    export = os.urandom(16).hex()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for row in rows(layout, states):
            try:
                fd = files.open_for_reading(layout, row.folder, row.file)
            except FileNotFoundError:
                continue  # it was taken, or has ended
            except OSError as error:
                written.unreadable[row.key] = error.strerror or str(error)
                continue
            with open(fd, "rb") as payload:
                tar.addfile(_header(layout, row, os.fstat(fd), export), payload)
            written.exported += 1
            progress(written.exported)
    others = {state: sum(1 for _ in rows(layout, (state,))) for state in STATES if state not in states}
    others["drop"] = len(dropped(layout))
    written.left_out = {state: count for state, count in others.items() if count}
    return written


def _header(layout: Layout, row: Row, status: os.stat_result, export: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"{row.state}/{element_name(row.seq, encode_key(row.key))}")
    member.size = status.st_size
    member.mtime = status.st_mtime_ns / 1e9  # PAX keeps the fraction
    member.mode = stat.S_IMODE(status.st_mode)
    member.pax_headers = {_KEY: row.key, _EXPORT: export}
    if row.state == "failed":
        text = (reason(layout, row) or "").encode("utf-8", "replace")
        member.pax_headers[_REASON] = text[-_LONGEST_REASON:].decode("utf-8", "ignore")
    return member


# --- reading ------------------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """A header as tarfile reads it, but bounded, and not sparse. A damaged one is not taken for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENDED and info.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {info.size} bytes, {_LARGEST_HEADER} at most")
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end, as an archive has it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error

    def _refuse(self, *_: object) -> NoReturn:
        """A map of holes is as long as it says it is."""
        raise tarfile.ReadError("a sparse member")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


@contextmanager
def _checked() -> Iterator[None]:
    """Raise whatever reading an archive raises as ArchiveError: of damaged ones tarfile and the decompressors
    raise nearly everything."""
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:
        raise ArchiveError(
            f"cannot read the archive: {error or type(error).__name__}: it is not a tar file, or is damaged "
            "or incomplete"
        ) from error


class Member:
    """One element in an archive."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        """Raises ArchiveError if it is not a member that `write` has written."""
        state, _, file = info.name.partition("/")
        state = _OF_OLD.get(state, state)
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
        self.not_before: float | None = None
        """If it was added for later: until then, in seconds since the epoch."""
        if info.mode & stat.S_ISVTX:
            self.not_before = info.mtime + 1e-6  # (rather late than early: it was cut to a float)
            if not self.not_before - time() <= LONGEST:
                raise ArchiveError(f"{info.name!r} in the archive is for later, and its time cannot be")
        self.reason = info.pax_headers.get(_REASON, "")
        self.export = info.pax_headers.get(_EXPORT, "")
        """What tells the export that wrote it from others; "" in archives of earlier versions."""
        self._tar = tar
        self._info = info

    def open(self) -> BinaryIO:
        """Return its payload, to be read to its end. Reading raises ArchiveError."""
        return cast("BinaryIO", _Payload(self._tar, self._info))


class _Payload:
    """Reads a member, all of it or with an ArchiveError."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._file = cast("BinaryIO", tar.extractfile(info))  # (None: not a regular file)

    def read(self, size: int) -> bytes:
        with _checked():
            return self._file.read(size)  # (tarfile raises ReadError if the archive ends within a payload)


def members(file: IO[bytes]) -> Iterator[Member]:
    """Go through an archive, from the file's position on. Raises ArchiveError where it is damaged or
    incomplete, or not ours."""
    with _checked(), tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
            yield Member(tar, info)


class Import:
    """Reads an archive into an inbox, in order. Its progress is noted in control/, so that it can be
    resumed."""

    def __init__(
        self,
        inbox: Inbox,
        identity: bytes,
        *,
        replace: bool = False,
        max_size: int | None = None,
        timeout: float = 0.0,
    ) -> None:
        """`identity`: tells this archive from others. `replace`: its values replace waiting ones. `max_size`:
        bytes; what is larger is skipped. `timeout`: seconds to wait for room for each, if the inbox is
        full."""
        self._max_size = max_size
        self._timeout = timeout
        self._inbox = inbox
        self._layout = inbox.layout
        self._replace = replace
        self._note = f"import-{sha256(identity).hexdigest()[:32]}"
        self.done = self._read_note()
        """Members that were imported, by this run and those before it."""

    def put_all(self, found: Iterable[Member], tell: Callable[[Member, str], object]) -> None:
        """Queue all that was not imported before, and `tell` each outcome. The progress is noted, whatever
        ends this early. Raises ArchiveError, InboxFull, AddFailed, OSError."""
        before = self.done
        try:
            for index, member in enumerate(found):
                if index >= before:
                    tell(member, self.put(member))
        except BaseException:
            try:
                self.note()
            except OSError:
                pass  # a full disk, for one, of which the error tells already
            raise
        self.finish()

    def put(self, member: Member) -> str:
        """Queue one element. Raises ArchiveError, AddFailed.

        Returns "added"; "failed" for a failed element, which is put into failed/; "kept" if a value of its
        key is there already, which stays; "skipped" for what is done; "large" for what is too large.
        """
        outcome = self._put(member)
        self.done += 1
        if self.done % _BATCH == 0:
            self.note()
        return outcome

    def _put(self, member: Member) -> str:
        if member.state == "done":
            return "skipped"
        if self._max_size is not None and member.size > self._max_size:
            return "large"
        if member.state != "failed" and self._replace:
            self._inbox.add_stream(
                member.key, member.open(), not_before=member.not_before, timeout=self._timeout
            )
            return "added"
        try:
            later = terms_of(True, not_before=member.not_before).not_before
            with draft_of(self._layout, member.open(), not_before=later) as draft:
                draft.published = self._publish(member, draft.name)
        except Full as error:
            raise InboxFull(
                error.errno,
                f"inbox {self._layout.path} is full: {error.strerror}: key {member.key!r} was not added; try "
                "again later, or raise the bound (fsinbox limit)",
                maybe_added=False,
            ) from error
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
        return when_there_is_room(
            lambda: index.locked(
                transitions.add_if_none_waits,
                self._layout,
                index,
                temporary,
                encoded,
                lambda: let_in(self._layout, index),
            ),
            self._timeout,
        )

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


def identity(path: str, first: Member | None) -> bytes:
    """Return what tells the archive at `path` from others; `first` is its first member.

    A copy of it that is incomplete is the same. An archive of an earlier version is told by its size, its
    first and its last blocks. Raises OSError.
    """
    if first and first.export:
        return first.export.encode("utf-8", "surrogateescape")
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(65536)
        file.seek(max(0, size - 65536))
        return b"%d" % size + head + file.read(65536)
