"""The consumer's lock, and the word that its holder leaves: it is the lock that counts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fsinbox import Inbox, InboxBusy
from fsinbox.consumer.ownership import WHOLE, ConsumerLock, is_locked, read_holder
from fsinbox.store.layout import Layout
from tests.shim import refusing


@pytest.fixture
def layout(inbox_dir: Path) -> Layout:
    return Layout(str(inbox_dir))


def test_a_full_disk_keeps_nobody_from_consuming(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        with refusing(ftruncate=errno.ENOSPC):
            assert inbox.take() is None
        with Inbox(inbox_dir) as second, pytest.raises(InboxBusy, match="it did not say who it is"):
            second.take()


def test_what_is_no_file_is_no_word(layout: Layout) -> None:
    lock = Path(layout.path, "consumer.lock")
    lock.unlink()
    lock.mkdir()
    assert read_holder(layout) == ""
    lock.rmdir()
    assert read_holder(layout) == ""
    assert is_locked(layout, "consumer.lock") is False


def test_a_word_cannot_play_tricks_on_a_terminal(layout: Layout) -> None:
    Path(layout.path, "consumer.lock").write_bytes(b"pid 1\x1b[2J\xff\n")
    assert read_holder(layout) == "pid 1?[2J\ufffd"


def test_a_lock_is_seen_while_it_is_held(layout: Layout) -> None:
    held = ConsumerLock(layout, WHOLE)
    assert is_locked(layout, "consumer.lock") is True
    assert read_holder(layout).startswith(f"pid {os.getpid()} on ")
    held.close()
    assert is_locked(layout, "consumer.lock") is False
