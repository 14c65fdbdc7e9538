"""pending/, listed: which names may be taken, and whether there is more than the last listing showed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from time import monotonic

from ..store.index import Index
from ..store.layout import Layout
from ..store.names import element_name, encoded_of, number_of, parse_element
from ..store.section import Busy
from .coalescing import Coalescing
from .foreign import NO_NAME, Foreign
from .forged import Forged
from .ownership import Shard
from .watch import RESCAN

_LONG = 1000
"""Names in pending/: a listing of more is only done if there is something new, where that can be told; or
after RESCAN."""

STUCK = 1.0
"""Seconds after which a section that was left open on another host is followed by one of ours."""


class Listing:
    """How the last listing stands to what is there now.

    stale       the next take lists first
    more_since  since when (monotonic seconds) each listing has left something to the next one, since it was
                not given out when the listing began, or the lock was not to be had; None if the last did not
    """

    def __init__(self, layout: Layout, index: Index, foreign: Foreign, shard: Shard) -> None:
        self.stale = True
        self.more_since: float | None = None
        self._layout = layout
        self._index = index
        self._foreign = foreign
        self._shard = shard
        self._forged = Forged(layout, index, foreign)
        self._coalescing = Coalescing(layout, index, foreign)
        self._seen_header = b""
        self._good_until = 0.0

    @property
    def more(self) -> bool:
        """Whether something was left to the next listing."""
        return self.more_since is not None

    def may_be_spared(self, *, is_used_up: bool) -> bool:
        """Tell whether a long listing can be spared: no add has ended since the last one, and nothing of it
        is left (`is_used_up`) nor in doubt. Raises OSError.

        Only where several hosts share the inbox: there every add ends with a change of the header, after its
        element is in its place. What is done by hand, or is not seen on this host, is seen when the listing
        is old.
        """
        if self._layout.sharing is None:
            return False
        header = self._index.peek_header()
        is_good = header == self._seen_header and monotonic() < self._good_until
        if is_good and is_used_up and not (self.stale or self.more):
            return True
        self._seen_header = header
        return False

    def read(self, is_held: Callable[[str], bool]) -> list[str]:
        """Return the names in pending/ that were given out when this began, newest first, one a key.

        A listing is not atomic: of two names that come while it runs it may show only the later one. So what
        was not given out before it began is left for the next. `is_held`: see Coalescing.of. Raises OSError.
        """
        began = monotonic()
        mark = self._index.mark()
        names = self._layout.names("pending")
        self._good_until = began + RESCAN if len(names) > _LONG else 0.0
        if self._shard.count > 1:
            names = [
                name for name in names if self._shard.has(encoded_of(name) if parse_element(name) else "")
            ]
        names.sort(reverse=True)
        above = list(takewhile(element_name(mark + 1, "").__le__, names))
        del names[: len(above)]
        more = bool(above) and self._sort_out(above)
        # (What is foreign among the others is set aside when its turn comes: to look at a million takes a
        # second.)
        names, is_complete = self._coalescing.of(names, is_held)
        if not (more and self.more):
            self.more_since = monotonic()
        if not more and is_complete:
            self.more_since = None
        self.stale = False
        return names

    def _sort_out(self, above: list[str]) -> bool:
        """Tell whether any of these names, which are above the mark, is for the next listing.

        Those whose number nobody has given out are given one of ours.
        """
        future = []
        for name in above:
            if parse_element(name):
                future.append(name)
            else:
                self._foreign.set_aside("pending", name, NO_NAME)
        last = self._index.peek()
        forged = [name for name in future if number_of(name) > last]
        more = len(forged) < len(future)
        try:
            if forged:
                more |= self._index.try_locked(self._forged.renumber_all, forged, patience=0)
            elif more and self._layout.sharing and self._is_stuck():
                self.more_since = monotonic()
                self._settle()
        except Busy:
            pass
        return more

    def _is_stuck(self) -> bool:
        return self.more_since is not None and monotonic() > self.more_since + STUCK

    def _settle(self) -> None:
        """A host was cut off, or died, in its section: follow it by one of ours, so that what it published
        counts."""
        try:
            self._index.try_locked(self._index.settle)
        except OSError:
            pass  # it is tried again; whoever adds does it as well, and is told of the error
