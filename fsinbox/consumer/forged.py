"""Numbers that nobody gave out: a careless copy into pending/. They are queued as if they came now."""

from __future__ import annotations

import logging

from ..store import transitions
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import about, element_name, number_of
from .foreign import Foreign

log = logging.getLogger("fsinbox")

PROPER_WAITS = "its number was never given out, and a proper value of its key waits"


class Forged:
    """Gives forged numbers ones of ours."""

    def __init__(self, layout: Layout, index: Index, foreign: Foreign) -> None:
        self._layout = layout
        self._index = index
        self._foreign = foreign

    def renumber_all(self, names: list[str]) -> bool:
        """Give these numbers of ours; tell whether any is for the next listing. Inside the section."""
        # (Not just read: the file may have been lost or damaged, and then it is mended here.)
        last = self._index.sure_last_number()
        if number_of(max(names)) > last:
            self._index.doubt()
            last = self._index.sure_last_number()
        more = False
        for name in sorted(names):
            more |= number_of(name) <= last or self._renumber(name)
        return more

    def _renumber(self, name: str) -> bool:
        parsed = self._foreign.parse("pending", name)
        if parsed is None:
            return False
        try:
            number, waits, _ = self._index.admit(parsed[1])
            if number == parsed[0]:  # its line knows it: so the last number is an old one
                self._index.make_anew()
                return True
            if waits:  # it must not overwrite what was added properly, and there is no telling which is newer
                self._foreign.set_aside("pending", name, PROPER_WAITS)
                return False
            log.warning(
                "%r in pending/ has a number that was never given out: it is queued as if it came now",
                name,
                extra=about("renumbered", name) | {"seq": number},
            )
            return transitions.move_drop(self._layout, name, element_name(number, parsed[1]), "pending")
        except OSError as error:
            log.warning(
                "cannot queue %r of pending/: %s: it is tried again",
                name,
                error.strerror,
                extra=about("not_renumbered", name),
            )
            return False
