"""The table: a row a case. See Case in place.py for what the columns mean."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import time_ns
from unittest import mock

import fsinbox.store.index
from fsinbox.store.folders import FOLDERS
from tests.driver import payload
from tests.hostile import things
from tests.hostile.place import CLIENTS, SECRET, Case, Place, unshare
from tests.shim import modules

Put = Callable[[Place, Path], None]

DAY = 24 * 3600 * 10**9


def instead(where: str, put: Put) -> Callable[[Place], Iterator[None]]:
    """Something stands in the place of a folder or a file of the inbox, which is kept; mended: it is back."""

    def damage(place: Place) -> Iterator[None]:
        path = place.inbox / where
        path.rename(place.ground / "kept")
        put(place, path)
        yield
        things.remove(path)
        (place.ground / "kept").rename(path)

    return damage


def gone_for(where: str, put: Put) -> Callable[[Place], None]:
    """Something stands in the place of a file of the inbox, which is lost. Nobody mends it."""

    def damage(place: Place) -> None:
        path = place.inbox / where
        things.remove(path)
        put(place, path)

    return damage


def there(where: str, put: Put, *, left: bool = False) -> Callable[[Place], None]:
    """Something more is there. `{a}` is the name of the element of `a`, `{1}` that of `before-1`; `left`: it
    must stay there."""

    def damage(place: Place) -> None:
        path = place.inbox / where.replace("{a}", place.element("a")).replace(
            "{1}", place.element("before-1")
        )
        things.remove(path)
        put(place, path)
        if left:
            place.leave(path)

    return damage


def all_of(*damages: Callable[[Place], object]) -> Callable[[Place], None]:
    """Several at once, none of which is mended."""

    def damage(place: Place) -> None:
        for step in damages:
            step(place)

    return damage


def all_then(
    first: Callable[[Place], object], last: Callable[[Place], Iterator[None]]
) -> Callable[[Place], Iterator[None]]:
    """Both, the last of which can be mended."""

    def damage(place: Place) -> Iterator[None]:
        first(place)
        yield from last(place)

    return damage


def line(text: bytes) -> Callable[[Place], None]:
    """The line of `a` in the index says something else, behind its CRC: 21 bytes."""

    def damage(place: Place) -> None:
        with open(place.inbox / "index", "r+b", buffering=0) as file:
            found = file.read().index(place.number["a"].encode(), fsinbox.store.index.HEADER)
            os.pwrite(file.fileno(), text, found)

    return damage


def name_of(put: Put) -> str:
    return put.__name__.replace("_", " ")


def nothing(place: Place, path: Path) -> None:
    """Leave it missing."""


# --- folders and files of the inbox -------------------------------------------------------------------

NO_FOLDER = "[Nn]ot a directory|Too many levels|No such file|must be a real directory"
HAS_IT = ("open",)  # whoever had the folder open goes on in it


def with_a_foreign_file(damage: Callable[[Place], Iterator[None]]) -> Callable[[Place], Iterator[None]]:
    """There is something that must be set aside, into the folder that is damaged."""

    def both(place: Place) -> Iterator[None]:
        (place.inbox / "pending/readme").write_text("")
        yield from damage(place)

    return both


FOLDER_CASES = [
    *(
        Case(
            f"{folder}/ is a link to a folder outside",
            instead(folder, things.link_to_folder),
            fatal=True,
            refused=rf"{folder}\W.*({NO_FOLDER})",
            unseen=HAS_IT,
        )
        for folder in FOLDERS
        if folder != "failed"
    ),
    Case(
        "failed/ is a link to a folder outside",
        with_a_foreign_file(instead("failed", things.link_to_folder)),
        fatal=True,
        refused=rf"failed\W.*({NO_FOLDER})",
        aside="pending/readme.*its name",
        unseen=HAS_IT,
    ),
    *(
        Case(
            f"pending/ is a {name_of(put)}",
            instead("pending", put),
            fatal=True,
            refused=rf"pending\W.*({NO_FOLDER})",
            unseen=HAS_IT,
            root=put in things.DEVICES,
        )
        for put in (
            things.fifo,
            things.unix_socket,
            things.endless_device,
            things.sparse_file,
            things.dangling_link,
            things.link_to_itself,
        )
    ),
    Case(
        "tmp/ is a fifo",
        instead("tmp", things.fifo),
        fatal=True,
        refused=rf"tmp\W.*({NO_FOLDER})",
        unseen=HAS_IT,
    ),
]


def header(last: int, lines: int = 4096) -> Callable[[Place], None]:
    """The header of the index says this number, this boot, and so many lines."""

    def damage(place: Place) -> None:
        with open(place.inbox / "index", "r+b", buffering=0) as file:
            head = b"%019d %b %010d" % (last, fsinbox.store.index.boot_tag().encode(), lines)
            os.pwrite(file.fileno(), head.ljust(63) + b"\n", 0)

    return damage


def rubbish(place: Place) -> None:
    with open(place.inbox / "index", "r+b", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size - fsinbox.store.index.HEADER
        os.pwrite(file.fileno(), (b"rubbish " * length)[:length], fsinbox.store.index.HEADER)


FILE_CASES = [
    *(
        Case(
            f"index is a {name_of(put)}",
            instead("index", put),
            fatal=True,
            refused=rf"index.*({why})|({why}).*index",
            unseen=HAS_IT,
            root=put in things.DEVICES,
        )
        for put, why in (
            (things.link_outside, "link|levels"),
            (things.dangling_link, "link|levels"),
            (things.hard_link, "another name"),
            (things.fifo, "not a regular file"),
            (things.unix_socket, "regular file|No such device"),
            (things.empty_directory, "regular file|[Ii]s a directory"),
            (things.endless_device, "not a regular file"),
            (things.terminal, "not a regular file|No such device"),
        )
    ),
    *(
        Case(
            f"consumer.lock is a {name_of(put)}",
            instead("consumer.lock", put),
            fatal=True,
            refused=rf"consumer\.lock.*({why})|({why}).*consumer\.lock",
            unseen=("open",),
            root=put in things.DEVICES,
        )
        for put, why in (
            (things.link_outside, "levels"),
            (things.dangling_link, "levels"),
            (things.hard_link, "another name"),
            (things.fifo, "not a regular file"),
            (things.unix_socket, "No such device"),
            (things.empty_directory, "[Ii]s a directory"),
            (things.endless_device, "not a regular file"),
            (things.terminal, "not a regular file|No such device"),
        )
    ),
    *(
        Case(
            f"format is a {name_of(put)}",
            instead("format", put),
            fatal=True,
            refused="format",
            unseen=("open",),
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.unix_socket,
            things.empty_directory,
            things.endless_device,
            things.sparse_file,
            things.content(b""),
        )
    ),
    Case("consumer.lock is missing", gone_for("consumer.lock", nothing), clients=("fresh", "commands")),
    Case(
        "consumer.lock is huge", gone_for("consumer.lock", things.sparse_file), clients=("fresh", "commands")
    ),
    Case(
        "consumer.lock holds control characters",
        gone_for("consumer.lock", things.content(b"\x1b[2J\0\xff\n" * 9)),
        clients=("fresh", "commands"),
    ),
    Case(
        "consumer.lock is removed under the consumer",
        gone_for("consumer.lock", nothing),
        fatal=True,
        refused="another consumer may be at work",
        clients=("open",),
    ),
    Case("index is missing", gone_for("index", nothing)),
    Case("index is empty", gone_for("index", things.content(b""))),
    Case("index is a gigabyte without a line", gone_for("index", things.gigabyte_file)),
    *(
        Case(f"index says {name}", gone_for("index", things.content(text)))
        for name, text in (
            ("something binary", bytes(range(256))),
            ("a negative number", b"-000000000000000001 deadbeef 0000000000".ljust(63) + b"\n"),
            ("a number of sixty digits", b"9" * 60 + b" deadbeef\n"),
            ("2286, of another boot", b"9999999999999999999 deadbeef 0000000000".ljust(63) + b"\n"),
            ("2254, of another boot", b"8999999999999999000 deadbeef 0000000000".ljust(63) + b"\n"),
            ("nothing but digits", "٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣ deadbeef\n".encode()),
            ("half a line", b"0000000000"),
        )
    ),
    Case("index says 2286, of this boot", header(9999999999999999999)),
    Case("index says the highest number, of this boot", header(fsinbox.store.index.HIGHEST - 100)),
    Case("index says more lines than it has", header(time_ns(), 32 * 10**7)),
    Case("index says lines that make no buckets", header(time_ns(), 4095)),
    Case("index is full of rubbish behind its header", rubbish),
    Case(
        "foreign files lie beside the folders",
        all_of(
            there("readme", things.content(b"x"), left=True),
            there(".git", things.empty_directory, left=True),
            there("évil\n\udcff", things.fifo, left=True),
        ),
    ),
]


# --- the lines of the index ---------------------------------------------------------------------------

LINE_CASES = [
    *(
        Case(f"the line of a key says {name}", line(text))
        for name, text in (
            ("nothing but blanks", b"\0" * 21),
            ("half a number", b"0000000000\0\0\0\0\0\0\0\0\0 \n"),
            ("2286", b"9999999999999999999 \n"),
            ("a number below nought", b"-000000000000000001 \n"),
            ("next year", f"{time_ns() + 365 * DAY:019d} \n".encode()),
            ("nothing that is text", b"\xff\xfe\n" * 7),
            ("a path", b"/../../outside/secret\n"[:21]),
            ("another number", b"1234567890123456789 \n"),
            ("no end", b"1234567890123456789!!"),
        )
    ),
]

# --- pending/, inflight/, deferred/, failed/, attempts/, tmp/ -----------------------------------------


def in_place_of_a(put: Put) -> Callable[[Place], None]:
    """Something stands in the place of the element of `a`."""

    def damage(place: Place) -> None:
        things.remove(place.waiting)
        put(place, place.waiting)

    return damage


def element_numbered(number: int) -> Callable[[Place], None]:
    """An element under a number that nobody gave out: it is delivered, whenever."""

    def damage(place: Place) -> None:
        place.log.tell("add_start", "b", "forged")
        (place.inbox / f"pending/{number:019d}-b").write_bytes(payload("forged"))
        place.delivered.append(("b", "forged"))

    return damage


def due_in_2286(place: Place) -> None:
    """A due time absurdly far ahead means that the clock was set back: it is delivered now."""
    place.log.tell("add_start", "b", "late")
    (place.inbox / f"deferred/9999999999999999999-{'0' * 18}1-b").write_bytes(payload("late"))
    place.delivered.append(("b", "late"))


def names_of_shells(place: Place) -> None:
    """What the next processes would call their files is there already."""
    with open("/proc/loadavg") as file:
        newest = int(file.read().split()[-1])
    for pid in range(newest, newest + 300):
        put = (things.fifo, things.link_outside, things.dangling_link)[pid % 3]
        put(place, place.inbox / f"tmp/sh.{pid}.0")


NOT_REGULAR = "not a regular file"

FOREIGN = (
    "readme",
    "readme~",
    "x" * 255,
    "\udcff\udcfe",
    "0000000000000000001-a\nb",
    "-rf",
    "99999999999999999999-a",
    "0000000000000000001-%61",
    "0000000000000000001-..%2f..%2fsecret",
    "0000000000000000001-" + "x" * 230,
    "0000000000000000001-a  ",
    "0000000000000000001-",
    "²²²²²²²²²²²²²²²²²²²-a",
)
"""Names that are no element's: drafts and copies of editors, options, numbers and keys that are none."""

