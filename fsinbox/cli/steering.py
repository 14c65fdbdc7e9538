"""The commands that steer the consumer: hold, release, pause, resume; and wait."""

from __future__ import annotations

import sys

import click

from .choosing import confirm, keys_of, selected, steers
from .exits import EXIT_EXPIRED, EXIT_FAILED, EXIT_UNKNOWN
from .options import DURATION, Failure, Renamed, chosen, inbox_option, json_option, keys_argument, printable


@click.command()
@inbox_option
@json_option
@keys_argument
def hold(inbox: str | None, json: bool, keys: tuple[str, ...]) -> None:
    """Put KEY on hold: it is not taken.

    That ends when it is released. Adds for it continue, and replace; if it is in flight, its handler
    finishes.

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
@steers
def release(inbox: str | None, json: bool, everything: bool, yes: bool, keys: tuple[str, ...]) -> None:
    """End the hold of KEY.

    It may be taken, at its place, within a second.
    """
    from ..operate.steering import Steering
    from ..operate.units import counted
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
                confirm(f"Release {counted(len(wanted), 'key')} of {steering.layout.path}?", keys, yes=yes)
        for key in wanted:
            released = control.release(steering.layout, encode_key(key))
            left += not released
            if json:
                say(key=key, outcome="released" if released else "none")
            else:
                click.echo(f"{printable(key)}: {'released' if released else 'was not on hold'}")
        if not wanted and not json:
            click.echo("nothing to release")
    if left:
        sys.exit(EXIT_FAILED)


@click.command()
@inbox_option
@json_option
@click.option(
    "--for",
    "length",
    cls=Renamed,
    type=DURATION,
    help="Resume after this time: 90, 15m, 2h.  [default: never]",
)
def pause(inbox: str | None, json: bool, length: float | None) -> None:
    """Have the consumer take nothing more.

    That holds after a restart, too. Handlers that run finish; adds continue.
    """
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
    """End a pause.

    The consumer takes again within a second.
    """
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
@click.option("--timeout", type=DURATION, help="Give up after this time: 90, 15m, 2h.  [default: never]")
@keys_argument
def wait(inbox: str | None, json: bool, timeout: float | None, keys: tuple[str, ...]) -> None:
    """Wait until KEY, or everything, is done.

    Done is what is neither waiting, nor in flight or deferred.

    Exit status: 0 done; 1 one of them has failed; 5 one of them is not known: it was never added, or was done
    too long ago to have left a trace; 124 the timeout has expired.
    """
    from ..operate.steering import Steering
    from ..operate.waiting import unknown, wait_for
    from .text import say

    wanted = keys_of(keys) if keys else None
    with Steering(chosen(inbox)) as steering:
        strangers = unknown(steering.layout, wanted or ())
        if strangers:
            say(done=False, unknown=strangers) if json else None
            text = f"no trace of {_some(strangers)} in {steering.layout.path}"
            raise Failure(
                f"{text}: never added, or done long ago; `fsinbox ls` lists what is there", EXIT_UNKNOWN
            )
        left = sorted(wait_for(steering.layout, wanted, timeout))
        if left:
            say(done=False, left=left) if json else None
            raise Failure(f"timeout expired: {len(left)} not done: {_some(left)}", EXIT_EXPIRED)
        failed = sorted({row.key for row in steering.rows(("failed",), wanted)} if wanted else ())
        say(done=True, failed=failed) if json else None
    if failed:
        raise Failure(f"failed: {_some(failed)}: `fsinbox failed` says why", EXIT_FAILED)


def _some(keys: list[str]) -> str:
    return ", ".join(map(printable, keys[:3])) + (", ..." if len(keys) > 3 else "")
