"""An inbox in a bad place, the programs that use it there, and the four questions that are asked of every
case:

 1  does anything hang?          every call returns or raises within a second
 2  does it stop the others?     what was added before and after, for other keys, is delivered, in order
 3  does it reach outside?       nothing in `outside/` is opened, changed or delivered
 4  is there a reason?           an InboxError that names the thing, the reason and the way out; or a reason
    in failed/;
                                 or it is left alone, as the documents say

An inbox holds `before-1` (out, of a consumer that died), `a` (the key that the hostile thing is about) and
`before-2`. Then the damage is done, and a client adds `after-1`, `a` and `after-2`, looks, and works until
nothing is left. The clients:

 open       a program that had the inbox open before the damage
 fresh      one that opens it in the damage
 commands   `fsinbox add`, `status`, `ls`, `show` and `consume --drain`, a process each
 shell      scripts/fsinbox-add; then as `fresh`

The client is a child process: it may be another user, and have limits of its own. A watchdog dumps its stack
if it hangs. When it is done the damage is mended, if it can be, and a fresh consumer drains what is left.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import importlib
import logging
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import fsinbox.cli
from fsinbox import Element, Inbox, InboxError
from fsinbox.store.names import decode_key, encode_key
from tests.driver import SHELL_PRODUCER, Log, aftermath, payload, spell, unspell, value_of
from tests.oracle import Event, judge, judge_order

for _module in (
    *(
        (
            "fsinbox.cli.adding fsinbox.cli.commands fsinbox.cli.consuming fsinbox.cli.text "
            "fsinbox.consumer.consumer fsinbox.operate.status"
        ).split()
    ),
    *("fsinbox.worker.functions fsinbox.consumer.watch watchdog.observers.inotify_c base64 json".split()),
):
    importlib.import_module(_module)  # before any child becomes a user who may not read them

LIMIT = 1.0
"""Seconds that a call may take."""

HUNG = 6.0
"""Seconds after which the watchdog ends a client: nobody waits for what hangs."""

USER = 64321
"""A user (and group) that nobody is."""

SECRET = b"TOP SECRET"
"""Stands in every file outside: it must never be delivered."""

OTHERS = ("before-1", "before-2", "after-1", "after-2")
CLIENTS = ("open", "fresh", "commands", "shell")

WAY_OUT = (
    "nothing was lost|add it again|queue it again|was not queued|create|start|must be|remove|restore|comes "
    "back|check|stop|free|"
    "name (another|a directory)|make it readable|mend|fix that|closed|refused"
)
"""What a message says to do, or that there is nothing to do."""


# --- outside ------------------------------------------------------------------------------------------


class Outside:
    """A folder that no inbox has any business with, and a watch over it that misses nothing: not even an
    open."""

    OPENED, ACCESSED = 0x20, 0x1  # IN_OPEN, IN_ACCESS of inotify(7)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secret = path / "secret"
        self.folder = path / "folder"
        self.folder.mkdir(parents=True)
        for file in (self.secret, self.folder / "secret", self.folder / "0000000000000000001-secret"):
            file.write_bytes(SECRET)
            file.chmod(0o666)
        for folder in (path, self.folder):
            folder.chmod(0o777)
        self._before = self._state()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = -1

    def _state(self) -> dict[str, tuple[Any, ...]]:
        """Return everything that a write, a link or a rename would change."""
        state = {}
        for path in sorted([self.path, *self.path.rglob("*")]):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            state[str(path.relative_to(self.path))] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                content,
            )
        return state

    def link_to(self, path: Path) -> None:
        """Make `path` a hard link to a file out here (which is no change of ours to be found later)."""
        os.link(self.secret, path)
        self._before = self._state()

    def hide(self) -> None:
        """Let only its owner, us, see what is in here."""
        self.secret.chmod(0o600)
        self._before = self._state()

    def begin(self) -> None:
        """From now on every open counts."""
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in (self.path, self.folder):
            # The folders themselves and what is in them.
            assert (
                self._libc.inotify_add_watch(self._watch, os.fsencode(path), self.OPENED | self.ACCESSED) >= 0
            )

    def complaints(self) -> list[str]:
        """Return what was done out here, a sentence each."""
        try:
            events = os.read(self._watch, 1 << 16)
        except BlockingIOError:
            events = b""
        finally:
            os.close(self._watch)
        wrong = []
        while events:
            _, _, _, length = struct.unpack_from("iIII", events)
            name = os.fsdecode(events[16 : 16 + length].rstrip(b"\0"))
            wrong.append(f"outside: {name or 'the folder'} was opened or read")
            events = events[16 + length :]
        after = self._state()
        for name in sorted(self._before.keys() | after.keys()):
            if name not in after and self._before[name][3] > 1:
                continue
            if self._before.get(name) != after.get(name):
                wrong.append(
                    f"outside: {name} was changed, from {self._before.get(name)} to {after.get(name)}"
                )
        return wrong


# --- a case and its place -----------------------------------------------------------------------------

Damage = Callable[["Place"], Any]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    name      for the test's id
    damage    what is done to a Place; what stands behind its `yield`, if it has one, mends it again
    fatal     nothing can be added, or all that is there be taken, before it is mended; else others go on
              beside it
    drains    but what waits already is delivered
    refused   a pattern that some error must match; None: no call may fail
    aside     a pattern that some reason in failed/ must match; None: nothing may be set aside
    unseen    clients that need not meet it
    spoils    the waiting value of key `a` is lost with it
    ground    what the inbox lies on: mounts a file system at a path and returns how to unmount it
    user      whether the client is USER, not root
    limit     called in each process of the client, after the damage: it sets limits, and returns what lifts
              them
    empties   a folder in which nothing may be left
    clients   who meets it
    root      whether only root can do that (what has a ground or a user always is root's)
    """

    name: str
    damage: Damage = lambda place: None
    fatal: bool = False
    drains: bool = False
    refused: str | None = None
    aside: str | None = None
    unseen: tuple[str, ...] = ()
    spoils: bool = False
    ground: Callable[[Path], Callable[[], object]] | None = None
    user: bool = False
    limit: Callable[[Place], Callable[[], object]] | None = None
    root: bool = False
    empties: str = ""
    clients: tuple[str, ...] = CLIENTS

    @property
    def needs_root(self) -> bool:
        """Whether it can only be done by root."""
        return self.root or self.user or self.ground is not None


