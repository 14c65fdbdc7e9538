"""An inbox as one opens it: its folders, its own files, and its format. See folders for what is where."""

from __future__ import annotations

import errno
import os
import stat
from itertools import count

from .errors import UnusableInbox
from .folders import VERSION, Folders, close_quietly, is_there
from .host import format_for_one_host


class Layout(Folders):
    """An open inbox: one descriptor a folder. Close it when done; use one per process.

    `identity` is the device and inode of its folder.
    `token` and `serial` make names for files in tmp/: no other open inbox has this token, and each number
    comes once.
    """

    commits: bool | None = None
    """Whether names last by a commit of the file system (Btrfs); None: not asked yet."""

    exchanges = False
    """Whether an add that is not flushed may exchange its value with the one that waits (Inbox, volatile)."""

    set_aside = 0
    """How many things that are no element were moved to failed/ by way of this (transitions.set_aside)."""

    def __init__(
        self,
        root: str,
        *,
        create: bool = True,
        shared: bool = False,
        scope: str = "",
        force: bool = False,
    ) -> None:
        """Open the inbox at `root`, creating it durably first if `create` and it is not there.

        `shared` and `scope` only matter on creation: the group may read and write too; "local", "network", or
        as the file system is. `force`: if it is for one host, it is for this one from now on, wherever it
        lies. Raises UnusableInbox.
        """
        self._begin(root)
        try:
            self.root = _open_root(self.path, create=create, shared=shared, scope=scope, force=force)
            self._fds["."] = self.root
            status = os.fstat(self.root)
            self.identity = (status.st_dev, status.st_ino)
            self.format = _read_format(self.path, self.root)
            self.scope = self.format.partition(" ")[0]
            if self.scope == "network":
                from . import mounts
                from .network.sharing import sharing_of

                self.sharing = sharing_of(self.path, mounts.mount_of(self.path))
            self.file_mode = stat.S_IMODE(os.fstat(self.folder("tmp")).st_mode) & 0o666
            if self.scope == "local":
                self._keep_to_one_host(force=force)
        except OSError as error:
            self.close()
            raise self._unusable(error) from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def as_found(cls, root: str) -> Layout:
        """Open what is at `root`, for the doctor: `format` need not be there, and folders may be missing or
        wrong.

        Raises UnusableInbox if it is not even a directory.
        """
        layout = cls.__new__(cls)
        layout._begin(root)
        try:
            layout.root = layout._fds["."] = os.open(layout.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise layout._unusable(error) from error
        from . import mounts

        layout.scope = "network" if mounts.is_network(layout.path) else "local"
        layout.file_mode = 0o600
        return layout

    def _begin(self, root: str) -> None:
        Folders.__init__(self, root)
        self.token = f"{os.getpid()}.{os.urandom(8).hex()}"
        self.serial = count()
        self.identity = (0, 0)

    def _keep_to_one_host(self, *, force: bool) -> None:
        """Raise UnusableInbox if another host may use this inbox, too; but have it, if forced."""
        wanted = format_for_one_host(self.identity[0], self.path, self.format, force=force)
        if wanted != self.format:
            from .creating import write_format

            write_format(self.root, wanted, shared=bool(self.file_mode & 0o060))
            self.format = wanted

    def _unusable(self, error: OSError) -> UnusableInbox:
        return UnusableInbox(
            f"cannot use inbox {self.path}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}: check the path and who may read and write "
            "there"
        )

    def open_own(self, name: str, flags: int) -> int:
        """Open one of FILES and return its descriptor. One that O_CREAT makes anew in a shared inbox is
        shared, too.

        Raises OSError, also if it is no regular file, or has another name: what is written to it would be
        written there, too.
        """
        try:
            fd = os.open(name, flags, self.file_mode, dir_fd=self.root)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({name})") from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                wrong = (
                    "has another name (a hard link)"
                    if stat.S_ISREG(status.st_mode)
                    else "is not a regular file"
                )
                raise OSError(errno.EINVAL, f"{self.path}/{name} {wrong}: remove it, it is made anew")
            shared = self.file_mode & 0o060 == 0o060  # (else somebody has taken the right to write from tmp/)
            if shared and stat.S_IMODE(status.st_mode) != self.file_mode and status.st_uid == os.geteuid():
                os.fchmod(fd, self.file_mode)  # the umask has taken something
        except BaseException:
            close_quietly(fd)
            raise
        return fd

    def where_it_went(self) -> str:
        """Return "" if the path still leads to this inbox, as far as can be told; else what became of it, in
        words."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return "was removed, or moved away"
        except OSError:
            return ""  # this process may no longer walk the path, though it has the folders open
        return (
            ""
            if (status.st_dev, status.st_ino) == self.identity
            else "was moved away, and something else is in its place"
        )

    def make(self, name: str) -> None:
        """Make one of the OPTIONAL folders, durably, if it is not there. Raises OSError."""
        if not self.has(name):
            from .creating import make_folder

            make_folder(self.root, name, shared=bool(self.file_mode & 0o060))
            os.fsync(self.root)


def _open_root(path: str, *, create: bool, shared: bool, scope: str, force: bool) -> int:
    """Open the directory of an inbox and return its descriptor; make what is missing, if `create`. Raises
    UnusableInbox, OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not create:
            raise UnusableInbox(
                f"there is no inbox at {path}: create one with `fsinbox --inbox {path} init`, "
                "or name another with --inbox or $FSINBOX_DIR"
            ) from None
        from .creating import create_root

        fd = create_root(path)
    try:
        if not is_there(fd, "format"):
            from .creating import fill

            fill(path, fd, create=create, shared=shared, scope=scope, force=force)
    except BaseException:
        close_quietly(fd)
        raise
    return fd


def _read_format(path: str, root: int) -> str:
    """Check the version and return what is behind it: "network", "local", or "local" with what host says of
    it. Raises UnusableInbox, OSError."""
    fd = os.open("format", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        words = os.read(fd, 100).split() if stat.S_ISREG(os.fstat(fd).st_mode) else []
    finally:
        os.close(fd)
    if len(words) < 3 or words[0] != b"fsinbox":
        raise UnusableInbox(
            f"{path}/format does not say `fsinbox {VERSION} local`: "
            "this is not an inbox, or the file was damaged; restore that line if the folders beside it "
            "are yours"
        )
    if words[1] != str(VERSION).encode():
        raise UnusableInbox(
            f"{path} has format {words[1].decode('ascii', 'backslashreplace')}, this fsinbox knows "
            f"{VERSION}: "
            "use the version of fsinbox that made it; to move what waits, `fsinbox export` it with that "
            "version, "
            "and `fsinbox import` it into a new inbox with this one"
        )
    if words[2] == b"network":
        return "network"
    return " ".join(["local", *(word.decode("ascii", "replace") for word in words[3:5])])
