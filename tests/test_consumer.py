"""The consumer's view of the folders, after deaths, after work by hand, when the system refuses, when the
clock is set back."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsinbox import Inbox, UnusableInbox
from fsinbox.consumer.twins import hashes_of_twins
from fsinbox.store.layout import Layout
from fsinbox.store.names import deferred_name, element_name
from tests.shim import meanwhile, refusing
from tests.usual import drain, held, names, path_of, take


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    """An inbox with one element, `a`, and a consumer that has looked at it."""
    with Inbox(inbox_dir, max_inflight=3) as inbox:
        assert inbox.take() is None
        inbox.add("a", 1)
        yield inbox


def die(inbox: Inbox) -> None:
    """Let the consumer die with what it has out."""
    assert inbox._taking().consumer
    inbox._taking().consumer.close()
    inbox._taking().consumer = None
    inbox._taking().claims.clear()


def place(inbox: Inbox, key: str, value: str, folder: str = "pending") -> Path:
    """Write a file under the next number, as if its key was not known in the index, or was taken; return its
    path."""
    number = inbox._handle.index.locked(inbox._handle.index._give_out, 1)
    path = Path(inbox.path, folder, element_name(number, key))
    path.write_text(value)
    return path


# --- what the dead left -------------------------------------------------------------------------------


def test_of_two_values_of_a_key_that_a_dead_consumer_held_the_newer_comes_back(inbox: Inbox) -> None:
    take(inbox)
    place(inbox, "a", "2", "inflight")
    die(inbox)
    assert drain(inbox) == [("a", 2)]
    assert names(inbox, "inflight") == []


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_two_values_of_a_key_that_are_deferred_the_newer_is_kept(
    inbox: Inbox, newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(inbox).nack(delay=3600)
    newer = place(inbox, "a", "2")
    newer.rename(Path(inbox.path, "deferred", deferred_name(1, newer.name)))
    die(inbox)
    listed = Layout.names

    def in_order(layout: Layout, folder: str, *, hidden: bool = False) -> list[str]:
        return sorted(listed(layout, folder, hidden=hidden), key=lambda name: name[20:], reverse=newest_first)

    monkeypatch.setattr(Layout, "names", in_order)
    assert drain(inbox) == [("a", 2)]
    assert names(inbox, "deferred") == []


def test_what_landed_in_the_place_of_what_a_dead_consumer_held_is_kept(inbox: Inbox) -> None:
    element = take(inbox)
    die(inbox)
    Path(inbox.path, "pending", element_name(element.seq, "a")).write_text("2")
    assert drain(inbox) == [("a", 2)]
    assert names(inbox, "inflight") == []


def of_a(name: str, *_: object) -> bool:
    return name.endswith("-a")


@pytest.mark.parametrize("restart", [False, True])
def test_what_cannot_be_requeued_is_told_of_and_tried_again(
    inbox: Inbox, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    take(inbox)
    inbox.add("b", 1)
    die(inbox)
    with refusing(rename=errno.EIO, when=of_a):
        assert take(inbox).key == "b"
    assert "it stays there, and is tried again" in caplog.text
    if restart:
        die(inbox)
        assert drain(inbox) == [("a", 1), ("b", 1)]
    else:
        assert take(inbox, timeout=5).key == "a"
        assert len(names(inbox, "inflight")) == 2


def test_what_could_not_be_requeued_is_superseded_by_a_newer_value(inbox: Inbox) -> None:
    take(inbox)
    die(inbox)
    with refusing(rename=errno.EIO, when=of_a):
        assert inbox.take() is None
    assert len(names(inbox, "inflight")) == 1
    inbox.add("a", 2)
    element = take(inbox, timeout=5)
    assert element.value == 2
    element.ack()
    assert names(inbox, "inflight") == []
    die(inbox)
    assert drain(inbox) == []


def test_what_goes_while_the_dead_s_are_looked_through_is_passed_over(inbox: Inbox) -> None:
    taken = Path(take(inbox).path)
    die(inbox)
    with meanwhile("lstat", taken.unlink, when=lambda name: name == taken.name):
        assert inbox.take() is None
    assert names(inbox, "failed") == []


@pytest.mark.parametrize("refused", [False, True])
def test_old_drafts_are_removed_where_that_is_allowed(
    inbox: Inbox, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(inbox.path, "tmp", "old").write_text("a dead writer's")
    monkeypatch.setattr("fsinbox.consumer.recovery.LITTER_AGE", -1)
    die(inbox)
    if refused:
        with refusing(unlink=errno.EPERM, when=lambda name: name == "old"):
            assert drain(inbox) == [("a", 1)]
    else:
        assert drain(inbox) == [("a", 1)]
    assert names(inbox, "tmp") == (["old"] if refused else [])


def test_a_suspect_that_somebody_has_deferred_by_hand_is_taken_alone_too(inbox: Inbox) -> None:
    inbox.add("b", 1)
    take(inbox)
    suspect = take(inbox)
    die(inbox)
    assert inbox._taking()._consume()
    die(inbox)
    waiting = path_of(inbox, "pending", "b")
    waiting.rename(Path(inbox.path, "deferred", deferred_name(1, waiting.name)))
    path_of(inbox, "pending", "a").unlink()
    path_of(inbox, "attempts", "a").unlink()
    first = Path(inbox.path, "pending", element_name(suspect.seq - 1, "first"))
    first.write_text("1")
    element = take(inbox)
    assert element.key == "first"
    assert inbox.take() is None
    element.ack()
    assert take(inbox).suspect


# --- what people do by hand ---------------------------------------------------------------------------


def test_an_element_that_goes_while_its_settle_time_is_looked_at_is_passed_over(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, settle=0.01) as inbox:
        assert inbox.take() is None
        inbox.add("a", 1)
        waiting = path_of(inbox, "pending", "a")
        with meanwhile("lstat", waiting.unlink, when=lambda name: name == waiting.name):
            assert inbox.take() is None
        assert inbox.next_look_in() is None


def test_a_consumer_whose_lock_was_removed_stops(inbox: Inbox) -> None:
    Path(inbox.path, "consumer.lock").unlink()
    inbox.add("b", 1)
    with pytest.raises(UnusableInbox, match="lock was removed"):
        drain(inbox)


def test_a_file_with_a_number_of_the_future_and_no_key_is_set_aside(inbox: Inbox) -> None:
    Path(inbox.path, "pending", "8888888888888888888-..").write_text("")
    assert drain(inbox) == [("a", 1)]
    assert len(names(inbox, "failed")) == 2


def test_a_forged_number_that_cannot_be_replaced_is_told_of_and_tried_again(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    forged = Path(inbox.path, "pending", "8888888888888888888-f")
    forged.write_text("2")
    with refusing(rename=errno.EROFS, when=lambda name, *_: name == forged.name):
        assert drain(inbox) == [("a", 1)]
    assert "is tried again" in caplog.text
    assert drain(inbox) == [("f", 2)]


def test_several_files_under_what_no_key_encodes_to_are_set_aside(inbox: Inbox) -> None:
    for number in (1, 2):
        Path(inbox.path, "pending", element_name(number, "..")).write_text("")
    assert drain(inbox) == [("a", 1)]
    assert len(names(inbox, "failed")) == 4


@pytest.mark.parametrize("deferred", [False, True])
def test_a_key_that_is_in_flight_or_deferred_is_not_coalesced(inbox: Inbox, deferred: bool) -> None:
    """Its newest value would be below the one that comes back, and count as older."""
    inbox.add("a", "older")
    element = take(inbox)
    lower = Path(inbox.path, "pending", element_name(element.seq - 1, "a"))
    if deferred:
        element.nack(3600)
    lower.write_text('"by hand"')
    inbox.add("a", "newer")
    before = names(inbox, "pending")
    assert len(before) == 2
    assert inbox._taking().consumer
    inbox._taking().consumer._list()
    assert names(inbox, "pending") == before


def test_a_place_that_goes_before_it_is_looked_at_is_not_coalesced(inbox: Inbox) -> None:
    higher = place(inbox, "a", "2")
    with meanwhile("lstat", higher.unlink, when=lambda name: name == higher.name):
        assert drain(inbox) == [("a", 1)]


def test_what_cannot_be_set_aside_stops_nothing_and_is_told_of(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    Path(inbox.path, "pending", "foreign").write_text("")
    with refusing(rename=errno.EROFS, when=lambda name, *_: name == "foreign"):
        assert drain(inbox) == [("a", 1)]
    assert "cannot be moved" in caplog.text
    assert names(inbox, "pending") == ["foreign"]


@pytest.mark.parametrize("delay", [3600, 0.000_001])
def test_a_value_that_lands_in_the_place_of_a_deferred_one_supersedes_it_at_once(
    inbox: Inbox, delay: float
) -> None:
    """By a producer that was paused, with the place in its hands, while the older one was taken and
    deferred."""
    element = take(inbox)
    element.nack(delay)
    Path(inbox.path, "pending", element_name(element.seq, "a")).write_text("2")
    assert drain(inbox) == [("a", 2)]
    assert names(inbox, "deferred") == []


# --- a step that was cut short ------------------------------------------------------------------------


def test_a_take_that_was_cut_short_is_done_again_and_does_not_count(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    name = path_of(inbox, "pending", "a").name
    taken = Path(inbox.path, "inflight", name)
    with (
        refusing(lstat=errno.EIO, when=lambda path: path == name and taken.exists()),
        pytest.raises(UnusableInbox, match="nothing was lost"),
    ):
        inbox.take()
    assert names(inbox, "inflight") == [name]
    element = take(inbox)
    assert (element.key, element.attempts) == ("a", 1)
    assert "was half taken: requeued" in caplog.text


def test_a_repair_puts_back_what_it_took_to_look_at(inbox: Inbox) -> None:
    waiting = path_of(inbox, "pending", "a").name
    inbox._taking()._consume().tidy([waiting])
    assert names(inbox, "pending") == [waiting]
    element = take(inbox)
    assert element.attempts == 1


def test_a_consumer_may_be_closed_twice(inbox: Inbox) -> None:
    consumer = inbox._taking()._consume()
    consumer.close()
    consumer.close()
    with Inbox(inbox.path) as other:
        assert take(other).key == "a"


# --- the clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-30, -2, 2])
@pytest.mark.parametrize("restart", [False, True])
def test_a_back_off_is_as_long_as_was_asked_whatever_becomes_of_the_clock(
    inbox: Inbox, restart: bool, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a clock that was set ahead may be a system that has slept: then it may be due at once."""
    take(inbox).nack(delay=1)
    began = time.monotonic()
    real = time.time_ns
    monkeypatch.setattr("fsinbox.consumer.ownership.time_ns", lambda: real() + days * 86_400 * 10**9)
    if restart:
        die(inbox)
    assert take(inbox, timeout=10).attempts == 2
    assert (0 if days > 0 else 0.9) < time.monotonic() - began < 2


