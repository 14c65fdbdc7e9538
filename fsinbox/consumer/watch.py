"""Asleep until something changes: inotify while idle, polling where the kernel cannot tell.

What is peculiar to us, and why it is not simply an Observer with a handler:

 - watchdog's emitter asks for IN_MOVED_FROM and holds each such event back for half a second, with everything
   queued behind it (inotify_move_event_grouper.py): a consumer that takes elements out of pending/ would wake
   late. So we hang on its InotifyFD, one level below, and ask for nothing but arrivals. That also tells us of
   queue overflows, and spares two of the three threads an event passes through.
 - It watches only while armed, that is while the consumer has nothing to do: no events to read while it
   works.
 - On a file system that several hosts change no event comes for the others' changes; there we poll. Elsewhere
   a probe of our own (a file renamed into pending/) must be seen before we trust events.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..store.files import write_whole
from ..store.layout import Layout

log = logging.getLogger("fsinbox")

RESCAN = 30.0
"""Seconds after which even an idle consumer with working events looks again: for what an overflow may have
lost."""

PROBE_PATIENCE = 0.2
"""Seconds within which the event of our own probe must arrive."""

_SHORTEST_POLL = 0.02

_POLLING = {"event": "polling"}


class Waker:
    """Wakes one sleeper, from any thread or signal handler (SimpleQueue.put is reentrant; an Event's lock is
    not)."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()
        self.relay: Callable[[], object] | None = None
        """Called at each wake as well, in the waking thread: for a sleeper that sleeps elsewhere
        (asyncio)."""

    def set(self) -> None:
        """Wake the sleeper, now or when it next sleeps."""
        self._queue.put(None)
        relay = self.relay
        if relay:
            relay()

    def clear(self) -> None:
        """Forget every wake so far."""
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                return

    def wait(self, timeout: float | None) -> bool:
        """Sleep until woken, at most `timeout` seconds (None: no limit). Tell whether it was woken."""
        try:
            self._queue.get(timeout=None if timeout is None else max(0.0, timeout))
        except Empty:
            return False
        return True


class Source(Protocol):
    """Where events come from."""

    def arm(self) -> None:
        """Call back for every arrival from now on."""

    def add_folder(self, fd: int) -> None:
        """Until `disarm`, call back for those in one more open folder, too. Raises OSError."""

    def disarm(self) -> None:
        """Stop calling back."""

    def close(self) -> None:
        """Give everything back."""


class Watch:
    """Sleeps until there may be something new in pending/ or drop/."""

    def __init__(
        self, layout: Layout, moved_in: Callable[[str], object], *, mode: str = "auto", poll: float = 1.0
    ) -> None:
        """`moved_in` is called with each name that was renamed into drop/. `mode`: "auto", "events" or
        "poll".

        `poll` is the longest interval between polls, in seconds: the first is 20 ms, and each that finds
        nothing is followed by one half as long again. Nothing is watched before the first armed().
        """
        self._layout = layout
        self._moved_in = moved_in
        self._mode = mode
        self._longest_poll = poll
        self._interval = _SHORTEST_POLL
        self._source: Source | None = None
        self._started = False
        self._armed = False
        self.waker = Waker()

    @property
    def polling(self) -> bool:
        """Whether it polls, for want of events. Decided at the first armed()."""
        return self._source is None

    @contextmanager
    def armed(self) -> Iterator[Watch]:
        """While this lasts, every arrival wakes the sleeper. Look for what is there already *after*
        entering."""
        self.start()
        if self._source:
            try:
                self._source.arm()
            except OSError as error:
                self._give_up(self._source, error)
        self._armed = True
        try:
            yield self
        finally:
            self._armed = False
            if self._source:
                self._source.disarm()

    def add_folder(self, fd: int) -> None:
        """While it is armed, have arrivals in this open folder wake the sleeper, too. List it *after*
        this."""
        if self._armed and self._source:
            try:
                self._source.add_folder(fd)
            except OSError as error:
                self._give_up(self._source, error)

    def _give_up(self, source: Source, error: OSError) -> None:
        """From now on poll."""
        self._say_polling(error)
        self._source = None
        source.close()

    def sleep(self, limit: float | None) -> None:
        """Sleep until something may have arrived, or woken, at most `limit` seconds."""
        self.waker.wait(self.patience(limit))

    def patience(self, limit: float | None) -> float:
        """Return for how many seconds to sleep now, at most `limit`: until the next poll, or the next
        rescan."""
        longest = RESCAN
        if self._armed and self.polling:
            longest = self._interval
            self._interval = min(self._interval * 1.5, self._longest_poll)
        return longest if limit is None else min(limit, longest)

    def found(self) -> None:
        """Something has arrived: poll more often again, for more may come."""
        self._interval = _SHORTEST_POLL

    def close(self) -> None:
        """Stop watching."""
        source, self._source = self._source, None
        if source:
            source.close()

    def start(self) -> None:
        """Choose between events and polling, once. Takes up to PROBE_PATIENCE seconds."""
        if self._started:
            return
        self._started = True
        if self._mode == "poll":
            return
        sharing = self._layout.sharing
        if self._mode == "auto" and sharing and not sharing.local:
            log.info(
                "%s is on a network file system, where other hosts' changes send no events: polling",
                self._layout.path,
                extra=_POLLING,
            )
            return
        try:
            source: Source = make_source(self._layout, self.waker.set, self._moved_in)
        except (OSError, ImportError) as error:
            self._say_polling(error)
            return
        if probe(self._layout, source, self.waker):
            self._source = source
        else:
            source.close()
            log.warning(
                "the file system of %s sends no events (a probe was not seen within %s s): polling",
                self._layout.path,
                PROBE_PATIENCE,
                extra=_POLLING,
            )

    def _say_polling(self, error: Exception) -> None:
        log.warning("no file system events for %s (%s): polling", self._layout.path, error, extra=_POLLING)


