"""The command `consume`: its options, in sections. What they do is in consuming."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from .exits import EXIT_USAGE
from .options import (
    COUNT,
    DURATION,
    RATE,
    SIZE,
    Count,
    Duration,
    Failure,
    Pattern,
    chosen,
    inbox_option,
    outranked,
)
from .variables import complaint, unknown

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Sectioned(click.Command):
    """Shows its options in sections: those of `section`, the others at the end."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        ordered = sorted(self.get_params(ctx), key=lambda one: not hasattr(one, "section"))
        shown = [(one, record) for one in ordered if (record := one.get_help_record(ctx))]
        for parameter, record in shown:
            sections.setdefault(getattr(parameter, "section", "Other options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str, *options: Decorator) -> Decorator:
    """Add options to a command, under a title of its help."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].section = title  # type: ignore[attr-defined]
        return command

    return add


@click.command(cls=Sectioned)
@inbox_option
@section(
    "What handles an element",
    click.option(
        "--handler", metavar="MODULE:FUNC", help="Call func(key, value) or func(element), plain or async."
    ),
    click.option(
        "--exec",
        metavar="COMMAND",
        help="Run COMMAND for each; {} becomes the payload's path, {fd} a descriptor of it. No shell.",
    ),
    click.option(
        "--shell/--no-shell",
        default=None,
        help="With --exec: have /bin/sh run COMMAND; or take its shell syntax literally.  "
        "[default: refuse it]",
    ),
    click.option(
        "--codec",
        type=click.Choice(["json", "text", "bytes"]),
        default="json",
        show_default=True,
        help="What a value is.",
    ),
    click.option(
        "--concurrency",
        "-c",
        type=Count(1),
        default=1,
        show_default=True,
        help="Handlers at once: threads, coroutines or commands.",
    ),
    click.option(
        "--processes",
        type=COUNT,
        default=0,
        help="Call the function in processes instead of threads: for what computes, crashes or hangs.",
    ),
    click.option(
        "--batch",
        type=Count(1),
        help="Hand out up to so many elements at once: func(elements); for a command {} is all paths, and "
        "standard input has a JSON object a line.",
    ),
    click.option(
        "--batch-wait",
        type=DURATION,
        default=0.0,
        help="How long to wait for a batch to become full (1s).  [default: hand out what is there]",
    ),
)
@section(
    "How long it may take",
    click.option(
        "--timeout",
        type=DURATION,
        help="End what works on an element longer than that (10m), and count a failed attempt. For commands, "
        "async functions and --processes.",
    ),
    click.option(
        "--cancel-superseded",
        is_flag=True,
        help="As soon as a newer value of its key waits, end what works on the old one, uncounted. The same.",
    ),
)
@section(
    "When it fails",
    click.option(
        "--max-attempts",
        type=COUNT,
        default=45,
        show_default=True,
        help="Attempts before an element moves to failed/; by default a day's. 0: no bound.",
    ),
    click.option(
        "--give-up-after",
        type=DURATION,
        help="Move an element to failed/ when an attempt fails and it was queued longer ago (3d).",
    ),
    click.option(
        "--retry-delay",
        type=Duration("1ms", "7d"),
        default="1s",
        show_default=True,
        help="First back-off; it doubles with each attempt.",
    ),
    click.option(
        "--max-retry-delay",
        type=Duration("1ms", "400000s"),
        default="1h",
        show_default=True,
        help="Longest back-off.",
    ),
    click.option(
        "--breaker",
        type=COUNT,
        default=20,
        show_default=True,
        help="When so many elements in a row have failed, try one at a time, with pauses of up to a minute, "
        "until one is done. 0: never.",
    ),
    click.option(
        "--on-failed",
        metavar="COMMAND",
        help="Have a shell run COMMAND when an element moves to failed/; $FSINBOX_KEY, $FSINBOX_REASON.",
    ),
)
@section(
    "What is taken, and when",
    click.option(
        "--rate",
        type=RATE,
        help="Take at most this many: 10/s, 100/m, 1000/h, 1/30s; evenly, a second's worth at once.",
    ),
    click.option(
        "--expire",
        type=DURATION,
        help="What was queued longer ago (1d) goes to failed/ as expired, without a try.",
    ),
    click.option(
        "--settle",
        type=DURATION,
        default=0.0,
        help="Debounce: take a key once it was left alone for this time.  [default: at once]",
    ),
    click.option(
        "--max-settle",
        type=DURATION,
        default="1m",
        show_default=True,
        help="... but never longer than this.",
    ),
    click.option(
        "--drop-settle",
        type=DURATION,
        help="A file in drop/ whose writer may not be done must lie still for this time.  "
        "[default: 1s; 5s where the kernel cannot tell]",
    ),
    click.option(
        "--ignore",
        type=Pattern(),
        multiple=True,
        help="Leave such names in drop/ alone, too: as in a .gitignore. Repeatable.",
    ),
    click.option(
        "--drop-recursive",
        is_flag=True,
        help="Look into subfolders of drop/, too: drop/a/b.pdf is of key a/b.pdf.",
    ),
    click.option(
        "--max-size",
        type=SIZE,
        default="1G",
        show_default=True,
        help="Largest file ingested from drop/.",
    ),
    click.option(
        "--watch",
        type=click.Choice(["auto", "events", "poll"]),
        default="auto",
        show_default=True,
        help="How to notice arrivals.",
    ),
    click.option(
        "--poll-interval",
        type=Duration("10ms"),
        default="1s",
        show_default=True,
        help="Longest time between polls.",
    ),
    click.option(
        "--keep-done",
        type=COUNT,
        default=0,
        show_default=True,
        help="Keep so many of the last acknowledged in done/, to replay.",
    ),
)
@section(
    "When to stop",
    click.option(
        "--drain", "--burst", "drain", is_flag=True, help="Stop when nothing waits, back-offs included."
    ),
    click.option("--once", is_flag=True, help="Stop after one element."),
    click.option(
        "--shutdown-timeout",
        type=DURATION,
        help="How long to wait after SIGTERM or SIGINT for what runs; then it is requeued, uncounted.  "
        "[default: until it is done]",
    ),
    click.option(
        "--max-elements",
        type=COUNT,
        default=0,
        help="Start anew after so many elements (each process of --processes does): for handlers that leak.  "
        "[default: never]",
    ),
    click.option(
        "--max-memory",
        type=SIZE,
        default=0,
        help="Start anew when more memory is in use than that (512M).  [default: never]",
    ),
)
@section(
    "More than one consumer",
    click.option(
        "--shard",
        metavar="I/N",
        default="1/1",
        show_default=True,
        help="Take the I-th of N parts of the keys only.",
    ),
    click.option(
        "--lease",
        type=Duration("1s", "1d"),
        default="15s",
        show_default=True,
        help="Shared by several hosts: time without a heartbeat after which another consumer may take over.",
    ),
    click.option(
        "--standby",
        is_flag=True,
        help="If there is a consumer, wait until it ends or is dead, then take over.",
    ),
)
@section(
    "What it says",
    click.option("--quiet", "-q", is_flag=True, help="Only say what went wrong."),
    click.option("--verbose", "-v", is_flag=True, help="Say what happens to each element."),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="Log from this level on; what handlers and libraries log, too.",
    ),
    click.option(
        "--log-output",
        is_flag=True,
        help="Log what handlers and commands print, a line each, with key and attempt.  "
        "[default: pass it on]",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="What the log on stderr is.",
    ),
    click.option(
        "--metrics",
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus there; HOST is the loopback unless given.",
    ),
    click.option(
        "--metrics-file",
        metavar="FILE",
        help="Keep metrics in FILE, for node_exporter: every 15 seconds, and at the end.",
    ),
    click.option(
        "--trace", is_flag=True, help="Make an OpenTelemetry span for each element, in its producer's trace."
    ),
)
def consume(inbox: str | None, **options: Any) -> None:
    """Process elements until stopped.

    A handler that returns (a command that exits with 0) acknowledges. One that raises is tried again later,
    after an exponential back-off, while others go on; after --max-attempts, a day by default, the element
    moves to failed/ with the traceback. A command may exit with 75 to be tried again uncounted, and with 64,
    65 or 78 to move the element to failed/ at once.

    SIGTERM and SIGINT finish what is running; a second one requeues it at once. Exit status: 0 stopped or
    drained, 1 something went to failed/ (with --drain or --once), 2 usage or handler, 3 inbox unusable, 4 it
    has a consumer (or another one has taken over).
    """
    strangers = unknown()
    if strangers:
        raise Failure("; ".join(map(complaint, strangers)), EXIT_USAGE)
    from .consuming import consume as run_consumer

    options |= dict.fromkeys(outranked("handler", "exec"))
    sys.exit(run_consumer(chosen(inbox), **options))
