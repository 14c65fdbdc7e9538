"""Proves that fsinbox does what tests/vectors/ says: the vectors by which anybody may test a producer of
their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any
from unittest import mock
from zlib import crc32

import pytest

import fsinbox.store.drops
import fsinbox.store.index
import fsinbox.store.lines
from fsinbox import Inbox, InvalidKey
from fsinbox.consumer.ownership import Shard
from fsinbox.store.drops import finished_drop
from fsinbox.store.layout import Layout
from fsinbox.store.lines import BUCKET, HEADER, LINE, header_line, read_header
from fsinbox.store.names import decode_key, element_name, encode_key
from fsinbox.store.network.sections import read_words
from fsinbox.store.opening import open_index

VECTORS = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    """Return the vectors of a kind."""
    return json.loads((VECTORS / f"{name}.json").read_text())


def cases(name: str, part: str) -> pytest.MarkDecorator:
    """Run a test with each of the cases in a part of the vectors of a kind."""
    found = load(name)[part]
    return pytest.mark.parametrize("case", found, ids=[f"{part}-{at}" for at in range(len(found))])


@pytest.fixture
def layout(inbox_dir: Path) -> Layout:
    """An inbox."""
    Inbox(inbox_dir).close()
    return Layout(str(inbox_dir), create=False)


# --- names --------------------------------------------------------------------------------------------


@cases("keys", "keys")
def test_a_key_has_this_name(case: Any) -> None:
    key = os.fsdecode(bytes.fromhex(case["key"]))
    assert encode_key(key) == case["encoded"]
    assert decode_key(case["encoded"]) == key


@cases("keys", "no_keys")
def test_this_cannot_be_a_key(case: Any) -> None:
    with pytest.raises(InvalidKey):
        encode_key(os.fsdecode(bytes.fromhex(case["key"])))


@cases("keys", "no_encodings")
def test_no_key_has_this_name(case: Any) -> None:
    assert decode_key(case["name"]) is None


@cases("shards", "shards")
def test_a_key_is_of_this_shard_and_its_line_in_this_bucket(case: Any) -> None:
    assert crc32(case["encoded"].encode()) == case["crc"]
    for count, index in case["shard_of"].items():
        assert [at for at in range(1, int(count) + 1) if Shard(at, int(count)).has(case["encoded"])] == [
            index
        ]
    for lines, at in case["bucket_at"].items():
        assert fsinbox.store.lines.bucket_at(case["crc"], int(lines)) == at


# --- the index ----------------------------------------------------------------------------------------


@cases("headers", "local")
def test_a_header_says_this(case: Any) -> None:
    header = case["header"].encode("latin-1")
    if "damaged" in case:
        assert read_header(header) == (0, "", 0), case["damaged"]
    else:
        said = int(case["last"]), case["tag"], case["lines"]
        assert read_header(header) == said
        assert header_line(*said) == header


@cases("headers", "network")
def test_a_header_of_several_hosts_says_this(case: Any, tmp_path: Path) -> None:
    header = case["header"].encode("latin-1")
    if "damaged" in case:
        assert read_words(header) == (0, "", 0, 0, False), case["damaged"]
        return
    assert read_words(header) == (
        int(case["last"]),
        case["tag"],
        case["lines"],
        case["sections"],
        case["done"],
    )
    Inbox(tmp_path / "shared", scope="network").close()
    (tmp_path / "shared" / "index").write_bytes(header)
    assert open_index(Layout(str(tmp_path / "shared"), create=False)).mark() == int(case["mark"])


@cases("lines", "cases")
def test_a_key_has_this_place(case: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = load("lines")
    lines, last, now = (
        vectors["lines"],
        int(case.get("last", vectors["last"])),
        int(case.get("now", vectors["now"])),
    )
    monkeypatch.setattr(fsinbox.store.index, "boot_tag", lambda: vectors["tag"])
    monkeypatch.setattr(fsinbox.store.index, "time_ns", lambda: now)
    number, crc = int(case["place"]), crc32(case["key"].encode())
    bucket = b"".join([line.encode("latin-1").ljust(LINE, b"\0") for line in case["bucket"]]).ljust(
        BUCKET * LINE, b"\0"
    )
    home = crc % (lines // BUCKET) * BUCKET * LINE
    table = bytes(home) + bucket + bytes(lines * LINE - home - len(bucket))
    index = Path(layout.path, "index")
    index.write_bytes(header_line(last, vectors["tag"], lines) + table)
    for name in case["pending"]:
        name, link, _ = name.partition(" ->")
        path = Path(layout.path, "pending", name)
        path.symlink_to("nowhere") if link else path.write_text("")

    ours = open_index(layout)
    assert ours.locked(ours.admit, case["key"])[:2] == (number, case["waits"])

    after = index.read_bytes()
    written = [
        at for at in range(BUCKET) if after[HEADER + home + at * LINE :][:LINE] != bucket[at * LINE :][:LINE]
    ]
    if len(after) != HEADER + len(table):
        assert "anew" in case["write"]
    elif not case["write"]:
        assert after[HEADER:] == table
    else:
        assert written == case["write"][:1]
        assert after[HEADER + home + written[0] * LINE :][:LINE] == b"%010d %019d \n" % (crc, number)
    assert read_header(after[:HEADER])[0] == (last if case["waits"] else number)


@cases("boots", "boots")
def test_numbers_go_on_from_here(case: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = load("boots")
    monkeypatch.setattr(fsinbox.store.index, "boot_tag", lambda: vectors["tag"])
    monkeypatch.setattr(fsinbox.store.index, "time_ns", lambda: int(vectors["now"]))
    Path(layout.path, "index").write_bytes(case["header"].encode("latin-1"))
    for folder, names in case["folders"].items():
        for name in names:
            Path(layout.path, folder, name).write_text("")
    index = open_index(layout)
    assert index.locked(index.last_number) == int(case["last"]), case["why"]


# --- drop/ --------------------------------------------------------------------------------------------


def _replace(path: Path) -> None:
    other = path.with_name(".other")
    other.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "grows": lambda path: os.truncate(path, 100),
    "written": lambda path: path.write_bytes(path.read_bytes()),
    "replaced": _replace,
    "gone": Path.unlink,
}


@cases("drops", "drops")
def test_a_dropped_file_is_finished_or_not(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inbox(tmp_path / "inbox", scope="network" if case.get("network") else "local").close()
    layout = Layout(str(tmp_path / "inbox"), create=False)
    name = case.get("name", "key")
    path = tmp_path / "inbox" / "drop" / name
    if "kind" in case:
        {"link": lambda: path.symlink_to("nowhere"), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}[
            case["kind"]
        ]()
    else:
        path.write_text("value")
        modified = time() + (-100 if case["ctime_after_mtime"] else 100)  # (equal times nobody can set)
        os.utime(path, (modified, modified))
        answer = {"granted": False, "refused": True, "none": None}[case["lease"]]
        monkeypatch.setattr(fsinbox.store.drops, "has_writer", lambda fd: answer)
    waited = mock.Mock(side_effect=lambda seconds: MEANWHILE[case["meanwhile"]](path))
    monkeypatch.setattr(fsinbox.store.drops, "sleep", waited)

    assert finished_drop(layout, name) == (name if case["finished"] else None)

    # (On one host the clock tells how long it has lain still already: since the line before last.)
    waits = [call.args[0] for call in waited.call_args_list]
    assert all(4 < seconds <= 5 for seconds in waits) and len(waits) == ("meanwhile" in case)


def test_the_vectors_have_a_case_of_each_kind() -> None:
    for name, least in {
        "keys": 30,
        "shards": 8,
        "headers": 30,
        "lines": 20,
        "drops": 15,
        "boots": 15,
    }.items():
        parts = [part for part in load(name).values() if isinstance(part, list)]
        assert sum(map(len, parts)) >= least
        assert element_name(0, "a") == "0000000000000000000-a"
