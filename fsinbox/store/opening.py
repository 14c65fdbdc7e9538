"""Which index an inbox has: that of one host, or that of several."""

from __future__ import annotations

from .index import Index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .layout import Layout


def open_index(layout: Layout) -> Index:
    """Return the index of an open inbox. Raises UnusableInbox."""
    if layout.sharing is not None:
        from .network.sections import NetworkIndex

        return NetworkIndex(layout)
    return Index(layout)
