"""Dropped files that others may still write to: what becomes an element is a copy, and is not changed any
more."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fsinbox import Inbox
from fsinbox.consumer import copying
from tests.shim import DIED, dying_at, intercepted, meanwhile, refusing
from tests.usual import drain, drop, held, names, path_of, reason_for, take

fork = multiprocessing.get_context("fork")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0, max_drop_size=1000) as inbox:
        inbox.become_consumer()
        yield inbox


def drop_linked(inbox: Inbox, name: str, data: bytes = b"dropped") -> Path:
    """Move a file into drop/ that has a second name; return that."""
    drop(inbox, name, data)
    other = Path(inbox.path).parent / f"kept-{name}"
    os.link(Path(inbox.path, "drop", name), other)
    return other


def ingest(inbox: Inbox) -> None:
    """Ingest what is in drop/, and take nothing."""
    consumer = inbox._taking().consumer
    assert consumer
    while consumer.drops.ingest():
        pass


def from_drop(src: str, *_: object, **more: object) -> bool:
    """Tell whether a rename is that of a dropped file into its place."""
    return "/" not in src and src[:1].isalpha()


# --- nobody else's hand is on it ----------------------------------------------------------------------


def test_whoever_keeps_a_hard_link_cannot_grow_what_waits(inbox: Inbox) -> None:
    kept = drop_linked(inbox, "a", b"x" * 1000)
    ingest(inbox)
    with kept.open("ab") as file:
        file.write(b"y" * 5000)  # past --max-size
    element = take(inbox)
    assert element.data == b"x" * 1000
    element.ack()
    assert kept.stat().st_nlink == 1
    assert names(inbox, "drop") == names(inbox, "tmp") == names(inbox, "failed") == []


@AS_ROOT
def test_the_owner_of_a_dropped_file_cannot_change_what_waits(inbox: Inbox) -> None:
    drop(inbox, "a")
    dropped = Path(inbox.path, "drop", "a")
    os.chown(dropped, 65534, 65534)
    os.utime(dropped, (1, 1))
    fd = os.open(dropped, os.O_RDONLY)
    ingest(inbox)
    Path(f"/proc/self/fd/{fd}").write_bytes(b"changed, and grown")
    os.close(fd)
    place = path_of(inbox, "pending", "a")
    assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (os.geteuid(), 0o600)
    assert drain(inbox) == [("a", b"dropped")]


def test_a_file_of_ours_is_moved_and_others_lose_the_right_to_write_to_it(inbox: Inbox) -> None:
    drop(inbox, "a")
    Path(inbox.path, "drop", "a").chmod(0o666)
    inode = Path(inbox.path, "drop", "a").stat().st_ino
    ingest(inbox)
    status = path_of(inbox, "pending", "a").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o644)


def test_a_file_that_is_opened_for_writing_just_before_that_right_is_lost_is_not_ingested(
    inbox: Inbox,
) -> None:
    drop(inbox, "a")
    dropped = Path(inbox.path, "drop", "a")
    dropped.chmod(0o666)
    opened: list[int] = []
    with meanwhile("fchmod", lambda: opened.append(os.open(dropped, os.O_WRONLY))):
        ingest(inbox)
    assert names(inbox, "drop") == ["a"]
    assert 0 < (inbox.next_look_in() or 0) <= 0.05
    os.close(opened[0])
    assert drain(inbox) == [("a", b"dropped")]


def test_in_a_shared_inbox_a_copy_is_the_group_s_too(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", codec="bytes", shared=True) as inbox:
        inbox.become_consumer()
        drop_linked(inbox, "linked")
        drop(inbox, "loose")
        Path(inbox.path, "drop", "loose").chmod(0o660)
        ingest(inbox)
        for key in ("linked", "loose"):
            assert stat.S_IMODE(path_of(inbox, "pending", key).stat().st_mode) == 0o660


def consume_as_another(path: str) -> None:
    """To be called in a process of its own, as root: becomes a user who consumes another's shared inbox."""
    with Inbox(path, shared=True, codec="bytes") as inbox:
        inbox.add("imports", b"all that is needed, while it can be read")
        take(inbox).ack()
        for name in ("owner's", "loose", "third's"):
            drop(inbox, name, name.encode())
            os.chown(os.path.join(path, "drop", name), 1001 if name == "third's" else 1000, 2000)
            os.chmod(os.path.join(path, "drop", name), 0o666 if name == "loose" else 0o640)
    inodes = {name: os.stat(os.path.join(path, "drop", name)).st_ino for name in os.listdir(f"{path}/drop")}
    for entry in (path, *(os.path.join(path, name) for name in os.listdir(path))):
        mode = os.stat(entry).st_mode & 0o7777
        os.chown(entry, 1000, 2000)
        os.chmod(entry, mode)
    os.setgroups([])
    os.setgid(2000)
    os.setuid(1002)
    with Inbox(path, codec="bytes") as inbox:
        inbox.become_consumer()
        ingest(inbox)
        now = {key: path_of(inbox, "pending", key).stat() for key in ("owner%27s", "loose", "third%27s")}
        # What the owner of the inbox drops is his own; but not if others may write to it.
        assert now["owner%27s"].st_ino == inodes["owner's"]
        assert now["loose"].st_ino != inodes["loose"] and now["loose"].st_uid == 1002
        assert now["third%27s"].st_ino != inodes["third's"] and now["third%27s"].st_uid == 1002
        assert dict(drain(inbox)) == {name: name.encode() for name in inodes}
        assert names(inbox, "tmp") == names(inbox, "failed") == []


