"""Each step of an element's life: what it does, when the system refuses it, or somebody else does something
just before it.

The calls are the real ones; tests/shim.py stands between, to refuse one, or to let another process's work
come first.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from fsinbox import AddFailed, Element, Inbox, UnusableInbox
from fsinbox.consumer.session import Claim
from fsinbox.operate.steering import Steering
from fsinbox.store import files
from fsinbox.store import transitions as protocol
from fsinbox.store.layout import Layout
from fsinbox.store.names import element_name
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, held, is_free, names, path_of, take


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        yield inbox


@pytest.fixture
def layout(inbox: Inbox) -> Layout:
    return inbox._handle.layout


def drop(inbox: Inbox, elsewhere: Path, key: str) -> Path:
    """Move a file into drop/ that was finished a while ago; return its path there."""
    (elsewhere / key).write_bytes(b"dropped")
    os.utime(elsewhere / key, (1, 1))
    return (elsewhere / key).rename(Path(inbox.path, "drop", key))


# --- a producer ---------------------------------------------------------------------------------------


def test_a_name_in_tmp_that_is_taken_is_not_used(
    inbox: Inbox, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(inbox.path, "tmp", "taken").write_bytes(b"another's")
    given = iter(("taken", "free"))
    monkeypatch.setattr(files, "unused_temporary", lambda layout: next(given))
    inbox.add("a", b"1")
    assert names(inbox, "tmp") == ["taken"]
    assert Path(inbox.path, "tmp", "taken").read_bytes() == b"another's"
    assert drain(inbox) == [("a", b"1")]


def test_a_draft_whose_mode_cannot_be_set_is_removed_again(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, shared=True, codec="bytes") as inbox:
        with refusing(fchmod=errno.EPERM), pytest.raises(AddFailed, match="was not added") as caught:
            inbox.add("a", b"1")
        assert not caught.value.maybe_added
        assert names(inbox, "tmp") == names(inbox, "pending") == []


@pytest.mark.parametrize("call", ["write", "fsync", "flock", "pread", "pwrite", "rename"])
def test_an_add_that_is_refused_before_it_is_visible_was_not_added_and_leaves_nothing(
    inbox: Inbox, call: str
) -> None:
    with refusing(**{call: errno.EIO}), pytest.raises(AddFailed, match="was not added") as caught:
        inbox.add("a", b"1")
    assert not caught.value.maybe_added
    assert names(inbox, "tmp") == names(inbox, "pending") == []
    assert inbox.add("a", b"2") == "new"
    assert drain(inbox) == [("a", b"2")]


def test_an_add_whose_last_flush_is_refused_may_be_delivered_and_says_so(
    inbox: Inbox, layout: Layout
) -> None:
    pending = layout.folder("pending")
    with (
        refusing(fsync=errno.EIO, when=lambda fd: fd == pending),
        pytest.raises(AddFailed, match="may or may not") as caught,
    ):
        inbox.add("a", b"1")
    assert caught.value.maybe_added


def test_what_is_told_is_the_first_error_even_if_the_draft_cannot_be_removed_either(inbox: Inbox) -> None:
    with refusing(write=errno.ENOSPC, unlink=errno.EROFS), pytest.raises(AddFailed) as caught:
        inbox.add("a", b"1")
    assert caught.value.errno == errno.ENOSPC
    assert len(names(inbox, "tmp")) == 1  # the consumer sweeps it


def test_a_drive_that_needs_a_full_flush_gets_one(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fcntl, "F_FULLFSYNC", fcntl.F_GETFD, raising=False
    )  # macOS has it; this one is harmless
    calls = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append((name, *arguments[1:2]))
        return call(*arguments, **more)

    with intercepted(note):
        inbox.add("a", b"1")
    assert calls.count(("fcntl", fcntl.F_GETFD)) == 2
    assert not any(name == "fsync" for name, *_ in calls)


def test_a_flush_of_many_that_fails_says_why() -> None:
    layout: Any = SimpleNamespace(folder=lambda name: -1)
    with pytest.raises(OSError) as caught:
        files.flush_all(layout, "tmp", list("abcdef"))
    assert caught.value.errno == errno.EBADF


def test_a_flush_of_few_passes_over_what_is_gone(inbox: Inbox, layout: Layout) -> None:
    Path(inbox.path, "drop", "there").write_bytes(b"")
    flushed = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "fsync":
            flushed.append(arguments)
        return call(*arguments, **more)

    with intercepted(note):
        files.flush_all(layout, "drop", ["gone", "there"])
    assert len(flushed) == 1


def test_a_batch_of_which_one_is_refused_leaves_no_draft(inbox: Inbox) -> None:
    inbox.add("z", b"1")
    done = 0

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        nonlocal done
        done += name == "rename"
        if name == "rename" and done == 2:
            raise OSError(errno.ENOSPC, "no space")
        return call(*arguments, **more)

    with intercepted(hook), pytest.raises(AddFailed, match="may or may not") as caught:
        inbox.add_many([("a", b"1"), ("b", b"1"), ("c", b"1")])
    assert caught.value.maybe_added
    assert names(inbox, "tmp") == []
    assert is_free(inbox.path)
    assert drain(inbox) == [("z", b"1"), ("a", b"1")]


# --- the section --------------------------------------------------------------------------------------

IN_SECTION = {"add", "add_many", "requeue", "defer", "fail", "due", "coalesce", "ingest", "retry"}
"""Of the steps below, those that happen inside the section."""


def steps(inbox: Inbox, tmp_path: Path) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return step -> (what comes before, the step)."""

    def waiting() -> None:
        drain(inbox)
        inbox.add("a", b"1")
        inbox.add("b", b"1")

    def taken() -> None:
        waiting()
        take(inbox)

    def due() -> None:
        taken()
        claim_of(inbox).requeue(0.000_001, counted=True)
        path_of(inbox, "pending", "b").unlink()

    def failed() -> None:
        for path in Path(inbox.path, "failed").iterdir():
            path.unlink()
        taken()
        claim_of(inbox).fail("no")

    def twice() -> None:
        taken()
        claim_of(inbox).acknowledge()
        second_place(inbox, "b", b"2")
        assert inbox._taking().consumer
        inbox._taking().consumer.listing.stale = True

    def retry() -> None:
        with Steering(inbox.path) as steering:
            (row,) = steering.rows(("failed",))
            assert steering.retry(row) == "queued"

    return {
        "add": (waiting, lambda: inbox.add("c", b"1")),
        "add_many": (waiting, lambda: inbox.add_many([(key, b"1") for key in "cdefgh"])),
        "take": (waiting, inbox.take),
        "ack": (taken, lambda: claim_of(inbox).acknowledge()),
        "requeue": (taken, lambda: claim_of(inbox).requeue(counted=True)),
        "defer": (taken, lambda: claim_of(inbox).requeue(0.000_001, counted=True)),
        "fail": (taken, lambda: claim_of(inbox).fail("no")),
        "due": (due, lambda: take(inbox).ack()),
        "coalesce": (twice, lambda: take(inbox).ack()),
        "ingest": (lambda: (drain(inbox), drop(inbox, tmp_path, "d")), lambda: take(inbox).ack()),
        "retry": (failed, retry),
    }


