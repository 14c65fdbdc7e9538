"""Subfolders of drop/ (consume --drop-recursive): the path is the key, no link is followed, nothing is lost
or delivered twice."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers import run

from fsinbox import AddFailed, Inbox, UnusableInbox
from fsinbox.consumer import ingest as ingesting
from fsinbox.consumer.watch import Watch
from fsinbox.doctor import examine
from fsinbox.operate.status import summary
from fsinbox.operate.waiting import not_done
from fsinbox.store import ignoring, subfolders
from fsinbox.store.drops import finished_drop
from tests.shim import DIED, dying_at, intercepted, meanwhile, refusing
from tests.usual import drain, drop, names, reason_for, take

fork = multiprocessing.get_context("fork")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else, and mount")
linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify and leases")


@pytest.fixture(autouse=True)
def _looks_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: a look that takes long is followed by a rest."""
    monkeypatch.setattr(ingesting, "_LONG_LOOK", 60.0)


def opened(path: Path, **more: Any) -> Inbox:
    return Inbox(path, codec="bytes", drop_settle=0, drop_recursive=True, **more)


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with opened(inbox_dir) as inbox:
        inbox.become_consumer()
        yield inbox


def put(inbox: Inbox, path: str, data: bytes = b"dropped") -> Path:
    """Move a finished file to a path below drop/, whose folders are made."""
    dropped = Path(inbox.path, "drop", path)
    dropped.parent.mkdir(parents=True, exist_ok=True)
    drop(inbox, path, data)
    return dropped


def ingest(inbox: Inbox) -> None:
    """Ingest what is in drop/, and take nothing."""
    consumer = inbox._taking().consumer
    assert consumer
    while consumer.drops.ingest():
        pass


# --- what a path becomes ------------------------------------------------------------------------------


def test_a_file_in_a_subfolder_is_of_the_key_that_is_its_path(inbox: Inbox) -> None:
    for path in ("a/b.pdf", "a/b c/d", "top", "ä/ö"):
        put(inbox, path, path.encode())
    assert sorted(drain(inbox)) == sorted(
        (path, path.encode()) for path in ("a/b.pdf", "a/b c/d", "top", "ä/ö")
    )


def test_a_name_that_is_not_utf_8_is_a_key_as_it_is(inbox: Inbox) -> None:
    os.mkdir(os.fsencode(inbox.path) + b"/drop/\xff")
    drop(inbox, b"\xff/\xfe")
    assert drain(inbox) == [("\udcff/\udcfe", b"dropped")]


def test_files_come_in_order_of_arrival_whatever_their_folder(inbox: Inbox) -> None:
    for path in ("z/1", "a/b/2", "3", "m/4"):
        put(inbox, path)
        time.sleep(0.02)  # (a tick of the clock that sets ctime)
    assert [key for key, _ in drain(inbox)] == ["z/1", "a/b/2", "3", "m/4"]


def test_empty_folders_stay(inbox: Inbox) -> None:
    put(inbox, "scanner/1")
    Path(inbox.path, "drop", "user").mkdir()
    assert [key for key, _ in drain(inbox)] == ["scanner/1"]
    assert names(inbox, "drop") == ["scanner", "user"]
    put(inbox, "scanner/2")
    assert [key for key, _ in drain(inbox)] == ["scanner/2"]


def test_a_folder_moved_in_whole_comes_file_by_file(inbox: Inbox) -> None:
    outside = Path(inbox.path).parent / "batch"
    (outside / "inner").mkdir(parents=True)
    for name in ("1", "inner/2"):
        (outside / name).write_bytes(name.encode())
        os.utime(outside / name, (1, 1))
    outside.rename(Path(inbox.path, "drop", "batch"))
    assert sorted(drain(inbox)) == [("batch/1", b"1"), ("batch/inner/2", b"inner/2")]


