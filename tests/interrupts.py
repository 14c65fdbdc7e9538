"""Exceptions out of signal handlers, aimed at every step of a call: what must hold after each of them.

    python -m tests.interrupts FOLDER CASE traced FIRST STRIDE      at every STRIDE-th place, from the FIRST
    on python -m tests.interrupts FOLDER CASE alarms COUNT SEED        by SIGALRM, so many times, at moments
    of its length

Prints how often it interrupted. The first raises the exception out of a trace function, after each bytecode
instruction of the package after which the interpreter may run a signal handler (and after some where it does
not: a call of a function that is in Python). The second has a timer do it.

After each interrupt: another process gets the lock at once; this one can add and take; nothing is left in
tmp/, nor open there; in inflight/ is only what some Element stands for; and what was queued is delivered, in
order, unless it was acknowledged.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dis import opname
from pathlib import Path
from types import FrameType
from typing import Any

import fsinbox
from fsinbox import Element, Inbox, WrongState
from tests.usual import is_free, names

PACKAGE = str(Path(fsinbox.__file__).parent) + os.sep

PATIENCE = 20.0
"""Seconds after which what was interrupted is taken to hang."""


class Interrupt(KeyboardInterrupt):
    """What the signal handler raises."""


class World:
    """An inbox, and what a program has in its hands."""

    def __init__(self, path: Path) -> None:
        self.path = path / "inbox"
        self.elsewhere = path
        self.inbox = Inbox(self.path, codec="text", durable=False, max_inflight=3, keep_done=0, watch="poll")
        self.held: list[Element] = []
        self.first = False
        self.opened = 0

    def take(self, key: str) -> Element:
        element = self.inbox.take()
        assert element and element.key == key, element
        self.held.append(element)
        return element

    def drop(self, key: str, value: str) -> None:
        draft = self.elsewhere / "draft"
        draft.write_text(value)
        os.utime(draft, (1, 1))
        draft.rename(self.path / "drop" / key)

    def delivered(self) -> list[tuple[str, str]]:
        """Take and acknowledge everything."""
        found = []
        while element := self.inbox.take():
            found.append((element.key, element.value))
            assert element.attempts <= 1 + self.returned, f"{element.attempts} attempts at {element.key}"
            element.ack()
        return found

    returned = 0
    """How often an element was taken before, and not acknowledged."""


Deliveries = list[tuple[str, str]]
Case = tuple[Callable[[World], object], Callable[[World], object], Callable[[World], list[Deliveries]]]
"""(what is done before, the call that is interrupted, what may be delivered afterwards)."""


def queued(*pairs: tuple[str, str]) -> Callable[[World], object]:
    def prepare(world: World) -> None:
        for key, value in pairs:
            world.inbox.add(key, value)

    return prepare


def exchangeable(world: World) -> None:
    queued(OLD, X)(world)
    world.inbox._handle.layout.exchanges = True
    world.inbox.add("x", "1")  # what that needs is imported


def taken(world: World) -> None:
    world.inbox.add("k", "old")
    world.take("k")
    world.inbox.add("x", "1")


def taken_and_followed(world: World) -> None:
    taken(world)
    world.inbox.add("k", "new")


def deferred(world: World, delay: float = 0.000_001) -> None:
    world.inbox.add("k", "old")
    world.take("k").release(delay)
    world.held.clear()


def deferred_and_followed(world: World) -> None:
    deferred(world, 1000)
    world.inbox.add("k", "new")


def dropped(world: World) -> None:
    world.drop("k", "dropped")


def a_file(world: World) -> None:
    world.inbox.add("x", "1")
    (world.elsewhere / "file").write_text("new")


def anew(world: World) -> None:
    """A process that has not yet consumed."""
    world.inbox.close()
    with Inbox(world.path, codec="text", durable=False) as inbox:
        inbox.add("k", "old")
    world.inbox = Inbox(world.path, codec="text", durable=False, max_inflight=3, watch="poll")


def ended(step: Callable[[Element], object]) -> Callable[[World], object]:
    def end(world: World) -> None:
        step(world.held[0])

    return end


def either(*all_of: Deliveries) -> Callable[[World], list[Deliveries]]:
    return lambda world: list(all_of)


def of_a_file(world: World) -> list[Deliveries]:
    there = (world.elsewhere / "file").exists()
    (world.elsewhere / "file").unlink(missing_ok=True)
    return [[("x", "1")]] if there else [[("x", "1"), ("k", "new")]]


def of_a_copy(world: World) -> list[Deliveries]:
    assert (world.elsewhere / "file").read_text() == "new"
    return [[("x", "1")], [("x", "1"), ("k", "new")]]


def stream(world: World) -> None:
    with open(world.elsewhere / "file", "rb") as file:
        world.inbox.add_stream("k", file)


X, OLD, NEW = ("x", "1"), ("k", "old"), ("k", "new")

CASES: dict[str, Case] = {
    "add": (queued(X), lambda world: world.inbox.add("k", "new"), either([X], [X, NEW])),
    "add, flushed": (
        queued(X),
        lambda world: world.inbox.add("k", "new", durable=True),
        either([X], [X, NEW]),
    ),
    "add, replacing": (queued(OLD, X), lambda world: world.inbox.add("k", "new"), either([OLD, X], [NEW, X])),
    "add, exchanged": (exchangeable, lambda world: world.inbox.add("k", "new"), either([OLD, X], [NEW, X])),
    "add, behind": (taken, lambda world: world.inbox.add("k", "new"), either([X], [X, NEW])),
    "add, over a drop": (
        dropped,
        lambda world: world.inbox.add("k", "new"),
        either([("k", "dropped")], [NEW]),
    ),
    "add_many": (
        queued(X),
        lambda world: world.inbox.add_many([("k", "new"), ("l", "1"), ("x", "2")]),
        either([X], [X, NEW], [X, NEW, ("l", "1")], [("x", "2"), NEW, ("l", "1")]),
    ),
    "add_file, moved": (
        a_file,
        lambda world: world.inbox.add_file("k", world.elsewhere / "file", move=True),
        of_a_file,
    ),
    "add_file": (a_file, lambda world: world.inbox.add_file("k", world.elsewhere / "file"), of_a_copy),
    "add_stream": (a_file, stream, of_a_copy),
    "take": (queued(OLD, X), lambda world: world.inbox.take(), either([OLD, X])),
    "take, in time": (queued(OLD, X), lambda world: world.inbox.take(timeout=5), either([OLD, X])),
    "take, of nothing": (lambda world: None, lambda world: world.inbox.take(timeout=0.001), either([])),
    "take, due": (deferred, lambda world: world.inbox.take(), either([OLD])),
    "take, over a deferred one": (deferred_and_followed, lambda world: world.inbox.take(), either([NEW])),
    "take, of a drop": (dropped, lambda world: world.inbox.take(), either([("k", "dropped")])),
    "take, the first": (anew, lambda world: world.inbox.take(), either([OLD])),
    "ack": (taken, ended(lambda element: element.ack()), either([X])),
    "nack": (taken, ended(lambda element: element.nack()), either([OLD, X])),
    "nack, with a delay": (taken, ended(lambda element: element.nack(0.000_001)), either([OLD, X])),
    "nack, followed": (taken_and_followed, ended(lambda element: element.nack()), either([X, NEW])),
    "fail": (taken, ended(lambda element: element.fail("no")), either([X])),
}


def check(world: World, case: Case) -> None:
    """After an interrupt."""
    _, act, may_be = case
    assert is_free(world.path), "the lock is held"
    assert names(world.inbox, "tmp") == [], "a draft is left"
    assert not open_in(world.path / "tmp"), "a draft is left open"
    has = {element.key for element in world.held} | set(world.inbox.in_flight)
    nobody_s = [name[20:] for name in names(world.inbox, "inflight") if name[20:] not in has]
    assert not nobody_s, f"{nobody_s}: nobody has it"
    if world.held:  # the program ends what it has, as it meant to
        world.returned = 1
        try:
            act(world) if act in ENDS else world.held[0].ack()
        except WrongState:
            pass  # it had been done
        world.held.clear()
    for claim in list(world.inbox._taking().claims.values()):  # a take was interrupted when it was done
        claim.requeue(counted=False)
    world.inbox.add("probe", "1")
    found = world.delivered()
    assert ("probe", "1") in found
    found.remove(("probe", "1"))
    allowed = may_be(world)
    assert found in allowed, f"{found} was delivered, not one of {allowed}"
    for folder in ("pending", "inflight", "deferred", "attempts", "drop", "tmp"):
        assert names(world.inbox, folder) == [], f"something is left in {folder}/"
    for path in (world.path / "failed").iterdir():
        path.unlink()
    assert is_free(world.path), "the lock is held"
    world.returned = 0


ENDS = [case[1] for name, case in CASES.items() if name.startswith(("ack", "nack", "fail"))]


def open_in(folder: Path) -> list[str]:
    """Return what this process has open in a folder."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the listing's own
    return [link for link in links if link.startswith(f"{folder}/")]


