"""drop/: whatever somebody moves, copies or makes there is adopted, left alone or set aside, and stops
nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import multiprocessing.connection  # a child that is no longer root may not read it
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox
from fsinbox.consumer import ingest as adopt
from fsinbox.store.adding import SECTION
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, drop, held, names, reason_for, take

fork = multiprocessing.get_context("fork")


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        yield inbox


# --- adopted ------------------------------------------------------------------------------------------


def test_files_that_mv_brings_are_adopted_by_name_in_order_of_arrival(inbox: Inbox, tmp_path: Path) -> None:
    for name in ("z.json", "a b", "m"):
        (tmp_path / name).write_text(name.upper())
        os.utime(tmp_path / name, (1, 1))
        subprocess.run(["mv", tmp_path / name, f"{inbox.path}/drop/"], check=True)
    assert drain(inbox) == [("z.json", b"Z.JSON"), ("a b", b"A B"), ("m", b"M")]
    assert names(inbox, "drop") == []
    assert names(inbox, "failed") == []


def test_a_dropped_file_replaces_a_waiting_value_and_keeps_its_place(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    inbox.add("b", b"1")
    drop(inbox, "a", b"2")
    drop(inbox, "c", b"1")
    assert drain(inbox) == [("a", b"2"), ("b", b"1"), ("c", b"1")]


def test_a_file_dropped_while_its_key_is_out_is_queued_behind(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    inbox.add("b", b"1")
    element = take(inbox)
    drop(inbox, "a", b"2")
    assert element.superseded()
    element.ack()
    time.sleep(0.03)  # while there is a backlog, drop/ is looked at every 20 ms
    assert drain(inbox) == [("b", b"1"), ("a", b"2")]


def test_a_file_dropped_while_its_key_waits_out_a_back_off_supersedes_it_at_once(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    take(inbox).nack(delay=3600)
    drop(inbox, "a", b"2")
    assert drain(inbox) == [("a", b"2")]
    assert names(inbox, "deferred") == []


def test_an_add_after_a_drop_of_its_key_wins(inbox: Inbox) -> None:
    drop(inbox, "a", b"dropped")
    assert inbox.add("a", b"added") == "replaced"
    assert drain(inbox) == [("a", b"added")]
    drop(inbox, "b", b"dropped")
    assert inbox.add_many([("b", b"added")])["replaced"] == 1
    assert drain(inbox) == [("b", b"added")]


@pytest.mark.parametrize("others", [0, SECTION - 1, SECTION])
def test_many_that_are_added_after_a_drop_of_one_of_their_keys_win(inbox: Inbox, others: int) -> None:
    """drop/ is listed once, unless more lies there than is to be added."""
    for number in range(others):
        drop(inbox, f"other{number}", b"dropped")
    drop(inbox, "c", b"dropped")
    looked: list[str] = []

    def look(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "lstat":
            looked.append(arguments[0])
        return call(*arguments, **more)

    with intercepted(look):
        assert inbox.add_many((key, b"added") for key in "abcde")["replaced"] == 1
    assert ("a" in looked) is (others == SECTION)
    assert [pair for pair in drain(inbox) if pair[0] in "abcde"] == [(key, b"added") for key in "abcde"]


def test_an_add_after_a_drop_of_its_key_keeps_the_earliest_place(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    inbox.add("b", b"1")
    drop(inbox, "a", b"2")
    inbox.add("a", b"3")
    assert drain(inbox) == [("a", b"3"), ("b", b"1")]


def test_a_drop_after_an_add_of_its_key_wins(inbox: Inbox) -> None:
    inbox.add("a", b"added")
    drop(inbox, "a", b"dropped")
    assert drain(inbox) == [("a", b"dropped")]


def test_a_drop_just_written_counts_as_arrived_for_an_add(inbox: Inbox, tmp_path: Path) -> None:
    """Written and renamed within one tick of the clock: only the kernel's word on writers tells that it is
    finished."""
    for number in range(20):
        (tmp_path / "draft").write_bytes(b"dropped")
        (tmp_path / "draft").rename(Path(inbox.path, "drop", f"k{number}"))
        inbox.add(f"k{number}", b"added", durable=False)
    assert drain(inbox) == [(f"k{number}", b"added") for number in range(20)]


def test_drops_and_adds_of_one_key_in_turn_deliver_the_last(inbox: Inbox) -> None:
    for number in range(10):
        drop(inbox, "a", b"dropped %d" % number)
        inbox.add("a", b"added %d" % number)
    assert drain(inbox) == [("a", b"added 9")]
    inbox.add("a", b"added")
    drop(inbox, "a", b"last")
    assert drain(inbox) == [("a", b"last")]


def test_a_file_of_any_size_up_to_the_limit_is_adopted(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", max_drop_size=1000) as inbox:
        drop(inbox, "empty", b"")
        drop(inbox, "full", b"x" * 1000)
        assert drain(inbox) == [("empty", b""), ("full", b"x" * 1000)]


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xff\xfe", "ü 🙂".encode(), b"-rf", b"~tilde", b"%41", b"new\nline", b"a" * 200]
)
def test_a_file_is_adopted_whatever_its_name_as_that_key(inbox: Inbox, name: bytes) -> None:
    drop(inbox, name)
    element = take(inbox)
    assert os.fsencode(element.key) == name
    element.ack()
    assert inbox.add(element.key, b"again") == "new"
    assert drain(inbox) == [(os.fsdecode(name), b"again")]


def test_a_dropped_file_that_looks_like_an_element_is_adopted_by_its_whole_name(inbox: Inbox) -> None:
    drop(inbox, "0000000000000000001-a")
    assert drain(inbox) == [("0000000000000000001-a", b"dropped")]


def test_a_hard_link_and_a_read_only_file_are_adopted(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    os.utime(tmp_path / "kept", (1, 1))
    os.link(tmp_path / "kept", Path(inbox.path, "drop", "linked"))
    drop(inbox, "read-only")
    os.chmod(Path(inbox.path, "drop", "read-only"), 0o400)
    assert sorted(drain(inbox)) == [("linked", b"kept"), ("read-only", b"dropped")]
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_many_dropped_files_are_adopted_in_order(inbox: Inbox) -> None:
    for number in range(200):
        drop(inbox, f"k{number * 37 % 200}", b"%d" % number)
    assert [key for key, _ in drain(inbox)] == [f"k{number * 37 % 200}" for number in range(200)]


def test_a_drop_is_noticed_while_there_is_a_backlog(inbox: Inbox) -> None:
    inbox.add_many([(f"k{number:03}", b"") for number in range(300)], durable=False)
    take(inbox).ack()
    drop(inbox, "k299", b"dropped")
    time.sleep(0.03)
    assert dict(drain(inbox))["k299"] == b"dropped"


# --- left alone ---------------------------------------------------------------------------------------


def test_drafts_and_hidden_files_are_left_alone(inbox_dir: Path) -> None:
    left = [".a", "a.tmp", "b.part", "C.TMP", "D.Part", ".tmp"]
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        for name in left:
            drop(inbox, name)
        drop(inbox, "a.tmp.json")
        drop(inbox, "apart")
        assert sorted(drain(inbox)) == [("a.tmp.json", b"dropped"), ("apart", b"dropped")]
        assert names(inbox, "drop") == sorted(left)
        assert inbox.wait(0) is False
        inbox.add("a.tmp", b"added")  # a draft's name is a key like any other, and the draft is not touched
        assert drain(inbox) == [("a.tmp", b"added")]
        assert names(inbox, "drop") == sorted(left)


def test_a_draft_is_adopted_when_it_is_renamed(inbox: Inbox) -> None:
    drop(inbox, "a.part")
    assert inbox.take() is None
    os.rename(Path(inbox.path, "drop", "a.part"), Path(inbox.path, "drop", "a"))
    assert drain(inbox) == [("a", b"dropped")]


# --- set aside ----------------------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the name of a socket may be no longer than about a hundred bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "content").write_text("kept")


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_oversized(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (make_fifo, "FIFO"),
    "socket": (make_socket, "socket"),
    "directory": (make_full_directory, "directory"),
    "link": (make_link, "symbolic link"),
    "dangling link": (make_dangling_link, "symbolic link"),
    "link to itself": (make_link_to_itself, "symbolic link"),
    "oversized": (make_oversized, "1073741825 bytes, more than the limit of 1073741824"),
}


@pytest.mark.parametrize(
    ("kind", "waiting"),
    # A file that is too large is a file: an add of its key replaces it.
    [(kind, waiting) for kind in KINDS for waiting in (False, True) if not (waiting and kind == "oversized")],
)
def test_what_is_no_plain_file_is_set_aside_with_a_reason_and_stops_nothing(
    inbox: Inbox, kind: str, waiting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = KINDS[kind]
    drop(inbox, "before")
    make(Path(inbox.path, "drop", "odd one"))
    if waiting:
        inbox.add("odd one", b"added")  # of the same name
    drop(inbox, "next")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "fsinbox"):
        delivered = drain(inbox)
    assert time.monotonic() - began < 1
    assert sorted(key for key, _ in delivered) == sorted(["before", "next"] + ["odd one"] * waiting)
    assert names(inbox, "drop") == []
    assert reason in reason_for(inbox, "odd one")
    assert "odd one" in caplog.text
    assert len(names(inbox, "failed")) == 2


def test_what_a_link_points_to_is_never_read(inbox: Inbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"top secret")
    before = secret.stat()
    Path(inbox.path, "drop", "a").symlink_to(secret)
    inbox.add("a", b"added")
    assert drain(inbox) == [("a", b"added")]
    (aside,) = [name for name in names(inbox, "failed") if not name.endswith("~reason.txt")]
    assert os.path.islink(Path(inbox.path, "failed", aside))
    assert b"top secret" not in b"".join(
        Path(inbox.path, "failed", name).read_bytes()
        for name in names(inbox, "failed")
        if name.endswith("~reason.txt")
    )
    after = secret.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_nlink) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        1,
    )


def test_a_directory_is_set_aside_whole(inbox: Inbox) -> None:
    make_full_directory(Path(inbox.path, "drop", "folder"))
    assert inbox.take() is None
    (aside,) = [name for name in names(inbox, "failed") if not name.endswith("~reason.txt")]
    assert Path(inbox.path, "failed", aside, "content").read_text() == "kept"


@pytest.mark.parametrize(
    "name", [b"a" * 255, "🙂".encode() * 63, b"\xff" * 255, b"a" * 201, b"x" * 199 + b" "]
)
def test_a_name_too_long_for_a_key_is_set_aside(inbox: Inbox, name: bytes) -> None:
    drop(inbox, name)
    drop(inbox, "next")
    assert drain(inbox) == [("next", b"dropped")]
    assert "cannot be a key" in reason_for(inbox, name)
    assert "200 at most" in reason_for(inbox, name)


def test_two_of_one_name_are_both_kept_when_they_are_set_aside(inbox: Inbox) -> None:
    for _ in range(2):
        Path(inbox.path, "drop", "0000000000000000001-x").mkdir()
        assert inbox.take() is None
    assert len(names(inbox, "failed")) == 4


def test_a_reason_survives_a_name_that_is_not_text(inbox: Inbox) -> None:
    os.mkdir(os.path.join(os.fsencode(inbox.path), b"drop", b"\xff\n"))
    assert inbox.take() is None
    assert "directory" in reason_for(inbox, b"\xff\n")


def drop_unreadable(path: str) -> None:
    """Set aside what may not be read; to be called in a process of its own."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)  # root may read everything
    with Inbox(path, codec="bytes") as inbox:
        drop(inbox, "locked")
        os.chmod(Path(path, "drop", "locked"), 0o000)
        drop(inbox, "next")
        assert drain(inbox) == [("next", b"dropped")]
        assert "make it readable" in reason_for(inbox, "locked")
        assert names(inbox, "drop") == []
        inbox.add("locked", b"added")
        drop(inbox, "locked")
        os.chmod(Path(path, "drop", "locked"), 0o000)
        inbox.add("locked", b"added later")
        assert drain(inbox) == [("locked", b"added later")]


