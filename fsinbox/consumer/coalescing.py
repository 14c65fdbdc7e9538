"""One place of each key that waits at several: the newest value at the oldest place."""

from __future__ import annotations

from collections.abc import Callable

from ..store import transitions
from ..store.files import flush_pending
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import decode_key, element_name, encoded_of, parse_element
from ..store.section import Busy
from .foreign import NO_NAME, Foreign
from .twins import hashes_of_twins


class Coalescing:
    """Coalesces the keys of a listing, as far as the lock can be had."""

    def __init__(self, layout: Layout, index: Index, foreign: Foreign) -> None:
        self._layout = layout
        self._index = index
        self._foreign = foreign

    def of(self, names: list[str], is_held: Callable[[str], bool]) -> tuple[list[str], bool]:
        """Return `names` (newest first) with one place a key, and whether no key was left to the next
        listing.

        But for keys that are in flight or deferred (`is_held`, of an encoded key): what comes back would
        count as newer than a value below it (I2). Raises OSError.
        """
        twice = hashes_of_twins(names)
        if not twice:
            return names, True
        gone: set[str] = set()
        is_complete = True
        for encoded, numbers in _places(names, twice).items():
            if len(numbers) < 2 or is_held(encoded):
                continue
            if decode_key(encoded) is None:
                for number in numbers:
                    self._foreign.set_aside("pending", element_name(number, encoded), NO_NAME)
                gone.update(element_name(number, encoded) for number in numbers)
            else:
                is_complete &= self._coalesce(encoded, numbers, gone)
        return [name for name in names if name not in gone], is_complete

    def _coalesce(self, encoded: str, numbers: list[int], gone: set[str]) -> bool:
        """Make one of a key's places, and add the names that are gone; False if the lock was not to be had.

        `numbers` ascend. A directory among them could be renamed neither over nor under a file. It is set
        aside when it is taken: here, a producer may be about to publish in its place.
        """
        lowest, *others = [
            number for number in numbers if self._foreign.looks_regular(element_name(number, encoded))
        ] or [0]
        is_first = True
        for number in others:
            if not is_first:
                flush_pending(self._layout)  # a power cut must not keep the later of two renames alone
            is_first = False
            try:
                self._index.try_locked(
                    transitions.coalesce, self._layout, self._index, encoded, lowest, number
                )
            except Busy:
                return False
            gone.add(element_name(number, encoded))
        return True


def _places(names: list[str], twice: set[int]) -> dict[str, list[int]]:
    """Return encoded key -> its numbers, ascending, of the names (newest first) with one of these hashes."""
    places: dict[str, list[int]] = {}
    for name in reversed(names):
        parsed = parse_element(name) if hash(encoded_of(name)) in twice else None
        if parsed:
            places.setdefault(parsed[1], []).append(parsed[0])
    return places
