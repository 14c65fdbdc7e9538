"""One add, of one value or of many: write, find what was dropped before, publish in one section, flush."""

from __future__ import annotations

from . import files
from .drops import finished_drop
from .files import close_interrupted, discard_interrupted, flush_all, write_payload
from .index import Index
from .layout import Layout
from .transitions import Published, Unsure, flush_published, is_in_flight, publish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Added = Literal["new", "replaced", "behind"]

SECTION = 100
"""Values that are published in one section: others wait for the lock as long."""

_FEW = 3
"""Up to so many keys are looked up in drop/ one by one."""


class Add:
    """Values on their way into an inbox. `published` tells how far it came, also when it was cut short."""

    def __init__(self, layout: Layout, index: Index, *, durable: bool) -> None:
        self._layout = layout
        self._index = index
        self._durable = durable
        self._drafts: list[str] = []
        self._published = Published()

    def may_be_there(self, error: BaseException) -> bool:
        """Tell whether the value that was not added by this error may be delivered all the same."""
        return bool(self._published.outcomes) or isinstance(error, Unsure)

    def one(self, key: str, encoded: str, payload: Any) -> Added:
        """Queue one value: bytes, or what writes itself (transfer.Source, transfer.Stream). Raises
        OSError."""
        try:
            if isinstance(payload, bytes):
                write_payload(self._layout, payload, self._drafts, durable=self._durable)
            else:
                payload.write(self._layout, self._drafts, durable=self._durable)
            self._publish([(key, encoded)])
        except BaseException:
            if not isinstance(payload, bytes) and self._drafts:
                draft = self._drafts.pop()
                payload.discard(self._layout, draft)
                close_interrupted(draft)
            self._discard()
            raise
        return self._outcomes([encoded])[0]

    def many(self, items: list[tuple[str, str, bytes]]) -> list[Added]:
        """Queue every (key, encoded key, payload), in order; return what happened to each. Raises OSError."""
        try:
            for _, _, data in items:
                write_payload(self._layout, data, self._drafts, durable=False)
            if self._durable:
                flush_all(self._layout, "tmp", self._drafts)
            for start in range(0, len(items), SECTION):
                self._publish([(key, encoded) for key, encoded, _ in items[start : start + SECTION]])
        except BaseException:
            self._discard()
            raise
        return self._outcomes([encoded for _, encoded, _ in items])

    def _publish(self, keys: list[tuple[str, str]]) -> None:
        done = len(self._published.outcomes)
        drafts = []
        # Over a network one listing is less than a lookup of each key.
        listed = set(self._layout.names("drop")) if self._layout.sharing and len(keys) > _FEW else None
        for temporary, (key, encoded) in zip(self._drafts[done : done + len(keys)], keys, strict=True):
            if files.label is not None:
                files.label(self._layout, temporary)
            dropped = finished_drop(self._layout, key) if listed is None or key in listed else None
            drafts.append((temporary, encoded, dropped))
        self._index.locked(publish, self._layout, self._index, drafts, self._published)

    def _outcomes(self, keys: list[str]) -> list[Added]:
        """Flush, and tell what happened to each."""
        if self._durable:
            flush_published(self._layout, self._published)
        return [
            "replaced"
            if waited
            else "behind"
            if others and is_in_flight(self._layout, encoded, others)
            else "new"
            for encoded, (waited, others) in zip(keys, self._published.outcomes, strict=True)
        ]

    def _discard(self) -> None:
        """It was cut short: remove what was not published."""
        for temporary in self._drafts[len(self._published.outcomes) :]:
            discard_interrupted(self._layout, temporary)
