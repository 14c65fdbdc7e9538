"""Proves that the doctor measures what a file system really does, finds each thing that can be wrong with an
inbox, and mends it.

The file systems are real: the one of the tests' folder, a tmpfs, and one of our own that does most things
wrong (odd.py). Each thing that can be wrong is made by hand, in an inbox of its own, and must be found,
alone; after a repair it must be gone.

The repair itself is killed before every call that it makes to the system, and has every such call fail, in an
inbox with all that it can mend at once. Afterwards a second repair must end with a healthy inbox, and what a
fresh consumer then delivers is judged by the oracle of all harnesses: nothing may be missing. The same while
producers add, and a consumer takes. To replay:

    DOCTOR_CALL=kill:123 python -m pytest tests/test_doctor.py -k "every_call and kill-content"
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zlib import crc32

import pytest
from helpers import Consumer, environment, json_lines, run, wait_until

from fsinbox import Inbox, InboxError, UnusableInbox
from fsinbox.doctor import (
    describe,
    examination,
    examine,
    filesystem,
    folders,
    frame,
    measure,
    mending,
    repair,
    signs,
)
from fsinbox.doctor.filesystem import Cost, Facts, Race
from fsinbox.doctor.findings import KINDS, Sign
from fsinbox.doctor.report import unwritable
from fsinbox.operate import admission
from fsinbox.operate.status import summary
from fsinbox.store.boot import boot_tag
from fsinbox.store.folders import FOLDERS
from fsinbox.store.layout import Layout
from fsinbox.store.lines import HEADER, header_line
from tests.disks.disk import FileSystem, attached, make, mounted, why_not, work_folder
from tests.driver import Driver, Log, aftermath, all_died, forget, payload, read_log, value_of
from tests.machine import disk, served, tmpfs
from tests.oracle import Event, judge
from tests.shim import intercepted, meanwhile, refusing

DAY = 24 * 3600 * 10**9
NOW = time.time_ns()

# --- what a file system does --------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """A file system that does most things wrong."""
    folder, point = tmp_path / "folder", tmp_path / "point"
    folder.mkdir()
    point.mkdir()
    with served(point, "-m", "tests.odd", folder, point):
        wait_until(lambda: os.path.ismount(point), "for the mount")
        yield point


@pytest.mark.parametrize("base", [disk(), tmpfs()], ids=["disk", "tmpfs"])
def test_a_good_file_system_is_found_good(base: Path | None, figure: Callable[[str], None]) -> None:
    if base is None:
        pytest.skip("no tmpfs that this user may write to")
    with tempfile.TemporaryDirectory(dir=base) as folder:
        place = Path(folder)
        facts = measure(str(place / "inbox"))
        assert facts.errors == {}
        assert facts.race and facts.race.reads > 100 and (facts.race.missing, facts.race.torn) == (0, 0)
        good = (
            "between",
            "symlink",
            "exclusive",
            "flock",
            "flock_elsewhere",
            "case",
            "unicode",
            "any_bytes",
        )
        assert [name for name in (*good, "leases", "renamed", "modes") if not getattr(facts, name)] == []
        assert facts.longest == 255
        assert facts.events is not None and 0 <= facts.events < 1
        assert (
            facts.flush_file
            and facts.flush_folder
            and 0 < facts.flush_file.median <= facts.flush_file.highest
        )
        assert facts.skew == 0 and facts.tick and facts.tick < 10**9
        assert facts.boot == boot_tag()
        assert {line.name: line.level for line in describe(facts) if line.level == "person"} == {}
        assert list(place.iterdir()) == [], "the doctor has left something behind"
        levels = {line.name: line for line in describe(facts)}
        if base == tmpfs():
            assert "tmpfs is memory: nothing here survives a power cut" in levels["flush"].chosen
        figure(
            f"{facts.kind}: {facts.race.reads} reads beside {facts.race.renames} renames; "
            f"{levels['flush'].found}"
        )


def test_a_bad_file_system_is_found_bad_in_each_respect(odd: Path) -> None:
    facts = measure(str(odd))
    for turn in range(
        20
    ):  # the moment without a file is short: on a busy machine nobody may have looked then
        if facts.race and facts.race.missing:
            break
        (odd / f"again-{turn}").mkdir()
        facts = replace(facts, race=filesystem._race(f"{odd}/again-{turn}")[0])
    assert facts.race and facts.race.missing > 0
    wrong = ("symlink", "case", "unicode", "renamed", "modes")
    assert [name for name in wrong if getattr(facts, name) is not False] == []
    assert facts.longest == 100
    assert facts.skew is not None and 3590 < facts.skew < 3602
    assert facts.tick == float("inf")
    assert facts.errors["flush_folder"] == "Invalid argument"
    assert facts.network
    levels = {line.name: line for line in describe(facts)}
    assert {name for name, line in levels.items() if line.level == "person"} == {
        *("kind", "rename", "symlink", "names", "case", "flush", "room", "modes")
    }
    assert "encoded keys must be at most 60 bytes" in levels["names"].chosen
    assert "3599" in levels["clock"].found or "3600" in levels["clock"].found
    assert [name for name in os.listdir(odd) if name.startswith(filesystem.SCRATCH)] == []


def test_the_odd_file_system_s_doctor_exits_1(odd: Path) -> None:
    done = run("doctor", "--inbox", odd / "inbox", cwd=odd.parent, status=1)
    assert "not healthy" not in done.stdout  # there is no inbox that could be
    assert "person  `a` and `A` are the same file" in done.stdout


GOOD = Facts(
    path="/i",
    kind="ext4",
    network=False,
    race=Race(300, 4000, 0, 0),
    between=True,
    symlink=True,
    exclusive=True,
    flock=True,
    flock_elsewhere=True,
    events=0.0004,
    longest=255,
    case=True,
    unicode=True,
    any_bytes=True,
    flush_file=Cost(200_000, 400_000),
    flush_folder=Cost(300_000, 2_000_000_000),
    flush_all=5_000_000,
    leases=True,
    renamed=True,
    skew=0.0,
    tick=4_000_000,
    free=10 << 30,
    inodes=1_000_000,
    modes=True,
    umask=0o22,
    boot="01234567",
)


@pytest.mark.parametrize(
    ("facts", "name", "level", "found", "chosen"),
    [
        ({}, "kind", "ok", "ext4, local", "after each boot"),
        ({"kind": ""}, "kind", "ok", "unknown, local", ""),
        (
            {"kind": "nfs4", "network": True},
            "kind",
            "note",
            "nfs4, which other hosts use too",
            "polls while it is idle",
        ),
        (
            {"kind": "nfs", "network": True, "refused": "mount it so"},
            "kind",
            "person",
            "is not safe",
            "mount it so",
        ),
        ({"no_journal": True}, "kind", "note", "ext4 without a journal, local", "tune2fs -O has_journal"),
        (
            {"kind": "cifs", "network": True, "forced": True},
            "kind",
            "note",
            "cifs, which other hosts may use too",
            "forced to be for this one alone",
        ),
        (
            {"kind": "newfs", "untold": True},
            "kind",
            "note",
            "newfs, of which is not known whether other hosts use it",
            "is for this machine alone",
        ),
        ({}, "boot", "ok", "01234567", "the index is valid for this boot only"),
        ({"network": True}, "boot", "ok", "01234567", "not used here"),
        (
            {"boot": None, "errors": {"boot": "no /proc"}},
            "boot",
            "person",
            "could not be measured: no /proc",
            "",
        ),
        (
            {},
            "rename",
            "ok",
            "300 renames over a file, 4000 reads beside them: each found a complete file",
            "one rename",
        ),
        ({"race": Race(300, 900, 2, 0)}, "rename", "person", "2 found no file", "use another file system"),
        (
            {"race": Race(300, 900, 0, 1)},
            "rename",
            "person",
            "1 found a part of one",
            "use another file system",
        ),
        ({"between": False}, "between", "person", "cannot be renamed", "use another file system"),
        ({}, "between", "ok", "can be renamed from folder to folder", "state"),
        ({"symlink": False}, "symlink", "person", "no symbolic links", "use another file system"),
        (
            {"exclusive": False},
            "exclusive",
            "person",
            "two processes can create the same file",
            "use another file system",
        ),
        ({}, "flock", "ok", "excludes other descriptors and other processes", "lets only one consumer run"),
        ({"flock": False}, "flock", "person", "does not exclude", "use another file system"),
        ({"flock_elsewhere": False}, "flock", "person", "does not exclude", "use another file system"),
        ({}, "events", "ok", "events fire (ours arrived within 400 us)", "sleeps until inotify wakes it"),
        ({"events": -1}, "events", "note", "events do not fire", "polls"),
        ({"network": True}, "events", "note", "not for what other hosts do", "polls"),
        (
            {"events": None, "errors": {"events": "no watches left"}},
            "events",
            "note",
            "no events: no watches left",
            "polls",
        ),
        ({}, "names", "ok", "255 bytes", "200 bytes"),
        ({"longest": 143}, "names", "person", "143 bytes", "at most 103 bytes"),
        ({"longest": 14}, "names", "person", "14 bytes", "at most 0 bytes"),
        ({"case": False}, "case", "person", "the same file", "one case"),
        ({}, "unicode", "ok", "bytes", "byte for byte"),
        ({"unicode": False}, "unicode", "note", "as text", "use ASCII there"),
        ({"any_bytes": False}, "unicode", "note", "must be text", "names in drop/ must be text"),
        ({"unicode": None, "errors": {"unicode": "Invalid argument"}}, "unicode", "note", "as text", ""),
        (
            {},
            "flush",
            "ok",
            "file costs 200 us (at most 400 us), of a folder 300 us (at most 2 s)",
            "about 2,000 durable adds",
        ),
        ({"kind": "tmpfs"}, "flush", "note", "200 us", "memory"),
        ({"flush_file": Cost(900, 900)}, "flush", "note", "0.9 us", "it may not flush at all"),
        ({}, "syncfs", "ok", "syncfs works (5 ms)", "at once"),
        (
            {"flush_all": None, "errors": {"flush_all": "none here"}},
            "syncfs",
            "note",
            "no syncfs: none here",
            "file by file",
        ),
        ({}, "leases", "ok", "tells", "left alone while"),
        ({"leases": False}, "leases", "note", "does not tell", "--drop-settle"),
        ({}, "clock", "ok", "its clock is ours, in steps of 4 ms", "ingested at once"),
        ({"skew": -90.0}, "clock", "note", "90.0 s behind ours", "set the clocks"),
        (
            {"skew": 7.25, "tick": float("inf")},
            "clock",
            "note",
            "7.2 s ahead of ours, in steps of more than 0.1 s",
            "set the clocks",
        ),
        ({"renamed": False}, "clock", "ok", "", "must be unchanged for --drop-settle seconds"),
        ({}, "room", "ok", "10 GiB free, and 1,000,000 more files", "a file"),
        ({"free": 3 << 40, "inodes": -1}, "room", "ok", "3 TiB free, and files without limit", ""),
        ({"free": 4096}, "room", "person", "4 KiB free", "free some"),
        ({"inodes": 12}, "room", "person", "12 more files", "free some"),
        ({}, "modes", "ok", "umask 022", "private is 600"),
        ({"modes": False}, "modes", "person", "do not keep their mode", ""),
    ],
)
def test_of_each_fact_the_doctor_says_what_follows(
    facts: dict[str, Any], name: str, level: str, found: str, chosen: str
) -> None:
    (line,) = (line for line in describe(replace(GOOD, **({"errors": {}} | facts))) if line.name == name)
    assert line.level == level
    assert found in line.found
    assert chosen in line.chosen
    assert "\n" not in line.found + line.chosen


@pytest.mark.parametrize("has_journal", [True, False], ids=["journal", "no-journal"])
def test_an_ext4_without_a_journal_is_named(has_journal: bool) -> None:
    words = ("mkfs.ext4", "-q", "-O", f"{'' if has_journal else '^'}has_journal")
    fs = FileSystem("ext4", "ext4", 200 << 20, words)
    if reason := why_not(fs):
        pytest.skip(f"no ext4 is mounted: {reason}")
    with work_folder() as folder:
        make(fs, folder / "image")
        with attached(folder / "image") as device, mounted(fs, device, folder / "mnt") as place:
            done = run("doctor", "--inbox", place / "inbox", cwd=folder)
    assert ("ext4 without a journal" in done.stdout) is not has_journal
    assert ("ext4, local" in done.stdout) is has_journal


def test_where_nothing_can_be_measured_the_doctor_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableInbox, match="nor the directory it would be in"):
        measure(str(tmp_path / "no" / "such"))
    run("doctor", "--inbox", tmp_path / "no" / "such", cwd=tmp_path, status=3)
    line = unwritable(OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert (line.level, line.found) == ("person", "cannot write here: Read-only file system")


# --- what can be wrong with an inbox ------------------------------------------------------------------


def number(ago: float = 0) -> int:
    """A number of `ago` seconds ago."""
    return time.time_ns() - int(ago * 1e9)


class Patient:
    """An inbox with two elements, `a` and `b`, that nobody has open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log("producer")
        driver = Driver(str(path), self.log)
        for word in ("create", "add:a=1", "add:b=1"):
            driver.do(word)
        driver.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def element(self, key: str) -> Path:
        (path,) = (self.path / "pending").glob(f"*-{key}")
        return path

    def last(self) -> int:
        return int((self.path / "index").read_bytes()[:19])

    def boot(self) -> str:
        return (self.path / "index").read_bytes()[20:28].decode()

    def kinds(self) -> dict[str, str]:
        """What is wrong: kind -> level."""
        return {finding.kind: finding.level for finding in examine(str(self.path), pause=0.01).findings}

    def judged(self, before: list[Event] | None = None) -> list[str]:
        events = self.log.events if before is None else before
        return judge([*all_died(events), *aftermath(str(self.path), "drain")])