KEYS = (
    *(
        "readme",
        "-rf",
        "%2e%2e%2Fsecret",
        "%2e%2e",
        "100%",
        " ",
        "a  ",
        "a\nb",
        "\x1b[2J",
        "a\\b",
        "$(reboot)",
    ),
    *(
        "'; rm -rf *",
        b"\xff\xfe",
        "9999999999999999999-a",
        "0000000000000000001-a~reason.txt",
        "x" * 200,
        "CON",
        "a:b",
        "é" * 33,
    ),
)
"""Names that a file in drop/ may have, and be delivered with."""

ELEMENT_CASES = [
    *(
        Case(
            f"a waiting element is a {name_of(put)}",
            in_place_of_a(put),
            spoils=True,
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.dangling_link,
            things.link_to_itself,
            things.fifo,
            things.unix_socket,
            things.endless_device,
            things.terminal,
        )
    ),
    *(
        Case(
            f"a waiting element is a {name_of(put)}",
            in_place_of_a(put),
            spoils=True,
            refused="[Ii]s a directory|overwrite",
            aside=NOT_REGULAR,
        )
        for put in (things.empty_directory, things.full_directory)
    ),
    *(
        Case(
            f"a waiting element, never added to, is a {name_of(put)}",
            there(f"pending/{'0' * 18}1-b", put),
            aside=NOT_REGULAR,
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.unix_socket,
            things.full_directory,
            things.block_device,
        )
    ),
    Case(
        "a waiting element is huge",
        there(f"pending/{'0' * 18}1-b", things.sparse_file),
        aside="cannot be (read|worked on)|too large|does not fit into memory",
    ),
    Case(
        "two things wait at places of one key",
        all_of(
            there(f"pending/{'0' * 18}1-a", things.link_outside),
            there(f"pending/{'0' * 18}2-a", things.full_directory),
        ),
        aside=NOT_REGULAR,
    ),
    *(
        Case(
            f"{folder}/ holds foreign names",
            all_of(*(there(f"{folder}/{name}", things.content(b"x")) for name in FOREIGN)),
            aside="its name is not",
            unseen=HAS_IT if folder != "pending" else (),
            empties=folder,
            clients=CLIENTS if folder == "pending" else ("fresh", "commands"),
        )
        for folder in ("pending", "inflight", "deferred")
    ),
    Case(
        "pending/ holds two elements of key '..'",
        all_of(
            *(there(f"pending/000000000000000000{n}-..", things.content(b"x")) for n in (1, 2)),
            gone_for("index", things.content(b"")),
        ),
        aside="its name is not",
    ),
    Case(
        "pending/ holds two elements of key '.'",
        all_of(
            *(there(f"pending/000000000000000000{n}-.", things.content(b"x")) for n in (1, 2)),
            gone_for("index", things.content(b"")),
        ),
        aside="its name is not",
    ),
    Case(
        "pending/ holds short names, and the boot is new",
        all_of(
            *(there(f"pending/{n}", things.content(b"x")) for n in ("x", "y")),
            gone_for("index", things.content(b"")),
        ),
        aside="its name is not",
    ),
    Case(
        "pending/ holds hidden files",
        all_of(
            there("pending/.readme.swp", things.content(b"x"), left=True),
            there("pending/.probe-1", things.link_outside, left=True),
        ),
    ),
    *(
        Case(f"pending/ holds an element of {name}", element_numbered(number))
        for name, number in (
            ("2286", 9999999999999999999),
            ("2255", 9 * 10**18),
            ("next year", time_ns() + 365 * DAY),
            ("1970", 1),
        )
    ),
    *(
        Case(
            f"inflight/ holds a {name_of(put)}",
            there(f"inflight/{'0' * 18}1-b", put),
            aside=NOT_REGULAR,
            unseen=("open",),
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.unix_socket,
            things.endless_device,
            things.full_directory,
        )
    ),
    Case(
        "a directory stands where an element is taken to",
        there("inflight/{a}", things.full_directory),
        aside=NOT_REGULAR,
    ),
    Case(
        "a link stands where an element is taken to",
        there("inflight/{a}", things.link_outside),
        unseen=("fresh", "commands", "shell"),
        clients=("open",),
    ),
    *(
        Case(
            f"deferred/ holds a {name_of(put)}",
            there(f"deferred/{'0' * 18}1-{'0' * 18}1-b", put),
            aside=NOT_REGULAR,
            unseen=("open",),
        )
        for put in (things.link_outside, things.fifo, things.full_directory)
    ),
    Case("deferred/ holds an element due in 2286", due_in_2286, unseen=("open",)),
    *(
        Case(
            f"the reason of a failed element is a {name_of(put)}",
            all_of(
                there("failed/0000000000000000001-b", things.content(b"b"), left=True),
                there("failed/0000000000000000001-b~reason.txt", put, left=True),
            ),
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.empty_directory,
            things.sparse_file,
            things.endless_device,
        )
    ),
    *(
        Case(
            f"a failed element is a {name_of(put)}",
            there("failed/0000000000000000001-b", put, left=True),
            root=put in things.DEVICES,
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.full_directory,
            things.sparse_file,
            things.endless_device,
        )
    ),
    Case(
        "foreign things lie in failed/",
        all_of(
            *(
                there(f"failed/{name}", put, left=True)
                for name, put in (
                    ("-rf", things.link_outside),
                    ("x" * 255, things.content(b"")),
                    ("\udcff\n", things.fifo),
                    ("readme", things.empty_directory),
                )
            )
        ),
    ),
    *(
        Case(
            f"a note of attempts is a {name_of(put)}",
            all_of(there("attempts/{1}", put), there("attempts/{a}", put)),
        )
        for put in (
            things.link_outside,
            things.fifo,
            things.full_directory,
            things.sparse_file,
            things.text_link("9" * 4000),
        )
    ),
    Case("the draft of a note is a directory", there("attempts/.draft-1", things.full_directory)),
    Case(
        "a note of attempts says nonsense",
        all_of(
            there("attempts/{1}", things.text_link("-5.1.1.died")),
            there("attempts/{a}", things.text_link("\udcff.\n.")),
        ),
    ),
    Case(
        "foreign things lie in tmp/",
        all_of(
            *(
                there(f"tmp/{name}", put, left=True)
                for name, put in (
                    ("-rf", things.link_outside),
                    ("x" * 255, things.content(b"")),
                    ("\udcff\n", things.fifo),
                    ("readme", things.full_directory),
                    ("sparse", things.sparse_file),
                )
            )
        ),
    ),
    Case("the names in tmp/ that sh will choose are fifos and links", names_of_shells, clients=("shell",)),
]


