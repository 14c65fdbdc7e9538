"""Opens what a run needs: each folder as a tree, with its state."""

from __future__ import annotations

import os
from hashlib import sha256

from ...inbox import Inbox
from ...store.errors import InboxError, UnusableInbox
from ...store.layout import Layout
from ...store.names import label_for
from .folders import Tree, identity
from .patterns import Patterns
from .roots import Root, lies_in
from .state import State

FOLDER = "watch"
"""Where states are kept, in the inbox."""


class WrongFolder(InboxError):
    """A folder cannot be watched as it was asked for."""


def open_trees(
    inbox: Inbox, roots: list[Root], patterns: Patterns, state_folder: str | None
) -> dict[Tree, State]:
    """Return each folder as a tree, with its state, open. Raises WrongFolder, InboxBusy, UnusableInbox.

    `state_folder`: where the states are kept; None: in the inbox.
    """
    layout = inbox.layout
    place = state_folder or f"{layout.path}/{FOLDER}"
    try:
        if state_folder:
            os.makedirs(state_folder, 0o700, exist_ok=True)
        else:
            layout.make(FOLDER)
            layout.folder(FOLDER)  # refuses a symlink
        excluded = frozenset((layout.identity, identity(place)))
    except OSError as error:
        raise UnusableInbox(
            f"cannot use {place} for what was queued: {error.strerror}: make it a folder that this user may "
            "write to, or name another with --state"
        ) from error
    opened: dict[Tree, State] = {}
    try:
        for root in roots:
            for inner in (layout.path, place):
                if lies_in(root.path, inner):
                    raise WrongFolder(
                        f"{root.path} lies in {inner}, which is not watched: name another folder"
                    )
            opened[Tree(root, patterns, excluded)] = _open_state(place, root, layout)
    except BaseException:
        for state in opened.values():
            state.close()
        raise
    return opened


def _open_state(place: str, root: Root, layout: Layout) -> State:
    """Open the state of a folder, and see to it that it is of this inbox and of these keys."""
    digest = sha256(os.fsencode(root.path)).hexdigest()[:12]
    state = State(f"{place}/{label_for(os.path.basename(root.path))[:60]}-{digest}.db")
    try:
        prefix = os.fsencode(root.prefix).hex()
        known = state.remembered("prefix")
        if known not in (None, prefix) and state.any():
            before = os.fsdecode(bytes.fromhex(known or ""))
            raise WrongFolder(
                f"the keys of {root.path} began with {before!r} so far, and now would with {root.prefix!r}: "
                f"name it as before (NAME=DIR), or remove {state.path} to have every file queued anew"
            )
        state.note("prefix", prefix)
        status = os.stat("format", dir_fd=layout.root)
        inbox = f"{status.st_ino} {status.st_mtime_ns}"
        if state.remembered("inbox") != inbox:  # a new one, or a restored one: nothing is known to be in it
            state.clear()
            state.note("inbox", inbox)
    except BaseException:
        state.close()
        raise
    return state
