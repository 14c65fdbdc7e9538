"""Goes through every state that the actors of a scenario can get into, and judges every end.

The first time that an actor makes a step in some situation, a run is replayed up to there and the step is
made: real code, real calls. What is learnt from it is kept, in two tables that do not depend on each other:

 - what a call does to what is on disk, and its result: a function of the call, what is on disk, and who holds
   the lock;
 - what an actor does when its call has a certain result (which events, which call next): a function of the
   actor, and of the results it has seen. Between two calls of its script it has forgotten those, but for what
   its inbox remembers: a producer's nothing, a consumer's its attributes.

With them the search knows most next states without making the step again. Each replay checks both tables: it
must arrive at what they said.

A state is what is on disk, where each actor is, how many have crashed, and what the oracle will need: which
adds had ended when each add began, and what was delivered and acknowledged, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from tests.oracle import Event, judge, judge_order

from .scenarios import AGAIN, FOR_LATER, Scenario
from .stepper import NOTED, SHARED, Actor, Run, World, spell, unspell

Events = tuple[tuple[str, str, str], ...]


class Spot(NamedTuple):
    """Where an actor is: what it does next, and what kind of step that is."""

    what: tuple[Any, ...]
    kind: int
    waits: int  # for the lock of this generation of `index`, if another holds it; 0: for none
    holds: int  # the lock of this generation of `index`; 0: none
    begun: bool
    ended: bool
    error: str


class State(NamedTuple):
    """Where everybody is. All numbers: each stands for something in a table."""

    disk: int
    known: int
    crashed: int
    nodes: tuple[int, ...]


@dataclass
class Result:
    """What an exploration found."""

    states: int = 0
    steps: int = 0
    ends: int = 0
    learnt: int = 0
    wrong: list[str] = field(default_factory=list)
    schedule: str = ""


class Numbers:
    """Gives each thing a number."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def of(self, thing: Any) -> int:
        """Return its number."""
        number = self._numbers.get(thing)
        if number is None:
            number = self._numbers[thing] = len(self.things)
            self.things.append(thing)
        return number


