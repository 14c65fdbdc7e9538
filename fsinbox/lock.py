"""The consumer's lock, and the word that its holder leaves.

An flock, through filelock, on a descriptor of our own (FileLock would walk the path again, and follow what it finds there).
The kernel frees it the moment its holder dies, so what a dead consumer held comes back without waiting for a lease.
"""

import os
from time import sleep, strftime

from .errors import InboxBusy
from .layout import Layout


def lock_consumer(layout: Layout) -> int:
    """Take the consumer's lock and leave word of who holds it; return the descriptor that holds it. Raises InboxBusy."""
    from filelock import lock_descriptor  # here, and not at the top: `ls` and `show` need no lock

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = layout.open_own("consumer.lock", flags)
    try:
        # More than one try, since whoever asks if there is a consumer (is_consumed) holds the lock for an instant.
        tries = 5
        while not lock_descriptor(fd, blocking=False):
            tries -= 1
            if tries:
                sleep(0.02)
                continue
            holder = read_holder(layout)
            raise InboxBusy(
                f"inbox {layout.path} already has a consumer ({holder or 'it left no word of itself'}): stop that one first, "
                "or give it more to do at once with --concurrency",
                holder,
            )
        text = f"pid {os.getpid()} on {os.uname().nodename} since {strftime('%Y-%m-%dT%H:%M:%S%z')}\n"
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode("utf-8", "replace"), 0)
        except OSError:
            pass  # a full disk: the lock is what counts
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_holder(layout: Layout) -> str:
    """Return what the last consumer left as word of itself: "pid 123 on host since 2026-01-31T12:00:00+0000", or ""."""
    try:
        fd = os.open("consumer.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except OSError:
        return ""
    try:
        text = os.read(fd, 300).decode("utf-8", "replace").strip()
        return "".join(character if character.isprintable() else "?" for character in text)
    except OSError:
        return ""  # no regular file
    finally:
        os.close(fd)


def is_consumed(layout: Layout) -> bool:
    """Tell whether some process holds the consumer's lock now. Raises OSError."""
    from filelock import lock_descriptor

    # For reading only: whoever may only look must be told, too. (A network file system refuses such a lock: EBADF.)
    try:
        fd = os.open("consumer.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except FileNotFoundError:
        return False
    try:
        return not lock_descriptor(fd, blocking=False)
    finally:
        os.close(fd)
