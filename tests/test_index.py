"""The file `index`: header, table, and lock. Whatever becomes of it, no value is lost, and no number is given
out twice."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import sys
import time
from binascii import crc32
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox, UnusableInbox
from fsinbox.store.boot import boot_tag
from fsinbox.store.index import FEWEST_LINES, Index
from fsinbox.store.lines import BUCKET, HEADER, LINE, header_line, lines_with, read_header
from fsinbox.store.names import element_name, encode_key
from fsinbox.store.section import Busy
from tests.shim import intercepted, refusing
from tests.usual import drain, held, is_free, names, take


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, max_inflight=9) as inbox:
        yield inbox


def index_of(inbox: Inbox) -> Path:
    return Path(inbox.path, "index")


def lines_of(inbox: Inbox) -> list[tuple[int, int, int]]:
    """Return (which line, CRC, number) of all lines that are not blank."""
    table = index_of(inbox).read_bytes()[HEADER:]
    found = []
    for at in range(0, len(table), LINE):
        line = table[at : at + LINE]
        if line != bytes(LINE):
            assert line[10:11] == b" " and line[30:] == b" \n"
            found.append((at // LINE, int(line[:10]), int(line[11:30])))
    return found


def seq(inbox: Inbox, key: str) -> int:
    waiting = inbox.find(key)
    assert waiting
    return waiting.seq


def twins() -> tuple[str, str]:
    """Return two keys of one CRC-32."""
    choose = random.Random(32)
    seen: dict[int, str] = {}
    while True:
        key = f"{choose.getrandbits(64):016x}"
        other = seen.setdefault(crc32(key.encode()), key)
        if other is not key:
            return other, key


def keys_of_one_bucket(many: int, lines: int = FEWEST_LINES, bucket: int = 5) -> list[str]:
    """Return so many keys that share a bucket, each with a CRC of its own."""
    found: dict[int, str] = {}
    for number in count():
        crc = crc32(f"b{number}".encode())
        if crc % (lines // BUCKET) == bucket:
            found.setdefault(crc, f"b{number}")
            if len(found) == many:
                return list(found.values())
    raise AssertionError


# --- what is in it ------------------------------------------------------------------------------------


def test_the_header_says_the_last_number_the_boot_and_how_many_lines_there_are(inbox: Inbox) -> None:
    inbox.add("a", 1)
    data = index_of(inbox).read_bytes()
    assert data[:HEADER] == header_line(seq(inbox, "a"), boot_tag(), FEWEST_LINES)
    assert (
        data[:HEADER] == f"{seq(inbox, 'a'):019d} {boot_tag()} {FEWEST_LINES:010d}".ljust(63).encode() + b"\n"
    )
    assert len(data) == HEADER + FEWEST_LINES * LINE


@pytest.mark.parametrize("key", ["a", "é/\n", "k" * 200])
def test_a_key_has_a_line_in_its_bucket(inbox: Inbox, key: str) -> None:
    inbox.add(key, 1)
    crc = crc32(encode_key(key).encode())
    ((at, found, number),) = lines_of(inbox)
    assert (found, number) == (crc, seq(inbox, key))
    assert at // BUCKET == crc % (FEWEST_LINES // BUCKET)


def test_a_value_that_replaces_one_writes_nothing(inbox: Inbox) -> None:
    inbox.add("a", 1)
    before = index_of(inbox).read_bytes()
    assert inbox.add("a", 2) == "replaced"
    assert index_of(inbox).read_bytes() == before


def test_a_key_that_comes_again_and_again_has_two_lines_at_most(inbox: Inbox) -> None:
    """The one of before is kept: another key may have its CRC."""
    for number in range(50):
        inbox.add("a", number)
        inbox.add("b", number)
        assert [key for key, _ in drain(inbox)] == ["a", "b"]
    assert len(lines_of(inbox)) == 4


def test_the_line_of_the_lowest_number_is_written_over(inbox: Inbox) -> None:
    numbers = []
    for number in range(5):
        inbox.add("a", number)
        numbers.append(seq(inbox, "a"))
        assert drain(inbox) == [("a", number)]
        assert sorted(number for _, _, number in lines_of(inbox)) == numbers[-2:]


def test_of_two_places_that_are_both_known_the_higher_is_the_key_s(inbox: Inbox) -> None:
    inbox.add("a", 1)
    element = take(inbox)
    inbox.add("a", 2)
    (higher,) = names(inbox, "pending")
    lower = Path(inbox.path, "pending", names(inbox, "inflight")[0])
    element.ack()
    lower.write_text("1")  # by hand, or from a backup
    assert inbox.add("a", 3) == "replaced"
    assert (lower.read_text(), Path(inbox.path, "pending", higher).read_text()) == ("1", "3")


def test_after_a_boot_the_table_is_made_anew(inbox: Inbox) -> None:
    inbox.add("a", 1)
    last = seq(inbox, "a")
    with index_of(inbox).open("r+b") as file:
        file.write(header_line(last, "0ld-boot", FEWEST_LINES) + bytes(FEWEST_LINES * LINE))
    with Inbox(inbox.path) as other:
        assert other.add("a", 2) == "replaced", "found in pending/, as no line of this boot says so"
    assert read_header(index_of(inbox).read_bytes()[:HEADER]) == (last, boot_tag(), FEWEST_LINES)


@pytest.mark.parametrize("line", [b" %010d %019d \n", b"%010d %019d\n ", b"%010d %019d  "])
def test_what_is_no_line_of_ours_is_none(line: bytes) -> None:
    assert lines_with((line % (7, 1)).ljust(BUCKET * LINE, b"\0"), 7) == []


@pytest.mark.parametrize("folder", ["pending", "failed", "inflight", "deferred"])
def test_numbers_go_on_above_all_that_are_in_use_when_the_index_is_lost(inbox: Inbox, folder: str) -> None:
    ahead = time.time_ns() + 3600 * 10**9  # the clock was set back by an hour
    name = element_name(ahead, "x")
    Path(inbox.path, folder, f"{1:019d}-{name}" if folder == "deferred" else name).write_text("1")
    index_of(inbox).unlink()
    inbox.add("a", 1)
    assert max(names(inbox, "pending")) == element_name(ahead + 1, "a")


def test_of_two_keys_of_one_crc_each_is_known(inbox: Inbox) -> None:
    one, other = twins()
    assert inbox.add(one, 1) == inbox.add(other, 1) == "new"
    assert inbox.add(one, 2) == inbox.add(other, 2) == "replaced"
    assert len(lines_of(inbox)) == 2
    element = take(inbox)
    assert inbox.add(one, 3) == "behind"
    element.ack()
    assert drain(inbox) == [(other, 2), (one, 3)]
    assert inbox.add(other, 4) == "new"
    assert drain(inbox) == [(other, 4)]


def test_of_many_keys_of_one_crc_and_places_of_one_the_newest_value_is_delivered(inbox: Inbox) -> None:
    """Whatever lines are there, a key is never found at a place below its newest."""
    one, other = twins()
    choose = random.Random(1)
    newest: dict[str, int] = {}
    delivered: dict[str, int] = {}
    for step in range(400):
        what = choose.random()
        if what < 0.5:
            key = choose.choice((one, other))
            inbox.add(key, step, durable=False)
            newest[key] = step
        else:
            element = inbox.take()
            if element:
                assert element.value >= delivered.get(element.key, 0)
                delivered[element.key] = element.value
                choose.choice([element.ack, element.nack, lambda e=element: e.nack(0.000_001)])()
    delivered.update(drain(inbox))
    assert delivered == newest


def test_a_full_bucket_has_the_table_made_anew_and_what_waits_is_still_known(inbox: Inbox) -> None:
    keys = keys_of_one_bucket(40)
    for key in keys[:32]:
        inbox.add(key, 1, durable=False)
    for _ in range(20):
        take(inbox).ack()
    assert len(lines_of(inbox)) == 32
    assert inbox.add(keys[32], 1, durable=False) == "new"
    assert len(lines_of(inbox)) == 13  # those that are gone have no line any more
    assert inbox.add(keys[31], 2) == "replaced"
    assert [key for key, _ in drain(inbox)] == keys[20:33]


def test_a_bucket_that_is_full_of_what_waits_has_the_oldest_line_written_over_and_loses_nothing(
    inbox: Inbox,
) -> None:
    keys = keys_of_one_bucket(40)
    for value in range(2):
        for key in keys:
            inbox.add(key, value, durable=False)
    assert len(lines_of(inbox)) <= 33
    assert inbox.add(keys[-1], 2) == "replaced"
    assert drain(inbox) == [*((key, 1) for key in keys[:-1]), (keys[-1], 2)]


def test_a_table_grows_with_what_waits(inbox: Inbox) -> None:
    inbox.add_many(((f"k{number}", number) for number in range(1200)), durable=False)
    index_of(inbox).unlink()
    assert inbox.add("one more", 1) == "new"
    lines = read_header(index_of(inbox).read_bytes()[:HEADER])[2]
    assert lines == 8 * 1200
    assert len(lines_of(inbox)) == 1201
    assert inbox.add("k7", "newer") == "replaced"


def test_looking_for_a_key_reads_the_table_only(inbox: Inbox) -> None:
    inbox.add("a", 1)
    with intercepted(refuse("listdir", "scandir")):
        assert seq(inbox, "a")
    index_of(inbox).write_bytes(b"")
    assert seq(inbox, "a")  # by a listing


def refuse(*calls: str) -> Callable[..., Any]:
    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        assert name not in calls
        return call(*arguments, **more)

    return hook


# --- a header is whole, or none -----------------------------------------------------------------------

GOOD = header_line(1795831432962440674, "0a1b2c3d", 4096)


def test_a_header_is_read_as_it_was_written() -> None:
    assert read_header(GOOD) == (1795831432962440674, "0a1b2c3d", 4096)
    assert read_header(header_line(0, "0a1b2c3d", 0)) == (0, "0a1b2c3d", 0)


@pytest.mark.parametrize("byte", [b"\0", b"\n", b"-", b"\xff", b"\xb2"])
def test_a_header_with_a_byte_that_does_not_belong_there_is_damage(byte: bytes) -> None:
    for at in range(HEADER):
        spoilt = GOOD[:at] + byte + GOOD[at + 1 :]
        if spoilt != GOOD and not (
            20 <= at < 28 and byte.isascii()
        ):  # (the tag may be any text: it is not this boot's)
            assert read_header(spoilt) == (0, "", 0), f"byte {at}"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\n",
        b"9" * 19 + GOOD[19:],
        b"9" + b"0" * 18 + GOOD[19:],
        GOOD[:29] + b"0000004095" + GOOD[39:],
        b"+" + GOOD[1:],
        b"1_" + GOOD[2:],
        GOOD.replace(b" ", b"\t"),
        GOOD[:40] + b"x" + GOOD[41:],
    ],
)
def test_a_header_of_another_form_is_damage(header: bytes) -> None:
    assert read_header(header) == (0, "", 0)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff" * 32,
        b"%010d " % crc32(b"a") + b"9" * 19 + b" \n",
        b"%010d " % crc32(b"a") + b"0" * 19 + b" \n",
        b"%010d " % crc32(b"a") + b"\xb2" * 19 + b" \n",
        b"%010d " % crc32(b"a") + b"-" * 21,
        b"%010d " % crc32(b"a") + bytes(21),
        b"x" * 5 + b"%010d " % crc32(b"a") + b"0" * 16,
    ],
)
def test_a_line_that_is_damaged_means_not_known(inbox: Inbox, line: bytes) -> None:
    inbox.add("a", 1)
    ((at, _, _),) = lines_of(inbox)
    with index_of(inbox).open("r+b") as file:
        file.seek(HEADER + at * LINE)
        file.write(line)
    assert inbox.add("a", 2) == "new"
    assert inbox.add("a", 3) == "replaced"
    assert drain(inbox) == [("a", 3)]


# --- lost, emptied, replaced, while it is in use ------------------------------------------------------


def another_inbox_s(inbox: Inbox, elsewhere: Path) -> bytes:
    with Inbox(elsewhere / "another") as another:
        for key in "abcdef":
            another.add(key, 0)
        return index_of(another).read_bytes()


def put(inbox: Inbox, data: bytes | None, how: str) -> None:
    """Have these bytes in `index`: in the same file, or in another one that takes its place."""
    index = index_of(inbox)
    if data is None:
        index.unlink(missing_ok=True)
    elif how == "written":
        index.write_bytes(data)
    else:
        other = index.with_name("index.new")
        other.write_bytes(data)
        other.rename(index)


WAYS: dict[str, Callable[[Inbox, Path, bytes], bytes | None]] = {
    "removed": lambda inbox, elsewhere, old: None,
    "emptied": lambda inbox, elsewhere, old: b"",
    "another inbox's": lambda inbox, elsewhere, old: another_inbox_s(inbox, elsewhere),
    "an old copy": lambda inbox, elsewhere, old: old,
    "its first half": lambda inbox, elsewhere, old: index_of(inbox).read_bytes()[
        : HEADER + FEWEST_LINES * LINE // 2
    ],
    "no table": lambda inbox, elsewhere, old: header_line(
        read_header(index_of(inbox).read_bytes()[:HEADER])[0], boot_tag(), 0
    ),
}


@pytest.mark.parametrize("written", ["written", "renamed"])
@pytest.mark.parametrize("way", WAYS)
def test_an_index_that_is_replaced_in_use_loses_no_value(
    inbox: Inbox, tmp_path: Path, way: str, written: str
) -> None:
    for key in "ab":
        inbox.add(key, "old")
    old = index_of(inbox).read_bytes()
    a = take(inbox)
    inbox.add("a", "newer")  # behind it
    inbox.add("c", 1)
    last = seq(inbox, "c")
    put(inbox, WAYS[way](inbox, tmp_path, old), written)
    inbox.add("b", "newer")
    inbox.add("c", 2)
    inbox.add("d", 1)
    assert seq(inbox, "d") > last
    a.nack()  # what was in flight is not taken for the newest
    inbox.add("a", "newest")
    ages = {"old": 0, "newer": 1, "newest": 2}
    delivered: dict[str, list[Any]] = {}
    for key, value in drain(inbox):
        delivered.setdefault(key, []).append(value)
    assert {key: values[-1] for key, values in delivered.items()} == {
        "a": "newest",
        "b": "newer",
        "c": 2,
        "d": 1,
    }
    assert all(
        values == sorted(values, key=lambda value: ages.get(value, 0)) for values in delivered.values()
    )


@pytest.mark.parametrize("written", ["written", "renamed"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["nack", "defer"])
def test_a_value_that_goes_back_just_when_the_index_was_replaced_is_not_above_a_newer_one(
    inbox: Inbox, tmp_path: Path, way: str, written: str, end: str
) -> None:
    """(An old copy is only known for one by who has seen a later number: here, the consumer.)"""
    inbox.add("a", "old")
    old = index_of(inbox).read_bytes()
    a = take(inbox)
    inbox.add("a", "newer")
    assert inbox.take() is None
    put(inbox, WAYS[way](inbox, tmp_path, old), written)
    a.nack(0.000_001 if end == "defer" else 0)
    with Inbox(inbox.path) as producer:
        producer.add("a", "newest")
    delivered = [value for _, value in drain(inbox)]
    assert delivered[-1] == "newest"
    assert delivered == [value for value in ("old", "newer", "newest") if value in delivered]
    assert names(inbox, "pending") == names(inbox, "deferred") == []


@pytest.mark.parametrize("order", [("lower", "higher"), ("higher", "lower")])
def test_a_key_at_two_places_is_unknown_to_a_new_index_whichever_is_listed_first(
    inbox: Inbox, order: tuple[str, str]
) -> None:
    inbox.add("z", 0)
    now = time.time_ns()
    numbers = {"lower": now, "higher": now + 1}
    for place in order:
        Path(inbox.path, "pending", element_name(numbers[place], "a")).write_text("1")
    inbox.index.locked(inbox.index.make_anew)
    assert inbox.index.peek_place("a") == 0
    assert inbox.index.peek_place("z") > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_random_run_in_which_the_index_is_replaced_again_and_again_loses_nothing(
    inbox: Inbox, tmp_path: Path, way: str
) -> None:
    choose = random.Random(way)
    newest: dict[str, int] = {}
    delivered: dict[str, int] = {}
    out = []
    inbox.add("z", 0)
    old = index_of(inbox).read_bytes()
    newest["z"] = 0
    for step in range(1, 600):
        what = choose.random()
        if what < 0.4:
            key = choose.choice("abcde")
            inbox.add(key, step, durable=False)
            newest[key] = step
        elif what < 0.6:
            if element := inbox.take():
                assert element.value >= delivered.get(element.key, 0), "an older value after a newer one"
                delivered[element.key] = element.value
                out.append(element)
        elif what < 0.85:
            if out:
                element = out.pop(choose.randrange(len(out)))
                choose.choice([element.ack, element.nack, lambda e=element: e.nack(0.000_001)])()
        elif what < 0.9:
            old = index_of(inbox).read_bytes() if index_of(inbox).exists() else old
        else:
            put(inbox, WAYS[way](inbox, tmp_path, old), choose.choice(["written", "renamed"]))
    for element in out:
        element.ack()
    while element := inbox.take(timeout=0.01):
        assert element.value >= delivered.get(element.key, 0)
        delivered[element.key] = element.value
        element.ack()
    assert delivered == newest


# --- numbers that are believed, and the clock ---------------------------------------------------------


def set_clock(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    real = time.time_ns
    monkeypatch.setattr("fsinbox.store.index.time_ns", lambda: real() + int(days * 86_400) * 10**9)


@pytest.mark.parametrize("where", ["in flight", "deferred"])
@pytest.mark.parametrize("days", [-2, -30, -3650])
def test_a_clock_that_is_set_back_hides_nothing_that_is_in_flight_or_deferred(
    inbox: Inbox, where: str, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the index is lost: else the next value would be given a lower number, and be dropped for the
    older."""
    inbox.add("a", "old")
    element = take(inbox)
    number = element.seq
    if where == "deferred":
        element.nack(delay=3600)
    index_of(inbox).unlink()
    set_clock(monkeypatch, days)
    with Inbox(inbox.path) as producer:
        producer.add("a", "new")
        assert seq(producer, "a") > number
    if where == "in flight":
        element.nack()
    assert drain(inbox) == [("a", "new")]


