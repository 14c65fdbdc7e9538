"""Two files that exchange their names at once: renameat2(2) with RENAME_EXCHANGE, for which `os` has no call.

A file system that writes a file out when it is renamed over another (ext4) does not when the two exchange
their names. After a power cut the place may then have neither value, so this is for who has asked for it
(Inbox, volatile), and for adds that are not flushed.

Imported by the first add that exchanges: loading ctypes takes longer than many adds.
"""

from __future__ import annotations

import ctypes
import errno
import os

from .files import discard_temporary
from .layout import Layout

_RENAME_EXCHANGE = 2

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)

NEVER = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
"""What the system says where it has no such call, where the file system cannot, or a sandbox forbids it:
nothing was done, and it need not be asked again."""


def exchange(folder: int, name: str, other: int, new: str) -> None:
    """Exchange two names, each in an open folder. Raises OSError: FileNotFoundError if one is not there; one
    of NEVER where that cannot be done."""
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), new)
    if _renameat2(folder, os.fsencode(name), other, os.fsencode(new), _RENAME_EXCHANGE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), new)


def swap(layout: Layout, temporary: str, name: str) -> bool:
    """Publish a file in tmp/ in place of the value that waits there, and remove that one; False if it could
    not be done, and nothing was. Inside the section.

    A consumer takes the older value before this, and then it is not done, or the newer one after it. What
    came back to tmp/ is never published. After a kill before it is removed, it is litter. Raises OSError: it
    may have been done.
    """
    try:
        exchange(layout.folder("tmp"), temporary, layout.folder("pending"), name)
    except FileNotFoundError:
        return False  # taken meanwhile
    except OSError as error:
        if error.errno not in NEVER:
            raise
        layout.exchanges = False
        return False
    discard_temporary(layout, temporary)
    return True
