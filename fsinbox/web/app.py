"""The site: its pages, and what their forms do. Every page reads the inbox for itself; nothing is remembered
of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..operate import survey
from ..operate.report import Limits
from ..operate.steering import Steering
from ..operate.units import seconds, when
from ..store import control, files
from ..store.errors import UnusableInbox
from ..store.layout import Layout
from . import look, payload
from .guard import LOCKED, Guard, Keys, Rules, form
from .odd import coded, marked, plain
from .overview import overview

_HERE = Path(__file__).parent

_REASON_SHOWN = 64 * 1024
"""Characters of a reason on an element's page ..."""

_REASON_LISTED = 8 * 1024
"""... and in a list."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an element failed: what was kept, from its end, where a traceback says it; and its last line."""

    text: str
    summary: str
    cut: bool


def make_app(path: str, rules: Rules, limits: Limits, port: int) -> Guard:
    """Return the site of the inbox at `path`. `limits` are those of the verdict.

    `port` tells its cookie from those of other sites on this host.
    """
    site = _Site(path, rules, limits, port)
    routes = [
        Route("/", site.overview),
        Route("/live", site.live),
        Route("/elements/{state}", site.elements),
        Route("/elements/{state}/{file}", site.element),
        Route("/elements/{state}/{file}/payload", site.download),
        Route("/failed", site.change_failed, methods=["POST"]),
        Route("/pause", site.pause, methods=["POST"]),
        Route("/resume", site.resume, methods=["POST"]),
        Route("/unlock", site.unlock, methods=["GET", "POST"]),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: site.refused,
        UnusableInbox: site.unusable,
        OSError: site.unusable,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), site.gate)