def make_source(layout: Layout, wake: Callable[[], object], moved_in: Callable[[str], object]) -> Source:
    """Return the best source of events on this system. Raises OSError (no watches left) or ImportError."""
    if sys.platform == "linux":
        return InotifySource(layout, wake, moved_in)
    return ObserverSource(layout, wake)


def probe(layout: Layout, source: Source, waker: Waker) -> bool:
    """Rename a file into pending/ and tell whether its event comes."""
    name = f".probe-{os.getpid()}"  # hidden: nobody takes it for an element
    waker.clear()
    try:
        source.arm()
        write_whole(layout, "pending", name, b"")
        seen = waker.wait(PROBE_PATIENCE)
        os.unlink(name, dir_fd=layout.folder("pending"))
    except OSError as error:
        log.warning("cannot probe %s for events: %s", layout.path, error, extra={"event": "probe_failed"})
        return False
    finally:
        source.disarm()
    return seen


class InotifySource:
    """Arrivals from inotify, through watchdog's InotifyFD."""

    def __init__(self, layout: Layout, wake: Callable[[], object], moved_in: Callable[[str], object]) -> None:
        from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyFD, Mask

        self._wake = wake
        self._moved_in = moved_in
        self._id = CallbackId(id(self))
        arrival = InotifyConstants.IN_MOVED_TO
        self._moved_to = arrival
        # pending/ only ever gets renames; into drop/ people also copy and link.
        self._of_drop = Mask(
            arrival
            | InotifyConstants.IN_CLOSE_WRITE
            | InotifyConstants.IN_CREATE
            | InotifyConstants.IN_ONLYDIR
        )
        self._wanted = {
            "pending": Mask(arrival | InotifyConstants.IN_ONLYDIR),
            "drop": self._of_drop,
        }
        # By descriptor: the folder that was opened, wherever its path leads by now.
        self._paths = {folder: f"/proc/self/fd/{layout.folder(folder)}".encode() for folder in self._wanted}
        self._watches: dict[str, Any] = {}
        self._more: dict[tuple[int, int], Any] = {}
        self._drop: Any = None
        self._reader = InotifyFD()
        self._reader.start()
        try:
            os.set_inheritable(self._reader._inotify_fd, False)  # watchdog leaves it open in children
        except BaseException:
            self.close()
            raise

    def arm(self) -> None:
        for folder, mask in self._wanted.items():
            if folder not in self._watches:
                self._watches[folder] = self._reader.add_callback(self._paths[folder], mask, self, self._id)
        self._drop = self._watches["drop"]

    def disarm(self) -> None:
        watches, self._watches = [*self._watches.values(), *self._more.values()], {}
        self._more = {}
        self._reader.remove_callbacks([(watch, self._id) for watch in watches])

    def add_folder(self, fd: int) -> None:
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if identity not in self._more:
            path = f"/proc/self/fd/{fd}".encode()
            self._more[identity] = self._reader.add_callback(path, self._of_drop, self, self._id)

    def close(self) -> None:
        self._reader.stop()
        self._reader.join()

    # What InotifyFD calls, from its thread:

    def on_event(self, event: Any) -> None:
        if event.wd == self._drop and event.mask & self._moved_to:
            self._moved_in(os.fsdecode(event.name))
        self._wake()

    def on_watch_deleted(self, wd: Any) -> None:
        for identity in [identity for identity, watch in list(self._more.items()) if watch == wd]:
            self._more.pop(identity, None)  # another folder may get its inode
        self._wake()

    def on_queue_overflow(self) -> None:
        self._wake()


class ObserverSource:
    """Arrivals from watchdog's own observer, whatever it is on this system (FSEvents, kqueue)."""

    def __init__(self, layout: Layout, wake: Callable[[], object]) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                wake()

        self._handler = Handler()
        self._paths = [f"{layout.path}/{folder}" for folder in ("pending", "drop")]
        self._observer = Observer()
        self._observer.start()

    def arm(self) -> None:
        for path in self._paths:
            self._observer.schedule(self._handler, path, recursive=path.endswith("/drop"))

    def add_folder(self, fd: int) -> None:
        """drop/ is watched with all that is in it."""

    def disarm(self) -> None:
        self._observer.unschedule_all()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
