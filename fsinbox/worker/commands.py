"""Handlers in any language: `--exec 'command {}'`.

The payload is the command's standard input. `{fd}` in its words becomes /dev/fd/N, an inherited descriptor of
the same open file, and `{}` its path. A path is walked again by name: whoever may write in the inbox can have
another file there by then. The environment has FSINBOX_KEY, FSINBOX_SEQ, FSINBOX_ATTEMPTS, FSINBOX_FD (N),
FSINBOX_PATH and FSINBOX_DIR (the inbox, so that `fsinbox add` in a command finds it). Exit status, after
sysexits.h: 0 acknowledges; 75 (EX_TEMPFAIL) is tried again, uncounted; 64 (EX_USAGE), 65 (EX_DATAERR) and 78
(EX_CONFIG) move the element to failed/ at once; any other, or death by a signal, is a failed attempt.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from ..element import Element
from .outcome import DONE, HandlerError, Outcome
from .saying import LONGEST, log_output

TEMPORARY = {75}
PERMANENT = {64, 65, 78}

TAIL = 64 * 1024
"""The last bytes of a command's output, kept for failed/."""

_PLACE = re.compile(r"\{(fd)?\}")
"""What is filled in: the payload's path, or a name of its descriptor."""

_EXPANDS = r"`|\$[\w({*@#?!$-]"
"""What a shell expands, within double quotes, too."""

_SYNTAX = re.compile(rf"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|[|&;<>()\n]|{_EXPANDS}""", re.DOTALL)
"""What a shell does not take as it stands: escaped, quoted, an operator, or expanded."""


class CommandHandler:
    """Runs a command for each element."""

    interruptible = True

    def __init__(self, command: str, *, shell: bool | None = None) -> None:
        """`shell`: whether /bin/sh runs the line; then `{}` becomes the quoted path. None: no, and refuse
        shell syntax. Raises HandlerError."""
        self.name = command
        self._shell = bool(shell)
        self._words = [command] if shell else _words(command)
        if not command.strip() or not self._words:
            raise HandlerError("--exec needs a command")
        if not shell and not _PLACE.search(self._words[0]) and not shutil.which(self._words[0]):
            raise HandlerError(
                f"--exec: there is no command {self._words[0]!r} (add --shell if a shell is to run it)"
            )
        syntax = shell_syntax(command) if shell is None else ""
        if syntax:
            raise HandlerError(
                f"--exec {command!r} has shell syntax ({syntax!r}), but no shell runs it: add --shell; "
                "or, if it is meant literally, quote it or add --no-shell"
            )
        # So that a command does not run on beside its successor when the consumer is killed.
        setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
        self._guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        self.more_environment: Callable[[], dict[str, str]] = dict
        """Called for each command, in the thread that handles its element."""
        self.logs_output = False
        """Whether what commands print is logged instead of passed on."""
        self._running: dict[Element, subprocess.Popen[bytes]] = {}
        self._interrupted: set[Element] = set()
        self._mutex = threading.Lock()

    def handle(self, element: Element) -> Outcome:
        return self._run(element, lambda: self._start(element))

    def _run(self, element: Element, start: Callable[[], subprocess.Popen[bytes]]) -> Outcome:
        """Run a command to its end. `element`: the one by which it can be interrupted."""
        try:
            process = start()
        except OSError as error:
            reason = f"cannot start {self.name!r}: {error}"
            return Outcome("retry", reason, reason)
        with self._mutex:
            self._running[element] = process
        output = _Tail(process, element if self.logs_output else None)
        status = process.wait()
        tail = output.finish()
        with self._mutex:
            del self._running[element]
            if element in self._interrupted:
                self._interrupted.discard(element)
                _kill(process, signal.SIGKILL)  # what is left of its group
        return _judge(self.name, status, tail)

    def interrupt(self, element: Element, *, force: bool) -> bool:
        with self._mutex:
            process = self._running.get(element)
            if process:
                self._interrupted.add(element)
                _kill(process, signal.SIGKILL if force else signal.SIGTERM)
        return process is not None

    def began(self, element: Element) -> float:
        return 0.0

    def stop_now(self) -> None:
        with self._mutex:
            running = list(self._running.values())
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
        payload = element.open()  # not by its path, which may lead elsewhere by now
        try:
            words = self._line(element.path, payload)
            return self._popen(words, payload, self._environment(element, payload), (payload,))
        finally:
            os.close(payload)

    def _line(self, path: str, payload: int) -> list[str]:
        """Return the command's words, with `{}` and `{fd}` filled in."""
        path = shlex.quote(path) if self._shell else path
        words = [
            _PLACE.sub(lambda match: f"/dev/fd/{payload}" if match[1] else path, word) for word in self._words
        ]
        return ["/bin/sh", "-c", *words] if self._shell else words

    def _environment(self, element: Element, payload: int) -> dict[str, str]:
        path = element.path
        return os.environ | {
            "FSINBOX_KEY": element.key.replace("\0", "\\0"),
            "FSINBOX_SEQ": str(element.seq),
            "FSINBOX_ATTEMPTS": str(element.attempts),
            "FSINBOX_FD": str(payload),
            "FSINBOX_PATH": path,
            "FSINBOX_DIR": path[: path.rindex("/inflight/")],
            **self.more_environment(),
        }

    def _popen(
        self, words: list[str], standard_input: int, environment: dict[str, str], keep: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._guard + words,
            stdin=standard_input,
            pass_fds=keep,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the consumer, which lets its commands finish
        )


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise HandlerError(f"--exec {command!r} cannot be split into words: {error}") from error


def shell_syntax(line: str) -> str:
    """Return what in a line only a shell would understand, or "": an operator, or something to be expanded,
    that is not quoted."""
    for match in _SYNTAX.finditer(line):
        text = match[0]
        if text[0] == '"':
            expanded = re.search(_EXPANDS, re.sub(r"\\.", "", text, flags=re.DOTALL))
            text = expanded[0] if expanded else "\\"
        if text[0] not in "\\'":
            return text
    return ""


class _Tail:
    """Passes a command's output on, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes], about: Element | None) -> None:
        """`about`: the element for which it is logged, instead of passed on."""
        assert process.stdout
        self._about = about
        self._line = b""
        self._pipe = process.stdout
        self._kept = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while piece := self._pipe.read1(TAIL):  # type: ignore[attr-defined]
            self._kept += piece
            del self._kept[:-TAIL]
            if self._about:
                self._log(piece)
                continue
            try:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            except (OSError, ValueError):
                continue  # nobody reads our output; the command must not wait for that

        if self._line:
            self._log(b"\n")

    def _log(self, piece: bytes) -> None:
        assert self._about
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            log_output(line.decode("utf-8", "replace"), (self._about,))
        if len(self._line) > LONGEST:
            log_output(self._line.decode("utf-8", "replace"), (self._about,))
            self._line = b""

    def finish(self) -> str:
        """Return the end of the output. It does not wait for a child that the command has left behind, and
        that still has the pipe."""
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
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
    summary = f"{name!r} {how}: {last}" if last else f"{name!r} {how}"
    detail = f"{summary}\n\nthe end of its output:\n{tail}" if last else f"{summary}, without output"
    if status in TEMPORARY:
        return Outcome("later", summary, detail)
    return Outcome("reject" if status in PERMANENT else "retry", summary, detail)
