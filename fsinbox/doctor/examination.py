"""Looks at an inbox, and finds what is wrong with it. Changes nothing; producers and a consumer may run.

A look goes through the folders and notes each *sign* that something may be wrong: its kind (kinds.py says
what that means), where, and what was seen there. Much of what one look sees is only on its way: an element
that moves while the folders are listed is seen in two of them, or in none. So `examine` looks twice, and
believes what it saw both times.

The order within a look matters where two things are compared: elements are listed before the index is read,
for what it says only grows.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import sleep, time_ns
from typing import NamedTuple

from ..consumer.ownership import read_holder, shard_of_lock
from ..consumer.recovery import LITTER_AGE
from ..consumer.settings import MAX_DELAY
from ..operate.survey import consumers, share_lock
from ..store.drops import DRAFTS, has_writer, open_drop
from ..store.errors import InvalidKey, UnusableInbox
from ..store.index import FUTURE, HEADER, LINE, Index, open_index, read_header
from ..store.layout import (
    FILES,
    FOLDERS,
    OPTIONAL,
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    SHARED_FILE,
    SHARED_FOLDER,
    VERSION,
    Layout,
    mount_of,
)
from ..store.names import REASON, element_name, encode_key, is_element, parse_deferred, parse_element
from ..store.network.sections import read_words
from ..store.network.sharing import sharing_of
from .filesystem import SCRATCH
from .kinds import KINDS

PAUSE = 0.2
"""Seconds between two looks: what is on its way is there by then, or was there before."""

_MOMENT = 60.0  # seconds after which a probe or a draft of a note has no living owner
_HOUR = 3600.0  # the same for a draft of `format`, and the doctor's own folder
_MOST_OF = 5  # so many of the 7 folders make an inbox of a directory, whatever else is in it
_LARGE = 1 << 30  # what `consume --max-size` is unless it is told


class Sign(NamedTuple):
    """Something that may be wrong. `where` is a path below the inbox, `seen` what was seen there."""

    kind: str
    where: str
    seen: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, and where."""

    kind: str
    level: str
    signs: tuple[Sign, ...]

    @property
    def means(self) -> str:
        """What it is."""
        return KINDS[self.kind].means

    @property
    def itself(self) -> str:
        """What fsinbox does about it by itself, or ""."""
        return KINDS[self.kind].itself

    @property
    def repair(self) -> str:
        """What a repair does, or a person should; or ""."""
        return KINDS[self.kind].repair

    @property
    def mends(self) -> bool:
        """Whether it is the repair that does it."""
        return bool(KINDS[self.kind].done)


