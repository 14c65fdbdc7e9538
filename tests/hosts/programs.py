"""The programs of a storm on two hosts: each adds, or takes, until it is killed, and announces what it does.

    lab-control on HOST python -m tests.hosts.programs FOLDER HOST INBOX COUNTERS SETTINGS

is the agent of one host: a process in that host's network, with its name, that forks a program for each line
it reads (`start KIND WHO`), and answers with the program's process id. It has imported everything, so a start
costs milliseconds; and it never touches the mount itself, so it never blocks however long the host is cut
off.

Logs lie in FOLDER, outside of the share, in the form of tests/driver.py; what the oracle does not judge
(errors that are allowed, take-overs) goes to FOLDER/notes, a line each. An add that raises is unknown: its
end is not announced.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic, monotonic_ns, sleep

from fsinbox import Element, Inbox, InboxBusy, LeaseLost, UnusableInbox
from tests.driver import payload, spell, value_of
from tests.oracle import Event
from tests.storm.programs import end

KEYS = 30
"""Keys that the producers of both hosts share at any one time, a few of them hot. Others are added once
each."""

PERIOD = 2_000_000_000
"""Nanoseconds after which all go on to other keys: so that for many keys it shows whether the last value has
come."""

_PR_SET_PDEATHSIG = 1


class Me:
    """What a program knows of itself."""

    def __init__(self, folder: Path, who: str, inbox: str, settings: dict, counters: memoryview) -> None:
        """`counters`: adds that returned, and deliveries, shared by all."""
        self.folder = folder
        self.who = who
        self.inbox = inbox
        self.settings = settings
        self.random = random.Random(f"{settings['seed']}-{who}")
        self.in_line: bool = settings["in_line"]
        self.made = 0
        self._counters = counters
        self._log = self._append("logs", f"{who}.log")
        self._notes = self._append("notes", f"{who}.log")

    def _append(self, *path: str) -> int:
        return os.open(self.folder.joinpath(*path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, what: str, *pairs: tuple[str, str], who: str = "") -> None:
        """Announce an event for each (key, value), all at one moment, with one system call."""
        now = monotonic_ns()
        os.write(
            self._log,
            b"".join([spell(Event(what, who or self.who, key, value, now)) for key, value in pairs]),
        )

    def note(self, what: str, text: object = "") -> None:
        """Note what the oracle does not judge."""
        os.write(self._notes, f"{what} {self.who} {monotonic_ns()} {text}\n".encode())

    def count_adds(self, times: int = 1) -> None:
        """Count adds that returned: each slot belongs to one program at a time."""
        self._counters[self.settings["slot"]] += times

    def choose(self) -> tuple[str, str]:
        """Return a key, and a value that nobody has given it before; now and then a key of its own."""
        self.made += 1
        value = f"{self.who}.{self.made}"
        if self.random.random() < 0.03:
            return f"once-{value}", value
        return f"{int(KEYS * self.random.random() ** 2)}-{monotonic_ns() // PERIOD}", value

    def payload(self, value: str) -> bytes:
        """Return a payload: mostly small, now and then of several pages, so that a torn one shows."""
        return payload(value, 20_000 if self.made % 64 == 0 else 200)

    def open(self, **options: object) -> Inbox:
        """Open the inbox, with the storm's lease."""
        return Inbox(self.inbox, codec="bytes", create=False, lease=self.settings["lease"], **options)


# --- producers ----------------------------------------------------------------------------------------


def _produce(me: Me, add: Callable[[Inbox], int]) -> None:
    """Add until killed. What raises is noted; then it goes on with an inbox opened anew, as a program
    would."""
    while True:
        try:
            with me.open() as inbox:
                while True:
                    me.count_adds(add(inbox))
        except (UnusableInbox, OSError) as error:
            me.note("add-raised", error)
            sleep(0.2)


