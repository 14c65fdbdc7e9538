"""The site: which page answers which address, who is let in, and what is said when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..operate.report import Limits
from ..store.errors import UnusableInbox
from .auth import LOCKED, WRONG_TOKEN, Guard, Rules, Sessions
from .forms import Forms
from .pages import Pages
from .rendering import Renderer


def make_app(path: str, rules: Rules, limits: Limits, port: int) -> Guard:
    """Return the site of the inbox at `path`. `limits` are those of the verdict.

    `port` tells its cookie from those of other sites on this host.
    """
    sessions = Sessions(rules, port)
    renderer = Renderer(path, sessions)
    pages = Pages(path, renderer, limits)
    forms = Forms(path, renderer, sessions)
    routes = [
        Route("/", pages.overview),
        Route("/live", pages.live),
        Route("/elements/{state}", pages.elements),
        Route("/elements/{state}/{file}", pages.element),
        Route("/elements/{state}/{file}/payload", pages.download),
        Route("/failed", forms.change_failed, methods=["POST"]),
        Route("/pause", forms.pause, methods=["POST"]),
        Route("/resume", forms.resume, methods=["POST"]),
        Route("/unlock", forms.unlock, methods=["GET", "POST"]),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
    errors = _Errors(renderer)
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: errors.refused,
        UnusableInbox: errors.unusable,
        OSError: errors.unusable,
    }
    gate = _Gate(renderer, sessions)
    return Guard(Starlette(routes=routes, exception_handlers=handlers), gate.answer)


class _Gate:
    """Stands before every page."""

    def __init__(self, renderer: Renderer, sessions: Sessions) -> None:
        self._renderer = renderer
        self._sessions = sessions

    def answer(self, request: Request) -> Response | None:
        """Answer a request that may not see anything, or that brings the token; None lets it pass."""
        host = request.headers.get("host", "")
        if not self._sessions.knows(host):
            text = f"This site does not answer to {host or 'no name'}. If that is its name, start it with "
            return self._renderer.message(request, 421, f"{text}--allow-host")
        rules = self._sessions.rules
        token = request.query_params.get("token")
        if token is not None and rules.asks:
            # A redirect, so that the token leaves the address. (`//host/` would lead to another site.)
            response: Response = RedirectResponse("/" + request.url.path.lstrip("/"), 303)
            if self._sessions.admit(response, token):
                return response
            return self._renderer.message(request, 403, WRONG_TOKEN)
        open_to_all = request.url.path == "/unlock" or request.url.path.startswith("/static/")
        if rules.private and not open_to_all and self._sessions.of(request) is None:
            return self._renderer.message(request, 403, LOCKED)
        return None


class _Errors:
    """Pages for what goes wrong."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def refused(self, request: Request, error: HTTPException) -> Response:
        """Say why a request is refused."""
        text = error.detail
        if error.status_code == 404 and text == "Not Found":
            text = "There is no such page"
        return self._renderer.message(request, error.status_code, text, error.headers)

    def unusable(self, request: Request, error: Exception) -> Response:
        """Say why the inbox cannot be read."""
        return self._renderer.message(request, 503, str(error))