def test_an_unreadable_file_is_set_aside() -> None:
    import_module("fsinbox.consumer.consumer")  # now: as another user the child may not be able to read it
    folder = tempfile.mkdtemp()  # not tmp_path, whose parents only its owner may enter
    try:
        os.chmod(folder, 0o777)
        child = fork.Process(target=drop_unreadable, args=(os.path.join(folder, "inbox"),))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        shutil.rmtree(folder)


def test_a_file_that_cannot_be_moved_out_of_drop_stops_nothing(tmp_path: Path) -> None:
    """A sticky drop/, and files of another user in it: as in a drop/ that everybody may write to."""
    if os.geteuid():
        pytest.skip("only root can make files of another user")
    import_module("fsinbox.consumer.consumer")
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o777)
        child = fork.Process(target=meet_another_s_files, args=(os.path.join(folder, "inbox"),))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        shutil.rmtree(folder)


def meet_another_s_files(path: str) -> None:
    with Inbox(path, codec="bytes") as inbox:
        for entry in (path, *(os.path.join(path, name) for name in os.listdir(path))):
            os.chown(entry, 65534, 65534)
        os.chown(os.path.join(path, "drop"), 0, 0)
        os.chmod(os.path.join(path, "drop"), 0o1777)
        drop(inbox, "another's")
        Path(path, "drop", "folder").mkdir()
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    with Inbox(path, codec="bytes") as inbox:
        drop(inbox, "mine")
        inbox.add("added", b"added")
        assert sorted(drain(inbox)) == [("added", b"added"), ("mine", b"dropped")]
        began = time.monotonic()
        assert inbox.take(timeout=0.1) is None
        assert time.monotonic() - began < 1
        assert names(inbox, "drop") == ["another's", "folder"]


