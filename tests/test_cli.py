"""The commands but `consume`, as a person or a script types them: real processes in a directory of their
own."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pty
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pexpect
import pytest
from click.testing import CliRunner, Result
from helpers import command, contents, environment, json_lines, keys_in, reason, run

from fsinbox import Inbox, InboxFull, cli
from fsinbox.cli import commands, simple_add
from fsinbox.cli.adding import add as add_element
from fsinbox.cli.consuming import run_with_progress
from fsinbox.cli.options import DURATION
from fsinbox.operate import rows, units
from fsinbox.store.layout import Layout
from fsinbox.store.printing import discard
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.runner import Runner


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with an empty inbox."""
    Inbox(tmp_path / "inbox").close()
    return tmp_path


# --- init ---------------------------------------------------------------------------------------------


def test_init_creates_an_inbox_and_says_where(tmp_path: Path) -> None:
    done = run("init", cwd=tmp_path)
    assert done.stdout == f"created inbox {tmp_path}/inbox\n"
    assert done.stderr == ""
    assert (tmp_path / "inbox/format").is_file()
    assert stat.S_IMODE((tmp_path / "inbox").stat().st_mode) == 0o700


def test_init_of_an_inbox_that_is_there_changes_nothing_and_succeeds(home: Path) -> None:
    run("add", "k", "v", cwd=home)
    done = run("init", cwd=home)
    assert done.stdout == f"there is an inbox at {home}/inbox\n"
    assert contents(home / "inbox") == {"k": b"v"}


def test_init_json_tells_whether_it_was_created(tmp_path: Path) -> None:
    first = json_lines(run("init", "--json", cwd=tmp_path).stdout)
    second = json_lines(run("init", "--json", cwd=tmp_path).stdout)
    assert first == [{"path": f"{tmp_path}/inbox", "created": True, "format": "local"}]
    assert second == [{"path": f"{tmp_path}/inbox", "created": False, "format": "local"}]


def test_init_shared_lets_the_group_in(tmp_path: Path) -> None:
    run("init", "--shared", cwd=tmp_path)
    assert stat.S_IMODE((tmp_path / "inbox").stat().st_mode) == 0o2770
    assert stat.S_IMODE((tmp_path / "inbox/drop").stat().st_mode) == 0o2770
    assert stat.S_IMODE((tmp_path / "inbox/index").stat().st_mode) == 0o660


def test_init_in_an_empty_directory_makes_it_the_inbox(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    run("--inbox", "spool", "init", cwd=tmp_path)
    assert (tmp_path / "spool/format").is_file()


def test_init_where_the_parent_is_missing_says_which_to_create(tmp_path: Path) -> None:
    done = run("--inbox", "no/such/inbox", "init", cwd=tmp_path, status=3)
    assert f"{tmp_path}/no/such does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scope", ["local", "network"])
def test_init_scope_says_whether_several_hosts_use_it(tmp_path: Path, scope: str) -> None:
    run("init", "--scope", scope, cwd=tmp_path)
    assert (tmp_path / "inbox/format").read_text() == f"fsinbox 2 {scope}\n"
    run("add", "k", "v", cwd=tmp_path)
    assert contents(tmp_path / "inbox") == {"k": b"v"}
    assert len((tmp_path / "inbox/index").read_bytes()[:64].split()) == {"local": 3, "network": 6}[scope]
    run("init", "--scope", "auto", cwd=tmp_path)  # it stays what it is
    assert (tmp_path / "inbox/format").read_text() == f"fsinbox 2 {scope}\n"


def test_init_shared_by_users_and_hosts_is_both(tmp_path: Path) -> None:
    run("init", "--shared", "--scope", "network", cwd=tmp_path)
    assert (tmp_path / "inbox/format").read_text() == "fsinbox 2 network\n"
    assert stat.S_IMODE((tmp_path / "inbox/inflight").stat().st_mode) == 0o2770


# --- add ----------------------------------------------------------------------------------------------


def test_add_stores_the_value_byte_for_byte_and_is_silent(home: Path) -> None:
    first = run("add", "k", '{"a": "ü"}', cwd=home)
    assert (first.stdout, first.stderr) == ("", "")
    assert contents(home / "inbox") == {"k": '{"a": "ü"}'.encode()}
    second = run("add", "k", "2", cwd=home)
    assert (second.stdout, second.stderr) == ("", "")
    assert contents(home / "inbox") == {"k": b"2"}


def test_add_takes_bytes_that_are_no_utf8_from_the_command_line(home: Path) -> None:
    run("add", b"k\xff", b"v\xfe", cwd=home)
    assert contents(home / "inbox") == {"k%FF": b"v\xfe"}


def test_add_of_an_empty_value_queues_an_empty_payload(home: Path) -> None:
    run("add", "k", "", cwd=home, stdin=b"not this")
    run("add", "--json", "l", "", cwd=home, stdin=b"not this")
    assert contents(home / "inbox") == {"k": b"", "l": b""}


@pytest.mark.parametrize(
    "words", [("k", "-"), ("--file", "-", "k"), ("--json", "k", "-"), ("--json", "--file", "-", "k")]
)
def test_add_reads_standard_input(home: Path, words: tuple[str, ...]) -> None:
    payload = bytes(range(256)) * 8192  # 2 MiB: more than any buffer on the way
    run("add", *words, cwd=home, stdin=payload)
    assert contents(home / "inbox") == {"k": payload}