@AS_ROOT
def test_what_the_owner_of_the_inbox_drops_is_not_copied() -> None:
    import_module("fsinbox.consumer.consumer")
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o777)
        child = fork.Process(target=consume_as_another, args=(os.path.join(folder, "inbox"),))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        shutil.rmtree(folder)


def test_a_copy_takes_the_place_of_a_waiting_value_and_is_superseded_by_a_newer_one(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    inbox.add("b", b"1")
    drop_linked(inbox, "a", b"2")
    assert drain(inbox) == [("a", b"2"), ("b", b"1")]
    drop_linked(inbox, "c", b"1")
    assert inbox.add("c", b"2") == "replaced"
    assert drain(inbox) == [("c", b"2")]


# --- as it was ----------------------------------------------------------------------------------------


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> None:
    with path.open("r+b") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (0, []),
        (1 << 28, []),
        (1 << 28, [(1 << 20, b"in the middle")]),
        (1 << 28, [(0, b"first"), ((1 << 28) - 4, b"last")]),
        (3 << 20, [(0, bytes(range(256)) * (3 << 12))]),
    ],
)
def test_a_copy_takes_no_more_room_than_the_file(
    inbox_dir: Path, size: int, pieces: list[tuple[int, bytes]]
) -> None:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        inbox.become_consumer()
        kept = drop_linked(inbox, "a", b"")
        sparse(kept, size, *pieces)
        os.utime(kept, (1, 1))
        ingest(inbox)
        place = path_of(inbox, "pending", "a")
        assert place.stat().st_ino != kept.stat().st_ino
        assert place.stat().st_blocks <= kept.stat().st_blocks + 16
        with place.open("rb") as copy, kept.open("rb") as original:
            while piece := copy.read(1 << 24):
                assert piece == original.read(1 << 24)
            assert original.read() == b""