def give_back_another_s_file(path: str, how: str) -> None:
    """To be called in a process of its own, as root: becomes the consumer's user, who may read the file but
    not write it."""
    with Inbox(path) as inbox:
        inbox.add(
            "imports", "all that is needed, while it can be read: this Python may lie in a folder of root's"
        )
        take(inbox).ack()
        drop(inbox, "another's", b"payload")
        os.chmod(os.path.join(path, "drop", "another's"), 0o644)
    for entry in (path, *(os.path.join(path, name) for name in os.listdir(path))):
        os.chown(entry, 65534, 65534)
    import ctypes  # noqa: F401 - the same

    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    if how == "die":
        child = fork.Process(target=lambda: (Inbox(path).take(), os._exit(9)))
        child.start()
        child.join(20)
        assert names(Inbox(path), "inflight")
    with Inbox(path, codec="bytes") as inbox:
        if how == "nack":
            take(inbox).nack()
        elif how == "defer":
            take(inbox).nack(delay=0.001)
        elif how == "close":
            take(inbox)
            inbox.close()
            inbox = Inbox(path, codec="bytes")
        element = take(inbox, timeout=1)
        assert (element.key, element.value, element.attempts) == ("another's", b"payload", 2)
        element.ack()
        inbox.close()


@pytest.mark.parametrize("how", ["nack", "defer", "close", "die"])
def test_a_dropped_file_of_another_user_can_be_given_back(how: str) -> None:
    """Linux lets nobody link another's file that he may not write (fs.protected_hardlinks)."""
    if os.geteuid():
        pytest.skip("only root can make files of another user")
    import_module("fsinbox.consumer.consumer")
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o777)
        child = fork.Process(target=give_back_another_s_file, args=(os.path.join(folder, "inbox"), how))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        shutil.rmtree(folder)


