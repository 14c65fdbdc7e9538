"""`fsinbox watch`: a tree is kept in an inbox."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .exits import EXIT_FAILED, EXIT_FULL, EXIT_UNUSABLE
from .options import DURATION, Failure, chosen, create_option, inbox_option

if TYPE_CHECKING:
    from ..inbox import Inbox
    from ..worker.tree.folders import Tree
    from ..worker.tree.state import State
    from ..worker.tree.watcher import Watcher


@click.command()
@inbox_option
@create_option
@click.option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    help="Only files that match, as in .gitignore; may be repeated.  [default: all]",
)
@click.option(
    "--ignore",
    metavar="PATTERN",
    multiple=True,
    help="No files or folders that match, as in .gitignore; may be repeated.",
)
@click.option(
    "--payload",
    type=click.Choice(["json", "path", "file"]),
    default="json",
    show_default=True,
    help="What a value is: JSON with the path and whether it was removed; the path; or the content.",
)
@click.option("--once", is_flag=True, help="Queue what has changed since the last run, and end.")
@click.option(
    "--settle",
    type=DURATION,
    default="1s",
    show_default=True,
    help="Queue a file when it has lain still for this long ...",
)
@click.option(
    "--max-settle",
    type=DURATION,
    default="1m",
    show_default=True,
    help="... or after this long, if it changes all the time.",
)
@click.option(
    "--rescan", type=DURATION, default="10m", show_default=True, help="Time between two rescans of the tree."
)
@click.option(
    "--watch",
    type=click.Choice(["auto", "events", "poll"]),
    default="auto",
    show_default=True,
    help="How to notice changes.",
)
@click.option(
    "--poll-interval",
    type=DURATION,
    default="10s",
    show_default=True,
    help="Time between two rescans where no events tell of changes.",
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Keep what was queued last in DIR, a folder of its own.  [default: watch/ in the inbox]",
)
@click.option("--quiet", "-q", is_flag=True, help="Only say what went wrong.")
@click.option("--verbose", "-v", is_flag=True, help="Say which files are queued.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What the log on stderr is.",
)
@click.argument("dirs", nargs=-1, required=True, metavar="[NAME=]DIR...", type=click.Path(file_okay=False))
def watch(inbox: str | None, create: bool, dirs: tuple[str, ...], **options: Any) -> None:
    """Queue each file of DIR when it changes.

    That is when it is created, changed or removed. The key is the file's path, relative to DIR. Of several
    DIRs it begins with NAME/, or with the last part of DIR. Only the newest state of a file waits. Events say
    at once where to look. At the start, and every --rescan, DIR is compared with what was queued last, so
    that nothing is missed that changed meanwhile. Symlinks are not followed, and an inbox in DIR is left out.

    SIGTERM and SIGINT stop it. Exit status: 0 stopped, or done with --once; 1 a file was skipped (with
    --once); 2 usage; 3 the inbox cannot be used, or with --once DIR cannot; 4 another `watch` queues DIR
    there; 6 the inbox is full (with --once).
    """
    import logging

    from ..inbox import Inbox
    from ..worker.tree.opening import WrongFolder, open_trees
    from ..worker.tree.patterns import Patterns
    from ..worker.tree.roots import parse_roots
    from . import logs

    level = logging.WARNING if options["quiet"] else logging.DEBUG if options["verbose"] else logging.INFO
    logs.set_up(logs.Logs(options["log_format"], level))
    try:
        roots = parse_roots(list(dirs))
        patterns = Patterns(options["include"], options["ignore"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with Inbox(chosen(inbox), codec="bytes", create=create) as target:
        try:
            trees = open_trees(target, roots, patterns, options["state"])
        except WrongFolder as error:
            raise click.UsageError(str(error)) from error
        try:
            sys.exit(_run(target, trees, options))
        finally:
            for state in trees.values():
                state.close()


def _run(inbox: Inbox, trees: dict[Tree, State], options: dict[str, Any]) -> int:
    """Watch until stopped; return the exit status. Raises InboxError, Failure."""
    import logging
    import os

    from ..store.errors import InboxFull
    from ..worker import service

    log = logging.getLogger("fsinbox")
    watcher = _watcher(inbox, trees, options)
    watcher.observers += service.observers(os.environ, "watching", watcher.queue.counts)
    paths = ", ".join(scanner.tree.root.path for scanner in watcher.scanners)
    log.info("watching %s for %s", paths, inbox.path, extra={"event": "watching", "inbox": inbox.path})
    try:
        watcher.run()
    except InboxFull as error:
        raise Failure(str(error), EXIT_FULL) from error
    counts, skipped = watcher.queue.counts, watcher.queue.skipped
    told = ", ".join(f"{count} {name}" for name, count in {**counts, "skipped": skipped}.items())
    log.info("stopped: %s", told, extra={"event": "stopped", **counts, "skipped": skipped})
    if not options["once"]:
        return 0
    gone = [scanner.tree.root.path for scanner in watcher.scanners if scanner.root_gone]
    if gone:
        raise Failure(f"cannot look into {', '.join(gone)}: check the path, or mount it", EXIT_UNUSABLE)
    return EXIT_FAILED if skipped else 0


def _watcher(inbox: Inbox, trees: dict[Tree, State], options: dict[str, Any]) -> Watcher:
    from ..worker.tree.queueing import Queue
    from ..worker.tree.scanning import Scanner
    from ..worker.tree.watcher import Times, Watcher

    queue = Queue(inbox, trees, options["payload"])
    times = Times(
        options["settle"],
        options["max_settle"],
        max(options["rescan"], 1),
        max(options["poll_interval"], 0.1),
    )
    scanners = [Scanner(tree, state, queue) for tree, state in trees.items()]
    return Watcher(scanners, queue, times, watch=options["watch"], once=options["once"])