@pytest.mark.parametrize("can", [True, False])
def test_a_producer_s_trace_goes_along_where_it_can(inbox: Inbox, can: bool) -> None:
    kept = drop_linked(inbox, "a")
    name = "user.fsinbox.traceparent"
    try:
        os.setxattr(kept, name, b"00-1-2-01")
        os.setxattr(kept, "user.other", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    if can:
        ingest(inbox)
        assert os.listxattr(path_of(inbox, "pending", "a")) == [name]
    else:
        with refusing(setxattr=errno.ENOSPC):
            ingest(inbox)
        assert os.listxattr(path_of(inbox, "pending", "a")) == []
    assert drain(inbox) == [("a", b"dropped")]


@pytest.mark.parametrize("how", ["grows", "is cut", "is written to", "is cut to nothing"])
def test_a_file_that_changes_while_it_is_copied_is_not_finished(
    inbox_dir: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PATIENCE", 1.0)
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        inbox.become_consumer()
        kept = drop_linked(inbox, "a", b"x" * (3 << 20))
        act: dict[str, tuple[str, Callable[[], object]]] = {
            "grows": ("ftruncate", lambda: os.truncate(kept, 4 << 20)),
            "is cut": ("pread", lambda: os.truncate(kept, 1 << 20)),
            "is written to": ("ftruncate", lambda: os.utime(kept)),
            "is cut to nothing": ("ftruncate", lambda: os.truncate(kept, 0)),
        }
        name, change = act[how]
        with meanwhile(name, change):
            ingest(inbox)
        assert (names(inbox, "drop"), names(inbox, "pending"), names(inbox, "tmp")) == (["a"], [], [])
        with noted() as calls:
            ingest(inbox)  # not at once
        assert "pread" not in calls
        assert 0 < (inbox.next_look_in() or 0) <= 1
        element = take(inbox, timeout=5)
        assert element.data == kept.read_bytes()


@contextmanager
def noted() -> Iterator[list[str]]:
    """Note the names of all calls, while this lasts."""
    calls: list[str] = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append(name)
        return call(*arguments, **more)

    with intercepted(hook):
        yield calls


def test_a_file_that_has_grown_past_the_limit_when_it_is_opened_is_set_aside(inbox: Inbox) -> None:
    kept = drop_linked(inbox, "a")
    with meanwhile("open", lambda: os.truncate(kept, 1001), when=lambda name, *_: name == "a"):
        ingest(inbox)
    if names(inbox, "drop"):  # (its times did not tell, just then)
        ingest(inbox)
    assert "it has 1001 bytes, more than the limit of 1000" in reason_for(inbox, "a")


def test_a_clone_that_is_not_the_whole_file_is_not_believed(inbox: Inbox) -> None:
    """It could be more than the limit allows, if the file has grown."""
    drop_linked(inbox, "a")
    with mock.patch.object(fcntl, "ioctl", return_value=0):  # says that it has, and has not
        ingest(inbox)
    assert (names(inbox, "drop"), names(inbox, "pending"), names(inbox, "tmp")) == (["a"], [], [])


# --- what others do meanwhile -------------------------------------------------------------------------


def test_a_file_that_changes_before_the_section_is_left(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PATIENCE", 0.05)
    kept = drop_linked(inbox, "a")
    with meanwhile("fsync", lambda: kept.write_bytes(b"newer")):
        ingest(inbox)
    assert (names(inbox, "drop"), names(inbox, "pending"), names(inbox, "tmp")) == (["a"], [], [])
    assert take(inbox, timeout=5).data == b"newer"


def test_a_file_that_goes_before_the_section_is_not_delivered(inbox: Inbox) -> None:
    """Its uploader has renamed it, for one: it is delivered under its last name, and once."""
    drop_linked(inbox, "a")
    dropped = Path(inbox.path, "drop", "a")
    with meanwhile("fsync", lambda: dropped.rename(dropped.with_name("b"))):
        ingest(inbox)
    assert drain(inbox) == [("b", b"dropped")]
    assert names(inbox, "tmp") == []


def test_a_file_that_goes_at_the_last_moment_is_not_delivered(inbox: Inbox) -> None:
    drop_linked(inbox, "a")
    with meanwhile("rename", Path(inbox.path, "drop", "a").unlink, when=from_drop):
        assert drain(inbox) == []
    assert names(inbox, "tmp") == names(inbox, "failed") == []


def test_a_file_that_is_replaced_at_the_last_moment_is_set_aside(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in its place then, and somebody's: nobody may count on what it says."""
    drop_linked(inbox, "a", b"1")
    other = Path(inbox.path).parent / "other"
    other.write_bytes(b"2")
    with meanwhile("rename", lambda: os.rename(other, Path(inbox.path, "drop", "a")), when=from_drop):
        ingest(inbox)
    assert drain(inbox) == []
    assert "replaced while it was ingested" in reason_for(inbox, "a")
    (aside,) = (name for name in names(inbox, "failed") if not name.endswith("~reason.txt"))
    assert Path(inbox.path, "failed", aside).read_bytes() == b"2"
    assert names(inbox, "tmp") == names(inbox, "drop") == []
    assert "set aside dropped file 'a'" in caplog.text


def test_where_the_copy_cannot_take_its_place_the_file_itself_is_delivered(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A waiting value has made room for it: to set it aside then would lose both."""
    inbox.add("a", b"older")
    kept = drop_linked(inbox, "a")
    with refusing(
        rename=errno.EIO, when=lambda src, dst, **_: dst.endswith("-a") and not from_drop(src), times=1
    ):
        ingest(inbox)
    assert path_of(inbox, "pending", "a").stat().st_ino == kept.stat().st_ino
    assert "cannot put a copy in place of 'a'" in caplog.text
    assert drain(inbox) == [("a", b"dropped")]
    assert names(inbox, "tmp") == names(inbox, "failed") == []


# --- what the system refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"), [("write", errno.ENOSPC), ("ftruncate", errno.EFBIG), ("lseek", errno.EIO)]
)
def test_what_cannot_be_copied_is_left_and_told_once(
    inbox: Inbox,
    call: str,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(copying, "PATIENCE", 0.0)
    drop_linked(inbox, "a")
    drop(inbox, "b")
    with refusing(**{call: error}):
        ingest(inbox)
        ingest(inbox)
        assert (names(inbox, "drop"), names(inbox, "tmp")) == (["a"], [])
    assert caplog.text.count(f"cannot copy 'a' now: {os.strerror(error)}: it stays in drop/") == 1
    assert sorted(drain(inbox)) == [("a", b"dropped"), ("b", b"dropped")]


@pytest.mark.parametrize("others", [[], ["b", "c"]])
def test_a_copy_that_cannot_be_flushed_is_made_anew(
    inbox: Inbox, others: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(copying, "PATIENCE", 0.0)
    drop_linked(inbox, "a")
    for name in others:
        drop(inbox, name)
    of_copy: list[str] = []

    def in_tmp(fd: int) -> bool:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return "/tmp/" in path.removeprefix("/tmp/") and not of_copy.append(path)

    with refusing(fsync=errno.EIO, when=in_tmp, times=1):
        ingest(inbox)
        assert others or names(inbox, "drop") == ["a"]
    assert "cannot flush a copy of 'a' now" in caplog.text
    assert len(set(of_copy)) == len(of_copy)  # after it failed, a flush would say that all is well
    assert sorted(drain(inbox)) == [(name, b"dropped") for name in ["a", *others]]
    assert names(inbox, "tmp") == []


def test_what_cannot_be_moved_is_not_copied_again_and_again(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user's in a drop/ that is sticky."""
    drop_linked(inbox, "a")
    with refusing(rename=errno.EPERM, when=from_drop):
        ingest(inbox)
    with noted() as calls:
        ingest(inbox)
    assert "pread" not in calls and "ioctl" not in calls
    assert caplog.text.count("cannot ingest 'a' now") == 1
    assert (names(inbox, "drop"), names(inbox, "tmp")) == (["a"], [])


def test_while_the_lock_is_held_a_file_is_copied_once(inbox: Inbox) -> None:
    drop_linked(inbox, "a")
    with held(inbox.path):
        ingest(inbox)
        assert len(names(inbox, "tmp")) == 1
        with noted() as calls:
            ingest(inbox)
        assert "pread" not in calls
    assert drain(inbox) == [("a", b"dropped")]
    assert names(inbox, "tmp") == []


def test_a_consumer_that_closes_or_whose_file_goes_leaves_no_copy(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        inbox.become_consumer()
        for name in "ab":
            drop_linked(inbox, name)
        with held(inbox.path):
            ingest(inbox)
            assert len(names(inbox, "tmp")) == 2
            Path(inbox.path, "drop", "a").unlink()
            ingest(inbox)
            assert len(names(inbox, "tmp")) == 1
    assert os.listdir(inbox_dir / "tmp") == []
    assert os.listdir(inbox_dir / "drop") == ["b"]


def test_a_consumer_copies_a_bounded_amount_in_one_go(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsinbox.consumer.ingest.ENOUGH", 1500)
    for name in "abcde":
        drop_linked(inbox, name, name.encode() * 1000)
    consumer = inbox._taking().consumer
    assert consumer
    assert [consumer.drops.ingest() for _ in range(4)] == [2, 2, 1, 0]
    assert [key for key, _ in drain(inbox)] == list("abcde")


def test_an_exception_in_the_middle_of_a_copy_leaves_none(inbox: Inbox) -> None:
    drop_linked(inbox, "a")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), meanwhile("pread", interrupt, when=lambda *_: True):
        ingest(inbox)
    assert (names(inbox, "drop"), names(inbox, "tmp")) == (["a"], [])
    consumer = inbox._taking().consumer
    assert consumer
    consumer.drops._copies._later.clear()
    assert drain(inbox) == [("a", b"dropped")]


def die_at(path: Path, fatal: int) -> None:
    """Ingest in a process of its own, which ends at that call; with 0 if there was none, and all is done."""
    inbox = Inbox(path, codec="bytes", drop_settle=0, watch="poll")
    inbox.become_consumer()
    with dying_at(fatal):
        ingest(inbox)
    os._exit(0)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_consumer_that_is_killed_at_any_call_of_a_copy_delivers_it_once(
    tmp_path: Path, waiting: bool, figure: Callable[[str], None]
) -> None:
    import_module("fsinbox.consumer.session")
    kills = 0
    while True:
        path = tmp_path / str(kills) / "inbox"
        path.parent.mkdir()
        with Inbox(path, codec="bytes", drop_settle=0, watch="poll") as inbox:
            if waiting:
                inbox.add("a", b"older")
            drop_linked(inbox, "a")
        child = fork.Process(target=die_at, args=(path, kills + 1))
        child.start()
        child.join(20)
        with Inbox(path, codec="bytes", drop_settle=0, watch="poll") as inbox:
            assert drain(inbox) == [("a", b"dropped")], f"killed at call {kills + 1}"
            assert names(inbox, "drop") == names(inbox, "failed") == []
            assert len(names(inbox, "tmp")) <= 1  # a draft, which is swept when its writer is surely dead
        if child.exitcode == 0:
            break
        assert child.exitcode == DIED
        kills += 1
    assert kills > 30
    figure(f"{kills} kills, 0 bad")
