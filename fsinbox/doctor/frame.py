"""The frame of an inbox: `format`, the folders and the files beside them, their modes and owners."""

from __future__ import annotations

import os
import re
import stat

from ..consumer.ownership import shard_of_lock
from ..store.errors import UnusableInbox
from ..store.folders import (
    FILES,
    FOLDERS,
    OPTIONAL,
    OPTIONAL_FILES,
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    SHARED_FILE,
    SHARED_FOLDER,
    VERSION,
)
from ..store.host import machine, place_of
from ..store.mounts import mount_of, soft_mount
from ..store.network.sharing import sharing_of
from .signs import HOUR, Signs, kind_of

_FORMATS = re.compile("network|local(?: (?:forced|unknown) (?:[0-9a-f]{16}|-))?")
"""What may stand in `format` behind the version."""

_MOST_OF = 5
"""With so many of the folders a directory is an inbox, whatever else it contains."""


class Frame:
    """What was seen of the frame."""

    def __init__(self, signs: Signs) -> None:
        """Look. Raises UnusableInbox if there is no inbox, or one of another version; OSError."""
        self._signs = signs
        self._layout = signs.layout
        self._entries = self._layout.names(".", hidden=True)
        self._root = os.fstat(self._layout.root)
        self._status = {
            name: os.lstat(name, dir_fd=self._layout.root)
            for name in (*FOLDERS, *OPTIONAL, *FILES)
            if name in self._entries
        }
        ours = [name for name in FOLDERS if name in self._status and _is_folder(self._status[name])]
        self.owner = self._root.st_uid
        self.folders: list[str] = []
        """Those that could be opened."""
        self.scope = self._layout.scope
        self._look_beside(ours)
        self.shared = sum(bool(self._status[name].st_mode & 0o020) for name in ours) * 2 > len(ours)
        """Whether it is shared with the group, by most of its folders."""
        for name in (*FOLDERS, *(name for name in OPTIONAL if name in self._status)):
            self._look_at_folder(name)
        for name in FILES:
            self._look_at_file(name)
        self._mode(".", self._root, SHARED_FOLDER if self.shared else PRIVATE_FOLDER)

    def _look_beside(self, ours: list[str]) -> None:
        known = {*FOLDERS, *FILES, *OPTIONAL, *OPTIONAL_FILES}
        foreign = [
            name
            for name in self._entries
            if name not in known and not name.startswith(".") and not shard_of_lock(name)
        ]
        self._look_at_format(plain=len(ours) >= _MOST_OF or bool(ours and not foreign))
        for name in foreign:
            self._signs.see("foreign-root", name)
        for name in self._entries:
            if name.startswith(".format.") and self._signs.older(".", name, HOUR):
                self._signs.see("leftover", f"./{name}")

    # --- format ---------------------------------------------------------------------------------------

    def _look_at_format(self, *, plain: bool) -> None:
        """Read `format`. Raises UnusableInbox if the directory is not an inbox (`plain`: its folders say that
        it is one), or one of another version."""
        status = self._status.get("format")
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        words = self._read_format() if is_file else []
        self._check_version(words)
        said = b" ".join(words[2:]).decode("ascii", "replace")
        if words[:2] == [b"fsinbox", b"%d" % VERSION] and _FORMATS.fullmatch(said):
            self._scope(said)
            return
        if not plain:
            path = self._layout.path
            raise UnusableInbox(
                f"{path} is not an inbox: it has no `format`, and too few of an inbox's folders; "
                f"make one with `fsinbox --inbox {path} init`, or name another"
            )
        if not status:
            self._signs.see("format-missing", "format")
        elif is_file:
            self._signs.see("format-damaged", "format", b" ".join(words).decode("ascii", "replace"))

    def _read_format(self) -> list[bytes]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open("format", flags, dir_fd=self._layout.root)
        try:
            return os.read(fd, 100).split()
        finally:
            os.close(fd)

    def _check_version(self, words: list[bytes]) -> None:
        if len(words) == 3 and words[0] == b"fsinbox" and words[1].isdigit() and words[1] != b"%d" % VERSION:
            raise UnusableInbox(
                f"{self._layout.path} has format {words[1].decode()}, this fsinbox knows {VERSION}: use the "
                "version of fsinbox that made it; to move what is waiting, `fsinbox export` it with that "
                "version, and `fsinbox import` it into a new inbox with this one"
            )

    def _scope(self, said: str) -> None:
        self.scope, _, host = said.partition(" ")
        if self.scope == "network":
            self._layout.sharing = sharing_of(self._layout.path, mount_of(self._layout.path))
        else:
            self._one_host(*(host or " ").split(" "))

    def _one_host(self, how: str, owner: str) -> None:
        """Look whether another host may use an inbox of one host, and what about that cannot be told. `how`
        and `owner` are what `format` says behind `local`."""
        where, kind, options = place_of(self._root.st_dev, self._layout.path)
        if owner == "-":
            self._signs.see("machine-untold", "format")
        elif owner not in ("", machine()):
            self._signs.see("machine-other", "format", owner)
        if how == "forced":
            self._signs.see("forced", "format", kind)
        elif where == "remote":
            self._signs.see("format-scope", "format", kind)
        elif where == "unknown":
            self._signs.see("mount-untold", ".", kind)
        if soft_mount(kind, options):
            self._signs.see("mount-soft", ".", kind)

    # --- folders and files ----------------------------------------------------------------------------

    def _look_at_folder(self, name: str) -> None:
        status = self._status.get(name)
        if status is None:
            self._signs.see("folder-missing", name)
        elif not _is_folder(status):
            self._signs.see("not-a-folder", name, kind_of(status))
        else:
            self._owner(name, status)
            if status.st_dev != self._root.st_dev:
                self._signs.see("other-device", name)
            self._modes(name, status)
            try:
                self._layout.folder(name)
            except UnusableInbox:
                self._signs.see("folder-closed", name)
            else:
                self.folders.append(name)

    def _look_at_file(self, name: str) -> None:
        status = self._status.get(name)
        if status is None:
            if name != "format":
                self._signs.see("file-missing", name)
        elif not stat.S_ISREG(status.st_mode):
            self._signs.see("not-a-file", name, kind_of(status))
        else:
            if status.st_nlink > 1 and name != "format":
                self._signs.see("file-linked", name)
            self._mode(name, status, SHARED_FILE if self.shared else PRIVATE_FILE)
            self._owner(name, status)

    def _modes(self, name: str, status: os.stat_result) -> None:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        if not self.shared and name == "tmp" and status.st_mode & 0o060:
            self._signs.see("mode", name, mode)  # payloads get their mode from it
        self._mode(name, status, SHARED_FOLDER if self.shared else PRIVATE_FOLDER)
        if status.st_mode & 0o007 and self._root.st_mode & 0o001:
            self._signs.see("open", name, mode)

    def _mode(self, name: str, status: os.stat_result, wanted: int) -> None:
        if status.st_mode & wanted != wanted:
            self._signs.see("mode", name, f"{stat.S_IMODE(status.st_mode):04o}")

    def _owner(self, name: str, status: os.stat_result) -> None:
        if not self.shared and status.st_uid != self.owner:
            self._signs.see("owner", name, status.st_uid)


def _is_folder(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)
