"""Names in drop/ that are nobody's values: partial uploads and litter, the three lists, and who may write
them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Consumer, environment, json_lines, run

from fsinbox import AddFailed, Inbox
from fsinbox.doctor import examine
from fsinbox.operate.status import summary
from fsinbox.store.ignoring import BUILT_IN, BadPattern, Ignored, check_patterns
from tests.shim import meanwhile, refusing
from tests.usual import drain, drop, names, reason_for

ROOT = Path(__file__).parents[1]
FILE = ".fsinboxignore"

PARTIAL = (
    "scan.pdf.filepart scan.pdf.crdownload scan.pdf.partial scan.pdf.download scan.pdf.opdownload "
    "scan.pdf.aria2 scan.pdf.part scan.pdf.tmp scan.pdf.ocTransferId17.part .scan.pdf.~1f2e scan.pdf.~1f2e "
    ".syncthing.scan.pdf.tmp ~syncthing~scan.pdf.tmp ~syncthing~scan.pdf"
).split()
"""What uploads, browsers, Syncthing and Nextcloud call a file that is not complete."""

LITTER = (
    ".x.swp x.swp x.swo x.swx x~ ~$x.docx .~lock.x.odt# #x# 4913 Thumbs.db desktop.ini Desktop.ini".split()
)

VALUES = "scan.pdf partial x.parts 4914 49130 thumbs.db.json ~tilde a~b x.swp.json #x x# download".split()
"""Names that only look like it."""


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        yield inbox


def write_list(inbox: Inbox | Path, *lines: str) -> Path:
    """Write drop/.fsinboxignore."""
    path = Path(getattr(inbox, "path", inbox), "drop", FILE)
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o644)
    return path


# --- the built-in list --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PARTIAL, *LITTER, "SCAN.PDF.FILEPART"])
def test_what_is_partial_or_litter_is_left_alone(inbox: Inbox, name: str) -> None:
    drop(inbox, name)
    drop(inbox, "next")
    assert drain(inbox) == [("next", b"dropped")]
    assert inbox.wait(0) is False
    inbox.add(name, b"added")  # the name is a key like any other, and the file is not touched
    assert drain(inbox) == [(name, b"added")]
    assert names(inbox, "drop") == [name]
    assert names(inbox, "failed") == []


@pytest.mark.parametrize("name", VALUES)
def test_what_only_looks_like_it_is_ingested(inbox: Inbox, name: str) -> None:
    drop(inbox, name)
    assert inbox.wait(0) is True
    assert drain(inbox) == [(name, b"dropped")]


@pytest.mark.parametrize("name", [name for name in PARTIAL if name[0] != "."])
def test_a_partial_name_that_is_renamed_away_is_delivered_once_under_the_last_name(
    inbox: Inbox, name: str
) -> None:
    drop(inbox, name)
    assert inbox.take(timeout=0.05) is None
    (Path(inbox.path) / "drop" / name).rename(Path(inbox.path) / "drop" / "scan.pdf")
    assert drain(inbox) == [("scan.pdf", b"dropped")]
    assert inbox.take(timeout=0.05) is None
    assert names(inbox, "drop") == []


def test_a_partial_file_with_a_second_name_is_delivered_once(inbox: Inbox) -> None:
    """As those do who make a link and remove the partial name."""
    drop(inbox, "scan.pdf.part")
    partial = Path(inbox.path, "drop", "scan.pdf.part")
    os.link(partial, partial.with_suffix(""))
    assert drain(inbox) == [("scan.pdf", b"dropped")]
    partial.unlink()
    assert drain(inbox) == []


def test_a_name_that_ends_a_line_is_no_partial_one(inbox: Inbox) -> None:
    """`$` of a regular expression would match before a newline at the end."""
    drop(inbox, "scan.part\n")
    assert drain(inbox) == [("scan.part\n", b"dropped")]


def test_a_folder_with_an_ignored_name_is_left_alone(inbox: Inbox) -> None:
    """Safari downloads into one."""
    Path(inbox.path, "drop", "x.download").mkdir()
    assert drain(inbox) == []
    assert (names(inbox, "drop"), names(inbox, "failed")) == (["x.download"], [])


# --- lists of one's own -------------------------------------------------------------------------------


def test_a_consumer_ignores_what_it_is_told_to(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes", drop_settle=0, ignore=["*.log", "core.[0-9]*"]) as inbox:
        for name in ("x.log", "core.1", "core.x", "x.LOG"):
            drop(inbox, name)
        assert sorted(key for key, _ in drain(inbox)) == ["core.x", "x.LOG"]
        assert names(inbox, "drop") == ["core.1", "x.log"]
        assert inbox.wait(0) is False


def test_the_file_adds_names_takes_names_off_and_is_read_again_when_it_changes(inbox: Inbox) -> None:
    for name in ("4913", "x.log", "y.log", "x.part"):
        drop(inbox, name)
    Path(inbox.path, "drop", "sub").mkdir()
    write_list(inbox, "# ours", "", "!4913", "*.log", "!y.log", "sub/")
    assert sorted(key for key, _ in drain(inbox)) == ["4913", "y.log"]
    assert names(inbox, "drop") == [FILE, "sub", "x.log", "x.part"]
    write_list(inbox, "sub", "!*.part")
    assert sorted(key for key, _ in drain(inbox)) == ["x.log", "x.part"]
    Path(inbox.path, "drop", FILE).unlink()
    assert drain(inbox) == []
    assert "directory" in reason_for(inbox, "sub")


def test_a_producer_goes_by_the_file_too(inbox: Inbox) -> None:
    """Else an older value would come after the newer, or a partial upload would be moved away."""
    drop(inbox, "4913", b"older")
    drop(inbox, "x.log", b"half")
    write_list(inbox, "!4913", "*.log")
    assert inbox.add("4913", b"newer") == "replaced"
    assert inbox.add("x.log", b"added") == "new"
    assert drain(inbox) == [("4913", b"newer"), ("x.log", b"added")]
    assert names(inbox, "drop") == [FILE, "x.log"]


BAD = {
    "!4913": "write it into drop/.fsinboxignore",
    "": "matches no name",
    "# a comment": "matches no name",
    "a\nb": "matches no name",
    "a\\": "is none",
    "[z-a]": "is none",
    "*a*b*c*d": "more than 3",
}


@pytest.mark.parametrize("pattern", BAD)
def test_a_pattern_that_cannot_be_used_is_an_error_of_whoever_gives_it(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(BAD[pattern])):
        Inbox(tmp_path / "inbox", ignore=[pattern])
    done = run("consume", "--exec", "true", "--ignore", pattern, cwd=tmp_path, status=2)
    assert BAD[pattern] in done.stderr
    assert not (tmp_path / "inbox").exists()


def test_a_single_string_is_one_pattern(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", codec="bytes", ignore="*.log") as inbox:
        drop(inbox, "a")
        drop(inbox, "x.log")
        assert drain(inbox) == [("a", b"dropped")]


def test_a_bad_line_is_passed_over_and_told(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    write_list(inbox, "[z-a]", "a\\", "*a*b*c*d", "*.log")
    drop(inbox, "x.log")
    drop(inbox, "a")
    assert drain(inbox) == [("a", b"dropped")]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 3 and all(".fsinboxignore, or a line of it, is not in force" in text for text in told)
    drop(inbox, "b")
    assert drain(inbox) == [("b", b"dropped")]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 3
    (finding,) = [one for one in examine(inbox.path, 0).findings if one.kind == "ignore-file"]
    assert len(finding.signs) == 3


def test_no_name_takes_long_to_match(inbox: Inbox) -> None:
    write_list(inbox, "*-*-*x")
    spec = Ignored(inbox.layout)
    spec.refresh()
    began = time.monotonic()
    assert spec.why("-" * 255) == ""
    assert time.monotonic() - began < 1


# --- nobody else's file -------------------------------------------------------------------------------


def of_another_user(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make files of another user")
    os.chown(path, 65534, 65534)


def make_link(path: Path) -> None:
    path.rename(path.parent.parent / "list")
    path.symlink_to("../list")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "of another user": (of_another_user, "belongs to user 65534"),
    "others may write": (lambda path: path.chmod(0o666), "others may write to it"),
    "a link": (make_link, "not a regular file"),
    "a FIFO": (make_fifo, "not a regular file"),
    "a folder": (make_folder, "not a regular file"),
    "a second name": (lambda path: os.link(path, path.parent.parent / "list"), "one name"),
    "without end": (lambda path: os.truncate(path, 1 << 40), "it has 1099511627776 bytes"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_file_that_others_may_have_put_there_is_not_in_force(
    inbox: Inbox, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = REFUSED[how]
    make(write_list(inbox, "*", "!*.part"))
    drop(inbox, "a")
    drop(inbox, "x.part")
    assert drain(inbox) == [("a", b"dropped")]
    assert names(inbox, "drop") == [FILE, "x.part"]
    assert reason in caplog.text
    assert inbox.add("x.part", b"added") == "new"
    (finding,) = [one for one in examine(inbox.path, 0).findings if one.kind == "ignore-file"]
    assert finding.level == "person" and reason in finding.signs[0].seen
    assert summary(inbox.layout).ignoring["file"] == []


def test_where_the_file_cannot_be_read_now_nothing_is_ingested_until_it_can(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    write_list(inbox, "!x.part", "a")
    drop(inbox, "a")
    drop(inbox, "b")
    with refusing(open=errno.EMFILE, when=lambda name, *_: name == FILE):
        for _ in range(2):
            assert inbox.take() is None
        with pytest.raises(AddFailed, match="was not added"):
            inbox.add("a", b"added")
        assert summary(inbox.layout).ignoring["file"] == []
        assert inbox.wait(0) is True
    assert caplog.text.count("nothing is ingested until it can be") == 1
    inbox.add("c", b"added")  # nothing of its name is in drop/
    assert sorted(drain(inbox)) == [("b", b"dropped"), ("c", b"added")]
    assert caplog.text.count("nothing is ingested until it can be") == 1


def test_a_file_that_is_replaced_while_it_is_opened_is_not_believed(inbox: Inbox) -> None:
    path = write_list(inbox, "a")
    drop(inbox, "a")
    ignored = Ignored(inbox.layout)
    with (
        pytest.raises(OSError, match="others may write"),
        meanwhile("open", lambda: path.chmod(0o666), when=lambda name, *_: name == FILE),
    ):
        ignored.refresh()
    path.chmod(0o644)
    ignored.refresh()
    assert ignored.why("a") == "a of drop/.fsinboxignore"


# --- how long what cannot be told finished must lie still ----------------------------------------------


@pytest.mark.parametrize(
    ("writer", "given", "seconds"), [(None, None, 5), (False, None, 1), (None, 3, 3), (False, 3, 3)]
)
def test_the_debounce_of_a_file_in_drop(
    inbox_dir: Path,
    writer: bool | None,
    given: float | None,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fsinbox.consumer.ingest.has_writer", lambda fd: writer)
    with Inbox(inbox_dir, codec="bytes", drop_settle=given) as inbox:
        Path(inbox_dir, "drop", "a").write_bytes(b"copied in, and closed")
        assert inbox.take() is None
        left = inbox.next_look_in()
        assert left is not None and seconds - 0.9 < left <= seconds


def test_a_file_that_is_moved_in_is_taken_at_once_whatever_the_debounce(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="bytes") as inbox:
        drop(inbox, "a")
        assert drain(inbox) == [("a", b"dropped")]


# --- what is said -------------------------------------------------------------------------------------


def test_a_consumer_says_at_its_start_what_it_ignores(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    write_list(tmp_path / "inbox", "*.log", "!4913")
    words = ("--exec", "true", "--ignore", "*.bak", "--ignore", "core", "--log-format", "json", "--drain")
    with Consumer(*words, cwd=tmp_path) as consumer:
        assert consumer.process.wait(60) == 0
    (line,) = [line for line in json_lines(consumer.log) if line["event"] == "ignoring"]
    assert line["built_in"] == list(BUILT_IN)
    assert line["file"] == ["*.log", "!4913"]
    assert line["given"] == ["*.bak", "core"]
    assert "*.log, !4913 (drop/.fsinboxignore); *.bak, core (--ignore)" in line["message"]


def test_a_consumer_does_not_say_at_each_start_what_is_always_ignored(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    words = ("consume", "--exec", "true", "--drain")
    assert "ignoring" not in run(*words, cwd=tmp_path).stderr
    assert "DEBUG ignoring in drop/: *.tmp, " in run(*words, "--verbose", cwd=tmp_path).stderr


def test_settings_may_have_patterns(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.fsinbox.consume]\nignore = ["*.bak", "core"]\n')
    (line,) = [
        line
        for line in json_lines(run("settings", "--json", "consume", cwd=tmp_path).stdout)
        if line["name"] == "consume.ignore"
    ]
    assert line["value"] == ["*.bak", "core"]
    (tmp_path / "pyproject.toml").write_text('[tool.fsinbox.consume]\nignore = ["!core"]\n')
    done = run("consume", "--exec", "true", cwd=tmp_path, status=2)
    assert "write it into drop/.fsinboxignore" in done.stderr


def test_the_doctor_and_status_say_what_is_ignored(inbox: Inbox) -> None:
    for name in ("x.part", "x.log", "4913"):
        drop(inbox, name)
    cwd = Path(inbox.path).parent
    assert "ignored   2 of these  (by the built-in list: see" in run("status", cwd=cwd).stdout
    write_list(inbox, "*.log", "odd \x1b")
    Path(inbox.path, "drop", FILE).chmod(0o644)
    done = run("status", cwd=cwd)
    assert "dropped   3  (not ingested yet)" in done.stdout
    assert "ignored   3 of these  (by the built-in list and drop/.fsinboxignore: see" in done.stdout
    assert done.stdout.endswith("OK: No elements are waiting.\n")  # no consumer runs, and none is needed
    told = json.loads(run("status", "--json", cwd=cwd).stdout)
    assert told["ignored"] == 3
    assert told["ignoring"] == {"built_in": list(BUILT_IN), "file": ["*.log", "odd \x1b"], "given": []}
    report = examine(inbox.path, 0)
    assert report.facts[-1].endswith("desktop.ini (built in); *.log, 'odd \\x1b' (drop/.fsinboxignore)")
    found = {sign.where: sign.seen for one in report.findings for sign in one.signs}
    assert found == {
        "drop/x.part": "*.part of the built-in list",
        "drop/x.log": "*.log of drop/.fsinboxignore",
        "drop/4913": "4913 of the built-in list",
    }


def test_patterns_of_a_consumer_are_named_in_the_reason(inbox: Inbox) -> None:
    ignored = Ignored(inbox.layout, check_patterns(["*.bak"]))
    assert ignored.why("x.bak") == "*.bak of --ignore"
    assert (ignored.why(".x"), ignored.why("x")) == ("hidden", "")
    with pytest.raises(BadPattern):
        check_patterns(["ok", "!x"])


# --- what it costs ------------------------------------------------------------------------------------

LOADED = """
import os, sys
from fsinbox import Inbox
with Inbox("inbox", codec="bytes", drop_settle=0) as inbox:
    inbox.add("a", b"1")
    inbox.take().ack()
    assert inbox.take() is None and inbox.wait(0) is False
    print("pathspec" in sys.modules)
    os.close(os.open("inbox/drop/b", os.O_CREAT))
    os.utime("inbox/drop/b", (1, 1))
    inbox.take()
    print("pathspec" in sys.modules)
