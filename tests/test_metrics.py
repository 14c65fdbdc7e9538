"""Metrics: scraped from a running consumer, read from the file it keeps, printed once; and what is made of
them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest
from helpers import PACKAGE, Consumer, environment, run, wait_until

from fsinbox import Inbox
from fsinbox.consumer.ownership import WHOLE, parse_shard
from fsinbox.operate.stats import StatsWriter
from fsinbox.store import control
from fsinbox.store.layout import Layout
from fsinbox.worker import metrics
from fsinbox.worker.observer import StatsObserver

parser = pytest.importorskip("prometheus_client.parser")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"

HANDLER = """
import pathlib, time
from prometheus_client import Counter

words = Counter("words", "Words that were handled.")

def work(key, value):
    if key.startswith("bad"):
        raise ValueError("bad")
    while key.startswith("slow") and not pathlib.Path("go").exists():
        time.sleep(0.01)
    words.inc(len(value.split()))
"""

WORDS = ("--handler", "tasks:work", "--codec", "text", "--metrics", "0")


NASTY = 'a"b\\c\n# forged{x="1"} 1\x1b[31m'


def test_a_path_is_one_label_whatever_is_in_it(tmp_path: Path) -> None:
    """The library escapes it."""
    path = tmp_path / NASTY
    Inbox(path).close()
    text = run("--inbox", str(path), "metrics", cwd=tmp_path).stdout
    families = list(parser.text_string_to_metric_families(text))
    assert all(family.name.startswith("fsinbox_") for family in families)
    assert {sample.labels["inbox"] for family in families for sample in family.samples} == {str(path)}


class Scrape:
    """What was scraped, parsed as Prometheus parses it."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        self.types: dict[str, str] = {}
        for family in parser.text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def __call__(self, name: str, **labels: str) -> float:
        """Return the one value of a metric that has these labels."""
        found = [value for have, value in self.samples.get(name, []) if labels.items() <= have.items()]
        assert len(found) == 1, f"{name} {labels}: {found}"
        return found[0]

    def names(self) -> set[str]:
        """Return the names of all that is of ours."""
        return {name for name in self.samples if name.startswith("fsinbox_")}


def url(consumer: Consumer) -> str:
    """Return where a consumer serves its metrics, as it says."""
    consumer.until(
        lambda: "metrics at " in consumer.log and re.search("consuming |standing by", consumer.log),
        "for it to serve",
    )
    (found,) = re.findall(r"metrics at (\S+)", consumer.log)
    return str(found)


