"""Each step of an element's life, when the system refuses it, or when somebody else does something just before it.

The calls are the real ones; tests/shim.py stands between, to refuse one, or to let another process's work come first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox, UnusableInbox, protocol
from fsinbox.layout import Layout
from fsinbox.names import element_name
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, path_of, take


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        yield inbox


@pytest.fixture
def layout(inbox: Inbox) -> Layout:
    return inbox._layout


def drop(inbox: Inbox, elsewhere: Path, key: str) -> Path:
    """Move a file into drop/ that was finished a while ago; return its path there."""
    (elsewhere / key).write_bytes(b"dropped")
    os.utime(elsewhere / key, (1, 1))
    return (elsewhere / key).rename(Path(inbox.path, "drop", key))


# --- a producer --------------------------------------------------------------------------------------------------


def test_a_name_in_tmp_that_is_taken_is_not_used(inbox: Inbox, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(inbox.path, "tmp", "taken").write_bytes(b"another's")
    given = iter(("taken", "free"))
    monkeypatch.setattr(protocol, "unused_temporary", lambda layout: next(given))
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


@pytest.mark.parametrize("call", ["write", "fsync", "readlink", "symlink", "rename"])
def test_an_add_that_is_refused_before_it_is_visible_was_not_added_and_leaves_nothing(inbox: Inbox, call: str) -> None:
    with refusing(**{call: errno.EIO}), pytest.raises(AddFailed, match="was not added") as caught:
        inbox.add("a", b"1")
    assert not caught.value.maybe_added
    assert names(inbox, "tmp") == names(inbox, "pending") == []
    assert inbox.add("a", b"2") == "new"
    assert drain(inbox) == [("a", b"2")]


def test_an_add_whose_last_flush_is_refused_may_be_delivered_and_says_so(inbox: Inbox, layout: Layout) -> None:
    pending = layout.folder("pending")
    with refusing(fsync=errno.EIO, when=lambda fd: fd == pending), pytest.raises(AddFailed, match="may or may not") as caught:
        inbox.add("a", b"1")
    assert caught.value.maybe_added


def test_what_is_told_is_the_first_error_even_if_the_draft_cannot_be_removed_either(inbox: Inbox) -> None:
    with refusing(write=errno.ENOSPC, unlink=errno.EROFS), pytest.raises(AddFailed) as caught:
        inbox.add("a", b"1")
    assert caught.value.errno == errno.ENOSPC
    assert len(names(inbox, "tmp")) == 1  # the consumer sweeps it


def test_a_drive_that_needs_a_full_flush_gets_one(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", fcntl.F_GETFD, raising=False)  # macOS has it; this one is harmless
    calls = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append((name, *arguments[1:2]))
        return call(*arguments, **more)

    with intercepted(note):
        inbox.add("a", b"1")
    assert calls.count(("fcntl", fcntl.F_GETFD)) == 2
    assert not any(name == "fsync" for name, *_ in calls)


def test_a_flush_of_many_that_fails_says_why() -> None:
    with pytest.raises(OSError) as caught:
        protocol.flush_all(SimpleNamespace(folder=lambda name: -1), "tmp", list("abcdef"))  # type: ignore[arg-type]
    assert caught.value.errno == errno.EBADF


def test_a_flush_of_few_passes_over_what_is_gone(inbox: Inbox, layout: Layout) -> None:
    Path(inbox.path, "drop", "there").write_bytes(b"")
    flushed = []

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "fsync":
            flushed.append(arguments)
        return call(*arguments, **more)

    with intercepted(note):
        protocol.flush_all(layout, "drop", ["gone", "there"])
    assert len(flushed) == 1


def test_a_batch_of_which_one_is_refused_leaves_no_draft(inbox: Inbox) -> None:
    done = 0

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        nonlocal done
        done += name == "symlink"
        if name == "symlink" and done == 2:
            raise OSError(errno.ENOSPC, "no space")
        return call(*arguments, **more)

    with intercepted(hook), pytest.raises(AddFailed, match="may or may not") as caught:
        inbox.add_many([("a", b"1"), ("b", b"1"), ("c", b"1")])
    assert caught.value.maybe_added
    assert names(inbox, "tmp") == []
    assert drain(inbox) == [("a", b"1")]


# --- a producer that was paused ----------------------------------------------------------------------------------


def paused(acts: dict[str, Callable[[], object]]) -> Callable[..., Any]:
    """Return a hook that does each act once, just before the first call of its name, in that order."""
    waiting = list(acts.items())

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if waiting and waiting[0][0] == name:
            waiting.pop(0)[1]()
        return call(*arguments, **more)

    return hook


@pytest.mark.parametrize("when", ["flock", "symlink"])
def test_a_value_that_is_taken_while_it_is_confirmed_leaves_no_hint(inbox: Inbox, when: str) -> None:
    """Its place had been given up, and the consumer has it before, or just when, the key is given a place above it."""
    inbox.add("a", b"1")
    place = path_of(inbox, "pending", "a")
    hint = Path(inbox.path, "keys", "a")
    acts: dict[str, Callable[[], object]] = {"rename": hint.unlink, when: place.unlink}
    with intercepted(paused(acts)):
        inbox.add("a", b"2")
    assert names(inbox, "keys") == names(inbox, "pending") == []
    assert inbox.add("a", b"3") == "new"


def test_a_dropped_file_that_is_taken_as_soon_as_it_is_adopted_leaves_no_hint(inbox: Inbox, tmp_path: Path) -> None:
    assert inbox.take() is None
    drop(inbox, tmp_path, "a")

    def gone() -> None:
        for path in Path(inbox.path, "pending").iterdir():
            path.unlink()

    assert inbox._consumer
    with intercepted(paused({"rename": lambda: None, "symlink": lambda: None, "lstat": gone})):
        inbox._consumer.drops.adopt()
    assert names(inbox, "keys") == names(inbox, "pending") == []


# --- hints -------------------------------------------------------------------------------------------------------


def test_a_hint_of_an_earlier_boot_counts_if_its_element_is_there(inbox: Inbox) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    hint = Path(inbox.path, "keys", "a")
    number = os.readlink(hint).partition(".")[0]
    hint.unlink()
    hint.symlink_to(f"{number}.another")
    assert inbox.add("a", b"2") == "replaced"
    assert os.readlink(hint) == f"{number}.{inbox._sequence.boot}"
    assert drain(inbox) == [("a", b"2"), ("b", b"1")]


def test_a_hint_above_every_number_given_out_does_not_count_for_a_drop(inbox: Inbox, tmp_path: Path) -> None:
    inbox.add("z", b"1")
    Path(inbox.path, "keys", "a").symlink_to(f"8888888888888888888.{inbox._sequence.boot}")
    drop(inbox, tmp_path, "a")
    assert drain(inbox) == [("z", b"1"), ("a", b"dropped")]


def test_a_directory_in_place_of_a_hint_is_set_aside(inbox: Inbox) -> None:
    Path(inbox.path, "keys", "a").mkdir()
    assert inbox.add("a", b"1") == "new"
    assert [name[20:] for name in names(inbox, "failed")] == ["a", "a~reason.txt"]
    assert drain(inbox) == [("a", b"1")]


def test_a_directory_in_place_of_a_hint_that_is_removed_meanwhile_is_no_error(inbox: Inbox) -> None:
    hint = Path(inbox.path, "keys", "a")
    hint.mkdir()
    looks = iter((False, True))  # the first look is for a drop of that name
    with meanwhile("lstat", hint.rmdir, when=lambda name: name == "a" and next(looks)):
        inbox.add("a", b"1")
    assert drain(inbox) == [("a", b"1")]
    assert names(inbox, "failed") == []


def test_a_hint_that_may_not_be_removed_is_an_error_not_a_directory(inbox: Inbox) -> None:
    Path(inbox.path, "keys", "a").symlink_to("damaged")
    with refusing(unlink=errno.EACCES, when=lambda name: name == "a"), pytest.raises(AddFailed, match="Permission denied"):
        inbox.add("a", b"1")
    assert names(inbox, "keys") == ["a"]
    assert names(inbox, "failed") == []


def test_a_hint_is_only_withdrawn_if_it_still_says_what_was_wrong(inbox: Inbox, layout: Layout) -> None:
    hint = Path(inbox.path, "keys", "a")
    assert protocol.withdraw_hint(layout, "a", "wrong") is False
    hint.symlink_to("right by now")
    assert protocol.withdraw_hint(layout, "a", "wrong") is False
    assert os.readlink(hint) == "right by now"
    assert protocol.withdraw_hint(layout, "a", "right by now") is True
    assert names(inbox, "keys") == []


# --- take --------------------------------------------------------------------------------------------------------


def test_what_is_removed_by_hand_just_before_it_is_taken_is_passed_over(inbox: Inbox) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    inbox.wait()
    with meanwhile("rename", path_of(inbox, "pending", "a").unlink, when=lambda name, *_: name.endswith("-a")):
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
    assert inbox._consume()
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


# --- put back ----------------------------------------------------------------------------------------------------


def test_a_value_that_lands_while_the_older_is_put_back_stays(inbox: Inbox) -> None:
    """By a producer that had read the hint before the take: at the very place that the older one goes back to."""
    inbox.add("a", b"1")
    element = take(inbox)
    place = Path(inbox.path, "pending", element_name(element.seq, "a"))
    with meanwhile("link", lambda: place.write_bytes(b"2")):
        assert element.nack() is False
    assert drain(inbox) == [("a", b"2")]


def test_a_put_back_that_was_cut_short_is_finished_at_the_next_start(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    name = element_name(element.seq, "a")
    with refusing(unlink=errno.EIO, when=lambda path: path == name), pytest.raises(UnusableInbox, match="comes back"):
        element.nack()
    assert names(inbox, "pending") == names(inbox, "inflight") == [name]
    with pytest.raises(UnusableInbox), refusing(unlink=errno.EIO, when=lambda path: path == name):
        inbox.close()
    with Inbox(inbox.path, codec="bytes") as again:
        assert drain(again) == [("a", b"1")]
        assert names(again, "inflight") == []


def test_an_element_with_both_names_of_a_half_done_put_back_is_taken_once(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    assert inbox._consume()
    waiting = path_of(inbox, "pending", "a")
    os.link(waiting, Path(inbox.path, "inflight", waiting.name))
    assert drain(inbox) == [("a", b"1")]
    assert names(inbox, "inflight") == names(inbox, "pending") == []


@pytest.mark.parametrize("newer", [False, True])
def test_where_a_link_is_refused_an_element_is_put_back_by_a_rename_that_replaces_nothing(inbox: Inbox, newer: bool) -> None:
    inbox.add("a", b"1")
    element = take(inbox)
    place = Path(inbox.path, "pending", element_name(element.seq, "a"))

    def land(*_: object, **__: object) -> bool:
        if newer:
            place.write_bytes(b"2")
        return True

    with refusing(link=errno.EPERM, when=land):
        assert element.nack() is not newer
    assert names(inbox, "inflight") == []
    assert drain(inbox) == [("a", b"2" if newer else b"1")]


def test_a_rename_that_may_not_replace_says_why_it_cannot(layout: Layout) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        protocol.rename_if_free(layout, "n" * 300)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert not protocol.rename_if_free(layout, "removed by hand")


def test_where_there_is_no_such_rename_it_is_an_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())  # macOS's C library has none
    with pytest.raises(OSError, match="cannot be put back on this system"):
        protocol.rename_if_free(layout, "any")


# --- give up -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("remove", [protocol.drop_late, protocol.acknowledge, protocol.drop_deferred])
def test_what_is_gone_is_as_removed_as_it_can_be(layout: Layout, remove: Callable[[Layout, str], None]) -> None:
    remove(layout, element_name(1, "gone"))
    protocol.remove_leftover(layout, "tmp", "gone")
    assert layout.names("tmp") == layout.names("pending") == layout.names("inflight") == layout.names("deferred") == []


# --- fold, and drops ---------------------------------------------------------------------------------------------


def second_place(inbox: Inbox, key: str, data: bytes) -> Path:
    """Give a key another place, above its own, as a producer that was paused does."""
    with inbox._sequence as sequence:
        number = sequence.advance(sequence.read()[0])
    path = Path(inbox.path, "pending", element_name(number, key))
    path.write_bytes(data)
    return path


def test_a_place_that_goes_while_it_is_folded_is_passed_over(inbox: Inbox) -> None:
    inbox.add("a", b"1")
    higher = second_place(inbox, "a", b"2")
    with meanwhile("rename", higher.unlink, when=lambda name, *_: name == higher.name):
        assert drain(inbox) == [("a", b"1")]


def test_three_places_are_folded_from_the_bottom_up_with_a_flush_in_between(inbox: Inbox, layout: Layout) -> None:
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
