"""`fsinbox consume`, from options to exit status."""

import logging
import os
import sys
from typing import Any

import click

from ..inbox import Inbox
from ..lock import parse_shard
from ..worker.backoff import Backoff
from ..worker.observer import Keeper
from ..worker.outcome import Handler, HandlerError
from ..worker.runner import Runner, Tally
from . import EXIT_FAILED

log = logging.getLogger("fsinbox")


def consume(path: str, **options: Any) -> int:
    """Run a consumer; return the exit status. Raises click.UsageError, InboxError."""
    level = logging.WARNING if options["quiet"] else logging.DEBUG if options["verbose"] else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(level)
    logging.raiseExceptions = False  # a log that cannot be written (its disk is full) gets no tracebacks in its place
    handler = choose_handler(options["handler"], options["exec"], shell=options["shell"])
    try:
        shard = parse_shard(options["shard"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    new = not os.path.exists(path)
    with Inbox(
        path,
        codec=options["codec"],
        max_inflight=options["concurrency"],
        settle=options["settle"],
        max_settle=options["max_settle"],
        drop_settle=options["drop_settle"],
        max_drop_size=options["max_size"],
        watch=options["watch"],
        poll_interval=options["poll_interval"],
        shard=options["shard"],
        lease=options["lease"],
    ) as inbox:
        if new:
            log.info("created inbox %s", inbox.path)
        runner = Runner(
            inbox,
            handler,
            concurrency=options["concurrency"],
            max_attempts=options["max_attempts"],
            backoff=Backoff(options["retry_delay"], options["max_retry_delay"]),
            drain=options["drain"],
            once=options["once"],
            standby=options["standby"],
            observers=[Keeper(inbox.layout, shard, handler.name, options["concurrency"])],
        )
        log.info("consuming %s with %s (pid %d)", inbox.path, handler.name, os.getpid())
        tally = run_with_progress(runner) if options["drain"] and sys.stderr.isatty() else runner.run()
    log.info("stopped: %s", tally)
    if tally.failed and not runner.stopped_by_signal:
        return EXIT_FAILED
    return 0


def choose_handler(function: str | None, command: str | None, *, shell: bool) -> Handler:
    """Return the handler the options name. Raises click.UsageError."""
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


def run_with_progress(runner: Runner) -> Tally:
    """Run a drain with a bar on the terminal: what is done, of that and what waits."""
    inbox = runner.inbox
    with click.progressbar(length=max(1, len(inbox)), label="draining", file=sys.stderr, show_pos=True) as bar:

        def progress(tally: Tally) -> None:
            done = tally.acknowledged + tally.failed + tally.superseded
            if bar.length is not None and done > bar.length:
                bar.length = done + len(inbox)  # more has come meanwhile
            bar.update(done - bar.pos)

        runner.progress = progress
        return runner.run()
