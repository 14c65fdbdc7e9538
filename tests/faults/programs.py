"""The programs whose every system call is failed or is the last one, and what must hold after each.

A scenario is a list of words of tests/driver.py: some that prepare an inbox in peace, and those that are put
to the test. The words of `Program` beside the driver's own:

    die               stop being the consumer as a dead one does: what is in flight stays in inflight/
    reboot            make the index one of an earlier boot            tableless     say in it that there is
                      no table, as sh does
    stash             requeue by hand what is in flight, and leave it there too: in inflight/ and in pending/
    locked            somebody else has the lock                       unlocked      and has it no more
    later             defer what is in flight for an hour              hurry         make every back-off end
                      now
    drop:KEY=VALUE    like `mv`, by the program itself                        forge:KEY=VALUE   copy a file to
                      a made-up number
    link:KEY=VALUE    like drop, and keep a second name of the file
    big:KEY=VALUE     like `add`, a megabyte
    stream:KEY=VALUE  Inbox.add_stream                                        across:KEY=VALUE  `move` from
                      another file system
    litter            put into drop/ and pending/ what cannot be an element   look     peek, iterate, count
                      and find
    wait              wait a moment for an element, as an idle consumer does
    share             make an inbox for a group
    warm              open the inbox and become the consumer; last in a setup: what follows is done with this
                      very Inbox
"""

from __future__ import annotations

import fcntl
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from time import time_ns

from fsinbox import AddFailed, Element, Inbox, InboxError
from tests.driver import Driver, Log, payload, value_of
from tests.oracle import Event

DURABLE = frozenset("add delay soon first big new many file move stream across create share".split())
"""Words that must not end well if one of their flushes failed."""


@dataclass(frozen=True)
class Scenario:
    """`setup` is done in peace; `words` are put to the test.

    inflight   how many elements may be in flight at once
    timed      its number of calls depends on how long they take
    """

    name: str
    words: str
    setup: str = ""
    inflight: int = 1
    timed: bool = False

    @property
    def keys(self) -> list[str]:
        """The keys that it adds."""
        pairs = re.findall(r"([a-z]+)=", f"{self.setup} {self.words}")
        return sorted(set(pairs))


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("create", "create add:a=1"),
        Scenario("create-shared", "share add:a=1 take ack"),
        Scenario("new", "new:a=1 new:a=2 new:b=1", "create"),
        Scenario("add", "add:a=1 add:b=1 add:a=2", "create"),
        Scenario("add-over-drop", "add:a=2 add:b=2", "create drop:a=1 drop:b=1"),
        Scenario("add-behind", "take add:a=2 ack take ack", "create add:a=1 warm"),
        Scenario("quick", "quick:a=1 quick:a=2", "create"),
        Scenario("exchange", "swap:a=1 swap:a=2 add:a=3 swap:a=4", "create"),
        Scenario("big", "big:a=1 big:a=2", "create"),
        Scenario("few", "many:a=1,b=1,a=2", "create add:b=0"),
        Scenario("many", "many:a=1,b=1,c=1,d=1,e=1,a=2", "create"),
        Scenario("delay", "delay:a=1 take add:b=1 take ack", "create warm"),
        Scenario("delay-replaced", "delay:a=1 take add:a=2 take ack", "create warm"),
        Scenario("delay-handed-out", "soon:a=1 take first:a=2 ack take ack", "create warm"),
        Scenario("delay-recover", "take first:a=2 add:a=3 take ack", "create delay:a=1 take die"),
        Scenario("first", "first:a=1 first:a=2 take first:a=3 ack take ack", "create warm"),
        Scenario("first-over-drop", "first:a=2 take ack", "create drop:a=1 warm"),
        Scenario("file", "file:a=1 file:a=2", "create"),
        Scenario("move", "move:a=1 move:a=2", "create"),
        Scenario("across", "across:a=1 across:a=2", "create"),
        Scenario("stream", "stream:a=1 stream:a=2", "create"),
        Scenario(
            "boot",
            "add:a=3 add:d=1 take ack",
            "create add:a=1 add:b=1 forget add:a=2 add:c=1 take later reboot",
        ),
        Scenario("boot-take", "take ack take ack", "create add:a=1 add:b=1 forget add:a=2 reboot"),
        Scenario("ack", "take ack take ack", "create add:a=1 add:b=1"),
        Scenario("nack", "take nack take nack take ack take ack", "create add:a=1 add:b=1 warm"),
        Scenario("release", "take release take ack", "create add:a=1 warm"),
        Scenario("defer", "take defer take defer take ack", "create add:a=1 warm"),
        Scenario("fail", "take fail take fail", "create add:a=1 add:b=1 warm"),
        Scenario("superseded-nack", "take add:a=2 nack take ack", "create add:a=1 warm"),
        Scenario("superseded-defer", "take add:a=2 defer take ack", "create add:a=1 warm"),
        Scenario("superseded-fail", "take add:a=2 fail take ack", "create add:a=1 warm"),
        Scenario(
            "superseded-deferred",
            "take add:b=2 take ack take ack",
            "create add:a=1 add:b=1 take later take later add:a=2 warm",
        ),
        Scenario("newer-after", "take add:a=2 take ack take ack restart take ack", "create add:a=1 warm"),
        Scenario(
            "deferred", "take take ack add:a=2 take ack take ack", "create add:a=1 take later hurry warm"
        ),
        Scenario("deferred-newer", "add:a=2 take take ack", "create add:a=1 take later warm"),
        Scenario(
            "several",
            "take take ack nack take take ack ack",
            "create add:a=1 add:b=1 add:c=1 warm",
            inflight=2,
        ),
        Scenario(
            "blocked",
            "take add:a=2 take ack nack take take ack ack",
            "create add:a=1 add:b=1 warm",
            inflight=2,
        ),
        Scenario("restart", "take restart take ack", "create add:a=1"),
        Scenario("recover", "take ack take ack", "create add:a=1 take die"),
        Scenario("recover-newer", "take add:a=2 ack take ack restart take ack", "create add:a=1 take die"),
        Scenario("recover-two", "take ack take ack", "create add:a=1 add:b=1 take take die", inflight=2),
        Scenario("recover-superseded", "take ack take ack", "create add:a=1 take add:a=2 die"),
        Scenario("recover-half", "take ack take ack", "create add:a=1 take stash die"),
        Scenario("recover-again", "take ack", "create add:a=1 take die take die take die"),
        Scenario("coalesce", "take ack take ack", "create add:a=1 forget add:a=2 forget add:a=3 warm"),
        Scenario("index-lost", "add:a=2 take add:b=1 nack lose take ack take ack", "create add:a=1 warm"),
        Scenario("index-unknown", "forget add:a=2 take ack take ack", "create add:a=1 warm"),
        Scenario("no-table", "add:a=2 add:b=1 take ack", "create add:a=1 tableless"),
        Scenario(
            "somebody-has-the-lock",
            "take locked nack take ack take unlocked take ack",
            "create add:a=1 add:b=1 warm",
            timed=True,
        ),
        Scenario("drop", "take ack take ack", "create drop:a=1 drop:b=1"),
        Scenario("drop-replacing", "take ack take ack", "create add:a=1 add:b=1 drop:b=2 warm"),
        Scenario("drop-linked", "take ack take ack", "create link:a=1 link:b=1"),
        Scenario("drop-linked-replacing", "take ack take ack", "create add:a=1 add:b=1 link:b=2 warm"),
        Scenario("drops", "take ack take ack", "create drop:a=1 drop:b=1 drop:c=1 drop:d=1 drop:e=1 warm"),
        Scenario("litter", "take ack take", "create litter add:a=1 warm"),
        Scenario("forge", "take ack take ack", "create add:a=1 forge:b=1 warm"),
        Scenario("look", "look", "create add:a=1 add:b=1 take later warm"),
        Scenario("wait", "wait add:a=1 wait ack", "create warm", timed=True),
    ]
}


