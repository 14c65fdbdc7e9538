"""What is in the folders, and how the work goes, for people: a look that changes nothing and needs no lock.

It goes by the names alone, one listing a folder: it is quick with a million waiting.
"""

from __future__ import annotations

import fcntl
import os
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from time import gmtime, monotonic, sleep, strftime, time, time_ns

from ..consumer.ownership import WHOLE, Shard, clean, is_locked, read_holder, shard_of_lock
from ..store.errors import InvalidKey
from ..store.files import open_for_reading
from ..store.index import HIGHEST
from ..store.layout import Layout
from ..store.names import DIGITS, REASON, decode_key, encode_key, parse_deferred, parse_element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..store.control import Requests
    from .stats import Record, Totals

STATES = {"out": "inflight", "waiting": "pending", "deferred": "deferred", "failed": "failed"}
"""State of an element -> the folder it lies in then."""

_LONGEST_REASON = 1 << 20
"""Characters of a reason that are shown: far more than any of ours has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One element, and where it lies. `seq`, its arrival, and `due`, of a deferred one, in nanoseconds since
    the epoch."""

    key: str
    state: str
    seq: int
    folder: str
    file: str
    due: int | None = None

    def size(self, layout: Layout) -> int | None:
        """Return its size in bytes, or None if it is gone by now."""
        try:
            return os.lstat(self.file, dir_fd=layout.folder(self.folder)).st_size
        except FileNotFoundError:
            return None


def rows(layout: Layout, states: tuple[str, ...] = tuple(STATES)) -> Iterator[Row]:
    """Go through the elements, state by state, the oldest of each first. A key with several places shows
    each.

    `states`: of STATES, or "done".
    """
    for state in states:
        found = []
        for folder, file in _files(layout, state):
            due = None
            name = file
            if state == "deferred":
                split = parse_deferred(file)
                if split is None:
                    continue
                due, name = split
            parsed = parse_element(name)
            key = parsed and decode_key(parsed[1])
            if parsed and key is not None:  # a reason's name has `~`, which no key encodes to
                found.append(Row(key, state, parsed[0], folder, file, due))
        found.sort(key=lambda row: row.seq)
        yield from found


def _files(layout: Layout, state: str) -> list[tuple[str, str]]:
    """Return (folder, name) of what lies where elements of a state do."""
    if state == "out":
        return layout.out()
    folder = STATES.get(state, state)
    if folder == "done" and not layout.has("done"):
        return []
    return [(folder, name) for name in layout.names(folder)]


def find(layout: Layout, key: str) -> Row | None:
    """Return the element of `key` that a person means: the newest that waits, else is out, is deferred, has
    failed."""
    encode_key(key)  # a clear error for what cannot be a key
    for state in ("waiting", "out", "deferred", "failed"):
        matches = [row for row in rows(layout, (state,)) if row.key == key]
        if matches:
            return matches[-1]
    return None


def reason(layout: Layout, row: Row) -> str | None:
    """Return why an element failed, or None if no reason is kept."""
    try:
        fd = open_for_reading(layout, "failed", row.file + REASON)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST_REASON)


AGES = tuple(300 << doubled for doubled in range(9))
"""Limits of the columns of an age histogram, in seconds: 5, 10, 20 ... 1280 minutes, those of Postfix's
qshape."""

PREFIXES = 8
"""The commonest prefixes of keys that an age histogram has."""

_PREFIX = re.compile(r"(?:[-.]|%2F|%3A)*[^-.%]*(?:%(?!2F|3A)[^-.%]*)*")
"""What an encoded key begins with, up to the first `/`, `:`, `-` or `.` behind another character."""

RATE_MINUTES = 5
"""Minutes over which a rate is taken."""

_STEADY = 10.0
"""Seconds of work without a pause from which it may be told how long the rest takes."""


