"""`fsinbox limit`: how much may wait, and how much must stay free."""

from __future__ import annotations

import click

from .options import COUNT, SIZE, chosen, inbox_option, json_option


@click.command()
@inbox_option
@json_option
@click.option(
    "--max-waiting",
    type=COUNT,
    help="Elements that may wait, back-offs included; 0: no bound.",
)
@click.option(
    "--min-free",
    type=SIZE,
    help="What must stay free there: 500MB, 2G; 0: no bound.",
)
def limit(inbox: str | None, json: bool, max_waiting: int | None, min_free: int | None) -> None:
    """Bound the inbox, or print its bounds.

    Beyond a bound `add` ends with exit status 6, or waits with --timeout, and what is in drop/ stays there. A
    value that replaces a waiting one is always added.
    """
    from ..inbox import Inbox
    from .text import say

    with Inbox(chosen(inbox), create=False) as target:
        bounds = target.limit(max_waiting=max_waiting, min_free=min_free)
    if json:
        say(max_waiting=bounds.max_waiting, min_free=bounds.min_free)
        return
    click.echo(f"max_waiting  {bounds.max_waiting or 'no bound'}")
    click.echo(f"min_free     {f'{bounds.min_free} bytes' if bounds.min_free else 'no bound'}")