class Program(Driver):
    """Goes on when the package refuses a word, and keeps what it said."""

    def __init__(self, path: str, log: Log, *, inflight: int, elsewhere: str = "") -> None:
        """`elsewhere`: a directory on another file system than the inbox's (without it, beside the inbox)."""
        super().__init__(path, log, max_inflight=inflight)
        self.elsewhere = elsewhere or os.path.dirname(path)
        self.word = ""
        self.refused: list[tuple[str, InboxError]] = []
        self.not_added: list[tuple[str, str]] = []
        """What raised, and said that it is not delivered."""
        self.wrong: list[str] = []

    def do(self, word: str) -> None:
        self.word = word
        try:
            super().do(word)
        except InboxError as error:
            self.refused.append((word, error))
            if isinstance(error, AddFailed) and not error.maybe_added:
                self.not_added += [
                    (key, value)
                    for key, _, value in (p.partition("=") for p in word.partition(":")[2].split(","))
                ]
        except Exception as error:
            self.wrong.append(f"{word} let a bare {type(error).__name__} escape: {error}")

    def refuses(self, word: str) -> bool:
        """Tell whether it said no to a word that began with this."""
        return any(refused == word for refused, _ in self.refused)

    def stop(self) -> None:
        """Close the inbox. What is out goes back: its end is announced before."""
        for element in self._out:
            self.log.tell("nack", element.key)
        self._out.clear()
        inbox, self._inbox = self._inbox, None
        if inbox:
            inbox.close()

    close = stop

    def _take(self) -> None:
        """Take an element, unless there are enough out (a `take` may follow one that is refused)."""
        if len(self._out) == self._max_inflight:
            return
        self._receive(self.inbox.take())

    def _receive(self, element: Element | None) -> None:
        if element is None:
            return
        try:
            value = value_of(element.data)
        except OSError:  # documented: what a file's content gives
            element.nack()
            return
        self.log.tell("deliver", element.key, value)
        self._out.append(element)

    def _move(self, pair: tuple[str, str]) -> None:
        self._hand_over(pair, self._draft(pair[1]))

    def _across(self, pair: tuple[str, str]) -> None:
        draft = os.path.join(self.elsewhere, f"draft-{os.getpid()}")
        Path(draft).write_bytes(payload(pair[1]))
        self._hand_over(pair, draft)

    def _hand_over(self, pair: tuple[str, str], draft: str) -> None:
        """The file that is handed over must not be lost: it is queued, or where it was, or the error says
        where it is."""
        try:
            self.inbox.add_file(pair[0], draft, move=True)
        except AddFailed as error:
            if not error.maybe_added and not os.path.exists(draft):
                found = re.search(r"(tmp/[\w.]+) in (\S+) now", str(error))
                if not found or value_of(Path(found[2], found[1]).read_bytes()) != pair[1]:
                    self.wrong.append(
                        f"the file that was handed over is gone, and the error does not say where: {error}"
                    )
            raise

    def _stream(self, pair: tuple[str, str]) -> None:
        self.inbox.add_stream(pair[0], io.BytesIO(payload(pair[1])))

    def _big(self, pair: tuple[str, str]) -> None:
        self.inbox.add_bytes(pair[0], payload(pair[1], 1 << 20))

    def _drop(self, pair: tuple[str, str]) -> None:
        draft = self._draft(pair[1])
        os.utime(draft, (1, 1))
        os.rename(draft, f"{self.path}/drop/{pair[0]}")

    def _link(self, pair: tuple[str, str]) -> None:
        self._drop(pair)
        os.link(f"{self.path}/drop/{pair[0]}", f"{self.path}.kept-{pair[0]}-{pair[1]}")

    def _forge(self, pair: tuple[str, str]) -> None:
        Path(f"{self.path}/pending/{time_ns() + 3600 * 10**9:019d}-{pair[0]}").write_bytes(payload(pair[1]))

    def _litter(self) -> None:
        os.mkfifo(f"{self.path}/drop/fifo")
        os.symlink("/etc/passwd", f"{self.path}/drop/link")
        os.mkdir(f"{self.path}/drop/folder")
        os.mkdir(f"{self.path}/pending/0000000000000000001-folder")
        Path(f"{self.path}/pending/nonsense").touch()

    def _die(self) -> None:
        inbox = self.inbox
        self.log.tell("died")
        self._out.clear()
        inbox._taking().claims.clear()
        if inbox._taking().consumer:
            inbox._taking().consumer.close()
            inbox._taking().consumer = None
        self.stop()

    def _stash(self) -> None:
        for element in self._out:
            os.link(element.path, element.path.replace("/inflight/", "/pending/"))

    def _later(self) -> None:
        if element := self._end("nack"):
            element.nack(delay=3600)

    def _hurry(self) -> None:
        self.stop()
        hurry(self.path)

    def _reboot(self) -> None:
        self.stop()
        self._say(20, b"earlier!")

    def _tableless(self) -> None:
        self.stop()
        self._say(29, b"0" * 10)

    def _say(self, offset: int, words: bytes) -> None:
        """Have the header of the index say something else."""
        with open(f"{self.path}/index", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), words, offset)

    def _locked(self) -> None:
        self._holder = os.open(f"{self.path}/index", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._holder, fcntl.LOCK_EX)

    def _unlocked(self) -> None:
        os.close(self._holder)

    def _share(self) -> None:
        Inbox(self.path, codec="bytes", shared=True).close()

    def _look(self) -> None:
        inbox = self.inbox
        inbox.peek()
        list(inbox)
        len(inbox)
        inbox.find("b")
        assert "x" not in inbox

    def _wait(self) -> None:
        self.inbox.wait(0.001)
        self._receive(self.inbox.take(0.001))

    def _warm(self) -> None:
        self.inbox._taking()._consume()


