"""Steps real producers and a real consumer through every interleaving of their file operations.

An actor is a producer or a consumer: a script of calls to a real Inbox, on a real directory, in a greenlet. In place of
`os` and `fcntl` the modules of fsinbox find Files and Locks, which pass every call on to the real ones, but give control
to the scheduler just before a call that others could notice. So a *step* of an actor is one such call and everything the
actor then does up to the next. An actor may also *crash* before a step: nothing of it runs any more, its descriptors are
closed and its locks are thereby free. When all actors are done or dead, a fresh consumer takes and acknowledges until
nothing is left, and the oracle judges the history.

These calls are not steps:
 - what only concerns the caller's own files and descriptors: all in tmp/ (names are unique there), open of `sequence` and
   `consumer.lock`, close, fstat, fsync, leases, and the text in consumer.lock;
 - unlocking: it only lets others go on, so it might as well happen at once after the step before it;
 - a producer's look into inflight/: it only decides between "new" and "behind";
 - everything in drop/, in a scenario where nobody drops anything.
What only consumers touch (inflight/, deferred/, failed/, attempts/) is a step before which the consumer may crash, but nobody
else runs in between: it would make no difference to either. In attempts/ it crashes only in scenarios that say `notes=True`.

A listing is one step, or several: in a scenario with `listing=(1, 0)` a listing of pending/ first sees the odd numbers that
are there, and later the even ones. For a readdir is not a moment: an entry that comes or goes meanwhile is seen or is not.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import inf
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

import fsinbox.adopt
import fsinbox.consumer
import fsinbox.inbox
import fsinbox.layout
import fsinbox.protocol
import fsinbox.sequence
from fsinbox import Inbox
from fsinbox.layout import FOLDERS, Layout
from tests.oracle import Event

from . import scenarios
from .scenarios import PROBE, Role, Scenario

CONTENTS = ("sequence", "pending", "inflight", "deferred", "failed", "drop", "keys", "attempts")

LANDINGS = (
    (fsinbox.protocol, "read_hint last_number admit find_place confirm take fold put_back"),
    (fsinbox.consumer.Consumer, "_list_pending _take"),
)
"""Functions after which an actor has forgotten all results, but for what its variables hold: no call of them is within an
expression of which a part was worked out before, or in a loop over what is not in a variable."""

IRRELEVANT = ("waits", "fd")
"""Variables that do not matter: one only decides what add returns, the other is of the same file whatever its number."""

MAX_LEFT = 50
"""More elements than a scenario has: whoever takes that many runs in circles."""

UNSEEN, NOTED, PRIVATE, SHARED = range(4)
"""What a call is: no step; a step that others do not notice, and before which nobody crashes; one before which its actor
may crash, but that others do not notice; a step."""


_ADDRESS = re.compile(" at 0x[0-9a-f]+")


class Died(BaseException):
    """Thrown into a greenlet whose actor crashes, and again at every call it makes on its way out."""


class Status(NamedTuple):
    """What lstat and fstat tell, with the same numbers in every replay."""

    st_mode: int
    st_ino: Any
    st_dev: int
    st_size: int
    st_nlink: int
    st_mtime_ns: int = 1
    st_ctime_ns: int = 2  # after the content's: so that a file in drop/ counts as renamed in


# --- in place of os and fcntl -------------------------------------------------------------------------------------


class Files:
    """Passes calls on to os. Those that others could notice are steps."""

    def __init__(self, world: World, *, identity: bool) -> None:
        """`identity`: the module looks at what lstat tells of a file, not only whether it is there."""
        self._world = world
        self._identity = identity

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        setattr(self, name, value)
        return value

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        world = self._world
        folder = world.folders.get(dir_fd, "")
        if path == "." or folder in ("", "."):
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            world.folders[fd] = folder if path == "." else path
        elif folder == "tmp":
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            world.files[os.fstat(fd).st_ino] = path
        else:
            fd = world.call(("open", folder, path), (folder,), lambda: os.open(path, flags, mode, dir_fd=dir_fd), "a file")
        world.opened(fd)
        return fd

    def close(self, fd: int) -> None:
        self._world.closed(fd)
        os.close(fd)

    def rename(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        one, two = self._world.folders[src_dir_fd], self._world.folders[dst_dir_fd]
        what = ("rename", one, src, two, dst)
        return self._world.call(what, (one, two), lambda: os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    def link(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True) -> None:
        one, two = self._world.folders[src_dir_fd], self._world.folders[dst_dir_fd]
        return self._world.call(
            ("link", one, src, two, dst),
            (one, two),
            lambda: os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks),
        )

    def unlink(self, name: str, *, dir_fd: int) -> None:
        folder = self._world.folders[dir_fd]
        return self._world.call(("unlink", folder, name), (folder,), lambda: os.unlink(name, dir_fd=dir_fd))

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        folder = self._world.folders[dir_fd]
        return self._world.call(("symlink", folder, name, target), (folder,), lambda: os.symlink(target, name, dir_fd=dir_fd))

    def readlink(self, name: str, *, dir_fd: int) -> str:
        folder = self._world.folders[dir_fd]
        return self._world.call(("readlink", folder, name), (folder,), lambda: os.readlink(name, dir_fd=dir_fd))

    def lstat(self, name: str, *, dir_fd: int) -> Status:
        folder = self._world.folders[dir_fd]
        return self._world.call(
            ("lstat" if self._identity else "exists", folder, name),
            (folder,),
            lambda: self._world.same_for_all(os.lstat(name, dir_fd=dir_fd)),
            None if self._identity else "there",
        )

    def fstat(self, fd: int) -> Status:
        return self._world.same_for_all(os.fstat(fd))

    def listdir(self, fd: int) -> list[str]:
        folder = self._world.folders[fd]
        order = self._world.listing_order(folder)
        if not order:
            return self._world.call(("listdir", folder), (folder,), lambda: sorted(os.listdir(fd)))
        names: list[str] = []
        for part in order:
            names += self._world.call(("listdir", folder, part), (folder,), lambda part=part: _part(fd, part, len(order)))
        return names

    @contextmanager
    def scandir(self, fd: int) -> Iterator[Any]:
        yield [_Entry(name) for name in self.listdir(fd)]

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        file = self._world.folders[fd]
        return self._world.call(("pread", file), (file,), lambda: os.pread(fd, length, offset))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        file = self._world.folders[fd]
        return self._world.call(("pwrite", file, data), (file,), lambda: os.pwrite(fd, data, offset))


class _Entry(NamedTuple):
    name: str


def _part(fd: int, part: int, parts: int) -> list[str]:
    """Return the names whose number is `part` modulo `parts` (foreign names, whose last digit is none, with part 0)."""
    return sorted(name for name in os.listdir(fd) if (int(name[:19]) if name[:19].isdigit() else 0) % parts == part)


class Locks:
    """Passes calls on to fcntl. A lock that is held by another keeps its actor from going on."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        value = getattr(fcntl, name)
        setattr(self, name, value)
        return value

    def flock(self, fd: int, how: int) -> None:
        if how & fcntl.LOCK_UN:
            self._world.unlock(fd)
            return
        waits = -1 if how & fcntl.LOCK_NB else fd
        file = self._world.folders[fd]
        self._world.call(("flock", file), (file,), lambda: fcntl.flock(fd, how | fcntl.LOCK_NB), lock=waits)


