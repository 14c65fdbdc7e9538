"""An inbox with bounds: how many may wait, and how much must stay free."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox import AddFailed, Inbox, InboxFull, UnusableInbox
from fsinbox.store import bounds
from fsinbox.store.bounds import Limits, limits
from tests.helpers import run
from tests.shim import intercepted, refusing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inbox(inbox_dir: Path) -> Any:
    with Inbox(inbox_dir, codec="text") as opened:
        yield opened


def fill(inbox: Inbox, count: int) -> None:
    for number in range(count):
        inbox.add(f"k{number}", "1", durable=False)


def age(inbox: Inbox) -> None:
    """Make the last counting an old one."""
    path = Path(inbox.path, "limits")
    path.write_bytes(re.sub(rb" \d{13} *\n", b" 0000000000001".ljust(15) + b"\n", path.read_bytes()))


def test_no_more_than_the_bound_may_wait_but_a_waiting_value_is_always_replaced(inbox: Inbox) -> None:
    assert inbox.limit(max_waiting=3) == Limits(3, 0)
    fill(inbox, 3)
    with pytest.raises(
        InboxFull, match=r"3 elements wait, and max_waiting is 3: key 'd' was not added"
    ) as told:
        inbox.add("d", "1")
    assert not told.value.maybe_added
    assert told.value.errno == errno.EDQUOT
    assert inbox.add("k1", "newer") == "replaced"
    assert os.listdir(f"{inbox.path}/tmp") == []
    assert len(inbox) == 3


def test_there_is_room_again_when_something_was_taken(inbox: Inbox) -> None:
    inbox.limit(max_waiting=2)
    fill(inbox, 2)
    element = inbox.take()
    assert element
    element.ack()
    age(inbox)
    assert inbox.add("d", "1") == "new"
    with pytest.raises(InboxFull):
        inbox.add("e", "1")


def test_what_is_refused_takes_no_number_and_leaves_the_index_as_it_was(inbox: Inbox) -> None:
    inbox.limit(max_waiting=1)
    inbox.add("a", "1")
    assert inbox.take()
    age(inbox)
    inbox.add("b", "1")
    before = Path(inbox.path, "index").read_bytes()
    with pytest.raises(InboxFull):
        inbox.add("a", "2")
    assert Path(inbox.path, "index").read_bytes() == before
    inbox.limit(max_waiting=2)
    assert inbox.add("a", "3") == "behind"  # its line still tells what is in flight


def test_an_add_that_finds_a_dropped_file_of_its_key_needs_room(inbox: Inbox) -> None:
    inbox.limit(max_waiting=2)
    fill(inbox, 1)
    for name in ("d", "e"):
        drop(inbox, name, "older")
    assert inbox.add("d", "newer") == "replaced"
    with pytest.raises(InboxFull):
        inbox.add("e", "newer")
    assert os.listdir(f"{inbox.path}/drop") == ["e"]
    assert len(inbox) == 2


def test_an_add_waits_for_room(inbox: Inbox) -> None:
    inbox.limit(max_waiting=1)
    fill(inbox, 1)
    began = time.monotonic()
    with pytest.raises(InboxFull):
        inbox.add("d", "1", timeout=0.2)
    assert time.monotonic() - began >= 0.2
    consumer = threading.Timer(0.2, lambda: inbox.take().ack())  # type: ignore[union-attr]
    consumer.start()
    assert inbox.add("d", "1", timeout=20) == "new"
    consumer.join()


def test_who_waits_for_room_ends_when_the_inbox_is_closed(inbox: Inbox) -> None:
    inbox.limit(max_waiting=1)
    fill(inbox, 1)
    said: list[BaseException] = []

    def add() -> None:
        try:
            inbox.add("d", "1", timeout=60)
        except InboxFull as error:
            said.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    time.sleep(0.1)
    inbox.close()
    thread.join(10)
    assert len(said) == 1


def test_of_many_those_that_fit_are_added(inbox: Inbox) -> None:
    inbox.limit(max_waiting=3)
    with pytest.raises(InboxFull) as told:
        inbox.add_many([(f"k{number}", "1") for number in range(5)])
    assert told.value.maybe_added
    assert told.value.added == 3
    assert len(inbox) == 3
    assert os.listdir(f"{inbox.path}/tmp") == []


def test_of_very_many_it_is_told_how_many_were_added(inbox: Inbox) -> None:
    inbox.limit(max_waiting=2345)
    with pytest.raises(InboxFull) as told:
        inbox.add_many(((f"k{number}", "1") for number in range(4000)), durable=False)
    assert told.value.added == len(inbox) == 2345


def test_of_many_each_waits_for_room(inbox: Inbox) -> None:
    inbox.limit(max_waiting=2)
    stop = threading.Event()

    def consume() -> None:
        while not stop.is_set():
            element = inbox.take(timeout=0.05)
            if element:
                element.ack()

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        added = inbox.add_many([(f"k{number}", "1") for number in range(9)], timeout=30)
    finally:
        stop.set()
        consumer.join()
    assert added["new"] == 9


def test_what_waits_out_a_back_off_counts(inbox: Inbox) -> None:
    inbox.limit(max_waiting=1)
    fill(inbox, 1)
    element = inbox.take()
    assert element
    element.nack(60)
    age(inbox)
    with pytest.raises(InboxFull):
        inbox.add("d", "1")


def test_so_much_must_stay_free(inbox: Inbox) -> None:
    assert inbox.limit(min_free=10**15) == Limits(0, 10**15)
    with pytest.raises(InboxFull, match=r"\d+ bytes are free on its file system, and min_free is 10{15}"):
        inbox.add("a", "1")
    inbox.limit(min_free=1)
    assert inbox.add("a", "1") == "new"
    inbox.limit(min_free=10**15)
    assert inbox.add("a", "2") == "replaced"


def test_a_bound_is_known_to_who_has_the_inbox_open_within_a_second(inbox: Inbox) -> None:
    inbox.add("a", "1")
    with Inbox(inbox.path) as other:
        other.limit(max_waiting=1)
    deadline = time.monotonic() + 10
    with pytest.raises(InboxFull):
        while time.monotonic() < deadline:
            inbox.add(f"b{time.monotonic()}", "1", durable=False)
            time.sleep(0.05)


def test_a_bound_can_be_taken_away_and_changed(inbox: Inbox) -> None:
    assert inbox.limit() == Limits(0, 0)
    inbox.limit(max_waiting=1, min_free=5)
    fill(inbox, 1)
    assert inbox.limit(max_waiting=0) == Limits(0, 5)
    assert inbox.add("d", "1") == "new"
    assert limits(inbox.layout) == Limits(0, 5)


@pytest.mark.parametrize(
    ("name", "value"), [("max_waiting", -1), ("max_waiting", 10**10), ("min_free", 10**16)]
)
def test_a_bound_that_cannot_be_meant_is_refused(inbox: Inbox, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0"):
        inbox.limit(**{name: value})


def test_a_timeout_that_cannot_be_meant_is_refused(inbox: Inbox) -> None:
    with pytest.raises(ValueError, match="timeout: invalid duration -1: use 90"):
        inbox.add("a", "1", timeout=-1)


def test_a_count_of_another_boot_is_not_believed(inbox: Inbox) -> None:
    inbox.limit(max_waiting=3)
    path = Path(inbox.path, "limits")
    path.write_bytes(path.read_bytes().replace(inbox.index.tag.encode(), b"lastboot"))
    for number in range(3):
        Path(inbox.path, "pending", f"{time.time_ns():019d}-h{number}").write_text("1")
    with pytest.raises(InboxFull):
        inbox.add("d", "1")


def test_a_count_is_made_anew_only_now_and_then(inbox: Inbox) -> None:
    inbox.limit(max_waiting=2)
    fill(inbox, 2)
    with mock.patch.object(bounds, "RECOUNT_SHARE", 10**9), mock.patch.object(bounds, "_count") as counted:
        for _ in range(3):
            with pytest.raises(InboxFull):
                inbox.add("d", "1")
        assert not counted.called


@pytest.mark.parametrize("content", [b"", b"what\n", b"1 2 3\n", b"x 0 0 tag 0\n"])
def test_a_damaged_file_bounds_nobody_and_is_made_anew(inbox: Inbox, content: bytes) -> None:
    inbox.limit(max_waiting=1)
    Path(inbox.path, "limits").write_bytes(content)
    fill(inbox, 3)
    assert inbox.limit() == Limits(0, 0)
    assert inbox.limit(max_waiting=3) == Limits(3, 0)
    with pytest.raises(InboxFull):
        inbox.add("d", "1")


def test_a_file_that_is_removed_while_it_is_open_bounds_nobody(inbox: Inbox) -> None:
    inbox.limit(max_waiting=1)
    fill(inbox, 1)
    os.unlink(f"{inbox.path}/limits")
    assert inbox.add("d", "1") == "new"


def test_a_disk_in_trouble_refuses_a_bound(inbox: Inbox) -> None:
    def cut_short(
        name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> Any:
        if name == "pwrite" and len(arguments[1]) == bounds.SIZE:
            return call(arguments[0], arguments[1][:5], arguments[2])
        return call(*arguments, **more)

    with intercepted(cut_short), pytest.raises(UnusableInbox, match="only a part could be written"):
        inbox.limit(max_waiting=1)
    with refusing(fsync=errno.EIO), pytest.raises(UnusableInbox, match="cannot look into inbox"):
        inbox.limit(max_waiting=1)


def test_a_symbolic_link_is_not_followed(inbox: Inbox, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("private")
    os.symlink(target, f"{inbox.path}/limits")
    with pytest.raises(Exception, match="limits"):
        inbox.limit(max_waiting=1)
    assert target.read_text() == "private"


# --- from the shell -----------------------------------------------------------------------------------


def test_the_same_from_the_shell(tmp_path: Path) -> None:
    run("init", "--max-waiting", "1", "--min-free", "1KB", cwd=tmp_path)
    assert run("limit", cwd=tmp_path).stdout.split() == ["max_waiting", "1", "min_free", "1000", "bytes"]
    run("add", "a", "1", cwd=tmp_path)
    done = run("add", "b", "1", cwd=tmp_path, status=6)
    assert "max_waiting is 1" in done.stderr
    done = run("add", "--timeout", "0.1", "b", "1", cwd=tmp_path, status=6)
    assert '"max_waiting": 0' in run("limit", "--max-waiting", "0", "--json", cwd=tmp_path).stdout
    run("add", "b", "1", cwd=tmp_path)
    assert "bounds    1000 bytes must stay free" in run("status", cwd=tmp_path, status=None).stdout
    run("limit", "--max-waiting", "5", cwd=tmp_path)
    assert "bounds    2 of 5 may wait, 1000 bytes must" in run("status", cwd=tmp_path, status=None).stdout
    run("limit", "--min-free", "0", cwd=tmp_path)
    assert "bounds    2 of 5 may wait\n" in run("status", cwd=tmp_path, status=None).stdout
    assert "no bound" in run("limit", "--min-free", "0", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("90", 90),
        ("90b", 90),
        ("1k", 1024),
        ("1KB", 1000),
        ("1.5MiB", 3 << 19),
        ("2G", 2 << 30),
        ("1 TB", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    from fsinbox.cli.options import SIZE

    assert SIZE.convert(text, None, None) == size


def test_what_is_no_size_is_refused(tmp_path: Path) -> None:
    run("init", cwd=tmp_path)
    assert "invalid size 'much'" in run("limit", "--min-free", "much", cwd=tmp_path, status=2).stderr


def test_a_shell_producer_keeps_to_the_bounds_and_counts(inbox: Inbox) -> None:
    def add(key: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "scripts/fsinbox-add"), "--inbox", inbox.path, "--not-durable", key, "1"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert add("a").returncode == 0
    inbox.limit(max_waiting=3)
    assert add("b").returncode == add("c").returncode == 0
    with pytest.raises(InboxFull):
        inbox.add("d", "1")
    refused = add("d")
    assert refused.returncode == 6
    assert "3 elements wait, and max_waiting is 3" in refused.stderr
    assert add("a").returncode == 0  # it replaces
    element = inbox.take()
    assert element
    element.ack()
    assert add("d").returncode == 0  # it counts anew
    inbox.limit(max_waiting=0, min_free=10**15)
    assert "bytes are free there" in add("e").stderr
    assert os.listdir(f"{inbox.path}/tmp") == []
    inbox.limit(min_free=1)
    assert add("e").returncode == 0
    Path(inbox.path, "limits").write_text("damaged\n")
    assert add("f").returncode == 0


def test_bounds_that_cannot_be_looked_for_refuse_an_add(inbox: Inbox) -> None:
    def is_limits(name: object) -> bool:
        return name == "limits"

    inbox._adder._next_check = 0.0  # (once a second)
    with refusing(lstat=errno.EMFILE, when=is_limits), pytest.raises(AddFailed) as refused:
        inbox.add("a", "1")
    assert not refused.value.maybe_added
    assert inbox.add("a", "1") == "new"


def drop(inbox: Inbox, key: str, value: str) -> None:
    draft = Path(inbox.path, "tmp", f"draft-{key}")
    draft.write_text(value)
    os.utime(draft, (1, 1))  # so that it tells that it is finished
    draft.rename(Path(inbox.path, "drop", key))


def test_what_is_dropped_waits_in_drop_for_room(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    inbox.limit(max_waiting=2)
    fill(inbox, 2)
    drop(inbox, "new", "dropped")
    drop(inbox, "k1", "replaced")
    first = inbox.take()  # (it looks into drop/ before it takes)
    assert first
    assert os.listdir(f"{inbox.path}/drop") == ["new"]
    assert "cannot ingest 'new' now: 2 elements wait, and max_waiting is 2: it stays in drop/" in caplog.text
    first.ack()
    second = inbox.take()
    assert second
    assert (second.key, second.value) == ("k1", "replaced")
    second.ack()
    assert inbox.next_look_in() is not None
    third = inbox.take(timeout=20)
    assert third
    assert (third.key, third.value) == ("new", "dropped")


def test_a_bound_is_flushed_and_so_is_its_name(inbox: Inbox) -> None:
    flushed = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "fsync":
            flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")))
        return call(*arguments, **more)

    with intercepted(note):
        inbox.limit(max_waiting=1)
    assert flushed == ["limits", os.path.basename(inbox.path)]
