"""Proves that scripts/fsinbox-add speaks the same protocol as Inbox.add: names, places, numbers, order of system calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fsinbox import Inbox
from fsinbox.names import encode_key

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


def age_hints(inbox_dir: Path) -> None:
    """Make every hint one of an earlier boot."""
    for hint in (inbox_dir / "keys").iterdir():
        target = os.readlink(hint).partition(".")[0] + ".00000000"
        hint.unlink()
        hint.symlink_to(target)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_becomes_the_same_file_name_as_in_python(inbox: Inbox, inbox_dir: Path, key: str) -> None:
    shell(inbox_dir, "--", os.fsencode(key), "v")
    assert waiting(inbox) == [(key, b"v")]
    assert os.listdir(inbox_dir / "keys") == [encode_key(key)]
    assert inbox.add(key, b"w") == "replaced"


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


def test_a_hint_of_an_earlier_boot_counts_only_if_its_element_is_there(inbox: Inbox, inbox_dir: Path) -> None:
    for key in "ab":
        inbox.add(key, b"1")
    age_hints(inbox_dir)
    (inbox_dir / "pending").joinpath(os.readlink(inbox_dir / "keys" / "a").partition(".")[0] + "-a").unlink()
    shell(inbox_dir, "b", "2")
    shell(inbox_dir, "a", "2")
    assert waiting(inbox) == [("b", b"2"), ("a", b"2")]


@pytest.mark.parametrize(
    "state", ["", "garbage\n", "0000000000000000001 00000000\n", None], ids=["empty", "garbage", "old boot", "lost"]
)
def test_numbers_go_on_above_every_one_in_use(inbox: Inbox, inbox_dir: Path, state: str | None) -> None:
    """Also if the clock has come back wrong: the highest number in use is an hour ahead of it here."""
    inbox.add("a", b"1")
    (name,) = os.listdir(inbox_dir / "pending")
    highest = int(name[:19]) + 3600 * 10**9
    os.rename(inbox_dir / "pending" / name, inbox_dir / "failed" / f"{highest}-a")
    (inbox_dir / "pending" / "9999999999999999999-forged").write_text("x")
    if state is None:
        (inbox_dir / "sequence").unlink()
    else:
        (inbox_dir / "sequence").write_text(state)
    shell(inbox_dir, "b", "1")
    shell(inbox_dir, "c", "1")
    numbers = sorted(int(name[:19]) for name in os.listdir(inbox_dir / "pending"))[:2]
    assert highest < numbers[0] < numbers[1] < highest + 10**9
    assert inbox.add("d", b"1") == "new"


def test_a_key_with_two_places_after_a_power_cut_gets_a_new_number(inbox: Inbox, inbox_dir: Path) -> None:
    inbox.add("a", b"1")
    (name,) = os.listdir(inbox_dir / "pending")
    (inbox_dir / "pending" / f"{int(name[:19]) + 1}-a").write_bytes(b"2")
    age_hints(inbox_dir)
    (inbox_dir / "sequence").write_text("0000000000000000001 00000000\n")
    shell(inbox_dir, "a", "3")
    assert waiting(inbox) == [("a", b"3")]
    taken = inbox.take()
    assert taken and taken.data == b"3"
    inbox.commit()
    assert inbox.take() is None


def test_a_finished_drop_of_its_key_is_older(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "draft").write_text("dropped")
    os.utime(tmp_path / "draft", (1, 1))
    os.rename(tmp_path / "draft", inbox_dir / "drop" / "a")
    shell(inbox_dir, "a", "added")
    assert waiting(inbox) == [("a", b"added")]
    assert os.listdir(inbox_dir / "drop") == []


def test_an_inbox_that_cannot_be_used_is_refused(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    assert "fsinbox init" in shell(tmp_path / "nothing", "a", "1", status=3)
    assert "not an inbox" in shell(tmp_path, "a", "1", status=3)
    outside = tmp_path / "outside"
    (inbox_dir / "pending").rename(outside)
    (inbox_dir / "pending").symlink_to(outside)
    assert "refused" in shell(inbox_dir, "a", "1", status=3)
    assert os.listdir(outside) == []
    (inbox_dir / "format").write_text("fsinbox 2 local\n")
    assert "format 2" in shell(inbox_dir, "a", "1", status=3)


@pytest.mark.parametrize("words", [[], ["a", "b", "c"], ["--bogus", "a"], ["--inbox"], ["--file", "x", "a", "b"]])
def test_usage_errors(inbox: Inbox, inbox_dir: Path, words: list[str]) -> None:
    assert "usage" in shell(inbox_dir, *words, status=2)


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
def test_what_is_named_is_flushed_first_and_the_name_before_it_returns(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,rename,renameat,renameat2", "-o", trace]
    done = subprocess.run([*command, SCRIPT, "--inbox", inbox_dir, "a", "1"], capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line.split(None, 1)[1] for line in trace.read_text().splitlines() if line.rstrip().endswith("= 0")]
    kinds = [
        "flush value"
        if "/tmp/sh." in call and "fsync" in call
        else "publish"
        if "rename" in call
        else "flush name"
        if "/pending>" in call
        else "other"
        for call in calls
    ]
    assert kinds == ["flush value", "publish", "flush name"]


def test_it_can_be_copied_alone(inbox: Inbox, inbox_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copy(SCRIPT, tmp_path / "add")
    subprocess.run(["env", "-i", "PATH=/usr/bin:/bin", "sh", copy, "--inbox", inbox_dir, "a", "1"], check=True)
    assert waiting(inbox) == [("a", b"1")]
