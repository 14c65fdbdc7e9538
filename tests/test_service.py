"""What a service manager is told, over a real socket by a real consumer; and the units that have one run
it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from helpers import PATIENCE, Consumer, command, environment, run

from fsinbox import Inbox
from fsinbox.worker.observer import Observer
from fsinbox.worker.outcome import Outcome
from fsinbox.worker.service import Service, observers

UNITS = Path(__file__).parent.parent / "docs/deploy"

JOBS = """
import os, time

def job(key, value):
    if value == "fail":
        raise ValueError(key)
    while value == "wait" and not os.path.exists("go"):
        time.sleep(0.005)

def environment(key, value):
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
"""


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[str] = []

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if self.address[0] == "@" else self.address)
        self._socket.settimeout(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def hear(self, what: str) -> list[str]:
        """Listen until something that begins with `what` is said; return what was said up to there."""
        deadline = time.monotonic() + PATIENCE
        heard: list[str] = []
        while not any(word.startswith(what) for word in heard):
            assert time.monotonic() < deadline, f"in vain for {what}: {heard}"
            heard += self._socket.recv(4096).decode().splitlines()
        self.said += heard
        return heard

    def rest(self) -> list[str]:
        """Return what was said and not heard yet."""
        self._socket.setblocking(False)
        heard: list[str] = []
        while True:
            try:
                heard += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                self.said += heard
                return heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    short = f"/tmp/fsinbox-{os.getpid()}-{time.monotonic_ns()}"  # a socket's path has 107 bytes at most
    address = f"@{short[1:]}" if request.param == "abstract" else short
    with Manager(address) as manager:
        yield manager
    Path(short).unlink(missing_ok=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    Inbox(tmp_path / "inbox").close()
    return tmp_path


def add(place: Path, **values: object) -> None:
    with Inbox(place / "inbox", durable=False) as inbox:
        for key, value in values.items():
            inbox.add(key, value)


def test_a_run_says_ready_what_it_does_that_it_lives_and_that_it_stops(place: Path, manager: Manager) -> None:
    words = ("--handler", "jobs:job", "--max-attempts", "1")
    with Consumer(*words, cwd=place, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000") as consumer:
        assert manager.hear("WATCHDOG=1") == ["READY=1", "STATUS=consuming", "WATCHDOG=1"]
        for _ in range(3):
            assert manager.hear("WATCHDOG=1") == ["WATCHDOG=1"]  # while idle
        add(place, a="fail", b="wait")
        manager.hear("STATUS=consuming: 1 running, 1 failed")
        for _ in range(3):
            manager.hear("WATCHDOG=1")  # while a handler runs for long
        consumer.signal(signal.SIGTERM)
        heard = manager.hear("STATUS=stopping")
        assert heard[-2:] == ["STOPPING=1", "STATUS=stopping: 1 running, 1 failed"]
        manager.hear("WATCHDOG=1")  # until the end
        (place / "go").touch()
        consumer.end()
    assert set(manager.rest()) <= {"WATCHDOG=1", "STATUS=stopping: 1 acknowledged, 1 failed"}
    assert manager.said.count("READY=1") == manager.said.count("STOPPING=1") == 1


def test_a_drain_says_that_it_stops_when_nothing_is_left(place: Path, manager: Manager) -> None:
    add(place, a=1)
    run("consume", "--handler", "jobs:job", "--drain", cwd=place, NOTIFY_SOCKET=manager.address)
    heard = [
        word for word in manager.rest() if not word.startswith("STATUS=consuming: ")
    ]  # (those only if it takes a second)
    assert heard == ["READY=1", "STATUS=consuming", "STOPPING=1", "STATUS=stopping: 1 acknowledged"]


def test_a_main_thread_that_hangs_gives_no_sign_of_life(place: Path, manager: Manager) -> None:
    """What stops the main thread is a file system that does not answer: here, a FIFO in the place of a log's
    file."""
    os.mkfifo(place / "pipe")
    (place / "jobs.py").write_text(
        "import logging\n"
        "class Hang(logging.Handler):\n    def emit(self, record):\n        open('hangs', 'w').close(); "
        "open('pipe').close()\n"
        "def job(key, value):\n    logging.getLogger('fsinbox').addHandler(Hang(logging.ERROR))\n    raise "
        "ValueError\n"
    )
    words = ("--handler", "jobs:job", "--max-attempts", "1")
    with Consumer(*words, cwd=place, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000") as consumer:
        manager.hear("WATCHDOG=1")
        add(place, a=1)
        consumer.until((place / "hangs").exists)
        manager.rest()
        time.sleep(0.5)  # what is proved is that nothing comes
        assert "WATCHDOG=1" not in manager.rest()
        with open(place / "pipe", "w"):
            manager._socket.settimeout(PATIENCE)
            manager.hear("WATCHDOG=1")


def test_a_standby_is_ready_when_it_is_the_consumer_and_not_before(place: Path, manager: Manager) -> None:
    with Inbox(place / "inbox") as active:
        active.become_consumer()
        with Consumer(
            "--handler",
            "jobs:job",
            "--standby",
            cwd=place,
            NOTIFY_SOCKET=manager.address,
            WATCHDOG_USEC="3000000",
        ) as consumer:
            heard = manager.hear("STATUS=")
            assert heard == ["WATCHDOG=1", "STATUS=standing by for another consumer"]
            active.close()
            heard = manager.hear("READY=1")
            assert set(heard[:-1]) <= {"WATCHDOG=1", "READY=1"} and heard[-2:] == [
                "READY=1",
                "STATUS=consuming",
            ]
            consumer.signal(signal.SIGTERM)
            manager.hear("STOPPING=1")
            consumer.end()


def test_a_standby_that_is_stopped_was_never_ready_and_leaves_the_consumers_account_alone(
    place: Path, manager: Manager
) -> None:
    with Consumer("--handler", "jobs:job", cwd=place) as active:
        active.until((place / "inbox/stats/1of1.json").exists)
        before = (place / "inbox/stats/1of1.json").read_text()
        words = command("consume", "--handler", "jobs:job", "--standby")
        standby = subprocess.Popen(
            words, cwd=place, env=environment(NOTIFY_SOCKET=manager.address), stderr=subprocess.PIPE
        )
        with standby:
            manager.hear("STATUS=")
            standby.terminate()
            assert standby.wait(PATIENCE) == 0
        assert "READY=1" not in manager.said + manager.rest()
        refused = run("consume", "--handler", "jobs:job", cwd=place, status=4, NOTIFY_SOCKET=manager.address)
        assert "already has a consumer" in refused.stderr
        assert manager.rest() == []
        assert (place / "inbox/stats/1of1.json").read_text() == before


def test_what_a_handler_starts_is_not_the_service(place: Path, manager: Manager) -> None:
    add(place, a=1)
    words = ("--handler", "jobs:environment", "--max-attempts", "1", "--drain")
    run(
        "consume", *words, cwd=place, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="9000000", WATCHDOG_PID="1"
    )
    assert "WATCHDOG=1" not in manager.rest()  # those that WATCHDOG_PID does not name are not asked for signs


def test_a_manager_that_is_gone_is_said_once_and_stops_nothing(place: Path) -> None:
    add(place, a=1)
    done = run("consume", "--handler", "jobs:job", "--drain", cwd=place, NOTIFY_SOCKET=str(place / "none"))
    assert done.stderr.count("cannot tell the service manager: No such file or directory: ") == 1
    assert "1 acknowledged" in done.stderr


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_who_has_no_manager_is_not_observed(address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000", "HOME": "/"}
    assert observers(environment) == []
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(("period", "every"), [("2000000", 1.0), ("0", None), ("", None), ("soon", None)])
def test_the_period_of_the_watchdog_is_believed_if_it_is_one(period: str, every: float | None) -> None:
    (service,) = observers(
        {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": period, "WATCHDOG_PID": str(os.getpid())}
    )
    assert isinstance(service, Service)
    assert service._every == every
    service._socket.close()


def test_without_a_watchdog_it_is_due_only_when_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Manager("./manager") as manager:
        service = Service("./manager", None)
        service.began()
        assert service.due() is None
        with Inbox(tmp_path / "inbox") as inbox:
            inbox.add("a", 1)
            element = inbox.take()
            assert element
            service.started(element, None)
            assert service.due() is not None
            service.tick()  # not yet: at most one a second
            assert manager.rest() == ["READY=1", "STATUS=consuming"]
            service.ended(element, Outcome("done"), "acknowledged", 0.1)
            service.ended(element, Outcome("reject"), "failed", 0.0)  # one that was never handed to a handler
            service._next_status = 0.0
            service.tick()
            assert manager.rest() == ["STATUS=consuming: 1 acknowledged, 1 failed"]
        service.stopped()
        assert manager.rest() == ["STOPPING=1", "STATUS=stopping: 1 acknowledged, 1 failed"]
    everything = Observer()
    everything.standing_by()
    assert everything.due() is None


# --- the units ----------------------------------------------------------------------------------------


def test_the_units_are_understood_by_systemd(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    for unit in UNITS.iterdir():
        # The program is where the reader has it; verify wants one that is there.
        text = unit.read_text().replace("/opt/app/.venv/bin/fsinbox", sys.executable)
        (tmp_path / unit.name.replace("@.", "@x.")).write_text(text)
    units = sorted(str(unit) for unit in tmp_path.iterdir() if unit.suffix in (".service", ".path", ".timer"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", *units],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    ours = [line for line in done.stderr.splitlines() if "fsinbox" in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


def test_the_units_name_commands_and_exit_statuses_that_are_so() -> None:
    from fsinbox.cli.consume import consume
    from fsinbox.cli.exits import EXIT_BUSY, EXIT_USAGE

    known = {option for parameter in consume.params for option in parameter.opts} | {"--inbox"}
    for unit in UNITS.glob("*.service"):
        text = unit.read_text()
        assert set(re.findall(r"^ExecStart=.*?(--[a-z-]+)", text, re.M)) <= known
        assert (
            f"RestartPreventExitStatus={EXIT_USAGE} {EXIT_BUSY}\n" in text
            or f"SuccessExitStatus={EXIT_BUSY}\n" in text
        )
