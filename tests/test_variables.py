"""The environment: what of it is read, and what is said of a name that nothing reads."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import click
import pytest
from helpers import keys_in, run

from fsinbox import Inbox
from fsinbox.cli import simple_add, variables
from fsinbox.cli.commands import cli
from fsinbox.cli.options import variable
from fsinbox.cli.settings import settable

ROOT = Path(__file__).parents[1]


def options() -> dict[str, tuple[click.Context, click.Option]]:
    """Return the options of all commands, by their variables' names."""
    root = click.Context(cli, info_name="fsinbox", auto_envvar_prefix="FSINBOX")
    found = {}
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command
        ctx = click.Context(command, parent=root, info_name=name)
        for option in settable(command).values():
            found[variable(ctx, option)] = ctx, option
    return found


def test_each_name_that_is_written_down_is_read_by_its_command_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = options()
    known = {*found, "FSINBOX_MIGRATE_URL"}  # (the one argument that has a variable)
    assert known == variables.NAMES, (
        f"mend NAMES in fsinbox/cli/variables.py: without {sorted(variables.NAMES - known)}, "
        f"with {sorted(known - variables.NAMES)}"
    )
    for name, (ctx, option) in found.items():
        monkeypatch.setenv(name, "there")
        assert option.resolve_envvar_value(ctx) == "there", name
        monkeypatch.setenv(name, "")
        assert option.resolve_envvar_value(ctx) is None, name


def test_what_is_said_of_an_option_is_what_its_variable_is_called(tmp_path: Path) -> None:
    """`--all`, `--for` and `--state` have parameters of other names."""
    Inbox(tmp_path / "inbox").close()
    run("pause", cwd=tmp_path, FSINBOX_PAUSE_FOR="1h")
    assert "paused until" in run("status", cwd=tmp_path).stdout
    run("add", "k", "v", cwd=tmp_path)
    assert run("purge", "--yes", cwd=tmp_path, FSINBOX_PURGE_STATE="waiting").stdout.startswith("removed 1 ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FSINBOX_CONSUME_CONCURENCY", "FSINBOX_CONSUME_CONCURRENCY is one"),
        ("FSINBOX_INBOX", "FSINBOX_DIR is one"),
        ("FSINBOX_STATUS_MAXAGE", "FSINBOX_STATUS_MAX_AGE is one"),
        ("FSINBOX_QQQ\n\x1b[31m", "unset it"),
        ("FSINBOX_", "unset it"),
    ],
)
def test_a_name_with_a_typo_is_said_by_every_command_and_refused_by_consume(
    tmp_path: Path, name: str, meant: str
) -> None:
    Inbox(tmp_path / "inbox").close()
    wrong = {name: "4"}
    said = f"fsinbox: warning: environment: {name if name.isprintable() else repr(name)} is not a setting: "
    said += f"{meant}; it is ignored\n"
    assert run("add", "k", "v", cwd=tmp_path, **wrong).stderr == said
    for words in (["ls"], ["status"], ["doctor"], ["settings"], ["add", "--json", "k", "v"]):
        assert run(*words, cwd=tmp_path, **wrong).stderr == said
    refused = run("consume", "--exec", "true", "--drain", cwd=tmp_path, status=2, **wrong).stderr
    assert refused == said.replace("warning: ", "").replace("; it is ignored", "")
    assert keys_in(tmp_path / "inbox", "pending") == ["k"]
    assert "Usage: " in run("consume", "--help", cwd=tmp_path, **wrong).stdout
    completed = run(
        cwd=tmp_path, _FSINBOX_COMPLETE="fish_complete", COMP_WORDS="fsinbox ls ", COMP_CWORD="", **wrong
    )
    assert completed.stderr == ""


def test_all_that_has_a_meaning_is_quiet(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    given = dict.fromkeys(sorted(variables.NAMES | variables.GENERAL), "")
    assert run("consume", "--exec", "true", "--drain", "-q", cwd=tmp_path, **given).stderr == ""
    assert run("add", "k", "v", cwd=tmp_path, **given).stderr == ""


def test_a_version_in_the_environment_is_not_asked_for(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    assert "environment: FSINBOX_VERSION" in run("ls", cwd=tmp_path, FSINBOX_VERSION="1.2").stderr


def test_other_settings_do_not_make_an_add_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing but an option of add, or what is to be complained of, is left to click."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FSINBOX_")]:
        monkeypatch.delenv(name)
    for name in variables.GENERAL | variables.NAMES:
        if not name.startswith("FSINBOX_ADD_"):
            monkeypatch.setenv(name, "")
    assert simple_add(["add", "k", "v"]) == ("k", "v", None, "inbox", {})
    monkeypatch.setenv("FSINBOX_ADD_JSON", "1")
    assert simple_add(["add", "k", "v"]) is None
    monkeypatch.delenv("FSINBOX_ADD_JSON")
    monkeypatch.setenv("FSINBOX_LS_JSN", "1")
    assert simple_add(["add", "k", "v"]) is None


# --- one name for the inbox ---------------------------------------------------------------------------

PRODUCERS = {
    "fsinbox": f"{sys.executable} -m fsinbox add new value",
    "sh": f"{ROOT}/scripts/fsinbox-add new value",
    "perl": f'printf value | perl {ROOT}/examples/producers/add.pl "$FSINBOX_DIR" new',
    "node": f'printf value | node {ROOT}/examples/producers/drop.mjs "$FSINBOX_DIR" new',
}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_command_adds_to_the_inbox_that_it_is_run_for(tmp_path: Path, producer: str) -> None:
    """In another working directory, beside another inbox, whatever the environment said before."""
    if producer in ("perl", "node") and not shutil.which(producer):
        pytest.skip(f"{producer} is not installed")
    for name in ("ours", "theirs", "inbox"):
        Inbox(tmp_path / name).close()
    run("--inbox", "ours", "add", "first", "value", cwd=tmp_path)
    line = f'[ "$FSINBOX_KEY" = new ] || {{ {PRODUCERS[producer]}; }}; cat >"$FSINBOX_KEY"'
    words = ["--inbox", "ours", "consume", "--shell", "--exec", line, "--drain"]
    run(*words, cwd=tmp_path, FSINBOX_DIR="theirs")
    assert (tmp_path / "new").read_text() == "value"
    assert all(keys_in(tmp_path / name, "pending") == [] for name in ("ours", "theirs", "inbox"))


def test_what_a_command_is_given_has_a_meaning(tmp_path: Path) -> None:
    """Else an fsinbox in it would complain."""
    Inbox(tmp_path / "inbox").close()
    run("add", "k", "v", cwd=tmp_path)
    run("consume", "--shell", "--exec", "env >given", "--drain", cwd=tmp_path)
    given = set(re.findall("^(FSINBOX_[^=]*)=", (tmp_path / "given").read_text(), re.MULTILINE))
    assert given == variables.GENERAL - {"FSINBOX_SETTINGS"}
