"""Proves that scripts/fsinbox-add speaks the same protocol as Inbox.add: names, places, numbers, order of
system calls."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fsinbox import Inbox
from fsinbox.store.boot import boot_tag
from fsinbox.store.lines import HEADER, LINE, header_line, read_header
from fsinbox.store.names import encode_key

SCRIPT = Path(__file__).parent.parent / "scripts" / "fsinbox-add"

KEYS = [
    "plain",
    "a.b-c_d@e+f=g,h",
    ".hidden",
    "..",
    "../../etc/passwd",
    "with space",
    "tab\tand\nnewline\n",
    "quote'\"`$(touch owned)\\",
    "*?[a]",
    "100%",
    "%41",
    "-",
    "--not-durable",
    "ключ",
    "\udcff\udcfe",
    "x" * 200,
]


def shell(inbox: Path, *words: str | bytes, value: bytes = b"", status: int = 0) -> str:
    """Run fsinbox-add on an inbox; return what it wrote to standard error."""
    command = [SCRIPT, "--inbox", inbox, *words]
    done = subprocess.run(command, input=value, capture_output=True, timeout=30)
    assert done.returncode == status, done.stderr.decode()
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.fixture
def inbox(inbox_dir: Path):
    with Inbox(inbox_dir, codec="bytes") as opened:
        yield opened


def waiting(inbox: Inbox) -> list[tuple[str, bytes]]:
    return [(element.key, element.data) for element in inbox]


def header(inbox_dir: Path) -> tuple[int, str, int]:
    """Return (last number, tag, lines) of the index."""
    with (inbox_dir / "index").open("rb") as file:
        return read_header(file.read(HEADER))


def age(inbox_dir: Path) -> None:
    """Make the index one of an earlier boot."""
    with (inbox_dir / "index").open("r+b") as file:
        last, _, lines = read_header(file.read(HEADER))
        file.seek(0)
        file.write(header_line(last, "00000000", lines))


def lines(inbox_dir: Path) -> dict[int, bytes]:
    """Return the lines of the table that are not blank, by their places."""
    table = (inbox_dir / "index").read_bytes()[HEADER:]
    found = {at // LINE: table[at : at + LINE] for at in range(0, len(table), LINE)}
    return {at: line for at, line in found.items() if line.strip(b"\0")}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_becomes_the_same_file_name_as_in_python(inbox: Inbox, inbox_dir: Path, key: str) -> None:
    inbox.add("other", b"")  # so there is a table
    shell(inbox_dir, "--", os.fsencode(key), "v")
    assert waiting(inbox)[1:] == [(key, b"v")]
    assert os.listdir(inbox_dir / "pending") == [
        name for name in os.listdir(inbox_dir / "pending") if name[20:] in ("other", encode_key(key))
    ]
    written = lines(inbox_dir)
    assert inbox.add(key, b"w") == "replaced"
    assert lines(inbox_dir) == written
    shell(inbox_dir, "--", os.fsencode(key), "x")
    assert waiting(inbox)[1:] == [(key, b"x")]


@pytest.mark.parametrize("key", ["", "x" * 201, "é" * 34])
def test_what_cannot_be_a_key_is_refused(inbox: Inbox, inbox_dir: Path, key: str) -> None:
    assert "key" in shell(inbox_dir, "--", key, "v", status=2)
    assert waiting(inbox) == []


@pytest.mark.parametrize("payload", [b"", b"\0\xff\n\n", b"x" * (1 << 20)], ids=["empty", "binary", "1 MiB"])
def test_the_value_is_stored_byte_for_byte_wherever_it_comes_from(
    inbox: Inbox, inbox_dir: Path, tmp_path: Path, payload: bytes
) -> None:
    (tmp_path / "file").write_bytes(payload)
    shell(inbox_dir, "input", value=payload)
    shell(inbox_dir, "dash", "-", value=payload)
    shell(inbox_dir, "--file", str(tmp_path / "file"), "file")
    assert waiting(inbox) == [("input", payload), ("dash", payload), ("file", payload)]
    assert os.listdir(inbox_dir / "tmp") == []
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (inbox_dir / "pending").iterdir())


def test_a_newer_value_replaces_the_waiting_one_and_keeps_its_place(inbox: Inbox, inbox_dir: Path) -> None:
    shell(inbox_dir, "a", "1")
    inbox.add("b", b"1")
    shell(inbox_dir, "b", "2")
    shell(inbox_dir, "a", "2")
    inbox.add("a", b"3")
    assert waiting(inbox) == [("a", b"3"), ("b", b"2")]


def test_a_key_that_is_out_is_queued_anew(inbox: Inbox, inbox_dir: Path) -> None:
    inbox.add("a", b"1")
    element = inbox.take()
    assert element
    shell(inbox_dir, "a", "2")
    assert element.superseded()
    assert element.nack() is False
    again = inbox.take()
    assert again and again.data == b"2"


def test_a_value_that_was_put_back_is_superseded_in_its_place(inbox: Inbox, inbox_dir: Path) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    inbox.take()
    inbox.rollback()
    shell(inbox_dir, "a", "2")
    taken = inbox.take()
    assert taken and (taken.key, taken.data) == ("a", b"2")
    inbox.commit()
    taken = inbox.take()
    assert taken and taken.key == "b"


def test_without_a_table_each_value_gets_a_number_until_python_makes_one(
    inbox: Inbox, inbox_dir: Path
) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    age(inbox_dir)
    shell(inbox_dir, "b", "2")
    shell(inbox_dir, "b", "3")
    last, tag, length = header(inbox_dir)
    assert (tag, length) == (boot_tag(), 0)
    assert [name[20:] for name in sorted(os.listdir(inbox_dir / "pending"))] == ["a", "b", "b", "b"]
    assert inbox.add("b", b"4") == "new"  # (a key at several places is not known until they are coalesced)
    assert header(inbox_dir)[0] > last
    assert header(inbox_dir)[1:] == (boot_tag(), 4096)
    for value in (b"1", b"4"):
        taken = inbox.take()
        assert taken and taken.data == value
        inbox.commit()
    assert inbox.take() is None


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"garbage\n",
        b"\0" * 5000,
        header_line(1, "00000000", 0),
        header_line(1, boot_tag(), 4095),
        header_line(9 * 10**18, boot_tag(), 0),
        header_line(1, boot_tag(), 0)[:-1],
        None,
    ],
    ids=["empty", "garbage", "zeros", "old boot", "odd", "absurd", "cut", "lost"],
)
def test_numbers_go_on_above_every_one_in_use(inbox: Inbox, inbox_dir: Path, state: bytes | None) -> None:
    """Also if the clock has come back wrong: the highest number in use is an hour ahead of it here."""
    inbox.add("a", b"1")
    (name,) = os.listdir(inbox_dir / "pending")
    highest = int(name[:19]) + 3600 * 10**9
    os.rename(inbox_dir / "pending" / name, inbox_dir / "failed" / f"{highest}-a")
    (inbox_dir / "pending" / "9999999999999999999-forged").write_text("x")
    (inbox_dir / "pending" / f"{highest + 30 * 86400 * 10**9}-careless").write_text("x")
    if state is None:
        (inbox_dir / "index").unlink()
    else:
        (inbox_dir / "index").write_bytes(state)
    shell(inbox_dir, "b", "1")
    shell(inbox_dir, "c", "1")
    numbers = sorted(int(name[:19]) for name in os.listdir(inbox_dir / "pending"))[:2]
    assert highest < numbers[0] < numbers[1] < highest + 10**9
    assert inbox.add("d", b"1") == "new"


@pytest.mark.parametrize("folder", ["inflight", "deferred"])
def test_what_the_consumer_holds_is_believed_whatever_the_clock_says(
    inbox: Inbox, inbox_dir: Path, folder: str
) -> None:
    ahead = time.time_ns() + 365 * 86400 * 10**9
    name = f"{ahead}-a" if folder == "inflight" else f"{ahead + 5}-{ahead}-a"
    (inbox_dir / folder / name).write_text("1")
    shell(inbox_dir, "a", "2")
    assert [int(name[:19]) for name in os.listdir(inbox_dir / "pending")] == [ahead + 1]


def test_a_line_is_believed_only_if_its_file_is_there(inbox: Inbox, inbox_dir: Path) -> None:
    """Lines that are torn, another key's, or of what was taken, mislead nobody."""
    inbox.add("a", b"1")
    ((at, line),) = lines(inbox_dir).items()
    inbox.take()
    with (inbox_dir / "index").open("r+b") as file:
        file.seek(HEADER + (at + 1) * LINE)
        file.write(
            line[:11] + b"0" * 18 + b"7 \n" + line[:20] + b"\0" * 12 + b"nonsense, and no end of a line  "
        )
    shell(inbox_dir, "a", "2")
    first, second = sorted(
        int(name[:19]) for folder in ("inflight", "pending") for name in os.listdir(inbox_dir / folder)
    )
    assert first < second, "not where nothing waits any more"
    assert os.listdir(inbox_dir / "pending") == [f"{second}-a"]
    assert line[:11] + b"%019d \n" % second in lines(inbox_dir).values()
    assert first == int(line[11:30])


