"""A run of the real worker in this process, for tests of handlers: no waiting, and an account of what became
of each element."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..element import Element
from ..inbox import Inbox
from ..worker.backoff import Backoff, Retries
from ..worker.functions import FunctionHandler, load_function
from ..worker.observer import Observer
from ..worker.outcome import Handler, Outcome
from ..worker.runner import Runner

PATIENCE = 100
"""How often a handler may say TryLater to one element before it fails: a back-off would wait, a test must
end."""


@dataclass(slots=True)
class Handled:
    """What became of the elements, by key, in the order in which they ended."""

    acknowledged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> why: the traceback, as failed/ keeps it."""
    superseded: list[str] = field(default_factory=list)
    """Attempts that failed when a newer value of their key waited already."""
    attempts: Counter[str] = field(default_factory=Counter)
    """How often each key was handed to the handler."""


def handle_all(
    handler: Callable[..., Any] | Handler | str, inbox: Inbox, *, concurrency: int = 1, max_attempts: int = 5
) -> Handled:
    """Have `handler` work through `inbox` until nothing waits, as `fsinbox consume --drain` does, but wait
    out no back-off.

    handler       what --handler takes ("module:func", or a name), the function itself, or a
                  worker.outcome.Handler
    concurrency   how many at once
    max_attempts  then an element goes to failed/

    Call it in the main thread. Raises WrongState if as many elements are in flight as may be,
    worker.outcome.HandlerError.
    """
    if isinstance(handler, str):
        handler = load_function(handler)
    elif callable(handler):
        handler = FunctionHandler(getattr(handler, "__qualname__", repr(handler)), handler)
    notes = _Notes()
    before = inbox.max_inflight
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    runner = Runner(
        inbox,
        _Impatient(handler),
        concurrency=concurrency,
        retries=Retries(max_attempts, backoff=Backoff(0, 0)),
        drain=True,
        observers=[notes],
    )
    inbox.max_inflight = max(before, concurrency)
    try:
        runner.run()
    finally:
        inbox.max_inflight = before
    if runner.stopped_by_signal:
        for number, previous in handlers.items():
            signal.signal(number, previous)
        raise KeyboardInterrupt
    return notes.handled


class _Impatient:
    """Hands on to another handler, and fails an element that is put off too often."""

    def __init__(self, handler: Handler) -> None:
        self.name = handler.name
        self.stop_now = handler.stop_now
        self.interrupt = handler.interrupt
        self.interruptible = handler.interruptible
        self.began = handler.began
        self._handler = handler
        self._put_off: Counter[int] = Counter()

    def handle(self, element: Element) -> Outcome:
        outcome = self._handler.handle(element)
        if outcome.kind != "later":
            return outcome
        self._put_off[element.seq] += 1
        if self._put_off[element.seq] < PATIENCE:
            return outcome
        why = (
            f"it was put off {PATIENCE} times, and nothing else is left that could change that: "
            f"{outcome.summary}"
        )
        return Outcome("reject", why, f"{why}\n{outcome.detail}")


class _Notes(Observer):
    def __init__(self) -> None:
        self.handled = Handled()

    def started(self, element: Element, latency: float | None) -> None:
        self.handled.attempts[element.key] += 1

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        if became == "acknowledged":
            self.handled.acknowledged.append(element.key)
        elif became == "failed":
            self.handled.failed[element.key] = outcome.detail
        elif became == "superseded":
            self.handled.superseded.append(element.key)