@pytest.mark.parametrize("folder", ["pending", "failed"])
@pytest.mark.parametrize("number", ["9000000000000000000", "9999999999999999999", "in two days"])
def test_an_absurd_number_is_skipped(inbox: Inbox, folder: str, number: str) -> None:
    inbox.add("a", 1)
    absurd = int(number) if number.isdigit() else time.time_ns() + 2 * 86_400 * 10**9
    Path(inbox.path, folder, element_name(absurd, "x")).write_text("1")
    index_of(inbox).unlink()
    before = time.time_ns()
    inbox.add("b", 1)
    assert before <= seq(inbox, "b") <= time.time_ns()
    assert inbox.add("a", 2) == "replaced"


@pytest.mark.parametrize("folder", ["inflight", "deferred"])
def test_an_absurd_number_among_what_the_consumer_holds_is_skipped(inbox: Inbox, folder: str) -> None:
    name = element_name(9 * 10**18, "x")
    Path(inbox.path, folder, f"{9:019d}-{name}" if folder == "deferred" else name).write_text("1")
    before = time.time_ns()
    inbox.add("b", 1)
    assert before <= seq(inbox, "b") <= time.time_ns()


@pytest.mark.parametrize("years", [300, -100])
def test_a_clock_that_is_wrong_by_centuries_does_not_count(
    inbox: Inbox, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add("a", 1)
    first = seq(inbox, "a")
    monkeypatch.setattr("fsinbox.store.index.time_ns", lambda: time.time_ns() + years * 365 * 86_400 * 10**9)
    inbox.add("b", 1)
    assert seq(inbox, "b") == first + 1


# --- made anew ----------------------------------------------------------------------------------------


def test_a_key_that_is_in_flight_or_deferred_gets_no_line_when_the_table_is_made_anew(inbox: Inbox) -> None:
    """What waits of it may be older than that, and count as newer (it has come back to its place)."""
    for key in "abc":
        inbox.add(key, "old")
    take(inbox).nack(delay=1000)
    b = take(inbox)
    for key in "abc":
        inbox.add(key, "new")
    index_of(inbox).unlink()
    assert inbox.add("d", 1) == "new"
    assert sorted(crc for _, crc, number in lines_of(inbox) if number) == sorted(
        crc32(key.encode()) for key in "cd"
    )
    b.ack()
    assert inbox.add("b", "newest") == "new"
    assert sorted(drain(inbox)) == [("a", "new"), ("b", "newest"), ("c", "new"), ("d", 1)]


def test_a_table_that_was_left_half_made_is_made_anew(inbox: Inbox) -> None:
    inbox.add("a", 1)
    index_of(inbox).unlink()
    with (
        refusing(posix_fallocate=errno.ENOSPC),
        pytest.raises(AddFailed, match=r"No space left.*was not added"),
    ):
        inbox.add("b", 1)
    assert names(inbox, "tmp") == []
    last, _, lines = read_header(index_of(inbox).read_bytes()[:HEADER])
    assert (last, lines) == (seq(inbox, "a"), 0)
    assert is_free(inbox.path)
    assert inbox.add("a", 2) == "replaced"


def test_where_nothing_can_be_allocated_the_table_is_made_all_the_same(inbox: Inbox) -> None:
    index_of(inbox).unlink()
    with refusing(posix_fallocate=errno.EOPNOTSUPP):
        inbox.add("a", 1)
    assert inbox.add("a", 2) == "replaced"


@pytest.mark.bare
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss differs")
def test_a_producer_s_memory_does_not_grow_with_what_waits(
    inbox_dir: Path, run_python: Callable[..., str]
) -> None:
    """It makes the table anew of 50,000 elements."""
    code = """
import os, resource, sys
from fsinbox import Inbox
with Inbox(sys.argv[1], durable=False) as inbox:
    inbox.add("a", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.argv[2] == "many":
        for number in range(50_000):
            with open(f"{sys.argv[1]}/pending/{number:019d}-key{number}", "w"):
                pass
    os.unlink(sys.argv[1] + "/index")
    inbox.add("b", 1)
    inbox.add("c", 1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    few = int(run_python(code, inbox_dir, "few"))
    many = int(run_python(code, inbox_dir, "many"))
    assert many - few < 2048, f"{few} KB, {many} KB"


# --- what the system refuses --------------------------------------------------------------------------


def offset_of(arguments: tuple[Any, ...]) -> int:
    return int(arguments[2])


@pytest.mark.parametrize("what", ["line", "header"])
@pytest.mark.parametrize("how", ["refused", "only a part"])
def test_a_number_whose_header_or_line_cannot_be_written_is_not_used(
    inbox: Inbox, what: str, how: str
) -> None:
    """The add fails before anything can be seen of it: a value that nobody knows of must not be followed by a
    lower number."""
    inbox.add("z", 1)

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "rename":
            raise AssertionError("something was published")
        if name == "pwrite" and (offset_of(arguments) == 0) == (what == "header"):
            if how == "refused":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(arguments[0], arguments[1][:5], arguments[2])
        return call(*arguments, **more)

    with intercepted(hook), pytest.raises(AddFailed, match="was not added") as caught:
        inbox.add("a", 1)
    assert not caught.value.maybe_added
    assert names(inbox, "tmp") == []
    assert [waiting.key for waiting in inbox] == ["z"]
    assert is_free(inbox.path)
    assert inbox.add("a", 2) == "new"
    assert inbox.add("z", 2) == "replaced"
    numbers = [waiting.seq for waiting in inbox]
    assert numbers == sorted(set(numbers))
    assert drain(inbox) == [("z", 2), ("a", 2)]


@pytest.mark.parametrize("call", ["open", "flock", "fstat", "pread"])
def test_a_lock_that_is_refused_is_left_free(inbox: Inbox, call: str) -> None:
    index = inbox._handle.index
    index.close()
    for run in (index.locked, index.try_locked):
        with refusing(**{call: errno.ENOLCK}), pytest.raises(OSError, match="locks"):
            run(index.last_number)
        assert is_free(inbox.path)
        index.close()
    assert inbox.add("a", 1) == "new"


def test_a_lock_that_the_system_will_not_give_back_is_given_up_with_its_file(inbox: Inbox) -> None:
    with refusing(flock=errno.EIO, when=lambda fd, how: how == fcntl.LOCK_UN):
        inbox.add("a", 1)
    assert is_free(inbox.path)
    assert inbox.add("a", 2) == "replaced"


def test_whoever_does_not_wait_is_refused_while_another_holds_the_lock(inbox: Inbox) -> None:
    with held(inbox.path):
        began = time.monotonic()
        with pytest.raises(Busy):
            inbox._handle.index.try_locked(inbox._handle.index.last_number)
        assert 0.01 < time.monotonic() - began < 0.5
        with pytest.raises(Busy):
            inbox._handle.index.try_locked(inbox._handle.index.last_number, patience=0)
    assert inbox._handle.index.try_locked(lambda: 7) == 7


def test_whoever_does_not_wait_is_refused_while_a_thread_of_its_own_process_holds_the_lock(
    inbox: Inbox,
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def other() -> None:
        with pytest.raises(Busy):
            inbox._handle.index.try_locked(inbox._handle.index.last_number)

    with ThreadPoolExecutor() as pool:
        inbox._handle.index.locked(lambda: pool.submit(other).result(20))
    assert is_free(inbox.path)


def test_what_a_step_raises_leaves_no_lock(inbox: Inbox) -> None:
    def step() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inbox._handle.index.locked(step)
    assert is_free(inbox.path)


def test_the_last_number_is_read_without_the_lock(inbox: Inbox) -> None:
    inbox.add("a", 1)
    with held(inbox.path):
        assert inbox._handle.index.peek() == inbox._handle.index.mark() == seq(inbox, "a")
    index_of(inbox).unlink()
    assert inbox._handle.index.peek() == 0
    assert seq(inbox, "a")


@pytest.mark.parametrize("kind", ["a directory", "a link", "a FIFO", "another name"])
def test_what_is_no_index_of_ours_is_not_written_to(inbox: Inbox, tmp_path: Path, kind: str) -> None:
    inbox.add("a", 1)
    inbox._handle.index.close()
    index, other = index_of(inbox), tmp_path / "other"
    shutil.copy(index, other)
    index.unlink()
    {
        "a directory": index.mkdir,
        "a link": lambda: index.symlink_to(other),
        "a FIFO": lambda: os.mkfifo(index),
        "another name": lambda: os.link(other, index),
    }[kind]()
    before = other.read_bytes()
    with pytest.raises(AddFailed, match="was not added"):
        inbox.add("b", 1)
    assert other.read_bytes() == before
    assert names(inbox, "tmp") == []


def test_without_proc_an_inbox_says_what_is_missing(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def gone(path: str, *_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr("fsinbox.store.boot.open", gone, raising=False)
    with pytest.raises(UnusableInbox, match="mount /proc"):
        Inbox(inbox.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_index_may_be_closed_twice(inbox: Inbox) -> None:
    index = Index(inbox._handle.layout)
    index.locked(index.last_number)
    index.close()
    index.close()
    assert is_free(inbox.path)
