"""Proves that the documents are true where a machine can tell: examples run, links lead somewhere, options
exist, and what ARCHITECTURE.md says of the package is so."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from fsinbox import Inbox
from fsinbox.cli.commands import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))


def called(path: Path) -> str:
    """Return how a test of a document is called."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", [*DOCUMENTS, *EXAMPLES], ids=called)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=called)
def test_options_exist(document: Path) -> None:
    context = click.Context(cli)
    commands = [cli, *(cli.get_command(context, name) for name in cli.list_commands(context))]
    parameters = [parameter for command in commands if command for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--all", "--long"}  # the latter are pytest's: tests/conftest.py
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


def test_each_picture_is_light_said_in_words_and_shown_somewhere() -> None:
    shown = {}
    for document in DOCUMENTS:
        for words, name in re.findall(r"!\[([^]]*)\]\(([^)]+\.png)\)", document.read_text()):
            shown[(document.parent / name).resolve()] = words
    assert set(shown) == set((ROOT / "docs").rglob("*.png"))
    assert len(shown) >= 5
    for picture, words in shown.items():
        assert picture.stat().st_size < 150_000, picture
        assert len(words) > 30, (picture, words)


README = (ROOT / "README.md").read_text()


def test_the_readme_can_be_read_at_once() -> None:
    assert len(README.splitlines()) <= 110


def test_the_lines_of_the_readme_are_lines_of_the_command_line() -> None:
    context = click.Context(cli)
    lines = [
        part for block in re.findall(r"```sh\n(.*?)```", README, re.S) for part in re.split(r"[;\n]", block)
    ]
    ours = [line.partition("#")[0].split() for line in lines if line.strip().startswith("fsinbox ")]
    assert len(ours) > 10
    for _, name, *words in ours:
        command = cli.get_command(context, name)
        assert command, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_what_the_readme_says_of_databases_is_what_was_measured() -> None:
    page = (ROOT / "docs/performance.md").read_text()

    def ratio(row: str) -> float:
        found = re.search(rf"^\| \d+ \| {re.escape(row)} \| ([\d.]+)x \|", page, re.M)
        assert found, row
        return float(found[1])

    said = re.search(r"-->([\d.]+)<!-- /lone --> of SQLite's rate", README)
    assert said
    assert float(said[1]) == round(ratio("1 producer, 200 B: beside bare SQLite FULL"), 1) < 1
    # It says that this is behind, too, and shows that one as ahead.
    assert ratio("one hot key, quick: 0.35x of SQLite without flushes") < 1
    assert ratio("16 producers, 200 B: ahead of every library") > 1


# --- ARCHITECTURE.md ----------------------------------------------------------------------------------

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGE = ROOT / "fsinbox"


def lines_of(storey: str) -> int:
    """Return how many lines the modules of a storey have."""
    folder = PACKAGE if storey == "the face" else PACKAGE / storey.strip("`")
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))


def test_a_storey_costs_as_many_lines_as_is_said() -> None:
    rows = re.findall(r"^\| (`[a-z/]+`|the face) \|.*?\| ([\d,]+) \|", ARCHITECTURE, re.M)
    folders = [folder.relative_to(PACKAGE) for folder in PACKAGE.rglob("*") if any(folder.glob("*.py"))]
    assert sorted(storey for storey, _ in rows) == sorted(
        ["the face", *(f"`{folder}/`" for folder in folders)]
    )
    for storey, said in rows:
        lines = lines_of(storey)
        assert 0.85 <= int(said.replace(",", "")) / lines <= 1.15, f"{storey} has {lines} lines, not {said}"


def test_each_module_and_file_that_the_architecture_names_is_there() -> None:
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md))`|`((?:[\w-]+/)+)`", ARCHITECTURE)
    assert len(named) > 30
    inside = {path.name for path in PACKAGE.rglob("*.py")}
    for file, folder in named:
        path = file or folder
        there = (ROOT / path).exists() or (PACKAGE / path).exists() or path in inside
        assert there, f"ARCHITECTURE.md names {path}"


def test_only_its_command_imports_the_migration() -> None:
    """It needs an extra: nothing else may."""
    words = re.compile(r"(?:import|from) .*\b(?:migration|migrating|sqlalchemy)\b")
    importers = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if words.search(path.read_text())
    }
    assert importers == {"cli/migrating.py", "operate/migration.py"}
    top = (PACKAGE / "operate/migration.py").read_text().partition("\nclass ")[0]
    assert not re.search(r"^(?:import|from) sqlalchemy", top, re.M)


# --- decisions, and the commands of the house ---------------------------------------------------------


def test_each_decision_is_listed_and_has_the_usual_parts() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "index.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    for number, name in enumerate(listed, 1):
        text = (folder / name).read_text()
        assert text.startswith(f"# {number}. ")
        for part in ("Context", "Options", "Decision", "Consequences"):
            assert re.search(rf"^\*\*{part}\b", text, re.M), f"{name} has no {part}"


def test_each_command_of_the_makefile_is_there() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", text, re.M)
    assert {"setup", "test", "test-all", "lint", "demo", "bench", "docs", "gate"} <= set(targets)
    (phony,) = re.findall(r"^\.PHONY: (.*)", text, re.M)
    assert phony.split() == targets
    for line in re.findall(r"^\t(?:sh|bash) (\S+)", text, re.M):
        assert (ROOT / line).is_file()


def test_make_lists_its_commands() -> None:
    try:
        done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("make is not installed")
    assert "\ngate        all that a change has to pass\n" in done.stdout
