"""The index of an inbox, compared with the elements: whether a number could be given out twice, or a newer
value lose to an older one."""

from __future__ import annotations

import os
import stat
from time import time_ns

from ..operate.admission import share_lock
from ..store.index import FUTURE, Index
from ..store.lines import HEADER, LINE, read_header
from ..store.names import element_name
from ..store.network.sections import read_words
from ..store.opening import open_index
from .folders import Folders
from .signs import Signs


class Numbers:
    """What was seen of the index. Look at the folders first: the last number in the index only grows."""

    def __init__(self, signs: Signs, folders: Folders) -> None:
        """Compare. Raises OSError."""
        self._signs = signs
        self._layout = signs.layout
        self._folders = folders
        self.last = 0
        """The last number given out; 0: none."""
        index = open_index(self._layout)
        is_current, has_table = self._header(index)
        limit = max(self.last, time_ns()) + FUTURE
        known = self.last if is_current else limit  # else the next add brings it up to date
        if self.last > time_ns() + FUTURE:
            signs.see("index-future", "index", self.last)
        self._compare_places(index, known, has_table=has_table)
        for where, number in folders.numbers:
            if number > limit:
                signs.see("number-absurd", where)
            elif number > known:
                signs.see("index-behind", where)

    def _compare_places(self, index: Index, known: int, *, has_table: bool) -> None:
        for encoded, numbers in self._folders.places.items():
            for number in numbers:
                if number > known:
                    self._signs.see("number-forged", f"pending/{element_name(number, encoded)}")
            if has_table and (len(numbers) > 1 or encoded in self._folders.elsewhere):
                self._look_up(index, encoded, known)

    def _look_up(self, index: Index, encoded: str, known: int) -> None:
        """See whether the index names a place of this key that is not its newest."""
        places = self._folders.places[encoded]
        numbers = [*places, self._folders.elsewhere.get(encoded, 0)]
        newest = max([number for number in numbers if number <= known], default=0)
        place = index.peek_place(encoded)
        if 0 < place < newest:
            where = "pending/" if newest in places else "in flight or deferred: "
            self._signs.see(
                "index-low",
                f"pending/{element_name(place, encoded)}",
                f"the newest is {where}{element_name(newest, encoded)}",
            )

    def _header(self, index: Index) -> tuple[bool, bool]:
        """Read the header; return whether the last number can be believed, and whether the table can."""
        read = self._read_header()
        if read is None:
            return False, False
        header, size = read
        if self._layout.sharing:
            self.last, tag, lines, *_ = read_words(header)
        else:
            self.last, tag, lines = read_header(header)
        is_current = bool(tag) and (tag == index.tag or self._layout.sharing is not None)
        short = is_current and size < HEADER + lines * LINE
        if short or (size and not tag):
            seen = f"{size} bytes for {lines} lines" if short else header.partition(b"\n")[0]
            self._signs.see("index-damaged", "index", seen)
        return is_current, is_current and lines > 0 and not short

    def _read_header(self) -> tuple[bytes, int] | None:
        """Return the header and the size of the index, None if there is no such file. Notes a lock that is
        held for long."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open("index", flags, dir_fd=self._layout.root)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            holder = share_lock(self._layout, fd)  # (where hosts share it, this also makes it current)
            if holder is not None:
                self._signs.see("admission-held", "index", holder)
            return os.pread(fd, HEADER, 0), os.fstat(fd).st_size
        finally:
            os.close(fd)
