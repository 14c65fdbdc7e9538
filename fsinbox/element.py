"""Waiting and Element: what an inbox gives. Looks: how to see what waits without taking it."""

from __future__ import annotations

import os

from .store import files
from .store.amounts import checked
from .store.codecs import decode
from .store.drops import finished_drop
from .store.errors import InvalidKey
from .store.handle import Handle, Looking
from .store.layout import Layout
from .store.names import (
    decode_key,
    element_name,
    element_of,
    encode_key,
    encoded_of,
    parse_deferred,
    parse_element,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import Any, NoReturn

    from .consumer.session import Claim
    from .consumer.taking import Taken
    from .store.amounts import Time


class Waiting:
    """An element as it waits: what `peek` and iteration give. Reading it may fail if it is taken
    meanwhile."""

    __slots__ = ("_handle", "_codec", "_folder", "_file", "key", "seq", "__weakref__")

    key: str
    """The key it was added with."""
    seq: int
    """Its number: its place in the order, and the time of its arrival in nanoseconds since the epoch."""

    def __init__(self, handle: Handle, codec: str, folder: str, file: str, key: str, seq: int) -> None:
        self._handle = handle
        self._codec = codec
        self._folder = folder
        self._file = file
        self.key = key
        self.seq = seq

    def __reduce__(self) -> NoReturn:
        raise TypeError("an element cannot be pickled or copied: pass on its key and its value")

    @property
    def data(self) -> bytes:
        """The payload, read now. Raises OSError: FileNotFoundError if it was taken, or ended, meanwhile."""
        try:
            return files.read_payload(self._handle.layout, self._folder, self._file)
        except FileNotFoundError as error:
            raise self._gone(error) from None

    def open(self) -> int:
        """Return a descriptor of its file, open for reading, for the caller to close. Raises OSError.

        This is the way to stream a payload: never through a link, and always from this inbox.
        """
        try:
            return files.open_for_reading(self._handle.layout, self._folder, self._file)
        except FileNotFoundError as error:
            raise self._gone(error) from None

    def _gone(self, error: OSError) -> FileNotFoundError:
        what = f"the element of key {self.key!r} was taken, or ended, meanwhile: read it before that"
        return FileNotFoundError(error.errno, what, self.path)

    @property
    def value(self) -> Any:
        """The payload, decoded with the inbox's codec. Raises InvalidPayload, OSError."""
        return decode(self._codec, self.key, self.data)

    @property
    def path(self) -> str:
        """Path of its file, for programs that need a name.

        It is walked again, by name: whoever may write in the inbox can have another file there by then, or a
        link to one that only you may read. To read the payload, use `open`.
        """
        return os.path.join(self._handle.path, self._folder, self._file)

    @property
    def added_at(self) -> datetime:
        """When its key joined the queue (UTC). A newer value that replaces a waiting one keeps the place, and
        this."""
        from datetime import UTC, datetime

        return datetime.fromtimestamp(self.seq / 1e9, UTC)

    def __iter__(self) -> Iterator[Any]:
        yield self.key
        yield self.value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} {self.seq} in {self._folder}/>"


