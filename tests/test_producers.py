"""Proves that producers written from docs/protocol.md alone, in other languages, keep its promises:
examples/producers/.

Each runs alone, against tests/vectors/, beside the others in a small storm judged by tests/oracle.py, and in
inboxes where something stands that should not. A language that is not installed is skipped, and says so.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from fsinbox import Inbox
from fsinbox.store.boot import boot_tag
from fsinbox.store.lines import BUCKET, HEADER, LINE, header_line, read_header
from fsinbox.store.names import encode_key
from tests.driver import payload, value_of
from tests.oracle import Event, judge
from tests.storm.history import _ORDER
from tests.test_vectors import load

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "fsinbox-add"

PRODUCERS: dict[str, tuple[str, Callable[[Path, str], list[str | Path]]]] = {
    "sh": ("sh", lambda inbox, key: [SCRIPT, "--inbox", inbox, "--", key]),
    "perl": ("perl", lambda inbox, key: ["perl", ROOT / "examples/producers/add.pl", inbox, key]),
    "node": ("node", lambda inbox, key: ["node", ROOT / "examples/producers/drop.mjs", inbox, key]),
}
"""name -> the program it needs, and its command."""

FULL = ("sh", "perl")

EVERY = pytest.mark.parametrize("name", list(PRODUCERS))
EVERY_FULL = pytest.mark.parametrize("name", FULL)


def command(name: str, inbox: Path, key: str) -> list[str | Path]:
    """Return the command that adds standard input; skip the test if its language is not there."""
    program, words = PRODUCERS[name]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    return words(inbox, key)


def add(name: str, inbox: Path, key: str, value: bytes, *, fails: bool = False) -> str:
    """Add a value; return what was written to standard error."""
    done = subprocess.run(command(name, inbox, key), input=value, capture_output=True, timeout=30)
    assert (done.returncode != 0) == fails, done.stderr.decode()
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.fixture
def inbox(inbox_dir: Path):
    with Inbox(inbox_dir, codec="bytes", drop_settle=30) as opened:
        yield opened


# --- alone --------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("value", [b"", b"\0\xff\r\n\n", b"x" * (1 << 20)], ids=["empty", "binary", "1 MiB"])
def test_a_value_arrives_byte_for_byte(name: str, inbox: Inbox, inbox_dir: Path, value: bytes) -> None:
    add(name, inbox_dir, "key 1", value)
    assert os.listdir(inbox_dir / "tmp") == []
    taken = inbox.take()
    assert taken and (taken.key, taken.data) == ("key 1", value)


@EVERY
def test_a_value_that_cannot_be_read_is_not_queued(name: str, inbox: Inbox, inbox_dir: Path) -> None:
    folder = os.open(inbox_dir, os.O_RDONLY)  # it can be opened, and not be read
    try:
        done = subprocess.run(command(name, inbox_dir, "a"), stdin=folder, capture_output=True, timeout=30)
    finally:
        os.close(folder)
    assert done.returncode != 0
    assert [path for path in inbox_dir.glob("*/*") if path.is_file()] == []


@EVERY
def test_the_newest_value_of_a_key_is_delivered_whoever_added_it(
    name: str, inbox: Inbox, inbox_dir: Path
) -> None:
    inbox.add("a", b"1")
    add(name, inbox_dir, "a", b"2")
    add(name, inbox_dir, "a", b"3")
    taken = inbox.take()
    assert taken and taken.data == b"3"
    add(name, inbox_dir, "a", b"4")
    inbox.add("a", b"5")
    assert taken.superseded()
    inbox.rollback()
    taken = inbox.take()
    assert taken and taken.data == b"5"
    inbox.commit()
    assert inbox.take() is None


@EVERY_FULL
def test_a_value_replaces_the_waiting_one_and_keeps_its_place(
    name: str, inbox: Inbox, inbox_dir: Path
) -> None:
    for key in ("a", "../b", ".c"):
        inbox.add(key, b"1")
    before = sorted(os.listdir(inbox_dir / "pending"))
    for key in (".c", "../b", "a", "d"):
        add(name, inbox_dir, key, b"2")
    assert sorted(os.listdir(inbox_dir / "pending"))[:3] == before
    assert [(element.key, element.data) for element in inbox] == [
        (key, b"2") for key in ("a", "../b", ".c", "d")
    ]
    assert inbox.add("d", b"3") == "replaced"


@EVERY
def test_what_cannot_be_a_key_is_refused(name: str, inbox: Inbox, inbox_dir: Path) -> None:
    for key in ("", *(["x" * 201] if name in FULL else [".a", "a/b", "a.tmp", "a.Part"])):
        add(name, inbox_dir, key, b"1", fails=True)
    assert [path for path in inbox_dir.glob("*/*") if path.is_file()] == []


@pytest.mark.parametrize("is_written", [False, True])
def test_perl_asks_the_kernel_whether_a_drop_is_being_written(
    inbox: Inbox, inbox_dir: Path, is_written: bool
) -> None:
    drop = inbox_dir / "drop" / "a"
    with drop.open("w") as writer:
        writer.write("dropped")
        if not is_written:
            writer.close()
        later = drop.stat().st_ctime + 100
        os.utime(drop, (later, later))  # its times tell nothing
        add("perl", inbox_dir, "a", b"added")
    assert drop.exists() is is_written
    assert [(element.key, element.data) for element in inbox] == [("a", b"added")]


@EVERY_FULL
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_drop_that_cannot_be_moved_fails_the_add_it_would_follow(
    name: str, inbox: Inbox, inbox_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "draft").write_text("dropped")
    os.utime(tmp_path / "draft", (1, 1))
    (tmp_path / "draft").rename(inbox_dir / "drop" / "a")
    strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        tmp_path / "trace",
        "-e",
        "inject=rename,renameat,renameat2:error=EIO:when=1",
    ]
    done = subprocess.run([*strace, *command(name, inbox_dir, "a")], input=b"added", capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert done.returncode != 0
    assert os.listdir(inbox_dir / "drop") == ["a"]
    assert os.listdir(inbox_dir / "tmp") == os.listdir(inbox_dir / "pending") == []


@EVERY
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_value_is_flushed_before_it_has_a_name_and_the_name_before_it_returns(
    name: str, inbox: Inbox, inbox_dir: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,rename,renameat,renameat2", "-o", trace]
    done = subprocess.run([*strace, *command(name, inbox_dir, "a")], input=b"1", capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if line.rstrip().endswith("= 0")]
    kinds = [
        "publish"
        if "rename" in call
        else "flush value"
        if "/tmp/" in call.partition("inbox")[2]
        else "flush name"
        for call in calls
    ]
    assert kinds == ["flush value", "publish", "flush name"], calls


# --- by the vectors -----------------------------------------------------------------------------------


def run_all(name: str, part: str, check: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """Check each case of tests/vectors/<part>.json in an inbox of its own."""
    for at, case in enumerate(load(part)[{"keys": "keys", "lines": "cases", "boots": "boots"}[part]]):
        folder = tmp_path / f"{at}"
        Inbox(folder).close()
        check(case, folder)
        shutil.rmtree(folder)


@EVERY_FULL
def test_keys_by_the_vectors(name: str, tmp_path: Path) -> None:
    def check(case: Any, folder: Path) -> None:
        key = os.fsdecode(bytes.fromhex(case["key"]))
        if "\0" not in key:  # no program can be given one
            add(name, folder, key, b"1")
            assert [name[20:] for name in os.listdir(folder / "pending")] == [case["encoded"]]

    run_all(name, "keys", check, tmp_path)


@EVERY_FULL
def test_lines_by_the_vectors(name: str, tmp_path: Path) -> None:
    vectors = load("lines")

    def check(case: Any, folder: Path) -> None:
        if "now" in case:
            return
        crc, lines = crc32(case["key"].encode()), vectors["lines"]
        bucket = b"".join([line.encode("latin-1").ljust(LINE, b"\0") for line in case["bucket"]]).ljust(
            BUCKET * LINE, b"\0"
        )
        home = HEADER + crc % (lines // BUCKET) * BUCKET * LINE
        table = bytearray(lines * LINE)
        table[home - HEADER : home - HEADER + len(bucket)] = bucket
        (folder / "index").write_bytes(header_line(int(vectors["last"]), boot_tag(), lines) + table)
        for entry in case["pending"]:
            entry, link, _ = entry.partition(" ->")
            path = folder / "pending" / entry
            path.symlink_to("nowhere") if link else path.write_text("old")
        add(name, folder, case["key"], b"new")

        (number,) = [
            int(path.name[:19])
            for path in (folder / "pending").iterdir()
            if path.exists() and path.read_bytes() == b"new"
        ]
        after = (folder / "index").read_bytes()
        last = read_header(after[:HEADER])[0]
        changed = [
            at for at in range(BUCKET) if after[home + at * LINE :][:LINE] != bucket[at * LINE :][:LINE]
        ]
        if case["waits"]:
            assert (number, last, after[HEADER:]) == (int(case["place"]), int(vectors["last"]), table), case[
                "why"
            ]
        else:
            assert number == last > int(vectors["last"])
            assert (changed or ["none"])[0] in case["write"], case["why"]
            assert [after[home + at * LINE :][:LINE] for at in changed] == [
                b"%010d %019d \n" % (crc, number)
            ] * len(changed)

    run_all(name, "lines", check, tmp_path)


@EVERY_FULL
def test_boots_by_the_vectors(name: str, tmp_path: Path) -> None:
    """The vectors' clock is put half an hour behind ours: so what is absurd is, whatever the time it
    takes."""
    vectors = load("boots")
    shift = time.time_ns() - 1800 * 10**9 - int(vectors["now"])

    def shifted(text: str) -> str:
        return re.sub(r"(?<!\d)1[67]\d{17}(?!\d)", lambda match: str(int(match[0]) + shift), text)

    def check(case: Any, folder: Path) -> None:
        if "exact" in case:
            return
        (folder / "index").write_bytes(
            shifted(case["header"]).replace(vectors["tag"], boot_tag()).encode("latin-1")
        )
        before = set()
        for where, entries in case["folders"].items():
            for entry in entries:
                (folder / where / shifted(entry)).write_text("")
                before.add(shifted(entry))
        began = time.time_ns()
        add(name, folder, "new", b"1")
        (new,) = [int(entry[:19]) for entry in os.listdir(folder / "pending") if entry not in before]
        last = int(shifted(case["last"]))
        if last > began:
            assert new == last + 1, case["why"]
        else:
            assert began - 10**8 <= new < began + 30 * 10**9, case["why"]
        assert read_header((folder / "index").read_bytes()[:HEADER]) == (new, boot_tag(), 0)

    run_all(name, "boots", check, tmp_path)


# --- where something stands that should not -----------------------------------------------------------


@EVERY
@pytest.mark.parametrize("folder", ["tmp", "drop", "pending"])
def test_a_link_in_place_of_a_folder_is_refused(
    name: str, inbox: Inbox, inbox_dir: Path, tmp_path: Path, folder: str
) -> None:
    if folder == "pending" and name not in FULL:
        pytest.skip("a drop-only producer has nothing to do with pending/")
    (inbox_dir / folder).rename(tmp_path / "outside")
    (inbox_dir / folder).symlink_to(tmp_path / "outside")
    assert folder in add(name, inbox_dir, "a", b"1", fails=True)
    assert os.listdir(tmp_path / "outside") == []


@EVERY_FULL
@pytest.mark.parametrize("what", ["link", "dangling link", "hard link", "folder", "fifo"])
def test_an_index_that_is_something_else_is_refused(
    name: str, inbox: Inbox, inbox_dir: Path, tmp_path: Path, what: str
) -> None:
    index, outside = inbox_dir / "index", tmp_path / "outside"
    index.unlink()
    outside.write_text("mine\n")
    make: dict[str, Callable[[], object]] = {
        "link": lambda: index.symlink_to(outside),
        "dangling link": lambda: index.symlink_to(tmp_path / "nothing"),
        "hard link": lambda: os.link(outside, index),
        "folder": index.mkdir,
        "fifo": lambda: os.mkfifo(index),
    }
    make[what]()
    assert "index" in add(name, inbox_dir, "a", b"1", fails=True)
    assert outside.read_text() == "mine\n"
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(inbox_dir / "tmp") == os.listdir(inbox_dir / "pending") == []


@EVERY
def test_a_link_in_place_of_a_value_is_replaced_not_followed(
    name: str, inbox: Inbox, inbox_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("mine\n")
    inbox.add("a", b"1")
    (entry,) = (inbox_dir / "pending").iterdir()
    for path in (inbox_dir / "drop" / "a", entry):
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "outside")
    add(name, inbox_dir, "a", b"2")
    place = entry if name in FULL else inbox_dir / "drop" / "a"
    assert not place.is_symlink()
    assert place.read_bytes() == b"2"
    assert (tmp_path / "outside").read_text() == "mine\n"


@EVERY_FULL
@pytest.mark.parametrize("line", ["fsinbox 1 local\n", "fsinbox 3 local\n", "", "\0" * 200])
def test_another_format_is_refused(name: str, inbox: Inbox, inbox_dir: Path, line: str) -> None:
    (inbox_dir / "format").write_text(line)
    add(name, inbox_dir, "a", b"1", fails=True)
    assert os.listdir(inbox_dir / "tmp") == os.listdir(inbox_dir / "pending") == []


@pytest.mark.parametrize("damage", [b"", b"garbage\n", b"\0" * 4096], ids=["empty", "garbage", "zeros"])
def test_they_go_on_with_a_damaged_index(inbox: Inbox, inbox_dir: Path, damage: bytes) -> None:
    """Also one after the other, in each other's tables."""
    for at, name in enumerate([*FULL, "python", *FULL, "python", *FULL]):
        if at % 3 == 0:
            (inbox_dir / "index").write_bytes(damage)
        if name == "python":
            inbox.add("a", b"%d" % at)
        else:
            add(name, inbox_dir, "a", b"%d" % at)
    taken = inbox.take()
    assert taken and taken.data == b"7"
    inbox.commit()
    assert inbox.take() is None