def test_add_reads_what_is_typed_at_a_terminal_to_the_first_end_of_file(home: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard, (home / "errors").open("wb") as errors:
        adding = subprocess.Popen(
            command("add", "k", "-"), cwd=home, stdin=theirs, stderr=errors, env=environment()
        )
        os.close(theirs)
        try:
            keyboard.write(b"typed\n\x04")
            assert adding.wait(15) == 0
        finally:
            adding.kill()
            adding.wait()
    assert "reading the value from the terminal; end it with Ctrl-D" in (home / "errors").read_text()
    assert contents(home / "inbox") == {"k": b"typed\n"}


@pytest.mark.parametrize("words", [("k", "-"), ("--json", "k", "-")])
def test_add_without_any_standard_input_is_a_clear_error(home: Path, words: tuple[str, ...]) -> None:
    script = 'exec "$@" <&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command("add", *words)],
        cwd=home,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert (done.returncode, done.stderr.count("\n")) in ((2, 1), (3, 1))  # 3: descriptor 0 was reused
    assert done.stderr.startswith("fsinbox: ")
    assert "Traceback" not in done.stderr


def test_add_file_copies_it(home: Path) -> None:
    (home / "report").write_bytes(b"\0\xff" * 100_000)
    run("add", "k", "--file", "report", cwd=home)
    assert contents(home / "inbox") == {"k": b"\0\xff" * 100_000}
    assert (home / "report").exists()
    (home / "report").write_bytes(b"later")
    assert contents(home / "inbox") == {"k": b"\0\xff" * 100_000}


def test_add_move_hands_the_file_over(home: Path) -> None:
    (home / "report").write_bytes(b"r")
    inode = (home / "report").stat().st_ino
    run("add", "k", "--file", "report", "--move", cwd=home)
    assert not (home / "report").exists()
    (path,) = (home / "inbox/pending").iterdir()
    assert (path.read_bytes(), path.stat().st_ino) == (b"r", inode)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_add_of_a_file_that_cannot_be_read_adds_nothing_and_says_why(home: Path, kind: str) -> None:
    if kind == "directory":
        (home / "f").mkdir()
    elif kind == "fifo":
        os.mkfifo(home / "f")
    done = run("add", "k", "--file", "f", cwd=home, status=3)
    assert ("cannot read f" if kind == "missing" else "f is not a regular file") in done.stderr
    assert contents(home / "inbox") == {}
    assert list((home / "inbox/tmp").iterdir()) == []


def test_add_not_durable_queues_all_the_same(home: Path) -> None:
    run("add", "--not-durable", "k", "v", cwd=home)
    assert contents(home / "inbox") == {"k": b"v"}


def test_add_json_tells_what_happened(home: Path) -> None:
    def add() -> object:
        (line,) = json_lines(run("add", "--json", "ä b", "v", cwd=home).stdout)
        return line

    assert add() == {"key": "ä b", "outcome": "new"}
    assert add() == {"key": "ä b", "outcome": "replaced"}
    with Inbox(home / "inbox", codec="text") as inbox:
        assert inbox.take()
        assert add() == {"key": "ä b", "outcome": "behind"}


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "click"])
def test_add_with_an_empty_key_is_refused(home: Path, quick: bool) -> None:
    run("init", cwd=home)
    done = run("add", *([] if quick else ["--durable"]), "", "v", cwd=home, status=2)
    assert done.stderr.startswith("fsinbox: a key must not be empty")
    assert done.stdout == ""
    assert contents(home / "inbox") == {}


