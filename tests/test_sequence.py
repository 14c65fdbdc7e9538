"""The admission lock and the next number: whatever the system refuses, no lock is left held, and no number is given twice."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox, UnusableInbox
from fsinbox.sequence import Sequence
from tests.shim import intercepted, refusing


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir) as inbox:
        yield inbox


def is_free(inbox: Inbox) -> bool:
    """Tell whether the admission lock is free, for another process as for another thread of this one."""
    with open(f"{inbox.path}/sequence", "rb") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    if not inbox._sequence.try_lock():
        return False
    inbox._sequence.unlock()
    return True


@pytest.mark.parametrize("call", ["open", "flock", "fstat"])
def test_a_lock_that_is_refused_is_left_free(inbox: Inbox, call: str) -> None:
    sequence = inbox._sequence
    sequence.close()
    with refusing(**{call: errno.ENOLCK}), pytest.raises(OSError, match="locks"):
        sequence.__enter__()
    assert is_free(inbox)
    sequence.close()
    with refusing(**{call: errno.ENOLCK}), pytest.raises(OSError, match="locks"):
        sequence.try_lock()
    assert is_free(inbox)


def test_a_lock_on_a_file_that_cannot_be_looked_at_is_left_free(inbox: Inbox) -> None:
    sequence = inbox._sequence
    with sequence:
        pass  # it is open from now on
    with refusing(fstat=errno.EIO), pytest.raises(OSError, match="Input/output"):
        sequence.__enter__()
    assert is_free(inbox)


def test_a_lock_that_the_system_will_not_give_back_is_given_up_with_its_file(inbox: Inbox) -> None:
    with refusing(flock=errno.EIO, when=lambda fd, how: how == fcntl.LOCK_UN), inbox._sequence:
        pass
    assert is_free(inbox)


def test_whoever_never_waits_is_refused_while_a_thread_of_its_own_process_holds_the_lock(inbox: Inbox) -> None:
    with inbox._sequence:
        assert inbox._sequence.try_lock() is False
    assert is_free(inbox)


def test_the_last_number_is_read_without_a_lock(inbox: Inbox) -> None:
    inbox.add("a", 1)
    sequence = inbox._sequence
    sequence.close()
    waiting = inbox.find("a")
    assert waiting
    assert sequence.read() == (waiting.seq, sequence.boot)


def test_a_number_of_which_only_a_part_could_be_written_is_not_given_out(inbox: Inbox) -> None:
    def half(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        return call(arguments[0], arguments[1][:5], 0) if name == "pwrite" else call(*arguments, **more)

    with intercepted(half), pytest.raises(AddFailed, match="only a part") as caught:
        inbox.add("a", 1)
    assert not caught.value.maybe_added
    assert is_free(inbox)
    inbox.add("a", 2)
    assert inbox.take() is not None


def test_without_proc_an_inbox_says_what_is_missing(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def gone(path: str, *_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr("fsinbox.sequence.open", gone, raising=False)
    with pytest.raises(UnusableInbox, match="mount /proc"):
        Inbox(inbox.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_sequence_may_be_closed_twice(inbox: Inbox) -> None:
    sequence = Sequence(inbox._layout)
    with sequence:
        pass
    sequence.close()
    sequence.close()
    assert is_free(inbox)