class Element(Waiting):
    """An element that was taken. End it with ack(), nack() or fail(); unpacks as `(key, value)`."""

    __slots__ = ("_claim", "attempts")

    attempts: int
    """How often this value has been taken, this time included: 1 the first time. Survives restarts."""

    def __init__(self, handle: Handle, codec: str, claim: Claim) -> None:
        taken = claim.taken
        Waiting.__init__(self, handle, codec, handle.layout.inflight, taken.name, taken.key, taken.number)
        self._claim = claim
        self.attempts = taken.attempts

    @property
    def size(self) -> int:
        """Length of the payload in bytes."""
        return self._claim.taken.size

    @property
    def replaced(self) -> bool:
        """Whether it stands for more than one add: this value has replaced one that waited, as the file's
        time tells.

        (A value that was added for later tells nothing of it. The kernel's clock for files ticks every few
        milliseconds: a value replaced within that time of its arrival is not told. Nor is any where another
        host's clock sets the times.)
        """
        taken = self._claim.taken
        return self._handle.layout.sharing is None and not taken.not_before and taken.modified > self.seq

    @property
    def suspect(self) -> bool:
        """Whether a consumer died while this was in flight. Such an element is only in flight alone."""
        return bool(self._claim.taken.alone)

    @property
    def poison(self) -> bool:
        """Whether a consumer died while this, and nothing else, was in flight."""
        return self.deaths > 0

    @property
    def deaths(self) -> int:
        """How often in a row a consumer died while this, and nothing else, was in flight."""
        alone = self._claim.taken.alone
        if not alone:
            return 0
        from .consumer.attempts import deaths_alone

        return deaths_alone(alone)

    @property
    def age(self) -> float:
        """Seconds since this value was queued: since its key joined the queue, or since a newer value has
        replaced the one that waited. (The file's time tells the latter; one in the future is ignored.) Of one
        that was added for later: since it was due."""
        from time import time_ns

        now, taken = time_ns(), self._claim.taken
        since = max(self.seq, taken.not_before, taken.modified if taken.modified <= now else 0)
        return max(0, now - since) / 1e9

    @property
    def data(self) -> bytes:
        """The payload, read now. Raises OSError, LeaseLost."""
        try:
            return super().data
        except OSError:
            self._claim.check_lease()
            raise

    def whereabouts(self) -> tuple[str, Taken]:
        """Return what another process needs to find it: its folder in the inbox, and what was taken."""
        return self._folder, self._claim.taken

    def superseded(self) -> bool:
        """Tell whether a newer value for the key waits, so that work on this one may stop early."""
        handle = self._handle
        with Looking(handle) as layout:
            place = handle.index.peek_place(self._claim.taken.encoded)
            if place > self.seq or layout.exists("pending", self._file):
                return True
            return finished_drop(layout, self.key) is not None

    def newer_waits(self) -> bool:
        """The same, for the thread that takes: what lies in drop/ counts once it is ingested, which this
        does. False if it was ended. Raises OSError."""
        return self._claim.newer_waits()

    @property
    def ended(self) -> str:
        """How it was ended: "acknowledged", "requeued" or "given up"; "" while it is in flight."""
        return self._claim.ended

    def ack(self) -> None:
        """It is done: remove it. Raises WrongState if it was ended before."""
        self._claim.acknowledge()

    def nack(self, delay: Time = 0.0) -> bool:
        """It is not done: return it to its place, or have it wait for `delay`: seconds, "5m" or a timedelta,
        7 days at most. Counts an attempt.

        Returns False if a newer value for the key waits: then this one is dropped instead. Raises WrongState.
        """
        return self._requeue(delay, counted=True)

    def release(self, delay: Time = 0.0) -> bool:
        """The same as nack, as if it had not been taken: the attempt does not count."""
        return self._requeue(delay, counted=False)

    def fail(self, reason: str) -> bool:
        """Give up: move it to failed/, with `reason` beside it as text. False if a newer value waits: then it
        is dropped."""
        header = f"key: {self.key}\nattempts: {self.attempts}\nadded: {self.added_at.isoformat()}\n\n"
        return self._claim.fail(header + reason.rstrip("\n") + "\n")

    def _requeue(self, delay: Time, *, counted: bool) -> bool:
        length = checked(delay=delay)["delay"] if delay else 0.0
        if length > 7 * 24 * 3600:
            raise ValueError(f"delay must be 0 to 604800 seconds (7 days), not {delay}")
        return self._claim.requeue(length, counted=counted)


class Looks:
    """What can be seen of an open inbox without taking anything. Each method raises UnusableInbox."""

    codec: str
    _handle: Handle
    _ignore: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Waiting]:
        """Go through what waits, oldest first, without taking it. Lists the folder: costs with its size."""
        with Looking(self._handle) as layout:
            places = _places(layout)
        for seq, _, key, file in places:
            yield self._waiting(file, key, seq)

    def _waiting(self, file: str, key: str, seq: int) -> Waiting:
        return Waiting(self._handle, self.codec, "pending", file, key, seq)

    def peek(self) -> Waiting | None:
        """Return the oldest waiting element without taking it, or None."""
        return next(iter(self), None)

    def find(self, key: str) -> Waiting | None:
        """Return the waiting element of `key`, or None. Quick where the index knows it; else it lists the
        folder. Raises InvalidKey."""
        encoded = encode_key(key)
        with Looking(self._handle):
            place = self._handle.index.peek_place(encoded)
        if place:
            return self._waiting(element_name(place, encoded), key, place)
        return next((waiting for waiting in self if waiting.key == key), None)

    def __contains__(self, key: object) -> bool:
        """Tell whether an element of `key` waits (one that waits out a back-off included)."""
        try:
            encoded = encode_key(key)  # type: ignore[arg-type]
        except InvalidKey:
            return False
        if self.find(decode_key(encoded) or ""):
            return True
        with Looking(self._handle) as layout:
            return encoded in _deferred(layout)

    def __len__(self) -> int:
        """Return how many elements wait, those that wait out a back-off included, files in drop/ not. Lists
        the folders."""
        with Looking(self._handle) as layout:
            return len({encoded for _, encoded, _, _ in _places(layout)} | _deferred(layout))

    def anything(self) -> bool:
        """Tell whether an element waits, or a file in drop/. Lists the folders."""
        with Looking(self._handle) as layout:
            if any(parse_element(name) for name in layout.names("pending")):
                return True
            if not layout.names("drop"):
                return False
            from .store.ignoring import looked_up
            from .store.subfolders import dropped

            return bool(looked_up(layout, self._ignore).left(dropped(layout)))

    def __bool__(self) -> bool:
        """An open inbox is true, also when it is empty: `if inbox:` must not list a million files."""
        return True


def _places(layout: Layout) -> list[tuple[int, str, str, str]]:
    """Return (number, encoded key, key, file name) of what waits, oldest first: per key the oldest place, the
    newest file."""
    places: dict[str, tuple[int, str, str, str]] = {}
    for name in sorted(layout.names("pending")):
        parsed = parse_element(name)
        key = parsed and decode_key(parsed[1])
        if parsed and key is not None:
            first = places.get(parsed[1])
            places[parsed[1]] = (first[0] if first else parsed[0], parsed[1], key, name)
    return sorted(places.values())


def _deferred(layout: Layout) -> set[str]:
    """Return the encoded keys of what is deferred."""
    return {encoded_of(element_of(name)) for name in layout.names("deferred") if parse_deferred(name)}