def test_add_with_a_key_that_is_too_long_is_refused(home: Path) -> None:
    run("init", cwd=home)
    done = run("add", "k" * 201, "v", cwd=home, status=2)
    assert "shorten it" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'KEY'"),
        (["k", "v", "w"], "unexpected extra argument"),
        (["k", "v", "--file", "f"], "exclude each other"),
        (["k", "--move"], "--move needs --file"),
        (["k", "--move", "--file", "-"], "--move needs --file"),
        (["--no-such-option", "k", "v"], "No such option"),
        (["k", "-5"], "No such option"),
        (["k", "--file"], "requires an argument"),
        (["k"], "no value: give VALUE, --file FILE, or - to read it from standard input"),
        (["--json", "k"], "no value"),
        (["--inbox", "x", "--inbox", "y", "k", "v"], "--inbox is given more than once"),
        (["--json", "--inbox", "x", "--inbox=x", "k", "v"], "--inbox is given more than once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_add_explains_its_usage(tmp_path: Path, words: list[str], message: str) -> None:
    done = run("add", *words, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_add_in_a_loop_leaves_the_loops_input_alone(home: Path) -> None:
    """`while read` and `xargs` give their commands the loop's own input."""
    run("add", "a", "waits", cwd=home)
    line = 'while read -r key; do "$@" "$key"; done'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command("add")],
        cwd=home,
        input=b"a\nb\n",
        capture_output=True,
        env=environment(),
    )
    assert done.stderr.count(b"no value") == 2
    assert contents(home / "inbox") == {"a": b"waits"}


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["quick", "click"])
def test_add_creates_no_inbox_unless_asked(tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("inbox", "empty"):
        done = run("--inbox", path, "add", *more, "k", "v", cwd=tmp_path, status=3)
        assert f"fsinbox --inbox {tmp_path}/{path} init" in done.stderr
        assert done.stdout == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    done = run("add", "--create", *more, "k", "v", cwd=tmp_path)
    assert done.stderr == f"fsinbox: created inbox {tmp_path}/inbox\n"
    assert run("add", "--create", *more, "k", "w", cwd=tmp_path).stderr == ""
    assert contents(tmp_path / "inbox") == {"k": b"w"}


def test_add_after_a_double_dash_takes_words_that_look_like_options(home: Path) -> None:
    run("add", "--", "--key", "-5", cwd=home)
    assert contents(home / "inbox") == {"--key": b"-5"}


# --- which inbox --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--durable"]], ids=["quick", "click"])
def test_the_inbox_is_named_behind_the_command_before_it_by_the_environment_or_is_the_default(
    tmp_path: Path, more: list[str]
) -> None:
    names = ("inbox", "variable", "before", "behind", "joined")
    for name in names:
        Inbox(tmp_path / name).close()

    def used(*words: str, **variables: str) -> str:
        run(*words, cwd=tmp_path, **variables)
        (name,) = [name for name in names if contents(tmp_path / name)]
        run("--inbox", name, "discard", "--state", "waiting", "k", "--yes", cwd=tmp_path)
        return name

    assert used("add", *more, "k", "v") == "inbox"
    assert used("add", *more, "k", "v", FSINBOX_DIR="variable") == "variable"
    assert used("--inbox", "before", "add", *more, "k", "v", FSINBOX_DIR="variable") == "before"
    assert used("add", *more, "k", "v", "--inbox", "behind", FSINBOX_DIR="variable") == "behind"
    assert used("--inbox=joined", "add", *more, "k", "v") == "joined"


@pytest.mark.parametrize(
    "words",
    [["init"], ["ls"], ["status"], ["show", "k"], ["consume", "--exec", "true", "--drain"]],
    ids=" ".join,
)
def test_every_command_takes_the_inbox_before_and_behind_its_name(tmp_path: Path, words: list[str]) -> None:
    for name in ("one", "two", "three"):
        with Inbox(tmp_path / name) as inbox:
            inbox.add("k", 1)
    run("--inbox", "one", *words, cwd=tmp_path, FSINBOX_DIR="no/such")
    run(*words, "--inbox", "two", cwd=tmp_path, FSINBOX_DIR="no/such")
    run(*words, cwd=tmp_path, FSINBOX_DIR="three")
    assert not (tmp_path / "inbox").exists()


@pytest.mark.parametrize("command", commands.cli.list_commands(click.Context(commands.cli)))
def test_two_inboxes_in_one_line_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if command in ("completion", "help"):
        return  # it has no inbox
    for words in (
        ["--inbox", "a", "--inbox", "b", command],
        ["--inbox", "a", command, "--inbox", "b"],
        [command, "--inbox", "a", "--inbox", "a"],
    ):
        done = CliRunner().invoke(commands.cli, words, prog_name="fsinbox")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "Error: --inbox is given more than once: give it once\n" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["ls"], ["status"], ["show", "k"]], ids=" ".join)
def test_looking_at_an_inbox_that_is_not_there_creates_none(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, cwd=tmp_path, status=3)
    assert done.stderr.startswith(f"fsinbox: there is no inbox at {tmp_path}/inbox: create one with")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["init"],
        ["ls"],
        ["add", "k", "v"],
        ["add", "--json", "k", "v"],
        ["consume", "--exec", "true", "--drain"],
    ],
    ids=" ".join,
)
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/letter.txt").write_text("dear")
    done = run(*words, cwd=tmp_path, status=3)
    assert "is not an inbox and not empty (it holds 'letter.txt')" in done.stderr
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["letter.txt"]


def test_an_inbox_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("")
    for words in (["add", "k", "v"], ["ls"], ["init"]):
        assert "cannot use inbox" in run(*words, cwd=tmp_path, status=3).stderr


# --- ls, show, status ---------------------------------------------------------------------------------


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """A directory with an inbox that has one element in each state: o(ut), w(aiting), d(eferred),
    f(ailed)."""
    with Inbox(tmp_path / "inbox", codec="text") as inbox:
        for key in "fdow":
            inbox.add(key, f"value of {key}")
        for what in ("fail", "nack"):
            element = inbox.take()
            assert element
            element.fail("it was broken") if what == "fail" else element.nack(3600)
    # Out: as it lies there while a consumer works on it, or when one has died.
    (path,) = (tmp_path / "inbox/pending").glob("*-o")
    path.rename(tmp_path / "inbox/inflight" / path.name)
    return tmp_path


def test_ls_lists_each_state_with_age_size_and_key(busy: Path) -> None:
    text = run("ls", cwd=busy).stdout.replace("in flight", "in_flight")
    rows = [line.split() for line in text.splitlines()]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("in_flight", "10", "o"),
        ("waiting", "10", "w"),
        ("deferred", "10", "d"),
        ("failed", "10", "f"),
    ]
    assert all(row[1].endswith(("s", "m")) for row in rows)