# --- drop/ --------------------------------------------------------------------------------------------


def dropped(*names: str | bytes) -> Callable[[Place], None]:
    """Proper files with these names: each is delivered, with its name as key."""

    def damage(place: Place) -> None:
        for name in names:
            place.drop(name)

    return damage


DROP_CASES = [
    *(
        Case(
            f"a dropped file is a {name_of(put)}",
            there("drop/b", put),
            aside=f"dropped file 'b' was set aside: {why}",
            root=put in things.DEVICES,
        )
        for put, why in (
            (things.link_outside, "it is a symbolic link"),
            (things.dangling_link, "it is a symbolic link"),
            (things.link_to_itself, "it is a symbolic link"),
            (things.link_to_folder, "it is a symbolic link"),
            (things.fifo, "it is a FIFO"),
            (things.unix_socket, "it is a socket"),
            (things.full_directory, "it is a directory"),
            (things.null_device, "it is a device"),
            (things.endless_device, "it is a device"),
            (things.terminal, "it is a device"),
            (things.block_device, "it is a device"),
            (things.sparse_file, "it has 214748364800 bytes, more than"),
        )
    ),
    *(
        Case(
            f"a dropped file of a key that is added is a {name_of(put)}",
            there("drop/a", put),
            aside="dropped file 'a' was set aside",
        )
        for put in (things.link_outside, things.fifo, things.full_directory)
    ),
    Case("dropped files have odd names", dropped(*KEYS)),
    *(
        Case(
            f"a dropped file is called {name}",
            there(f"drop/{file}", things.content(b"x")),
            aside="its name cannot be a key.*200 at most",
        )
        for name, file in (
            ("255 plain bytes", "x" * 255),
            ("201 plain bytes", "x" * 201),
            ("255 bytes that are not text", "\udcff" * 255),
        )
    ),
    Case(
        "drafts and hidden files lie in drop/",
        all_of(
            *(
                there(f"drop/{name}", things.content(b"x"), left=True)
                for name in (".readme.swp", ".x", "a.part", "a.TMP", "..x")
            )
        ),
    ),
    Case("a link to a draft's name lies in drop/", there("drop/a.part", things.link_outside, left=True)),
]

