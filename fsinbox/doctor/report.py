"""What the doctor says of a file system: of each fact what was found, and what fsinbox does for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..store.names import DIGITS, MAX_ENCODED
from .filesystem import Facts

LONGEST = 2 * (DIGITS + 1) + MAX_ENCODED
"""Bytes of the longest name in an inbox: `<due>-<number>-<key>`."""

_QUICK = 8_000  # nanoseconds: a flush that takes less has not been to any disk
_MEMORY = frozenset(("tmpfs", "ramfs"))
_LITTLE_ROOM = 64 << 20
_FEW_INODES = 1000


@dataclass(frozen=True)
class Line:
    """One thing that was measured. `level`: "ok"; "note", to know; "person", when fsinbox cannot do its work
    here."""

    name: str
    level: str
    found: str
    chosen: str


def describe(facts: Facts) -> list[Line]:
    """Return a line for each fact."""
    lines = []
    for needs, say in _SAY:
        failed = [facts.errors[name] for name in needs if name in facts.errors]
        name = say.__name__.removeprefix("_")
        if failed:
            lines.append(
                Line(
                    name,
                    "person",
                    f"could not be measured: {failed[0]}",
                    "fsinbox relies on it: fix that first",
                )
            )
        else:
            lines.append(Line(name, *say(facts)))
    return lines


def unwritable(error: OSError) -> Line:
    """Return the line for a place where nothing can be written, and so nothing measured."""
    return Line(
        "write",
        "person",
        f"cannot write here: {error.strerror or error}",
        "nothing can be added or taken",
    )


Said = tuple[str, str, str]  # level, found, chosen


def _kind(facts: Facts) -> Said:
    kind = facts.kind or "unknown"
    if facts.refused:
        return (
            "person",
            f"{kind}, which other hosts use too, mounted in a way that is not safe for an inbox",
            facts.refused,
        )
    if facts.forced:
        return (
            "note",
            f"{kind}, which other hosts may use too",
            "the inbox was forced to be for this one alone",
        )
    if facts.untold:
        return (
            "note",
            f"{kind}, of which is not known whether other hosts use it",
            "an inbox for several hosts is refused here; any other is for this machine alone",
        )
    if facts.network:
        return (
            "note",
            f"{kind}, which other hosts use too",
            "the index survives late writes of a host that was cut off; the consumer holds a lease, and "
            "polls while it is idle",
        )
    if facts.no_journal:
        return (
            "note",
            f"{kind} without a journal, local",
            "a power cut may leave a rename by half, and quick adds to a queue in use take several times as "
            "long: give it a journal (unmounted: tune2fs -O has_journal DEVICE)",
        )
    return "ok", f"{kind}, local", "after each boot the index is rebuilt from the folders"


def _boot(facts: Facts) -> Said:
    if facts.network:
        return (
            "ok",
            f"this boot is {facts.boot}",
            "not used here: what a server has acknowledged survives our power cuts",
        )
    return "ok", f"this boot is {facts.boot}", "the index is valid for this boot only"


def _rename(facts: Facts) -> Said:
    race = facts.race
    assert race
    seen = f"{race.renames} renames over a file, {race.reads} reads beside them"
    if race.missing or race.torn:
        bad = f"{seen}: {race.missing} found no file, {race.torn} found a part of one"
        return "person", bad, "a value could be missed while a newer one replaces it; use another file system"
    return "ok", f"{seen}: each found a complete file", "a value is replaced by one rename"


def _between(facts: Facts) -> Said:
    if not facts.between:
        return (
            "person",
            "a file cannot be renamed from folder to folder",
            "elements cannot be taken; use another file system",
        )
    return "ok", "a file can be renamed from folder to folder", "an element's folder is its state"


def _symlink(facts: Facts) -> Said:
    if facts.symlink:
        return (
            "ok",
            "symbolic links work",
            "they hold the attempts of an element, and what people ask of the consumer",
        )
    return (
        "person",
        "no symbolic links",
        "attempts are lost at a restart, and consumers cannot be paused; use another file system",
    )


def _exclusive(facts: Facts) -> Said:
    if facts.exclusive:
        return (
            "ok",
            "only one of two processes creates a file",
            "two producers never write to the same file in tmp/",
        )
    return (
        "person",
        "two processes can create the same file",
        "two producers could write to the same file; use another file system",
    )


def _flock(facts: Facts) -> Said:
    if facts.flock and facts.flock_elsewhere:
        return (
            "ok",
            "a lock excludes other descriptors and other processes",
            "flock guards the index, and lets only one consumer run",
        )
    return (
        "person",
        "flock does not exclude",
        "two consumers could run, and a number be given out twice; use another file system",
    )


def _events(facts: Facts) -> Said:
    if facts.errors.get("events"):
        return "note", f"no events: {facts.errors['events']}", "an idle consumer polls"
    if facts.events is None or facts.events < 0:
        return "note", "events do not fire", "an idle consumer polls"
    if facts.network:
        return "note", "events fire, but not for what other hosts do", "an idle consumer polls"
    return (
        "ok",
        f"events fire (ours arrived within {_time(facts.events * 1e9)})",
        "an idle consumer sleeps until inotify wakes it",
    )


def _names(facts: Facts) -> Said:
    longest = facts.longest or 0
    if longest < LONGEST:
        fits = max(0, longest - (LONGEST - MAX_ENCODED))
        return (
            "person",
            f"the longest name is {longest} bytes",
            f"encoded keys must be at most {fits} bytes, or adds fail",
        )
    return "ok", f"the longest name is {longest} bytes", f"an encoded key may have {MAX_ENCODED} bytes"


def _case(facts: Facts) -> Said:
    if facts.case:
        return "ok", "`a` and `A` are two files", "and two keys"
    return (
        "person",
        "`a` and `A` are the same file",
        "keys that differ only in case would replace each other; write all keys in one case, or use another "
        "file system",
    )


def _unicode(facts: Facts) -> Said:
    if facts.errors.get("unicode") or not facts.unicode:
        return (
            "note",
            "names are compared as text, not as bytes",
            "keys are not affected, as they are encoded in ASCII; names in drop/ may be: use ASCII there",
        )
    if not facts.any_bytes:
        return (
            "note",
            "names must be text",
            "keys are not affected, as they are encoded in ASCII; names in drop/ must be text",
        )
    return "ok", "names are bytes, and kept unchanged", "a dropped file's name is its key, byte for byte"


def _flush(facts: Facts) -> Said:
    file, folder = facts.flush_file, facts.flush_folder
    assert file and folder
    cost = (
        f"a flush of a file costs {_time(file.median)} (at most {_time(file.highest)}), "
        f"of a folder {_time(folder.median)} (at most {_time(folder.highest)})"
    )
    if facts.kind in _MEMORY:
        return "note", cost, f"{facts.kind} is memory: nothing here survives a power cut, durable or not"
    if file.median < _QUICK:
        return (
            "note",
            cost,
            "no disk is that quick, so it may not flush at all: ask whoever runs it, or do not rely on it",
        )
    rate = _rounded(1e9 / (file.median + folder.median))
    return (
        "ok",
        cost,
        f"about {rate:,} durable adds a second from one producer; add_many flushes twice for 1,000 values",
    )


def _syncfs(facts: Facts) -> Said:
    if facts.flush_all is None:
        return "note", f"no syncfs: {facts.errors.get('flush_all')}", "add_many flushes file by file"
    return (
        "ok",
        f"syncfs works ({_time(facts.flush_all)})",
        "add_many, and the consumer for drop/, flush many files at once",
    )


def _leases(facts: Facts) -> Said:
    if facts.leases:
        return (
            "ok",
            "the kernel tells whether a file is being written",
            "a file in drop/ is left alone while a process writes it",
        )
    return (
        "note",
        "the kernel does not tell whether a file is being written",
        "a file in drop/ must be unchanged for --drop-settle seconds",
    )


def _clock(facts: Facts) -> Said:
    skew, tick = facts.skew, facts.tick
    assert skew is not None and tick is not None
    steps = "steps of more than 0.1 s" if tick == float("inf") else f"steps of {_time(tick)}"
    renamed = (
        "a file renamed into drop/ is ingested at once"
        if facts.renamed
        else "a file renamed into drop/ must be unchanged for --drop-settle seconds"
    )
    if abs(skew) > 1:
        return (
            "note",
            f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} ours, in {steps}",
            f"order does not depend on it, but --settle and the age of litter do: set the clocks; {renamed}",
        )
    return "ok", f"its clock is ours, in {steps}", renamed


def _room(facts: Facts) -> Said:
    free, inodes = facts.free, facts.inodes
    assert free is not None and inodes is not None
    found = f"{_size(free)} free, " + (
        "and files without limit" if inodes < 0 else f"and {inodes:,} more files"
    )
    if free < _LITTLE_ROOM or 0 <= inodes < _FEW_INODES:
        return "person", found, "adds will soon fail; takes and acknowledgements need no room: free some"
    return "ok", found, "an element needs a file; the index has its room already"


def _modes(facts: Facts) -> Said:
    if not facts.modes:
        return (
            "person",
            "files do not keep their mode",
            "whoever may use the file system may read the payloads: mount it for one user",
        )
    return (
        "ok",
        f"files keep their mode, and this process has umask {facts.umask:03o}",
        "private is 600; shared is 660, whatever the umask",
    )


_SAY: list[tuple[tuple[str, ...], Callable[[Facts], Said]]] = [
    ((), _kind),
    (("boot",), _boot),
    (("race",), _rename),
    (("between",), _between),
    (("symlink",), _symlink),
    (("exclusive",), _exclusive),
    (("flock",), _flock),
    ((), _events),
    (("longest",), _names),
    (("case",), _case),
    ((), _unicode),
    (("flush_file", "flush_folder"), _flush),
    ((), _syncfs),
    (("leases",), _leases),
    (("skew",), _clock),
    (("free",), _room),
    (("modes",), _modes),
]


def _time(ns: float) -> str:
    for size, unit in ((1e9, "s"), (1e6, "ms")):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e3:.3g} us"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _rounded(number: float) -> int:
    """To two digits: more would be pretence."""
    return int(float(f"{number:.2g}"))
