"""The handler that the options of `fsinbox consume` ask for."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from ..worker.outcome import Handler, HandlerError
from ..worker.renewing import memory_is_known
from . import logs

if TYPE_CHECKING:
    from ..worker.commands import CommandHandler


def handler_for(path: str, log_options: logs.Logs, options: dict[str, Any]) -> Handler:
    """Return the handler. `path` names the inbox. Raises click.UsageError."""
    if options["processes"]:
        handler = in_processes(path, log_options, options)
    else:
        batches = options["batch"] is not None
        handler = choose_handler(options["handler"], options["exec"], shell=options["shell"], batches=batches)
        if log_options.output and options["exec"]:
            cast("CommandHandler", handler).logs_output = True
    check_limits(handler, options)
    return traced(handler, path) if options["trace"] and not options["processes"] else handler


def bounds(options: dict[str, Any]) -> dict[str, int | None]:
    """Return after what a process starts anew."""
    return {
        "max_elements": options["max_elements"] or None,
        "max_memory": options["max_memory"] or None,
    }


def check_limits(handler: Handler, options: dict[str, Any]) -> None:
    """Raise click.UsageError for a limit that could not be kept."""
    asked = [name for name in ("timeout", "cancel_superseded") if options[name]]
    if asked and not handler.interruptible:
        raise click.UsageError(
            f"--{asked[0].replace('_', '-')}: {handler.name} runs in a thread, which nothing can end: "
            "use --processes, make it an async function, or use --exec"
        )
    if options["cancel_superseded"] and options["batch"] is not None:
        raise click.UsageError("--cancel-superseded is about one element: it does not go with --batch")
    if options["max_memory"] and not memory_is_known():
        raise click.UsageError(
            "--max-memory: this system does not say how much memory a process uses (/proc)"
        )


def choose_handler(
    function: str | None, command: str | None, *, shell: bool | None, batches: bool = False
) -> Handler:
    """Return the handler that the options name; with `batches`, a BatchHandler. Raises click.UsageError."""
    if (function is None) == (command is None):
        raise click.UsageError("give either --handler MODULE:FUNC or --exec COMMAND")
    if shell and command is None:
        raise click.UsageError("--shell needs --exec COMMAND")
    try:
        if function is not None:
            from ..worker.functions import load_function

            return load_function(function, batches=batches)
        from ..worker.commands import CommandHandler

        assert command is not None
        if batches:
            from ..worker.batches import BatchCommandHandler

            return BatchCommandHandler(command, shell=shell)
        return CommandHandler(command, shell=shell)
    except HandlerError as error:
        raise click.UsageError(str(error)) from error


def traced(handler: Handler, path: str) -> Handler:
    """Return a handler that does the same, in a span each; what it adds goes on with the trace. Raises
    click.UsageError."""
    try:
        from ..tracing import instrument
    except ImportError as error:
        raise click.UsageError(f"--trace: {error}") from error
    from ..worker.tracing import Traced

    instrument()
    return Traced(handler, os.path.abspath(path))


def in_processes(path: str, log_options: logs.Logs, options: dict[str, Any]) -> Handler:
    """Return a handler that calls a function in processes of their own. Raises click.UsageError."""
    function = options["handler"]
    if function is None:
        raise click.UsageError("--processes needs --handler MODULE:FUNC (a command is a process anyway)")
    from ..worker.processes import ProcessHandler

    how = {"trace": options["trace"], "batches": options["batch"] is not None}
    make = partial(in_process, function, path, log_options, **how)
    try:
        return ProcessHandler(function, make, os.path.abspath(path), options["codec"], **bounds(options))
    except HandlerError as error:
        raise click.UsageError(str(error)) from error


def in_process(
    function: str, path: str, log_options: logs.Logs, *, trace: bool, batches: bool = False
) -> Handler:
    """Return the handler of a worker process: called in it, first of all. Raises HandlerError."""
    from ..worker.functions import load_function
    from ..worker.saying import watch_output

    logs.set_up(log_options)
    watch_output(logs=log_options.output)
    handler = load_function(function, batches=batches)
    if not trace:
        return handler
    try:
        return traced(handler, path)
    except click.UsageError as error:
        raise HandlerError(error.message) from error
