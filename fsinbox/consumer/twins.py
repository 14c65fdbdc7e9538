"""Keys that are there more than once, found by hashes: of a million names too."""

from __future__ import annotations

from array import array
from itertools import compress

from ..store.names import encoded_of

_PART = 250_000
"""Names of which a set is made at once: one of a million would be more than all else that a consumer
keeps."""


def hashes_of_twins(names: list[str]) -> set[int]:
    """Return the hashes of the keys that more than one of these names has. In parts, and by hashes: see
    _PART."""
    if len(names) < 2:
        return set()  # (what wakes an idle consumer, as a rule)
    return twins(array("q", map(hash, map(encoded_of, names))))


def twins(hashes: array[int]) -> set[int]:
    """Return those of these hashes that are there more than once."""
    if len(hashes) <= _PART and len(set(hashes)) == len(hashes):
        return set()
    a_byte_of_each = bytes(memoryview(hashes).cast("B")[:: hashes.itemsize])
    parts = 1 + len(hashes) // _PART
    twice: set[int] = set()
    for part in range(parts):
        is_in_part = a_byte_of_each.translate(bytes(byte % parts == part for byte in range(256)))
        if len(set(compress(hashes, is_in_part))) < is_in_part.count(1):
            seen: set[int] = set()
            for number in compress(hashes, is_in_part):
                (twice if number in seen else seen).add(number)
    return twice
