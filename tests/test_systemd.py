"""Proves that the units of docs/deploy do what docs/running.md says, under a real systemd, sandbox and all.

A systemd of its own is started in a mount namespace of its own, as a manager of user units that root runs: it
is no process 1, and nothing outside sees it. In there /opt/app, /var/spool/fsinbox, /etc/fsinbox and the user
`fsinbox` are as the units expect them. The units are those of docs/deploy, unchanged.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest

import fsinbox
from fsinbox import Inbox
from tests.helpers import wait_until
from tests.machine import disk

ROOT = Path(fsinbox.__file__).parent.parent
MANAGER = "/lib/systemd/systemd"
UID = 54399

START = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/manager/systemd /run/systemd/inaccessible
mkdir -m 0 /run/systemd/inaccessible/dir
: >/run/systemd/inaccessible/reg
mkdir -p /opt /var/spool /etc/fsinbox
mount --bind "$LAB/opt" /opt
mount --bind "$LAB/spool" /var/spool
mount --bind "$LAB/etc" /etc/fsinbox
mount --bind "$LAB/passwd" /etc/passwd
mount --bind "$LAB/group" /etc/group
umask 0  # as process 1 has it: all may write to its socket
exec "$MANAGER" --user --log-level=info
"""


def interpreter() -> str:
    """Return a Python that the sandbox does not hide, as it does the homes; "" if there is none."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        if os.path.exists(python) and not os.path.realpath(python).startswith(("/root/", "/home/", "/tmp/")):
            code = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([python, "-c", code]).returncode == 0:
                return os.path.realpath(python)
    return ""


def why_not() -> str:
    """Return why no systemd can be started here; "" if one can."""
    if os.geteuid() != 0:
        return "not root: may not mount"
    for program in (MANAGER, "systemctl", "unshare", "nsenter"):
        if not shutil.which(program):
            return f"no {program}: not installed"
    return "" if interpreter() else "no Python 3.11 outside of the homes, which the units hide"


WHY_NOT = why_not()

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no systemd is started: {WHY_NOT}")


def needed() -> Iterator[str]:
    """Yield the distributions that fsinbox needs, and what these need."""
    todo, seen = ["fsinbox"], set()
    while todo:
        for line in importlib.metadata.requires(todo.pop()) or ():
            name = line.partition(";")[0].strip().split(" ")[0]
            name = name.rstrip("0123456789.<>=!~,* ")
            if ";" not in line and name not in seen:
                seen.add(name)
                todo.append(name)
                yield name


class Systemd:
    """A manager, and what the units expect to find."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.spool = place / "spool" / "fsinbox"
        self.inbox = self.spool / "jobs"
        self.env = place / "etc" / "jobs.env"
        app = place / "opt" / "app"
        for folder in (app / ".venv" / "bin", app / "site", self.spool, place / "etc", place / "home"):
            folder.mkdir(parents=True)
        # A copy of the program: the sandbox hides /tmp and the homes, where a checkout may be.
        shutil.copytree(ROOT / "fsinbox", app / "site" / "fsinbox")
        for name in needed():
            for file in importlib.metadata.files(name) or ():
                if ".." not in file.parts:
                    (app / "site" / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(file.locate()), app / "site" / file)
        program = app / ".venv" / "bin" / "fsinbox"
        program.write_text(
            f"#!{interpreter()}\nimport sys\nsys.path.insert(0, '/opt/app/site')\n"
            "from fsinbox.cli import main\nmain()\n"
        )
        program.chmod(0o755)
        for name, line in {
            "passwd": f"fsinbox:x:{UID}:{UID}::/nonexistent:/usr/sbin/nologin\n",
            "group": f"fsinbox:x:{UID}:\n",
        }.items():
            (place / name).write_text(Path("/etc", name).read_text() + line)
        for unit in ("fsinbox@", "fsinbox-drain@"):
            dropin = place / "units" / f"{unit}.service.d" / "output.conf"
            dropin.parent.mkdir(parents=True)
            dropin.write_text(f"[Service]\nStandardError=append:{place}/output\n")  # there is no journal
        with Inbox(self.inbox):
            pass
        for folder, _, files in os.walk(self.spool):
            for name in (".", *files):
                os.chown(Path(folder, name), UID, UID)
        self.log = (place / "log").open("w")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", START],
            env={
                "PATH": os.environ["PATH"],
                "LAB": str(place),
                "MANAGER": MANAGER,
                "HOME": str(place / "home"),
                "XDG_RUNTIME_DIR": "/run/manager",
                "SYSTEMD_UNIT_PATH": f"{ROOT / 'docs' / 'deploy'}:{place / 'units'}:",
            },
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run systemctl."""
        return self.run("env", "XDG_RUNTIME_DIR=/run/manager", "systemctl", "--user", "--no-pager", *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command where systemd is."""
        inside = ["nsenter", "-t", str(self.process.pid), "--mount"]
        return subprocess.run([*inside, *words], capture_output=True, text=True, timeout=60)

    def show(self, unit: str, what: str) -> str:
        return self("show", "--value", f"--property={what}", unit).stdout.strip()

    def until(self, unit: str, what: str, value: str, patience: float = 60) -> None:
        """Wait until a property has a value."""

        def has() -> bool:
            sleep(0.2)  # each look is a process
            return self.show(unit, what) == value

        wait_until(has, f"for {what} of {unit} to be {value}", patience)

    def said(self) -> str:
        """Return what systemd and the services said."""
        return "".join(
            path.read_text() for path in (self.place / "log", self.place / "output") if path.exists()
        )

    def end(self) -> None:
        self("exit")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()

    def add(self, key: str) -> None:
        """As the user: what root adds the consumer may not read."""
        user = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
        added = self.run(
            *user, "/opt/app/.venv/bin/fsinbox", "--inbox", "/var/spool/fsinbox/jobs", "add", key, "1"
        )
        assert added.returncode == 0, added.stderr

    def is_empty(self) -> bool:
        return not any(
            list((self.inbox / folder).iterdir()) for folder in ("pending", "inflight", "deferred")
        )


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    place = disk() / f"fsinbox-systemd-{os.getpid()}"
    with open(
        f"{place.parent}/fsinbox-systemd-lock", "w"
    ) as one_at_a_time:  # they would share control groups
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        yield from started(place)


