"""How whoever waits for an element sleeps: until something arrives, or may be taken by itself."""

from __future__ import annotations

from _thread import RLock, get_ident
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from ..store.errors import UnusableInbox
from ..store.handle import Handle

if TYPE_CHECKING:
    from .consumer import Consumer
    from .waker import Waker
    from .watch import Watch

Found = TypeVar("Found")


class Sleeper:
    """The sleep of one open inbox. `consumer`: returns its consumer, once it is one."""

    def __init__(
        self, handle: Handle, consumer: Callable[[], Consumer | None], mode: str, poll: float
    ) -> None:
        """`mode` and `poll` (seconds): how arrivals are noticed, see Inbox."""
        self._handle = handle
        self._consumer = consumer
        self._mode = mode
        self._poll = poll
        self._lock = RLock()
        self._watch: Watch | None = None
        self.quiet = 0
        """The thread (its identifier) in which the end of an element wakes nobody: while it runs a loop that
        ends one, and itself takes the next."""

    def watch(self) -> Watch:
        """Return what notices arrivals. Raises WrongState if the inbox was closed, UnusableInbox."""
        layout = self._handle.current()
        watch = self._watch
        if watch is None:
            from .watch import Watch

            try:
                watch = Watch(layout, self._moved_in, mode=self._mode, poll=self._poll)
            except OSError as error:
                raise UnusableInbox(
                    f"cannot wait for what comes to inbox {layout.path}: {error}: nothing was lost; "
                    "mend that, try again"
                ) from error
            self._watch = watch = self._watch or watch  # another thread was quicker
        return watch

    @property
    def waker(self) -> Waker:
        """What wakes the sleeper; `set()` it from any thread or signal handler."""
        return self.watch().waker

    def listening(self) -> AbstractContextManager[Watch]:
        """While this lasts, arrivals are noticed: a context manager that gives the Watch."""
        watch = self.watch()
        watch.start()
        return watch.armed()

    def watch_folder(self, fd: int) -> None:
        """Notice arrivals in one more open folder, for this sleep."""
        if watch := self._watch:
            watch.add_folder(fd)

    def wake(self) -> None:
        """Have the sleeper look again."""
        if watch := self._watch:
            watch.waker.set()

    def ended(self) -> None:
        """An element was ended: somebody may wait for its key, or for its place among those in flight."""
        if self.quiet != get_ident():
            self.wake()

    def found(self) -> None:
        """Something was taken: the next sleep is a fresh one."""
        if watch := self._watch:
            watch.found()

    def close(self) -> None:
        """Stop noticing arrivals; wake whoever sleeps."""
        watch, self._watch = self._watch, None
        if watch:
            watch.close()

    def next_look_in(self) -> float | None:
        """Return in how many seconds something may become takeable by itself (a back-off, a debounce time);
        None if nothing will."""
        consumer = self._consumer()
        look = consumer.next_look() if consumer else None
        return None if look is None else max(0.0, look - monotonic())

    def limit(self, left: float | None = None) -> float | None:
        """Return for how many seconds to sleep at most, given the caller's own limit; None: until something
        arrives."""
        consumer = self._consumer()
        now = monotonic()
        parts = (consumer, consumer.controls, consumer.returning) if consumer else ()
        looks = [part.next_look() for part in parts]
        limits = [max(0.0, look - now) for look in looks if look is not None]
        return min(limits if left is None else [left, *limits], default=None)

    def wait_for(self, look: Callable[[], Found], timeout: float | None) -> Found | None:
        """Look at each arrival until `look` finds something; None if it does not within `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        # One sleeper at a time: a wake reaches one. The next thread in line gives up at its own deadline.
        try:
            if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
                return None
            with self.listening() as watch:
                while True:
                    watch.waker.clear()
                    found = look()
                    if found:
                        return found
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return None
                    watch.sleep(self.limit(left))
        finally:
            if self._lock._is_owned():  # type: ignore[attr-defined]
                self._lock.release()

    def _moved_in(self, name: str) -> None:
        consumer = self._consumer()
        if consumer:
            consumer.drops.moved_in.add(name)
