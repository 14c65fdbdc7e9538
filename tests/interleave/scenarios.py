"""What actors do: scripts for producers and consumers, and the scenarios they are put together to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import fsinbox.store.transitions
from fsinbox import InboxFull
from fsinbox.store.files import read_payload
from fsinbox.store.names import REASON, element_name, parse_element

if TYPE_CHECKING:
    from .stepper import Actor

PROBE = 10**9 * 3600
"""Nanoseconds by which a consumer's `wait` moves its clock on: more than any delay in a script."""


LATER = PROBE // 10**9 // 2
"""Seconds: when what is for later may be handed out. A consumer's first `wait` ends after that."""

FOR_LATER = "+"
"""Values that end so are for later."""

AGAIN = " again"
"""Added to the value of what a person has queued again."""


@dataclass(frozen=True)
class Role:
    """An actor of a scenario: what it runs, and when. The scripts are below."""

    script: Callable[[Actor], None]
    opened: bool = False  # a consumer that had become the consumer, and found nothing, before it all began
    after: int | None = None  # only starts when that actor has ended
    holds: bool = False  # a consumer that had taken an element before it all began
    inflight: int = 1
    consumer: bool = False
    volatile: bool = False  # a producer whose values are exchanged with those that they replace
    old: tuple[str, str] | None = None  # the key and the value of an element from long ago that it brings


@dataclass(frozen=True)
class Scenario:
    """Actors, and what may happen to them."""

    name: str
    roles: tuple[Role, ...]
    before: tuple[tuple[str, str], ...] = ()  # keys and values that were added before
    by_hand: tuple[int, str, str] | None = None  # an old element that somebody had put at a place in pending/
    scattered: bool = False  # each of these was added when the index had been lost
    crashes: int = 0  # how many actors may crash, all in all
    crashers: str = ""  # which may (their letters); empty: all
    drops: bool = False  # something is dropped: drop/ is looked at
    notes: bool = False  # a crash between two operations in attempts/ counts
    keeps: bool = False  # a producer keeps what waits: it looks at what is in flight
    max_waiting: int = 0  # the inbox's bound; 0: none
    meets: tuple[
        str, ...
    ] = ()  # of inflight/, deferred/ and failed/: what the consumer changes, and others look at
    loses: str = (
        ""  # what a loser does to `index`: it is "removed", "emptied", or an "old" copy is written over it
    )
    bucket: int = 8  # lines of the table: as few as make no difference
    clock_runs: bool = False  # else it was set back, and numbers only count on
    listing: tuple[int, ...] = ()  # not atomic: which numbers (modulo) a listing sees first
    fresh_boot: bool = False  # the first admission finds the index of an earlier boot
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


def later(key: str, value: str) -> Role:
    """A producer that adds a value for later."""

    def script(actor: Actor) -> None:
        assert value.endswith(FOR_LATER)
        actor.will("add_start", key, value)
        actor.inbox.add(key, value, durable=False, not_before=LATER)
        actor.did("add_end", key, value)

    return Role(script)


def first(key: str, value: str) -> Role:
    """A producer that adds a value only if none waits."""

    def script(actor: Actor) -> None:
        actor.will("add_start", key, value)
        answer = actor.inbox.add(key, value, durable=False, if_waiting="keep")
        actor.did("kept" if answer == "kept" else "first", key, value)

    return Role(script)


def bounded(*adds: tuple[str, str]) -> Role:
    """A producer that adds these keys and values to an inbox that may be full."""

    def script(actor: Actor) -> None:
        for key, value in adds:
            actor.will("add_start", key, value)
            try:
                actor.inbox.add(key, value, durable=False)
                actor.did("add_end", key, value)
            except InboxFull:
                actor.did("refused", key, value)
            actor.forget()

    return Role(script)


