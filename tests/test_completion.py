"""`fsinbox completion`, in real shells on a real terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, environment, run

from fsinbox import Inbox

pexpect = pytest.importorskip("pexpect", reason="a terminal: pip install pexpect")

PROMPT = "ready> "
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(fsinbox completion bash)"'),
    "zsh": (
        ["-f", "-i"],
        f'PS1="{PROMPT}"; autoload -Uz compinit && compinit -D -u; eval "$(fsinbox completion zsh)"',
    ),
    "fish": (
        ["--no-config", "-i"],
        f'function fish_prompt; echo -n "{PROMPT}"; end; fsinbox completion fish | source',
    ),
}
KEYS = [
    "alpha",
    "my key",
    "rep:ort=1@x,y",
    "evil$(touch pwned)`touch pwned`",
    "glob*",
    "tail:one",
    "tail:two",
    "b\x1b[31mred",
]

Line = Callable[[str, str], None]


@pytest.fixture(params=SHELLS)
def types(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    """Type a line at a shell's prompt, and wait for what it must print."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/fsinbox"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fsinbox "$@"\n')
    program.chmod(0o755)
    with Inbox(tmp_path / "inbox", codec="text", durable=False) as inbox:
        inbox.add_many((key, f"value-of-{number}-") for number, key in enumerate(KEYS))
    options, set_up = SHELLS[shell]
    variables = environment(
        PS1=PROMPT, TERM="dumb", HOME=str(tmp_path), PATH=f"{tmp_path}/bin:/usr/bin:/bin", LC_ALL="C.UTF-8"
    )
    child = pexpect.spawn(
        shell,
        options,
        cwd=str(tmp_path),
        env=variables,
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(50, 250),
        use_poll=True,
    )

    def line(text: str, answer: str) -> None:
        child.send(text)
        child.expect_exact(answer)
        child.expect_exact(PROMPT)

    line(f"{set_up}; echo set-'up'\r", "set-up")
    yield line
    child.close(force=True)


def test_commands_options_and_keys_are_completed_in_a_terminal(types: Line, tmp_path: Path) -> None:
    types("fsinbox statu\t\r", "waiting")
    types("fsinbox consume --concur\t bad\r", "'bad' is not a valid count")
    types("fsinbox completion fi\t | head -1\r", "function _fsinbox_completion")
    types("fsinbox show al\t\r", "value-of-0-")


def test_a_key_with_special_characters_is_completed_so_that_the_shell_does_not_act_on_it(
    types: Line, tmp_path: Path
) -> None:
    types("fsinbox show my\t\r", "value-of-1-")
    types("fsinbox show rep:o\t\r", "value-of-2-")
    types("fsinbox show evil\t\r", "value-of-3-")
    types("fsinbox show gl\t\r", "value-of-4-")
    types("fsinbox show tail:t\t\r", "value-of-6-")
    assert not (tmp_path / "pwned").exists()


def test_keys_come_from_the_inbox_that_the_line_names(types: Line, tmp_path: Path) -> None:
    run("--inbox", "other", "add", "--create", "omega", "value-of-omega", cwd=tmp_path)
    types("fsinbox --inbox other show om\t\r", "value-of-omega")
    types("fsinbox show --inbox other om\t\r", "value-of-omega")


def complete(line: str, cwd: Path) -> list[str]:
    """Return what is offered to bash for a line."""
    done = run(cwd=cwd, _FSINBOX_COMPLETE="bash_complete", COMP_WORDS=line)
    assert done.stderr == ""
    return done.stdout.split()


def test_where_there_is_no_inbox_nothing_is_offered_and_nothing_made(tmp_path: Path) -> None:
    assert complete("fsinbox show ", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_folders_are_offered_for_an_inbox(tmp_path: Path) -> None:
    assert complete("fsinbox --inbox ", tmp_path) == ["dir,"]


def test_keys_are_taken_from_the_inbox_of_the_project_and_a_broken_file_of_settings_is_no_obstacle(
    tmp_path: Path,
) -> None:
    run("--inbox", "spool", "add", "--create", "k", "v", cwd=tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.fsinbox]\ninbox = "spool"\n')
    assert complete("fsinbox show ", tmp_path) == ["plain,k"]
    (tmp_path / "pyproject.toml").write_text("[tool.fsinbox]\ninbox = \n")
    assert complete("fsinbox show ", tmp_path) == []
    assert "plain,consume" in complete("fsinbox cons", tmp_path)
    assert complete("fsinbox watch ", tmp_path) == ["dir,"]


def test_completion_of_an_unknown_shell_names_those_there_are(tmp_path: Path) -> None:
    done = run("completion", "tcsh", cwd=tmp_path, status=2)
    assert "'bash', 'zsh', 'fish'" in done.stderr
