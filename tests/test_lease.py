"""The consumer's lease in an inbox that several hosts share: who has lost it can take and acknowledge nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

import fsinbox.hosts
from fsinbox import Inbox, InboxBusy, LeaseLost, survey
from fsinbox.hosts import Sharing
from fsinbox.lease import Lease, leases
from tests.usual import drain, names, take


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a client, whose clock is the server's."""
    monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: Sharing("nfs4", opens_first=True))


def opened(path: Path, lease: float = 1.0) -> Inbox:
    return Inbox(path, codec="text", scope="network", lease=lease, max_inflight=4)


def lease_of(inbox: Inbox) -> Lease:
    consumer = inbox._consumer
    assert consumer and isinstance(consumer._hold, Lease)
    return consumer._hold


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
        (found,) = survey.consumers(one._layout)
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
                element.fail("no good") if end == "fail" else getattr(element, end)(60 if end == "nack" else 0)
        assert names(other, "failed") == names(other, "deferred") == []


def test_a_holder_whose_host_is_dead_is_followed_after_its_lease_even_if_its_lock_is_not_freed(inbox_dir: Path) -> None:
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
        (held,) = leases(other._layout)
        assert (held.epoch, held.locked) == (2, False)


def test_without_one_clock_a_holder_counts_as_dead_when_its_sign_was_seen_not_to_change(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: Sharing("fuse.glusterfs", one_clock=False))
    with opened(inbox_dir) as one, opened(inbox_dir) as other:
        one.add("a", "1")
        take(one)
        hour = 3600 * 10**9
        monkeypatch.setattr("fsinbox.lease.server_clock", lambda layout: os.stat(inbox_dir).st_mtime_ns + hour)
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
        inbox._elements.clear()
        consumer, inbox._consumer = inbox._consumer, None
        assert consumer
        consumer._hold.close()  # as if it had died
    assert len(os.listdir(inbox_dir / "inflight")) == 1
    (inbox_dir / "format").write_text("fsinbox 1 network\n")
    (inbox_dir / "sequence").unlink()
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


# --- as a command --------------------------------------------------------------------------------------------------

CONSUME = [sys.executable, "-m", "fsinbox", "consume", "--lease", "1", "--codec", "text", "--exec", "sleep 0.05"]


def test_a_standby_takes_over_from_a_consumer_that_was_stopped(inbox_dir: Path) -> None:
    Inbox(inbox_dir, scope="network").close()
    environment = os.environ | {"FSINBOX_DIR": str(inbox_dir), "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*CONSUME, *words], env=environment, stderr=subprocess.PIPE, text=True)

    def until(holds: Callable[[], bool]) -> None:
        limit = monotonic() + 20
        while not holds():
            assert monotonic() < limit
            sleep(0.02)

    def holder() -> str:
        found = leases_now(inbox_dir)
        return found[0] if found else ""

    active = start()
    standby = None
    try:
        until(lambda: f"pid {active.pid} " in holder())
        standby = start("--standby")
        with opened(inbox_dir) as producer:
            producer.add("a", "1")
            until(lambda: not names(producer, "pending"))
            active.send_signal(signal.SIGSTOP)
            producer.add("b", "2")
            until(lambda: f"pid {standby.pid} " in holder())
            until(lambda: not names(producer, "pending"))
            active.send_signal(signal.SIGCONT)
            _, said = active.communicate(timeout=20)
            assert active.returncode == 4
            assert "another consumer has taken over" in said
            status = subprocess.run(
                [sys.executable, "-m", "fsinbox", "status"], env=environment, capture_output=True, text=True, check=True
            )
            assert f"consumer  pid {standby.pid} on " in status.stdout
            assert "epoch 2, sign of life " in status.stdout
        standby.terminate()
        _, said = standby.communicate(timeout=20)
        assert f"standing by: pid {active.pid} " in said
        assert standby.returncode == 0
    finally:
        for process in (active, standby):
            if process and process.poll() is None:
                process.kill()
                process.communicate()


def leases_now(path: Path) -> list[str]:
    """Return who holds a lease, the latest first."""
    from fsinbox.layout import Layout

    layout = Layout(str(path))
    try:
        return [held.holder for held in leases(layout)]
    finally:
        layout.close()
