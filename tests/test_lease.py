"""The consumer's lease in an inbox that several hosts share: who has lost it can take and acknowledge
nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from helpers import wait_until

import fsinbox.store.network.sharing
from fsinbox import Inbox, InboxBusy, LeaseLost, UnusableInbox
from fsinbox.consumer.lease import Lease
from fsinbox.consumer.leases import leases
from fsinbox.consumer.ownership import WHOLE
from fsinbox.consumer.rival import Rival
from fsinbox.operate.consumers import consumers
from fsinbox.operate.rows import find, rows
from fsinbox.store.layout import Layout
from fsinbox.store.network.sharing import Sharing
from fsinbox.worker.comings import standing_by
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, take


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a client, whose clock is the server's."""
    monkeypatch.setattr(
        fsinbox.store.network.sharing, "sharing_of", lambda path, mount: Sharing("nfs4", opens_first=True)
    )


def opened(path: Path, lease: float = 1.0) -> Inbox:
    return Inbox(path, codec="text", scope="network", lease=lease, max_inflight=4)


def lease_of(inbox: Inbox) -> Lease:
    consumer = inbox._taking().consumer
    assert consumer and isinstance(consumer.ownership, Lease)
    return consumer.ownership


def cut_off(inbox: Inbox, *, lock_too: bool = True) -> None:
    """No sign of life of this consumer comes any more; the server frees its lock, or not (NFS 3)."""
    lease_of(inbox)._ended.set()
    lease_of(inbox)._ended = threading.Event()
    if lock_too:
        lease_of(inbox).unlock()


