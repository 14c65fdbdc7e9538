"""What kind of file system a path lies on."""

import os

from .errors import UnusableInbox

NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs3 nfs4 cifs smb3 smbfs afs ncpfs 9p virtiofs ceph lustre gpfs ocfs2 gfs2 beegfs orangefs pvfs2 "
    "glusterfs coda fhgfs wekafs panfs cvfs acfs "
    "fuse fuse.sshfs fuse.glusterfs fuse.ceph fuse.juicefs fuse.s3fs fuse.rclone vboxsf prl_fs vmhgfs "
    "fuse.vmhgfs-fuse "
    "osxfs fuse.osxfs fuse.grpcfuse fakeowner drvfs".split()
)
"""File systems on which another host's (or the other side's) changes send no events here."""


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
                mount = line.split(" ", 5)[4]
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
                    words = line.partition(" - ")[2].split()
                    best, found = mount, (words[0], words[-1])
    except OSError:
        return "", ""
    return found


def file_system_type(path: str) -> str:
    """Return the type of the file system that holds `path` ("ext4", "nfs4", ...), or "" where that cannot be
    told."""
    return mount_of(path)[0]


def has_no_journal(path: str, system: str = "/sys") -> bool:
    """Tell whether `path` lies on an ext4 that was made without a journal. False where that cannot be told.

    Source: fs/ext4/<device>/journal_task below /sys, the process that writes the journal.
    """
    try:
        device = os.stat(path).st_dev
        name = os.path.basename(os.readlink(f"{system}/dev/block/{os.major(device)}:{os.minor(device)}"))
        with open(f"{system}/fs/ext4/{name}/journal_task", encoding="ascii") as file:
            return file.read().strip() == "<none>"
    except OSError:
        return False


def is_network(path: str) -> bool:
    """Tell whether `path` lies on a file system that other hosts change too, or that sends no events for
    it."""
    return is_network_type(file_system_type(path))


def is_network_type(kind: str) -> bool:
    """The same for a type of file system. (`fuseblk` is a disk.)"""
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def refuse_soft(path: str, kind: str, options: str) -> None:
    """Raise UnusableInbox for an inbox on NFS whose client gives up on the server, or shows what it
    remembers while the server is away."""
    soft = soft_mount(kind, options)
    if soft:
        raise UnusableInbox(
            f"inbox {path} lies on {kind} mounted {soft}: this host gives up on what the server may "
            "still do later: mount it hard (the default)"
        )


def soft_mount(kind: str, options: str) -> str:
    """Return the option by which a client of NFS gives up on its server, or ""."""
    given = options.split(",") if kind in ("nfs", "nfs4", "nfs3") else ()
    return next((option for option in ("soft", "softerr", "softreval") if option in given), "")
