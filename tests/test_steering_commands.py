"""The commands by which people steer, as a person or a script runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pexpect
import pytest
from helpers import Consumer, command, environment, run, wait_until

from fsinbox import Inbox
from tests.usual import take

HANDLER = """
from fsinbox import Reject, TryLater
import pathlib, time
def work(key, value):
    if value == "bad":
        raise Reject("no good")
    if value == "busy":
        raise TryLater("busy")
    pathlib.Path("log").open("a").write(f"{key}={value}\\n")
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with an inbox: two elements have failed, one was laid aside, one is done, two
    wait."""
    (tmp_path / "tasks.py").write_text(HANDLER)
    with Inbox(tmp_path / "inbox", codec="text", keep_done=5) as inbox:
        for key, value in (("bad/1", "bad"), ("bad/2", "bad"), ("busy", "busy"), ("done", "good")):
            inbox.add(key, value)
            element = inbox.take()
            assert element
            if value == "bad":
                element.fail(TRACEBACK)
            elif value == "busy":
                element.nack(delay=1000)
            else:
                element.ack()
        inbox.add("a", "1")
        inbox.add("b", "2")
    return tmp_path


TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/srv/tasks.py", line 3, in work\n    raise Reject()\n'
    "Reject: no good\x1b[31m\n  For further information visit https://example.org"
)


def consume(home: Path, *words: str) -> list[str]:
    """Drain the inbox; return the lines the handler has written since."""
    (home / "log").unlink(missing_ok=True)
    run(
        "consume",
        "--handler",
        "tasks:work",
        "--codec",
        "text",
        "--drain",
        "-q",
        *words,
        cwd=home,
        status=None,
    )
    return (home / "log").read_text().splitlines() if (home / "log").exists() else []


def outcomes(text: str) -> dict[str, str]:
    return {line["key"]: line["outcome"] for line in map(json.loads, text.splitlines())}


def test_failed_lists_what_failed_and_why(home: Path) -> None:
    lines = run("failed", cwd=home).stdout.splitlines()
    assert [re.sub(r" +\ds", "", line).split() for line in lines] == [
        ["3", f"bad/{n}:", "'Reject:", "no", "good\\x1b[31m'"] for n in (1, 2)
    ]
    (one,) = map(json.loads, run("failed", "--json", "bad/2", cwd=home).stdout.splitlines())
    assert one["key"] == "bad/2"
    assert one["summary"] == "Reject: no good\x1b[31m"
    assert one["reason"].startswith("key: bad/2\nattempts: 1\n")
    assert Path(one["path"]).read_text() == "bad"
    assert "    Traceback (most recent call last):\n" in run("failed", "--traceback", cwd=home).stdout
    next((home / "inbox" / "failed").glob("*1~reason.txt")).unlink()
    assert "no reason is kept" in run("failed", "bad/1", cwd=home).stdout


def test_retry_queues_again_what_it_is_told(home: Path) -> None:
    done = run("retry", "bad/1", "nobody", "--json", cwd=home, status=1)
    assert outcomes(done.stdout) == {"bad/1": "queued", "nobody": "none"}
    assert run("ls", "--state", "waiting", cwd=home).stdout.split()[-1] == "b"
    assert run("retry", "--all", "--yes", cwd=home).stdout == "bad/2: queued\nbusy: queued\n"
    assert run("failed", cwd=home).stdout == ""
    run("add", "bad/1", "good", cwd=home)
    run("add", "busy", "good", cwd=home)
    assert "bad/1=good" in consume(home)


def test_what_a_newer_value_supersedes_stays_in_failed_until_it_is_discarded(home: Path) -> None:
    run("add", "bad/1", "new", cwd=home)
    told = run("retry", "bad/1", cwd=home, status=1)
    assert told.stdout == (
        "bad/1: left in failed/: a newer value of its key is waiting, in flight or deferred\n"
    )
    assert run("discard", "bad/1", "--yes", cwd=home).stdout == "bad/1: discarded\n"
    assert list((home / "inbox" / "failed").glob("*bad%2F1*")) == []


def test_keys_come_from_standard_input_as_lines_or_as_what_ls_prints(home: Path) -> None:
    listed = run("ls", "--state", "failed", "--json", cwd=home).stdout
    assert run("retry", "-", cwd=home, stdin=listed).stdout == "bad/1: queued\nbad/2: queued\n"
    assert run("hold", "-", cwd=home, stdin="a\n\nb\na\n").stdout == "a: on hold\nb: on hold\n"
    for wrong in ("{not json", '{"name": 1}', '{"key": 7}'):
        assert (
            "not a JSON object with a member `key`"
            in run("retry", "-", cwd=home, stdin=wrong + "\n", status=2).stderr
        )


@pytest.mark.parametrize("verb", ["retry", "requeue"])
def test_retry_does_what_is_meant_in_any_state(home: Path, verb: str) -> None:
    states = {"bad/1": "failed", "busy": "deferred", "done": "done", "a": "waiting", "b": "held"}
    run("hold", "b", cwd=home)
    with Inbox(home / "inbox", codec="text") as inbox:
        assert take(inbox).key == "a"
        told = run(verb, "a", *states, "nobody", cwd=home, status=1).stdout.splitlines()
    assert sorted(told) == [
        "a: nothing to do: it is in flight",
        "b: nothing to do: it is waiting, on hold; `fsinbox release` ends that",
        "bad/1: queued",
        "busy: queued",
        "done: queued",
        "nobody: no such element",
    ]
    again = run(verb, *states, "--json", cwd=home).stdout
    assert outcomes(again) == dict.fromkeys(states, "waiting") | {"b": "held"}
    run("release", "b", cwd=home)
    run("add", "busy", "good", cwd=home)
    run("discard", "bad/1", "--state", "waiting", "--yes", cwd=home)
    assert sorted(consume(home)) == ["a=1", "b=2", "busy=good", "done=good"]


def test_of_a_key_that_has_failed_and_waits_anew_the_failed_one_is_meant(home: Path) -> None:
    run("add", "bad/1", "new", cwd=home)
    assert outcomes(run("retry", "bad/1", "--json", cwd=home, status=1).stdout) == {"bad/1": "newer"}


def test_a_discard_of_what_is_in_another_state_says_in_which(home: Path) -> None:
    told = run("discard", "a", "busy", "nobody", "bad/*", "--yes", cwd=home, status=1).stdout.splitlines()
    assert told == [
        "a: nothing done: it is waiting; to discard it, add --state waiting",
        "bad/*: no such element (a pattern? `fsinbox failed --json 'bad/*' | fsinbox discard -` takes those)",
        "busy: nothing done: it is deferred; to discard it, add --state deferred",
        "nobody: no such element",
    ]
    with Inbox(home / "inbox", codec="text") as inbox:
        assert take(inbox).key == "a"
        told = run("discard", "a", "--yes", cwd=home, status=1).stdout.splitlines()
    assert told == ["a: nothing done: it is in flight"]
    assert outcomes(run("discard", "b", "--yes", "--json", cwd=home, status=1).stdout) == {"b": "none"}


def test_the_way_out_for_a_pattern_works(home: Path) -> None:
    done = subprocess.run(
        [*command("retry", "-")],
        cwd=home,
        env=environment(),
        input=run("failed", "--json", "bad/*", cwd=home).stdout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "bad/1: queued\nbad/2: queued\n"


def test_one_of_a_thing_is_not_called_several(home: Path) -> None:
    assert run("purge", "--state", "done", "--yes", cwd=home).stdout == "removed 1 element, 4 bytes\n"
    run("limit", "--max-waiting", "1", cwd=home)
    run("discard", "--state", "waiting", "--state", "deferred", "--all", "--yes", cwd=home)
    run("add", "one", "1", cwd=home)
    assert "1 element waits, and max_waiting is 1" in run("add", "two", "2", cwd=home, status=6).stderr
    assert run("export", "one.tar", cwd=home).stdout.startswith("exported 1 element to one.tar")


def test_a_back_off_ends_at_once(home: Path) -> None:
    assert run("requeue", "busy", cwd=home).stdout == "busy: queued\n"
    run("add", "busy", "good", cwd=home)
    assert "busy=good" in consume(home)
    run("discard", "--all", "--yes", cwd=home)
    assert run("requeue", "--all", cwd=home).stdout == "nothing to retry\n"
    assert run("requeue", "--all", "--json", cwd=home).stdout == ""


def test_what_is_done_is_played_again_and_kept(home: Path) -> None:
    assert [
        json.loads(line)["key"]
        for line in run("ls", "--state", "done", "--json", cwd=home).stdout.splitlines()
    ] == ["done"]
    assert run("replay", "done", cwd=home).stdout == "done: queued\n"
    run("discard", "--state", "deferred", "--all", "--yes", cwd=home)
    assert consume(home, "--keep-done", "3") == ["done=good", "a=1", "b=2"]
    assert len(list((home / "inbox" / "done").iterdir())) == 3
    bare = home / "bare"
    run("--inbox", str(bare), "init", cwd=home)
    assert run("--inbox", str(bare), "ls", "--state", "done", cwd=home).stdout == ""


def test_purge_removes_by_state_and_age(home: Path) -> None:
    assert run("purge", "--older-than", "1h", cwd=home).stdout == "removed 0 elements, 0 bytes\n"
    assert "cannot prompt: standard input is not a terminal. Add --yes" in (
        run("purge", cwd=home, status=2).stderr
    )
    said = json.loads(run("purge", "--yes", "--json", cwd=home).stdout)
    assert said == {"removed": 3, "bytes": 10, "left": 0}
    assert (
        run("purge", "--state", "waiting", "--state", "deferred", "--yes", cwd=home).stdout
        == "removed 3 elements, 6 bytes\n"
    )
    told = run("purge", "--older-than", "soon", cwd=home, status=2).stderr
    assert "invalid duration 'soon': use 90, 15m, 2h, 7d or 1h30m" in told


@pytest.mark.parametrize("words", [["discard", "--all"], ["purge"]], ids=" ".join)
def test_a_directory_in_failed_does_not_keep_the_rest(home: Path, words: list[str]) -> None:
    """Anybody who may drop files can have one set aside there."""
    number = min(path.name for path in (home / "inbox/failed").iterdir())[:19]
    directory = home / f"inbox/failed/{number}-0"  # sorts before all others
    directory.mkdir()
    (directory / "file").touch()
    (home / f"inbox/failed/{number}-1").mkdir()  # an empty one is removed
    told = run(*words, "--yes", cwd=home, status=1)
    assert "0: left in failed/: it is a directory with something" in told.stdout or "1 left" in told.stderr
    assert os.listdir(home / "inbox/failed") == [directory.name]
    assert os.listdir(directory) == ["file"]


def odd(folder: Path) -> None:
    """Put what is no element into a folder, under elements' names."""
    folder.mkdir(exist_ok=True)
    number = 1
    for kind, lay in {"dir": os.mkdir, "full": os.mkdir, "fifo": os.mkfifo}.items():
        lay(folder / f"{number:019d}-{kind}")
    (folder / f"{number:019d}-full/kept").touch()
    os.symlink("/etc/passwd", folder / f"{number:019d}-link")
    (folder / f"{number:019d}-why").touch()
    (folder / f"{number:019d}-why~reason.txt").mkdir()
    (folder / f"{number:019d}-why~reason.txt/kept").touch()


