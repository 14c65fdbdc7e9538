"""What people ask of the consumer: control/, which it looks at before it takes.

    control/pause           a symlink, `<until>.<who>`: take nothing until then (ns since the epoch; 0: until
                            resumed)
    control/hold-<key>      a symlink, `<since>.<who>`: leave this key alone; what is added for it replaces
                            and waits as always
    control/rescan          a symlink, `<when>.<who>`: something came back to pending/, or is gone from
                            deferred/

Nothing is moved for a hold, so nothing can be lost by one. An fsinbox that does not know these takes as if
they were not there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import time_ns

from .files import flush_folder, unused_temporary
from .layout import Layout
from .names import DIGITS, decode_key
from .printing import clean

_PAUSE = "pause"
_HOLD = "hold-"
_RESCAN = "rescan"


@dataclass(frozen=True, slots=True)
class Requests:
    """What was asked for. Times in nanoseconds since the epoch."""

    paused: bool = False
    until: int = 0
    """When the pause ends by itself; 0: it does not."""
    by: str = ""
    """Who has paused it."""
    held: frozenset[str] = frozenset()
    """The keys on hold, encoded."""
    rescan: int = 0
    """When a fresh listing was asked for last."""


NONE = Requests()


def requests(layout: Layout) -> Requests:
    """Return what is asked for now. Raises OSError."""
    if not layout.has("control"):
        return NONE
    held = set()
    paused, until, by, rescan = False, 0, "", 0
    for name in layout.names("control"):
        if name == _PAUSE:
            when, by = _read(layout, name)
            until = when
            paused = until == 0 or until > time_ns()
        elif name == _RESCAN:
            rescan, _ = _read(layout, name)
        elif name.startswith(_HOLD) and decode_key(name[len(_HOLD) :]) is not None:
            held.add(name[len(_HOLD) :])
    return Requests(paused, until, by, frozenset(held), rescan)


def pause(layout: Layout, until: int = 0) -> None:
    """Have consumers take nothing until then (ns since the epoch; 0: until `resume`). Durable. Raises
    OSError."""
    _write(layout, _PAUSE, until)


def resume(layout: Layout) -> bool:
    """End a pause; tell whether there was one. Raises OSError."""
    return _remove(layout, _PAUSE)


def hold(layout: Layout, encoded: str) -> None:
    """Have consumers leave a key alone. Durable. Raises OSError."""
    _write(layout, _HOLD + encoded, time_ns())


def release(layout: Layout, encoded: str) -> bool:
    """End a hold; tell whether there was one. Raises OSError."""
    return _remove(layout, _HOLD + encoded)


def ask_rescan(layout: Layout) -> None:
    """Have consumers list pending/ afresh before they take: what was brought back there is before what they
    know of.

    Not flushed: whoever starts after a power cut lists it anyhow. Raises OSError.
    """
    _write(layout, _RESCAN, time_ns(), durable=False)


def put(layout: Layout, name: str, text: str) -> None:
    """Have the symlink of this name in control/ say this from now on, in place of what it said. Not flushed.
    Raises OSError."""
    layout.make("control")
    folder = layout.folder("control")
    draft = "." + unused_temporary(layout)
    os.symlink(text, draft, dir_fd=folder)
    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)


def _read(layout: Layout, name: str) -> tuple[int, str]:
    """Return (time, who). What is no wish of ours is one without end, by nobody: better a pause too many."""
    try:
        digits, _, who = os.readlink(name, dir_fd=layout.folder("control")).partition(".")
    except OSError:
        return 0, ""
    is_time = digits.isdecimal() and digits.isascii() and len(digits) <= DIGITS
    return (int(digits) if is_time else 0), clean(os.fsencode(who))


def _write(layout: Layout, name: str, when: int, *, durable: bool = True) -> None:
    put(layout, name, f"{when}.pid {os.getpid()} of user {os.getuid()} on {os.uname().nodename}")
    if durable:
        flush_folder(layout, "control")


def _remove(layout: Layout, name: str) -> bool:
    if not layout.has("control"):
        return False
    try:
        os.unlink(name, dir_fd=layout.folder("control"))
    except FileNotFoundError:
        return False
    flush_folder(layout, "control")
    return True