# --- the disk -----------------------------------------------------------------------------------------

Ground = Callable[[Path], Callable[[], object]]


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def tmpfs(options: str) -> Ground:
    """The inbox lies on a tmpfs of its own."""

    def ground(path: Path) -> Callable[[], object]:
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
        return lambda: run("umount", "-l", path)

    return ground


def ext4(path: Path) -> Callable[[], object]:
    """The inbox lies on a small ext4 of its own, in a file."""
    image = path.parent / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-b", "1024", image)
    run("mount", "-o", "loop,errors=remount-ro", image, path)
    return lambda: run("umount", "-l", path)


def fill(place: Place) -> Iterator[None]:
    """No space is left: whatever a file could hold, to the last byte."""
    filler = os.open(place.ground / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
    for size in (1 << 20, 1 << 10, 1):
        try:
            while os.write(filler, bytes(size)):
                pass
        except OSError:
            continue
    os.fsync(filler)
    os.close(filler)
    yield
    (place.ground / "filler").unlink()


def fill_inodes(place: Place) -> Iterator[None]:
    """No inode is left."""
    (place.ground / "fillers").mkdir()
    try:
        for number in range(100_000):
            (place.ground / f"fillers/{number}").touch()
    except OSError:
        pass
    else:
        raise AssertionError("there was no end of inodes")
    yield
    shutil.rmtree(place.ground / "fillers")


def read_only(place: Place) -> Iterator[None]:
    run("mount", "-o", "remount,ro", place.ground)
    yield
    run("mount", "-o", "remount,rw", place.ground)


def ext4_gives_up(place: Place) -> Iterator[None]:
    """As after an I/O error: the file system becomes read-only while everything is open."""
    run("sync", "-f", place.ground)
    run("mount", "-o", "remount,abort", place.ground)
    yield
    run("umount", "-l", place.ground)
    run("mount", "-o", "loop,errors=remount-ro", place.folder / "image", place.ground)


def mounted(where: str, *, mend: bool, inside: str = "") -> Callable[[Place], Iterator[None] | None]:
    """Another file system is mounted in the inbox, with a file in it."""

    def mount(place: Place) -> None:
        path = place.inbox / where
        path.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path)
        if inside:
            (path / inside).write_bytes(b"x")
            place.leave(path / inside)

    def mount_and_mend(place: Place) -> Iterator[None]:
        mount(place)
        yield
        run("umount", "-l", place.inbox / where)

    return mount_and_mend if mend else mount