def test_what_is_no_file_in_failed_or_done_stops_nothing(home: Path) -> None:
    """Anybody who may drop something can have it set aside in failed/."""
    for folder in ("failed", "done"):
        odd(home / "inbox" / folder)
    checked = run("doctor", cwd=home).stdout
    assert checked.count("it is not a regular file") == 1 and "done/0000000000000000001-dir" in checked
    listed = run("failed", "--json", cwd=home).stdout.splitlines()
    assert {json.loads(line)["key"] for line in listed} >= {"dir", "full", "fifo", "link", "why", "bad/1"}
    exported = run("export", "x.tar", "--state", "failed", cwd=home, status=1)
    assert exported.stdout.startswith("exported 3 elements to x.tar; left out: ")
    told = run("retry", "--all", "--yes", "--json", cwd=home, status=1).stdout
    foreign = dict.fromkeys(("dir", "full", "fifo", "link"), "foreign")
    assert outcomes(told) == foreign | dict.fromkeys(("why", "bad/1", "bad/2", "busy"), "queued")
    told = run("replay", "--all", "--yes", "--json", cwd=home, status=1).stdout
    assert outcomes(told) == foreign | {"why": "newer", "done": "queued"}
    assert outcomes(run("retry", "fifo", "--json", cwd=home, status=1).stdout) == {"fifo": "foreign"}
    (home / "inbox/failed/0000000000000000001-why~reason.txt/kept").unlink()
    run("consume", "--exec", "true", "--keep-done", "2", "--drain", cwd=home)
    done = sorted(os.listdir(home / "inbox/done"))
    assert done[0] == "0000000000000000001-full" and len(done) == 4  # with two kept, and its reason
    told = json.loads(run("purge", "--yes", "--json", cwd=home, status=1).stdout)
    assert (told["removed"], told["left"]) == (5, 2) and told["bytes"] < 5000  # not those of what is left
    assert "2 left" in run("purge", "--yes", cwd=home, status=1).stderr
    assert run("ls", "--state", "failed", "--state", "done", cwd=home).stdout.count("full") == 2