def _one(me: Me, *, durable: bool) -> None:
    def add(inbox: Inbox) -> int:
        pair = me.choose()
        me.tell("add_start", pair)
        inbox.add_bytes(pair[0], me.payload(pair[1]), durable=durable)
        me.tell("add_end", pair)
        sleep(me.settings["pause"])
        return 1

    _produce(me, add)


def one(me: Me) -> None:
    """Add one by one, not flushed."""
    _one(me, durable=False)


def durable(me: Me) -> None:
    """Add one by one, flushed."""
    _one(me, durable=True)


def many(me: Me) -> None:
    """Add in batches, flushed or not."""

    def add(inbox: Inbox) -> int:
        pairs = [me.choose() for _ in range(me.settings["batch"])]
        me.tell("add_start", *pairs)
        inbox.add_many(((key, me.payload(value)) for key, value in pairs), durable=me.random.random() < 0.5)
        me.tell("add_end", *pairs)
        return len(pairs)

    _produce(me, add)


_MV = """
cat >"$1/drop/.$3" && touch -d '1 second ago' "$1/drop/.$3" && mv "$1/drop/.$3" "$1/drop/$2"
"""
# touch: written a while ago, for within one tick of the server's clock its times would not tell that it is
# finished.


def mv(me: Me) -> None:
    """Add from a shell that knows nothing but mv."""
    while True:
        pair = me.choose()
        if pair[0].startswith("once-"):  # a drop's turn comes when it is adopted, not when it is dropped
            continue
        me.tell("add_start", pair)
        data = me.payload(pair[1])
        done = subprocess.run(
            ["/bin/sh", "-c", _MV, "mv", me.inbox, *pair], input=data, stderr=subprocess.PIPE, check=False
        )
        if done.returncode == 0:
            me.tell("add_end", pair)
            me.count_adds()
        else:
            me.note("add-raised", done.stderr)
        sleep(me.settings["pause"] + me.random.random() * 0.02)  # it starts four programs for an add


# --- consumers ----------------------------------------------------------------------------------------


def take(me: Me) -> None:
    """Take, and stand by while another one does. Who loses its lease says so and begins anew, under another
    name."""
    number = 0
    base = me.who
    while True:
        number += 1
        me.who = f"{base}.{number}"
        try:
            with me.open(max_inflight=1 if me.in_line else 3, drop_settle=0) as inbox:
                become(me, inbox)
                _take_on(me, inbox)
        except InboxBusy:
            number -= 1  # (it was nobody)
            sleep(0.3)
        except LeaseLost as error:
            me.note("lease-lost", error)
        except (UnusableInbox, OSError) as error:
            me.note("take-raised", error)
            sleep(0.3)


def become(me: Me, inbox: Inbox) -> None:
    """Become the consumer, and announce that the one before is none any more. Raises InboxBusy."""
    began = monotonic()
    inbox.become_consumer()
    line = f"{me.who} {os.uname().nodename} {os.getpid()} {monotonic():.3f}\n".encode()
    fd = os.open(me.folder / "consumers", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)
        before = os.pread(fd, 1 << 22, 0).partition(line)[0].decode().splitlines()
    finally:
        os.close(fd)
    if before:
        me.tell("died", ("", ""), who=before[-1].split()[0])
    me.note("became", f"{monotonic() - began:.3f}")


def _take_on(me: Me, inbox: Inbox) -> None:
    at_once = 1 if me.in_line else 3
    out: list[tuple[Element, str]] = []
    while True:
        element = inbox.take(timeout=0 if out else 0.5)
        if element:
            value = value_of(element.data)
            me.tell("deliver", (element.key, value))
            out.append((element, value))
        if out and (not element or len(out) == at_once or me.random.random() < 0.5):
            _end(me, *out.pop(me.random.randrange(len(out))))