class Explorer:
    """What is known of a scenario."""

    def __init__(self, world: World, scenario: Scenario, *, causal: bool = True) -> None:
        self.world = world
        self.scenario = scenario
        self.causal = causal
        self._exact = scenario.keeps or scenario.max_waiting > 0
        self.learnt = 0
        self._nodes: dict[Any, int] = {}
        self._disks = Numbers()
        self._knowns = Numbers()
        self._spots: dict[tuple[int, int], Spot] = {}
        self._calls: dict[tuple[Any, ...], tuple[int, Any]] = {}  # -> what is on disk then, the result
        self._edges: dict[
            tuple[int, int, Any], tuple[int, Events]
        ] = {}  # -> where the actor is then, what happened
        self._knows: dict[tuple[int, int, Events], int] = {}
        self._drains: dict[int, tuple[list[tuple[str, str]], str]] = {}
        self._verdicts: dict[tuple[int, int], list[str]] = {}
        self._came: dict[State, tuple[State, int] | None] = {}
        self._run: Run | None = None
        self._path: list[int] = []
        self._letters = [chr(ord("A") + index) for index in range(len(scenario.roles))]

    def explore(self, *, shortest: bool = False, limit: int | None = None) -> Result:
        """Go through all states, up to the first wrong end. `shortest`: to the one with the fewest steps.
        `limit`: states."""
        result = Result()
        try:
            self._search(result, shortest=shortest, limit=limit)
        finally:
            self._stop()
        result.states = len(self._came)
        result.learnt = self.learnt
        return result

    def _search(self, result: Result, *, shortest: bool, limit: int | None) -> None:
        start = self._start()
        self._came = {start: None}
        todo = deque([start])
        while todo and (limit is None or len(self._came) < limit):
            state = todo.popleft() if shortest else todo.pop()
            choices = self._choices(state)
            for choice in choices:
                result.steps += 1
                after = self._after(state, choice)
                if after not in self._came:
                    self._came[after] = state, choice
                    todo.append(after)
            if not choices:
                result.ends += 1
                result.wrong = self._judge(state)
                if result.wrong:
                    result.schedule = spell(self._path_to(state))
                    return

    def check_by_running(self, *, samples: int) -> int:
        """Run to some of the states that were found, all over, each step of the way being checked. Return how
        many steps."""
        states = list(self._came)
        steps = 0
        try:
            for state in states[:: max(1, len(states) // samples)]:
                way = []
                came: tuple[State, int] | None = (state, 0)
                while came:
                    way.append(came[0])
                    came = self._came[came[0]]
                self._stop()
                for passed in reversed(way):
                    self._run_to(passed)
                    steps += 1
        finally:
            self._stop()
        return steps

    # --- what can happen ------------------------------------------------------------------------------

    def _choices(self, state: State) -> list[int]:
        """The same as Run.choices, which checks it at every replay."""
        able = []
        roles = self.scenario.roles
        spots = [self._spots[actor, node] for actor, node in enumerate(state.nodes)]
        for index, spot in enumerate(spots):
            after = roles[index].after
            if not spot.ended and (after is None or spots[after].ended):
                if spot.kind != SHARED:
                    able = [index]
                    break
                able.append(index)
        held = {spot.holds for spot in spots} - {0}
        steps = [index for index in able if spots[index].waits not in held]
        if state.crashed == self.scenario.crashes:
            return steps
        crashers = self.scenario.crashers
        return steps + [
            -1 - index
            for index in able
            if spots[index].begun
            and spots[index].kind != NOTED
            and (not crashers or self._letters[index] in crashers)
        ]

    def _after(self, state: State, choice: int) -> State:
        if choice < 0:
            return self._after_crash(state, -1 - choice)
        key = self._call(state, choice)
        call = self._calls.get(key)
        edge = call and self._edges.get((choice, state.nodes[choice], call[1]))
        if not edge:
            self._learn(state, choice)
            call = self._calls[key]
            edge = self._edges[choice, state.nodes[choice], call[1]]
        return self._with(state, choice, call[0], edge[0], edge[1])

    def _after_crash(self, state: State, index: int) -> State:
        node = self._ended_node(index)
        events: Events = (("died", "", ""),) if self.scenario.roles[index].consumer else ()
        return self._with(state, index, state.disk, node, events)._replace(crashed=state.crashed + 1)

    def _ended_node(self, index: int) -> int:
        node = self._nodes.setdefault(("ended", "None"), len(self._nodes) + 1)
        self._spots.setdefault((index, node), Spot((), SHARED, 0, 0, True, True, ""))
        return node

    def _with(self, state: State, index: int, disk: int, node: int, events: Events) -> State:
        nodes = list(state.nodes)
        nodes[index] = node
        known = self._know(state.known, index, events) if events else state.known
        return State(disk, known, state.crashed, tuple(nodes))

    def _call(self, state: State, choice: int) -> tuple[Any, ...]:
        what = self._spots[choice, state.nodes[choice]].what
        if what[0] not in ("lock", "try_lock"):
            return what, state.disk
        return (
            what,
            state.disk,
            any(self._spots[actor, node].holds == what[2] for actor, node in enumerate(state.nodes)),
        )

    # --- what the oracle will need --------------------------------------------------------------------

    def _know(self, known: int, index: int, events: Events) -> int:
        key = known, index, events
        after = self._knows.get(key)
        if after is None:
            after = self._knows[key] = self._knowns.of(
                _heard(self._knowns.things[known], self._letters[index], events, exact=self._exact)
            )
        return after

    def _judge(self, state: State) -> list[str]:
        key = state.known, state.disk
        verdict = self._verdicts.get(key)
        spots = [self._spots[actor, node] for actor, node in enumerate(state.nodes)]
        wrong = [
            f"error: {self._letters[index]} raised {spot.error}"
            for index, spot in enumerate(spots)
            if spot.error
        ]
        stuck = [self._letters[index] for index, spot in enumerate(spots) if not spot.ended]
        if stuck:
            return [*wrong, f"deadlock: {', '.join(stuck)} can never go on"]
        if verdict is None:
            verdict = self._verdicts[key] = self._judge_history(state)
        return wrong + verdict

    def _judge_history(self, state: State) -> list[str]:
        drained = self._drains.get(state.disk)
        if drained is None:
            run = self._run_to(state)
            drained = self._drains[state.disk] = run.drain()
            self._stop()
        taken, left = drained
        history = self._history(state)
        for key, value in taken:
            history += [Event("deliver", "-", key, value), Event("ack", "-", key, value)]
        history = [event._replace(t=t) for t, event in enumerate(history)]
        wrong = judge_all(history, self.scenario, causal=self.causal)
        if any(folder in left for folder in ("pending/", "inflight/", "deferred/", "drop/")):
            wrong.append(f"left over: {left}")
        return wrong

    def _history(self, state: State) -> list[Event]:
        """Return the events on the way to a state."""
        history: list[Event] = []
        came = self._came[state]
        while came:
            before, choice = came
            index = choice if choice >= 0 else -1 - choice
            if choice < 0:
                events: Events = (("died", "", ""),) if self.scenario.roles[index].consumer else ()
            else:
                result = self._calls[self._call(before, choice)][1]
                events = self._edges[choice, before.nodes[choice], result][1]
            history += [
                Event(what, self._letters[index], key, value) for what, key, value in reversed(events)
            ]
            came = self._came[before]
        return [Event(*event[:4]) for event in self._begin] + history[::-1]

    # --- replays --------------------------------------------------------------------------------------

    def _start(self) -> State:
        self._stop()
        self._run = Run(self.world, self.scenario, self._nodes)
        self._path = []
        self._begin = list(self._run.events)
        for actor in self._run.actors:
            self._note_spot(actor)
        self._knowns.of(
            _heard(
                ((), (), (), ()),
                "-",
                tuple((event.what, event.key, event.value) for event in self._begin),
                exact=self._exact,
            )
        )
        nodes = tuple(actor.node for actor in self._run.actors)
        return State(self._disks.of(self.world.contents()), 0, 0, nodes)

    def _path_to(self, state: State) -> list[int]:
        path = []
        came = self._came[state]
        while came:
            path.append(came[1])
            came = self._came[came[0]]
        return path[::-1]

    def _run_to(self, state: State) -> Run:
        """Return a run that is in this state."""
        path = self._path_to(state)
        done = len(self._path)
        if self._run is None or self._path != path[:done]:
            self._stop()
            self._run = Run(self.world, self.scenario, self._nodes)
            done = 0
        run = self._run
        for choice in path[done:]:
            run.do(choice)
        self._path = path
        assert self._disks.of(self.world.contents()) == state.disk, "the table of calls is wrong"
        assert tuple(actor.node for actor in run.actors) == state.nodes, "the table of actors is wrong"
        assert run.choices() == self._choices(state), "what can happen is not what was expected"
        return run

    def _learn(self, state: State, choice: int) -> None:
        """Make this step, and keep what it does."""
        self.learnt += 1
        run = self._run_to(state)
        before = len(run.events)
        key = self._call(state, choice)
        actor = run.do(choice)
        self._path = [*self._path, choice]
        call = self._disks.of(self.world.contents()), actor.result
        assert self._calls.setdefault(key, call) == call, f"{key} is no function"
        edge = actor.node, tuple((event.what, event.key, event.value) for event in run.events[before:])
        assert self._edges.setdefault((choice, state.nodes[choice], actor.result), edge) == edge, (
            "an actor is no function"
        )
        self._note_spot(actor)

    def _note_spot(self, actor: Actor) -> None:
        if actor.ended:
            error = repr(actor.error) if actor.error else ""
            spot = Spot((), SHARED, 0, 0, True, True, error)
        else:
            waits = actor.waiting[2] if actor.waiting[0] == "lock" else 0
            spot = Spot(actor.waiting, actor.kind, waits, actor.holds, actor.begun, False, "")
        known = self._spots.setdefault((actor.index, actor.node), spot)
        assert known == spot, f"{actor.letter} is no function: {known} {spot}"

    def _stop(self) -> None:
        if self._run:
            self._run.end()
        self._run = None
        self._path = []


def _heard(known: tuple[Any, ...], who: str, events: Events, *, exact: bool) -> tuple[Any, ...]:
    """Return what the oracle needs to know after these events, of what it had to know before. `exact`: also
    after how much of what was seen each add began."""
    order, added, completed, seen = known
    for what, key, value in events:
        if what == "add_start":
            order = tuple(sorted((*order, (key, value, added, len(seen) if exact else 0))))
            continue
        if what in ("add_end", "first", "deliver"):
            added = tuple(sorted({*added, (key, value)}))
        if what in ("add_end", "first"):
            completed = tuple(sorted((*completed, (key, value))))
        if what != "add_end":
            seen = (*seen, (what, who, key, value))
    return order, added, completed, seen


def judge_all(history: list[Event], scenario: Scenario, *, causal: bool) -> list[str]:
    """Return what is wrong with a history.

    What a person brings back is a value that was added once more, but one that nothing newer may give way to:
    that is only known here.
    """
    plain: list[Event] = []
    again: dict[tuple[str, str], str] = {}
    wrong = []
    for at, event in enumerate(history):
        if event.what == "waited":
            continue
        if event.what == "refused":
            wrong += _refused(history, at, scenario)
        if event.what == "first":
            wrong += _not_kept(history[:at], event)
            event = event._replace(what="add_end")
        if event.what == "queued":
            again[event.key, event.value] = event.value + AGAIN
            wrong += _gave_way(history[:at], event)
            event = event._replace(what="add_end", value=event.value + AGAIN)
        elif event.what in ("deliver", "ack", "nack"):
            event = event._replace(value=again.get((event.key, event.value), event.value))
        plain.append(event)
    wrong += judge(plain, causal=causal)
    if scenario.in_order:
        wrong += judge_order(plain)
    return wrong


def _not_kept(before: list[Event], added: Event) -> list[str]:
    """Return what waited for its time, all the while that a value was added that should have kept it."""
    start = max(
        at for at, event in enumerate(before) if event.what == "add_start" and event[2:4] == added[2:4]
    )
    waits = {event.value for event in before[:start] if event.what == "add_end" and event.key == added.key}
    begun = {event.value for event in before if event.what == "add_start" and event.key == added.key}
    if any(event.what == "waited" for event in before) or begun != waits | {added.value}:
        return []
    return [
        f"kept: key {added.key}: {added.value} was added, and {value} waited for its time"
        for value in waits
        if value.endswith(FOR_LATER)
    ]


def _refused(history: list[Event], at: int, scenario: Scenario) -> list[str]:
    """Return what is wrong with the refusal at this place: there was room."""
    refused, wrong = history[at], []
    start = max(
        place
        for place, event in enumerate(history[:at])
        if event.what == "add_start" and event[2:4] == refused[2:4]
    )
    waiting = {event[2:4] for event in history[:at] if event.what == "add_start"} - {refused[2:4]}
    waiting -= {event[2:4] for event in history[:at] if event.what == "refused"}
    waiting -= {event[2:4] for event in history[:start] if event.what == "deliver"}
    if len({key for key, _ in waiting}) < scenario.max_waiting:
        wrong.append(f"bound: key {refused.key}: {refused.value} was refused, and {len(waiting)} waited")
    if not any(role.consumer for role in scenario.roles):
        wrong += [
            f"bound: key {refused.key}: {refused.value} was refused, and {event.value} waited"
            for event in history[:start]
            if event.what == "add_end" and event.key == refused.key
        ]
    return wrong


def _gave_way(before: list[Event], queued: Event) -> list[str]:
    """Return what waited, and was newer than what was queued again."""
    start, end = {}, {}
    last, settled = "", False
    for at, event in enumerate(before):
        if event.key != queued.key:
            continue
        if event.what == "add_start":
            start[event.value] = at
        elif event.what == "add_end":
            end[event.value] = at
        elif event.what == "deliver":
            last, settled = event.value, False
        elif event.what == "ack":
            settled = True
        elif event.what == "nack":
            settled = False
    return [
        f"missed: key {queued.key}: {queued.value} was queued again, over {value}, which is newer"
        for value, at in start.items()
        if at > end.get(queued.value, 0) and end.get(value, inf) < start[queued.value + AGAIN]
        if not (settled and (value == last or end.get(last, inf) > at))
    ]


def check(world: World, scenario: Scenario, *, causal: bool = True, limit: int | None = None) -> Result:
    """Explore a scenario. If something is wrong, find the schedule with the fewest steps that shows it."""
    explorer = Explorer(world, scenario, causal=causal)
    result = explorer.explore(limit=limit)
    if result.wrong:
        result = explorer.explore(shortest=True)
    return result


def replay(
    world: World, scenario: Scenario, schedule: str, *, causal: bool = True
) -> tuple[list[str], list[str]]:
    """Run one schedule, and then whatever can follow; return what is wrong, and each step and event as a
    line."""
    trace: list[Any] = []
    run = Run(world, scenario, {}, trace)
    try:
        path = unspell(schedule)
        while choices := run.choices():
            choice = path.pop(0) if path else choices[0]
            if choice not in choices:
                raise ValueError(
                    f"{spell([choice])} cannot go on there: this is another scenario, or the code has changed"
                )
            _tell(run, trace)
            run.do(choice)
        _tell(run, trace)
        errors = [f"error: {actor.letter} raised {actor.error!r}" for actor in run.actors if actor.error]
        if not all(actor.ended for actor in run.actors):
            return [*errors, "deadlock"], [_line(entry) for entry in trace]
        taken, left = run.drain()
        for key, value in taken:
            run.happened("deliver", "-", key, value)
            run.happened("ack", "-", key, value)
        _tell(run, trace)
    finally:
        run.end()
    wrong = errors + judge_all(run.events, scenario, causal=causal)
    if left:
        trace.append(Event("left", "-", left))
    return wrong, [_line(entry) for entry in trace]


def _tell(run: Run, trace: list[Any]) -> None:
    """Put the events since the last time into the trace."""
    told = sum(1 for entry in trace if isinstance(entry, Event))
    trace.extend(run.events[told:])


def _line(entry: Any) -> str:
    if isinstance(entry, Event):
        return f"      {entry.who}: {entry.what} {entry.key} {entry.value}".rstrip()
    who, what, result = entry
    line = f"{who} {' '.join(map(str, what))}{'' if result is None else f' -> {result}'}"
    return line.replace("0" * 14, "").replace(r"\x00", "").replace(" " * 24, "")
