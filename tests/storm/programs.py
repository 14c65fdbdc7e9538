"""The programs of a storm: each adds, or takes, until it is killed, and announces what it does.

The director (director.py) forks them from a process that has imported everything, so that a start costs a
millisecond. Each has a log of its own (tests/driver.py has its form), written with one system call an event,
or one for the events of a batch. A kill may cut the last line short, even so (a write that crosses a page can
be interrupted): whoever reads it ignores what has no line break behind it, which is right, for what is
announced comes before what is done, and a value whose add was not said to have returned may be delivered or
not.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic_ns, sleep, time_ns

from fsinbox import Element, Inbox, Reject, TryLater
from fsinbox.consumer import taking
from fsinbox.operate.steering import Steering
from fsinbox.store import control
from fsinbox.store import transitions as protocol
from fsinbox.store.layout import Layout
from fsinbox.store.names import encode_key
from tests.driver import SHELL_PRODUCER, payload, spell, value_of
from tests.oracle import Event

KEYS = 30
"""Keys that all producers share at any one time, a few of them hot. Others are added once each: the order of
those is judged."""

PERIOD = 300_000_000
"""Nanoseconds after which all go on to other keys: so that for many keys it shows whether the last value has
come."""

BATCH = 200
"""Elements a call of add_many."""

FEW_KEYS, SHORT_PERIOD = 4, 50_000_000
"""The same two where the windows are widened: few adds a key, so that a value that is lost is often the
last."""

WINDOWS = {
    ("tmp", "pending"): (0.3, 0.006),
    ("inflight", "pending"): (0.6, 0.006),
    ("inflight", "deferred"): (0.6, 0.006),
    ("deferred", "inflight"): (0.3, 0.003),
}
"""Where the windows are widened: from folder, to folder -> how often the rename is delayed, and by how many
seconds at most.

Each is between a look and the rename that relies on it: inside the section, if all is right.
"""


class Me:
    """What a program knows of itself."""

    def __init__(
        self,
        folder: Path,
        who: str,
        seed: int,
        counters: memoryview,
        counter: int,
        *,
        in_line: bool,
        wide: bool = False,
    ) -> None:
        """`counters[counter]` counts the adds, or deliveries, of its kind. in_line: whether consumers take
        one at a time.

        wide: whether the windows of races are widened (see WINDOWS).
        """
        self.inbox = str(folder / "inbox")
        self.folder = folder
        self.who = who
        self.in_line = in_line
        self.wide = wide
        self.random = random.Random(f"{seed}-{who}")
        self.made = 0
        self.log = str(folder / "logs" / f"{who}.log")
        self._counters = counters
        self._counter = counter
        self._fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, what: str, key: str, value: str) -> None:
        """Announce one event."""
        os.write(self._fd, spell(Event(what, self.who, key, value, monotonic_ns())))

    def tell_all(self, what: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Announce an event for each (key, value), all at one moment."""
        now = monotonic_ns()
        os.write(self._fd, b"".join([spell(Event(what, self.who, key, value, now)) for key, value in pairs]))

    def count(self, times: int = 1) -> None:
        """Count what is done. A kill leaves the counter as it is: it is in memory that all share."""
        self._counters[self._counter] += times

    def choose(self, *, once: bool = True) -> tuple[str, str]:
        """Return a key, and a value that nobody has given it before. `once`: now and then a key of its
        own."""
        self.made += 1
        value = f"{self.who}.{self.made}"
        if once and self.random.random() < 0.01:
            return f"once-{value}", value
        keys, period = (FEW_KEYS, SHORT_PERIOD) if self.wide else (KEYS, PERIOD)
        return f"{int(keys * self.random.random() ** 2)}-{monotonic_ns() // period}", value

    def stop_if_asked(self) -> None:
        """Stop, if the director asks for it (the last of the counters), until it continues us."""
        if self._counters[-1]:
            self._counters[-1] = 0
            os.kill(os.getpid(), signal.SIGSTOP)

    def payload(self, value: str) -> bytes:
        """Return a payload: mostly small, now and then of several pages, so that a torn one shows."""
        return payload(value, 20_000 if self.made % 64 == 0 else 64)


