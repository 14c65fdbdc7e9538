"""Handlers that misbehave, each at the element of the key "odd" only, for test_misbehaving.py.

In a process of its own: `fsinbox consume --handler tests.misbehaviour:handle`, with $MISBEHAVIOUR (which) and
$HANDLED (the file in which each call is noted).
"""

from __future__ import annotations

import asyncio
import gc
import locale
import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fsinbox import Element, Inbox, Reject, TryLater

Behaviour = Callable[[Element], Any]

BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Have it found by its name."""
    BEHAVIOURS[function.__name__] = function
    return function


def note(path: str | Path, key: str) -> None:
    """Note that the element of a key is handled now."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, key.encode() + b"\n")
    os.close(fd)


def handle(element: Element) -> Any:
    """What `--handler` names."""
    note(os.environ["HANDLED"], element.key)
    if element.key == "odd":
        return BEHAVIOURS[os.environ["MISBEHAVIOUR"]](element)
    return None


def raises(error: BaseException) -> Behaviour:
    """Return a handler that raises it."""

    def raise_it(element: Element) -> NoReturn:
        raise error

    return raise_it


def inbox_of(element: Element) -> Path:
    """Return the inbox that an element in flight is in."""
    return Path(element.path).parent.parent


# --- what it raises, and returns ----------------------------------------------------------------------


class Unprintable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Own(BaseException):
    """Of nobody's family."""


class TrueOnlyOnce:
    """A value that objects to being looked at."""

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise ValueError("like nothing")

    __hash__ = None  # type: ignore[assignment]


def recurses(element: Element) -> Any:
    return recurses(element)


def raises_a_circle(element: Element) -> NoReturn:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def rejects(element: Element) -> NoReturn:
    raise Reject("never")


def asks_to_try_later_once(element: Element) -> None:
    if not Path(inbox_of(element), "..", "again").exists():
        Path(inbox_of(element), "..", "again").touch()
        raise TryLater("not now")


def returns_a_generator(element: Element) -> Iterator[int]:
    return (one for one in range(3))


def returns_an_async_generator(element: Element) -> AsyncIterator[int]:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    return numbers()


def returns_a_coroutine_that_raises(element: Element) -> Any:
    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError("in the coroutine")

    return work()


# --- what it does with its element, and with the inbox ------------------------------------------------


def acks(element: Element) -> None:
    element.ack()


def acks_twice(element: Element) -> None:
    element.ack()
    element.ack()


def nacks_once(element: Element) -> None:
    if element.attempts == 1:
        element.nack()


def nacks_once_and_raises(element: Element) -> None:
    if element.attempts == 1:
        element.nack()
        raise ValueError("after that")


def releases_once(element: Element) -> None:
    if not Path(inbox_of(element), "..", "again").exists():
        Path(inbox_of(element), "..", "again").touch()
        element.release()


def fails(element: Element) -> None:
    element.fail("by the handler")


def fails_and_acks(element: Element) -> None:
    element.fail("by the handler")
    element.ack()


def removes_its_file(element: Element) -> None:
    os.unlink(element.path)


def removes_its_file_and_raises(element: Element) -> None:
    os.unlink(element.path)
    raise ValueError("after that")


def removes_its_file_and_nacks(element: Element) -> None:
    os.unlink(element.path)
    element.nack()


def replaces_its_file_and_raises(element: Element) -> None:
    Path(element.path + "~").write_text("replaced")
    os.replace(element.path + "~", element.path)
    raise ValueError("after that")


def truncates_its_file_and_raises(element: Element) -> None:
    os.truncate(element.path, 0)
    raise ValueError("after that")


def forbids_its_file_and_raises(element: Element) -> None:
    os.chmod(element.path, 0)
    raise ValueError("after that")


def makes_its_file_a_link_and_raises(element: Element) -> None:
    with suppress(FileNotFoundError):
        os.unlink(element.path)
    os.symlink("../../secret", element.path)
    raise ValueError("after that")


def makes_its_file_a_link(element: Element) -> None:
    os.unlink(element.path)
    os.symlink("../../secret", element.path)


def takes_with_another_inbox(element: Element) -> None:
    with Inbox(inbox_of(element), create=False) as other:
        other.take()


def adds_its_own_key_once(element: Element) -> None:
    if element.value == "first":
        with Inbox(inbox_of(element), create=False) as other:
            other.add("odd", "second")


def adds_its_own_key_once_and_raises(element: Element) -> None:
    adds_its_own_key_once(element)
    if element.value == "first":
        raise ValueError("after that")


# --- event loops --------------------------------------------------------------------------------------


