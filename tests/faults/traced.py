"""Real processes under strace: which calls they make, and one of them killed, or failed, at a given one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .zygote import TRACED

ROOT = Path(__file__).parents[2]

NEVER = frozenset(
    "brk mmap munmap mprotect madvise mremap futex getppid clock_nanosleep nanosleep getpid gettid getrandom "
    "rt_sigaction "
    "rt_sigprocmask rt_sigreturn set_robust_list set_tid_address rseq prlimit64 arch_prctl sched_yield "
    "execve restart_syscall "
    "clone clone3 fork vfork wait4 exit exit_group sysinfo getuid geteuid getgid getegid prctl".split()
)
"""Calls that change nothing outside the process, or (exit) come when all is done; several of them vary in
number from run to run. A process that is killed at one of them is as it is when killed at the next."""


@dataclass(frozen=True)
class Point:
    """The `number`-th time (from 1) that a process makes a call."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call}.{self.number}"


def inject(point: Point, how: str) -> list[str]:
    """Return strace's options for this: `how` is an error's name, or "SIGKILL"."""
    what = "signal=SIGKILL" if how == "SIGKILL" else f"error={how}"
    return ["-e", f"trace={point.call},getppid", "-e", f"inject={point.call}:{what}:when={point.number}"]


ALL = ["-e", f"trace=!{','.join(sorted(NEVER - {'getppid'} - {'fork', 'vfork'}))}"]
"""strace's options to see every call that counts."""


def points(trace: str) -> list[Point]:
    """Return the calls that a trace shows: of each process its first, second, ... of a name."""
    most: Counter[str] = Counter()
    of_process: Counter[tuple[str, str]] = Counter()
    for line in trace.splitlines():
        match = re.match(r"(?:(\d+) +)?(\w+)\(", line)
        if match and match[2] not in NEVER:
            of_process[match[1] or "", match[2]] += 1
            most[match[2]] = max(most[match[2]], of_process[match[1] or "", match[2]])
    return [Point(call, number) for call, count in sorted(most.items()) for number in range(1, count + 1)]


def hits(trace: str) -> int:
    """Return how often a trace shows that something was injected."""
    return trace.count("(INJECTED)") + trace.count("+++ killed by SIGKILL +++")


class Zygote:
    """Starts children that are traced from the moment that counts."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "trace"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: dict[str, Any], options: list[str]) -> tuple[int, str]:
        """Have a child do a job under strace with these options; return its exit status (-9: killed), and the
        trace."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        command = [
            "strace",
            "-f",
            "-qq",
            "-o",
            str(self.trace),
            *options,
            "-e",
            f"inject=getppid:retval={TRACED}",
            "-p",
            str(child),
        ]
        strace = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if "ptrace" in strace.stderr or "attach" in strace.stderr:
            os.kill(child, 9)
            pytest.skip(f"strace may not trace here: {strace.stderr.strip()}")
        status = int(self._process.stdout.readline())
        trace = self.trace.read_text(errors="replace")
        return status, "\n".join(line for line in trace.splitlines() if "getppid" not in line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


STAND_IN = """#!/bin/sh
# Stands for a command that fsinbox-add runs: the one whose turn it is runs under strace.
read -r turn <"$FAULTS_TURN"
echo $((turn + 1)) >"$FAULTS_TURN"
PATH=$FAULTS_PATH
export PATH
[ "$turn" != "$FAULTS_AT" ] || exec strace -f -qq -o "$FAULTS_TRACE" $FAULTS_OPTIONS "${0##*/}" "$@"
exec "${0##*/}" "$@"
"""

COMMANDS = "cut dd flock head ls mv od rm sort stat sync tr".split()


class Shell:
    """Runs scripts/fsinbox-add, with strace on the shell itself, or on one of the commands that it runs."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "trace"
        self._turn = folder / "turn"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in COMMANDS:
            (self._bin / name).write_text(STAND_IN)
            (self._bin / name).chmod(0o700)

    def run(self, inbox: Path, pair: tuple[str, bytes], at: int, options: list[str]) -> tuple[int, str, str]:
        """Add; return exit status, standard error and the trace. `at`: which command is traced, from 0; -1:
        the shell."""
        self.trace.write_text("")
        self._turn.write_text("0\n")
        path = os.environ["PATH"]
        environment = os.environ | {
            "FAULTS_TURN": str(self._turn),
            "FAULTS_AT": str(at),
            "FAULTS_PATH": path,
            "FAULTS_TRACE": str(self.trace),
            "FAULTS_OPTIONS": " ".join(options),
        }
        command = ["/bin/sh", str(ROOT / "scripts" / "fsinbox-add"), "--inbox", str(inbox), pair[0]]
        if at < 0:
            command = ["strace", "-qq", "-o", str(self.trace), *options, *command]
        else:
            environment["PATH"] = f"{self._bin}:{path}"
        # Its output is read to the end: no child of a killed shell is still at work then.
        done = subprocess.run(command, input=pair[1], capture_output=True, env=environment, timeout=60)
        return done.returncode, done.stderr.decode(errors="replace"), self.trace.read_text(errors="replace")

    def commands(self) -> int:
        """Return how many commands the last run ran."""
        return int(self._turn.read_text())
