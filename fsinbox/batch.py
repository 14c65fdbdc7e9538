"""Many adds with one flush: write all, flush once, publish all, flush once."""

from __future__ import annotations

from . import adopt, protocol
from .layout import Layout
from .names import element_name
from .sequence import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Added = Literal["new", "replaced", "behind"]


def add_batch(layout: Layout, sequence: Sequence, batch: list[tuple[str, str, bytes]], *, durable: bool) -> list[Added]:
    """Add every (key, encoded key, payload) in order; return what happened to each. Raises OSError."""
    temporaries: list[str] = []
    outcomes: list[Added] = []
    try:
        for _, _, data in batch:
            temporaries.append(protocol.write_payload(layout, data, durable=False))
        if durable:
            protocol.flush_all(layout, "tmp", temporaries)
        if protocol.label is not None:
            for temporary in temporaries:
                protocol.label(layout, temporary)
        for (key, encoded, _), temporary in zip(batch, temporaries, strict=True):
            outcomes.append(_publish(layout, sequence, key, encoded, temporary))
    finally:
        for temporary in temporaries[len(outcomes) :]:
            protocol.discard_temporary(layout, temporary)
    if durable:
        protocol.flush_pending(layout)
    return outcomes


def _publish(layout: Layout, sequence: Sequence, key: str, encoded: str, temporary: str) -> Added:
    dropped = adopt.finished_drop(layout, key)
    if layout.sharing:
        waits = protocol.add_shared(layout, sequence, temporary, encoded, dropped)
    else:
        number, waits = protocol.find_place(layout, sequence, encoded, dropped)
        name = element_name(number, encoded)
        protocol.publish(layout, temporary, name)
        protocol.confirm(layout, sequence, name, number, encoded)
    if waits:
        return "replaced"
    return "behind" if protocol.is_out(layout, encoded) else "new"
