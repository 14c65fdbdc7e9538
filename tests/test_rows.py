"""What `ls`, `show` and `status` are told while others change the folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsinbox import Inbox
from fsinbox.operate.rows import reason, rows


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir) as inbox:
        yield inbox


def test_an_element_that_is_gone_by_now_has_no_size(inbox: Inbox) -> None:
    inbox.add("a", 1)
    (row,) = rows(inbox._handle.layout)
    assert row.size(inbox._handle.layout) == 1
    Path(inbox.path, "pending", row.file).unlink()
    assert row.size(inbox._handle.layout) is None


def test_what_is_no_element_is_not_listed(inbox: Inbox) -> None:
    for folder in ("pending", "inflight", "deferred", "failed"):
        Path(inbox.path, folder, "foreign").write_text("")
        Path(inbox.path, folder, "0000000000000000001-..").write_text("")
    assert list(rows(inbox._handle.layout)) == []


def test_a_failed_element_without_a_reason_has_none(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = inbox.take()
    assert element
    element.fail("why")
    (row,) = rows(inbox._handle.layout, ("failed",))
    why = reason(inbox._handle.layout, row)
    assert why and why.endswith("why\n")
    Path(inbox.path, "failed", row.file + "~reason.txt").unlink()
    assert reason(inbox._handle.layout, row) is None
