"""`fsinbox watch`: a tree is queued as it is, whatever happens to it, to the watcher, and to the events."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Consumer, command, contents, environment, keys_in, run
from test_service import Manager

from fsinbox import Inbox
from tests.usual import drain

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

SOON = ("--settle", "0")

BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Runs a program of root's that may not read everything."""


class Watching(Consumer):
    """`fsinbox watch` in the background."""

    command = "watch"

    start = 0

    def __exit__(self, *how: Any) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.end()
        super().__exit__(*how)

    def until_scanned(self) -> None:
        """Wait until it has queued all three files, and watches. It needs --verbose."""
        self.until(lambda: "scanned in" in self.log)
        self.until_queued("a", "sub/b", "sub/deep/c")
        self.start = len(self.log)

    def until_queued(self, *keys: str, what: str = "queued") -> None:
        """Wait until these keys were queued, after the beginning. It needs --verbose."""
        self.until(lambda: all(f"{what} {key!r}" in self.log[self.start :] for key in keys))

    def until_removed(self, *keys: str) -> None:
        """Wait until these keys were queued as removed. It needs --verbose."""
        self.until_queued(*keys, what="removed")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an inbox, and a tree of three files."""
    run("init", cwd=tmp_path)
    for name in ("a", "sub/b", "sub/deep/c"):
        write(tmp_path / "tree" / name, name)
    return tmp_path


def write(path: Path, text: str) -> None:
    """Write a file, and its folders if they are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def once(place: Path, *words: str | Path, status: int = 0, payload: str = "path") -> str:
    """Run `watch --once`; return its log."""
    words = words or ("tree",)
    return run(
        "watch", *words, "--once", "--payload", payload, *SOON, "--verbose", cwd=place, status=status
    ).stderr


def taken(place: Path) -> dict[str, str]:
    """Take all that waits in the inbox; return key -> payload."""
    with Inbox(place / "inbox", codec="text", durable=False) as inbox:
        return dict(drain(inbox))


def keys(place: Path) -> list[str]:
    """Take all that waits; return the keys, sorted."""
    return sorted(taken(place))


# --- what is queued -----------------------------------------------------------------------------------


def test_each_file_is_queued_once_and_again_when_it_has_changed_or_gone(place: Path) -> None:
    once(place)
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]
    once(place)
    assert keys(place) == []
    (place / "tree/a").write_text("other")
    (place / "tree/sub/b").unlink()
    write(place / "tree/new", "")
    log = once(place)
    assert keys(place) == ["a", "new", "sub/b"]
    assert "stopped: 2 queued, 1 removed, 0 skipped" in log
    once(place)
    assert keys(place) == []


def test_a_payload_says_what_has_become_of_the_file(place: Path) -> None:
    once(place, payload="json")
    path = str(place / "tree/a")
    status = os.stat(path)
    assert json.loads(taken(place)["a"]) == {
        "path": path,
        "removed": False,
        "size": 1,
        "modified": status.st_mtime_ns / 1e9,
    }
    os.unlink(path)
    once(place, payload="json")
    assert json.loads(taken(place)["a"]) == {"path": path, "removed": True}


def test_a_payload_may_be_the_path_or_the_content(place: Path) -> None:
    once(place, payload="path")
    assert taken(place)["sub/b"] == str(place / "tree/sub/b")
    (place / "tree/a").write_text("content")
    large = "x" * (3 << 20)  # goes through a stream
    write(place / "tree/large", large)
    (place / "tree/sub/b").unlink()
    once(place, payload="file")
    assert taken(place) == {"a": "content", "large": large, "sub/b": ""}


def test_a_change_that_keeps_size_and_time_is_seen(place: Path) -> None:
    once(place)
    keys(place)
    before = os.stat(place / "tree/a")
    (place / "tree/a").write_text("z")
    os.utime(place / "tree/a", ns=(before.st_atime_ns, before.st_mtime_ns))
    once(place)
    assert keys(place) == ["a"]


def test_a_time_of_any_year_is_no_obstacle(place: Path) -> None:
    os.utime(place / "tree/a", (1 << 35, 1 << 35))
    once(place, payload="json")
    assert json.loads(taken(place)["a"])["modified"] >= 1 << 32
    once(place)
    assert keys(place) == []


