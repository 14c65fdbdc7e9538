"""What handlers log and print: it is seen, at once, and it is said which element it is about."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import PATIENCE, Consumer, command, environment, json_lines, run

from fsinbox import Element, Inbox
from fsinbox.worker.saying import LONGEST, Printed, current, discard, working_on

WORDS = " ".join(map(str, command()))

JOBS = """
import asyncio, logging, sys, time

log = logging.getLogger("app")
log.info("imported")

def job(key, value):
    log.debug("a detail")
    log.info("works on %s", value)
    log.warning("own key", extra={"key": "mine", "elements": 3})
    print("half a", end="")
    print(" line\\nand a rest", end="")
    sys.stdout.flush()

async def wait(key, value):
    log.info("begins")
    await asyncio.sleep(0.2)
    print(f"ends {key}")
    log.info("ends %s", key)

def many(elements):
    log.info("works on %d", len(elements))

def chatty(key, value):
    time.sleep(0.3)
    for number in range(20_000):
        print("a line that is rather long, so that a pipe is soon full", number)

def complains(key, value):
    print("a line", file=sys.stderr)
    sys.stderr.flush()
    print("a rest", file=sys.stderr, end="", flush=True)

def slow(key, value):
    print("begun")
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with jobs.py, and an inbox in which a and b wait."""
    (tmp_path / "jobs.py").write_text(JOBS)
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
        inbox.add("b", 2)
    return tmp_path


def log_of(place: Path, *words: str) -> list[str]:
    """Return the log of a drain, without times."""
    log = run("consume", "--drain", *words, cwd=place).stderr
    return [re.sub(r"^\S+ \S+ ", "", line) for line in log.splitlines()]


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=" ".join)
def test_what_a_handler_logs_from_info_on_is_seen_with_key_and_attempt(
    place: Path, more: tuple[str, ...]
) -> None:
    lines = log_of(place, "--handler", "jobs:job", *more)
    assert "INFO imported" in lines
    for key, value in (("a", 1), ("b", 2)):
        assert f"INFO key {key!r}, attempt 1: works on {value}" in lines
        assert f"WARNING key {key!r}, attempt 1: own key" in lines
    assert not any("a detail" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["--log-level", "debug"], ["a detail", "works on 1", "own key", "consuming"]),
        (["--log-level", "warning"], ["own key"]),
        (["--quiet"], ["own key"]),
        (["--log-level", "error"], []),
        (["--quiet", "--log-level", "debug"], ["own key"]),
        (["--verbose"], ["works on 1", "own key", "consuming", "done after"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_the_level_is_that_of_handlers_too(place: Path, words: list[str], seen: list[str]) -> None:
    log = "\n".join(log_of(place, "--handler", "jobs:job", *words))
    texts = ["a detail", "works on 1", "own key", "consuming", "done after"]
    wanted = [*seen, "done after"] if words == ["--log-level", "debug"] else seen
    assert [text for text in texts if text in log] == [text for text in texts if text in wanted]


def test_coroutines_that_run_together_each_say_their_own_key(place: Path) -> None:
    lines = log_of(place, "--handler", "jobs:wait", "--concurrency", "2", "--log-output")
    for key in "ab":
        assert f"INFO key {key!r}, attempt 1: ends {key}" in lines
        assert lines.count(f"INFO key {key!r}, attempt 1: ends {key}") == 2


def test_a_batch_says_its_first_key_and_how_many_more(place: Path) -> None:
    lines = log_of(place, "--handler", "jobs:many", "--batch", "10")
    assert "INFO key 'a' and 1 more, attempt 1: works on 2" in lines


def test_for_programs_key_number_and_attempt_are_members(place: Path) -> None:
    log = run("consume", "--drain", "--handler", "jobs:job", "--log-format", "json", cwd=place).stderr
    lines = [line for line in json_lines(log) if line.get("logger") == "app" and "key" in line]
    assert [(line["key"], line["attempts"], line["message"]) for line in lines] == [
        ("a", 1, "works on 1"),
        ("mine", 1, "own key"),
        ("b", 1, "works on 2"),
        ("mine", 1, "own key"),
    ]
    assert all(isinstance(line["seq"], int) for line in lines)
    assert ("elements" in lines[0], lines[1]["elements"]) == (False, 3)


@pytest.mark.parametrize("more", [(), ("--processes", "1")], ids=" ".join)
def test_what_a_handler_prints_is_logged_if_asked_and_else_passed_on(
    place: Path, more: tuple[str, ...]
) -> None:
    words = ("consume", "--drain", "--handler", "jobs:job", "--log-output", *more)
    done = run(*words, cwd=place)
    for key in "ab":
        assert f"INFO key {key!r}, attempt 1: half a line\n" in done.stderr
        assert f"INFO key {key!r}, attempt 1: and a rest\n" in done.stderr
    assert done.stdout == ""
    run("add", "a", "1", cwd=place)
    done = run("consume", "--drain", "--handler", "jobs:job", *more, cwd=place)
    assert done.stdout == "half a line\nand a rest"
    assert "half a line" not in done.stderr


def test_what_a_command_prints_is_logged_if_asked(place: Path) -> None:
    long = "x" * (LONGEST + 100)
    (place / "says").write_text(
        f"#!/bin/sh\necho one\nprintf '%s' {long}\nsleep 0.2\necho\nprintf 'no end'\n"
    )
    (place / "says").chmod(0o755)
    done = run("consume", "--once", "--exec", "./says", "--log-output", cwd=place)
    lines = [line.partition("attempt 1: ")[2] for line in done.stderr.splitlines() if "attempt 1: " in line]
    assert (lines[0], lines[-1], "".join(lines[1:-1])) == ("one", "no end", long)
    assert done.stdout == ""


def test_what_a_handler_prints_into_a_pipe_is_there_at_once(place: Path) -> None:
    with Consumer("--handler", "jobs:slow", cwd=place) as consumer:
        consumer.until(lambda: consumer.output == "begun\n")
        consumer.signal(signal.SIGINT)
        consumer.signal(signal.SIGINT)


def test_a_start_that_is_refused_does_not_say_that_it_consumes(place: Path) -> None:
    with Consumer("--exec", "sleep 60", cwd=place) as consumer:
        consumer.until(lambda: "consuming" in consumer.log)
        log = run("consume", "--exec", "true", cwd=place, status=4).stderr
        assert "already has a consumer" in log
        assert "consuming" not in log
        assert len(log.splitlines()) == 1
        (place / "second").mkdir()
        words = ("--inbox", str(place / "inbox"), "--standby", "--exec", "true")
        with Consumer(*words, cwd=place / "second") as second:
            second.until(lambda: "standing by" in second.log)
            time.sleep(0.1)
            assert "consuming" not in second.log
            consumer.process.kill()
            second.until(lambda: "consuming" in second.log)


# --- standard output ----------------------------------------------------------------------------------


def test_what_no_handler_prints_is_passed_on() -> None:
    real = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    printed = Printed(real, logs=True)
    print("hello", file=printed, flush=True)
    printed.buffer.write(b"bytes\n")
    printed.buffer.flush()
    assert cast(io.BytesIO, real.buffer).getvalue() == b"hello\nbytes\n"
    assert (printed.encoding, printed.isatty(), printed.writable(), current()) == ("utf-8", False, True, ())
    with pytest.raises(io.UnsupportedOperation):
        printed.fileno()


def test_a_full_disk_is_tried_again_and_a_reader_that_has_gone_is_not() -> None:
    with open("/dev/full", "w") as full:
        printed = Printed(full, logs=False)
        print("a line", file=printed)
        printed.flush()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        discard(full.fileno())
    reader, writer = os.pipe()
    os.close(reader)
    printed = Printed(open(writer, "w"), logs=False)  # noqa: SIM115 - closed with its descriptor
    print("a line", file=printed)
    assert os.readlink(f"/proc/self/fd/{writer}") == "/dev/null"


def test_a_line_without_end_is_logged_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    class Some:
        key, seq, attempts = "k", 7, 2

    printed = Printed(io.StringIO(), logs=True)
    caplog.set_level("INFO", logger="fsinbox")
    with working_on(cast(Element, Some())):
        printed.write("y" * (2 * LONGEST + 5))
        printed.finish()
        printed.finish()
    found: list[Any] = [vars(record)["text"] for record in caplog.records]
    assert [len(text) for text in found] == [LONGEST, LONGEST, 5]


def test_an_output_that_nobody_reads_is_no_reason_to_fail(place: Path) -> None:
    """Neither is a full disk."""
    for redirected in ("| true", ">/dev/full"):
        with Inbox(place / "inbox") as inbox:
            inbox.add("a", 1)
        line = f"{WORDS} consume --drain --handler jobs:chatty --max-attempts 1 {redirected}"
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=place, env=environment(), stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert "0 failed" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more", ["", "--processes 2"])
def test_errors_that_cannot_be_written_are_no_reason_to_fail(place: Path, more: str) -> None:
    """Standard error goes to a full disk, or its reader has gone."""
    for redirected in ("2>/dev/full", "2>&1 >/dev/null | true"):
        with Inbox(place / "inbox") as inbox:
            inbox.add("a", 1)
        line = f"{WORDS} consume --drain --handler jobs:complains --max-attempts 1 {more} {redirected}"
        subprocess.run(["/bin/sh", "-c", line], cwd=place, env=environment(), timeout=PATIENCE, check=False)
        with Inbox(place / "inbox") as inbox:
            assert not len(inbox)
            assert not os.listdir(place / "inbox/failed")