def hook(me: Me) -> None:
    """In this process, stop inside the section when asked to; and widen the windows if that is wanted."""
    rename, discard = protocol._rename, taking.discard

    def rename_later(layout: Layout, folder: str, name: str, to: str, new: str) -> None:
        if folder == "tmp":
            me.stop_if_asked()
        often, longest = WINDOWS.get((folder, to), (0.0, 0.0)) if me.wide else (0.0, 0.0)
        if often and me.random.random() < often:
            sleep(me.random.random() * longest)
        rename(layout, folder, name, to, new)

    def discard_later(layout: Layout, folder: str, name: str, why: protocol.Why) -> bool:
        if why is protocol.OVERTAKEN:
            sleep(me.random.random() * 0.01)  # a newer value was taken, and the older is still deferred
        return discard(layout, folder, name, why)

    protocol._rename = rename_later
    if me.wide:
        taking.discard = discard_later


# --- producers ----------------------------------------------------------------------------------------


def one(me: Me, *, durable: bool = False) -> None:
    """Add one by one."""
    with Inbox(me.inbox, codec="bytes", create=False, durable=durable) as inbox:
        while True:
            key, value = me.choose()
            me.tell("add_start", key, value)
            inbox.add_bytes(key, me.payload(value))
            me.tell("add_end", key, value)
            me.count()


def durable(me: Me) -> None:
    """Add one by one, each flushed."""
    one(me, durable=True)


def many(me: Me, *, durable: bool = False) -> None:
    """Add in batches."""
    with Inbox(me.inbox, codec="bytes", create=False, durable=durable) as inbox:
        while True:
            pairs = [me.choose() for _ in range(BATCH)]
            me.tell_all("add_start", pairs)
            inbox.add_many((key, me.payload(value)) for key, value in pairs)
            me.tell_all("add_end", pairs)
            me.count(BATCH)


def durable_many(me: Me) -> None:
    """Add in batches, each flushed."""
    many(me, durable=True)


def sh(me: Me) -> None:
    """Add with scripts/fsinbox-add, mostly not flushed."""
    while True:
        key, value = me.choose()
        command = [
            SHELL_PRODUCER,
            "--inbox",
            me.inbox,
            *([] if me.random.random() < 0.2 else ["--not-durable"]),
            key,
        ]
        me.tell("add_start", key, value)
        subprocess.run(command, input=me.payload(value), check=True)
        me.tell("add_end", key, value)
        me.count()


