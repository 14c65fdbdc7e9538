"""Where in the trees to look: hints from inotify, or from watchdog's observer on other systems.

An event is a hint and no more: it names a file, or a folder that is then compared with what was queued. So
nothing here has to pair the two halves of a rename, or to be complete. We hang on watchdog's InotifyFD, as
fsinbox.consumer.watch does: its emitter holds renames back for half a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple, Protocol

from .folders import Identity, Tree

_MOST = 100_000
"""Hints that are kept. Beyond that, all is compared."""


class Hint(NamedTuple):
    """Something has changed here."""

    tree: Tree
    name: str
    folder: bool
    """It is, or was, a folder (or it cannot be told)."""
    left: bool
    """A folder was renamed away: it may live on elsewhere, with its watches."""


class Hints:
    """What is to be looked at: each once, filled by another thread."""

    def __init__(self, wake: Callable[[], object]) -> None:
        """`wake` is called for each hint."""
        self._wake = wake
        self._lock = Lock()
        self._hints: dict[Hint, None] = {}
        self._lost = False

    def put(self, hint: Hint) -> None:
        """Note where to look."""
        with self._lock:
            if len(self._hints) < _MOST:
                self._hints[hint] = None
            else:
                self._lost = True
        self._wake()

    def lost(self) -> None:
        """Events were lost: all is to be compared."""
        with self._lock:
            self._lost = True
        self._wake()

    def taken(self) -> tuple[list[Hint], bool]:
        """Return the hints since the last call, and whether some were lost."""
        with self._lock:
            hints, self._hints = self._hints, {}
            lost, self._lost = self._lost, False
        return list(hints), lost


class Source(Protocol):
    """Where hints come from."""

    def watch(self, tree: Tree, folder: str, fd: int) -> None:
        """Give hints of what changes in this open folder from now on. Call it again after any change of its
        name. Raises OSError: no watch is left."""

    def unwatch(self, tree: Tree, folder: str) -> None:
        """It was renamed away: give no more hints of it and of what is below it."""

    def close(self) -> None:
        """Give everything back."""


def make_source(hints: Hints) -> Source:
    """Return the source of hints of this system. Raises OSError, ImportError."""
    return InotifySource(hints) if sys.platform == "linux" else ObserverSource(hints)


class _Folder:
    """One watched folder: what InotifyFD calls, from its thread."""

    def __init__(self, source: InotifySource, tree: Tree, name: str, key: Identity) -> None:
        self.source = source
        self.tree = tree
        self.name = name
        self.key = key
        self.wd: Any = None

    def on_event(self, event: Any) -> None:
        last = os.fsdecode(event.name)
        name = "/".join(filter(None, (self.name, last)))
        folder = event.is_directory or not last
        if folder and event.is_attrib:
            return  # of its own times or rights; a rescan sees what is readable since
        left = folder and (event.is_moved_from or (event.is_move_self and not name))
        self.source.hints.put(Hint(self.tree, name, folder, left))

    def on_watch_deleted(self, wd: Any) -> None:
        self.source.forget(self)
        self.source.hints.put(Hint(self.tree, self.name, True, False))

    def on_queue_overflow(self) -> None:
        self.source.hints.lost()


class InotifySource:
    """Hints from inotify: a watch for each folder."""

    def __init__(self, hints: Hints) -> None:
        from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyFD, Mask

        self.hints = hints
        self._id = CallbackId(id(self))
        self._mask = Mask(
            InotifyConstants.IN_CREATE
            | InotifyConstants.IN_MODIFY
            | InotifyConstants.IN_CLOSE_WRITE
            | InotifyConstants.IN_ATTRIB
            | InotifyConstants.IN_DELETE
            | InotifyConstants.IN_MOVE
            | InotifyConstants.IN_DELETE_SELF
            | InotifyConstants.IN_MOVE_SELF
            | InotifyConstants.IN_ONLYDIR
            | InotifyConstants.IN_EXCL_UNLINK
        )
        self._lock = Lock()
        self._folders: dict[Identity, _Folder] = {}
        self._reader = InotifyFD()
        self._reader.start()
        os.set_inheritable(self._reader._inotify_fd, False)  # watchdog leaves it open in children

    def watch(self, tree: Tree, folder: str, fd: int) -> None:
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        with self._lock:
            known = self._folders.get(key)
        if known and (known.tree, known.name) == (tree, folder):
            return  # (if it has just ended, a hint of its folder is on its way)
        if known:
            self._remove(known)
        made = _Folder(self, tree, folder, key)
        # By descriptor: the folder that was opened, wherever its path leads by now.
        made.wd = self._reader.add_callback(f"/proc/self/fd/{fd}".encode(), self._mask, made, self._id)
        with self._lock:
            self._folders[key] = made

    def unwatch(self, tree: Tree, folder: str) -> None:
        with self._lock:
            known = list(self._folders.values())
        for one in known:
            if one.tree is tree and (not folder or f"{one.name}/".startswith(folder + "/")):
                self._remove(one)

    def forget(self, folder: _Folder) -> None:
        """Its watch has ended."""
        with self._lock:
            if self._folders.get(folder.key) is folder:
                del self._folders[folder.key]

    def close(self) -> None:
        self._reader.stop()
        self._reader.join()

    def _remove(self, folder: _Folder) -> None:
        self.forget(folder)
        self._reader.remove_callbacks([(folder.wd, self._id)])


class ObserverSource:
    """Hints from watchdog's own observer, whatever it is on this system (FSEvents, kqueue)."""

    def __init__(self, hints: Hints) -> None:
        from watchdog.observers import Observer

        self._hints = hints
        self._trees: set[Tree] = set()
        self._observer = Observer()
        self._observer.start()

    def watch(self, tree: Tree, folder: str, fd: int) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler

        if tree in self._trees:
            return
        self._trees.add(tree)
        # The system tells real paths (/private/var/... for /var/... on macOS).
        root, hints = os.path.realpath(tree.root.path), self._hints

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                for path in filter(None, map(os.fsdecode, (event.src_path, event.dest_path))):
                    name = os.path.relpath(path, root)
                    hints.put(Hint(tree, "" if name == "." else name, True, False))

        self._observer.schedule(Handler(), root, recursive=True)

    def unwatch(self, tree: Tree, folder: str) -> None:
        pass  # the observer follows renames itself

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
