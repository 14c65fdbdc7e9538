"""Who may look, and who may change something: what is checked for each request.

The site has no users. Whoever brings the token that was printed at the start gets a session: starlette's
SessionMiddleware keeps it in a signed cookie. Cookies know no port, so the browser would send it to another
user's server on another port of this host, too: it is for paths below an unguessable one (Access.home), which
only this site's own pages name. Changes need a session; with --private, so does looking.

What starlette has nothing for is here: the token; that the Origin of a change must be this site; the secret
of a session in each form; and the headers by which no page may be framed or load anything from elsewhere.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names by which a request may call this host. (An IPv6 address has its brackets.)"""

_LARGEST_FORM = 1 << 20
"""Bytes of a form: some thousand file names."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # (with `no-referrer`, browsers do not tell the Origin of a form)
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What this site allows. `hosts`: the names by which a request may call it."""

    hosts: frozenset[str] = LOOPBACK
    changes: bool = False
    """Whoever has the token may change something."""
    private: bool = False
    """Looking needs the token, too."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def asks(self) -> bool:
        """Whether the token gives access to anything."""
        return self.changes or self.private


class Access:
    """What a request may do."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.home = f"/{secrets.token_urlsafe(16)}"
        """The path below which those who have a session see the site: the cookie is sent nowhere else, and
        no page without a session names it."""

    def of(self, request: Request) -> dict[str, str] | None:
        """Return the session of a request, or None. `secret` is in each form; `notice` is shown once."""
        return request.session if "secret" in request.session else None

    def base(self, request: Request) -> str:
        """Return what the links of the answer begin with: "" or `home`."""
        return self.home if f"{request.url.path}/".startswith(f"{self.home}/") else ""

    def admit(self, request: Request, token: str) -> bool:
        """Start a session if the token is right; tell whether it is."""
        if not _same(token, self.rules.token):
            return False
        request.session["secret"] = secrets.token_urlsafe(32)
        return True

    def check_origin(self, request: Request) -> None:
        """Raise HTTPException if a page of another site sent this request."""
        origin = request.headers.get("origin")  # (only browsers send one)
        if origin is not None and origin.partition("://")[2] != request.headers["host"]:
            raise HTTPException(403, "A page of another site sent this form, so nothing was changed")

    async def change(self, request: Request) -> list[tuple[str, str]]:
        """Return the fields of a form that may change something. Raises HTTPException for any other."""
        self.check_origin(request)
        if not self.rules.changes:
            raise HTTPException(
                403, "This site is read-only. To change something here, start it with --allow-changes"
            )
        session = self.of(request)
        if session is None:
            raise HTTPException(403, LOCKED)
        fields = await form(request)
        if not _same(dict(fields).get("secret", ""), session["secret"]):
            raise HTTPException(
                403,
                "This form is not of your session, so nothing was changed: reload the page and try again",
            )
        return fields


def _same(text: str, secret: str) -> bool:
    return secrets.compare_digest(text.encode(errors="replace"), secret.encode())


class Headers:
    """Middleware: adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Gate:
    """Middleware: gives the answer of `answer` to a request that has one, and that of `stranger` to one that
    calls the site by a name that is not of `hosts`."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        stranger: Callable[[Request], Response],
        answer: Callable[[Request], Response | None],
    ) -> None:
        self._app = app
        self._names = TrustedHostMiddleware(_trust, sorted(hosts), www_redirect=False)
        self._stranger = stranger
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._names(scope, receive, _ignore)  # (its own answer does not say how a name is added)
        request = Request(scope)
        response = self._answer(request) if scope.get(_TRUSTED) else self._stranger(request)
        await (response or self._app)(scope, receive, send)


_TRUSTED = "fsinbox.trusted"


async def _trust(scope: Scope, receive: Receive, send: Send) -> None:
    scope[_TRUSTED] = True


async def _ignore(message: Message) -> None:
    pass


LOCKED = (
    "This needs the token that was printed when the site was started: "
    "open the address that was printed with it, or unlock"
)

WRONG_TOKEN = "This is not the token that was printed when the site was started"  # noqa: S105 - it is none


async def form(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form. Raises HTTPException if it is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            raise HTTPException(413, "This form is too large: choose fewer elements at once")
    return parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True)