def become(user: int) -> None:
    """Be another user, of the group of those who share the inbox."""
    os.setgroups([])
    os.setgid(2000)
    os.setuid(user)


def as_user(user: int, function: Callable[..., object], *arguments: object) -> None:
    """Call in a child that is another user; it must succeed."""

    def call() -> None:
        become(user)
        os.umask(0o007)
        function(*arguments)

    child = fork.Process(target=call)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def drop_within_a_tick(path: str, mode: int) -> None:
    """Write a file and mv it into drop/ so quickly that its times do not tell: again and again, until that is
    so."""
    dropped, draft = os.path.join(path, "drop", "a"), os.path.join(path, "tmp", "draft")
    for _ in range(1000):
        with open(draft, "wb") as file:
            file.write(b"of A")
            os.fchmod(file.fileno(), mode)
        os.rename(draft, dropped)
        status = os.stat(dropped)
        if status.st_ctime_ns == status.st_mtime_ns:
            return
    raise AssertionError("no two things were ever done within a tick of the clock")


def add_of_b(path: str) -> None:
    with Inbox(path, codec="bytes") as inbox:
        assert inbox.add("a", b"of B") == "replaced"


@pytest.mark.parametrize("mode", [0o640, 0o600], ids=["readable", "unreadable"])
def test_a_value_added_after_another_user_s_drop_is_the_one_delivered(mode: int) -> None:
    """The kernel tells nobody but its owner whether a file is still being written. So B looks again, after a
    second."""
    if os.geteuid():
        pytest.skip("only root can be other users")
    import_module("fsinbox.consumer.consumer")
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o777)
        path = os.path.join(folder, "inbox")
        Inbox(path, shared=True, codec="bytes").close()
        for entry in (path, *(os.path.join(path, name) for name in os.listdir(path))):
            mode_before = os.stat(entry).st_mode & 0o7777
            os.chown(entry, 1000, 2000)
            os.chmod(entry, mode_before)
        with Inbox(path, codec="bytes") as imports:
            imports.add("imports", b"while they can be read")
            take(imports).ack()
        as_user(1001, drop_within_a_tick, path, mode)
        as_user(1002, add_of_b, path)
        with Inbox(path, codec="bytes") as inbox:
            assert drain(inbox) == [("a", b"of B")]
            assert inbox.take(timeout=1.5) is None
            assert names(inbox, "drop") == names(inbox, "failed") == []
    finally:
        shutil.rmtree(folder)


