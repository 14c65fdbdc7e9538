"""The log of `fsinbox consume`, as people, programs and journald read it."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers import Consumer, command, environment, json_lines, run

from fsinbox import Inbox
from fsinbox.cli.logs import Json, Text
from fsinbox.worker.ending import Tally

ROOT = Path(__file__).parent.parent

HOSTILE = "k\udcff\n\x1b[2J{}\u2028\x85"
"""A key of bytes that are no UTF-8, of line breaks, and of what clears a terminal."""

JOBS = """
import logging

MORE = {"odd": {1, 2}, "nan": float("nan"), "deep": {"a": [1]}}

def job(key, value):
    if value == "fail":
        raise ValueError("no \\x1b[2J\\r")
    if value == "log":
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("app").exception("it is %s", "so\\nor so", extra=MORE)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with jobs.py, and an inbox."""
    (tmp_path / "jobs.py").write_text(JOBS)
    Inbox(tmp_path / "inbox").close()
    return tmp_path


def add(place: Path, **values: object) -> None:
    with Inbox(place / "inbox", durable=False) as inbox:
        for key, value in values.items():
            inbox.add(key, value)


def consume(place: Path, *words: str, status: int = 0, **variables: str) -> str:
    """Drain the inbox with jobs:job; return the log."""
    return run(
        "consume", "--handler", "jobs:job", "--drain", *words, cwd=place, status=status, **variables
    ).stderr


# --- JSON ---------------------------------------------------------------------------------------------


def test_every_line_of_a_run_is_an_object_with_time_level_event_and_message(place: Path) -> None:
    add(place, good=1, **{HOSTILE: "fail"})
    (place / "inbox/drop/odd\n").mkdir()
    before = datetime.now(UTC) - timedelta(seconds=1)
    log = consume(
        place, "-v", "--log-format", "json", "--max-attempts", "2", "--retry-delay", "0.001", status=1
    )
    lines = json_lines(log)
    for line in lines:
        assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)
        assert line["level"] in ("debug", "info", "warning", "error")
        assert line["event"] and line["message"]
    events = [(line["event"], line.get("key")) for line in lines]
    assert events[0] == ("consuming", None)
    assert events[-1] == ("stopped", None)
    assert ("set_aside", "odd\n") in events
    assert [event for event, key in events if key == HOSTILE] == ["handled", "retry", "handled", "failed"]
    assert [event for event, key in events if key == "good"] == ["handled"]
    (handled,) = [line for line in lines if line["event"] == "handled" and line["key"] == "good"]
    assert 0 <= handled["seconds"] < 60 and handled["outcome"] == "done" and handled["attempts"] == 1
    assert datetime.fromtimestamp(handled["seq"] / 1e9, UTC) > before
    assert lines[-1]["acknowledged"] == lines[-1]["failed"] == lines[-1]["retried"] == 1


def test_a_line_is_ascii_so_that_no_locale_spoils_it(place: Path) -> None:
    add(place, **{"ü\udcff": "fail"})
    (line,) = consume(place, "-q", "--log-format", "json", "--max-attempts", "1", status=1).splitlines()
    assert line.isascii()
    assert json.loads(line)["key"] == "ü\udcff"


def test_what_a_handler_logs_is_an_object_too_with_its_traceback_as_one_member(place: Path) -> None:
    add(place, a="log")
    (line,) = json_lines(consume(place, "-q", "--log-format", "json"))
    assert line["logger"] == "app"
    assert line["event"] == "log"
    assert line["level"] == "error"
    assert line["message"] == "it is so\nor so"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("ZeroDivisionError: division by zero")
    assert line["odd"] == "{1, 2}" and line["nan"] == "nan" and line["deep"] == {"a": [1]}


def test_what_ends_the_consumer_is_an_object_too(place: Path) -> None:
    with Inbox(place / "inbox") as other:
        other.become_consumer()
        lines = json_lines(consume(place, "--log-format", "json", status=4))
    assert (lines[-1]["event"], lines[-1]["level"]) == ("gave_up", "error")
    assert "already has a consumer" in lines[-1]["message"]


def test_what_is_said_at_a_signal_is_an_object_too(place: Path) -> None:
    add(place, a=1)
    (place / "jobs.py").write_text(
        "import os, time\ndef job(element):\n    open('began', 'w').close()\n    time.sleep(60)\n"
    )
    with Consumer("--handler", "jobs:job", "--log-format", "json", cwd=place) as consumer:
        consumer.until((place / "began").exists)
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "stopping" in consumer.log)
        consumer.signal(signal.SIGTERM)
        consumer.end()
        events = [line["event"] for line in json_lines(consumer.log)]
    assert events[-2:] == ["stopping", "requeued"]


def test_recovery_tells_the_key_and_number_of_what_a_dead_consumer_held(place: Path) -> None:
    add(place, **{HOSTILE: 1})
    code = f"import os; from fsinbox import Inbox; Inbox({str(place / 'inbox')!r}).take(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=place)
    (line,) = [
        line for line in json_lines(consume(place, "--log-format", "json")) if line["event"] == "recovered"
    ]
    assert line["key"] == HOSTILE
    assert isinstance(line["seq"], int)


# --- text ---------------------------------------------------------------------------------------------


def test_text_has_times_and_no_control_characters_and_no_line_that_only_looks_like_a_record(
    place: Path,
) -> None:
    add(place, a="log", **{HOSTILE: "fail"})
    log = consume(place, "--max-attempts", "1", status=1)
    assert log.isprintable() or set(log) - {"\n"} == {one for one in log if one.isprintable()}
    begins = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) ")
    assert all(begins.match(line) or line.startswith("    ") for line in log.splitlines())
    assert "    or so\n" in log and "    ZeroDivisionError: division by zero\n" in log
    assert r"ValueError: no \x1b[2J" in log


def test_a_text_without_anything_odd_is_as_it_was() -> None:
    record = logging.makeLogRecord({"msg": "plain\ttext", "levelname": "INFO"})
    assert Text("%(levelname)s %(message)s").format(record) == "INFO plain\ttext"
    assert json.loads(Json().format(record))["message"] == "plain\ttext"


@pytest.mark.parametrize("reads", [True, False], ids=["journald reads", "another stream"])
def test_for_journald_each_line_has_its_priority_and_no_time(place: Path, reads: bool) -> None:
    add(place, a="log", b="fail")
    journal, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    status = os.fstat(ours.fileno())
    variables = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino if reads else 1}"}
    with journal, ours:
        subprocess.run(
            command("consume", "--handler", "jobs:job", "--drain", "-v", "--max-attempts", "1"),
            cwd=place,
            env=environment(**variables),
            stderr=ours,
        )
        ours.shutdown(socket.SHUT_WR)
        lines = journal.makefile(encoding="utf-8").read().splitlines()
    if not reads:
        assert lines[0][:3] == "202"
        return
    assert [line for line in lines if not re.match(r"<[2-7]>\S|<3>    \s*\S", line)] == []
    found = {line[1]: line for line in lines}
    assert found.keys() == {"3", "6", "7"}
    assert lines[0].startswith("<6>consuming ")
    assert "<3>    ZeroDivisionError: division by zero" in lines


def test_a_consumer_without_standard_error_works(place: Path) -> None:
    add(place, a=1)
    words = command("consume", "--handler", "jobs:job", "--drain")
    subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *words], cwd=place, env=environment(), check=True)
    assert list((place / "inbox/pending").iterdir()) == []


# --- events -------------------------------------------------------------------------------------------


LEVELS = {f"log.{level}" for level in ("debug", "info", "warning", "error", "exception", "log")}


def calls_to_the_log() -> list[tuple[str, ast.Call]]:
    """Return every call to our log, and where it is."""
    return [
        (f"{path.name}:{node.lineno}", node)
        for path in sorted((ROOT / "fsinbox").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in LEVELS
    ]


def test_each_line_of_ours_has_an_event() -> None:
    without = [
        where
        for where, call in calls_to_the_log()
        if "extra" not in {keyword.arg for keyword in call.keywords}
    ]
    assert without == []


def said_of_events(call: ast.Call, tree: ast.AST) -> dict[str, set[str]]:
    """Return event -> its members, as far as a call to the log spells them."""

    def spelt(node: ast.AST) -> tuple[str, set[str]]:
        if isinstance(node, ast.Name):  # assigned above
            values = [
                one.value
                for one in ast.walk(tree)
                if isinstance(one, ast.Assign)
                and ast.unparse(one.targets[0]) == node.id
                and one.lineno <= call.lineno
            ]
            return spelt(values[-1])
        if isinstance(node, ast.BinOp):  # a | b
            (event, some), (_, more) = spelt(node.left), spelt(node.right)
            return event, some | more
        if isinstance(node, ast.Dict):
            members = {
                str(key.value): value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            event = members.pop("event", None)
            return ast.unparse(event).strip("'") if event else "", set(members)
        assert isinstance(node, ast.Call), ast.unparse(node)  # about("event", name), about(element, "event")
        first = node.args[0]
        if isinstance(first, ast.Constant):
            return str(first.value), {"key", "seq"}
        more = {keyword.arg or "" for keyword in node.keywords}
        return ast.unparse(node.args[1]).strip("'"), {"key", "seq", "attempts"} | more

    (extra,) = [keyword.value for keyword in call.keywords if keyword.arg == "extra"]
    event, members = spelt(extra)
    return {event: members}


def test_the_table_of_events_is_what_the_code_says() -> None:
    found: dict[str, set[str]] = {"log": set(), "stopping": set(), "gave_up": set()}
    for path in sorted((ROOT / "fsinbox").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in LEVELS and any(keyword.arg == "extra" for keyword in node.keywords):
                said = said_of_events(node, tree)
            elif name == "tell" and isinstance(node.args[0], ast.Constant):
                said = {str(node.args[0].value): {"key", "folder"}}
            else:
                continue
            for event, members in said.items():
                found.setdefault(event, set()).update(members)
    del found["event"]  # (`tell` passes it on)
    for event in ("queued", "removed"):  # the one line that names one of two
        found[event] = found["what"]
    del found["what"]
    more = {
        "ignoring": {"built_in", "file", "given"},
        "stopped": {field.name for field in dataclasses.fields(Tally)} | {"queued", "removed"},
        "log": {"logger", "extra"},
    }
    text = (ROOT / "docs/reference-statuses.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:debug|info|warning|error)[^|]*\|[^|]*\| ([^|]*) \|$", text, re.M)
    table = {event: set(re.findall(r"`(\w+)`", members)) - {"watch"} for event, members in rows}
    assert table == {event: members | more.get(event, set()) for event, members in found.items()}


def test_each_line_in_the_log_has_the_members_that_the_table_names(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("def bad(key, value): raise ValueError(key)\n")
    run("add", "--create", "a", "1", cwd=tmp_path)
    words = ("--handler", "tasks:bad", "--max-attempts", "2", "--retry-delay", "0.01", "--drain", "--verbose")
    done = run("consume", *words, "--log-format", "json", cwd=tmp_path, status=1)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    text = (ROOT / "docs/reference-statuses.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]*\|[^|]*\| ([^|]*) \|$", text, re.M))
    assert {"consuming", "handled", "retry", "failed", "stopped"} <= {line["event"] for line in lines}
    for line in lines:
        members = set(line) - {"time", "level", "event", "message", "traceback"}
        assert members <= set(re.findall(r"`(\w+)`", rows[line["event"]])), line