def _modules() -> list[ModuleType]:
    """Return the modules of fsinbox that producers and consumers use."""
    return [module for name, module in sys.modules.items() if name.startswith("fsinbox.")]


# --- the world ----------------------------------------------------------------------------------------------------


class KeptLayout(Layout):
    """A Layout that is used for one replay after the other: close() leaves it open."""

    def close(self) -> None:
        """Leave it open."""

    def end(self) -> None:
        """Close it."""
        super().close()


class World:
    """A directory with an inbox, the modules' view of it, and whose turn it is."""

    def __init__(self, path: str) -> None:
        """`path`: of a folder that does not exist yet."""
        self.path = path
        self.actor: Actor | None = None  # None: nobody is stepped, every call is just passed on
        self.run: Run | None = None
        self.folders: dict[int, str] = {}  # what a descriptor is of
        self.files: dict[int, str] = {}  # inode -> a name that is the same in every replay
        self.main = getcurrent()
        self.layouts: dict[str, KeptLayout] = {}
        self.base = KeptLayout(path)
        self._sequence = os.open("sequence", os.O_RDWR, dir_fd=self.base.root)
        self._patches = [
            mock.patch.object(fsinbox.inbox, "Layout", self._layout),
            mock.patch.object(fsinbox.sequence, "boot_tag", lambda scope: "now"),
            mock.patch.object(fsinbox.protocol, "unused_temporary", self._unused_temporary),
        ]
        for module in _modules():
            stand_ins = {
                "os": Files(self, identity=module is not fsinbox.layout),
                "fcntl": Locks(self),
                "time_ns": self._clock if module is fsinbox.consumer else lambda: 0,  # so numbers are 1, 2, 3 ...
                "monotonic": self._monotonic,
            }
            self._patches += [
                mock.patch.object(module, name, stand_in) for name, stand_in in stand_ins.items() if name in vars(module)
            ]
        for owner, names in LANDINGS:
            self._patches += [mock.patch.object(owner, name, self._landing(getattr(owner, name))) for name in names.split()]

    def __enter__(self) -> World:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()
        os.close(self._sequence)
        for layout in (*self.layouts.values(), self.base):
            layout.end()

    def _layout(self, path: str, *, create: bool, shared: bool, scope: str = "") -> KeptLayout:
        """Return the open layout of whoever opens an inbox now: opening one is no step, so it need not be done each time."""
        actor = self.actor
        who = actor.letter if actor else ""
        layout = self.layouts.get(who)
        if layout is None:
            with self.nobody():  # the descriptors do not die with the actor
                layout = self.layouts[who] = KeptLayout(path)
                for name in FOLDERS:
                    self.folders[layout.folder(name)] = name
            self.folders[layout.root] = "."
        return layout

    def _clock(self) -> int:
        return self.actor.clock if self.actor else self.run.clock

    def _monotonic(self) -> float:
        """Never, or always, is it time for the look into drop/ that a consumer takes now and then."""
        return inf if self.run.scenario.drops else 0

    def _landing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            result = function(*arguments, **more)
            if self.actor and not self.actor.quiet:
                self.actor.remember_only(result, sys._getframe(1))
            return result

        return call

    def _unused_temporary(self, layout: Layout) -> str:
        actor = self.actor
        if actor is None:
            self.run.temporaries += 1
            return f"-{self.run.temporaries}"
        actor.temporaries += 1
        return f"{actor.letter}{actor.position}.{actor.temporaries}"

    @contextmanager
    def nobody(self) -> Iterator[None]:
        """While this lasts, calls are just passed on."""
        actor, self.actor = self.actor, None
        try:
            yield
        finally:
            self.actor = actor

    # what Files and Locks call

    def call(
        self,
        what: tuple[Any, ...],
        where: tuple[str, ...],
        act: Callable[[], Any],
        result_is: object = None,
        lock: int = -1,
    ) -> Any:
        """Do `act`, as a step of the actor whose turn it is if others could notice. `result_is`: instead of the result,
        what the actor can know of it."""
        actor = self.actor
        if actor is None or actor.quiet:
            return act()
        if actor.dead:
            raise Died
        kind = actor.kind_of(where)
        if kind:
            actor.pause(what, lock, kind)
        try:
            result = act()
        except OSError as error:
            if kind:
                actor.note(what, errno.errorcode[error.errno])
            raise
        if what[0] == "flock":
            actor.holds = True
        if kind:
            actor.note(what, result if result_is is None else result_is)
        return result

    def unlock(self, fd: int) -> None:
        """Unlock: no step."""
        if self.actor:
            if self.actor.dead:
                raise Died
            self.actor.holds = False
        fcntl.flock(fd, fcntl.LOCK_UN)

    def opened(self, fd: int) -> None:
        """Remember a descriptor of the actor's."""
        if self.actor:
            self.actor.descriptors.add(fd)

    def closed(self, fd: int) -> None:
        """Forget it."""
        if self.actor:
            self.actor.descriptors.discard(fd)

    def create(self, folder: str, name: str, content: str) -> None:
        """Create a finished file."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.base.folder(folder))
        os.write(fd, content.encode())
        self.files[os.fstat(fd).st_ino] = name
        os.close(fd)

    def same_for_all(self, status: os.stat_result) -> Status:
        """Return what is the same in every replay."""
        inode = self.files.get(status.st_ino, "?")
        return Status(status.st_mode, inode, 0, status.st_size, status.st_nlink)

    def listing_order(self, folder: str) -> tuple[int, ...]:
        """Return in which order a listing sees the numbers, () if at once."""
        return self.run.scenario.listing if self.actor and self.actor.role.consumer and folder == "pending" else ()

    # the state on disk

    def clear(self, *, fresh_boot: bool) -> None:
        """Make the inbox as good as new."""
        self.files.clear()
        for folder in FOLDERS:
            fd = self.base.folder(folder)
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
        os.pwrite(self._sequence, b"%019d %s\n" % (0, b"old" if fresh_boot else b"now"), 0)

    def contents(self) -> tuple[Any, ...]:
        """Return what is on disk, but for tmp/, where each actor's files are its own business."""
        found: list[Any] = [os.pread(self._sequence, 64, 0)]
        for folder in CONTENTS[1:6]:
            with os.scandir(self.base.folder(folder)) as entries:
                found.append(tuple(sorted((entry.name, self.files.get(entry.inode(), "?")) for entry in entries)))
        for folder in CONTENTS[6:]:
            fd = self.base.folder(folder)
            found.append(tuple((name, os.readlink(name, dir_fd=fd)) for name in sorted(os.listdir(fd))))
        return tuple(found)

    def is_free(self, fd: int) -> bool:
        """Tell whether this descriptor could lock its file now."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True


# --- one run ------------------------------------------------------------------------------------------------------


class Actor:
    """One producer or consumer in a run."""

    def __init__(self, run: Run, index: int, role: Role) -> None:
        self.run = run
        self.world = run.world
        self.index = index
        self.role = role
        self.letter = chr(ord("A") + index)
        self.begun = False  # its first step was made
        self.holds = False  # the admission lock
        self.ended = False
        self.dead = False
        self.quiet = False
        self.error: Exception | None = None
        self.descriptors: set[int] = set()
        self.clock = 0
        self.temporaries = 0
        self.node = 0  # stands for all it has seen since it last forgot
        self.position = 0
        self.waiting: tuple[Any, ...] = ()  # the step it will make next
        self.lock = -1  # the descriptor it wants to lock with that
        self.kind = SHARED  # what kind of step that is
        self.result: Any = None  # of the last step
        self._announced: list[tuple[str, str, str]] = []
        self.may_crash = not run.scenario.crashers or self.letter in run.scenario.crashers
        self._kinds: dict[tuple[str, ...], int] = {}
        self._greenlet = greenlet(self._live)

    def open(self) -> None:
        """Open the inbox, and become its consumer if it has been that for long."""
        with self.unstepped():
            self.inbox = Inbox(self.world.path, codec="text", max_inflight=self.role.inflight)
            self.layout = self.inbox._layout
            if self.role.opened:
                assert self.inbox.take() is None

    @contextmanager
    def unstepped(self) -> Iterator[None]:
        """While this lasts, the calls of this actor are no steps."""
        before, self.world.actor, self.quiet = self.world.actor, self, True
        try:
            yield
        finally:
            self.world.actor, self.quiet = before, False

    def start(self) -> None:
        """Run up to the first step."""
        self._switch()

    def _switch(self, *throw: type[BaseException]) -> None:
        self.world.actor = self
        if throw:
            self._greenlet.throw(*throw)
        else:
            self._greenlet.switch()
        self.world.actor = None
        if self._greenlet.dead:
            self.ended = True
            for fd in self.descriptors:
                os.close(fd)
            self.descriptors.clear()

    def _live(self) -> None:
        try:
            if self.role.after is not None:
                self.pause(("begin",), -1, SHARED)
                self.note(("begin",), None)
            self.role.script(self)
        except Died:
            pass
        except Exception as error:
            self.error = error

    # what a run does with it

    def may_start(self) -> bool:
        """Tell whether the one it waits for has ended."""
        return self.role.after is None or self.run.actors[self.role.after].ended

    def is_enabled(self) -> bool:
        """Tell whether it can make a step now."""
        return not self.ended and self.may_start() and (self.lock < 0 or self.world.is_free(self.lock))

    def step(self) -> None:
        """Make the next step."""
        self.begun = True
        self.flush()
        self._switch()

    def crash(self) -> None:
        """Die here."""
        self.dead = True
        self._announced.clear()
        if self.role.consumer:
            self.run.happened("died", self.letter)
        self._switch(Died)
        assert self.ended, "a crashed actor went on"

    # what its script calls

    def will(self, what: str, key: str, value: str = "") -> None:
        """Say what begins with the next step. (What begins is noted as late as it may be, what ends as early: the order
        the oracle knows is the strictest that is true.)"""
        self._announced.append((what, key, value))

    def flush(self) -> None:
        """Note what was said to begin."""
        for what, key, value in self._announced:
            self.run.happened(what, self.letter, key, value)
        self._announced.clear()

    def did(self, what: str, key: str = "", value: str = "") -> None:
        """Note what happened."""
        self.flush()
        self.run.happened(what, self.letter, key, value)

    def forget(self) -> None:
        """Between two calls of its script: what it does next only depends on its inbox."""
        self.position += 1
        self.temporaries = 0
        self.node = self.run.node(("between", self.position, self._remembered(), self.clock))

    def remember_only(self, result: Any, frame: FrameType | None) -> None:
        """In the midst of a call of its script: what it does next only depends on what its variables and its inbox hold."""
        frames: list[Any] = []
        while frame and frame.f_globals is not vars(scenarios):  # the script's own are as they were between two calls
            variables = [(name, value) for name, value in frame.f_locals.items() if name not in IRRELEVANT]
            frames.append((frame.f_code.co_qualname, _place(frame.f_code, frame.f_lasti), variables))
            frame = frame.f_back
        plain = _ADDRESS.sub("", repr((result, frames)))
        self.node = self.run.node(("within", self.position, self.temporaries, plain, self._remembered(), self.clock))

    def _remembered(self) -> str:
        return _memory(self.inbox) if self.role.consumer else ""

    # what its calls do

    def kind_of(self, where: tuple[str, ...]) -> int:
        """Return what a call in these folders is."""
        kind = self._kinds.get(where)
        if kind is None:
            kind = self._kinds[where] = max(map(self._kind_of, where))
        return kind

    def _kind_of(self, folder: str) -> int:
        scenario = self.run.scenario
        if folder in ("pending", "keys", "sequence") or (folder == "drop" and scenario.drops):
            return SHARED
        if folder in ("tmp", "consumer.lock") or not self.role.consumer:
            return UNSEEN
        if folder in ("inflight", "deferred", "failed") or (folder == "attempts" and scenario.notes):
            return PRIVATE
        return NOTED

    def pause(self, what: tuple[Any, ...], lock: int, kind: int) -> None:
        """Wait until it is this actor's turn, to do `what`."""
        self.waiting = what
        self.lock = lock
        self.kind = kind
        self.world.main.switch()
        self.lock = -1
        if self.dead:
            raise Died

    def note(self, what: tuple[Any, ...], result: Any) -> None:
        """Remember the result of a call."""
        if type(result) is list:
            result = tuple(result)
        self.result = result
        self.node = self.run.node((self.node, what, result))
        if self.run.trace is not None:
            self.run.trace.append((self.letter, what, result))