def file_size(limit: int) -> Callable[[Place], Callable[[], object]]:
    """No file may become longer: what a quota does, but by itself."""

    def set_limit(place: Place) -> Callable[[], object]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return set_limit


def renamed(place: Place) -> Iterator[None]:
    other = place.inbox.with_name("other")
    place.inbox.rename(other)
    yield
    other.rename(place.inbox)


FULL = "No space left on device"
CROSS = "cross-device|two file systems"

DISK_CASES = [
    Case("the disk is full: tmpfs", fill, fatal=True, drains=True, refused=FULL, ground=tmpfs("size=256k")),
    Case("the disk is full: ext4", fill, fatal=True, drains=True, refused=FULL, ground=ext4),
    Case(
        "no inodes are left: tmpfs",
        fill_inodes,
        fatal=True,
        drains=True,
        refused=FULL,
        ground=tmpfs("nr_inodes=90"),
    ),
    Case("no inodes are left: ext4", fill_inodes, fatal=True, drains=True, refused=FULL, ground=ext4),
    Case(
        "the disk is full, and the boot is new",
        all_then(gone_for("index", things.content(b"")), fill),
        fatal=True,
        drains=True,
        refused=FULL,
        ground=ext4,
    ),
    Case(
        "remounted read-only: tmpfs",
        read_only,
        fatal=True,
        refused="Read-only",
        ground=tmpfs("size=256k"),
        clients=("fresh", "commands", "shell"),
    ),
    Case(
        "remounted read-only: ext4",
        read_only,
        fatal=True,
        refused="Read-only",
        ground=ext4,
        clients=("fresh", "commands", "shell"),
    ),
    Case(
        "ext4 becomes read-only while all is open",
        ext4_gives_up,
        fatal=True,
        refused="Read-only|Input/output",
        ground=ext4,
    ),
    *(
        Case(
            f"{folder}/ is a mount point",
            mounted(folder, mend=True),
            fatal=True,
            refused=CROSS,
            unseen=HAS_IT,
            root=True,
        )
        for folder in ("tmp", "pending", "inflight", "deferred")
    ),
    *(
        Case(f"{folder}/ is a mount point", mounted(folder, mend=False), root=True)
        for folder in ("attempts",)
    ),
    Case("drop/ is a mount point", mounted("drop", mend=False, inside="b"), root=True),
    Case(
        "failed/ is a mount point",
        all_of(there("pending/readme", things.content(b"x"), left=True), mounted("failed", mend=False)),
        root=True,
        clients=("fresh", "commands", "shell"),
    ),
    Case("a folder in drop/ is a mount point", mounted("drop/b", mend=False, inside="x"), root=True),
    Case(
        "no file may hold a byte",
        limit=file_size(0),
        fatal=True,
        drains=True,
        refused="File too large|File size limit",
    ),
    Case(
        "no file may hold more than a hundred bytes",
        limit=file_size(100),
        fatal=True,
        drains=True,
        refused="File too large|File size limit",
    ),
    Case(
        "the inbox was renamed",
        renamed,
        fatal=True,
        refused="no inbox|create",
        unseen=HAS_IT,
        clients=("open", "fresh", "shell"),
    ),
    *(
        Case(
            f"the inbox is a {name_of(put)}",
            instead(".", put),
            fatal=True,
            refused="[Nn]ot a directory|no inbox|Too many levels",
            unseen=HAS_IT,
        )
        for put in (things.fifo, things.unix_socket, things.sparse_file, things.link_to_itself)
    ),
]

