"""The commands by which people steer: failed, retry, discard, requeue, replay, purge, hold, release, pause,
resume, wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .options import (
    DURATION,
    Failure,
    chosen,
    inbox_option,
    json_option,
    keys_argument,
    printable,
    yes_option,
)

if TYPE_CHECKING:
    from ..operate.rows import Row
    from ..operate.steering import Steering

_TIME_IS_UP = 124
"""Exit status of `wait` when its time is up: as timeout(1) has it."""

_MANY = 200
"""Elements from which on a bar shows how far it is."""

all_option = click.option("--all", "everything", is_flag=True, help="All there are; asks first.")


# --- what they share ---


def keys_of(words: tuple[str, ...]) -> list[str]:
    """Return the keys a line names, each once. "-" stands for standard input: a key a line, or an object with
    a member `key` (what `fsinbox ls --json` prints). Raises click.UsageError.
    """
    found: dict[str, None] = {}
    for word in words:
        if word == "-":
            found.update(dict.fromkeys(_keys_on_standard_input()))
        else:
            found[word] = None
    return list(found)


def _keys_on_standard_input() -> Iterator[str]:
    from json import loads

    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.startswith("{"):
            try:
                text = loads(text)["key"]
            except (ValueError, KeyError):
                text = ""
            if not text or not isinstance(text, str):
                raise click.UsageError(f"standard input: no JSON object with a key: {line.strip()[:80]!r}")
        if text:
            yield text


def confirm(question: str, words: tuple[str, ...], *, yes: bool) -> None:
    """Ask, unless told not to. Raises click.Abort, click.UsageError where there is nobody to ask."""
    if yes:
        return
    if "-" in words or not sys.stdin.isatty():
        raise click.UsageError(
            "nobody is there to be asked (standard input is no terminal, or has the keys): add --yes"
        )
    click.confirm(question, abort=True, err=True)


def selected(words: tuple[str, ...], *, everything: bool) -> list[str] | None:
    """Return the keys a line names, or None for all. Raises click.UsageError if it names neither, or both."""
    if everything == bool(words):
        raise click.UsageError("name keys (- reads them from standard input), or give --all")
    if everything:
        return None
    from ..store.names import encode_key

    keys = keys_of(words)
    for key in keys:
        encode_key(key)  # a clear error for what cannot be a key
    return keys


@contextmanager
def progress(rows: list[Row], label: str) -> Iterator[Iterable[Row]]:
    """Show a bar on the terminal, if there are many."""
    if len(rows) < _MANY or not sys.stderr.isatty():
        yield rows
        return
    with click.progressbar(rows, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar


_MEANS = {
    "newer": "left in {folder}/: a newer value of its key waits, or is being worked on",
    "gone": "gone meanwhile",
    "foreign": "left in {folder}/: it is no regular file",
    "none": "there is no such element",
}


def _steers(command: Callable[..., None]) -> Callable[..., None]:
    """Add what the commands take that do something to elements which are named."""
    taken: Callable[..., None] = inbox_option(json_option(all_option(yes_option(keys_argument(command)))))
    return taken


def _change(
    verb: str,
    inbox: str | None,
    words: tuple[str, ...],
    states: tuple[str, ...],
    act: Callable[[Steering, Row], str],
    *,
    everything: bool,
    yes: bool,
    json: bool,
    ask: bool = False,
) -> None:
    """Do something to each element that was named; print what became of it; end with 1 if any was not
    done."""
    from ..operate.steering import Steering
    from .text import say

    keys = selected(words, everything=everything)
    left = 0

    def tell(key: str, outcome: str, folder: str = "", **more: object) -> None:
        nonlocal left
        left += outcome in _MEANS
        if json:
            say(key=key, outcome=outcome, **more)
        else:
            click.echo(f"{printable(key)}: {_MEANS.get(outcome, outcome).format(folder=folder)}")

    with Steering(chosen(inbox)) as steering:
        rows = list(steering.rows(states, keys))
        if rows and (everything or ask):
            what = (
                f"{len(rows)} element{'' if len(rows) == 1 else 's'} in "
                f"{' and '.join(sorted({row.folder for row in rows}))}"
            )
            confirm(f"{verb} {what} of {steering.layout.path}?", words, yes=yes)
        with progress(rows, verb.lower()) as bar:
            for row in bar:
                tell(row.key, act(steering, row), row.folder, seq=row.seq, state=row.state)
        for key in set(keys or ()) - {row.key for row in rows}:
            tell(key, "none")
    if left:
        sys.exit(1)


# --- elements ---


@click.command()
@inbox_option
@json_option
@click.option("--traceback", is_flag=True, help="Print the whole reasons, tracebacks included.")
@keys_argument
def failed(inbox: str | None, json: bool, traceback: bool, keys: tuple[str, ...]) -> None:
    """List what has failed, the oldest first, and why: all, or the elements of KEY."""
    from ..operate.rows import reason
    from ..operate.steering import Steering, size_and_time
    from ..operate.units import age, when
    from .text import say

    with Steering(chosen(inbox)) as steering:
        layout = steering.layout
        for row in steering.rows(("failed",), keys_of(keys) if keys else None):
            about = size_and_time(layout, row)
            if about is None:
                continue
            size, since = about
            why = reason(layout, row) or ""
            summary = (why.strip().splitlines() or ["no reason was kept"])[-1]
            if json:
                say(
                    key=row.key,
                    seq=row.seq,
                    added_at=when(row.seq),
                    failed_at=when(since),
                    size=size,
                    summary=summary,
                    reason=why,
                    path=f"{layout.path}/failed/{row.file}",
                )
                continue
            click.echo(f"{age(since):>6}  {size:>10}  {printable(row.key)}: {printable(summary)}")
            if traceback:
                click.echo("".join(f"    {printable(line)}\n" for line in why.splitlines()))


@click.command()
@_steers
def retry(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """Queue what has failed again: it goes back to its place, its attempts count from one.

    An element stays in failed/ if a newer value of its key waits or is being worked on: `fsinbox discard` it
    then. Exit status 1 if any was not queued.
    """
    _change("Retry", inbox, keys, ("failed",), lambda steering, row: steering.retry(row), **how)


@click.command()
@_steers
def requeue(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """End a back-off now: what waits for another try may be taken at once."""
    _change("Requeue", inbox, keys, ("deferred",), lambda steering, row: steering.requeue(row), **how)


@click.command()
@_steers
def replay(inbox: str | None, keys: tuple[str, ...], **how: bool) -> None:
    """Queue again what was acknowledged and is kept in done/ (see `consume --keep-done`)."""
    _change("Replay", inbox, keys, ("done",), lambda steering, row: steering.replay(row), **how)


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["failed", "waiting", "deferred", "done"]),
    default=["failed"],
    show_default=True,
    help="What to discard; may be repeated.",
)
@_steers
def discard(inbox: str | None, keys: tuple[str, ...], states: tuple[str, ...], **how: bool) -> None:
    """Remove elements for good: what has failed, unless told otherwise. Asks first."""
    _change(
        "Discard",
        inbox,
        keys,
        states,
        lambda steering, row: "discarded" if steering.discard(row) else "gone",
        ask=True,
        **how,
    )


@click.command()
@inbox_option
@json_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["failed", "done", "waiting", "deferred"]),
    default=["failed", "done"],
    show_default=True,
    help="What to remove; may be repeated.",
)
@click.option(
    "--older-than",
    type=DURATION,
    default=0.0,
    metavar="TIME",
    help="Only what is there for so long: 90, 15m, 2h, 7d.",
)
@yes_option
def purge(inbox: str | None, json: bool, states: tuple[str, ...], older_than: float, yes: bool) -> None:
    """Remove all that has failed, and all that is kept in done/; or what is in other states. Asks first."""
    from time import time_ns

    from ..operate.steering import Steering, size_and_time
    from .text import say

    with Steering(chosen(inbox)) as steering:
        until = time_ns() - int(older_than * 1e9)
        rows, size = [], 0
        for row in steering.rows(states):
            about = size_and_time(steering.layout, row)
            if about and about[1] <= until:
                rows.append(row)
                size += about[0]
        removed = 0
        if rows:
            confirm(f"Remove {len(rows)} elements ({size:,} bytes) from {steering.layout.path}?", (), yes=yes)
            with progress(rows, "removing") as bar:
                for row in bar:
                    removed += steering.discard(row)
        if json:
            say(removed=removed, bytes=size)
        else:
            click.echo(f"removed {removed} elements, {size:,} bytes")


# --- keys, and the consumer ---


@click.command()
@inbox_option
@json_option
@keys_argument
def hold(inbox: str | None, json: bool, keys: tuple[str, ...]) -> None:
    """Have the consumer leave KEY alone until it is released. Adds for it go on, and replace; what is out is
    finished.

    Without KEY, list the keys on hold.
    """
    from ..operate.steering import Steering
    from ..store import control
    from ..store.names import decode_key, encode_key
    from .text import say

    with Steering(chosen(inbox)) as steering:
        if not keys:
            for encoded in sorted(control.requests(steering.layout).held):
                key = decode_key(encoded) or encoded
                say(key=key) if json else click.echo(printable(key))
            return
        for key in keys_of(keys):
            control.hold(steering.layout, encode_key(key))
            say(key=key, outcome="held") if json else click.echo(f"{printable(key)}: on hold")


@click.command()
@_steers
def release(inbox: str | None, json: bool, everything: bool, yes: bool, keys: tuple[str, ...]) -> None:
    """End the hold of KEY: it is taken at its place, within a second."""
    from ..operate.steering import Steering
    from ..store import control
    from ..store.names import decode_key, encode_key
    from .text import say

    wanted = selected(keys, everything=everything)
    left = 0
    with Steering(chosen(inbox)) as steering:
        if wanted is None:
            wanted = [
                decode_key(encoded) or encoded for encoded in sorted(control.requests(steering.layout).held)
            ]
            if wanted:
                confirm(f"Release {len(wanted)} keys of {steering.layout.path}?", keys, yes=yes)
        for key in wanted:
            released = control.release(steering.layout, encode_key(key))
            left += not released
            if json:
                say(key=key, outcome="released" if released else "none")
            else:
                click.echo(f"{printable(key)}: {'released' if released else 'was not on hold'}")
    if left:
        sys.exit(1)


@click.command()
@inbox_option
@json_option
@click.option(
    "--for",
    "length",
    type=DURATION,
    metavar="TIME",
    help="Resume by itself after so long: 90, 15m, 2h.  [default: never]",
)
def pause(inbox: str | None, json: bool, length: float | None) -> None:
    """Have the consumer take nothing more, now and after a restart. What is out is finished; adds go on."""
    from time import time_ns

    from ..operate.steering import Steering
    from ..operate.units import when
    from ..store import control
    from .text import say

    until = 0 if length is None else time_ns() + int(length * 1e9)
    with Steering(chosen(inbox)) as steering:
        control.pause(steering.layout, until)
        if json:
            say(paused=True, until=when(until) if until else None)
        else:
            click.echo(
                "paused "
                f"{steering.layout.path}{f' until {when(until)}' if until else ': `fsinbox resume` ends it'}"
            )


@click.command()
@inbox_option
@json_option
def resume(inbox: str | None, json: bool) -> None:
    """End a pause: the consumer goes on within a second."""
    from ..operate.steering import Steering
    from ..store import control
    from .text import say

    with Steering(chosen(inbox)) as steering:
        was = control.resume(steering.layout)
        if json:
            say(paused=False, was_paused=was)
        else:
            click.echo(f"resumed {steering.layout.path}" if was else f"{steering.layout.path} was not paused")


@click.command()
@inbox_option
@json_option
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="Give up after so long: 90, 15m, 2h.  [default: never]"
)
@keys_argument
def wait(inbox: str | None, json: bool, timeout: float | None, keys: tuple[str, ...]) -> None:
    """Wait until KEY is done: it does not wait, is not out, and waits for no other try. Without KEY, until
    nothing does.

    Exit status: 0 done; 1 one of them has failed; 124 the time is up.
    """
    from ..operate.steering import Steering
    from ..operate.waiting import wait_for
    from .text import say

    wanted = keys_of(keys) if keys else None
    with Steering(chosen(inbox)) as steering:
        left = wait_for(steering.layout, wanted, timeout)
        if left:
            text = ", ".join(printable(key) for key in sorted(left)[:3]) + (", ..." if len(left) > 3 else "")
            say(done=False, left=sorted(left)) if json else None
            raise Failure(f"the time is up, and {len(left)} are not done: {text}", _TIME_IS_UP)
        gone_wrong = sorted({row.key for row in steering.rows(("failed",), wanted)} if wanted else ())
        say(done=True, failed=gone_wrong) if json else None
    if gone_wrong:
        raise Failure(
            f"in failed/: {', '.join(map(printable, gone_wrong[:3]))}: `fsinbox failed` says why", 1
        )
