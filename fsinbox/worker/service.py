"""What the service manager is told: that the consumer is ready, what it does, that it lives, that it stops.
See sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from time import monotonic

from ..element import Element
from .observer import Observer
from .outcome import Outcome

_INTERVAL = 1.0
"""Seconds between two STATUS= at least."""

_PATIENCE = 1.0
"""Seconds that a manager which does not read may hold up the consumer."""


def observers(
    environment: MutableMapping[str, str], doing: str = "consuming", counts: dict[str, int] | None = None
) -> list[Observer]:
    """Return the observer that NOTIFY_SOCKET asks for, if any.

    `doing` and `counts`: what is said of the work; the counts are of what became of elements, unless given.

    What asks for it is removed from the environment: commands that the consumer runs are not the service.
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if address[:1] not in ("/", "@"):
        return []  # none; or vsock, from a virtual machine's host
    ours = period.isdecimal() and int(period) > 0 and pid in ("", str(os.getpid()))
    return [Service(address, int(period) / 1e6 if ours else None, doing, counts)]


class Service(Observer):
    """Tells the service manager."""

    what = "cannot tell the service manager"

    def __init__(
        self,
        address: str,
        watchdog: float | None,
        doing: str = "consuming",
        counts: dict[str, int] | None = None,
    ) -> None:
        """`address`: a socket's path, or @name in the abstract name space. `watchdog`: seconds it waits for a
        heartbeat."""
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE)
        self._every = watchdog and watchdog / 2
        self._next_sign = 0.0
        self._next_status = 0.0
        self._state = ""
        self._told = ""
        self._running = 0
        self._doing = doing
        self._counts = {"acknowledged": 0, "retried": 0, "superseded": 0, "failed": 0}
        if counts is not None:
            self._counts = counts

    def standing_by(self) -> None:
        self._state = "standing by for another consumer"
        self.tick()

    def began(self) -> None:
        self._state = self._doing
        self._send("READY=1", self._status())
        self._give_sign()

    def started(self, element: Element, latency: float | None) -> None:
        self._running += 1

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        self._running = max(
            0, self._running - 1
        )  # (what has killed consumers is given up without being started)
        self._counts[became] += 1

    def due(self) -> float | None:
        status = self._next_status if self._text() != self._told else None
        sign = self._next_sign if self._every else None
        return min((time for time in (status, sign) if time is not None), default=None)

    def tick(self) -> None:
        now = monotonic()
        if self._every and now >= self._next_sign:
            self._give_sign()
        if now >= self._next_status and self._text() != self._told:
            self._send(self._status())

    def stopping(self) -> None:
        self._state = "stopping"
        self._send("STOPPING=1", self._status())

    def stopped(self) -> None:
        if self._state != "stopping":
            self.stopping()
        self._socket.close()

    def restarting(self) -> None:
        self._socket.close()  # the same process says READY=1 again; STOPPING=1 would be believed

    def _give_sign(self) -> None:
        if self._every:
            self._next_sign = monotonic() + self._every
            self._send("WATCHDOG=1")

    def _status(self) -> str:
        self._next_status = monotonic() + _INTERVAL
        self._told = self._text()
        return f"STATUS={self._told}"

    def _text(self) -> str:
        counts = {"running": self._running, **self._counts}
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{self._state}: {told}" if told else self._state

    def _send(self, *words: str) -> None:
        self._socket.sendto("\n".join(words).encode(), self._address)
