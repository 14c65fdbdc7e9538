"""A fresh ext4 in a loop device with direct I/O, for root: what was on a disk before changes what is
measured there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("mkfs.ext4", "losetup", "mount", "umount", "fallocate")


def missing() -> str:
    """Say why there can be none here; "" if there can."""
    if os.geteuid():
        return "only root may mount a file system"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"there is no {absent[0]}" if absent else ""


@contextmanager
def fresh(folder: Path, size: int, *, has_journal: bool = True) -> Iterator[Path]:
    """A file system of so many bytes, which is gone afterwards; its image is in `folder`. Raises OSError,
    CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as work:
        image, place = f"{work}/image", Path(work, "mounted")
        place.mkdir()
        _run("fallocate", "--length", str(size), image)
        # An inode for each 4 KiB: as many files as there is room for. All is written now, not later.
        options = ("-q", "-b", "4096", "-i", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0")
        _run("mkfs.ext4", *options, "-O", f"{'' if has_journal else '^'}has_journal", image)
        device = _run("losetup", "--find", "--show", "--direct-io=on", image).strip()
        try:
            _run("mount", "-t", "ext4", "-o", "relatime", device, str(place))
            try:
                yield place.resolve()
            finally:
                _run("umount", str(place))
        finally:
            _run("losetup", "--detach", device)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