def test_links_and_what_is_no_file_are_left_alone(place: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/secret", "secret")
    (place / "tree/to-file").symlink_to(tmp_path / "elsewhere/secret")
    (place / "tree/to-folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(place / "tree/fifo")
    once(place, payload="file")
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]
    # A file, and a folder, that becomes a link is gone.
    (place / "tree/a").unlink()
    (place / "tree/a").symlink_to(tmp_path / "elsewhere/secret")
    shutil.rmtree(place / "tree/sub")
    (place / "tree/sub").symlink_to(tmp_path / "elsewhere")
    once(place, payload="file")
    assert taken(place) == {"a": "", "sub/b": "", "sub/deep/c": ""}


def test_names_that_are_not_text_come_as_they_are(place: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n%/x")
    write(place / "tree" / name, "")
    once(place, payload="json")
    with Inbox(place / "inbox") as inbox:
        found = dict(drain(inbox))
    assert found[name]["path"] == str(place / "tree" / name)
    (place / "tree" / name).unlink()
    once(place, payload="path")
    with Inbox(place / "inbox", codec="bytes") as inbox:
        assert drain(inbox) == [(name, os.fsencode(place / "tree" / name))]


def test_a_path_that_is_too_long_for_a_key_gets_a_shorter_one(place: Path) -> None:
    long = "/".join(["é" * 20] * 6)
    for name in (f"{long}/1", f"{long}/2"):
        write(place / "tree" / name, "")
    log = once(place)
    assert log.count("is too long for a key") == 2
    found = {path: key for key, path in taken(place).items()}
    first, second = (found[str(place / "tree" / long / name)] for name in "12")
    assert first != second and first.startswith("é" * 15) and "~" in first
    (place / "tree" / long / "1").unlink()
    once(place)
    assert keys(place) == [first]


def test_with_its_content_as_the_payload_such_a_file_is_skipped_and_said(place: Path) -> None:
    write(place / "tree" / ("x" * 201), "")
    log = once(place, payload="file", status=1)
    assert "is too long for a key: with --payload json or path" in log
    assert "3 queued, 0 removed, 1 skipped" in log
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]
    once(place)
    assert len(keys(place)) == 1


def test_the_inbox_and_the_state_in_the_tree_are_left_out(place: Path) -> None:
    write(place / "inbox/drop/.draft", "")
    once(place, ".", "--state", "states")
    assert keys(place) == ["tree/a", "tree/sub/b", "tree/sub/deep/c"]
    once(place, ".", "--state", "states")
    assert keys(place) == []


# --- patterns -----------------------------------------------------------------------------------------


def test_patterns_are_those_of_gitignore(place: Path) -> None:
    for name in ("x.py", "x.pyc", "keep.pyc", "node_modules/x.py", "sub/node_modules/x.py", "build/y.py"):
        write(place / "tree" / name, "")
    ignore = ("*.pyc", "!keep.pyc", "node_modules/", "/build", "sub/b")
    once(place, "tree", *(word for one in ignore for word in ("--ignore", one)))
    assert keys(place) == ["a", "keep.pyc", "sub/deep/c", "x.py"]
    # What is not wanted any more is as good as removed.
    once(place, "tree", "--include", "*.py", "--include", "deep/", "--ignore", "node_modules/")
    assert keys(place) == ["a", "build/y.py", "keep.pyc"]


@linux
def test_nothing_in_an_ignored_folder_wakes_it(place: Path) -> None:
    write(place / "tree/ignored/x", "")
    with Watching("tree", "--ignore", "ignored/", "--verbose", *SOON, cwd=place) as watching:
        watching.until_scanned()
        write(place / "tree/ignored/y", "")
        (place / "tree/ignored").rename(place / "tree/other")
        (place / "tree/other").rename(place / "tree/ignored")
        write(place / "tree/last", "")
        watching.until_queued("last")
    assert not [key for key in keys(place) if key.startswith("ignored")]


def test_a_wrong_pattern_is_refused(place: Path) -> None:
    log = run("watch", "tree", "--ignore", "!", cwd=place, status=2).stderr
    assert "--ignore '!' is not a pattern of gitignore(5)" in log


# --- several folders ----------------------------------------------------------------------------------


def test_of_several_folders_the_keys_begin_with_their_names(place: Path) -> None:
    write(place / "other/a", "")
    once(place, "tree", "docs=other")
    assert keys(place) == ["docs/a", "tree/a", "tree/sub/b", "tree/sub/deep/c"]
    write(place / "x=y/a", "")
    once(place, "x=y")  # a folder of that name
    assert keys(place) == ["a"]
    once(place, "z=x=y", "--state", "other-state")
    assert keys(place) == ["z/a"]


def test_folders_that_cannot_be_told_apart_are_refused(place: Path) -> None:
    write(place / "more/tree/x", "")
    for words, reason in (
        (("tree", "more/tree"), "would both begin with 'tree/'"),
        (("tree", "tree/sub"), "tree/sub lies in "),
        (("=tree",), "has no name before the '='"),
        (("inbox/drop",), "lies in "),
    ):
        log = run("watch", *words, "--once", cwd=place, status=2).stderr
        assert reason in log, log
    assert keys(place) == []


def test_keys_that_would_begin_otherwise_are_refused(place: Path) -> None:
    once(place, "tree")
    write(place / "other/x", "")
    log = once(place, "other", "tree", status=2)
    assert "began with '' so far, and now would with 'tree/'" in log
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]
    (state,) = (place / "inbox/watch").glob("tree-*.db")
    state.unlink()
    once(place, "other", "tree")
    assert keys(place) == ["other/x", "tree/a", "tree/sub/b", "tree/sub/deep/c"]


