"""The site builds without a warning and holds every page, the examples of the pages run, and the manual
pages are up to date."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
from helpers import environment

import fsinbox
from fsinbox.cli import exits
from fsinbox.cli.commands import cli
from fsinbox.cli.settings import settable
from fsinbox.cli.variables import GENERAL, NAMES
from fsinbox.store import folders

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


# --- the site -----------------------------------------------------------------------------------------


class Fetched(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(found.get("src") or "")
        elif tag == "link" and found.get("rel") != "canonical":
            self.addresses.append(found.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from the checkout with warnings as errors."""
    pytest.importorskip("mkdocs", reason="pip install 'fsinbox[docs]'")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(NO_MKDOCS_2_WARNING="1"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_reference_has_each_public_name_and_each_command(site: Path) -> None:
    python = (site / "reference-python.html").read_text()
    assert {name for name in fsinbox.__all__ if f'id="fsinbox.{name}"' not in python} == set()
    assert re.search(r"<li>\s*(<p>)?<code>keep_done</code>: how many", python), "a column is no list"
    commands = (site / "reference-commands.html").read_text()
    assert (
        set(cli.list_commands(click.Context(cli))) - set(re.findall(r'id="fsinbox-([a-z]+)"', commands))
        == set()
    )
    assert "--not-before WHEN" in commands


def table(site: Path, page: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables, each by its first cell: the text of the others."""
    rows = re.findall(r"<tr>\s*(.*?)\s*</tr>", (site / page).read_text(), re.S)
    cells = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.S)]
        for row in rows
    ]
    return {row[0]: row[1:] for row in cells if row}


def test_the_reference_has_each_setting_with_its_type_default_and_variable(site: Path) -> None:
    page = (site / "reference-settings.html").read_text()
    variables = set(re.findall(r"<code>(FSINBOX_[A-Z_]+)</code>", page))
    assert variables == NAMES | GENERAL
    rows = table(site, "reference-settings.html")
    assert rows["max-attempts"][:3] == ["COUNT", "45", "FSINBOX_CONSUME_MAX_ATTEMPTS"]
    assert rows["max-retry-delay"][:2] == ["TIME", "1h"]
    assert rows["allow-changes"][:2] == ["true, false", "false"]
    assert rows["codec"][:2] == ["json, text, bytes", "json"]
    assert rows["allow-host"][0] == "a list of NAME"
    assert rows["rate"][0] == "COUNT/TIME"


def test_the_reference_has_each_exit_status_and_each_file(site: Path) -> None:
    rows = table(site, "reference-statuses.html")
    statuses = {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    assert {int(name) for name in rows if name.isdecimal()} == statuses | {0} == set(exits.MEANINGS)
    names = {name.strip("/") for name in rows}
    known = {*folders.FOLDERS, *folders.FILES, *folders.OPTIONAL, *folders.OPTIONAL_FILES}
    assert known - names == set()
    assert rows["stats/"][1] == rows["control/hold-<key>"][1] == "when it is needed"
    assert rows["pending/"] == ["<number>-<key>: waiting, oldest first by name (the truth)", "always"]


def test_the_search_finds_settings_statuses_events_and_files(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found: dict[str, str] = {}
    for entry in index["docs"]:
        page = entry["location"].partition("#")[0]
        found[page] = found.get(page, "") + entry["text"]
    settings, rest = found["reference-settings.html"], found["reference-statuses.html"]
    assert {name for name in NAMES if name not in settings} == set()
    ctx = click.Context(cli)
    options = {one for name in cli.list_commands(ctx) for one in settable(cli.get_command(ctx, name))}
    assert len(options) > 80
    assert {name for name in options if f"<code>{name}</code>" not in settings} == OLD
    assert {word for word in ("124", "ended_by_handler", "consumer.lock") if word not in rest} == set()


OLD = {"max-pending", "burst"}
"""Second names of options."""


def test_the_site_builds_strictly_with_every_page_in_its_navigation(site: Path) -> None:
    front = (site / "index.html").read_text()
    navigation = front[front.index("md-nav--primary") : front.index("md-content")]
    for page in PAGES:
        assert (site / page.with_suffix(".html").name).exists()
        assert f'href="{page.with_suffix(".html").name}"' in navigation, (
            f"{page.name} is not in the navigation"
        )


def test_no_page_fetches_anything_from_elsewhere_and_all_that_it_fetches_is_there(site: Path) -> None:
    for page in set(site.glob("*.html")) - {site / "404.html"}:  # that one is shown at any address
        parser = Fetched()
        parser.feed(page.read_text())
        assert parser.addresses
        for address in filter(None, parser.addresses):
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
            assert (site / address.partition("?")[0].partition("#")[0]).exists(), f"{page.name}: no {address}"


def test_nothing_but_pages_and_pictures_is_published(site: Path) -> None:
    published = {path.suffix for path in site.rglob("*") if path.is_file() and "assets" not in path.parts}
    assert published <= {".html", ".xml", ".gz", ".json", ".png", ".svg", ".inv", ""}
    assert not (site / "deploy").exists()
    assert not (site / "mkdocs.yml").exists()


# --- the examples -------------------------------------------------------------------------------------

RUN = ("index.md", "handlers.md", "recipes.md")
"""Pages whose examples are run, one after the other; those of the others must only be Python."""


def examples(page: Path) -> list[str]:
    """Return the Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def can_be_imported(example: str) -> bool:
    """Tell whether all that an example imports is installed."""
    names = re.findall(r"^(?:from|import) (\w+)", example, re.M)
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_are_python_and_those_that_can_be_run_run(page: Path, tmp_path: Path) -> None:
    blocks = examples(page)
    for block in blocks:
        compile(block, page.name, "exec")
    if page.name not in RUN:
        return
    runnable = [block for block in blocks if can_be_imported(block)]
    assert runnable
    (tmp_path / "test_page.py").write_text("\n".join(runnable))
    # As a test file: what the page says of tests is run, too; the fixtures are those of the plugin, which may
    # not be installed.
    (tmp_path / "conftest.py").write_text("from fsinbox.testing.pytest_plugin import inbox, run_handler\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    tests = sum(block.count("\ndef test_") + block.startswith("def test_") for block in runnable)
    assert done.returncode == (0 if tests else 5), done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout or not tests


def test_what_the_first_page_says_that_it_prints_is_what_it_prints(tmp_path: Path) -> None:
    for name in ("index.md", "recipes.md"):
        for block in filter(can_be_imported, examples(ROOT / "docs" / name)):
            said = re.findall(r"print\(.*\)\s+# (.+)", block)
            done = subprocess.run(
                [sys.executable, "-c", block],
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.splitlines() == said
            shutil.rmtree(tmp_path / "inbox")


# --- the manual pages ---------------------------------------------------------------------------------


MAN = ROOT / "docs/man"


def test_the_manual_pages_are_what_the_commands_say(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "scripts/manpage.py", tmp_path]
    subprocess.run(words, cwd=ROOT, env=environment(), check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {
        "fsinbox.1",
        *(f"fsinbox-{name}.1" for name in cli.list_commands(click.Context(cli))),
    }
    assert {path.name: path.read_text() for path in MAN.iterdir()} == made, "run `sh scripts/man`"


def rendered(*words: str | Path) -> str:
    """Return what groff makes of manual pages, its warnings being errors."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("page", sorted(MAN.iterdir()), ids=lambda page: page.stem)
def test_a_manual_page_is_sound(page: Path) -> None:
    text = rendered(page)
    assert re.search(rf"^NAME\n +{page.stem} - \S", text, re.M), text
    for part in ("SYNOPSIS", "DESCRIPTION", "OPTIONS", "SEE ALSO"):
        assert re.search(rf"^{part}$", text, re.M), part


def test_a_manual_page_has_each_option_in_its_section_and_what_the_help_says() -> None:
    text = rendered(MAN / "fsinbox-consume.1")
    command = cli.get_command(click.Context(cli), "consume")
    assert command
    for name in settable(command):
        assert f"--{name}" in text or name == "burst", name
    assert text.index("When it fails") < text.index("--max-attempts COUNT") < text.index("Other options")
    assert "FSINBOX_CONSUME_HANDLER" in text
    first = rendered(MAN / "fsinbox.1")
    assert "fsinbox-consume(1)" in first
    assert "`fsinbox add KEY VALUE`, `mv KEY inbox/drop/`" in " ".join(first.split())
    assert "124" in first and "timeout has expired" in first


def test_man_finds_the_page_of_a_command(tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    shutil.copytree(MAN, tmp_path / "man1")
    for words in (["fsinbox-consume"], ["fsinbox", "consume"]):
        variables = {"MANPATH": str(tmp_path), "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MANWIDTH": "80"}
        done = subprocess.run(
            ["man", *words], capture_output=True, text=True, env=os.environ | variables, check=False
        )
        if "minimized" in done.stdout:
            pytest.skip("man is a script that says that this system has no manual pages")
        assert done.returncode == 0 and "Process elements until stopped" in done.stdout, done.stderr


# --- the container ------------------------------------------------------------------------------------


def test_what_the_container_runs_is_what_there_is(tmp_path: Path) -> None:
    """Its instructions, without a container: the commands it names, in the environment that it sets."""
    recipe = (ROOT / "docs/deploy/Containerfile").read_text()
    assert re.findall(r"^(?:USER|STOPSIGNAL|VOLUME) .+", recipe, re.M) == [
        "USER fsinbox",
        "VOLUME /inbox",
        "STOPSIGNAL SIGTERM",
    ]
    settings = dict(word.split("=", 1) for word in re.findall(r"^ENV (.+)", recipe, re.M)[0].split())
    inbox = tmp_path / "inbox"
    inbox.mkdir()  # the volume
    (tmp_path / "tasks.py").write_text("def handle(key, value): print(key, value)\n")
    environ = environment(**settings | {"FSINBOX_DIR": str(inbox), "FSINBOX_CONSUME_HANDLER": "tasks:handle"})
    ((entry,), (check,)) = (re.findall(rf"{word} (\[.+\])", recipe) for word in ("ENTRYPOINT", "CMD"))
    fsinbox = [sys.executable, "-m", "fsinbox"]
    words = {
        name: [word.strip('" ') for word in text.strip("[]").split(",")][1:]
        for name, text in (("run", entry), ("check", check))
    }
    subprocess.run([*fsinbox, "add", "--create", "k", "5"], env=environ, check=True, cwd=tmp_path)
    healthy = subprocess.run(
        [*fsinbox, *words["check"]], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert healthy.returncode == 0, healthy.stderr
    late = subprocess.run(
        [*fsinbox, *words["check"]],
        env=environ | {"FSINBOX_STATUS_MAX_AGE": "0"},
        cwd=tmp_path,
        capture_output=True,
    )
    assert late.returncode == 1
    done = subprocess.run(
        [*fsinbox, *words["run"], "--drain"],
        env=environ,
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "k 5\n"
