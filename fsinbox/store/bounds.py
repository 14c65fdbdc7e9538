"""Bounds of an inbox: how many elements may wait, and how many bytes must stay free on its file system.

They stand in the file `limits`, 64 bytes that a person can read,

    <max waiting, 10 digits> <min free, bytes, 16 digits> <counted, 10 digits> <tag, 8> <when, 13 digits>

0 for no bound. Whoever adds an element, or ingests one, raises `counted` inside the section; nobody lowers
it, for takes need no lock. So it is never below what waits in pending/ and deferred/ (but for what people
move there by hand, and what a power cut took of the file: then the boot's tag is another one). When it
reaches the bound, whoever finds that counts the folders anew, unless that was done just now: `when`, in
milliseconds since the epoch. So an add costs a short read and a write, whatever waits, and a refusal may
come late by RECOUNT_SHARE of the time that counting takes: 10 s for a million, 10 ms for a thousand.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep, time_ns

from .errors import Full
from .files import flush, flush_shared
from .index import Index
from .layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NamedTuple, TypeVar

    Done = TypeVar("Done")

    class Limits(NamedTuple):
        """Bounds; 0 for none. `min_free` in bytes."""

        max_waiting: int
        min_free: int

else:
    from collections import namedtuple

    Limits = namedtuple("Limits", "max_waiting min_free")

NAME = "limits"
SIZE = 64
RECOUNT_SHARE = 10
"""Microseconds between two countings for each element that was counted, which takes about one."""

_NO_BOOT = "network."
"""In place of the boot's tag where several hosts share the inbox: a server has what it has acknowledged."""

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def limits(layout: Layout) -> Limits:
    """Return the bounds of an inbox. Raises OSError."""
    try:
        fd = layout.open_own(NAME, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return Limits(0, 0)
    try:
        return Limits(*(_read(fd) or (0, 0))[:2])
    finally:
        os.close(fd)


def set_limits(layout: Layout, index: Index, max_waiting: int | None, min_free: int | None) -> Limits:
    """Set bounds, durably; None: as it is. Return those that hold from then on: for who has the inbox open,
    within a second. Raises ValueError, OSError."""
    for name, value, most in (("max_waiting", max_waiting, 10**10), ("min_free", min_free, 10**16)):
        if value is not None and not 0 <= value < most:
            raise ValueError(f"{name} must be 0 (no bound) or more, and below {most}, not {value}")
    if max_waiting is None and min_free is None:
        return limits(layout)
    return index.locked(_set, layout, index, max_waiting, min_free)


def _set(layout: Layout, index: Index, max_waiting: int | None, min_free: int | None) -> Limits:
    before = limits(layout)
    wanted = Limits(
        before.max_waiting if max_waiting is None else max_waiting,
        before.min_free if min_free is None else min_free,
    )
    fd = layout.open_own(NAME, os.O_WRONLY | os.O_CREAT | _FLAGS)
    try:
        _write(fd, wanted, _count(layout), _tag_of(layout, index))
        flush(fd)
    finally:
        os.close(fd)
    flush_shared(layout, layout.root)
    return wanted


def _tag_of(layout: Layout, index: Index) -> str:
    """Return the tag of a count that can be believed."""
    return index.tag if layout.sharing is None else _NO_BOOT


def let_in(layout: Layout, index: Index) -> None:
    """An element is about to wait: count it. Inside the section. Raises Full; OSError."""
    try:
        fd = layout.open_own(NAME, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return  # gone: that must not keep anybody from adding; nor that it is damaged
    try:
        record = _read(fd)
        if record:
            _demand_room(layout, index, fd, *record)
    finally:
        os.close(fd)


def when_there_is_room(
    step: Callable[[], Done], timeout: float, is_over: Callable[[], bool] = lambda: False
) -> Done:
    """Return what a step returns that raises Full while there is no room: it is done again for `timeout`
    seconds, or until it is over."""
    until, pause = monotonic() + timeout, 0.02
    while True:
        try:
            return step()
        except Full:
            left = until - monotonic()
            if left <= 0 or is_over():
                raise
        sleep(min(pause, left))
        pause = min(2 * pause, 0.5)


def _demand_room(
    layout: Layout, index: Index, fd: int, most: int, free: int, counted: int, tag: str, when: int
) -> None:
    state = os.statvfs(layout.root) if free else None
    if state and (left := state.f_bavail * state.f_frsize) < free:
        raise Full(errno.EDQUOT, f"{left} bytes are free on its file system, and min_free is {free}")
    if not most:
        return
    ours = _tag_of(layout, index)
    if tag != ours or (counted >= most and _is_old(counted, when)):
        counted = _count(layout)
        _write(fd, Limits(most, free), counted, ours)
    if counted >= most:
        what = "1 element waits" if counted == 1 else f"{counted} elements wait"
        raise Full(errno.EDQUOT, f"{what}, and max_waiting is {most}")
    # (In place and of constant length, as the index: a kill cannot leave half of it.)
    os.pwrite(fd, b"%010d" % min(counted + 1, 10**10 - 1), 28)


def _is_old(counted: int, when: int) -> bool:
    """Tell whether it is time to count anew."""
    age = time_ns() // 10**6 - when
    return not 0 <= age * 1000 < RECOUNT_SHARE * counted


def _count(layout: Layout) -> int:
    """Return how many elements wait, or are deferred. Lists both folders."""
    return sum(
        name[0] != "." for folder in ("pending", "deferred") for name in layout.names_one_by_one(folder)
    )


def _write(fd: int, bounds: Limits, counted: int, tag: str) -> None:
    line = b"%010d %016d %010d %b %013d" % (*bounds, counted, tag.encode("ascii"), time_ns() // 10**6)
    data = line.ljust(SIZE - 1) + b"\n"
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError(errno.ENOSPC, "only a part could be written", NAME)


def _read(fd: int) -> tuple[int, int, int, str, int] | None:
    """Return (max waiting, min free, counted, tag, when); None if it is damaged."""
    words = os.pread(fd, SIZE, 0).split()
    if len(words) != 5 or not all(word.isdigit() for word in (*words[:3], words[4])):
        return None
    return int(words[0]), int(words[1]), int(words[2]), words[3].decode("ascii", "replace"), int(words[4])