# --- while it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pytest.param("events", marks=linux), "poll"])
def test_what_happens_while_it_runs_is_queued(place: Path, how: str) -> None:
    words = ("--watch", how, "--poll-interval", "0.1", "--verbose", *SOON)
    with Watching("tree", *words, cwd=place) as watching:
        watching.until_scanned()
        keys(place)
        (place / "tree/a").write_text("other")
        watching.until_queued("a")
        write(place / "tree/new/folder/x", "")
        watching.until_queued("new/folder/x")
        write(place / "tree/new/folder/y", "")  # in a folder that was not there when it began
        watching.until_queued("new/folder/y")
        (place / "tree/sub/b").unlink()
        watching.until_removed("sub/b")
        watching.signal(signal.SIGTERM)
        watching.end()
    assert "stopped: 6 queued, 1 removed, 0 skipped" in watching.log
    assert keys(place) == ["a", "new/folder/x", "new/folder/y", "sub/b"]


@linux
def test_a_renamed_folder_is_removed_and_queued_and_watched_under_its_new_name(place: Path) -> None:
    with Watching("tree", "--verbose", *SOON, cwd=place) as watching:
        watching.until_scanned()
        keys(place)
        (place / "tree/sub").rename(place / "tree/moved")
        watching.until_removed("sub/b", "sub/deep/c")
        watching.until_queued("moved/b", "moved/deep/c")
        assert keys(place) == ["moved/b", "moved/deep/c", "sub/b", "sub/deep/c"]
        write(place / "tree/moved/deep/d", "")
        watching.until_queued("moved/deep/d")
        (place / "tree/moved").rename(place / "away")  # out of the tree
        watching.until_removed("moved/b")
        write(place / "away/deep/e", "")
        (place / "away").rename(place / "tree/back")
        watching.until_queued("back/deep/e", "back/b")
        write(place / "tree/back/deep/f", "")
        watching.until_queued("back/deep/f")
    assert not [key for key in keys(place) if "sub" in key]


@linux
def test_an_editor_that_writes_by_rename_makes_one_element(place: Path) -> None:
    with Watching("tree", "--verbose", "--settle", "0.5", cwd=place) as watching:
        watching.until_scanned()
        keys(place)
        (place / "tree/a").rename(place / "tree/a~")
        write(place / "tree/.a.swp", "")
        write(place / "tree/a", "new")
        (place / "tree/.a.swp").unlink()
        (place / "tree/a~").unlink()
        before = watching.log
        watching.until(lambda: watching.log != before)
        time.sleep(0.3)  # what is proved is that nothing else comes
        assert watching.log.removeprefix(before).count("\n") == 1
    assert taken(place).keys() == {"a"}


