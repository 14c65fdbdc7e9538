"""A fresh ext4 in a loop device with direct I/O, for root: what was on a disk before changes what is
measured there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SYS_ADMIN = 1 << 21  # CAP_SYS_ADMIN, capabilities(7)
PROGRAMS = ("mkfs.ext4", "losetup", "mount", "umount", "fallocate")


def missing() -> str:
    """Say why there can be none here; "" if there can."""
    if not os.path.exists("/dev/loop-control"):
        return "there is no /dev/loop-control"
    rights = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not rights or not int(rights[1], 16) & _SYS_ADMIN:  # (root in a container often has not)
        return "only root may mount a file system"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"there is no {absent[0]}" if absent else ""


@contextmanager
def fresh(folder: Path, size: int, *, has_journal: bool = True) -> Iterator[Path]:
    """A file system of so many bytes, which is gone afterwards; its image is in `folder`. Raises OSError."""
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
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{words[0]} failed: {done.stderr.strip()}")
    return done.stdout
