"""Templates become pages. Text from the inbox is shown as text, whatever is in it: see escaping."""

from __future__ import annotations

from pathlib import Path
from time import time_ns
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..operate.rows import label
from ..operate.units import clock, moment, seconds, when
from ..store.printing import escaped
from . import listing
from .auth import LOCKED, Access
from .escaping import coded, marked
from .listing import Glance, ago


class Renderer:
    """Renders the pages of one site."""

    def __init__(self, path: str, access: Access) -> None:
        self._path = path
        self._access = access
        self._pages = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: escaped(value) if type(value) is str else value,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.filters |= {
            "marked": marked, "coded": coded, "label": label,
            "when": when, "moment": moment, "clock": clock, "seconds": seconds, "size": _size,
            "ago": ago, "until": lambda due: -ago(due),
            "quoted": quoted, "query": urlencode, "number": "{:,}".format,
        }  # fmt: skip

    def page(
        self,
        request: Request,
        template: str,
        layout: Glance | None,
        status: int = 200,
        tag: str = "",
        **values: Any,
    ) -> Response:
        """Return a page; `values` are for its template, `tag` is its ETag. A session's notice is shown once:
        not to the script of an open page, which shows only what changes."""
        rules = self._access.rules
        session = self._access.of(request)
        base = self._access.base(request)
        notice = session.pop("notice", "") if session and "if-none-match" not in request.headers else ""
        text = self._pages.get_template(template).render(
            path="" if status == 421 or (rules.private and session is None) else self._path,
            most=listing.MOST,
            patience=listing.PATIENCE,
            states=layout.states() if layout else [],
            rules=rules,
            session=session,
            notice=notice,
            may_change=rules.changes and session is not None,
            base=base,
            here=request.url.path.removeprefix(base),
            tag=tag,
            now=time_ns(),
            **values,
        )
        return HTMLResponse(text, status, {"ETag": tag} if tag else None)

    def secret(self, request: Request) -> str:
        """Return the secret of a request's session; "" if it has none."""
        return (self._access.of(request) or {"secret": ""})["secret"]

    def message(self, request: Request, status: int, text: str, headers: Any = None) -> Response:
        """Return a page that says one thing."""
        response = self.page(
            request, "message.html", None, status, text=text, locked=text == LOCKED, code=status
        )
        response.headers.update(headers or {})
        return response


def quoted(file: str) -> str:
    """Return a file name as a part of an address."""
    return quote(file, safe="")


def _size(length: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if length >= size:
            return f"{length / size:.1f} {unit}"
    return f"{length} bytes" if length != 1 else "1 byte"
