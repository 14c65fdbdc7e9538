"""What handlers say, through Python's logging or by printing, and about which element."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO

from ..element import Element
from ..store.printing import discard
from .ending import about

log = logging.getLogger("fsinbox")

LONGEST = 8192
"""Characters of a printed line; what is longer is logged in pieces."""

_current: ContextVar[tuple[Element, ...]] = ContextVar("fsinbox_elements", default=())
"""What the handler that runs here works on: in this thread, or task, and in tasks that it starts."""

_own: dict[str, Printed] = {}
"""The process's own standard output and error, once they are watched."""


class working_on:
    """Say of all that is logged or printed within that it is about these elements."""

    __slots__ = ("_before", "_elements")

    def __init__(self, *elements: Element) -> None:
        self._elements = elements

    def __enter__(self) -> None:
        self._before = _current.set(self._elements)

    def __exit__(self, *error: object) -> None:
        if isinstance(sys.stdout, Printed):
            sys.stdout.finish()
        _current.reset(self._before)
        for name, own in _own.items():
            if getattr(getattr(sys, name), "closed", True):  # by the handler: the next one may print
                setattr(sys, name, own)


def current() -> tuple[Element, ...]:
    """Return what the handler works on that runs here; nothing where none does."""
    return _current.get()


def of_element(text: str, elements: tuple[Element, ...]) -> str:
    """Return a line of a handler's, with the key and the attempt before it."""
    first = elements[0]
    more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
    return f"key {first.key!r}{more}, attempt {first.attempts}: {text}"


def log_output(line: str, elements: tuple[Element, ...]) -> None:
    """Log a line that a handler or a command has printed."""
    element = elements[0]
    log.info("%s", of_element(line, elements), extra=about(element, "output", text=line))


def watch_output(*, logs: bool) -> None:
    """Have what handlers print passed on a line at once, or logged."""
    if sys.stdout:
        sys.stdout = _own["stdout"] = Printed(sys.stdout, logs=logs)
    if sys.stderr:
        sys.stderr = _own["stderr"] = Printed(sys.stderr, logs=False)


class Printed(io.TextIOBase):
    """Stands for standard output, or standard error: passes on what is printed, a line at once; or logs what
    a handler prints, a record a line.

    That nobody reads it, or that it cannot be written, is no reason for a handler to fail.
    """

    def __init__(self, real: TextIO, *, logs: bool) -> None:
        self._real = real
        self._logs = logs
        self._begun: dict[tuple[Element, ...], str] = {}

    def write(self, text: str) -> int:
        elements = current() if self._logs else ()
        if not elements:
            with suppress(OSError):
                self._real.write(text)
            if "\n" in text:
                self.flush()
            return len(text)
        *lines, rest = (self._begun.pop(elements, "") + text).split("\n")
        for line in lines:
            log_output(line, elements)
        while len(rest) > LONGEST:
            log_output(rest[:LONGEST], elements)
            rest = rest[LONGEST:]
        if rest:
            self._begun[elements] = rest
        return len(text)

    def finish(self) -> None:
        """Log what has no end of line yet: its handler is done."""
        rest = self._begun.pop(current(), "")
        if rest:
            log_output(rest, current())

    def flush(self) -> None:
        try:
            self._real.flush()
        except BrokenPipeError:
            discard(self._real.fileno())
        except OSError:
            pass  # a full disk: what is kept back is tried again

    def fileno(self) -> int:
        return self._real.fileno()

    def isatty(self) -> bool:
        return self._real.isatty()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Any:
        """For bytes, which are passed on."""
        return self._real.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of what stands behind it."""
        return self._real.encoding
