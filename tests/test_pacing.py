"""`consume --rate` and `--expire`: not too fast, and not too old."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click
import pytest
from helpers import contents, reason
from test_consume import Place

from fsinbox import Element, Inbox
from fsinbox.cli.options import RATE
from fsinbox.worker.backoff import Backoff, Retries
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.outcome import DONE
from fsinbox.worker.pacing import Breaker, Pacing, Rate
from fsinbox.worker.runner import Runner


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    place.jobs("def job(element): note(time.monotonic(), element.key, element.attempts)")
    return place


# --- rate ---------------------------------------------------------------------------------------------


def test_a_bucket_holds_a_second_and_fills_evenly(monkeypatch: pytest.MonkeyPatch, inbox_dir: Path) -> None:
    now = [100.0]
    monkeypatch.setattr("fsinbox.worker.pacing.monotonic", lambda: now[0])
    rate = Rate(4)
    for _ in range(4):
        assert rate.wait(0) == 0
        rate.took()
    assert rate.wait(0) == pytest.approx(0.25)
    now[0] += 0.25
    assert rate.wait(3) == 0
    rate.took()
    now[0] += 3600
    took = 0
    while rate.wait(0) == 0:
        rate.took()
        took += 1
    assert took == 4
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        rate.ended(element, DONE)
    slow = Rate(1 / 3600)
    assert slow.wait(0) == 0
    slow.took()
    assert slow.wait(0) == pytest.approx(3600)


def test_the_longest_wait_of_all_gates_counts() -> None:
    rate = Rate(1)
    pacing = Pacing(Breaker(3), rate)
    assert pacing.wait(0) == 0
    pacing.took()
    assert 0.9 < (pacing.wait(0) or 0) <= 1
    assert Pacing().wait(7) == 0


def test_a_rate_is_kept(place: Place) -> None:
    place.add(*map(str, range(12)))
    place.drain("--rate", "5/s")
    times = [float(note.split()[0]) for note in place.notes]
    assert len(times) == 12
    assert times[-1] - times[0] >= 1.0  # seven of them, at five a second


def test_a_drain_that_is_through_does_not_wait_for_its_next_turn(place: Place) -> None:
    place.add("a")
    began = time.monotonic()
    place.drain("--rate", "1/h")
    assert time.monotonic() - began < 30
    assert len(place.notes) == 1


def test_what_waits_for_its_turn_can_be_replaced_and_a_kill_leaves_it_where_it_is(place: Place) -> None:
    place.add("a", "b")
    with place.consumer("--handler", "jobs:job", "--rate", "1/h") as consumer:
        consumer.until(lambda: len(place.notes) == 1 and not os.listdir(place.inbox / "inflight"))
        place.add(b="newer")
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    assert contents(place.inbox) == {"b": b'"newer"'}
    place.drain("--rate", "100/s")
    assert [note.split()[1:] for note in place.notes] == [["a", "1"], ["b", "1"]]


def test_a_drain_waits_for_what_has_its_turn_later(place: Place) -> None:
    place.add("a", "b")
    place.drain("--rate", "1/1.5s")
    assert len(place.notes) == 2


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", 10), ("90/m", 1.5), ("1/30s", 1 / 30), ("0.5/s", 0.5), ("36/h", 0.01)]
)
def test_rates(text: str, rate: float) -> None:
    assert RATE.convert(text, None, None) == pytest.approx(rate)
    assert RATE.convert(float(rate), None, None) == rate


@pytest.mark.parametrize("text", ["10", "/s", "0/s", "-1/s", "10/", "10/x", "10/0s", "ten/s", "1m/s"])
def test_what_is_not_a_rate(text: str) -> None:
    with pytest.raises(click.BadParameter, match="use 10/s"):
        RATE.convert(text, None, None)


# --- expiry -------------------------------------------------------------------------------------------


def make_older(place: Place, key: str, seconds: float) -> None:
    """Have the waiting element of this key have been queued so long ago."""
    (path,) = (place.inbox / "pending").glob(f"*-{key}")
    old = time.time() - seconds
    os.utime(path, (old, old))
    os.rename(path, path.with_name(f"{int(old * 1e9)}-{key}"))
    (place.inbox / "index").unlink()


def test_what_is_too_old_goes_to_failed_without_a_try(place: Place) -> None:
    place.add("old")
    make_older(place, "old", 2 * 86400)
    place.add("young")
    words = ("--expire", "1d", "--on-failed", 'echo "0 $FSINBOX_KEY $FSINBOX_REASON" >>notes')
    done = place.drain(*words, status=1)
    assert place.left() == {"failed": ["old"]}
    assert "expired: queued 2d0h ago, more than 1d0h" in reason(place.inbox, "old")
    assert "1 acknowledged, 0 requeued, 0 dropped for a newer value, 1 failed" in done.stderr
    said = sorted(note.split(maxsplit=1)[1] for note in place.notes)
    assert said == ["old expired: queued 2d0h ago, more than 1d0h", "young 1"]


def test_a_newer_value_has_its_own_time_and_so_does_a_retry(place: Place) -> None:
    place.add("a")
    make_older(place, "a", 3600)
    place.add("a")
    place.drain("--expire", "10m")
    assert place.left() == {}
    assert len(place.notes) == 1


def test_what_backs_off_expires_too(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(element: Element) -> None:
        monkeypatch.setattr(Element, "age", property(lambda self: 100.0))  # that is how long it takes
        raise OSError("down")

    with Inbox(inbox_dir, durable=False) as inbox:
        inbox.add("a", 1)
        handler = FunctionHandler("handle", handle)
        tally = Runner(inbox, handler, expire=60, retries=Retries(backoff=Backoff(0, 0)), drain=True).run()
    assert (tally.retried, tally.failed) == (1, 1)
    assert "expired: queued 1m40s ago" in reason(inbox_dir, "a")


def test_a_killed_consumer_makes_nothing_younger(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.key)\n    wait_for('never')")
    place.add("a")
    with place.consumer("--handler", "jobs:job", "--expire", "1h") as consumer:
        consumer.until(lambda: place.notes)
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    time.sleep(1)
    place.drain("--expire", "1", status=1)
    assert place.notes == ["a"]
    assert place.left() == {"failed": ["a"]}


def test_what_was_added_for_later_is_as_old_as_it_is_due(place: Place) -> None:
    with Inbox(place.inbox, durable=False) as inbox:
        inbox.add("a", 1, delay=3)
    place.drain("--expire", "2.5")
    assert len(place.notes) == 1
    assert place.left() == {}