def test_a_full_bucket_costs_no_more_than_a_second_place(inbox: Inbox, inbox_dir: Path) -> None:
    inbox.add("a", b"1")
    with (inbox_dir / "index").open("r+b") as file:
        file.seek(HEADER)
        file.write(b"".join(b"%010d %019d \n" % (at + 1, at + 1) for at in range(4096)))
    shell(inbox_dir, "a", "2")
    shell(inbox_dir, "b", "1")
    assert sorted(name[20:] for name in os.listdir(inbox_dir / "pending")) == ["a", "a", "b"]
    taken = inbox.take()
    assert taken and (taken.key, taken.data) == ("a", b"2")
    assert inbox.add("b", b"2") == "replaced"


def test_a_file_shorter_than_its_header_says_has_no_table(inbox: Inbox, inbox_dir: Path) -> None:
    inbox.add("a", b"1")
    os.truncate(inbox_dir / "index", HEADER + 500)
    shell(inbox_dir, "a", "2")
    assert header(inbox_dir)[2] == 0
    assert inbox.add("a", b"3") == "new"  # (it is at two places now)
    taken = inbox.take()
    assert taken and taken.data == b"3"


def test_a_finished_drop_of_its_key_is_older(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "draft").write_text("dropped")
    os.utime(tmp_path / "draft", (1, 1))
    os.rename(tmp_path / "draft", inbox_dir / "drop" / "a")
    shell(inbox_dir, "a", "added")
    assert waiting(inbox) == [("a", b"added")]
    assert os.listdir(inbox_dir / "drop") == []


