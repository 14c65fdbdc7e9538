"""A worker process of `consume --processes`: what runs in it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from ..consumer.taking import Taken
from ..element import Element
from ..store.errors import InboxError, WrongState
from ..store.handle import Handle
from .messages import Incoming, packed, send
from .outcome import DONE, BatchHandler, Handler, HandlerError, Outcome
from .renewing import memory_in_use

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


Sent = tuple[Any, ...]
"""What goes through a pipe: plain values."""

_fields_of_taken = attrgetter(*(field.name for field in fields(Taken)))


@dataclass(slots=True)
class Job:
    """Elements that a worker process is to handle. `folder`: where they lie: inflight/, or a claim."""

    folder: str
    taken: list[Taken]
    is_batch: bool

    def sent(self) -> Sent:
        """Return it as it is sent."""
        return self.folder, [_fields_of_taken(taken) for taken in self.taken], self.is_batch

    @classmethod
    def received(cls, sent: Sent) -> Job:
        """Return what was sent."""
        folder, taken, is_batch = sent
        return cls(folder, [Taken(*values) for values in taken], is_batch)


@dataclass(slots=True)
class Answer:
    """What became of them."""

    outcome: Outcome
    asked: list[tuple[str, tuple[Any, ...]] | None]
    """For each, the method of Element by which the handler has ended it itself, and its arguments."""
    memory: int
    """Bytes that the process uses; 0 if that was not asked for."""

    def sent(self) -> Sent:
        """Return it as it is sent."""
        outcome = self.outcome
        texts = (outcome.kind, outcome.summary, outcome.detail)
        said = None if outcome is DONE else tuple(map(str.__str__, texts))  # (not what derives from str)
        return said, self.asked, self.memory

    @classmethod
    def received(cls, sent: Sent) -> Answer:
        """Return what was sent."""
        said, asked, memory = sent
        return cls(Outcome(*said) if said else DONE, asked, memory)


class Recording:
    """Stands in for the claim on an element in a process that is not the consumer: what it is asked for is
    done there."""

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.ended = ""
        self.asked: tuple[str, tuple[Any, ...]] | None = None

    def acknowledge(self) -> None:
        self.record("acknowledged", "ack")

    def requeue(self, delay: float = 0.0, *, counted: bool) -> bool:
        self.record("requeued", "nack" if counted else "release", float(delay))
        return True

    def check_lease(self) -> None:
        pass  # the consumer does, before it acknowledges

    def record(self, how: str, method: str, *arguments: object) -> None:
        """Note how it is to be ended. Raises WrongState if that was done before."""
        if self.ended:
            raise WrongState(
                f"the element of key {self.taken.key!r} was {self.ended} before: end each element once"
            )
        self.ended = how
        self.asked = (method, arguments)


class HandedElement(Element):
    """An element in a worker process. How its handler ends it takes effect when the handler returns."""

    __slots__ = ()

    _claim: Recording  # type: ignore[assignment]

    def fail(self, reason: str) -> bool:
        self._claim.record("given up", "fail", str.rstrip(reason, "\n"))  # raises here what is no text
        return True


def run(
    jobs: Connection,
    answers: Connection,
    make: Callable[[], Handler],
    path: str,
    codec: str,
    parent: int,
    *,
    weigh: bool,
) -> None:
    """Handle what comes through one pipe, until its other end is closed; answer through another one.

    `make` makes the handler, `path` names the inbox, `parent` is the process of the consumer. `weigh`: tell
    how much memory is in use. Answers None once it is ready, or why it cannot be.
    """
    os.setsid()  # a Ctrl-C is for the consumer; and what the handler has started can be ended with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    incoming, writer = Incoming(jobs.fileno()), answers.fileno()
    try:
        handler = make()
    except HandlerError as error:
        send(writer, packed(str(error)))
        return
    send(writer, packed(None))
    handle = None
    while True:
        try:
            job = Job.received(incoming.receive())
        except EOFError:
            return
        try:
            handle = handle or Handle(path, create=False, shared=False, scope="", force=False)
            if handle.layout.inflight != job.folder:
                handle.layout.enter_claim(os.path.basename(job.folder))
        except (InboxError, OSError) as error:
            answer = Answer(Outcome("retry", str(error), str(error)), [], 0)
        else:
            answer = _answer(handler, handle, codec, job, weigh=weigh)
        send(writer, packed(answer.sent()))


def _answer(handler: Handler, handle: Handle, codec: str, job: Job, *, weigh: bool) -> Answer:
    recordings = [Recording(taken) for taken in job.taken]
    elements: list[Element] = [HandedElement(handle, codec, cast(Any, one)) for one in recordings]
    if job.is_batch:
        outcome = cast(BatchHandler, handler).handle_batch(elements)
    else:
        outcome = handler.handle(elements[0])
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it; or the handler has closed it
    return Answer(outcome, [recording.asked for recording in recordings], memory_in_use() if weigh else 0)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies: it must not work on beside its successor."""
    set_parent_death_signal = 1
    getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(set_parent_death_signal, signal.SIGKILL)  # Linux
    if os.getppid() != parent:  # it has died before that
        os._exit(1)
