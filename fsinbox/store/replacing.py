"""Files that are replaced whole: written beside their place under a name that nobody can foresee, then
renamed.

Others may write in the folder: a file of metrics lies where a whole group works, an archive in /tmp. Whoever
knows the draft's name beforehand can have a symlink there, and what it points at would be written to. So the
name is random, the draft is always a new file (O_EXCL) and never reached through a link (O_NOFOLLOW), and it
has a mode of its own, whatever the umask is.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

DRAFT = ".fsinbox."
"""What the names of drafts begin with, where they lie among a user's files."""


def create_draft(folder: int, mode: int, prefix: str = DRAFT) -> tuple[str, int]:
    """Create a new, empty file of this mode in an open folder; return its name and a descriptor. Raises
    OSError."""
    name = f"{prefix}{os.urandom(8).hex()}"
    fd = os.open(name, _CREATE, mode, dir_fd=folder)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & mode != mode:
            os.fchmod(fd, mode)  # the umask has taken something
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=folder)
        raise
    return name, fd


class Replacement:
    """A new file that takes the place of the one at a path when a `with` block ends, and is dropped if it
    raises."""

    def __init__(self, path: str, mode: int, *, durable: bool = False) -> None:
        """Begin the draft, in the folder of `path`. `durable`: flush its content before it is renamed.

        Raises OSError.
        """
        folder, self._name = os.path.split(os.path.abspath(path))
        self._durable = durable
        self._folder = os.open(folder, _FOLDER)
        try:
            self._draft, fd = create_draft(self._folder, mode)
        except BaseException:
            os.close(self._folder)
            raise
        self._file = os.fdopen(fd, "w+b")

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises OSError: then the file at the path is as it was."""
        try:
            if kind is None:
                self._publish()
            else:
                self._discard()
        except BaseException:
            self._discard()
            raise
        finally:
            os.close(self._folder)

    def _publish(self) -> None:
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._draft, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _discard(self) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # what it could not write is not wanted
        try:
            os.unlink(self._draft, dir_fd=self._folder)
        except OSError:
            pass  # somebody was quicker
