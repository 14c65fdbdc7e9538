"""Runs the site until it is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from .guard import Guard

_GRACE = 3
"""Seconds that what is being sent may go on after a signal."""


def serve(app: Guard, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends what is being sent. `ready` is called when a signal
    would be heeded."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody is believed who says that he asks for another
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    # uvicorn has its own while it runs; it raises the signal once more when it is done, which is to end here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: setattr(server, "should_exit", True))
    ready()
    server.run(sockets=[listener])
