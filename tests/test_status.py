"""`fsinbox status`: the age histogram, the pace, the verdict and its exit status, as people and monitors see
them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import time, time_ns
from typing import Any

import pytest
from helpers import Consumer, json_lines, run

from fsinbox import Inbox
from fsinbox.consumer.ownership import WHOLE, parse_shard
from fsinbox.operate.census import census
from fsinbox.operate.stats import StatsWriter
from fsinbox.operate.status import summary
from fsinbox.store import control
from fsinbox.store.layout import Layout
from fsinbox.store.names import element_name, encode_key

MINUTE = 60 * 10**9

MEMBERS = (
    "path waiting in_flight deferred failed dropped oldest_waiting oldest_in_flight consumer consumers "
    "scope oldest_deferred held paused paused_until paused_by ages pace totals stuck level verdict later "
    "later_known".split()
)


@pytest.fixture
def layout(inbox_dir: Path) -> Iterator[Layout]:
    """An empty inbox in the working directory's ./inbox, open."""
    opened = Layout(str(inbox_dir))
    yield opened
    opened.close()


def waits(layout: Layout, key: str, minutes: float = 0.0, folder: str = "pending") -> str:
    """Put an element where it would lie had it arrived so long ago; return its file's name."""
    name = element_name(time_ns() - int(minutes * MINUTE), encode_key(key))
    Path(layout.path, folder, name).touch()
    return name


def status(layout: Layout, *words: str, code: int = 0) -> list[str]:
    """Return the lines that `fsinbox status` prints."""
    return run("status", *words, cwd=Path(layout.path).parent, status=code).stdout.splitlines()


def members(layout: Layout, *words: str, code: int = 0) -> dict[str, Any]:
    """Return what `fsinbox status --json` tells."""
    (found,) = json_lines("\n".join(status(layout, "--json", *words, code=code)))
    return found


def line(lines: list[str], head: str) -> str:
    """Return what stands behind `head` in the one line that begins with it."""
    (found,) = [text for text in lines if text.strip().startswith(head)]
    return found.strip().removeprefix(head).strip()


# --- the histogram ------------------------------------------------------------------------------------


def test_the_histogram_counts_what_waits_by_age_and_by_the_commonest_prefixes(layout: Layout) -> None:
    for key, minutes in {
        "report-1": 1,
        "report-2": 7,
        "report-3": 15,
        "user:1": 90,
        "user:2": 2000,
        "alone": 1279,
    }.items():
        waits(layout, key, minutes)
    lines = status(layout)
    assert line(lines, "ages").split() == "T 5m 10m 20m 40m 80m 160m 320m 640m 1280m 1280m+".split()
    assert line(lines, "TOTAL").split() == "6 1 1 1 0 0 1 0 0 1 1".split()
    assert line(lines, "report").split() == "3 1 1 1 0 0 0 0 0 0 0".split()
    assert line(lines, "user").split() == "2 0 0 0 0 0 1 0 0 0 1".split()
    assert not any("alone" in text for text in lines)
    rows = lines[lines.index(next(text for text in lines if text.startswith("ages"))) :][:4]
    assert len({len(text) for text in rows}) == 1, "the columns stand below each other"


def test_the_histogram_is_there_for_programs_too(layout: Layout) -> None:
    waits(layout, "a/1", 1)
    waits(layout, "a/2", 11)
    ages = members(layout)["ages"]
    assert ages["limits"] == [300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 76800]
    assert ages["total"] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert ages["prefixes"] == {"a": ages["total"]}


def test_a_prefix_ends_at_the_first_separator_behind_another_character(layout: Layout) -> None:
    for key in (
        "/var/log/a",
        "/var/b",
        "s3:x/1",
        "s3:x/2",
        ".rc-1",
        ".rc-2",
        "ü-1",
        "ü.2",
        "--a-1",
        "--a-2",
        "\x1b[2J-1",
        "\x1b[2J/2",
    ):
        waits(layout, key)
    assert members(layout)["ages"]["prefixes"].keys() == {"/var", "s3", ".rc", "ü", "--a", "\x1b[2J"}
    assert "\x1b" not in "".join(status(layout))


def test_only_the_commonest_prefixes_are_shown(layout: Layout) -> None:
    for prefix in range(20):
        for key in range(prefix):
            waits(layout, f"{prefix}-{key}")
    assert list(members(layout)["ages"]["prefixes"]) == [str(prefix) for prefix in range(19, 11, -1)]


