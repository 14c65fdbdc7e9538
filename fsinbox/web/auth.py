"""Who may look, and who may change something: what is checked for each request.

The site has no users. Whoever brings the token that was printed at the start gets a session, which a cookie
names. Changes need a session; with --private, so does looking. The rest keeps pages of other sites from
acting through the browser of somebody who has a session: the Host must be a name of this site (else another
name could be made to point here), the Origin of a change must be this site, each form carries a secret of its
session, and no page may be framed or load anything from elsewhere.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_LARGEST_FORM = 1 << 20
"""Bytes of a form: some thousand file names."""

_MOST_SESSIONS = 100

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


@dataclass(slots=True)
class Session:
    """A visitor with the token. `secret` is in each form; `notice` is shown on the next page."""

    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    notice: str = ""


class Guard:
    """Wraps the site (ASGI): adds the headers, and gives the answer of `gate` to a request that has one."""

    def __init__(self, app: ASGIApp, gate: Callable[[Request], Response | None]) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._gate(Request(scope)) or self._app)(scope, receive, send_with_headers)


class Sessions:
    """The sessions of this site. They end with the process."""

    def __init__(self, rules: Rules, port: int) -> None:
        self.rules = rules
        # (Cookies belong to a host, whatever the port: the site of another inbox has its own.)
        self._cookie = f"fsinbox-{port}"
        self._sessions: dict[str, Session] = {}

    def of(self, request: Request) -> Session | None:
        """Return the session of a request, or None."""
        return self._sessions.get(request.cookies.get(self._cookie, ""))

    def admit(self, response: Response, token: str) -> bool:
        """Start a session with this response if the token is right; tell whether it is."""
        if not secrets.compare_digest(token.encode(errors="replace"), self.rules.token.encode()):
            return False
        name = secrets.token_urlsafe(32)
        self._sessions[name] = Session()
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        response.set_cookie(self._cookie, name, httponly=True, samesite="strict")
        return True

    def knows(self, host: str) -> bool:
        """Tell whether `host`, a request's Host with or without a port, is a name of this site."""
        try:
            return (urlsplit(f"//{host}").hostname or "") in self.rules.hosts
        except ValueError:
            return False

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
        if not secrets.compare_digest(
            dict(fields).get("secret", "").encode(errors="replace"), session.secret.encode()
        ):
            raise HTTPException(
                403,
                "This form is not of your session, so nothing was changed: reload the page and try again",
            )
        return fields


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
