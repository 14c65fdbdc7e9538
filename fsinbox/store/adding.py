"""One add, of one value or of many: write, find what was dropped before, publish in one section, flush."""

from __future__ import annotations

import os
from time import monotonic

from .drops import finished_drop
from .errors import AddFailed, Full, InboxFull, UnusableInbox
from .files import close_interrupted, discard_interrupted, discard_temporary, flush_all, write_payload
from .folders import is_there
from .handle import Handle
from .layout import Layout
from .names import encode_key
from .terms import Terms
from .transitions import Published, Unsure, flush_published, is_in_flight, publish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Literal, Protocol, TypeVar

    Found = TypeVar("Found")

    class Observer(Protocol):
        """Sees every add of this process. See fsinbox.tracing."""

        def adding(self, path: str, key: str | None, run: Callable[[], Found]) -> Found:
            """Run the add of a key, or of many (None), to the inbox at `path`; return what it returns."""

        def publishing(self, layout: Layout, temporary: str) -> None:
            """A file in tmp/ is about to be published."""

    Added = Literal["new", "replaced", "behind", "kept"]

SECTION = 100
"""Values that are published in one section: others wait for the lock as long."""

_BATCH = 1000
"""Values that add_many flushes at once: bounds what lies in tmp/, and how often the caller hears of
progress."""

_FEW = 3
"""Up to so many keys are looked up in drop/ one by one, and where hosts share the inbox ..."""

_SMALL = 4096
"""... if the folder itself has more bytes than this: of a smaller one, a listing takes no more requests than
one lookup, and none at all if nothing was dropped since the last."""


class Add:
    """Values on their way into an inbox. `published` tells how far it came, also when it was cut short."""

    def __init__(self, handle: Handle, terms: Terms, *, bounded: bool) -> None:
        """`bounded`: the inbox has bounds; then one that would exceed them raises Full."""
        self._handle = handle
        self._layout = handle.layout
        self._index = handle.index
        self._terms = terms
        self._let_in = self._bound if bounded else None
        self._swap = self._exchange if self._layout.exchanges and not terms.durable else None
        self._drafts: list[str] = []
        self._published = Published()

    def may_be_there(self, error: BaseException) -> bool:
        """Tell whether the value that was not added by this error may be delivered all the same."""
        return bool(self._published.outcomes) or isinstance(error, Unsure)

    def one(self, key: str, encoded: str, payload: Any) -> Added:
        """Queue one value: bytes, or what writes itself (transfer.Source, transfer.Stream). Raises
        OSError."""
        durable, not_before = self._terms.durable, self._terms.not_before
        try:
            if isinstance(payload, bytes):
                write_payload(self._layout, payload, self._drafts, durable=durable, not_before=not_before)
            else:
                payload.write(self._layout, self._drafts, durable=durable, not_before=not_before)
                self._swap = None  # (a file that was handed over goes back by its draft's name)
            self._publish([(key, encoded)])
            if self._published.kept and not isinstance(payload, bytes):
                payload.discard(self._layout, self._drafts[0])
        except BaseException:
            if not isinstance(payload, bytes) and self._drafts:
                draft = self._drafts.pop()
                payload.discard(self._layout, draft)
                close_interrupted(draft)
            self._discard()
            raise
        self._finish()
        return self._outcome(self._drafts[0], encoded, self._published.outcomes[0])

    def many(self, items: list[tuple[str, str, bytes]]) -> list[Added]:
        """Queue every (key, encoded key, payload), in order; return what happened to each. Raises OSError."""
        try:
            for _, _, data in items:
                write_payload(
                    self._layout, data, self._drafts, durable=False, not_before=self._terms.not_before
                )
            if self._terms.durable:
                flush_all(self._layout, "tmp", self._drafts)
            for start in range(0, len(items), SECTION):
                self._publish([(key, encoded) for key, encoded, _ in items[start : start + SECTION]])
        except Full as error:
            error.added = len(self._published.outcomes)
            self._discard()
            if self._terms.durable:  # so many were added
                flush_published(self._layout, self._published)
            raise
        except BaseException:
            self._discard()
            raise
        self._finish()
        keys = [encoded for _, encoded, _ in items]
        return list(map(self._outcome, self._drafts, keys, self._published.outcomes))

    def _bound(self, encoded: str) -> None:
        """A value of a key is to wait: count it, unless one waits. (If that one is taken now, it stays
        counted, for this one.) Inside the section. Raises Full; OSError."""
        from .bounds import let_in

        self._index.sure_last_number()
        if not self._index.find(encoded):
            let_in(self._layout, self._index)

    def _exchange(self, layout: Layout, temporary: str, name: str) -> bool:
        from .exchanging import swap  # not at the top: few are volatile

        return swap(layout, temporary, name)

    def _publish(self, keys: list[tuple[str, str]]) -> None:
        """Publish the next drafts, which are of these keys. Waits for room as long as the terms say."""
        if self._let_in is None:
            self._try_to_publish(keys)
            return
        from .bounds import when_there_is_room

        begun = len(self._published.outcomes)
        when_there_is_room(
            lambda: self._try_to_publish(keys[len(self._published.outcomes) - begun :]),
            self._terms.timeout,
            lambda: self._handle.closed,
        )

    def _try_to_publish(self, keys: list[tuple[str, str]]) -> None:
        layout, done, drafts = self._layout, len(self._published.outcomes), []
        listed = self._dropped(len(keys)) if layout.sharing or len(keys) > _FEW else None
        for place, (key, encoded) in enumerate(keys, done):
            temporary = self._drafts[place]
            if observer is not None:
                observer.publishing(layout, temporary)
            may_be = listed is None or key in listed or "/" in key
            drafts.append((temporary, encoded, finished_drop(layout, key) if may_be else None))
        self._index.locked(
            publish,
            layout,
            self._index,
            drafts,
            self._published,
            self._terms.keep,
            self._let_in,
            self._swap,
        )

    def _dropped(self, keys: int) -> set[str] | None:
        """Return the names in drop/, if to list them is less than a lookup of each key; else None."""
        sharing, drop = self._layout.sharing, "drop"
        if sharing:
            # (A client that must open a folder before a lookup has asked the server just then.)
            is_less = keys > _FEW or (
                sharing.opens_first and os.fstat(self._layout.folder(drop)).st_size <= _SMALL
            )
            return set(self._layout.names(drop)) if is_less else None
        listed = set()
        for name in self._layout.names_one_by_one(drop):
            listed.add(name)
            if len(listed) > SECTION:
                return None
        return listed

    def _finish(self) -> None:
        """All is published: flush it, and remove what was not wanted."""
        for temporary in self._published.kept:
            discard_temporary(self._layout, temporary)
        if self._terms.durable:  # (what is kept is told of as durable as what is added)
            flush_published(self._layout, self._published)

    def _outcome(self, temporary: str, encoded: str, became: tuple[bool, list[int]]) -> Added:
        waited, others = became
        if waited:
            return "kept" if temporary in self._published.kept else "replaced"
        return "behind" if others and is_in_flight(self._layout, encoded, others) else "new"

    def _discard(self) -> None:
        """It was cut short: remove what was not published."""
        for temporary in {*self._drafts[len(self._published.outcomes) :], *self._published.kept}:
            discard_interrupted(self._layout, temporary)


