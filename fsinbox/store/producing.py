"""What a producer calls: adding to an open inbox, and bounding it."""

from __future__ import annotations

import os

from .adding import Adder
from .amounts import size
from .codecs import encode
from .handle import Handle, Looking
from .terms import terms_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import BinaryIO, NoReturn, Self, Unpack

    from .adding import Added
    from .amounts import Size
    from .bounds import Limits
    from .terms import How


class Adds:
    """The adds of an open inbox."""

    codec: str
    durable: bool
    _handle: Handle
    _adder: Adder

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open inbox cannot be pickled or copied: pass on its path, and open it there")

    def add(self, key: str, value: object, **how: Unpack[How]) -> Added:
        """Queue `value` for `key`. It replaces a waiting value of that key and keeps its place.

        Returns "new"; "replaced" (a waiting value); "behind": the key's element is in flight, and this is
        queued anew; "kept": with if_waiting="keep", one waits, and this was not added. Raises InvalidKey,
        InvalidPayload, AddFailed, ValueError.

        durable      whether to return only when a power cut can no longer lose it; None: as the inbox says
        delay        how long it is not handed out: seconds, "5m" or a timedelta ...
        not_before   ... or until when: a datetime, or seconds since the epoch. A newer value brings its own
        if_waiting   "replace", or "keep": a value that waits stays, and this one is not added
        timeout      how long to wait for room if the inbox is full: then InboxFull is raised
        """
        return self._adder.add(key, encode(self.codec, key, value), terms_of(self.durable, **how))

    def add_bytes(self, key: str, data: bytes, **how: Unpack[How]) -> Added:
        """The same for a payload that is already encoded: the file's content will be exactly `data`."""
        return self._adder.add(key, data, terms_of(self.durable, **how))

    def add_file(
        self, key: str, path: str | os.PathLike[str], *, move: bool = False, **how: Unpack[How]
    ) -> Added:
        """Queue the content of the file at `path`, of any size.

        move=True hands the file itself over: a rename, if it lies on the inbox's file system (else a copy,
        and the original is removed once the element is queued); nobody may write to it afterwards. Otherwise
        it is copied, by reference where the file system can (Btrfs, XFS). Raises InvalidKey, AddFailed. A
        file that could not be handed over is where it was; if it was a flush that failed, write it anew: what
        the system had cached of it may be lost.
        """
        from .transfer import Source

        with Source(os.fspath(path), move=move) as source:
            return self._adder.add(key, source, terms_of(self.durable, **how))

    def add_stream(self, key: str, stream: BinaryIO, **how: Unpack[How]) -> Added:
        """Queue what a binary stream gives, to its end. Raises InvalidKey, AddFailed."""
        from .transfer import Stream

        return self._adder.add(key, Stream(stream), terms_of(self.durable, **how))

    def add_many(
        self,
        items: Iterable[tuple[str, object]],
        *,
        progress: Callable[[int], object] | None = None,
        **how: Unpack[How],
    ) -> dict[Added, int]:
        """Queue every (key, value), in order, with one flush for many. Returns how many were new, replaced,
        behind, kept.

        `progress` is called with the number queued so far, after each batch: those are then as durable as
        asked. If it raises, or an item is invalid, what was queued before stays queued. Raises InvalidKey,
        InvalidPayload, AddFailed.
        """
        encoded = ((key, encode(self.codec, key, value)) for key, value in items)
        return self._adder.add_many(encoded, terms_of(self.durable, **how), progress)

    def limit(self, *, max_waiting: int | None = None, min_free: Size | None = None) -> Limits:
        """Bound the inbox, for all who add to it: how many elements may wait (back-offs included), and how
        much must stay free on its file system (bytes, or "2G"). 0: no bound; None: as it is. Returns what
        holds then. Raises ValueError, UnusableInbox."""
        from .bounds import set_limits

        with Looking(self._handle) as layout:
            free = size(min_free) if isinstance(min_free, str) else min_free
            return set_limits(layout, self._handle.index, max_waiting, free)


class Producer(Adds):
    """An open inbox to which bytes are added, and no more. (An Inbox imports what looks, too.)"""

    codec = "bytes"
    durable = True

    def __init__(self, path: str, *, create: bool) -> None:
        """Open it. Raises UnusableInbox."""
        self._handle = Handle(path, create=create, shared=False, scope="auto", force=False)
        self._adder = Adder(self._handle)

    @property
    def path(self) -> str:
        """Absolute path of the inbox."""
        return self._handle.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.close(lambda: None)
