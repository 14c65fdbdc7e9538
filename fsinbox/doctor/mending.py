"""Repairs an inbox while producers run, and a consumer too.

A repair uses the steps of producers and the consumer (transitions.py). So a crash in the middle leaves what
one of theirs could leave, and the next repair continues from there:

 1. the frame: missing folders and files are made, `format` last, each durably, as for a new inbox;
 2. litter is removed, which needs no lock;
 3. under the admission lock, which every producer takes: the index is rebuilt if there is a sign that it is
    wrong, as an add does after a boot (a key that the index does not know is always safe);
 4. with the consumer's lock, if no consumer is running: a consumer is started, which requeues what a dead one
    had in flight, sets aside what is not an element, coalesces, and ends. A running consumer does all that by
    itself.

No element is ever deleted unless a newer value of its key is waiting, as a consumer does. What is not an
element moves to failed/.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from ..consumer.consumer import Consumer
from ..consumer.settings import Settings
from ..store import creating, transitions
from ..store.errors import InboxBusy, UnusableInbox
from ..store.files import flush, remove
from ..store.folders import FOLDERS, OPTIONAL, PRIVATE_FILE, PRIVATE_FOLDER, SHARED_FILE, SHARED_FOLDER
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import REASON, parse_element
from ..store.opening import open_index
from ..store.section import Busy
from ..store.subfolders import are_ingested
from .examination import PAUSE, Look
from .findings import KINDS, Finding, Sign, group

_PATIENCE = 5.0
"""Seconds to wait for the admission lock. A producer that is stopped inside it must not stop the doctor."""

_OF_THE_INDEX = frozenset("index-damaged index-low index-behind".split())

_FOR_THE_CONSUMER = frozenset(
    "orphan foreign-name not-regular several-places number-forged deferred-superseded note-alone "
    "note-foreign reason-alone drop-bad".split()
)
"""What only the holder of the consumer's lock may mend."""


def repair(path: str, pause: float = PAUSE) -> list[str]:
    """Repair the inbox at `path`; return a line for each thing that was done, or left and why.

    Looks twice, `pause` seconds apart, as `examine` does. 0: only once; that is as safe, but may report an
    element that was just moving. Raises UnusableInbox if there is no inbox, or it cannot be repaired.
    """
    return _Repair(path).run(pause)