def claim_of(inbox: Inbox) -> Claim:
    (claim,) = inbox._taking().claims.values()
    return claim


@pytest.mark.parametrize("step", [*sorted(IN_SECTION), "take", "ack"])
def test_a_section_waits_for_no_disk_and_reads_no_payload(inbox: Inbox, tmp_path: Path, step: str) -> None:
    """Others wait for its lock meanwhile. And what may have to happen inside it does, but for takes and
    acknowledgements."""
    before, do = steps(inbox, tmp_path)[step]
    before()
    inside = False
    calls: list[str] = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        nonlocal inside
        result = call(*arguments, **more)
        if name == "flock":
            inside = bool(arguments[1] & fcntl.LOCK_EX)
        elif inside:
            calls.append(name)
        return result

    with intercepted(note):
        do()
    assert bool(calls) == (step in IN_SECTION)
    assert not {"fsync", "syncfs", "read", "write", "posix_fallocate"} & set(calls)
    assert ("listdir" in calls) == (step == "retry")  # of inflight/ and deferred/, for what people bring back
    moved = calls.count("rename")
    assert moved == (6 if step == "add_many" else 1 if step in IN_SECTION else 0)
    assert len(calls) < (30 if step == "retry" else 12 * moved + 1)


@pytest.mark.parametrize("step", ["take", "ack"])
def test_a_take_and_its_acknowledgement_need_no_lock(inbox: Inbox, tmp_path: Path, step: str) -> None:
    before, do = steps(inbox, tmp_path)[step]
    before()
    with held(inbox.path), refusing_nothing("flock"):
        do()


