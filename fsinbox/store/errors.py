"""What can go wrong, as one small hierarchy. Every message names the thing, the reason and the way out."""


class InboxError(Exception):
    """Base of every error this package raises on purpose."""


class UnusableInbox(InboxError):
    """The directory is missing, is not an inbox, has another version, or cannot be read or written."""


class InboxBusy(InboxError):
    """Another consumer holds the inbox. `holder` is the text that consumer left: who, where and since
    when."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class LeaseLost(InboxError):
    """Another consumer has taken over, on another host perhaps: this one was cut off, or stopped, for too
    long.

    What it had taken is with its successor, and nothing of it can be acknowledged or put back here any more.
    """


class InvalidKey(InboxError, ValueError):
    """The key is empty, too long once encoded, or not text."""


class InvalidPayload(InboxError, ValueError):
    """A value cannot be encoded, or a payload cannot be decoded, with the codec in use."""


class WrongState(InboxError, RuntimeError):
    """The call does not fit: take while an element is in flight, commit with none, ack twice, ack after a
    rollback."""


class AddFailed(InboxError, OSError):
    """The system refused an add. `errno` is the system's.

    `maybe_added` is False when nothing became visible, and True when the element was published but could not
    be made durable: it may be delivered. Either way, adding again is safe: the newest value wins.
    """

    def __init__(self, errno: int | None, message: str, *, maybe_added: bool) -> None:
        super().__init__(errno, message)
        self.maybe_added = maybe_added

    def __str__(self) -> str:
        return str(self.args[1])


class InboxFull(AddFailed):
    """An element was not added: as many wait as may, or too little is free. A value that replaces a waiting
    one is always added.

    `added`: how many of the values of add_many, from the first, were added before.
    """

    added = 0


class Full(OSError):
    """Inside: an element may not be added now, for the inbox has bounds. Its text says which.

    `added`: of several, how many were."""

    added = 0


class Reject(InboxError):
    """Raised by a handler of `fsinbox consume`: no later try can succeed. The element goes to failed/ at
    once."""


class TryLater(InboxError):
    """Raised by a handler of `fsinbox consume`: not now. The element is tried again, and the attempt does not
    count."""