class Place:
    """Where a case happens: an inbox, the folder outside, and what is known of both."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self.case = case
        self.began = time.time_ns()
        self.folder = Path(tempfile.mkdtemp(prefix="fsinbox-hostile-"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        ground = self.folder / "ground"
        ground.mkdir()
        if case.ground:
            stack.callback(case.ground(ground))
        elif is_root():
            stack.callback(in_memory(ground))
        self.ground = ground
        self.outside = Outside(ground / "outside")
        self.inbox = ground / "inbox"
        self.log = Log("before")
        self.left: dict[Path, int] = {}
        self.delivered: list[tuple[str, str]] = []
        with Inbox(self.inbox, codec="bytes") as inbox:
            for key in ("before-1", "a", "before-2"):
                self.log.tell("add_start", key, "1")
                inbox.add_bytes(key, payload("1"))
                self.log.tell("add_end", key, "1")
        self.number = {
            key: next((self.inbox / "pending").glob(f"*-{key}")).name[:19]
            for key in ("before-1", "a", "before-2")
        }
        # A consumer has taken it, and died.
        name = self.element("before-1")
        (self.inbox / "pending" / name).rename(self.inbox / "inflight" / name)
        if case.user:
            for path in [ground, self.inbox, *self.inbox.rglob("*")]:
                os.chown(path, USER, USER, follow_symlinks=False)
        stack.callback(self._no_mounts)

    def _no_mounts(self) -> None:
        with open("/proc/self/mountinfo") as lines:
            mounts = [
                words[4] for words in map(str.split, lines) if words[4].startswith(str(self.ground) + "/")
            ]
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount], check=False)

    def element(self, key: str) -> str:
        """Return the name of one of the three elements that were there from the beginning."""
        return f"{self.number[key]}-{key}"

    @property
    def waiting(self) -> Path:
        """The file of `a`, which waits."""
        return self.inbox / "pending" / self.element("a")

    def leave(self, path: Path) -> Path:
        """Note that the thing there must be left alone."""
        self.left[path] = path.lstat().st_ino
        return path

    def drop(self, name: str | bytes, value: str = "dropped") -> None:
        """Move a proper file into drop/: whatever its name, it must be delivered under it as key."""
        key = os.fsdecode(name)
        draft = self.ground / "draft"
        draft.write_bytes(payload(value))
        if self.case.user:
            os.chown(draft, USER, USER)
        self.log.tell(
            "add_start", key, value
        )  # without an end: its place in the order is not that of its coming
        draft.rename(self.inbox / "drop" / key)
        self.delivered.append((key, value))


# --- a report -----------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a client did and met."""

    slowest: dict[str, float] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def timed(self, call: str, step: Callable[[], Any]) -> Any:
        """Do a step; note how long it took. Returns None, and notes it, if it raised an InboxError."""
        began = time.monotonic()
        try:
            return step()
        except InboxError as error:
            self.refusals.append((call, str(error)))
        finally:
            self.slowest[call] = max(self.slowest.get(call, 0), time.monotonic() - began)
        return None

    def slow(self) -> list[str]:
        """Return the calls that took too long, a sentence each."""
        return [
            f"hangs: {call} took {seconds:.2f} s" for call, seconds in self.slowest.items() if seconds > LIMIT
        ]


