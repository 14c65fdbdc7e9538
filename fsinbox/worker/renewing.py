"""A consumer that starts anew after a while, for handlers that leak."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import MutableMapping
from dataclasses import asdict, fields
from typing import NoReturn

from .ending import Tally

_BEFORE = "_FSINBOX_TALLY"
"""Hands the tally on to the program that takes this one's place."""

_STATM = "/proc/self/statm"


class Renewal:
    """When to start anew."""

    def __init__(self, max_elements: int | None = None, max_memory: int | None = None) -> None:
        """`max_elements`: after how many. `max_memory`: bytes of memory in use (resident)."""
        self.reason = ""
        """Why it is time; "" if it is not."""
        self._left = max_elements
        self._max_memory = max_memory

    def took(self) -> None:
        """An element was taken."""
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.reason = "it has handled --max-elements"

    def ended(self) -> None:
        """An element was ended."""
        if self._max_memory is not None and (used := memory_in_use()) > self._max_memory:
            self.reason = f"it uses {used >> 20} MB of memory, more than --max-memory"


def memory_is_known() -> bool:
    """Tell whether this system says how much memory a process uses now."""
    return os.path.exists(_STATM)


def memory_in_use() -> int:
    """Return how many bytes of memory this process uses (resident). Raises OSError where that is not
    known."""
    with open(_STATM, "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Restart:
    """How this program was started: its environment and directory, as they were then."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Note it. Takes the tally that the program before has left there."""
        self._before = environment.pop(_BEFORE, "")
        self._environment = dict(environment)
        self._directory = os.getcwd()

    def before(self) -> Tally:
        """Return the tally of the programs in whose place this one is."""
        try:
            found = json.loads(self._before)
            return Tally(**{field.name: int(found[field.name]) for field in fields(Tally)})
        except (ValueError, LookupError, TypeError):
            return Tally()

    def now(self, tally: Tally) -> NoReturn:
        """Replace this program by itself, with the same process id. Raises OSError."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.chdir(self._directory)
        environment = self._environment | {_BEFORE: json.dumps(asdict(tally))}
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, environment)  # noqa: S606 - its own words
