"""The folders: created durably, opened once as descriptors, never through a symlink.

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

Made when they are first needed (OPTIONAL); a version of fsinbox that does not know them leaves them alone:

    control/    what people ask of the consumer: see control
    stats/      what each consumer says of its work: see record
    done/       the last elements that were acknowledged, if the consumer is asked to keep some

Every system call below an inbox goes through a descriptor of its folder (`dir_fd`): no path is walked twice,
and a folder that somebody replaces by a symlink is refused when it is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import count

from .errors import UnusableInbox
from .names import is_element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .network.sharing import Sharing

VERSION = 2
FOLDERS = ("tmp", "drop", "pending", "inflight", "deferred", "failed", "attempts")
FILES = ("index", "consumer.lock", "format")
OPTIONAL = ("control", "stats", "done")

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o2770, 0o660  # new files belong to the folder's group

CLAIM = "lease-"
"""What the names of consumers' folders in a shared inbox's inflight/ begin with: no element's does."""

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs3 nfs4 cifs smb3 smbfs afs ncpfs 9p virtiofs ceph lustre gpfs ocfs2 gfs2 beegfs orangefs pvfs2 "
    "glusterfs "
    "fuse fuse.sshfs fuse.glusterfs fuse.ceph fuse.juicefs fuse.s3fs fuse.rclone vboxsf prl_fs vmhgfs "
    "fuse.vmhgfs-fuse "
    "osxfs fuse.osxfs fuse.grpcfuse fakeowner drvfs".split()
)
"""File systems on which another host's (or the other side's) changes send no events here."""


class Layout:
    """An open inbox: one descriptor a folder. Close it when done; use one per process.

    `identity` is the device and inode of its folder.
    `token` and `serial` make names for files in tmp/: no other open inbox has this token, and each number
    comes once. `sharing` is None for an inbox of one host; else it says how this host works on it (see
    hosts). `inflight` is the folder in which its consumer, if that is us, holds what it has taken (see
    enter_claim).
    """

    sharing: Sharing | None = None
    commits: bool | None = (
        None  # whether names last by a commit of the file system (Btrfs); None: not asked yet
    )

    def __init__(self, root: str, *, create: bool = True, shared: bool = False, scope: str = "") -> None:
        """Open the inbox at `root`, creating it durably first if `create` and it is not there.

        `shared` and `scope` only matter on creation: the group may read and write too; "local", "network", or
        as the file system is. Raises UnusableInbox.
        """
        self._begin(root)
        try:
            self.root = self._open_root(create=create, shared=shared, scope=scope)
            self._fds["."] = self.root
            status = os.fstat(self.root)
            self.identity = (status.st_dev, status.st_ino)
            self.scope = self._read_format()
            if self.scope == "network":
                from .network.sharing import sharing_of

                self.sharing = sharing_of(self.path, mount_of(self.path))
            self.file_mode = stat.S_IMODE(os.fstat(self.folder("tmp")).st_mode) & 0o666
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
        layout.scope = "network" if is_network(layout.path) else "local"
        layout.file_mode = 0o600
        return layout

    def _begin(self, root: str) -> None:
        self.path = os.path.abspath(os.fspath(root))
        self.token = f"{os.getpid()}.{os.urandom(4).hex()}"
        self.serial = count()
        self.inflight = "inflight"
        self._fds: dict[str, int] = {}
        self.identity = (0, 0)

    def _unusable(self, error: OSError) -> UnusableInbox:
        return UnusableInbox(
            f"cannot use inbox {self.path}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}: check the path and who may read and write "
            "there"
        )

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
                fd = os.open(last, _OPEN_FOLDER, dir_fd=self.inflight_root() if parent else self.root)
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
        return name in self._fds or _has(self.root, name)

    def make(self, name: str) -> None:
        """Make one of the OPTIONAL folders, durably, if it is not there. Raises OSError."""
        if not self.has(name):
            make_folder(self.root, name, shared=bool(self.file_mode & 0o060))
            os.fsync(self.root)

    def fresh(self, folder: str) -> int:
        """Return the descriptor of a folder in which a name is to be looked up: what it says then is how it
        is now."""
        fd = self.folder(folder)
        if self.sharing and self.sharing.opens_first:
            os.close(os.open(".", _OPEN_FOLDER, dir_fd=fd))
        return fd

    def enter_claim(self, name: str) -> None:
        """From now on `inflight` is the folder of this name in it, until enter_claim("")."""
        root = self._fds["/inflight"] = self.inflight_root()
        own = os.open(name or ".", _OPEN_FOLDER, dir_fd=root)
        before, self._fds["inflight"] = self._fds["inflight"], own
        if before != root:
            close_quietly(before)
        self.inflight = f"inflight/{name}" if name else "inflight"

    def inflight_root(self) -> int:
        """Return the descriptor of inflight/ itself, wherever we hold what we have taken."""
        return self._fds["/inflight"] if "/inflight" in self._fds else self.folder("inflight")

    def open_claim(self, name: str) -> int:
        """Open a consumer's folder in inflight/ and return its descriptor. Raises OSError."""
        return os.open(name, _OPEN_FOLDER, dir_fd=self.inflight_root())

    def out(self) -> list[tuple[str, str]]:
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

        Opens the folder afresh: a listing must not share its position with another thread's, and on a network
        file system opening is what makes it current.
        """
        if self.sharing and self.sharing.touches_first:
            self._touch(folder)
        fd = os.open(".", _OPEN_FOLDER, dir_fd=folder)
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
            yield from (name for _, name in self.out())
            return
        if self.sharing and self.sharing.touches_first:
            self._touch(self.folder(folder))
        fd = os.open(".", _OPEN_FOLDER, dir_fd=self.folder(folder))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            close_quietly(fd)

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

    def exists(self, folder: str, name: str) -> bool:
        """Tell whether `name` is there (a dangling link counts)."""
        try:
            os.lstat(name, dir_fd=self.fresh(folder))
        except FileNotFoundError:
            return False
        return True

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

    def close(self) -> None:
        """Close every descriptor. Safe to call twice, by two threads as well."""
        while self._fds:
            try:
                _, fd = self._fds.popitem()
            except KeyError:
                return
            close_quietly(fd)

    def _open_root(self, *, create: bool, shared: bool, scope: str) -> int:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not create:
                raise UnusableInbox(
                    f"there is no inbox at {self.path}: create one with `fsinbox --inbox {self.path} init`, "
                    "or name another with --inbox or $FSINBOX_DIR"
                ) from None
            fd = _create_root(self.path)
        try:
            if not _has(fd, "format"):
                self._fill(fd, create=create, shared=shared, scope=scope)
        except BaseException:
            close_quietly(fd)
            raise
        return fd

    def _fill(self, fd: int, *, create: bool, shared: bool, scope: str) -> None:
        """Make the folders, durably, and `format` last. Another process may be doing the same."""
        known = FOLDERS + FILES + OPTIONAL
        foreign = [name for name in os.listdir(fd) if name not in known and not name.startswith(".format.")]
        if foreign:
            raise UnusableInbox(
                f"{self.path} is not an inbox and not empty (it holds {sorted(foreign)[0]!r}): "
                "name a directory that is empty or does not exist yet"
            )
        if not create:
            raise UnusableInbox(
                f"{self.path} is an empty directory or an unfinished inbox: finish it with `fsinbox --inbox "
                f"{self.path} init`"
            )
        scope = scope or ("network" if is_network(self.path) else "local")
        if scope == "network":
            from .network.sharing import sharing_of

            sharing_of(self.path, mount_of(self.path))  # refused before anything is made
        _flush_parent(fd)  # whoever made the directory may not have got to it
        if shared:
            os.fchmod(fd, SHARED_FOLDER)
        for name in FOLDERS:
            make_folder(fd, name, shared=shared)
        for name in ("index", "consumer.lock"):
            make_file(fd, name, shared=shared)
        os.fsync(fd)
        write_format(fd, scope, shared=shared)

    def _read_format(self) -> str:
        """Check the version and return the scope: "local" or "network"."""
        fd = os.open("format", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.root)
        try:
            words = os.read(fd, 100).split() if stat.S_ISREG(os.fstat(fd).st_mode) else []
        finally:
            os.close(fd)
        if len(words) < 3 or words[0] != b"fsinbox":
            raise UnusableInbox(
                f"{self.path}/format does not say `fsinbox {VERSION} local`: "
                "this is not an inbox, or the file was damaged; restore that line if the folders beside it "
                "are yours"
            )
        if words[1] != str(VERSION).encode():
            raise UnusableInbox(
                f"{self.path} has format {words[1].decode('ascii', 'backslashreplace')}, this fsinbox knows "
                f"{VERSION}: "
                "use the version of fsinbox that made it; to move what waits, `fsinbox export` it with that "
                "version, "
                "and `fsinbox import` it into a new inbox with this one"
            )
        return "network" if words[2] == b"network" else "local"


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing was written that could still be lost: whatever close(2) says,
    it is closed."""
    try:
        os.close(fd)
    except OSError:
        pass