def may_interrupt(instruction: str) -> bool:
    """Tell whether the interpreter may run signal handlers after this: a call, the start of a function, a
    jump back."""
    return instruction.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD"))


def interrupted_at(nth: int, call: Callable[[], object]) -> bool:
    """Call it, and raise Interrupt at the nth place in the package where a signal handler may run; False if
    there are fewer."""
    left = nth

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        before = ""

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left, before
            if event == "opcode":
                name = opname[frame.f_code.co_code[frame.f_lasti]]
                if may_interrupt(before) and name != "PUSH_EXC_INFO":
                    left -= 1
                    if left == 0:
                        raise Interrupt
                before = name
            return local

        return local

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def interrupted_after(seconds: float, call: Callable[[], object]) -> bool:
    """Call it, and have SIGALRM come after so many seconds; False if it was done before."""
    armed = True

    def interrupt(*_: object) -> None:
        if armed:  # (a timer that was ended may still go off)
            raise Interrupt

    signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        call()
        armed = False
    except Interrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def trace_through(world: World, case: Case, first: int, stride: int) -> int:
    """Interrupt at every stride-th place. Return how often."""
    nth, done = first, 0
    while True:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        case[0](world)
        try:
            there = interrupted_at(nth, lambda: case[1](world))
            check(world, case)
        except BaseException as error:
            raise AssertionError(f"at place {nth}: {error!r}") from error
        if not there:
            return done
        done += 1
        nth += stride


def alarm(world: World, case: Case, count: int, seed: int) -> int:
    """Interrupt by a timer so many times. Return how often it was in time."""
    choose = random.Random(seed)
    lengths = []
    for _ in range(5):
        case[0](world)
        began = time.perf_counter()
        case[1](world)
        lengths.append(time.perf_counter() - began)
        check(world, case)
    length = sorted(lengths)[2]
    done = tried = 0
    while done < count and tried < 20 * count:
        tried += 1
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        case[0](world)
        moment = choose.uniform(0, 1.1) * length
        try:
            done += interrupted_after(moment, lambda: case[1](world))
            check(world, case)
        except BaseException as error:
            raise AssertionError(
                f"after {moment * 1e6:.0f} us, try {tried} of seed {seed}: {error!r}"
            ) from error
    return done


def main() -> None:
    folder, name, how, first, second = sys.argv[1:]
    world, case = World(Path(folder)), CASES[name]
    world.inbox.take()
    interrupt = alarm if how == "alarms" else trace_through
    print(interrupt(world, case, int(first), int(second)))
    world.inbox.close()


if __name__ == "__main__":
    main()