def dropper(key: str, value: str) -> Role:
    """Somebody who moves a finished file into drop/."""

    def script(actor: Actor) -> None:
        world = actor.run.world
        world.create("tmp", f"for-{key}", value)
        actor.will("add_start", key, value)
        fsinbox.store.transitions.os.rename(
            f"for-{key}", key, src_dir_fd=actor.layout.folder("tmp"), dst_dir_fd=actor.layout.folder("drop")
        )
        actor.did("add_end", key, value)

    return Role(script)


def many(*adds: tuple[str, str]) -> Role:
    """A producer that adds these keys and values in one go."""

    def script(actor: Actor) -> None:
        for key, value in adds:
            actor.will("add_start", key, value)
        actor.inbox.add_many(adds, durable=False)
        for key, value in adds:
            actor.did("add_end", key, value)
        actor.forget()

    return Role(script)


def person(folder: str) -> Role:
    """A person who looks into failed/ or deferred/, and queues again what is there (one element, at most)."""

    def script(actor: Actor) -> None:
        layout, index = actor.layout, actor.inbox._handle.index
        for file in layout.names(folder):
            parsed = parse_element(file[20:] if folder == "deferred" else file)
            if file.endswith(REASON) or not parsed:
                continue
            value = actor.world.call(
                ("read", folder, file), (folder,), lambda file=file: _read(actor, folder, file)
            )
            actor.will("add_start", parsed[1], value + AGAIN)
            outcome = index.locked(
                fsinbox.store.transitions.return_to_place, layout, index, folder, file, *parsed
            )
            if outcome == "queued":
                actor.did("queued", parsed[1], value)
            break

    return Role(script)


def _read(actor: Actor, folder: str, file: str) -> str:
    try:
        with actor.world.nobody():
            return read_payload(actor.layout, folder, file).decode()
    except FileNotFoundError:
        return "?"


def careless(number: int, key: str, value: str) -> Role:
    """Somebody who moves an old element to a place in pending/ by hand."""

    def script(actor: Actor) -> None:
        folder = actor.layout.folder
        actor.world.create("tmp", "old", value)
        name = element_name(number, key)
        fsinbox.store.transitions.os.rename(
            "old", name, src_dir_fd=folder("tmp"), dst_dir_fd=folder("pending")
        )

    return Role(script, old=(key, value))


def _lose(actor: Actor) -> None:
    actor.world.lose_index()


LOSER = Role(_lose)
"""Somebody who does to `index` what the scenario says."""


def consumer(script: str, *, opened: bool = False, after: int | None = None, inflight: int = 1) -> Role:
    """A consumer that does this, word for word.

    take             take an element, if one is to be had, and another may be in flight
    ack nack fail    end the one that has been out longest, if any is
    defer            nack it, with a delay
    wait             until a delay is over
    close            close the inbox; without it, the consumer just ends
    """
    words = script.split()

    def run(actor: Actor) -> None:
        out: list[Any] = list(actor.taken)
        for word in words:
            if word == "take":
                element = actor.inbox.take() if len(out) < inflight else None
                if element:
                    with actor.world.nobody():  # nobody else touches its file any more: reading it is no step
                        value = element.value
                    early = value.endswith(FOR_LATER) and actor.clock < LATER * 10**9
                    assert not early, f"{value} was handed out too soon"
                    actor.did("deliver", element.key, value)
                    out.append(element)
            elif word == "wait":
                actor.clock += PROBE
                actor.did("waited")
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


# --- the scenarios ------------------------------------------------------------------------------------


def _k(*values: str) -> Role:
    return producer(*(("k", value) for value in values))


def _opened(script: str, inflight: int = 1) -> Role:
    return consumer(script, opened=True, inflight=inflight)


def _swap(*values: str) -> Role:
    return replace(_k(*values), volatile=True)


TWO = (_k("a"), _k("b"))
TWO_SWAPS = (_swap("a"), _swap("b"))
WAITING = (("k", "o"),)
P, B = "plumless", "buckeroo"  # two keys of one CRC-32
HELD = ("inflight",)
OLD = {"before": WAITING, "loses": "old", "meets": HELD, "clock_runs": True}
SCATTERED = (("k", "o"), ("k", "p"), ("k", "q"))
IN_ORDER = (producer(("k", "a"), ("j", "b")), producer(("i", "c")), _opened("take ack take"))

