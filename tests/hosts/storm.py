"""A storm on two hosts that share an inbox over the network: kills, cuts, restarts of the server, and a host
that dies.

    python -m tests.hosts.storm [--adds N] [--seconds LIMIT] [--seed N] [--skew SECONDS]
    [--batch N] [--pause SECONDS] [--calm TIMES]     in a lab: `scripts/hosts-lab storm`
    python -m tests.hosts.storm --judge FOLDER [KEY]     judges the logs that a
    failed storm has left; shows what happened to KEY

On both hosts producers add one by one, in batches, flushed and not, and with mv from a shell; most keys are
shared between all of them, some are used once. On each host stands a consumer; one is active, the other is
refused and tries again. At random moments a program is killed with SIGKILL, a host is cut off for a while
(some times for longer than any lease), the server restarts, and the host with the active consumer is cut off
and that consumer killed, so that the other one must take over. In the end all are healed and killed, a
consumer drains the inbox, and the oracle of all harnesses (tests/oracle.py) judges what was announced. On top
of that: nothing may be delivered to a consumer after another one has taken over from it, and what it could
not acknowledge for that reason must come again.

The director itself never touches the share: whoever does may block for as long as a host is cut off. The same
seed draws the same keys, kills and cuts, but not the same moments.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import monotonic, monotonic_ns, sleep

from tests.driver import TORN
from tests.hosts.programs import CONSUMERS, PRODUCERS
from tests.oracle import Event, judge, judge_order
from tests.storm.history import history, look

PROGRAMS = {"a": ("one", "durable", "many", "mv", "take"), "b": ("one", "durable", "many", "mv", "take")}

LEASE = 6.0
"""Seconds without a sign of life after which another consumer may take over."""

PATIENCE = 90.0
"""Seconds within which a standby must have taken over from a dead host: its lease, the server's (GlusterFS:
its client's patience with a silent server, 42 s), and all retries."""


class Host:
    """One host: its agent, and the programs on it."""

    def __init__(self, name: str, folder: Path, mount: str, counters: str, settings: dict) -> None:
        self.name = name
        self.cut = False
        command = ["lab-control", "on", name, sys.executable, "-m", "tests.hosts.programs"]
        command += [str(folder), name, f"{mount}/inbox", counters, json.dumps(settings)]
        self._agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._mutex = threading.Lock()

    def wait_until_ready(self) -> None:
        """Wait until the agent has imported all it needs."""
        if self._answer() != "ready":
            raise AssertionError(f"the agent of host {self.name} did not start")

    def start(self, kind: str, who: str, slot: int) -> int:
        """Start a program; return its process id."""
        with self._mutex:
            assert self._agent.stdin
            self._agent.stdin.write(f"start {kind} {who} {slot}\n")
            self._agent.stdin.flush()
            return int(self._answer())

    def _answer(self) -> str:
        assert self._agent.stdout
        return self._agent.stdout.readline().strip()

    def close(self) -> None:
        """End the agent; whatever it has started is killed with it."""
        assert self._agent.stdin
        self._agent.stdin.close()
        self._agent.wait(10)


def is_there(pid: int) -> bool:
    """Tell whether any process of this group is left (one that is blocked on a cut mount is)."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def control(*words: str) -> None:
    """Tell the lab to do something."""
    subprocess.run(["lab-control", *words], check=True, stdin=subprocess.DEVNULL, timeout=150)


class Director:
    """One storm. Leaves the logs in `folder`."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.random = random.Random(options.seed)
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.takeovers: list[float] = []
        self._running: dict[tuple[str, str], int] = {}  # host and kind -> process
        self._killed: list[int] = []
        self._started = 0
        self._absent: set[str] = set()  # hosts whose consumer is not to be started
        self._mutex = threading.RLock()
        self._over = threading.Event()
        for name in ("logs", "notes"):
            (folder / name).mkdir()
        (folder / "errors").touch()
        # In memory: on the job's folder, which may be shared with another kernel, a mapping need not be.
        self._counters_file = tempfile.NamedTemporaryFile(dir="/dev/shm")  # noqa: SIM115 - to our end
        self._counters_file.truncate(mmap.PAGESIZE)
        self._counters = memoryview(mmap.mmap(self._counters_file.fileno(), mmap.PAGESIZE)).cast("Q")
        clocks = {f"{kind}-a": options.skew for kind in PRODUCERS} | {"take-b": -options.skew}
        settings = {"seed": options.seed, "lease": LEASE, "in_line": options.seed % 2 == 0, "skew": clocks}
        settings |= {"batch": options.batch, "pause": options.pause}
        self.hosts = {
            name: Host(name, folder, os.environ[f"LAB_{name.upper()}"], self._counters_file.name, settings)
            for name in "ab"
        }

    # --- programs ---

    def start(self, host: str, kind: str) -> int:
        """Start a program."""
        with self._mutex:
            self._started += 1
            slots = list(PRODUCERS)
            slot = (slots.index(kind) if kind in slots else len(slots)) + (8 if host == "b" else 0)
            pid = self.hosts[host].start(kind, f"{kind}_{host}-{self._started}", slot)
            self._running[host, kind] = pid
            return pid

    def kill(self, host: str, kind: str) -> None:
        """Kill a program and its children; they may be blocked, so nobody waits for them."""
        with self._mutex:
            pid = self._running.pop((host, kind))
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                self.wrong.append(f"ended: {kind} on host {host} had ended by itself")
            self._killed.append(pid)

    def run(self, host: str, kind: str, limit: float) -> None:
        """Run a program to its end."""
        pid = self.start(host, kind)
        self._await(pid, limit, f"{kind} on host {host}")
        self._running.pop((host, kind), None)

    def _await(self, pid: int, limit: float, what: str) -> bool:
        until = monotonic() + limit
        while is_there(pid):
            if monotonic() > until:
                self.wrong.append(f"stuck: {what} is not done after {limit:.0f} s")
                self._ask_where()
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                return False
            sleep(0.05)
        return True

    def _ask_where(self) -> None:
        """Let every program in Python say where it is (FOLDER/said)."""
        with self._mutex, open(self.folder / "said", "a") as said:
            for (host, kind), pid in self._running.items():
                where = Path(f"/proc/{pid}/stack")
                try:
                    kernel = where.read_text()
                except OSError:
                    kernel = ""
                said.write(f"--- {kind} on host {host}, process {pid}\n{kernel}")
                said.flush()
                try:
                    os.kill(pid, signal.SIGUSR1)
                except ProcessLookupError:
                    pass
                sleep(0.2)

    def adds(self) -> int:
        """Return how many adds have returned."""
        return sum(self._counters[:16])

    def active(self) -> str:
        """Return the host of the consumer: the last one that became it."""
        try:
            return (self.folder / "consumers").read_text().splitlines()[-1].split()[1][-1]
        except (FileNotFoundError, IndexError):
            return "b"

    # --- what happens to them ---

    def _kill_someone(self) -> None:
        with self._mutex:
            there = [
                key for key in self._running if not self.hosts[key[0]].cut or self.random.random() < 0.25
            ]
            consumers = [key for key in there if key[1] in CONSUMERS]
            producers = [key for key in there if key[1] in PRODUCERS]
            choice = consumers if self.random.random() < 0.2 else producers
            if not choice:
                return
            host, kind = self.random.choice(choice)
            self.kill(host, kind)
            self.did["kills"] += 1
            if kind not in CONSUMERS or host not in self._absent:
                self.start(host, kind)

    def _note(self, text: str) -> None:
        with open(self.folder / "incidents", "a") as file:
            file.write(f"{monotonic_ns()} {text}\n")

    def cut(self, host: str) -> None:
        """Cut a host off."""
        self._note(f"cut {host}")
        self.hosts[host].cut = True
        control("cut", host)
        self.did["cuts"] += 1

    def heal(self, host: str) -> None:
        """Let its packets pass again."""
        control("heal", host)
        self.hosts[host].cut = False
        self._note(f"heal {host}")

    def restart(self) -> None:
        """Restart the server."""
        self._note("restart")
        control("restart")
        self._note("restarted")
        self.did["restarts"] += 1

    def _cut_briefly(self) -> None:
        self._cut_for(self.random.uniform(3, 8))

    def _cut_for_long(self) -> None:
        self._cut_for(self.random.uniform(12, 20))

    def _cut_for(self, seconds: float) -> None:
        host = self.active() if self.random.random() < 0.5 else self.random.choice("ab")
        self.cut(host)
        self._over.wait(seconds)
        self.heal(host)

    def _restart_while_cut(self) -> None:
        host = self.random.choice("ab")
        self.cut(host)
        self._over.wait(self.random.uniform(1, 4))
        self.restart()
        self._over.wait(self.random.uniform(1, 4))
        self.heal(host)

    def _die(self) -> None:
        """A host is cut off with the consumer on it, which never comes back: the other one must take over."""
        host = self.active()
        other = "a" if host == "b" else "b"
        with self._mutex:
            self._absent.add(host)
        began = monotonic()
        self.cut(host)
        sleep(self.random.uniform(0, 1))
        with self._mutex:
            if (host, "take") in self._running:
                self.kill(host, "take")
                self.did["kills"] += 1
        while self.active() != other:
            if monotonic() - began > PATIENCE:
                self.wrong.append(f"dead: nobody took over from host {host} within {PATIENCE:.0f} s")
                self._ask_where()
                break
            sleep(0.1)
        else:
            self.takeovers.append(monotonic() - began)
        self._over.wait(self.random.uniform(1, 3))
        self.heal(host)
        with self._mutex:
            self._absent.discard(host)
            self.start(host, "take")

    def _incidents(self) -> None:
        """One after the other: each kind once, then as they come."""
        first: list[Callable[[], None]] = [self._die, self.restart, self._cut_briefly]
        self.random.shuffle(first)
        kinds = [
            self._die,
            self.restart,
            self._cut_briefly,
            self._cut_briefly,
            self._cut_for_long,
            self._restart_while_cut,
        ]
        try:
            # (--calm: while a host is cut off little is added.)
            while not self._over.wait(self.random.uniform(1, 4) * (1 if first else self.options.calm)):
                (first.pop() if first else self.random.choice(kinds))()
                self.did["incidents"] += 1
        except BaseException as error:
            self.wrong.append(f"broken: the lab did not do what it was told: {error!r}")

    def blow(self) -> None:
        """Until all adds are done, and each kind of incident has happened."""
        options = self.options
        for host in self.hosts.values():
            host.wait_until_ready()
        self.run("a", "create", 60)
        for host, kinds in PROGRAMS.items():
            for kind in kinds[::-1] if host == "b" else kinds[:-1]:
                self.start(host, kind)
        began = monotonic()
        self._over.wait(1)
        self.start("a", "take")  # the standby
        incidents = threading.Thread(target=self._incidents)
        incidents.start()
        try:
            while self.adds() < options.adds or self.did["incidents"] < 3:
                if monotonic() - began > options.seconds:
                    self.wrong.append(
                        f"slow: after {options.seconds} s there are {self.adds()} of {options.adds} adds, "
                        f"{self.did['incidents']} of 3 incidents"
                    )
                    break
                if self.wrong or (self.folder / "errors").stat().st_size:
                    break
                sleep(self.options.calm * min(3.0, self.random.expovariate(1.0)))
                self._kill_someone()
        finally:
            self._over.set()
            incidents.join()
        self.blown = monotonic() - began
        self.end()

    def end(self) -> None:
        """Heal all, kill all, and drain."""
        for name, host in self.hosts.items():
            if host.cut:
                self.heal(name)
        for host, kind in list(self._running):
            self.kill(host, kind)
        if self.options.on == "gluster":
            # Its client may never answer a process that was killed, or cut off, while it waited for a lock,
            # nor free that: both clients die, too. (What was acknowledged must not have been only theirs.)
            for name in self.hosts:
                control("remount", name)
        until = monotonic() + 90
        while (hung := [pid for pid in self._killed if is_there(pid)]) and monotonic() < until:
            sleep(0.05)
        if hung:
            self.wrong += [f"stuck: process {pid} was killed, and is not done after 90 s" for pid in hung]
            self._ask_where()
            return
        began = monotonic()
        self.run("b", "drain", 300)
        self.drained = monotonic() - began
        if not (self.folder / "drained").exists():
            self.wrong.append("drain: the last consumer did not come to its end")

    blown = drained = 0.0


