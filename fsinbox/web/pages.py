"""The pages that only show. Each reads the inbox anew; nothing of it is remembered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..operate.reasons import summary
from ..operate.report import Limits
from ..operate.rows import Row, folder_of, reason
from ..store.files import open_for_reading
from ..store.layout import Layout
from . import listing, payload, version
from .listing import Glance, Narrowed
from .overview import overview
from .rendering import Renderer, quoted

_REASON_SHOWN = 64 * 1024
"""Characters of a reason on an element's page ..."""

_REASON_LISTED = 8 * 1024
"""... and in a list."""

_PIECE = 1 << 20
"""Bytes of a download that are read at once."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an element failed. `text` is the end of it, where a traceback names the error; `summary`: in one
    line; `cut`: there is more than `text`."""

    text: str
    summary: str
    cut: bool


class Pages:
    """The pages of one inbox."""

    def __init__(self, path: str, renderer: Renderer, limits: Limits) -> None:
        self._path = path
        self._renderer = renderer
        self._limits = limits

    def overview(self, request: Request) -> Response:
        """The first page."""
        with closing(Glance(self._path)) as layout:
            # The version before the figures: what changes meanwhile is seen next.
            tag = _tag(version.of_overview(layout, self._renderer.secret(request)))
            if _is_known(request, tag):
                return _unchanged(tag)
            figures = overview(layout, self._limits)
            return self._renderer.page(request, "overview.html", layout, tag=tag, figures=figures)

    def elements(self, request: Request) -> Response:
        """The elements in a state, page by page."""
        narrowed = Narrowed(request.query_params.get("q", ""), request.query_params.get("why", ""))
        digits = request.query_params.get("page", "1")
        number = int(digits[:9]) if digits.isascii() and digits.isdecimal() else 1
        with closing(Glance(self._path)) as layout:
            state = _state(layout, request)
            tag = _tag(version.of_list(layout, self._renderer.secret(request), state))
            if _is_known(request, tag):
                return _unchanged(tag)
            page = listing.page(layout, state, narrowed, number)
            rows = [(row, *looked) for row in page.rows if (looked := row.look(layout))]
            reasons = {
                row.file: _reason(layout, row, _REASON_LISTED) for row in page.rows if state == "failed"
            }
            return self._renderer.page(
                request,
                "elements.html",
                layout,
                tag=tag,
                state=state,
                narrowed=narrowed,
                page=page,
                more=folder_of(state) in layout.cut,
                rows=rows,
                reasons=reasons,
                address=lambda number: "?" + urlencode(narrowed.query | {"page": number}),
            )

    def element(self, request: Request) -> Response:
        """One element, its payload, and why it failed."""
        as_stored = "stored" in request.query_params
        with closing(Glance(self._path)) as layout:
            row = _located(request, layout)
            tag = _tag(version.of_element(layout, self._renderer.secret(request), row))
            if _is_known(request, tag):
                return _unchanged(tag)
            looked = row.look(layout)
            try:
                shown, trouble = payload.read(layout, row, as_stored=as_stored), ""
            except OSError as error:
                shown, trouble = None, error.strerror or str(error)
            return self._renderer.page(
                request,
                "element.html",
                layout,
                tag=tag,
                row=row,
                due=looked and looked[1],
                payload=shown,
                trouble=trouble,
                reason=_reason(layout, row, _REASON_SHOWN) if row.state == "failed" else None,
                as_stored=as_stored,
            )

    def download(self, request: Request) -> Response:
        """A payload, byte for byte."""
        with closing(Glance(self._path)) as layout:
            row = _located(request, layout)
            fd = open_for_reading(layout, row.folder, row.file)
        headers = {
            "Content-Length": str(os.fstat(fd).st_size),
            # (An element's name has no character that would need quoting here.)
            "Content-Disposition": f'attachment; filename="{row.file}"',
        }
        return StreamingResponse(_pieces(fd), media_type="application/octet-stream", headers=headers)


def _tag(version: str) -> str:
    return f'"{version}"'


def _is_known(request: Request, tag: str) -> bool:
    return request.headers.get("if-none-match") == tag


def _unchanged(tag: str) -> Response:
    return Response(status_code=304, headers={"ETag": tag})


def _state(layout: Glance, request: Request) -> str:
    state: str = request.path_params["state"]
    if state not in layout.states():
        raise HTTPException(404)
    return state


def _located(request: Request, layout: Glance) -> Row:
    """Return the element that an address names. Raises HTTPException: a redirect if it is in another state
    by now."""
    state, file = _state(layout, request), request.path_params["file"]
    row = listing.locate(layout, state, file)
    if row is None:
        raise _gone(layout, state, file, request.scope["root_path"])
    return row


def _gone(layout: Glance, state: str, file: str, base: str) -> HTTPException:
    there = listing.moved_to(layout, state, file)
    if there:
        return HTTPException(303, headers={"Location": f"{base}/elements/{there.state}/{quoted(there.file)}"})
    return HTTPException(
        404, "This element is not here any more: it was acknowledged, discarded or replaced, or never existed"
    )


def _reason(layout: Layout, row: Row, most: int) -> Reason | None:
    text = reason(layout, row)
    if text is None:
        return None
    return Reason(text[-most:], summary(text)[:300], len(text) > most)


def _pieces(fd: int) -> Iterator[bytes]:
    with open(fd, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece
