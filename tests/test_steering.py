"""What people do to elements beside producers and a consumer: retry, requeue, replay, discard, hold, pause.
No newer value is ever replaced, or followed, by an older one that came back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, current_thread
from time import monotonic, sleep, time_ns

import pytest
from helpers import wait_until

import fsinbox.operate.steering
import fsinbox.store.control
import fsinbox.store.network.sharing
import fsinbox.store.transitions
from fsinbox import Inbox, UnusableInbox
from fsinbox.operate.rows import Row
from fsinbox.operate.steering import Steering
from fsinbox.store import control
from fsinbox.store import transitions as protocol
from fsinbox.store.layout import Layout
from fsinbox.store.names import encode_key
from fsinbox.store.network.sharing import Sharing
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, path_of, take


def opened(path: Path, **settings: object) -> Inbox:
    return Inbox(path, codec="text", max_inflight=4, **settings)  # type: ignore[arg-type]


def in_failed(inbox: Inbox, key: str, value: str = "old") -> None:
    """Have `key`'s element in failed/."""
    inbox.add(key, value)
    take(inbox).fail("because")


def in_deferred(inbox: Inbox, key: str, value: str = "old") -> None:
    inbox.add(key, value)
    take(inbox).nack(delay=1000)


def in_done(inbox: Inbox, key: str, value: str = "old") -> None:
    inbox.add(key, value)
    take(inbox).ack()


def the_one(steering: Steering, state: str) -> Row:
    (row,) = steering.rows((state,))
    return row


WAYS = {
    "retry": (in_failed, "failed", Steering.retry),
    "requeue": (in_deferred, "deferred", Steering.requeue),
    "replay": (in_done, "done", Steering.replay),
}
"""Verb -> (how an element gets there, the state, what brings it back)."""

Way = tuple[Callable[[Inbox, str], None], str, Callable[[Steering, Row], str]]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


# --- back to its place ---


def test_it_comes_back_and_is_first(inbox_dir: Path, way: Way) -> None:
    lay, state, back = way
    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        inbox.add("b", "other")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, state)
            assert back(steering, row) == "queued"
            assert back(steering, row) == ("newer" if state == "done" else "gone")
        assert inbox.peek() is not None
        assert drain(inbox) == [("a", "old"), ("b", "other")]
        assert names(inbox, "failed") == names(inbox, "deferred") == names(inbox, "tmp") == []


def test_what_failed_begins_with_its_first_attempt_and_what_was_deferred_goes_on_counting(
    inbox_dir: Path,
) -> None:
    with opened(inbox_dir) as inbox:
        in_failed(inbox, "a")
        in_deferred(inbox, "b")
        with Steering(inbox_dir) as steering:
            steering.retry(the_one(steering, "failed"))
            steering.requeue(the_one(steering, "deferred"))
        assert {element.key: element.attempts for element in (take(inbox), take(inbox))} == {"a": 1, "b": 2}
        assert inbox.next_look_in() is None  # nothing is deferred any more


def test_a_newer_value_that_waits_is_left_alone(inbox_dir: Path, way: Way) -> None:
    lay, state, back = way
    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        inbox.add("a", "new")
        with Steering(inbox_dir) as steering:
            assert back(steering, the_one(steering, state)) == "newer"
            assert len(list(steering.rows((state,)))) == 1
        assert drain(inbox) == [("a", "new")]
        assert names(inbox, "tmp") == []


@pytest.mark.parametrize("where", ["in flight", "deferred"])
def test_a_newer_value_that_is_out_or_deferred_is_not_followed_by_an_older_one(
    inbox_dir: Path, way: Way, where: str
) -> None:
    lay, state, back = way
    if state == "deferred":
        pytest.skip("a key has one element in flight or deferred at most")
    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        inbox.add("a", "new")
        element = take(inbox)
        (inbox_dir / "inflight" / "notes.txt").touch()  # somebody's
        if where == "deferred":
            element.nack(delay=1000)
        with Steering(inbox_dir) as steering:
            assert back(steering, the_one(steering, state)) == "newer"
            assert (
                steering.requeue(the_one(steering, "deferred")) == "queued"
                if where == "deferred"
                else not element.ack()
            )
        assert drain(inbox) == ([("a", "new")] if where == "deferred" else [])


