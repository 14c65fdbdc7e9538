"""What a storm left behind, and whether it is right.

python -m tests.storm.history FOLDER [KEY]      judges the logs that a failed storm has left; shows what
happened to KEY
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tests.driver import unspell, value_of
from tests.oracle import Event, judge, judge_order

# An add that begins in the same nanosecond as another ends overlaps it.
_ORDER = {"add_start": 0, "deliver": 1, "add_end": 2, "ack": 3, "nack": 3, "died": 4}


def history(folder: Path) -> list[Event]:
    """Bring all logs of a storm together, in the order of time."""
    events = []
    for log in sorted((folder / "logs").iterdir()):
        whole, _, _ = log.read_text().rpartition("\n")  # what a kill cut short is behind the last line break
        events += [unspell(line) for line in whole.splitlines()]
    events.sort(key=lambda event: event.t * 8 + _ORDER[event.what])
    return events


def look(folder: Path, events: list[Event], *, in_line: bool) -> list[str]:
    """Return what is wrong with a drained storm, a sentence each."""
    wrong = judge(events)
    if in_line:
        wrong += judge_order([event for event in events if event.key.startswith("once-")])
    inbox = folder / "inbox"
    for name in (
        "pending",
        "inflight",
        "deferred",
        "drop",
        "attempts",
    ):  # (a producer that died may leave its hint in keys/)
        # (A name with a dot is the probe of a consumer that was killed: nobody's element.)
        left = sorted(path.name for path in (inbox / name).iterdir() if not path.name.startswith("."))
        if left:
            wrong.append(f"left: {len(left)} in {name}/, {left[0]} for one")
    delivered = {(event.key, event.value) for event in events if event.what == "deliver"}
    for path in (inbox / "failed").iterdir():
        if not path.name.endswith("~reason.txt"):
            if (path.name[20:], value_of(path.read_bytes())) not in delivered:
                wrong.append(f"failed: {path.name} has a value that nobody was given")
            if not path.with_name(path.name + "~reason.txt").exists():
                wrong.append(f"failed: {path.name} has no reason beside it")
    return wrong


def went_on(folder: Path, events: list[Event]) -> list[tuple[int, int]]:
    """Return, for each time a producer was stopped inside the section, how many takes and acks were announced
    meanwhile."""
    found = []
    for line in (folder / "stops").read_text().splitlines() if (folder / "stops").exists() else ():
        began, ended = map(int, line.split())
        # (From 1 ms on: what was announced at once may have been done before it was stopped.)
        what = [event.what for event in events if began + 1_000_000 < event.t < ended]
        found.append((what.count("deliver"), what.count("ack")))
    return found


def counts(events: list[Event]) -> tuple[Counter[str], Counter[str]]:
    """Return how many adds of each kind returned, and how many deliveries there were to each kind."""
    adds: Counter[str] = Counter()
    deliveries: Counter[str] = Counter()
    for event in events:
        if event.what == "add_end":
            adds[event.who.partition("-")[0]] += 1
        elif event.what == "deliver":
            deliveries[event.who.partition("-")[0]] += 1
    return adds, deliveries


def main() -> None:
    folder, *keys = sys.argv[1:]
    events = history(Path(folder))
    for event in events:
        if event.key in keys or event.what == "died":
            print(f"{event.t:.0f}", *event[:4]) if keys else None
    wrong = look(Path(folder), events, in_line=False)
    print("\n".join(wrong[:50]) or "nothing is wrong")


if __name__ == "__main__":
    main()
