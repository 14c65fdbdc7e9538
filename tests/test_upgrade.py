"""Inboxes of other formats: refused, with the way out. Older versions of fsinbox, out of this repository's
history, export what they hold, and the present one imports it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import PACKAGE, PATIENCE, contents, environment, json_lines, keys_in, reason, run
from usual import drain

from fsinbox import Inbox
from fsinbox.cli.commands import cli
from fsinbox.doctor import examine

ROOT = Path(__file__).parent.parent

FORMAT_2 = "fsinbox/index.py"
"""The file that came with format 2."""

OLDER = {
    "as it first worked": "tests/oracle.py",
    "before control, stats and done": "fsinbox/record.py",
    "before it could export": "fsinbox/archive.py",
    "the last of format 1": FORMAT_2,
}
"""Versions of format 1, each by the file that came with the commit after it."""

JOBS = """
import os, pathlib, signal

def job(element):
    with open("notes", "a") as notes:
        print(element.key, element.value, file=notes)

def fail(element):
    raise ValueError("no good")

def die(element):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    if done.returncode:
        pytest.skip(f"no history to take an older version from: {done.stderr.decode().strip()}")
    return done.stdout


def commit_before(file: str) -> str:
    found = git("log", "--diff-filter=A", "--format=%H", "--", file).decode().split()
    if found:
        return f"{found[-1]}^"
    if file != FORMAT_2:
        pytest.skip(f"no history to take an older version from: it does not say when {file} came")
    return "HEAD"  # it is about to come


@pytest.fixture(scope="module", params=OLDER)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an older fsinbox, for PYTHONPATH."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(
        fileobj=BytesIO(git("archive", commit_before(OLDER[request.param]), "fsinbox"))
    ) as archive:
        archive.extractall(folder)
    return str(folder)


