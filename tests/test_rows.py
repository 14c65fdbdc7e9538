"""What `ls`, `show` and `status` are told while others change the folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from usual import take

from fsinbox import Inbox
from fsinbox.operate.rows import reason, rows


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir) as inbox:
        yield inbox


def test_an_element_that_is_gone_by_now_has_no_size(inbox: Inbox) -> None:
    inbox.add("a", 1)
    (row,) = rows(inbox.layout)
    assert row.size(inbox.layout) == 1
    Path(inbox.path, "pending", row.file).unlink()
    assert row.size(inbox.layout) is None


def test_what_is_no_element_is_not_listed(inbox: Inbox) -> None:
    for folder in ("pending", "inflight", "deferred", "failed"):
        Path(inbox.path, folder, "foreign").write_text("")
        Path(inbox.path, folder, "0000000000000000001-..").write_text("")
    assert list(rows(inbox.layout)) == []


def test_nothing_is_done_where_nothing_is_kept_and_each_state_has_its_rows(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, keep_done=1, max_inflight=2) as inbox:
        assert list(rows(inbox.layout, ("done",))) == []
        for key in "abcd":
            inbox.add(key, 1)
        elements = [take(inbox) for _ in "ab"]
        elements[0].ack()
        take(inbox).nack(delay=100)
        states = ("in_flight", "waiting", "deferred", "failed", "done")
        assert [(row.key, row.state) for row in rows(inbox.layout, states)] == [
            ("b", "in_flight"),
            ("d", "waiting"),
            ("c", "deferred"),
            ("a", "done"),
        ]
        (deferred,) = rows(inbox.layout, ("deferred",))
        assert deferred.due and deferred.due > deferred.seq


def test_a_failed_element_without_a_reason_has_none(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = inbox.take()
    assert element
    element.fail("why")
    (row,) = rows(inbox.layout, ("failed",))
    why = reason(inbox.layout, row)
    assert why and why.endswith("why\n")
    Path(inbox.path, "failed", row.file + "~reason.txt").unlink()
    assert reason(inbox.layout, row) is None
