"""Signals that wake the main thread of a worker at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from time import sleep


def wake_at_signals(wake: Callable[[], object]) -> Callable[[], None]:
    """Have a thread call `wake` at each signal; return what ends that. Call it in the main thread.

    Python's own handler runs in the main thread only between two bytecodes: a signal just before the main
    thread begins to wait would be handled when something else wakes it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def pass_on() -> None:
        while something(reader):
            wake()
        os.close(reader)

    threading.Thread(target=pass_on, name="fsinbox-signals", daemon=True).start()

    def end() -> None:
        signal.set_wakeup_fd(before)
        os.close(writer)

    return end


def something(pipe: int) -> bool:
    """Wait for something in a pipe, and read it; False when its other end is closed."""
    try:
        return bool(os.read(pipe, 100))
    except OSError:  # a system in trouble: a wake too many does no harm
        sleep(0.1)
        return True
