"""What a consumer says of its work (stats/): totals that go on, what runs now, and nothing that an odd file
could upset."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Consumer, run, wait_until

from fsinbox import Inbox
from fsinbox.consumer.ownership import WHOLE, Shard
from fsinbox.operate import stats as module
from fsinbox.operate.stats import FAILURES, MINUTES, ConsumerStats, StatsWriter, read_stats
from fsinbox.store.layout import Layout
from tests.shim import refusing

HANDLER = """
import pathlib, time
def work(key, value):
    if value == "bad":
        raise ValueError("no good")
    while value == "slow" and not pathlib.Path("go").exists():
        time.sleep(0.01)
"""


@pytest.fixture
def layout(inbox_dir: Path) -> Iterator[Layout]:
    layout = Layout(str(inbox_dir))
    yield layout
    layout.close()


def account(layout: Layout, shard: Shard = WHOLE) -> StatsWriter:
    return StatsWriter(layout, shard, "tasks:work", 2)


def test_totals_go_on_after_a_restart(inbox_dir: Path, layout: Layout) -> None:
    one = account(layout)
    one.started("a", 1, 1, replaced=True, latency=0.5)
    one.started("b", 2, 3, replaced=True, latency=None)
    one.ended("a", 1, "acknowledged", "", 2.0)
    one.write()
    (found,) = read_stats(layout)
    assert [running.key for running in found.running] == ["b"]
    assert not found.stopped
    two = account(layout)
    two.started("c", 3, 1, replaced=False, latency=None)
    two.ended("c", 3, "failed", "no good", 1.0)
    two.ended("b", 2, "superseded", "", 0.0)
    two.write(stopped=True)
    (found,) = read_stats(layout)
    assert found.stopped
    totals = found.totals
    assert (totals.taken, totals.arrived, totals.replaced, totals.acknowledged, totals.failed) == (
        3,
        2,
        1,
        1,
        1,
    )
    assert (totals.superseded, totals.handled, totals.woken, totals.latency) == (1, 3.0, 1, 0.5)
    (failure,) = found.failures
    assert (failure.key, failure.summary, failure.last) == ("c", "no good", True)
    assert found.minutes[-1][1:] == [1, 1, 2] or len(found.minutes) == 2


def test_only_the_newest_failures_and_minutes_are_kept(
    inbox_dir: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = account(layout)
    now = 0.0
    monkeypatch.setattr(module, "time", lambda: now)
    for number in range(MINUTES + 5):
        now = 60.0 * number
        one.started("a", number, 1, replaced=False, latency=None)
        one.ended("a", number, "retried", f"failure {number}", 0.0)
    one.write()
    (found,) = read_stats(layout)
    assert [minute[0] for minute in found.minutes] == list(range(5, MINUTES + 5))
    assert len(found.failures) == FAILURES
    assert found.failures[0].summary == f"failure {MINUTES + 4}"


def test_each_shard_has_its_own(inbox_dir: Path, layout: Layout) -> None:
    for index in (2, 1):
        account(layout, Shard(index, 2)).write()
    assert [found.shard for found in read_stats(layout)] == ["1/2", "2/2"]


ODD = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"\xff",
    b'{"totals": {"taken": "many"}, "running": [], "failures": [], "minutes": []}',
    b'{"totals": {}, "running": [{"key": 1}], "failures": [], "minutes": []}',
    b'{"totals": {}, "running": [], "failures": [], "minutes": [["a", 1, 2, 3]]}',
    b"[" * 200_000,
    b'{"totals": {"handled": NaN}, "running": [], "failures": [], "minutes": []}',
    b'{"totals": {"taken": 1e999}, "running": [], "failures": [], "minutes": []}',
    b'{"totals": {}, "running": [], "failures": [], "minutes": [[1, 2, 3, NaN]]}',
    b'{"totals": 1, "running": [], "failures": [], "minutes": []}',
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_file_is_none(inbox_dir: Path, layout: Layout, odd: bytes) -> None:
    one = account(layout)
    one.write()
    (inbox_dir / "stats" / "1of1.json").write_bytes(odd)
    assert read_stats(layout) == []
    account(layout).write()
    assert len(read_stats(layout)) == 1


def test_members_that_are_not_known_are_ignored(inbox_dir: Path, layout: Layout) -> None:
    account(layout).write()
    path = inbox_dir / "stats" / "1of1.json"
    raw = json.loads(path.read_text())
    raw["colour"] = raw["totals"]["colour"] = "green"
    raw["minutes"] = [[1, 2, 3, 4, 5], [1, 2, 3, 4]]
    path.write_text(json.dumps(raw))
    (found,) = read_stats(layout)
    assert found.minutes == [[1, 2, 3, 4]]
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    (inbox_dir / "stats" / "notes.txt").touch()
    assert read_stats(layout) == []


def test_what_cannot_be_written_leaves_nothing_behind(inbox_dir: Path, layout: Layout) -> None:
    one = account(layout)
    for call in ("write", "rename"):
        with pytest.raises(OSError), refusing(**{call: errno.ENOSPC}):
            one.write()
    assert os.listdir(inbox_dir / "tmp") == []


def test_a_consumer_tells_while_it_works(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(HANDLER)
    path = tmp_path / "inbox"

    def told() -> ConsumerStats:
        layout = Layout(str(path))
        try:
            found = read_stats(layout)
            return found[0] if found else ConsumerStats()
        finally:
            layout.close()

    with (
        Inbox(path, codec="text") as inbox,
        Consumer(
            "--handler",
            "tasks:work",
            "--codec",
            "text",
            "--concurrency",
            "2",
            "--max-attempts",
            "1",
            cwd=tmp_path,
        ),
    ):
        wait_until(lambda: told().pid)
        inbox.add("a", "slow")
        wait_until(lambda: [running.key for running in told().running] == ["a"])
        inbox.add("b", "bad")
        wait_until(lambda: told().failures)
        (failure,) = told().failures
        assert (failure.key, failure.summary, failure.last) == ("b", "ValueError: no good", True)
        (tmp_path / "go").touch()
        wait_until(lambda: told().totals.acknowledged == 1)
        assert told().running == []

        def woken() -> bool:
            inbox.add("c", "fine")  # (the first one may have found it still awake)
            return told().totals.woken >= 1

        wait_until(woken)
        wait_until(lambda: len(inbox) == 0 and told().running == [])
        acknowledged = told().totals.acknowledged
    with Inbox(path, codec="text") as inbox:
        inbox.add("d", "fine")
    run("consume", "--handler", "tasks:work", "--codec", "text", "--drain", cwd=tmp_path)
    assert told().totals.acknowledged > acknowledged
    assert told().stopped


def test_a_value_that_was_replaced_while_it_waited_is_told(inbox_dir: Path) -> None:
    import time

    with Inbox(inbox_dir, codec="text", max_inflight=2) as inbox:
        inbox.add("a", "1")
        inbox.add("b", "1")
        time.sleep(0.02)  # beyond a tick of the clock for files
        inbox.add("a", "2")
        one, two = inbox.take(), inbox.take()
        assert one
        assert two
        assert (one.replaced, two.replaced) == (True, False)


def test_an_observer_that_fails_stops_nothing_and_is_told_of_once(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fsinbox.worker.functions import FunctionHandler
    from fsinbox.worker.observer import Observer
    from fsinbox.worker.runner import Runner

    class Broken(Observer):
        def due(self) -> float | None:
            return 0.0

        def tick(self) -> None:
            raise RuntimeError("out of order")

    with Inbox(inbox_dir) as inbox:
        for key in "ab":
            inbox.add(key, 1)
        tally = Runner(
            inbox,
            FunctionHandler("work", lambda key, value: None),
            drain=True,
            observers=[Broken(), Observer()],
        ).run()
    assert tally.acknowledged == 2
    assert caplog.text.count("Broken: out of order: the work continues; this is said only once") == 1