@linux
def test_a_file_that_changes_all_the_time_is_queued_after_max_settle(place: Path) -> None:
    words = ("--settle", "0.5", "--max-settle", "1", "--payload", "file", "--verbose")
    with Watching("tree", *words, cwd=place) as watching:
        watching.until_scanned()
        with open(place / "tree/log", "w", buffering=1) as log:
            while "queued 'log'" not in watching.log:
                print("a line", file=log)
                time.sleep(0.01)
    assert set(taken(place)["log"].splitlines()) == {"a line"}


@linux
def test_a_file_is_left_alone_until_it_lies_still(place: Path) -> None:
    with Watching("tree", "--settle", "0.4", "--verbose", cwd=place) as watching:
        watching.until_scanned()
        for number in range(8):
            (place / "tree/a").write_text("x" * number)
            time.sleep(0.1)
            assert "queued 'a'" not in watching.log[watching.start :]
        watching.until_queued("a")
        assert watching.log[watching.start :].count("queued 'a'") == 1


@linux
def test_events_that_the_kernel_dropped_are_made_up_for(place: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        most = int(file.read())
    with Watching("tree", "--verbose", *SOON, cwd=place) as watching:
        watching.until_scanned()
        watching.signal(signal.SIGSTOP)
        for number in range(most):  # two events each, of another file than the one before
            os.utime(place / "tree/a")
            os.utime(place / "tree/sub/b", (number, number))
        write(place / "tree/after/x", "")
        watching.signal(signal.SIGCONT)
        watching.until(lambda: "events were lost: rescanning" in watching.log)
        watching.until_queued("after/x")
        write(place / "tree/after/y", "")
        watching.until_queued("after/y")


def limited(place: Path, what: str, most: int) -> Watching:
    """Return `fsinbox watch` under a limit of inotify's, in a user namespace. Skips where there is none."""
    watching = Watching("tree", "--verbose", "--poll-interval", "0.2", *SOON, cwd=place)
    script = f'echo {most} >/proc/sys/user/max_inotify_{what} && exec "$@"'
    watching.before = ("unshare", "-Ur", "sh", "-c", script, "sh")
    if subprocess.run([*watching.before, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace may be made here (unshare -Ur)")
    return watching


@linux
def test_a_limit_of_watches_is_said_and_rescans_take_their_place(place: Path) -> None:
    with limited(place, "watches", 2) as watching:
        watching.until_scanned()
        write(place / "tree/sub/deep/new", "")
        watching.until_queued("sub/deep/new")
        said = "not every folder can be watched (inotify watch limit reached): rescanning every 0.2 s"
        assert watching.log.count(said) == 1
        shutil.rmtree(place / "tree/sub")
        watching.until(lambda: "all folders are watched again" in watching.log)


@linux
def test_without_any_events_rescans_take_their_place(place: Path) -> None:
    with limited(place, "instances", 0) as watching:
        watching.until_scanned()
        assert "no file system events (" in watching.log
        write(place / "tree/sub/deep/new", "")
        watching.until_queued("sub/deep/new")


@linux
def test_a_tree_that_is_gone_is_not_taken_for_an_empty_one(place: Path) -> None:
    with Watching("tree", "--verbose", "--poll-interval", "0.1", *SOON, cwd=place) as watching:
        watching.until_scanned()
        keys(place)
        (place / "tree").rename(place / "elsewhere")
        watching.until(lambda: "Nothing counts as removed" in watching.log)
        write(place / "elsewhere/b", "")
        time.sleep(0.3)
        assert keys(place) == []
        watching.signal(signal.SIGSTOP)  # so that both are noticed together
        (place / "elsewhere").rename(place / "tree")
        watching.signal(signal.SIGCONT)
        watching.until_queued("b")
        assert "is there again" in watching.log
        assert watching.log.count("Nothing counts as removed") == 1
        write(place / "tree/sub/deep/d", "")
        watching.until_queued("sub/deep/d")
    assert keys(place) == ["b", "sub/deep/d"]


@linux
def test_a_change_just_before_the_tree_is_gone_is_queued_when_it_is_back(place: Path) -> None:
    with Watching("tree", "--verbose", "--poll-interval", "0.1", "--settle", "0.3", cwd=place) as watching:
        watching.until_scanned()
        (place / "tree/a").write_text("changed")
        time.sleep(0.1)
        watching.signal(signal.SIGSTOP)  # so that both events are noticed together
        (place / "tree").rename(place / "elsewhere")
        write(place / "elsewhere/sub/b", "changed")
        watching.signal(signal.SIGCONT)
        time.sleep(0.5)
        assert watching.log[watching.start :].count("queued") == 0
        (place / "elsewhere").rename(place / "tree")
        watching.until_queued("a", "sub/b")


@linux
def test_what_is_gone_before_it_lies_still_is_not_queued(place: Path) -> None:
    with Watching("tree", "--verbose", "--settle", "0.3", cwd=place) as watching:
        watching.until_scanned()
        write(place / "tree/temporary", "")
        time.sleep(0.15)
        (place / "tree/temporary").unlink()
        write(place / "tree/last", "")
        watching.until_queued("last")
        assert "temporary" not in watching.log


def test_a_file_that_is_polled_is_left_alone_until_it_lies_still(place: Path) -> None:
    words = ("--watch", "poll", "--poll-interval", "0.1", "--settle", "0.3", "--verbose")
    with Watching("tree", *words, cwd=place) as watching:
        watching.until_scanned()
        for number in range(10):
            (place / "tree/a").write_text("x" * number)
            time.sleep(0.1)
        assert "queued 'a'" not in watching.log[watching.start :]
        watching.until_queued("a")


def test_once_says_that_the_tree_is_gone(place: Path) -> None:
    once(place)
    keys(place)
    shutil.rmtree(place / "tree")
    log = once(place, status=3)
    assert f"cannot look into {place}/tree: check the path, or mount it" in log
    assert keys(place) == []


@linux
@root
def test_a_mount_point_without_its_mount_is_not_an_empty_tree(place: Path) -> None:
    (place / "mounted").mkdir()
    script = """set -e
        mount -t tmpfs none mounted
        echo x >mounted/x; mkdir mounted/sub; echo y >mounted/sub/y
        "$@"
        umount mounted
        "$@" && exit 1
        echo z >mounted/z
        "$@"
        """
    words = command("watch", "mounted", "--once", *SOON, "--verbose")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words], cwd=place, capture_output=True, env=environment()
    )
    log = done.stderr.decode()
    assert done.returncode == 0, log
    assert "is it mounted? (If it is meant to be empty, put any file into it)" in log
    assert log.count("queued '") == 3 and log.count("removed '") == 2
    assert log.index("is it mounted?") < log.index("removed '")


@linux
@root
def test_a_folder_that_cannot_be_read_counts_for_nothing(place: Path) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv(1) takes from root what lets it read everything")

    def look(status: int, *more: str) -> str:
        words = command("watch", "tree", "--once", *SOON, "--verbose", *more)
        done = subprocess.run([*BOUND, *words], cwd=place, capture_output=True, env=environment())
        assert done.returncode == status, done.stderr
        return done.stderr.decode()

    look(0)
    keys(place)
    (place / "tree/sub").chmod(0)
    log = look(1)
    assert log.count("skipped") == 2  # in words, and in the sum
    assert f"skipped {place}/tree/sub: Permission denied: what was queued of it stays as it is" in log
    assert keys(place) == []
    (place / "tree/sub").chmod(0o700)
    (place / "tree/sub/b").chmod(0)
    assert f"skipped {place}/tree/sub/b: Permission denied" in look(1, "--payload", "file")
    (place / "tree/sub/b").chmod(0o600)
    look(0)
    assert keys(place) == ["sub/b"]


@linux
@root
def test_a_file_that_cannot_be_read_any_more_is_skipped(place: Path) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv(1) takes from root what lets it read everything")
    watching = Watching("tree", "--verbose", "--settle", "0.3", "--rescan", "1", cwd=place)
    watching.before = BOUND
    with watching:
        watching.until_scanned()
        watching.signal(signal.SIGSTOP)
        (place / "tree/sub/b").write_text("changed")
        (place / "tree/sub").chmod(0)
        watching.signal(signal.SIGCONT)
        watching.until(lambda: f"skipped {place}/tree/sub/b: Permission denied" in watching.log)
        (place / "tree/sub").chmod(0o700)
        watching.until_queued("sub/b")
        watching.start = len(watching.log)
        (place / "tree/sub/b").write_text("changed again")
        time.sleep(0.15)
        (place / "tree/sub").chmod(0)  # before it lies still
        watching.until(lambda: f"skipped {place}/tree/sub/b" in watching.log[watching.start :])
        (place / "tree/sub").chmod(0o700)
        watching.until_queued("sub/b")


@linux
@root
def test_what_cannot_be_added_now_is_added_later(place: Path) -> None:
    """The inbox is full, for a while."""
    (place / "small").mkdir()
    script = """set -e
        mount -t tmpfs -o size=256k none small
        "$PYTHON" -m fsinbox --inbox small/inbox init
        head -c 220k /dev/zero >small/ballast
        exec "$@"
        """
    words = ("--inbox", "small/inbox", "--state", "states", "--payload", "file", "--verbose", *SOON)
    write(place / "tree/large", "x" * 50_000)
    watching = Watching("tree", *words, cwd=place, PYTHON=sys.executable)
    watching.before = ("unshare", "-m", "sh", "-c", script, "sh")
    with watching:
        watching.until(lambda: "No space left on device" in watching.log)
        assert "trying again in 1 s" in watching.log
        os.unlink(f"/proc/{watching.process.pid}/root{place}/small/ballast")
        watching.until_queued("a", "large", "sub/b", "sub/deep/c")


@linux
@root
def test_once_ends_when_the_inbox_is_full(place: Path) -> None:
    (place / "small").mkdir()
    script = """set -e
        mount -t tmpfs -o size=256k none small
        "$PYTHON" -m fsinbox --inbox small/inbox init
        head -c 240k /dev/zero >small/ballast || :
        "$@"
        """
    words = command("watch", "tree", "--inbox", "small/inbox", "--state", "states", "--once", *SOON)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words],
        cwd=place,
        capture_output=True,
        env=environment(PYTHON=sys.executable),
    )
    assert done.returncode == 3
    assert b"cannot add key" in done.stderr