@pytest.mark.parametrize("then", ["another comes", "nothing comes", "it stays"])
def test_a_drop_that_is_ingested_before_its_flush_is_no_error(
    inbox: Inbox, inbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """But that the flush of what lies there fails, is one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "another").write_bytes(b"another")
    steps = {
        "another comes": f"mv drop/k ../x; {shutil.which('sync')} drop/k; mv {tmp_path}/another drop/k",
        "nothing comes": f"mv drop/k ../x; {shutil.which('sync')} drop/k",
        "it stays": "false",
    }
    (programs / "sync").write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/been ] && exec {shutil.which("sync")} "$@"\n'
        f"true >{tmp_path}/been; {steps[then]}; exit 1\n"
    )
    (programs / "sync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "k").write_bytes(b"dropped")
    os.rename(tmp_path / "k", inbox_dir / "drop" / "k")
    refused = then == "it stays"
    said = shell(inbox_dir, "--not-durable", "k", value=b"newest", status=3 if refused else 0)
    assert ("cannot flush drop/k" in said) == refused
    assert waiting(inbox) == ([] if refused else [("k", b"newest")])
    assert os.listdir(inbox_dir / "drop") == (["k"] if refused else [])


@pytest.mark.parametrize("is_left_alone", [True, False])
def test_a_drop_whose_times_do_not_tell_is_looked_at_again(
    inbox: Inbox, inbox_dir: Path, is_left_alone: bool
) -> None:
    """It was written and renamed within a tick of the clock; or it is still being written."""
    drop = inbox_dir / "drop" / "a"
    drop.write_text("dropped")
    later = drop.stat().st_ctime_ns + 10**15
    os.utime(drop, ns=(later, later))
    adding = subprocess.Popen([SCRIPT, "--inbox", inbox_dir, "a", "added"])
    if not is_left_alone:
        time.sleep(0.3)
        drop.write_text("dropped, and written on")
        os.utime(drop, ns=(later, later))
    assert adding.wait(30) == 0
    assert waiting(inbox) == [("a", b"added")]
    assert drop.exists() is not is_left_alone


@pytest.mark.parametrize("what", ["link", "dangling", "hard link", "fifo", "folder"])
def test_an_index_that_is_something_else_is_refused(
    inbox: Inbox, inbox_dir: Path, tmp_path: Path, what: str
) -> None:
    index, outside = inbox_dir / "index", tmp_path / "outside"
    index.unlink()
    outside.write_text("mine\n")
    if what == "link":
        index.symlink_to(outside)
    elif what == "dangling":
        index.symlink_to(tmp_path / "nothing")
    elif what == "hard link":
        os.link(outside, index)
    elif what == "fifo":
        os.mkfifo(index)
    else:
        index.mkdir()
    assert "index" in shell(inbox_dir, "a", "1", status=3)
    assert outside.read_text() == "mine\n"
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(inbox_dir / "tmp") == os.listdir(inbox_dir / "pending") == []


def test_it_waits_for_the_lock_and_does_not_trust_one_on_a_removed_file(
    inbox: Inbox, inbox_dir: Path
) -> None:
    inbox.add("b", b"1")
    with (inbox_dir / "index").open() as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        adding = subprocess.Popen([SCRIPT, "--inbox", inbox_dir, "a", "1"])
        time.sleep(0.3)
        assert [name[20:] for name in os.listdir(inbox_dir / "pending")] == ["b"]
        (inbox_dir / "index").unlink()
        with (inbox_dir / "index").open("w") as new:
            fcntl.flock(new, fcntl.LOCK_EX)
            fcntl.flock(old, fcntl.LOCK_UN)
            time.sleep(0.3)
            assert adding.poll() is None
    assert adding.wait(30) == 0
    assert waiting(inbox) == [("b", b"1"), ("a", b"1")]


def test_an_inbox_that_cannot_be_used_is_refused(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    assert "fsinbox init" in shell(tmp_path / "nothing", "a", "1", status=3)
    assert "not an inbox" in shell(tmp_path, "a", "1", status=3)
    outside = tmp_path / "outside"
    (inbox_dir / "pending").rename(outside)
    (inbox_dir / "pending").symlink_to(outside)
    assert "refused" in shell(inbox_dir, "a", "1", status=3)
    assert os.listdir(outside) == []
    (inbox_dir / "pending").unlink()
    outside.rename(inbox_dir / "pending")
    (inbox_dir / "format").write_text("fsinbox 3 local\n")
    assert "format 3" in shell(inbox_dir, "a", "1", status=3)
    assert os.listdir(inbox_dir / "tmp") == []


@pytest.mark.parametrize(
    "words", [[], ["a", "b", "c"], ["--bogus", "a"], ["--inbox"], ["--file", "x", "a", "b"]]
)
def test_usage_errors(inbox: Inbox, inbox_dir: Path, words: list[str]) -> None:
    assert "usage" in shell(inbox_dir, *words, status=2)


@pytest.mark.parametrize("option", ["--if-waiting", "--not-before", "--timeout"])
def test_an_option_that_only_fsinbox_add_has_is_said_to_be(
    inbox: Inbox, inbox_dir: Path, option: str
) -> None:
    assert f"only fsinbox add has {option}" in shell(inbox_dir, option, "keep", "k", "v", status=2)


def test_the_environment_names_the_inbox(inbox: Inbox, inbox_dir: Path) -> None:
    environment = os.environ | {"FSINBOX_DIR": str(inbox_dir)}
    subprocess.run([SCRIPT, "a", "1"], env=environment, check=True)
    environment.pop("FSINBOX_DIR")
    subprocess.run([SCRIPT, "b", "1"], env=environment, cwd=inbox_dir.parent, check=True)
    subprocess.run([SCRIPT, "c", "1", "--inbox", inbox_dir], env=environment, check=True)
    assert waiting(inbox) == [("a", b"1"), ("b", b"1"), ("c", b"1")]


def test_a_shared_inbox_gets_shared_files(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox", shared=True).close()
    shell(tmp_path / "inbox", "a", "1")
    (path,) = (tmp_path / "inbox" / "pending").iterdir()
    assert path.stat().st_mode & 0o777 == 0o660


def test_many_at_once_give_each_key_one_number_and_lose_nothing(inbox: Inbox, inbox_dir: Path) -> None:
    """Six shells and a Python thread, each with a key of its own and one that all share."""
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            for number in range(6):
                shell(inbox_dir, name, str(number))
                shell(inbox_dir, "shared", f"{name}-{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"sh{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for number in range(200):
        inbox.add("python", str(number).encode())
        inbox.add("shared", f"python-{number}".encode())
    for thread in threads:
        thread.join()
    assert not failures
    found = dict(waiting(inbox))
    assert {key: value for key, value in found.items() if key != "shared"} == {
        "python": b"199",
        **{f"sh{index}": b"5" for index in range(6)},
    }
    assert found["shared"].endswith(b"-5") or found["shared"] == b"python-199"
    numbers = [int(name[:19]) for name in os.listdir(inbox_dir / "pending")]
    assert len(set(numbers)) == len(numbers)
    assert os.listdir(inbox_dir / "tmp") == []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    "words", [["a", "1"], ["a"], ["--delay", "60", "a", "1"], ["--delay", "60", "a"]], ids=str
)
def test_what_is_named_is_flushed_first_and_the_name_before_it_returns(
    inbox: Inbox, inbox_dir: Path, tmp_path: Path, words: list[str]
) -> None:
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        "trace=fsync,utimensat,rename,renameat,renameat2",
        "-o",
        trace,
    ]
    done = subprocess.run([*command, SCRIPT, "--inbox", inbox_dir, *words], input=b"1", capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [
        line.split(None, 1)[1] for line in trace.read_text().splitlines() if line.rstrip().endswith("= 0")
    ]
    kinds = [
        "mark"
        if "utimensat" in call
        else "flush value"
        if "/tmp/sh." in call and "fsync" in call
        else "publish"
        if "rename" in call
        else "flush name"
        if "/pending>" in call
        else "other"
        for call in calls
    ]
    marked = ["mark"] if "--delay" in words else []
    assert kinds == [*marked, "flush value", "publish", "flush name"]


@pytest.mark.parametrize("words", [["a", "1"], ["a"]], ids=str)
def test_a_value_for_later(inbox: Inbox, inbox_dir: Path, words: list[str]) -> None:
    before = time.time()
    shell(inbox_dir, "--delay", "3600", *words, value=b"1")
    shell(inbox_dir, "b", "2")
    (first, second) = sorted(os.listdir(inbox_dir / "pending"))
    assert int(second[:19]) > int(first[:19]) > before * 1e9 - 1e9
    assert int(second[:19]) < (time.time() + 60) * 1e9  # its number is not of the time that it is for
    status = os.stat(inbox_dir / "pending" / first)
    assert before + 3599 <= status.st_mtime <= time.time() + 3600
    element = inbox.take()
    assert element
    assert element.key == "b"
    element.ack()
    assert inbox.take() is None
    assert os.listdir(inbox_dir / "deferred")[0][20:] == first


@pytest.mark.parametrize("delay", ["-1", "1.5", "soon", "007", "315360001", "99999999999999999999"])
def test_a_delay_that_is_none_is_refused(inbox: Inbox, inbox_dir: Path, delay: str) -> None:
    assert "--delay takes whole seconds" in shell(inbox_dir, "--delay", delay, "a", "1", status=2)
    assert os.listdir(inbox_dir / "tmp") == []


def test_a_file_system_that_keeps_no_mark_is_told_of(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "chmod").write_text("#!/bin/sh\n")
    (tmp_path / "chmod").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [SCRIPT, "--inbox", inbox_dir, "--delay", "60", "a", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert "cannot mark the value as one for later: the value was not queued" in done.stderr
    assert waiting(inbox) == []
    assert os.listdir(inbox_dir / "tmp") == []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_it_starts_no_more_processes_than_it_needs(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    """They are its time: 8 with its own shell for a new key, 7 for one that waits."""
    inbox.add("other", b"")
    for most in (8, 7):
        strace = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", tmp_path / "trace"]
        done = subprocess.run([*strace, SCRIPT, "--inbox", inbox_dir, "a", "1"], capture_output=True)
        if b"ptrace" in done.stderr:
            pytest.skip("strace may not trace here")
        # (Which file system it is must be asked where its device number does not tell.)
        started = [
            line
            for line in (tmp_path / "trace").read_text().splitlines()
            if "execve(" in line and '"-f"' not in line
        ]
        assert len([line for line in started if line.endswith("= 0")]) <= most, started


def test_it_can_be_copied_alone(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copy(SCRIPT, tmp_path / "add")
    subprocess.run(
        ["env", "-i", "PATH=/usr/bin:/bin", "sh", copy, "--inbox", inbox_dir, "a", "1"], check=True
    )
    assert waiting(inbox) == [("a", b"1")]