def test_a_key_in_several_places_counts_once_and_is_as_old_as_the_oldest(layout: Layout) -> None:
    for minutes in (3, 30, 1, *range(5, 20)):  # the folder lists them in any order
        waits(layout, "k", minutes)
    found = members(layout)
    assert found["waiting"] == 1
    assert found["ages"]["total"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert 1800 <= found["oldest_waiting"] < 1900


def test_what_is_no_element_counts_nowhere(layout: Layout) -> None:
    for name in ("notes.txt", "1" * 19, "1" * 19 + "-", "¹" * 19 + "-k", "x" * 19 + "-k", "1" * 19 + "+k"):
        Path(layout.path, "pending", name).touch()
    waits(layout, "k", 1, "failed")
    Path(layout.path, "failed", element_name(time_ns(), "k") + "~reason.txt").touch()
    Path(
        layout.path, "pending", element_name(time_ns(), "%zz-1")
    ).touch()  # somebody's own: an element as far as its number goes
    Path(layout.path, "pending", element_name(time_ns(), "%zz-2")).touch()
    found = members(layout)
    assert (found["waiting"], found["failed"], list(found["ages"]["prefixes"])) == (2, 1, ["%zz"])


def test_the_histogram_is_left_out_where_nothing_waits(layout: Layout) -> None:
    lines = status(layout)
    assert not any(text.startswith(("ages", "to empty")) for text in lines)
    assert lines[-1] == "OK: No elements are waiting."
    assert members(layout)["pace"]["to_empty"] == 0


# --- the verdict --------------------------------------------------------------------------------------


def test_without_limits_the_exit_status_is_0_whatever_is_wrong(layout: Layout) -> None:
    waits(layout, "k", 9999)
    waits(layout, "f", 1, "failed")
    assert status(layout)[-1] == (
        "WARNING: No consumer is running; 1 element is waiting. "
        "1 element failed: run `fsinbox failed` to see why."
    )
    waits(layout, "o", 1, "inflight")
    assert status(layout)[-1].startswith("WARNING: No consumer is running; 2 elements are waiting. ")


@pytest.mark.parametrize(
    ("limit", "kept", "broken", "says"),
    [
        ("--max-age", "31m", "1700", "The oldest element is 30m old (limit 28m)."),
        ("--max-waiting", "2", "1", "2 elements are waiting (limit 1)."),
        ("--max-failed", "1", "0", "1 element failed (limit 0)."),
    ],
)
def test_a_limit_that_is_exceeded_is_critical_and_status_1(
    layout: Layout, limit: str, kept: str, broken: str, says: str
) -> None:
    waits(layout, "a", 30)
    waits(layout, "b", 20)
    waits(layout, "f", 99, "failed")
    assert status(layout, limit, kept)[-1].startswith("WARNING: ")
    assert status(layout, limit, broken, code=1)[-1].startswith(
        f"CRITICAL: {says} No consumer is running; 2 elements are waiting."
    )
    found = members(layout, limit, broken, code=1)
    assert found["level"] == "CRITICAL"
    assert found["verdict"].startswith(says)
    variable = f"FSINBOX_STATUS_{limit[2:].upper().replace('-', '_')}"
    assert (
        run("status", cwd=Path(layout.path).parent, status=1, **{variable: broken})
        .stdout.splitlines()[-1]
        .startswith("CRIT")
    )


@pytest.mark.parametrize("folder", ["pending", "inflight", "deferred"])
def test_the_age_that_is_limited_is_that_of_whatever_is_not_done(layout: Layout, folder: str) -> None:
    name = waits(layout, "k", 30, folder)
    if folder == "deferred":
        path = Path(layout.path, folder)
        (path / name).rename(path / f"{time_ns() + MINUTE}-{name}")
        assert 1800 <= members(layout)["oldest_deferred"] < 1900
    assert "The oldest element is 30m old" in status(layout, "--max-age", "10m", code=1)[-1]


def test_failures_that_a_limit_allows_are_no_warning(layout: Layout) -> None:
    waits(layout, "f", 1, "failed")
    assert status(layout, "--max-failed", "1")[-1] == "OK: No elements are waiting."


@pytest.mark.parametrize(
    "words", [("--max-age", "soon"), ("--max-waiting", "-1"), ("--max-failed", "none")], ids=" ".join
)
def test_a_limit_that_is_none_is_a_usage_error(layout: Layout, words: tuple[str, str]) -> None:
    assert words[0] in run("status", *words, cwd=Path(layout.path).parent, status=2).stderr


def test_a_failure_to_look_is_status_3_whatever_the_limits(tmp_path: Path) -> None:
    done = run("status", "--max-waiting", "0", cwd=tmp_path, status=3)
    assert "there is no inbox" in done.stderr
    assert done.stdout == ""


def test_a_pause_and_keys_on_hold_are_told_and_who_has_asked_for_them(layout: Layout) -> None:
    keys = ["\x1b[2J", *"abcde"]
    for key in keys:
        control.hold(layout, encode_key(key))
    control.pause(layout)
    lines = status(layout)
    assert line(lines, "on hold") == r"6  ('\x1b[2J', a, b, c, d, ...)"
    assert line(lines, "paused").startswith(f"until resumed, by pid {os.getpid()} of user ")
    assert lines[-1].startswith(f"WARNING: Consumers are paused until resumed, by pid {os.getpid()}")
    found = members(layout)
    assert (found["paused"], found["paused_until"], found["held"]) == (True, None, sorted(keys))
    control.pause(layout, time_ns() + 60 * MINUTE)
    found = members(layout)
    assert 3500 < found["paused_until"] - time() < 3700
    assert f"until 20{found['verdict'].partition('until 20')[2]}" in status(layout)[-1]
    control.resume(layout)
    control.release(layout, "a")
    found = members(layout)
    assert (found["paused"], found["paused_by"], len(found["held"]), found["level"]) == (False, None, 5, "OK")
    assert line(status(layout), "on hold").endswith("e)")


def test_a_pause_by_nobody_is_told_too(layout: Layout) -> None:
    layout.make("control")
    Path(layout.path, "control/pause").touch()
    assert status(layout)[-1] == "WARNING: Consumers are paused until resumed."


def test_a_shard_without_a_consumer_is_a_warning(layout: Layout) -> None:
    waits(layout, "k", 30)
    with Inbox(layout.path, shard="2/3") as inbox:
        inbox.become_consumer()
        lines = status(layout)
        assert line(lines, "to empty") == "unknown: a shard has no consumer"
        assert lines[-1] == "WARNING: No consumer is running for shard 1/3, 3/3; its keys wait."


def test_a_lease_that_has_lapsed_is_a_warning(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", scope="network", lease=60) as inbox:
        inbox.become_consumer()
        (lease,) = (tmp_path / "inbox/inflight").glob("lease-*/.lease")
        os.utime(lease, ns=(1, 1))
        assert status(inbox.layout)[-1].startswith(f"WARNING: The lease of pid {os.getpid()} on ")


def test_the_json_object_has_the_documented_members(layout: Layout) -> None:
    found = members(layout)
    assert [name for name in MEMBERS if name not in found] == []
    assert found["totals"]["acknowledged"] == 0


# --- the pace -----------------------------------------------------------------------------------------


class AtWork:
    """This process as a consumer that has written statistics for an hour."""

    def __init__(self, layout: Layout, shard: str = "1/1") -> None:
        self.inbox = Inbox(layout.path, shard=shard)
        self.writer = StatsWriter(layout, parse_shard(shard), "handler", 1)
        self.writer.stats.since = time() - 3600

    def did(self, minutes: dict[int, int]) -> None:
        """Have it acknowledge so many, so many minutes ago."""
        now = int(time() // 60)
        self.writer.stats.minutes = [
            [now - ago, count, 0, 0] for ago, count in sorted(minutes.items(), reverse=True)
        ]
        self.writer.write()

    def __enter__(self) -> AtWork:
        self.inbox.become_consumer()
        return self

    def __exit__(self, *_: object) -> None:
        self.inbox.close()


def test_the_time_to_empty_is_that_of_steady_work(layout: Layout) -> None:
    with AtWork(layout) as consumer:
        consumer.did(dict.fromkeys(range(1, 10), 60))
        for key in range(120):
            waits(layout, f"k{key}", 20)
        found = members(layout)
        assert 35 <= found["pace"]["rate"] <= 60  # (of the present minute nothing is known yet)
        assert 240 <= found["pace"]["window"] <= 300
        assert 120 <= found["pace"]["to_empty"] <= 220
        lines = status(layout)
        assert line(lines, "rate").endswith(
            ("/min acknowledged over the last 4m", "/min acknowledged over the last 5m")
        )
        assert line(lines, "to empty").startswith(("about 2m", "about 3m"))
        assert lines[-1].startswith("OK: 120 elements are waiting; about ")
        assert lines[-1].endswith(" to empty.")


def test_an_idle_consumer_s_rate_does_not_lie_about_a_new_backlog(layout: Layout) -> None:
    with AtWork(layout) as consumer:
        consumer.did({3: 1, 30: 500})
        waits(layout, "k")
        found = members(layout)
        assert found["pace"]["rate"] <= 0.25
        assert (found["pace"]["to_empty"], found["pace"]["why"]) == (None, "work has only just begun")
        assert line(status(layout), "to empty") == "unknown: work has only just begun"


def test_a_consumer_that_does_nothing_is_at_0_and_it_is_said_since_when(layout: Layout) -> None:
    with AtWork(layout) as consumer:
        consumer.did({30: 500})
        lines = status(layout)
        assert line(lines, "rate").startswith("0/min acknowledged over the last ")
        assert line(lines, "rate").endswith(("; the last 30m ago", "; the last 31m ago"))
        waits(layout, "k", 20)
        assert line(status(layout), "to empty").startswith("unknown: nothing was acknowledged for 2")
        consumer.did({})
        assert line(status(layout), "rate").endswith(("over the last 4m", "over the last 5m"))


def test_what_is_on_hold_is_no_work_to_be_done(layout: Layout) -> None:
    with AtWork(layout) as consumer:
        consumer.did(dict.fromkeys(range(1, 10), 60))
        waits(layout, "k", 20)
        control.hold(layout, "k")
        assert line(status(layout), "to empty") == "unknown: every waiting key is on hold"
        waits(layout, "other", 20)
        assert line(status(layout), "to empty") == "about 1s"


def test_a_paused_consumer_has_no_time_to_empty(layout: Layout) -> None:
    with AtWork(layout) as consumer:
        consumer.did(dict.fromkeys(range(1, 10), 60))
        waits(layout, "k", 20)
        control.pause(layout)
        assert line(status(layout), "to empty") == "unknown: consumers are paused"


def test_a_consumer_without_statistics_has_no_rate(layout: Layout) -> None:
    earlier = StatsWriter(layout, WHOLE, "an earlier one", 1)
    earlier.stats.pid = 1
    earlier.write()
    waits(layout, "k", 20)
    with Inbox(layout.path) as inbox:
        inbox.become_consumer()
        lines = status(layout)
        assert line(lines, "rate") == "unknown: only `fsinbox consume` writes statistics"
        assert line(lines, "to empty").startswith("unknown: the consumer writes no statistics; only ")
    assert line(status(layout), "rate").startswith("0/min")


def test_the_rates_and_totals_of_shards_are_added(layout: Layout) -> None:
    with AtWork(layout, "1/2") as one, AtWork(layout, "2/2") as two:
        one.did({1: 10})
        two.writer.stats.totals.acknowledged = 7
        one.writer.stats.totals.acknowledged = 5
        one.did({1: 10, 2: 10})
        two.did({1: 20})
        found = members(layout)
        assert found["pace"]["rate"] * found["pace"]["window"] / 60 == pytest.approx(40)
        assert found["totals"]["acknowledged"] == 12


@pytest.mark.parametrize(
    ("length", "text"), [(0.2, "1s"), (59.4, "59s"), (61, "1m1s"), (7260, "2h1m"), (90000, "1d1h")]
)
def test_a_length_of_time_is_told_in_its_two_largest_units(length: float, text: str) -> None:
    from fsinbox.operate.units import length as told

    assert told(length) == text


def test_a_real_consumer_s_work_shows(layout: Layout) -> None:
    folder = Path(layout.path).parent
    with Inbox(layout.path) as inbox:
        for key in range(5):
            inbox.add(f"job-{key}", "v")
    with Consumer("--exec", "true", cwd=folder) as consumer:
        consumer.until(
            lambda: members(layout)["totals"]["acknowledged"] == 5, "for all five to be acknowledged"
        )
        found = members(layout)
        assert found["consumer"].startswith(f"pid {consumer.process.pid} on ")
        assert " since 20" in found["consumer"]
        assert found["pace"]["rate"] * found["pace"]["window"] / 60 == pytest.approx(5)
        assert 0 <= time() - found["pace"]["last"] < 120
        lines = status(layout)
        assert line(lines, "consumer").startswith(f"pid {consumer.process.pid} on ")
        assert lines[-1] == "OK: No elements are waiting."
    assert status(layout)[-1] == "OK: No elements are waiting."


def test_the_summary_is_for_python_too(layout: Layout) -> None:
    waits(layout, "k", 30)
    found = summary(layout)
    assert (found.waiting, found.pace.why, found.ages.total[3]) == (1, "no consumer is running", 1)
    assert json.dumps(found.ages.total)
    for name in ("dropped", "x" * 250):  # no key is as long as that: the first shard sets it aside
        Path(layout.path, "drop", name).touch()
    assert line(status(layout), "dropped") == "2  (not ingested yet)"
    one, two = (census(layout, parse_shard(shard)).count for shard in ("1/2", "2/2"))
    assert (one["waiting"] + two["waiting"], one["dropped"] + two["dropped"]) == (1, 2)