"""


def test_where_nothing_is_in_drop_the_library_of_patterns_is_not_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


# --- producers in other languages ---------------------------------------------------------------------

SH = str(ROOT / "scripts/fsinbox-add")
PERL = str(ROOT / "examples/producers/add.pl")
NODE = str(ROOT / "examples/producers/drop.mjs")


@pytest.mark.parametrize("command", [["sh", SH, "--inbox"], ["perl", PERL]], ids=["sh", "perl"])
def test_other_producers_ignore_the_same_names(inbox: Inbox, inbox_dir: Path, command: list[str]) -> None:
    ignored = [name for name in (*PARTIAL, *LITTER, "A.PART") if name[0] != "."]
    values = [*VALUES, "scan.part\n"]
    for name in ignored + values:
        drop(inbox, name)
        subprocess.run([*command, inbox.path, name], input=b"added", check=True, timeout=60)
    assert names(inbox, "drop") == sorted(ignored)
    assert {value for _, value in drain(inbox)} == {b"added"}


@pytest.mark.parametrize("command", [["sh", SH, "--inbox"], ["node", NODE]], ids=["sh", "node"])
def test_a_drop_only_producer_refuses_a_key_that_would_be_ignored(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "inbox"
    Inbox(path, scope="network").close()
    for name in (*PARTIAL, *LITTER, "A.PART"):
        done = subprocess.run([*command, path, name], input=b"1", capture_output=True, timeout=60)
        assert done.returncode != 0, name
    for name in VALUES:
        subprocess.run([*command, path, name], input=b"1", check=True, timeout=60)
    assert sorted(os.listdir(path / "drop")) == sorted(VALUES)
    assert os.listdir(path / "tmp") == []


@pytest.mark.parametrize("command", [["sh", SH, "--inbox"], ["perl", PERL]], ids=["sh", "perl"])
def test_a_producer_that_knows_no_patterns_does_not_guess(inbox: Inbox, command: list[str]) -> None:
    """With drop/.fsinboxignore only fsinbox can tell whether what lies there is older than the new value."""
    write_list(inbox, "!4913", "*.log")
    drop(inbox, "4913")
    for key, status in (("4913", False), ("other", True)):
        done = subprocess.run([*command, inbox.path, key], input=b"1", capture_output=True, timeout=60)
        assert (done.returncode == 0) == status, done.stderr
        assert status or b"use fsinbox add" in done.stderr
    assert names(inbox, "tmp") == []
    assert dict(drain(inbox)) == {"other": b"1", "4913": b"dropped"}


@pytest.mark.parametrize("command", [["sh", SH, "--inbox"], ["perl", PERL]], ids=["sh", "perl"])
def test_a_producer_that_opens_no_subfolders_does_not_guess(inbox_dir: Path, command: list[str]) -> None:
    """Where they are ingested, only fsinbox can tell whether what lies there is older, and move it."""
    with Inbox(inbox_dir, codec="bytes", drop_settle=0) as inbox:
        (inbox_dir / "drop/a").mkdir()
        drop(inbox, "a/b")
        subprocess.run([*command, inbox.path, "a/b"], input=b"1", check=True, timeout=60)
    with Inbox(inbox_dir, codec="bytes", drop_settle=0, drop_recursive=True) as inbox:
        inbox.become_consumer()
        for key, status in (("a/b", False), ("a/c", True), ("a/.b", True)):
            done = subprocess.run([*command, inbox.path, key], input=b"1", capture_output=True, timeout=60)
            assert (done.returncode == 0) == status, done.stderr
            assert status or b"use fsinbox add" in done.stderr
        assert names(inbox, "tmp") == []
        assert dict(drain(inbox)) == {"a/b": b"dropped", "a/c": b"1", "a/.b": b"1"}


@pytest.mark.parametrize("command", [["sh", SH, "--inbox"], ["perl", PERL]], ids=["sh", "perl"])
def test_another_user_s_list_does_not_stop_them(inbox: Inbox, command: list[str]) -> None:
    of_another_user(write_list(inbox, "*"))
    drop(inbox, "a", b"older")
    subprocess.run([*command, inbox.path, "a"], input=b"newer", check=True, timeout=60)
    assert drain(inbox) == [("a", b"newer")]