# --- writers that cannot rename -----------------------------------------------------------------------


def test_a_file_that_a_slow_writer_has_open_is_not_adopted_until_it_is_closed(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.1, max_settle=0.2) as inbox:
        with open(inbox_dir / "drop" / "slow", "wb") as file:
            file.write(b"half")
            file.flush()
            assert inbox.take(timeout=0.5) is None  # longer than the settle time and its ceiling
            drop(inbox, "quick")
            assert drain(inbox) == [("quick", b"dropped")]
            file.write(b" and half")
        element = take(inbox, timeout=3)
        assert (element.key, element.value) == ("slow", b"half and half")


def test_a_file_that_is_moved_in_while_its_writer_has_it_open_is_not_adopted_until_it_is_closed(
    inbox_dir: Path, tmp_path: Path
) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.1, max_settle=0.2) as inbox:
        with open(tmp_path / "slow", "wb") as file:
            file.write(b"half")
            file.flush()
            os.rename(tmp_path / "slow", inbox_dir / "drop" / "slow")
            assert inbox.take(timeout=0.4) is None
            file.write(b" and half")
        assert take(inbox, timeout=3).value == b"half and half"


def test_an_add_is_not_overwritten_by_a_file_that_was_being_written_when_it_came_but_replaced_by_it_later(
    inbox_dir: Path,
) -> None:
    """It arrives when it is finished."""
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.1) as inbox:
        with open(inbox_dir / "drop" / "a", "wb") as file:
            file.write(b"half")
            file.flush()
            assert inbox.add("a", b"added") == "new"
            assert drain(inbox) == [("a", b"added")]
            file.write(b" and half")
        assert take(inbox, timeout=3).value == b"half and half"


def test_a_file_written_in_place_is_adopted_once_it_lies_still(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.3) as inbox:
        Path(inbox_dir, "drop", "a").write_bytes(b"1")
        assert inbox.take() is None
        time.sleep(0.15)
        began = time.monotonic()
        Path(inbox_dir, "drop", "a").write_bytes(b"22")
        assert inbox.take() is None
        element = take(inbox, timeout=5)
        assert 0.25 <= time.monotonic() - began < 0.8
        assert element.value == b"22"


def test_a_file_written_in_place_while_nobody_looked_has_settled_already(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.2) as inbox:
        Path(inbox_dir, "drop", "a").write_bytes(b"1")
        time.sleep(0.25)
        assert drain(inbox) == [("a", b"1")]


