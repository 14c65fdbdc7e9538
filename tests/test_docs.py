"""Proves that the documents are true where a machine can tell: examples run, links lead somewhere, options
exist."""

import re
from pathlib import Path

import click
import pytest

from fsinbox import Inbox
from fsinbox.cli.commands import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(document: Path) -> None:
    context = click.Context(cli)
    commands = [cli, *(cli.get_command(context, name) for name in cli.list_commands(context))]
    parameters = [parameter for command in commands if command for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--long", "--quick"}  # the latter are pytest's: tests/conftest.py
    named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", document.read_text()))
    assert named <= known


def test_the_readme_s_python_example_runs_and_does_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["value"] == {"a": 3}
    assert Inbox("inbox").take() is None