# --- the clients --------------------------------------------------------------------------------------


class Program:
    """Uses the package, in this process. The base of all clients."""

    def __init__(self, place: Place, report: Report) -> None:
        self.place = place
        self.report = report
        self.log = Log("client")
        self._inbox: Inbox | None = None

    def begin(self) -> None:
        """What is done before the damage."""

    def opened(self) -> Inbox | None:
        """The open inbox; None if it cannot be opened now."""
        if self._inbox is None:
            self._inbox = self.report.timed(
                "open",
                lambda: Inbox(self.place.inbox, codec="bytes", create=False, drop_settle=0, max_inflight=2),
            )
        return self._inbox

    def add(self, key: str, value: str) -> None:
        """Add, and announce it."""
        self.log.tell("add_start", key, value)
        inbox = self.opened()
        if inbox and self.report.timed(f"add {key}", lambda: inbox.add_bytes(key, payload(value))):
            self.log.tell("add_end", key, value)

    def look(self) -> None:
        """Look at everything, as a program may."""
        inbox = self.opened()
        if inbox:
            timed = self.report.timed
            timed("len", lambda: len(inbox))
            timed("find", lambda: inbox.find("a"))
            timed("in", lambda: "a" in inbox)
            timed("wait", lambda: inbox.wait(0))
            for waiting in timed("list", lambda: list(inbox)) or ():
                timed("read", lambda waiting=waiting: self._read(waiting))

    _short = False
    """Whether no descriptor was left for the last payload."""

    def _read(self, waiting: Any) -> bytes:
        """Return the payload, b"" if it cannot be read: that raises OSError, as documented. Not what is
        absurdly large."""
        if os.path.exists(waiting.path) and os.stat(waiting.path, follow_symlinks=False).st_size > 1 << 30:
            return b""
        try:
            data: bytes = waiting.data
        except OSError as error:
            self._short = error.errno == errno.EMFILE
            return b""
        if SECRET in data:
            self.report.wrong.append(f"outside: a secret was delivered as the payload of {waiting.key!r}")
        return data

    def work(self) -> None:
        """Take and acknowledge until nothing is left. One is put back once, one deferred, one left out to the
        end."""
        inbox = self.opened()
        if not inbox:
            return
        kept: list[Element] = []
        once = {
            "before-2": lambda element: element.nack(),
            "after-1": lambda element: element.nack(delay=1e-9),
        }
        for _ in range(40):
            refused = len(self.report.refusals)
            element = self.report.timed("take", inbox.take)
            if element is None and len(self.report.refusals) == refused:
                if inbox.next_look_in() is None:
                    break
                element = self.report.timed("take, waiting", lambda: inbox.take(timeout=0.5))
            if element is None:
                if len(self.report.refusals) > refused + 3:
                    break
                continue
            self._work_on(element, kept, once)
        self.report.timed("take, waiting", lambda: inbox.take(timeout=0.01) if not kept else None)
        if kept:
            self.log.tell("nack", kept[0].key)  # close() will put it back

    def _work_on(
        self, element: Element, kept: list[Element], once: dict[str, Callable[[Element], object]]
    ) -> None:
        data = self._read(element)
        timed = self.report.timed
        if not data:
            # Where nothing can be opened, that says nothing of the element.
            give_up = element.release if self._short else partial(element.fail, "it cannot be read")
            timed("fail", give_up)
            return
        self.log.tell("deliver", element.key, value_of(data))
        if element.key == "after-2":
            kept.append(element)
        elif step := once.pop(element.key, None):
            self.log.tell("nack", element.key)
            timed("nack", lambda: step(element))
        else:
            self.log.tell("ack", element.key)
            timed("ack", element.ack)

    def end(self) -> None:
        """Close."""
        if self._inbox:
            self.report.timed("close", self._inbox.close)
            if not self._inbox._handle.closed:
                self.report.wrong.append("close() left the inbox open")