def test_a_file_rewritten_in_place_again_and_again_is_adopted_by_the_ceiling(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.3, max_settle=0.8) as inbox:
        stop = threading.Event()

        def rewrite() -> None:
            number = 0
            while not stop.wait(0.05):
                number += 1
                Path(inbox_dir, "drop", "a").write_bytes(b"%d" % number)

        thread = threading.Thread(target=rewrite)
        thread.start()
        began = time.monotonic()
        try:
            element = take(inbox, timeout=5)
        finally:
            stop.set()
            thread.join()
        assert 0.7 < time.monotonic() - began < 1.6
        assert int(element.value) > 5


def test_a_file_copied_in_with_its_times_is_adopted(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"copied")
    os.utime(tmp_path / "a", (1, 1))
    shutil.copy2(tmp_path / "a", Path(inbox.path, "drop", "a"))  # sets the times last
    assert drain(inbox) == [("a", b"copied")]


def test_a_file_with_a_time_in_the_future_is_adopted_in_the_end(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0.1, max_settle=0.2) as inbox:
        drop(inbox, "a")
        os.utime(Path(inbox_dir, "drop", "a"), (time.time() + 10**6,) * 2)
        assert take(inbox, timeout=3).key == "a"


def test_a_dropped_file_that_is_removed_again_leaves_no_trace(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=5) as inbox:
        Path(inbox_dir, "drop", "a").write_bytes(b"1")
        assert inbox.take() is None
        Path(inbox_dir, "drop", "a").unlink()
        assert inbox.take(timeout=0.2) is None
        assert names(inbox, "failed") == []


# --- foreign files elsewhere --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["README", "a", "12345-a", "1234567890123456789-%41", "1234567890123456789-a b", "x" * 255]
)
@pytest.mark.parametrize("folder", ["pending", "inflight", "deferred"])
def test_a_foreign_file_among_the_elements_is_set_aside(inbox: Inbox, folder: str, name: str) -> None:
    Path(inbox.path, folder, name).write_text("mine")
    inbox.add("a", b"1")
    assert drain(inbox) == [("a", b"1")]
    assert names(inbox, folder) == []
    assert "its name is not" in reason_for(inbox, name)


@pytest.mark.parametrize("folder", ["pending", "inflight", "deferred", "drop", "failed", "attempts", "tmp"])
def test_an_editor_s_hidden_file_is_left_alone(inbox: Inbox, folder: str) -> None:
    path = Path(inbox.path, folder, ".a.swp")
    path.write_text("mine")
    inbox.add("a", b"1")
    take(inbox).nack()
    take(inbox).fail("no")
    assert drain(inbox) == []
    assert path.read_text() == "mine"


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "link", "dangling link"])
@pytest.mark.parametrize("folder", ["pending", "inflight", "deferred"])
def test_what_is_no_file_under_an_element_s_name_is_set_aside(inbox: Inbox, folder: str, kind: str) -> None:
    number = f"{time.time_ns()}"
    name = f"{number}-{number}-odd" if folder == "deferred" else f"{number}-odd"
    KINDS[kind][0](Path(inbox.path, folder, name))
    inbox.add("a", b"1")
    assert drain(inbox) == [("a", b"1")]
    assert [entry for entry in names(inbox, "failed") if "odd" in entry]
    assert [names(inbox, entry) for entry in ("pending", "inflight", "deferred")] == [[]] * 3


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "dangling link"])
@pytest.mark.parametrize("name", ["0000000000000000001-a", ".draft", "README"])
def test_what_is_no_note_among_the_notes_stops_nothing(inbox: Inbox, name: str, kind: str) -> None:
    KINDS[kind][0](Path(inbox.path, "attempts", name))
    inbox.add("a", b"1")
    take(inbox).nack()
    element = take(inbox)
    assert element.attempts == 2
    element.ack()


def test_an_element_copied_into_pending_by_hand_is_taken(inbox: Inbox) -> None:
    name = f"{time.time_ns()}-by%20hand"
    Path(inbox.path, "pending", name).write_bytes(b"1")
    inbox.add("a", b"1")
    assert sorted(drain(inbox)) == [("a", b"1"), ("by hand", b"1")]


def test_set_aside_files_are_private_as_everything_is(inbox: Inbox) -> None:
    Path(inbox.path, "drop", "folder").mkdir()
    assert inbox.take() is None
    (reason,) = [name for name in names(inbox, "failed") if name.endswith("~reason.txt")]
    assert stat.S_IMODE(Path(inbox.path, "failed", reason).stat().st_mode) == 0o600


