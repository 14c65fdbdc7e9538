"""Handlers written in Python: `module:func`, called as func(key, value) or func(element), plain or async."""

import asyncio
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from ..element import Element
from ..store.errors import InvalidPayload, Reject, TryLater
from .describing import describe
from .outcome import DONE, HandlerError, Outcome
from .saying import working_on

_EXAMPLE = "as tasks:handle is for handle() in tasks.py"

_FORMS = {1: ("element",), 2: ("key", "value")}
"""Number of arguments -> what they are. A parameter of such a name must stand in such a place."""


def load_function(spec: str, *, batches: bool = False) -> "FunctionHandler":
    """Import `module:func` (func may be dotted), from the working directory, too. Raises HandlerError.

    `batches`: it is called as func(elements).

    A name without a colon is that of an entry point of an installed package, in the group "fsinbox.handlers".
    """
    if ":" not in spec:
        spec = _installed(spec)
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise HandlerError(f"handler {spec!r} is not of the form module:func, {_EXAMPLE}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    target = _imported(module_name)
    for name in path.split("."):
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise HandlerError(f"{module_name!r} has no {path!r}{_meant(target, name)}") from error
    if not callable(target):
        raise HandlerError(f"{spec} is {type(target).__name__}, not a function")
    return FunctionHandler(spec, target, batches=batches)


def _meant(target: Any, name: str) -> str:
    """Return what may have been meant, in words: the function of the closest name."""
    from difflib import get_close_matches

    names = [one for one in dir(target) if not one.startswith("_") and callable(getattr(target, one, None))]
    close = get_close_matches(name, names, 1)
    return f": did you mean {close[0]!r}?" if close else ": name a function that is defined there"


def _imported(name: str) -> Any:
    """Return a module. Raises HandlerError, with the traceback unless there simply is no such module."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        if missing and (name == missing or name.startswith(missing + ".")):
            raise HandlerError(
                f"cannot import {name!r}: no such module in {os.getcwd()} or on sys.path"
            ) from error
        raise HandlerError(f"importing {name!r} failed:\n{_traceback_in_it(error)}") from error


def _traceback_in_it(error: BaseException) -> str:
    """Return the traceback from the module on that was imported: no frame is ours, or importlib's."""
    found = error.__traceback__
    while found and _imports(found.tb_frame.f_code.co_filename):
        found = found.tb_next
    return "".join(traceback.format_exception(error.with_traceback(found))).rstrip("\n")


def _imports(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


def _installed(name: str) -> str:
    """Return the `module:func` that an installed package offers under this name. Raises HandlerError."""
    from importlib.metadata import entry_points

    offers = {offer.name: offer.value for offer in entry_points(group="fsinbox.handlers")}
    if name not in offers:
        known = f" (there are: {', '.join(sorted(offers))})" if offers else ""
        raise HandlerError(
            f"handler {name!r} is not of the form module:func, {_EXAMPLE}, and no installed package has one "
            f"of that name{known}"
        )
    return offers[name]


class FunctionHandler:
    """Calls a function for each element. Coroutines run in one event loop, in a thread of its own."""

    def __init__(self, name: str, function: Callable[..., Any], *, batches: bool = False) -> None:
        """Raises HandlerError for a generator, and where it cannot be told what to call it with."""
        self.name = name
        self._function = function
        _refuse_generator(name, function)
        if batches:
            _check_batches(name, function)
        self._takes_element = batches or _arguments(name, function) == 1
        self.interruptible = _is_async(function)
        self._tasks: dict[Element, asyncio.Task[Any]] = {}
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
                f"its payload, {element.size} bytes, does not fit into memory: take func(element), and read "
                "from element.open()"
            )
            return Outcome("reject", why, why)
        return self._outcome([element], arguments)

    def handle_batch(self, elements: list[Element]) -> Outcome:
        return self._outcome(elements, (elements,))

    def _outcome(self, elements: list[Element], arguments: tuple[Any, ...]) -> Outcome:
        process = os.getpid()
        with working_on(*elements):
            raised = self._call(elements[0], arguments)
        _end_if_forked(process, raised)
        return DONE if raised is None else _judge(raised)

    def interrupt(self, element: Element, *, force: bool) -> bool:
        task = self._tasks.get(element)
        if task:
            task.get_loop().call_soon_threadsafe(task.cancel)
        return task is not None

    def began(self, element: Element) -> float:
        return 0.0

    def stop_now(self) -> None:
        loop = self._loop
        if loop:
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])

    def _call(self, element: Element, arguments: tuple[Any, ...]) -> BaseException | None:
        """Return what it raised: a handler's sys.exit() ends its attempt, not the consumer."""
        try:
            result = self._function(*arguments)
            if result is None:
                return None
            if inspect.isawaitable(result):
                work = self._raised_by(element, result)
                return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                return TypeError("it returned a generator, which nobody runs: return when the work is done")
        except BaseException as error:  # noqa: BLE001 - whatever it is
            return error
        return None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                work = partial(_run_for_ever, self._loop)
                threading.Thread(target=work, name="fsinbox-asyncio", daemon=True).start()
            return self._loop

    async def _raised_by(self, element: Element, awaitable: Any) -> BaseException | None:
        """Return what it raised: in the event loop, a sys.exit() would end the loop."""
        process = os.getpid()
        error = None
        task = asyncio.current_task()
        assert task
        self._tasks[element] = task
        try:
            await awaitable
        except BaseException as raised:  # noqa: BLE001 - whatever it is
            error = raised
        del self._tasks[element]
        _end_if_forked(process, error)
        return error


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> NoReturn:
    """Run the loop, again when a handler has stopped it: others still wait for theirs."""
    while True:
        loop.run_forever()