def test_a_deferred_element_that_was_superseded_is_nothing_to_wake_up_for(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(inbox).nack(delay=3600)
    inbox.add("a", 2)
    assert drain(inbox) == [("a", 2)]
    real = time.time_ns
    monkeypatch.setattr("fsinbox.consumer.ownership.time_ns", lambda: real() + 7200 * 10**9)
    assert inbox.take() is None
    assert inbox.next_look_in() is None


def test_what_is_due_while_somebody_has_the_lock_is_taken_soon_after(inbox: Inbox) -> None:
    inbox.add("a", 1)
    take(inbox).nack(delay=0.001)
    time.sleep(0.01)
    with held(inbox.path):
        assert inbox.take() is None
        assert names(inbox, "inflight") == [] and len(names(inbox, "deferred")) == 1
        look = inbox.next_look_in()
        assert look is not None and look <= 0.05
    assert take(inbox, timeout=5).key == "a"


# --- many ---------------------------------------------------------------------------------------------


def test_keys_with_several_places_are_found_among_very_many() -> None:
    """The listing looks for them in parts, by hashes."""
    names = [f"{number:019d}-key{number}" for number in range(600_000)]
    twins = [0, 1, 299_999, 599_999]
    names += [f"{10**18:019d}-key{number}" for number in twins]
    assert hashes_of_twins(names) == {hash(f"key{number}") for number in twins}
    assert hashes_of_twins(names[: -len(twins)]) == set()


def test_a_foreign_name_that_ends_like_an_element_is_not_coalesced_with_it(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 2)
    first, _ = sorted(names(inbox, "pending"))
    foreign = f"{first[:19]}+{first[20:]}"
    Path(inbox.path, "pending", foreign).write_text("3")
    assert drain(inbox) == [("a", 1), ("b", 2)]
    assert any("not <number>-<key>" in path.read_text() for path in Path(inbox.path, "failed").iterdir())


def test_what_was_deferred_and_is_gone_when_it_is_due_is_passed_over(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", codec="text") as inbox:
        inbox.add("a", "1")
        element = inbox.take()
        assert element
        element.nack(0.1)
        (deferred,) = (tmp_path / "inbox/deferred").iterdir()
        deferred.unlink()
        inbox.add("b", "1")
        other = inbox.take(timeout=5)
        assert other
        assert other.key == "b"
        other.ack()
        assert inbox.take(timeout=0.3) is None
        assert inbox.next_look_in() is None
