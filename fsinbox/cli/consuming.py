"""`fsinbox consume`, from options to exit status."""

import logging
import os
import sys
from dataclasses import asdict
from typing import Any

import click

from ..consumer.ownership import Shard, parse_shard
from ..inbox import Inbox
from ..worker import service
from ..worker.backoff import Backoff
from ..worker.ending import Tally
from ..worker.observer import Observer, StatsObserver
from ..worker.outcome import Handler, HandlerError
from ..worker.runner import Runner
from . import logs
from .exits import EXIT_FAILED

log = logging.getLogger("fsinbox")

SAME = "codec settle max_settle drop_settle ignore watch poll_interval shard lease keep_done".split()
"""Options that Inbox has under the same names."""


def consume(path: str, **options: Any) -> int:
    """Run a consumer; return the exit status. Raises click.UsageError, InboxError."""
    level = logging.WARNING if options["quiet"] else logging.DEBUG if options["verbose"] else logging.INFO
    form = options["log_format"]
    logs.set_up(form, level)
    handler = choose_handler(options["handler"], options["exec"], shell=options["shell"])
    if options["trace"]:
        handler = traced(handler, path)
    try:
        shard = parse_shard(options["shard"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    new = not os.path.exists(path)
    with Inbox(
        path,
        max_inflight=options["concurrency"],
        max_drop_size=options["max_size"],
        **{name: options[name] for name in SAME},
    ) as inbox:
        if new:
            log.info("created inbox %s", inbox.path, extra={"event": "created"})
        stats = StatsObserver(inbox.layout, shard, handler.name, options["concurrency"])
        runner = Runner(
            inbox,
            handler,
            concurrency=options["concurrency"],
            max_attempts=options["max_attempts"],
            backoff=Backoff(options["retry_delay"], options["max_retry_delay"]),
            drain=options["drain"],
            once=options["once"],
            standby=options["standby"],
            stop_notice=lambda text: logs.line(form, text, "stopping"),
            observers=[stats],
        )
        runner.observers += service.observers(os.environ)
        if options["metrics"] or options["metrics_file"]:
            runner.observers += measured(
                inbox.path, shard, stats, options["metrics"], options["metrics_file"]
            )
        log.info(
            "consuming %s with %s (pid %d)",
            inbox.path,
            handler.name,
            os.getpid(),
            extra={"event": "consuming", "inbox": inbox.path, "handler": handler.name, "pid": os.getpid()},
        )
        with_bar = options["drain"] and form == "text" and sys.stderr and sys.stderr.isatty()
        tally = run_with_progress(runner) if with_bar else runner.run()
    log.info("stopped: %s", tally, extra={"event": "stopped", **asdict(tally)})
    if (tally.failed or tally.set_aside) and not runner.stopped_by_signal:
        return EXIT_FAILED
    return 0


def choose_handler(function: str | None, command: str | None, *, shell: bool | None) -> Handler:
    """Return the handler that the options name. Raises click.UsageError."""
    if (function is None) == (command is None):
        raise click.UsageError("give either --handler MODULE:FUNC or --exec COMMAND")
    if shell and command is None:
        raise click.UsageError("--shell needs --exec COMMAND")
    try:
        if function is not None:
            from ..worker.functions import load_function

            return load_function(function)
        from ..worker.commands import CommandHandler

        assert command is not None
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


def measured(
    path: str, shard: Shard, stats: StatsObserver, address: str | None, file: str | None
) -> list[Observer]:
    """Return the observer that tells metrics. Raises click.UsageError."""
    try:
        from ..worker.metrics import observers

        return observers(path, shard, stats, address, file)
    except (ImportError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def run_with_progress(runner: Runner) -> Tally:
    """Run a drain with a bar on the terminal: what is done, of that and what waits."""
    inbox = runner.inbox
    with click.progressbar(
        length=max(1, len(inbox)), label="draining", file=sys.stderr, show_pos=True
    ) as bar:

        def progress(tally: Tally) -> None:
            done = tally.acknowledged + tally.failed + tally.superseded
            if bar.length is not None and done > bar.length:
                bar.length = done + len(inbox)  # more has come meanwhile
            bar.update(done - bar.pos)

        runner.progress = progress
        return runner.run()