class Place:
    """A working directory where both versions are at work."""

    def __init__(self, path: Path, old: str) -> None:
        self.path = path
        self.inbox = path / "inbox"
        self.old = old
        self.new = PACKAGE
        self.exports = Path(old, "fsinbox/operate/archive.py").exists()
        (path / "jobs.py").write_text(JOBS)

    def fsinbox(self, version: str, *words: str, status: int = 0) -> str:
        """Run `fsinbox *words` with a version; return what it said. (Older ones are not measured: their lines
        are not ours.)"""
        here = {
            name: value
            for name, value in environment().items()
            if version == self.new or "COVERAGE" not in name
        }
        done = subprocess.run(
            [sys.executable, "-m", "fsinbox", *words],
            cwd=self.path,
            env=here | {"PYTHONPATH": version},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def everything(self) -> dict[str, tuple[int, bytes | str | None]]:
        """Return all that lies in the inbox: path -> (inode, content)."""
        found: dict[str, tuple[int, bytes | str | None]] = {}
        for path in self.inbox.rglob("*"):
            content = (
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            )
            found[str(path)] = (path.lstat().st_ino, content)
        return found


@pytest.fixture
def place(tmp_path: Path, old: str) -> Place:
    return Place(tmp_path, old)


def test_the_older_version_is_another_one_and_of_format_1(place: Place) -> None:
    place.fsinbox(place.old, "init")
    assert (place.inbox / "format").read_text() == "fsinbox 1 local\n"


COMMANDS = [
    ("add", "k", "v"),
    ("consume", "--handler", "jobs:job", "--drain"),
    ("ls",),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_what_an_older_version_made_is_refused_with_the_way_out_and_left_as_it_is(
    place: Place, words: tuple[str, ...]
) -> None:
    place.fsinbox(place.old, "add", "a", "1")
    before = place.everything()
    said = place.fsinbox(place.new, *words, status=3)
    assert "inbox has format 1, this fsinbox knows 2: use the version of fsinbox that made it" in said
    assert (
        "`fsinbox export` it with that version, and `fsinbox import` it into a new inbox with this one"
        in said
    )
    assert place.everything() == before


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_an_older_version_refuses_what_this_one_made_and_leaves_it_as_it_is(
    place: Place, words: tuple[str, ...]
) -> None:
    place.fsinbox(place.new, "add", "--create", "a", "1")
    before = place.everything()
    assert "format" in place.fsinbox(place.old, *words, status=3)
    assert place.everything() == before


def test_the_doctor_of_neither_mends_what_the_other_made(place: Place) -> None:
    if not Path(place.old, "fsinbox/doctor").exists():
        pytest.skip("that version had no doctor")
    for maker, doctor in ((place.old, place.new), (place.new, place.old)):
        place.fsinbox(maker, "init")
        place.fsinbox(maker, "add", "a", "1")
        before = place.everything()
        for words in (("doctor",), ("doctor", "--repair")):
            assert "format" in place.fsinbox(doctor, *words, status=3)
        assert place.everything() == before
        shutil.rmtree(place.inbox)


def test_all_that_an_older_version_holds_is_moved(place: Place) -> None:
    """What waits, in order; what was in flight, deferred or failed."""
    if not place.exports:
        pytest.skip("that version could not export: it moved to a later one of its format first")
    place.fsinbox(place.old, "add", "failed", "0")
    place.fsinbox(place.old, "consume", "--handler", "jobs:fail", "--once", "--max-attempts", "1", status=1)
    place.fsinbox(place.old, "add", "deferred", "0")
    place.fsinbox(place.old, "consume", "--handler", "jobs:fail", "--once", "--retry-delay", "1000")
    place.fsinbox(place.old, "add", "in-flight", "0")
    place.fsinbox(place.old, "consume", "--handler", "jobs:die", status=-signal.SIGKILL)
    for key in ("c", "b", "a", "é/"):
        place.fsinbox(place.old, "add", key, "1")
    place.fsinbox(place.old, "add", "c", "2")
    place.fsinbox(
        place.old,
        "export",
        "--state",
        "out",
        "--state",
        "waiting",
        "--state",
        "deferred",
        "--state",
        "failed",
        "all.tar",
    )

    place.fsinbox(place.new, "--inbox", "new", "import", "--create", "all.tar")
    assert (place.path / "new/format").read_text() == "fsinbox 2 local\n"
    assert keys_in(place.path / "new", "failed") == ["failed"]
    assert "no good" in reason(place.path / "new", "failed")
    assert examine(str(place.path / "new")).healthy
    assert place.everything()  # the old one is as it was: to be removed by hand
    with Inbox(place.path / "new") as inbox:
        assert drain(inbox) == [("in-flight", 0), ("c", 2), ("b", 1), ("a", 1), ("é/", 1), ("deferred", 0)]


def test_values_that_are_newer_here_are_kept(place: Place) -> None:
    if not place.exports:
        pytest.skip("that version could not export")
    place.fsinbox(place.old, "add", "a", "1")
    place.fsinbox(place.old, "export", "all.tar")
    place.fsinbox(place.new, "--inbox", "new", "add", "--create", "a", "2")
    place.fsinbox(place.new, "--inbox", "new", "import", "--create", "all.tar")
    assert contents(place.path / "new") == {"a": b"2"}


# --- the format ---------------------------------------------------------------------------------------

WITHOUT_INBOX = {"completion", "help", "settings"}


@pytest.fixture
def future(tmp_path: Path) -> Path:
    """A working directory with an inbox of a format to come."""
    Inbox(tmp_path / "inbox").close()
    (tmp_path / "inbox/format").write_text("fsinbox 3 local\n")
    return tmp_path


def refused(text: str) -> bool:
    return bool(
        re.search(r"/inbox has format 3, this fsinbox knows 2: use the version of fsinbox that made it", text)
    )


@pytest.mark.parametrize(
    "name", sorted({*cli.list_commands(click.Context(cli))} - {"consume", *WITHOUT_INBOX})
)
def test_each_command_refuses_an_inbox_of_a_format_to_come(
    future: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    archive = tmp_path_factory.mktemp("good") / "archive"
    with Inbox(archive.with_name("inbox")) as good:
        good.add("k", 1)
    assert CliRunner().invoke(cli, ["--inbox", good.path, "export", "--yes", str(archive)]).exit_code == 0
    monkeypatch.chdir(future)
    before = sorted(future.rglob("*"))
    command = cli.get_command(click.Context(cli), name)
    assert command
    words = [
        "k"
        for parameter in command.params
        if isinstance(parameter, click.Argument) and (parameter.required or parameter.nargs < 0)
    ]
    if name == "add":
        words = ["k", "v"]
    if name == "import":
        words = [str(archive)]
    if name == "migrate":
        words = [f"sqlite:///{archive}.db"]
        sqlite3.connect(f"{archive}.db").execute(
            "CREATE TABLE inbox (id INTEGER PRIMARY KEY, key, value)"
        ).connection.close()
    words += ["--yes"] if any("--yes" in parameter.opts for parameter in command.params) else []
    done = CliRunner().invoke(cli, [name, *words], input="")
    assert done.exit_code == 3, done.output
    assert refused(done.output), done.output
    assert sorted(future.rglob("*")) == before


@pytest.mark.parametrize("words", [("add", "k", "v"), ("consume", "--exec", "true", "--drain")])
def test_the_format_is_checked_before_anything_is_done(future: Path, words: tuple[str, ...]) -> None:
    assert refused(run(*words, cwd=future, status=3).stderr)
    assert os.listdir(future / "inbox/pending") == []
    assert not (future / "inbox/stats").exists()


def test_the_format_is_refused_as_json_too(future: Path) -> None:
    lines = json_lines(run("consume", "--exec", "true", "--log-format", "json", cwd=future, status=3).stderr)
    assert [line["event"] for line in lines] == ["gave_up"]
    assert refused(lines[0]["message"])


def test_the_shell_producer_refuses_a_format_to_come(future: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/fsinbox-add", "k", "v"], cwd=future, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        3,
        "fsinbox-add: inbox has format 3, this fsinbox-add knows 2\n",
    )
    assert os.listdir(future / "inbox/pending") == os.listdir(future / "inbox/tmp") == []
