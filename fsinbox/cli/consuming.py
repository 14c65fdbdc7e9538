"""`fsinbox consume`, from options to exit status."""

import logging
import os
import sys
from dataclasses import asdict
from typing import Any

import click

from ..consumer.ownership import Shard, parse_shard
from ..consumer.trust import warn_by_path
from ..inbox import Inbox
from ..worker import service
from ..worker.backoff import Backoff, Retries
from ..worker.ending import Tally
from ..worker.intake import Batching
from ..worker.observer import Observer, StatsObserver
from ..worker.outcome import Handler
from ..worker.pacing import Breaker, Gate, Pacing, Rate
from ..worker.renewing import Renewal, Restart
from ..worker.runner import Runner
from ..worker.saying import watch_output
from . import logs
from .exits import EXIT_FAILED
from .handling import bounds, handler_for

log = logging.getLogger("fsinbox")

SAME = (
    "codec settle max_settle drop_settle ignore drop_recursive watch poll_interval shard lease keep_done"
).split()
"""Options that Inbox has under the same names."""


def consume(path: str, **options: Any) -> int:
    """Run a consumer; return the exit status. Raises click.UsageError, InboxError."""
    restart = Restart(os.environ)
    log_options = logs.chosen(options)
    logs.set_up(log_options)
    watch_output(logs=log_options.output)
    handler = handler_for(path, log_options, options)
    if options["processes"]:
        options["concurrency"] = options["processes"]
    try:
        shard = parse_shard(options["shard"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    new = not os.path.exists(path)
    with opened(path, options) as inbox:
        if new:
            log.info("created inbox %s", inbox.path, extra={"event": "created"})
        runner = runner_of(inbox, handler, options)
        runner.tally.add(restart.before())
        runner.observers += [
            Announcing(inbox, handler, options["exec"] or ""),
            *observers(inbox, handler, shard, options),
        ]
        with_bar = options["drain"] and log_options.form == "text" and sys.stderr and sys.stderr.isatty()
        tally = run_with_progress(runner) if with_bar else runner.run()
    if runner.to_be_renewed:
        log.info("starting anew: %s", runner.renewal.reason, extra={"event": "renewed"})
        restart.now(tally)
    log.info("stopped: %s", tally, extra={"event": "stopped", **asdict(tally)})
    if (tally.failed or tally.set_aside) and not runner.stopped_by_signal:
        return EXIT_FAILED
    return 0


class Announcing(Observer):
    """Logs that this process is the consumer, once it is."""

    def __init__(self, inbox: Inbox, handler: Handler, command: str) -> None:
        self._inbox = inbox
        self._name = handler.name
        warn_by_path(inbox.layout, command)

    def began(self) -> None:
        path, pid = self._inbox.path, os.getpid()
        said = {"event": "consuming", "inbox": path, "handler": self._name, "pid": pid}
        log.info("consuming %s with %s (pid %d)", path, self._name, pid, extra=said)


def opened(path: str, options: dict[str, Any]) -> Inbox:
    """Open the inbox as the options say. Raises UnusableInbox."""
    return Inbox(
        path,
        max_inflight=options["concurrency"] * (options["batch"] or 1),
        max_drop_size=options["max_size"],
        **{name: options[name] for name in SAME},
    )


def runner_of(inbox: Inbox, handler: Handler, options: dict[str, Any]) -> Runner:
    """Return the runner that the options ask for, without observers."""
    return Runner(
        inbox,
        handler,
        concurrency=options["concurrency"],
        batching=Batching(options["batch"], options["batch_wait"]) if options["batch"] else None,
        retries=Retries(
            options["max_attempts"],
            options["give_up_after"] or None,
            Backoff(options["retry_delay"], options["max_retry_delay"]),
        ),
        pacing=Pacing(*gates(options)),
        expire=options["expire"] or None,
        timeout=options["timeout"] or None,
        cancel_superseded=options["cancel_superseded"],
        shutdown_timeout=options["shutdown_timeout"],
        renewal=Renewal() if options["processes"] else Renewal(**bounds(options)),
        drain=options["drain"],
        once=options["once"],
        standby=options["standby"],
        stop_notice=lambda text: logs.line(options["log_format"], text, "stopping"),
    )


def observers(inbox: Inbox, handler: Handler, shard: Shard, options: dict[str, Any]) -> list[Observer]:
    """Return who is told what the run does. Raises click.UsageError."""
    stats = StatsObserver(inbox.layout, shard, handler.name, options["concurrency"])
    found: list[Observer] = [stats, *service.observers(os.environ)]
    if options["on_failed"]:
        from ..worker.telling import OnFailed

        found.append(OnFailed(options["on_failed"], inbox.path))
    if options["metrics"] or options["metrics_file"]:
        found += measured(inbox.path, shard, stats, options["metrics"], options["metrics_file"])
    return found


def gates(options: dict[str, Any]) -> list[Gate]:
    """Return what decides when an element may be taken, beside that a handler is free."""
    found: list[Gate] = [Breaker(options["breaker"])] if options["breaker"] else []
    return [*found, Rate(options["rate"])] if options["rate"] else found


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
