"""Proves that a copy shares its blocks with the file, on real XFS and Btrfs: no room is taken, no time.

The kernel is asked which of a file's blocks have another user as well (filefrag(8), which asks FIEMAP).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsinbox import Inbox

from .disk import FILE_SYSTEMS, FileSystem, attached, make, mounted, why_not, work_folder

pytestmark = pytest.mark.disk

SIZE = 3 << 20


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def fs(request: pytest.FixtureRequest) -> FileSystem:
    fs = FILE_SYSTEMS[request.param]
    if reason := why_not(fs):
        pytest.skip(f"nothing is copied on {fs.name}: {reason}")
    if not shutil.which("filefrag"):
        pytest.skip("no filefrag: not installed (e2fsprogs)")
    return fs


@pytest.fixture
def folder(fs: FileSystem) -> Iterator[Path]:
    with work_folder() as work:
        make(fs, work / "image")
        with attached(work / "image") as device, mounted(fs, device, work / "mnt") as folder:
            yield folder


def shared(path: str) -> bool:
    """Tell whether all extents of a file are shared with another."""
    lines = subprocess.run(["filefrag", "-v", path], check=True, capture_output=True, text=True).stdout
    extents = [line for line in lines.splitlines() if line.lstrip()[:1].isdigit()]
    assert extents, lines
    return all("shared" in extent for extent in extents)


def written(folder: Path) -> str:
    """Make a file of random bytes, written back: before, it has no blocks to share."""
    path = folder / "content"
    path.write_bytes(os.urandom(SIZE))
    os.sync()
    return str(path)


def test_add_file_shares_blocks_where_the_file_system_can(fs: FileSystem, folder: Path) -> None:
    path = written(folder)
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add_file("a", path)
        element = inbox.take()
        assert element
        assert element.data == Path(path).read_bytes()
        assert shared(str(element.path)) == (fs.kind != "ext4")
        element.ack()


def test_a_dropped_file_with_a_second_name_shares_blocks_with_its_copy(fs: FileSystem, folder: Path) -> None:
    path = written(folder)
    with Inbox(folder / "inbox", codec="bytes", drop_settle=0) as inbox:
        os.link(path, folder / "inbox" / "drop" / "a")
        element = inbox.take()
        assert element
        assert not os.path.samefile(element.path, path)
        assert shared(str(element.path)) == (fs.kind != "ext4")
        with open(path, "r+b") as changed:  # whoever keeps the other name changes nothing that waits
            changed.write(b"changed")
        assert element.data != Path(path).read_bytes()
        element.ack()
