"""Subfolders of drop/, where a consumer ingests what lies in them (consume --drop-recursive): the path below
drop/ is the key. docs/protocol-drop.md has the rules.

Anybody may drop, and swap a link for a folder at any moment. So each folder is opened relative to its parent,
never through a link, and what is done with a file is done through its folder's descriptor. Most producers
never import this.
"""

from __future__ import annotations

import errno
import os
import stat

from .errors import InvalidKey
from .files import flush, flush_all, flush_folder
from .folders import OPEN_FOLDER, close_quietly, is_there
from .layout import Layout
from .names import encode_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .ignoring import Ignored

MARK = "subfolders"
"""The file in an inbox that says that its consumer looks into them."""

MOST = 10_000
"""Folders that are looked into: an inbox must not be stopped by whoever makes a million."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE)
"""What the system says of a path that is not there, or on which something is no folder, or a link."""


def are_ingested(layout: Layout) -> bool:
    """Tell whether the consumer of an inbox looks into subfolders of drop/. Raises OSError."""
    return is_there(layout.root, MARK)


def set_mark(layout: Layout, *, wanted: bool) -> None:
    """Have producers know, durably, whether subfolders are ingested. Raises OSError."""
    if wanted == are_ingested(layout):
        return
    if wanted:
        fd = layout.open_own(MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flush(fd)
        finally:
            os.close(fd)
    else:
        try:
            os.unlink(MARK, dir_fd=layout.root)
        except FileNotFoundError:
            pass
    flush_folder(layout, ".")


class Within:
    """For a `with` block: the folder in which a dropped file lies. Gives what the layout calls it meanwhile,
    and the file's name in it.

    Raises FileNotFoundError if it is not there, or is no folder by now; else OSError.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        """`name`: of the file, its path below drop/."""
        self._layout = layout
        self._path, _, self._last = name.rpartition("/")
        self._folder = "drop"

    def __enter__(self) -> tuple[str, str]:
        if self._path:
            self._folder = self._layout.lend(_open(self._layout, self._path))
        return self._folder, self._last

    def __exit__(self, *_: object) -> None:
        if self._path:
            self._layout.take_back(self._folder)


def _open(layout: Layout, path: str) -> int:
    """Open a folder below drop/, part by part, and return its descriptor."""
    top = fd = layout.fresh("drop")
    try:
        for part in path.split("/"):
            inner = os.open(part, OPEN_FOLDER, dir_fd=fd)
            if fd != top:
                close_quietly(fd)
            fd = inner
        if os.fstat(fd).st_dev != os.fstat(top).st_dev:
            raise OSError(errno.EXDEV, "it is on another file system than the inbox", path)
    except BaseException as error:
        if fd != top:
            close_quietly(fd)
        if isinstance(error, OSError) and error.errno in _GONE:
            raise FileNotFoundError(errno.ENOENT, "not a folder in drop/", path) from error
        raise
    return fd


def may_be_path(key: str) -> bool:
    """Tell whether a file in a subfolder could have this key."""
    return all(part and part[0] != "." for part in key.split("/"))


class Walk:
    """Goes through drop/, and if `recursive` its subfolders: (path below drop/, its status) of all that is
    not ignored, in no order; None as status if that cannot be told now. A folder is gone through, or, if that
    cannot be, is told of as any file."""

    def __init__(
        self,
        layout: Layout,
        ignored: Ignored | None,
        *,
        recursive: bool,
        entering: Callable[[int], object] = lambda fd: None,
    ) -> None:
        """`ignored`: as refreshed; None: nothing is. `entering` is called with the descriptor of each
        subfolder, before it is listed."""
        self._layout = layout
        self._ignored = ignored
        self._recursive = recursive
        self._entering = entering
        self._folders = [""]
        self.unread: dict[str, OSError] = {}
        """Folders that could not be looked into."""
        self.left = 0
        """How many were not looked into, for there are more than MOST."""

    def __iter__(self) -> Iterator[tuple[str, os.stat_result | None]]:
        """Raises OSError if drop/ itself cannot be listed."""
        looked_into = 0
        for path in self._folders:  # it grows: the upper ones come first
            if looked_into > MOST:
                self.left = len(self._folders) - looked_into
                return
            looked_into += 1
            try:
                with Within(self._layout, f"{path}/" if path else "") as (folder, _):
                    if path:
                        self._entering(self._layout.folder(folder))
                    yield from self._list(folder, path)
            except FileNotFoundError:
                continue  # removed, or moved away
            except OSError as error:
                if not path:
                    raise
                self.unread[path] = error

    def _list(self, folder: str, path: str) -> Iterator[tuple[str, os.stat_result | None]]:
        inner = []
        names = self._layout.names(folder)
        if path:
            names = [f"{path}/{name}" for name in names]
        for name in names if self._ignored is None else self._ignored.left(names):
            try:
                status = os.lstat(name.rpartition("/")[2], dir_fd=self._layout.folder(folder))
            except FileNotFoundError:
                continue
            except OSError:
                yield name, None
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield name, status
            elif self._ignored and self._ignored.is_folder_left_alone(name):
                continue
            elif self._recursive and _may_hold_values(name):
                inner.append(name)
            else:
                yield name, status
        self._folders += sorted(inner)


def _may_hold_values(path: str) -> bool:
    """Tell whether any file in a folder could have its path as key."""
    try:
        encode_key(f"{path}/x")
    except InvalidKey:
        return False
    return True


def dropped(layout: Layout) -> list[str]:
    """Return the names of what lies in drop/, ignored names too: paths, where subfolders are ingested. Raises
    OSError."""
    if not are_ingested(layout):
        return layout.names("drop")
    return [name for name, _ in Walk(layout, None, recursive=True)]


def flush_content(layout: Layout, names: Iterable[str]) -> None:
    """Make the content of dropped files survive a power cut. What is gone is passed over. Raises OSError."""
    for folder, last in _by_folder(names).items():
        try:
            with Within(layout, f"{folder}/" if folder else "") as (opened, _):
                flush_all(layout, opened, last)
        except FileNotFoundError:
            continue


def flush_folders(layout: Layout, names: Iterable[str]) -> None:
    """Make it survive a power cut that these were renamed out of their folders. Raises OSError."""
    for folder in _by_folder(names):
        try:
            with Within(layout, f"{folder}/" if folder else "") as (opened, _):
                flush_folder(layout, opened)
        except FileNotFoundError:
            continue  # moved away since; pending/, which is flushed, has the rename's other half


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        found.setdefault(folder, []).append(last)
    return found