# --- a storm ------------------------------------------------------------------------------------------


class Storm:
    """Producers of every language that is there, a Python one and a consumer, all on the same few keys."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.until = time.monotonic() + seconds
        self.events: list[Event] = []
        self.failures: list[BaseException] = []
        self.kills = 0
        self.running = 0

    def tell(self, what: str, who: str, key: str, value: str) -> None:
        self.events.append(Event(what, who, key, value, time.monotonic_ns()))

    def produce(self, name: str, seed: int) -> None:
        """Add until the time is up. One program in ten is killed."""
        who, chance, made = f"{name}-{seed}", random.Random(seed), 0
        with Inbox(self.folder, codec="bytes", create=False, durable=False) as inbox:
            while time.monotonic() < self.until:
                made += 1
                # A key is in use for some time: so that for many it shows whether the last value has come.
                key, value = f"{chance.randrange(3)}-{int(time.monotonic() * 2)}", f"{who}.{made}"
                data = payload(value, 20_000 if made % 20 == 0 else 64)
                self.tell("add_start", who, key, value)
                if name == "python":
                    inbox.add_bytes(key, data)
                    time.sleep(0.001)
                elif not self.run(PRODUCERS[name][1](self.folder, key), data, chance):
                    continue
                self.tell("add_end", who, key, value)

    def run(self, words: list[str | Path], data: bytes, chance: random.Random) -> bool:
        program = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert program.stdin
        try:
            program.stdin.write(data)
            program.stdin.close()
        except BrokenPipeError:
            pass
        if chance.random() < 0.1:
            time.sleep(chance.random() * 0.05)
            os.killpg(program.pid, 9)
            self.kills += program.wait() == -9
            return program.returncode == 0
        assert program.wait(60) == 0
        return True

    def consume(self) -> None:
        """Take, and end in each way, until nothing is left."""
        chance = random.Random(0)
        with Inbox(self.folder, codec="bytes", create=False, drop_settle=0) as inbox:
            while True:
                producing = self.running
                element = inbox.take(timeout=0.2)
                if element is None:
                    if producing or inbox.next_look_in() is not None:
                        continue
                    return
                self.tell("deliver", "consumer", element.key, value_of(element.data))
                done = chance.random() < 0.8 or not self.running
                self.tell("ack" if done else "nack", "consumer", element.key, "")
                if done:
                    element.ack()
                elif chance.random() < 0.5:
                    element.nack()
                else:
                    element.nack(delay=chance.random() * 0.1)

    def blow(self, names: list[str]) -> None:
        """Do it all."""

        def guarded(work: Callable[..., None], *words: Any) -> None:
            try:
                work(*words)
            except BaseException as error:
                self.failures.append(error)
            finally:
                self.running -= 1

        producers = [
            threading.Thread(target=guarded, args=(self.produce, name, seed))
            for seed, name in enumerate(names)
        ]
        self.running = len(producers)
        for thread in producers:
            thread.start()
        consumer = threading.Thread(target=guarded, args=(self.consume,))
        consumer.start()
        for thread in producers:
            thread.join()
        consumer.join(60)
        assert not self.failures
        assert not consumer.is_alive()


def test_nothing_is_missed_in_a_storm_of_all_languages(tmp_path: Path, figure: Callable[[str], None]) -> None:
    there = [name for name, (program, _) in PRODUCERS.items() if shutil.which(program)]
    Inbox(tmp_path / "inbox").close()
    storm = Storm(tmp_path / "inbox", 8)
    storm.blow([*there, *there, "python"])
    storm.events.sort(key=lambda event: event.t * 8 + _ORDER[event.what])
    assert judge(storm.events) == []
    for folder in ("pending", "inflight", "deferred", "drop"):
        assert os.listdir(tmp_path / "inbox" / folder) == []
    added = [event.who.partition("-")[0] for event in storm.events if event.what == "add_end"]
    counts = {name: added.count(name) for name in [*there, "python"]}
    for name, count in counts.items():
        assert count >= 10, f"{name} has added no more than {count}"
    delivered = sum(event.what == "deliver" for event in storm.events)
    figure(f"{counts} adds, {storm.kills} kills, {delivered} deliveries, 0 bad")


def test_there_is_a_vector_and_a_producer_for_all_that_the_specification_names() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 170
    assert max(map(len, lines)) <= 120
    for name in ("scripts/fsinbox-add", "examples/producers/", "tests/vectors/"):
        assert name in text
        assert (ROOT / name).exists()
    assert encode_key("a") == "a"