@dataclass(frozen=True, slots=True)
class Ages:
    """How long what waits has waited. A row is counts by age: up to limits[0], up to limits[1] ..., older
    than all of them."""

    limits: tuple[int, ...]
    """In seconds."""
    total: list[int]
    prefixes: dict[str, list[int]]
    """The same for the commonest beginnings of keys, those of two keys or more, the commonest first."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How quickly the work goes, by the accounts that consumers keep (see record). Times in seconds since the
    epoch."""

    rate: float | None
    """Acknowledged a minute; None if the consumer keeps no account."""
    window: float
    """The seconds over which that was so."""
    last: float | None
    """When something was last acknowledged: the minute's beginning."""
    to_empty: float | None
    """Seconds until all that waits now is done, if it goes on like this. None if that cannot be told ..."""
    why: str
    """... and why not."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How an inbox stands. Ages in seconds."""

    path: str
    waiting: int
    out: int
    deferred: int
    failed: int
    dropped: int
    oldest_waiting: float | None
    oldest_out: float | None
    consumer: str | None
    consumers: list[dict[str, object]]
    scope: str
    oldest_deferred: float | None
    """Since it arrived."""
    held: list[str]
    """Keys on hold."""
    paused: bool
    paused_until: float | None
    """When the pause ends by itself, in seconds since the epoch."""
    paused_by: str | None
    ages: Ages
    pace: Pace
    totals: Totals
    """Of all consumers there have been."""
    stuck: str | None
    """Who holds the admission lock, so that all adds wait; None if it is free. (See share_lock.)"""


@dataclass(frozen=True, slots=True)
class Census:
    """How many elements of each state there are, and when the oldest arrived (ns since the epoch)."""

    count: dict[str, int]
    """Of STATES, and "dropped": files in drop/ that are not adopted yet."""
    oldest: dict[str, int]
    """Of those STATES of which there are any."""
    places: dict[str, str]
    """Of what waits: encoded key -> its number, as text."""


def census(layout: Layout, shard: Shard = WHOLE) -> Census:
    """Count what is there of a shard. A key that waits in several places is one. Raises OSError."""
    count, oldest = {}, {}
    places: dict[str, str] = {}
    for state in STATES:
        found = _places(layout, state, shard)
        if state == "waiting":
            for digits, encoded in found:
                if digits < places.get(encoded, "a"):
                    places[encoded] = digits
        numbers = list(places.values()) if state == "waiting" else [digits for digits, _ in found]
        count[state] = len(numbers)
        if numbers:
            oldest[state] = int(min(numbers))
    drops = layout.names("drop")
    count["dropped"] = len(drops) if shard == WHOLE else sum(map(shard.has, map(_encoded, drops)))
    return Census(count, oldest, places)


def _places(layout: Layout, state: str, shard: Shard) -> Iterator[tuple[str, str]]:
    """Go through (number as text, encoded key) of the elements of a state, in no order."""
    names = [name for _, name in layout.out()] if state == "out" else layout.names(STATES[state])
    if state == "deferred":
        names = [name[DIGITS + 1 :] for name in names]
    for name in names:
        digits, encoded = name[:DIGITS], name[DIGITS + 1 :]
        # As parse_element has it, but in half the time: this goes through millions.
        if (
            encoded
            and name[DIGITS] == "-"
            and digits.isdecimal()
            and digits.isascii()
            and "~" not in encoded
            and shard.has(encoded)
        ):
            yield digits, encoded


def _encoded(name: str) -> str:
    """Return the encoded key of a file in drop/, "" if it has none: shards divide them by it."""
    try:
        return encode_key(name)
    except InvalidKey:
        return ""


def summary(layout: Layout) -> Summary:
    """Tell how the inbox stands. `dropped`: files in drop/ that are not adopted yet; `consumer`: who holds it
    now, if anyone."""
    from ..store.control import requests
    from .stats import records

    now = time_ns()
    found = census(layout)
    holders = consumers(layout)
    accounts = records(layout)
    asked = requests(layout)

    def age(state: str) -> float | None:
        return max(0, now - found.oldest[state]) / 1e9 if state in found.oldest else None

    return Summary(
        path=layout.path,
        waiting=found.count["waiting"],
        out=found.count["out"],
        deferred=found.count["deferred"],
        failed=found.count["failed"],
        dropped=found.count["dropped"],
        oldest_waiting=age("waiting"),
        oldest_out=age("out"),
        consumer="; ".join(str(one["holder"]) for one in holders if one["holder"]) or None,
        consumers=holders,
        scope=layout.scope,
        oldest_deferred=age("deferred"),
        held=sorted(filter(None, map(decode_key, asked.held))),
        paused=asked.paused,
        paused_until=asked.until / 1e9 if asked.paused and asked.until else None,
        paused_by=asked.by or None if asked.paused else None,
        ages=ages(found.places, now),
        pace=_pace(found, accounts, holders, asked),
        totals=_sum(accounts),
        stuck=_stuck(layout),
    )


