"""What lies in the folders of an inbox: elements, and what is not one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from time import time_ns

from ..consumer.recovery import LITTER_AGE
from ..consumer.settings import MAX_DELAY
from ..store.drops import has_writer, open_drop
from ..store.errors import InvalidKey
from ..store.ignoring import OF_FILE, Ignored, looked_up
from ..store.names import REASON, element_name, encode_key, is_element, parse_deferred, parse_element
from ..store.subfolders import Walk, Within, are_ingested
from .filesystem import SCRATCH
from .signs import HOUR, MINUTE, Signs, kind_of

_LARGE = 1 << 30
"""Bytes: the default of `consume --max-size`."""

ORDER = ("inflight", "deferred", "failed", "done", "pending", "attempts", "tmp", "drop")
"""In which the folders are listed: a reason, or a note of attempts, is compared with the elements that were
seen before."""


class Folders:
    """What was seen in the folders."""

    def __init__(self, signs: Signs, folders: list[str], *, owner: int, consumed: bool) -> None:
        """Look into `folders`. `owner`: of the inbox; `consumed`: a consumer is running. Raises OSError."""
        self._signs = signs
        self._layout = signs.layout
        self._owner = owner
        self._consumed = consumed
        self.count = dict.fromkeys(ORDER, 0)
        self.ignoring = ""
        """Which names in drop/ are ignored, in words; "" if there is no such folder."""
        self.places: dict[str, list[int]] = {}
        """Encoded key -> the numbers of its places in pending/, the lowest first."""
        self.elements: set[str] = set()
        """Names of all that is waiting, in flight or deferred."""
        self.numbers: list[tuple[str, int]] = []
        """Where, number: of all that is in flight or deferred."""
        self.elsewhere: dict[str, int] = {}
        """Encoded key -> the highest number that is in flight or deferred."""
        self._later: dict[str, list[tuple[int, str]]] = {}  # encoded key -> number, name: of deferred ones
        for name in ORDER:
            if name in folders:
                look: Callable[[list[str]], None] = getattr(self, f"_{name}")
                look(self._layout.names(name, hidden=True))
        self._compare()

    # --- elements -------------------------------------------------------------------------------------

    def _element(self, folder: str, name: str, inner: str) -> tuple[int, str] | None:
        """Look at a file that should be an element; return (number, encoded key) if it is one."""
        where = f"{folder}/{name}"
        if not is_element(inner):
            self._signs.see("foreign-name", where)
            return None
        status = self._signs.status(folder, name)
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode):
            self._signs.see("not-regular", where, kind_of(status))
            return None
        if status.st_uid != self._owner and not status.st_mode & 0o044 and self._owner:
            self._signs.see("unreadable", where, status.st_uid)
        self.count[folder.partition("/")[0]] += 1
        self.elements.add(inner)
        return parse_element(inner)

    def _inflight(self, names: list[str]) -> None:
        here = [("inflight", name) for name in _visible(names)]
        for folder, name in self._layout.in_flight() if self._layout.sharing else here:
            parsed = self._element(folder, name, name)
            if parsed:
                self._holds(f"{folder}/{name}", *parsed)
                if not self._consumed:
                    self._signs.see("orphan", f"{folder}/{name}")

    def _holds(self, where: str, number: int, encoded: str) -> None:
        self.numbers.append((where, number))
        self.elsewhere[encoded] = max(number, self.elsewhere.get(encoded, 0))

    def _deferred(self, names: list[str]) -> None:
        for name in _visible(names):
            split = parse_deferred(name)
            if split is None:
                self._signs.see("foreign-name", f"deferred/{name}")
                continue
            parsed = self._element("deferred", name, split[1])
            if parsed:
                self._holds(f"deferred/{name}", *parsed)
                self._later.setdefault(parsed[1], []).append((parsed[0], name))
                if split[0] > time_ns() + MAX_DELAY * 1e9:
                    self._signs.see("deferred-absurd", f"deferred/{name}")

    def _pending(self, names: list[str]) -> None:
        for name in names:
            if name.startswith("."):
                if name.startswith(".probe-") and self._signs.older("pending", name, MINUTE):
                    self._signs.see("leftover", f"pending/{name}")
                continue
            parsed = self._element("pending", name, name)
            if parsed:
                self.places.setdefault(parsed[1], []).append(parsed[0])

    def _compare(self) -> None:
        """See whether a key is in several places."""
        for encoded, numbers in self.places.items():
            numbers.sort()
            if len(numbers) > 1:
                for number in numbers:
                    self._signs.see("several-places", f"pending/{element_name(number, encoded)}", numbers)
        for encoded, later in self._later.items():
            newest = max([number for number, _ in later] + self.places.get(encoded, []))
            for number, name in later:
                if number < newest or number in self.places.get(encoded, []):
                    self._signs.see("deferred-superseded", f"deferred/{name}", newest)

    # --- what belongs to elements ---------------------------------------------------------------------

    def _failed(self, names: list[str]) -> None:
        here = set(names)
        for name in _visible(names):
            if is_element(name):
                self.count["failed"] += 1
                self._odd("failed", name)
                if name + REASON not in here:
                    self._signs.see("no-reason", f"failed/{name}")
            elif not name.endswith(REASON):
                self._signs.see("foreign-failed", f"failed/{name}")
            elif name.removesuffix(REASON) not in here | self.elements:
                self._signs.see("reason-alone", f"failed/{name}")
            else:
                self._odd("failed", name)

    def _done(self, names: list[str]) -> None:
        for name in _visible(names):
            self.count["done"] += 1
            if is_element(name):
                self._odd("done", name)
            else:
                self._signs.see("foreign-done", f"done/{name}")

    def _odd(self, folder: str, name: str) -> None:
        """See whether something that was set aside, or put here by hand, is no regular file."""
        status = self._signs.status(folder, name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            self._signs.see("ended-odd", f"{folder}/{name}", kind_of(status))

    def _attempts(self, names: list[str]) -> None:
        for name in names:
            where = f"attempts/{name}"
            if name.startswith("."):
                if name.startswith(".draft") and self._signs.older("attempts", name, MINUTE):
                    self._signs.see("leftover", where)
                continue
            target = self._target("attempts", name)
            if target is None:
                continue
            if not re.fullmatch(r"\d+\.\d+\.\d+\.(|suspect|died[0-9]*)", target) or not is_element(name):
                self._signs.see("note-foreign", where, target)
            elif name not in self.elements:
                self._signs.see("note-alone", where)

    def _target(self, folder: str, name: str) -> str | None:
        """Return the target of a link, "" if it is not a link, None if it is gone."""
        try:
            return os.readlink(name, dir_fd=self._layout.folder(folder))
        except FileNotFoundError:
            return None
        except OSError:
            return ""

    # --- what is on its way in ------------------------------------------------------------------------

    def _tmp(self, names: list[str]) -> None:
        for name in names:
            where = f"tmp/{name}"
            if name.startswith("."):
                if name.startswith(SCRATCH) and self._signs.older("tmp", name, HOUR):
                    self._signs.see("leftover-folder", where)
                continue
            self.count["tmp"] += 1
            if self._signs.older("tmp", name, LITTER_AGE):
                status = self._signs.status("tmp", name)
                is_file = status is not None and stat.S_ISREG(status.st_mode)
                self._signs.see("litter" if is_file else "litter-odd", where)

    def _drop(self, names: list[str]) -> None:
        ignored = self._ignored()
        for name in names:
            where = f"drop/{name}"
            status = self._signs.status("drop", name)
            why = ignored.why(name, folder=status is not None and stat.S_ISDIR(status.st_mode))
            if why and where != OF_FILE:
                self._signs.see("drop-draft", where, why)
        walk = Walk(self._layout, ignored, recursive=are_ingested(self._layout))
        for name, _ in walk:
            self._one_dropped(name)
        for path, error in walk.unread.items():
            self._signs.see("drop-unread", f"drop/{path}", error.strerror)
        if walk.left:
            self._signs.see("drop-folders", "drop", walk.left)

    def _one_dropped(self, name: str) -> None:
        where = f"drop/{name}"
        self.count["drop"] += 1
        try:
            self._dropped(name, where)
        except FileNotFoundError:
            pass
        except InvalidKey as error:
            self._signs.see("drop-bad", where, error)
        except OSError as error:
            self._signs.see("drop-bad", where, error.strerror)

    def _ignored(self) -> Ignored:
        """Return which names in drop/ are ignored; see what is wrong with .fsinboxignore."""
        ignored = looked_up(self._layout)
        for reason in filter(None, [ignored.refused, *ignored.bad_lines()]):
            self._signs.see("ignore-file", OF_FILE, reason)
        self.ignoring = str(ignored)
        return ignored

    def _dropped(self, name: str, where: str) -> None:
        """Look at a file in drop/. Raises InvalidKey, OSError if it cannot become an element."""
        encode_key(name)
        with Within(self._layout, name) as (folder, last):
            status = os.lstat(last, dir_fd=self._layout.folder(folder))
            fd = open_drop(self._layout, last, status, folder)
        try:
            open_for_writing = has_writer(fd)
        finally:
            os.close(fd)
        if open_for_writing:
            self._signs.see("drop-open", where)
        elif status.st_size > _LARGE:
            self._signs.see("drop-bad", where, f"it has {status.st_size} bytes: see consume --max-size")
        elif not self._consumed or time_ns() - status.st_ctime_ns > MINUTE * 1e9:
            self._signs.see("drop-waits", where)


def _visible(names: list[str]) -> Iterator[str]:
    return (name for name in names if name[0] != ".")
