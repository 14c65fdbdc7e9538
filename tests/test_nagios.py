"""`fsinbox status --nagios`, as the Monitoring Plugins guidelines have it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers import PATIENCE, Consumer, command, environment, run

from fsinbox import Inbox
from fsinbox.cli.plugin import line

LINE = re.compile(r"FSINBOX (OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+(?: \| (.+))?\n")
FIGURE = re.compile(r"[a-z_]+=[0-9.]+(?:s|c)?;[0-9.]*;[0-9.]*;0")


def read(stdout: str, stderr: str) -> tuple[str, dict[str, str]]:
    found = LINE.fullmatch(stdout)
    assert found, stdout
    assert stderr == ""
    figures = found[2].split() if found[2] else []
    assert all(FIGURE.fullmatch(figure) for figure in figures), figures
    return found[1], dict(figure.split("=") for figure in figures)


def plugin(cwd: Path, *words: str, status: int | None) -> tuple[str, dict[str, str]]:
    done = run("status", "--nagios", *words, cwd=cwd, status=status)
    return read(done.stdout, done.stderr)


def test_all_well_is_0_with_figures(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    level, figures = plugin(
        tmp_path, "--max-age", "15m", "--max-waiting", "10", "--max-failed", "3", status=0
    )
    assert level == "OK"
    assert figures == {
        "waiting": "0;;10;0",
        "in_flight": "0;;;0",
        "deferred": "0;;;0",
        "failed": "0;;3;0",
        "oldest": "0s;;900;0",
        "acknowledged": "0c;;;0",
    }


def test_what_a_person_may_want_to_know_is_1_and_a_limit_that_is_exceeded_is_2(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add_many((f"k{number}", number) for number in range(3))
    level, figures = plugin(tmp_path, status=1)
    assert (level, figures["waiting"]) == ("WARNING", "3;;;0")
    level, figures = plugin(tmp_path, "--max-waiting", "2", status=2)
    assert (level, figures["waiting"]) == ("CRITICAL", "3;;2;0")


def test_the_figures_tell_what_a_consumer_has_done(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    with Consumer("--exec", "true", cwd=tmp_path) as consumer:
        run("add", "k", "1", cwd=tmp_path)
        consumer.until(lambda: plugin(tmp_path, status=None)[1]["acknowledged"] == "1c;;;0")
        assert float(plugin(tmp_path, status=None)[1]["per_minute"].partition(";")[0]) > 0


@pytest.mark.parametrize(
    "words",
    [["--max-age", "soon"], ["--no-such"], ["extra"], ["--json"], ["--inbox", "none"]],
    ids=" ".join,
)
def test_what_is_an_error_for_others_is_3_on_standard_output(tmp_path: Path, words: list[str]) -> None:
    Inbox(tmp_path / "inbox").close()
    assert plugin(tmp_path, *words, status=3) == ("UNKNOWN", {})


def test_settings_that_are_wrong_are_3_too(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.fsinbox]\ninbox = 7\n")
    assert plugin(tmp_path, status=3) == ("UNKNOWN", {})


def test_help_is_help(tmp_path: Path) -> None:
    done = run("status", "--nagios", "--help", cwd=tmp_path)
    assert done.stdout.startswith("Usage: fsinbox status")


def test_a_line_has_one_bar_and_is_one_line() -> None:
    assert line("OK", "a | b\nc", "x=1;;;0") == "FSINBOX OK - a / b c | x=1;;;0"


def test_a_line_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("status", "--nagios"), cwd=tmp_path, env=environment(), stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