class _Site:
    """Its methods are the pages."""

    def __init__(self, path: str, rules: Rules, limits: Limits, port: int) -> None:
        self._path = path
        self._limits = limits
        self._keys = Keys(rules, port)
        self._pages = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: plain(value) if type(value) is str else value,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.filters |= {
            "marked": marked,
            "coded": coded, "seconds": seconds, "when": when, "size": _size, "quoted": _quoted,
            "query": urlencode,
            "ago": look.ago, "until": lambda due: -look.ago(due),
        }  # fmt: skip

    # --- before any page ---

    def gate(self, request: Request) -> Response | None:
        """Answer what may not see anything, and whoever brings the token."""
        host = request.headers.get("host", "")
        if not self._keys.knows(host):
            text = (
                f"This site does not answer to {host or 'no name'}: if that is its name, start it with "
                "--allow-host"
            )
            return self._message(request, 421, text)
        rules = self._keys.rules
        token = request.query_params.get("token")
        if token is not None and rules.asks:
            # So that it does not stay in the address. (`//host/` would lead to another site.)
            response: Response = RedirectResponse("/" + request.url.path.lstrip("/"), 303)
            if self._keys.admit(response, token):
                return response
            return self._message(
                request, 403, "This is not the token that was printed when the site was started"
            )
        open_to_all = request.url.path == "/unlock" or request.url.path.startswith("/static/")
        if rules.private and not open_to_all and self._keys.session(request) is None:
            return self._message(request, 403, LOCKED)
        return None

    # --- pages ---

    def overview(self, request: Request) -> Response:
        """The first page."""
        return self._overview(request, "overview.html")

    def live(self, request: Request) -> Response:
        """The part of it that changes."""
        return self._overview(request, "live.html")

    def _overview(self, request: Request, template: str) -> Response:
        with closing(look.Glance(self._path)) as layout:
            return self._page(request, template, layout, figures=overview(layout, self._limits))

    def elements(self, request: Request) -> Response:
        """The elements in a state, in pages."""
        text = request.query_params.get("q", "")
        digits = request.query_params.get("page", "1")
        number = int(digits[:9]) if digits.isascii() and digits.isdecimal() else 1
        with closing(look.Glance(self._path)) as layout:
            state = _state(layout, request)
            page = look.page(layout, state, text, number)
            rows = [(row, size) for row in page.rows if (size := row.size(layout)) is not None]
            reasons = {
                row.file: self._reason(layout, row, _REASON_LISTED) for row, _ in rows if state == "failed"
            }
            return self._page(
                request,
                "elements.html",
                layout,
                state=state,
                text=text,
                page=page,
                more=look.folder_of(state) in layout.cut,
                rows=rows,
                reasons=reasons,
                address=lambda number: "?" + urlencode(({"q": text} if text else {}) | {"page": number}),
            )

    def element(self, request: Request) -> Response:
        """One element, its payload, and why it failed."""
        as_stored = "stored" in request.query_params
        with closing(look.Glance(self._path)) as layout:
            row = self._located(request, layout)
            try:
                shown, trouble = payload.read(layout, row, as_stored=as_stored), ""
            except OSError as error:
                shown, trouble = None, error.strerror or str(error)
            reason = self._reason(layout, row, _REASON_SHOWN) if row.state == "failed" else None
            return self._page(
                request,
                "element.html",
                layout,
                row=row,
                payload=shown,
                trouble=trouble,
                reason=reason,
                as_stored=as_stored,
            )

    def download(self, request: Request) -> Response:
        """A payload, as it is."""
        with closing(look.Glance(self._path)) as layout:
            row = self._located(request, layout)
            fd = files.open_for_reading(layout, row.folder, row.file)
        headers = {
            "Content-Length": str(os.fstat(fd).st_size),
            # (An element's name has no character that would need quoting here.)
            "Content-Disposition": f'attachment; filename="{row.file}"',
        }
        return StreamingResponse(_pieces(fd), media_type="application/octet-stream", headers=headers)

    # --- forms ---

    async def unlock(self, request: Request) -> Response:
        """Where the token is given."""
        if request.method == "POST":
            self._keys.check_origin(request)
            fields = dict(await form(request))
            response: Response = RedirectResponse("/", 303)
            if self._keys.rules.asks and self._keys.admit(response, fields.get("token", "").strip()):
                return response
            raise HTTPException(403, "This is not the token that was printed when the site was started")
        return self._page(request, "unlock.html", None)

    async def change_failed(self, request: Request) -> Response:
        """Retry or discard failed elements: those that were chosen, or all that were shown."""
        fields = await self._keys.change(request)
        values = dict(fields)
        wanted = "shown" if values.get("all") else "file"
        files = [value for name, value in fields if name == wanted]
        rows = [row for row in (look.row_of("failed", "failed", file) for file in files) if row]
        if not rows:
            raise HTTPException(
                400,
                "No element was chosen, so nothing was changed: tick those that are meant, or choose all "
                "shown",
            )
        if values.get("do") == "retry":
            notice = await run_in_threadpool(self._retry, rows)
        elif "confirmed" in values:
            notice = await run_in_threadpool(self._discard, rows)
        else:
            return self._page(request, "discard.html", None, rows=rows)
        return self._done(request, "/elements/failed", notice)

    async def pause(self, request: Request) -> Response:
        """Have the consumers take nothing."""
        await self._keys.change(request)
        await run_in_threadpool(self._with_layout, control.pause)
        return self._done(
            request, "/", "Paused: consumers take nothing until this is resumed; what is out is finished."
        )

    async def resume(self, request: Request) -> Response:
        """Have the consumers go on."""
        await self._keys.change(request)
        await run_in_threadpool(self._with_layout, control.resume)
        return self._done(request, "/", "Resumed.")

    def _with_layout(self, what: Callable[[Layout], object]) -> None:
        with closing(look.Glance(self._path)) as layout:
            what(layout)

    def _retry(self, rows: list[survey.Row]) -> str:
        with Steering(self._path) as steering:
            outcomes = [steering.retry(row) for row in rows]
        words = {
            "queued": "queued again",
            "newer": "left alone, for a newer value of the key waits or is being worked on",
            "foreign": "left alone, for it is no regular file",
            "gone": "gone meanwhile",
        }
        return (
            "; ".join(f"{outcomes.count(one)} {text}" for one, text in words.items() if one in outcomes) + "."
        )

    def _discard(self, rows: list[survey.Row]) -> str:
        with Steering(self._path) as steering:
            gone = [steering.discard(row) for row in rows]
        return f"{sum(gone)} discarded{f'; {gone.count(False)} gone before' if not all(gone) else ''}."

    # --- what goes wrong ---

    def refused(self, request: Request, error: HTTPException) -> Response:
        """Say why not."""
        text = error.detail
        if error.status_code == 404 and text == "Not Found":
            text = "There is no such page"
        return self._message(request, error.status_code, text, error.headers)

    def unusable(self, request: Request, error: Exception) -> Response:
        """The inbox cannot be read now."""
        return self._message(request, 503, str(error))

    # --- parts ---

    def _page(
        self, request: Request, template: str, layout: look.Glance | None, status: int = 200, **values: Any
    ) -> Response:
        rules = self._keys.rules
        session = self._keys.session(request)
        notice = ""
        if session and template != "live.html":
            notice, session.notice = session.notice, ""
        text = self._pages.get_template(template).render(
            path="" if status == 421 or (rules.private and session is None) else self._path,
            most=look.MOST,
            states=layout.states() if layout else [],
            rules=rules,
            session=session,
            notice=notice,
            may_change=rules.changes and session is not None,
            here=request.url.path,
            **values,
        )
        return HTMLResponse(text, status)

    def _message(self, request: Request, status: int, text: str, headers: Any = None) -> Response:
        response = self._page(
            request, "message.html", None, status, text=text, locked=text == LOCKED, code=status
        )
        response.headers.update(headers or {})
        return response

    def _done(self, request: Request, to: str, notice: str) -> Response:
        session = self._keys.session(request)
        assert session is not None
        session.notice = notice
        return RedirectResponse(to, 303)

    def _located(self, request: Request, layout: look.Glance) -> survey.Row:
        state, file = _state(layout, request), request.path_params["file"]
        row = look.locate(layout, state, file)
        if row is None:
            raise _gone(layout, state, file)
        return row

    def _reason(self, layout: Layout, row: survey.Row, most: int) -> Reason | None:
        text = survey.reason(layout, row)
        if text is None:
            return None
        lines = text.rstrip().rpartition("\n")
        return Reason(text[-most:], lines[2][:300], len(text) > most)


def _state(layout: look.Glance, request: Request) -> str:
    state: str = request.path_params["state"]
    if state not in layout.states():
        raise HTTPException(404)
    return state


def _gone(layout: look.Glance, state: str, file: str) -> HTTPException:
    there = look.moved_to(layout, state, file)
    if there:
        return HTTPException(303, headers={"Location": f"/elements/{there.state}/{_quoted(there.file)}"})
    return HTTPException(
        404, "This element is not here any more: it was acknowledged, discarded or replaced, or never was"
    )


def _pieces(fd: int) -> Iterator[bytes]:
    with open(fd, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _quoted(file: str) -> str:
    return quote(file, safe="")


def _size(length: int) -> str:
    """Return a number of bytes as people say it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if length >= size:
            return f"{length / size:.1f} {unit}"
    return f"{length} bytes" if length != 1 else "1 byte"
