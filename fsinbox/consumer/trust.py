"""Who beside this user may write in an inbox, and so decide what its consumer runs on."""

from __future__ import annotations

import logging
import os
import stat

from ..store.errors import InboxError
from ..store.folders import FOLDERS
from ..store.layout import Layout

log = logging.getLogger("fsinbox")

_ON_THE_WAY = ("", "inflight")
"""Where whoever may write can have another file behind the path of an element in flight."""


def writers(layout: Layout, folders: tuple[str, ...] = ("", *FOLDERS)) -> str:
    """Return who beside root and this user may write there, in words ("group 33 (inflight/, pending/)"), or
    "" if that is nobody."""
    found: dict[str, list[str]] = {}
    for name in folders:
        try:
            status = os.fstat(layout.folder(name) if name else layout.root)
        except (OSError, InboxError):
            continue  # a folder that is not there takes no file
        for who in _writers_of(status):
            found.setdefault(who, []).append(f"{name}/" if name else "the inbox itself")
    return ", ".join(f"{who} ({', '.join(where)})" for who, where in sorted(found.items()))


def path_writers(layout: Layout) -> str:
    """The same for who can have another file behind the path of an element in flight: a file of their own, or
    a link to one that only this user may read."""
    found = [writers(layout, _ON_THE_WAY)]
    folder = os.path.dirname(os.path.realpath(layout.path))
    while True:
        try:
            status = os.stat(folder)
        except OSError:  # it was moved away meanwhile
            return ", ".join(filter(None, found))
        if not status.st_mode & stat.S_ISVTX:  # (as /tmp: there, only its owner renames a file)
            found += [f"{who} ({folder})" for who in _writers_of(status)]
        if folder == "/":
            return ", ".join(filter(None, found))
        folder = os.path.dirname(folder)


def _writers_of(status: os.stat_result) -> list[str]:
    """Return who beside root and this user may write in a folder."""
    found = []
    if status.st_uid not in (0, os.geteuid()):
        found.append(f"user {status.st_uid}")
    own = (0, os.geteuid())  # root's own group, and by its number a user's
    if status.st_mode & stat.S_IWGRP and status.st_gid not in own:
        found.append(f"group {status.st_gid}")
    if status.st_mode & stat.S_IWOTH:
        found.append("everybody")
    return found


def warn_root(layout: Layout) -> None:
    """Say so if root is the consumer of an inbox in which others may write."""
    others = writers(layout) if os.geteuid() == 0 else ""
    if others:
        log.warning(
            "root consumes %s, where others may write: %s: what they put there is handled as root: consume "
            "it as a user of its own",
            layout.path,
            others,
            extra={"event": "others_write"},
        )


def warn_by_path(layout: Layout, command: str) -> None:
    """Say so if a command gets elements by path, and others may have another file there by then."""
    others = path_writers(layout) if "{}" in command or "FSINBOX_PATH" in command else ""
    if others:
        log.warning(
            "%r gets each element by its path, and others may have another file there by then: %s: use "
            "{fd}, or read standard input",
            command,
            others,
            extra={"event": "others_write"},
        )
