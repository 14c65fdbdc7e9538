"""The folders of an inbox: opened once as descriptors, listed, never walked to through a symlink.

    tmp/        payloads being written; nothing here is an element
    drop/       anyone may `mv` a file in; its name is the key
    pending/    `<number>-<key>`: waiting, oldest first by name (the truth)
    inflight/   `<number>-<key>`: taken, not acknowledged
    deferred/   `<due>-<number>-<key>`: waiting out a back-off
    failed/     given up on, each with its reason in `<number>-<key>~reason.txt`
    attempts/   for elements that came back: a symlink that counts how often (the consumer's own notes)
    index       last number given out, and where each waiting key waits: see index; admission locks this file
    consumer.lock   locked by the one consumer for its life; its text says who that is
    format      `fsinbox 2 local` or `fsinbox 2 network`: written last, so an inbox without it is unfinished

Made when they are first needed (OPTIONAL, OPTIONAL_FILES); a version of fsinbox that does not know them
leaves them alone:

    control/    what people ask of the consumer: see control
    stats/      what each consumer says of its work: see record
    done/       the last elements that were acknowledged, if the consumer is asked to keep some
    watch/      what `fsinbox watch` has queued of each folder: see worker.tree.state
    limits      how many may wait, if that is bounded: see bounds
    subfolders  the consumer ingests what lies in subfolders of drop/: see subfolders

Every system call below an inbox goes through a descriptor of its folder (`dir_fd`): no path is walked twice,
and a folder that somebody replaces by a symlink is refused when it is opened.
"""

from __future__ import annotations

import errno
import os

from .errors import UnusableInbox
from .names import is_element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .network.sharing import Sharing

VERSION = 2
"""Of the format on disk."""

FOLDERS = ("tmp", "drop", "pending", "inflight", "deferred", "failed", "attempts")
FILES = ("index", "consumer.lock", "format")
OPTIONAL = ("control", "stats", "done", "watch")
OPTIONAL_FILES = ("limits", "subfolders")

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o2770, 0o660  # new files belong to the folder's group

