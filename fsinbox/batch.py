"""Many adds with one flush: write all, flush once, publish all, flush once."""

from __future__ import annotations

import os

from . import adopt, protocol
from .layout import Layout
from .names import element_name
from .sequence import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Added = Literal["new", "replaced", "behind"]

_FEW = 4
"""Up to so many files are flushed one by one: syncfs also writes out whatever else waits on that file system."""


def add_batch(layout: Layout, sequence: Sequence, batch: list[tuple[str, str, bytes]], *, durable: bool) -> list[Added]:
    """Add every (key, encoded key, payload) in order; return what happened to each. Raises OSError."""
    one_by_one = durable and len(batch) <= _FEW
    temporaries: list[str] = []
    outcomes: list[Added] = []
    try:
        for _, _, data in batch:
            temporaries.append(protocol.write_payload(layout, data, durable=one_by_one))
        if durable and not one_by_one:
            flush_file_system(layout, temporaries)
        for (key, encoded, data), temporary in zip(batch, list(temporaries), strict=True):
            outcomes.append(_publish(layout, sequence, key, encoded, data, temporary, durable=durable))
            temporaries.remove(temporary) if temporaries[0] != temporary else temporaries.pop(0)
    finally:
        for temporary in temporaries:
            protocol.discard_temporary(layout, temporary)
    if durable:
        protocol.flush_pending(layout)
    return outcomes


def _publish(layout: Layout, sequence: Sequence, key: str, encoded: str, data: bytes, temporary: str, *, durable: bool) -> Added:
    while True:
        number, waits = protocol.find_place(layout, sequence, encoded, adopt.finished_drop(layout, key))
        name = element_name(number, encoded)
        protocol.publish(layout, temporary, name)
        if protocol.is_settled_in(layout, sequence, name, number, encoded):
            break
        temporary = protocol.write_payload(layout, data, durable=durable)
    if waits:
        return "replaced"
    return "behind" if protocol.is_out(layout, encoded) else "new"


def flush_file_system(layout: Layout, temporaries: list[str]) -> None:
    """Make the content of these files in tmp/ survive a power cut, in one go where the system can (syncfs(2))."""
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    tmp = layout.folder("tmp")
    if syncfs is None:
        for name in temporaries:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tmp)
            try:
                protocol.flush(fd)
            finally:
                os.close(fd)
    elif syncfs(tmp):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