def test_ls_json_has_the_same_for_programs(busy: Path) -> None:
    rows = json_lines(run("ls", "--json", cwd=busy).stdout)
    assert [(row["key"], row["state"], row["size"]) for row in rows] == [
        ("o", "in_flight", 10),
        ("w", "waiting", 10),
        ("d", "deferred", 10),
        ("f", "failed", 10),
    ]
    assert rows[3]["seq"] < rows[2]["seq"] < rows[0]["seq"] < rows[1]["seq"]
    assert all(row["added_at"].endswith("+00:00") for row in rows)
    assert [row["due"] is None for row in rows] == [True, True, False, True]


def test_ls_state_shows_only_those(busy: Path) -> None:
    rows = json_lines(run("ls", "--json", "--state", "failed", "--state", "waiting", cwd=busy).stdout)
    assert [row["state"] for row in rows] == ["failed", "waiting"]
    assert "Invalid value for '--state'" in run("ls", "--state", "lost", cwd=busy, status=2).stderr


def test_ls_lists_in_order_of_arrival_and_nothing_of_an_empty_inbox(tmp_path: Path) -> None:
    run("init", cwd=tmp_path)
    assert run("ls", cwd=tmp_path).stdout == ""
    with Inbox(tmp_path / "inbox") as inbox:
        for key in "cab":
            inbox.add(key, 1)
        inbox.add("c", 2)
    assert [line.split()[-1] for line in run("ls", cwd=tmp_path).stdout.splitlines()] == ["c", "a", "b"]


def test_keys_with_control_characters_cannot_play_tricks_on_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2Jname\n\u202etxt"
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add(evil, 1)
        inbox.add("plain ü", 1)
    text = run("ls", cwd=tmp_path).stdout
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert repr(evil) in text
    assert text.splitlines()[1].endswith("  plain ü")
    assert [row["key"] for row in json_lines(run("ls", "--json", cwd=tmp_path).stdout)] == [evil, "plain ü"]
    assert "\x1b" not in run("show", "\x1b[2J", cwd=tmp_path, status=1).stderr


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "--json"], ["show", "--json", b"k\xff"]], ids=["ls", "ls --json", "show --json"]
)
def test_a_key_that_is_no_utf8_is_listed_whatever_the_locale(home: Path, words: list[str | bytes]) -> None:
    run("add", b"k\xff", "v", cwd=home)
    done = run(*words, cwd=home, PYTHONIOENCODING="utf-8:strict")  # as Python does in en_US.UTF-8, for one
    assert "\\udcff" in done.stdout
    if "--json" in words:
        assert json_lines(done.stdout)[0]["key"] == "k\udcff"


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "--json"], ["show", "k0"], ["status"], ["init"]], ids=" ".join
)
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, words: list[str]) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add_many(((f"k{number}", "x" * 50_000) for number in range(3)), durable=False)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            command(*words), cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, text=True, env=environment()
        )
    assert done.stderr == ""
    assert done.returncode == 0


def test_ls_piped_into_head_prints_one_line(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add_many(((f"{'k' * 100}{number}", 1) for number in range(3000)), durable=False)
    line = '"$@" 2>errors | head -n 1'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command("ls")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.stdout.endswith("k0\n")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "errors").read_text() == ""


def test_show_prints_the_payload_and_nothing_else(home: Path) -> None:
    payload = bytes(range(256)) * 1000
    run("add", "k", "-", cwd=home, stdin=payload)
    done = subprocess.run(command("show", "k"), cwd=home, capture_output=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, payload, b"")


def test_show_json_gives_text_as_text_and_bytes_as_base64(home: Path) -> None:
    run("add", "text", '"ü"\n', cwd=home)
    run("add", "bytes", "-", cwd=home, stdin=b"\xff\0")
    (text,) = json_lines(run("show", "--json", "text", cwd=home).stdout)
    (binary,) = json_lines(run("show", "--json", "bytes", cwd=home).stdout)
    assert (text["key"], text["state"], text["text"], text["size"]) == ("text", "waiting", '"ü"\n', 5)
    assert Path(text["path"]).read_text() == '"ü"\n'
    assert (binary["base64"], binary["size"], "text" in binary) == ("/wA=", 2, False)


def test_show_of_a_failed_element_tells_the_reason_on_stderr(busy: Path) -> None:
    done = run("show", "f", cwd=busy)
    assert done.stdout == "value of f"
    assert "it was broken" in done.stderr
    assert "key: f" in done.stderr
    assert "attempts: 1" in done.stderr
    (row,) = json_lines(run("show", "f", "--json", cwd=busy).stdout)
    assert row["state"] == "failed"
    assert row["reason"].strip() == reason(busy / "inbox", "f").strip()


def test_show_finds_an_element_in_any_state_the_waiting_one_first(busy: Path) -> None:
    for key in "owdf":
        assert run("show", key, cwd=busy).stdout == f"value of {key}"
    run("add", "f", "newer", cwd=busy)
    assert run("show", "f", cwd=busy).stdout == "newer"


