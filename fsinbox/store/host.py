"""Whether only one host can reach an inbox of one host, and which host that is.

What such an inbox rests on (flock(2), the tag of a boot, events) ends at the kernel. On a network or FUSE
mount another host may work on the same files: two consumers would run one element at once. So it is refused
there, unless somebody has forced it; then `format` says so, and for which machine. The same where the kernel
does not tell what kind of mount it is: nobody is refused, but another machine is.

    fsinbox 2 local                        on a file system of this host
    fsinbox 2 local forced <machine>       on a network or FUSE mount, by force, for this machine
    fsinbox 2 local unknown <machine>      the kind of file system could not be told when it was made

<machine> is a fingerprint of 16 hexadecimal digits, or `-` where a machine has none.
"""

from __future__ import annotations

import os

from .errors import UnusableInbox

MACHINE_ID = "/etc/machine-id"
"""Where a machine's identity is: see machine-id(5)."""

_SHARED_DISKS = ("/sys/fs/gfs2", "/sys/fs/o2cb")
"""There where this kernel can mount a disk that several hosts mount at once."""

WITHOUT_DISK = frozenset("tmpfs ramfs rootfs devtmpfs overlay btrfs zfs bcachefs ubifs wslfs lxfs".split())
"""File systems of one host whose device numbers have no major part. (Those of network mounts have none.)"""

_WHERE = {"remote": "forced", "unknown": "unknown"}
"""What `format` says of a file system that is not known to be this host's own."""


def format_for_one_host(device: int, path: str, said: str, *, force: bool = False) -> str:
    """Return what the `format` of an inbox of one host is to say behind its version.

    `device` is the number of the device it lies on; `said` is what it says now, or "" if it is being made.
    Only `force` changes what it says. Raises UnusableInbox if another host may be at work on it.
    """
    _, how, owner = (*said.split(" "), "", "")[:3]
    where, kind, options = place_of(device, path)
    if not force:
        if owner not in ("", "-", machine() if owner else ""):
            raise UnusableInbox(_for_another(path, owner))
        if where == "remote" and how != "forced":
            raise UnusableInbox(_not_for_one(path, kind))
    if where == "remote":
        from . import mounts

        mounts.refuse_soft(path, kind, options)
    if said and not force:
        return said
    return "local" if where == "here" else f"local {_WHERE[where]} {machine()}"


def place_of(device: int, path: str) -> tuple[str, str, str]:
    """Return where the files of an inbox are, the type of the file system, and its options; both are "" where
    they were not asked for, or cannot be told.

    Where: "here", on a file system of this host; "remote", where other hosts, or a program, may change them;
    or "unknown".
    """
    on_disk = os.major(device) != 0
    if on_disk and not any(map(os.path.exists, _SHARED_DISKS)):
        return "here", "", ""  # no table of mounts is read: it may be long
    from . import mounts

    kind, options = mounts.mount_of(path)
    if mounts.is_network_type(kind):
        return "remote", kind, options
    return "here" if on_disk or kind in WITHOUT_DISK else "unknown", kind, options


def is_forced(path: str) -> bool:
    """Tell whether an inbox is at `path` that was forced to be for one host."""
    try:
        fd = os.open(os.path.join(path, "format"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(fd, 100).split()[2:4] == [b"local", b"forced"]
        finally:
            os.close(fd)
    except OSError:
        return False


def machine() -> str:
    """Return a fingerprint of this machine, the same in each of its boots; "-" if it has none."""
    try:
        with open(MACHINE_ID, "rb") as file:
            identity = file.read(100).strip()
    except OSError:
        return "-"
    if len(identity) < 32:
        return "-"  # (empty in some containers; `uninitialized` during the first boot)
    from hashlib import sha256  # the identity itself is not to be shown around

    return sha256(b"fsinbox:" + identity).hexdigest()[:16]


def _for_another(path: str, owner: str) -> str:
    return (
        f"inbox {path} is for one host, machine {owner}, and this is machine {machine()} (by {MACHINE_ID}): "
        "two hosts would run one element at once: use it there; or, once no process there uses it, "
        f"{_force(path)}"
    )


def _not_for_one(path: str, kind: str) -> str:
    return (
        f"inbox {path} is for one host, and lies on {kind}, where others may use it, too: two hosts would "
        "run one element at once: use it on the host that has it on its disk; or, if only this host opens "
        f"it, {_force(path)}"
    )


def _force(path: str) -> str:
    return f"force it with `fsinbox --inbox {path} init --scope local --force`"