@linux
def test_an_inbox_with_bounds_is_filled_as_it_empties(place: Path) -> None:
    """What it has taken is not queued again, and what replaces a waiting value gets in at once."""
    run("limit", "--max-waiting", "30", cwd=place)
    for number in range(100):
        write(place / f"tree/many/{number}", "")
    with Watching("tree", "--verbose", *SOON, cwd=place) as watching:
        watching.until(lambda: "trying again in 1 s" in watching.log)
        (first, *_) = contents(place / "inbox")
        (place / "tree" / first.replace("%2F", "/")).write_text("changed")
        watching.until(lambda: watching.log.count(f"queued {first.replace('%2F', '/')!r}") == 2)
        found: list[str] = []
        while len(set(found)) < 103:
            found += keys(place)
            assert watching.process.poll() is None
            time.sleep(0.05)
        write(place / "tree/last", "")
        watching.until_queued("last")
    assert len(found) <= 103 + 30  # those of which nobody knew, at the first refusal
    assert keys(place) == ["last"]


def test_once_fills_an_inbox_with_bounds_and_goes_on_the_next_time(place: Path) -> None:
    run("limit", "--max-waiting", "2", cwd=place)
    once(place, status=6)
    assert len(contents(place / "inbox")) == 2
    once(place, status=6)  # nothing was consumed
    first = keys(place)
    once(place)
    assert sorted(first + keys(place)) == ["a", "sub/b", "sub/deep/c"]