def test_replay_does_what_retry_does_where_nothing_is_done(home: Path) -> None:
    told = run("replay", "done", "bad/1", "a", "nobody", "--json", cwd=home, status=1).stdout
    assert outcomes(told) == {"done": "queued", "bad/1": "queued", "a": "waiting", "nobody": "none"}


def test_keys_on_standard_input_cannot_be_asked_about(home: Path) -> None:
    done = run("discard", "-", cwd=home, stdin="bad/1\n", status=2)
    assert "cannot prompt: standard input has the keys. Add --yes" in done.stderr
    assert len(run("failed", cwd=home).stdout.splitlines()) == 2


def test_ctrl_c_at_a_question_is_130(home: Path) -> None:
    words = [os.fsdecode(word) for word in map(os.fspath, command("discard", "--all"))]
    asked = pexpect.spawn(
        words[0], words[1:], cwd=str(home), env=environment(), encoding="utf-8", timeout=60, use_poll=True
    )
    asked.expect_exact("[y/N]: ")
    for _ in range(60):
        asked.sendintr()
        # (Python misses one that comes just before it begins to read: a person presses it again.)
        if asked.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=1) == 0:
            break
    asked.close()
    assert asked.exitstatus == 130
    assert len(run("failed", cwd=home).stdout.splitlines()) == 2


