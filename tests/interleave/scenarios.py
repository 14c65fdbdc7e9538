"""What actors do: scripts for producers and consumers, and the scenarios they are put together to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsinbox.protocol

if TYPE_CHECKING:
    from .stepper import Actor

PROBE = 10**9 * 3600
"""Nanoseconds by which a consumer's `wait` moves its clock on: more than any delay in a script."""


@dataclass(frozen=True)
class Role:
    """An actor of a scenario: what it runs, and when. The scripts are below."""

    script: Callable[[Actor], None]
    opened: bool = False  # a consumer that had become the consumer, and found nothing, before it all began
    after: int | None = None  # only starts when that actor has ended
    inflight: int = 1
    consumer: bool = False


@dataclass(frozen=True)
class Scenario:
    """Actors, and what may happen to them."""

    name: str
    roles: tuple[Role, ...]
    before: tuple[tuple[str, str], ...] = ()  # keys and values that were added before
    crashes: int = 0  # how many actors may crash, all in all
    crashers: str = ""  # which may (their letters); empty: all
    drops: bool = False  # something is dropped: drop/ is looked at
    notes: bool = False  # a crash between two operations in attempts/ counts
    listing: tuple[int, ...] = ()  # not atomic: which numbers (modulo) a listing sees first
    fresh_boot: bool = False  # the first admission finds the sequence of an earlier boot
    in_order: bool = True  # keys that were added once must come in order
    long: bool = False


def producer(*adds: tuple[str, str]) -> Role:
    """A producer that adds these keys and values."""

    def script(actor: Actor) -> None:
        for key, value in adds:
            actor.will("add_start", key, value)
            actor.inbox.add(key, value, durable=False)
            actor.did("add_end", key, value)
            actor.forget()

    return Role(script)


def dropper(key: str, value: str) -> Role:
    """Somebody who moves a finished file into drop/."""

    def script(actor: Actor) -> None:
        world = actor.run.world
        world.create("tmp", f"for-{key}", value)
        actor.will("add_start", key, value)
        fsinbox.protocol.os.rename(
            f"for-{key}", key, src_dir_fd=actor.layout.folder("tmp"), dst_dir_fd=actor.layout.folder("drop")
        )
        actor.did("add_end", key, value)

    return Role(script)


def consumer(script: str, *, opened: bool = False, after: int | None = None, inflight: int = 1) -> Role:
    """A consumer that does this, word for word.

    take             take an element, if one is to be had
    ack nack fail    end the one that has been out longest, if any is
    defer            nack it, with a delay
    wait             until a delay is over
    close            close the inbox; without it, the consumer just ends
    """
    words = script.split()

    def run(actor: Actor) -> None:
        out: list[Any] = []
        for word in words:
            if word == "take":
                element = actor.inbox.take()
                if element:
                    with actor.world.nobody():  # nobody else touches its file any more: reading it is no step
                        value = element.value
                    actor.did("deliver", element.key, value)
                    out.append(element)
            elif word == "wait":
                actor.clock += PROBE
            elif word == "close":
                for element in out:
                    actor.did("nack", element.key)
                actor.inbox.close()
            elif out:
                _end(actor, out.pop(0), word)
            actor.forget()
        actor.did("died")  # it ends; what is out stays so

    return Role(run, opened=opened, after=after, inflight=inflight, consumer=True)


def _end(actor: Actor, element: Any, how: str) -> None:
    actor.will("nack" if how in ("nack", "defer") else "ack", element.key)
    if how == "ack":
        element.ack()
    elif how == "fail":
        element.fail("as the script says")
    else:
        element.nack(delay=60 if how == "defer" else 0)
    actor.flush()


# --- the scenarios ------------------------------------------------------------------------------------------------


def _k(*values: str) -> Role:
    return producer(*(("k", value) for value in values))


def _opened(script: str, inflight: int = 1) -> Role:
    return consumer(script, opened=True, inflight=inflight)