# --- what the system refuses, and what others do meanwhile --------------------------------------------


def the(nth: int, name: str) -> Callable[..., bool]:
    """Return what holds for the nth call whose first argument is `name`."""
    calls = []

    def holds(first: object, *_: object) -> bool:
        calls.append(first == name)
        return bool(calls[-1]) and sum(calls) == nth

    return holds


def of_drop(name: str, nth: int | None = None) -> Callable[..., bool]:
    """Return what holds for each, or the nth, call with a descriptor of that file in drop/."""
    hits = []

    def holds(fd: object, *_: object) -> bool:
        if not isinstance(fd, int) or not os.readlink(f"/proc/self/fd/{fd}").endswith(f"/drop/{name}"):
            return False
        hits.append(fd)
        return nth is None or len(hits) == nth

    return holds


def test_more_files_than_are_adopted_in_one_go_are_all_adopted(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "_BATCH", 2)
    monkeypatch.setattr("fsinbox.consumer.consumer._LOOK_INTERVAL", 0)
    for name in "abcde":
        drop(inbox, name)
    first = take(inbox)
    assert inbox.next_look_in() == 0.0
    first.ack()
    assert [first.key, *(key for key, _ in drain(inbox))] == list("abcde")


@pytest.mark.parametrize("call", ["lstat", "lstat again", "open"])
def test_a_dropped_file_that_goes_while_it_is_looked_at_is_passed_over(inbox: Inbox, call: str) -> None:
    for name in "ab":
        drop(inbox, name)
    call, _, again = call.partition(" ")
    with meanwhile(call, Path(inbox.path, "drop", "a").unlink, when=the(2 if again else 1, "a")):
        assert drain(inbox) == [("b", b"dropped")]
    assert names(inbox, "failed") == []


