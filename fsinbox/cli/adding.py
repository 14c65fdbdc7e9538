"""`fsinbox add`: one element from the command line. Imports nothing that a cold start does not need."""

import os
import sys

from ..inbox import Inbox
from ..store.errors import AddFailed, InboxError, UnusableInbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..store.adding import Added


def add(
    key: str,
    value: str | None,
    file: str | None,
    inbox: str,
    *,
    move: bool = False,
    durable: bool = True,
    json: bool = False,
) -> int:
    """Add one element; return the exit status. The payload is VALUE's text, FILE's content, or standard
    input."""
    from . import EXIT_UNUSABLE, EXIT_USAGE

    outcome: Added
    try:
        new = not os.path.exists(inbox)
        with Inbox(inbox, codec="bytes", durable=durable) as target:
            if new:
                print(f"fsinbox: created inbox {target.path}", file=sys.stderr)
            if file is not None and file != "-":
                outcome = target.add_file(key, file, move=move)
            elif value is not None and value != "-":
                outcome = target.add_bytes(key, os.fsencode(value))
            else:
                if sys.stdin is None:
                    print(
                        "fsinbox: there is no standard input to read the value from: give VALUE or --file "
                        "FILE",
                        file=sys.stderr,
                    )
                    return EXIT_USAGE
                if sys.stdin.isatty():
                    print("fsinbox: reading the value from the terminal; end it with Ctrl-D", file=sys.stderr)
                terminal_or_pipe = sys.stdin.buffer.raw  # type: ignore[union-attr]  # unbuffered: one Ctrl-D ends it
                outcome = target.add_stream(key, terminal_or_pipe)
    except (AddFailed, UnusableInbox) as error:
        print(f"fsinbox: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    except InboxError as error:
        print(f"fsinbox: {error}", file=sys.stderr)
        return EXIT_USAGE
    if json:
        import json as encoder

        print(encoder.dumps({"key": key, "outcome": outcome}))
    return 0
