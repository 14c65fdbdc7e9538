"""Settings from pyproject.toml, the environment and the command line: which of them counts, and what is said
of a wrong one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import PACKAGE, contents, json_lines, keys_in, reason, run

from fsinbox import Inbox
from fsinbox.cli import locating

TASKS = "def good(key, value): ...\ndef bad(key, value): raise ValueError(value)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a module of handlers, and a folder in it."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "sub").mkdir()
    return tmp_path


def configure(project: Path, text: str) -> Path:
    """Write a pyproject.toml, with tables of other tools, too."""
    path = project / "pyproject.toml"
    path.write_text(f'[project]\nname = "p"\ndependencies = ["fsinbox"]\n{text}\n[tool.other]\nx = 1\n')
    return path


def settings(cwd: Path, *words: str, **variables: str) -> dict[str, tuple[Any, str, str | None]]:
    """Return what `fsinbox settings --json` says: name -> value, origin, where."""
    lines = json_lines(run("settings", "--json", *words, cwd=cwd, **variables).stdout)
    return {line["name"]: (line["value"], line["origin"], line["where"]) for line in lines}


# --- where they come from -----------------------------------------------------------------------------


def test_the_inbox_of_a_project_is_found_from_any_folder_below_it(project: Path) -> None:
    configure(project, '[tool.fsinbox]\ninbox = "spool"')
    run("add", "--create", "a", "1", cwd=project)
    run("add", "b", "2", cwd=project / "sub")
    run("add", "--json", "c", "3", cwd=project / "sub")  # not one of the forms that are read by hand
    assert contents(project / "spool") == {"a": b"1", "b": b"2", "c": b"3"}
    assert not (project / "sub/inbox").exists()
    assert run("show", "b", cwd=project / "sub").stdout == "2"


def test_durations_rates_and_sizes_are_written_as_on_the_command_line(project: Path) -> None:
    wanted = {"timeout": "10m", "rate": "90/m", "max-memory": "1M", "batch": 7, "batch-wait": 1.5}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in wanted.items())
    path = configure(project, f"[tool.fsinbox.consume]\n{lines}")
    found = settings(project)
    assert {name: found[f"consume.{name}"] for name in wanted} == {
        name: (value, "file", str(path)) for name, value in wanted.items()
    }
    configure(project, "[tool.fsinbox.consume]\nrate = 10")
    assert "use 10/s, 100/m, 1000/h or 1/30s" in run("settings", cwd=project, status=2).stderr


def test_the_line_comes_before_the_environment_that_before_the_file_and_that_before_the_default(
    project: Path,
) -> None:
    path = configure(project, '[tool.fsinbox]\ninbox = "file"\n[tool.fsinbox.consume]\nconcurrency = 2')
    name = "consume.concurrency"
    assert settings(project)[name] == (2, "file", str(path))
    assert settings(project, FSINBOX_CONSUME_CONCURRENCY="3")[name] == (
        3,
        "environment",
        "$FSINBOX_CONSUME_CONCURRENCY",
    )
    assert settings(project)["consume.max-attempts"] == (45, "default", None)
    assert settings(project)["inbox"] == (f"{project}/file", "file", str(path))
    assert settings(project, FSINBOX_DIR="env")["inbox"] == ("env", "environment", "$FSINBOX_DIR")
    assert settings(project, "--inbox", "line", FSINBOX_DIR="env")["inbox"] == ("line", "command line", None)
    path.unlink()
    assert settings(project)["inbox"] == ("inbox", "default", None)
    for where, variables, words in [
        ("line", {"FSINBOX_DIR": "env"}, ["--inbox", "line"]),
        ("env", {"FSINBOX_DIR": "env"}, []),
        ("file", {}, []),
    ]:
        configure(project, '[tool.fsinbox]\ninbox = "file"')
        run("add", "--create", *words, where, "v", cwd=project, **variables)
        assert keys_in(project / where, "pending") == [where]


def test_a_consumer_works_as_the_file_says(project: Path) -> None:
    configure(
        project,
        '[tool.fsinbox]\ninbox = "spool"\n[tool.fsinbox.consume]\n'
        'handler = "tasks:bad"\ndrain = true\nmax-attempts = 2\nretry_delay = 0.01\n',
    )
    run("add", "--create", "k", '"v"', cwd=project)
    run("consume", cwd=project, status=1)
    assert "attempts: 2\n" in reason(project / "spool", "k")


def test_a_handler_that_is_typed_takes_the_place_of_one_in_the_file(project: Path) -> None:
    configure(project, '[tool.fsinbox.consume]\nhandler = "tasks:bad"\ndrain = true')
    run("add", "--create", "k", '"v"', cwd=project)
    run("consume", "--exec", "cp {} copy", cwd=project)
    assert (project / "copy").read_text() == '"v"'
    done = run("consume", "--exec", "true", "--handler", "tasks:good", cwd=project, status=2)
    assert "give either --handler MODULE:FUNC or --exec COMMAND" in done.stderr


def test_an_option_that_may_be_repeated_is_a_list_or_a_single_value(project: Path) -> None:
    run("add", "--create", "k", "v", cwd=project)
    configure(project, '[tool.fsinbox.ls]\nstate = ["failed", "in_flight"]')
    assert run("ls", cwd=project).stdout == ""
    assert settings(project, "ls")["ls.state"][0] == ["failed", "in_flight"]
    configure(project, '[tool.fsinbox.ls]\nstate = "waiting"')
    assert " k\n" in run("ls", cwd=project).stdout


def test_the_nearest_file_with_our_settings_counts(project: Path) -> None:
    configure(project, '[tool.fsinbox]\ninbox = "outer"')
    configure(project / "sub", "")  # a package of its own, without settings of ours
    assert settings(project / "sub")["inbox"][0] == f"{project}/outer"
    configure(project / "sub", '[tool.fsinbox]\ninbox = "inner"')
    assert settings(project / "sub")["inbox"][0] == f"{project}/sub/inner"


def test_a_variable_names_another_file_or_none(project: Path) -> None:
    configure(project, '[tool.fsinbox]\ninbox = "spool"')
    (project / "other.toml").write_text('[tool.fsinbox]\ninbox = "~/far"')
    assert (
        settings(project / "sub", FSINBOX_SETTINGS="../other.toml", HOME="/home/me")["inbox"][0]
        == "/home/me/far"
    )
    assert settings(project, FSINBOX_SETTINGS="")["inbox"] == ("inbox", "default", None)
    done = run("add", "k", "v", cwd=project, FSINBOX_SETTINGS="missing.toml", status=2)
    assert "missing.toml: cannot be read" in done.stderr


def test_what_cannot_be_a_file_of_settings_is_passed_over(project: Path) -> None:
    (project / "sub/pyproject.toml").mkdir()
    os.mkfifo(project / "pyproject.toml")
    run("add", "--create", "k", "v", cwd=project / "sub")
    assert contents(project / "sub/inbox") == {"k": b"v"}


def test_where_the_working_directory_was_removed_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.delenv("FSINBOX_SETTINGS", raising=False)
    gone.rmdir()
    assert locating.settings_file() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_settings_of_another_user_are_refused_unless_they_are_named(project: Path) -> None:
    path = configure(project, '[tool.fsinbox.consume]\nexec = "touch pwned"\ndrain = true')
    os.chown(path, 4321, -1)
    run("add", "--create", "k", "v", cwd=project, FSINBOX_SETTINGS="")
    done = run("consume", cwd=project, status=2)
    assert f"{path}: belongs to user 4321" in done.stderr
    assert f"set FSINBOX_SETTINGS={path}" in done.stderr
    assert not (project / "pwned").exists()
    run("consume", cwd=project, FSINBOX_SETTINGS=str(path))
    assert (project / "pwned").exists()


@pytest.mark.parametrize("owner", [None, 4321])
def test_a_file_without_end_is_not_read(project: Path, owner: int | None) -> None:
    """It may be anybody's, in a folder above."""
    path = configure(project, '[tool.fsinbox]\ninbox = "spool"')
    os.truncate(path, 1 << 40)
    if owner is not None:
        if os.geteuid():
            pytest.skip("only root can make files of another user")
        os.chown(path, owner, -1)
    done = run("status", cwd=project / "sub", status=2)
    assert f"settings: {path}: cannot be read: it has 1099511627776 bytes, 1048576 at most" in done.stderr
    run("init", cwd=project, FSINBOX_SETTINGS="")