@linux
def test_a_file_that_is_still_written_lies_still_first(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_recursive=True) as inbox:
        inbox.become_consumer()
        Path(inbox_dir, "drop", "a").mkdir()
        with open(inbox_dir / "drop/a/b", "wb") as file:
            file.write(b"half")
            file.flush()
            os.utime(file.fileno(), (time.time() - 100,) * 2)
            assert drain(inbox) == []
            assert 0 < (inbox.next_look_in() or 0) <= 1
            file.write(b", and the rest")
        assert take(inbox, timeout=5).data == b"half, and the rest"


def test_without_the_option_a_folder_is_set_aside_as_ever(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        put(inbox, "a/b")
        assert drain(inbox) == []
        assert "it is a directory: only regular files are ingested" in reason_for(inbox, "a")
        assert names(inbox, "drop") == []


# --- what is no value ---------------------------------------------------------------------------------


def test_what_is_no_regular_file_in_a_subfolder_is_set_aside_with_its_path(inbox: Inbox) -> None:
    folder = put(inbox, "a/good").parent
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("good")
    assert [key for key, _ in drain(inbox)] == ["a/good"]
    assert "it is a FIFO" in reason_for(inbox, "a/fifo")
    assert "it is a symbolic link" in reason_for(inbox, "a/link")
    assert names(inbox, "drop/a") == []


def test_a_link_to_a_folder_is_set_aside_and_not_followed(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    put(inbox, "a/good")
    for link in ("link", "a/link"):
        Path(inbox.path, "drop", link).symlink_to(tmp_path / "outside")
    assert [key for key, _ in drain(inbox)] == ["a/good"]
    assert "it is a symbolic link" in reason_for(inbox, "link")
    assert "it is a symbolic link" in reason_for(inbox, "a/link")
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_a_path_that_is_too_long_for_a_key_is_set_aside(inbox: Inbox) -> None:
    put(inbox, "a/" + "x" * 196)
    put(inbox, "a/" + "y" * 197)
    assert [key for key, _ in drain(inbox)] == ["a/" + "x" * 196]
    assert "its name cannot be a key" in reason_for(inbox, "a/" + "y" * 197)


def test_a_folder_in_which_no_file_could_have_a_key_is_set_aside_whole(inbox: Inbox) -> None:
    put(inbox, "/".join("a" * 50))  # 50 + 3 * 49 bytes
    too_deep = "/".join("b" * 50)
    put(inbox, f"{too_deep}/file")
    assert [key for key, _ in drain(inbox)] == ["/".join("a" * 50)]
    assert "it is a directory" in reason_for(inbox, too_deep)
    assert not Path(inbox.path, "drop", too_deep).exists()


def test_what_is_too_large_is_set_aside(inbox_dir: Path) -> None:
    with opened(inbox_dir, max_drop_size=3) as inbox:
        put(inbox, "a/b", b"1234")
        assert drain(inbox) == []
        assert "it has 4 bytes, more than the limit of 3" in reason_for(inbox, "a/b")


IGNORED = ("a/.hidden", ".a/b", "a/.b/c", "a/b.part", "upload.part/c", "a/upload.tmp/c/d", "a/Thumbs.db")


def test_patterns_see_the_path(inbox: Inbox) -> None:
    Path(inbox.path, "drop", ".fsinboxignore").write_text("/scans/raw\nlogs/\n!keep.tmp\n")
    Path(inbox.path, "drop", ".fsinboxignore").chmod(0o644)
    values = ("a/keep.tmp", "other/scans/raw", "a/b", "scans/rawer/x", "logs.txt")
    ignored = (*IGNORED, "scans/raw/1", "a/logs/1")
    for path in (*values, *ignored):
        put(inbox, path)
    Path(inbox.path, "drop/a/.fsinboxignore").write_text("b\n")  # only the one at the top counts
    found = [key for key, _ in drain(inbox)]
    assert sorted(found) == sorted(values)
    for path in ignored:
        assert Path(inbox.path, "drop", path).exists()
        assert finished_drop(inbox.layout, path) is None
    assert not inbox.anything()


def test_a_producer_ignores_below_an_ignored_folder_though_the_file_is_none(inbox: Inbox) -> None:
    """As the consumer, which does not look into it."""
    Path(inbox.path, "drop", ".fsinboxignore").write_text("!x.part/keep\n")
    Path(inbox.path, "drop", ".fsinboxignore").chmod(0o644)
    put(inbox, "x.part/keep")
    assert drain(inbox) == []
    assert inbox.add_bytes("x.part/keep", b"added") == "new"
    assert names(inbox, "drop/x.part") == ["keep"]


def test_a_shard_takes_the_paths_that_are_its_own(inbox_dir: Path) -> None:
    paths = [f"{folder}/{number}" for folder in "ab" for number in range(10)]
    with opened(inbox_dir, shard="1/2") as one, opened(inbox_dir, shard="2/2") as two:
        for path in paths:
            put(one, path)
        found = [[key for key, _ in drain(inbox)] for inbox in (one, two)]
    assert sorted(found[0] + found[1]) == sorted(paths)
    assert all(found)


# --- bounds -------------------------------------------------------------------------------------------


def test_more_folders_than_are_looked_into_are_left_and_that_is_said_once(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subfolders, "MOST", 3)
    for number in range(5):
        put(inbox, f"{number}/x")
    Path(inbox.path, "drop/0/deep").mkdir()
    assert sorted(key for key, _ in drain(inbox)) == ["0/x", "1/x", "2/x"]
    assert drain(inbox) == []
    assert names(inbox, "drop/2") == []
    assert names(inbox, "drop/3") == names(inbox, "drop/4") == ["x"]
    said = [record.getMessage() for record in caplog.records if "subfolders" in record.getMessage()]
    assert len(said) == 1
    assert "3 or more are left until there are fewer" in said[0]
    assert [f.kind for f in examine(inbox.path).findings if f.level == "person"] == ["drop-folders"]
    for number in range(2):
        Path(inbox.path, "drop", str(number + 1)).rmdir()
    assert sorted(key for key, _ in drain(inbox)) == ["3/x", "4/x"]


def test_a_look_that_takes_long_is_followed_by_a_rest(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "_LONG_LOOK", 0.0)
    monkeypatch.setattr(ingesting, "_REST", 1000)
    put(inbox, "a/1")
    ingest(inbox)
    put(inbox, "a/2")
    assert [key for key, _ in drain(inbox)] == ["a/1"]
    assert (inbox.next_look_in() or 0) > 0.005
    monkeypatch.setattr(ingesting, "_REST", 0)
    assert take(inbox, timeout=30).key == "a/2"


# --- what cannot be looked into -----------------------------------------------------------------------


def test_a_folder_that_cannot_be_opened_is_left_and_keeps_nobody(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    put(inbox, "closed/x")
    put(inbox, "open/x")
    with refusing(open=errno.EACCES, when=lambda name, *_: name == "closed"):
        assert [key for key, _ in drain(inbox)] == ["open/x"]
        assert [f.kind for f in examine(inbox.path).findings if f.level == "person"] == ["drop-unread"]
        with pytest.raises(AddFailed, match="Permission denied"):
            inbox.add_bytes("closed/x", b"it may come after this")
    said = [record.getMessage() for record in caplog.records if "look into" in record.getMessage()]
    assert said == ["cannot look into 'closed' now: Permission denied: it stays in drop/ and is tried again"]
    assert [key for key, _ in drain(inbox)] == ["closed/x"]


def test_a_file_whose_folder_cannot_be_opened_when_its_turn_comes_is_left(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    put(inbox, "a/x")
    opens = iter(range(1000))
    with refusing(open=errno.EMFILE, when=lambda name, *_: name == "a" and next(opens) > 0):
        ingest(inbox)
    assert "cannot look at 'a/x' now" in caplog.text
    assert [key for key, _ in drain(inbox)] == ["a/x"]


@AS_ROOT
def test_a_folder_on_another_file_system_is_left(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    mounted = Path(inbox.path, "drop", "mounted")
    mounted.mkdir()
    if os.system(f"mount -t tmpfs none {mounted} 2>/dev/null"):
        pytest.skip("may not mount")
    try:
        (mounted / "x").write_bytes(b"x")
        assert drain(inbox) == []
        assert "it is on another file system than the inbox" in caplog.text
        assert inbox.add_bytes("mounted/x", b"added") == "new"
        assert os.listdir(mounted) == ["x"]
    finally:
        os.system(f"umount {mounted}")


def test_drop_itself_that_cannot_be_listed_is_an_error(inbox: Inbox) -> None:
    with refusing(listdir=errno.EIO), pytest.raises(OSError, match="Input/output error"):
        ingest(inbox)


# --- files of others ----------------------------------------------------------------------------------


def linked(inbox: Inbox, path: str) -> Path:
    """Put a file with a second name there; return that."""
    kept = Path(inbox.path).parent / "kept"
    os.link(put(inbox, path), kept)
    return kept


def test_a_file_with_a_second_name_is_copied_as_elsewhere(inbox: Inbox) -> None:
    kept = linked(inbox, "a/b")
    ingest(inbox)
    kept.write_bytes(b"changed")
    assert drain(inbox) == [("a/b", b"dropped")]
    assert names(inbox, "drop/a") == names(inbox, "tmp") == names(inbox, "failed") == []


def test_a_copied_file_that_goes_with_its_folder_is_not_delivered(inbox: Inbox) -> None:
    kept = linked(inbox, "a/b")
    folder = Path(inbox.path, "drop", "a")
    with meanwhile("fsync", lambda: folder.rename(kept.with_name("elsewhere"))):
        ingest(inbox)
    assert drain(inbox) == []
    assert names(inbox, "tmp") == []
    assert os.listdir(kept.with_name("elsewhere")) == ["b"]


# --- what others do meanwhile -------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["listdir", "lstat", "rename", "fsync", "fstat", "open"])
def test_a_folder_that_is_renamed_before_any_call_delivers_each_file_once(inbox: Inbox, call: str) -> None:
    put(inbox, "a/1")
    put(inbox, "a/2")
    folder = Path(inbox.path, "drop", "a")
    with meanwhile(call, lambda: folder.rename(folder.with_name("b"))):
        found = [key for key, _ in drain(inbox)]
    found += [key for key, _ in drain(inbox)]
    assert len(found) == 2
    assert sorted(key.rpartition("/")[2] for key in found) == ["1", "2"]


def at_call(moment: int, act: Callable[[], object]) -> AbstractContextManager[None]:
    """While this lasts, `act` is done just before that call to the system, counted from 0."""
    calls = itertools.count()

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if next(calls) == moment:
            act()
        return call(*arguments, **more)

    return intercepted(hook)


@pytest.mark.parametrize("moment", range(40))
def test_a_folder_that_goes_at_any_call_takes_its_file_along_or_leaves_it_to_be_delivered(
    inbox: Inbox, moment: int
) -> None:
    folder, outside = put(inbox, "a/1").parent, Path(inbox.path).parent / "gone"
    with at_call(moment, lambda: folder.rename(outside)):
        ingest(inbox)
    assert len(drain(inbox)) + (outside / "1").exists() == 1


# --- killed -------------------------------------------------------------------------------------------


def die_at(path: Path, fatal: int) -> None:
    """Ingest in a process of its own, which ends at that call; with 0 if there was none, and all is done."""
    inbox = opened(path, watch="poll")
    with dying_at(fatal):
        inbox.become_consumer()
        ingest(inbox)
    os._exit(0)


@pytest.mark.parametrize("copied", [False, True])
def test_a_consumer_that_is_killed_at_any_call_delivers_each_once(
    tmp_path: Path, copied: bool, figure: Callable[[str], None]
) -> None:
    import_module("fsinbox.consumer.session")
    kills = 0
    while True:
        path = tmp_path / str(kills) / "inbox"
        path.parent.mkdir()
        with opened(path, watch="poll") as inbox:
            inbox.add_bytes("a/b/2", b"older")
            put(inbox, "a/1")
            put(inbox, "a/b/2")
        if copied:
            os.link(path / "drop/a/1", path.parent / "kept-1")
            os.link(path / "drop/a/b/2", path.parent / "kept-2")
        child = fork.Process(target=die_at, args=(path, kills + 1))
        child.start()
        child.join(20)
        with opened(path, watch="poll") as inbox:
            found = sorted(drain(inbox))
            assert found == [("a/1", b"dropped"), ("a/b/2", b"dropped")], f"killed at call {kills + 1}"
            assert names(inbox, "failed") == names(inbox, "drop/a/b") == []
        if child.exitcode == 0:
            break
        assert child.exitcode == DIED
        kills += 1
    assert kills > 60
    figure(f"{kills} kills, 0 bad")


# --- producers ----------------------------------------------------------------------------------------


def test_an_add_that_begins_later_is_the_newer_value(inbox: Inbox) -> None:
    put(inbox, "a/b", b"older")
    assert inbox.add_bytes("a/b", b"newer") == "replaced"
    assert names(inbox, "drop/a") == []
    assert drain(inbox) == [("a/b", b"newer")]


@pytest.mark.parametrize("scope", ["local", "network"])
def test_many_adds_look_into_subfolders_too(inbox_dir: Path, scope: str) -> None:
    with opened(inbox_dir, scope=scope) as inbox:
        inbox.become_consumer()
        put(inbox, "a/b", b"older")
        added = inbox.add_many([*((f"{number}/x", b"x") for number in range(99)), ("a/b", b"newer")])
        assert (added["new"], added["replaced"]) == (99, 1)
        assert dict(drain(inbox))["a/b"] == b"newer"


def test_an_add_that_keeps_the_first_value_keeps_the_dropped_one(inbox: Inbox) -> None:
    put(inbox, "a/b", b"older")
    assert inbox.add_bytes("a/b", b"newer", if_waiting="keep") == "kept"
    assert drain(inbox) == [("a/b", b"older")]


@pytest.mark.parametrize("key", ["a/../b", "a//b", "/a", "a/", "a/.b", "../b", "a/./b", "a/b/c", "b/b"])
def test_a_key_that_is_no_path_of_a_file_there_has_none(inbox: Inbox, key: str) -> None:
    put(inbox, "a/b")
    put(inbox, "b")
    assert finished_drop(inbox.layout, key) is None


def test_a_key_with_a_slash_costs_an_add_one_look_where_subfolders_are_not_ingested(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        inbox.become_consumer()
        put(inbox, "a/b", b"nobody's")
        looked: list[object] = []

        def hook(
            name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]
        ) -> Any:
            looked.append((name, arguments[0]))
            return call(*arguments, **more)

        with intercepted(hook):
            inbox.add_bytes("a/b", b"added")
        assert ("lstat", "subfolders") in looked
        assert not [what for what in looked if what[1] in ("a", "a/b", "b")]  # type: ignore[index]
        assert names(inbox, "drop/a") == ["b"]


def test_a_link_in_place_of_a_folder_is_not_followed_by_an_add(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/b").write_bytes(b"mine")
    Path(inbox.path, "drop", "a").symlink_to(tmp_path / "outside")
    assert inbox.add_bytes("a/b", b"added") == "new"
    assert (tmp_path / "outside/b").read_bytes() == b"mine"


def test_a_dropped_file_that_goes_before_the_section_is_no_error(inbox: Inbox) -> None:
    folder = put(inbox, "a/b", b"older").parent

    def is_of_drop(source: str, *_: object, **more: object) -> bool:
        return source == "b"

    with meanwhile("rename", lambda: folder.rename(folder.with_name("c")), when=is_of_drop):
        assert inbox.add_bytes("a/b", b"newer") == "replaced"
    assert drain(inbox) == [("a/b", b"newer")]


@pytest.mark.parametrize("moment", range(30))
def test_a_folder_that_goes_at_any_call_of_an_add_takes_its_file_along_or_the_older_value_is_replaced(
    inbox: Inbox, moment: int
) -> None:
    folder = put(inbox, "a/b", b"older").parent
    with at_call(moment, lambda: folder.rename(folder.with_name("c"))):
        inbox.add_bytes("a/b", b"newer")
    assert sorted(drain(inbox)) in ([("a/b", b"newer")], [("a/b", b"newer"), ("c/b", b"older")])


# --- the mark -----------------------------------------------------------------------------------------


def test_the_inbox_says_whether_subfolders_are_ingested(inbox_dir: Path) -> None:
    mark = inbox_dir / "subfolders"
    with opened(inbox_dir) as inbox:
        assert not mark.exists()  # a producer says nothing
        inbox.become_consumer()
        assert stat.S_IMODE(mark.stat().st_mode) == 0o600
    with opened(inbox_dir) as inbox:
        inbox.become_consumer()
    with Inbox(inbox_dir, shard="1/2") as inbox:
        inbox.become_consumer()
        assert mark.exists()  # another part's consumer may want it
    assert not [f for f in examine(inbox_dir).findings if f.kind == "foreign-root"]
    with Inbox(inbox_dir) as inbox:
        inbox.become_consumer()
        assert not mark.exists()


def test_a_mark_that_cannot_be_set_ends_the_consumer_and_frees_its_lock(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        with (
            refusing(open=errno.ENOSPC, when=lambda name, *_: name == "subfolders"),
            pytest.raises(UnusableInbox, match="No space left"),
        ):
            inbox.become_consumer()
        with Inbox(inbox_dir) as other:
            other.become_consumer()


def test_a_mark_that_another_removes_first_is_removed(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        inbox.become_consumer()
    mark = inbox_dir / "subfolders"
    with (
        Inbox(inbox_dir) as inbox,
        meanwhile("unlink", mark.unlink, when=lambda name, *_: name == "subfolders"),
    ):
        inbox.become_consumer()
    assert not mark.exists()


def test_a_repair_does_not_set_subfolders_aside(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        inbox.become_consumer()
        put(inbox, "a/b")
    run("--inbox", inbox_dir, "doctor", "--repair", cwd=inbox_dir.parent)
    assert (inbox_dir / "subfolders").exists()
    with opened(inbox_dir) as inbox:
        assert drain(inbox) == [("a/b", b"dropped")]


# --- who looks ----------------------------------------------------------------------------------------


def test_what_lies_in_subfolders_is_counted(inbox: Inbox) -> None:
    put(inbox, "a/b")
    put(inbox, "a/c.part")
    put(inbox, "d")
    found = summary(inbox.layout)
    assert (found.dropped, found.ignored) == (3, 1)
    assert not_done(inbox.layout, ["a/b", "x"]) == {"a/b"}
    assert inbox.anything()
    (waits,) = [found for found in examine(inbox.path).findings if found.kind == "drop-open"] or [None]
    assert waits is None


def test_a_subfolder_that_is_open_when_the_inbox_is_closed_is_closed_once(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        layout = inbox.layout
        lent = layout.lend(os.open(inbox_dir, os.O_RDONLY))
        fd = layout.folder(lent)
    with open(inbox_dir / "format", "rb") as file:
        os.dup2(file.fileno(), fd)  # another's by now
        layout.take_back(lent)
        os.close(fd)


def test_what_is_remembered_of_names_is_bounded(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignoring, "_MOST_KNOWN", 10)
    ignored = ignoring.looked_up(inbox.layout)
    for number in range(20):
        assert ignored.left([f"{number}.part", f"{number}"]) == [f"{number}"]
        assert len(ignored._known) <= 12


def test_what_goes_while_the_doctor_looks_is_no_finding(inbox: Inbox) -> None:
    dropped = put(inbox, "a/b")
    with meanwhile("open", dropped.unlink, when=lambda name, *_: name == "b"):
        found = [finding.kind for finding in examine(inbox.path).findings]
    assert not [kind for kind in found if kind.startswith("drop")]


# --- waking up ----------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("watch", ["events", "poll"])
def test_arrivals_in_subfolders_wake_an_idle_consumer(inbox_dir: Path, watch: str) -> None:
    with opened(inbox_dir, watch=watch, poll_interval=0.1) as inbox:
        inbox.become_consumer()
        Path(inbox_dir, "drop", "old").mkdir()
        for path in ("old/1", "new/2", "new/deep/er/3", "old/4"):
            timer = threading.Timer(0.3, put, (inbox, path))
            timer.start()
            began = time.monotonic()
            element = take(inbox, timeout=20)
            assert element.key == path
            assert time.monotonic() - began < 5  # (a rescan comes after 30)
            element.ack()
            timer.join()


@linux
@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("moment", range(14))
def test_a_folder_that_is_made_and_filled_at_any_call_of_a_look_is_not_missed(
    inbox: Inbox, moment: int, is_there: bool
) -> None:
    """Before it is listed it is found; after that it is watched, or its parent is."""
    if is_there:
        Path(inbox.path, "drop", "fresh").mkdir()
    with inbox.sleeper.listening() as watching:
        watching.waker.clear()
        with at_call(moment, lambda: put(inbox, "fresh/1")):
            element = inbox.take()
        if not Path(inbox.path, "drop/fresh/1").exists() and element is None:  # a look has fewer calls
            put(inbox, "fresh/1")
        began = time.monotonic()
        while element is None:
            watching.sleep(inbox.sleeper.limit(5.0))
            element = inbox.take()
        assert time.monotonic() - began < 4, "nothing woke it"
        assert element.key == "fresh/1"


@linux
def test_folders_beyond_the_limit_of_watches_are_polled(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from watchdog.observers.inotify_c import InotifyFD

    real = InotifyFD.add_callback

    def refuse(self: InotifyFD, path: bytes, *more: Any) -> Any:
        if len(self._watch_for_wd) >= 3:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return real(self, path, *more)

    monkeypatch.setattr(InotifyFD, "add_callback", refuse)
    for number in range(3):
        Path(inbox.path, "drop", str(number)).mkdir()
    threading.Timer(0.3, put, (inbox, "2/x")).start()
    assert take(inbox, timeout=10).key == "2/x"
    assert "no file system events" in caplog.text


def is_readable(watching: Watch) -> bool:
    """Tell whether something wakes who sleeps here."""
    return bool(select.select(watching.descriptors, [], [], 5)[0])


@linux
def test_a_watched_folder_that_is_removed_is_watched_anew_when_it_is_made_again(inbox: Inbox) -> None:
    folder = Path(inbox.path, "drop", "a")
    with inbox.sleeper.listening() as watching:
        for _ in range(3):
            folder.mkdir()
            assert inbox.take() is None
            watching.noticed()
            put(inbox, "a/x")
            assert is_readable(watching)
            take(inbox, timeout=5).ack()
            watching.noticed()
            folder.rmdir()
            assert is_readable(watching)
            watching.noticed()


# --- from the shell -----------------------------------------------------------------------------------


def test_consume_with_drop_recursive(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        put(inbox, "a/b.pdf")
    words = ("consume", "--drop-recursive", "--drain", "--shell", "--exec", 'echo "$FSINBOX_KEY"')
    assert run("--inbox", inbox_dir, *words, cwd=inbox_dir.parent).stdout == "a/b.pdf\n"


def test_a_variable_sets_it(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        put(inbox, "a/b.pdf")
    words = ("consume", "--drain", "--shell", "--exec", 'echo "$FSINBOX_KEY"')
    done = run("--inbox", inbox_dir, *words, cwd=inbox_dir.parent, FSINBOX_CONSUME_DROP_RECURSIVE="1")
    assert done.stdout == "a/b.pdf\n"
