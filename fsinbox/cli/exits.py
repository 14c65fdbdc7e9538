"""The exit statuses of the commands, and what they mean, as the reference and the manual pages say it."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNUSABLE = 3
EXIT_BUSY = 4
EXIT_UNKNOWN = 5
EXIT_FULL = 6
EXIT_EXPIRED = 124
"""As of timeout(1)."""
EXIT_INTERRUPTED = 130
"""As shells have it."""

MEANINGS = {
    0: "Done: added, listed; a consumer was stopped by a signal, or is through.",
    EXIT_FAILED: "No such element (show, retry, ...). A limit of status is exceeded. Something moved to "
    "failed/, a file from drop/ included (consume --drain or --once). Something needs a repair or a "
    "person (doctor). A file was skipped (watch --once). status --nagios has statuses of its own.",
    EXIT_USAGE: "Usage: an option, a key or a value that is not valid, an add without a value, two --inbox. "
    "Settings; with consume, a variable FSINBOX_... that means nothing. A handler that cannot be "
    "imported. An extra that is not installed. An address or a file for metrics that cannot be used.",
    EXIT_UNUSABLE: "There is no inbox there, or it cannot be used. Or the system refused an add: the message "
    "says whether it may have been added.",
    EXIT_BUSY: "The inbox has a consumer: the message says which. Or another watch queues that folder.",
    EXIT_UNKNOWN: "wait: a key is not known. It was never added, or was done before the last boot, or long "
    "ago.",
    EXIT_FULL: "add, import, migrate, watch --once: the inbox is full (fsinbox limit). An import or a "
    "migration goes on there when it is run again; with --timeout they wait for room.",
    EXIT_EXPIRED: "wait: the timeout has expired.",
    EXIT_INTERRUPTED: "Ctrl-C. (consume, watch, top and web, which it stops, end with 0.)",
}
