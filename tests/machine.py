"""What the machine offers to the tests: signals as of a program in the foreground, folders in memory and on a
disk, and file systems of our own (FUSE)."""

from __future__ import annotations

import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]

ROOM = 2 << 30
"""Bytes that must be free in memory before the tests work there."""

MOUNT_PATIENCE = 15.0
"""Seconds in which a file system of our own must be mounted. (It takes a tenth of one.)"""

_LIBC = ctypes.CDLL(None)
_MNT_DETACH = 2

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy takes libfuse 2 where both are installed


def default_signals() -> None:
    """Let this process and its children hear SIGINT and SIGQUIT, which a shell has its background jobs
    ignore: else no test of Ctrl-C could pass there."""
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_bytecode() -> None:
    """Have interpreters keep what they compile, whatever the environment says: one that must compile all of
    fsinbox takes twice as long to start, and the tests start thousands."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# --- folders ------------------------------------------------------------------------------------------


def _kind(path: Path) -> str:
    """Return the kind of the file system mounted at `path`; "" if none is, or none can be told."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    kinds = [line.split(" ")[2] for line in lines if line.split(" ")[1] == str(path)]
    return kinds[-1] if kinds else ""


@cache
def tmpfs() -> Path | None:
    """Return the tmpfs that this user may write to; None if there is none."""
    path = Path("/dev/shm")
    return path if _kind(path) == "tmpfs" and os.access(path, os.W_OK | os.X_OK) else None


def work_in_memory() -> None:
    """Have this process and its children put their temporary files in memory, if there is room and programs
    may be started there: most tests are of code, and some disks take ten times as long to create a file."""
    if folder := tmpfs():
        state = os.statvfs(folder)
        if state.f_bavail * state.f_frsize >= ROOM and not state.f_flag & os.ST_NOEXEC:
            os.environ["TMPDIR"] = str(folder)
            tempfile.tempdir = None  # it is looked up anew


def disk() -> Path:
    """Return a folder for temporary files that is on a disk, as far as can be told."""
    return Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else ROOT


def another_file_system(than: Path) -> Path:
    """Return a folder for temporary files on another file system than `than`. Skips the test if there is
    none."""
    for folder in (disk(), ROOT, tmpfs()):
        if folder and os.access(folder, os.W_OK) and folder.stat().st_dev != than.stat().st_dev:
            return folder
    pytest.skip("there is but one file system that this user may write to")


# --- file systems of our own --------------------------------------------------------------------------


def why_no_fuse() -> str:
    """Return why no file system of our own can be mounted here; "" if one can, it seems."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse that this user may use"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "no fusermount3 (package fuse3)"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"no mfusepy with libfuse 3: {error}"
    return ""


@contextmanager
def served(point: Path, *words: object) -> Iterator[None]:
    """A file system of ours, mounted at `point` by `python words...`, which writes a line when it is. Where
    the system does not let it mount, the test is skipped; where it ends or hangs instead, the test fails: at
    once, and with what it said."""
    if reason := why_no_fuse():
        pytest.skip(reason)
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, *map(str, words)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said)
        try:
            if not _says_a_line(server):
                with suppress(subprocess.TimeoutExpired):
                    server.wait(1)  # it may be about to say why
                said.seek(0)
                _give_up(said.read().strip())
            yield
        finally:
            unmount_lazily(point)
            server.kill()
            server.communicate()


def _says_a_line(server: subprocess.Popen[bytes]) -> bool:
    """Tell whether the server writes a line in time. (When it ends, it has not.)"""
    assert server.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(server.stdout, selectors.EVENT_READ)
        return bool(selector.select(MOUNT_PATIENCE)) and server.stdout.readline().endswith(b"\n")


def _give_up(said: str) -> NoReturn:
    """Skip or fail a test whose file system is not there."""
    if "fusermount" in said or "fuse: " in said:
        pytest.skip(f"FUSE cannot mount here: {said.splitlines()[-1]}")
    pytest.fail(f"the file system did not start: {said or 'it said nothing'}")


def unmount_lazily(point: Path) -> None:
    """Unmount what is mounted there, whatever has it open; it need not be mounted."""
    if _LIBC.umount2(os.fsencode(point), _MNT_DETACH) and shutil.which("fusermount3"):
        subprocess.run(["fusermount3", "-u", "-z", point], check=False, capture_output=True)
