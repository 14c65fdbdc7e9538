"""What wakes a sleeper: a pipe, so that it can sleep until something else can be read as well."""

from __future__ import annotations

import os
import select
from collections.abc import Collection

_LONGEST = 86_400_000.0
"""Milliseconds of one sleep: poll(2) takes at most 24 days."""


class Waker:
    """Wakes one sleeper, from any thread or signal handler. Its pipe is closed when nobody holds it any more:
    a wake that comes late must not write into what was opened since."""

    more: Collection[int] = ()
    """Further descriptors: something to read there wakes, too."""

    def __init__(self) -> None:
        """Raises OSError: no descriptors are left."""
        self.reader, self.writer = os.pipe()
        try:
            os.set_blocking(self.reader, False)
            os.set_blocking(self.writer, False)  # as signal.set_wakeup_fd asks for
        except BaseException:
            self._close()  # (the exception holds this frame, and it us)
            raise
        # Spares the pipe. If it is true, there is something in the pipe, or will be in a moment.
        self._is_set = False

    @classmethod
    def of_nobody(cls) -> Waker:
        """Return one to `set` without effect."""
        waker = cls.__new__(cls)
        waker._is_set = True
        return waker

    def set(self) -> None:
        """Wake the sleeper, now or when it next sleeps."""
        if not self._is_set:
            self._is_set = True
            try:
                os.write(self.writer, b"\0")
            except OSError:
                pass  # full: it wakes all the same. Or a handler has closed what is ours: so does that

    def clear(self) -> None:
        """Forget every wake so far."""
        if self._is_set:
            try:
                os.read(self.reader, 1000)
            except OSError:
                pass  # who sets it has not come to write
            self._is_set = False

    def wait(self, timeout: float | None, also: int | None = None) -> bool:
        """Sleep until woken, at most `timeout` seconds (None: no limit), and forget that. Tell whether it was
        woken.

        `also`: a descriptor; something to read there wakes, too.
        """
        if self._is_set:
            self.clear()
            return True
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        if also is not None:
            poll.register(also, select.POLLIN)
        for fd in self.more:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(None if timeout is None else min(max(0.0, timeout) * 1000, _LONGEST))
        if any(fd == self.reader for fd, _ in ready):
            self._is_set = True  # it is not, if a signal has written
            self.clear()
        return bool(ready)

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        ends = [vars(self).pop(end, -1) for end in ("reader", "writer")]
        for end in ends:
            if end >= 0:
                try:
                    os.close(end)
                except OSError:
                    pass  # a handler has
