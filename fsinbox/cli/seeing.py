"""`fsinbox status`: how an inbox stands."""

from __future__ import annotations

import click

from .options import chosen, inbox_option, json_option


@click.command()
@inbox_option
@json_option
def status(inbox: str | None, json: bool) -> None:
    """Count what waits, is out, is deferred and has failed; tell who consumes, and how old the oldest is."""
    from dataclasses import asdict

    from .. import survey
    from ..layout import Layout
    from .text import say, seconds

    found = survey.summary(Layout(chosen(inbox), create=False))
    if json:
        say(**asdict(found))
        return
    click.echo(f"inbox     {found.path}")
    click.echo(f"consumer  {found.consumer or 'none'}" if len(found.consumers) == 1 else "consumers")
    for one in found.consumers:
        lease = ""
        if one.get("sign") is not None:
            lease = f"epoch {one['epoch']}, sign of life {seconds(float(str(one['sign'])))} ago"
            lease += ", lapsed" if one["lapsed"] else ""
        if len(found.consumers) > 1:
            click.echo(f"  {one['shard']:<6}  {one['holder'] or 'NONE: its keys wait'}{f'  ({lease})' if lease else ''}")
        elif lease:
            click.echo(f"lease     {lease}")
    oldest = "" if found.oldest_waiting is None else f"  (oldest {seconds(found.oldest_waiting)})"
    click.echo(f"waiting   {found.waiting}{oldest}")
    longest = "" if found.oldest_out is None else f"  (oldest {seconds(found.oldest_out)})"
    click.echo(f"out       {found.out}{longest}")
    click.echo(f"deferred  {found.deferred}")
    click.echo(f"failed    {found.failed}")
    if found.dropped:
        click.echo(f"dropped   {found.dropped}  (not adopted yet)")
