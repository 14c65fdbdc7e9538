"""What an inbox that several hosts share needs of their file system, and how each kind gives it.

The protocol rests on two looks: a *lookup* of one name must tell the present, and a *listing* must show all
that was there when it began. A local disk gives both. A client of a network file system remembers names, and
that they are not there, for up to a minute. What makes it ask the server:

    NFS 4       its folder is opened first: the client then compares the folder's change attribute. A listing
                opens it anyway
    NFS 3       mount option lookupcache=none for lookups. And a listing only after a change of our own to the
                folder: its change attribute is a time, so two changes within a tick of the server's clock
                look like one
    GlusterFS   no translator that remembers, and no time for which the kernel may: see gluster_caches
    the server  its own local path needs nothing. But a client's lock is a range lock there: flock(2) would
                not see it

docs/hosts.md has what was measured. On other kinds this is not known, and they are refused, unless the inbox
is created for one host only. So is what nobody knows: only a file system of disks, or of memory, is taken for
the server's own.

Sources: nfs(5) for the mount options, proc(5) for /proc/self/mountinfo, fcntl(2) for open file description
locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import NamedTuple

from .. import mounts
from ..errors import UnusableInbox
from ..host import WITHOUT_DISK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

PLAIN = frozenset("ceph fuse.ceph fuse.ceph-fuse lustre gpfs ocfs2 gfs2 beegfs".split())
"""Cluster file systems that promise all clients one view, and one lock. Not tried here."""

ONE_SIDED = frozenset(
    "9p virtiofs vboxsf prl_fs vmhgfs fuse.vmhgfs-fuse osxfs fuse.osxfs fuse.grpcfuse fakeowner drvfs".split()
)
"""Folders shared by a machine and its guest or container: a lock of one side need not keep out the other.
(QEMU's server for 9p says yes to each lock and makes none; of virtiofs the guest's kernel keeps them.)"""


class Sharing(NamedTuple):
    """How this host works on an inbox that others share."""

    kind: str
    """Type of the file system, as mountinfo names it."""
    opens_first: bool = False
    """A folder must be opened before a name in it is looked up."""
    touches_first: bool = False
    """A folder must be changed before it is listed."""
    range_locks: bool = False
    """Locks must be range locks, to be seen by other hosts."""
    local: bool = False
    """It is a file system of this host: arrivals from anywhere send events."""
    slow_exclusive: bool = False
    """To create a file exclusively takes a second request, which sets its times."""
    one_clock: bool = True
    """Times of files come from one clock, the server's, whichever host sets them."""


def sharing_of(path: str, mount: tuple[str, str]) -> Sharing:
    """Return how to work on a shared inbox at `path`, whose (file system type, mount options) are these.

    Raises UnusableInbox, with the way out, where it could not be done right.
    """
    kind, text = mount
    options = dict(part.partition("=")[::2] for part in text.split(","))
    if not kind:
        raise UnusableInbox(
            f"cannot share inbox {path}: /proc/self/mountinfo does not tell on what file system it lies, so "
            "nobody knows what may be relied on: mount /proc, or open it outside of the chroot"
        )
    mounts.refuse_soft(path, kind, text)
    if kind in ("nfs", "nfs4", "nfs3"):
        return _nfs(path, kind, options)
    if kind in ("fuse.glusterfs", "glusterfs"):
        wrong = gluster_caches(path)
        if wrong:
            raise UnusableInbox(
                f"cannot share inbox {path} over GlusterFS: {wrong} (docs/hosts.md has the commands)"
            )
        return Sharing(kind, one_clock=False)
    if kind in PLAIN:
        _refuse_local_locks(path, options.keys() & {"localflock", "localflocks"})
        return Sharing(kind, one_clock=False)
    if kind in WITHOUT_DISK or _is_disk(kind):
        return Sharing(kind, range_locks=True, local=True)
    raise UnusableInbox(
        f"inbox {path} is to be shared by several hosts, and lies on {kind}, where "
        f"{'a lock of one side need not keep out the other' if kind in ONE_SIDED else _UNKNOWN}: "
        "put it on NFS or GlusterFS; or, if only this host uses it, create it with --scope local --force"
    )