# --- what became of it --------------------------------------------------------------------------------


def _judge(error: BaseException) -> Outcome:
    """Return what becomes of an element whose handler raised `error`."""
    _, text, detail, summary = describe(error)
    if isinstance(error, Reject):
        return Outcome("reject", f"rejected: {text}", detail)
    if isinstance(error, TryLater):
        return Outcome("later", f"not now: {text}", detail)
    if isinstance(error, InvalidPayload):  # func(element) that asked for element.value
        return Outcome("reject", text, detail)
    return Outcome("retry", summary, detail)


def _end_if_forked(process: int, error: BaseException | None) -> None:
    """End this process if the handler has forked and this is the child: it must not become a second
    worker. `process` is the worker's."""
    if os.getpid() != process:
        _end_child(error)


def _end_child(error: BaseException | None) -> NoReturn:
    """End a forked child as Python would end a program: by its exit status, with its traceback."""
    status = 1 if error else 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)  # noqa: T201 - as Python does
    elif error:
        sys.stderr.write(describe(error).full)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(status & 0xFF)


# --- what it may be called with -----------------------------------------------------------------------


def _refuse_generator(name: str, function: Callable[..., Any]) -> None:
    """Raise HandlerError for a function that would only make a generator: its body would never run."""
    for what in (function, getattr(function, "__call__", None)):  # noqa: B004 - an object's
        if inspect.isgeneratorfunction(what) or inspect.isasyncgenfunction(what):
            raise HandlerError(
                f"{name} is a generator (it has `yield`), so calling it would not run it: "
                "return when the work is done"
            )


def _is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call of it makes a coroutine."""
    called = getattr(function, "__call__", None)  # noqa: B004 - an object's
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _arguments(name: str, function: Callable[..., Any]) -> int:
    """Return with how many arguments to call the function: 1 (element) or 2 (key, value).

    The number of its parameters decides, and their names. Raises HandlerError if they do not.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name} does not tell its parameters: {_WRAP}") from error
    possible = [count for count in _FORMS if _takes(signature, count)]
    if not possible:
        raise HandlerError(
            f"{name}{signature} can be called neither as func(key, value) nor as func(element)"
        )
    marks = {count: _named(signature, count) for count in possible}
    for wanted in ("named", "possible"):
        found = [count for count, mark in marks.items() if mark == wanted]
        if len(found) == 1:
            return found[0]
    raise HandlerError(
        f"{name}{signature}: it is not clear whether it takes (key, value) or (element): name its parameters "
        f"so, or {_WRAP}"
    )


def _check_batches(name: str, function: Callable[..., Any]) -> None:
    """Raise HandlerError if the function cannot be called as func(elements)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # the call will tell
    if not _takes(signature, 1):
        raise HandlerError(f"{name}{signature} cannot be called as func(elements), as --batch does")


_WRAP = "write a function around it, def handle(key, value) or def handle(element)"


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _named(signature: inspect.Signature, count: int) -> str:
    """Tell what the names of the first parameters say to a call with `count` arguments: "named" so,
    "possible", or "wrong"."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name.strip("_") for one in signature.parameters.values() if one.kind in positional]
    known = {word for form in _FORMS.values() for word in form}
    pairs = [(name, word) for name, word in zip(names, _FORMS[count], strict=False) if name in known]
    if any(name != word for name, word in pairs):
        return "wrong"
    return "named" if pairs else "possible"