@functools.cache
def _place(code: CodeType, instruction: int) -> tuple[int | None, ...]:
    """Return which piece of the source is being executed. (Not by the number of the instruction: that of one and the same call
    may differ by the time the interpreter has adapted to what is called there.)"""
    return next(islice(code.co_positions(), instruction // 2, None))


def _memory(inbox: Inbox) -> str:
    """Return what a consumer knows."""
    knows = inbox._consumer
    if knows is None:
        return "nothing"
    fixed = ("_layout", "_sequence", "_settings", "_hold", "_mine", "drops")
    drops = [(name, value) for name, value in vars(knows.drops).items() if name not in fixed]
    return repr(([(name, value) for name, value in vars(knows).items() if name not in fixed], drops))


class Run:
    """One run of a scenario, step by step."""

    def __init__(self, world: World, scenario: Scenario, nodes: dict[Any, int], trace: list[Any] | None = None) -> None:
        self.world = world
        self.scenario = scenario
        self.events: list[Event] = []
        self.crashed = 0
        self.temporaries = 0
        self.clock = 0
        self.trace = trace
        self._nodes = nodes
        world.run = self
        world.clear(fresh_boot=scenario.fresh_boot)
        self.actors = [Actor(self, index, role) for index, role in enumerate(scenario.roles)]
        for actor in self.actors:
            actor.open()
        if scenario.before:
            self._add_before()
        for actor in self.actors:
            actor.start()

    def _add_before(self) -> None:
        with Inbox(self.world.path, codec="text") as inbox:
            for key, value in self.scenario.before:
                self.happened("add_start", "-", key, value)
                inbox.add(key, value, durable=False)
                self.happened("add_end", "-", key, value)

    def node(self, seen: tuple[Any, ...]) -> int:
        """Return a number that stands for this, and nothing else."""
        return self._nodes.setdefault(seen, len(self._nodes) + 1)

    def happened(self, what: str, who: str, key: str = "", value: str = "") -> None:
        """Add to the history."""
        self.events.append(Event(what, who, key, value, len(self.events)))

    def choices(self) -> list[int]:
        """Return what can happen next: the index of an actor that makes a step; -1 - index of one that crashes."""
        able = [actor for actor in self.actors if not actor.ended and actor.may_start()]
        for actor in able:
            if actor.kind != SHARED:
                able = [actor]
                break
        steps = [actor.index for actor in able if actor.is_enabled()]
        if self.crashed == self.scenario.crashes:
            return steps
        return steps + [-1 - actor.index for actor in able if actor.begun and actor.kind != NOTED and actor.may_crash]

    def do(self, choice: int) -> Actor:
        """Let it happen; return the actor it happened to."""
        actor = self.actors[choice if choice >= 0 else -1 - choice]
        if choice >= 0:
            actor.step()
        else:
            self.crashed += 1
            if self.trace is not None:
                self.trace.append((actor.letter, ("dies before", *actor.waiting), None))
            actor.crash()
        if actor.ended:
            actor.node = self.node(("ended", repr(actor.error)))
        return actor

    def drain(self) -> tuple[list[tuple[str, str]], str]:
        """When all have ended: let a fresh consumer take all that is left. Return (keys and values, what it left)."""
        self.clock = 10 * PROBE
        taken = []
        with Inbox(self.world.path, codec="text") as inbox:
            while len(taken) < MAX_LEFT and (element := inbox.take()):
                taken.append((element.key, element.value))
                element.ack()
        left = dict(zip(CONTENTS, self.world.contents(), strict=True))
        del left["sequence"]
        return taken, ", ".join(f"{folder}/: {names}" for folder, names in left.items() if names)

    def end(self) -> None:
        """Leave nothing running."""
        for actor in self.actors:
            if not actor.ended:
                actor.dead = True
                actor._switch(Died)


# --- schedules ----------------------------------------------------------------------------------------------------


def spell(path: list[int]) -> str:
    """Return a path as text: a letter a step, of the actor that makes it; a small letter where it crashes."""
    return "".join(chr(ord("A") + choice) if choice >= 0 else chr(ord("a") - 1 - choice) for choice in path)


def unspell(schedule: str) -> list[int]:
    """Return the path that a text stands for."""
    return [ord(letter) - ord("A") if letter.isupper() else -1 - (ord(letter) - ord("a")) for letter in schedule]