def move(draft: Path, place: str) -> None:
    """Run mv(1).

    That of GNU coreutils 9.1 fails now and then if the file in whose place it is to move is taken away just
    then: it says that there is a directory, and leaves the draft. (So it does without any fsinbox: 542 times
    of 41,401 beside a loop that renames the file away.) Whoever drops tries again.
    """
    done = subprocess.run(["/bin/mv", draft, place], capture_output=True, text=True)
    while "cannot overwrite directory" in done.stderr and draft.exists() and not os.path.isdir(place):
        done = subprocess.run(["/bin/mv", draft, place], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def mv(me: Me) -> None:
    """Add with mv."""
    while True:
        key, value = me.choose(once=False)  # a drop's turn comes when it is adopted, not when it is dropped
        draft = me.folder / f"draft-{value}"
        draft.write_bytes(me.payload(value))
        # Written a while ago. (Within one tick of the kernel's clock its times would not tell sh that it is
        # finished.)
        os.utime(draft, ns=(time_ns(), time_ns() - 10**9))
        me.tell("add_start", key, value)
        move(draft, f"{me.inbox}/drop/{key}")
        me.tell("add_end", key, value)
        me.count()
        if me.random.random() < 0.2:
            steer(me, key)


def steer(me: Me, key: str) -> None:
    """Do what a person may do beside it all: end back-offs, hold keys and release them, pause the consumer
    for a moment.

    (Nothing is retried or replayed: that may bring an old value after a newer one was done, and is meant to.)
    """
    with Steering(me.inbox) as steering:
        layout = steering.layout
        luck = me.random.random()
        if luck < 0.4:
            for row in steering.rows(("deferred",)):
                steering.requeue(row)
        elif luck < 0.6:
            control.hold(layout, encode_key(key))
        elif luck < 0.9:
            release_all(layout)
        else:
            control.pause(layout, time_ns() + 10_000_000)


def person(me: Me) -> None:
    """End every back-off there is, again and again."""
    with Steering(me.inbox) as steering:
        while True:
            for row in steering.rows(("deferred",)):
                steering.requeue(row)
            sleep(0.001)


def release_all(layout: Layout) -> None:
    """End every hold, and a pause."""
    control.resume(layout)
    for encoded in control.requests(layout).held:
        control.release(layout, encoded)


# --- consumers ----------------------------------------------------------------------------------------


def take(me: Me) -> None:
    """Take up to three at a time, and end them in any order, in every way there is."""
    at_once = 1 if me.in_line else 3
    with Inbox(me.inbox, codec="bytes", create=False, max_inflight=at_once, drop_settle=0) as inbox:
        out: list[Element] = []
        while True:
            element = inbox.take(timeout=0 if out else 0.05)
            if element:
                me.tell("deliver", element.key, value_of(element.data))
                me.count()
                out.append(element)
            if out and (not element or len(out) == at_once or me.random.random() < 0.5):
                _end(me, out.pop(me.random.randrange(len(out))))


def _end(me: Me, element: Element) -> None:
    """End an element somehow; announce it first, for it may be done without a word after it."""
    weights = [40, 30, 30, 0, 0] if me.wide else [76, 12, 8, 2, 2]
    (how,) = me.random.choices(["ack", "nack", "defer", "release", "fail"], weights)
    me.tell("ack" if how in ("ack", "fail") else "nack", element.key, "")
    end(element, how, me.random)


def end(element: Element, how: str, chance: random.Random) -> None:
    """End an element in one of the ways there are."""
    if how == "ack":
        element.ack()
    elif how == "nack":
        element.nack()
    elif how == "defer":
        element.nack(delay=chance.random() ** 2 * 0.3)
    elif how == "release":
        element.release()
    else:
        element.fail("as luck would have it")


def handler(me: Me) -> None:
    """`fsinbox consume --handler`, with the handler below."""
    global _me
    _me = me
    _consume(me, "--handler", f"{__name__}:handle")


_me: Me | None = None


def handle(element: Element) -> None:
    """Announce an element, and its end; fail at times, in each way."""
    me = _me or _drainer()
    me.tell("deliver", element.key, value_of(element.data))
    me.count()
    luck = 0.0 if me.who == "drain" else me.random.random()
    if 0.99 > luck > 0.98:
        sleep(0.002)
    me.tell("ack" if luck < 0.97 or luck > 0.98 else "nack", element.key, "")
    if luck > 0.995:
        raise Reject("not this one")
    if luck > 0.98 or luck < 0.97:
        return
    raise TryLater("busy") if luck > 0.975 else RuntimeError("one of those days")


def command(me: Me) -> None:
    """`fsinbox consume --exec`, with heard.py as the command."""
    heard = Path(__file__).with_name("heard.py")
    # -S -E: a start of 10 ms.
    _consume(me, "--exec", f"{sys.executable} -S -E {heard} {me.folder} {me.who}")


def _consume(me: Me, *words: str) -> None:
    """Run the command line in this process."""
    from fsinbox.cli import main

    sys.argv = [
        "fsinbox",
        "--inbox",
        me.inbox,
        "consume",
        *words,
        "--concurrency",
        "1" if me.in_line else "3",
        *PATIENT,
    ]
    main()


PATIENT = "--retry-delay 0.01 --max-retry-delay 0.05 --max-attempts 1000 --drop-settle 0 -q".split()
"""Options of `fsinbox consume`: a consumer's death counts an attempt, and nothing shall be given up for
that."""


def _drainer() -> Me:
    """For the handler in a process that nobody forked: the last one, `fsinbox consume --drain`."""
    global _me
    _me = Me(Path(os.environ["STORM"]), "drain", 0, memoryview(bytearray(8)).cast("Q"), 0, in_line=True)
    return _me


PRODUCERS: dict[str, Callable[[Me], None]] = {
    "one": one,
    "durable": durable,
    "many": many,
    "durable_many": durable_many,
    "sh": sh,
    "mv": mv,
    "person": person,
}
CONSUMERS: dict[str, Callable[[Me], None]] = {"take": take, "handler": handler, "command": command}
