"""Handlers in processes: `--processes N`. A crash costs an attempt, a time limit ends the process.

A process for each element at work, kept for the next one. Each has two pipes of its own, for its jobs and its
answers: the death of one is seen at once, and is nothing to the others; an idle one uses no processor. Who
sleeps waits for all the answers at once; a thread waits only for what takes long: the start of a process, its
end, and a job that does not fit into a pipe.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from time import monotonic

from ..element import Element
from ..store.errors import InboxError
from . import child
from .messages import AT_ONCE, Incoming, packed, send, values_of
from .outcome import DetachedHandler, Handler, HandlerError, Outcome


class Worker:
    """A process that handles one element, or batch, at a time."""

    def __init__(self, make: Callable[[], Handler], path: str, codec: str, *, weigh: bool) -> None:
        """Start it, and wait until it is ready: see child.run. Raises HandlerError, OSError."""
        spawn = multiprocessing.get_context("spawn")  # a fork of a program with threads may hang
        self.handled = 0
        self.interrupted = False
        self.began = 0.0
        """When it was last given a job, in monotonic seconds."""
        self.elements: list[Element] = []
        """The last job's."""
        self._answers: Connection
        self._jobs: Connection
        self._answers, their_answers = spawn.Pipe(duplex=False)
        their_jobs, self._jobs = spawn.Pipe(duplex=False)
        self._incoming = Incoming(self._answers.fileno())
        self.process: SpawnProcess = spawn.Process(
            target=child.run,
            args=(their_jobs, their_answers, make, path, codec, os.getpid()),
            kwargs={"weigh": weigh},
            name="fsinbox-worker",
        )
        self.process.start()
        their_jobs.close()
        their_answers.close()
        try:
            error = self._incoming.receive()
        except EOFError:
            error = self.how_it_ended()
        if error is not None:
            self.end()
            raise HandlerError(error)

    def send(self, message: bytes) -> None:
        """Give it a job. Waits if that is longer than AT_ONCE. Raises OSError if it has died."""
        send(self._jobs.fileno(), message)

    @property
    def reader(self) -> int:
        """The descriptor at which there is something to read once it answers, or has died."""
        return self._answers.fileno()

    def answer(self) -> child.Answer | None:
        """Read once, of what is there, or comes; return its answer when it is whole. Raises EOFError or
        OSError if it has died."""
        content = self._incoming.read()
        if content is None:
            return None
        self.handled += 1
        return child.Answer.received(values_of(content))

    def kill(self, number: int) -> None:
        """Send a signal to it, and to what it has started."""
        assert self.process.pid
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self) -> None:
        """End it, if it is idle: its pipes are closed."""
        self._jobs.close()
        self._answers.close()

    def how_it_ended(self) -> str:
        """Wait until it has, and return how."""
        self.process.join()
        self.kill(signal.SIGKILL)  # what it has started, and left behind
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return f"its worker process {how}"


class ProcessHandler(DetachedHandler):
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
        self._detached: dict[int, Worker] = {}
        self._idle: list[Worker] = [self._start()]
        self._poll = select.poll()
        atexit.register(self._end_idle)

    # --- while nobody waits -------------------------------------------------------------------------------

    @property
    def readers(self) -> Collection[int]:
        return self._detached

    def begin(self, elements: list[Element], *, is_batch: bool) -> bool:
        message = _job(elements, is_batch=is_batch)
        while len(message) <= AT_ONCE and (worker := self._idle_one()):
            self._have_begun(worker, elements)
            try:
                worker.send(message)
            except OSError:  # it was killed this instant, and has not seen the job
                self._forget(worker)
                worker.end()
                continue
            self._detached[worker.reader] = worker
            self._poll.register(worker.reader, select.POLLIN)
            return True
        return False

    def answers(self) -> Iterator[tuple[list[Element], Outcome | None, float]]:
        if not self._detached:
            return
        for reader, _ in self._poll.poll(0):
            worker = self._detached[reader]
            try:
                answer = worker.answer()
            except (EOFError, OSError):
                self._attach(reader)
                yield worker.elements, None, worker.began
                continue
            if answer:
                self._attach(reader)
                yield worker.elements, self._ended(worker, answer), worker.began

    def _attach(self, reader: int) -> None:
        del self._detached[reader]
        self._poll.unregister(reader)

    # --- in a thread that waits ---------------------------------------------------------------------------

    def handle(self, element: Element) -> Outcome:
        return self._handle([element], is_batch=False)

    def handle_batch(self, elements: list[Element]) -> Outcome:
        return self._handle(elements, is_batch=True)

    def _handle(self, elements: list[Element], *, is_batch: bool) -> Outcome:
        with self._mutex:
            worker = self._busy.get(elements[0])
        if worker:  # it has died: see `answers`
            return self._died(worker)
        try:
            worker = self._idle_one() or self._start()
        except (HandlerError, OSError) as error:
            why = f"cannot start a worker process: {error}"
            return Outcome("retry", why.splitlines()[-1], why)
        self._have_begun(worker, elements)
        try:
            worker.send(_job(elements, is_batch=is_batch))
            while not (answer := worker.answer()):
                pass
        except (EOFError, OSError):
            return self._died(worker)
        return self._ended(worker, answer)

    def _died(self, worker: Worker) -> Outcome:
        """A process has died at work: wait for its end, and return what becomes of its elements."""
        try:
            why = worker.how_it_ended()
        finally:
            self._forget(worker)
            worker.end()
        return Outcome("retry", why, why)

    # --- both ---------------------------------------------------------------------------------------------

    def _have_begun(self, worker: Worker, elements: list[Element]) -> None:
        with self._mutex:
            worker.began, worker.elements = monotonic(), elements
            self._busy[elements[0]] = worker

    def _forget(self, worker: Worker) -> None:
        with self._mutex:
            del self._busy[worker.elements[0]]

    def _ended(self, worker: Worker, answer: child.Answer) -> Outcome:
        """A process has answered: return what becomes of its elements."""
        with self._mutex:
            del self._busy[worker.elements[0]]
            if worker.interrupted or self._is_used_up(worker, answer.memory):
                worker.end()
            else:
                self._idle.append(worker)
        return _as_asked(worker.elements, answer)

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


def _job(elements: list[Element], *, is_batch: bool) -> bytes:
    folder, _ = elements[0].whereabouts()
    return packed(child.Job(folder, [one.whereabouts()[1] for one in elements], is_batch).sent())


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