# --- rights and limits --------------------------------------------------------------------------------

DENIED = "Permission denied"


def mode(where: str, bits: int) -> Callable[[Place], Iterator[None]]:
    """Somebody changes a mode; mended: it is as it was."""

    def damage(place: Place) -> Iterator[None]:
        path = place.inbox / where
        before = path.stat().st_mode & 0o7777
        path.chmod(bits)
        yield
        path.chmod(before)

    return damage


def root_s(bits: int) -> Callable[[Place], Iterator[None]]:
    """The whole inbox belongs to root."""

    def damage(place: Place) -> Iterator[None]:
        paths = [path for path in (place.inbox, *place.inbox.rglob("*")) if not path.is_symlink()]
        before = {path: path.stat() for path in paths}
        for path in paths:
            os.chown(path, 0, 0)
            path.chmod(bits if path.is_dir() else bits & 0o666)
        yield
        for path, status in before.items():
            os.chown(path, status.st_uid, status.st_gid)
            path.chmod(status.st_mode & 0o7777)

    return damage


def unreadable(where: str) -> Callable[[Place], None]:
    """A file of root's that nobody else may read."""

    def damage(place: Place) -> None:
        path = place.inbox / where
        path.write_bytes(SECRET)
        path.chmod(0o600)

    return damage


