"""The environment variables that mean something, so that one with a typo is not silently ignored.

`fsinbox add` asks, too, without importing click: so the names that click would derive from the options are
written down here (NAMES). A test compares them with the commands.
"""

import os

PREFIX = "FSINBOX_"

INBOX = "FSINBOX_DIR"
"""Names the inbox: read by every command, and given to the commands of `consume --exec`."""

GENERAL = frozenset(f"{PREFIX}{name}" for name in ("DIR", "SETTINGS", "KEY", "SEQ", "ATTEMPTS", "PATH", "FD"))
"""Those of no option; all but SETTINGS are given to the commands of `consume --exec`."""

NAMES = frozenset(
    f"{PREFIX}{command}_{option}"
    for line in """
ADD CREATE DELAY DURABLE FILE IF_WAITING JSON MOVE NOT_BEFORE TIMEOUT
CONSUME BATCH BATCH_WAIT BREAKER CANCEL_SUPERSEDED CODEC CONCURRENCY DRAIN DROP_RECURSIVE DROP_SETTLE EXEC
CONSUME EXPIRE LOG_LEVEL LOG_OUTPUT
CONSUME GIVE_UP_AFTER HANDLER IGNORE KEEP_DONE LEASE LOG_FORMAT MAX_ATTEMPTS MAX_ELEMENTS MAX_MEMORY
CONSUME MAX_RETRY_DELAY MAX_SETTLE MAX_SIZE METRICS METRICS_FILE ONCE ON_FAILED POLL_INTERVAL
CONSUME PROCESSES QUIET RATE RETRY_DELAY SETTLE SHARD SHELL SHUTDOWN_TIMEOUT STANDBY TIMEOUT TRACE
CONSUME VERBOSE WATCH
DISCARD ALL JSON STATE YES
DOCTOR JSON REPAIR
EXPORT JSON STATE YES
FAILED JSON LIMIT SINCE TRACEBACK
HOLD JSON
IMPORT CREATE JSON MAX_SIZE REPLACE TIMEOUT
INIT FORCE JSON MAX_WAITING MIN_FREE SCOPE SHARED
LIMIT JSON MAX_WAITING MIN_FREE
LS JSON LIMIT SINCE STATE
MIGRATE BATCH CREATE JSON KEY_COLUMN LOCKED_COLUMN ORDER_BY RESTART TABLE TIMEOUT URL
MIGRATE VALUE_COLUMN
PAUSE FOR JSON
PURGE JSON OLDER_THAN STATE YES
RELEASE ALL JSON YES
REPLAY ALL JSON YES
REQUEUE ALL JSON YES
RESUME JSON
RETRY ALL JSON YES
SETTINGS JSON
SHOW JSON RAW
STATUS JSON MAX_AGE MAX_FAILED MAX_WAITING NAGIOS
TOP INTERVAL MAX_AGE MAX_FAILED MAX_WAITING
WAIT JSON TIMEOUT
WATCH CREATE IGNORE INCLUDE LOG_FORMAT MAX_SETTLE ONCE PAYLOAD POLL_INTERVAL QUIET RESCAN SETTLE
WATCH STATE VERBOSE WATCH
WEB ALLOW_CHANGES ALLOW_HOST HOST MAX_AGE MAX_FAILED MAX_WAITING PORT PRIVATE
""".strip().splitlines()
    for command, *options in [line.split()]
    for option in options
)
"""FSINBOX_<COMMAND>_<OPTION>."""


def unknown() -> list[str]:
    """Return the names in the environment that begin as ours do, and that nothing reads."""
    ours = [name for name in os.environ if name.startswith(PREFIX)]
    return sorted(name for name in ours if name not in GENERAL and name not in NAMES)


def complaint(name: str) -> str:
    """Return what is said of such a name, with the one that was meant, as far as that can be told."""
    from difflib import get_close_matches

    known = sorted(one.removeprefix(PREFIX) for one in GENERAL | NAMES)
    close = get_close_matches(name.removeprefix(PREFIX), known, 1, 0.7)
    meant = INBOX if name == f"{PREFIX}INBOX" else f"{PREFIX}{close[0]}" if close else ""
    shown = name if name.isprintable() else repr(name)
    return f"environment: {shown} is not a setting: {f'{meant} is one' if meant else 'unset it'}"
