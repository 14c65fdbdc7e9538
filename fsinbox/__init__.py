"""A keyed, acknowledged FIFO queue in a directory. `from fsinbox import Inbox` is where to begin."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .aio import AsyncElement, AsyncInbox
    from .element import Element, Waiting
    from .inbox import Inbox
    from .store.errors import (
        AddFailed,
        InboxBusy,
        InboxError,
        InboxFull,
        InvalidKey,
        InvalidPayload,
        LeaseLost,
        Reject,
        TryLater,
        UnusableInbox,
        WrongState,
    )

__all__ = [
    "Inbox",
    "AsyncInbox",
    "AsyncElement",
    "Element",
    "Waiting",
    "InboxError",
    "UnusableInbox",
    "InboxBusy",
    "InvalidKey",
    "InvalidPayload",
    "LeaseLost",
    "WrongState",
    "AddFailed",
    "InboxFull",
    "Reject",
    "TryLater",
]

_HOMES = {
    "Inbox": "inbox",
    "Element": "element",
    "Waiting": "element",
    "AsyncInbox": "aio",
    "AsyncElement": "aio",
    "__version__": "cli.version",
}


def __getattr__(name: str) -> object:
    """Import what is asked for, when it is asked for: a command's start-up is part of the product."""
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module 'fsinbox' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("." + _HOMES.get(name, "store.errors"), __name__), name)
    globals()[name] = value
    return value
