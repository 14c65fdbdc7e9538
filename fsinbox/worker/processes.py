"""Handlers in processes: `--processes N`. A crash costs an attempt, a time limit ends the process.

A process for each element at work, kept for the next one. Each has a pipe of its own to the thread that waits
for it: the death of one is seen at once, and is nothing to the others; an idle one uses no processor.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from time import monotonic

from ..element import Element
from ..store.errors import InboxError
from . import child
from .outcome import Handler, HandlerError, Outcome


class Worker:
    """A process that handles one element at a time."""

    def __init__(self, make: Callable[[], Handler], path: str, codec: str, *, weigh: bool) -> None:
        """Start it, and wait until it is ready: see child.run. Raises HandlerError."""
        spawn = multiprocessing.get_context("spawn")  # a fork of a program with threads may hang
        self.handled = 0
        self.interrupted = False
        self.began = 0.0
        """When it was last given a job, in monotonic seconds."""
        self._connection: Connection
        self._connection, theirs = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(
            target=child.run,
            args=(theirs, make, path, codec, os.getpid()),
            kwargs={"weigh": weigh},
            name="fsinbox-worker",
        )
        self.process.start()
        theirs.close()
        try:
            error = self._connection.recv()
        except EOFError:
            error = self.how_it_ended()
        if error is not None:
            self.end()
            raise HandlerError(error)

    def handle(self, job: child.Job) -> child.Answer:
        """Have it handle a job. Raises EOFError or OSError if it has died."""
        self._connection.send(job.sent())
        answer = child.Answer.received(self._connection.recv())
        self.handled += 1
        return answer

    def kill(self, number: int) -> None:
        """Send a signal to it, and to what it has started."""
        assert self.process.pid
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self) -> None:
        """End it, if it is idle: its pipe is closed."""
        self._connection.close()

    def how_it_ended(self) -> str:
        """Wait until it has, and return how."""
        self.process.join()
        self.kill(signal.SIGKILL)  # what it has started, and left behind
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return f"its worker process {how}"


class ProcessHandler:
    """Has processes handle elements."""

    interruptible = True

    def __init__(
        self,
        name: str,
        make: Callable[[], Handler],
        path: str,
        codec: str,
        *,
        max_elements: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """`make` makes the handler, in each process: it is pickled, as a function of a module can be. `path`
        and `codec` are the inbox's. After `max_elements`, or with more than `max_memory` bytes in use, a
        process is replaced. Starts a first one. Raises HandlerError.
        """
        self.name = f"{name} in processes"
        self._start: Callable[[], Worker] = lambda: Worker(make, path, codec, weigh=max_memory is not None)
        self._max_elements = max_elements
        self._max_memory = max_memory
        self._mutex = threading.Lock()
        self._busy: dict[Element, Worker] = {}
        self._idle: list[Worker] = [self._start()]
        atexit.register(self._end_idle)

    def handle(self, element: Element) -> Outcome:
        return self._handle([element], is_batch=False)

    def handle_batch(self, elements: list[Element]) -> Outcome:
        return self._handle(elements, is_batch=True)

    def _handle(self, elements: list[Element], *, is_batch: bool) -> Outcome:
        element = elements[0]
        try:
            worker = self._idle_one() or self._start()
        except (HandlerError, OSError) as error:
            why = f"cannot start a worker process: {error}"
            return Outcome("retry", why.splitlines()[-1], why)
        with self._mutex:
            worker.began = monotonic()
            self._busy[element] = worker
        try:
            folder, _ = element.whereabouts()
            taken = [one.whereabouts()[1] for one in elements]
            answer = worker.handle(child.Job(folder, taken, is_batch))
        except (EOFError, OSError):
            why = worker.how_it_ended()
            return Outcome("retry", why, why)
        finally:
            with self._mutex:
                del self._busy[element]
        with self._mutex:
            if worker.interrupted or self._is_used_up(worker, answer.memory):
                worker.end()
            else:
                self._idle.append(worker)
        return _as_asked(elements, answer)

    def interrupt(self, element: Element, *, force: bool) -> bool:
        with self._mutex:
            worker = self._busy.get(element)
            if worker:
                worker.interrupted = True
                worker.kill(signal.SIGKILL if force else signal.SIGTERM)
        return worker is not None

    def began(self, element: Element) -> float:
        with self._mutex:
            worker = self._busy.get(element)
        return worker.began if worker else inf  # to start one, and to import the handler, takes a while

    def stop_now(self) -> None:
        with self._mutex:
            workers = list(self._busy.values())
        for worker in workers:
            worker.kill(signal.SIGKILL)
        for worker in workers:
            worker.process.join()
        self._end_idle()

    def _idle_one(self) -> Worker | None:
        """Return a process that is ready, if there is one. (An idle one may have been killed, when memory was
        short: no element is to pay for that.)"""
        with self._mutex:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.is_alive():
                    return worker
                worker.end()
        return None

    def _end_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()

    def _is_used_up(self, worker: Worker, memory: int) -> bool:
        if self._max_elements and worker.handled >= self._max_elements:
            return True
        return self._max_memory is not None and memory > self._max_memory


def _as_asked(elements: list[Element], answer: child.Answer) -> Outcome:
    """End the elements as their handler has asked for, if it has; return their outcome."""
    for element, asked in zip(elements, answer.asked, strict=False):
        if asked:
            method, arguments = asked
            try:
                getattr(element, method)(*arguments)
            except InboxError as error:
                return Outcome("retry", str(error), str(error))
    return answer.outcome