def test_show_of_an_unknown_key_fails_and_says_where_to_look(tmp_path: Path) -> None:
    run("init", cwd=tmp_path)
    done = run("show", "nobody", cwd=tmp_path, status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("fsinbox: no element of key 'nobody' in ")
    assert run("show", "", cwd=tmp_path, status=2).stderr.startswith("fsinbox: a key must not be empty")


def test_status_counts_each_state(busy: Path) -> None:
    (busy / "inbox/drop/dropped").write_text("d")
    text = run("status", cwd=busy).stdout.replace("in flight", "in_flight")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["inbox"] == f"{busy}/inbox"
    assert lines["consumer"] == "none"
    states = ("waiting", "in_flight", "deferred", "failed", "dropped")
    assert [lines[state].split()[0] for state in states] == ["1"] * 5
    assert "(oldest " in lines["waiting"]


def test_status_json_has_the_same_for_programs(busy: Path) -> None:
    (found,) = json_lines(run("status", "--json", cwd=busy).stdout)
    assert found["path"] == f"{busy}/inbox"
    assert {state: found[state] for state in ("waiting", "in_flight", "deferred", "failed", "dropped")} == {
        "waiting": 1,
        "in_flight": 1,
        "deferred": 1,
        "failed": 1,
        "dropped": 0,
    }
    assert 0 <= found["oldest_waiting"] < 3600
    assert found["consumer"] is None


def test_status_names_the_consumer_while_there_is_one(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        assert inbox.take() is None
        (found,) = json_lines(run("status", "--json", cwd=tmp_path).stdout)
        assert found["consumer"].startswith(f"pid {os.getpid()} on ")
        assert f"consumer  pid {os.getpid()} on " in run("status", cwd=tmp_path).stdout
    (found,) = json_lines(run("status", "--json", cwd=tmp_path).stdout)
    assert found["consumer"] is None


def test_looking_changes_nothing(busy: Path) -> None:
    def picture() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in (busy / "inbox").rglob("*"))

    before = picture()
    for words in (["ls"], ["status"], ["show", "w"], ["show", "f"]):
        run(*words, cwd=busy)
    assert picture() == before


# --- environment, help, usage -------------------------------------------------------------------------


def test_every_option_has_an_environment_variable(home: Path) -> None:
    run("add", "k", "v", cwd=home)
    assert json_lines(run("ls", cwd=home, FSINBOX_LS_JSON="1").stdout)[0]["key"] == "k"
    assert run("ls", cwd=home, FSINBOX_LS_STATE="failed in_flight").stdout == ""
    assert json_lines(run("status", cwd=home, FSINBOX_STATUS_JSON="true").stdout)[0]["waiting"] == 1
    assert json_lines(run("show", "k", cwd=home, FSINBOX_SHOW_JSON="yes").stdout)[0]["text"] == "v"
    assert json_lines(run("init", cwd=home, FSINBOX_INIT_JSON="1").stdout)[0]["created"] is False
    (home / "f").write_text("from a file")
    out = run("add", "k", cwd=home, FSINBOX_ADD_JSON="1", FSINBOX_ADD_FILE="f").stdout
    assert json_lines(out) == [{"key": "k", "outcome": "replaced"}]
    assert run("show", "k", cwd=home).stdout == "from a file"


def test_consume_takes_its_options_from_the_environment(home: Path) -> None:
    run("add", "k", "1", cwd=home)
    (home / "jobs.py").write_text("def job(key, value):\n    print(key, repr(value))\n")
    done = run(
        "consume",
        cwd=home,
        FSINBOX_CONSUME_HANDLER="jobs:job",
        FSINBOX_CONSUME_DRAIN="1",
        FSINBOX_CONSUME_CODEC="text",
        FSINBOX_CONSUME_QUIET="1",
    )
    assert (done.stdout, done.stderr) == ("k '1'\n", "")
    run("add", "k", "2", cwd=home)
    done = run("consume", cwd=home, FSINBOX_CONSUME_EXEC="cat {}", FSINBOX_CONSUME_ONCE="1")
    assert done.stdout == "2"
    done = run("consume", cwd=home, FSINBOX_CONSUME_EXEC="true", FSINBOX_CONSUME_CONCURRENCY="none", status=2)
    assert "concurrency" in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["init"], ["add"], ["ls"], ["show"], ["status"], ["consume"]], ids=" ".join
)
def test_help_is_there_for_each_command(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, "-h" if words == ["ls"] else "--help", cwd=tmp_path)
    assert done.stdout.startswith(" ".join(["Usage: fsinbox", *words]))
    assert "--inbox DIR" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["--no-such-option"],
        ["ls", "--extra"],
        ["show"],
        ["status", "--no-such"],
        ["consume"],
        ["consume", "--drain"],
        ["consume", "--handler", "a:b", "--exec", "true"],
        ["consume", "--handler", "json:dumps", "--shell"],
        ["consume", "--exec", "true", "--concurrency", "0"],
        ["consume", "--exec", "true", "--codec", "pickle"],
        ["consume", "--exec", "true", "--max-attempts", "many"],
        ["consume", "--exec", "true", "--shard", "3/2"],
        ["consume", "--exec", "true", "--shard", "two"],
        ["consume", "--exec", "true", "--lease", "0.5"],
        ["consume", "--exec", "true", "--lease", "100000"],
        ["init", "--scope", "galaxy"],
    ],
    ids=" ".join,
)
def test_usage_errors_have_a_status_of_their_own(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, cwd=tmp_path, status=2)
    assert "Error: " in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("fsinbox 0.")


# --- the quick path of `add` --------------------------------------------------------------------------

