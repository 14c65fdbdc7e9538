"""A place between fsinbox and the operating system: each call that the package's modules make to `os`,
`fcntl` or filelock's descriptor lock goes through a hook, which may look, fail it, do a part of it, or die.

    def hook(name, call, arguments, more):      # name: "rename"; call: the real function
        return call(*arguments, **more)

    with intercepted(hook):
        inbox.add("a", 1)

Nothing is imitated: what the hook lets through is done by the real system. Two hooks that are often wanted:

    with refusing(write=errno.ENOSPC): ...            # each such call fails
    with meanwhile("rename", lambda: path.unlink()): ...    # just before the first such call, somebody else
    does something
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import filelock

import fsinbox
from fsinbox.store import exchanging

Hook = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

NO_CALLS = frozenset(
    "fspath fsencode fsdecode major getpid geteuid urandom cpu_count WIFEXITED register_at_fork uname "
    "_exit".split()
)
"""Functions of os that are no file operation."""


class _Between:
    """Stands for a module: functions go through the hook, all else is the module's own."""

    def __init__(self, module: ModuleType, hook: Hook) -> None:
        self._module = module
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if callable(value) and not isinstance(value, type) and name not in NO_CALLS:
            hook, function = self._hook, value

            def value(*arguments: Any, **more: Any) -> Any:
                return hook(name, function, arguments, more)

        self.__dict__[name] = value
        return value


@cache
def modules() -> list[ModuleType]:
    """Return every module of the package that works on files: all but those of the command line and the
    workers."""
    for module in pkgutil.walk_packages(fsinbox.__path__, "fsinbox."):
        if _works_on_files(module.name) and not module.ispkg:
            importlib.import_module(module.name)
    return [module for name, module in sys.modules.items() if _works_on_files(name)]


def _works_on_files(name: str) -> bool:
    first, _, rest = name.removeprefix("fsinbox.").partition(".")
    storeys = ("store", "consumer", "operate", "doctor")
    return name.startswith("fsinbox.") and first != "__main__" and (not rest or first in storeys)


@contextmanager
def intercepted(hook: Hook) -> Iterator[None]:
    """While this lasts, the package's calls go through the hook."""
    stand_ins = {"os": _Between(os, hook), "fcntl": _Between(fcntl, hook)}
    lock = _Between(filelock, hook).lock_descriptor  # type: ignore[arg-type]
    patches = [
        mock.patch.object(module, name, stand_in)
        for module in modules()
        for name, stand_in in stand_ins.items()
        if name in vars(module) and vars(module)[name] in (os, fcntl)
    ]
    patches.append(mock.patch.object(filelock, "lock_descriptor", lock))
    exchange = _Between(exchanging, hook).exchange  # type: ignore[arg-type]
    patches.append(mock.patch.object(exchanging, "exchange", exchange))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


@contextmanager
def refusing(
    *, when: Callable[..., bool] = lambda *_: True, times: int | None = None, **errors: int
) -> Iterator[None]:
    """While this lasts, the named calls fail with these errors of errno: those for whose arguments `when`
    holds, or the first `times` of them. Each named call must have failed at least once.
    """
    hits: list[str] = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name not in errors or not when(*arguments) or (times is not None and len(hits) >= times):
            return call(*arguments, **more)
        hits.append(name)
        if name == "close":
            call(*arguments)  # on Linux the descriptor is gone, whatever close says
        raise OSError(errors[name], os.strerror(errors[name]))

    with intercepted(hook):
        yield
    assert set(hits) == set(errors), (
        f"these were to be refused, and were not called: {set(errors) - set(hits)}"
    )


@contextmanager
def meanwhile(
    name: str, act: Callable[[], object], *, when: Callable[..., bool] = lambda *_: True
) -> Iterator[None]:
    """While this lasts, `act` is done once: just before the first call of this name for whose arguments
    `when` holds."""
    hits: list[str] = []

    def hook(called: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if called == name and not hits and when(*arguments):
            hits.append(name)
            act()
        return call(*arguments, **more)

    with intercepted(hook):
        yield
    assert hits, f"{name} was not called"


DIED = 9
"""How a process ends that was to die."""


@contextmanager
def dying_at(fatal: int) -> Iterator[None]:
    """While this lasts, this process ends at that call, the first being 1: with DIED."""
    calls: list[str] = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls.append(name)
        if len(calls) == fatal:
            os._exit(DIED)
        return call(*arguments, **more)

    with intercepted(hook):
        yield