# --- what it left -------------------------------------------------------------------------------------


def notes(folder: Path) -> list[tuple[str, str, int, str]]:
    """Return what was noted: what, who, when, and a text."""
    found = []
    for log in (folder / "notes").iterdir():
        for line in log.read_text(errors="replace").splitlines():
            words = line.split(" ", 3)
            if len(words) >= 3 and words[2].isdigit():
                found.append((words[0], words[1], int(words[2]), words[3] if len(words) > 3 else ""))
    return sorted(found, key=lambda note: note[2])


def restarts_of(folder: Path) -> list[int]:
    """Return when the server was killed, and started again."""
    return [int(line.split()[0]) for line in _lines(folder / "incidents") if line.split()[1] == "restart"]


def fenced(folder: Path, events: list[Event]) -> tuple[list[Event], list[str]]:
    """Return the events as the oracle should see them, and what is wrong with those of consumers that were
    replaced.

    What such a consumer announces as its end of an element did not happen: it is its successor's. And an
    acknowledgement that was refused because another one had taken over is none, so the element must be
    delivered again. (Unless the server restarted meanwhile: then it may have done it and have forgotten that
    it had.)
    """
    restarts = restarts_of(folder)
    refused = {}
    for what, who, t, text in notes(folder):
        if what == "not-acknowledged":
            refused[who, text.split()[0]] = t
    gone: set[str] = set()
    wrong: list[str] = []
    seen: list[Event] = []
    for event in events:
        if event.what == "died":
            gone.add(event.who)
        elif event.what in ("ack", "nack"):
            if event.who in gone:
                continue
            until = refused.get((event.who, event.key))
            if (
                event.what == "ack"
                and until
                and not any(event.t <= t <= until for t in restarts)
                and _is_last(events, event)
            ):
                event = event._replace(what="nack")
        elif event.what == "deliver" and event.who in gone:
            wrong.append(
                f"fenced: key {event.key}: {event.value} was delivered to {event.who} after another had "
                "taken over"
            )
        seen.append(event)
    return seen, wrong