def _end(me: Me, element: Element, value: str) -> None:
    """End an element somehow; announce it first, for it may be done without a word after it."""
    (how,) = me.random.choices(["ack", "nack", "defer", "release", "fail"], [84, 6, 4, 4, 2])
    me.tell("ack" if how in ("ack", "fail") else "nack", (element.key, ""))
    try:
        end(element, how, me.random)
    except LeaseLost:
        if how in ("ack", "fail"):
            me.note("not-acknowledged", f"{element.key} {value}")
        raise


def drain(me: Me) -> None:
    """Take and acknowledge until nothing is left, and nothing has come for a while."""
    until = monotonic() + 120
    while True:
        try:
            with me.open(drop_settle=0) as inbox:
                become(me, inbox)
                quiet = monotonic()
                while monotonic() - quiet < 3 or inbox.next_look_in() is not None:
                    element = inbox.take(timeout=0.5)
                    if element:
                        me.tell("deliver", (element.key, value_of(element.data)))
                        me.tell("ack", (element.key, ""))
                        element.ack()
                        quiet = monotonic()
            break
        except InboxBusy:
            if monotonic() > until:
                raise
            sleep(0.3)
    (me.folder / "drained").touch()


def create(me: Me) -> None:
    """Make the inbox."""
    Inbox(me.inbox, codec="bytes").close()


def keep(me: Me) -> None:
    """Keep a copy of the inbox: the share is gone when the lab is."""
    subprocess.run(["cp", "-a", me.inbox, str(me.folder / "inbox-kept")], check=False)


PRODUCERS: dict[str, Callable[[Me], None]] = {"one": one, "durable": durable, "many": many, "mv": mv}
CONSUMERS: dict[str, Callable[[Me], None]] = {"take": take}
SERVICES: dict[str, Callable[[Me], None]] = {"create": create, "drain": drain, "keep": keep}
PROGRAMS = PRODUCERS | CONSUMERS | SERVICES


# --- the agent ----------------------------------------------------------------------------------------


def skew(seconds: float) -> None:
    """Let this process see a clock that is wrong: whatever the package has imported from time, apart from
    monotonic clocks."""

    def time_ns() -> int:
        return time.time_ns() + int(seconds * 1e9)

    def time_() -> float:
        return time.time() + seconds

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fsinbox":
            for attribute, real, wrong in (("time_ns", time.time_ns, time_ns), ("time", time.time, time_)):
                if getattr(module, attribute, None) is real:
                    setattr(module, attribute, wrong)


def _be(kind: str, who: str, folder: Path, inbox: str, settings: dict, counters: memoryview) -> None:
    """In the forked process: be that program. Never returns."""
    errors = -1
    try:
        os.setpgid(0, 0)  # its group: with its children, for the kill
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        errors = os.open(folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        os.dup2(2, 1)
        if kind in PRODUCERS:
            os.nice(5)  # the consumer gets its share
        import faulthandler

        faulthandler.register(signal.SIGUSR1)  # where does it hang? standard error is FOLDER/said
        skew(settings["skew"].get(f"{kind}-{settings['host']}", 0))
        PROGRAMS[kind](Me(folder, who, inbox, settings, counters))
        os._exit(0)
    except BaseException:
        os.write(errors, f"{who}: {traceback.format_exc()}\n".encode())
    finally:
        os._exit(1)


def main() -> None:
    """Be the agent of one host."""
    folder, host, inbox, counters_path, text = sys.argv[1:]
    settings = json.loads(text) | {"host": host}
    logging.getLogger("fsinbox").setLevel(logging.ERROR)
    with open(counters_path, "r+b") as file:
        counters = memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE)).cast("Q")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes away who has died
    print("ready", flush=True)
    for line in sys.stdin:
        _, kind, who, slot = line.split()
        pid = os.fork()
        if pid == 0:
            _be(kind, who, Path(folder), inbox, settings | {"slot": int(slot)}, counters)
        try:
            os.setpgid(pid, pid)  # whoever knows its number may kill its group
        except OSError:
            pass  # it has done it, or is dead
        print(pid, flush=True)


if __name__ == "__main__":
    main()