class _Repair:
    def __init__(self, path: str) -> None:
        self._path = path
        self._why: dict[Sign, str] = {}  # why a sign could not be mended

    def run(self, pause: float) -> list[str]:
        try:
            before = self._look(pause)
            signs = before.signs
            if self._mend_frame(before):
                signs = signs | Look(self._path).signs  # more can be seen now
            self._mend_rest(signs)
            after = Look(self._path).signs
        except OSError as error:
            raise UnusableInbox(
                f"cannot finish the repair of {self._path}: {error.strerror or error}: fix that, then "
                "repair again"
            ) from error
        return self._lines(signs, after)

    def _look(self, pause: float) -> Look:
        look = Look(self._path)
        if not pause or not look.signs:
            return look
        sleep(pause)
        again = Look(self._path)
        again.signs &= look.signs
        return again

    def _lines(self, before: set[Sign], after: set[Sign]) -> list[str]:
        lines = [
            f"{finding.places}: {KINDS[finding.kind].done}"
            for finding in group(before - after)
            if KINDS[finding.kind].done
        ]
        for finding in group(before & after):
            why = self._reason(finding)
            if why:
                lines.append(f"{finding.places}: left as it is: {why}")
        return lines

    def _reason(self, finding: Finding) -> str:
        """Return why something could not be mended, or "" if it was not tried, or need not be."""
        for sign in finding.signs:
            if sign in self._why:
                return self._why[sign]
        return finding.repair if finding.level == "person" else ""

    @contextmanager
    def _trying(self, sign: Sign) -> Iterator[None]:
        """Note a system error, and continue with the next sign."""
        try:
            yield
        except OSError as error:
            self._why[sign] = error.strerror or str(error)

    def _set_aside(self, layout: Layout, sign: Sign) -> None:
        folder, _, name = sign.where.rpartition("/")
        reason = f"{sign.where!r} was set aside by the doctor: {KINDS[sign.kind].means}\n"
        transitions.set_aside(layout, folder or ".", name, reason)

    # --- 1. the frame ---------------------------------------------------------------------------------

    def _mend_frame(self, look: Look) -> bool:
        """Make missing folders and files, and set modes; tell whether there was anything to do."""
        found = Layout.as_found(self._path)
        try:
            self._check_owner(found, look)
            kinds: dict[str, list[Sign]] = {}
            for sign in sorted(look.signs):
                kinds.setdefault(sign.kind, []).append(sign)
            for sign in kinds.get("not-a-folder", ()):
                raise UnusableInbox(f"{found.path}/{sign.where} is {sign.seen}: {KINDS[sign.kind].repair}")
            for sign in kinds.get("mode", ()):
                with self._trying(sign):
                    self._set_mode(found, sign.where, shared=look.frame.shared)
            missing = self._make_missing(found, kinds, shared=look.frame.shared)
            format_is_bad = bool(kinds.keys() & {"format-missing", "format-damaged"})
            if "format" in missing or format_is_bad:
                creating.write_format(found.root, found.scope, shared=look.frame.shared)
            return bool(missing or format_is_bad or "mode" in kinds)
        finally:
            found.close()

    def _check_owner(self, found: Layout, look: Look) -> None:
        """Raise UnusableInbox if this user would make files that the owner of the inbox cannot use."""
        if not look.frame.shared and look.frame.owner != os.geteuid():
            raise UnusableInbox(
                f"inbox {found.path} is private to user {look.frame.owner}, who could not use what this user "
                f"({os.geteuid()}) makes there: run the doctor as user {look.frame.owner}"
            )

    def _make_missing(self, found: Layout, kinds: dict[str, list[Sign]], *, shared: bool) -> set[str]:
        """Make the folders and files that are missing, except `format`; return their names."""
        missing = {sign.where for kind in ("folder-missing", "file-missing") for sign in kinds.get(kind, ())}
        for name in FOLDERS:
            if name in missing:
                creating.make_folder(found.root, name, shared=shared)
        for sign in kinds.get("not-a-file", ()):  # into failed/, which is there by now
            self._set_aside(found, sign)
            missing.add(sign.where)
        for name in ("index", "consumer.lock"):
            if name in missing:
                creating.make_file(found.root, name, shared=shared)
        if missing:
            flush(found.root)
        return missing

    def _set_mode(self, found: Layout, name: str, *, shared: bool) -> None:
        status = os.lstat(name, dir_fd=found.root)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}, who must do it")
        if name in (*FOLDERS, *OPTIONAL, "."):
            mode = SHARED_FOLDER if shared else PRIVATE_FOLDER
        else:
            mode = SHARED_FILE if shared else PRIVATE_FILE
        # More may be allowed on purpose (drop/); but payloads get their mode from tmp/.
        creating.set_mode(found.root, name, mode if name == "tmp" else mode | status.st_mode & 0o7777)

    # --- 2. to 4. -------------------------------------------------------------------------------------

    def _mend_rest(self, signs: set[Sign]) -> None:
        layout = Layout(self._path, create=False)
        index = open_index(layout)
        kinds = {sign.kind for sign in signs}
        try:
            self._remove_litter(layout, signs)
            # A forged number must not be believed: an index that is only behind is rebuilt after the consumer
            # has given the element another number.
            later = "number-forged" in kinds and kinds & _OF_THE_INDEX == {"index-behind"}
            wrong = bool(kinds & _OF_THE_INDEX) and not later
            if not self._mend_index(index, signs, anew=wrong):
                return
            if kinds & _FOR_THE_CONSUMER and self._mend_as_consumer(layout, index, signs) and later:
                self._mend_index(index, signs, anew=True)
        finally:
            index.close()
            layout.close()

    def _mend_index(self, index: Index, signs: set[Sign], *, anew: bool) -> bool:
        """Rebuild the index; not `anew`: only if it is of another boot. Tell whether the lock was free."""
        try:
            index.try_locked(index.make_anew if anew else index.last_number, patience=_PATIENCE)
        except Busy:
            why = (
                f"the admission lock has been held for {_PATIENCE:.0f} s: see what holds it, then repair "
                "again"
            )
            self._why |= dict.fromkeys((s for s in signs if s.kind in _OF_THE_INDEX | _FOR_THE_CONSUMER), why)
            return False
        return True

    def _remove_litter(self, layout: Layout, signs: set[Sign]) -> None:
        for sign in sorted(signs):
            folder, _, name = sign.where.partition("/")
            with self._trying(sign):
                if sign.kind in ("litter", "leftover"):
                    remove(layout, folder, name)
                elif sign.kind == "litter-odd":
                    self._set_aside(layout, sign)
                elif sign.kind == "leftover-folder":
                    shutil.rmtree(f"{layout.path}/{sign.where}")

    def _mend_as_consumer(self, layout: Layout, index: Index, signs: set[Sign]) -> bool:
        """Be the consumer for a moment; tell whether there was no other consumer."""
        try:
            settings = Settings(drop_recursive=are_ingested(layout))
            consumer = Consumer(layout, index, settings)  # which requeues, drops and sets aside
        except InboxBusy as error:
            who = error.holder or "it did not say who it is"
            why = f"a consumer is running ({who}) and does it by itself, or when it next starts"
            self._why |= dict.fromkeys((sign for sign in signs if sign.kind in _FOR_THE_CONSUMER), why)
            return False
        try:
            consumer.tidy(_doubtful(signs))
            for sign in sorted(signs):
                folder, _, name = sign.where.partition("/")
                with self._trying(sign):
                    if sign.kind == "note-foreign":
                        self._set_aside(layout, sign)
                    elif sign.kind == "reason-alone" and not layout.exists(
                        "failed", name.removesuffix(REASON)
                    ):
                        remove(layout, folder, name)
        finally:
            consumer.close()
        return True


def _doubtful(signs: set[Sign]) -> list[str]:
    """Return the names in pending/ that a consumer checks only when it takes them."""
    names = [
        sign.where.removeprefix("pending/")
        for sign in sorted(signs)
        if sign.kind in ("not-regular", "foreign-name")
    ]
    return [name for name in names if "/" not in name and parse_element(name)]
