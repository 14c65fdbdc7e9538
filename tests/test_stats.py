"""What a consumer says of its work (stats/): totals that go on, what runs now, and nothing that an odd file
could upset."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import Consumer, run, wait_until

from fsinbox import Inbox
from fsinbox.cli import seeing, top
from fsinbox.consumer.ownership import WHOLE, Shard
from fsinbox.operate import report
from fsinbox.operate import stats as module
from fsinbox.operate.stats import FAILURES, MINUTES, ConsumerStats, StatsWriter, read_stats
from fsinbox.operate.status import summary
from fsinbox.store.layout import Layout
from fsinbox.web.listing import Glance
from fsinbox.web.overview import overview
from fsinbox.worker import metrics
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


NUMBERS = ["since", "at", "pid", "concurrency", "totals.taken", "totals.acknowledged", "totals.handled",
           "totals.latency", "running.seq", "running.attempts", "running.started", "failures.seq",
           "failures.at", "minutes.0", "minutes.1", "minutes.3"]  # fmt: skip

FORGED = [float("inf"), float("-inf"), float("nan"), 10**400, -(10**400), 1e300, 2**63, 10**18, -1, -0.5,
          253402300800, 1e12, True, None, "1", [], {}]  # fmt: skip


@pytest.mark.parametrize("where", NUMBERS)
def test_no_number_that_others_wrote_ends_a_command(
    inbox_dir: Path, layout: Layout, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may write to the inbox may have written it; json reads Infinity and 400 digits."""
    first, _, member = where.partition(".")
    with Inbox(inbox_dir) as inbox:
        inbox.add("waits", 1)
        inbox.become_consumer()
        writer = account(layout)
        writer.started("k", 1, 1, replaced=False, latency=0.1)
        writer.ended("k", 1, "failed", "why", 0.1)
        writer.started("k", 2, 1, replaced=False, latency=None)
        writer.write()
        path = inbox_dir / "stats/1of1.json"
        good = path.read_text()
        for value in FORGED:
            raw = json.loads(good)
            place = raw if not member else raw[first] if first == "totals" else raw[first][0]
            place[int(member) if member.isdigit() else member or first] = value
            path.write_text(json.dumps(raw))
            found = summary(layout)
            every = read_stats(layout)
            status_lines = seeing.lines(found)
            assert report.verdict(found, report.Limits())[1] and status_lines
            assert json.dumps(asdict(found), allow_nan=False)
            assert top.head(found, every, report.Limits()) and top.at_work(found, every)
            assert top.failures(every) and top.bars(top.by_minute(every, 1), "012")
            assert b"fsinbox_elements" in metrics.once(layout)
            with closing(Glance(str(inbox_dir))) as glance:
                assert overview(glance, report.Limits()).rate
            StatsWriter(layout, WHOLE, "tasks:work", 1).write()  # the next consumer goes on


@pytest.mark.parametrize(
    "shard", ['1/1"} 1\nforged{a="b', "\ud800", "9/9", "1/2", "\u0661/\u0661", "\x1b[31m", ""]
)
def test_a_forged_shard_is_no_label(inbox_dir: Path, layout: Layout, shard: str) -> None:
    account(layout).write()
    path = inbox_dir / "stats/1of1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shard": shard}))
    assert read_stats(layout) == []
    assert "fsinbox_taken" not in metrics.once(layout).decode()


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 20, "9" * 4000])
def test_a_pause_without_measure_is_one_without_end_and_no_traceback(tmp_path: Path, digits: str) -> None:
    Inbox(tmp_path / "inbox").close()
    (tmp_path / "inbox/control").mkdir()
    os.symlink(f"{digits}.somebody", tmp_path / "inbox/control/pause")
    assert "paused    until" in run("status", cwd=tmp_path).stdout


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


def test_statistics_that_cannot_be_written_are_called_that(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox", durable=False).close()
    (tmp_path / "inbox/stats").write_bytes(b"no folder")
    done = run("consume", "--exec", "true", "--drain", "--quiet", cwd=tmp_path)
    assert "WARNING cannot write the statistics in stats/: cannot open folder" in done.stderr
    assert "the work continues" in done.stderr and "StatsObserver" not in done.stderr
