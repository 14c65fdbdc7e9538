"""`fsinbox init`: an inbox is created."""

from __future__ import annotations

import os

import click

from .options import COUNT, SIZE, chosen, inbox_option, json_option


@click.command()
@inbox_option
@json_option
@click.option("--shared", is_flag=True, help="Let the directory's group read and write, not only you.")
@click.option(
    "--scope",
    type=click.Choice(["auto", "local", "network"]),
    default="auto",
    show_default=True,
    help="Whether several hosts use it; auto: as the file system is.",
)
@click.option(
    "--force",
    is_flag=True,
    help="With --scope local: for this machine alone, although it lies on a network or FUSE mount.",
)
@click.option("--max-waiting", type=COUNT, help="See `fsinbox limit`.")
@click.option("--min-free", type=SIZE, help="See `fsinbox limit`.")
def init(
    inbox: str | None,
    json: bool,
    shared: bool,
    scope: str,
    force: bool,
    max_waiting: int | None,
    min_free: int | None,
) -> None:
    """Create an inbox. Does nothing if it is there, except that --force makes it this machine's."""
    from ..inbox import Inbox
    from .text import say

    path = chosen(inbox)
    if force and scope != "local":
        raise click.UsageError("--force needs --scope local")
    new = not os.path.exists(os.path.join(path, "format"))
    with Inbox(path, shared=shared, scope=scope, force=force) as made:
        made.limit(max_waiting=max_waiting, min_free=min_free)
        if json:
            say(path=made.path, created=new, format=made.layout.format)
        else:
            forced = ", forced: only for this machine" if " forced " in made.layout.format else ""
            click.echo(f"{'created inbox' if new else 'there is an inbox at'} {made.path}{forced}")