@dataclass(frozen=True)
class Report:
    """How an inbox is. `facts`: a few lines on what it holds."""

    path: str
    facts: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing needs a repair or a person."""
        return all(finding.level == "note" for finding in self.findings)


def examine(path: str, pause: float = PAUSE) -> Report:
    """Look at the inbox at `path` and tell what is wrong. Raises UnusableInbox if it is none, or cannot be
    looked at."""
    first = Look(path)
    if not first.signs:
        return Report(first.layout.path, first.facts(), ())
    sleep(pause)
    second = Look(path)
    lasting = first.signs & second.signs
    return Report(second.layout.path, second.facts(), group(lasting))


def group(signs: set[Sign]) -> tuple[Finding, ...]:
    """Sort signs into findings: what needs a person first, then what needs a repair."""
    kinds = sorted(
        {sign.kind for sign in signs},
        key=lambda kind: (("person", "repair", "note").index(KINDS[kind].level), kind),
    )
    return tuple(
        Finding(kind, KINDS[kind].level, tuple(sorted(s for s in signs if s.kind == kind))) for kind in kinds
    )


class Look:
    """One look at an inbox."""

    def __init__(self, path: str) -> None:
        """Look. Raises UnusableInbox if there is no inbox, or it is of another version, or cannot be looked
        at."""
        self.signs: set[Sign] = set()
        self.count: dict[str, int] = {}
        self.folders: list[str] = []  # those that could be opened
        self.scope = ""
        self.shared = self.consumed = False
        self.owner = 0
        self.holder = ""
        self.last = 0
        self._places: dict[str, list[int]] = {}
        self._elements: set[str] = set()  # names of all that wait, are in flight or are deferred
        self._numbers: list[tuple[str, int]] = []  # where, number: of what is in flight or deferred
        self._elsewhere: dict[
            str, int
        ] = {}  # encoded key -> the highest number that is in flight or deferred
        self._later: dict[str, list[tuple[int, str]]] = {}  # encoded key -> number, name: of what is deferred
        self.layout = Layout.as_found(path)
        try:
            self._frame()
            self._folders()
        except OSError as error:
            raise UnusableInbox(
                f"cannot look at inbox {self.layout.path}: {error.strerror} ({error.filename})"
            ) from error
        finally:
            self.layout.close()

    def facts(self) -> tuple[str, ...]:
        """A few lines on what the inbox is and holds."""
        last = f"last number given out {_when(self.last)}" if self.last else "no number given out yet"
        count = self.count
        return (
            f"format {VERSION}, {self.scope}, {'shared with the group' if self.shared else 'private'}; "
            f"{last}",
            f"{len(self._places)} wait, {count['inflight']} in flight, {count['deferred']} deferred, "
            f"{count['failed']} failed, "
            f"{count['drop']} in drop/; {count['tmp']} being written",
            f"consumer: {self.holder or 'it did not say who it is'}" if self.consumed else "no consumer runs",
        )

    def _see(self, kind: str, where: str, seen: object = "") -> None:
        self.signs.add(Sign(kind, where, str(seen)))

    # --- the frame: format, folders, modes ------------------------------------------------------------

    def _frame(self) -> None:
        layout = self.layout
        entries = layout.names(".", hidden=True)
        root = os.fstat(layout.root)
        self.owner = root.st_uid
        status = {name: os.lstat(name, dir_fd=layout.root) for name in (*FOLDERS, *FILES) if name in entries}
        ours = [name for name in FOLDERS if name in status and stat.S_ISDIR(status[name].st_mode)]
        known = {*FOLDERS, *FILES, *OPTIONAL}
        foreign = [
            name
            for name in entries
            if name not in known and not name.startswith(".") and not shard_of_lock(name)
        ]
        self._format(status.get("format"), plain=len(ours) >= _MOST_OF or bool(ours and not foreign))
        for name in foreign:
            self._see("foreign-root", name)
        for name in entries:
            if name.startswith(".format.") and self._older(".", name, _HOUR):
                self._see("leftover", f"./{name}")
        self.shared = sum(bool(status[name].st_mode & 0o020) for name in ours) * 2 > len(ours)
        for name in FOLDERS:
            if name not in status:
                self._see("folder-missing", name)
            elif name not in ours:
                self._see("not-a-folder", name, _kind(status[name]))
            else:
                self._folder(name, status[name], root)
        for name in FILES:
            if name not in status:
                if name != "format":
                    self._see("file-missing", name)
            elif not stat.S_ISREG(status[name].st_mode):
                self._see("not-a-file", name, _kind(status[name]))
            else:
                if status[name].st_nlink > 1 and name != "format":
                    self._see("file-linked", name)
                self._mode(name, status[name], SHARED_FILE if self.shared else PRIVATE_FILE)
                self._owner(name, status[name], root)
        self._mode(".", root, SHARED_FOLDER if self.shared else PRIVATE_FOLDER)

    def _format(self, status: os.stat_result | None, *, plain: bool) -> None:
        """Read `format`; raise UnusableInbox if the directory is no inbox, or one that this version must
        leave alone."""
        path = self.layout.path
        words: list[bytes] = []
        if status and stat.S_ISREG(status.st_mode):
            fd = os.open(
                "format", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.layout.root
            )
            try:
                words = os.read(fd, 100).split()
            finally:
                os.close(fd)
        if (
            len(words) == 3
            and words[0] == b"fsinbox"
            and words[1].isdigit()
            and words[1] != str(VERSION).encode()
        ):
            raise UnusableInbox(
                f"{path} has format {words[1].decode()}, this fsinbox knows {VERSION}: use the version of "
                "fsinbox that "
                "made it; to move what waits, `fsinbox export` it with that version, and `fsinbox import` it "
                "into a new "
                "inbox with this one"
            )
        here = self.layout.scope
        self.scope = words[2].decode("ascii", "replace") if len(words) == 3 else ""
        if words[:2] == [b"fsinbox", str(VERSION).encode()] and self.scope in ("local", "network"):
            if (self.scope, here) == ("local", "network"):
                self._see("format-scope", "format")
            if self.scope == "network":
                self.layout.sharing = sharing_of(path, mount_of(path))
            return
        self.scope = here
        if not plain:
            raise UnusableInbox(
                f"{path} is not an inbox: it has no `format`, and too few of an inbox's folders; "
                f"make one with `fsinbox --inbox {path} init`, or name another"
            )
        if not status:
            self._see("format-missing", "format")
        elif stat.S_ISREG(status.st_mode):
            self._see("format-damaged", "format", b" ".join(words).decode("ascii", "replace"))

    def _folder(self, name: str, status: os.stat_result, root: os.stat_result) -> None:
        self._owner(name, status, root)
        if status.st_dev != root.st_dev:
            self._see("other-device", name)
        if not self.shared and name == "tmp" and status.st_mode & 0o060:
            self._see("mode", name, f"{stat.S_IMODE(status.st_mode):04o}")  # it says what mode payloads get
        self._mode(name, status, SHARED_FOLDER if self.shared else PRIVATE_FOLDER)
        if status.st_mode & 0o007 and root.st_mode & 0o001:
            self._see("open", name, f"{stat.S_IMODE(status.st_mode):04o}")
        try:
            self.layout.folder(name)
        except UnusableInbox:
            self._see("folder-closed", name)
        else:
            self.folders.append(name)

    def _mode(self, name: str, status: os.stat_result, wanted: int) -> None:
        if status.st_mode & wanted != wanted:
            self._see("mode", name, f"{stat.S_IMODE(status.st_mode):04o}")

    def _owner(self, name: str, status: os.stat_result, root: os.stat_result) -> None:
        if not self.shared and status.st_uid != root.st_uid:
            self._see("owner", name, status.st_uid)

    # --- the folders ----------------------------------------------------------------------------------

    def _folders(self) -> None:
        layout = self.layout
        try:
            found = [one for one in consumers(layout) if one["holder"] and not one.get("lapsed")]
        except (OSError, UnusableInbox):
            found = []  # no such file or folder, or it cannot be locked from here
        self.consumed = bool(found)
        self.holder = "; ".join(str(one["holder"]) for one in found) or read_holder(layout)
        if self.consumed:
            self._consumer()
        for name in ("inflight", "deferred", "failed", "pending", "attempts", "tmp", "drop"):
            self.count[name] = 0
            if name in self.folders:
                look: Callable[[list[str]], None] = getattr(self, f"_{name}")
                look(layout.names(name, hidden=True))
        self._several()
        self._index()

    def _consumer(self) -> None:
        found = re.match(r"pid (\d+) on (\S+) ", self.holder + " ")
        if found and found[2] == os.uname().nodename:
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                self._see("holder-gone", "consumer.lock", self.holder)
            except OSError:
                pass  # another user's: it lives

    def _status(self, folder: str, name: str) -> os.stat_result | None:
        try:
            return os.lstat(name, dir_fd=self.layout.folder(folder))
        except FileNotFoundError:
            return None

    def _older(self, folder: str, name: str, age: float) -> bool:
        """Tell whether nobody has touched it for `age` seconds."""
        status = self._status(folder, name)
        return status is not None and time_ns() - status.st_ctime_ns > age * 1e9

    def _element(self, folder: str, name: str, inner: str) -> tuple[int, str] | None:
        """Look at a file that should be an element; return (number, encoded key) if it is one."""
        where = f"{folder}/{name}"
        if not is_element(inner):
            self._see("foreign-name", where)
            return None
        status = self._status(folder, name)
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode):
            self._see("not-regular", where, _kind(status))
            return None
        if status.st_uid != self.owner and not status.st_mode & 0o044 and self.owner:
            self._see("unreadable", where, status.st_uid)
        self.count[folder.partition("/")[0]] += 1
        self._elements.add(inner)
        return parse_element(inner)

    def _inflight(self, names: list[str]) -> None:
        for folder, name in (
            self.layout.out() if self.layout.sharing else [("inflight", name) for name in _visible(names)]
        ):
            parsed = self._element(folder, name, name)
            if parsed:
                self._holds(f"{folder}/{name}", *parsed)
                if not self.consumed:
                    self._see("orphan", f"{folder}/{name}")

    def _holds(self, where: str, number: int, encoded: str) -> None:
        self._numbers.append((where, number))
        self._elsewhere[encoded] = max(number, self._elsewhere.get(encoded, 0))

    def _deferred(self, names: list[str]) -> None:
        for name in _visible(names):
            split = parse_deferred(name)
            if split is None:
                self._see("foreign-name", f"deferred/{name}")
                continue
            parsed = self._element("deferred", name, split[1])
            if parsed:
                self._holds(f"deferred/{name}", *parsed)
                self._later.setdefault(parsed[1], []).append((parsed[0], name))
                if split[0] > time_ns() + MAX_DELAY * 1e9:
                    self._see("deferred-absurd", f"deferred/{name}")

    def _failed(self, names: list[str]) -> None:
        here = set(names)
        for name in _visible(names):
            if is_element(name):
                self.count["failed"] += 1
                if name + REASON not in here:
                    self._see("no-reason", f"failed/{name}")
            elif not name.endswith(REASON):
                self._see("foreign-failed", f"failed/{name}")
            elif name.removesuffix(REASON) not in here | self._elements:
                self._see("reason-alone", f"failed/{name}")

    def _pending(self, names: list[str]) -> None:
        for name in names:
            if name.startswith("."):
                if name.startswith(".probe-") and self._older("pending", name, _MOMENT):
                    self._see("leftover", f"pending/{name}")
                continue
            parsed = self._element("pending", name, name)
            if parsed:
                self._places.setdefault(parsed[1], []).append(parsed[0])

    def _several(self) -> None:
        for encoded, numbers in self._places.items():
            numbers.sort()
            if len(numbers) > 1:
                for number in numbers:
                    self._see("several-places", f"pending/{element_name(number, encoded)}", numbers)
        for encoded, later in self._later.items():
            newest = max([number for number, _ in later] + self._places.get(encoded, []))
            for number, name in later:
                if number < newest or number in self._places.get(encoded, []):
                    self._see("deferred-superseded", f"deferred/{name}", newest)

    def _attempts(self, names: list[str]) -> None:
        for name in names:
            where = f"attempts/{name}"
            if name.startswith("."):
                if name.startswith(".draft") and self._older("attempts", name, _MOMENT):
                    self._see("leftover", where)
                continue
            target = self._target("attempts", name)
            if target is None:
                continue
            if not re.fullmatch(r"\d+\.\d+\.\d+\.(|suspect|died)", target) or not is_element(name):
                self._see("note-foreign", where, target)
            elif name not in self._elements:
                self._see("note-alone", where)

    def _target(self, folder: str, name: str) -> str | None:
        """Return where a link points, "" if it is none, None if it is gone."""
        try:
            return os.readlink(name, dir_fd=self.layout.folder(folder))
        except FileNotFoundError:
            return None
        except OSError:
            return ""

    def _tmp(self, names: list[str]) -> None:
        for name in names:
            where = f"tmp/{name}"
            if name.startswith("."):
                if name.startswith(SCRATCH) and self._older("tmp", name, _HOUR):
                    self._see("leftover-folder", where)
                continue
            self.count["tmp"] += 1
            if self._older("tmp", name, LITTER_AGE):
                status = self._status("tmp", name)
                self._see("litter" if status and stat.S_ISREG(status.st_mode) else "litter-odd", where)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            where = f"drop/{name}"
            if name.startswith(".") or name.lower().endswith(DRAFTS):
                self._see("drop-draft", where)
                continue
            self.count["drop"] += 1
            try:
                encode_key(name)
                status = os.lstat(name, dir_fd=self.layout.folder("drop"))
                fd = open_drop(self.layout, name, status)
            except FileNotFoundError:
                continue
            except InvalidKey as error:
                self._see("drop-bad", where, error)
                continue
            except OSError as error:
                self._see("drop-bad", where, error.strerror)
                continue
            try:
                open_for_writing = has_writer(fd)
            finally:
                os.close(fd)
            if open_for_writing:
                self._see("drop-open", where)
            elif status.st_size > _LARGE:
                self._see("drop-bad", where, f"it has {status.st_size} bytes: see consume --max-size")
            elif not self.consumed or self._older("drop", name, _MOMENT):
                self._see("drop-waits", where)

    # --- the index ------------------------------------------------------------------------------------

    def _index(self) -> None:
        """Compare the elements with the index. Read last: its last number only grows."""
        index = open_index(self.layout)
        is_current, has_table = self._header(index)
        limit = max(self.last, time_ns()) + FUTURE
        known = self.last if is_current else limit  # else the next add brings it up to date
        if self.last > time_ns() + FUTURE:
            self._see("index-future", "index", self.last)
        for encoded, numbers in self._places.items():
            for number in numbers:
                if number > known:
                    self._see("number-forged", f"pending/{element_name(number, encoded)}")
            if has_table and (len(numbers) > 1 or encoded in self._elsewhere):
                self._table(index, encoded, known)
        for where, number in self._numbers:
            if number > limit:
                self._see("number-absurd", where)
            elif number > known:
                self._see("index-behind", where)

    def _header(self, index: Index) -> tuple[bool, bool]:
        """Read the header; return whether the last number is good, and whether the table's lines are
        believed.

        Tells of a lock that is held for long.
        """
        try:
            fd = os.open(
                "index", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.layout.root
            )
        except OSError:
            return False, False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False, False
            holder = share_lock(self.layout, fd)  # (so the header is as it is now, where hosts share it)
            header, size = os.pread(fd, HEADER, 0), os.fstat(fd).st_size
        finally:
            os.close(fd)
        if self.layout.sharing:
            self.last, tag, lines, *_ = read_words(header)
        else:
            self.last, tag, lines = read_header(header)
        if holder is not None:
            self._see("admission-held", "index", holder)
        is_current = bool(tag) and (tag == index.tag or self.layout.sharing is not None)
        short = is_current and size < HEADER + lines * LINE
        if short or (size and not tag):
            self._see("index-damaged", "index", f"{size} bytes for {lines} lines" if short else header[:40])
        return is_current, is_current and lines > 0 and not short

    def _table(self, index: Index, encoded: str, known: int) -> None:
        """See whether the index names a place that is not the newest of its key."""
        numbers = [*self._places[encoded], self._elsewhere.get(encoded, 0)]
        newest = max([number for number in numbers if number <= known], default=0)
        place = index.peek_place(encoded)
        if 0 < place < newest:
            where = "pending/" if newest in self._places[encoded] else "in flight or deferred: "
            self._see(
                "index-low",
                f"pending/{element_name(place, encoded)}",
                f"the newest is {where}{element_name(newest, encoded)}",
            )


def _visible(names: list[str]) -> Iterator[str]:
    return (name for name in names if name[0] != ".")


def _when(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds")


def _kind(status: os.stat_result) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a file",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")
