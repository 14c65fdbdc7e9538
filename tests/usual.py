"""What tests usually do with an inbox."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fsinbox import Element, Inbox
from fsinbox.store.names import label_for


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


@contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Hold the admission lock of the inbox at `path`, as another process does."""
    with open(os.path.join(path, "index"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_free(path: str | Path) -> bool:
    """Tell whether another process would get the admission lock of the inbox at `path` at once."""
    with open(os.path.join(path, "index"), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def the_one(inbox: Inbox, folder: str, key: str) -> Path | None:
    """Return the path of a key's element in a folder, None if there is none."""
    found = list(Path(inbox.path, folder).glob(f"*-{key}"))
    return found[0] if found else None


def drop(inbox: Inbox, name: str | bytes, data: bytes = b"dropped") -> None:
    """Move a file into drop/ that was finished a while ago."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(inbox.path)) as folder:
        source = os.path.join(folder, "draft")
        Path(source).write_bytes(data)
        os.utime(source, (time.time() - 100,) * 2)
        os.rename(source, os.path.join(os.fsencode(inbox.path), b"drop", os.fsencode(name)))


def reason_for(inbox: Inbox, name: str | bytes) -> str:
    """Return the reason beside what was set aside under this name; it is the only one of it."""
    label = label_for(os.fsdecode(name))
    aside = [entry for entry in names(inbox, "failed") if entry[20:] == label]
    assert len(aside) == 1, names(inbox, "failed")
    return Path(inbox.path, "failed", aside[0] + "~reason.txt").read_text()


@contextmanager
def soon(seconds: int = 5) -> Iterator[None]:
    """What takes longer than this, in the main thread, fails."""

    def give_up(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
