"""What can stand in the place of a file or a folder: how to put it there."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.hostile.place import Place


def fifo(place: Place, path: Path) -> None:
    os.mkfifo(path, 0o666)


def unix_socket(place: Place, path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the name of a socket may be no longer than about a hundred bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def empty_directory(place: Place, path: Path) -> None:
    path.mkdir()


def full_directory(place: Place, path: Path) -> None:
    path.mkdir()
    (path / "content").write_text("kept")


def link_outside(place: Place, path: Path) -> None:
    path.symlink_to(place.outside.secret)


def link_to_folder(place: Place, path: Path) -> None:
    path.symlink_to(place.outside.folder)


def dangling_link(place: Place, path: Path) -> None:
    """A write through it would make a new file outside."""
    path.symlink_to(place.outside.path / "new")


def link_to_itself(place: Place, path: Path) -> None:
    path.symlink_to(path.name)


def hard_link(place: Place, path: Path) -> None:
    place.outside.link_to(path)


def null_device(place: Place, path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def endless_device(place: Place, path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def terminal(place: Place, path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(5, 0))


def block_device(place: Place, path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(7, 99))


def sparse_file(place: Place, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 30)


def gigabyte_file(place: Place, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def content(data: bytes) -> Callable[[Place, Path], None]:
    """A regular file with this content."""

    def file(place: Place, path: Path) -> None:
        path.write_bytes(data)

    return file


def text_link(target: str) -> Callable[[Place, Path], None]:
    """A symbolic link with this text."""

    def long_link(place: Place, path: Path) -> None:
        path.symlink_to(target)

    return long_link


DEVICES = (null_device, endless_device, terminal, block_device)


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
