"""Versions of fsinbox beside each other on one inbox: older ones, out of this repository's history, and the present one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import PACKAGE, PATIENCE, contents, environment, json_lines, keys_in, run, wait_until
from usual import take

from fsinbox import Inbox, control
from fsinbox.cli.commands import cli
from fsinbox.doctor import examine
from fsinbox.lock import WHOLE
from fsinbox.record import Account

ROOT = Path(__file__).parent.parent

OLDER = {
    "as it first worked": "tests/oracle.py",
    "before control, stats and done": "fsinbox/record.py",
    "the last one committed": "",
}
"""Versions, each by the file that came with the commit after it."""

JOBS = """
import os, pathlib, signal

def note(*words):
    fd = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

def job(element):
    note(element.key, element.value, element.attempts)

def die(element):
    pathlib.Path("taken").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""

PRODUCER = """
import sys
from fsinbox import Inbox

with Inbox("inbox", durable=False) as inbox:
    for value in range(20):
        for key in range(8):
            inbox.add(f"{sys.argv[1]}{key}", value)
"""


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    if done.returncode:
        pytest.skip(f"no history to take an older version from: {done.stderr.decode().strip()}")
    return done.stdout


def commit_before(file: str) -> str:
    if not file:
        return "HEAD"
    found = git("log", "--diff-filter=A", "--format=%H", "--", file).decode().split()
    if not found:
        pytest.skip(f"no history to take an older version from: it does not say when {file} came")
    return f"{found[-1]}^"


@pytest.fixture(scope="module", params=OLDER)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an older fsinbox, for PYTHONPATH."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=BytesIO(git("archive", commit_before(OLDER[request.param]), "fsinbox"))) as archive:
        archive.extractall(folder)
    return str(folder)


class Place:
    """A working directory where both versions work on one inbox."""

    def __init__(self, path: Path, old: str) -> None:
        self.path = path
        self.inbox = path / "inbox"
        self.old = old
        self.new = PACKAGE
        (path / "jobs.py").write_text(JOBS)
        # What an older version does not know is there.
        with Inbox(self.inbox, keep_done=3) as inbox:
            inbox.add("before", 0)
            take(inbox).ack()
            control.hold(inbox.layout, "nobody-s")
            Account(inbox.layout, WHOLE, "jobs:job", 1).write()

    def start(self, version: str, *words: str) -> subprocess.Popen[bytes]:
        """Start `python *words` with a version. (Older ones are not measured: their lines are not the package's.)"""
        here = {name: value for name, value in environment().items() if version == self.new or "COVERAGE" not in name}
        return subprocess.Popen(
            [sys.executable, *words], cwd=self.path, env=here | {"PYTHONPATH": version}, stderr=subprocess.PIPE
        )

    def run(self, version: str, *words: str, status: int = 0) -> None:
        process = self.start(version, *words)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, errors.decode()

    def fsinbox(self, version: str, *words: str, status: int = 0) -> None:
        self.run(version, "-m", "fsinbox", *words, status=status)

    def drain(self, version: str, *words: str) -> None:
        self.fsinbox(version, "consume", "--handler", "jobs:job", "--drain", *words)

    @property
    def notes(self) -> list[tuple[str, int, int]]:
        """What was handled, in order: (key, value, attempts)."""
        path = self.path / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(key, int(value), int(attempts)) for key, value, attempts in map(str.split, lines)]

    def die(self, version: str) -> None:
        """Have a consumer take an element and be killed with it out."""
        (self.path / "taken").unlink(missing_ok=True)
        self.fsinbox(version, "consume", "--handler", "jobs:die", status=-signal.SIGKILL)
        assert (self.path / "taken").exists()

    def check(self) -> None:
        """Nothing is left, and what only the present version knows is as it was."""
        for folder in ("pending", "inflight", "deferred", "failed"):
            assert keys_in(self.inbox, folder) == []
        assert os.listdir(self.inbox / "control") == ["hold-nobody-s"]
        assert "before" in keys_in(self.inbox, "done")
        assert list((self.inbox / "stats").iterdir()) == [self.inbox / "stats/1of1.json"]
        assert examine(str(self.inbox)).healthy


@pytest.fixture
def place(tmp_path: Path, old: str) -> Place:
    return Place(tmp_path, old)


def test_the_older_version_is_another_one(place: Place) -> None:
    code = f"import fsinbox; assert fsinbox.__file__.startswith({place.old!r}), fsinbox.__file__"
    place.run(place.old, "-c", code)


