"""What this file system does, measured where the inbox lies.

`measure` tries each thing that fsinbox relies on and notes the facts; report.py says what follows from each.
It measures in a hidden folder, which is removed again, so an inbox may be in use meanwhile. Nothing that can
be tried is looked up in a table.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from time import monotonic, perf_counter_ns, sleep, time_ns

from ..consumer.waker import Waker
from ..consumer.watch import make_source, probe
from ..store.boot import boot_tag
from ..store.drops import has_writer, renamed_in
from ..store.errors import InboxError, UnusableInbox
from ..store.host import is_forced, place_of
from ..store.layout import Layout
from ..store.mounts import file_system_type, has_no_journal, is_network, mount_of
from ..store.network.sharing import sharing_of

SCRATCH = ".doctor-"
"""How the name of the folder begins that the measurements are made in."""

_NAME_MAX = 255
# renames that a reader races with at least, and more until it has read half as often, for a second at most
_RACES = 300
_FLUSHES = 20
_BUDGET = 0.5  # seconds that the flushes of one kind may take, on a slow disk


@dataclass(frozen=True)
class Race:
    """A reader raced with replacing renames: how many there were of each, and how often it found nothing, or
    a part."""

    renames: int
    reads: int
    missing: int
    torn: int


@dataclass(frozen=True)
class Cost:
    """What flushes cost, nanoseconds."""

    median: float
    highest: int


@dataclass
class Facts:
    """What was measured. None: it could not be, and `errors` says why. Times in nanoseconds unless said
    otherwise."""

    path: str
    kind: str
    network: bool
    no_journal: bool = False  # it is an ext4 without one
    refused: str = ""  # why hosts cannot share an inbox over this mount
    forced: bool = False  # whether the inbox was forced to be for one host
    untold: bool = False  # whether nobody knows if other hosts use it
    race: Race | None = None
    between: bool | None = None
    symlink: bool | None = None
    exclusive: bool | None = None
    flock: bool | None = None
    flock_elsewhere: bool | None = None
    events: float | None = None  # seconds until our own event was seen; -1 if it was not
    longest: int | None = None
    case: bool | None = None  # whether `a` and `A` are two files
    unicode: bool | None = None  # whether the two ways to write `é` are two files
    any_bytes: bool | None = None  # whether a name may be bytes that are no UTF-8
    flush_file: Cost | None = None
    flush_folder: Cost | None = None
    flush_all: float | None = None
    leases: bool | None = None
    renamed: bool | None = None  # whether a file's status tells that it was renamed
    skew: float | None = None  # seconds that the file system's clock is ahead of ours
    tick: float | None = None
    free: int | None = None  # bytes
    inodes: int | None = None  # -1: it has no fixed number of them
    modes: bool | None = None
    umask: int | None = None
    boot: str | None = None
    errors: dict[str, str] = field(default_factory=dict)


def measure(path: str) -> Facts:
    """Measure the file system at `path`: an inbox, an empty directory, or one yet to be made. Raises
    UnusableInbox, OSError."""
    path = os.path.abspath(path)
    tmp = os.path.join(path, "tmp")  # nobody minds another name there
    places = [
        place
        for place in (tmp, path, os.path.dirname(path))
        if os.path.isdir(place) and not os.path.islink(place)
    ]
    if not places:
        raise UnusableInbox(f"there is no {path}, nor the directory it would be in: create that first")
    place = places[0]
    facts = Facts(place, file_system_type(place), is_network(place), has_no_journal(place))
    facts.forced = is_forced(path)
    with suppress(OSError):
        facts.untold = place_of(os.stat(place).st_dev, place)[0] == "unknown"
    if facts.network and not facts.forced:
        try:
            sharing_of(path, mount_of(place))
        except UnusableInbox as error:
            facts.refused = str(error)
    with _scratch(place) as folder:
        for names, function in _MEASUREMENTS:
            try:
                results = function(folder)
            except (OSError, ImportError, InboxError, subprocess.SubprocessError) as error:
                why = error.__cause__ or error  # what the system said, rather than what we make of it
                facts.errors |= dict.fromkeys(names, getattr(why, "strerror", None) or str(why))
                continue
            for name, result in zip(names, results, strict=True):
                setattr(facts, name, result)
    return facts


@contextmanager
def _scratch(place: str) -> Iterator[str]:
    """A folder to measure in."""
    folder = f"{place}/{SCRATCH}{os.getpid()}.{os.urandom(4).hex()}"
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create(path: str | bytes, data: bytes = b"") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


# --- names and places ---------------------------------------------------------------------------------


def _race(folder: str) -> tuple[Race]:
    """Whether a rename over a file is one step for whoever reads: never nothing there, never a part of it."""
    target = f"{folder}/target"
    contents = [b"a" * 4000, b"b" * 4000]
    _create(target, contents[0])
    ended = threading.Event()
    begun = threading.Event()
    count = {"reads": 0, "missing": 0, "torn": 0}

    def read() -> None:
        while not ended.is_set():
            try:
                with open(target, "rb", buffering=0) as file:
                    count["torn"] += file.read(5000) not in contents
            except (
                OSError
            ):  # ENOENT; or ESTALE, from a file system that no longer knows what it has just shown
                count["missing"] += 1
            count["reads"] += 1
            begun.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    begun.wait(5)
    renames, deadline = 0, monotonic() + 1
    try:
        while renames < _RACES or (count["reads"] < _RACES // 2 and monotonic() < deadline):
            _create(f"{folder}/new", contents[renames % 2])
            os.rename(f"{folder}/new", target)
            renames += 1
    finally:
        ended.set()
        reader.join()
    return (Race(renames, **count),)


def _between(folder: str) -> tuple[bool]:
    """Whether a file can be renamed from folder to folder."""
    for name in ("here", "there"):
        os.mkdir(f"{folder}/{name}")
    _create(f"{folder}/here/file")
    os.rename(f"{folder}/here/file", f"{folder}/there/file")
    return (os.listdir(f"{folder}/there") == ["file"] and not os.listdir(f"{folder}/here"),)


def _symlink(folder: str) -> tuple[bool]:
    """Whether there are symbolic links, as attempts are noted in, and they say what was written."""
    target = f"3.{time_ns()}.{time_ns()}.suspect"
    try:
        os.symlink(target, f"{folder}/note")
    except OSError:
        return (False,)
    return (os.readlink(f"{folder}/note") == target,)


def _exclusive(folder: str) -> tuple[bool]:
    """Whether only one of two can create a file."""
    _create(f"{folder}/only")
    try:
        _create(f"{folder}/only")
    except FileExistsError:
        return (True,)
    return (False,)


def _longest(folder: str) -> tuple[int]:
    """The longest name, in bytes."""
    for length in range(_NAME_MAX, 0, -1):
        try:
            _create(f"{folder}/{'n' * length}")
        except OSError:
            continue
        return (length,)
    return (0,)


def _case(folder: str) -> tuple[bool]:
    """Whether names that differ only in case are different files."""
    return (_differ(f"{folder}/case", "a-name", "A-NAME"),)


def _unicode(folder: str) -> tuple[bool]:
    """Whether the two ways to write one letter in Unicode are different names."""
    return (_differ(f"{folder}/unicode", "é", unicodedata.normalize("NFD", "é")),)


def _differ(folder: str, one: str, other: str) -> bool:
    os.mkdir(folder)
    _create(f"{folder}/{one}".encode())
    return not os.path.lexists(f"{folder}/{other}".encode())


def _any_bytes(folder: str) -> tuple[bool]:
    """Whether a name may be any bytes, and is listed as it was written."""
    name = b"\xff\xfe"
    try:
        _create(os.fsencode(folder) + b"/" + name)
    except OSError:
        return (False,)
    return (name in os.listdir(os.fsencode(folder)),)


# --- locks, events, leases ----------------------------------------------------------------------------

_TRY = """import fcntl, sys
try: fcntl.flock(sys.stdin, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(9)"""


def _flock(folder: str) -> tuple[bool, bool]:
    """Whether a lock excludes another descriptor, and another process; and whether it ends when it is
    left."""
    path = f"{folder}/lock"
    _create(path)
    with open(path, "r+b") as one, open(path, "r+b") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            excluded = False
        except BlockingIOError:
            excluded = True

        def elsewhere() -> int:
            with open(path, "r+b") as theirs:
                return subprocess.run(
                    [sys.executable, "-S", "-E", "-c", _TRY], stdin=theirs, timeout=10
                ).returncode

        refused = elsewhere()
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_UN)
        return excluded, (refused, elsewhere()) == (9, 0)


def _events(folder: str) -> tuple[float]:
    """How many seconds until our own rename is seen, as a consumer tries it at its start; in an inbox of our
    own."""
    layout = Layout(f"{folder}/inbox")
    try:
        waker = Waker()
        source = make_source(layout, waker.set, lambda name: None)
        try:
            begun = monotonic()
            seen = probe(layout, source, waker)
            return (monotonic() - begun if seen else -1,)
        finally:
            source.close()
    finally:
        layout.close()


def _leases(folder: str) -> tuple[bool]:
    """Whether the kernel tells that somebody has a file open for writing."""
    path = f"{folder}/leased"
    _create(path)
    with open(path, "rb") as reader:
        with open(path, "r+b"):
            while_open = has_writer(reader.fileno())
        return ((while_open, has_writer(reader.fileno())) == (True, False),)


# --- disk and clock -----------------------------------------------------------------------------------


def _costs(flush: Callable[[], None]) -> Cost:
    times: list[int] = []
    until = monotonic() + _BUDGET
    while len(times) < _FLUSHES and (monotonic() < until or len(times) < 3):
        begun = perf_counter_ns()
        flush()
        times.append(perf_counter_ns() - begun)
    return Cost(median(times), max(times))


def _flush_file(folder: str) -> tuple[Cost]:
    """What it costs to write 4 KiB and have them survive a power cut."""
    with open(f"{folder}/flushed", "wb", buffering=0) as file:

        def flush() -> None:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())

        return (_costs(flush),)


def _flush_folder(folder: str) -> tuple[Cost]:
    """The same for a name."""
    os.mkdir(f"{folder}/names")
    fd = os.open(f"{folder}/names", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:

        def flush() -> None:
            _create(f"{folder}/names/{time_ns()}")
            os.fsync(fd)

        return (_costs(flush),)
    finally:
        os.close(fd)


def _flush_all(folder: str) -> tuple[float]:
    """What syncfs costs."""
    import ctypes

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        begun = perf_counter_ns()
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return (perf_counter_ns() - begun,)
    except AttributeError:
        raise OSError("this system has no syncfs") from None
    finally:
        os.close(fd)


def _clock(folder: str) -> tuple[float, float, bool]:
    """How far its clock is ahead of ours (seconds), in which steps it goes, and whether renaming shows in a
    file's status."""
    path = f"{folder}/clock"
    before = time_ns()
    _create(path, b"1")
    first = os.stat(path).st_mtime_ns
    after = time_ns()
    tick = float("inf")
    until = monotonic() + 0.1
    stamp = first
    while monotonic() < until:
        with open(path, "wb", buffering=0) as file:
            file.write(b"2")
        now = os.stat(path).st_mtime_ns
        if now != stamp:
            if stamp != first:
                tick = min(tick, now - stamp)
            stamp = now
    # A kernel stamps with the time of its last tick: what is a tick behind is not behind.
    skew = 0.0 if before - 20_000_000 <= first <= after else (first - (before + after) / 2) / 1e9
    sleep(0.02)
    os.rename(path, f"{folder}/renamed")
    return skew, tick, renamed_in(os.stat(f"{folder}/renamed"))


def _room(folder: str) -> tuple[int, int]:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize, status.f_favail if status.f_files else -1


def _modes(folder: str) -> tuple[bool, int]:
    """Whether a file gets the mode that it is given; and the umask of this process."""
    path = f"{folder}/mode"
    _create(path)
    kept = stat.S_IMODE(os.stat(path).st_mode) == 0o600
    try:
        os.chmod(path, 0o660)
    except OSError:
        kept = False
    umask = os.umask(0o077)
    os.umask(umask)
    return kept and stat.S_IMODE(os.stat(path).st_mode) == 0o660, umask


def _boot(folder: str) -> tuple[str]:
    return (boot_tag(),)


_MEASUREMENTS: list[tuple[tuple[str, ...], Callable[[str], tuple[object, ...]]]] = [
    (("race",), _race),
    (("between",), _between),
    (("symlink",), _symlink),
    (("exclusive",), _exclusive),
    (("longest",), _longest),
    (("case",), _case),
    (("unicode",), _unicode),
    (("any_bytes",), _any_bytes),
    (("flock", "flock_elsewhere"), _flock),
    (("events",), _events),
    (("leases",), _leases),
    (("flush_file",), _flush_file),
    (("flush_folder",), _flush_folder),
    (("flush_all",), _flush_all),
    (("skew", "tick", "renamed"), _clock),
    (("free", "inodes"), _room),
    (("modes", "umask"), _modes),
    (("boot",), _boot),
]
