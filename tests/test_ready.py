"""What may be taken next, beside a plain list that says the same: random programs, in memory."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field

import pytest

from fsinbox.consumer.ready import Ready
from fsinbox.store.names import deferred_name, element_name, element_of, encoded_of

KEYS = ("a", "b", "c")
PROGRAMS = 3000


def _when(one: tuple[str, str, float, str]) -> tuple[float, str, str]:
    return one[2], one[1], one[3]


@dataclass
class Plain:
    """The same in one list of (kind, name, when, name in deferred/), with nothing clever about it."""

    entries: list[tuple[str, str, float, str]] = field(default_factory=list)
    deferred: dict[str, str] = field(default_factory=dict)

    def names(self, *kinds: str) -> list[str]:
        return [name for kind, name, _, _ in self.entries if kind in kinds]

    def put(self, kind: str, name: str, when: float = 0.0, deferred: str = "") -> None:
        self.entries.append((kind, name, when, deferred))

    def drop(self, kind: str, name: str) -> None:
        self.entries = [one for one in self.entries if one[:2] != (kind, name)]

    def is_void(self, deferred: str) -> bool:
        return bool(deferred) and self.deferred.get(encoded_of(element_of(deferred))) != deferred

    def oldest(self, now: float) -> str | None:
        for one in [one for one in self.entries if one[0] == "timer" and one[2] <= now]:
            self.entries.remove(one)
            if not self.is_void(one[3]):
                self.put("again", one[1])
        return min(self.names("listed", "again"), default=None)

    def deferred_as(self, name: str) -> str | None:
        deferred = self.deferred.get(encoded_of(name), "")
        return deferred if deferred and element_of(deferred) == name else None

    def pop(self, name: str) -> str | None:
        if name in self.names("listed"):
            self.drop("listed", name)
            return None
        self.drop("again", name)
        return self.deferred_as(name)

    def replace(self, listed: list[str]) -> None:
        later = self.names("blocked") + [one[1] for one in self.entries if one[0] == "timer" and not one[3]]
        again = [name for name in self.names("again") if self.deferred_as(name)]
        self.entries = [one for one in self.entries if one[0] not in ("listed", "again")]
        for name in again:
            self.put("again", name)
        for name in listed:
            if name not in later:
                self.put("listed", name)

    def block(self, encoded: str, name: str) -> None:
        others = [one for one in self.names("blocked") if encoded_of(one) == encoded]
        for other in others:
            self.drop("blocked", other)
        self.put("blocked", min([name, *others]))

    def unblock(self, encoded: str) -> None:
        for name in self.names("blocked"):
            if encoded_of(name) == encoded:
                self.drop("blocked", name)
                self.put("again", name)

    def pass_over(self, name: str) -> None:
        if self.pop(name):
            self.put("held", name)

    def resume_held(self) -> None:
        for name in self.names("held"):
            self.put("again", name)
        self.entries = [one for one in self.entries if one[0] != "held"]

    def next_time(self) -> float | None:
        for one in sorted((one for one in self.entries if one[0] == "timer"), key=_when):
            if not self.is_void(one[3]):
                return one[2]
            self.entries.remove(one)
        return None


def program(seed: int) -> int:
    """Have both do the same; return how many names were taken."""
    chance = random.Random(seed)
    ready, plain, now, taken = Ready(), Plain(), 0.0, 0

    def some() -> str:
        return element_name(chance.randrange(1, 8), chance.choice(KEYS))

    for _ in range(40):
        name = some()
        encoded = encoded_of(name)
        match chance.randrange(10):
            case 0:
                listed = sorted({some() for _ in range(chance.randrange(5))}, reverse=True)
                ready.replace(list(listed))
                plain.replace(listed)
            case 1:
                ready.push(name)
                plain.put("again", name)
            case 2:
                until = now + chance.randrange(1, 9)
                ready.debounce(name, until)
                plain.put("timer", name, until)
            case 3:
                until, deferred = now + chance.randrange(1, 9), deferred_name(chance.randrange(1, 9), name)
                ready.defer(encoded, deferred, until)
                plain.deferred[encoded] = deferred
                plain.put("timer", name, until, deferred)
            case 4:
                assert ready.deferred.pop(encoded, None) == plain.deferred.pop(encoded, None)
            case 5:
                ready.block(encoded, name)
                plain.block(encoded, name)
            case 6:
                ready.unblock(encoded)
                plain.unblock(encoded)
            case 7:
                ready.resume_held()
                plain.resume_held()
            case _:
                now += chance.choice((0, 0, 1, 4))
        assert ready.next_time() == plain.next_time()
        oldest = ready.oldest(now)
        assert oldest == plain.oldest(now)
        if oldest and chance.random() < 0.5:
            taken += 1
            if chance.random() < 0.2:
                ready.pass_over(oldest)
                plain.pass_over(oldest)
            else:
                assert ready.pop(oldest) == plain.pop(oldest)
        assert bool(ready) == bool(plain.names("listed"))
        assert sorted(ready.names(lambda name: True)) == sorted(plain.names("listed"))
    ready.clear()
    assert ready.oldest(now + 100) is None or plain.names("blocked")
    return taken


@pytest.mark.parametrize("part", range(4))
def test_random_programs_find_the_same_next_as_a_plain_list(part: int) -> None:
    taken = sum(program(seed) for seed in range(part, PROGRAMS, 4))
    assert taken > PROGRAMS  # (of 40 steps each)


def test_nothing_is_asked_of_the_system() -> None:
    calls: list[str] = []

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event.partition(".")[0] in ("open", "os", "fcntl", "time"):
            calls.append(event)

    listening = False
    sys.addaudithook(hear)
    listening = True
    program(0)
    listening = False
    assert calls == []
