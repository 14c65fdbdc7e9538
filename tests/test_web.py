"""`fsinbox web`, asked as a browser would ask, and as an attacker's page would: a real process, over a real socket."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest
from helpers import PATIENCE, command, environment, wait_until


class Site:
    """`fsinbox web` in the background, for a `with` block. `address` is without the token."""

    def __init__(self, *words: str, cwd: Path, **variables: str) -> None:
        self._log = cwd / "web.err"
        self._words = words
        self._cwd = cwd
        self._variables = variables

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command("web", "--port", "0", *self._words), cwd=self._cwd, stderr=log, env=environment(**self._variables)
            )
        wait_until(lambda: " at http" in self.log or self.process.poll() is not None, "for the site")
        found = re.search(r" at (http://\S+/)(?:\?token=(\S+))?\n", self.log)
        assert found, self.log
        self.address, self.token = found[1], found[2] or ""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    def end(self, number: signal.Signals) -> None:
        """Tell it to stop by a signal: it must end well."""
        self.process.send_signal(number)
        try:
            assert self.process.wait(PATIENCE) == 0, self.log
        finally:
            self.process.kill()
            self.process.wait()

    def client(self, *, unlocked: bool = False) -> httpx.Client:
        """Return a client of it, with the token or without."""
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        if unlocked:
            assert client.get("/", params={"token": self.token}).status_code == 303
        return client
