"""Mends an inbox while producers run, and a consumer too, if it must be.

Everything that is done here is done as producers and the consumer do it, by the steps of transitions.py, so a
crash in the middle leaves what one of theirs could leave, and the next repair goes on from there:

 1. the frame: missing folders and files are made, `format` last, each durably, as for a new inbox;
 2. litter is removed, which needs no lock;
 3. under the admission lock, which every producer respects: the index is made anew if there is a sign that it
    is wrong, as an add does after a boot (a key that is not known in it is always safe);
 4. with the consumer's lock, if no consumer runs: a consumer is started, which requeues what a dead one had
    in flight, sets aside what is no element, and coalesces; and then leaves. If one runs, it does all that by
    itself, in time.

No element is ever deleted, but under a newer value of its key, as a consumer does. What is none goes to
failed/.
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
from ..store import layout as frame
from ..store import transitions
from ..store.errors import InboxBusy, UnusableInbox
from ..store.files import flush, remove
from ..store.index import Busy, Index, open_index
from ..store.layout import FOLDERS, Layout
from ..store.names import REASON, parse_element
from .examination import PAUSE, Finding, Look, Sign, group
from .kinds import KINDS

_PATIENCE = 5.0
"""Seconds to wait for the admission lock. A producer that is stopped inside it must not stop the doctor,
too."""

_OF_THE_INDEX = frozenset("index-damaged index-low index-behind".split())

_FOR_THE_CONSUMER = frozenset(
    "orphan foreign-name not-regular several-places number-forged deferred-superseded note-alone "
    "note-foreign reason-alone "
    "drop-bad".split()
)
"""What only the consumer may mend: whoever holds its lock."""


def repair(path: str, pause: float = PAUSE) -> list[str]:
    """Mend the inbox at `path`; return what was done, and what was left and why, a line each.

    Looks twice, `pause` seconds apart, as `examine` does. 0: only once; that is as safe, but may tell of what
    was on its way. Raises UnusableInbox if there is no inbox, or what is there cannot be mended.
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
                signs = signs | Look(self._path).signs  # more is to be seen now
            self._mend_rest(signs)
            after = Look(self._path).signs
        except OSError as error:
            raise UnusableInbox(
                f"cannot go on with the repair of {self._path}: {error.strerror or error}"
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
            f"{places(finding.signs)}: {KINDS[finding.kind].done}"
            for finding in group(before - after)
            if KINDS[finding.kind].done
        ]
        for finding in group(before & after):
            why = self._reason(finding)
            if why:
                lines.append(f"{places(finding.signs)}: left as it is: {why}")
        return lines

    def _reason(self, finding: Finding) -> str:
        """Return why something could not be mended, or "" if nobody tried to, or need."""
        for sign in finding.signs:
            if sign in self._why:
                return self._why[sign]
        return finding.repair if finding.level == "person" else ""

    @contextmanager
    def _trying(self, sign: Sign) -> Iterator[None]:
        """Go on to the next if the system refuses this one."""
        try:
            yield
        except OSError as error:
            self._why[sign] = error.strerror or str(error)

    def _set_aside(self, layout: Layout, sign: Sign) -> None:
        folder, _, name = sign.where.rpartition("/")
        reason = f"{sign.where} was set aside by the doctor: {KINDS[sign.kind].means}\n"
        transitions.set_aside(layout, folder or ".", name, reason)

    # --- 1. the frame ---------------------------------------------------------------------------------

    def _mend_frame(self, look: Look) -> bool:
        """Make what is missing of folders and files, and set modes; tell whether there was anything to do."""
        found = Layout.as_found(self._path)
        try:
            if not look.shared and look.owner != os.geteuid():
                raise UnusableInbox(
                    f"inbox {found.path} is private to user {look.owner}, and what this user "
                    f"({os.geteuid()}) makes there would "
                    "be of no use to them: run the doctor as that user"
                )
            kinds: dict[str, list[Sign]] = {}
            for sign in sorted(look.signs):
                kinds.setdefault(sign.kind, []).append(sign)
            for sign in kinds.get("not-a-folder", ()):
                raise UnusableInbox(f"{found.path}/{sign.where} is {sign.seen}: {KINDS[sign.kind].repair}")
            for sign in kinds.get("mode", ()):
                with self._trying(sign):
                    self._set_mode(found, sign.where, shared=look.shared)
            missing = {
                sign.where for kind in ("folder-missing", "file-missing") for sign in kinds.get(kind, ())
            }
            for name in FOLDERS:
                if name in missing:
                    frame.make_folder(found.root, name, shared=look.shared)
            for sign in kinds.get("not-a-file", ()):  # into failed/, which is there by now
                self._set_aside(found, sign)
                missing.add(sign.where)
            for name in ("index", "consumer.lock"):
                if name in missing:
                    frame.make_file(found.root, name, shared=look.shared)
            if missing:
                flush(found.root)
            if "format" in missing or kinds.keys() & {"format-missing", "format-damaged"}:
                frame.write_format(found.root, found.scope, shared=look.shared)
            return bool(missing or kinds.keys() & {"format-missing", "format-damaged", "mode"})
        finally:
            found.close()

    def _set_mode(self, found: Layout, name: str, *, shared: bool) -> None:
        status = os.lstat(name, dir_fd=found.root)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}, who must do it")
        if name in FOLDERS or name == ".":
            mode = frame.SHARED_FOLDER if shared else frame.PRIVATE_FOLDER
        else:
            mode = frame.SHARED_FILE if shared else frame.PRIVATE_FILE
        # What is allowed beyond that may be meant so (drop/); but the mode of tmp/ says what mode payloads
        # get.
        frame.set_mode(found.root, name, mode if name == "tmp" else mode | status.st_mode & 0o7777)

    # --- 2. to 4. -------------------------------------------------------------------------------------

    def _mend_rest(self, signs: set[Sign]) -> None:
        layout = Layout(self._path, create=False)
        index = open_index(layout)
        kinds = {sign.kind for sign in signs}
        try:
            self._remove_litter(layout, signs)
            # A forged number must not be believed: what is only behind waits until the consumer has
            # renumbered it.
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
        """Make the index anew, or only if it is of another boot; tell whether the lock could be had."""
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
        """Be the consumer for a moment; tell whether there was no other."""
        try:
            consumer = Consumer(layout, index, Settings())  # which requeues, drops and sets aside
        except InboxBusy as error:
            why = (
                f"a consumer runs ({error.holder or 'it did not say who it is'}), and does it by itself, or "
                "when it next starts"
            )
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
    """Return the names in pending/ that a consumer only looks at closely when it takes them."""
    names = [
        sign.where.removeprefix("pending/")
        for sign in sorted(signs)
        if sign.kind in ("not-regular", "foreign-name")
    ]
    return [name for name in names if "/" not in name and parse_element(name)]


def places(signs: tuple[Sign, ...]) -> str:
    """Return where signs are, for people: the first three, and how many more."""
    shown = [sign.where if sign.where.isprintable() else repr(sign.where) for sign in signs[:3]]
    more = f" and {len(signs) - 3} more" if len(signs) > 3 else ""
    return ", ".join(shown) + more
