"""`--on-failed COMMAND`: a command is run for each element that moves to failed/. It holds up nothing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from queue import Full, Queue
from time import monotonic

from ..element import Element
from .observer import Observer
from .outcome import Outcome

log = logging.getLogger("fsinbox")

_MOST = 1000
"""Failures that may wait to be told; of more, it is only said in the log how many."""

_TIMEOUT = 60.0
"""Seconds that the command may take."""

_PATIENCE = 5.0
"""Seconds that the end of the run waits for what is still to be told."""


@dataclass(frozen=True, slots=True)
class _Failure:
    environment: dict[str, str]
    detail: str


class OnFailed(Observer):
    """Runs the command, in a thread of its own, one after the other."""

    def __init__(self, command: str, inbox: str) -> None:
        """`command` is run by /bin/sh. `inbox`: the path that it finds in its environment."""
        self._command = command
        self._inbox = inbox
        self._queue: Queue[_Failure] = Queue(_MOST)
        self._thread: threading.Thread | None = None
        self._lost = 0

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        if became != "failed":
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="fsinbox-on-failed", daemon=True)
            self._thread.start()
        about = {
            "FSINBOX_KEY": element.key,
            "FSINBOX_SEQ": str(element.seq),
            "FSINBOX_ATTEMPTS": str(element.attempts),
            "FSINBOX_REASON": outcome.summary,
            "FSINBOX_DIR": self._inbox,
        }
        environment = {name: text.replace("\0", "\\0") for name, text in about.items()}
        try:
            self._queue.put_nowait(_Failure(environment, outcome.detail))
        except Full:
            self._lost += 1

    def stopped(self) -> None:
        deadline = monotonic() + _PATIENCE
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks and (left := deadline - monotonic()) > 0:
                self._queue.all_tasks_done.wait(left)
        lost = self._lost + self._queue.unfinished_tasks
        if lost:
            extra = {"event": "not_told", "lost": lost}
            log.warning("--on-failed: not told of %d: see `fsinbox failed`", lost, extra=extra)

    def _work(self) -> None:
        while True:
            failure = self._queue.get()
            why = self._tell(failure)
            if why:
                key = failure.environment["FSINBOX_KEY"]
                extra = {"event": "not_told", "lost": 1}
                log.warning("--on-failed: %r %s, for key %r", self._command, why, key, extra=extra)
            self._queue.task_done()

    def _tell(self, failure: _Failure) -> str:
        """Run the command; return what went wrong, or ""."""
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                stdin=subprocess.PIPE,
                env=os.environ | failure.environment,
                start_new_session=True,
            )
        except OSError as error:
            return f"could not be started: {error}"
        try:
            process.communicate(failure.detail.encode("utf-8", "replace"), timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"took longer than {_TIMEOUT:g} s, and was killed"
        return f"exited with {process.returncode}" if process.returncode else ""
