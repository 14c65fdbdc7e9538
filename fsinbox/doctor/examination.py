"""Looks at an inbox, and finds what is wrong with it. Changes nothing; producers and a consumer may run.

A look goes through the frame, the folders and the index, and notes each *sign* that something may be wrong:
its kind (findings.py says what that means), where, and what was seen there. An element that moves while the
folders are listed is seen in two of them, or in none. So `examine` looks twice, and believes what it saw both
times.

The order of a look matters where two things are compared: the folders come before the index, whose last
number only grows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from time import sleep

from ..consumer.ownership import read_holder
from ..operate.consumers import consumers
from ..operate.units import when
from ..store.errors import UnusableInbox
from ..store.folders import VERSION
from ..store.layout import Layout
from .findings import Finding, Sign, group
from .folders import Folders
from .frame import Frame
from .numbers import Numbers
from .signs import Signs

PAUSE = 0.2
"""Seconds between two looks: an element on the move has arrived by then, or had not left before."""


@dataclass(frozen=True)
class Examination:
    """How an inbox is. `facts`: a few lines on what it holds."""

    path: str
    facts: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing needs a repair or a person."""
        return all(finding.level == "note" for finding in self.findings)


def examine(path: str, pause: float = PAUSE) -> Examination:
    """Look at the inbox at `path`, and return what is wrong. Raises UnusableInbox if it is not an inbox, or
    cannot be read."""
    first = Look(path)
    if not first.signs:
        return Examination(first.layout.path, first.facts(), ())
    sleep(pause)
    second = Look(path)
    return Examination(second.layout.path, second.facts(), group(first.signs & second.signs))


class Look:
    """One look at an inbox."""

    def __init__(self, path: str) -> None:
        """Look. Raises UnusableInbox if there is no inbox, or one of another version, or it cannot be
        read."""
        self.layout = Layout.as_found(path)
        signs = Signs(self.layout)
        try:
            self.frame = Frame(signs)
            self._consumers(signs)
            self.folders = Folders(signs, self.frame.folders, owner=self.frame.owner, consumed=self.consumed)
            self.numbers = Numbers(signs, self.folders)
        except OSError as error:
            raise UnusableInbox(
                f"cannot look at inbox {self.layout.path}: {error.strerror} ({error.filename})"
            ) from error
        finally:
            self.layout.close()
        self.signs: set[Sign] = signs.found

    def facts(self) -> tuple[str, ...]:
        """Return a few lines on what the inbox is and holds."""
        frame, count = self.frame, self.folders.count
        holder = self.holder or "it did not say who it is"
        last = when(self.numbers.last, "seconds") if self.numbers.last else ""
        return (
            f"format {VERSION}, {frame.scope}, {'shared with the group' if frame.shared else 'private'}; "
            + (f"last number given out {last}" if last else "no number given out yet"),
            f"{len(self.folders.places)} waiting, {count['inflight']} in flight, "
            f"{count['deferred']} deferred, {count['failed']} failed, {count['drop']} in drop/; "
            f"{count['tmp']} being written",
            f"consumer: {holder}" if self.consumed else "no consumer is running",
            *([f"ignored in drop/: hidden names; {self.folders.ignoring}"] if self.folders.ignoring else []),
        )

    def _consumers(self, signs: Signs) -> None:
        try:
            found = [one for one in consumers(self.layout) if one["holder"] and not one.get("lapsed")]
        except (OSError, UnusableInbox):
            found = []  # there is no such file or folder, or it cannot be locked from here
        self.consumed = bool(found)
        self.holder = "; ".join(str(one["holder"]) for one in found) or read_holder(self.layout)
        if self.consumed and _is_gone(self.holder):
            signs.see("holder-gone", "consumer.lock", self.holder)


def _is_gone(holder: str) -> bool:
    """Tell whether the process that a consumer's lock names is not there, on this host."""
    found = re.match(r"pid (\d+) on (\S+) ", holder + " ")
    if found and found[2] == os.uname().nodename:
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # another user's: it lives
    return False