LATE = later("k", "a+")
FIRST = first("k", "a")
KEEPS = {"keeps": True, "meets": ("inflight", "deferred")}

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("two-producers", (*TWO, _opened("take ack take ack")), crashes=1),
        Scenario("two-producers-nack", (*TWO, _opened("take nack take ack")), crashes=1),
        Scenario("two-adds-nack", (_k("a", "b"), _opened("take nack take ack")), crashes=1),
        Scenario("two-adds-one-add", (_k("a", "b"), _k("c"), _opened("take ack take ack"))),
        Scenario("three-producers", (*TWO, _k("c"), _opened("take ack"))),
        Scenario("replaced", (*TWO, _opened("take ack take ack")), before=WAITING, crashes=1),
        Scenario("replaced-nack", (*TWO, _opened("take nack take ack")), before=WAITING, crashes=1),
        Scenario("replaced-close", (*TWO, _opened("take close")), before=WAITING, crashes=1),
        Scenario("replaced-thrice", (_k("a"), _k("b", "c"), _opened("take ack take ack")), before=WAITING),
        Scenario(
            "replaced-thrice-nack", (_k("a"), _k("b", "c"), _opened("take nack take ack")), before=WAITING
        ),
        Scenario("exchanged", (*TWO_SWAPS, _opened("take ack take ack")), before=WAITING, crashes=1),
        Scenario("exchanged-nack", (*TWO_SWAPS, _opened("take nack take ack")), before=WAITING, crashes=1),
        Scenario(
            "exchanged-thrice-nack",
            (_swap("a"), _swap("b", "c"), _opened("take nack take ack")),
            before=WAITING,
        ),
        Scenario(
            "exchanged-beside-renamed",
            (_swap("a"), _k("b", "c"), _opened("take nack take ack")),
            before=WAITING,
        ),
        Scenario(
            "exchanged-deferred",
            (_swap("a", "b"), _opened("take defer wait take ack take ack")),
            before=WAITING,
            crashes=1,
        ),
        Scenario("starting-consumer", (*TWO, consumer("take ack take ack")), crashes=1),
        Scenario("starting-consumer-waiting", (*TWO, consumer("take ack take ack")), before=WAITING),
        Scenario(
            "two-keys", (producer(("k", "a"), ("j", "b")), producer(("j", "c")), _opened("take ack take ack"))
        ),
        Scenario(
            "two-keys-in-order",
            (producer(("k", "a"), ("j", "b")), producer(("i", "c")), _opened("take ack take ack")),
        ),
        Scenario(
            "two-out",
            (producer(("k", "a"), ("j", "b")), _k("c"), _opened("take take nack ack take ack", inflight=2)),
        ),
        Scenario("one-out-of-two", (_k("a", "b"), _k("c"), _opened("take take ack take ack", inflight=2))),
        Scenario("deferred", (*TWO, _opened("take defer wait take ack")), crashes=1),
        Scenario("deferred-twice", (_k("a", "b"), _opened("take defer take defer wait take ack")), crashes=1),
        Scenario(
            "deferred-replaced",
            (_k("a"), _opened("take defer wait take ack take ack")),
            before=WAITING,
            crashes=1,
        ),
        Scenario("failed", (*TWO, _opened("take fail take ack")), crashes=1),
        Scenario("even-first", (*TWO, _opened("take ack take ack")), listing=(0, 1)),
        Scenario("odd-first", (*TWO, _opened("take ack take ack")), listing=(1, 0)),
        Scenario("even-first-nack", (*TWO, _opened("take nack take ack")), listing=(0, 1)),
        Scenario("odd-first-nack", (*TWO, _opened("take nack take ack")), listing=(1, 0)),
        Scenario("even-first-in-order", IN_ORDER, listing=(0, 1)),
        Scenario("odd-first-in-order", IN_ORDER, listing=(1, 0)),
        Scenario("same-crc", (producer((P, "a"), (B, "b")), producer(("j", "c")), _opened("take ack take"))),
        Scenario(
            "same-crc-nack", (producer((P, "a"), (B, "b")), producer((P, "c")), _opened("take nack take ack"))
        ),
        Scenario("many", (many(("k", "a"), ("j", "b")), _k("c"), _opened("take ack take ack")), crashes=1),
        Scenario(
            "many-of-one",
            (many(("k", "a"), ("k", "b")), _k("c"), _opened("take nack take ack")),
            before=WAITING,
        ),
        Scenario(
            "dropped", (dropper("k", "d"), _k("a"), _opened("take ack take ack")), drops=True, crashes=1
        ),
        Scenario("dropped-nack", (dropper("k", "d"), _k("a"), _opened("take nack take ack")), drops=True),
        Scenario(
            "dropped-two",
            (dropper("k", "d"), _k("a"), replace(_k("b"), after=0), _opened("take ack")),
            drops=True,
        ),
        Scenario(
            "dropped-batch", (dropper("k", "d"), dropper("j", "e"), _k("a"), _opened("take ack")), drops=True
        ),
        Scenario(
            "dropped-many",
            (dropper("k", "d"), many(("j", "a"), ("k", "b")), _opened("take ack take")),
            drops=True,
        ),
        Scenario(
            "recovery",
            (*TWO, _opened("take ack"), consumer("take ack take ack", after=2)),
            crashes=1,
            crashers="C",
        ),
        Scenario(
            "recovery-nack",
            (*TWO, _opened("take nack"), consumer("take ack", after=2)),
            crashes=1,
            crashers="C",
        ),
        Scenario(
            "recovery-crash",
            (_k("a", "b"), _opened("take ack"), consumer("take ack", after=1)),
            crashes=2,
            notes=True,
        ),
        Scenario("boot", (*TWO, consumer("take ack")), fresh_boot=True, meets=HELD, crashes=1),
        Scenario(
            "boot-waiting", (*TWO, _opened("take ack take ack")), fresh_boot=True, meets=HELD, before=WAITING
        ),
        Scenario(
            "boot-nack",
            (_k("a", "b"), _opened("take nack take ack")),
            fresh_boot=True,
            meets=HELD,
            before=WAITING,
        ),
        Scenario(
            "scattered", (_k("a"), _opened("take ack take ack")), before=SCATTERED, scattered=True, crashes=1
        ),
        Scenario(
            "scattered-nack",
            (_k("a"), _opened("take nack take ack")),
            before=SCATTERED,
            scattered=True,
            crashes=1,
        ),
        Scenario("scattered-two", (*TWO, _opened("take ack")), before=SCATTERED[:2], scattered=True),
        Scenario(
            "scattered-other",
            (producer(("j", "b"), ("k", "a")), _opened("take nack take ack")),
            before=SCATTERED[:2],
            scattered=True,
        ),
        Scenario(
            "removed",
            (_k("a"), LOSER, _opened("take ack take ack")),
            before=WAITING,
            loses="removed",
            meets=HELD,
        ),
        Scenario("removed-two", (*TWO, LOSER), before=WAITING, loses="removed", meets=HELD),
        Scenario(
            "removed-nack", (_k("a", "b"), LOSER, _opened("take nack take ack")), loses="removed", meets=HELD
        ),
        Scenario("emptied", (*TWO, LOSER, _opened("take ack")), loses="emptied", meets=HELD),
        Scenario(
            "emptied-nack", (_k("a", "b"), LOSER, _opened("take nack take ack")), loses="emptied", meets=HELD
        ),
        Scenario(
            "emptied-defer",
            (_k("a", "b"), LOSER, _opened("take defer wait take")),
            loses="emptied",
            meets=("inflight", "deferred"),
        ),
        Scenario("old-copy", (_k("a", "b"), LOSER, _opened("take ack take ack")), **OLD),
        Scenario("old-copy-nack", (_k("a", "b"), LOSER, _opened("take nack take ack")), **OLD),
        Scenario(
            "retried",
            (_k("a"), _opened("take fail take ack"), person("failed")),
            before=WAITING,
            meets=("inflight", "failed"),
            crashes=1,
        ),
        Scenario(
            "retried-twice",
            (_k("a", "b"), _opened("take fail take ack"), person("failed")),
            before=WAITING,
            meets=("inflight", "failed"),
        ),
        Scenario(
            "requeued",
            (_k("a"), _opened("take defer wait take ack"), person("deferred")),
            before=WAITING,
            meets=("inflight", "deferred"),
        ),
        Scenario(
            "requeued-at-once",
            (_k("a"), _opened("take defer take ack"), person("deferred")),
            before=WAITING,
            meets=("inflight", "deferred"),
            crashes=1,
        ),
        Scenario("later", (later("k", "a+"), _k("b"), _opened("take wait take ack take ack")), crashes=1),
        Scenario("later-waiting", (LATE, _opened("take ack take wait take ack")), before=WAITING, crashes=1),
        Scenario("later-nack", (LATE, _opened("take nack take wait take ack")), before=WAITING, crashes=1),
        Scenario("later-defer", (LATE, _opened("take defer wait take ack")), before=WAITING),
        Scenario(
            "later-recovery",
            (LATE, _k("b"), _opened("take ack"), consumer("take ack wait take ack", after=2)),
            crashes=1,
            crashers="C",
        ),
        Scenario("kept", (FIRST, first("k", "b"), _opened("take ack")), keeps=True, crashes=1),
        Scenario("kept-waiting", (FIRST, _k("b"), _opened("take ack take ack")), before=WAITING, **KEEPS),
        Scenario("kept-nack", (FIRST, _k("b"), _opened("take nack take ack")), before=WAITING, **KEEPS),
        Scenario("kept-defer", (FIRST, _opened("take defer wait take ack")), before=WAITING, **KEEPS),
        Scenario("kept-later", (LATE, first("k", "b"), _opened("take take wait take ack")), **KEEPS),
        Scenario("kept-dropped", (dropper("k", "d"), FIRST, _opened("take ack")), drops=True, **KEEPS),
        Scenario(
            "bounded",
            (bounded(("k", "a"), ("k", "b")), bounded(("j", "c")), _opened("take ack take ack")),
            max_waiting=1,
            crashes=1,
        ),
        Scenario(
            "bounded-alone",
            (bounded(("k", "a"), ("k", "b")), bounded(("j", "c"), ("j", "d"))),
            max_waiting=1,
            crashes=1,
        ),
        Scenario(
            "bounded-taken",
            (bounded(("k", "a")), bounded(("j", "b")), _opened("take ack take ack")),
            before=WAITING,
            max_waiting=1,
        ),
        Scenario(
            "bounded-waiting",
            (bounded(("j", "a")), bounded(("k", "b")), _opened("take ack take ack")),
            before=WAITING,
            max_waiting=1,
            crashes=1,
        ),
        Scenario(
            "bounded-two",
            (bounded(("j", "a")), bounded(("i", "b")), _opened("take ack")),
            before=WAITING,
            max_waiting=2,
            crashes=1,
        ),
        Scenario("by-hand", (_k("a", "b"), _opened("take nack take ack"), careless(5, "k", "h"))),
        Scenario(
            "by-hand-boot",
            (_k("a"), replace(_opened("nack take ack"), holds=True)),
            before=WAITING,
            by_hand=(5, "k", "h"),
            fresh_boot=True,
            meets=HELD,
        ),
        Scenario(
            "by-hand-while-made-anew",
            (_k("a"), _opened("take nack take ack"), careless(5, "k", "h")),
            before=WAITING,
            fresh_boot=True,
            meets=HELD,
        ),
    )
}
