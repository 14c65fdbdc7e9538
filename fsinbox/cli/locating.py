"""Where the settings are: which pyproject.toml counts. (`fsinbox add` asks without importing click.)"""

import os
import stat

LARGEST = 1 << 20
"""Bytes of a pyproject.toml that are read: it may be anybody's, and without end."""


def settings_file() -> str | None:
    """Return the path of the pyproject.toml that has our settings: the nearest one, from the working
    directory upwards.

    $FSINBOX_SETTINGS names another file; if it is empty, there are no settings. A file that cannot be read is
    skipped.
    """
    named = os.environ.get("FSINBOX_SETTINGS")
    if named is not None:
        return named or None
    try:
        folder = os.getcwd()
    except OSError:
        return None  # it was removed
    while True:
        path = f"{folder.rstrip('/')}/pyproject.toml"
        if _has_settings(path):
            return path
        if folder == "/":
            return None
        folder = os.path.dirname(folder)


def open_settings(path: str) -> tuple[int, os.stat_result]:
    """Open a pyproject.toml; return its descriptor and its status. Raises OSError, also if it is no regular
    file, or is too large to be read."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > LARGEST:
            raise OSError(f"it has {status.st_size} bytes, {LARGEST} at most")
    except OSError:
        os.close(fd)
        raise
    return fd, status


def _has_settings(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return b"[tool.fsinbox" in os.read(fd, LARGEST)
    except OSError:
        return False  # a folder of that name
    finally:
        os.close(fd)
