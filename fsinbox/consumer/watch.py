"""Asleep until something changes: inotify while idle, polling where the kernel cannot tell.

What is peculiar to us, and why it is not simply an Observer with a handler:

 - watchdog's emitter asks for IN_MOVED_FROM and holds each such event back for half a second, with everything
   queued behind it (inotify_move_event_grouper.py): a consumer that takes elements out of pending/ would wake
   late. So we stand on its InotifyFD, one level below, and ask for nothing but arrivals. It is a thread that
   we never start: whoever sleeps polls its descriptor, and reads. No other thread passes an event on.
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
from typing import Any, Protocol

from ..store.files import write_whole
from ..store.layout import Layout
from .waker import Waker

log = logging.getLogger("fsinbox")

RESCAN = 30.0
"""Seconds after which even an idle consumer with working events looks again: for what an overflow may have
lost."""

PROBE_PATIENCE = 0.2
"""Seconds within which the event of our own probe must arrive."""

_SHORTEST_POLL = 0.02

_MOST = 16_384
"""Bytes of events that are read at once."""

_POLLING = {"event": "polling"}


class Source(Protocol):
    """Where events come from."""

    @property
    def fd(self) -> int | None:
        """A descriptor at which there is something to read at each arrival; None: it wakes by itself."""

    def arm(self) -> None:
        """Tell of every arrival from now on. Raises OSError."""

    def add_folder(self, fd: int) -> None:
        """Until `disarm`, tell of those in one more open folder, too. Raises OSError."""

    def read(self) -> None:
        """Read all that is at the descriptor. Raises OSError."""

    def disarm(self) -> None:
        """Tell of nothing more."""

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
        self._closed = False
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
        self._armed = True
        source = self._source
        try:
            if source:
                try:
                    source.arm()
                except OSError as error:
                    self._give_up(error)
            yield self
        finally:
            self._armed = False
            if source:
                source.disarm()
                if source is not self._source:
                    source.close()  # now, for nobody waits for its descriptor any more
            if self._closed:
                self.waker = Waker.of_nobody()  # (a traceback may hold us, and would hold the pipe)

    def add_folder(self, fd: int) -> None:
        """While it is armed, have arrivals in this open folder wake the sleeper, too. List it *after*
        this."""
        source = self._source
        if self._armed and source:
            try:
                source.add_folder(fd)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """From now on poll."""
        self._say_polling(error)
        self._source = None  # it is closed at the end of armed()

    def sleep(self, limit: float | None) -> None:
        """Sleep until something may have arrived, or woken, at most `limit` seconds."""
        source = self._source
        self.waker.wait(self.patience(limit), source.fd if source else None)
        self._read(source)

    def _read(self, source: Source | None) -> None:
        if source:
            try:
                source.read()
            except OSError as error:
                self._give_up(error)

    @property
    def descriptors(self) -> list[int]:
        """What there is something to read at when `sleep` would end: for a sleeper that sleeps elsewhere
        (asyncio), and calls `noticed` then."""
        source = self._source
        return [self.waker.reader, *([source.fd] if source and source.fd is not None else [])]

    def noticed(self) -> None:
        """Read what is there."""
        self.waker.wait(0)
        self._read(self._source)

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
        """Stop watching. Who sleeps is woken, and closes what it waits for."""
        source, self._source, self._closed = self._source, None, True
        self.waker.set()
        if not self._armed:
            self.waker = Waker.of_nobody()
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
        why = str(error)  # (not itself: see probe)
        log.warning("no file system events for %s (%s): polling", self._layout.path, why, extra=_POLLING)


def make_source(layout: Layout, wake: Callable[[], object], moved_in: Callable[[str], object]) -> Source:
    """Return the best source of events on this system. `wake`: what one without a descriptor calls. Raises
    OSError (no watches left) or ImportError."""
    if sys.platform == "linux":
        return InotifySource(layout, moved_in)
    return ObserverSource(layout, wake)


def probe(layout: Layout, source: Source, waker: Waker) -> bool:
    """Rename a file into pending/ and tell whether its event comes."""
    name = f".probe-{os.getpid()}"  # hidden: nobody takes it for an element
    waker.clear()
    try:
        source.arm()
        write_whole(layout, "pending", name, b"")
        seen = waker.wait(PROBE_PATIENCE, source.fd)
        os.unlink(name, dir_fd=layout.folder("pending"))
    except OSError as error:
        # (By its text: whoever keeps the record would keep this frame, and with it what is to be closed.)
        log.warning(
            "cannot probe %s for events: %s", layout.path, str(error), extra={"event": "probe_failed"}
        )
        return False
    finally:
        source.disarm()
    return seen


class InotifySource:
    """Arrivals from inotify, through watchdog's InotifyFD."""

    def __init__(self, layout: Layout, moved_in: Callable[[str], object]) -> None:
        from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask

        self._event = InotifyEvent
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
        self._reader._is_reading = False  # its thread does not run: so close() closes at once
        self.fd: int = self._reader._inotify_fd
        self._ended = InotifyConstants.IN_IGNORED
        try:
            os.set_inheritable(self.fd, False)  # watchdog leaves it open in children
            os.set_blocking(self.fd, False)
        except BaseException:
            self.close()
            raise

    def arm(self) -> None:
        for folder, mask in self._wanted.items():
            if folder not in self._watches:
                self._watches[folder] = self._reader.add_callback(self._paths[folder], mask, self, self._id)
        self._drop = self._watches["drop"]

    def read(self) -> None:
        try:
            events = os.read(self.fd, _MOST)  # (what does not fit in ends the next sleep)
        except BlockingIOError:
            return
        for wd, mask, cookie, name in self._reader._parse_event_buffer(events):
            if wd == self._drop and mask & self._moved_to:
                self._moved_in(os.fsdecode(name))
            elif mask & self._ended:
                self._reader.handle_event(self._event(wd, mask, cookie, name))

    def disarm(self) -> None:
        self._read_quietly()  # for what was moved into drop/
        watches, self._watches = [*self._watches.values(), *self._more.values()], {}
        self._more = {}
        self._reader.remove_callbacks([(watch, self._id) for watch in watches])
        self._read_quietly()  # that they have ended: it would end the next sleep

    def _read_quietly(self) -> None:
        try:
            self.read()
        except OSError:
            pass  # who sleeps next is told

    def add_folder(self, fd: int) -> None:
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if identity not in self._more:
            path = f"/proc/self/fd/{fd}".encode()
            self._more[identity] = self._reader.add_callback(path, self._of_drop, self, self._id)

    def close(self) -> None:
        self._reader.close()

    # What InotifyFD calls, of what `read` passes to it:

    def on_watch_deleted(self, wd: Any) -> None:
        for identity in [identity for identity, watch in self._more.items() if watch == wd]:
            del self._more[identity]  # another folder may get its inode

    def on_event(self, event: Any) -> None:
        """Not used: see `read`."""

    def on_queue_overflow(self) -> None:
        """Not used."""


class ObserverSource:
    """Arrivals from watchdog's own observer, whatever it is on this system (FSEvents, kqueue)."""

    fd = None

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

    def read(self) -> None:
        """Its own threads do."""

    def disarm(self) -> None:
        self._observer.unschedule_all()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