@pytest.fixture
def patient(inbox_dir: Path) -> Patient:
    return Patient(inbox_dir)


def take_by_hand(patient: Patient, key: str) -> None:
    """As if a consumer had taken it, and died."""
    path = patient.element(key)
    path.rename(patient / "inflight" / path.name)


def socket_at(path: Path) -> None:
    where = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(where)


def second_place(patient: Patient) -> None:
    """Two places of `b`, as it gets when its line in the index is lost; the newer value is at the higher."""
    path = patient.element("b")
    forget(str(patient.path))
    with Inbox(patient.path, codec="bytes") as inbox:
        inbox.add_bytes("b", path.read_bytes())


def defer_by_hand(patient: Patient, key: str, due: int, its: int | None = None) -> None:
    path = patient.element(key)
    path.rename(patient / "deferred" / f"{due:019d}-{path.name if its is None else f'{its:019d}-{key}'}")


def forged(patient: Patient, folder: str, its: int, key: str = "f") -> None:
    (patient / folder / f"{its:019d}-{key}").write_bytes((patient.element("b")).read_bytes())


def header(patient: Patient, text: bytes) -> None:
    """Write over the header of the index, and leave the table as it is."""
    with (patient / "index").open("r+b") as file:
        file.write(text)


def last_is(patient: Patient, last: int) -> None:
    header(patient, header_line(last, patient.boot(), 4096))


