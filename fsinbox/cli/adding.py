"""`fsinbox add`: one element from the command line. Imports only what a cold start needs."""

from __future__ import annotations

import os
import sys

from ..store.errors import AddFailed, InboxError, InboxFull, InvalidPayload, UnusableInbox
from ..store.producing import Producer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Unpack

    from ..store.adding import Added
    from ..store.terms import How


def add(
    key: str,
    value: str | None,
    file: str | None,
    inbox: str,
    *,
    create: bool = False,
    move: bool = False,
    json: bool = False,
    **how: Unpack[How],
) -> int:
    """Add one element; return the exit status.

    The payload is VALUE's text, or FILE's content; "-" for either is standard input.
    """
    outcome: Added
    try:
        new = create and not os.path.exists(inbox)
        with Producer(inbox, create=create) as target:
            if new:
                print(f"fsinbox: created inbox {target.path}", file=sys.stderr)
            if file is not None and file != "-":
                outcome = target.add_file(key, file, move=move, **how)
            elif value is not None and value != "-":
                outcome = target.add_bytes(key, os.fsencode(value), **how)
            else:
                outcome = target.add_stream(key, _standard_input(), **how)
    except (InboxError, ValueError) as error:
        return _refused(error)
    if json:
        import json as encoder

        print(encoder.dumps({"key": key, "outcome": outcome}))
    return 0


def _standard_input() -> BinaryIO:
    """Return standard input, unbuffered, so that one Ctrl-D ends it. Raises InvalidPayload if there is
    none."""
    if sys.stdin is None:
        raise InvalidPayload("standard input is closed: give VALUE or --file FILE")
    if sys.stdin.isatty():
        print("fsinbox: reading the value from the terminal; end it with Ctrl-D", file=sys.stderr)
    return sys.stdin.buffer.raw  # type: ignore[union-attr,no-any-return]


def _refused(error: Exception) -> int:
    from .exits import EXIT_FULL, EXIT_UNUSABLE, EXIT_USAGE

    print(f"fsinbox: {error}", file=sys.stderr)
    if isinstance(error, InboxFull):
        return EXIT_FULL
    return EXIT_UNUSABLE if isinstance(error, (AddFailed, UnusableInbox)) else EXIT_USAGE