class Open(Program):
    """Has had it open all the time, as producer and as consumer."""

    def begin(self) -> None:
        inbox = self.opened()
        element = inbox and inbox.take()
        assert element
        self.log.tell("deliver", element.key, value_of(element.data))
        self.log.tell("nack", element.key)
        element.nack()
        inbox.find("a")


class Commands(Program):
    """The command line."""

    def add(self, key: str, value: str) -> None:
        self.log.tell("add_start", key, value)
        if self._run("add", key, "-", stdin=payload(value)) == 0:
            self.log.tell("add_end", key, value)

    def look(self) -> None:
        for words in (["status"], ["ls", "--json"], ["show", "a"], ["show", "b", "--json"]):
            self._run(*words)

    def work(self) -> None:
        handler = "--handler tests.hostile.place:work_on --codec bytes".split()
        retries = "--retry-delay 0.001 --max-retry-delay 0.001 --max-attempts 2 --drop-settle 0".split()
        self._run("consume", "--drain", *handler, *retries)

    def _run(self, *words: str, stdin: bytes = b"") -> int:
        """Run a command to its end, as a process of its own; return its exit status."""
        case = self.place.case

        def step() -> NoReturn:
            if case.limit:
                case.limit(self.place)
            run_command(["--inbox", str(self.place.inbox), *words])

        began = time.monotonic()
        status, output, announced = forked(step, stdin)
        self.report.slowest[words[0]] = max(self.report.slowest.get(words[0], 0), time.monotonic() - began)
        events = [unspell(line) for line in announced.decode().splitlines()]
        self.log.events += [event._replace(key=decode_key(event.key[1:]) or "") for event in events]
        self._judge(words, status, output)
        return status

    def _judge(self, words: tuple[str, ...], status: int, output: bytes) -> None:
        line = "fsinbox " + " ".join(words[:2])
        text = output.decode("utf-8", "replace")
        if SECRET in output:
            self.report.wrong.append(f"outside: {line} printed a secret")
        if ("Traceback" in text and "cannot be worked on" not in text) or "most recent call first" in text:
            self.report.wrong.append(f"{line}: a traceback\n{text}")
        if "\0" in text or "\x1b" in text:
            self.report.wrong.append(f"{line} printed control characters")
        if status not in ({0, 1, 3} if words[0] in ("show", "consume") else {0, 3}):
            self.report.wrong.append(f"{line}: exit status {status}\n{text}")
        if status == 3:
            self.report.refusals.append(
                (words[0], "\n".join(part for part in text.splitlines() if part.startswith("fsinbox: ")))
            )


class Shell(Program):
    """The producer in sh."""

    def add(self, key: str, value: str) -> None:
        case = self.place.case
        self.log.tell("add_start", key, value)
        began = time.monotonic()
        try:
            done = subprocess.run(
                [SHELL_PRODUCER, "--inbox", self.place.inbox, key],
                input=payload(value),
                capture_output=True,
                timeout=HUNG,
                preexec_fn=case.limit and (lambda: case.limit(self.place)),
            )
        except subprocess.TimeoutExpired:
            self.report.wrong.append("hangs: fsinbox-add")
            return
        finally:
            self.report.slowest["fsinbox-add"] = max(
                self.report.slowest.get("fsinbox-add", 0), time.monotonic() - began
            )
        text = done.stderr.decode("utf-8", "replace")
        if done.returncode == 0:
            self.log.tell("add_end", key, value)
            if text:
                self.report.wrong.append(f"fsinbox-add succeeded, and complained: {text}")
        elif done.returncode == 3 and text.splitlines()[-1].startswith("fsinbox-add: "):
            self.report.refusals.append((f"add {key}", text))
        else:
            self.report.wrong.append(f"fsinbox-add: exit status {done.returncode}: {text}")


