"""`fsinbox completion`: the script that makes a shell complete commands, options and keys."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete a line.

    Commands, options and keys are completed.

    \b
    bash:  eval "$(fsinbox completion bash)"         in ~/.bashrc
    zsh:   eval "$(fsinbox completion zsh)"          in ~/.zshrc, behind compinit
    fish:  fsinbox completion fish | source          in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from . import shells  # noqa: F401 - tells click of them

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(
        kind(click.get_current_context().find_root().command, {}, "fsinbox", "_FSINBOX_COMPLETE").source()
    )
