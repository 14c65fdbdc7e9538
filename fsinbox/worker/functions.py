"""Handlers written in Python: `module:func`, called as func(key, value) or func(element), plain or async."""

import asyncio
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from ..element import Element
from ..store.errors import InvalidPayload, Reject, TryLater
from .outcome import DONE, HandlerError, Outcome


def load_function(spec: str) -> "FunctionHandler":
    """Import `module:func` (func may be dotted), the working directory included. Raises HandlerError.

    A name without a colon is that of an entry point of an installed package, in the group "fsinbox.handlers".
    """
    if ":" not in spec:
        spec = _installed(spec)
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise HandlerError(f"handler {spec!r} is not of the form module:func")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            raise HandlerError(
                f"cannot import {module_name!r}: no such module in {os.getcwd()} or on sys.path"
            ) from error
        raise HandlerError(f"importing {module_name!r} failed:\n{traceback.format_exc()}") from error
    except (Exception, SystemExit) as error:
        raise HandlerError(f"importing {module_name!r} failed:\n{traceback.format_exc()}") from error
    for name in path.split("."):
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise HandlerError(f"{module_name!r} has no {path!r}") from error
    if not callable(target):
        raise HandlerError(f"{spec} is {type(target).__name__}, not a function")
    return FunctionHandler(spec, target)


def _installed(name: str) -> str:
    """Return the `module:func` that an installed package offers by this name. Raises HandlerError."""
    from importlib.metadata import entry_points

    offers = {offer.name: offer.value for offer in entry_points(group="fsinbox.handlers")}
    if name not in offers:
        raise HandlerError(
            f"handler {name!r} is not of the form module:func, and no installed package has one of that name "
            f"(there are: {', '.join(sorted(offers)) or 'none'})"
        )
    return offers[name]


class FunctionHandler:
    """Calls a function for each element. Coroutines run in one event loop, in a thread of its own."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Raises HandlerError if the function takes neither (element) nor (key, value)."""
        self.name = name
        self._function = function
        self._takes_element = _positional(name, function) == 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def handle(self, element: Element) -> Outcome:
        try:
            arguments = (element,) if self._takes_element else (element.key, element.value)
        except InvalidPayload as error:
            return Outcome("reject", str(error), str(error))
        except OSError as error:
            return Outcome("retry", f"cannot read its payload: {error}", f"cannot read its payload: {error}")
        except MemoryError:
            why = (
                f"its payload, {element.size} bytes, is too large for the memory: take func(element), and "
                "read element.path"
            )
            return Outcome("reject", why, why)
        try:
            result = self._function(*arguments)
            if inspect.isawaitable(result):
                raised = asyncio.run_coroutine_threadsafe(_outcome_of(result), self._running_loop()).result()
                if raised:
                    raise raised
        except Reject as error:
            return Outcome("reject", f"rejected: {error}", traceback.format_exc())
        except TryLater as error:
            return Outcome("later", f"not now: {error}", traceback.format_exc())
        except InvalidPayload as error:  # func(element) that asked for element.value
            return Outcome("reject", str(error), traceback.format_exc())
        except BaseException as error:  # noqa: BLE001 - a handler's sys.exit() ends the element, not the consumer
            summary = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
            return Outcome("retry", summary, traceback.format_exc())
        return DONE

    def stop_now(self) -> None:
        loop = self._loop
        if loop:
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="fsinbox-asyncio", daemon=True).start()
            return self._loop


async def _outcome_of(awaitable: Any) -> BaseException | None:
    """Return what it raised: raised in the event loop, a sys.exit() would end the loop."""
    try:
        await awaitable
    except BaseException as error:  # noqa: BLE001 - the same
        return error
    return None


def _positional(name: str, function: Callable[..., Any]) -> int:
    """Return with how many arguments to call the function: 1 (element) or 2 (key, value). One it must be
    given decides."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return 2  # a built-in that does not tell
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = sum(p.kind in positional and p.default is p.empty for p in signature.parameters.values())
    for count in (1, 2) if needed == 1 else (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    raise HandlerError(f"{name}{signature} can be called neither as func(key, value) nor as func(element)")
