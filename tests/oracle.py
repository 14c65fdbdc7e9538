"""What must hold of any history of an inbox, whoever made it: every interleaving, a storm of processes, a
crash.

A history is a list of events in the order of their times. The oracle looks for an order of a key's adds that
explains it: one in which every add that ended before another began comes first, the deliveries only ever go
forward, and the last delivery is of the last completed add. There is such an order exactly if none of these
is found (intervals of time have no longer cycles than pairs, so pairs are all there is to look at):

 missed    a completed add began after the value delivered last had been added, and was never delivered; or
           the last delivery was never acknowledged
 older     a value was delivered after one that is newer: whose add began after the other had been added, or
           was delivered
 foreign   a value was delivered that nobody had begun to add
 twice     two elements of one key were in flight at once
 kept      an add was told that a value waits, and its own was delivered; or nothing was, after it began
 refused   an add was refused, for the inbox was full, and its value was delivered
 order     of two keys that were added once each, one after the other, the later was delivered first

A value counts as added when its add returned, or when it was delivered, whichever came first. An add without
an end (its producer died, or it raised) is unknown: it may be delivered, at any time, or not.
"""

from collections.abc import Iterable
from math import inf
from typing import NamedTuple


class Event(NamedTuple):
    """One thing that happened.

    what   "add_start", "add_end", "kept" or "refused", "deliver", "ack", "nack" or "died". "ack" and "nack"
           are noted before they are done; "died" ends what the consumer `who` had in flight (its key and
           value are empty)
    who    the producer or the consumer
    key    the element's key
    value  the value: no two adds of one key may have the same
    t      when: any number that does not decrease
    """

    what: str
    who: str
    key: str = ""
    value: str = ""
    t: float = 0


class Add:
    """One add: when it began, when its value had been added for certain, and whether it returned."""

    __slots__ = ("completed", "end", "kept", "refused", "start", "value")

    def __init__(self, value: str, start: float) -> None:
        self.value = value
        self.start = start
        self.end = inf
        self.completed = False
        self.kept = False
        self.refused = False


class Key:
    """What happened to one key so far."""

    __slots__ = (
        "adds",
        "delivered",
        "delivered_at",
        "kept",
        "last",
        "latest",
        "out",
        "settled",
    )

    def __init__(self) -> None:
        self.adds: dict[str, Add] = {}
        self.kept, self.delivered_at = (
            -inf,
            -inf,
        )  # when the last add began that was told so; the last delivery
        self.delivered: set[str] = set()
        self.last: Add | None = None
        self.latest: Add | None = None  # of those delivered, the one that began last
        self.out: str | None = None  # the consumer that has it in flight
        self.settled = False  # whether the last delivery was acknowledged


def judge(events: Iterable[Event], *, drained: bool = True, causal: bool = True) -> list[str]:
    """Return what is wrong with a history, a sentence each.

    drained   at the end a consumer took and acknowledged until nothing was left, so nothing may be missing
    causal    False: a value counts as added only when its add returned, however often it was delivered before
    """
    keys: dict[str, Key] = {}
    wrong: list[str] = []
    for event in events:
        if event.what == "died":
            _end_of(event.who, keys)
            continue
        key = keys.setdefault(event.key, Key())
        if event.what == "add_start":
            _began(event, key)
        elif event.what == "add_end":
            add = key.adds[event.value]
            add.end = min(add.end, event.t)
            add.completed = True
        elif event.what == "kept":
            add = key.adds[event.value]
            add.kept = True
            key.kept = max(key.kept, add.start)
        elif event.what == "refused":
            key.adds[event.value].refused = True
            wrong += [_REFUSED.format(*event[2:4])] if event.value in key.delivered else []
        elif event.what == "deliver":
            wrong += _delivered(event, key, causal=causal)
        elif event.what in ("ack", "nack"):
            key.out = None
            key.settled = event.what == "ack"
        else:
            raise ValueError(f"unknown event {event.what!r}")
    if drained:
        for name, key in keys.items():
            wrong += _missed(name, key)
    return wrong


_REFUSED = "refused: key {}: {} was delivered: its add was told that the inbox is full"


def judge_order(events: list[Event]) -> list[str]:
    """Return where keys that were added once each were delivered out of order, a sentence each."""
    adds: dict[str, list[Add]] = {}
    for event in events:
        if event.what == "add_start":
            adds.setdefault(event.key, []).append(Add(event.value, event.t))
        elif event.what == "add_end":
            for add in adds[event.key]:
                if add.value == event.value:
                    add.end = event.t
    once = {key: several[0] for key, several in adds.items() if len(several) == 1}
    wrong = []
    latest: tuple[float, str] = (-inf, "")
    for event in events:
        if event.what != "deliver":
            continue
        add = once.pop(event.key, None)
        if add is None:
            continue
        if add.end < latest[0]:
            wrong.append(
                f"order: key {event.key} had been added before key {latest[1]}, and was delivered after it"
            )
        latest = max(latest, (add.start, event.key))
    return wrong


def _began(event: Event, key: Key) -> None:
    if event.value in key.adds:
        raise ValueError(
            f"value {event.value!r} of key {event.key!r} is added twice: give each add its own value"
        )
    key.adds[event.value] = Add(event.value, event.t)


def _end_of(consumer: str, keys: dict[str, Key]) -> None:
    for key in keys.values():
        if key.out == consumer:
            key.out = None


def _delivered(event: Event, key: Key, *, causal: bool) -> list[str]:
    wrong = []
    if key.out is not None:
        wrong.append(
            f"twice: key {event.key}: {event.value} was delivered while {key.last and key.last.value} was in "
            "flight"
        )
    key.out = event.who
    key.settled = False
    key.delivered_at = event.t
    add = key.adds.get(event.value)
    if add is None:
        return [
            *wrong,
            f"foreign: key {event.key}: {event.value!r} was delivered, and nobody had begun to add it",
        ]
    if add.refused:
        wrong.append(_REFUSED.format(event.key, add.value))
    if add.kept:
        wrong.append(f"kept: key {event.key}: {add.value} was delivered: its add was told that one waits")
    if key.latest and key.latest.start > add.end:
        wrong.append(
            f"older: key {event.key}: {add.value} was delivered after {key.latest.value}, "
            f"whose add began when {add.value} had been added"
        )
    elif causal and key.last and add is not key.last and add.value in key.delivered:
        wrong.append(
            f"older: key {event.key}: {add.value} was delivered, then {key.last.value}, then {add.value} "
            "again"
        )
    if causal:
        add.end = min(add.end, event.t)
    key.delivered.add(add.value)
    key.last = add
    if key.latest is None or add.start > key.latest.start:
        key.latest = add
    return wrong


def _missed(name: str, key: Key) -> list[str]:
    if key.kept > key.delivered_at:
        return [f"kept: key {name}: an add was told that one waits, and nothing was delivered since"]
    if key.last is None:
        lost = [add.value for add in key.adds.values() if add.completed]
        return [f"missed: key {name}: {', '.join(lost)} added, nothing ever delivered"] if lost else []
    wrong = []
    if not key.settled:
        wrong.append(
            f"missed: key {name}: {key.last.value} was delivered, not acknowledged, and never delivered again"
        )
    for add in key.adds.values():
        if add.completed and add.start > key.last.end and add is not key.last:
            wrong.append(
                f"missed: key {name}: {add.value} was added after {key.last.value} had been, which was "
                "delivered last"
            )
    return wrong