def test_a_large_file_waits_for_room_as_well(place: Path) -> None:
    run("limit", "--max-waiting", "3", cwd=place)
    once(place)
    for name in ("large", "a"):
        (place / "tree" / name).write_bytes(b"x" * (2 << 20))
    once(place, payload="file", status=6)
    assert len(contents(place / "inbox")["a"]) == 2 << 20  # it replaces
    keys(place)
    once(place, payload="file")
    assert keys(place) == ["large"]


# --- the state ----------------------------------------------------------------------------------------


def test_one_watches_a_folder_for_an_inbox_at_a_time(place: Path) -> None:
    with Watching("tree", "--verbose", *SOON, cwd=place) as watching:
        watching.until_scanned()
        assert "another `fsinbox watch` queues this folder in this inbox" in once(place, status=4)
        watching.process.kill()
        watching.process.wait()
    once(place)  # the kernel has freed it


def test_a_damaged_state_is_set_aside_and_every_file_queued_anew(place: Path) -> None:
    once(place)
    keys(place)
    (state,) = (place / "inbox/watch").glob("*.db")
    state.write_bytes(b"no database at all" * 1000)
    log = once(place)
    assert "is damaged" in log and "every file is queued anew" in log
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]
    assert state.with_name(state.name + ".damaged").exists()
    # Damaged within: a page of rubbish.
    size = state.stat().st_size
    with state.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    assert "is damaged" in once(place)
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]