@pytest.mark.parametrize("consumer", ["old", "new"])
def test_producers_of_both_versions_and_a_consumer_of_either_lose_nothing_and_the_newest_wins(
    place: Place, consumer: str
) -> None:
    words = ("-m", "fsinbox", "consume", "--handler", "jobs:job", "--poll-interval", "0.05", "--concurrency", "2")
    running = place.start(getattr(place, consumer), *words)
    producers = [place.start(place.old, "-c", PRODUCER, "old"), place.start(place.new, "-c", PRODUCER, "new")]
    try:
        for producer in producers:
            assert producer.wait(PATIENCE) == 0
        last = {(f"{who}{key}", 19) for who in ("old", "new") for key in range(8)}
        wait_until(lambda: running.poll() is not None or last <= {note[:2] for note in place.notes})
        running.terminate()
        _, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == 0, errors.decode()
    finally:
        running.kill()
    values = defaultdict(list)
    for key, value, attempts in place.notes:
        values[key].append(value)
        assert attempts == 1
    assert values.keys() == {key for key, _ in last}
    assert all(handled == sorted(set(handled)) and handled[-1] == 19 for handled in values.values())
    place.check()


def test_versions_replace_each_other_s_values_in_their_place(place: Place) -> None:
    for number, version in enumerate([place.old, place.new, place.old, place.new, place.old]):
        place.fsinbox(version, "add", "k", str(number))
        if number == 0:
            place.fsinbox(place.new, "add", "behind", "0")
    assert list(contents(place.inbox).items()) == [("k", b"4"), ("behind", b"0")]
    place.drain(place.new)
    assert place.notes == [("k", 4, 1), ("behind", 0, 1)]
    place.check()


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_what_a_killed_consumer_of_one_version_held_comes_back_to_one_of_the_other(place: Place, first: str, second: str) -> None:
    place.fsinbox(place.new, "add", "a", "1")
    place.fsinbox(place.old, "add", "b", "1")
    place.die(getattr(place, first))
    place.drain(getattr(place, second))
    assert place.notes == [("a", 1, 2), ("b", 1, 1)]
    place.check()


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_a_newer_value_of_one_version_supersedes_what_a_killed_consumer_of_the_other_held(
    place: Place, first: str, second: str
) -> None:
    place.fsinbox(getattr(place, second), "add", "a", "1")
    place.die(getattr(place, first))
    place.fsinbox(getattr(place, second), "add", "a", "2")
    place.drain(getattr(place, second))
    assert place.notes == [("a", 2, 1)]
    place.check()


def test_attempts_and_back_offs_of_one_version_count_for_the_other(place: Place) -> None:
    (place.path / "jobs.py").write_text(JOBS + "\ndef fail(element):\n    raise ValueError\n")
    place.fsinbox(place.old, "add", "a", "1")
    place.fsinbox(place.old, "consume", "--handler", "jobs:fail", "--once", "--retry-delay", "0.01")
    place.fsinbox(place.new, "consume", "--handler", "jobs:fail", "--once", "--retry-delay", "0.01")
    place.drain(place.old)
    assert place.notes == [("a", 1, 3)]
    place.check()


def test_an_older_doctor_leaves_alone_what_it_does_not_know(place: Place) -> None:
    if not Path(place.old, "fsinbox/doctor").exists():
        pytest.skip("that version had no doctor")
    process = place.start(place.old, "-m", "fsinbox", "doctor", "--repair")
    process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, 1)
    place.check()


# --- the format ----------------------------------------------------------------------------------------------------

WITHOUT_INBOX = {"completion", "settings"}


@pytest.fixture
def future(tmp_path: Path) -> Path:
    """A working directory with an inbox of a format to come."""
    Inbox(tmp_path / "inbox").close()
    (tmp_path / "inbox/format").write_text("fsinbox 2 local\n")
    return tmp_path


def refused(text: str) -> bool:
    return bool(re.search(r"/inbox has format 2, this fsinbox knows 1: use the version of fsinbox that made it", text))


@pytest.mark.parametrize("name", sorted({*cli.list_commands(click.Context(cli))} - {"consume", *WITHOUT_INBOX}))
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
    if name == "import":
        words = [str(archive)]
    if name == "migrate":
        words = [f"sqlite:///{archive}.db"]
        sqlite3.connect(f"{archive}.db").execute("CREATE TABLE inbox (id INTEGER PRIMARY KEY, key, value)").connection.close()
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
    done = subprocess.run([ROOT / "scripts/fsinbox-add", "k", "v"], cwd=future, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "fsinbox-add: inbox has format 2, this fsinbox-add knows 1\n")
    assert os.listdir(future / "inbox/pending") == os.listdir(future / "inbox/tmp") == []
