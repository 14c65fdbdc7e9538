"""The pages that change something. Who may use them is decided in auth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operate.rows import row_of
from ..store import control
from ..store.layout import Layout
from . import listing
from .auth import WRONG_TOKEN, Access, form
from .bulk import Plan, Plans
from .listing import Glance, Narrowed
from .rendering import Renderer

_NOTHING = "No element was chosen, so nothing was changed: tick some elements, or choose all shown"

_UNREAD = (
    "No element was found whose reason fits, so nothing was changed; but reading the reasons took too long, "
    "and {:,} older elements were not looked at: filter by the key as well to reach them"
)

_ONCE = "This was done already, or forgotten, so nothing was changed: choose the elements again"


class Forms:
    """The forms of one inbox."""

    def __init__(self, path: str, renderer: Renderer, access: Access) -> None:
        self._path = path
        self._renderer = renderer
        self._access = access
        self._plans = Plans()

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
        """Retry or discard failed elements: those that are ticked, all that were shown, or all that match."""
        fields = await self._access.change(request)
        values = dict(fields)
        if "plan" in values:
            plan = self._plans.take(values["secret"], values["plan"])
            if plan is None:
                raise HTTPException(400, _ONCE)
            return await self._carry_out(request, plan)
        plan = await run_in_threadpool(self._planned, fields, values)
        if not plan.rows:
            raise HTTPException(400, _UNREAD.format(plan.unread) if plan.unread else _NOTHING)
        if plan.do == "retry" and not plan.narrowed:
            return await self._carry_out(request, plan)
        return self._ask(request, plan)

    def _planned(self, fields: list[tuple[str, str]], values: dict[str, str]) -> Plan:
        """Return what a form asks for."""
        many = values.get("matching", "")
        do = "retry" if "retry" in (many, values.get("do")) else "discard"
        if not many:
            wanted = "shown" if values.get("all") else "file"
            files = [file for name, file in fields if name == wanted]
            return Plan(do, [row for file in files if (row := row_of("failed", "failed", file))])
        narrowed = Narrowed(values.get("q", ""), values.get("why", ""))
        with closing(Glance(self._path)) as layout:
            found = listing.matching(layout, "failed", narrowed)
            rows = [row for place in found.places if (row := row_of("failed", *place))]
            return Plan(do, rows, narrowed, found.unread, "failed" in layout.cut)

    async def _carry_out(self, request: Request, plan: Plan) -> Response:
        await run_in_threadpool(plan.carry_out, self._path)
        return self._ask(request, plan) if plan.rows else self._done(request, "/elements/failed", plan.says())

    def _ask(self, request: Request, plan: Plan) -> Response:
        name = self._plans.keep(request.session["secret"], plan)
        return self._renderer.page(request, "confirm.html", None, plan=plan, name=name)

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

    def _done(self, request: Request, to: str, notice: str) -> Response:
        request.session["notice"] = notice
        return RedirectResponse(self._access.base(request) + to, 303)
