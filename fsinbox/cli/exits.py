"""The exit statuses of the commands: docs/operations.md has them for users."""

EXIT_FAILED = 1
"""Something moved to failed/ (drain, once), or there is no such element."""
EXIT_USAGE = 2
EXIT_UNUSABLE = 3
EXIT_BUSY = 4
EXIT_UNKNOWN = 5
"""`wait`: a key is not known."""
EXIT_FULL = 6
"""`add`: as many elements wait as may, or too little is free."""
EXIT_EXPIRED = 124
"""`wait`: the timeout has expired, as of timeout(1)."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it."""
