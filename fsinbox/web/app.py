"""The site: which page answers which address, who is let in, and what is said when something goes wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ..operate.report import Limits
from ..store.errors import UnusableInbox
from .auth import LOCKED, WRONG_TOKEN, Access, Gate, Headers, Rules
from .forms import Forms
from .pages import Pages
from .rendering import Renderer


def make_app(path: str, rules: Rules, limits: Limits) -> Starlette:
    """Return the site of the inbox at `path`. `limits` are those of the verdict."""
    access = Access(rules)
    renderer = Renderer(path, access)
    pages = Pages(path, renderer, limits)
    forms = Forms(path, renderer, access)
    routes: list[BaseRoute] = [
        Route("/", pages.overview),
        Route("/elements/{state}", pages.elements),
        Route("/elements/{state}/{file}", pages.element),
        Route("/elements/{state}/{file}/payload", pages.download),
        Route("/failed", forms.change_failed, methods=["POST"]),
        Route("/pause", forms.pause, methods=["POST"]),
        Route("/resume", forms.resume, methods=["POST"]),
        Route("/unlock", forms.unlock, methods=["GET", "POST"]),
    ]
    static = Mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    errors = _Errors(renderer)
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: errors.refused,
        UnusableInbox: errors.unusable,
        OSError: errors.unusable,
    }
    answers = _Answers(renderer, access)
    middleware = [
        Middleware(Headers),
        Middleware(
            SessionMiddleware,
            secret_key=secrets.token_hex(32),  # sessions end with the process
            session_cookie=f"fsinbox-{access.home[1:]}",  # (nobody else can set one of this name before)
            max_age=None,
            path=access.home,
            same_site="strict",
        ),
        Middleware(Gate, rules.hosts, answers.stranger, answers.gate),
    ]
    return Starlette(
        routes=[*routes, static, Mount(access.home, routes=routes)],
        exception_handlers=handlers,
        middleware=middleware,
    )


class _Answers:
    """What is answered before any page is."""

    def __init__(self, renderer: Renderer, access: Access) -> None:
        self._renderer = renderer
        self._access = access

    def stranger(self, request: Request) -> Response:
        """Answer a request that calls the site by a name that is not its own."""
        host = request.headers.get("host", "")
        text = f"This site does not answer to {host or 'no name'}. If that is its name, start it with "
        return self._renderer.message(request, 421, f"{text}--allow-host")

    def gate(self, request: Request) -> Response | None:
        """Answer a request that may not see anything, or that brings the token; None lets it pass."""
        rules = self._access.rules
        path = request.url.path.removeprefix(self._access.base(request))
        token = request.query_params.get("token")
        if token is not None and rules.asks:
            # A redirect, so that the token leaves the address.
            if self._access.admit(request, token):
                return RedirectResponse(f"{self._access.home}/{path.lstrip('/')}", 303)
            return self._renderer.message(request, 403, WRONG_TOKEN)
        open_to_all = path == "/unlock" or path.startswith("/static/")
        if rules.private and not open_to_all and self._access.of(request) is None:
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
            text = "There is no such page (if the site was started anew, open the address printed then)"
        return self._renderer.message(request, error.status_code, text, error.headers)

    def unusable(self, request: Request, error: Exception) -> Response:
        """Say why the inbox cannot be read."""
        return self._renderer.message(request, 503, str(error))
