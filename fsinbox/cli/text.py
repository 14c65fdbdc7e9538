"""Lines for programs."""

import click


def say(**members: object) -> None:
    """Print one JSON object on a line."""
    from json import dumps

    text = dumps(members, ensure_ascii=False)
    # A key that came from a file name may hold bytes that are not text: escaped, then.
    click.echo(text if text.isprintable() else dumps(members))
