"""A web application that queues work and answers at once: POST /orders/{id} adds.

Any number of worker processes serve it. Each adds to the same inbox. None talks to another, and there is no
broker.
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fsinbox import AddFailed, AsyncInbox, InvalidKey

# Opened once a program, also before it forks: each worker then opens its own descriptors at its first add.
inbox = AsyncInbox(os.environ.get("FSINBOX_DIR", "inbox"))


async def add_order(request: Request) -> JSONResponse:
    """Queue an order. 202 means that it survives a power cut; after 503 the client sends it again."""
    try:
        order = await request.json()
    except ValueError:
        return JSONResponse({"error": "the body is not JSON"}, status_code=400)
    try:
        outcome = await inbox.add(request.path_params["id"], order)
    except InvalidKey as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    except AddFailed as error:  # a full disk, for example
        return JSONResponse({"error": str(error)}, status_code=503)
    return JSONResponse({"outcome": outcome, "worker": os.getpid()}, status_code=202)


app = Starlette(routes=[Route("/orders/{id}", add_order, methods=["POST"])])
