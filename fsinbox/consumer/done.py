"""done/: the last acknowledged elements, kept on request, to look at or to replay."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..store import transitions
from ..store.files import remove_any
from ..store.layout import Layout
from ..store.names import about, encoded_of

log = logging.getLogger("fsinbox")


class Done:
    """The names in done/, oldest first, of which only the last so many are kept."""

    def __init__(self, layout: Layout, most: int, mine: Callable[[str], bool]) -> None:
        """`most`: how many to keep; `mine`: tells which encoded keys are the consumer's."""
        self._layout = layout
        self._most = most
        self._mine = mine
        self._names: dict[str, None] | None = None

    def acknowledge(self, name: str) -> bool:
        """Acknowledge an element, and keep it if that was asked for. False if it is not there.

        Raises OSError.
        """
        if self._most:
            return self._keep(name)
        return transitions.discard(self._layout, "inflight", name, transitions.ACKNOWLEDGED)

    def _keep(self, name: str) -> bool:
        names = self._names = self._list() if self._names is None else self._names
        try:
            if not transitions.keep_done(self._layout, name):
                return False
        except OSError as error:
            log.warning(
                "cannot keep %r in done/: %s: it is acknowledged, and removed",
                name,
                error.strerror,
                extra=about("not_kept", name),
            )
            return transitions.discard(self._layout, "inflight", name, transitions.ACKNOWLEDGED)
        names.pop(name, None)  # from before it was replayed
        names[name] = None
        while len(names) > self._most:
            oldest = next(iter(names))
            del names[oldest]
            self._remove(oldest)
        return True

    def _remove(self, name: str) -> None:
        """Remove one that is too many. What cannot be removed is left, and said: the element that has just
        been kept is acknowledged all the same."""
        try:
            outcome = remove_any(self._layout, "done", name)
            why = "it is a directory with something in it" if outcome == "full" else ""
        except OSError as error:
            why = error.strerror or str(error)
        if why:
            said = about("not_removed", name)
            log.warning("cannot remove %r of done/: %s: it is left", name, why, extra=said)

    def _list(self) -> dict[str, None]:
        self._layout.make("done")
        found = self._layout.oldest_first("done")
        return dict.fromkeys(name for name in found if self._mine(encoded_of(name)))
