"""What tests usually do with an inbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fsinbox import Element, Inbox


def take(inbox: Inbox, timeout: float = 0.0) -> Element:
    """Take an element that must be there."""
    element = inbox.take(timeout)
    assert element is not None
    return element


def drain(inbox: Inbox) -> list[tuple[str, Any]]:
    """Take and acknowledge everything; return it in order."""
    taken = []
    while element := inbox.take():
        taken.append((element.key, element.value))
        element.ack()
    return taken


def names(inbox: Inbox, folder: str) -> list[str]:
    """Return the names in a folder, in order."""
    return sorted(os.listdir(os.path.join(inbox.path, folder)))


def path_of(inbox: Inbox, folder: str, key: str) -> Path:
    """Return the path of the one element of a key in a folder."""
    (path,) = Path(inbox.path, folder).glob(f"*-{key}")
    return path