def _has(fd: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    return True


def make_folder(root: int, name: str, *, shared: bool) -> None:
    """Make one of FOLDERS if it is not there. The caller flushes the root."""
    try:
        os.mkdir(name, PRIVATE_FOLDER, dir_fd=root)
    except FileExistsError:
        pass
    folder = os.open(name, _OPEN_FOLDER, dir_fd=root)
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
    """Write `format`, whole or not at all, durably: from then on it is an inbox. `scope` is "local" or
    "network"."""
    draft = f".format.{os.getpid()}.{os.urandom(4).hex()}"  # threads of one process may both be making it
    file = os.open(
        draft,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        PRIVATE_FILE,
        dir_fd=root,
    )
    try:
        os.fchmod(file, SHARED_FILE if shared else PRIVATE_FILE)
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


def _create_root(path: str) -> int:
    """Make the directory `path` (its parent must exist) and return its descriptor."""
    parent = os.path.dirname(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise UnusableInbox(f"cannot create inbox {path}: {parent} does not exist: create it first") from None
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


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


def mount_of(path: str) -> tuple[str, str]:
    """Return (type, options) of the file system that holds `path`: ("nfs4", "rw,vers=4.2,..."); ("", "") if
    it cannot be told.

    Source: /proc/self/mountinfo, whose format is in proc(5). The options are those of the file system, behind
    its type.
    """
    path = os.path.realpath(path)
    best, found = "", ("", "")
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                mount = left.split(" ")[4]
                if "\\" in mount:
                    for code, character in (
                        ("\\040", " "),
                        ("\\011", "\t"),
                        ("\\012", "\n"),
                        ("\\134", "\\"),
                    ):
                        mount = mount.replace(code, character)
                inside = path == mount or path.startswith(mount.rstrip("/") + "/")
                if inside and len(mount) >= len(best):
                    words = right.split()
                    best, found = mount, (words[0], words[-1])
    except OSError:
        return "", ""
    return found


def file_system_type(path: str) -> str:
    """Return the type of the file system that holds `path` ("ext4", "nfs4", ...), or "" where that cannot be
    told."""
    return mount_of(path)[0]


def is_network(path: str) -> bool:
    """Tell whether `path` lies on a file system that other hosts change too, or that sends no events for
    it."""
    kind = file_system_type(path)
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")
