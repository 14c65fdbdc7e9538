"""Handlers in any language: `--exec 'command {}'`.

The payload is the command's standard input, and `{}` among its words is replaced by the path of the file that
holds it. Its environment has FSINBOX_KEY, FSINBOX_SEQ, FSINBOX_ATTEMPTS, FSINBOX_PATH and FSINBOX_INBOX. Exit
status, after sysexits.h: 0 acknowledges; 75 (EX_TEMPFAIL) is tried again, uncounted; 64 (EX_USAGE), 65
(EX_DATAERR) and 78 (EX_CONFIG) go to failed/ at once; any other, or death by a signal, is a failed attempt.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from ..element import Element
from .outcome import DONE, HandlerError, Outcome

TEMPORARY = {75}
PERMANENT = {64, 65, 78}

TAIL = 64 * 1024
"""Bytes of a command's output that are kept for failed/: the last ones."""


class CommandHandler:
    """Runs a command for each element."""

    def __init__(self, command: str, *, shell: bool = False) -> None:
        """`shell`: hand the line to /bin/sh, where `{}` becomes the quoted path. Raises HandlerError."""
        self.name = command
        self._shell = shell
        try:
            self._words = [command] if shell else shlex.split(command)
        except ValueError as error:
            raise HandlerError(f"--exec {command!r} cannot be split into words: {error}") from error
        if not command.strip() or not self._words:
            raise HandlerError("--exec needs a command")
        if not shell and "{}" not in self._words[0] and not shutil.which(self._words[0]):
            raise HandlerError(
                f"--exec: there is no command {self._words[0]!r} (for a line of shell add --shell)"
            )
        # So that a command does not go on beside its successor when the consumer is killed.
        setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
        self._guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        self.more_environment: Callable[[], dict[str, str]] = dict
        """Asked, for each command, in the thread that handles its element."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._mutex = threading.Lock()

    def handle(self, element: Element) -> Outcome:
        try:
            process = self._start(element)
        except OSError as error:
            reason = f"cannot start {self.name!r}: {error}"
            return Outcome("retry", reason, reason)
        with self._mutex:
            self._running.add(process)
        output = _Tail(process)
        status = process.wait()
        tail = output.finish()
        with self._mutex:
            self._running.discard(process)
        return _judge(self.name, status, tail)

    def stop_now(self) -> None:
        with self._mutex:
            running = list(self._running)
        for process in running:
            _kill(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                pass
            _kill(process, signal.SIGKILL)  # what is left of its group, too
            process.wait()

    def _start(self, element: Element) -> subprocess.Popen[bytes]:
        path = element.path
        if self._shell:
            words = ["/bin/sh", "-c", self._words[0].replace("{}", shlex.quote(path))]
        else:
            words = [word.replace("{}", path) for word in self._words]
        environment = os.environ | {
            "FSINBOX_KEY": element.key.replace("\0", "\\0"),
            "FSINBOX_SEQ": str(element.seq),
            "FSINBOX_ATTEMPTS": str(element.attempts),
            "FSINBOX_PATH": path,
            "FSINBOX_INBOX": os.path.dirname(os.path.dirname(path)),
            **self.more_environment(),
        }
        with open(element.open(), "rb") as payload:  # not by its path, which may lead elsewhere by now
            return subprocess.Popen(
                self._guard + words,
                stdin=payload,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for the consumer, which lets its commands finish
            )


class _Tail:
    """Passes a command's output on, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        self._pipe = process.stdout
        self._kept = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while piece := self._pipe.read1(TAIL):  # type: ignore[attr-defined]
            self._kept += piece
            del self._kept[:-TAIL]
            try:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            except (OSError, ValueError):
                continue  # nobody reads us any more; the command must not be held up by that

    def finish(self) -> str:
        """Return the end of the output. A child that the command left behind may hold the pipe: it is not
        waited for."""
        self._reader.join(0.2)
        if not self._reader.is_alive():
            self._pipe.close()
        return bytes(self._kept).decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _judge(name: str, status: int, tail: str) -> Outcome:
    if status == 0:
        return DONE
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
    summary = f"{name!r} {how}"
    detail = f"{summary}\n\nthe end of its output:\n{tail}" if tail else f"{summary}, without output"
    if status in TEMPORARY:
        return Outcome("later", summary, detail)
    return Outcome("reject" if status in PERMANENT else "retry", summary, detail)