def started(place: Path) -> Iterator[Systemd]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o755)
    systemd = Systemd(place)
    try:
        wait_until(lambda: systemd.process.poll() or systemd("list-units").returncode == 0, "for systemd", 30)
        if systemd.process.poll() is not None:
            pytest.skip(f"systemd does not run here: {(place / 'log').read_text()[-300:]}")
        yield systemd
        print(systemd.said())
    finally:
        systemd.end()
        shutil.rmtree(place)


SERVICE = "fsinbox@jobs.service"


def test_the_service_is_ready_works_restarts_after_a_kill_and_stops(systemd: Systemd) -> None:
    systemd.env.write_text("FSINBOX_CONSUME_EXEC=true\n")
    started = systemd("start", SERVICE)
    assert started.returncode == 0, started.stderr + systemd.said() + systemd("status", SERVICE).stdout
    assert systemd.show(SERVICE, "SubState") == "running"
    assert systemd.show(SERVICE, "StatusText")
    systemd.add("a")
    wait_until(systemd.is_empty)
    systemd("kill", "--kill-who=main", "--signal=SIGKILL", SERVICE)
    systemd.until(SERVICE, "NRestarts", "1")
    systemd.until(SERVICE, "SubState", "running")
    systemd.add("b")
    wait_until(systemd.is_empty)
    assert systemd("stop", SERVICE).returncode == 0
    assert systemd.show(SERVICE, "Result") == "success"
    assert systemd.show(SERVICE, "ActiveState") == "inactive"


def test_the_service_gives_up_where_another_start_would_not_help(systemd: Systemd) -> None:
    systemd.env.write_text("FSINBOX_CONSUME_HANDLER=no_such_module:work\n")
    assert systemd("start", SERVICE).returncode != 0
    assert systemd.show(SERVICE, "ActiveState") == "failed"
    assert systemd.show(SERVICE, "ExecMainStatus") == "2"
    assert systemd.show(SERVICE, "NRestarts") == "0"


def test_the_path_unit_starts_a_drain_for_each_arrival(systemd: Systemd) -> None:
    systemd.env.write_text("FSINBOX_CONSUME_EXEC=true\n")
    assert systemd("start", "fsinbox-drain@jobs.path").returncode == 0
    drain = "fsinbox-drain@jobs.service"
    assert systemd.show(drain, "ActiveState") == "inactive"
    for key in ("a", "b"):
        systemd.add(key)
        wait_until(systemd.is_empty, patience=60)
        systemd.until(drain, "ActiveState", "inactive")
        assert systemd.show(drain, "Result") == "success"
    assert systemd.show("fsinbox-drain@jobs.path", "SubState") == "waiting"


@pytest.mark.long
def test_the_timer_starts_a_drain(systemd: Systemd) -> None:
    systemd.env.write_text("FSINBOX_CONSUME_EXEC=true\n")
    systemd.add("a")
    assert systemd("start", "fsinbox-drain@jobs.timer").returncode == 0
    wait_until(systemd.is_empty, patience=90)
    assert systemd.show("fsinbox-drain@jobs.timer", "ActiveState") == "active"