def descriptors(left: int) -> Callable[[Place], Callable[[], object]]:
    """Only so many descriptors are left."""

    def set_limit(place: Place) -> Callable[[], object]:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = {int(name) for name in os.listdir("/proc/self/fd")}
        free = [number for number in range(1000) if number not in taken]
        # The listing itself had the lowest of them.
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[left - 1] if left else min(free) - 1, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)

    return set_limit


def no_inotify(what: str) -> Callable[[Place], Callable[[], object]]:
    """A user namespace in which no inotify instance, or no watch, may be had."""

    def set_limit(place: Place) -> Callable[[], object]:
        unshare(0x10000000)  # CLONE_NEWUSER
        Path(f"/proc/sys/user/max_inotify_{what}").write_text("0")
        return lambda: None

    return set_limit


def no_proc(place: Place) -> Callable[[], object]:
    """A mount namespace without /proc."""
    unshare(0x00020000)  # CLONE_NEWNS
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "tmpfs", "/proc")
    return lambda: run("umount", "/proc")


RIGHTS_CASES = [
    *(
        Case(f"{folder}/ may not be entered", mode(folder, 0), fatal=True, refused=DENIED, user=True)
        for folder in ("tmp", "drop", "pending", "inflight", "deferred")
    ),
    Case(
        "attempts/ may not be entered",
        mode("attempts", 0),
        fatal=True,
        refused=DENIED,
        unseen=HAS_IT,
        user=True,
    ),
    Case(
        "failed/ may not be entered",
        with_a_foreign_file(mode("failed", 0)),
        user=True,
        aside="pending/readme.*its name",
        fatal=True,
        refused=DENIED,
        unseen=HAS_IT,
    ),
    *(
        Case(f"{folder}/ may not be written", mode(folder, 0o555), fatal=True, refused=DENIED, user=True)
        for folder in ("tmp", "pending", "inflight", "deferred")
    ),
    *(
        Case(
            f"{file} may not be read",
            mode(file, 0),
            fatal=True,
            refused=rf"{file}.*{DENIED}|{DENIED}.*{file}",
            unseen=HAS_IT,
            user=True,
        )
        for file in ("index", "consumer.lock", "format")
    ),
    Case(
        "the inbox may not be entered",
        mode(".", 0),
        fatal=True,
        refused=f"{DENIED}|no inbox",
        unseen=HAS_IT,
        user=True,
    ),
    Case("the inbox is root's", root_s(0o700), fatal=True, refused=DENIED, user=True),
    Case("the inbox is root's, for all to see", root_s(0o755), fatal=True, refused=DENIED, user=True),
    Case(
        "a waiting element may not be read",
        unreadable(f"pending/{'0' * 18}1-b"),
        aside="cannot (be )?read",
        user=True,
    ),
    Case(
        "an element of a dead consumer may not be read",
        unreadable(f"inflight/{'0' * 18}1-b"),
        aside="cannot (be )?read",
        user=True,
        clients=("fresh", "commands"),
    ),
    Case(
        "a dropped file may not be read",
        unreadable("drop/b"),
        aside=r"cannot be read by the consumer \(user 64321; it belongs to user 0",
        user=True,
    ),
    *(
        Case(
            f"{left} descriptors are left",
            limit=descriptors(left),
            fatal=True,
            refused="Too many open files" if left < 5 else None,
            unseen=HAS_IT,
            clients=("open", "fresh", "commands"),
        )
        for left in (0, 1, 2, 3, 5, 8, 13, 21)
    ),
    Case(
        "no inotify instances are left",
        limit=no_inotify("instances"),
        root=True,
        clients=("open", "fresh", "commands"),
    ),
    Case(
        "no inotify watches are left",
        limit=no_inotify("watches"),
        root=True,
        clients=("open", "fresh", "commands"),
    ),
    Case("there is no /proc", limit=no_proc, fatal=True, refused="/proc", unseen=HAS_IT, root=True),
]