@contextmanager
def refusing_nothing(call: str) -> Iterator[None]:
    """While this lasts, the call must not be made."""

    def hook(name: str, do: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        assert name != call
        return do(*arguments, **more)

    with intercepted(hook):
        yield


def added_by_another(inbox: Inbox, key: str, data: bytes) -> Callable[[], None]:
    """Return what has another thread add, by an Inbox of its own, and waits for that."""

    def add() -> None:
        with Inbox(inbox.path, codec="bytes") as other:
            thread = Thread(target=other.add, args=(key, data))
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

    return add


def test_a_value_that_lands_at_the_very_place_of_what_is_just_taken_follows_it(inbox: Inbox) -> None:
    """Its producer found the place just before the take, and publishes just after it."""
    inbox.add("a", b"1")
    inbox.add("b", b"1")
    assert inbox.take(0) is not None
    inbox.rollback()
    name = path_of(inbox, "pending", "a").name
    taken: list[Element] = []
    with meanwhile("rename", lambda: taken.append(take(inbox)), when=lambda old, new, **_: new == name):
        assert Inbox(inbox.path, codec="bytes").add("a", b"2") == "replaced"
    assert taken[0].data == b"1"
    assert taken[0].superseded()
    assert taken[0].nack() is False
    assert sorted(drain(inbox)) == [("a", b"2"), ("b", b"1")]


def test_two_producers_of_a_key_publish_one_after_the_other(inbox: Inbox) -> None:
    """The second waits for the first, from before it found its place."""
    inbox.add("a", b"1")
    second = Thread(target=added_by_another(inbox, "a", b"3"))

    def come() -> None:
        second.start()
        second.join(0.1)
        assert second.is_alive()

    with meanwhile("rename", come, when=lambda old, new, **_: new.endswith("-a")):
        inbox.add("a", b"2")
    second.join(20)
    assert drain(inbox) == [("a", b"3")]


def test_a_draft_that_was_removed_by_hand_is_an_error(inbox: Inbox) -> None:
    def remove() -> None:
        for path in Path(inbox.path, "tmp").iterdir():
            path.unlink()

    with meanwhile("flock", remove), pytest.raises(AddFailed, match="was not added") as caught:
        inbox.add("a", b"1")
    assert not caught.value.maybe_added
    assert drain(inbox) == []


# --- take ---------------------------------------------------------------------------------------------


def test_what_is_removed_by_hand_just_before_it_is_taken_is_passed_over(inbox: Inbox) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    inbox.wait()
    with meanwhile(
        "rename", path_of(inbox, "pending", "a").unlink, when=lambda name, *_: name.endswith("-a")
    ):
        assert drain(inbox) == [("b", b"1")]


def test_what_is_removed_by_hand_just_after_it_is_taken_is_passed_over(inbox: Inbox) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    name = path_of(inbox, "pending", "a").name
    taken = Path(inbox.path, "inflight", name)

    def removed_once_taken(path: str) -> bool:
        return path == name and taken.exists()

    with meanwhile("lstat", taken.unlink, when=removed_once_taken):
        assert drain(inbox) == [("b", b"1")]


def test_a_directory_where_an_element_goes_is_set_aside(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    assert inbox.wait(0)
    element = path_of(inbox, "pending", "a")
    assert inbox._taking()._consume()
    Path(inbox.path, "inflight", element.name).mkdir()
    assert drain(inbox) == [("a", b"1")]
    assert [name[20:] for name in names(inbox, "failed")] == ["a", "a~reason.txt"]


def test_a_deferred_element_that_is_removed_by_hand_is_passed_over(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    take(inbox).nack(delay=0.001)
    inbox.add("b", b"1")
    path_of(inbox, "deferred", "a").unlink()
    assert drain(inbox) == [("b", b"1")]


def test_a_deferred_element_that_is_removed_by_hand_is_superseded_all_the_same(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    take(inbox).nack(delay=3600)
    path_of(inbox, "deferred", "a").unlink()
    inbox.add("a", b"2")
    assert drain(inbox) == [("a", b"2")]


# --- requeue ------------------------------------------------------------------------------------------


def test_a_value_that_comes_just_before_the_older_is_requeued_stays(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    with meanwhile("flock", added_by_another(inbox, "a", b"2")):
        assert element.nack() is False
    assert names(inbox, "inflight") == []
    assert drain(inbox) == [("a", b"2")]


def test_a_value_at_the_very_place_of_one_that_goes_back_stays(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    Path(inbox.path, "pending", element_name(element.seq, "a")).write_bytes(b"2")
    assert element.nack() is False
    assert drain(inbox) == [("a", b"2")]


@pytest.mark.parametrize("end", ["nack", "defer", "fail"])
def test_what_a_newer_value_supersedes_is_dropped_only_when_that_is_flushed(
    inbox: Inbox, layout: Layout, end: str
) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    inbox.add("a", b"2")
    pending = layout.folder("pending")
    calls: list[str] = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if (name == "fsync" and arguments[0] == pending) or (
            name == "unlink" and arguments[0].endswith("-a")
        ):
            calls.append(name)
        return call(*arguments, **more)

    with intercepted(note):
        assert (
            element.nack(3600) if end == "defer" else getattr(element, end)(*["no"] * (end == "fail"))
        ) is False
    assert calls[:2] == ["fsync", "unlink"]
    assert names(inbox, "deferred") == names(inbox, "failed") == names(inbox, "inflight") == []
    assert drain(inbox) == [("a", b"2")]


def test_a_deferred_element_goes_when_a_newer_value_is_taken_and_before_anybody_sees_that(
    inbox: Inbox, layout: Layout
) -> None:
    inbox.add("a", b"1")
    take(inbox).nack(3600)
    inbox.add("a", b"2")
    folders = {layout.folder(name): name for name in ("pending", "inflight", "deferred")}
    calls: list[str] = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "fsync":
            calls.append(folders[arguments[0]])
        elif name in ("rename", "unlink"):
            calls.append(name)
        return call(*arguments, **more)

    with intercepted(note):
        assert take(inbox).data == b"2"
    assert calls[-6:] == [
        "rename",
        "pending",
        "inflight",
        "unlink",
        "deferred",
        "unlink",
    ]  # (the last: its attempts)
    assert names(inbox, "deferred") == []


def test_a_second_element_of_a_key_is_only_taken_when_the_end_of_the_first_is_flushed(
    inbox: Inbox, layout: Layout
) -> None:
    inbox.add("a", b"1")
    take(inbox).ack()
    inbox.add("a", b"2")
    folders = {layout.folder(name): name for name in ("pending", "inflight", "deferred")}
    calls: list[str] = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name in ("fsync", "rename"):
            calls.append(folders.get(arguments[0], name))
        return call(*arguments, **more)

    with intercepted(note):
        take(inbox).ack()
    assert calls == ["pending", "inflight", "deferred", "rename"]


def test_what_cannot_be_requeued_stays_in_flight_and_is_tried_again(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    name = element_name(element.seq, "a")
    with refusing(rename=errno.EIO, when=lambda path, *_: path == name):
        with pytest.raises(UnusableInbox, match="stays in flight"):
            element.nack()
        with pytest.raises(UnusableInbox, match="cannot requeue what is in flight"):
            inbox.close()
    with Inbox(inbox.path, codec="bytes") as again:
        assert names(again, "inflight") == [name]
        assert drain(again) == [("a", b"1")]
        assert names(again, "inflight") == []


# --- give up ------------------------------------------------------------------------------------------


def test_a_directory_where_a_failed_element_goes_does_not_keep_it(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    Path(inbox.path, "failed", element_name(element.seq, "a")).mkdir()
    assert element.fail("no") is True
    files = [path for path in Path(inbox.path, "failed").iterdir() if path.is_file() and "~" not in path.name]
    assert [path.read_bytes() for path in files] == [b"1"]


def test_a_full_disk_keeps_no_element_from_being_given_up(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    with refusing(write=errno.ENOSPC):
        assert element.fail("no") is True
    assert names(inbox, "failed") == [element_name(element.seq, "a")]


def test_an_element_that_is_gone_leaves_no_reason_when_it_is_given_up(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    path_of(inbox, "inflight", "a").unlink()
    with refusing(write=errno.ENOSPC):
        assert element.fail("no") is False
    assert names(inbox, "failed") == []


# --- coalesce, and drops ------------------------------------------------------------------------------


def second_place(inbox: Inbox, key: str, data: bytes) -> Path:
    """Give a key another place, above its own, as if it was not known in the index."""
    number = inbox._handle.index.locked(inbox._handle.index._give_out, 1)
    path = Path(inbox.path, "pending", element_name(number, key))
    path.write_bytes(data)
    return path


def test_a_place_that_goes_while_it_is_coalesced_is_passed_over(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    higher = second_place(inbox, "a", b"2")
    with meanwhile("rename", higher.unlink, when=lambda name, *_: name == higher.name):
        assert drain(inbox) == [("a", b"1")]


def test_three_places_are_coalesced_from_the_bottom_up_with_a_flush_in_between(
    inbox: Inbox, layout: Layout
) -> None:
    assert inbox.take() is None
    inbox.add("a", b"1")
    lowest = path_of(inbox, "pending", "a").name
    places = [lowest, *(second_place(inbox, "a", data).name for data in (b"2", b"3"))]
    pending = layout.folder("pending")
    calls = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "rename" or (name == "fsync" and arguments[0] == pending):
            calls.append((name, *arguments) if name == "rename" else name)
        return call(*arguments, **more)

    with intercepted(note):
        element = take(inbox)
    assert calls[:3] == [("rename", places[1], lowest), "fsync", ("rename", places[2], lowest)]
    assert element.data == b"3"
    element.ack()
    assert names(inbox, "pending") == []


def test_a_drop_that_goes_just_before_it_is_moved_is_passed_over(inbox: Inbox, tmp_path: Path) -> None:
    dropped = drop(inbox, tmp_path, "a")
    with meanwhile("rename", dropped.unlink, when=lambda name, *_: name == "a"):
        assert drain(inbox) == []
    assert inbox.add("a", b"1") == "new"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_any_more_is_not_read(inbox: Inbox, kind: str) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    path = Path(element.path)
    path.unlink()
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        element.data  # noqa: B018
    path.unlink() if kind == "fifo" else path.rmdir()


def test_a_link_is_not_read_through(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    inbox.add("a", b"1")
    element = take(inbox)
    path = Path(element.path)
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic link"):
        element.data  # noqa: B018


def test_what_is_taken_just_while_a_person_brings_back_an_older_one_is_newer(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", b"older")
    older = take(inbox)
    older.fail("no")
    inbox.add("a", b"newer")
    looks = protocol.newer_waits

    def after_it_is_taken(*arguments: Any) -> bool:
        take(inbox)
        return looks(*arguments)

    with Inbox(inbox.path) as other:
        monkeypatch.setattr(protocol, "newer_waits", after_it_is_taken)
        failed = "failed", element_name(older.seq, "a"), older.seq, "a"
        outcome = other._handle.index.locked(
            protocol.return_to_place, other._handle.layout, other._handle.index, *failed
        )
    assert outcome == "newer"
