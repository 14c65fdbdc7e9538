"""What others may write, damaged and forged: archives for `import`, the files of an inbox's state, and names
in its folders.

Whatever they are: an error of ours or none, and soon; nothing outside the inbox is read or written; what is
valid is delivered once, or still there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from fsinbox import Inbox, InboxError
from fsinbox.cli.commands import cli
from fsinbox.doctor.examination import examine
from fsinbox.operate import archive
from tests.usual import soon, take

STATUSES = range(7)

SECRET = b"not for anybody"

VALUES = {"a": b"first", "b/\xe9": b"", "c": bytes(range(256)) * 5, "d": b"x" * 2000}


@contextmanager
def new_inbox() -> Iterator[Path]:
    """An inbox beside a secret, both gone at the end. Nothing else may be there by then."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        home = Path(folder)
        (home / "secret").write_bytes(SECRET)
        with soon():
            yield home / "inbox"
        assert (home / "secret").read_bytes() == SECRET
        assert {name for name in os.listdir(home) if name != "archive"} <= {"secret", "inbox"}


def opened(path: Path) -> Inbox:
    return Inbox(path, codec="bytes", durable=False, watch="poll")


def delivered(path: Path) -> list[tuple[str, bytes]]:
    """Take and acknowledge all that can be taken."""
    found = []
    with opened(path) as inbox:
        while element := inbox.take():
            found.append((element.key, element.data))
            element.ack()
    return found


def folders_open() -> set[int]:
    """Return the descriptors of folders that this process has open."""
    found = set()
    for fd in map(int, os.listdir("/dev/fd")):
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                found.add(fd)
        except OSError:
            continue  # that of listdir itself
    return found


def command(path: Path, *words: str) -> Result:
    """Run a command in this process: no traceback, a status of ours, and no secret told."""
    before = folders_open()
    done = CliRunner().invoke(cli, ["--inbox", str(path), *words], prog_name="fsinbox")
    for fd in folders_open() - before:
        os.close(fd)  # a command leaves it to the end of its process
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in STATUSES, done.output
    assert SECRET not in done.stdout_bytes + done.stderr_bytes
    return done


# --- mutations ----------------------------------------------------------------------------------------

PLACE = st.floats(0, 1, exclude_max=True)
"""Where in the content, as a share of it."""


def _flip(data: bytes, place: float, byte: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([byte]) + data[at + 1 :]


MUTATIONS: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda place: lambda data: data[: int(place * len(data))], PLACE),
    st.builds(lambda place, byte: lambda data: _flip(data, place, byte), PLACE, st.integers(0, 255)),
    st.builds(
        lambda place, more: (
            lambda data: data[: int(place * len(data))] + more + data[int(place * len(data)) :]
        ),
        PLACE,
        st.binary(min_size=1, max_size=20) | st.binary(min_size=512, max_size=512),
    ),
    st.builds(
        lambda start, end: lambda data: data[: int(start * len(data))] + data[int(end * len(data)) :],
        PLACE,
        PLACE,
    ),
)


def mutated(data: bytes, changes: list[Callable[[bytes], bytes]]) -> bytes:
    for change in changes:
        data = change(data)
    return data


# --- archives -----------------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.fixture(scope="module")
def exported() -> bytes:
    """An archive of the four elements, and of a failed one."""
    file = io.BytesIO()
    with new_inbox() as path, opened(path) as inbox:
        inbox.add("failed", b"failed")
        take(inbox).fail("why\nnot")
        for key, value in VALUES.items():
            inbox.add(key, value)
        archive.write(inbox.layout, file, ("waiting", "failed"), progress=lambda done: None)
    return file.getvalue()


def imported(path: Path, data: bytes) -> int:
    """Import an archive; it is one, or that is said. Return the status."""
    file = path.parent / "archive"
    file.write_bytes(data)
    done = command(path, "import", "--create", "--json", str(file))
    assert done.exit_code in (0, 2), done.output
    return done.exit_code


