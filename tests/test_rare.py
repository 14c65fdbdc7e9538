"""What happens rarely, to a line of the core: each is brought about here, and what must hold then is looked
at."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsinbox import Inbox, UnusableInbox, WrongState
from fsinbox.consumer.ownership import ConsumerLock
from fsinbox.store import files
from fsinbox.store import transitions as protocol
from fsinbox.store.index import Index
from fsinbox.store.lines import HEADER, LINE, header_line, read_header
from fsinbox.store.names import element_name
from fsinbox.store.transfer import Source
from tests.helpers import wait_until
from tests.shim import intercepted, refusing


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="text", max_inflight=2) as inbox:
        yield inbox


@contextmanager
def held(inbox: Inbox) -> Iterator[None]:
    """While this lasts, somebody else has the lock."""
    with Path(inbox.path, "index").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def blank(inbox: Inbox) -> None:
    """Have the index forget all places."""
    with Path(inbox.path, "index").open("r+b") as file:
        _, _, lines = read_header(file.read(HEADER))
        file.write(bytes(lines * LINE))


def names(inbox: Inbox, folder: str) -> list[str]:
    return sorted(os.listdir(os.path.join(inbox.path, folder)))


# --- the consumer -------------------------------------------------------------------------------------


def test_a_number_nobody_gave_out_waits_for_the_lock(inbox: Inbox) -> None:
    inbox.add("a", "1")
    forged = element_name(int(names(inbox, "pending")[0][:19]) + 10**15, "b")
    Path(inbox.path, "pending", forged).write_text("2")
    with held(inbox):
        element = inbox.take()
        assert element and element.key == "a"
        assert inbox.take() is None
        assert forged in names(inbox, "pending")
    other = inbox.take(timeout=5)
    assert other and other.key == "b" and other.seq < int(forged[:19])


def test_a_last_number_that_was_set_back_is_mended_by_what_the_index_itself_names(
    inbox: Inbox, inbox_dir: Path
) -> None:
    inbox.add("a", "1")
    with (inbox_dir / "index").open("r+b") as file:
        last, tag, lines = read_header(file.read(HEADER))
        file.seek(0)
        file.write(header_line(last - 10, tag, lines))
    with Inbox(inbox_dir, codec="text") as other:  # which has not seen the later one
        element = other.take()
        assert element and (element.value, element.seq) == ("1", last)


def test_two_places_of_a_key_are_delivered_in_order_while_the_lock_is_not_to_be_had(inbox: Inbox) -> None:
    for value in "12":
        inbox.add("a", value)
        blank(inbox)
    assert len(names(inbox, "pending")) == 2
    with held(inbox):
        first = inbox.take()
        assert first and first.value == "1"
        first.ack()
    second = inbox.take()
    assert second and second.value == "2"


def test_an_end_that_was_done_already_is_done(inbox: Inbox) -> None:
    inbox.add("a", "1")
    element = inbox.take()
    consumer = inbox._taking().consumer
    assert element and consumer
    consumer.acknowledge(element._claim.taken)
    consumer.acknowledge(element._claim.taken)
    inbox.close()  # the element is not ended, and has nothing to go back
    assert names(inbox, "inflight") == names(inbox, "pending") == []


def test_of_a_deferred_element_that_was_removed_nothing_is_left(inbox: Inbox) -> None:
    inbox.become_consumer()
    assert (
        inbox._taking().consumer
        and inbox._taking().consumer.recovery.left_of(f"{10**18:019d}-{10**18:019d}-a") == 0
    )


def test_a_note_that_was_removed_by_hand_is_forgotten(inbox: Inbox) -> None:
    inbox.add("a", "1")
    for _ in range(2):
        element = inbox.take()
        assert element
        element.nack()
    (note,) = names(inbox, "attempts")
    os.unlink(os.path.join(inbox.path, "attempts", note))
    element = inbox.take()
    assert element and element.attempts == 3
    element.ack()
    assert names(inbox, "inflight") == names(inbox, "pending") == []


def test_a_directory_in_the_way_keeps_an_element_in_flight(inbox: Inbox) -> None:
    inbox.add("a", "1")
    element = inbox.take()
    assert element
    name = element._claim.taken.name
    Path(inbox.path, "deferred", f"{10**18:019d}-{name}").mkdir()
    with pytest.raises(IsADirectoryError):
        inbox._handle.index.locked(
            protocol.go_back,
            inbox._handle.layout,
            inbox._handle.index,
            name,
            "deferred",
            f"{10**18:019d}-{name}",
        )
    assert names(inbox, "inflight") == [name]


def test_what_is_retried_gives_way_to_a_newer_one_that_was_taken_just_then(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", "1")
    element = inbox.take()
    assert element and element.fail("no")
    answers = iter([False, True])
    monkeypatch.setattr(protocol, "_newer_is_held", lambda *_: next(answers))
    step = protocol.return_to_place
    outcome = inbox._handle.index.locked(
        step, inbox._handle.layout, inbox._handle.index, "failed", element._claim.taken.name, element.seq, "a"
    )
    assert outcome == "newer" and element._claim.taken.name in names(inbox, "failed")


# --- signals and threads ------------------------------------------------------------------------------


def test_an_element_that_was_not_handed_over_is_requeued(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", "1")
    end, ended = inbox._handle.end, []

    def interrupted(call: object) -> None:
        end(call)
        if not ended:
            ended.append(call)
            raise KeyboardInterrupt

    monkeypatch.setattr(inbox._handle, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inbox.take()
    assert names(inbox, "inflight") == [] and len(names(inbox, "pending")) == 1
    element = inbox.take()
    assert element and (element.value, element.attempts) == ("1", 1)


@pytest.mark.parametrize("made", ["fsinbox.inbox.Element", "fsinbox.consumer.session.Claim"])
def test_an_element_that_was_only_just_taken_is_requeued(
    inbox: Inbox, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", "1")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, interrupted)
        with pytest.raises(KeyboardInterrupt):
            inbox.take()
    assert names(inbox, "inflight") == [] and len(names(inbox, "pending")) == 1
    assert inbox.take()


@pytest.mark.parametrize("times", [3, 1000])
def test_the_lock_is_left_whatever_signals_come(
    inbox: Inbox, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", "1")
    leave, left = Index._leave, []

    def interrupted(index: Index, here: Any) -> None:
        left.append(here)
        if len(left) <= times:
            raise KeyboardInterrupt
        leave(index, here)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_leave", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inbox.add("a", "2")
    if (
        times == 1000
    ):  # a hundred signals in a row: given up, and said by the next call, which does not wait for ever
        with pytest.raises(WrongState):
            inbox.add("a", "3")
        leave(inbox._handle.index, left[0])
    assert inbox.add("a", "4") == "replaced"


def test_a_take_that_waited_for_another_thread_finds_the_inbox_closed(inbox: Inbox) -> None:
    inbox.add("a", "1")
    raised: list[BaseException] = []

    def take() -> None:
        try:
            inbox.take()
        except WrongState as error:
            raised.append(error)

    thread = threading.Thread(target=take)
    with inbox._taking()._mutex:
        thread.start()
        wait_until(lambda: len(inbox._handle._calls) == 1)
        inbox._handle.closed = True
    thread.join()
    inbox._handle.closed = False
    assert len(raised) == 1 and len(names(inbox, "pending")) == 1


def test_a_second_sleeper_gives_up_at_its_own_time(inbox: Inbox) -> None:
    first = threading.Thread(target=inbox.take, args=(2,))
    first.start()
    wait_until(
        lambda: (
            not inbox._taking().sleeper._lock.acquire(blocking=False)
            or bool(inbox._taking().sleeper._lock.release())
        )
    )
    assert inbox.take(timeout=0.05) is None
    inbox.add("a", "1")
    first.join()
    assert len(names(inbox, "inflight")) == 1


def test_a_lock_that_was_only_just_made_is_let_go() -> None:
    ConsumerLock.__new__(ConsumerLock).__del__()


# --- files and folders --------------------------------------------------------------------------------


def test_two_threads_that_open_a_folder_keep_one_descriptor(inbox: Inbox) -> None:
    class Slow(dict[str, int]):
        def get(self, name: str, default: Any = None) -> Any:
            return default

    fd = inbox._handle.layout.folder("pending")
    inbox._handle.layout._fds = Slow(inbox._handle.layout._fds)
    before = len(os.listdir("/proc/self/fd"))
    assert inbox._handle.layout.folder("pending") == fd
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_threads_may_close_the_folders(inbox_dir: Path) -> None:
    class Emptied(dict[str, int]):
        def popitem(self) -> tuple[str, int]:
            raise KeyError

    inbox = Inbox(inbox_dir)
    fds = inbox._handle.layout._fds
    inbox._handle.layout._fds = Emptied(fds)
    inbox._handle.layout.close()
    inbox._handle.layout._fds = fds
    inbox.close()
    with pytest.raises(WrongState):
        inbox.add("a", 1)


def test_a_path_that_may_no_longer_be_walked_says_nothing(inbox: Inbox) -> None:
    with refusing(stat=errno.EACCES):
        assert inbox._handle.layout.where_it_went() == ""
        assert inbox.add("a", "1") == "new"


def test_an_unreadable_drop_is_found_finished_by_its_times(inbox: Inbox) -> None:
    dropped = Path(inbox.path, "drop", "a")
    dropped.write_text("1")
    os.utime(dropped, (1, 1))

    def unreadable(name: str, call: Any, arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "open" and arguments[0] == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return call(*arguments, **more)

    with intercepted(unreadable):
        assert inbox.add("a", "2") == "replaced"
    assert not dropped.exists()
    element = inbox.take()
    assert element and element.value == "2"


def test_where_there_is_no_proc_a_descriptor_is_left_open(inbox: Inbox) -> None:
    with refusing(listdir=errno.ENOENT):
        files.close_interrupted("nobody")


def test_dropped_files_are_committed_where_names_are(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[int] = []
    monkeypatch.setattr(files, "is_btrfs", lambda fd: True)
    monkeypatch.setattr(files, "commit", committed.append)
    files.flush_all(inbox._handle.layout, "drop", ["a"])
    assert committed == [inbox._handle.layout.folder("drop")]


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_was_not_handed_over_is_where_it_was(inbox: Inbox, tmp_path: Path, there: bool) -> None:
    """Its handing over was interrupted before the rename; or it is queued."""
    path = tmp_path / "file"
    path.write_text("1")
    with Source(str(path), move=True) as source:
        source._moved_from = str(path)
        if not there:
            path.unlink()
        source.discard(inbox._handle.layout, "no-such-draft")
        source._path = None  # (else it would be removed as one that was copied)
    assert path.exists() is there


def test_a_file_that_was_not_handed_over_and_a_draft_of_its_name(inbox: Inbox, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    Path(inbox.path, "tmp", "draft").write_text("another's")
    with Source(str(path), move=True) as source:
        source._moved_from = str(path)
        source.discard(inbox._handle.layout, "draft")
        source._path = None
    assert path.read_text() == "1"


def test_a_file_whose_folder_is_gone_cannot_be_given_back_and_that_is_said(
    inbox: Inbox, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("1")
    with Source(str(path), move=True) as source:
        source._moved_from = str(path)
        path.rename(Path(inbox.path, "tmp", "draft"))
        path.parent.rmdir()
        with pytest.raises(OSError, match="could not be moved back: it is tmp/draft in"):
            source.discard(inbox._handle.layout, "draft")
        source._path = None


def test_on_a_full_disk_an_element_goes_back_although_the_index_is_lost(inbox: Inbox) -> None:
    inbox.add("a", "1")
    element = inbox.take()
    os.truncate(os.path.join(inbox.path, "index"), 0)
    with refusing(pwrite=errno.ENOSPC):
        assert element and element.nack()
    assert names(inbox, "inflight") == [] and len(names(inbox, "pending")) == 1


def test_where_hosts_share_the_inbox_the_lock_may_be_lost_so_it_stays_in_flight(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text", scope="network") as shared:
        shared.add("a", "1")
        element = shared.take()
        os.truncate(inbox_dir / "index", 0)
        with refusing(pwrite=errno.ESTALE), pytest.raises(UnusableInbox, match="Stale"):
            assert element and element.nack()
        assert names(shared, "pending") == []
    with Inbox(inbox_dir, codec="text") as again:
        element = again.take()
        assert element and element.value == "1"
