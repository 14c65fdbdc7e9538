"""A process that has imported everything, and forks one that does what each line it reads says.

So there is no start-up to wait for, or to trace. A line is JSON; `tests.faults.traced.Zygote` writes it. The
child does not begin before it is traced: strace makes getppid(2) return TRACED then. (By a return value, not
by a signal: the child has made no call that counts.)
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import pkgutil
import sys
from time import monotonic_ns, sleep
from typing import Any

import filelock  # noqa: F401 - as all of these: a child must not be the one to import it
import pathspec  # noqa: F401

import fsinbox.cli.adding
import fsinbox.cli.commands
import fsinbox.cli.consuming
import fsinbox.consumer.consumer
import fsinbox.consumer.ingest
import fsinbox.consumer.watch
import fsinbox.store.transfer
import fsinbox.worker.functions
from tests.driver import Log, spell, value_of
from tests.faults.programs import SCENARIOS, Program, prepared
from tests.oracle import Event

for storey in ("store", "consumer", "operate", "worker", "cli"):
    package = importlib.import_module(f"fsinbox.{storey}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

TRACED = 77

_answers = 1
"""Descriptor for answers."""

_ANYBODY = (0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, PR_SET_PTRACER_ANY: prctl(2)


def wait_for_tracer() -> None:
    """Say which process this is, and wait until strace has attached to it."""
    ctypes.CDLL(None).prctl(*_ANYBODY, 0, 0, 0)
    os.write(_answers, b"%d\n" % os.getpid())
    while os.getppid() != TRACED:
        sleep(0.0003)


def do_scenario(job: dict[str, Any]) -> int:
    """Do a scenario's words, announced in a log."""
    scenario = SCENARIOS[job["scenario"]]
    log = Log("program", job["log"])
    program: Program = prepared(scenario, job["inbox"], log, job["elsewhere"])
    wait_for_tracer()
    for word in scenario.words.split():
        program.do(word)
    program.stop()
    return 1 if program.refused or program.wrong else 0


def do_command(job: dict[str, Any]) -> int:
    """Be the command line."""
    for number, (name, flags) in enumerate(
        ((job["stdin"], os.O_RDONLY), (job["stderr"], os.O_WRONLY | os.O_CREAT))
    ):
        fd = os.open(name, flags, 0o600)
        os.dup2(fd, number * 2)  # 0 and 2
        os.close(fd)
    os.dup2(2, 1)
    sys.argv = ["fsinbox", *job["command"]]
    os.environ["FAULTS_LOG"] = job["log"]
    logging.disable(logging.NOTSET)
    wait_for_tracer()
    try:
        fsinbox.cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)
    return 0


def handle(key: str, value: bytes) -> None:
    """The handler of `fsinbox consume`: announces."""
    log = Log("program", os.environ["FAULTS_LOG"])
    deliver = Event("deliver", "program", key, value_of(value), monotonic_ns())
    os.write(log._fd, spell(deliver) + spell(deliver._replace(what="ack")))  # both, or (if it fails) neither
    log.close()


def main() -> None:
    """Fork a child for each line; the answers are its process id, when it is ready, and how it ended."""
    global _answers
    _answers = os.dup(1)
    logging.disable()
    sys.modules["tests.faults.zygote"] = sys.modules["__main__"]  # so it need not be imported for its handler
    fsinbox.consumer.consumer._LOOK_INTERVAL = (
        0.0  # else the number of calls would depend on how long they take
    )
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            status = 70
            try:
                status = do_scenario(job) if "scenario" in job else do_command(job)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        os.write(_answers, b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