def ages(places: dict[str, str], now: int) -> Ages:
    """Return the age histogram of what waits (see Census.places), at a time in nanoseconds since the
    epoch."""
    limits = [f"{max(0, now - limit * 10**9):0{DIGITS}d}" for limit in reversed(AGES)]
    total = Counter(bisect(limits, digits) for digits in places.values())
    common = Counter(map(_prefix, places))
    top = [name for name, count in common.most_common(PREFIXES) if count > 1]
    wanted = set(top)
    cells = Counter(
        (prefix, bisect(limits, digits))
        for encoded, digits in places.items()
        if (prefix := _prefix(encoded)) in wanted
    )
    newest_first = range(len(limits), -1, -1)
    return Ages(
        AGES,
        [total[column] for column in newest_first],
        {decode_key(name) or name: [cells[name, column] for column in newest_first] for name in top},
    )


def _prefix(encoded: str) -> str:
    """Return what an encoded key begins with, up to the first `/`, `:`, `-` or `.` behind another
    character."""
    match = _PREFIX.match(encoded)
    return match[0] if match else encoded


def account_of(one: dict[str, object], accounts: list[Record]) -> Record | None:
    """Return the account of a consumer (one of `consumers`); None if nobody is, or it keeps none."""
    for account in accounts:
        if account.shard == one["shard"] and f"pid {account.pid} on {account.host} " in str(one["holder"]):
            return account
    return None


def last_acknowledged(accounts: list[Record]) -> float | None:
    """Return the beginning of the minute in which something was last acknowledged, in seconds since the
    epoch."""
    return max(
        (minute[0] * 60.0 for account in accounts for minute in account.minutes if minute[1]), default=None
    )


def _sum(accounts: list[Record]) -> Totals:
    from .stats import Totals

    total = Totals()
    for account in accounts:
        for name in Totals.__slots__:
            setattr(total, name, getattr(total, name) + getattr(account.totals, name))
    return total