def test_a_state_that_cannot_be_used_is_said(place: Path) -> None:
    (place / "file").write_text("")
    log = once(place, "tree", "--state", "file/below", status=3)
    assert "cannot use file/below for what was queued: Not a directory" in log
    once(place)
    (state,) = (place / "inbox/watch").glob("*.db")
    state.unlink()
    state.mkdir()
    log = once(place, status=3)
    assert "unable to open database file" in log and "if you remove it, every file is queued anew" in log


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_a_link_in_place_of_the_state_is_not_followed(place: Path, tmp_path: Path, suffix: str) -> None:
    once(place)
    (state,) = (place / "inbox/watch").glob("*.db")
    state.unlink()
    state.with_name(f"{state.name}{suffix}").symlink_to(tmp_path / "elsewhere")
    assert "it is a symlink, which is not followed" in once(place, status=3)
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_in_place_of_its_folder_is_not_followed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (place / "inbox/watch").symlink_to(tmp_path / "elsewhere")
    assert "must be a real directory (not a link)" in once(place, status=3)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_state_of_another_inbox_is_begun_anew(place: Path) -> None:
    once(place, "tree", "--state", "states")
    shutil.rmtree(place / "inbox")
    log = once(place, "tree", "--state", "states", status=3)
    assert "no inbox" in log
    once(place, "tree", "--state", "states", "--create")
    assert keys(place) == ["a", "sub/b", "sub/deep/c"]


def test_the_doctor_knows_the_state(place: Path) -> None:
    once(place)
    assert "watch" not in run("doctor", cwd=place, status=None).stdout


# --- kills --------------------------------------------------------------------------------------------


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.long)])
def test_nothing_is_missed_however_often_it_is_killed(place: Path, kills: int) -> None:
    """A tree changes all the time, and the watcher is killed all the time. What its consumer knows at the end
    is what is there."""
    tree, mirror = place / "tree", dict[str, str]()
    names = [f"{folder}{number}" for folder in ("", "x/", "x/y/") for number in range(4)]
    step = 0
    with Inbox(place / "inbox", codec="text") as inbox:
        for kill in range(kills):
            with Watching("tree", "--payload", "file", *SOON, cwd=place) as watching:
                end = time.monotonic() + 0.3 + (kill * 7 % 10) / 20
                while time.monotonic() < end:
                    step += 1
                    path = tree / names[step * 5 % len(names)]
                    if step % 3:
                        write(path, f"{step}")
                    else:
                        path.unlink(missing_ok=True)
                    if step % 50 == 0 and (tree / "x/y").exists():
                        (tree / "x/y").rename(tree / f"x/z{step}")
                    mirror |= dict(drain(inbox))
                watching.process.kill()
                watching.process.wait()
        run("watch", "tree", "--payload", "file", "--once", *SOON, cwd=place)
        mirror |= dict(drain(inbox))
    there = {str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()}
    assert {key: text for key, text in mirror.items() if text} == there


RECORDING = """
import os, signal
from fsinbox.cli.commands import cli
from fsinbox.worker.tree.state import State

State.record = lambda state, changes: os.kill(os.getpid(), signal.SIGKILL)
cli(["watch", "tree", "--payload", "file", "--once", "--settle", "0", "--quiet"], standalone_mode=False)
"""


