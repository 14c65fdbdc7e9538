"""Real servers for tests of examples/handover, each in a temporary folder, reachable from this machine only.

A server is started by the test that wants it, as `nobody` where the tests run as root (initdb refuses root),
and is killed at its end; it also dies with the process that has started it.
"""

from __future__ import annotations

import asyncio
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar, Self

from helpers import wait_until


class Engine:
    """A server in a folder of its own, for a `with` block."""

    name: ClassVar[str]
    package: ClassVar[str]
    """The Debian package that has it."""
    crash = signal.SIGKILL
    """What ends it, and all of its processes, without a chance to write anything more."""

    def __init__(self) -> None:
        # Below /tmp: `nobody` must reach it, and the path of a Unix socket is at most 107 bytes long.
        self.folder = Path(tempfile.mkdtemp(prefix=f"fsinbox-{self.name}-", dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None
        self._who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        if self._who:
            shutil.chown(self.folder, "nobody", "nogroup")

    @classmethod
    def program(cls) -> str | None:
        """Return the path of the server, None if it is not installed."""
        return shutil.which(cls.package, path=f"{os.environ['PATH']}:/usr/sbin")

    @property
    def variables(self) -> dict[str, str]:
        """What tells a client where it is."""
        raise NotImplementedError

    def words(self) -> list[str]:
        """Return the server's command line."""
        raise NotImplementedError

    def contents(self) -> dict[str, bytes]:
        """Return key -> payload of what it has. Raises what its client raises while it is not there."""
        raise NotImplementedError

    def clear(self) -> None:
        """Remove everything."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        setpriv = shutil.which("setpriv")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []), *self.words()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._who,
            )
        wait_until(self._answers, f"for {self.name}")

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process and self.process.returncode is None:
            self.process.send_signal(self.crash)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def run(self, *words: str) -> None:
        """Run a command to its end as who runs the server."""
        subprocess.run(words, cwd=self.folder, check=True, capture_output=True, **self._who)

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            self.contents()
        except Exception:
            time.sleep(0.05)
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Engine):
    name = "postgres"
    package = "postgresql"
    crash = signal.SIGQUIT  # an immediate shutdown: SIGKILL would leave its other processes for a moment

    @classmethod
    def program(cls) -> str | None:
        """As above; Debian keeps its programs beside the PATH."""
        folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        return shutil.which("postgres", path=os.pathsep.join([*folders, os.environ["PATH"]]))

    def start(self) -> None:
        if not (self.folder / "data").exists():
            initdb = str(Path(os.path.realpath(self.program() or "")).with_name("initdb"))
            self.run(initdb, *"-D data -U handover -A trust -E UTF8 --no-locale --no-sync".split())
        super().start()

    @property
    def variables(self) -> dict[str, str]:
        return {"PGHOST": str(self.folder), "PGUSER": "handover", "PGDATABASE": "postgres"}

    def words(self) -> list[str]:
        return [self.program() or "", "-D", "data", "-k", str(self.folder), "-c", "listen_addresses="]

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(
            host=str(self.folder), user="handover", dbname="postgres", autocommit=True, connect_timeout=5
        )

    def contents(self) -> dict[str, bytes]:
        with self.connect() as db:
            if db.execute("SELECT to_regclass('handover')").fetchone() == (None,):
                return {}
            return dict(db.execute("SELECT key, payload FROM handover").fetchall())

    def clear(self) -> None:
        with self.connect() as db:
            db.execute("DROP TABLE IF EXISTS handover, handover_claim")


class Redis(Engine):
    name = "redis"
    package = "redis-server"

    @property
    def variables(self) -> dict[str, str]:
        return {"REDIS_URL": f"unix://{self.folder}/socket"}

    def words(self) -> list[str]:
        settings = {"port": "0", "unixsocket": f"{self.folder}/socket", "dir": str(self.folder)}
        settings |= {"save": "", "appendonly": "yes", "appendfsync": "always"}
        return [
            self.program() or "",
            *(word for name, value in settings.items() for word in (f"--{name}", value)),
        ]

    def connect(self) -> Any:
        import redis

        return redis.from_url(self.variables["REDIS_URL"], protocol=2)

    def contents(self) -> dict[str, bytes]:
        """What the stream has; it must be what the hash says is the newest."""
        with self.connect().pipeline(transaction=True) as both:
            stream, newest = both.xrange("{handover}:stream").hgetall("{handover}:newest").execute()
        entries = {fields[b"key"]: (place, fields[b"payload"]) for place, fields in stream}
        assert newest == {key: place for key, (place, _) in entries.items()}
        assert len(stream) == len(newest)
        return {os.fsdecode(key): payload for key, (_, payload) in entries.items()}

    def clear(self) -> None:
        self.connect().flushall()


class Nats(Engine):
    name = "nats"
    package = "nats-server"

    def __init__(self) -> None:
        super().__init__()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def variables(self) -> dict[str, str]:
        return {"NATS_URL": f"nats://127.0.0.1:{self.port}"}

    def words(self) -> list[str]:
        return [self.program() or "", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]

    def _answers(self) -> bool:
        with socket.socket() as connection:  # its client waits for two seconds where nobody listens
            return connection.connect_ex(("127.0.0.1", self.port)) == 0 and super()._answers()

    def ask(self, question: Any) -> Any:
        """Return what `await question(jetstream)` returns."""
        import nats

        async def asked() -> Any:
            client = await nats.connect(self.variables["NATS_URL"], allow_reconnect=False, connect_timeout=5)
            try:
                return await question(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(asked())

    def contents(self) -> dict[str, bytes]:
        from urllib.parse import unquote_to_bytes

        import nats

        async def found(jetstream: Any) -> dict[str, bytes]:
            try:
                state = (await jetstream.stream_info("handover", subjects_filter=">")).state
            except nats.js.errors.NotFoundError:
                return {}
            names = list(state.subjects or {})
            last = [await jetstream.get_last_msg("handover", name) for name in names]
            keys = [os.fsdecode(unquote_to_bytes(name.removeprefix("handover."))) for name in names]
            return {key: message.data or b"" for key, message in zip(keys, last, strict=True)}

        return self.ask(found)

    def clear(self) -> None:
        import nats

        async def removed(jetstream: Any) -> None:
            try:
                await jetstream.delete_stream("handover")
            except nats.js.errors.NotFoundError:
                pass

        self.ask(removed)


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Postgres, Redis, Nats)}