def _pace(found: Census, accounts: list[Record], holders: list[dict[str, object]], asked: Requests) -> Pace:
    now = time()
    latest = (now // 60 - RATE_MINUTES + 1) * 60
    start = max(latest, min(map(_first, accounts), default=now))
    window = max(now - start, 1.0)
    there = [one for one in holders if one["holder"]]
    at_work = [account for one in there if (account := account_of(one, accounts))]
    known = bool(accounts) and len(at_work) == len(there)
    rate = _acknowledged(accounts, start) * 60 / window if known else None

    to_empty, why = None, ""
    for_work = [digits for encoded, digits in found.places.items() if encoded not in asked.held]
    if not found.places:
        to_empty = 0.0
    elif not for_work:
        why = "all that waits is on hold"
    elif len(there) < len(holders):
        why = "a shard has no consumer" if there else "nobody consumes"
    elif asked.paused:
        why = "it is paused"
    elif not known:
        why = "the consumer keeps no account: only `fsinbox consume` does"
    else:
        # Only while something waited the consumers were surely at work all the time: a rate with their rests
        # in it would lie.
        busy_since = max([int(min(for_work)) / 1e9, *(account.since for account in at_work)])
        begin = max(
            latest, -(-busy_since // 60) * 60
        )  # the minute in which that was may hold what was done before
        count = _acknowledged(accounts, begin)
        if now - begin < _STEADY:
            why = "the work has only just begun"
        elif not count:
            why = f"nothing was acknowledged for {int(now - begin)} s"
        else:
            to_empty = len(for_work) * (now - begin) / count
    return Pace(rate, window, last_acknowledged(accounts), to_empty, why)


def _acknowledged(accounts: list[Record], since: float) -> int:
    """Return how many were acknowledged in the minutes from `since` on (seconds since the epoch)."""
    return sum(minute[1] for account in accounts for minute in account.minutes if minute[0] >= since // 60)


def _first(account: Record) -> float:
    """Return since when an account tells all (seconds since the epoch)."""
    return min([account.since, *(minute[0] * 60.0 for minute in account.minutes[:1])])


def consumers(layout: Layout) -> list[dict[str, object]]:
    """Return who consumes: for each shard its name ("1/1" for all keys), and its holder or None.

    Where several hosts share the inbox, `sign` is how many seconds ago it gave its last sign of life, and
    `epoch` counts the consumers. Shards that nobody consumes are there as soon as one of their division was.
    """
    found: dict[Shard, dict[str, object]] = {}
    if layout.sharing:
        from ..consumer.lease import leases, server_clock

        now = 0
        for held in leases(layout):
            try:
                now = now or server_clock(layout)
            except OSError:
                now = time_ns()  # the disk is full, or we may only look
            age = (now - held.sign) / 1e9
            lapsed = age > (held.lasts or 15.0)
            found.setdefault(
                held.shard,
                {
                    "holder": held.holder or "unknown",
                    "sign": round(age, 1),
                    "lapsed": lapsed,
                    "epoch": held.epoch,
                },
            )
    else:
        for shard in _locks(layout):
            if is_locked(layout, shard.lock_file):
                found[shard] = {"holder": read_holder(layout, shard.lock_file) or "unknown"}
        if len(found) > 1:
            found.pop(WHOLE, None)  # a share of its lock is each of the others'
    counts = {shard.count for shard in found}
    if not counts:  # none at all: of the division that was there last, all are missing
        counts = {shard.count for shard in _locks(layout)[:1]}
    for count in counts:
        for index in range(1, count + 1):
            found.setdefault(Shard(index, count), {"holder": None})
    return [
        {"shard": str(shard)} | found[shard]
        for shard in sorted(found, key=lambda shard: (shard.count, shard.index))
    ]


def _locks(layout: Layout) -> list[Shard]:
    """Return the shards that have had a consumer, that of the latest start first."""
    times = []
    for name in os.listdir(layout.root):
        shard = shard_of_lock(name)
        if shard:
            times.append((os.lstat(name, dir_fd=layout.root).st_mtime_ns, shard))
    return [shard for _, shard in sorted(times, key=lambda pair: pair[0], reverse=True)]


# --- who holds the admission lock ---------------------------------------------------------------------

PATIENCE = 1.0
"""Seconds after which a lock that cannot be had is worth telling: an add holds it for some 50
microseconds."""


def _stuck(layout: Layout) -> str | None:
    try:
        fd = os.open("index", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=layout.root)
    except OSError:
        return None  # `doctor` tells of that
    try:
        return share_lock(layout, fd)
    finally:
        os.close(fd)


def share_lock(layout: Layout, fd: int) -> str | None:
    """Share the admission lock until `fd`, open on `index`, is closed; None, or who has held it for PATIENCE.

    In words: "process 123 (python3, stopped); the last number was given out at 2026-01-31T12:00:00+00:00".
    """
    until = monotonic() + PATIENCE
    while True:
        try:
            if layout.sharing and layout.sharing.range_locks:
                from ..store.network.sharing import range_lock

                range_lock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            else:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            if monotonic() > until:
                return _holder_of(fd) + _last_given_out(fd)
            sleep(0.01)
        except OSError:
            return None  # a file system that locks nothing for a reader


def _holder_of(fd: int) -> str:
    """Return which process holds an flock on this file, as far as the kernel says. See proc(5),
    /proc/locks."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK" and words[5] == device and words[4].isdigit():
                    return f"process {words[4]}{_program(words[4])}"
    except OSError:
        pass
    return "a process that cannot be seen from here"


def _last_given_out(fd: int) -> str:
    """Return when the last number was given out. (Nobody keeps since when a lock is held: since then, or
    later.)"""
    digits = os.pread(fd, DIGITS, 0)
    if not digits.isdigit() or int(digits) >= HIGHEST:
        return ""
    return (
        f"; the last number was given out at {strftime('%Y-%m-%dT%H:%M:%S+00:00', gmtime(int(digits) / 1e9))}"
    )


def _program(pid: str) -> str:
    """Return " (python3, stopped)" for a process, "" where that cannot be told. See proc(5),
    /proc/PID/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
    except FileNotFoundError:
        return " (it has ended, and a child of it holds on)"
    except OSError:
        return ""
    return f" ({clean(name)}{', stopped' if rest[1:2] in (b'T', b't') else ''})"
