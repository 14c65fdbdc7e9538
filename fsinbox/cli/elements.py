"""The commands that change elements: retry (and requeue), replay, discard, purge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from .choosing import confirm, progress, selected, steers
from .exits import EXIT_FAILED
from .options import (
    DURATION,
    Failure,
    Renamed,
    State,
    chosen,
    inbox_option,
    json_option,
    printable,
    yes_option,
)

if TYPE_CHECKING:
    from ..operate.rows import Row
    from ..operate.steering import Steering

_LEFT = {
    "newer": "left in {folder}/: a newer value of its key is waiting, in flight or deferred",
    "gone": "not there any more",
    "foreign": "left in {folder}/: it is not a regular file",
    "full": "left in {folder}/: it is a directory with something in it",
    "none": "no such element",
}
"""Outcome -> what is printed. Exit status 1 if there is one of these."""

_NOTHING_TO_DO = {
    "waiting": "nothing to do: it is waiting",
    "held": "nothing to do: it is waiting, on hold; `fsinbox release` ends that",
    "in_flight": "nothing to do: it is in flight",
}


def _change(
    verb: str,
    inbox: str | None,
    words: tuple[str, ...],
    choose: Callable[[Steering, list[str] | None], list[Row]],
    act: Callable[[Steering, Row], str],
    *,
    everything: bool,
    yes: bool,
    json: bool,
    ask: bool = False,
) -> None:
    """Change each element that `choose` returns for the keys (None: all), and print its outcome. Ends with
    status 1 if any was left as it was."""
    from ..operate.rows import STATES
    from ..operate.steering import Steering
    from ..operate.units import counted

    keys = selected(words, everything=everything)
    outcomes = []
    with Steering(chosen(inbox)) as steering:
        rows = choose(steering, keys)
        if rows and (everything or ask):
            folders = " and ".join(sorted({row.folder for row in rows}))
            what = f"{counted(len(rows))} in {folders}"
            confirm(f"{verb} {what} of {steering.layout.path}?", words, yes=yes)
        with progress(rows, verb.lower()) as bar:
            for row in bar:
                outcomes.append(act(steering, row))
                _tell(row.key, outcomes[-1], row.folder, json=json, seq=row.seq, state=row.state)
        missing = set(keys or ()) - {row.key for row in rows}
        elsewhere = {row.key: row.state for row in steering.rows(STATES, missing)} if missing else {}
        for key in sorted(missing):
            outcomes.append("none")
            _tell_missing(verb.lower(), key, elsewhere.get(key), json=json)
        if everything and not rows and not json:
            click.echo(f"nothing to {verb.lower()}")
    if _LEFT.keys() & set(outcomes):
        sys.exit(EXIT_FAILED)


def _tell_missing(verb: str, key: str, state: str | None, *, json: bool) -> None:
    """Print that nothing was done to a key, and what it may have been meant as."""
    text = _LEFT["none"]
    if state:
        word = state.replace("_", " ")
        hint = "" if state == "in_flight" else f"; to {verb} it, add --state {state}"
        text = f"nothing done: it is {word}{hint}"
    elif set("*?[") & set(key):
        text += f" (a pattern? `fsinbox failed --json '{printable(key)}' | fsinbox {verb} -` takes those)"
    if json:
        _tell(key, "none", json=json)
    else:
        click.echo(f"{printable(key)}: {text}")


def _tell(key: str, outcome: str, folder: str = "", *, json: bool, **more: object) -> None:
    if json:
        from .text import say

        say(key=key, outcome=outcome, **more)
    else:
        text = (_LEFT | _NOTHING_TO_DO).get(outcome, outcome)
        click.echo(f"{printable(key)}: {text.format(folder=folder)}")


def _of(*states: str) -> Callable[[Steering, list[str] | None], list[Row]]:
    """Return a choice for _change: all elements in these states."""
    return lambda steering, keys: list(steering.rows(states, keys))


@click.command()
@steers
def retry(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """Try KEY again now, whatever its state.

    A failed element returns to its place in the queue, and its attempts count from one; of a deferred one the
    back-off ends, and of one that is for later the delay; of a done one that is kept in done/ a copy is
    queued. For one that is waiting or in flight there is nothing to do. --all: all that are failed or
    deferred.

    If a newer value of its key is there, a failed element stays in failed/: `fsinbox discard` removes it.
    Exit status 1 if one was left as it was, or there is none.
    """
    _change("Retry", inbox, keys, _to_retry, _retry, **how)


def _to_retry(steering: Steering, keys: list[str] | None) -> list[Row]:
    """Return the failed and the deferred elements; of a key that has none, the one that is waiting or in
    flight, else the last one done."""
    found = list(steering.rows(("failed", "deferred"), keys))
    for states in (("waiting", "in_flight"), ("done",)) if keys else ():
        missing = set(keys or ()) - {row.key for row in found}
        found += {row.key: row for row in steering.rows(states, missing)}.values()
    return found


def _retry(steering: Steering, row: Row) -> str:
    from ..store.control import requests
    from ..store.names import encode_key

    acts = {"failed": steering.retry, "deferred": steering.requeue, "done": steering.replay}
    if row.state in acts:
        return acts[row.state](row)
    if row.state == "waiting" and encode_key(row.key) in requests(steering.layout).held:
        return "held"
    later = row.state == "waiting" and row.look(steering.layout)
    return steering.end_delay(row) if later and later[1] else row.state


@click.command()
@steers
def requeue(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """The same as retry."""
    _change("Retry", inbox, keys, _to_retry, _retry, **how)


@click.command()
@steers
def replay(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """Queue again what was done and is kept in done/.

    (See `consume --keep-done`.) For a KEY that has none there it does what retry does.
    """
    _change("Replay", inbox, keys, _to_replay, _retry, **how)


def _to_replay(steering: Steering, keys: list[str] | None) -> list[Row]:
    found = list(steering.rows(("done",), keys))
    missing = set(keys or ()) - {row.key for row in found}
    return found + (_to_retry(steering, sorted(missing)) if missing else [])


@click.command()
@click.option(
    "--state",
    "states",
    cls=Renamed,
    multiple=True,
    type=State(["failed", "waiting", "deferred", "done"]),
    default=["failed"],
    show_default=True,
    help="What to discard; may be repeated.",
)
@steers
def discard(inbox: str | None, keys: tuple[str, ...], states: tuple[str, ...], **how: bool) -> None:
    """Remove elements for good: failed ones, or others.

    With --state, those in other states. Asks first.
    """
    _change(
        "Discard", inbox, keys, _of(*states), lambda steering, row: steering.discard(row), ask=True, **how
    )


@click.command()
@inbox_option
@json_option
@click.option(
    "--state",
    "states",
    cls=Renamed,
    multiple=True,
    type=State(["failed", "done", "waiting", "deferred"]),
    default=["failed", "done"],
    show_default=True,
    help="What to remove; may be repeated.",
)
@click.option(
    "--older-than",
    type=DURATION,
    default=0.0,
    help="Only elements that moved there longer ago: 90, 15m, 2h, 7d.",
)
@yes_option
def purge(inbox: str | None, json: bool, states: tuple[str, ...], older_than: float, yes: bool) -> None:
    """Remove all that is failed or done.

    With --state, all that is in other states. Asks first. A directory with something in it is left. Exit
    status 1 if there was one.
    """
    from time import time_ns

    from ..operate.steering import Steering, size_and_time
    from ..operate.units import counted
    from .text import say

    with Steering(chosen(inbox)) as steering:
        until = time_ns() - int(older_than * 1e9)
        sizes = {}
        for row in steering.rows(states):
            about = size_and_time(steering.layout, row)
            if about and about[1] <= until:
                sizes[row] = about[0]
        outcomes = {}
        if sizes:
            what = f"{counted(len(sizes))} ({counted(sum(sizes.values()), 'byte')})"
            confirm(f"Remove {what} from {steering.layout.path}?", (), yes=yes)
            with progress(list(sizes), "removing") as bar:
                outcomes = {row: steering.discard(row) for row in bar}
        removed, left = (list(outcomes.values()).count(outcome) for outcome in ("discarded", "full"))
        size = sum(sizes[row] for row, outcome in outcomes.items() if outcome == "discarded")
        if json:
            say(removed=removed, bytes=size, left=left)
        else:
            click.echo(f"removed {counted(removed)}, {counted(size, 'byte')}")
    if left:
        raise Failure(
            f"{left} left: a directory with something in it is not ours to remove: `fsinbox doctor` names it",
            EXIT_FAILED,
        )