@pytest.mark.parametrize(
    ("call", "how", "nth"),
    [
        ("lstat", errno.EIO, None),
        ("open", errno.EMFILE, None),
        ("open", errno.EMFILE, 2),  # to flush it
        ("fstat", errno.EIO, 2),
        ("rename", errno.EROFS, None),
    ],
)
def test_a_dropped_file_that_is_refused_stops_no_other_is_told_of_once_and_tried_again(
    inbox: Inbox, call: str, how: int, nth: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    drop(inbox, "a")
    whatever = {"fstat": of_drop("a", nth)}
    named = the(nth, "a") if nth else lambda first, *_: first == "a"
    with refusing(**{call: how}, when=whatever.get(call, named)):
        if nth is None:
            drop(inbox, "b")
            assert drain(inbox) == [("b", b"dropped")]
        assert drain(inbox) == [] if nth is None else inbox.take() is None
    assert names(inbox, "drop") == ["a"]
    assert sum("stays in drop/ and is tried again" in record.getMessage() for record in caplog.records) == 1
    assert drain(inbox) == [("a", b"dropped")]
    assert names(inbox, "failed") == []


@pytest.mark.parametrize(
    ("call", "said"), [("flock", "cannot ingest dropped files now"), ("pwrite", "cannot ingest 'a' now")]
)
def test_what_admission_is_refused_stays_and_is_adopted_later(
    inbox: Inbox, call: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert inbox.take() is None
    drop(inbox, "a")
    drop(inbox, "b")
    with refusing(**{call: errno.EIO}, times=1):
        inbox.take()
    assert said in caplog.text
    inbox.rollback() if call == "pwrite" else None
    assert sorted(key for key, _ in drain(inbox)) == ["a", "b"]


def test_a_dropped_file_on_which_somebody_has_a_lease_is_looked_at_again_soon(inbox: Inbox) -> None:
    """Samba takes leases. Whoever opens such a file is refused, and the lease's holder is asked to give it
    back."""
    drop(inbox, "a")
    with refusing(open=errno.EAGAIN, when=lambda name, *_: name == "a"):
        assert inbox.take() is None
        again = inbox.next_look_in()
    assert again is not None and again <= 1.0
    assert drain(inbox) == [("a", b"dropped")]


def test_a_dropped_file_that_may_not_be_read_is_set_aside_and_it_is_said_whose_it_is(inbox: Inbox) -> None:
    drop(inbox, "a")
    with refusing(open=errno.EACCES, when=lambda name, *_: name == "a"):
        assert drain(inbox) == []
    assert f"it belongs to user {os.getuid()}, mode 0" in reason_for(inbox, "a")


def test_of_several_dropped_files_only_the_one_that_cannot_be_flushed_waits(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        drop(inbox, name)
    with refusing(fsync=errno.EIO, when=of_drop("b")):
        assert drain(inbox) == [("a", b"dropped"), ("c", b"dropped")]
    assert "cannot flush 'b' to the disk" in caplog.text
    assert drain(inbox) == [("b", b"dropped")]


def test_an_add_is_refused_if_a_drop_of_its_key_cannot_be_flushed(inbox: Inbox) -> None:
    drop(inbox, "a")
    with refusing(fsync=errno.EIO, when=of_drop("a")), pytest.raises(AddFailed, match="was not added"):
        inbox.add("a", b"added")
    assert drain(inbox) == [("a", b"dropped")]


def test_an_add_that_cannot_tell_whether_a_drop_is_finished_is_refused(inbox: Inbox) -> None:
    drop(inbox, "a")
    with (
        refusing(open=errno.EMFILE, when=lambda name, *_: name == "a"),
        pytest.raises(AddFailed, match="was not added"),
    ):
        inbox.add("a", b"added")
    assert drain(inbox) == [("a", b"dropped")]


def test_a_consumer_does_not_wait_for_the_admission_lock(inbox: Inbox) -> None:
    assert inbox.take() is None
    drop(inbox, "a")
    with held(inbox.path):
        assert inbox.take() is None
        again = inbox.next_look_in()
        assert again is not None and again <= 0.01
    assert drain(inbox) == [("a", b"dropped")]


def test_what_goes_while_it_is_set_aside_is_no_error(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    fifo = Path(inbox.path, "drop", "f")
    os.mkfifo(fifo)
    with meanwhile("rename", fifo.unlink, when=lambda name, *_: name == "f"):
        assert drain(inbox) == []
    assert names(inbox, "failed") == []
    assert not caplog.records


def test_what_cannot_be_set_aside_is_told_of_once(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(Path(inbox.path, "drop", "f"))
    with refusing(rename=errno.EROFS, when=lambda name, *_: name == "f"):
        assert drain(inbox) == drain(inbox) == []
    (record,) = caplog.records
    assert "cannot be moved" in record.getMessage()


def test_names_of_files_that_others_took_away_are_not_remembered_for_ever(inbox: Inbox) -> None:
    assert inbox.take() is None
    assert inbox._taking().consumer
    moved_in = inbox._taking().consumer.drops.moved_in
    moved_in.update(f"gone-{number}" for number in range(10_000))
    assert inbox.take() is None
    assert len(moved_in) == 10_000  # the file of one may come just now
    moved_in.add("one more")
    assert inbox.take() is None
    assert not moved_in


@pytest.mark.parametrize("how", ["no such call", "refused"])
def test_where_the_kernel_tells_of_no_writers_a_file_s_times_do(
    inbox: Inbox, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where these do not tell, a producer of the same key looks again when it could have lain still."""
    monkeypatch.setattr("fsinbox.store.drops.UNTOLD", 1.0)
    drop(inbox, "a")
    Path(inbox.path, "drop", "still").write_bytes(b"left alone from now on")
    written = Path(inbox.path, "drop", "written")
    writer = threading.Timer(0.3, lambda: written.write_bytes(b"as it still is"))

    def meet() -> None:
        assert inbox.add("still", b"added") == "replaced"
        began = time.monotonic()
        written.write_bytes(b"under its writer's hand")
        writer.start()
        assert inbox.add("written", b"added") == "new"
        assert time.monotonic() - began > 0.9
        assert drain(inbox) == [("still", b"added"), ("written", b"added"), ("a", b"dropped")]

    if how == "refused":  # as some file systems do
        with refusing(fcntl=errno.EINVAL):
            meet()
    else:
        monkeypatch.delattr(fcntl, "F_SETLEASE")
        meet()
    writer.join()
    assert names(inbox, "drop") == ["written"]