def test_there_is_one_consumer(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        element = take(one)
        with pytest.raises(InboxBusy, match=f"pid {os.getpid()} on "):
            other.take()
        sleep(1.3)  # it goes on giving signs of life
        with pytest.raises(InboxBusy):
            other.take()
        element.ack()
        (found,) = consumers(one._handle.layout)
        assert found["shard"] == "1/1"
        assert found["epoch"] == 1
        assert str(found["holder"]).startswith(f"pid {os.getpid()} on ")
        assert not found["lapsed"]


def test_a_consumer_that_ends_leaves_nothing_and_the_next_need_not_wait(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        one.add("a", "1")
        take(one)
    with opened(inbox_dir, lease=60) as other:
        assert names(other, "inflight") == []
        began = monotonic()
        assert take(other).attempts == 2
        assert monotonic() - began < 1


def test_who_has_lost_the_lease_cannot_acknowledge(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        for key in "ab":
            one.add(key, "1")
        first, second = take(one), take(one)
        cut_off(one)
        again = take(other)
        assert (again.key, again.attempts) == ("a", 2)
        with pytest.raises(LeaseLost, match="another consumer has taken over"):
            first.ack()
        with pytest.raises(LeaseLost):
            second.nack()
        assert os.path.exists(again.path)
        again.ack()
        assert drain(other) == [("b", "1")]
        with pytest.raises(InboxBusy):  # it may begin anew
            one.take()


def test_who_has_lost_the_lease_is_told_when_it_reads(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        element = take(one)
        os.rename(element.path, element.path + ".away")
        with pytest.raises(FileNotFoundError):  # removed by hand; it still is the consumer
            _ = element.value
        os.rename(element.path + ".away", element.path)
        cut_off(one)
        assert take(other).value == "1"
        with pytest.raises(LeaseLost):
            _ = element.value


def test_a_host_that_died_with_the_admission_lock_keeps_no_consumer_from_starting(inbox_dir: Path) -> None:
    """NFS 3 never takes a lock from a host that is gone."""
    with opened(inbox_dir) as dead, opened(inbox_dir) as inbox, (inbox_dir / "index").open("r+") as index:
        dead.add("a", "1")
        fcntl.flock(index, fcntl.LOCK_EX)
        assert drain(inbox) == [("a", "1")]


def test_who_has_lost_the_lease_cannot_take(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        assert one.take() is None
        cut_off(one)
        assert other.take() is None
        other.add("a", "1")
        with pytest.raises(LeaseLost):
            one.take()
        assert drain(other) == [("a", "1")]


def test_who_has_lost_the_lease_cannot_defer_give_up_or_put_back(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        for key in "abc":
            one.add(key, "1")
        taken = [take(one) for _ in range(3)]
        cut_off(one)
        assert take(other).key == "a"
        for element, end in zip(taken, ("nack", "fail", "release"), strict=True):
            with pytest.raises(LeaseLost):
                element.fail("no good") if end == "fail" else getattr(element, end)(
                    60 if end == "nack" else 0
                )
        assert names(other, "failed") == names(other, "deferred") == []


def test_a_holder_whose_host_is_dead_is_followed_after_its_lease_even_if_its_lock_is_not_freed(
    inbox_dir: Path,
) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        element = take(one)
        cut_off(one, lock_too=False)
        began = monotonic()
        while True:
            try:
                again = take(other)
                break
            except InboxBusy:
                sleep(0.05)
        assert 0.5 < monotonic() - began < 3
        assert again.key == "a"
        with pytest.raises(LeaseLost):
            element.ack()
        (held,) = leases(other._handle.layout)
        assert (held.epoch, held.locked) == (2, False)


def test_without_one_clock_a_holder_counts_as_dead_when_its_sign_was_seen_not_to_change(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fsinbox.store.network.sharing,
        "sharing_of",
        lambda path, mount: Sharing("fuse.glusterfs", one_clock=False),
    )
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        take(one)
        hour = 3600 * 10**9
        monkeypatch.setattr(
            "fsinbox.consumer.lease.server_clock", lambda layout: os.stat(inbox_dir).st_mtime_ns + hour
        )
        with pytest.raises(InboxBusy):  # an hour old, but it changes
            other.take()
        cut_off(one, lock_too=False)
        assert take(other).key == "a"


def test_a_loser_is_woken_and_told(inbox_dir: Path) -> None:
    """By its own sign of life that finds nothing: it need not take or acknowledge to learn it."""
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        element = take(one)
        lease_of(one).unlock()
        take(other)
        until = monotonic() + 5
        while not lease_of(one).lost and monotonic() < until:
            sleep(0.02)
        with pytest.raises(LeaseLost):
            one.check_lease()
        with pytest.raises(LeaseLost):
            element.ack()


def test_what_lies_in_inflight_itself_is_brought_in(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text", scope="local") as inbox:
        inbox.add("a", "1")
        take(inbox)
        os.rename(inbox_dir / "pending", inbox_dir / "pending")
        inbox._taking().claims.clear()
        consumer, inbox._taking().consumer = inbox._taking().consumer, None
        assert consumer
        consumer.ownership.close()  # as if it had died
    assert len(os.listdir(inbox_dir / "inflight")) == 1
    (inbox_dir / "format").write_text("fsinbox 2 network\n")
    (inbox_dir / "index").unlink()
    with opened(inbox_dir) as shared:
        shared.add("b", "2")
        assert drain(shared) == [("a", "1"), ("b", "2")]


def test_a_file_that_another_host_has_open_keeps_no_folder(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        assert one.take() is None
        Path(inbox_dir, lease_of(one).layout.inflight, ".nfs0000001").touch()
        cut_off(one)
        assert other.take() is None
        assert len(names(other, "inflight")) == 1


# --- what may come in between, and what the system may refuse -----------------------------------------

FIRST = "lease-1of1-0000000001"


def stopped(inbox: Inbox) -> str:
    """Have it take what waits, and be cut off; return the name of its folder."""
    inbox.take()
    name = lease_of(inbox)._name
    cut_off(inbox)
    return name


def takes_its(name: str, *_: object) -> bool:
    """For `when`: a call for this holder's folder."""
    return name == FIRST


def test_of_two_that_become_the_consumer_at_once_one_is_refused(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        with (
            meanwhile("mkdir", lambda: (inbox_dir / "inflight" / FIRST).mkdir()),
            pytest.raises(InboxBusy, match="already has a consumer"),
        ):
            one.take()
        assert names(one, "inflight") == [FIRST]  # the other one's is left to it


def test_of_two_that_a_file_system_let_make_the_same_folder_one_is_refused(inbox_dir: Path) -> None:
    """GlusterFS does that now and then; .lease in it only one can make."""
    lease = inbox_dir / "inflight" / FIRST / ".lease"

    def of_lease(name: str, flags: int = 0, *_: object) -> bool:
        return name == ".lease" and bool(flags & os.O_CREAT)

    with opened(inbox_dir) as one:
        one.add("a", "1")
        with (
            meanwhile("open", lambda: lease.write_text("another\n15 locked\n"), when=of_lease),
            pytest.raises(InboxBusy),
        ):
            one.take()
        assert lease.read_text() == "another\n15 locked\n"
        assert names(one, "pending") != []


def test_a_holder_that_has_not_yet_said_who_it_is_is_dead_if_the_lock_is_free(inbox_dir: Path) -> None:
    """It was killed before it left word; or it is paused there, and finds then that it is too late."""
    with opened(inbox_dir, lease=60) as one:
        one.add("a", "1")
        (inbox_dir / "inflight" / FIRST).mkdir()
        began = monotonic()
        assert drain(one) == [("a", "1")]
        assert monotonic() - began < 5
        assert names(one, "inflight") == ["lease-1of1-0000000002"]


def test_a_holder_that_has_not_said_who_it_is_lives_while_its_folder_is_young_and_somebody_has_the_lock(
    inbox_dir: Path,
) -> None:
    with opened(inbox_dir) as one, (inbox_dir / "consumer.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a host that was cut off, of a server that leaves it the lock
        one.add("a", "1")
        (inbox_dir / "inflight" / FIRST).mkdir()
        with pytest.raises(InboxBusy):
            one.take()
        os.utime(inbox_dir / "inflight" / FIRST, ns=(1, 1))
        assert drain(one) == [("a", "1")]
        assert names(one, "inflight") == ["lease-1of1-0000000002"]


def test_a_holder_whose_folder_is_taken_away_before_it_left_word_is_refused(inbox_dir: Path) -> None:
    def of_lease(name: str, flags: int = 0, *_: object) -> bool:
        return name == ".lease" and bool(flags & os.O_CREAT)

    with opened(inbox_dir) as one:
        one.add("a", "1")
        with (
            meanwhile("open", lambda: (inbox_dir / "inflight" / FIRST).rmdir(), when=of_lease),
            pytest.raises(InboxBusy),
        ):
            one.take()
        assert drain(one) == [("a", "1")]


def test_a_folder_that_is_made_late_keeps_nobody(inbox_dir: Path) -> None:
    """A host was cut off, and killed, when it was about to become the consumer; its mkdir comes when others
    have followed."""
    with opened(inbox_dir) as first:
        first.add("a", "1")
        stopped(first)
        with opened(inbox_dir) as one:
            take(one).nack()
            (inbox_dir / "inflight" / FIRST).mkdir()
            assert drain(one) == [("a", "1")]
            one.add("b", "2")
    with opened(inbox_dir, lease=60) as other:
        began = monotonic()
        assert drain(other) == [("b", "2")]
        assert monotonic() - began < 5
        assert len(names(other, "inflight")) == 1


def test_who_becomes_the_consumer_late_finds_that_others_have_followed(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, but it lives, and goes on."""
    monkeypatch.setattr(
        "fsinbox.consumer.ownership.try_lock", lambda layout, fd, how: True
    )  # the server has freed it
    with opened(inbox_dir) as late, opened(inbox_dir) as one, opened(inbox_dir) as other:
        other.add("a", "1")

        def meanwhile_others() -> None:
            stopped(one)
            assert take(other).key == "a"

        def makes_its(name: str, *_: object) -> bool:
            return name == FIRST

        with (
            meanwhile("mkdir", meanwhile_others, when=makes_its),
            pytest.raises(InboxBusy, match="already has a consumer"),
        ):
            late.take()
        assert names(other, "inflight") == ["lease-1of1-0000000002"]
        (claim,) = other._taking().claims.values()
        claim.acknowledge()


def test_what_a_cut_off_consumer_moves_late_comes_too_late(inbox_dir: Path) -> None:
    """Into its folder, which is gone, and out of it, where nothing is left."""
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        for key in "ab":
            one.add(key, "1")
        element = take(one)
        layout, (waiting,) = (
            one._handle.layout,
            [name for name in names(one, "pending") if name.endswith("-b")],
        )
        own, name = layout.folder("inflight"), element._claim.taken.name
        cut_off(one)
        again = take(other)
        assert again.key == "a"
        for source, target, file in (
            ("pending", own, waiting),
            (own, "pending", name),
            (own, "failed", name),
        ):
            with pytest.raises(FileNotFoundError):
                os.rename(
                    file,
                    file,
                    src_dir_fd=layout.folder(source) if isinstance(source, str) else source,
                    dst_dir_fd=layout.folder(target) if isinstance(target, str) else target,
                )
        again.ack()
        assert drain(other) == [("b", "1")]


def test_a_lease_that_says_nonsense_lasts_as_long_as_ones_own(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        (inbox_dir / "inflight" / FIRST).mkdir()
        lease = inbox_dir / "inflight" / FIRST / ".lease"
        lease.write_bytes(b"\x1b[31mwho\n1e9 locked")
        (held,) = leases(one._handle.layout)
        assert (held.holder, held.lasts, held.locked) == ("?[31mwho", 0.0, True)
        one.take()  # it says that it had the lock, which is free


def test_who_has_the_lock_but_no_folder_yet_is_about_to_be_the_consumer(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.take()
        lease_of(one).layout.enter_claim("")
        for name in os.listdir(inbox_dir / "inflight" / FIRST):
            os.unlink(inbox_dir / "inflight" / FIRST / name)
        os.rmdir(inbox_dir / "inflight" / FIRST)
        with pytest.raises(InboxBusy):
            other.take()


@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOENT])
def test_a_lease_that_goes_while_it_is_read_is_none(inbox_dir: Path, error: int) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.take()
        with refusing(read=error):
            assert leases(other._handle.layout) == []


def test_a_holder_that_ends_while_it_is_watched_is_followed_at_once(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fsinbox.store.network.sharing,
        "sharing_of",
        lambda path, mount: Sharing("fuse.glusterfs", one_clock=False),
    )
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        one.take()
        hour = 3600 * 10**9
        monkeypatch.setattr(
            "fsinbox.consumer.lease.server_clock", lambda layout: os.stat(inbox_dir).st_mtime_ns + hour
        )
        monkeypatch.setattr("fsinbox.consumer.lease.sleep", lambda seconds: one.close())
        assert take(other).key == "a"


def test_a_holder_that_ends_just_before_it_is_fenced_leaves_nothing_to_do(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        name = stopped(one)
        path = inbox_dir / "inflight" / name

        def end() -> None:
            (path / ".lease").unlink()
            path.rmdir()

        def fenced(called: str, *_: object) -> bool:
            return (
                called == name and len(os.listdir(inbox_dir / "inflight")) == 2 and unlisted.pop() == "fenced"
            )

        unlisted = ["fenced", "listed"]  # its lease is read first
        other.add("a", "1")
        with meanwhile("open", end, when=fenced):
            assert take(other).key == "a"
        assert names(other, "inflight") == ["lease-1of1-0000000002"]


def test_what_a_holder_takes_while_it_is_fenced_comes_along(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        stopped(one)
        other.add("b", "2")
        with meanwhile(
            "rmdir", lambda: one._taking().consumer and one._taking().consumer._take_next(), when=takes_its
        ):
            assert [take(other).key, other.take()] == ["a", None]  # suspects, both
        other._taking().the_one_in_flight("ack").acknowledge()
        assert drain(other) == [("b", "2")]
        assert names(other, "inflight") == ["lease-1of1-0000000002"]


def test_a_folder_that_is_gone_when_it_is_to_be_removed_is_as_good(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        stopped(one)
        with meanwhile("rmdir", (inbox_dir / "inflight" / FIRST).rmdir, when=takes_its):
            assert take(other).key == "a"


def test_a_folder_that_the_server_does_not_know_any_more_is_as_good(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        stopped(one)
        with refusing(rmdir=errno.ESTALE, when=takes_its):
            assert take(other).key == "a"


def test_a_holder_that_cannot_be_fenced_is_not_followed(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        stopped(one)
        with (
            refusing(rmdir=errno.EIO, when=takes_its),
            pytest.raises(UnusableInbox, match="Input/output error"),
        ):
            other.take()
        assert other._taking().consumer is None
        os.utime(
            inbox_dir / "inflight" / FIRST, ns=(1, 1)
        )  # as if it had lain there for long: it has no .lease any more
        assert (
            take(other).key == "a"
        )  # of the other one nothing is lost, and this one has let go of everything


def test_fencing_is_not_tried_for_ever(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in it, or a file that the system brings back as long as another process of this host has it
    open (NFS)."""
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        stopped(one)
        clock = iter(range(0, 100_000, 20))
        monkeypatch.setattr("fsinbox.consumer.lease.monotonic", lambda: next(clock))
        with refusing(rmdir=errno.ENOTEMPTY, when=takes_its), pytest.raises(UnusableInbox, match="not empty"):
            other.take()


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "listdir"])
def test_a_consumer_that_the_system_refuses_to_begin_leaves_nothing_behind(
    inbox_dir: Path, call: str
) -> None:
    def concerned(name: object, *_: object) -> bool:
        return call != "open" or name == ".lease"

    with opened(inbox_dir, lease=60) as one, opened(inbox_dir, lease=60) as other:
        one.add("a", "1")
        with refusing(when=concerned, **{call: errno.EMFILE}), pytest.raises(UnusableInbox):
            one.take()
        assert one._taking().consumer is None
        assert names(one, "inflight") == []
        assert take(other).key == "a"
        with pytest.raises(InboxBusy):
            one.take()


def test_a_consumer_that_can_start_no_thread_leaves_no_lock_behind(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(inbox_dir) as one:
        one.add("a", "1")

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                one.take()
        with opened(inbox_dir) as other:
            assert take(other).key == "a"


def test_a_sign_of_life_that_the_system_refuses_is_given_again(inbox_dir: Path) -> None:
    hits = threading.Event()

    def signed(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "utime" and arguments == (".lease",) and not hits.is_set():
            hits.set()
            raise OSError(errno.EIO, "no")
        return call(*arguments, **more)

    with opened(inbox_dir) as one:
        one.take()
        with intercepted(signed):
            assert hits.wait(5)
        before = lease_of(one)._last_beat
        wait_until(lambda: lease_of(one)._last_beat > before)
        assert one.take() is None


def test_who_has_not_given_a_sign_of_life_for_long_asks_before_it_takes(inbox_dir: Path) -> None:
    with opened(inbox_dir, lease=60) as one:
        one.add("a", "1")
        one.become_consumer()
        lease_of(one)._last_beat -= 31
        with (
            refusing(utime=errno.EIO),
            pytest.raises(UnusableInbox, match=r"cannot renew the lease .*mend that, start anew"),
        ):
            one.take()
        assert names(one, "pending") != []
        assert take(one).key == "a"
        assert monotonic() - lease_of(one)._last_beat < 30


def test_a_loser_that_nobody_listens_to_is_quiet(inbox_dir: Path) -> None:
    layout = Layout(str(inbox_dir), scope="network")
    lease = Lease(layout, WHOLE, 1, Rival())
    try:
        os.unlink(inbox_dir / "inflight" / FIRST / ".lease")
        wait_until(lambda: lease.lost)
        with pytest.raises(LeaseLost):
            lease.verify()
    finally:
        lease.close()
        layout.close()


def test_closing_after_the_lease_was_lost_is_no_error(inbox_dir: Path) -> None:
    """What was out is with another consumer: there is nothing to put back, and nothing to complain of."""
    with opened(inbox_dir) as other:
        one = opened(inbox_dir)
        one.add("a", "1")
        element = take(one)
        lease_of(one).unlock()
        again = take(other)
        wait_until(lambda: one._taking().consumer and one._taking().consumer.ownership.lost)
        one.close()
        with pytest.raises(LeaseLost):
            element.ack()
        again.ack()
        assert drain(other) == []


def test_closing_after_the_lease_was_lost_in_the_middle_of_a_take_is_no_error(inbox_dir: Path) -> None:
    with opened(inbox_dir) as other:
        one = opened(inbox_dir)
        one.add("a", "1")
        take(one)
        one._taking().claims.clear()
        cut_off(one)
        take(other)
        one.close()


def test_an_element_of_a_lost_lease_does_not_end_the_one_that_was_had_since(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        for key in "ab":
            one.add(key, "1")
        first, second = take(one), take(one)
        cut_off(one)
        with opened(inbox_dir) as other:
            assert take(other).key == "a"
            with pytest.raises(LeaseLost):
                first.ack()
        again = take(one)
        assert again.key == "a"
        for _ in range(2):
            with pytest.raises(LeaseLost):
                second.ack()
        again.ack()
        assert drain(one) == [("b", "1")]


def test_a_consumer_that_cannot_clear_up_at_its_end_can_begin_again(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        one.take()
        consumer, one._taking().consumer = one._taking().consumer, None
        assert consumer
        with refusing(open=errno.EMFILE, when=lambda name, *_: name == "."):
            consumer.close()
        assert names(one, "inflight") == [FIRST]
        one.add("a", "1")
        assert drain(one) == [("a", "1")]
        assert names(one, "inflight") == ["lease-1of1-0000000002"]


def test_a_listing_of_what_is_out_passes_over_a_consumer_that_has_just_ended(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        one.take()
        path = inbox_dir / "inflight" / "lease-1of2-0000000001"
        path.mkdir()
        with meanwhile("open", path.rmdir, when=lambda name, *_: name == path.name):
            assert one._handle.layout.in_flight() == []
        one.add("a", "1")
        take(one)
        for error in (errno.ESTALE, errno.ENOENT):
            with refusing(listdir=error, when=of_its_folder(one)):
                assert one._handle.layout.in_flight() == []
        with (
            refusing(listdir=errno.EIO, when=of_its_folder(one)),
            pytest.raises(OSError, match="Input/output"),
        ):
            one._handle.layout.in_flight()
        assert [folder for folder, _ in one._handle.layout.in_flight()] == [f"inflight/{FIRST}"]


def of_its_folder(inbox: Inbox) -> Callable[[int], bool]:
    """For `when`: a listing of its consumer's folder."""
    own = os.fstat(inbox._handle.layout.folder("inflight"))
    return lambda fd: os.path.samestat(os.fstat(fd), own)


def test_what_was_out_with_a_consumer_that_has_ended_is_gone_not_an_error(inbox_dir: Path) -> None:
    """`ls` has listed it there, and looks at it now."""
    with opened(inbox_dir) as one, opened(inbox_dir) as looker:
        one.add("a", "1")
        element = take(one)
        (row,) = rows(looker.layout, ("in_flight",))
        assert row.folder == f"inflight/{FIRST}"
        element.ack()
        one.close()
        assert row.size(looker.layout) is None
        assert find(looker.layout, "a") is None


def test_who_consumes_can_be_told_on_a_full_disk(inbox_dir: Path) -> None:
    def in_tmp(name: str, flags: int = 0, *_: object) -> bool:
        return bool(flags & os.O_CREAT)

    with opened(inbox_dir) as one:
        one.take()
        with refusing(open=errno.ENOSPC, when=in_tmp):
            (found,) = consumers(one._handle.layout)
        assert str(found["holder"]).startswith(f"pid {os.getpid()} on ")
        assert not found["lapsed"]


def test_the_group_may_take_over_whatever_the_umask(inbox_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        with Inbox(inbox_dir, codec="text", scope="network", shared=True) as one:
            one.add("a", "1")
            element = take(one)
            folder = inbox_dir / "inflight" / FIRST
            assert stat.S_IMODE(folder.stat().st_mode) == 0o2770
            assert stat.S_IMODE((folder / ".lease").stat().st_mode) == 0o660
            assert stat.S_IMODE(os.stat(element.path).st_mode) == 0o660
    finally:
        os.umask(before)


@pytest.mark.parametrize("lease", [0.5, 90_000, float("inf"), float("nan")])
def test_a_lease_lasts_a_second_to_a_day(inbox_dir: Path, lease: float) -> None:
    with pytest.raises(ValueError, match=r"1 to 86400 seconds|lease: invalid duration"):
        Inbox(inbox_dir, lease=lease)
    assert not inbox_dir.exists()


# --- forks --------------------------------------------------------------------------------------------

PARENT = """
import os, signal, sys, time
from fsinbox import Inbox, WrongState

inbox = Inbox(sys.argv[1], codec="text", scope="network", lease=60)
inbox.add("a", "1")
element = inbox.take()
child = os.fork()
if child == 0:
    inbox.add("b", "2")
    try:
        element.ack()
    except WrongState:
        inbox.close()
        with open(sys.argv[2] + ".new", "w") as word:
            word.write(str(os.getpid()))
        os.rename(sys.argv[2] + ".new", sys.argv[2])
    time.sleep(60)
    os._exit(0)
until = time.monotonic() + 20
while not os.path.exists(sys.argv[2]) and time.monotonic() < until:
    time.sleep(0.01)
"""
"""Its child writes its process id to the file that is the second argument when it has done what a child
does."""


def test_a_forked_child_of_a_consumer_adds_and_leaves_its_lease_alone(
    inbox_dir: Path, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    ends = """
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
element.ack()
element = inbox.take()
print(element.key, element.value)
element.ack()
inbox.close()
"""
    assert run_python(PARENT + ends, inbox_dir, tmp_path / "child") == "b 2"
    assert (tmp_path / "child").exists()
    assert os.listdir(inbox_dir / "inflight") == []


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lock_of_a_shared_inbox(
    inbox_dir: Path,
    tmp_path: Path,
    start_python: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # as on the server itself, like the other process
    parent = start_python(PARENT + "time.sleep(60)\n", inbox_dir, tmp_path / "child")
    wait_until((tmp_path / "child").exists)
    try:
        parent.kill()
        parent.wait()
        with Inbox(inbox_dir, codec="text", lease=60) as other:
            element = take(other)  # at once, not in a minute
            assert (element.key, element.attempts) == ("a", 2)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_fork_at_the_moment_of_a_sign_of_life_is_no_deadlock(inbox_dir: Path) -> None:
    """The thread that gives them may be in the midst of anything; in the child it is not there to finish
    that."""
    with opened(inbox_dir) as one:
        one.add("a", "1")
        element = take(one)
        with lease_of(one)._ended._cond:
            child = os.fork()
            if child == 0:
                os._exit(0)
        until = monotonic() + 10
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            sleep(0.01)
        element.ack()


# --- as a command -------------------------------------------------------------------------------------

CONSUME = [
    sys.executable,
    "-m",
    "fsinbox",
    "consume",
    "--lease",
    "1",
    "--codec",
    "text",
    "--exec",
    "sleep 0.05",
]


def test_a_standby_takes_over_from_a_consumer_that_was_stopped(inbox_dir: Path, tmp_path: Path) -> None:
    Inbox(inbox_dir, scope="network").close()
    environment = os.environ | {"FSINBOX_DIR": str(inbox_dir), "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        with (tmp_path / name).open("wb") as log:
            return subprocess.Popen([*CONSUME, *words], env=environment, stderr=log)

    def until(holds: Callable[[], bool]) -> None:
        limit = monotonic() + 20
        while not holds():
            assert monotonic() < limit
            sleep(0.02)

    def holder() -> str:
        found = leases_now(inbox_dir)
        return found[0] if found else ""

    active = start("active")
    standby = None
    try:
        until(lambda: f"pid {active.pid} " in holder())
        standby = start("standby", "--standby")
        until(lambda: f"standing by: pid {active.pid} " in (tmp_path / "standby").read_text())
        with opened(inbox_dir) as producer:
            producer.add("a", "1")
            until(lambda: not names(producer, "pending"))
            active.send_signal(signal.SIGSTOP)
            producer.add("b", "2")
            until(lambda: f"pid {standby.pid} " in holder())
            until(lambda: not names(producer, "pending"))
            active.send_signal(signal.SIGCONT)
            assert active.wait(20) == 4
            assert "another consumer has taken over" in (tmp_path / "active").read_text()
            status = subprocess.run(
                [sys.executable, "-m", "fsinbox", "status"],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            assert f"consumer  pid {standby.pid} on " in status.stdout
            assert "epoch 2, heartbeat " in status.stdout
        standby.terminate()
        assert standby.wait(20) == 0
    finally:
        for process in (active, standby):
            if process and process.poll() is None:
                process.kill()
                process.wait()


def leases_now(path: Path) -> list[str]:
    """Return who holds a lease, the latest first."""
    layout = Layout(str(path))
    try:
        return [held.holder for held in leases(layout)]
    finally:
        layout.close()


# --- who waits to be the next -------------------------------------------------------------------------


def without_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GlusterFS."""
    sharing = Sharing("fuse.glusterfs", one_clock=False)
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: sharing)


def stand_by(inbox: Inbox) -> float:
    """Wait as a standby does, but look more often; return after how many seconds it is the consumer."""
    began = monotonic()
    for _ in standing_by(inbox, lambda: False):
        assert monotonic() < began + 20
    return monotonic() - began


@pytest.mark.parametrize("one_clock", [True, False])
def test_a_standby_takes_over_as_soon_as_the_lease_has_lapsed(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, one_clock: bool
) -> None:
    """Also where nothing follows from how old a heartbeat looks: not after twice the time."""
    monkeypatch.setattr("fsinbox.worker.comings._STANDBY", 0.1)
    if not one_clock:
        without_one_clock(monkeypatch)
    with opened(inbox_dir, lease=3) as one, opened(inbox_dir, lease=3) as other:
        one.become_consumer()
        stopper = threading.Timer(1.5, lambda: cut_off(one, lock_too=False))
        stopper.start()
        assert 3.2 < stand_by(other) < 5.5


def test_a_standby_takes_over_from_who_has_left_the_lock(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsinbox.worker.comings._STANDBY", 0.1)
    with opened(inbox_dir, lease=60) as one, opened(inbox_dir, lease=60) as other:
        one.become_consumer()
        threading.Timer(0.5, lambda: cut_off(one)).start()
        assert 0.4 < stand_by(other) < 4


def test_a_standby_that_waits_asks_for_the_lock_and_nothing_else(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def record(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append(name)
        return call(*arguments, **more)

    with opened(inbox_dir, lease=60) as one, opened(inbox_dir, lease=60) as other:
        one.become_consumer()
        with pytest.raises(InboxBusy):
            other.become_consumer()
        assert not other.may_become_consumer()  # which opens the lock's file
        with intercepted(record):
            assert not other.may_become_consumer()
            assert not calls
            monkeypatch.setattr("fsinbox.consumer.rival.monotonic", lambda: monotonic() + 2)
            assert not other.may_become_consumer()
        assert calls == ["flock"]


@pytest.mark.parametrize("scope", ["local", "network"])
def test_who_has_found_nobody_in_the_way_may_become_the_consumer(inbox_dir: Path, scope: str) -> None:
    with Inbox(inbox_dir, scope=scope) as inbox:
        assert inbox.may_become_consumer()
        inbox.become_consumer()


def test_a_standby_follows_the_heartbeats(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.become_consumer()
        with pytest.raises(InboxBusy):
            other.become_consumer()
        until = monotonic() + 2.5
        while monotonic() < until:
            assert not other.may_become_consumer()
            sleep(0.05)
        cut_off(one, lock_too=False)
        wait_until(other.may_become_consumer)


@pytest.mark.parametrize("what", ["ended", "its lock's file is gone"])
def test_a_standby_tries_when_the_consumer_is_gone(inbox_dir: Path, what: str) -> None:
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.become_consumer()
        with pytest.raises(InboxBusy):
            other.become_consumer()
        if what == "ended":
            cut_off(one, lock_too=False)
            for name in os.listdir(inbox_dir / "inflight" / FIRST):
                os.unlink(inbox_dir / "inflight" / FIRST / name)
            os.rmdir(inbox_dir / "inflight" / FIRST)
            sleep(1.1)
        else:
            os.unlink(inbox_dir / "consumer.lock")
        assert other.may_become_consumer()


def test_a_lease_that_cannot_be_read_is_an_error(inbox_dir: Path) -> None:
    with opened(inbox_dir) as one:
        one.become_consumer()
        with (
            refusing(open=errno.EIO, when=lambda name, *_: name == ".lease"),
            pytest.raises(OSError, match="Input/output"),
        ):
            leases(one._handle.layout)
