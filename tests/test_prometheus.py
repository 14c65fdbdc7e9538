"""Proves that the alert rules of docs/deploy/alerts.yml fire when they should, and only then.

Each rule is tried with made-up series by promtool; and a real Prometheus scrapes a real consumer and
evaluates the rules, all but how long a state has to last. Both come with Debian's package prometheus.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsinbox import Inbox
from fsinbox.store import control
from tests.helpers import Consumer, wait_until
from tests.test_metrics import DEPLOY, url

yaml = pytest.importorskip("yaml")

RULES = DEPLOY / "alerts.yml"

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed: it comes with Debian's package prometheus",
)

# --- each rule, with made-up series -------------------------------------------------------------------

L = 'instance="host:9100", inbox="/srv/inbox", shard="0/1"'
UP = f"fsinbox_consumer_up{{{L}}}"
WAITING = f'fsinbox_elements{{{L}, state="waiting"}}'
OLDEST = f'fsinbox_oldest_age_seconds{{{L}, state="waiting"}}'
IN_FLIGHT = f'fsinbox_oldest_age_seconds{{{L}, state="in_flight"}}'
SUCCESS = f"fsinbox_last_success_timestamp_seconds{{{L}}}"
PAUSED = f"fsinbox_paused{{{L}}}"
BUCKETS = [f'fsinbox_wakeup_latency_seconds_bucket{{{L}, le="{le}"}}' for le in ("5.0", "10.0", "+Inf")]

# name of a rule -> (series that let it fire, series that do not), a sample a minute, for two hours
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "FsinboxNoConsumer": ({UP: "0x120"}, {UP: "1x120"}),
    "FsinboxConsumerGone": ({UP: "1x100 _x20"}, {UP: "1x120"}),
    "FsinboxOldElement": ({OLDEST: "901x120"}, {OLDEST: "901x120", PAUSED: "1x120"}),
    "FsinboxHandlerHangs": ({IN_FLIGHT: "3601x120"}, {IN_FLIGHT: "3599x120"}),
    "FsinboxNothingDone": ({SUCCESS: "0x120", WAITING: "1x120"}, {SUCCESS: "0x120", WAITING: "0x120"}),
    "FsinboxBacklogGrows": ({WAITING: "1000+1x120"}, {WAITING: "3000-1x120"}),
    "FsinboxFailed": (
        {f"fsinbox_failed_total{{{L}}}": "0x90 1x30"},
        {f"fsinbox_failed_total{{{L}}}": "7x120"},
    ),
    "FsinboxAttemptsFail": (
        {f"fsinbox_retried_total{{{L}}}": "0+6x120", f"fsinbox_taken_total{{{L}}}": "0+10x120"},
        {f"fsinbox_retried_total{{{L}}}": "0+4x120", f"fsinbox_taken_total{{{L}}}": "0+10x120"},
    ),
    "FsinboxPaused": ({PAUSED: "1x120"}, {PAUSED: "0x100 1x20"}),
    "FsinboxKeysOnHold": (
        {f"fsinbox_held_keys{{{L}}}": "1x1600"},
        {f"fsinbox_held_keys{{{L}}}": "1x1000"},
    ),
    "FsinboxSlowWakeUp": (
        dict(zip(BUCKETS, ["0x120", "0+9x120", "0+9x120"], strict=True)),
        dict(zip(BUCKETS, ["0+9x120"] * 3, strict=True)),
    ),
    "FsinboxFoldersUnreadable": (
        {f"fsinbox_folders_readable{{{L}}}": "0x120"},
        {f"fsinbox_folders_readable{{{L}}}": "1x120"},
    ),
}

LONG = {"FsinboxKeysOnHold": "1500m"}
"""When a rule is looked at, if not after two hours."""


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_each_rule_has_its_case() -> None:
    assert CASES.keys() == rules().keys()


@pytest.mark.parametrize("fires", [True, False], ids=["fires", "silent"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule(name: str, fires: bool, tmp_path: Path) -> None:
    series = CASES[name][not fires]
    at = LONG.get(name, "120m")
    # promtool compares whole alerts, texts and all: so ask for the name alone, by the series of alerts.
    expr = f'count by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}})'
    case = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": expr,
                        "eval_time": at,
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if fires else [],
                    }
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(case))
    done = subprocess.run(
        ["promtool", "test", "rules", "case.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- a real Prometheus, and a real consumer -----------------------------------------------------------

TASKS = "def work(key, value):\n    if key == 'bad':\n        raise ValueError('bad')\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def prometheus(place: Path, target: str) -> Iterator[str]:
    """Run a Prometheus that scrapes a target twice a second; yield its address."""
    at_once = {name: {key: rule[key] for key in rule if key != "for"} for name, rule in rules().items()}
    group = {"name": "fsinbox", "interval": "500ms", "rules": list(at_once.values())}
    (place / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    job = {"job_name": "fsinbox", "static_configs": [{"targets": [target]}]}
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "400ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job],
    }
    (place / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={place / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with open(place / "prometheus.log", "w") as log:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={place / 'data'}"], cwd=place, stdout=log, stderr=log
        )
        try:
            yield f"http://{address}"
        finally:
            process.kill()
            process.wait()


def ask(base: str, what: str) -> Any:
    """Ask Prometheus' API; None while it is not there yet."""
    try:
        with urllib.request.urlopen(f"{base}/api/v1/{what}", timeout=10) as answer:
            return json.load(answer)["data"]
    except (urllib.error.URLError, ConnectionError):
        return None


def test_a_real_prometheus_scrapes_a_consumer_and_its_rules_fire(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    words = ("--handler", "tasks:work", "--metrics", "0", "--max-attempts", "1")
    with Inbox(tmp_path / "inbox") as inbox, Consumer(*words, cwd=tmp_path) as consumer:
        target = url(consumer).removeprefix("http://").partition("/")[0]
        with prometheus(tmp_path, target) as base:

            def firing() -> dict[str, Any]:
                alerts = (ask(base, "alerts") or {"alerts": []})["alerts"]
                return {
                    alert["labels"]["alertname"]: alert["annotations"]
                    for alert in alerts
                    if alert["state"] == "firing"
                }

            def scraped() -> bool:
                result = ask(base, "query?query=fsinbox_failed_total")
                return bool(result and result["result"])

            wait_until(scraped, patience=60)
            (up,) = ask(base, "targets")["activeTargets"]
            assert (up["health"], up["lastError"]) == ("up", "")
            assert firing() == {}
            inbox.add("bad", 1)
            control.hold(inbox.layout, "held")
            wait_until(lambda: {"FsinboxFailed", "FsinboxKeysOnHold"} <= firing().keys(), patience=60)
            control.pause(inbox.layout)
            wait_until(lambda: "FsinboxPaused" in firing(), patience=60)
            assert str(tmp_path / "inbox") in firing()["FsinboxFailed"]["summary"]
            for annotations in firing().values():
                assert "{{" not in str(annotations)
                assert "error" not in str(annotations)
            assert not firing().keys() & {
                "FsinboxNoConsumer",
                "FsinboxFoldersUnreadable",
                "FsinboxOldElement",
            }
