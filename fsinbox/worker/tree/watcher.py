"""The loop of `fsinbox watch`: hints, debounce, rescans, and the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from time import monotonic, sleep, time_ns
from types import FrameType

from ...consumer.waker import Waker
from ..comings import signals_handled
from ..observer import Audience, Observer
from ..sleeping import seconds_until
from .events import Hint, Hints, Source, make_source
from .folders import Fingerprint, RootGone, Tree
from .queueing import Change, Left, Queue
from .scanning import Difference, Scanner
from .settling import Settling

log = logging.getLogger("fsinbox")

_SLICE = 0.2
"""Seconds for which a scan goes on before events and what is due are attended to."""

_PAUSE = 0.02
"""Seconds between two rounds at least: a file that is written to all the time must not keep us busy."""

_SCAN_SHARE = 10
"""Where a tree is polled, a scan is followed by a pause of as many times its own length."""

_LONGEST_BACKOFF = 60.0
"""Seconds between two tries to add, at most."""

_TOGETHER = 1000
"""Files that are queued together."""

File = tuple[Scanner, str]


@dataclass(frozen=True)
class Times:
    """Options, in seconds."""

    settle: float = 1.0
    """How long a file must lie still ..."""
    max_settle: float = 60.0
    """... and how long that is waited for."""
    rescan: float = 600.0
    """Between two rescans, where events tell of changes."""
    poll: float = 10.0
    """The same where none do."""


@dataclass
class Watcher:
    """One run. Call `run` in the main thread."""

    scanners: list[Scanner]
    queue: Queue
    times: Times = field(default_factory=Times)
    watch: str = "auto"
    """"auto", "events" or "poll"."""
    once: bool = False
    """End when all has been compared and queued."""
    observers: list[Observer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waker = Waker()
        self._hints = Hints(self.waker.set)
        self._settling: Settling[File] = Settling(self.times.settle, self.times.max_settle)
        self._of_tree = {scanner.tree: scanner for scanner in self.scanners}
        self._audience = Audience(self.observers)
        self._source: Source | None = None
        self._stopping = False
        self._scan: Iterator[object] | None = None
        self._scan_began = 0.0
        self._found: list[Change] = []
        self._next_scan = 0.0
        self._unwatched = False
        self._said_limit = False
        self._backoff = 0.0
        self._held_until = 0.0

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT, or once. Raises UnusableInbox; with `once` AddFailed, InboxFull."""
        with signals_handled(self._on_signal, self.waker, keep=lambda: False):
            self._run()

    def _run(self) -> None:
        try:
            if not self.once:
                self._start_source()
            self._audience.tell(lambda observer: observer.began())
            while not self._stopping:
                self.waker.clear()
                self._audience.tick()
                self._attend()
                if self._scan is None and self.once and not self._settling:
                    break
                if self._scan is None or self._held():
                    self.waker.wait(seconds_until(min(self._due(), self._audience.due())))
                    sleep(_PAUSE)
            self._audience.tell(lambda observer: observer.stopping())
        finally:
            self._audience.tell(lambda observer: observer.stopped())
            if self._source:
                self._source.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self.waker.set()

    # --- one round ------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Look where hints point to, queue what lies still, and go on with the scan, or begin one."""
        self._put_found()
        hints, lost = self._hints.taken()
        if lost:
            log.warning("events were lost: rescanning", extra={"event": "events_lost"})
            self._scan, self._next_scan = None, 0.0
        for hint in hints:
            self._follow(hint)
        self._put_found()
        self._queue_settled()
        now = monotonic()
        if any(scanner.root_gone for scanner in self.scanners):
            self._next_scan = min(self._next_scan, now + self.times.poll)
        if self._scan is None and now >= self._next_scan:
            self._scan, self._scan_began, self._unwatched = self._scan_all(), now, False
        if self._scan is not None and not self._held():
            self._scan_on(self._scan, now + _SLICE)

    def _scan_on(self, scan: Iterator[object], until: float) -> None:
        for _ in scan:
            if monotonic() >= until or self._stopping:
                return
        now = monotonic()
        took = now - self._scan_began
        self._scan = None
        polled = self._source is None or self._unwatched or any(one.root_gone for one in self.scanners)
        pause = max(self.times.poll, took * _SCAN_SHARE) if polled else self.times.rescan
        self._next_scan = float("inf") if self.once else now + pause
        log.debug("scanned in %.2f s", took, extra={"event": "scanned", "seconds": took})
        if self._said_limit and not self._unwatched:
            self._said_limit = False
            log.info("all folders are watched again", extra={"event": "watching_all"})

    def _scan_all(self) -> Iterator[None]:
        """Compare all trees; give a chance to stop after each folder."""
        for scanner in self.scanners:
            for differences in scanner.differences():
                self._find(scanner, differences)
                yield
        self._put_found()

    def _put_found(self) -> None:
        """Queue what was found. (Before events of the same files are followed.)"""
        found, self._found = self._found, []
        self._put(found)

    def _follow(self, hint: Hint) -> None:
        """Look where a hint points to."""
        scanner = self._of_tree[hint.tree]
        if hint.left and self._source:
            self._source.unwatch(hint.tree, hint.name)
        try:
            if hint.folder and (not hint.name or hint.tree.holds_folder(hint.name)):
                self._compare_below(scanner, hint.name)
                return
            self._changed(scanner, hint.name, scanner.tree.look(hint.name))
            if hint.folder:  # it was one, or it may have been
                self._compare_below(scanner, hint.name)
        except RootGone:
            self._next_scan = min(self._next_scan, monotonic())
        except OSError as error:
            self.queue.skip(hint.tree, hint.name, error.strerror)

    def _compare_below(self, scanner: Scanner, folder: str) -> None:
        for differences in scanner.differences(folder):
            self._find(scanner, differences)

    def _find(self, scanner: Scanner, differences: list[Difference]) -> None:
        """Have what lies still already queued, and wait for the rest until it does."""
        for name, seen in differences:
            if (scanner, name) in self._settling:
                continue  # its time will come
            if seen and scanner.tree.local and not self._held() and _age(seen) >= self._settling.settle:
                self._found.append(Change(scanner.tree, name, seen))
            else:
                self._settling.saw((scanner, name), seen, monotonic())
        if len(self._found) >= _TOGETHER:
            self._put_found()

    def _changed(self, scanner: Scanner, name: str, seen: Fingerprint | None) -> None:
        """An event told of a file, which looks like this."""
        file = (scanner, name)
        if file in self._settling or scanner.state.get(name) != seen:
            self._settling.saw(file, seen, monotonic())

    # --- the queue ------------------------------------------------------------------------------------

    def _queue_settled(self) -> None:
        if self._held():
            return
        changes = []
        for scanner, name in islice(self._settling.due(monotonic()), _TOGETHER):
            file = (scanner, name)
            try:
                seen = scanner.tree.look(name)
            except RootGone:  # a rescan tells
                self._settling.forget(file)
                continue
            except OSError as error:
                self._settling.forget(file)
                self.queue.skip(scanner.tree, name, error.strerror)
                continue
            if seen == scanner.state.get(name):
                self._settling.forget(file)
                continue
            hurry = self._settling.is_overdue(file, monotonic())
            if hurry:
                self._settling.forget(file)
            if hurry or self._settling.is_still(file, seen, monotonic()):
                changes.append(Change(scanner.tree, name, seen, hurry))
        self._put(changes)

    def _put(self, changes: list[Change]) -> None:
        """Queue changes; what cannot be is tried again."""
        if not changes:
            return
        left = self.queue.put(changes)
        for change in left.unsteady:
            self._settling.saw((self._of_tree[change.tree], change.name), change.seen, monotonic())
        if left.errors:
            self._hold_back(left, some=len(left.refused) < len(changes))
        else:
            self._backoff = 0.0

    def _hold_back(self, left: Left, *, some: bool) -> None:
        """The inbox did not take all: queue nothing for a while. It took `some`: for a short while."""
        error = left.errors[0]
        if self.once:
            raise error
        self._backoff = 1.0 if some else min(max(1.0, self._backoff * 2), _LONGEST_BACKOFF)
        self._held_until = monotonic() + self._backoff
        log.warning("%s: trying again in %.0f s", error, self._backoff, extra={"event": "add_failed"})
        for change in left.refused:
            file = (self._of_tree[change.tree], change.name)
            self._settling.postpone(file, change.seen, self._held_until)

    # --- waking up ------------------------------------------------------------------------------------

    def _due(self) -> float:
        """Return when (monotonic seconds) there is something to do, whatever comes; infinity: never."""
        due = self._settling.next_due()
        return max(self._held_until, min(self._next_scan, self._next_scan if due is None else due))

    def _held(self) -> bool:
        """Whether the inbox is left alone for now, for it did not take all."""
        return monotonic() < self._held_until

    def _start_source(self) -> None:
        """Choose between events and polling."""
        remote = [scanner.tree.root.path for scanner in self.scanners if not scanner.tree.local]
        if self.watch == "poll":
            return
        if self.watch == "auto" and remote:
            log.info(
                "%s is on a network file system, where other hosts' changes send no events: rescanning every "
                "%g s",
                remote[0],
                self.times.poll,
                extra={"event": "polling"},
            )
            return
        try:
            self._source = make_source(self._hints)
        except (OSError, ImportError) as error:
            text = "no file system events (%s): rescanning every %g s"
            log.warning(text, error, self.times.poll, extra={"event": "polling"})
            return
        for scanner in self.scanners:
            scanner.watch = partial(self._watch, self._source)

    def _watch(self, source: Source, tree: Tree, folder: str, fd: int) -> None:
        """Watch an open folder. Where that cannot be, rescans take the place of its events."""
        try:
            source.watch(tree, folder, fd)
            return
        except OSError as error:
            reason = error.strerror
        self._unwatched = True
        self._next_scan = min(self._next_scan, monotonic() + self.times.poll)
        if not self._said_limit:
            self._said_limit = True
            log.warning(
                "not every folder can be watched (%s): rescanning every %g s. A higher limit: "
                "sysctl fs.inotify.max_user_watches=1048576",
                reason,
                self.times.poll,
                extra={"event": "watch_limit"},
            )


def _age(seen: Fingerprint) -> float:
    """Return for how many seconds a file has not changed, by this host's clock."""
    return (time_ns() - seen.changed) / 1e9