def test_a_value_that_comes_at_any_moment_meanwhile_wins(inbox_dir: Path, way: Way) -> None:
    """Just before each call that bringing it back makes, a producer adds a newer value: it is delivered, and
    nothing after it."""
    lay, state, back = way
    calls = 0

    def counting(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        nonlocal calls
        calls += 1
        return call(*arguments, **more)

    def once(moment: int | None) -> list[tuple[str, object]]:
        path = inbox_dir.with_name(f"inbox-{moment}")
        with opened(path, keep_done=9) as inbox, opened(path) as producer:
            lay(inbox, "a")
            with Steering(path) as steering:
                row = the_one(steering, state)
                if moment is None:
                    with intercepted(counting):
                        back(steering, row)
                else:
                    left = moment

                    def when(*_: object) -> bool:
                        nonlocal left
                        left -= 1
                        return left < 0

                    producing = Thread(target=producer.add, args=("a", "new"))

                    def hook(
                        name: str,
                        call: Callable[..., object],
                        arguments: tuple[object, ...],
                        more: dict[str, object],
                    ) -> object:
                        if current_thread() is not producing and not producing.ident and when():
                            producing.start()
                            producing.join(0.05)  # it goes on then, or waits for the admission lock
                        return call(*arguments, **more)

                    with intercepted(hook):
                        back(steering, row)
                        producing.join()
            return [pair for pair in drain(inbox) if pair[0] == "a"]

    assert once(None) == [("a", "old")]
    assert calls > 4
    for moment in range(calls):
        delivered = once(moment)
        assert delivered in ([("a", "new")], [("a", "old"), ("a", "new")]), f"added before call {moment}"


def test_a_value_at_its_very_place_is_not_overwritten(
    inbox_dir: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay, state, back = way
    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, state)
            place = inbox_dir / "pending" / f"{row.seq:019d}-a"
            monkeypatch.setattr(protocol, "_newer_is_held", lambda *_: place.write_text("new") and False)
            assert back(steering, row) == "newer"
        monkeypatch.undo()
        assert drain(inbox) == [("a", "new")]


def test_a_place_whose_producer_died_before_it_published_there_does_not_count(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox, opened(inbox_dir) as producer:
        in_failed(inbox, "a")

        class Paused(Exception):
            pass

        def paused(
            name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
        ) -> object:
            if name == "rename":
                raise Paused
            return call(*arguments, **more)

        with pytest.raises(Paused), intercepted(paused):
            producer.add("a", "new")
        with Steering(inbox_dir) as steering:
            assert steering.retry(the_one(steering, "failed")) == "queued"
        assert producer.add("a", "newest") == "replaced"
        assert drain(inbox) == [("a", "newest")]


def test_what_was_requeued_and_is_superseded_before_it_is_seen_is_dropped(inbox_dir: Path) -> None:
    """The consumer has a listing with the newer value, and still thinks that the older one is deferred."""
    with opened(inbox_dir) as inbox:
        in_deferred(inbox, "a")
        inbox.add("x", "1")
        inbox.add("a", "new")
        assert take(inbox).key == "x"  # all is listed
        (deferred,) = names(inbox, "deferred")
        os.rename(inbox_dir / "deferred" / deferred, inbox_dir / "pending" / deferred[20:])
        element = take(inbox)
        assert element.value == "new"
        element.ack()
        assert drain(inbox) == []


def test_what_is_no_regular_file_is_not_brought_back(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        os.mkfifo(inbox_dir / "failed" / "1234567890123456789-a")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, "failed")
            assert steering.retry(row) == "foreign"
            assert steering.discard(row) == "discarded"
        os.mkdir(inbox_dir / "done")
        os.symlink("/etc/passwd", inbox_dir / "done" / "1234567890123456789-a")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, "done")
            assert steering.replay(row) == "foreign"
            assert steering.discard(row) == "discarded"
            assert steering.replay(row) == steering.discard(row) == "gone"
        assert names(inbox, "tmp") == []


def test_what_the_system_refuses_is_said_and_changes_nothing(
    inbox_dir: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay, state, back = way

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, state)
            monkeypatch.setattr(protocol, "_rename", full)
            with pytest.raises(
                UnusableInbox, match=f"cannot change .*/{state}/.*No space left.*: it is unchanged"
            ):
                back(steering, row)
            assert the_one(steering, state) == row
            with (
                refusing(unlink=errno.EROFS, when=lambda name, *_: str(name) == row.file),
                pytest.raises(UnusableInbox),
            ):
                steering.discard(row)
        assert names(inbox, "pending") == names(inbox, "tmp") == []


def test_what_was_done_is_flushed_and_only_then_the_reason_goes(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        for key in ("a", "b"):
            in_failed(inbox, key)
        calls: list[str] = []

        def hook(
            name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
        ) -> object:
            if name == "fsync":
                calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")))
            if name == "unlink":
                calls.append(str(arguments[0])[20:])
            return call(*arguments, **more)

        with intercepted(hook), Steering(inbox_dir) as steering:
            for row in list(steering.rows(("failed",))):
                steering.retry(row)
        assert [call for call in calls if call not in ("control", inbox_dir.name)] == [
            "pending",
            "failed",
            "a~reason.txt",
            "b~reason.txt",
        ]


def test_many_are_flushed_now_and_then(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsinbox.operate.steering, "FLUSHED_EVERY", 2)
    with opened(inbox_dir) as inbox:
        for key in "abc":
            in_failed(inbox, key)
        with Steering(inbox_dir) as steering:
            flushed: list[int] = []
            for row in list(steering.rows(("failed",))):
                steering.retry(row)
                flushed.append(len(steering._changed))
            assert flushed == [2, 0, 2]


def test_a_flush_that_fails_is_said(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        in_failed(inbox, "a")
        with (
            pytest.raises(UnusableInbox, match="a power cut may undo them"),
            refusing(fsync=errno.EIO),
            Steering(inbox_dir) as steering,
        ):
            steering.retry(the_one(steering, "failed"))


def test_what_vanishes_meanwhile_is_gone(inbox_dir: Path, way: Way) -> None:
    lay, state, back = way
    with opened(inbox_dir, keep_done=9) as inbox:
        lay(inbox, "a")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, state)
            path_of(inbox, row.folder, "a").unlink()
            assert back(steering, row) == "gone"
            assert steering.discard(row) == "gone"
            assert fsinbox.operate.steering.size_and_time(steering.layout, row) is None
        in_done(inbox, "b")
        with Steering(inbox_dir) as steering:  # between the look and the move
            row = the_one(steering, "done")
            with meanwhile("flock", lambda: [path.unlink() for path in (inbox_dir / "tmp").iterdir()]):
                assert steering.replay(row) == "gone"


# --- discard ---


@pytest.mark.parametrize("state", ["failed", "waiting", "deferred", "done"])
def test_discard_removes_it_with_all_that_belongs_to_it(inbox_dir: Path, state: str) -> None:
    with opened(inbox_dir, keep_done=9) as inbox:
        if state == "waiting":
            inbox.add("a", "1")
        else:
            {"failed": in_failed, "deferred": in_deferred, "done": in_done}[state](inbox, "a")
        with Steering(inbox_dir) as steering:
            assert steering.discard(the_one(steering, state)) == "discarded"
        assert not any(
            names(inbox, folder)
            for folder in ("pending", "failed", "deferred", "done")
            if (inbox_dir / folder).exists()
        )
        assert inbox.add("a", "2") == "new"
        assert drain(inbox) == [("a", "2")]


def test_discard_leaves_what_is_out_to_its_consumer_and_a_folder_that_holds_something(
    inbox_dir: Path,
) -> None:
    with opened(inbox_dir) as inbox:
        inbox.add("a", "1")
        take(inbox)
        (inbox_dir / "failed" / "1234567890123456789-b").mkdir()
        with Steering(inbox_dir) as steering:
            with pytest.raises(ValueError, match="in flight"):
                steering.discard(the_one(steering, "in_flight"))
            assert steering.discard(the_one(steering, "failed")) == "discarded"
            (inbox_dir / "failed" / "1234567890123456789-b").mkdir()
            (inbox_dir / "failed" / "1234567890123456789-b" / "kept").touch()
            assert steering.discard(the_one(steering, "failed")) == "full"
        assert (inbox_dir / "failed" / "1234567890123456789-b" / "kept").exists()


# --- hold and pause ---


def soon(inbox: Inbox) -> None:
    """Have the consumer look at control/ again with the next take."""
    consumer = inbox._taking().consumer
    if consumer:
        consumer._next_look = consumer.controls._next_look = 0.0


@pytest.fixture
def layout(inbox_dir: Path) -> Iterator[Layout]:
    layout = Layout(str(inbox_dir))
    yield layout
    layout.close()


def test_a_key_on_hold_is_left_alone_and_keeps_its_place(inbox_dir: Path, layout: Layout) -> None:
    with opened(inbox_dir) as inbox:
        for key in ("a", "é", "c"):
            inbox.add(key, "1")
        control.hold(layout, encode_key("a"))
        control.hold(layout, encode_key("é"))
        assert drain(inbox) == [("c", "1")]
        assert inbox.add("a", "2") == "replaced"
        inbox.add("d", "1")
        assert inbox.next_look_in() is None  # so a drain ends
        assert inbox.sleeper.limit() is not None  # but an idle consumer looks whether it was released
        assert control.release(layout, encode_key("a"))
        assert not control.release(layout, encode_key("a"))
        soon(inbox)
        assert drain(inbox) == [("a", "2"), ("d", "1")]
        control.release(layout, encode_key("é"))
        assert take(inbox, timeout=30).key == "é"  # it waits for nothing but that


def test_a_key_on_hold_that_was_deferred_comes_back_when_it_is_released(
    inbox_dir: Path, layout: Layout
) -> None:
    with opened(inbox_dir) as inbox:
        inbox.add("a", "1")
        take(inbox).nack(delay=0.01)
        control.hold(layout, "a")
        soon(inbox)
        sleep(0.02)
        assert inbox.take() is None
        assert names(inbox, "deferred") != []
        control.release(layout, "a")
        assert take(inbox, timeout=30).attempts == 2


def test_what_is_out_when_its_key_is_held_can_be_ended(inbox_dir: Path, layout: Layout) -> None:
    with opened(inbox_dir) as inbox:
        inbox.add("a", "1")
        element = take(inbox)
        inbox.add("a", "2")
        control.hold(layout, "a")
        soon(inbox)
        element.nack()
        assert inbox.take() is None
        control.release(layout, "a")
        soon(inbox)
        assert drain(inbox) == [("a", "2")]


def test_while_it_is_paused_nothing_is_taken_not_even_from_drop(
    inbox_dir: Path, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(inbox_dir) as inbox:
        for key in "abc":
            inbox.add(key, "1")
        element = take(inbox)
        control.pause(layout)
        soon(inbox)
        assert inbox.take() is None
        assert inbox.paused
        (inbox_dir / "drop" / "d").write_text("1")
        element.ack()
        assert inbox.take(timeout=0.05) is None
        assert names(inbox, "drop") == ["d"]
        assert control.resume(layout)
        assert not control.resume(layout)
        assert take(inbox, timeout=30).key == "b"
        assert not inbox.paused
    said = [record.message for record in caplog.records if record.name == "fsinbox"]
    assert said[0].startswith(f"paused by pid {os.getpid()} of user {os.getuid()} on ")
    assert said[1] == "resumed"


def test_a_pause_with_an_end_ends_by_itself_and_survives_a_restart(inbox_dir: Path, layout: Layout) -> None:
    control.pause(layout, time_ns() + 1_300_000_000)
    began = monotonic()
    with opened(inbox_dir) as inbox:
        inbox.add("a", "1")
        assert inbox.take() is None
    with opened(inbox_dir) as inbox:
        assert take(inbox, timeout=30).key == "a"
        assert monotonic() - began > 1.0


def test_what_is_no_wish_of_ours_pauses_rather_than_not_and_holds_nothing(
    inbox_dir: Path, layout: Layout
) -> None:
    assert control.requests(layout) == control.NONE
    layout.make("control")
    (inbox_dir / "control" / "hold-%zz").touch()
    (inbox_dir / "control" / "notes").touch()
    assert control.requests(layout) == control.NONE
    (inbox_dir / "control" / "pause").touch()
    assert control.requests(layout) == control.Requests(paused=True)
    (inbox_dir / "control" / "pause").unlink()
    os.symlink("soon.\x1b[31mwho", inbox_dir / "control" / "pause")
    assert control.requests(layout) == control.Requests(paused=True, by="?[31mwho")
    control.pause(layout, 1)  # in place of the other one
    assert not control.requests(layout).paused


def test_without_a_control_folder_there_is_nothing_to_end(inbox_dir: Path, layout: Layout) -> None:
    assert not control.resume(layout)
    assert not control.release(layout, "a")


def test_wishes_are_flushed(inbox_dir: Path, layout: Layout) -> None:
    flushed: list[str] = []

    def hook(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "fsync":
            flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")))
        return call(*arguments, **more)

    with intercepted(hook):
        control.pause(layout)
        assert flushed == ["control", inbox_dir.name, "control"]
        control.resume(layout)
    assert flushed[3:] == ["control"]


def test_in_a_shared_inbox_the_folder_belongs_to_the_group_and_a_server_is_asked_once_a_second(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fsinbox.store.network.sharing, "sharing_of", lambda path, mount: Sharing("nfs4", opens_first=True)
    )
    with Inbox(inbox_dir, codec="text", scope="network", shared=True) as inbox:
        inbox.add("a", "1")
        layout = Layout(str(inbox_dir))
        control.hold(layout, "a")
        assert (inbox_dir / "control").stat().st_mode & 0o7777 == 0o2770
        assert inbox.take() is None
        consumer = inbox._taking().consumer
        assert consumer
        control.release(layout, "a")
        consumer._next_look = 0.0
        assert inbox.take() is None  # not yet
        wait_until(inbox.take)


# --- done/ ---


def test_the_last_that_were_done_are_kept(inbox_dir: Path) -> None:
    with opened(inbox_dir, keep_done=2) as inbox:
        for key in "abc":
            in_done(inbox, key)
        assert [name[20:] for name in names(inbox, "done")] == ["b", "c"]
        (inbox_dir / "done" / "notes.txt").touch()  # somebody's: left alone
    with opened(inbox_dir, keep_done=2) as inbox:
        in_done(inbox, "d")
        assert [name[20:] or name for name in names(inbox, "done")] == ["c", "d", "notes.txt"]
    with opened(inbox_dir) as inbox:
        in_done(inbox, "e")
        assert len(names(inbox, "done")) == 3
    with pytest.raises(ValueError, match="keep_done must be 0 or more"):
        opened(inbox_dir, keep_done=-1)


def test_what_cannot_be_kept_is_acknowledged_all_the_same(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(inbox_dir, keep_done=2) as inbox:
        in_done(inbox, "a")
        inbox.add("b", "1")
        element = take(inbox)
        with refusing(rename=errno.ENOSPC):
            element.ack()
        assert names(inbox, "inflight") == []
        assert [name[20:] for name in names(inbox, "done")] == ["a"]
        assert "cannot keep" in caplog.text
        inbox.add("c", "1")
        element = take(inbox)
        path_of(inbox, "inflight", "c").unlink()
        element.ack()  # removed by hand: as acknowledged as it can be
        with meanwhile(
            "lstat",
            lambda: path_of(inbox, "done", "a").unlink(),
            when=lambda name, *_: str(name).endswith("-a"),
        ):
            assert inbox.layout.oldest_first("done") == []


def test_what_may_not_be_removed_is_refused_and_what_goes_meanwhile_is_gone(inbox_dir: Path) -> None:
    with opened(inbox_dir, keep_done=9) as inbox:
        in_failed(inbox, "a")
        in_done(inbox, "b")
        with Steering(inbox_dir) as steering:
            row = the_one(steering, "failed")
            with (
                refusing(unlink=errno.EPERM, when=lambda name, *_: str(name) == row.file),
                pytest.raises(UnusableInbox, match="Operation not permitted: it is unchanged"),
            ):
                steering.discard(row)
            assert the_one(steering, "failed") == row
            row = the_one(steering, "done")
            path = path_of(inbox, "done", "b")
            with meanwhile("open", path.unlink, when=lambda name, *_: str(name) == row.file):
                assert steering.replay(row) == "gone"


@pytest.mark.parametrize("folder", ["pending", "inflight", "drop"])
def test_a_name_in_a_log_is_one_line_and_obeyed_by_no_terminal(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    """The library's log goes where its user sends it: nobody escapes it there."""
    Inbox(inbox_dir).close()
    (inbox_dir / folder / "x\n2026-01-01 ERROR forged\x1b[2J").mkdir()
    with opened(inbox_dir) as inbox:
        assert drain(inbox) == []
    assert "forged" in caplog.text
    assert all(text.isprintable() for text in caplog.messages)
    (reason,) = (inbox_dir / "failed").glob("*~reason.txt")
    assert reason.read_text().count("\n") == 1 and "\x1b" not in reason.read_text()


def test_what_is_too_many_in_done_and_cannot_be_removed_ends_no_acknowledgement(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to done/ can put anything there under an element's name."""
    with opened(inbox_dir, keep_done=1) as inbox:
        done = inbox_dir / "done"
        done.mkdir()
        for number, lay in enumerate((os.mkdir, os.mkdir, os.mkfifo), 1):
            lay(done / f"{number:019d}-odd")
        (done / "0000000000000000002-odd/kept").touch()
        os.symlink("/etc/passwd", done / "0000000000000000004-odd")
        in_done(inbox, "a")
        assert sorted(os.listdir(done))[:-1] == ["0000000000000000002-odd"]
        assert (
            "cannot remove '0000000000000000002-odd' of done/: it is a directory with something"
            in caplog.text
        )
        inbox.add("b", "1")
        element = take(inbox)
        with refusing(unlink=errno.EROFS, when=lambda name, *_: str(name).endswith("-a")):
            element.ack()
        assert "Read-only file system: it is left" in caplog.text
        assert names(inbox, "inflight") == [] and drain(inbox) == []


def test_a_deferred_element_that_was_superseded_or_discarded_is_not_waited_for(inbox_dir: Path) -> None:
    with opened(inbox_dir) as inbox:
        for key in "abc":
            in_deferred(inbox, key)
        inbox.add("a", "new")
        assert drain(inbox) == [("a", "new")]
        with Steering(inbox_dir) as steering:
            for row in list(steering.rows(("deferred",), ["b"])):
                assert steering.discard(row)
        soon(inbox)
        assert inbox.take() is None
        assert inbox.next_look_in() is not None  # c's
        with Steering(inbox_dir) as steering:
            assert steering.discard(the_one(steering, "deferred"))
        soon(inbox)
        assert inbox.take() is None
        assert inbox.next_look_in() is None
        assert names(inbox, "attempts") == []