_seen: set[str] = set()

ANNOUNCE = 3
"""The descriptor on which a command's handler announces: a pipe, which no full disk and no limit of files can
stop."""


def work_on(key: str, value: bytes) -> None:
    """The handler of `fsinbox consume`: announces what it is given. What is empty it cannot work on,
    `before-2` not at once."""
    if SECRET in value:
        print(SECRET.decode(), flush=True)
    if not value:
        raise ValueError("cannot be worked on: it is empty")
    again = key == "before-2" and key not in _seen
    _seen.add(key)
    for what in ("deliver", "nack" if again else "ack"):
        os.write(
            ANNOUNCE,
            spell(Event(what, "consumer", f"={encode_key(key)}", value_of(value), time.monotonic_ns())),
        )
    if again:
        raise ValueError("cannot be worked on: not yet")


PROGRAMS: dict[str, type[Program]] = {"open": Open, "fresh": Program, "commands": Commands, "shell": Shell}


def run_command(words: list[str]) -> NoReturn:
    """Be the process `fsinbox WORDS`."""
    logging.root.handlers.clear()  # pytest's: a process of its own would have none
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process, as the next two
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["fsinbox", *words]
    fsinbox.cli.main()
    sys.exit(0)


def forked(step: Callable[[], object], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Do a step in a child process; return its exit status, what it wrote and what it announced. A hung one
    is ended."""
    source, feed = os.pipe()
    os.write(feed, stdin)  # few bytes: a pipe holds them
    os.close(feed)
    reader, output = os.pipe()
    listener, announce = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kept = [os.dup(number) for number in (source, output, output, announce)]
            os.closerange(0, min(kept))
            for number, descriptor in enumerate(kept):
                os.dup2(descriptor, number)
            os.closerange(len(kept), 256)
            watchdog(2, HUNG)
            step()
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 0
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    for descriptor in (source, output, announce):
        os.close(descriptor)
    wrote, announced = _read_all(reader), _read_all(listener)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), wrote, announced


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


@cache
def is_root() -> bool:
    """Tell whether this is a root who may mount: in some containers root may not."""
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            in_memory(Path(folder))()
        except OSError:
            return False
    return True


def in_memory(path: Path) -> Callable[[], object]:
    """Mount a tmpfs there: a flush costs nothing, whatever other tests do to the disk. Returns what unmounts
    it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=64m"):
        raise OSError(ctypes.get_errno(), "cannot mount a tmpfs")
    return lambda: libc.umount2(os.fsencode(path), 2)  # MNT_DETACH


def unshare(flags: int) -> None:
    """Be in a namespace of its own: unshare(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "cannot unshare")


def end_group(child: int) -> None:
    """End what a child of ours has left running."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def watchdog(descriptor: int, seconds: float) -> None:
    """Write this process's stack there and end it after so many seconds."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=descriptor, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)


# --- asking -------------------------------------------------------------------------------------------


def ask(case: Case, client: str) -> Report:
    """Do what a case says, let a client meet it, and return its report, with everything that is wrong."""
    with ExitStack() as stack:
        place = Place(case, stack)
        report = _meet(place, client)
        _look_at_what_is_left(place, client, report)
        return report


def _meet(place: Place, client: str) -> Report:
    """Have a client meet the damage; mend it; return the client's report."""
    ready, begun = os.pipe()
    done, go = os.pipe()
    answer = place.folder / "answer"
    answer.touch()
    answer.chmod(0o666)
    stack_dump = tempfile.TemporaryFile()  # noqa: SIM115 - the child's, too
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            watchdog(stack_dump.fileno(), HUNG + 2)
            os.close(ready)
            os.close(go)
            _be_a_client(place, client, begun, done, answer)
        except BaseException:
            os.write(stack_dump.fileno(), traceback.format_exc().encode("utf-8", "backslashreplace"))
        finally:
            os._exit(0)
    os.close(begun)
    os.close(done)
    try:
        os.read(ready, 1)  # it has begun; or it has died, and is asked below
        with damaged(place):
            place.outside.begin()
            os.write(go, b"!")
            os.waitpid(child, 0)
            end_group(child)
            complaints = place.outside.complaints()
    finally:
        os.close(ready)
        os.close(go)
    try:
        report: Report = pickle.loads(answer.read_bytes())
    except EOFError:
        stack_dump.seek(0)
        report = Report(wrong=["hangs, or dies: " + stack_dump.read().decode("utf-8", "replace")])
    stack_dump.close()
    report.wrong += complaints
    return report


def _be_a_client(place: Place, client: str, begun: int, done: int, answer: Path) -> None:
    report = Report()
    if place.case.user:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    with open(answer, "wb") as file:
        program = PROGRAMS[client](place, report)
        program.begin()
        descriptors = len(os.listdir("/proc/self/fd")) if client != "open" else 0
        os.write(begun, b"!")
        os.read(done, 1)
        limit = place.case.limit
        own = limit and client in ("open", "fresh")  # the others run processes, each of which sets its own
        lift = limit(place) if limit and own else None
        try:
            for key in ("after-1", "a", "after-2"):
                program.add(key, "2")
            if limit and client == "shell":
                lift = limit(place)
            program.look()
            program.work()
            program.end()
        finally:
            if lift:
                lift()
        if descriptors and len(os.listdir("/proc/self/fd")) > descriptors:
            report.wrong.append("it keeps descriptors open after close()")
        report.events = program.log.events
        pickle.dump(report, file)


@contextmanager
def damaged(place: Place) -> Iterator[None]:
    """The damage is done; and mended at the end, if the case can be mended."""
    steps = place.case.damage(place)
    if not hasattr(steps, "__next__"):
        yield
        return
    next(steps)
    try:
        yield
    finally:
        next(steps, None)


def _look_at_what_is_left(place: Place, client: str, report: Report) -> None:
    case, wrong = place.case, report.wrong
    events = sorted([*place.log.events, *report.events], key=lambda event: event.t)
    by_client = {
        event.key for event in events if event.what == "deliver" and event.who in ("client", "consumer")
    }
    beside = OTHERS if not case.fatal else OTHERS[:2] if case.drains else ()
    wrong += [f"stops others: {key} was not delivered beside it" for key in beside if key not in by_client]
    if not case.fatal:
        wrong += [f"stops others: {call}: {text}" for call, text in report.refusals if not case.refused]
    logging.disable()
    events += [Event("died", who) for who in ("client", "consumer")]
    try:
        events += aftermath(str(place.inbox), "drain")
    except Exception:
        wrong.append(f"not mended: {traceback.format_exc()}")
    finally:
        logging.disable(logging.NOTSET)
    known = [event for event in events if not (case.spoils and event.key == "a")]
    wrong += judge(known)
    wrong += judge_order([event for event in known if event.key in OTHERS])
    got = {(event.key, event.value) for event in events if event.what == "deliver"}
    wrong += [
        f"stops others: dropped {key!r} was not delivered"
        for key, value in place.delivered
        if (key, value) not in got
    ]
    _look_for_reasons(place, client, report)


def _look_for_reasons(place: Place, client: str, report: Report) -> None:
    case, wrong = place.case, report.wrong
    reasons = {
        path.name: path.read_text(errors="replace")
        for path in (place.inbox / "failed").glob("*~reason.txt")
        if is_file(path)
    }
    for call, text in report.refusals:
        if not re.search(WAY_OUT, text) or not re.search("inbox", text):
            wrong.append(f"reason: {call} does not say what to do about which inbox: {text}")
    met = client not in case.unseen
    if case.refused and met and not any(re.search(case.refused, text, re.S) for _, text in report.refusals):
        wrong.append(f"reason: nothing was refused for {case.refused!r}, only {report.refusals}")
    if case.aside and met and not any(re.search(case.aside, text, re.S) for text in reasons.values()):
        wrong.append(f"reason: nothing in failed/ for {case.aside!r}, only {reasons}")
    if not case.aside and reasons:
        wrong.append(f"reason: something went to failed/: {reasons}")
    if case.empties and (names := os.listdir(place.inbox / case.empties)):
        wrong.append(f"reason: still in {case.empties}/: {names}")
    for path, inode in place.left.items():
        if not os.path.lexists(path) or path.lstat().st_ino != inode:
            wrong.append(f"reason: {path.name!a} in {path.parent.name}/ was not left alone")


def is_file(path: Path) -> bool:
    """Tell whether it is a regular file, of a size to be read."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20
