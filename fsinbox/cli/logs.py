"""The log of `fsinbox consume`, on standard error: text for people, JSON for programs, and what journald
understands.

A key, a file's name or an exception may hold anything: in no form does a record begin a second line that
could be taken for a record, or send a terminal a control character.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..store.printing import escaped
from .options import Failure

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "event",
    "taskName",
    "fsinbox_elements",
}
"""What a record has that nobody gave it as `extra`."""

_PRIORITY = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Level -> priority of sd-daemon(3)."""


class Logs(NamedTuple):
    """What is logged, and how.

    form     "text" (with priorities instead of times, where journald reads it) or "json"
    level    ours from this level on ...
    others   ... and what handlers and libraries log from this one on
    output   whether what handlers print is logged, too
    """

    form: str
    level: int
    others: int = logging.WARNING
    output: bool = False


def chosen(options: dict[str, Any]) -> Logs:
    """Return what the options of `consume` ask for."""
    level = logging.getLevelNamesMapping()[options["log_level"].upper()]
    ours = logging.WARNING if options["quiet"] else logging.DEBUG if options["verbose"] else level
    others = max(level, logging.WARNING) if options["quiet"] else level
    return Logs(options["log_format"], ours, others, options["log_output"])


def set_up(logs: Logs) -> None:
    """Send logs to standard error."""
    formatter = Json() if logs.form == "json" else Journal() if _journal_reads() else Text()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_with_element)
    logging.basicConfig(level=logs.others, handlers=[handler])
    logging.getLogger("fsinbox").setLevel(logs.level)
    logging.raiseExceptions = (
        False  # a log that cannot be written (its disk is full) gets no tracebacks in its place
    )
    if logs.form == "json":
        Failure.log = lambda message: logging.getLogger("fsinbox").error(
            "%s", message, extra={"event": "gave_up"}
        )


def _with_element(record: logging.LogRecord) -> bool:
    """Note in what a handler logs which element it works on. (Ours say that themselves.)"""
    from ..worker.saying import current

    elements = current() if record.name != "fsinbox" else ()
    if elements:
        first = elements[0]
        record.fsinbox_elements = elements
        for name, value in (("key", first.key), ("seq", first.seq), ("attempts", first.attempts)):
            if not hasattr(record, name):
                setattr(record, name, value)
    return True


def line(form: str, message: str, event: str) -> str:
    """Return a line of the log, for one that must be written without the logging module: from within a signal
    handler."""
    if form != "json":
        return f"fsinbox: {message}\n"
    record = logging.makeLogRecord({"name": "fsinbox", "levelname": "INFO", "msg": message, "event": event})
    return Json().format(record) + "\n"


class Json(logging.Formatter):
    """One object a line, ASCII only, so that no locale and no byte of a key can spoil it."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
        }
        if record.name != "fsinbox":
            members["logger"] = record.name
        members |= {
            name: value for name, value in vars(record).items() if name not in _OWN and name not in members
        }
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: _member(value) for name, value in members.items()})


class Text(logging.Formatter):
    """Time, level, message; what is below a first line is indented."""

    def __init__(self, form: str = "%(asctime)s %(levelname)s %(message)s") -> None:
        super().__init__(form)

    def formatMessage(self, record: logging.LogRecord) -> str:
        elements = getattr(record, "fsinbox_elements", ())
        if elements:
            from ..worker.saying import of_element

            record.message = of_element(record.message, elements)
        return escaped(super().formatMessage(record)).replace("\n", "\n    ")

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        return escaped("    " + super().formatException(ei).replace("\n", "\n    "))


class Journal(Text):
    """For journald, which has the time itself: each line begins with `<priority>`, as in sd-daemon(3)."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITY if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{text}" for text in super().format(record).split("\n"))


def _journal_reads() -> bool:
    """Tell whether standard error is a stream to journald, as systemd.exec(5) says to find out."""
    stream = os.environ.get("JOURNAL_STREAM")
    status = os.fstat(2) if stream and sys.stderr else None
    return status is not None and stream == f"{status.st_dev}:{status.st_ino}"


def _member(value: object) -> object:
    """Return what JSON can hold of it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value