LINES = [
    ["add", "k", "v"],
    ["add", "k"],
    ["add", "k", "-"],
    ["add", "-", "v"],
    ["add", "-", "-"],
    ["add", "", "v"],
    ["add", "k", ""],
    ["add", "add", "add"],
    ["add", "k", "v", "w"],
    ["add"],
    ["add", "--file", "f", "k"],
    ["add", "k", "--file", "f"],
    ["add", "--file", "-", "k"],
    ["add", "--file", "f", "--file", "g", "k"],
    ["add", "--file=f", "k"],
    ["add", "--file", "f", "k", "v"],
    ["add", "k", "--file"],
    ["add", "--file", "--inbox", "k"],
    ["add", "--inbox", "x", "k", "v"],
    ["add", "k", "--inbox", "x", "v"],
    ["add", "k", "v", "--inbox", "x"],
    ["add", "--inbox", "x", "--inbox", "y", "k", "v"],
    ["add", "--inbox=x", "k", "v"],
    ["add", "k", "v", "--inbox"],
    ["add", "--inbox", "add", "k", "v"],
    ["add", "--inbox", "-", "k", "v"],
    ["--inbox", "x", "add", "k", "v"],
    ["--inbox", "x", "add", "--inbox", "y", "k", "v"],
    ["--inbox", "x", "--inbox", "y", "add", "k", "v"],
    ["--inbox", "add", "add", "k", "v"],
    ["--inbox", "add", "k", "v"],
    ["--inbox", "", "add", "k", "v"],
    ["add", "--inbox", "", "k", "v"],
    ["--inbox", "x", "add", "--inbox", "", "k", "v"],
    ["--inbox=x", "add", "k", "v"],
    ["--file", "f", "add", "k"],
    ["add", "--", "k", "v"],
    ["add", "--", "--file", "f"],
    ["add", "k", "--", "-v"],
    ["add", "k", "-v"],
    ["add", "--json", "k", "v"],
    ["add", "--not-durable", "k", "v"],
    ["add", "k", "v", "--not-durable", "--not-durable"],
    ["add", "--not-durable", "--durable", "k", "v"],
    ["--not-durable", "add", "k", "v"],
    ["add", "--file", "--not-durable", "k"],
    ["add", "--", "--not-durable"],
    ["add", "--move", "--file", "f", "k"],
    ["add", "k", "--help"],
    ["ad", "k", "v"],
    ["k", "add", "v"],
]
VARIABLES: list[dict[str, str]] = [
    {},
    {"FSINBOX_DIR": "variable"},
    {"FSINBOX_DIR": ""},
    {"FSINBOX_INBOX": "elsewhere"},
    {"FSINBOX_ADD_INBOX": "elsewhere"},
    {"FSINBOX_ADD_FILE": "f"},
    {"FSINBOX_ADD_NOT_DURABLE": "1"},
]


