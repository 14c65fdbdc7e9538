"""What the command line says of itself; times and sizes as people write them, in each place where one may."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from helpers import PATIENCE, command, environment, json_lines, run

from fsinbox import AsyncInbox, Inbox
from fsinbox.cli import catalogue, front
from fsinbox.cli.commands import cli
from fsinbox.cli.options import COUNT, DURATION, RATE, SIZE
from fsinbox.store.amounts import seconds, size

WORDS = " ".join(map(str, command()))


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell; `fsinbox` in it is the command."""
    return subprocess.run(
        ["/bin/sh", "-c", line.replace("fsinbox ", f"{WORDS} ")],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


CONTEXT = click.Context(cli, info_name="fsinbox", help_option_names=["-h", "--help"])
COMMANDS = {name: cli.get_command(CONTEXT, name) for name in cli.list_commands(CONTEXT)}


# --- the page -----------------------------------------------------------------------------------------


def test_the_commands_stand_in_groups_each_with_its_whole_summary_on_a_line_of_80_columns(
    tmp_path: Path,
) -> None:
    lines = run("--help", cwd=tmp_path).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[1:-1] == ["Produce:", "Consume:", "Look:", "Steer:", "Keep up:", "Options:"]
    for _, group in catalogue.GROUPS:
        for name, _, summary in group:
            assert f"  {name:<12}{summary}" in lines


def test_the_catalogue_has_each_command_once_and_says_what_its_help_says() -> None:
    listed = [(name, summary) for _, group in catalogue.GROUPS for name, _, summary in group]
    assert sorted(name for name, _ in listed) == cli.list_commands(CONTEXT)
    for name, summary in listed:
        found = COMMANDS[name]
        assert found and found.help
        assert found.help.split("\n\n")[0].splitlines()[0].startswith(summary), name
        assert found.help.split("\n\n")[0] == summary or name in ("add", "init"), name


def test_the_page_has_the_options_that_click_reads() -> None:
    records = [one.get_help_record(CONTEXT) for one in cli.get_params(CONTEXT)]
    assert list(front.OPTIONS) == [record and (record[0], record[1]) for record in records]


@pytest.mark.parametrize(
    "words", [["-h"], ["help"], ["--inbox", "x", "--help"], ["--inbox", "x", "help"]], ids=" ".join
)
def test_the_page_is_the_same_however_it_is_asked_for(tmp_path: Path, words: list[str]) -> None:
    assert run(*words, cwd=tmp_path).stdout == run("--help", cwd=tmp_path).stdout


def test_help_of_a_command_is_what_its_option_prints(tmp_path: Path) -> None:
    for name in ("add", "import", "consume", "help"):
        assert run("help", name, cwd=tmp_path).stdout == run(name, "--help", cwd=tmp_path).stdout
    done = run(cwd=tmp_path, _FSINBOX_COMPLETE="bash_complete", COMP_WORDS="fsinbox help com")
    assert done.stdout.split() == ["plain,completion"]


def test_the_text_is_as_wide_as_the_terminal(tmp_path: Path) -> None:
    for words in (["--help"], ["help", "consume"]):
        narrow, usual, wide = (
            max(map(len, run(*words, cwd=tmp_path, COLUMNS=columns).stdout.splitlines()))
            for columns in ("60", "80", "200")
        )
        assert narrow <= 60 < usual <= 80 < wide <= 110


def test_without_a_number_of_columns_the_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for found, width in ((70, 70), (0, 80), (20, 40), (500, 110)):
        monkeypatch.setattr(os, "get_terminal_size", lambda fd, found=found: os.terminal_size((found, 24)))
        assert front.width() == width

    def none(fd: int) -> os.terminal_size:
        raise OSError(errno.ENOTTY, "no terminal")

    monkeypatch.setattr(os, "get_terminal_size", none)
    assert front.width() == 80


def test_the_page_does_without_click(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['fsinbox', '--help']\n"
        "try: runpy.run_module('fsinbox', run_name='__main__')\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Keep up:" in done.stdout
    imported = done.stderr.split()
    assert "fsinbox.cli.front" in imported
    assert not {"click", "fsinbox.inbox", "fsinbox.store", "logging"} & set(imported)


def test_the_version_has_a_short_option(tmp_path: Path) -> None:
    """Alone on the line it is read without click."""
    said = f"fsinbox {metadata.version('fsinbox')}\n"
    for words in (["-V"], ["--version"], ["--inbox", "x", "-V"]):
        assert run(*words, cwd=tmp_path).stdout == said


# --- slips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["statsu"], "'status'"),
        (["help", "statsu"], "'status'"),
        (["cosume", "--drain"], "'consume'"),
        (["status", "--max-agee", "1h"], "--max-age"),
        (["ls", "--stat", "failed"], "--state"),
        (["xyzzy"], "`fsinbox --help` lists them"),
        (["--inbix", "x", "ls"], "--inbox"),
        (
            ["--create", "add", "k", "v"],
            "No such option '--create': options of a command stand behind its name",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_is_answered_with_what_was_meant(tmp_path: Path, words: list[str], meant: str) -> None:
    assert meant in run(*words, cwd=tmp_path, status=2).stderr


# --- output that is not there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["ls", "failed", "show k", "status", "--help", "help ls", "retry k", "ls --json"]
)
def test_a_closed_output_is_no_error_and_no_traceback(tmp_path: Path, line: str) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("k", 1)
    done = shell(f"fsinbox {line} >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_with_all_three_closed_nothing_of_the_inbox_gets_their_numbers(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    looks = f"readlink /proc/$PPID/fd/0 /proc/$PPID/fd/1 /proc/$PPID/fd/2 >{tmp_path}/found"
    shell("fsinbox add k v <&- >&- 2>&-", tmp_path)
    shell(f"fsinbox consume --drain --shell --exec '{looks}' <&- >&- 2>&-", tmp_path)
    assert (tmp_path / "found").read_text().split() == ["/dev/null"] * 3


def test_help_whose_reader_has_gone_is_no_error_and_a_full_disk_is_one(tmp_path: Path) -> None:
    gone = shell("exec 3>&1; ({ sleep 1; fsinbox --help; echo $? >&3; } | true)", tmp_path)
    assert (gone.stdout, gone.stderr) == ("0\n", "")
    failed = shell("fsinbox --help >/dev/full", tmp_path)
    assert (failed.returncode, failed.stderr) == (
        3,
        "fsinbox: cannot write the output: No space left on device\n",
    )
    failed = shell("fsinbox --inbox x --version >/dev/full", tmp_path)
    assert (failed.returncode, failed.stderr) == (
        3,
        "fsinbox: cannot use the inbox, or write the output: No space left on device: "
        "fix that, then try again\n",
    )


# --- units --------------------------------------------------------------------------------------------

UNITS = {"TIME": DURATION, "SIZE": SIZE, "COUNT": COUNT, "COUNT/TIME": RATE}


def test_each_option_that_takes_a_value_says_of_which_kind() -> None:
    for name, found in COMMANDS.items():
        assert found
        for option in found.params:
            if isinstance(option, click.Option) and not option.is_flag:
                metavar = option.make_metavar(CONTEXT)
                assert not {"TEXT", "INTEGER", "FLOAT", "DURATION", "BYTES", "N"} & set(metavar.split()), (
                    name,
                    option,
                )
                for unit, kind in UNITS.items():
                    assert (metavar == unit) == (type(option.type) is type(kind)), (name, option)


def test_the_defaults_of_times_and_sizes_have_units(tmp_path: Path) -> None:
    text = " ".join(run("help", "consume", cwd=tmp_path).stdout.split())
    for default in ("1s", "1h", "1m", "15s", "1G"):
        assert f"[default: {default}]" in text
    assert "[default: 1.0" not in text
    assert "x>=" not in text


@pytest.mark.parametrize("length", [90, "90", "90s", "1m30s", "1.5m", timedelta(seconds=90)])
def test_a_program_writes_times_as_the_command_line_has_them(tmp_path: Path, length: Any) -> None:
    with Inbox(
        tmp_path / "inbox",
        settle=length,
        max_settle=length,
        drop_settle=length,
        lease=length,
        poll_interval=length,
    ) as inbox:
        assert {inbox._consuming[name] for name in ("settle", "max_settle", "drop_settle", "lease")} == {90.0}
        inbox.add("a", 1, delay=length, timeout=length)
        first = inbox.find("a")
        assert first
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("b", 1)
        element = inbox.take(timeout=length)
        assert element
        assert element.key == "b"
        element.nack(length)
        assert inbox.take() is None
        left = inbox.next_look_in()
        assert left
        assert 80 < left <= 90


def test_waits_are_written_so_too(tmp_path: Path) -> None:
    async def program() -> None:
        async with AsyncInbox(tmp_path / "inbox") as inbox:
            assert await inbox.take(timeout="10ms") is None
            assert await inbox.take(timeout=timedelta(milliseconds=10)) is None

    with Inbox(tmp_path / "inbox") as inbox:
        assert inbox.take(timeout="10ms") is None
        assert not inbox.wait(timedelta(milliseconds=10))
        assert inbox.take(timeout=-1) is None
    asyncio.run(program())


def test_sizes_are_written_so_too(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", max_drop_size="10MB") as inbox:
        assert inbox._consuming["max_drop_size"] == 10_000_000
        assert inbox.limit(min_free="1k").min_free == 1024
    with pytest.raises(ValueError, match="max_drop_size: invalid size 'much'"):
        Inbox(tmp_path / "inbox", max_drop_size="much")
    with pytest.raises(ValueError, match="settle: invalid duration 'soon': use 90, 15m"):
        Inbox(tmp_path / "inbox", settle="soon")


def test_the_environment_and_settings_have_the_same_form(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.fsinbox.consume]\nsettle = "1h30m"\nmax-size = "10MB"\n')
    found = {
        line["name"]: line["value"]
        for line in json_lines(run("settings", "--json", cwd=tmp_path, FSINBOX_CONSUME_LEASE="1m").stdout)
    }
    assert found["consume.settle"] == "1h30m"
    assert found["consume.max-size"] == "10MB"
    assert found["consume.lease"] == 60.0
    refused = CliRunner().invoke(cli, ["consume", "--exec", "true", "--lease", "2d"], prog_name="fsinbox")
    assert "'2d' is not 1s to 1d" in refused.stderr
    refused = CliRunner().invoke(
        cli, ["consume", "--exec", "true", "--poll-interval", "0"], prog_name="fsinbox"
    )
    assert "'0' is not 10ms or more" in refused.stderr


@pytest.mark.parametrize("text", ["500ms", ".5", "0.5s", timedelta(seconds=0.5)])
def test_half_a_second(text: Any) -> None:
    assert seconds(text) == 0.5


@pytest.mark.parametrize("text", ["", "b", "5ib", "5x", "-5", "1.2.3", "9" * 400, "٣", "5 k b"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        size(text)
