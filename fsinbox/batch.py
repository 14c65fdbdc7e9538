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

_UNDER_ONE_LOCK = 100
"""Keys that are admitted at once: other producers' new keys wait for some milliseconds."""


def add_batch(layout: Layout, sequence: Sequence, batch: list[tuple[str, str, bytes]], *, durable: bool) -> list[Added]:
    """Add every (key, encoded key, payload) in order; return what happened to each. Raises OSError."""
    temporaries: list[str] = []
    outcomes: list[Added] = []
    try:
        for _, _, data in batch:
            temporaries.append(protocol.write_payload(layout, data, durable=False))
        if durable:
            protocol.flush_all(layout, "tmp", temporaries)
        for first in range(0, len(batch), _UNDER_ONE_LOCK):
            _publish(layout, sequence, batch[first : first + _UNDER_ONE_LOCK], temporaries, outcomes)
    finally:
        for temporary in temporaries[len(outcomes) :]:
            protocol.discard_temporary(layout, temporary)
    if durable:
        protocol.flush_pending(layout)
    return outcomes


def _publish(
    layout: Layout, sequence: Sequence, some: list[tuple[str, str, bytes]], temporaries: list[str], outcomes: list[Added]
) -> None:
    """Publish the next of `temporaries`, the first for which there is no outcome yet, and add theirs."""
    in_drop = set(layout.names("drop"))  # what comes from now on arrives while we add, and may be taken for the newer
    wanted = [(encoded, adopt.finished_drop(layout, key) if key in in_drop else None) for key, encoded, _ in some]
    places, error = protocol.find_places(layout, sequence, wanted)
    out = protocol.keys_out(layout)
    published: set[str] = set()
    for (_, encoded, _), (number, waits) in zip(some, places, strict=False):
        name = element_name(number, encoded)
        protocol.publish(layout, temporaries[len(outcomes)], name)
        outcomes.append("replaced" if waits or encoded in published else "behind" if encoded in out else "new")
        published.add(encoded)
        protocol.confirm(layout, sequence, name, number, encoded)
    if error:
        raise error
