"""For tests of the command line: processes as a shell would start them, and what they leave on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsinbox

PACKAGE = str(Path(fsinbox.__file__).parent.parent)

PATIENCE = 60.0
"""Seconds after which a wait is a failure. Long: it is only waited out when something is broken."""


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without settings of fsinbox, but with the package on the path, and
    `more`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FSINBOX_")}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE, os.environ.get("PYTHONPATH")]))
    return clean | more


def command(*words: str | bytes | Path) -> list[str | bytes | Path]:
    """Return the words of an `fsinbox` command line."""
    return [sys.executable, "-m", "fsinbox", *words]


def run(
    *words: str | bytes | Path,
    cwd: Path,
    stdin: bytes | str = b"",
    status: int | None = 0,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run `fsinbox` in `cwd` to its end; it must end with `status` (None: any). `variables` are added to its
    environment."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(**variables),
        timeout=PATIENCE,
    )
    result = subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )
    assert status is None or result.returncode == status, (
        f"status {result.returncode}, not {status}\n{result.stderr}"
    )
    return result


def wait_until(condition: Callable[[], object], what: str = "", patience: float = PATIENCE) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s in vain {what}"
        time.sleep(0.005)


class Consumer:
    """`fsinbox consume` in the background, for a `with` block; killed at its end if it still runs."""

    command = "consume"
    before: tuple[str, ...] = ()
    """Words of the program that runs it, if one does."""

    def __init__(self, *words: str | Path, cwd: Path, **variables: str) -> None:
        """`words` stand behind `consume`. It begins when the `with` block is entered."""
        self.cwd = cwd
        self._words = words
        self._variables = variables
        self._log = cwd / "consumer.err"
        self._output = cwd / "consumer.out"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log, self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*self.before, *command(self.command, *self._words)],
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env=environment(**self._variables),
                start_new_session=True,  # so that a test can send a signal to its group, as a terminal does
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def output(self) -> str:
        """What it wrote to standard output so far."""
        return self._output.read_text(errors="replace")

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until `condition()` is true. The consumer must not end before."""

        def holds() -> object:
            ended = self.process.poll() is not None
            if condition():
                return True
            assert not ended, f"the consumer ended with {self.process.returncode} {what}\n{self.log}"
            return False

        try:
            wait_until(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def until_idle(self) -> None:
        """Wait until it watches for arrivals: an idle consumer on Linux has its inotify descriptor open."""
        folder = Path(f"/proc/{self.process.pid}/fd")

        def watches() -> bool:
            try:
                links = [os.readlink(link) for link in folder.iterdir()]
            except OSError:
                return False
            return any("inotify" in link for link in links)

        self.until(watches, "for it to watch")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, status: int = 0, patience: float = PATIENCE) -> None:
        """Wait until it ends; it must end with `status`."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the consumer did not end\n{self.log}") from None
        assert self.process.returncode == status, (
            f"status {self.process.returncode}, not {status}\n{self.log}"
        )


def keys_in(inbox: Path, folder: str) -> list[str]:
    """Return the encoded keys of the elements in a folder of an inbox, oldest first."""
    skip = 40 if folder == "deferred" else 20
    return [
        name[skip:]
        for name in sorted(os.listdir(inbox / folder))
        if not name.startswith(".") and "~" not in name
    ]


def contents(inbox: Path, folder: str = "pending") -> dict[str, bytes]:
    """Return encoded key -> payload of the elements in a folder of an inbox, oldest first."""
    return {
        path.name[20:]: path.read_bytes()
        for path in sorted((inbox / folder).iterdir())
        if not path.name.startswith(".") and "~" not in path.name
    }


def reason(inbox: Path, key: str) -> str:
    """Return the reason that is kept beside the failed element of `key`."""
    (path,) = (inbox / "failed").glob(f"*-{key}~reason.txt")
    return path.read_text()


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parse one JSON object a line."""
    return [json.loads(line) for line in text.splitlines()]
