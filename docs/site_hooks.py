"""For the site: what lies outside docs/ is not on it, so links to it become names of files."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace `[text](../path)` that leads out of docs/, and links to files beside the pages that are no
    pages, by the path in the repository."""
    if "<!-- the help of all commands -->" in markdown:
        markdown += _help_of_all()
    out = re.escape("../" * (page.file.src_uri.count("/") + 1))
    markdown = re.sub(rf"\[[^\]]+\]\({out}([^)#\s]+)[^)]*\)", r"`\1`", markdown)
    return re.sub(r"(?<!!)\[[^\]]+\]\(((?:deploy|man)/[^)#\s]+)[^)]*\)", r"`docs/\1`", markdown)


def _help_of_all() -> str:
    import click

    from fsinbox.cli.commands import cli

    with click.Context(cli, info_name="fsinbox", terminal_width=80, max_content_width=80) as group:
        texts = []
        for name in cli.list_commands(group):
            command = cli.get_command(group, name)
            with click.Context(command, info_name=name, parent=group, terminal_width=80) as ctx:
                texts.append(f"## fsinbox {name}\n\n```text\n{command.get_help(ctx)}\n```\n")
    return "\n".join(texts)