_UNKNOWN = "it is not known to be safe"


def _is_disk(kind: str) -> bool:
    """Tell whether a type of file system is one of disks, by the kernel's own list; "no" if in doubt.

    Source: /proc/filesystems, whose format is in filesystems(5).
    """
    if mounts.is_network_type(kind) or kind == "fuseblk":
        return False
    try:
        with open("/proc/filesystems", encoding="ascii") as lines:
            return f"\t{kind}" in map(str.rstrip, lines)
    except OSError:
        return False


def _refuse_local_locks(path: str, found: Collection[str]) -> None:
    """Raise UnusableInbox if a mount has any of these options, which keep locks to this host."""
    if found:
        raise UnusableInbox(
            f"cannot share inbox {path}: its mount keeps locks to this host: mount it without "
            f"{', '.join(sorted(found))}"
        )


def _nfs(path: str, kind: str, options: dict[str, str]) -> Sharing:
    version = options.get("vers", "4" if kind == "nfs4" else "3")
    if options.get("local_lock", "none") != "none" or "nolock" in options:
        _refuse_local_locks(path, ("local_lock", "nolock"))
    asks_each_time = options.get("lookupcache") == "none"
    if "nocto" in options:
        raise UnusableInbox(
            f"cannot share inbox {path}: with nocto, opening a file may show old content: mount it without"
        )
    if version.startswith("4"):
        return Sharing(kind, opens_first=not asks_each_time, slow_exclusive=True)
    if not asks_each_time:
        raise UnusableInbox(
            f"cannot share inbox {path} over NFS {version} mounted like this: names that another host has "
            "changed would be seen "
            "as they were, for up to a minute: mount it with -o lookupcache=none, or with -o vers=4.2. "
            f"(A plain `mv FILE {path}/drop/KEY` is safe as it is.)"
        )
    return Sharing(kind, touches_first=True, slow_exclusive=True)


_REMEMBERING = (
    "performance/quick-read",
    "performance/md-cache",
    "performance/write-behind",
    "performance/io-cache",
)
"""Types of GlusterFS translators that show old states of files, or tell of a write before the servers have
it."""


def gluster_caches(path: str) -> str:
    """Return what on this GlusterFS mount would show old states, in words, or "" if nothing would.

    Source: the client's own account of itself in `.meta` at the root of the mount.
    """
    mount = os.path.realpath(path)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    try:
        with open(f"{mount}/.meta/graphs/active/volfile", encoding="utf-8", errors="replace") as file:
            graph = file.read()
        with open(f"{mount}/.meta/root/private", encoding="utf-8", errors="replace") as file:
            own = dict(line.replace(" ", "").rstrip().partition("=")[::2] for line in file)
    except OSError as error:
        return f"its client does not say how it is set up ({error})"
    remembering = [kind for kind in _REMEMBERING if f"type {kind}" in graph]
    if remembering:
        return (
            f"its volume has {', '.join(remembering)}, which shows old states: turn off "
            "performance.quick-read, "
            "performance.stat-prefetch, performance.write-behind and performance.io-cache with `gluster "
            "volume set`"
        )
    if own.get("direct_io_mode") != "1" or any(
        float(own.get(f"{what}_timeout", "1")) for what in ("entry", "attribute")
    ):
        return (
            "the kernel remembers names and content here: mount it with "
            "-o attribute-timeout=0,entry-timeout=0,negative-timeout=0,direct-io-mode=enable"
        )
    return ""


def range_lock(fd: int, how: int) -> None:
    """flock(2)'s operations, as one lock on the whole range of the open file. Raises OSError; BlockingIOError
    for LOCK_NB."""
    kind = fcntl.F_UNLCK if how & fcntl.LOCK_UN else fcntl.F_RDLCK if how & fcntl.LOCK_SH else fcntl.F_WRLCK
    command = fcntl.F_OFD_SETLK if how & (fcntl.LOCK_NB | fcntl.LOCK_UN) else fcntl.F_OFD_SETLKW
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
