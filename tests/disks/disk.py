"""Images, loop devices and mounts, of which nothing is left: neither after a failure nor, at the next start,
after a kill."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, sleep

from tests.machine import served, why_no_fuse

from .recorder import BREAK, DISK

PREFIX = "fsinbox-disks-"
MEGABYTE = 1 << 20

_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class FileSystem:
    """A file system, and how it is made and mounted."""

    name: str
    kind: str
    size: int
    make: tuple[str, ...]
    options: str = ""


FILE_SYSTEMS = {
    each.name: each
    for each in (
        FileSystem("ext4", "ext4", 16 * MEGABYTE, ("mkfs.ext4", "-q", "-b", "4096"), "data=ordered"),
        FileSystem(
            "ext4-writeback",
            "ext4",
            16 * MEGABYTE,
            ("mkfs.ext4", "-q", "-b", "4096"),
            "data=writeback,noauto_da_alloc",
        ),
        FileSystem("xfs", "xfs", 300 * MEGABYTE, ("mkfs.xfs", "-q", "-K"), "nouuid"),
        FileSystem("btrfs", "btrfs", 112 * MEGABYTE, ("mkfs.btrfs", "-q", "-K"), "commit=1"),
    )
}


@cache
def why_not(fs: FileSystem) -> str:
    """Return why this file system cannot be recorded here; "" if it can."""
    if not sys.platform.startswith("linux"):
        return "not Linux"
    if os.geteuid() != 0:
        return "not root: may not mount"
    if reason := why_no_fuse():
        return reason
    if not os.path.exists("/dev/loop-control"):
        return "no /dev/loop-control: the kernel lacks loop devices"
    for program in ("losetup", "fallocate", fs.make[0]):
        if not shutil.which(program):
            return f"no {program}: not installed"
    try:
        with work_folder() as folder:
            make(fs, folder / "image")
            with recording(folder, folder / "image") as device, mounted(fs, device, folder / "mnt"):
                return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"cannot mount {fs.kind}: {error}"


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for images and mounts, in memory if it can be."""
    base = Path(tempfile.gettempdir())
    with open(base / f"{PREFIX}lock", "w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        _clean_up_after_the_killed(base)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it has an owner who is alive
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _clean_up_after_the_killed(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        except BlockingIOError:
            pass  # another run, at the same time
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    """Unmount and detach what is left below a folder, and remove it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split(" ")[4] for line in lines]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            _LIBC.umount2(mount.encode(), _MNT_DETACH)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(f"{folder}/"):
                subprocess.run(["losetup", "-d", f"/dev/{backing.parts[3]}"], check=False)
        except FileNotFoundError:
            continue  # detached this instant
    shutil.rmtree(folder)


def make(fs: FileSystem, image: Path) -> None:
    """Make an image with an empty file system, and holes in it where it is empty: it is copied often."""
    with image.open("wb") as file:
        file.truncate(fs.size)
    subprocess.run([*fs.make, image], check=True, capture_output=True)
    subprocess.run(["fallocate", "--dig-holes", image], check=True)


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """A loop device over an image, while this lasts."""
    device = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@contextmanager
def mounted(fs: FileSystem, device: str, folder: Path) -> Iterator[Path]:
    """A mounted file system, while this lasts."""
    folder.mkdir(exist_ok=True)
    if _LIBC.mount(device.encode(), os.fsencode(folder), fs.kind.encode(), 0, fs.options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot mount {fs.name}: {os.strerror(error)}")
    try:
        yield folder
    finally:
        unmount(folder)
        _wait_until_free(device)


def _wait_until_free(device: str) -> None:
    """Wait until no mount of a device is left: one may live on, unseen, in the mount namespace of some other
    program.

    While one does, it would be mounted again as it was, whatever is on the device by then.
    """
    until = monotonic() + 60
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or monotonic() > until:
                raise
        sleep(0.01)


def unmount(folder: Path) -> None:
    """Unmount. Raises OSError."""
    if _LIBC.umount2(os.fsencode(folder), 0):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot unmount {folder}: {os.strerror(error)}")


@contextmanager
def recording(folder: Path, image: Path) -> Iterator[str]:
    """A loop device over an image, of which folder/log notes each write, while this lasts."""
    fuse = folder / "fuse"
    fuse.mkdir(exist_ok=True)
    with (
        served(fuse, "-m", "tests.disks.recorder", fuse, image, folder / "log"),
        attached(fuse / DISK) as device,
    ):
        yield device


def break_after(folder: Path, writes: int | None) -> None:
    """Let the recording disk of this folder do so many more writes, then none. None: it is whole again."""
    (folder / "fuse" / BREAK).write_text("\n" if writes is None else f"{writes}\n")