CLAIM = "lease-"
"""What the names of consumers' folders in a shared inbox's inflight/ begin with: no element's does."""

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing was written that could still be lost: whatever close(2) says,
    it is closed."""
    try:
        os.close(fd)
    except OSError:
        pass


def is_there(fd: int, name: str) -> bool:
    """Tell whether a name is in a folder (a dangling link counts)."""
    try:
        os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    return True


class Folders:
    """The descriptors of an inbox's folders, and what lies in them.

    `sharing` is None for an inbox of one host; else it says how this host works on it (see sharing).
    `inflight` is the folder in which its consumer, if that is us, holds what it has taken (see enter_claim).
    """

    root: int
    sharing: Sharing | None = None

    def __init__(self, root: str) -> None:
        self.path = os.path.abspath(os.fspath(root))
        self.inflight = "inflight"
        self._fds: dict[str, int] = {}

    def folder(self, name: str) -> int:
        """Return the descriptor of one of FOLDERS, or of a consumer's in inflight/, opened at first use.

        Raises UnusableInbox; FileNotFoundError for the folder of a consumer that has ended.
        """
        fd = self._fds.get(name)
        if fd is None:
            parent, _, last = name.rpartition("/")
            if parent and name == self.inflight:
                return self.folder("inflight")
            try:
                fd = os.open(last, OPEN_FOLDER, dir_fd=self.inflight_root() if parent else self.root)
            except OSError as error:
                if parent and error.errno in (
                    errno.ENOENT,
                    errno.ESTALE,
                ):  # a consumer's, which has ended since
                    raise FileNotFoundError(error.errno, error.strerror, name) from error
                raise UnusableInbox(
                    f"cannot open folder {self.path}/{name}: {error.strerror}: it must be a real directory "
                    "(not a link) "
                    f"that this user may enter"
                ) from error
            kept = self._fds.setdefault(name, fd)
            if kept != fd:  # another thread was quicker
                close_quietly(fd)
            return kept
        return fd

    def has(self, name: str) -> bool:
        """Tell whether one of the OPTIONAL folders is there."""
        return name in self._fds or is_there(self.root, name)

    def fresh(self, folder: str) -> int:
        """Return the descriptor of a folder in which a name is to be looked up: what it says then is how it
        is now."""
        fd = self.folder(folder)
        if self.sharing and self.sharing.opens_first:
            os.close(os.open(".", OPEN_FOLDER, dir_fd=fd))
        return fd

    def lend(self, fd: int) -> str:
        """Return a name by which an open subfolder of drop/ is known here until `take_back`, which closes
        it."""
        name = f"drop/{fd}"  # no other folder that is open now has it
        self._fds[name] = fd
        return name

    def take_back(self, name: str) -> None:
        """Close what was lent."""
        fd = self._fds.pop(name, None)
        if fd is not None:  # else close() was quicker
            close_quietly(fd)

    def enter_claim(self, name: str) -> None:
        """From now on `inflight` is the folder of this name in it, until enter_claim("")."""
        root = self._fds["/inflight"] = self.inflight_root()
        own = os.open(name or ".", OPEN_FOLDER, dir_fd=root)
        before, self._fds["inflight"] = self._fds["inflight"], own
        if before != root:
            close_quietly(before)
        self.inflight = f"inflight/{name}" if name else "inflight"

    def inflight_root(self) -> int:
        """Return the descriptor of inflight/ itself, wherever we hold what we have taken."""
        return self._fds["/inflight"] if "/inflight" in self._fds else self.folder("inflight")

    def open_claim(self, name: str) -> int:
        """Open a consumer's folder in inflight/ and return its descriptor. Raises OSError."""
        return os.open(name, OPEN_FOLDER, dir_fd=self.inflight_root())

    def in_flight(self) -> list[tuple[str, str]]:
        """Return (folder, name) of all that lies in inflight/, or in any consumer's folder there."""
        found = []
        for name in self.names_in(self.inflight_root()):
            if self.sharing and name.startswith(CLAIM):
                try:
                    fd = self.open_claim(name)
                except FileNotFoundError:
                    continue  # that consumer has just ended
                try:
                    found += [(f"inflight/{name}", file) for file in self.names_in(fd)]
                except OSError as error:
                    if error.errno not in (errno.ESTALE, errno.ENOENT):
                        raise
                finally:
                    close_quietly(fd)
            else:
                found.append(("inflight", name))
        return found

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        """Return the names in a folder, hidden ones only if asked for, in no order."""
        return self.names_in(self.folder(folder), hidden=hidden)

    def names_in(self, folder: int, *, hidden: bool = False) -> list[str]:
        """The same for a folder's descriptor.

        Opens the folder anew: a listing must not share its position with another thread's, and on a network
        file system opening is what makes it current.
        """
        if self.sharing and self.sharing.touches_first:
            self._touch(folder)
        fd = os.open(".", OPEN_FOLDER, dir_fd=folder)
        try:
            return [name for name in os.listdir(fd) if hidden or name[0] != "."]
        finally:
            os.close(fd)

    def _touch(self, folder: int) -> None:
        """Change a folder, so that what is listed next is not what this host remembers."""
        try:
            os.utime(folder)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
                raise  # (who may only look is shown what this host remembers)

    def oldest_first(self, folder: str) -> list[str]:
        """Return the names of the elements in a folder, in the order in which they came there (by the times
        of their inodes)."""
        times = []
        for name in self.names(folder):
            try:
                times.append((os.lstat(name, dir_fd=self.folder(folder)).st_ctime_ns, name))
            except FileNotFoundError:
                continue
        return [name for _, name in sorted(times) if is_element(name)]

    def names_one_by_one(self, folder: str) -> Iterator[str]:
        """Go through a folder without keeping a million names; where hosts share the inbox, through every
        consumer's."""
        if folder == "inflight" and self.sharing:
            yield from (name for _, name in self.in_flight())
            return
        if self.sharing and self.sharing.touches_first:
            self._touch(self.folder(folder))
        fd = os.open(".", OPEN_FOLDER, dir_fd=self.folder(folder))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            close_quietly(fd)

    def exists(self, folder: str, name: str) -> bool:
        """Tell whether `name` is there (a dangling link counts)."""
        return is_there(self.fresh(folder), name)

    def close(self) -> None:
        """Close every descriptor. Safe to call twice, by two threads as well."""
        while self._fds:
            try:
                _, fd = self._fds.popitem()
            except KeyError:
                return
            close_quietly(fd)