@pytest.mark.parametrize("size", [1, 2 << 20])  # many with one flush; and alone
def test_a_file_is_recorded_when_the_inbox_has_it_and_not_before(place: Path, size: int) -> None:
    shutil.rmtree(place / "tree/sub")
    (place / "tree/a").write_text("x" * size)
    done = subprocess.run([sys.executable, "-c", RECORDING], cwd=place, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert taken(place) == {"a": "x" * size}
    once(place, payload="file")
    assert taken(place) == {"a": "x" * size}  # again, rather than missed


LINE = """
import os, signal, sys
from fsinbox.cli.commands import cli
from fsinbox.worker.tree import settling

settling.TICK = 0.02
left = int(sys.argv[1])

def count(frame, event, argument):
    global left
    if "worker/tree" not in frame.f_code.co_filename:
        return None
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return count

sys.settrace(count)
cli(["watch", "tree", "--payload", "file", "--once", "--settle", "0", "--quiet"], standalone_mode=False)
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stride", [83, pytest.param(1, marks=pytest.mark.long)])
def test_nothing_is_missed_at_whatever_line_it_is_killed(place: Path, stride: int) -> None:
    mirror: dict[str, str] = {}
    line, killed = 1, True
    while killed:
        (place / "tree/a").write_text(f"changed {line}")
        (place / "tree/sub/b").rename(place / f"tree/b{line}")
        (place / f"tree/b{line}").rename(place / "tree/sub/b")
        write(place / f"tree/n{line}/new", "new")
        shutil.rmtree(place / f"tree/n{line - stride}", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", LINE, str(line)], cwd=place, env=environment(), capture_output=True
        )
        killed = done.returncode == -signal.SIGKILL
        assert killed or done.returncode == 0, done.stderr
        once(place, payload="file")
        with Inbox(place / "inbox", codec="text", durable=False) as inbox:
            mirror |= dict(drain(inbox))
        there = {
            str(path.relative_to(place / "tree")): path.read_text()
            for path in (place / "tree").rglob("*")
            if path.is_file()
        }
        assert {key: text for key, text in mirror.items() if text} == there, f"killed at line {line}"
        line += stride
    assert line > 10 * stride, line


# --- the service manager, signals, logs ---------------------------------------------------------------


@linux
def test_the_service_manager_is_told(place: Path) -> None:
    with Manager(str(place / "socket")) as manager:
        variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        with Watching("tree", *SOON, cwd=place, **variables) as watching:
            assert manager.hear("WATCHDOG=1") == ["READY=1", "STATUS=watching", "WATCHDOG=1"]
            manager.hear("STATUS=watching: 3 queued")
            for _ in range(3):
                manager.hear("WATCHDOG=1")
            (place / "tree/a").unlink()
            manager.hear("STATUS=watching: 3 queued, 1 removed")
            watching.signal(signal.SIGTERM)
            assert manager.hear("STATUS=stopping")[-2:] == [
                "STOPPING=1",
                "STATUS=stopping: 3 queued, 1 removed",
            ]
            watching.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(place: Path, number: signal.Signals) -> None:
    with Watching("tree", "--log-format", "json", "--verbose", *SOON, cwd=place) as watching:
        watching.until(lambda: '"event": "scanned"' in watching.log)
        watching.signal(number)
        watching.end()
    events = [json.loads(line)["event"] for line in watching.log.splitlines()]
    assert events[0] == "watching" and events[-1] == "stopped"


def test_no_inbox_is_made_unless_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "tree/a", "")
    run("watch", "tree", "--once", cwd=tmp_path, status=3)
    assert not (tmp_path / "inbox").exists()
    run("watch", "tree", "--once", "--create", "--quiet", cwd=tmp_path)
    assert keys_in(tmp_path / "inbox", "pending") == ["a"]
    assert list(contents(tmp_path / "inbox")) == ["a"]


def test_a_newer_state_replaces_the_one_that_waits(place: Path) -> None:
    once(place, payload="file")
    (place / "tree/a").write_text("newer")
    once(place, payload="file")
    assert contents(place / "inbox")["a"] == b"newer"
    assert len(contents(place / "inbox")) == 3


def test_its_settings_stand_in_a_file(place: Path) -> None:
    (place / "pyproject.toml").write_text('[tool.fsinbox.watch]\nignore = ["sub/"]\npayload = "path"\n')
    run("watch", "tree", "--once", cwd=place)
    assert taken(place) == {"a": str(place / "tree/a")}
    done = run("settings", "watch", cwd=place)
    assert "watch.ignore" in done.stdout and "sub/" in done.stdout


def test_the_state_is_a_table_that_sqlite_reads(place: Path) -> None:
    """docs/recipes.md shows it."""
    once(place)
    (state,) = (place / "inbox/watch").glob("*.db")
    rows = sqlite3.connect(state).execute("SELECT folder, name, size FROM files ORDER BY 1, 2").fetchall()
    assert rows == [(b"", b"a", 1), (b"sub", b"b", 5), (b"sub/deep", b"c", 10)]