def line(patient: Patient, key: str, its: int) -> None:
    """Blank the table, and have it name this place for `key`."""
    forget(str(patient.path))
    crc = crc32(key.encode())
    with (patient / "index").open("r+b") as file:
        file.seek(64 + 1024 * (crc % (4096 // 32)))
        file.write(b"%010d %019d \n" % (crc, its))


def behind(patient: Patient) -> None:
    defer_by_hand(patient, "b", 1)
    last_is(patient, patient.last() - 1)


def superseded(patient: Patient) -> None:
    """An older `b` is deferred."""
    older = patient.last() - 10**9
    (patient / "deferred" / f"{1:019d}-{older:019d}-b").write_bytes(patient.element("b").read_bytes())


def replace_by(patient: Patient, name: str, what: Callable[[Path], object]) -> None:
    path = patient / name
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    what(path)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def open_wide(patient: Patient) -> None:
    patient.path.chmod(0o755)
    (patient / "drop").chmod(0o1777)


def lone_note(patient: Patient) -> None:
    (patient / "attempts" / f"{number(60):019d}-gone").symlink_to("3.12.34.")


def odd_in_failed(patient: Patient) -> None:
    """A dropped directory, as it is set aside."""
    aside = patient / f"failed/{number(9):019d}-f"
    aside.mkdir()
    (patient / f"failed/{aside.name}~reason.txt").touch()


Damage = Callable[[Patient], object]

WRONG: list[tuple[str, str, Damage]] = [
    ("format-missing", "", lambda p: (p / "format").unlink()),
    ("format-damaged", "empty", lambda p: (p / "format").write_text("")),
    ("format-damaged", "garbage", lambda p: (p / "format").write_bytes(b"\0" * 18)),
    ("format-damaged", "scope", lambda p: (p / "format").write_text("fsinbox 2 global\n")),
    *(
        ("folder-missing", name, lambda p, name=name: (p / name).rmdir())
        for name in ("tmp", "drop", "inflight", "failed")
    ),
    ("not-a-folder", "file", lambda p: replace_by(p, "deferred", Path.touch)),
    ("not-a-folder", "link", lambda p: replace_by(p, "inflight", lambda path: path.symlink_to("failed"))),
    ("file-missing", "lock", lambda p: (p / "consumer.lock").unlink()),
    ("file-missing", "index", lambda p: (p / "index").unlink()),
    ("not-a-file", "lock", lambda p: replace_by(p, "consumer.lock", nowhere)),
    ("not-a-file", "index", lambda p: replace_by(p, "index", Path.mkdir)),
    ("not-a-file", "index-fifo", lambda p: replace_by(p, "index", os.mkfifo)),
    ("not-a-file", "format", lambda p: replace_by(p, "format", Path.mkdir)),
    ("mode", "tmp", lambda p: (p / "tmp").chmod(0o770)),
    ("mode", "closed", lambda p: (p / "attempts").chmod(0)),
    ("mode", "file", lambda p: (p / "index").chmod(0o400)),
    ("mode", "root", lambda p: p.path.chmod(0o500)),
    ("open", "", open_wide),
    ("foreign-root", "", lambda p: (p / "notes.txt").touch()),
    ("index-damaged", "text", lambda p: (p / "index").write_bytes(b"what?\n")),
    ("index-damaged", "nuls", lambda p: header(p, bytes(HEADER))),
    ("index-damaged", "high", lambda p: last_is(p, 9 * 10**18)),
    ("index-damaged", "digits", lambda p: header(p, "¹".encode() * 8)),
    ("index-damaged", "tag", lambda p: header(p, b"%019d \xff\xfe" % p.last())),
    ("index-damaged", "lines", lambda p: header(p, header_line(p.last(), p.boot(), 4097))),
    (
        "index-damaged",
        "network",
        lambda p: header(p, header_line(p.last(), p.boot(), 4096, b" 000000000001 done 00000")),
    ),
    ("index-damaged", "short", lambda p: os.truncate(p / "index", HEADER + 32)),
    ("index-future", "", lambda p: last_is(p, NOW + 300 * DAY)),
    ("index-behind", "", lambda p: defer_by_hand(p, "b", 1, number(-600))),
    ("index-behind", "lower", behind),
    ("number-forged", "", lambda p: forged(p, "pending", number(-600))),
    ("number-forged", "absurd", lambda p: forged(p, "pending", number(-1e9))),
    ("number-absurd", "", lambda p: defer_by_hand(p, "b", 1, number(-1e9))),
    ("foreign-name", "pending", lambda p: (p / "pending/readme").touch()),
    ("foreign-name", "inflight", lambda p: (p / "inflight/readme").mkdir()),
    ("foreign-name", "deferred", lambda p: (p / f"deferred/{number():019d}-readme").touch()),
    ("foreign-name", "key", lambda p: (p / f"pending/{number(9):019d}-%zz").touch()),
    ("not-regular", "pending", lambda p: os.mkfifo(p / f"pending/{number(9):019d}-p")),
    ("not-regular", "directory", lambda p: (p / f"pending/{p.last():019d}-p").mkdir()),
    ("not-regular", "inflight", lambda p: socket_at(p / f"inflight/{number(9):019d}-p")),
    ("not-regular", "deferred", lambda p: nowhere(p / f"deferred/{1:019d}-{number(9):019d}-p")),
    ("several-places", "", second_place),
    ("orphan", "", lambda p: take_by_hand(p, "b")),
    ("deferred-absurd", "", lambda p: defer_by_hand(p, "b", number(-30 * 24 * 3600))),
    ("deferred-superseded", "", superseded),
    ("no-reason", "", lambda p: (p / f"failed/{number(9):019d}-f").touch()),
    ("reason-alone", "", lambda p: (p / f"failed/{number(9):019d}-f~reason.txt").touch()),
    ("foreign-failed", "", lambda p: (p / "failed/readme").touch()),
    ("foreign-done", "", lambda p: [(p / "done").mkdir(0o700), (p / "done/readme").touch()]),
    ("ended-odd", "done", lambda p: (p / f"done/{number(9):019d}-f").mkdir(parents=True)),
    ("ended-odd", "failed", odd_in_failed),
    ("note-alone", "", lone_note),
    ("note-foreign", "file", lambda p: (p / "attempts/readme").touch()),
    ("note-foreign", "link", lambda p: (p / f"attempts/{p.element('b').name}").symlink_to("many")),
    ("drop-draft", "", lambda p: (p / "drop/x.part").touch()),
    ("ignore-file", "", lambda p: (p / "drop/.fsinboxignore").mkdir()),
    ("drop-bad", "", lambda p: (p / "drop/x").mkdir()),
    ("drop-bad", "name", lambda p: (p / f"drop/{'é' * 100}").touch()),
    ("drop-waits", "", lambda p: (p / "drop/x").write_bytes(p.element("a").read_bytes())),
]
"""Kind, which of several, how it is made."""

OLD: list[tuple[str, str, Damage]] = [
    ("litter", "", lambda p: (p / "tmp/1.2.3").touch()),
    ("litter-odd", "", lambda p: (p / "tmp/x").mkdir()),
    ("leftover", "probe", lambda p: (p / "pending/.probe-12").touch()),
    ("leftover", "format", lambda p: (p / ".format.12").touch()),
    ("leftover", "draft", lambda p: nowhere(p / "attempts/.draft-1")),
    ("leftover", "draft-of-shard", lambda p: nowhere(p / "attempts/.draft-3")),
    ("leftover-folder", "", lambda p: (p / f"tmp/{filesystem.SCRATCH}1/inbox").mkdir(parents=True)),
]
"""The same, found a day later only."""


def ident(value: object) -> str | None:
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("kind", "which", "damage"), WRONG, ids=ident)
def test_each_thing_that_can_be_wrong_is_found_and_mended(
    patient: Patient, kind: str, which: str, damage: Damage
) -> None:
    damage(patient)
    before = sorted(os.walk(patient.path))
    assert patient.kinds() == {kind: KINDS[kind].level}
    assert sorted(os.walk(patient.path)) == before, "a doctor that only looks has changed something"
    if kind == "not-a-folder":
        with pytest.raises(UnusableInbox, match="put the folder itself there"):
            repair(str(patient.path), pause=0)
        return
    lines = repair(str(patient.path), pause=0.01)
    left = patient.kinds()
    if KINDS[kind].done and KINDS[kind].level != "person":
        left.pop("ended-odd", None)  # what was set aside stays what it is
        assert left == {}
        assert len(lines) == 1 and KINDS[kind].done in lines[0], lines
    else:
        assert left == {kind: KINDS[kind].level}
        assert len(lines) == (KINDS[kind].level == "person")
    assert repair(str(patient.path), pause=0) == (lines if KINDS[kind].level == "person" else [])
    if (kind, which) != ("number-absurd", ""):
        added = [Event("add_start", "hand", key) for key in "fxp"]
        with mock.patch("fsinbox.consumer.settings.MAX_DELAY", 0):  # 7 days are over
            assert [
                wrong for wrong in patient.judged([*patient.log.events, *added]) if "foreign:" not in wrong
            ] == []


@pytest.mark.parametrize(("kind", "which", "damage"), OLD, ids=ident)
def test_what_the_dead_left_is_found_and_removed_once_it_is_old(
    patient: Patient, kind: str, which: str, damage: Damage
) -> None:
    damage(patient)
    assert patient.kinds() == {}
    assert repair(str(patient.path), pause=0) == []
    with mock.patch.object(signs, "time_ns", lambda: time.time_ns() + 2 * DAY):
        assert patient.kinds() == {kind: KINDS[kind].level}
        (line,) = repair(str(patient.path), pause=0)
        assert KINDS[kind].done in line
        assert patient.kinds().keys() <= {"ended-odd"}
    assert patient.judged() == []


def test_every_kind_of_wrong_is_made_by_some_test() -> None:
    here = Path(__file__).read_text() + Path(__file__).with_name("test_one_host.py").read_text()
    here += Path(__file__).with_name("test_subfolders.py").read_text()
    assert [kind for kind in KINDS if f'"{kind}"' not in here] == []


def test_what_others_have_written_is_escaped(patient: Patient) -> None:
    (patient / "attempts/readme").symlink_to("\x1b]0;owned\x07")
    told = run("--inbox", str(patient.path), "doctor", cwd=patient.path.parent).stdout
    assert "\x1b" not in told and "owned" in told


def test_a_healthy_inbox_has_nothing_wrong(patient: Patient) -> None:
    report = examine(str(patient.path))
    assert report.healthy and report.findings == ()
    assert report.facts[0].startswith("format 2, local, private; last number given out 20")
    assert report.facts[1] == "2 waiting, 0 in flight, 0 deferred, 0 failed, 0 in drop/; 0 being written"
    assert report.facts[2] == "no consumer is running"
    assert repair(str(patient.path)) == []
    assert patient.judged() == []


# --- what needs more than a hand to make --------------------------------------------------------------

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: to give files to another user, or to mount"
)


def test_an_inbox_that_has_moved_to_a_network_file_system_needs_a_person(patient: Patient) -> None:
    with (
        mock.patch("fsinbox.store.host._SHARED_DISKS", ("/",)),
        mock.patch("fsinbox.store.mounts.mount_of", lambda path: ("nfs4", "rw,hard")),
    ):
        assert patient.kinds() == {"format-scope": "person"}
        with pytest.raises(UnusableInbox, match="lies on nfs4, where others may use it"):
            repair(str(patient.path), pause=0)


@as_root
def test_what_belongs_to_another_user_needs_a_person(patient: Patient) -> None:
    os.chown(patient / "index", 1, 1)
    os.chown(patient / "attempts", 1, 1)
    assert patient.kinds() == {"owner": "person"}
    (line,) = repair(str(patient.path), pause=0)
    assert line.startswith("attempts, index: left as it is: give it to the owner")


@as_root
def test_an_element_that_the_inbox_s_owner_cannot_read_needs_a_person(patient: Patient) -> None:
    for path in [patient.path, *patient.path.rglob("*")]:
        os.chown(path, 1, 1, follow_symlinks=False)
    os.chown(patient.element("b"), 2, 2)
    assert patient.kinds() == {"unreadable": "person"}


@as_root
def test_a_repair_of_another_user_s_private_inbox_is_refused(patient: Patient) -> None:
    os.chown(patient.path, 1, 1)
    with pytest.raises(UnusableInbox, match="private to user 1,"):
        repair(str(patient.path), pause=0)


@as_root
def test_a_mode_is_only_set_by_the_owner(inbox_dir: Path) -> None:
    Inbox(inbox_dir, shared=True).close()
    patient = Patient.__new__(Patient)
    patient.path = inbox_dir
    (inbox_dir / "attempts").chmod(0o700)
    os.chown(inbox_dir / "attempts", 1, 1)
    (inbox_dir / "format").chmod(0o600)
    assert patient.kinds() == {"mode": "repair"}
    lines = repair(str(inbox_dir), pause=0)
    assert lines == ["format: mode set", "attempts: left as it is: it belongs to user 1, who must do it"]
    assert stat.S_IMODE((inbox_dir / "format").stat().st_mode) == 0o660


@as_root
def test_a_folder_that_this_user_cannot_open_is_found(patient: Patient) -> None:
    (patient / "attempts").chmod(0o300)
    for parent in patient.path.parents:  # for the other user to get there
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(0o711)
    for path in [patient.path, *patient.path.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    code = """if True:
        import os, sys, signal, filelock
        from fsinbox.doctor import examine
        os.setuid(65534)
        print(*(finding.kind for finding in examine(sys.argv[1]).findings))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, patient.path],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.stdout.split() == ["folder-closed", "mode"], done.stderr


@as_root
def test_a_folder_on_another_file_system_needs_a_person(patient: Patient) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0700", "none", patient / "failed"], capture_output=True
    ).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        assert patient.kinds() == {"other-device": "person"}
    finally:
        subprocess.run(["umount", patient / "failed"], check=True)


def test_a_file_that_is_being_written_in_drop_is_found(patient: Patient) -> None:
    with (patient / "drop/x").open("wb"):
        assert patient.kinds() == {"drop-open": "note"}


HOLDER = """if True:
    import fcntl, os, signal, sys
    held = open(sys.argv[1], "rb")
    fcntl.flock(held, fcntl.LOCK_EX)
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_that_is_stopped_with_the_lock_is_named_and_stops_only_adds(
    patient: Patient, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start_python(HOLDER, patient / "index")
    assert holder.stdout and holder.stdout.readline() == "held\n"
    wait_until(lambda: " T " in Path(f"/proc/{holder.pid}/stat").read_text(), "for it to be stopped")
    last = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(patient.last() / 1e9))
    program = Path(f"/proc/{holder.pid}/comm").read_text().strip()
    who = f"process {holder.pid} ({program}, stopped); the last number was given out at {last}"
    (finding,) = examine(str(patient.path), pause=0).findings
    assert (finding.kind, {sign.seen for sign in finding.signs}) == ("admission-held", {who})
    done = run("status", "--inbox", patient.path, cwd=patient.path.parent)
    assert done.stdout.splitlines()[-1].startswith(
        f"WARNING: All adds wait: the admission lock is held by {who}. No consumer is running"
    )
    (found,) = json_lines(run("status", "--json", "--inbox", patient.path, cwd=patient.path.parent).stdout)
    assert found["stuck"] == who
    driver = Driver(str(patient.path), patient.log)
    for word in ("take", "ack", "take"):
        driver.do(word)
    assert patient.kinds() == {"admission-held": "person"}
    adding = start_driver(patient.path, patient.path.with_name("adding"), ["add:a=2"])
    with pytest.raises(subprocess.TimeoutExpired):
        adding.wait(1)
    holder.send_signal(signal.SIGCONT)
    assert adding.wait(60) == 0
    assert patient.kinds() == {}
    driver.do("ack")
    driver.close()
    events = sorted(
        patient.log.events + read_log(patient.path.with_name("adding")), key=lambda event: event.t
    )
    assert patient.judged(events) == []


def test_a_lock_that_is_held_for_long_stops_no_repair(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    monkeypatch.setattr(mending, "_PATIENCE", 0.05)
    take_by_hand(patient, "b")
    header(patient, b"what?")
    (patient / "index").chmod(0o400)
    with (patient / "index").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        report = examine(str(patient.path), pause=0)
        (finding,) = (finding for finding in report.findings if finding.kind == "admission-held")
        assert re.fullmatch(
            rf"process {os.getpid()} \([^,]+\)", finding.signs[0].seen
        )  # (the header is damaged)
        lines = repair(str(patient.path), pause=0)
        orphan = next(os.scandir(patient / "inflight")).name
        assert [line.partition(": ")[0] for line in lines] == [
            "index",
            "index",
            "index",
            f"inflight/{orphan}",
        ]
        assert lines[0] == "index: mode set"
        assert "continue that process if it is stopped" in lines[1]
        assert all("the admission lock has been held for" in line for line in lines[2:])
    assert len(repair(str(patient.path), pause=0)) == 2
    assert patient.kinds() == {}
    assert patient.judged() == []


@pytest.mark.parametrize("running", [False, True], ids=["alone", "beside-a-consumer"])
def test_an_index_that_names_the_lower_place_of_a_key_is_found_and_made_anew(
    patient: Patient, *, running: bool
) -> None:
    driver = Driver(str(patient.path), patient.log)
    if running:
        driver.do("take")
    first, a_header = patient.element("b"), (patient / "index").read_bytes()[:HEADER]
    forget(str(patient.path))
    driver.do("add:b=2")
    assert patient.kinds() == {"several-places": "note"}, "a line that is not there does no harm"
    second = max(path.name for path in (patient / "pending").glob("*-b"))
    line(patient, "b", int(first.name[:19]))
    findings = {finding.kind: finding.signs for finding in examine(str(patient.path), pause=0.01).findings}
    assert findings.keys() == {"index-low", "several-places"}
    assert findings["index-low"] == (
        Sign("index-low", f"pending/{first.name}", f"the newest is pending/{second}"),
    )
    lines = repair(str(patient.path), pause=0)
    assert lines[0] == f"pending/{first.name}: the index was rebuilt"
    assert patient.kinds() == ({"several-places": "note"} if running else {})
    assert (patient / "index").read_bytes()[:HEADER] > a_header
    driver.do("add:b=3")
    assert value_of(max((patient / "pending").glob("*-b")).read_bytes()) == "3"
    driver.close()
    assert patient.judged() == []


def test_a_place_below_what_is_deferred_is_too_low_as_well(patient: Patient) -> None:
    older = f"{int(patient.element('b').name[:19]) - 10**9:019d}-b"
    content = patient.element("b").read_bytes()
    newer = patient.element("b").name
    defer_by_hand(patient, "b", 1)
    (patient / "pending" / older).write_bytes(content)
    assert patient.kinds() == {}, "no line names it"
    line(patient, "b", int(older[:19]))
    (finding,) = examine(str(patient.path), pause=0).findings
    assert finding.signs[0] == (
        "index-low",
        f"pending/{older}",
        f"the newest is in flight or deferred: {newer}",
    )
    assert repair(str(patient.path), pause=0) == [f"pending/{older}: the index was rebuilt"]
    assert patient.kinds() == {}
    with Inbox(patient.path, codec="bytes") as inbox:
        assert inbox.add_bytes("b", b"newest") == "new"
    assert max(path.name for path in (patient / "pending").glob("*-b")) > newer


def test_lines_that_are_nobody_s_are_not_mentioned(patient: Patient) -> None:
    for key, its in (("a", number(-5)), ("gone", patient.last()), ("a", 0), ("b", patient.last())):
        line(patient, key, its)
        assert patient.kinds() == {}
    with (patient / "index").open("r+b") as file:
        file.write((patient / "index").read_bytes()[:HEADER] + os.urandom(4096 * 32))
    assert patient.kinds() == {}
    header(
        patient, header_line(patient.last() - 10**9, "01234567", 4096)
    )  # of another boot: nothing in it counts
    assert patient.kinds() == {}
    assert patient.judged() == []


def test_what_is_forged_is_not_believed_for_an_index_that_is_behind(patient: Patient) -> None:
    defer_by_hand(patient, "b", 1, number(-60))
    forged_name = f"{number(-600):019d}-a"
    (patient / "pending" / forged_name).write_bytes(payload("forged"))
    assert patient.kinds() == {"index-behind": "repair", "number-forged": "note", "several-places": "note"}
    assert len(repair(str(patient.path), pause=0)) == 3
    assert patient.kinds() == {}
    assert [path.name for path in (patient / "failed").glob("*-a")] == [forged_name]


@pytest.mark.parametrize("name", ["index", "consumer.lock"])
def test_a_file_with_two_names_needs_a_person(patient: Patient, name: str) -> None:
    os.link(patient / name, patient.path.with_name("copy"))
    assert patient.kinds() == {"file-linked": "person"}
    if name == "index":
        with pytest.raises(UnusableInbox, match=r"index has another name \(a hard link\)"):
            repair(str(patient.path), pause=0)
    else:
        assert repair(str(patient.path), pause=0) == [f"{name}: left as it is: remove the other name"]
    patient.path.with_name("copy").unlink()
    assert patient.kinds() == {}


def test_the_locks_of_shards_are_part_of_the_inbox(patient: Patient) -> None:
    with Inbox(patient.path, shard="1/2") as inbox:
        inbox.become_consumer()
    assert (patient / "consumer-1of2.lock").exists()
    assert patient.kinds() == {}


def test_a_lock_without_its_holder_is_found(patient: Patient) -> None:
    (patient / "consumer.lock").write_text(
        f"pid 4194399 on {os.uname().nodename} since 2026-01-31T12:00:00+0000\n"
    )
    with (patient / "consumer.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert patient.kinds() == {"holder-gone": "note"}
    assert patient.kinds() == {}


def test_a_consumer_at_work_keeps_its_own(patient: Patient) -> None:
    driver = Driver(str(patient.path), patient.log)
    driver.do("take")
    (patient / "pending/readme").touch()
    (patient / "tmp").chmod(0o770)
    report = examine(str(patient.path), pause=0)
    assert [finding.kind for finding in report.findings] == ["mode", "foreign-name"]
    assert report.facts[2].startswith(f"consumer: pid {os.getpid()} on ")
    lines = repair(str(patient.path), pause=0)
    assert lines[0] == "tmp: mode set"
    assert lines[1].startswith(f"pending/readme: left as it is: a consumer is running (pid {os.getpid()} on ")
    assert os.listdir(patient / "inflight") != []
    driver.do("ack")
    driver.do("take")
    driver.do("ack")
    driver.do("take")  # nothing is left of its listing: it lists again, and sets readme aside
    driver.close()
    assert sorted(path.name[20:] for path in (patient / "failed").iterdir()) == [
        "readme",
        "readme~reason.txt",
    ]
    assert patient.judged() == []


# --- an inbox that several hosts share ----------------------------------------------------------------


@pytest.fixture
def shared(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="text", scope="network", max_inflight=2, lease=60) as inbox:
        for key in "abc":
            inbox.add(key, key)
        yield inbox


def test_a_shared_inbox_with_a_consumer_is_healthy(shared: Inbox) -> None:
    element = shared.take()
    assert element
    report = examine(shared.path, pause=0)
    assert report.findings == ()
    assert report.facts[0].startswith("format 2, network, private; last number given out 20")
    assert report.facts[1].startswith("2 waiting, 1 in flight,")
    assert report.facts[2].startswith(f"consumer: pid {os.getpid()} on ")
    Path(shared.path, "pending", "readme").touch()
    (line,) = repair(shared.path, pause=0)
    assert line.startswith(f"pending/readme: left as it is: a consumer is running (pid {os.getpid()} on ")
    element.ack()  # it is none the worse for it


def test_what_a_dead_consumer_of_a_shared_inbox_held_is_found_and_mended(shared: Inbox) -> None:
    """As when its host was cut off: it has given no sign of life for long, and the server has freed its
    lock."""
    for _ in range(2):
        shared.take()
    consumer, folder = shared._taking().consumer, Path(shared.path, shared.layout.inflight)
    assert consumer
    consumer.ownership._ended.set()  # type: ignore[attr-defined]
    consumer.ownership._ended = threading.Event()  # type: ignore[attr-defined]
    consumer.ownership.unlock()
    os.utime(folder / ".lease", ns=(1, 1))
    (finding,) = examine(shared.path, pause=0).findings
    assert (finding.kind, finding.mends) == ("orphan", True)
    assert {sign.where for sign in finding.signs} == {
        f"inflight/{folder.name}/{path.name}" for path in folder.glob("[!.]*")
    }
    (line,) = repair(shared.path, pause=0)
    assert line.startswith(f"inflight/{folder.name}/")
    assert examine(shared.path, pause=0).findings == ()
    assert os.listdir(f"{shared.path}/inflight") == []
    with Inbox(shared.path, codec="text") as other:
        for key in "abc":
            element = other.take()
            assert element and element.key == key
            element.ack()


def test_what_went_with_its_consumer_while_it_was_looked_at_is_passed_over(shared: Inbox) -> None:
    element = shared.take()
    assert element

    def end() -> None:
        element.ack()
        shared.close()

    mine = Path(shared.layout.inflight).name
    listed: list[str] = []

    def at_the_last(name: str, *_: object) -> bool:
        """Whose consumer it is was read from there, and what is in it listed; now that is to be looked at."""
        listed.append(name)
        return name == mine and listed.count(mine) == 3

    with meanwhile("open", end, when=at_the_last):
        assert examination.Look(shared.path).signs == set()


def test_on_a_mount_that_is_refused_the_doctor_says_how_to_mount_it(shared: Inbox) -> None:
    shared.close()
    with (
        mock.patch.object(frame, "mount_of", lambda path: ("nfs", "rw,vers=3,hard")),
        pytest.raises(UnusableInbox, match=r"over NFS 3 .* mount it with -o lookupcache=none"),
    ):
        examine(shared.path)


def test_a_shared_inbox_whose_consumer_cannot_be_told_is_looked_at_all_the_same(shared: Inbox) -> None:
    shared.become_consumer()
    with refusing(read=errno.EIO, when=lambda fd, size: size == 500):
        assert examine(shared.path, pause=0).facts[2] == "no consumer is running"


@pytest.mark.parametrize("repaired", [False, True], ids=["by-itself", "by-a-repair"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda header: b"",
        lambda header: bytes(HEADER),
        lambda header: header[:40] + b"1234567890123 done 00000\n",
        lambda header: header[:40] + b"999999999999 done 00000\n",
        lambda header: header.replace(b"done", b"what"),
        lambda header: header[:20] + b"\xe9" * 8 + header[28:],
        lambda header: header[:19] + b"\t" + header[20:],
        lambda header: header[:58] + b"-0001\n",
        lambda header: header[:-1] + b" ",
        lambda header: b"9" + header[1:],
    ],
)
def test_an_index_of_several_hosts_that_is_damaged_in_any_way_mends_itself(
    shared: Inbox, damage: Callable[[bytes], bytes], *, repaired: bool
) -> None:
    path = Path(shared.path, "index")
    path.write_bytes(damage(path.read_bytes()[:HEADER]))
    kinds = {finding.kind for finding in examine(shared.path, pause=0).findings}
    assert kinds == ({"index-damaged"} if path.stat().st_size else set())
    if repaired:
        assert repair(shared.path, pause=0) == (["index: rebuilt"] if kinds else [])
        assert examine(shared.path, pause=0).findings == ()
    assert shared.add("d", "d") == "new"
    assert examine(shared.path, pause=0).findings == ()
    for key in "abcd":
        element = shared.take()
        assert element and element.key == key
        element.ack()


def test_an_index_of_several_hosts_that_names_a_lower_place_is_made_anew(shared: Inbox) -> None:
    path = Path(shared.path, "index")
    before = path.read_bytes()
    path.write_bytes(before[:HEADER] + bytes(len(before) - HEADER))
    assert shared.add("a", "a2") == "new"
    assert {finding.kind for finding in examine(shared.path, pause=0).findings} == {"several-places"}
    path.write_bytes(path.read_bytes()[:HEADER] + before[HEADER:])
    kinds = {finding.kind for finding in examine(shared.path, pause=0).findings}
    assert kinds == {"index-low", "several-places"}
    assert len(repair(shared.path, pause=0)) == 2
    assert examine(shared.path, pause=0).findings == ()
    assert shared.add("a", "a3") == "new"
    values = {}
    while element := shared.take():
        values[element.key] = element.value
        element.ack()
    assert values == {"a": "a3", "b": "b", "c": "c"}


def test_a_lock_that_is_held_in_a_shared_inbox_is_found(
    shared: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    seen = []

    def look() -> None:
        seen.append(summary(shared.layout).stuck)
        seen.extend(sign.seen for finding in examine(shared.path, pause=0).findings for sign in finding.signs)

    shared.index.locked(look)
    assert len(seen) == 2
    assert all(
        re.fullmatch(r"(a )?process .*; the last number was given out at 20\d\d-.*", str(one)) for one in seen
    )
    assert summary(shared.layout).stuck is None


def test_where_there_is_no_index_the_status_leaves_that_to_the_doctor(patient: Patient) -> None:
    (patient / "index").unlink()
    layout = Layout(str(patient.path), create=False)
    assert summary(layout).stuck is None
    layout.close()


def test_a_section_that_a_host_left_open_is_no_damage(shared: Inbox) -> None:
    path = Path(shared.path, "index")
    path.write_bytes(path.read_bytes().replace(b"done", b"open", 1))
    assert examine(shared.path, pause=0).findings == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is not an inbox"),
        (lambda path: path.touch(), "Not a directory"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (
            lambda path: shutil.copytree(Path(__file__).parent, path, ignore=lambda *_: ["storm"]),
            "is not an inbox",
        ),
        (
            lambda path: (Inbox(path).close(), (path / "format").write_text("fsinbox 1 local\n")),
            "has format 1, this fsinbox knows 2: .*export",
        ),
    ],
    ids=["empty", "file", "dangling", "other", "version"],
)
def test_what_is_no_inbox_of_ours_is_left_alone(
    inbox_dir: Path, make: Callable[[Path], object], message: str
) -> None:
    make(inbox_dir)
    for look in (examine, repair):
        before = sorted(os.walk(inbox_dir.parent))
        with pytest.raises(UnusableInbox, match=message):
            look(str(inbox_dir), 0)
        assert sorted(os.walk(inbox_dir.parent)) == before


def test_an_inbox_that_was_never_finished_is_finished(inbox_dir: Path) -> None:
    (inbox_dir / "tmp").mkdir(parents=True, mode=0o700)
    lines = repair(str(inbox_dir), pause=0)
    assert {line.partition(": ")[2] for line in lines} == {
        *(KINDS[kind].done for kind in ("format-missing", "folder-missing", "file-missing"))
    }
    assert examine(str(inbox_dir)).healthy
    with Inbox(inbox_dir, create=False) as inbox:
        assert inbox.add("k", 1) == "new"


def test_a_shared_inbox_stays_shared(inbox_dir: Path) -> None:
    Inbox(inbox_dir, shared=True).close()
    (inbox_dir / "attempts").rmdir()
    (inbox_dir / "format").unlink()
    (inbox_dir / "tmp").chmod(0o700)
    (inbox_dir / "consumer.lock").unlink()
    repair(str(inbox_dir), pause=0)
    assert {
        name: oct(stat.S_IMODE((inbox_dir / name).stat().st_mode))
        for name in (*FOLDERS, "format", "consumer.lock")
    } == {
        **dict.fromkeys(FOLDERS, "0o2770"),
        "format": "0o660",
        "consumer.lock": "0o660",
    }
    assert examine(str(inbox_dir)).findings == ()


def test_what_only_passes_by_is_not_reported(patient: Patient) -> None:
    """The second look no longer sees it."""
    (patient / "pending/readme").touch()
    with mock.patch.object(examination, "sleep", lambda seconds: (patient / "pending/readme").unlink()):
        assert examine(str(patient.path)).findings == ()
    (patient / "pending/readme").touch()
    with mock.patch.object(mending, "sleep", lambda seconds: (patient / "pending/readme").unlink()):
        assert repair(str(patient.path)) == []


# --- what the system refuses, and what others do meanwhile --------------------------------------------


def test_what_cannot_be_looked_at_is_an_error_that_says_why(patient: Patient) -> None:
    with (
        refusing(listdir=errno.EIO),
        pytest.raises(UnusableInbox, match=r"cannot look at inbox .*Input/output error"),
    ):
        examine(str(patient.path))


def test_a_folder_that_cannot_be_opened_is_found_by_whoever_looks(patient: Patient) -> None:
    with refusing(open=errno.EACCES, when=lambda name, *_: name == "failed"):
        assert patient.kinds() == {"folder-closed": "person"}


def test_a_holder_of_another_user_lives(patient: Patient) -> None:
    driver = Driver(str(patient.path), patient.log)
    driver.do("take")
    with refusing(kill=errno.EPERM):
        assert patient.kinds() == {}
    driver.close()


def test_a_holder_that_left_no_word_is_nobody_to_look_for(patient: Patient) -> None:
    with (patient / "consumer.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (patient / "consumer.lock").write_text("")
        assert patient.kinds() == {}


@pytest.mark.parametrize(
    ("where", "call", "make"),
    [
        ("attempts/foreign", "readlink", lambda path: path.symlink_to("x")),
        ("drop/d", "lstat", lambda path: path.touch()),
        ("tmp/t", "lstat", lambda path: path.touch()),
        ("pending/1700000000000000000-p", "lstat", lambda path: path.touch()),
    ],
)
def test_what_goes_while_it_is_looked_at_is_passed_over(
    patient: Patient, where: str, call: str, make: Callable[[Path], object]
) -> None:
    path = patient / where
    make(path)
    with meanwhile(call, path.unlink, when=lambda name: name == path.name):
        assert examine(str(patient.path), pause=0).findings == ()


def test_a_drop_that_no_consumer_will_take_for_its_size_is_found(patient: Patient) -> None:
    with (patient / "drop" / "d").open("wb") as file:
        file.truncate(folders._LARGE + 1)  # no block of it is written
    assert patient.kinds() == {"drop-bad": "note"}


def test_a_drop_that_has_just_come_is_left_to_the_consumer(patient: Patient) -> None:
    driver = Driver(str(patient.path), patient.log)
    driver.do("take")
    (patient / "drop" / "d").touch()
    assert patient.kinds() == {}
    driver.close()


def test_an_index_that_a_reader_cannot_lock_is_read_all_the_same(patient: Patient) -> None:
    with refusing(flock=errno.EBADF):
        report = examine(str(patient.path), pause=0)
    assert report.findings == ()
    assert "last number given out 20" in report.facts[0]


@pytest.mark.parametrize("how", ["no /proc", "not in it"])
def test_a_lock_whose_holder_cannot_be_told_is_found(
    patient: Patient, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> io.StringIO:
        if how == "no /proc":
            raise FileNotFoundError
        return io.StringIO("1: POSIX  ADVISORY  READ 1 00:01:1 0 EOF\n")

    monkeypatch.setattr(admission, "PATIENCE", 0.0)
    monkeypatch.setattr(admission, "open", opened, raising=False)
    with (patient / "index").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (finding,) = examine(str(patient.path), pause=0.01).findings
    assert finding.kind == "admission-held"
    assert finding.signs[0].seen.startswith(
        "a process that cannot be seen from here; the last number was given out at 20"
    )


@pytest.mark.parametrize(
    ("stat", "text"),
    [
        (b"12 (a (b) c) S 1 2", " (a (b) c)"),
        (b"12 (\x1b[2J) t 1 2", " (?[2J, stopped)"),
        (FileNotFoundError(), " (it has ended; a child of it still holds the lock)"),
        (PermissionError(), ""),
    ],
)
def test_of_the_process_that_holds_the_lock_is_told_what_can_be(
    stat: bytes | OSError, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> io.BytesIO:
        if isinstance(stat, OSError):
            raise stat
        return io.BytesIO(stat)

    monkeypatch.setattr(admission, "open", opened, raising=False)
    assert admission._program("12") == text


def test_a_repair_that_cannot_go_on_says_why(patient: Patient) -> None:
    header(
        patient, header_line(patient.last(), "another.", 4096)
    )  # after a boot, the folders are looked through
    (patient / "drop/h").mkdir()
    with (
        refusing(scandir=errno.EIO),
        pytest.raises(UnusableInbox, match=r"cannot finish the repair .*Input/output error"),
    ):
        repair(str(patient.path), pause=0)
    repair(str(patient.path), pause=0)
    assert patient.kinds() == {"ended-odd": "note"}


# --- a file system that does it otherwise -------------------------------------------------------------


def otherwise(name: str, does: Callable[..., Any]) -> Any:
    """While this lasts, the package's calls of this name are done by `does(call, *arguments, **more)`."""

    def hook(called: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        return does(call, *arguments, **more) if called == name else call(*arguments, **more)

    return intercepted(hook)


def opening_for_all(opened: Callable[..., int], path: Any, flags: int, *more: Any, **also: Any) -> int:
    return opened(path, flags & ~os.O_EXCL, *more, **also)


def naming_nothing(opened: Callable[..., int], path: Any, flags: int, *more: Any, **also: Any) -> int:
    if flags & os.O_CREAT:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return opened(path, flags, *more, **also)


@pytest.mark.parametrize(
    ("measurement", "call", "does", "found"),
    [
        (filesystem._exclusive, "open", opening_for_all, (False,)),
        (filesystem._longest, "open", naming_nothing, (0,)),
        (filesystem._any_bytes, "open", naming_nothing, (False,)),
        (filesystem._flock, "flock", lambda call, *_: None, (False, False)),
    ],
)
def test_what_a_file_system_does_otherwise_is_found(
    tmp_path: Path,
    measurement: Callable[[str], Any],
    call: str,
    does: Callable[..., Any],
    found: tuple[Any, ...],
) -> None:
    with otherwise(call, does):
        assert measurement(str(tmp_path)) == found


def test_a_rename_that_leaves_a_moment_without_any_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = threading.Event()

    def opening(*arguments: Any, **more: Any) -> Any:
        try:
            return open(*arguments, **more)
        except FileNotFoundError:
            missed.set()
            raise

    def in_two_steps(rename: Callable[..., None], old: str, new: str) -> None:
        Path(new).unlink()
        assert missed.wait(30)
        rename(old, new)

    monkeypatch.setattr(filesystem, "open", opening, raising=False)
    with otherwise("rename", in_two_steps):
        (race,) = filesystem._race(str(tmp_path))
    assert race.missing > 0


def test_a_file_system_whose_modes_cannot_be_set_is_found(tmp_path: Path) -> None:
    with refusing(chmod=errno.EPERM):
        kept, _ = filesystem._modes(str(tmp_path))
    assert not kept


@pytest.mark.parametrize(
    "library", [SimpleNamespace(), SimpleNamespace(syncfs=lambda fd: -1)], ids=["none", "refused"]
)
def test_a_system_that_cannot_flush_all_is_found(
    tmp_path: Path, library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    with pytest.raises(OSError):
        filesystem._flush_all(str(tmp_path))


# --- the command --------------------------------------------------------------------------------------


def test_the_command_measures_where_there_is_no_inbox_yet(tmp_path: Path) -> None:
    done = run("doctor", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("file system: ")
    assert any(line.startswith("  ok      events fire (ours arrived within ") for line in lines)
    assert lines[-1] == f"no inbox at {tmp_path}/inbox yet"
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == ""


def test_the_command_needs_an_inbox_to_repair_one(tmp_path: Path) -> None:
    done = run("doctor", "--repair", cwd=tmp_path, status=3)
    assert f"there is no inbox at {tmp_path}/inbox: create one with" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_that_all_is_well(patient: Patient) -> None:
    done = run("doctor", "--inbox", patient.path, cwd=patient.path.parent)
    assert done.stdout.splitlines()[-6:] == [
        f"inbox {patient.path}",
        *(f"  ok      {fact}" for fact in examine(str(patient.path)).facts),
        "healthy",
    ]
    assert os.listdir(patient / "tmp") == []


def test_the_command_tells_what_is_wrong_then_mends_it(patient: Patient) -> None:
    replace_by(patient, "index", Path.mkdir)
    (patient / "pending/ä\n").touch()
    for name in "1234":
        (patient / "failed" / name).touch()
    words = ("doctor", "--inbox", patient.path)
    done = run(*words, cwd=patient.path.parent, status=1)
    text = done.stdout
    assert "  repair  index: this should be a regular file, and is not: adds fail" in text
    assert "            --repair: moves it to failed/, with the reason beside it, and makes the file" in text
    assert "  note    'pending/ä\\n': its name is not the name of an element" in text
    assert "  note    failed/1, failed/2, failed/3 and 1 more: it is neither" in text
    assert text.splitlines()[-1] == "not healthy: see above, and run this with --repair"
    assert (
        run(*words, cwd=patient.path.parent, status=1).stdout.partition("inbox /")[2]
        == text.partition("inbox /")[2]
    )
    done = run(*words, "--repair", cwd=patient.path.parent)
    aside = "moved to failed/, with the reason beside it"
    assert f"repair\n  index: {aside}; a new one was made\n  'pending/ä\\n': {aside}\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "healthy"


def test_the_command_says_when_only_a_person_can_help(patient: Patient) -> None:
    last_is(patient, NOW + 300 * DAY)
    done = run("doctor", "--inbox", patient.path, "--repair", cwd=patient.path.parent, status=1)
    assert "            to do: set the clock; or stop every process that uses the inbox" in done.stdout
    assert done.stdout.splitlines()[-1] == "not healthy: a person must see to it; see above"


def test_the_command_says_the_same_in_json(patient: Patient) -> None:
    (patient / "tmp").chmod(0o770)
    words = ("doctor", "--json", "--inbox", patient.path)
    found = json_lines(run(*words, cwd=patient.path.parent, status=1).stdout)
    assert {line["part"] for line in found} == {"file system", "inbox", "verdict"}
    assert {"part", "name", "level", "found", "chosen"} == set(found[0])
    (finding,) = (line for line in found if line["part"] == "inbox" and line["level"] == "repair")
    assert (finding["name"], finding["count"], finding["where"]) == ("mode", 1, ["tmp"])
    assert found[-1] == {"part": "verdict", "inbox": str(patient.path), "healthy": False}
    mended = json_lines(run(*words, "--repair", cwd=patient.path.parent).stdout)
    assert {"part": "repair", "text": "tmp: mode set"} in mended
    assert mended[-1]["healthy"] is True
    nothing = json_lines(run("doctor", "--json", "--inbox", "elsewhere", cwd=patient.path.parent).stdout)
    assert nothing[-1] == {"part": "verdict", "inbox": None, "healthy": True}


def test_the_command_refuses_what_is_no_inbox(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/thesis.txt").touch()
    done = run("doctor", cwd=tmp_path, status=3)
    assert "is not an inbox" in done.stderr
    assert done.stdout == ""


@as_root
def test_where_nothing_can_be_written_the_command_says_so(patient: Patient) -> None:
    point = patient.path.parent
    if subprocess.run(["mount", "--bind", "-o", "ro", point, point], capture_output=True).returncode:
        pytest.skip("needs to mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        done = run("doctor", "--inbox", patient.path, cwd=Path("/"), status=1)
    finally:
        subprocess.run(["umount", point], check=True)
    assert "person  cannot write here: Read-only file system" in done.stdout
    assert f"inbox {patient.path}" in done.stdout


def test_no_other_command_pays_for_the_doctor(patient: Patient) -> None:
    code = """if True:
        import sys
        sys.argv[1:] = ["ls"]
        try:
            import fsinbox.cli
            fsinbox.cli.main()
        finally:
            print("fsinbox.doctor" in sys.modules)
    """
    variables = environment(FSINBOX_DIR=str(patient.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False\n")


def test_a_consumer_and_a_doctor_get_along(patient: Patient) -> None:
    with Consumer("--exec", "true", "--inbox", patient.path, cwd=patient.path.parent) as consumer:
        consumer.until(lambda: not os.listdir(patient / "pending"))
        consumer.until_idle()
        done = run("doctor", "--repair", "--inbox", patient.path, cwd=patient.path.parent)
        assert f"  ok      consumer: pid {consumer.process.pid} on " in done.stdout
        assert done.stdout.splitlines()[-1] == "healthy"


# --- the repair's own crash ---------------------------------------------------------------------------


class Killed(BaseException):
    """The doctor was killed here."""


class Fault:
    """Kills whoever makes the N-th call, or fails that call."""

    def __init__(self, how: str, at: int) -> None:
        """`how`: "kill", or the name of an error. `at`: 0 only counts."""
        self._how = how
        self._at = at
        self.calls = 0
        self.hit = ""

    def __call__(
        self, name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> Any:
        if self._how == "kill" and self.hit:
            if name == "close" or (name == "flock" and arguments[1] == fcntl.LOCK_UN):
                return call(*arguments, **more)  # which the kernel does for the dead
            raise Killed
        self.calls += 1
        if self.calls != self._at:
            return call(*arguments, **more)
        self.hit = f"{name}{arguments}"
        if name == "close":
            call(
                *arguments, **more
            )  # the kernel does it for the dead; and if it fails, the file is closed (close(2))
        if self._how == "kill":
            raise Killed
        number = getattr(errno, self._how)
        raise OSError(number, os.strerror(number))


def break_everything(path: Path, *, low: bool = True) -> list[Event]:
    """Make an inbox with all that a repair can mend at once, and five keys in it; return what was announced.

    `low`: with a line of the index that names a lower place than its key has: until that is mended, a newer
    value does get lost.
    """
    patient = Patient(path)
    driver = Driver(str(path), patient.log)
    for word in ("add:c=1", "add:d=1", "add:e=1"):
        driver.do(word)
    driver.close()
    last = patient.last()
    take_by_hand(patient, "a")  # an orphan ...
    driver = Driver(str(path), patient.log)
    for word in ("add:a=2", "sh:b=2", "mv:c=2"):  # ... for whose key a newer value waits
        driver.do(word)
    first = patient.element("b")
    forget(str(path))
    for word in ("add:d=2", "add:b=3"):  # two places each
        driver.do(word)
    driver.close()
    take_by_hand(patient, "e")
    if low:
        line(patient, "b", int(first.name[:19]))
    os.mkfifo(patient / f"pending/{last:019d}-k")
    (patient / "pending/readme").touch()
    (patient / f"deferred/{1:019d}-{last - 10**9:019d}-a").write_bytes(payload("1"))
    (patient / "drop/l").mkdir()
    lone_note(patient)
    (patient / "attempts/readme").touch()
    (patient / f"failed/{last:019d}-m~reason.txt").touch()
    return patient.log.events


def break_frame(path: Path) -> None:
    """The same for folders and files, that keep everybody else out."""
    (path / "format").unlink()
    shutil.rmtree(path / "attempts")
    replace_by_link = path / "consumer.lock"
    replace_by_link.unlink()
    replace_by_link.symlink_to("elsewhere")
    (path / "index").write_bytes(b"what?")
    (path / "tmp").chmod(0o770)


KEYS = ("a", "b", "c", "d", "e")
FAULTS = ("kill", "EIO", "ENOSPC")


def crashed(path: Path, how: str, at: int) -> Fault:
    """Repair it with a fault; whatever that leads to."""
    fault = Fault(how, at)
    with intercepted(fault):
        try:
            repair(str(path), pause=0)
        except (Killed, InboxError):
            pass
    return fault


def recovered(path: Path, before: list[Event], way: str, *, first: bool) -> list[str]:
    """Return what is wrong afterwards. `first`: a second repair comes before the consumer; else the consumer
    comes at once."""
    wrong = unhealthy(path) if first else []
    wrong += judge([*all_died(before), *aftermath(str(path), way, KEYS)])
    return wrong + unhealthy(path)


def unhealthy(path: Path) -> list[str]:
    """Repair it, and return what is wrong then. A reason that could not be written, and a drop not ingested,
    are no damage."""
    repair(str(path), pause=0)
    findings = examine(str(path), pause=0).findings
    return [
        f"still {finding.kind}: {finding.signs}"
        for finding in findings
        if finding.kind not in ("no-reason", "drop-waits", "ended-odd")
    ]


@pytest.mark.faults
@pytest.mark.parametrize("how", ["ENOENT", "EACCES"])
def test_a_look_in_which_any_call_fails_tells_something_or_says_why_not(
    inbox_dir: Path, how: str, figure: Callable[[str], None]
) -> None:
    """ENOENT: what was listed is gone when it is looked at."""
    break_everything(inbox_dir)
    (inbox_dir / "drop/x.part").touch()
    at = told = 0
    while True:
        at += 1
        fault = Fault(how, at)
        with intercepted(fault):
            try:
                told += bool(examine(str(inbox_dir), pause=0).findings)
            except UnusableInbox as error:
                assert os.strerror(getattr(errno, how)) in str(error) or "is not an inbox" in str(error)
        if not fault.hit:
            break
    assert at > 100 and told > at / 3
    figure(f"{at - 1} calls of a look, each failed with {how}; {told} told of the rest all the same")


@pytest.mark.faults
def test_a_measurement_whose_calls_fail_is_told_of_and_leaves_nothing_behind(tmp_path: Path) -> None:
    names: set[str] = set()

    def note(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        names.add(name)
        return call(*arguments, **more)

    with intercepted(note):
        assert measure(str(tmp_path)).errors == {}
    assert {"mkdir", "rename", "symlink", "flock", "fsync", "statvfs", "chmod"} <= names
    for broken in sorted(names - {"close"}):

        def refuse(
            name: str,
            call: Callable[..., Any],
            arguments: tuple[Any, ...],
            more: dict[str, Any],
            broken: str = broken,
        ) -> Any:
            if name == broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **more)

        with intercepted(refuse):
            try:
                facts = measure(str(tmp_path))
            except OSError:
                assert broken == "mkdir"  # there is no place to measure in
            else:
                assert all(line.found for line in describe(facts))
        assert os.listdir(tmp_path) == [], broken


@pytest.mark.faults
@pytest.mark.parametrize("ident", [f"{how}-{what}" for how in FAULTS for what in ("content", "frame")])
def test_a_repair_that_dies_or_fails_at_every_call_loses_nothing(
    tmp_path: Path, ident: str, figure: Callable[[str], None]
) -> None:
    how, _, what = ident.partition("-")
    frame = what == "frame"
    only = os.environ.get("DOCTOR_CALL", "").split(":")
    if len(only) == 2 and only[0] != how:
        pytest.skip(f"only {os.environ['DOCTOR_CALL']} is asked for")
    broken = [tmp_path / "broken", tmp_path / "and-not-mended"]
    before = [break_everything(broken[0]), break_everything(broken[1], low=False)]
    if frame:
        break_frame(broken[0])
    at, hits, bad = 0, 0, []
    while True:
        at = int(only[1]) if len(only) == 2 else at + 1
        path = tmp_path / "inbox"
        first = frame or at % 2 == 0
        subprocess.run(["cp", "-a", broken[not first], path], check=True)
        fault = crashed(path, how, at)
        hits += bool(fault.hit)
        way = ("drain", "add", "recover-add")[at % 3]
        try:
            wrong = recovered(path, before[not first], way, first=first)
        except Exception as error:
            wrong = [f"raised {error!r}"]
        if wrong:
            replay = (
                f"DOCTOR_CALL={how}:{at} python -m pytest tests/test_doctor.py -k 'every_call and {ident}'"
            )
            bad.append(f"{fault.hit}: {wrong}; replay: {replay}")
        shutil.rmtree(path)
        if not fault.hit or len(only) == 2:
            break
    assert bad == [], "\n".join(bad[:5])
    assert len(only) == 2 or hits == at - 1 > 150
    figure(f"{hits} calls, each {'killed at' if how == 'kill' else 'failed with ' + how}, 0 lost")


def test_a_repair_that_is_not_disturbed_mends_everything_at_once(inbox_dir: Path) -> None:
    before = break_everything(inbox_dir)
    break_frame(inbox_dir)
    lines = repair(str(inbox_dir), pause=0)
    assert len(lines) >= 12
    assert not [line for line in lines if "left as it is" in line]
    assert unhealthy(inbox_dir) == []
    assert repair(str(inbox_dir), pause=0) == []
    assert judge([*all_died(before), *aftermath(str(inbox_dir), "add", KEYS)]) == []


# --- while others work --------------------------------------------------------------------------------


class Suspicious(examination.Look):
    """Holds the index for wrong, whatever it is."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.signs.add(Sign("index-low", "index"))


@pytest.mark.parametrize("consumer", [False, True], ids=["producers", "and-a-consumer"])
def test_repairs_while_producers_add_lose_nothing(
    tmp_path: Path, consumer: bool, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    """Three producers, five keys. Each repair holds the index for wrong, and makes it anew."""
    monkeypatch.setattr(mending, "Look", Suspicious)
    path = tmp_path / "inbox"
    Inbox(path).close()
    children: list[subprocess.Popen[bytes]] = []
    try:
        for who in range(3):
            program = [f"quick:{KEYS[(turn + who) % 5]}={who}-{turn}" for turn in range(ADDS)]
            children.append(start_driver(path, tmp_path / f"log{who}", program))
        if consumer:
            children.append(start_driver(path, tmp_path / "log3", ["take", "ack"] * ADDS))
        repairs = 0
        while any(child.poll() is None for child in children[:3]):
            repair(str(path), pause=0)
            repairs += 1
        assert [child.wait(60) for child in children] == [0] * len(children)
        events = sorted(
            (event for who in range(4) for event in read_log(tmp_path / f"log{who}")),
            key=lambda event: event.t,
        )
        assert sum(event.what == "add_end" for event in events) == 3 * ADDS
        assert repairs > 10
        assert judge([*all_died(events), *aftermath(str(path), "drain")]) == []
        figure(f"the index was rebuilt {repairs} times beside {3 * ADDS:,} adds, 0 lost")
    finally:
        for child in children:
            child.kill()
            child.wait()


ADDS = 1500


def start_driver(path: Path, log: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that does what the words say."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.driver", path, log, *words],
        cwd=Path(__file__).parents[1],
        env=environment(),
    )