def test_ctrl_c_while_waiting_is_130(home: Path) -> None:
    waiting = subprocess.Popen(
        command("wait", "a"), cwd=home, env=environment(), stderr=subprocess.PIPE, preexec_fn=interruptible
    )
    folder = Path(f"/proc/{waiting.pid}/fd")

    def looks() -> bool:
        try:
            return any(str(os.readlink(one)).endswith("/pending") for one in folder.iterdir())
        except FileNotFoundError:  # it has closed one just now
            return False

    wait_until(looks)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 130
    assert waiting.stderr
    assert waiting.stderr.read() == b""


def interruptible() -> None:
    """In a suite that was started in the background SIGINT is ignored, and so it is in its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("scope", ["local", "network"])
def test_wait_for_what_was_done_just_now_finds_its_trace(home: Path, scope: str) -> None:
    """A consumer may be quicker than the next command of a script: `fsinbox add k v && fsinbox wait k`."""
    run("--inbox", "other", "init", "--scope", scope, cwd=home)
    with Inbox(home / "other", codec="text") as inbox:
        inbox.add("quick", "v")
        (home / "other/drop/dropped").write_text("v")
        os.utime(home / "other/drop/dropped", (1, 1))
        while element := inbox.take(2):
            element.ack()
    run("--inbox", "other", "wait", "quick", "dropped", cwd=home)
    run("--inbox", "other", "wait", "slow", cwd=home, status=5)


@pytest.mark.parametrize("verb", ["retry", "requeue", "replay", "discard", "release"])
def test_what_means_nothing_is_refused(home: Path, verb: str) -> None:
    for words in ([], ["a", "--all"]):
        assert "name keys" in run(verb, *words, cwd=home, status=2).stderr
    assert "a key must not be empty" in run(verb, "", cwd=home, status=2).stderr
    assert run(verb, "--all", "--inbox", "elsewhere", "--yes", cwd=home, status=3).stderr.startswith(
        "fsinbox: there is no inbox at"
    )


def test_a_person_is_asked_before_anything_is_lost(home: Path) -> None:
    words = [os.fsdecode(word) for word in map(os.fspath, command("discard", "--all"))]
    refused = pexpect.spawn(
        words[0], words[1:], cwd=str(home), env=environment(), encoding="utf-8", timeout=60, use_poll=True
    )
    refused.expect_exact(f"Discard 2 elements in failed of {home}/inbox? [y/N]: ")
    refused.sendline("n")
    refused.expect("Aborted")
    refused.expect(pexpect.EOF)
    refused.close()
    assert refused.exitstatus == 1
    assert len(run("failed", cwd=home).stdout.splitlines()) == 2
    agreed = pexpect.spawn(
        words[0], words[1:], cwd=str(home), env=environment(), encoding="utf-8", timeout=60, use_poll=True
    )
    agreed.expect_exact("[y/N]: ")
    agreed.sendline("y")
    agreed.expect_exact("bad/1: discarded")
    agreed.expect(pexpect.EOF)
    assert run("failed", cwd=home).stdout == ""


def test_long_work_shows_how_far_it_is_on_a_terminal(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", codec="text", durable=False) as inbox:
        inbox.add_many((f"{n}", "v") for n in range(250))
    for words, label in (
        (["discard", "--state", "waiting", "--all", "--yes"], "discard"),
        (["export", "all.tar"], "exporting"),
        (["import", "--create", "all.tar", "--inbox", "other"], "importing"),
    ):
        if words[0] == "export":
            with Inbox(tmp_path / "inbox", codec="text", durable=False) as inbox:
                inbox.add_many((f"{n}", "v") for n in range(250))
        line = [os.fsdecode(word) for word in map(os.fspath, command(*words))]
        child = pexpect.spawn(
            line[0],
            line[1:],
            cwd=str(tmp_path),
            env=environment(TERM="xterm"),
            encoding="utf-8",
            timeout=60,
            use_poll=True,
        )
        child.expect_exact(label)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


# --- beside a running consumer ---


def test_hold_release_pause_and_resume_steer_a_running_consumer(home: Path) -> None:
    log = home / "log"
    with Consumer("--handler", "tasks:work", "--codec", "text", cwd=home):
        wait_until(lambda: log.exists() and "b=2" in log.read_text())
        run("hold", "k", cwd=home)
        assert run("hold", cwd=home).stdout == "k\n"
        assert json.loads(run("hold", "--json", cwd=home).stdout) == {"key": "k"}
        run("add", "k", "held", cwd=home)
        run("add", "l", "free", cwd=home)
        wait_until(lambda: "l=free" in log.read_text())
        assert "k=held" not in log.read_text()
        assert run("release", "k", "x", cwd=home, status=1).stdout == "k: released\nx: was not on hold\n"
        wait_until(lambda: "k=held" in log.read_text())
        assert run("pause", cwd=home).stdout == f"paused {home}/inbox: `fsinbox resume` ends it\n"
        run("add", "m", "paused", cwd=home)
        assert run("wait", "m", "--timeout", "0.3", cwd=home, status=124).stderr == (
            "fsinbox: timeout expired: 1 not done: m\n"
        )
        assert json.loads(run("resume", "--json", cwd=home).stdout) == {"paused": False, "was_paused": True}
        run("wait", "m", cwd=home)
        assert "m=paused" in log.read_text()
    assert run("resume", cwd=home).stdout.endswith("was not paused\n")
    paused = json.loads(run("pause", "--for", "2h", "--json", cwd=home).stdout)
    assert paused["paused"]
    assert paused["until"]
    assert consume(home) == []  # a drain does not wait for people
    assert " until " in run("pause", "--for", "90", cwd=home).stdout


def test_release_all_and_keys_as_json(home: Path) -> None:
    assert outcomes(run("hold", "a", "b", "--json", cwd=home).stdout) == {"a": "held", "b": "held"}
    assert outcomes(run("release", "--all", "--yes", "--json", cwd=home).stdout) == {
        "a": "released",
        "b": "released",
    }
    assert run("release", "--all", cwd=home).stdout == "nothing to release\n"
    assert run("release", "--all", "--json", cwd=home).stdout == ""


def test_a_retry_wakes_an_idle_consumer(home: Path) -> None:
    log = home / "log"
    with Consumer("--handler", "tasks:work", "--codec", "text", cwd=home):
        wait_until(lambda: log.exists() and "b=2" in log.read_text())
        next((home / "inbox" / "failed").glob("*bad%2F1")).write_text("mended")
        began = time.monotonic()
        run("retry", "bad/1", cwd=home)
        wait_until(lambda: "bad/1=mended" in log.read_text())
        assert time.monotonic() - began < 20  # not the rescan


def test_wait_tells_what_became_of_a_key(home: Path) -> None:
    told = run("wait", "done", "never-added", cwd=home, status=5)
    assert told.stderr.startswith(
        f"fsinbox: no trace of never-added in {home}/inbox: never added, or done long"
    )
    said = json.loads(run("wait", "never-added", "--json", cwd=home, status=5).stdout)
    assert said == {"done": False, "unknown": ["never-added"]}
    run("wait", "done", cwd=home)
    told = run("wait", "bad/1", "--json", cwd=home, status=1)
    assert json.loads(told.stdout) == {"done": True, "failed": ["bad/1"]}
    assert told.stderr == "fsinbox: failed: bad/1: `fsinbox failed` says why\n"
    told = run("wait", "--timeout", "0", "--json", cwd=home, status=124)
    assert json.loads(told.stdout) == {"done": False, "left": ["a", "b", "busy"]}
    (home / "inbox" / "drop" / "fresh").write_text("good")
    assert "4 not done: a, b, busy, ..." in run("wait", "--timeout", "0", cwd=home, status=124).stderr
    waiting = subprocess.Popen(
        command("wait"), cwd=home, env=environment(), stdout=subprocess.PIPE, text=True
    )
    run("discard", "--state", "deferred", "--all", "--yes", cwd=home)
    assert waiting.poll() is None
    assert sorted(consume(home, "--drop-settle", "0")) == ["a=1", "b=2", "fresh=good"]
    assert waiting.wait(60) == 0


# --- what is gone before it is looked at ---


def test_what_ends_while_it_is_listed_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    import fsinbox.operate.steering
    from fsinbox.cli.commands import cli

    monkeypatch.chdir(home)
    monkeypatch.setattr(fsinbox.operate.steering, "size_and_time", lambda layout, row: None)
    assert CliRunner().invoke(cli, ["failed"]).output == ""
    assert CliRunner().invoke(cli, ["purge", "--yes"]).output == "removed 0 elements, 0 bytes\n"
    monkeypatch.setattr(fsinbox.operate.steering.Steering, "discard", lambda self, row: "gone")
    assert "bad/1: not there any more" in CliRunner().invoke(cli, ["discard", "--all", "--yes"]).output