def scrape(consumer: Consumer) -> Scrape:
    """Scrape a running consumer."""
    with urllib.request.urlopen(url(consumer), timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return Scrape(answer.read().decode())


def until(consumer: Consumer, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has a value."""
    seen: list[Scrape] = []

    def has() -> bool:
        seen[:] = [scrape(consumer)]
        return any(
            labels.items() <= have.items() and found == value for have, found in seen[0].samples.get(name, [])
        )

    consumer.until(has, f"for {name} to be {value}")
    return seen[0]


def prepared(place: Path) -> Path:
    """Make an inbox and a handler in a directory; return it."""
    (place / "tasks.py").write_text(HANDLER)
    Inbox(place / "inbox").close()
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an inbox and a handler."""
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """A scrape of a consumer that has done something of everything."""
    place = prepared(tmp_path_factory.mktemp("full"))
    with Inbox(place / "inbox", codec="text") as inbox:
        for key in ("good-1", "good-2", "bad-1", "slow-1", "later-1"):
            inbox.add(key, "two words")
        wait_until(lambda: inbox.add("good-1", "one two three") and newer(place), "for a later tick")
    (place / "inbox/drop/draft.part").write_text("not done")
    with opened(place) as layout:
        control.hold(layout, "later-1")
    with Consumer(*WORDS, "--retry-delay", "600", cwd=place) as consumer:
        until(consumer, "fsinbox_taken_total", 4)
        found = until(consumer, "fsinbox_elements", 1, state="waiting")
        (place / "go").touch()
        end(consumer)
    return found


def newer(place: Path) -> bool:
    """Tell whether the oldest element's file is newer than its number: only then it shows that it was
    replaced."""
    oldest = min((place / "inbox/pending").iterdir())
    return oldest.stat().st_mtime_ns > int(oldest.name[:19])


def end(consumer: Consumer) -> None:
    """Stop a consumer as a service manager does."""
    consumer.signal(signal.SIGTERM)
    consumer.end()


@contextmanager
def opened(place: Path) -> Iterator[Layout]:
    """The layout of a place's inbox, for a `with` block."""
    layout = Layout(str(place / "inbox"))
    try:
        yield layout
    finally:
        layout.close()


# --- served -------------------------------------------------------------------------------------------


def test_a_scrape_tells_what_is_there_and_what_was_done(full: Scrape) -> None:
    (labels, _), *_ = full.samples["fsinbox_consumer_up"]
    assert labels["inbox"].endswith("/inbox")
    assert labels["shard"] == "1/1"
    assert {
        state: full("fsinbox_elements", state=state, **labels)
        for state in ("waiting", "in_flight", "deferred", "failed", "dropped")
    } == {
        "waiting": 1,
        "in_flight": 1,
        "deferred": 1,
        "failed": 0,
        "dropped": 1,
    }
    assert full("fsinbox_oldest_age_seconds", state="waiting") > 0
    assert full("fsinbox_oldest_age_seconds", state="failed") == 0
    counted = {name: full(f"fsinbox_{name}_total", **labels) for name in metrics.COUNTERS}
    assert counted == {
        "taken": 4,
        "arrived": 4,
        "replaced": 1,
        "acknowledged": 2,
        "retried": 1,
        "superseded": 0,
        "failed": 0,
    }
    assert full("fsinbox_handler_duration_seconds_count", **labels) == 3
    assert full("fsinbox_handler_duration_seconds_bucket", le="+Inf", **labels) == 3
    assert full("fsinbox_wakeup_latency_seconds_count", **labels) == 0
    assert (full("fsinbox_consumer_up"), full("fsinbox_consumer_concurrency"), full("fsinbox_paused")) == (
        1,
        1,
        0,
    )
    assert full("fsinbox_held_keys") == 1
    assert full("fsinbox_folders_readable") == 1
    assert 0 <= time() - full("fsinbox_consumer_start_timestamp_seconds") < 120
    assert 0 <= time() - full("fsinbox_last_success_timestamp_seconds") < 120
    assert full.types["fsinbox_arrived"] == "counter"
    assert full.types["fsinbox_handler_duration_seconds"] == "histogram"


def test_the_handler_s_own_metrics_are_served_along(full: Scrape) -> None:
    assert full("words_total") == 5
    assert "process_resident_memory_bytes" in full.samples or not Path("/proc/self/stat").exists()


def test_what_wakes_an_idle_consumer_is_timed(place: Path) -> None:
    with Consumer(*WORDS, cwd=place) as consumer:
        consumer.until_idle()
        run("add", "k", "v", cwd=place)
        found = until(consumer, "fsinbox_wakeup_latency_seconds_count", 1)
        assert 0 < found("fsinbox_wakeup_latency_seconds_sum") < 60
        end(consumer)


def test_counters_go_on_over_restarts_and_never_back_after_a_kill(place: Path) -> None:
    with Consumer(*WORDS, cwd=place) as consumer:
        for key in range(3):
            run("add", f"k{key}", "v", cwd=place)
        until(consumer, "fsinbox_acknowledged_total", 3)
        consumer.process.kill()
        consumer.process.wait()
    with Consumer(*WORDS, cwd=place) as consumer:
        found = until(consumer, "fsinbox_consumer_up", 1)
        assert found("fsinbox_acknowledged_total") == 3
        assert found("fsinbox_handler_duration_seconds_count") == 0, (
            "histograms begin anew, as Prometheus expects of a process"
        )
        assert time() - found("fsinbox_last_success_timestamp_seconds") < 180
        run("add", "k", "v", cwd=place)
        until(consumer, "fsinbox_acknowledged_total", 4)
        end(consumer)


def test_shards_on_one_host_tell_each_of_its_own(place: Path) -> None:
    keys = [f"bad-{number}" for number in range(8)]
    with Consumer(*WORDS, "--shard", "1/2", "--retry-delay", "600", cwd=place) as consumer:
        for key in keys:
            run("add", key, "v", cwd=place)
        (place / "inbox/drop/\xff.part").touch()
        (place / f"inbox/drop/{'x' * 250}").touch()  # no key of that length: the first shard's
        one = parse_shard("1/2")
        mine = sum(map(one.has, keys))
        assert 0 < mine < len(keys)
        until(consumer, "fsinbox_elements", mine, shard="1/2", state="deferred")
        found = until(consumer, "fsinbox_taken_total", mine, shard="1/2")
        assert found("fsinbox_elements", shard="1/2", state="waiting") == 0
        end(consumer)
    printed = Scrape(run("metrics", cwd=place).stdout)
    assert printed("fsinbox_elements", shard="2/2", state="waiting") == len(keys) - mine
    assert printed("fsinbox_consumer_up", shard="2/2") == 0
    assert printed("fsinbox_taken_total", shard="1/2") == mine
    assert "fsinbox_taken_total" in printed.samples and len(printed.samples["fsinbox_taken_total"]) == 1


def test_a_pause_shows(place: Path) -> None:
    with opened(place) as layout:
        control.pause(layout)
    with Consumer(*WORDS, cwd=place) as consumer:
        until(consumer, "fsinbox_paused", 1)
        end(consumer)


def test_a_standby_says_that_it_is_not_at_work_and_takes_over(place: Path) -> None:
    with Inbox(place / "inbox") as inbox:
        inbox.become_consumer()
        with Consumer(*WORDS, "--standby", cwd=place) as consumer:
            consumer.until(lambda: "standing by" in consumer.log)
            found = scrape(consumer)
            assert found("fsinbox_consumer_up") == 0
            assert "fsinbox_elements" not in found.samples, (
                "the consumer itself tells of them: a sum would count them twice"
            )
            inbox.close()
            assert until(consumer, "fsinbox_consumer_up", 1)("fsinbox_elements", state="waiting") == 0
            end(consumer)


def test_folders_that_cannot_be_read_are_told_and_the_rest_is_served(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Inbox(place / "inbox") as inbox:
        stats = StatsObserver(inbox.layout, WHOLE, "handler", 1)
        observer = metrics.Metrics(inbox.path, WHOLE, stats)
        for one in (stats, observer):
            one.began()
        stats.tick()
        shutil.rmtree(place / "inbox/failed")
        (place / "inbox/stats").rename(place / "stats")
        (place / "inbox/stats").touch()
        found = Scrape(metrics.generate_latest(observer.registry).decode())
        assert found("fsinbox_folders_readable") == 0
        assert found("fsinbox_consumer_up") == 1
        assert "fsinbox_elements" not in found.samples
        assert "metrics: cannot look into the folders: " in caplog.text
        assert caplog.text.count("cannot look") == 1


def test_the_folders_are_looked_into_once_a_while_at_most(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_LASTS", 3600.0)
    with Inbox(place / "inbox", codec="text") as inbox:
        observer = metrics.Metrics(inbox.path, WHOLE, StatsObserver(inbox.layout, WHOLE, "handler", 1))
        assert observer._look().count["waiting"] == 0
        inbox.add("k", "v")
        assert observer._look().count["waiting"] == 0
        observer._stale_at -= 3600.0
        assert observer._look().count["waiting"] == 1


# --- where --------------------------------------------------------------------------------------------


def test_they_are_served_on_the_loopback_unless_another_address_is_given(place: Path) -> None:
    with Consumer(*WORDS, cwd=place) as consumer:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url(consumer))
    words = (*WORDS[:-1], "localhost:0")
    with Consumer(*words, cwd=place) as consumer:
        assert re.fullmatch(r"http://(127\.0\.0\.1|\[::1\]):\d+/metrics", url(consumer))
        until(consumer, "fsinbox_consumer_up", 1)
        end(consumer)


@pytest.mark.skipif(
    not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6"
)
def test_an_ipv6_address_stands_in_brackets(place: Path) -> None:
    with Consumer(*WORDS[:-1], "[::1]:0", cwd=place) as consumer:
        assert url(consumer).startswith("http://[::1]:")
        until(consumer, "fsinbox_consumer_up", 1)
        end(consumer)


@pytest.mark.parametrize("address", ["", "http", "1.2.3.4", ":80", "host:", "70000", "host:70000", "-1"])
def test_what_is_no_address_is_a_usage_error(place: Path, address: str) -> None:
    with pytest.raises(ValueError, match="is no address: give PORT, HOST:PORT or"):
        metrics.parse_address(address)


def test_an_address_that_cannot_be_served_is_a_usage_error_that_says_why(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("consume", *WORDS[:-1], port, cwd=place, status=2)
    assert f"--metrics {port}: cannot serve there: Address already in use: name another port" in done.stderr
    assert "Traceback" not in done.stderr
    assert "is no address" in run("consume", *WORDS[:-1], "soon", cwd=place, status=2).stderr


def test_without_the_extra_it_says_how_to_install_it(place: Path) -> None:
    (place / "without").mkdir()
    (place / "without/prometheus_client.py").write_text("raise ImportError('no prometheus_client')")
    path = os.pathsep.join([str(place / "without"), PACKAGE])
    (place / "none").mkdir()
    (place / "none/sitecustomize.py").write_text("import sys; sys.modules['prometheus_client'] = None")
    done = run("metrics", cwd=place, status=2, PYTHONPATH=os.pathsep.join([str(place / "none"), PACKAGE]))
    assert "need prometheus_client, which is not installed: pip install" in done.stderr
    for words in (["consume", "--exec", "true", "--metrics", "0"], ["metrics"]):
        done = run(*words, cwd=place, status=2, PYTHONPATH=path)
        assert "which fails: no prometheus_client: pip install 'fsinbox[metrics]'" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.bare
def test_prometheus_client_is_imported_only_when_it_is_asked_for(place: Path) -> None:
    code = (
        "import sys; sys.argv = 'fsinbox consume --exec true --drain'.split()\n"
        "from fsinbox.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True
    )
    assert "fsinbox.worker.runner" in done.stdout
    assert "prometheus_client" not in done.stdout


# --- kept in a file -----------------------------------------------------------------------------------


def test_the_file_is_there_while_it_runs_and_tells_at_its_end_that_it_has_ended(place: Path) -> None:
    file = place / "fsinbox.prom"
    old = os.umask(0o077)
    try:
        words = ("--exec", "true", "--metrics-file", "fsinbox.prom")
        with Consumer(*words, cwd=place) as consumer:
            consumer.until(
                lambda: file.exists() and Scrape(file.read_text())("fsinbox_consumer_up") == 1,
                "for it to be written",
            )
            assert Scrape(file.read_text())("fsinbox_elements", state="waiting") == 0
            run("add", "k", "v", cwd=place)
            consumer.until(lambda: not os.listdir(place / "inbox/pending"))
            end(consumer)
    finally:
        os.umask(old)
    found = Scrape(file.read_text())
    assert (found("fsinbox_consumer_up"), found("fsinbox_acknowledged_total")) == (0, 1)
    assert found("fsinbox_handler_duration_seconds_count") == 1
    assert "fsinbox_elements" not in found.samples, "nobody keeps it up to date any more"
    assert found.names() == set(found.samples), "node_exporter has metrics of its own process"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644, "node_exporter is another user"
    assert [name for name in os.listdir(place) if "fsinbox." in name] == ["fsinbox.prom"]


@pytest.mark.parametrize(
    ("file", "why"), [("no/such/m.prom", "No such file or directory"), ("folder", "Is a directory")]
)
def test_a_file_that_cannot_be_written_is_a_usage_error_that_says_why(
    place: Path, file: str, why: str
) -> None:
    (place / "folder").mkdir()
    done = run("consume", "--exec", "true", "--metrics-file", file, cwd=place, status=2)
    assert f"--metrics-file {file}: cannot write there: {why}" in done.stderr
    assert list(place.glob(".fsinbox.*")) == []


def test_a_file_that_can_be_written_no_longer_stops_nothing_and_is_said_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "FILE_INTERVAL", 0.01)
    (place / "out").mkdir()
    file = place / "out/m.prom"
    with Inbox(place / "inbox") as inbox:
        stats = StatsObserver(inbox.layout, WHOLE, "handler", 1)
        observer = metrics.Metrics(inbox.path, WHOLE, stats)
        observer.keep_file(str(file))
        tries: list[None] = []
        write = observer._write_file
        monkeypatch.setattr(observer, "_write_file", lambda: (tries.append(None), write()))
        for one in (stats, observer):
            one.began()
        wait_until(lambda: Scrape(file.read_text())("fsinbox_consumer_up") == 1)
        for times in (1, 2):
            (place / "out").rename(place / f"out{times}")
            wait_until(lambda times=times: caplog.text.count("cannot write the metrics") == times)
            tried = len(tries)
            wait_until(lambda tried=tried: len(tries) > tried + 1, "for it to try again")
            assert caplog.text.count("cannot write the metrics") == times
            (place / "out").mkdir()
            wait_until(file.exists)
        observer.stopped()
        assert Scrape(file.read_text())("fsinbox_consumer_up") == 0
        wait_until(
            lambda: not any(thread.name == "fsinbox-metrics" for thread in threading.enumerate()),
            "for its thread to end",
        )


# --- printed once -------------------------------------------------------------------------------------


def test_metrics_prints_them_whoever_consumes(place: Path) -> None:
    with Inbox(place / "inbox", codec="text") as inbox:
        for key in ("good", "bad", "left"):
            inbox.add(key, "v")
    run("consume", *WORDS[:4], "--once", cwd=place)
    run("consume", *WORDS[:4], "--once", "--max-attempts", "1", cwd=place, status=1)
    found = Scrape(run("metrics", cwd=place).stdout)
    assert [found("fsinbox_elements", state=state) for state in ("waiting", "failed")] == [1, 1]
    assert [found(f"fsinbox_{name}_total") for name in ("taken", "acknowledged", "failed")] == [2, 1, 1]
    assert (
        found("fsinbox_handler_duration_seconds_count")
        == found("fsinbox_handler_duration_seconds_bucket", le="+Inf")
        == 2
    )
    assert found("fsinbox_handler_duration_seconds_sum") > 0
    assert found("fsinbox_consumer_up") == 0
    assert "fsinbox_consumer_start_timestamp_seconds" not in found.samples
    assert 0 <= time() - found("fsinbox_last_success_timestamp_seconds") < 180
    assert found.names() == set(found.samples)


def test_metrics_prints_those_of_a_running_consumer_too(place: Path) -> None:
    with Inbox(place / "inbox") as inbox:
        inbox.become_consumer()
        StatsWriter(inbox.layout, WHOLE, "handler", 3).write()
        found = Scrape(run("metrics", cwd=place).stdout)
        assert (found("fsinbox_consumer_up"), found("fsinbox_consumer_concurrency")) == (1, 3)
        assert "fsinbox_last_success_timestamp_seconds" not in found.samples


def test_metrics_of_an_inbox_that_nobody_has_consumed(place: Path) -> None:
    found = Scrape(run("metrics", cwd=place).stdout)
    assert found("fsinbox_elements", state="waiting") == 0
    assert "fsinbox_taken_total" not in found.samples
    assert "there is no inbox" in run("metrics", "--inbox", "other", cwd=place, status=3).stderr


def test_a_path_that_is_no_text_is_a_label_all_the_same(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/a\xff"\n')
    run("init", "--inbox", odd, cwd=tmp_path)
    found = Scrape(run("metrics", "--inbox", odd, cwd=tmp_path).stdout)
    assert found("fsinbox_consumer_up", inbox=f'{tmp_path}/a\ufffd"\n') == 0


# --- what is made of them -----------------------------------------------------------------------------


def named(text: str) -> set[str]:
    """Return the names of our metrics in a text."""
    return set(re.findall(r"\bfsinbox_[a-z_]+", text))


def test_every_metric_of_the_dashboard_the_rules_and_the_page_is_really_there(full: Scrape) -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable.get("query", "") for variable in dashboard["templating"]["list"]]
    asked += [note["expr"] for note in dashboard["annotations"]["list"]]
    asked += [rule["expr"] for group in rules() for rule in group["rules"]]
    assert named("\n".join(asked)) - full.names() == set()
    told = named((ROOT / "docs/monitoring.md").read_text())
    families = {name for name in full.types if name.startswith("fsinbox_")}
    assert told - full.names() - families == set()
    missing = {
        name for name in full.names() if not name.endswith(("_created", "_bucket", "_sum", "_count"))
    } - told
    assert missing == set(), "the page leaves something out"


def rules() -> list[dict[str, list[dict[str, str]]]]:
    """Return the groups of alert rules."""
    return list(yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"])


def test_the_alert_rules_are_such() -> None:
    for group in rules():
        assert group.keys() == {"name", "rules"}
        names = [rule["alert"] for rule in group["rules"]]
        assert len(names) == len(set(names))
        for rule in group["rules"]:
            assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule.keys() >= {"alert", "expr", "labels", "annotations"}
            assert re.fullmatch(r"\d+[mhd]", rule.get("for", "1m"))
            assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed: it comes with Prometheus"
)
def test_promtool_finds_nothing_wrong_with_the_alert_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(DEPLOY / "alerts.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def unknown_to_grafana(dashboard: dict[str, Any]) -> set[str]:
    """Return the paths of what Grafana's schema of a dashboard does not have."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="no Grafana schema")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()  # the panels and queries that come with Grafana

    def lost(before: Any, after: Any, path: str) -> set[str]:
        if isinstance(before, dict):
            missing = {f"{path}/{name}" for name in before.keys() - after.keys()}
            return missing.union(*(lost(before[n], after[n], f"{path}/{n}") for n in before.keys() & after))
        if isinstance(before, list):
            assert len(before) == len(after), path
            return set().union(*(lost(one, other, path) for one, other in zip(before, after, strict=True)))
        assert before == after, path
        return set()

    known = json.loads(JSONEncoder().encode(models.Dashboard.from_json(dashboard)))
    return lost(dashboard, known, "")


def test_the_dashboard_is_one_by_grafana_s_schema() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    # These are the Prometheus data source's own, and in no schema.
    own = {"/annotations/list/titleFormat", "/annotations/list/textFormat"}
    assert unknown_to_grafana(dashboard) == own
    dashboard["panels"][0]["fieldConfigs"] = dashboard["panels"][0].pop("fieldConfig")
    assert unknown_to_grafana(dashboard) == own | {"/panels/fieldConfigs"}


def test_the_dashboard_has_no_panel_upon_another() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_page_s_example_counts_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/monitoring.md").read_text(), re.S)
    names: dict[str, object] = {}
    exec(example, names)
    assert 'adds_total{outcome="replaced"} 1.0' in names["text"]
