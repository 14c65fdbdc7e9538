"""An inbox is made: durably, folder by folder, and `format` last. Imported only where something is to be
made."""

from __future__ import annotations

import errno
import os
import stat

from . import mounts
from .errors import UnusableInbox
from .folders import (
    FILES,
    FOLDERS,
    OPEN_FOLDER,
    OPTIONAL,
    OPTIONAL_FILES,
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    SHARED_FILE,
    SHARED_FOLDER,
    VERSION,
)
from .host import format_for_one_host
from .replacing import create_draft


def create_root(path: str) -> int:
    """Make the directory `path` (its parent must exist) and return its descriptor. Raises
    UnusableInbox, OSError."""
    parent = os.path.dirname(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise UnusableInbox(f"cannot create inbox {path}: {parent} does not exist: create it first") from None
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fill(path: str, fd: int, *, create: bool, shared: bool, scope: str, force: bool) -> None:
    """Make the folders, durably, and `format` last. Another process may be doing the same.

    Raises UnusableInbox, if `create` is not set or the directory is not empty; OSError.
    """
    known = FOLDERS + FILES + OPTIONAL + OPTIONAL_FILES
    foreign = [name for name in os.listdir(fd) if name not in known and not name.startswith(".format.")]
    if foreign:
        raise UnusableInbox(
            f"{path} is not an inbox and not empty (it holds {sorted(foreign)[0]!r}): "
            "name a directory that is empty or does not exist yet"
        )
    if not create:
        raise UnusableInbox(
            f"{path} is an empty directory or an unfinished inbox: finish it with `fsinbox --inbox "
            f"{path} init`"
        )
    scope = scope or ("network" if mounts.is_network(path) else "local")
    if scope == "network":  # what cannot be is refused before anything is made
        from .network.sharing import sharing_of

        sharing_of(path, mounts.mount_of(path))
    else:
        scope = format_for_one_host(os.fstat(fd).st_dev, path, "", force=force)
    _flush_parent(fd)  # whoever made the directory may not have got to it
    if shared:
        os.fchmod(fd, SHARED_FOLDER)
    for name in FOLDERS:
        make_folder(fd, name, shared=shared)
    for name in ("index", "consumer.lock"):
        make_file(fd, name, shared=shared)
    os.fsync(fd)
    write_format(fd, scope, shared=shared)


def make_folder(root: int, name: str, *, shared: bool) -> None:
    """Make one of FOLDERS if it is not there. The caller flushes the root."""
    try:
        os.mkdir(name, PRIVATE_FOLDER, dir_fd=root)
    except FileExistsError:
        pass
    folder = os.open(name, OPEN_FOLDER, dir_fd=root)
    try:
        if shared:
            os.fchmod(folder, SHARED_FOLDER)
        os.fsync(folder)
    finally:
        os.close(folder)


def make_file(root: int, name: str, *, shared: bool) -> None:
    """Make `index` or `consumer.lock` if it is not there. The caller flushes the root."""
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE, dir_fd=root)
    try:
        if shared:
            os.fchmod(file, SHARED_FILE)
        os.fsync(file)
    finally:
        os.close(file)


def write_format(root: int, scope: str, *, shared: bool) -> None:
    """Write `format`, whole or not at all, durably: from then on it is an inbox. `scope` is "network",
    "local", or what host.format_for_one_host says."""
    # (Threads of one process may both be making it.)
    draft, file = create_draft(root, SHARED_FILE if shared else PRIVATE_FILE, ".format.")
    try:
        line = f"fsinbox {VERSION} {scope}\n".encode()
        if os.write(file, line) != len(line):
            raise OSError(errno.ENOSPC, "only a part could be written", draft)
        os.fsync(file)
    finally:
        os.close(file)
    os.rename(draft, "format", src_dir_fd=root, dst_dir_fd=root)
    os.fsync(root)


def set_mode(root: int, name: str, mode: int) -> None:
    """Set the mode of a folder or a file of the inbox, not through a link, and even if it may not be
    opened."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod(2) refuses a descriptor that may not be read
    finally:
        os.close(fd)


def _flush_parent(fd: int) -> None:
    """Make the name of an open directory survive a power cut."""
    try:
        parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except PermissionError:
        os.sync()  # a parent that this user may not read cannot be flushed by itself
        return
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