# --- the clock ----------------------------------------------------------------------------------------


def clock(year: float) -> Callable[[Place], Callable[[], object]]:
    """The clock goes, but from that year on: for Python, and for date(1)."""

    def set_clock(place: Place) -> Callable[[], object]:
        shift = int((year - 1970) * 365.2425 * DAY) - place.began

        def wrong() -> int:
            return time_ns() + shift

        programs = place.folder / "bin"
        if not programs.exists():
            programs.mkdir()
            (programs / "date").write_text(f"#!/bin/sh\necho $(( $(/bin/date +%s%N) + {shift} ))\n")
            (programs / "date").chmod(0o755)
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        for module in modules():
            if "time_ns" in vars(module):
                mock.patch.object(module, "time_ns", wrong).start()
        return mock.patch.stopall

    return set_clock


CLOCK_CASES = [
    Case(f"the clock says {year}", limit=clock(year), clients=("open", "fresh", "commands", "shell"))
    for year in (1970, 2001, 2016, 2050, 2250, 2258)
]
CLOCK_CASES += [
    Case(f"the clock says {year}", limit=clock(year), clients=("open", "fresh", "commands"))
    for year in (2290, 2500)
]


def without(client: str, cases: list[Case]) -> list[Case]:
    """All but the meetings that would tell nothing new: to keep the whole under half a minute."""
    return [
        replace(case, clients=tuple(name for name in case.clients if name != client) or case.clients)
        for case in cases
    ]


CASES = [
    *FOLDER_CASES,
    *FILE_CASES,
    *without("commands", LINE_CASES),  # it adds and takes as the others do
    *without("shell", ELEMENT_CASES),  # it looks only at the line and the place of the key it adds
    *without("shell", DROP_CASES),
    *DISK_CASES,
    *RIGHTS_CASES,
    *without("commands", CLOCK_CASES),
]