def hurry(path: str) -> None:
    """Make every back-off end now. Nobody must be the consumer."""
    folder = f"{path}/deferred"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        os.rename(f"{folder}/{name}", f"{folder}/{0:019d}{name[19:]}")


def excused(events: list[Event], path: str) -> list[Event]:
    """Return the events without the ends of adds whose file was set aside: it lies in failed/, whole, with a
    reason beside it.

    That is the rule for a dropped file that cannot be read, or be flushed: people are told, and nothing is
    lost.
    """
    aside = set()
    failed = Path(path, "failed")
    for reason in failed.glob("*~reason.txt") if failed.is_dir() else ():
        file = reason.with_name(reason.name.removesuffix("~reason.txt"))
        if "was set aside" in reason.read_text() and file.is_file():
            aside.add((file.name[20:], value_of(file.read_bytes())))
    return [event for event in events if event.what != "add_end" or (event.key, event.value) not in aside]


def lock_is_free(path: str) -> bool:
    """Tell whether nobody is in a section of an inbox."""
    fd = os.open(f"{path}/index", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def prepared(scenario: Scenario, path: str, log: Log, elsewhere: str = "") -> Program:
    """Make what a scenario finds; return the program that is put to the test."""
    program = Program(path, log, inflight=scenario.inflight, elsewhere=elsewhere)
    for word in scenario.setup.split():
        program.do(word)
    if not scenario.setup.endswith("warm"):
        program.stop()
    assert not program.refused and not program.wrong, (scenario.name, program.refused, program.wrong)
    return program