def check_imported(data: bytes) -> None:
    """What is imported from any bytes does no harm to what waits, and can be delivered."""
    with new_inbox() as path:
        with opened(path) as inbox:
            inbox.add("mine", b"mine")
        imported(path, data)
        found = delivered(path)
        assert found[0] == ("mine", b"mine")
        assert len({key for key, _ in found}) == len(found)
        assert os.listdir(path / "tmp") == []
        for folder in ("pending", "inflight", "deferred"):
            for name in os.listdir(path / folder):
                assert (path / folder / name).stat().st_mode & 0o1000, name  # for later


@given(
    changes=st.lists(MUTATIONS, min_size=1, max_size=4),
    pack=st.sampled_from([*PACKERS.values()]),
    after=st.lists(MUTATIONS, max_size=1),
)
def test_a_damaged_archive(
    exported: bytes,
    changes: list[Callable[[bytes], bytes]],
    pack: Callable[[bytes], bytes],
    after: list[Callable[[bytes], bytes]],
) -> None:
    check_imported(mutated(pack(mutated(exported, changes)), after))


@given(share=PLACE, pack=st.sampled_from([*PACKERS.values()]))
def test_an_archive_that_is_cut_is_continued_with_the_whole_one(
    exported: bytes, share: float, pack: Callable[[bytes], bytes]
) -> None:
    """What was before the cut is there, in order; nothing comes twice."""
    packed = pack(exported)
    with new_inbox() as path:
        complete = imported(path, packed[: int(share * len(packed))]) == 0
        first = delivered(path)
        assert first == [*VALUES.items()][: len(first)]
        assert not complete or len(first) == len(VALUES)
        assert imported(path, packed) == 0
        if not complete:
            assert first + delivered(path) == [*VALUES.items()]
        (failed,) = (one for one in os.listdir(path / "failed") if "~" not in one)
        assert (path / "failed" / failed).read_bytes() == b"failed"


@given(data=st.binary(max_size=2000), pack=st.sampled_from([*PACKERS.values()]))
def test_random_bytes_are_no_archive(data: bytes, pack: Callable[[bytes], bytes]) -> None:
    check_imported(pack(data))


NUMBERS = st.integers(0, 10**19 - 1).map("{:019d}".format)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

KEYS = (
    st.sampled_from(["a", "mine", "%2E", "..", "%2e", "a~reason.txt", "%FF", "x" * 200, "x" * 201, ""])
    | TEXTS
)

MEMBER_NAMES = st.one_of(
    st.builds(
        lambda state, number, key: f"{state}/{number}-{key}",
        st.sampled_from(["waiting", "deferred", "failed", "done", "in_flight", "out", "drop", "..", ""]),
        NUMBERS,
        KEYS,
    ),
    st.sampled_from(["/etc/passwd", "../secret", "../../x", "waiting/../../secret", "format", "index"]),
    TEXTS,
)

PAX_NAMES = ["path", "size", "mtime", "linkpath", "hdrcharset", "charset", "uid"]
PAX_NAMES += [f"FSINBOX.{name}" for name in ("key", "reason", "export")]
PAX_NAMES += [
    f"GNU.sparse.{name}" for name in ("map", "major", "minor", "size", "realsize", "name", "offset")
]

PAX = st.dictionaries(
    st.sampled_from(PAX_NAMES),
    st.sampled_from(["0", "1", "-1", "1e400", "nan", "99999999999999999999", "../../secret", "0,1,2"])
    | TEXTS,
    max_size=4,
)