observer: Observer | None = None
"""Who sees every add of this process, if anyone."""


class Adder:
    """The adds of an open inbox, by any number of threads."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._next_check = 0.0
        self._bounded = False  # whether the inbox has bounds, as of the last check

    def add(self, key: str, payload: Any, terms: Terms) -> Added:
        """Queue one value: bytes, or what writes itself. Raises InvalidKey, AddFailed, WrongState."""
        encoded = encode_key(key)
        if observer is None:
            return self._run(terms, key, Add.one, key, encoded, payload)
        return observer.adding(
            self._handle.path, key, lambda: self._run(terms, key, Add.one, key, encoded, payload)
        )

    def add_many(
        self,
        items: Iterable[tuple[str, bytes]],
        terms: Terms,
        progress: Callable[[int], object] | None = None,
    ) -> dict[Added, int]:
        """Queue every (key, payload), in order: see Inbox.add_many."""

        def run() -> dict[Added, int]:
            return self._add_many(items, terms, progress)

        return run() if observer is None else observer.adding(self._handle.path, None, run)

    def _add_many(
        self, items: Iterable[tuple[str, bytes]], terms: Terms, progress: Callable[[int], object] | None
    ) -> dict[Added, int]:
        total: dict[Added, int] = {"new": 0, "replaced": 0, "behind": 0}
        if terms.keep:
            total["kept"] = 0
        batch: list[tuple[str, str, bytes]] = []

        def finish() -> None:
            now = batch[:]
            batch.clear()  # first: it is tried once
            try:
                outcomes = self._run(terms, now[0][0], Add.many, now)
            except InboxFull as error:
                error.added += sum(total.values())
                raise
            for outcome in outcomes:
                total[outcome] += 1
            if progress:
                progress(sum(total.values()))

        try:
            for key, data in items:
                batch.append((key, encode_key(key), data))
                if len(batch) == _BATCH:
                    finish()
        finally:
            if batch:
                finish()
        return total

    def _run(self, terms: Terms, key: str, step: Callable[..., Found], *arguments: Any) -> Found:
        """Run a step of an Add. `key`: which an error names."""
        handle, call = self._handle, object()
        try:
            layout = handle.begin(call)
            try:
                self._check_place(layout)
            except OSError as error:
                raise self._failed(error, key, maybe_added=False) from error
            add = Add(handle, terms, bounded=self._bounded)
            try:
                result = step(add, *arguments)
            except OSError as error:
                raise self._failed(error, key, maybe_added=add.may_be_there(error)) from error
            handle.end(call)
            return result
        except BaseException:
            handle.end(call)
            raise

    def _check_place(self, layout: Layout) -> None:
        """Once a second: has the inbox bounds? Raises UnusableInbox if the path leads elsewhere by now:
        nobody may ever look at what is added here."""
        now = monotonic()
        if now >= self._next_check:
            self._next_check = now + 1
            if gone := layout.where_it_went():
                raise UnusableInbox(
                    f"inbox {layout.path} {gone}: nothing was added; start anew, on the inbox that is meant"
                )
            self._bounded = is_there(layout.root, "limits")

    def _failed(self, error: OSError, key: str, *, maybe_added: bool) -> AddFailed:
        if maybe_added:
            outcome = "it may or may not be delivered; add it again to be sure (the newest value wins)"
        else:
            outcome = "it was not added; free what is short or mend what is wrong, then add it again"
        if isinstance(error, Full):
            full = InboxFull(
                error.errno,
                f"inbox {self._handle.path} is full: {error.strerror}: key {key!r} was not added; try again "
                "later, or raise the bound (fsinbox limit)",
                maybe_added=maybe_added,
            )
            full.added = error.added
            return full
        return AddFailed(
            error.errno,
            f"cannot add key {key!r} to inbox {self._handle.path}: {error.strerror or error}: {outcome}",
            maybe_added=maybe_added,
        )
