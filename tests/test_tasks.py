"""docs/first-tasks.md and docs/tutorial.md are run as they stand, each command must print what they say."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment
from helpers import run as fsinbox

ROOT = Path(__file__).parent.parent
FIRST = (ROOT / "docs/first-tasks.md").read_text()
TASKS = re.findall(r"^## (\d+\. .*?)\n(.*?)(?=^## |\Z)", FIRST, re.S | re.M)
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
END = "@@ end of command @@"


def run(text: str, folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """Run the blocks of a text in one shell; return each command, what is said that it prints, and what it
    printed."""
    said: list[tuple[str, list[str]]] = []
    script = ""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M):
        if kind != "console":
            name = re.match(r"# ([\w.]+)\n", block)
            assert name, f"no name of a file in the first line: {block}"
            script += f"cat >{name[1]} <<'END_OF_FILE'\n{block}END_OF_FILE\n"
            continue
        for line in block.splitlines():
            if line.startswith("$ "):
                said.append((line[2:], []))
                script += f"{line[2:]}\necho '{END}'\n"
            else:
                said[-1][1].append(line)
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("fsinbox", f'"{sys.executable}" -m fsinbox "$@"'), ("pip", "echo installed")):
        (programs / name).write_text(f"#!/bin/sh\nexec {words}\n")
        (programs / name).chmod(0o755)
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        ["sh"],
        input=script,
        cwd=work,
        env=environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    printed = [part.strip("\n").splitlines() for part in done.stdout.split(f"{END}\n")][:-1]
    assert len(printed) == len(said), done.stdout
    return [(command, lines, found) for (command, lines), found in zip(said, printed, strict=True)]


def pattern(lines: list[str]) -> str:
    """Return what the output must match: `...` stands for anything, on a line of its own for any lines."""
    parts = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in lines
    ]
    return "".join(parts)


def check(text: str, folder: Path) -> int:
    """Compare; return how many commands there were."""
    ran = run(text, folder)
    for command, lines, found in ran:
        output = "".join(f"{line}\n" for line in found)
        assert re.fullmatch(pattern(lines), output), f"$ {command}\n{output}\nis not\n" + "\n".join(lines)
    return len(ran)


def test_there_are_ten_tasks() -> None:
    assert [title.partition(".")[0] for title, _ in TASKS] == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("text", [text for _, text in TASKS], ids=[title for title, _ in TASKS])
def test_a_task_is_done_by_the_commands_that_are_shown(text: str, tmp_path: Path) -> None:
    assert check(text, tmp_path) >= 2


@pytest.mark.parametrize("text", [text for _, text in TASKS], ids=[title for title, _ in TASKS])
def test_a_task_takes_one_look_at_the_help_of_its_command(text: str, tmp_path: Path) -> None:
    lines = re.findall(r"^\$ (.*)", text, re.M)
    commands = [words for line in lines for words in re.findall(r"fsinbox (\w+)([^;|&]*)", line)]
    assert commands
    first = fsinbox("--help", cwd=tmp_path).stdout
    for name, rest in commands:
        assert re.search(rf"^  {name} ", first, re.M)
        help_text = fsinbox("help", name, cwd=tmp_path).stdout
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert re.search(rf"{option}\b", help_text), f"{name} {option}"


def test_the_picture_of_a_terminal_shows_what_is_printed(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "scripts/terminal.py", tmp_path / "now.svg"], env=environment(), check=True
    )

    def said(path: Path) -> str:
        text = html.unescape(re.sub(r"<[^>]+>", "", path.read_text().partition("</defs>")[2]))
        return re.sub(r"\b\d+s\b", "0s", text.replace("\xa0", " "))

    picture = ROOT / "docs/terminal.svg"
    assert said(picture) == said(tmp_path / "now.svg"), "python scripts/terminal.py docs/terminal.svg"
    assert "replaced" in said(picture) and "OK: No elements are waiting." in said(picture)
    assert picture.stat().st_size < 20_000 and 'url("http' not in picture.read_text()


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    assert check(TUTORIAL, tmp_path) > 15


def test_an_output_that_is_another_one_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not"):
        check("```console\n$ echo two\none\n```\n", tmp_path)