async def raises_in_the_loop(element: Element) -> NoReturn:
    raise ValueError("in the loop")


async def exits_in_the_loop(element: Element) -> NoReturn:
    sys.exit("in the loop")


async def interrupts_the_loop(element: Element) -> NoReturn:
    raise KeyboardInterrupt


async def cancels_itself(element: Element) -> None:
    task = asyncio.current_task()
    assert task
    task.cancel()
    await asyncio.sleep(10)


async def stops_the_loop(element: Element) -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)


async def closes_the_loop(element: Element) -> None:
    asyncio.get_running_loop().close()


async def waits_for_ever(element: Element) -> None:
    await asyncio.Event().wait()


async def leaves_a_task_that_raises(element: Element) -> None:
    async def task() -> None:
        raise ValueError("in a task that nobody awaits")

    asyncio.get_running_loop().create_task(task())
    await asyncio.sleep(0)


# --- what it does to the process ----------------------------------------------------------------------


@behaviour
def changes_and_removes_the_working_directory(element: Element) -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir(os.getcwd())


@behaviour
def masks_all_modes_and_raises(element: Element) -> NoReturn:
    os.umask(0o777)
    raise ValueError("after that")


@behaviour
def closes_the_standard_streams(element: Element) -> None:
    for fd in range(3):
        with suppress(OSError):
            os.close(fd)


@behaviour
def closes_its_streams_and_raises(element: Element) -> NoReturn:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    raise ValueError("after that")


@behaviour
def closes_all_other_descriptors(element: Element) -> None:
    os.closerange(3, 256)


@behaviour
def forks_and_the_child_returns(element: Element) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)


@behaviour
def forks_and_the_child_raises(element: Element) -> None:
    child = os.fork()
    if not child:
        raise ValueError("in the child")
    os.waitpid(child, 0)


@behaviour
def forks_and_the_child_exits(element: Element) -> None:
    child = os.fork()
    if not child:
        sys.exit(3)
    os.waitpid(child, 0)


@behaviour
def forks_and_the_child_leaves(element: Element) -> None:
    child = os.fork()
    if not child:
        os._exit(3)
    os.waitpid(child, 0)


@behaviour
def leaves_a_thread_that_raises(element: Element) -> None:
    def work() -> NoReturn:
        time.sleep(0.01)
        raise ValueError("in a thread")

    threading.Thread(target=work).start()


@behaviour
def leaves_a_daemon_that_never_ends(element: Element) -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@behaviour
def sets_a_signal_handler(element: Element) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@behaviour
def changes_locale_and_time_zone(element: Element) -> None:
    locale.setlocale(locale.LC_ALL, "C")
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()


@behaviour
def silences_logging_and_raises(element: Element) -> NoReturn:
    logging.disable()
    logging.shutdown()
    raise ValueError("after that")


@behaviour
def empties_the_environment(element: Element) -> None:
    misbehaviour, handled = os.environ["MISBEHAVIOUR"], os.environ["HANDLED"]
    os.environ.clear()
    os.environ.update(MISBEHAVIOUR=misbehaviour, HANDLED=handled)


@behaviour
def upsets_the_interpreter(element: Element) -> None:
    gc.disable()
    random.seed(0)
    sys.setrecursionlimit(120)
    sys.path.clear()
    sys.stdout = sys.stderr = None


@behaviour
def stops_the_process(element: Element) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)  # (the threads of a process do not all stop at the same instant)


@behaviour
def leaves(element: Element) -> NoReturn:
    os._exit(7)


@behaviour
def writes_into_its_file_and_leaves(element: Element) -> NoReturn:
    Path(element.path).write_text("written")
    os._exit(7)


@behaviour
def replaces_its_file_and_leaves(element: Element) -> NoReturn:
    draft = Path(f"{element.path}.draft")  # as `sed -i` does
    draft.write_text("replaced")
    draft.rename(element.path)
    os._exit(7)


@behaviour
def kills(element: Element) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@behaviour
def aborts(element: Element) -> NoReturn:
    os.abort()


@behaviour
def terminates(element: Element) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@behaviour
def interrupts(element: Element) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@behaviour
def removes_the_inbox(element: Element) -> None:
    shutil.rmtree(inbox_of(element) / "tmp")


# --- what is refused at start -------------------------------------------------------------------------


def is_a_generator(key: str, value: object) -> Iterator[int]:
    yield 1


async def is_an_async_generator(key: str, value: object) -> AsyncIterator[int]:
    yield 1


def takes_three(one: object, two: object, three: object) -> None: ...


def takes_nothing() -> None: ...


is_no_function = 7
