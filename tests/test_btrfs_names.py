"""What of Btrfs can be tested anywhere: its names are made to last by a commit. (tests/disks does it on a
real one.)"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from fsinbox import AddFailed, Inbox
from fsinbox.store import files

SYNC = 0x9408
"""BTRFS_IOC_SYNC of linux/btrfs.h: _IO(0x94, 8)."""


@pytest.fixture
def ioctl() -> Iterator[mock.Mock]:
    """Every file system is Btrfs, and answers every ioctl with success."""
    with (
        mock.patch.object(os, "major", return_value=0),
        mock.patch.object(fcntl, "ioctl", return_value=0) as ioctl,
    ):
        yield ioctl


def test_on_btrfs_names_last_by_a_commit(tmp_path: Path, ioctl: mock.Mock) -> None:
    with Inbox(tmp_path / "inbox") as inbox, mock.patch.object(files, "flush") as flush:
        for value in range(3):
            inbox.add("a", value)
        assert flush.call_count == 3, "each value's content, no folder"
    requests = [call.args[1] for call in ioctl.mock_calls]
    assert requests == [0x8400941F, SYNC, SYNC, SYNC], "asked once whether it is Btrfs"


def test_a_commit_that_fails_fails_the_add(tmp_path: Path, ioctl: mock.Mock) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
        ioctl.side_effect = OSError(errno.EROFS, "Read-only file system")
        with pytest.raises(AddFailed, match="Read-only"):
            inbox.add("a", 2)


@pytest.mark.parametrize("major", [0, 254])
def test_what_is_not_btrfs_is_told_by_its_answer(tmp_path: Path, major: int) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        refused = mock.patch.object(fcntl, "ioctl", side_effect=OSError(errno.ENOTTY, ""))
        with mock.patch.object(os, "major", return_value=major), refused as ioctl:
            assert not files.is_btrfs(fd)
        assert ioctl.called == (major == 0), "a disk's own number: not even asked"
    finally:
        os.close(fd)


def test_on_btrfs_a_dropped_file_is_committed_before_it_is_moved(tmp_path: Path, ioctl: mock.Mock) -> None:
    dropped = tmp_path / "inbox" / "drop" / "a"
    with Inbox(tmp_path / "inbox", drop_settle=0) as inbox:
        inbox.become_consumer()
        dropped.write_text("1")
        is_dropped: list[bool] = []

        def answer(_: int, request: int, *__: bytes) -> int:
            if request == SYNC:
                is_dropped.append(dropped.exists())
            return 0

        ioctl.side_effect = answer
        assert inbox.take(timeout=5)
    assert is_dropped[:2] == [True, False], "its content, then the names"
