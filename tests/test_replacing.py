"""Files that are replaced whole: their drafts, and what lies in the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox.store import replacing
from fsinbox.store.replacing import Replacement, create_draft
from tests.shim import intercepted, refusing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("old")
    return file


def names(file: Path) -> list[str]:
    return sorted(os.listdir(file.parent))


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_a_file_is_replaced_whole_with_a_mode_of_its_own(file: Path, mask: int, durable: bool) -> None:
    old = os.umask(mask)
    try:
        with Replacement(str(file), 0o644, durable=durable) as draft:
            draft.write(b"new")
            draft.flush()
            assert file.read_text() == "old"
    finally:
        os.umask(old)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("new", 0o644)
    assert names(file) == ["file"]


def test_a_durable_one_is_flushed_before_it_is_renamed(file: Path) -> None:
    calls = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append(name)
        assert name != "fsync" or os.fstat(arguments[0]).st_size == 3, "Python still has it"
        return call(*arguments, **more)

    with intercepted(hook), Replacement(str(file), 0o600, durable=True) as draft:
        draft.write(b"new")
    assert [name for name in calls if name in ("fsync", "rename")] == ["fsync", "rename"]


def test_a_draft_that_only_its_owner_may_read_is_so_from_its_first_moment(file: Path) -> None:
    old = os.umask(0)
    try:
        with Replacement(str(file), 0o600) as draft:
            assert stat.S_IMODE(os.fstat(draft.fileno()).st_mode) == 0o600
    finally:
        os.umask(old)


def test_what_raises_leaves_the_file_as_it_was(file: Path) -> None:
    with pytest.raises(RuntimeError), Replacement(str(file), 0o600) as draft:
        draft.write(b"half")
        raise RuntimeError
    assert (file.read_text(), names(file)) == ("old", ["file"])


def test_what_cannot_be_written_or_renamed_leaves_the_file_as_it_was(file: Path) -> None:
    with pytest.raises(OSError, match="No space left"), Replacement(str(file), 0o600) as draft:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, draft.fileno())
        os.close(full)
        draft.write(b"new")
    assert (file.read_text(), names(file)) == ("old", ["file"])
    folder = file.with_name("folder")
    folder.mkdir()
    with pytest.raises(IsADirectoryError), Replacement(str(folder), 0o600) as draft:
        draft.write(b"new")
    assert names(file) == ["file", "folder"]


def test_a_draft_that_somebody_has_removed_is_an_error(file: Path) -> None:
    with pytest.raises(FileNotFoundError), Replacement(str(file), 0o600):
        (draft,) = file.parent.glob(".fsinbox.*")
        draft.unlink()
    assert (file.read_text(), names(file)) == ("old", ["file"])


def test_a_link_in_place_of_the_file_is_replaced_and_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    with Replacement(str(link), 0o600) as draft:
        draft.write(b"new")
    assert (file.read_text(), link.read_text(), link.is_symlink()) == ("old", "new", False)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "file"])
def test_what_has_the_draft_s_name_is_neither_opened_nor_followed(file: Path, kind: str) -> None:
    """Nobody can foresee the name; were it foreseen, a link there would not be followed."""
    bait = file.with_name(replacing.DRAFT + bytes(8).hex())
    if kind == "fifo":
        os.mkfifo(bait)
    elif kind == "file":
        bait.write_text("theirs")
    else:
        bait.symlink_to(file if kind == "link" else file.with_name("new"))
    with mock.patch.object(replacing.os, "urandom", bytes), pytest.raises(FileExistsError):
        Replacement(str(file), 0o600)
    assert file.read_text() == "old"
    assert names(file) == sorted(["file", bait.name])


def test_no_two_drafts_have_one_name(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        made = [create_draft(folder, 0o600, ".x.") for _ in range(100)]
    finally:
        os.close(folder)
    for _, fd in made:
        os.close(fd)
    assert len({name for name, _ in made}) == 100
    assert all(len(name) == len(".x.") + 16 for name, _ in made)


def test_no_descriptor_stays_open_where_nothing_can_be_made(file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Replacement(str(file.parent / "no/such"), 0o600)
    with mock.patch.object(replacing.os, "urandom", lambda count: b"/" * 300), pytest.raises(OSError):
        Replacement(str(file), 0o600)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_mode_that_cannot_be_set_leaves_no_draft(file: Path) -> None:
    old = os.umask(0o077)
    try:
        with refusing(fchmod=errno.EPERM), pytest.raises(PermissionError):
            Replacement(str(file), 0o644)
    finally:
        os.umask(old)
    assert names(file) == ["file"]
