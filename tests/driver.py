"""Programs under test that announce what they do, and what a fresh consumer finds after them: what all
harnesses share.

A harness runs such a program, does something terrible to it or to its disk, lets `aftermath` look at what is
left, and has `judge` (tests/oracle.py) say whether the two together are right. It also runs as a process of
its own:

    python -m tests.driver INBOX LOG WORD...

LOG gets a line an event, each with one write: it survives any kill, and a trace shows it among the other
system calls in its order. LOG must lie outside the inbox, and where a harness cuts the power, on another file
system. The words, done in turn by one process with one open Inbox:

    add:KEY=VALUE     Inbox.add_bytes, flushed               new:KEY=VALUE     the same, in an Inbox opened
                      for it
    quick:KEY=VALUE   the same, not flushed                  many:K=V,K=V,...  Inbox.add_many, flushed
    swap:KEY=VALUE    the same, in a volatile Inbox opened for it
    stream:KEY=VALUE  Inbox.add_stream                       first:KEY=VALUE   add_bytes, if_waiting="keep"
    bound             let no more than two wait              full:KEY=VALUE    add_bytes; it must be refused
    delay:KEY=VALUE   add_bytes, for in an hour              soon:KEY=VALUE    the same, for now
    file:KEY=VALUE    Inbox.add_file                         move:KEY=VALUE    the same, handing the file over
    sh:KEY=VALUE      scripts/fsinbox-add                    mv:KEY=VALUE      flush a file, mv it into drop/,
                      flush drop/
    both:K=V,K=V      the first by scripts/fsinbox-add, the second by add_bytes, at the same time
    take              take an element, if one is to be had
    ack nack defer fail     end the one that is in flight longest; defer is a nack with a delay (of a
                            nanosecond: it is over)
    postpone          the same with a delay of an hour (`aftermath` is two hours later)
    requeue           end every back-off, as people do     keep              from now on keep what was
                      acknowledged, the last one
    release           the same as nack, without counting an attempt
    restart           close the inbox, which requeues what is in flight, and open it again
    die               leave the inbox as a killed process does: what is in flight stays in inflight/
    create            make the inbox                         mkdir             make the empty directory for
                      it, not flushed
    lose              remove the index, as anyone may at any time
    forget            blank every line of the index, as if they were lost: a key that waits gets a second
                      place by its next add
    mark              announce a "mark": for a harness that wants to know where it is

The inbox must exist, unless the first word is `create`. Values are short texts; no two adds of a key may have
the same.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from time import monotonic_ns, sleep, time_ns
from unittest import mock

import fsinbox.consumer.ownership
import fsinbox.store.bounds
import fsinbox.store.index
from fsinbox import Element, Inbox, InboxFull
from fsinbox.operate.steering import Steering
from fsinbox.store.bounds import limits, set_limits
from fsinbox.store.files import commit, is_btrfs
from fsinbox.store.lines import HEADER
from tests.oracle import Event

SHELL_PRODUCER = str(Path(__file__).parents[1] / "scripts" / "fsinbox-add")

SIZE = 200
"""Least length of a payload, in bytes."""

TORN = "TORN"
"""Stands for the value of a payload that is not whole."""


def payload(value: str, size: int = SIZE) -> bytes:
    """Return a payload that tells its value, and whether it is whole: the value, line by line, then `end of
    <value>`."""
    line = f"{value}\n".encode()
    return line * max(1, -(-size // len(line))) + f"end of {value}\n".encode()


def value_of(data: bytes) -> str:
    """Return the value of a payload; TORN if it is not whole."""
    first, _, _ = data.partition(b"\n")
    value = first.decode("ascii", "replace")
    lines = data.split(b"\n")
    whole = data.endswith(f"\nend of {value}\n".encode()) and set(lines[:-2]) == {first}
    return value if whole and value else TORN


# --- announcing ---------------------------------------------------------------------------------------


class Log:
    """Where a program announces what it does: in memory, and in a file if it has one."""

    def __init__(self, who: str, path: str | os.PathLike[str] | None = None) -> None:
        self.who = who
        self.events: list[Event] = []
        self._fd = (
            -1
            if path is None
            else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        )

    def tell(self, what: str, key: str = "", value: str = "") -> None:
        """Announce an event, with one system call."""
        event = Event(what, self.who, key, value, monotonic_ns())
        self.events.append(event)
        if self._fd >= 0:
            os.write(self._fd, spell(event))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def spell(event: Event) -> bytes:
    """Return an event as a line of a log."""
    return f"{event.what} {event.who} {event.key or '-'} {event.value or '-'} {event.t:.0f}\n".encode()


def unspell(line: str) -> Event:
    """Return the event that a line of a log stands for."""
    what, who, key, value, t = line.split()
    return Event(what, who, key.removeprefix("-"), value.removeprefix("-"), int(t))


def read_log(path: str | os.PathLike[str]) -> list[Event]:
    """Return the events in a log. (A line is written whole, or not at all.)"""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return []
    return [unspell(line) for line in text.splitlines()]


def all_died(events: Iterable[Event]) -> list[Event]:
    """Return the events, and after them the death of everybody: none of them is there any more."""
    events = list(events)
    last = max((event.t for event in events), default=0)
    return events + [Event("died", who, t=last) for who in sorted({event.who for event in events})]


# --- the words ----------------------------------------------------------------------------------------


class Driver:
    """Does what the words say, and announces it."""

    def __init__(self, path: str, log: Log, *, max_inflight: int = 1) -> None:
        """`path`: of the inbox; it is opened at the first word that needs it."""
        self.path = path
        self.log = log
        self._max_inflight = max_inflight
        self._keep_done = 0
        self._inbox: Inbox | None = None
        self._out: list[Element] = []

    @property
    def inbox(self) -> Inbox:
        """The open inbox."""
        if self._inbox is None:
            self._inbox = Inbox(
                self.path,
                codec="bytes",
                create=False,
                max_inflight=self._max_inflight,
                drop_settle=0,
                keep_done=self._keep_done,
            )
        return self._inbox

    def close(self) -> None:
        """Close the inbox, and announce that what is in flight is requeued."""
        while self._out:
            self.log.tell("nack", self._out.pop(0).key)
        inbox, self._inbox = self._inbox, None
        if inbox:
            inbox.close()

    def do(self, word: str) -> None:
        """Do what one word says."""
        name, _, rest = word.partition(":")
        if rest:
            pairs = [(key, value) for key, _, value in (pair.partition("=") for pair in rest.split(","))]
            for key, value in pairs:
                self.log.tell("add_start", key, value)
            answer = getattr(self, f"_{name}")(*pairs)
            for key, value in pairs:
                self.log.tell(answer if answer in ("kept", "refused") else "add_end", key, value)
        else:
            getattr(self, f"_{name}")()

    def _add(self, pair: tuple[str, str]) -> None:
        self.inbox.add_bytes(pair[0], payload(pair[1]))

    def _new(self, pair: tuple[str, str]) -> None:
        with Inbox(self.path, codec="bytes", create=False) as inbox:
            inbox.add_bytes(pair[0], payload(pair[1]))

    def _quick(self, pair: tuple[str, str]) -> None:
        self.inbox.add_bytes(pair[0], payload(pair[1]), durable=False)

    def _swap(self, pair: tuple[str, str]) -> None:
        with Inbox(self.path, codec="bytes", create=False, durable=False, volatile=True) as inbox:
            inbox.add_bytes(pair[0], payload(pair[1]))

    def _delay(self, pair: tuple[str, str]) -> None:
        self.inbox.add_bytes(pair[0], payload(pair[1]), delay=3600)

    def _soon(self, pair: tuple[str, str]) -> None:
        self.inbox.add_bytes(pair[0], payload(pair[1]), delay=1e-9)

    def _first(self, pair: tuple[str, str]) -> str:
        return self.inbox.add_bytes(pair[0], payload(pair[1]), if_waiting="keep")

    def _bound(self) -> None:
        self.close()  # who has it open looks once a second whether there are bounds
        set_limits(self.inbox.layout, self.inbox.index, 2, None)

    def _full(self, pair: tuple[str, str]) -> str:
        try:
            self.inbox.add_bytes(pair[0], payload(pair[1]))
        except InboxFull:
            return "refused"
        raise AssertionError(f"key {pair[0]} was added to a full inbox")

    def _many(self, *pairs: tuple[str, str]) -> None:
        self.inbox.add_many((key, payload(value)) for key, value in pairs)

    def _stream(self, pair: tuple[str, str]) -> None:
        self.inbox.add_stream(pair[0], BytesIO(payload(pair[1])))

    def _file(self, pair: tuple[str, str]) -> None:
        self.inbox.add_file(pair[0], self._draft(pair[1]))

    def _move(self, pair: tuple[str, str]) -> None:
        self.inbox.add_file(pair[0], self._draft(pair[1]), move=True)

    def _sh(self, pair: tuple[str, str]) -> None:
        subprocess.run([SHELL_PRODUCER, "--inbox", self.path, pair[0]], input=payload(pair[1]), check=True)

    def _both(self, one: tuple[str, str], two: tuple[str, str]) -> None:
        child = subprocess.Popen([SHELL_PRODUCER, "--inbox", self.path, one[0]], stdin=subprocess.PIPE)
        assert child.stdin
        child.stdin.write(payload(one[1]))
        child.stdin.close()
        sleep(int(two[1]) % 8 * 0.003)  # (a start of the shell takes some 10 ms)
        self._add(two)
        assert child.wait() == 0

    def _mv(self, pair: tuple[str, str]) -> None:
        """As a careful shell script would: `sync draft; mv draft drop/KEY; sync drop`."""
        draft = self._draft(pair[1])
        _flush(draft)
        subprocess.run(["/bin/mv", draft, f"{self.path}/drop/{pair[0]}"], check=True)
        _flush(f"{self.path}/drop")

    def _ln(self, pair: tuple[str, str]) -> None:
        """The same for a file that keeps a second name: it is copied when it is ingested."""
        draft = self._draft(pair[1])
        _flush(draft)
        os.link(draft, f"{self.path}.kept-{pair[0]}-{pair[1]}")
        subprocess.run(["/bin/mv", draft, f"{self.path}/drop/{pair[0]}"], check=True)
        _flush(f"{self.path}/drop")

    def _draft(self, value: str) -> str:
        """Write a file beside the inbox, not flushed."""
        draft = f"{self.path}.draft-{os.getpid()}"
        with open(draft, "wb") as file:
            file.write(payload(value))
        return draft

    def _take(self) -> None:
        element = self.inbox.take()
        if element:
            self.log.tell("deliver", element.key, value_of(element.data))
            self._out.append(element)

    def _end(self, how: str) -> Element | None:
        """Announce the end of what has been in flight longest. Before it is done: it may be done without a
        word after it."""
        if not self._out:
            return None
        element = self._out.pop(0)
        self.log.tell(how, element.key)
        return element

    def _ack(self) -> None:
        if element := self._end("ack"):
            element.ack()

    def _fail(self) -> None:
        if element := self._end("ack"):  # for the oracle: it is done with it
            element.fail("as the word says")

    def _nack(self) -> None:
        if element := self._end("nack"):
            element.nack()

    def _release(self) -> None:
        if element := self._end("nack"):
            element.release()

    def _defer(self) -> None:
        if element := self._end("nack"):
            element.nack(delay=1e-9)

    def _postpone(self) -> None:
        if element := self._end("nack"):
            element.nack(delay=3600)

    def _requeue(self) -> None:
        with Steering(self.path) as steering:
            for row in list(steering.rows(("deferred",))):
                steering.requeue(row)
        if self.inbox._taking().consumer:
            self.inbox._taking().consumer._next_look = 0.0  # (it looks into control/ every 20 ms)

    def _keep(self) -> None:
        self._keep_done = 1

    def _restart(self) -> None:
        self.close()
        _ = self.inbox

    def _die(self) -> None:
        self.log.tell("died")
        self._out.clear()
        inbox, self._inbox = self._inbox, None
        if inbox and inbox._taking().consumer:
            inbox._taking().consumer.close()  # its lock
            inbox._taking().consumer = None
            inbox._taking().claims.clear()
        if inbox:
            inbox.close()

    def _create(self) -> None:
        Inbox(self.path, codec="bytes").close()

    def _mkdir(self) -> None:
        os.mkdir(self.path)

    def _lose(self) -> None:
        os.unlink(f"{self.path}/index")

    def _forget(self) -> None:
        forget(self.path)

    def _mark(self) -> None:
        self.log.tell("mark")


def _flush(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        if os.path.isdir(path) and is_btrfs(fd):
            commit(fd)
        else:
            os.fsync(fd)
    finally:
        os.close(fd)


def forget(path: str) -> None:
    """Blank every line of an inbox's index."""
    with open(f"{path}/index", "r+b", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size - HEADER
        if length > 0:
            os.pwrite(file.fileno(), bytes(length), HEADER)


# --- what is left -------------------------------------------------------------------------------------

WAYS = ("drain", "add", "recover-add")
"""What is done with what is left of an inbox:

 drain         a consumer takes and acknowledges until nothing is left
 add           before it does, a producer adds a newer value for each key
 recover-add   the producer adds when the consumer has become the consumer, and recovered, but before it takes
"""

LATE = "late"
"""The value that is added then."""

ENOUGH = 1000
"""Elements that a consumer takes at the most: more than any harness leaves."""


def aftermath(
    path: str, way: str, keys: Iterable[str] = (), *, boot: str | None = None, clock: int | None = None
) -> list[Event]:
    """Let a fresh process's worth of producer and consumer work with what is left; return what they announce.

    boot    the boot tag they see (8 characters): after a power cut another than before
    clock   the time they see, nanoseconds since the epoch: after a power cut it may have stepped back

    Raises what Inbox raises: nothing, if all is well.
    """
    log = Log("aftermath")
    # Two hours later: whatever waits out a delay is due.
    patches = [mock.patch.object(fsinbox.consumer.ownership, "time_ns", lambda: time_ns() + 7200 * 10**9)]
    # And time has passed since those were counted that wait: it is done anew before one is refused.
    patches.append(mock.patch.object(fsinbox.store.bounds, "RECOUNT_SHARE", 0))
    if boot is not None:
        patches.append(mock.patch.object(fsinbox.store.index, "boot_tag", lambda: boot))
    if clock is not None:
        patches.append(mock.patch.object(fsinbox.store.index, "time_ns", lambda: clock))
    for patch in patches:
        patch.start()
    try:
        with Inbox(path, codec="bytes", drop_settle=0) as inbox:
            if way == "recover-add":
                inbox._taking()._consume()  # what the first take does, without taking
            if way != "drain":
                for key in keys:
                    log.tell("add_start", key, LATE)
                    log.tell(_add_late(inbox, key), key, LATE)
            for _ in range(ENOUGH):
                element = inbox.take() or (
                    inbox.take(timeout=1) if inbox.next_look_in() is not None else None
                )
                if element is None:
                    break
                log.tell("deliver", element.key, value_of(element.data))
                log.tell("ack", element.key)
                element.ack()
            else:
                raise AssertionError(f"more than {ENOUGH} elements: the consumer runs in circles")
    finally:
        for patch in patches:
            patch.stop()
    return log.events


def _add_late(inbox: Inbox, key: str) -> str:
    """Add the late value; return how that ended. It may be refused only if as many wait as may."""
    try:
        inbox.add_bytes(key, payload(LATE))
    except InboxFull:
        waiting = sum(len(inbox.layout.names(folder)) for folder in ("pending", "deferred"))
        assert waiting >= limits(inbox.layout).max_waiting, f"it was refused, and {waiting} wait"
        return "refused"
    return "add_end"


def main() -> None:
    """Do what the words of the command line say."""
    path, log, *words = sys.argv[1:]
    logging.disable()  # standard error is for what goes wrong
    driver = Driver(path, Log(f"p{os.getpid()}", log))
    for word in words:
        driver.do(word)
    driver.close()


if __name__ == "__main__":
    main()
