"""Runs the site until a signal stops it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_GRACE = 3
"""Seconds for answers that are being sent to finish after a signal."""


def serve(app: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts off answers that are being sent. `ready` is called
    once signals are handled."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whoever says it asks for somebody else is not believed
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    # uvicorn handles signals while it runs, and raises them again when it is done: that ends here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: setattr(server, "should_exit", True))
    ready()
    server.run(sockets=[listener])
