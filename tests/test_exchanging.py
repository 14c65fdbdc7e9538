"""A value that is exchanged with the one that it replaces: only where that was asked for, and where nothing
can come back by it."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox import AddFailed, Inbox
from fsinbox.store import exchanging
from tests.shim import intercepted, meanwhile, refusing


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    """Opened to be quick, and volatile; a value waits."""
    with Inbox(inbox_dir, codec="text", durable=False, volatile=True) as inbox:
        inbox.add("k", "old")
        yield inbox


def calls(act: Callable[[], object]) -> list[str]:
    """Return which calls that give or take a name are made meanwhile."""
    made = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name in ("exchange", "rename", "unlink"):
            made.append(name)
        return call(*arguments, **more)

    with intercepted(hook):
        act()
    return made


def waiting(inbox: Inbox) -> list[tuple[str, str]]:
    """Return what waits; and nothing is left in tmp/."""
    assert not os.listdir(f"{inbox.path}/tmp")
    return [(element.key, element.value) for element in inbox]


def test_it_takes_the_place_of_what_waits_which_is_removed(inbox: Inbox) -> None:
    inbox.add("j", "1")
    made = calls(lambda: inbox.add("k", "new"))
    assert made == ["exchange", "unlink"]
    assert waiting(inbox) == [("k", "new"), ("j", "1")]
    assert inbox.add("k", "newer") == "replaced"
    assert inbox.add_many([("k", "newest"), ("i", "1"), ("i", "2")]) == {"new": 1, "replaced": 2, "behind": 0}
    assert waiting(inbox) == [("k", "newest"), ("j", "1"), ("i", "2")]


@pytest.mark.parametrize(
    ("opened", "how"),
    [({}, {}), ({"durable": False}, {}), ({"volatile": True}, {}), ({"volatile": True}, {"durable": True})],
)
def test_what_is_not_to_be_lost_is_renamed(
    inbox_dir: Path, opened: dict[str, bool], how: dict[str, bool]
) -> None:
    """An add that is flushed, and any add to an inbox that was not opened to be volatile."""
    with Inbox(inbox_dir, codec="text", **opened) as inbox:
        inbox.add("k", "old", **how)
        assert calls(lambda: inbox.add("k", "new", **how)) == ["rename"]
        assert calls(lambda: inbox.add_many([("k", "newer")], **how)) == ["rename"]
        assert waiting(inbox) == [("k", "newer")]


def test_a_durable_inbox_that_is_volatile_exchanges_what_is_quick(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text", volatile=True) as inbox:
        inbox.add("k", "old")
        assert calls(lambda: inbox.add("k", "new", durable=False)) == ["exchange", "unlink"]
        assert waiting(inbox) == [("k", "new")]


def test_a_value_that_is_taken_meanwhile_is_not_exchanged(inbox: Inbox) -> None:
    held = []
    with Inbox(inbox.path, codec="text") as other:
        other.become_consumer()
        with meanwhile("exchange", lambda: held.append(other.take())):
            assert inbox.add("k", "new") == "replaced"  # it is next in turn, at the same place
        assert held[0].value == "old"
        held[0].ack()
        assert waiting(inbox) == [("k", "new")]


@pytest.mark.parametrize("error", sorted(exchanging.NEVER))
def test_where_nothing_can_be_exchanged_it_is_renamed_and_not_asked_again(inbox: Inbox, error: int) -> None:
    with refusing(exchange=error):
        assert inbox.add("k", "new") == "replaced"
    assert waiting(inbox) == [("k", "new")]
    assert calls(lambda: inbox.add("k", "newer")) == ["rename"]
    assert waiting(inbox) == [("k", "newer")]


def test_a_system_without_the_call(inbox: Inbox) -> None:
    with mock.patch.object(exchanging, "_renameat2", None):  # as getattr finds it there
        assert inbox.add("k", "new") == "replaced"
    assert waiting(inbox) == [("k", "new")]
    assert calls(lambda: inbox.add("k", "newer")) == ["rename"]


def test_an_error_that_may_pass_is_told(inbox: Inbox) -> None:
    """It may have been done: to rename what is in tmp/ then could put the older value over the newer."""
    with refusing(exchange=errno.EIO), pytest.raises(AddFailed, match="Input/output error"):
        inbox.add("k", "new")
    assert waiting(inbox) == [("k", "old")]
    assert calls(lambda: inbox.add("k", "newer")) == ["exchange", "unlink"]


def test_what_was_removed_by_hand_is_an_error_of_the_system(inbox: Inbox) -> None:
    def remove() -> None:
        for name in os.listdir(f"{inbox.path}/tmp"):
            os.unlink(f"{inbox.path}/tmp/{name}")

    with meanwhile("exchange", remove), pytest.raises(AddFailed, match="No such file"):
        inbox.add("k", "new")
    assert waiting(inbox) == [("k", "old")]


def test_a_file_that_is_handed_over_is_renamed(inbox: Inbox, tmp_path: Path) -> None:
    """If that is cut short its draft goes back to where it was: after an exchange that would be the older
    value."""
    mine = tmp_path / "mine"
    mine.write_text("new")
    assert "exchange" not in calls(lambda: inbox.add_file("k", mine, move=True))
    assert waiting(inbox) == [("k", "new")]
    mine.write_text("newer")
    assert "exchange" not in calls(lambda: inbox.add_file("k", mine))
    assert waiting(inbox) == [("k", "newer")]


def test_what_a_kill_leaves_in_tmp_is_never_published(inbox: Inbox) -> None:
    with refusing(unlink=errno.EIO):  # it is all that is left of the add
        inbox.add("k", "new")
    (left,) = os.listdir(f"{inbox.path}/tmp")
    assert Path(inbox.path, "tmp", left).read_text() == "old"
    inbox.close()
    with Inbox(inbox.path, codec="text", max_inflight=2) as again:
        element = again.take()
        assert element is not None
        assert element.value == "new"
        element.ack()
        assert again.take() is None
    assert os.listdir(f"{inbox.path}/tmp") == [left]  # until the consumer sweeps it, after a day


def test_a_forked_child_exchanges_too(inbox: Inbox) -> None:
    def child() -> None:
        assert calls(lambda: inbox.add("k", "new")) == ["exchange", "unlink"]

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert waiting(inbox) == [("k", "new")]


def test_where_hosts_share_the_inbox_it_is_renamed(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", codec="text", scope="network", durable=False, volatile=True) as inbox:
        inbox.add("k", "old")
        assert "exchange" not in calls(lambda: inbox.add("k", "new"))
        assert waiting(inbox) == [("k", "new")]
