"""The pages that change something. Who may use them is decided in auth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operate.rows import Row, row_of
from ..operate.steering import Steering
from ..store import control
from ..store.layout import Layout
from .auth import WRONG_TOKEN, Access, form
from .rendering import Renderer

_OUTCOMES = {
    "queued": "queued again",
    "newer": "skipped (a newer value of the key is waiting, in flight or deferred)",
    "foreign": "skipped (not a regular file)",
    "gone": "not there any more",
}
"""Outcome of a retry -> what is said of it."""

_LEFT = {"gone": "not there any more", "full": "skipped (a directory with something in it)"}
"""The same for a discard that removed nothing."""


class Forms:
    """The forms of one inbox."""

    def __init__(self, path: str, renderer: Renderer, access: Access) -> None:
        self._path = path
        self._renderer = renderer
        self._access = access

    async def unlock(self, request: Request) -> Response:
        """Take the token."""
        if request.method == "POST":
            self._access.check_origin(request)
            fields = dict(await form(request))
            if self._access.rules.asks and self._access.admit(request, fields.get("token", "").strip()):
                return RedirectResponse(f"{self._access.home}/", 303)
            raise HTTPException(403, WRONG_TOKEN)
        return self._renderer.page(request, "unlock.html", None)

    async def change_failed(self, request: Request) -> Response:
        """Retry or discard failed elements: those that are ticked, or all that were shown."""
        fields = await self._access.change(request)
        values = dict(fields)
        wanted = "shown" if values.get("all") else "file"
        rows = [row for name, file in fields if name == wanted and (row := row_of("failed", "failed", file))]
        if not rows:
            raise HTTPException(
                400, "No element was chosen, so nothing was changed: tick some elements, or choose all shown"
            )
        if values.get("do") == "retry":
            notice = await run_in_threadpool(self._retry, rows)
        elif "confirmed" in values:
            notice = await run_in_threadpool(self._discard, rows)
        else:
            return self._renderer.page(request, "discard.html", None, rows=rows)
        return self._done(request, "/elements/failed", notice)

    async def pause(self, request: Request) -> Response:
        """Pause the consumers."""
        await self._access.change(request)
        await run_in_threadpool(self._with_layout, control.pause)
        text = "Paused. Consumers take nothing until they are resumed; elements in flight are finished."
        return self._done(request, "/", text)

    async def resume(self, request: Request) -> Response:
        """Resume the consumers."""
        await self._access.change(request)
        await run_in_threadpool(self._with_layout, control.resume)
        return self._done(request, "/", "Resumed.")

    def _with_layout(self, what: Callable[[Layout], object]) -> None:
        with closing(Layout(self._path, create=False)) as layout:
            what(layout)

    def _retry(self, rows: list[Row]) -> str:
        with Steering(self._path) as steering:
            outcomes = [steering.retry(row) for row in rows]
        found = [f"{outcomes.count(one)} {text}" for one, text in _OUTCOMES.items() if one in outcomes]
        return "; ".join(found) + "."

    def _discard(self, rows: list[Row]) -> str:
        with Steering(self._path) as steering:
            outcomes = [steering.discard(row) for row in rows]
        found = [f"{outcomes.count('discarded')} discarded"]
        found += [f"{outcomes.count(one)} {text}" for one, text in _LEFT.items() if one in outcomes]
        return "; ".join(found) + "."

    def _done(self, request: Request, to: str, notice: str) -> Response:
        request.session["notice"] = notice
        return RedirectResponse(self._access.base(request) + to, 303)