def test_a_named_file_must_be_a_regular_one(project: Path) -> None:
    os.mkfifo(project / "fifo")
    for name in ("fifo", "sub", "/dev/zero"):
        done = run("status", cwd=project, status=2, FSINBOX_SETTINGS=name)
        assert f"settings: {name}: cannot be read: it is not a regular file" in done.stderr


def test_a_file_that_is_nested_without_end_is_an_error(project: Path) -> None:
    configure(project, f"[tool.fsinbox]\ninbox = {'[' * 100_000}")
    assert "cannot be read: " in run("status", cwd=project, status=2).stderr


# --- what is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[tool.fsinbox]\ninbox = 5",
            "inbox in [tool.fsinbox] is 5: write the path of a directory, in quotes",
        ),
        (
            "[tool.fsinbox]\nconcurrency = 5",
            "[tool.fsinbox] has 'concurrency': it may have inbox, and a table for each of add,",
        ),
        (
            "[tool.fsinbox]\nconsume = 5",
            "consume in [tool.fsinbox] is 5: make it a table, [tool.fsinbox.consume]",
        ),
        (
            "[tool.fsinbox.consume]\ninbox = 'x'",
            "has 'inbox': that stands in [tool.fsinbox], for all commands",
        ),
        (
            "[tool.fsinbox.consume]\nhelp = true",
            "[tool.fsinbox.consume] has 'help': it may have handler, exec,",
        ),
        (
            "[tool.fsinbox.consume]\nconcurency = 4",
            "[tool.fsinbox.consume] has 'concurency': it may have handler, exec,",
        ),
        (
            "[tool.fsinbox.consume]\nconcurrency = '4'",
            "concurrency in [tool.fsinbox.consume] is '4': it must be a whole number",
        ),
        ("[tool.fsinbox.consume]\nconcurrency = true", "is True: it must be a whole number"),
        ("[tool.fsinbox.consume]\nconcurrency = 0", "is 0: 0 is not 1 or more: correct it there"),
        (
            "[tool.fsinbox.consume]\nsettle = 'soon'",
            "settle in [tool.fsinbox.consume] is 'soon': invalid duration 'soon': use 90, 15m, 2h, 7d",
        ),
        (
            "[tool.fsinbox.consume]\ndrain = 'yes'",
            "drain in [tool.fsinbox.consume] is 'yes': it must be true or false",
        ),
        ("[tool.fsinbox.consume]\nwatch = 'never'", "'never' is not one of 'auto', 'events', 'poll'"),
        (
            "[tool.fsinbox.consume]\nhandler = ['a']",
            "handler in [tool.fsinbox.consume] is ['a']: it must be text, in quotes",
        ),
        ("[tool.fsinbox\n", "cannot be read: Expected ']'"),
        ("[tool.fsinbox.consume]\n'\\\x1b[2J' = 1", "cannot be read: "),
        ('[tool.fsinbox.consume]\n"\\u001b[2J" = 1', "has '\\x1b[2J': it may have"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file_the_reason_and_the_way_out(
    project: Path, text: str, words: str
) -> None:
    (project / "pyproject.toml").write_text(text)
    for command in (["consume"], ["settings"]):
        done = run(*command, cwd=project, status=2)
        assert done.stderr.startswith(f"fsinbox: settings: {project}/pyproject.toml: ")
        assert words in done.stderr
        assert done.stdout == ""
    assert not (project / "inbox").exists()


def test_a_setting_of_one_command_does_not_stop_another(project: Path) -> None:
    configure(project, "[tool.fsinbox.consume]\nconcurrency = 0")
    run("add", "--create", "k", "v", cwd=project)
    assert contents(project / "inbox") == {"k": b"v"}


def test_an_option_with_a_type_of_its_own_takes_numbers_and_text(project: Path) -> None:
    configure(project, '[tool.fsinbox.status]\nmax-age = "15m"')
    assert settings(project, "status")["status.max-age"][0] == "15m"
    configure(project, "[tool.fsinbox.status]\nmax-age = [1]")
    done = run("status", cwd=project, status=2)
    assert "max-age in [tool.fsinbox.status] is [1]: it must be a number, or text in quotes" in done.stderr


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    done = run("settings", cwd=tmp_path, FSINBOX_CONSUME_CONCURRENCY="many", status=2)
    assert "$FSINBOX_CONSUME_CONCURRENCY is 'many': " in done.stderr


# --- seeing them --------------------------------------------------------------------------------------


def test_settings_prints_a_table_of_one_command_or_of_all(project: Path) -> None:
    path = configure(project, '[tool.fsinbox.consume]\nhandler = "tasks:go\\u001b[2J"')
    lines = run("settings", "consume", cwd=project).stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["consume.handler", f"'tasks:go\\x1b[2J'  {path}"]
    assert ["consume.exec", "-", "default"] in [line.split() for line in lines]
    assert ["consume.drain", "false", "default"] in [line.split() for line in lines]
    every = run("settings", cwd=project).stdout
    assert every.startswith("inbox ")
    assert "\nls.state " in every
    done = run("settings", "konsume", cwd=project, status=2)
    assert "there is no command 'konsume'" in done.stderr


@pytest.mark.bare
def test_a_cold_add_does_not_import_what_reads_settings(run_python: Any, tmp_path: Path) -> None:
    code = """
import os, sys
os.chdir(sys.argv[1])
from fsinbox.cli import simple_add
assert simple_add(["add", "k", "v"]) == ("k", "v", None, "inbox", {})
print([name for name in ("click", "tomllib", "fsinbox.cli.settings") if name in sys.modules])
open("pyproject.toml", "w").write("[tool.fsinbox]\\n")
print(simple_add(["add", "k", "v"]))
"""
    assert run_python(code, tmp_path).splitlines() == ["[]", "None"]


# --- handlers of installed packages -------------------------------------------------------------------


@pytest.fixture
def installed(project: Path) -> Path:
    """A package beside the project that offers handlers by name, as pip would have installed it."""
    site = project / "site"
    (site / "acme-1.0.dist-info").mkdir(parents=True)
    (site / "acme-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (site / "acme-1.0.dist-info/entry_points.txt").write_text(
        "[fsinbox.handlers]\nthumbnails = acme:make\nbroken = acme:nothing\ngone = acme_gone:make\nodd = "
        "acme:NUMBER\n"
    )
    (site / "acme.py").write_text("NUMBER = 5\ndef make(key, value): open(key, 'w').write(str(value))\n")
    return site


def path_with(site: Path) -> dict[str, str]:
    """Return an environment in which a package is installed."""
    return {"PYTHONPATH": os.pathsep.join([str(site), PACKAGE])}


def test_a_handler_of_an_installed_package_is_found_by_its_name(project: Path, installed: Path) -> None:
    run("add", "--create", "picture", "17", cwd=project)
    run("consume", "--handler", "thumbnails", "--drain", cwd=project, **path_with(installed))
    assert (project / "picture").read_text() == "17"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nails", "handler 'nails' is not of the form module:func, as tasks:handle is for handle() "
         "in tasks.py, and no installed package has one of that name "
         "(there are: broken, gone, odd, thumbnails)"),
        ("broken", "'acme' has no 'nothing'"),
        ("gone", "cannot import 'acme_gone'"),
        ("odd", "acme:NUMBER is int, not a function"),
    ],
)  # fmt: skip
def test_a_name_that_leads_to_no_handler_is_told(
    project: Path, installed: Path, name: str, words: str
) -> None:
    done = run("consume", "--handler", name, cwd=project, status=2, **path_with(installed))
    assert words in " ".join(done.stderr.split())
    done = run("consume", "--handler", "nails", cwd=project, status=2)
    assert "no installed package has one of that name\n" in done.stderr


def test_python_m_fsinbox_is_the_command_line(tmp_path: Path) -> None:
    run("add", "--create", "k", "v", cwd=tmp_path)  # helpers.command runs `python -m fsinbox`
    with Inbox(tmp_path / "inbox", codec="text") as inbox:
        assert [*inbox.take()] == ["k", "v"]  # type: ignore[misc]