TWO = (_k("a"), _k("b"))
WAITING = (("k", "o"),)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("two-producers", (*TWO, _opened("take ack take ack")), crashes=1),
        Scenario("two-producers-nack", (*TWO, _opened("take nack take ack")), crashes=1),
        Scenario("two-adds-nack", (_k("a", "b"), _opened("take nack take ack")), crashes=1),
        Scenario("two-adds-one-add", (_k("a", "b"), _k("c"), _opened("take ack take ack"))),
        Scenario("three-producers", (*TWO, _k("c"), _opened("take ack"))),
        Scenario("replaced", (*TWO, _opened("take ack take ack")), before=WAITING, crashes=1),
        Scenario("replaced-nack", (*TWO, _opened("take nack take ack")), before=WAITING),
        Scenario("replaced-close", (*TWO, _opened("take close")), before=WAITING, crashes=1),
        Scenario("late-publisher", (_k("a"), _k("b", "c"), _opened("take ack take ack")), before=WAITING),
        Scenario("late-publisher-nack", (_k("a"), _k("b", "c"), _opened("take nack take ack")), before=WAITING, long=True),
        Scenario("starting-consumer", (*TWO, consumer("take ack take ack")), crashes=1),
        Scenario("starting-consumer-waiting", (*TWO, consumer("take ack take ack")), before=WAITING),
        Scenario("two-keys", (producer(("k", "a"), ("j", "b")), producer(("j", "c")), _opened("take ack take ack"))),
        Scenario("two-keys-in-order", (producer(("k", "a"), ("j", "b")), producer(("i", "c")), _opened("take ack take ack"))),
        Scenario("two-out", (producer(("k", "a"), ("j", "b")), _k("c"), _opened("take take nack ack take ack", inflight=2))),
        Scenario("one-out-of-two", (_k("a", "b"), _k("c"), _opened("take take ack take ack", inflight=2))),
        Scenario("deferred", (*TWO, _opened("take defer wait take ack")), crashes=1),
        Scenario("deferred-twice", (_k("a", "b"), _opened("take defer take defer wait take ack")), crashes=1),
        Scenario("failed", (*TWO, _opened("take fail take ack")), crashes=1),
        Scenario("even-first", (*TWO, _opened("take ack take ack")), listing=(0, 1)),
        Scenario("odd-first", (*TWO, _opened("take ack take ack")), listing=(1, 0)),
        Scenario("even-first-nack", (*TWO, _opened("take nack take ack")), listing=(0, 1)),
        Scenario("odd-first-nack", (*TWO, _opened("take nack take ack")), listing=(1, 0)),
        Scenario(
            "even-first-in-order",
            (producer(("k", "a"), ("j", "b")), producer(("i", "c")), _opened("take ack take")),
            listing=(0, 1),
        ),
        Scenario(
            "odd-first-in-order",
            (producer(("k", "a"), ("j", "b")), producer(("i", "c")), _opened("take ack take")),
            listing=(1, 0),
        ),
        Scenario("dropped", (dropper("k", "d"), _k("a"), _opened("take ack take ack")), drops=True, crashes=1),
        Scenario("dropped-nack", (dropper("k", "d"), _k("a"), _opened("take nack take ack")), drops=True),
        Scenario("dropped-two", (dropper("k", "d"), *TWO, _opened("take ack take ack")), drops=True),
        Scenario("recovery", (*TWO, _opened("take ack"), consumer("take ack take ack", after=2)), crashes=1, crashers="C"),
        Scenario("recovery-crash", (_k("a", "b"), _opened("take ack"), consumer("take ack", after=1)), crashes=2, notes=True),
        Scenario("boot", (*TWO, _opened("take ack take ack")), fresh_boot=True, crashes=1),
        Scenario("boot-waiting", (*TWO, _opened("take ack take ack")), fresh_boot=True, before=WAITING),
    )
}