@pytest.mark.parametrize("variables", VARIABLES, ids=str)
def test_the_quick_path_of_add_reads_a_line_as_click_does(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsinbox.cli import adding
    from fsinbox.cli.commands import cli

    for name in list(os.environ):
        if name.startswith("FSINBOX_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen: list[tuple[object, ...]] = []

    def note(key: str, value: str | None, file: str | None, inbox: str, **options: bool) -> int:
        seen.append((key, value, file, inbox, options))
        return 0

    # Only what would touch the disk is left out: both readers are the real ones.
    monkeypatch.setattr(adding, "add", note)
    plain = {
        "move": False,
        "durable": True,
        "json": False,
        "create": False,
        "delay": None,
        "not_before": None,
        "if_waiting": "replace",
        "timeout": 0.0,
    }
    differ = []
    taken = 0
    for words in LINES:
        quick = simple_add(words)
        if quick is None:
            continue  # left to click, which is right by definition
        taken += 1
        seen.clear()
        with pytest.raises(SystemExit):
            cli(words, prog_name="fsinbox")
        *what, how = quick
        if seen != [(*what, plain | how)]:
            differ.append((words, quick, seen))
    assert differ == []
    if set(variables) <= {"FSINBOX_DIR"}:
        assert taken > 15  # the quick path is taken at all


@pytest.mark.parametrize(
    "words", [["k", "v"], ["k", "-"], ["--file", "f", "k"], ["ä\n", "v"], ["k", ""]], ids=str
)
def test_both_paths_of_add_leave_the_same_inbox(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "f").write_bytes(b"\xff in a file")
    for name in ("quick", "click"):
        Inbox(tmp_path / name).close()
    quick = run("--inbox", "quick", "add", *words, cwd=tmp_path, stdin=b"\xfe typed")
    click = run("--inbox", "click", "add", "--durable", *words, cwd=tmp_path, stdin=b"\xfe typed")
    assert contents(tmp_path / "quick") == contents(tmp_path / "click") != {}
    assert quick.stdout == click.stdout == ""
    assert quick.stderr == click.stderr == ""


def test_what_add_does_needs_no_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add_element("k", "v", None, str(tmp_path / "inbox"), create=True, json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"key": "k", "outcome": "new"}
    assert keys_in(tmp_path / "inbox", "pending") == ["k"]


# --- start-up -----------------------------------------------------------------------------------------


def modules_of(cwd: Path, *words: str) -> set[str]:
    """Return the modules that `fsinbox words...` has imported when it ends."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('\\n', *sorted(sys.modules), sep='\\n', file=open('modules', 'w')))\n"
        "from fsinbox.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    modules = set((cwd / "modules").read_text().split())
    assert "fsinbox.store.layout" in modules
    return modules


HEAVY = set(
    "click json filelock watchdog logging asyncio subprocess socket ssl threading typing dataclasses "
    "datetime inspect re enum "
    "pathlib random tempfile shutil uuid concurrent.futures".split()
)
"""What an `add` has no use for. All of it together costs several times what the add itself does."""


@pytest.mark.bare
def test_a_cold_add_imports_next_to_nothing(home: Path) -> None:
    (home / "f").write_text("f")
    Inbox(home / "other").close()
    always = set(
        subprocess.run(
            [sys.executable, "-c", "import sys; print(*sys.modules)"],
            capture_output=True,
            text=True,
            env=environment(),
        ).stdout.split()
    )  # what this Python brings along by itself (site, .pth files)
    for words in (["k", "v"], ["k", "-"], ["--file", "f", "k"], ["--inbox", "other", "k", "v"]):
        assert modules_of(home, "add", *words) & HEAVY - always == set()


@pytest.mark.bare
@pytest.mark.parametrize(
    ("words", "useless"),
    [
        (["add", "--not-durable", "k", "v"], "filelock watchdog asyncio logging subprocess"),
        (["init"], "filelock watchdog asyncio logging subprocess"),
        (["ls"], "filelock watchdog asyncio logging subprocess"),
        (["show", "k"], "filelock watchdog asyncio logging subprocess"),
        (["status"], "watchdog asyncio subprocess"),
        (["consume", "--exec", "true", "--drain"], "watchdog asyncio ssl"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_needs(home: Path, words: list[str], useless: str) -> None:
    run("add", "k", "v", cwd=home)
    assert modules_of(home, *words) & set(useless.split()) == set()


# --- what the system refuses --------------------------------------------------------------------------


HOSTILE = b"a\x1b]0;owned\x07b\r\xc2\x9b1m\xe2\x80\xae\xff\x00\ttab \xc2\xa0\xc3\xa9\nline\n"
SHOWN = "a\\x1b]0;owned\\x07b\\r\\x9b1m\\u202e\\xff\\x00\ttab \xa0é\nline\n"


def on_a_terminal(cwd: Path, *words: str, **variables: str) -> bytes:
    """Return what `fsinbox words...` prints on a terminal, byte for byte."""
    line = [os.fsdecode(word) for word in map(os.fspath, command(*words))]
    child = pexpect.spawn(line[0], line[1:], cwd=str(cwd), env=environment(**variables), use_poll=True)
    child.delaybeforesend = None
    shown = child.read()
    child.close()
    return bytes(shown).replace(b"\r\n", b"\n")


def test_a_payload_on_a_terminal_is_escaped_and_in_a_pipe_it_is_not(home: Path) -> None:
    (home / "payload").write_bytes(HOSTILE)
    run("add", "k", "--file", "payload", cwd=home)
    utf8 = {"PYTHONUTF8": "1"}
    assert on_a_terminal(home, "show", "k", **utf8).decode() == SHOWN
    ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    told = on_a_terminal(home, "show", "k", **ascii_only).decode("ascii")
    assert told == SHOWN.replace("\xa0", "\\xa0").replace("é", "\\xe9")
    assert on_a_terminal(home, "show", "--raw", "k").rstrip() == HOSTILE.rstrip()
    piped = subprocess.run(command("show", "k"), cwd=home, env=environment(), capture_output=True)
    assert piped.stdout == HOSTILE and piped.stderr == b""


def test_the_reason_that_show_prints_is_escaped(home: Path) -> None:
    with Inbox(home / "inbox") as inbox:
        inbox.add("k", 1)
        element = inbox.take()
        assert element
        element.fail("why \x1b[2J\nand more")
    assert "why \\x1b[2J\nand more" in run("show", "k", cwd=home).stderr


def test_an_output_that_cannot_be_written_is_an_error_and_no_traceback(busy: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("ls"), cwd=busy, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3
    assert done.stderr == (
        "fsinbox: cannot use the inbox, or write the output: No space left on device: fix that, then try "
        "again\n"
    )


def test_an_inbox_that_cannot_be_read_is_an_error_and_no_traceback(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "inbox/pending")

    monkeypatch.setattr(Layout, "names", refused)
    done = invoke("ls")
    assert done.exit_code == 3
    assert done.stderr == (
        "fsinbox: cannot use the inbox (inbox/pending): Permission denied: fix that, then try again\n"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93_784),
        (".5h", 1800),
        (60, 60),
    ],
)
def test_a_duration_is_a_number_of_seconds_or_has_units(text: str | int, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "-1h", "30m1h", "1h 30m", "h", "1e3", "nan", "inf", "9999999d", "٣", -1]
)
def test_what_is_no_duration_is_refused_with_examples(text: str | int) -> None:
    with pytest.raises(click.BadParameter, match="use 90, 15m, 2h, 7d or 1h30m"):
        DURATION.convert(text, None, None)


def test_an_output_cannot_be_given_up_without_a_descriptor_and_that_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refused)
    discard(1)


def test_ctrl_c_ends_a_command_with_the_status_that_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["fsinbox", "ls"])
    monkeypatch.setattr(commands, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line in this process."""
    monkeypatch.chdir(tmp_path)
    Inbox("inbox").add("a", 1)
    return lambda *words: CliRunner().invoke(commands.cli, words, prog_name="fsinbox")


@pytest.fixture
def status(invoke: Callable[..., Result]) -> Callable[[], tuple[list[str], dict[str, Any]]]:
    """What `status` says of the inbox: lines, and the JSON object."""

    def ask() -> tuple[list[str], dict[str, Any]]:
        text, members = invoke("status"), invoke("status", "--json")
        assert (text.exit_code, members.exit_code) == (0, 0)
        (found,) = json_lines(members.stdout)
        return text.stdout.splitlines(), found

    return ask


def test_status_names_each_shard_and_who_consumes_it(
    status: Callable[[], tuple[list[str], dict[str, Any]]],
) -> None:
    us = f"pid {os.getpid()} on "
    with Inbox("inbox", shard="2/3") as inbox:
        inbox.become_consumer()
        lines, found = status()
        assert lines[1] == "consumers"
        assert lines[2] == "  1/3     NONE: its keys wait"
        assert lines[3].startswith(f"  2/3     {us}")
        assert lines[4] == "  3/3     NONE: its keys wait"
        assert found["consumer"].startswith(us)
        assert [(one["shard"], bool(one["holder"])) for one in found["consumers"]] == [
            ("1/3", False),
            ("2/3", True),
            ("3/3", False),
        ]
    lines, found = status()
    assert lines[2:5] == [f"  {index}/3     NONE: its keys wait" for index in (1, 2, 3)]
    assert found["consumer"] is None
    with Inbox("inbox") as inbox:
        inbox.become_consumer()
        lines, found = status()
        assert lines[1].startswith(f"consumer  {us}")
        assert [one["shard"] for one in found["consumers"]] == ["1/1"]


def test_status_tells_each_lease_of_an_inbox_that_hosts_share(
    status: Callable[[], tuple[list[str], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSINBOX_DIR", "shared")
    with Inbox("shared", shard="1/2", scope="network", lease=60) as inbox:
        inbox.become_consumer()
        lines, found = status()
        assert found["scope"] == "network"
        assert re.fullmatch(
            rf"  1/2     pid {os.getpid()} on \S+ since \S+  \(epoch 1, heartbeat 0s ago\)", lines[2]
        )
        assert lines[3] == "  2/2     NONE: its keys wait"
        (first, second) = found["consumers"]
        assert (first["epoch"], first["lapsed"], second) == (1, False, {"shard": "2/2", "holder": None})
        lease = Path("shared/inflight/lease-1of2-0000000001/.lease")
        os.utime(lease, ns=(1, 1))
        lines, found = status()
        assert lines[2].endswith("ago, lapsed)")
        assert found["consumers"][0]["lapsed"] is True


def test_an_element_that_goes_while_it_is_listed_is_passed_over(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("ls").output.split()[-1] == "a"
    monkeypatch.setattr(rows.Row, "look", lambda *_: None)  # as of one that is gone
    assert invoke("ls").output == ""


def test_an_element_that_is_no_file_is_not_shown_and_does_not_hang(invoke: Callable[..., Result]) -> None:
    (path,) = Path("inbox/pending").iterdir()
    path.unlink()
    os.mkfifo(path)
    done = invoke("show", "a")
    assert done.exit_code == 1
    assert done.output == f"fsinbox: cannot read pending/{path.name}: not a regular file\n"


def test_an_element_that_is_too_large_to_show_is_named(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> int:
        raise MemoryError

    (path,) = Path("inbox/pending").iterdir()
    monkeypatch.setattr("fsinbox.store.files.open_for_reading", too_large)
    done = invoke("show", "a")
    assert done.exit_code == 1
    assert done.output == f"fsinbox: {path.absolute()} is too large for the memory: look at it there\n"


def test_ages_are_told_in_the_largest_fitting_unit() -> None:
    assert [units.seconds(length) for length in (0, 59, 61, 7199, 86_399, 86_400 * 3, -5)] == [
        "0s",
        "59s",
        "1m",
        "1h",
        "23h",
        "3d",
        "0s",
    ]


def test_a_consumer_that_makes_its_inbox_says_so(tmp_path: Path) -> None:
    done = run("consume", "--exec", "true", "--drain", cwd=tmp_path)
    assert f"created inbox {tmp_path / 'inbox'}" in done.stderr


def test_a_progress_bar_grows_with_what_comes_meanwhile(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)

        def handle(key: str, value: int) -> None:
            if value < 4:
                producer.add(key, value + 1)

        with Inbox(tmp_path / "inbox") as producer:
            runner = Runner(inbox, FunctionHandler("handle", handle), drain=True)
            assert run_with_progress(runner).acknowledged == 4


def test_the_doctor_says_what_is_done_about_it_without_a_repair(invoke: Callable[..., Result]) -> None:
    Path("inbox/drop/d").touch()
    done = invoke("doctor")
    assert done.exit_code == 0
    assert "            by itself: " in done.output


def test_a_full_inbox_ends_any_command_with_a_status_of_its_own(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[str]:
        raise InboxFull(errno.EDQUOT, "inbox is full: try again later", maybe_added=False)

    monkeypatch.setattr(Layout, "names", full)
    done = invoke("ls")
    assert (done.exit_code, done.stderr) == (6, "fsinbox: inbox is full: try again later\n")


def test_a_worker_process_that_imports_the_program_does_not_run_it() -> None:
    module = importlib.import_module("fsinbox.__main__")
    assert module.__name__ != "__main__"
    assert module.main is cli.main