def _is_last(events: list[Event], ack: Event) -> bool:
    """Tell whether this is the last acknowledgement of the key by that consumer."""
    return ack.t == max(
        event.t for event in events if (event.what, event.who, event.key) == ("ack", ack.who, ack.key)
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


def cut_by_restart(folder: Path, events: list[Event]) -> set[str]:
    """Return the keys that were being added to when the server was killed, and the add raised.

    GlusterFS may lose a file during whose rename all its bricks are killed at once: renames.py shows it with
    rename(2) alone. So of these keys nothing is certain there.
    """
    restarts = restarts_of(folder)
    raised = [(who, t) for what, who, t, _ in notes(folder) if what == "add-raised"]
    ended = {(event.who, event.value) for event in events if event.what == "add_end"}
    cut = set()
    for event in events:
        if event.what == "add_start" and (event.who, event.value) not in ended:
            cut |= {
                event.key for t in restarts for who, at in raised if who == event.who and event.t < t < at
            }
    return cut


def verdict(folder: Path, *, in_line: bool, on: str = "") -> tuple[list[Event], list[str]]:
    """Return what happened, and what is wrong with it. (Where the inbox was not drained, nothing is missed
    yet.)"""
    events, wrong = fenced(folder, history(folder))
    if not (folder / "drained").exists():
        return events, wrong + judge(events, drained=False)
    unsure = tuple(f"missed: key {key}:" for key in cut_by_restart(folder, events)) if on == "gluster" else ()
    for text in look(folder, events, in_line=False):
        if unsure and text.startswith(unsure):
            print(f"not held against fsinbox, for its rename was cut by the restart of all bricks: {text}")
        else:
            wrong.append(text)
    if in_line:
        wrong += judge_order([event for event in events if event.key.startswith("once-")])
    return events, wrong


def figures(director: Director, events: list[Event], wrong: list[str]) -> str:
    """Return the line that says what was done."""
    adds = sum(event.what == "add_end" for event in events)
    deliveries = sum(event.what == "deliver" for event in events)
    kinds = Counter(text.partition(":")[0] for text in wrong)
    noted = Counter(note[0] for note in notes(director.folder))
    hosts = [line.split()[1] for line in _lines(director.folder / "consumers")]
    changes = sum(one != other for one, other in pairwise(hosts))
    torn = sum(event.what == "deliver" and event.value == TORN for event in events)
    longest = (
        f" (from a dead host in {max(director.takeovers):.1f} s at the most)" if director.takeovers else ""
    )
    return (
        f"{director.options.on}: {adds:,} adds, {adds / max(director.blown, 0.1):.0f} adds/s, {deliveries:,} "
        "deliveries, "
        f"{director.did['kills']} kills, {director.did['cuts']} cuts, {director.did['restarts']} restarts, "
        f"{changes} take-overs by the other host{longest}, {noted['lease-lost']} leases lost, "
        f"{noted['add-raised']} adds and {noted['take-raised']} takes raised, "
        f"{kinds['missed']} lost, {torn} torn, {kinds['older']} older after newer, {len(wrong)} wrong in "
        "all; "
        f"blew {director.blown:.0f} s, drained {director.drained:.0f} s"
    )


def main() -> None:
    """Blow, judge, and say so."""
    parser = argparse.ArgumentParser(description="A storm on two hosts; in a lab: see scripts/hosts-lab")
    parser.add_argument("--on", default="nfs4.2", help="what the lab is: only for the report")
    parser.add_argument("--adds", type=int, default=3000, help="adds at the least")
    parser.add_argument("--batch", type=int, default=50, help="values a call of add_many")
    parser.add_argument("--pause", type=float, default=0, help="seconds after each add that is in no batch")
    parser.add_argument("--calm", type=float, default=1, help="so many times as long between kills and cuts")
    parser.add_argument("--seconds", type=float, default=600, help="it is a failure not to be done by then")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--skew",
        type=float,
        default=0,
        help="seconds: producers on a see a clock ahead, the consumer on b one behind",
    )
    parser.add_argument(
        "--judge", nargs="+", metavar=("FOLDER", "KEY"), help="only judge what is in this folder"
    )
    options = parser.parse_args()
    if options.judge:
        rejudge(Path(options.judge[0]), options.judge[1:], options.on)
        return
    folder = Path(tempfile.mkdtemp(prefix="storm-", dir=os.environ["LAB_JOB"]))
    director = Director(options, folder)
    try:
        director.blow()
        form = Path(os.environ["LAB_A"], "inbox", "format").read_text().strip()
        if "network" not in form:
            director.wrong.append(f"scope: the inbox was made as {form!r}")
        (folder / "inbox").symlink_to(Path(os.environ["LAB_A"], "inbox"))
        events, wrong = verdict(folder, in_line=options.seed % 2 == 0, on=options.on)
        wrong = director.wrong + [f"error: {line}" for line in _lines(folder / "errors") if line] + wrong
        if wrong:
            director.run("a", "keep", 120)
    finally:
        for host in director.hosts.values():
            host.close()
    print("storm:", figures(director, events, wrong))
    if wrong:
        print("\n".join(wrong[:30]))
        (folder / "wrong").write_text("\n".join(wrong) + "\n")
        print(
            f"its logs: {folder}; judge them again: python -m tests.hosts.storm --on {options.on} "
            f"--judge {folder} [KEY]"
        )
        sys.exit(1)


def rejudge(folder: Path, keys: list[str], on: str) -> None:
    """Judge again what is in a folder, where the inbox was kept."""
    if not (folder / "inbox").exists():
        (folder / "inbox").unlink(missing_ok=True)
        (folder / "inbox").symlink_to("inbox-kept")
    events, wrong = verdict(folder, in_line=False, on=on)
    for event in events:
        if keys and (event.key in keys or event.what == "died"):
            print(f"{event.t:.0f}", *event[:4])
    print("\n".join(wrong[:50]) or "nothing is wrong")


if __name__ == "__main__":
    main()
