"""The log of `fsinbox consume`, as people, programs and journald read it."""

from __future__ import annotations

import ast
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
from typing import Any

import pytest
from helpers import Consumer, command, environment, json_lines, run

from fsinbox import Inbox
from fsinbox.cli.logs import Json, Text

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


LEVELS = {f"log.{level}" for level in ("debug", "info", "warning", "error", "exception")}


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


def test_the_table_of_events_is_what_the_code_says() -> None:
    code = "\n".join(path.read_text() for path in sorted((ROOT / "fsinbox").rglob("*.py")))
    said = set(
        re.findall(
            r'"event": "(\w+)"|(?:about|_?tell)\((?:element, )?"(\w+)"|, "(stopping)"\)',
            code,
        )
    )
    events: set[Any] = {name for names in said for name in names if name} | {"log"}
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("running.md", "watching.md"))
    table = set(re.findall(r"^\| `(\w+)` \| (?:debug|info|warning|error)", pages, re.M))
    assert events == table
