"""store/table.py: the table of `index` as it is made anew, in pieces, whatever waits."""

import itertools
import os
import random
import tracemalloc
from binascii import crc32
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsinbox.store import table
from fsinbox.store.lines import BUCKET, HEADER, LINE, allocate, bucket_at, lines_with
from fsinbox.store.table import NOWHERE, Table

LINES = 4 * BUCKET


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "index", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture(params=["kept in memory", "put down"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two buckets; and whether what is noted of them must go to the file meanwhile."""
    monkeypatch.setattr(table, "PIECE", 2)
    monkeypatch.setattr(table, "_MEMORY", 1 << 20 if request.param == "kept in memory" else 3 * LINE)


def make(fd: int, *folders: list[tuple[int, str]], lines: int = LINES) -> None:
    allocate(fd, lines)
    made = Table(fd, lines, lambda data, offset: os.pwrite(fd, data, offset))
    for folder in folders:
        made.note((f"{number:019d}", key) for number, key in folder)
    made.finish()


def told(fd: int, key: str, lines: int = LINES) -> list[int]:
    """Return the numbers that the table has for a key."""
    crc = crc32(key.encode())
    bucket = os.pread(fd, BUCKET * LINE, bucket_at(crc, lines))
    return [number for number, _ in lines_with(bucket, crc)]


def keys_of_bucket(bucket: int, how_many: int, lines: int = LINES) -> list[str]:
    found = (key for key in map(str, itertools.count()) if crc32(key.encode()) % (lines // BUCKET) == bucket)
    return list(itertools.islice(found, how_many))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("lines", [LINES, LINES + BUCKET], ids=["whole pieces", "a part of one"])
def test_each_key_is_found_by_its_line_and_nothing_else_is_in_the_table(file: int, lines: int) -> None:
    places = {f"key-{number}": number + 1 for number in range(40)}
    make(file, [(number, key) for key, number in places.items()], lines=lines)
    assert {key: told(file, key, lines) for key in places} == {key: [n] for key, n in places.items()}
    whole = os.pread(file, 1 << 20, HEADER)
    assert len(whole) == lines * LINE
    assert len(whole.replace(b"\0", b"")) == len(places) * LINE


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_key_at_two_places_has_no_line_whatever_comes_between(file: int, order: tuple[int, int]) -> None:
    others = [(number, f"key-{number}") for number in range(10, 30)]
    make(file, [(order[0], "a"), *others, (order[1], "a")])
    assert told(file, "a") == []
    assert all(told(file, key) == [number] for number, key in others)


@pytest.mark.usefixtures("memory")
def test_a_key_that_is_nowhere_has_no_line(file: int) -> None:
    make(file, [(1, "a"), (2, "b")], [(int(NOWHERE), "b"), (int(NOWHERE), "c")])
    assert (told(file, "a"), told(file, "b"), told(file, "c")) == ([1], [], [])


@pytest.mark.usefixtures("memory")
def test_of_more_keys_than_a_bucket_has_lines_the_rest_is_unknown(file: int) -> None:
    keys = keys_of_bucket(1, BUCKET + 5)
    make(file, [(number, key) for number, key in enumerate(keys, 1)])
    assert [told(file, key) for key in keys] == [[n] for n in range(1, BUCKET + 1)] + [[]] * 5
    assert told(file, keys_of_bucket(2, 1)[0]) == []


def test_of_more_keys_than_a_piece_has_room_for_none_is_known(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Else the lower of a key's two places might be.)"""
    monkeypatch.setattr(table, "PIECE", 1)
    monkeypatch.setattr(table, "_MEMORY", 2 * LINE)
    crowd = keys_of_bucket(1, BUCKET + 1)
    alone = keys_of_bucket(2, 1)[0]
    make(file, [(number, key) for number, key in enumerate(crowd, 1)] + [(1, alone), (99, crowd[0])])
    assert [told(file, key) for key in crowd] == [[]] * len(crowd)
    assert told(file, alone) == [1]
    assert os.fstat(file).st_size == HEADER + LINES * LINE


def test_a_table_of_any_size_takes_no_more_memory(file: int) -> None:
    def peak(keys: int) -> int:
        tracemalloc.start()
        made = random.Random(1)
        lines = 8 * keys // BUCKET * BUCKET
        allocate(file, lines)
        new = Table(file, lines, lambda data, offset: os.pwrite(file, data, offset))
        new.note((f"{number:019d}", f"{made.getrandbits(64)}") for number in range(keys))
        new.finish()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(160_000) < 1.3 * peak(40_000)
