"""Shards: each key is of one, each shard has one consumer, and the rest is as always."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import fsinbox.store.network.sharing
from fsinbox import Inbox, InboxBusy
from fsinbox.consumer.ownership import Shard, parse_shard, shard_of_lock
from fsinbox.operate.consumers import consumers
from fsinbox.store.network.sharing import Sharing
from tests.usual import drain, names, take


@pytest.fixture(params=["local", "network"])
def scope(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        fsinbox.store.network.sharing, "sharing_of", lambda path, mount: Sharing("nfs4", opens_first=True)
    )
    return str(request.param)


@pytest.fixture
def opened(scope: str, inbox_dir: Path) -> Iterator[ExitStack]:
    Inbox(inbox_dir, scope=scope).close()
    with ExitStack() as stack:
        yield stack


def consumer(stack: ExitStack, path: Path, shard: str) -> Inbox:
    return stack.enter_context(Inbox(path, codec="text", shard=shard, lease=1, max_inflight=100))


def test_every_key_is_of_one_shard_and_they_are_about_even(opened: ExitStack, inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as producer:
        for number in range(200):
            producer.add(f"key {number}", "old")
        for number in range(200):
            producer.add(f"key {number}", str(number))
    found: dict[str, str] = {}
    for index in (1, 2, 3, 4):
        part = drain(consumer(opened, inbox_dir, f"{index}/4"))
        assert 25 < len(part) < 75
        assert [int(value) for _, value in part] == sorted(int(value) for _, value in part)
        assert not found.keys() & dict(part).keys()
        found |= dict(part)
    assert found == {f"key {number}": str(number) for number in range(200)}


def test_drops_are_adopted_by_the_shard_of_their_key(opened: ExitStack, inbox_dir: Path) -> None:
    for number in range(20):
        draft = inbox_dir / "drop" / ".draft"
        draft.write_text(str(number))
        os.utime(draft, ns=(1, 1))
        draft.rename(inbox_dir / "drop" / f"k{number}")
    draft = inbox_dir / "drop" / ("x" * 201)  # no key: the first shard's to set aside
    draft.touch()
    second = drain(consumer(opened, inbox_dir, "2/2"))
    assert draft.exists()
    first = drain(consumer(opened, inbox_dir, "1/2"))
    assert sorted(first + second) == sorted((f"k{number}", str(number)) for number in range(20))
    assert first and second
    assert not draft.exists()


def test_one_consumer_a_shard_and_none_of_all_beside_it(opened: ExitStack, inbox_dir: Path) -> None:
    first, second = consumer(opened, inbox_dir, "1/2"), consumer(opened, inbox_dir, "2/2")
    assert first.take() is None
    assert second.take() is None
    for shard, word in (
        ("1/2", "shard 1/2 of"),
        ("1/1", "already has a consumer|divided"),
        ("2/3", "divided|already|shard 1/2"),
    ):
        with pytest.raises(InboxBusy, match=word):
            consumer(opened, inbox_dir, shard).take()
    first.close()
    assert consumer(opened, inbox_dir, "1/2").take() is None


def test_a_shard_without_a_consumer_shows(opened: ExitStack, inbox_dir: Path) -> None:
    second = consumer(opened, inbox_dir, "2/3")
    assert second.take() is None
    found = consumers(second.layout)
    assert [one["shard"] for one in found] == ["1/3", "2/3", "3/3"]
    assert [bool(one["holder"]) for one in found] == [False, True, False]


def test_what_a_dead_consumer_held_comes_back_to_its_shard_only(opened: ExitStack, inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as producer:
        for number in range(10):
            producer.add(f"k{number}", str(number))
    first, second = consumer(opened, inbox_dir, "1/2"), consumer(opened, inbox_dir, "2/2")
    held = [take(first).key for _ in range(2)]
    other = take(second)
    assert first._taking().consumer
    if first.layout.sharing:
        first._taking().consumer.ownership._ended.set()  # type: ignore[attr-defined]
        first._taking().consumer.ownership._ended = threading.Event()  # type: ignore[attr-defined]
    first._taking().consumer.ownership.unlock()  # as if it had died
    again = consumer(opened, inbox_dir, "1/2")
    for key in held:  # each alone, for it may be what the other one died of
        element = take(again)
        assert (element.key, element.suspect) == (key, True)
        element.ack()
    other.ack()
    assert len(consumers(second.layout)) == 2


def test_the_number_of_shards_can_change_when_all_have_ended(opened: ExitStack, inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as producer:
        for number in range(10):
            producer.add(f"k{number}", str(number))
    whole = consumer(opened, inbox_dir, "1/1")
    elements = [take(whole) for _ in range(4)]
    elements[0].nack(60)
    whole.close()
    parts = [consumer(opened, inbox_dir, f"{index}/3") for index in (1, 2, 3)]
    found = [key for part in parts for key, _ in drain(part)]
    assert sorted(found) == sorted(f"k{number}" for number in range(10) if number != int(elements[0].key[1:]))
    assert [bool(part.take(0)) for part in parts] == [False] * 3
    assert len(names(parts[0], "deferred")) == 1


def test_attempts_are_kept_for_each_shard(opened: ExitStack, inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as producer:
        for number in range(10):
            producer.add(f"k{number}", str(number))
    for _ in range(2):
        for index in (1, 2):
            with Inbox(inbox_dir, codec="text", shard=f"{index}/2") as part:
                take(part).nack()
    for index in (1, 2):
        assert take(consumer(opened, inbox_dir, f"{index}/2")).attempts == 3


def cut_off(inbox: Inbox) -> None:
    """As if its process had died: its locks are free, and it gives no sign of life."""
    assert inbox._taking().consumer
    if inbox._handle.layout.sharing:
        inbox._taking().consumer.ownership._ended.set()  # type: ignore[attr-defined]
        inbox._taking().consumer.ownership._ended = threading.Event()  # type: ignore[attr-defined]
    inbox._taking().consumer.ownership.unlock()


def test_a_shard_is_told_that_it_is_the_consumer_of_all_keys_that_runs(
    opened: ExitStack, inbox_dir: Path
) -> None:
    """Not what was left in the file of its own lock by one that is long gone."""
    (inbox_dir / "consumer-2of3.lock").write_text("pid 1 on another since long ago\n")
    consumer(opened, inbox_dir, "1/1").become_consumer()
    with pytest.raises(InboxBusy, match=r"shard 2/3 of inbox .* already has a consumer") as caught:
        consumer(opened, inbox_dir, "2/3").take()
    assert caught.value.holder.startswith(f"pid {os.getpid()} on ")


def test_all_keys_can_be_divided_at_once_when_their_consumer_has_died(
    opened: ExitStack, inbox_dir: Path
) -> None:
    """Not only when its lease has run out: whoever has the lock knows that it is dead."""
    whole = opened.enter_context(Inbox(inbox_dir, codec="text", lease=60, max_inflight=9))
    for number in range(6):
        whole.add(f"k{number}", str(number))
    out = [take(whole).key for _ in range(3)]
    cut_off(whole)
    found = []
    for index in (1, 2):  # (in this order: the first brings in what that one held)
        part = opened.enter_context(
            Inbox(inbox_dir, codec="text", shard=f"{index}/2", lease=60, max_inflight=9)
        )
        found += [key for key, _ in drain(part)]
    assert sorted(found) == [f"k{number}" for number in range(6)]
    assert set(out) < set(found)


def test_what_the_dead_of_another_division_held_is_brought_in_by_the_first_shard(
    opened: ExitStack, inbox_dir: Path, scope: str
) -> None:
    if scope == "local":
        pytest.skip("one host's consumers have no folders of their own")
    with Inbox(inbox_dir, codec="text") as producer:
        for number in range(10):
            producer.add(f"k{number}", str(number))
    for index in (1, 2, 3):
        part = consumer(opened, inbox_dir, f"{index}/3")
        take(part)
        cut_off(part)
    with pytest.raises(InboxBusy, match=r"was divided into 3.* start the one of shard 1/2 first"):
        consumer(opened, inbox_dir, "2/2").take()
    first = consumer(opened, inbox_dir, "1/2")
    first.become_consumer()
    assert names(first, "inflight") == ["lease-1of2-0000000001"]
    found = [key for part in (first, consumer(opened, inbox_dir, "2/2")) for key, _ in drain(part)]
    assert sorted(found) == [f"k{number}" for number in range(10)]


def test_a_shard_does_not_begin_while_another_one_puts_back_what_is_of_it(
    opened: ExitStack, inbox_dir: Path, scope: str
) -> None:
    """Of two values of a key, one still held by that one, the newer could be delivered first."""
    if scope == "local":
        pytest.skip("one host's consumers have no folders of their own")
    second = parse_shard("2/2")
    key = next(f"k{number}" for number in range(100) if second.has(f"k{number}"))
    first = consumer(opened, inbox_dir, "1/2")
    first.add(key, "1")
    first.become_consumer()
    (name,) = names(first, "pending")
    os.rename(inbox_dir / "pending" / name, inbox_dir / first.layout.inflight / name)
    with pytest.raises(InboxBusy, match=r"another shard of inbox .* is putting back what is of 2/2"):
        consumer(opened, inbox_dir, "2/2").take()
    os.rename(inbox_dir / first.layout.inflight / name, inbox_dir / "pending" / name)
    assert drain(consumer(opened, inbox_dir, "2/2")) == [(key, "1")]


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "1/1000", "a/b", "1/2/3", "-1/2", "1 / 2"])
def test_what_is_no_shard_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a shard is I/N"):
        Inbox(tmp_path / "inbox", shard=text)


def test_a_shard_and_its_lock_have_names() -> None:
    assert str(parse_shard("2/4")) == "2/4"
    for shard in (Shard(1, 1), Shard(2, 4), Shard(999, 999)):
        assert shard_of_lock(shard.lock_file) == shard
    for name in (
        "consumer-1of1.lock",
        "consumer-5of4.lock",
        "consumer-0of4.lock",
        "index",
        "consumer-1of4.locks",
    ):
        assert shard_of_lock(name) is None