TYPES = st.sampled_from([tarfile.REGTYPE] * 6 + [*b"1234567SLKxgX"]).map(
    lambda one: one if isinstance(one, bytes) else bytes([one])
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    """A member as nobody should write it."""
    info = tarfile.TarInfo(draw(MEMBER_NAMES))
    info.type = draw(TYPES)
    info.linkname = "../../secret"
    info.mode = draw(st.sampled_from([0o600, 0o1600, 0o4777, 0]))
    info.mtime = draw(st.sampled_from([0, 1, -1, 2**33, 10**15]))
    data = draw(st.binary(max_size=600))
    info.size = draw(st.sampled_from([len(data)] * 5 + [0, 10**6, 2**40]))
    info.pax_headers = draw(PAX)
    return info, data


def forged(found: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    """Return an archive of such members, with headers as they are."""
    file = io.BytesIO()
    for info, data in found:
        try:
            file.write(info.tobuf(form, "utf-8", "surrogateescape"))
        except ValueError:  # not to be written in this form
            continue
        file.write(data + bytes(-len(data) % 512))
    return file.getvalue() + bytes(1024)


@given(
    found=st.lists(members(), min_size=1, max_size=4),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_forged_members(found: list[tuple[tarfile.TarInfo, bytes]], form: int) -> None:
    check_imported(forged(found, form))


# --- the files of an inbox's state --------------------------------------------------------------------

KEPT = {"one": b"1", "two": b"22", "three": b"333"}
"""What waits; "two" has an attempt, "three" is deferred until now."""


def fill(path: Path) -> None:
    """Make an inbox that has something of everything."""
    with opened(path) as inbox:
        inbox.add("failed", b"failed")
        take(inbox).fail("why")
        for key in ("three", "two", "one"):
            inbox.add(key, KEPT[key])
        take(inbox).nack(0.001)
        take(inbox).nack()
        inbox.limit(max_waiting=100)
    for folder in ("control", "stats"):
        (path / folder).mkdir()
    (path / "stats/1of1.json").write_bytes(_stats())


@cache
def _stats() -> bytes:
    """Return the figures that a consumer has written of one element."""
    with new_inbox() as path:
        with opened(path) as inbox:
            inbox.add("a", b"")
        assert command(path, "consume", "--once", "--quiet", "--exec", "true").exit_code == 0
        return (path / "stats/1of1.json").read_bytes()


def kept(path: Path) -> dict[str, bytes]:
    """Return what of KEPT is on disk."""
    found = {}
    for folder in ("pending", "inflight", "deferred", "failed"):
        for name in os.listdir(path / folder):
            key = name.rpartition("-")[2]
            file = path / folder / name
            if key in KEPT and file.is_file() and not file.is_symlink():
                found[key] = file.read_bytes()
    return found


LOOKS = [
    ("status", "--json"),
    ("ls", "--json"),
    ("ls",),
    ("failed",),
    ("limit",),
    ("show", "two"),
    ("metrics",),
]


def use(path: Path) -> tuple[dict[str, bytes], bool]:
    """Do with it what people do. Return what was delivered, and whether the inbox was refused."""
    for words in LOOKS:
        assert command(path, *words).exit_code != 2, words
    command(path, "add", "new", "value")
    try:
        examine(str(path), 0.0)
        found = delivered(path)
    except InboxError:
        return {}, True
    assert len(dict(found)) == len(found)
    assert SECRET not in dict(found).values()
    return {key: value for key, value in found if key in KEPT}, False


STATE = {
    "index": b"",
    "limits": b"",
    "format": b"",
    "consumer.lock": b"",
    "drop/.fsinboxignore": b"*.x\n!*.tmp\n/a/**\n",
    "stats/1of1.json": b"",
    "control/pause": b"",
    "control/hold-one": b"",
    "control/import-0": b"7",
    "control/rescan": b"1.x",
}

CONTENTS = st.one_of(
    st.lists(MUTATIONS, min_size=1, max_size=3).map(lambda changes: lambda data: mutated(data, changes)),
    st.binary(max_size=300).map(lambda new: lambda data: new),
    st.sampled_from([b"", b"Infinity", b"[" * 5000, b"{}", b"null", b"9" * 5000, b"\0" * 70000]).map(
        lambda new: lambda data: new
    ),
)

KINDS = st.sampled_from(["file"] * 4 + ["link", "loop", "folder", "fifo"])

ESSENTIAL = {"index", "format"}


def put(file: Path, kind: str, content: bytes) -> None:
    """Have something of this kind there, in place of what is."""
    if file.is_symlink() or file.exists():
        file.unlink()
    if kind == "file":
        file.write_bytes(content)
    elif kind == "link":
        file.symlink_to("../../secret" if file.parent.name != "inbox" else "../secret")
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)


def drop_it(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    elif os.path.lexists(file):
        file.unlink()


@given(name=st.sampled_from([*STATE]), kind=KINDS, change=CONTENTS)
@example("stats/1of1.json", "file", lambda data: data.replace(b": 1,", b": Infinity,"))
def test_state_that_is_damaged(name: str, kind: str, change: Callable[[bytes], bytes]) -> None:
    with new_inbox() as path:
        fill(path)
        file = path / name
        before = file.read_bytes() if file.exists() else None
        put(file, kind, change(before or STATE[name]))
        found, refused = use(path)
        if refused:
            assert name in ESSENTIAL or kind != "file", name
            assert kept(path) == KEPT
        if refused or name.startswith("control/"):
            drop_it(file)
            if before is not None:
                file.write_bytes(before)
            more, refused = use(path)
            assert not refused and not more.keys() & found.keys()
            found |= more
        assert found == KEPT


REQUESTS = st.one_of(
    st.sampled_from(["pause", "rescan", "hold-one", "hold-%FF", "hold-", "import-0"]),
    st.text("-.%~ab09", min_size=1),
).filter(lambda name: name not in (".", ".."))

TARGETS = st.one_of(
    st.sampled_from(
        ["0.me", "1.", ".", "-1.x", "9" * 30 + ".x", "../../secret", "\udcff.\udcff", "1.2.3.died"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.lists(st.integers(-1, 2**70).map(str) | st.sampled_from(["died", "died-1", "suspect", "diedx"]))
    .map(".".join)
    .filter(bool),
)


@given(
    folder=st.sampled_from(["control", "attempts", "stats"]),
    name=REQUESTS,
    target=TARGETS,
    of_two=st.booleans(),
)
def test_requests_and_notes_that_are_forged(folder: str, name: str, target: str, *, of_two: bool) -> None:
    with new_inbox() as path:
        fill(path)
        if of_two and folder == "attempts":
            name = next(one for one in os.listdir(path / "pending") if one.endswith("-two"))
        link = path / folder / name
        drop_it(link)
        link.symlink_to(target)
        found, refused = use(path)
        assert not refused
        if folder == "control":
            drop_it(link)
            more, _ = use(path)
            assert not more.keys() & found.keys()
            found |= more
        assert found == KEPT


NAMES = st.one_of(
    st.builds(lambda number, key: f"{number}-{key}", NUMBERS, KEYS),
    st.builds(lambda due, number, key: f"{due}-{number}-{key}", NUMBERS, NUMBERS, KEYS),
    st.builds(lambda number, key: f"{number}-{key}~reason.txt", NUMBERS, KEYS),
    st.text("0123456789-%~.aé", min_size=1, max_size=40),
    st.binary(min_size=1, max_size=30).map(os.fsdecode),
).map(lambda name: name.replace("/", "_").replace("\0", "_"))


@given(
    folder=st.sampled_from(["pending", "inflight", "deferred", "failed", "drop", "tmp", "attempts"]),
    names=st.lists(NAMES, min_size=1, max_size=3),
    kind=KINDS,
    content=st.binary(max_size=50),
)
def test_names_that_nobody_gave(folder: str, names: list[str], kind: str, content: bytes) -> None:
    with new_inbox() as path:
        fill(path)
        for name in names:
            if name in (".", "..") or len(os.fsencode(name)) > 255 or os.path.lexists(path / folder / name):
                continue
            put(path / folder / name, kind, content)
        found, refused = use(path)
        assert not refused
        assert found == KEPT
