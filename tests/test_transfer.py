"""The content of a file or a stream: however it goes wrong, nothing of it is left in the inbox, and the file
is its owner's."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox
from tests.shim import intercepted, refusing
from tests.usual import drain, names


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        yield inbox


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.write_bytes(b"content" * 1000)
    return path


def delivered(inbox: Inbox) -> list[bytes]:
    return [value for _, value in drain(inbox)]


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("call", ["fstat", "pread"])
def test_a_file_that_could_not_be_queued_is_where_it_was(
    inbox: Inbox, file: Path, call: str, move: bool
) -> None:
    """The first fstat is of the file; pread, of the index, comes when the payload is in tmp/ already."""
    before = file.stat()
    with refusing(**{call: errno.EIO}, times=1), pytest.raises(AddFailed) as caught:
        inbox.add_file("a", file, move=move)
    assert not caught.value.maybe_added
    assert (file.stat().st_ino, file.read_bytes()) == (before.st_ino, b"content" * 1000)
    assert names(inbox, "tmp") == delivered(inbox) == []


@pytest.mark.parametrize("call", ["fchmod", "fsync"])
def test_a_file_that_was_handed_over_and_is_refused_is_given_back(
    inbox: Inbox, file: Path, call: str
) -> None:
    with refusing(**{call: errno.EIO}, times=1), pytest.raises(AddFailed, match="was not added"):
        inbox.add_file("a", file, move=True)
    assert file.read_bytes() == b"content" * 1000
    assert names(inbox, "tmp") == []


def test_a_file_is_given_back_where_there_are_no_links(inbox: Inbox, file: Path) -> None:
    with refusing(link=errno.EPERM, pread=errno.EIO), pytest.raises(AddFailed, match="was not added"):
        inbox.add_file("a", file, move=True)
    assert file.read_bytes() == b"content" * 1000
    assert names(inbox, "tmp") == []


def test_a_file_is_not_given_back_over_another_one(inbox: Inbox, file: Path) -> None:
    def refused(*_: object) -> bool:
        file.write_bytes(b"another's")
        return True

    with (
        refusing(pread=errno.EIO, when=refused),
        pytest.raises(AddFailed, match="could not be moved back: it is tmp/"),
    ):
        inbox.add_file("a", file, move=True)
    assert file.read_bytes() == b"another's"
    (kept,) = names(inbox, "tmp")
    assert Path(inbox.path, "tmp", kept).read_bytes() == b"content" * 1000


def test_a_file_that_cannot_be_given_back_is_kept_and_it_is_said_where(inbox: Inbox, file: Path) -> None:
    def back(name: str, *_: object) -> bool:
        return name != str(file)  # its way into tmp/ is not refused

    with (
        refusing(pread=errno.EIO, link=errno.EPERM, rename=errno.EROFS, when=back),
        pytest.raises(AddFailed, match="could not be moved back: it is tmp/") as caught,
    ):
        inbox.add_file("a", file, move=True)
    (kept,) = names(inbox, "tmp")
    assert kept in str(caught.value)
    assert Path(inbox.path, "tmp", kept).read_bytes() == b"content" * 1000


def test_a_file_that_may_not_be_moved_is_not_added(inbox: Inbox, file: Path) -> None:
    with refusing(rename=errno.EACCES), pytest.raises(AddFailed, match="Permission denied"):
        inbox.add_file("a", file, move=True)
    assert file.exists()
    assert delivered(inbox) == []


def test_a_file_on_another_file_system_that_cannot_be_removed_is_added_and_it_is_said(
    inbox: Inbox, file: Path
) -> None:
    with (
        refusing(rename=errno.EXDEV, unlink=errno.EPERM, when=lambda name, *_: name == str(file)),
        pytest.raises(AddFailed, match="was added, but cannot be removed") as caught,
    ):
        inbox.add_file("a", file, move=True)
    assert caught.value.maybe_added
    assert delivered(inbox) == [b"content" * 1000]


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_that_is_moved_or_a_stream_need_not_be_flushed(
    inbox: Inbox, file: Path, durable: bool
) -> None:
    flushed = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "fsync":
            flushed.append(arguments)
        return call(*arguments, **more)

    with intercepted(note):
        inbox.add_file("a", file, move=True, durable=durable)
        inbox.add_stream("b", io.BytesIO(b"streamed"), durable=durable)
    assert len(flushed) == (4 if durable else 0)
    assert delivered(inbox) == [b"content" * 1000, b"streamed"]


class Broken(io.BytesIO):
    """A stream that ends in an error."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_stream_that_breaks_queues_nothing(inbox: Inbox) -> None:
    with pytest.raises(AddFailed, match="was not added"):
        inbox.add_stream("a", Broken())
    assert names(inbox, "tmp") == delivered(inbox) == []


def test_a_stream_that_could_not_be_queued_leaves_no_draft(inbox: Inbox) -> None:
    with refusing(pread=errno.EIO), pytest.raises(AddFailed, match="was not added"):
        inbox.add_stream("a", io.BytesIO(b"streamed"))
    assert names(inbox, "tmp") == []


# --- copying ------------------------------------------------------------------------------------------


def test_a_file_system_that_shares_blocks_is_asked_to(
    inbox: Inbox, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Btrfs and XFS do. Here, what their answer looks like: ioctl_ficlone(2)."""
    asked = []

    def share(target: int, request: int, source: Any) -> int:
        if request != 0x40049409:  # whether this is Btrfs
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        asked.append(request)
        os.pwrite(target, os.pread(source, 10_000, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", share)
    inbox.add_file("a", file)
    assert len(asked) == 1
    assert delivered(inbox) == [b"content" * 1000]


@pytest.mark.parametrize("why", [errno.EXDEV, errno.ENOSYS, errno.EINVAL])
def test_where_the_kernel_does_not_copy_it_is_done_by_hand(inbox: Inbox, file: Path, why: int) -> None:
    with refusing(copy_file_range=why):
        inbox.add_file("a", file)
    assert delivered(inbox) == [b"content" * 1000]


def test_a_copy_that_fails_in_the_middle_is_not_gone_on_with(inbox: Inbox, file: Path) -> None:
    def part(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name != "copy_file_range":
            return call(*arguments, **more)
        source, target, _, offset, _ = arguments
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(source, target, 100, 0, 0)

    with intercepted(part), pytest.raises(AddFailed, match="No space"):
        inbox.add_file("a", file)
    assert file.exists()
    assert names(inbox, "tmp") == delivered(inbox) == []
