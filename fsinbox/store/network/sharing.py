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
is created for one host only.

Sources: nfs(5) for the mount options, proc(5) for /proc/self/mountinfo, fcntl(2) for open file description
locks.
"""

import fcntl
import os
import struct
from typing import NamedTuple

from .. import mounts
from ..errors import UnusableInbox

PLAIN = frozenset("ceph fuse.ceph fuse.ceph-fuse lustre gpfs ocfs2 gfs2 beegfs orangefs pvfs2 afs".split())
"""Cluster file systems that promise all clients one view. Not tried here."""

ONE_SIDED = frozenset(
    "9p virtiofs vboxsf prl_fs vmhgfs fuse.vmhgfs-fuse osxfs fuse.osxfs fuse.grpcfuse fakeowner drvfs".split()
)
"""Folders shared by a machine and its guest or container. Not tried here."""


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
    if kind in PLAIN or kind in ONE_SIDED:
        return Sharing(kind, one_clock=False)
    if kind in ("cifs", "smb3", "smbfs", "ncpfs") or kind.startswith("fuse"):
        raise UnusableInbox(
            f"inbox {path} is to be shared by several hosts, and lies on {kind}, where it is not known to be "
            "safe: put it on "
            "NFS or GlusterFS; or, if only this host uses it, create it with --scope local --force"
        )
    return Sharing(kind, range_locks=True, local=True)


def _nfs(path: str, kind: str, options: dict[str, str]) -> Sharing:
    version = options.get("vers", "4" if kind == "nfs4" else "3")
    if options.get("local_lock", "none") != "none" or "nolock" in options:
        raise UnusableInbox(
            f"cannot share inbox {path}: its mount keeps locks to this host: mount it without local_lock, "
            "nolock"
        )
    asks_each_time = options.get("lookupcache") == "none"
    if "nocto" in options:
        raise UnusableInbox(
            f"cannot share inbox {path}: with nocto, opening a file may show old content: mount it without"
        )
    if version.startswith("4"):
        return Sharing(kind, opens_first=not asks_each_time)
    if not asks_each_time:
        raise UnusableInbox(
            f"cannot share inbox {path} over NFS {version} mounted like this: names that another host has "
            "changed would be seen "
            "as they were, for up to a minute: mount it with -o lookupcache=none, or with -o vers=4.2. "
            f"(A plain `mv FILE {path}/drop/KEY` is safe as it is.)"
        )
    return Sharing(kind, touches_first=True)


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
