"""`fsinbox ls` and `failed`: which elements they list, in which form, and why one failed, in one line."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import PATIENCE, command, environment, json_lines, run

from fsinbox import Inbox
from fsinbox.cli.commands import cli
from fsinbox.operate import rows as rows_module
from fsinbox.operate.reasons import headline, summary
from fsinbox.operate.rows import rows

HOUR = 3600


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with an inbox: user:1 to user:9 and a*b wait, job and old:2 failed."""
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        for key in ("job", "old:2"):
            inbox.add(key, 1)
            element = inbox.take()
            assert element
            element.fail(f"{key} was broken\nfor good")
        inbox.add_many((f"user:{number}", number) for number in range(1, 10))
        inbox.add("a*b", 1)
    return tmp_path


def keys(home: Path, *words: str) -> list[str]:
    return [line["key"] for line in json_lines(run(*words, "--json", cwd=home).stdout)]


# --- which --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ls", "user:3"], ["user:3"]),
        (["ls", "user:[1-3]"], ["user:1", "user:2", "user:3"]),
        (["ls", "a*b"], ["a*b"]),
        (["ls", "*:2"], ["user:2", "old:2"]),
        (["ls", "nobody"], []),
        (["ls", "--limit", "2"], ["user:1", "user:2"]),
        (["ls", "--limit", "1", "--state", "failed"], ["job"]),
        (["ls", "--limit", "2", "user:7", "old:*"], ["user:7", "old:2"]),
        (["failed"], ["job", "old:2"]),
        (["failed", "--limit", "1"], ["job"]),
        (["failed", "--since", "2h", "j*"], ["job"]),
        (["ls", "--state", "in-flight"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_only_what_was_asked_for_is_listed(home: Path, words: list[str], found: list[str]) -> None:
    assert keys(home, *words) == found


def test_failed_since_goes_by_when_an_element_failed(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        for key in ("early", "late"):
            inbox.add(key, 1)
            element = inbox.take()
            assert element
            time.sleep(2 if key == "late" else 0)
            element.fail("why")
    (early,) = (tmp_path / "inbox/failed").glob("*-early")
    words = ["--inbox", str(tmp_path / "inbox"), "failed", "--json", "--since"]
    age = time.time() - early.stat().st_ctime
    found = CliRunner().invoke(cli, [*words, f"{age - 0.1:.3f}"], prog_name="fsinbox")
    assert [line["key"] for line in json_lines(found.stdout)] == ["late"]
    found = CliRunner().invoke(cli, [*words, "1h"], prog_name="fsinbox")
    assert [line["key"] for line in json_lines(found.stdout)] == ["early", "late"]


def test_keys_may_come_by_standard_input(home: Path) -> None:
    done = run("ls", "-", cwd=home, stdin="user:4\nuser:5\n")
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["user:4", "user:5"]


def test_ls_since_goes_by_when_an_element_arrived(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("old", 1)
        inbox.add("new", 1)
    (path,) = (tmp_path / "inbox/pending").glob("*-old")
    earlier = int(path.name[:19]) - HOUR * 10**9
    path.rename(path.with_name(f"{earlier}-old"))
    assert keys(tmp_path, "ls") == ["old", "new"]
    assert keys(tmp_path, "ls", "--since", "59m") == ["new"]
    assert keys(tmp_path, "ls", "--since", "1h1m") == ["old", "new"]


def test_the_first_lines_of_a_list_cost_no_look_at_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        inbox.add_many((f"k{number}", number) for number in range(2000))
        looked = []
        real = rows_module.row_of

        def counting(state: str, folder: str, file: str) -> Any:
            looked.append(file)
            return real(state, folder, file)

        monkeypatch.setattr(rows_module, "row_of", counting)
        found = rows(inbox.layout, ("waiting",))
        assert [next(found).key for _ in range(3)] == ["k0", "k1", "k2"]
        assert len(looked) == 3
        assert [row.key for row in found] == [f"k{number}" for number in range(3, 2000)]


# --- in which form ------------------------------------------------------------------------------------


def terminal(home: Path, *words: str, **variables: str) -> list[str]:
    """Return the lines that a command prints on a terminal."""
    pexpect = pytest.importorskip("pexpect", reason="a terminal: pip install pexpect")
    first, *rest = map(str, command(*words))
    child = pexpect.spawn(
        first, rest, cwd=str(home), env=environment(TERM="xterm", **variables), encoding="utf-8",
        timeout=PATIENCE, dimensions=(40, 120),
    )  # fmt: skip
    lines: list[str] = child.read().splitlines()
    child.close()
    return lines


def test_on_a_terminal_there_are_headers_and_failures_are_red(home: Path) -> None:
    head, *lines = terminal(home, "ls")
    assert head.startswith("\x1b[1mSTATE ")
    assert [line for line in lines if "\x1b[31m" in line] == [line for line in lines if "failed" in line]
    assert [line for line in lines if "waiting" in line and "\x1b" in line] == []
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
    piped = run("ls", cwd=home).stdout.splitlines()
    assert [re.sub(r"\d+s", "", line) for line in plain] == [re.sub(r"\d+s", "", line) for line in piped]
    (start,) = {line.index(line.split()[3]) for line in plain if "in 1h" not in line}
    assert head.index("KEY") - len("\x1b[1m") == start
    head, first, _ = terminal(home, "failed")
    assert "KEY: REASON" in head
    assert first.endswith("job: job was broken")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_who_wants_no_colours_gets_none(home: Path, variables: dict[str, str]) -> None:
    pexpect = pytest.importorskip("pexpect", reason="a terminal: pip install pexpect")
    for words in (["ls"], ["failed"], ["--help"], ["status"]):
        first, *rest = map(str, command(*words))
        child = pexpect.spawn(
            first, rest, cwd=str(home), env=environment() | {"TERM": "xterm"} | variables, encoding="utf-8",
            timeout=PATIENCE,
        )  # fmt: skip
        text = child.read()
        child.close()
        assert "\x1b" not in text
        assert text.endswith("\n")


def test_in_a_pipe_there_is_a_line_an_element_and_nothing_else(home: Path) -> None:
    assert len(run("ls", cwd=home).stdout.splitlines()) == 12
    assert len(run("failed", cwd=home).stdout.splitlines()) == 2
    assert run("ls", "--state", "deferred", cwd=home).stdout == ""


# --- why, in one line ---------------------------------------------------------------------------------

HANDLERS = """
def work(key, value):
    if key == "group":
        raise ExceptionGroup("two", [ValueError("a"), TypeError("b")])
    if key == "long":
        raise ValueError("1 validation error for Model\\nname\\n    For further information visit x")
    if key == "blank":
        raise ValueError("\\nfoo\\nbar")
    if key == "note":
        error = ValueError("boom")
        error.add_note("a note")
        raise error
    if key == "chain":
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError("chained") from error
    if key == "syntax":
        compile("a b", "x.py", "exec")
    raise KeyError
"""
SAID = {
    "group": "ExceptionGroup: two (2 sub-exceptions)",
    "long": "ValueError: 1 validation error for Model",
    "blank": "ValueError: foo",
    "note": "ValueError: boom",
    "chain": "RuntimeError: chained",
    "syntax": "SyntaxError: invalid syntax",
    "bare": "KeyError",
}


def check_summaries(folder: Path, values: Mapping[str, object], said: dict[str, str]) -> None:
    """Have tasks:work fail with each of these values once: `said` is what `failed` and the log sum up."""
    with Inbox(folder / "inbox") as inbox:
        inbox.add_many(values.items())
    words = ("consume", "--handler", "tasks:work", "--drain", "--max-attempts", "1")
    log = run(*words, cwd=folder, status=1).stderr
    listed = json_lines(run("failed", "--json", cwd=folder).stdout)
    assert {line["key"]: line["summary"] for line in listed} == said
    for key, line in said.items():
        assert f"key {key!r} moved to failed/ after attempt 1: {line}\n" in log


def test_an_exception_is_summed_up_by_its_type_and_the_first_line_of_its_message(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(HANDLERS)
    check_summaries(tmp_path, dict.fromkeys(SAID, 1), SAID)


MODELS = """
from pydantic import BaseModel, TypeAdapter

class Line(BaseModel):
    amount: int

class Invoice(BaseModel):
    lines: list[Line]
    who: str

def work(key, value):
    if key == "old":
        from pydantic.v1 import BaseModel as OldModel
        class Old(OldModel):
            amount: int
        Old.parse_obj(value)
    elif key == "bare":
        TypeAdapter(int).validate_python(value)
    else:
        Invoice.model_validate(value)
"""
ERROR = "pydantic_core._pydantic_core.ValidationError: "


def test_a_validation_error_of_pydantic_names_the_first_field_and_says_what_is_wrong_with_it(
    tmp_path: Path,
) -> None:
    pytest.importorskip("pydantic", minversion="2", reason="pydantic is not installed")
    (tmp_path / "tasks.py").write_text(MODELS)
    not_a_number = "Input should be a valid integer, unable to parse string as an integer"
    values = {
        "nested": {"lines": [{"amount": 1}, {"amount": "x"}]},
        "missing": {"lines": []},
        "whole": [],
        "bare": "x",
        "old": {"amount": "x"},
    }
    if sys.version_info >= (3, 14):
        del values["old"]  # (pydantic.v1 is not for them)
    said = {
        "nested": f"{ERROR}2 validation errors for Invoice: lines.1.amount: {not_a_number}",
        "missing": f"{ERROR}1 validation error for Invoice: who: Field required",
        "whole": f"{ERROR}1 validation error for Invoice: "
        "Input should be a valid dictionary or instance of Invoice",
        "bare": f"{ERROR}1 validation error for int: {not_a_number}",
        "old": "pydantic.v1.error_wrappers.ValidationError: 1 validation error for Old: amount: "
        "value is not a valid integer",
    }
    said = {key: said[key] for key in values}
    check_summaries(tmp_path, values, said)


def test_a_command_is_summed_up_by_its_status_and_its_last_line(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
    line = "echo begin; echo no such host >&2; echo; exit 9"
    run("consume", "--shell", "--exec", line, "--drain", "--max-attempts", "1", cwd=tmp_path, status=1)
    (found,) = json_lines(run("failed", "--json", cwd=tmp_path).stdout)
    assert found["summary"] == f"{line!r} exited with 9: no such host"
    assert "begin\nno such host" in found["reason"]


BEGIN = "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (None, "no reason is kept"),
        ("", ""),
        (" \n", ""),
        ("key: k\nattempts: 1\nadded: 2026-01-01T00:00:00+00:00\n\nwhy\nand how\n", "why"),
        ("key: two\nlines\nattempts: 1\nadded: 2026-01-01T00:00:00+00:00\n\nwhy\n", "why"),
        (f"{BEGIN}\nKilled: early", "Killed: early"),
        (f'{BEGIN}\n  File "x", line 1, in f\n    raise', f'{BEGIN} File "x", line 1, in f'),
        ("begin:\n  the rest", "begin: the rest"),
        ("E: 3 validation errors for page\nof another kind", "E: 3 validation errors for page"),
        ("E: 1 validation error for M\n" + "a" * 99_999 + "\nb", "E: 1 validation error for M"),
    ],
)  # fmt: skip
def test_any_reason_has_a_summary(reason: str | None, line: str) -> None:
    assert summary(reason) == line
    assert headline("\n\n a\nb") == "a"


def test_a_handler_that_cannot_be_imported_is_shown_without_the_frames_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("raise RuntimeError('no licence')\n")
    error = run("consume", "--handler", "bad:work", cwd=tmp_path, status=2).stderr
    assert "RuntimeError: no licence" in error
    assert re.findall(r'File ".*/(.*)", line', error) == ["bad.py", "helper.py"]
    assert "importlib" not in error
    (tmp_path / "syntax.py").write_text("a b\n")
    error = run("consume", "--handler", "syntax:work", cwd=tmp_path, status=2).stderr
    assert re.findall(r'File ".*/(.*)", line', error) == ["syntax.py"]
    assert sys.executable not in error
