"""What other queues test of a maximum size: their cases under their own names, asked of an inbox. An item is
a key of its own; what they call full, an inbox is when as many wait as may.

CPython         Lib/test/test_queue.py, BaseQueueTestMixin and FailingQueueTest: queue.Queue(maxsize)
asyncio         Lib/test/test_asyncio/test_queues.py: asyncio.Queue(maxsize). (An add that is cancelled goes
                on in its thread, for its timeout at most: it may be done all the same)
persist-queue   persistqueue/tests/test_queue.py and test_async_queue.py: Queue(path, maxsize), AsyncQueue
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fsinbox import AddFailed, AsyncInbox, Inbox, InboxFull
from tests.shim import refusing

QUEUE_SIZE = 5
Result = TypeVar("Result")


class Queue:
    """An inbox as these tests use a queue: each item under a key of its own."""

    def __init__(self, inbox: Inbox, maxsize: int = 0) -> None:
        self.inbox = inbox
        self._keys = count()
        self.set_maxsize(maxsize)

    def set_maxsize(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.inbox.limit(max_waiting=maxsize)

    def put(self, item: object, timeout: float = 20.0) -> None:
        assert self.inbox.add(f"item-{next(self._keys)}", item, timeout=timeout) == "new"

    def put_nowait(self, item: object) -> None:
        # (What waits is counted anew 10 us for each after the last time, and so by milliseconds.)
        time.sleep(0.003)
        self.put(item, timeout=0)

    def get(self, timeout: float = 20.0) -> Any:
        """Take an item and acknowledge it; None if there is none."""
        element = self.inbox.take(timeout)
        if element is None:
            return None
        value = element.value
        element.ack()
        return value

    def qsize(self) -> int:
        return len(self.inbox)

    def full(self) -> bool:
        return 0 < self.maxsize == self.qsize()


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir) as opened:
        yield opened


def do_blocking_test(block: Callable[[], Result], trigger: Callable[[], object]) -> Result:
    """Do what blocks until another thread has done what ends it; return what it returns."""
    started = threading.Event()

    def run() -> None:
        time.sleep(0.1)
        started.set()
        trigger()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        result = block()
        assert started.is_set(), "it appeared not to block"
        return result
    finally:
        thread.join(20)


# --- CPython: queue.Queue -----------------------------------------------------------------------------


def test_cpython_basic(inbox: Inbox) -> None:
    queue = Queue(inbox, QUEUE_SIZE)
    for _ in range(2):  # done twice to make sure it works with the same instance reused
        basic_queue_test(queue)


def basic_queue_test(queue: Queue) -> None:
    assert queue.qsize() == 0
    assert not queue.full()
    for item in (111, 333, 222):
        queue.put(item)
    assert [queue.get(), queue.get(), queue.get()] == [111, 333, 222]
    for number in range(QUEUE_SIZE - 1):
        queue.put(number)
        assert queue.qsize()
    assert not queue.full()
    queue.put("last")
    assert queue.full()
    with pytest.raises(InboxFull):
        queue.put_nowait("full")
    with pytest.raises(InboxFull):
        queue.put("full", timeout=0.01)
    do_blocking_test(lambda: queue.put("full"), queue.get)
    do_blocking_test(lambda: queue.put("full", timeout=10), queue.get)
    for _ in range(QUEUE_SIZE):
        queue.get()
    assert queue.qsize() == 0
    assert queue.get(timeout=0) is None
    assert queue.get(timeout=0.01) is None
    assert do_blocking_test(queue.get, lambda: queue.put("empty")) == "empty"
    assert do_blocking_test(lambda: queue.get(timeout=10), lambda: queue.put("empty")) == "empty"


def test_cpython_negative_timeout_raises_exception(inbox: Inbox) -> None:
    queue = Queue(inbox, QUEUE_SIZE)
    with pytest.raises(ValueError, match="timeout"):
        queue.put(1, timeout=-1)


def test_cpython_nowait(inbox: Inbox) -> None:
    queue = Queue(inbox, QUEUE_SIZE)
    for _ in range(QUEUE_SIZE):
        queue.put_nowait(1)
    with pytest.raises(InboxFull):
        queue.put_nowait(1)
    for _ in range(QUEUE_SIZE):
        assert queue.get(timeout=0) == 1
    assert queue.get(timeout=0) is None


def test_cpython_shrinking_queue(inbox: Inbox) -> None:
    queue = Queue(inbox, 3)
    for number in (1, 2, 3):
        queue.put(number)
    with pytest.raises(InboxFull):
        queue.put_nowait(4)
    assert queue.qsize() == 3
    queue.set_maxsize(2)
    with pytest.raises(InboxFull):
        queue.put_nowait(4)
    assert queue.qsize() == 3
    assert queue.get() == 1
    with pytest.raises(InboxFull):
        queue.put_nowait(4)
    assert queue.get() == 2
    queue.put(4)
    assert [queue.get(), queue.get()] == [3, 4]


def test_cpython_failing_queue(inbox: Inbox) -> None:
    queue = Queue(inbox, QUEUE_SIZE)
    for _ in range(2):
        failing_queue_test(queue)


def failing_put(queue: Queue, timeout: float) -> None:
    """Have the system refuse the rename that publishes: it is counted by then, and must not stay counted."""
    with refusing(rename=errno.EIO), pytest.raises(AddFailed, match="Input/output error"):
        queue.put("oops", timeout=timeout)


def failing_queue_test(queue: Queue) -> None:
    for number in range(QUEUE_SIZE - 1):
        queue.put(number)
    failing_put(queue, 0)
    failing_put(queue, 0.1)
    queue.put("last")
    assert queue.full()
    with pytest.raises(InboxFull):  # before anything that could fail
        queue.put_nowait("full")
    queue.get()
    assert not queue.full()
    failing_put(queue, 10)
    queue.put("last")
    assert queue.full()
    do_blocking_test(lambda: queue.put("full"), queue.get)
    for _ in range(QUEUE_SIZE):
        assert queue.get() is not None
    assert queue.qsize() == 0


# --- asyncio.Queue ------------------------------------------------------------------------------------


class Asyncio:
    """The same for an AsyncInbox."""

    def __init__(self, inbox: AsyncInbox, maxsize: int = 0) -> None:
        self.inbox = inbox
        self.maxsize = maxsize
        self._keys = count()
        inbox.inbox.limit(max_waiting=maxsize)

    async def put(self, item: object, timeout: float = 20.0) -> None:
        assert await self.inbox.add(f"item-{next(self._keys)}", item, timeout=timeout) == "new"

    async def put_nowait(self, item: object) -> None:
        await asyncio.sleep(0.003)
        await self.put(item, timeout=0)

    async def get(self, timeout: float = 20.0) -> Any:
        element = await self.inbox.take(timeout)
        if element is None:
            return None
        value = element.value
        await self.inbox.ack(element)
        return value

    def qsize(self) -> int:
        return len(self.inbox.inbox)

    def full(self) -> bool:
        return 0 < self.maxsize == self.qsize()


def run_with(path: Path, maxsize: int, test: Callable[[Asyncio], Any]) -> None:
    """Run a test with a queue of this size."""

    async def run() -> None:
        async with AsyncInbox(path) as inbox:
            await test(Asyncio(inbox, maxsize))

    asyncio.run(run())


def test_asyncio_full(inbox_dir: Path) -> None:
    async def without(queue: Asyncio) -> None:
        assert not queue.full()

    async def with_one(queue: Asyncio) -> None:
        await queue.put_nowait(1)
        assert queue.full()

    run_with(inbox_dir, 0, without)
    run_with(inbox_dir, 1, with_one)


def test_asyncio_maxsize(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        have_been_put = []

        async def putter() -> bool:
            for number in range(3):
                await queue.put(number)
                have_been_put.append(number)
            return True

        task = asyncio.create_task(putter())
        await asyncio.sleep(0.3)
        assert have_been_put == [0, 1]  # the putter is blocked after putting two items
        assert await queue.get() == 0
        assert await task  # let the putter resume and put last item
        assert have_been_put == [0, 1, 2]
        assert [await queue.get(), await queue.get()] == [1, 2]

    run_with(inbox_dir, 2, test)


def test_asyncio_get_with_putters(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put_nowait(1)
        waiter = asyncio.create_task(queue.put(2))
        await asyncio.sleep(0.1)
        assert not waiter.done()
        assert await queue.get() == 1
        await waiter
        assert await queue.get() == 2

    run_with(inbox_dir, 1, test)


def test_asyncio_get_with_waiting_putters(inbox_dir: Path) -> None:
    """Of two that wait for room at once, either may be first here: each looks again by itself."""

    async def test(queue: Asyncio) -> None:
        await queue.put("a")
        tasks = [asyncio.create_task(queue.put(item)) for item in "bc"]
        assert await queue.get() == "a"
        assert {await queue.get(), await queue.get()} == {"b", "c"}
        await asyncio.gather(*tasks)

    run_with(inbox_dir, 1, test)


def test_asyncio_blocking_put(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put(1)  # no maxsize, won't block

    run_with(inbox_dir, 0, test)


def test_asyncio_blocking_put_wait(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        finished = False

        async def queue_put() -> None:
            nonlocal finished
            await queue.put(1)
            await queue.put(2)
            finished = True

        task = asyncio.create_task(queue_put())
        await asyncio.sleep(0.2)
        assert not finished
        assert await queue.get() == 1
        await task
        assert finished

    run_with(inbox_dir, 1, test)


def test_asyncio_nonblocking_put(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put_nowait(1)
        assert await queue.get(timeout=0) == 1

    run_with(inbox_dir, 0, test)


def test_asyncio_nonblocking_put_exception(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put_nowait(1)
        with pytest.raises(InboxFull):
            await queue.put_nowait(2)

    run_with(inbox_dir, 1, test)


def test_asyncio_put_cancelled_race(inbox_dir: Path) -> None:
    """Who waits for room and is cancelled keeps no place: the others get it."""

    async def test(queue: Asyncio) -> None:
        await queue.put("a")
        cancelled = asyncio.create_task(queue.put("X", timeout=0.2))
        put_b = asyncio.create_task(queue.put("b"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await asyncio.sleep(0.4)  # its thread has given up by then
        assert not put_b.done()
        assert await queue.get() == "a"
        await put_b
        assert [await queue.get(), await queue.get(timeout=0)] == ["b", None]

    run_with(inbox_dir, 1, test)


# --- persist-queue ------------------------------------------------------------------------------------


def test_persist_queue_full(inbox: Inbox) -> None:
    queue = Queue(inbox, 3)
    for number in range(1, queue.maxsize):
        queue.put(f"var{number}")
    assert not queue.full()
    queue.put(f"var{queue.maxsize}")
    assert queue.full()
    queue.get()
    assert not queue.full()


def test_persist_queue_full_without_max_size(inbox: Inbox) -> None:
    queue = Queue(inbox)
    assert not queue.full()
    queue.put("var1")
    assert not queue.full()
    queue.get()
    assert not queue.full()


def test_persist_queue_put_nowait(inbox: Inbox) -> None:
    queue = Queue(inbox)
    queue.put_nowait("var1")
    assert queue.get() == "var1"


def test_persist_queue_put_maxsize_reached(inbox: Inbox) -> None:
    queue = Queue(inbox, 10)
    for number in range(10):
        queue.put(number)
    with pytest.raises(InboxFull):
        queue.put_nowait("full_now")


def test_persist_queue_put_timeout_reached(inbox: Inbox) -> None:
    queue = Queue(inbox, 2)
    for number in range(2):
        queue.put(number)
    began = time.monotonic()
    with pytest.raises(InboxFull):
        queue.put("full_and_timeout", timeout=1)
    assert 1 <= time.monotonic() - began < 10


def test_persist_queue_put_timeout_negative(inbox: Inbox) -> None:
    queue = Queue(inbox, 1)
    with pytest.raises(ValueError, match="timeout"):
        queue.put("var1", timeout=-1)


def test_persist_queue_put_block_and_wait(inbox: Inbox) -> None:
    queue = Queue(inbox, 10)

    def consumer() -> None:
        for _ in range(5):
            queue.get()

    def producer() -> None:
        for number in range(16):
            queue.put(f"var{number}", timeout=60)

    threads = [threading.Thread(target=producer), threading.Thread(target=consumer)]
    for thread in threads:
        thread.start()
    threads[1].join()
    value = queue.get()
    threads[0].join()
    assert value == "var5"
    assert queue.full()


def test_persist_queue_async_maxsize(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put("item_1")
        await queue.put("item_2")
        with pytest.raises(InboxFull):
            await queue.put("item_3", timeout=0.1)
        assert await queue.get() == "item_1"
        await queue.put("item_3", timeout=1.0)

    run_with(inbox_dir, 2, test)


def test_persist_queue_async_negative_timeout(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        with pytest.raises(ValueError, match="timeout"):
            await queue.put("item", timeout=-1.0)

    run_with(inbox_dir, 0, test)


def test_persist_queue_async_put_nowait_get_nowait(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put_nowait("item_1")
        with pytest.raises(InboxFull):
            await queue.put_nowait("item_2")
        assert await queue.get(timeout=0) == "item_1"
        assert await queue.get(timeout=0) is None

    run_with(inbox_dir, 1, test)


def test_persist_queue_async_full_queue_behavior(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        await queue.put("item_1")
        with pytest.raises(InboxFull):
            await queue.put("item_2", timeout=0.1)
        assert await queue.get() == "item_1"
        await queue.put("item_2", timeout=1.0)

    run_with(inbox_dir, 1, test)


def test_persist_queue_async_full_queue_without_maxsize(inbox_dir: Path) -> None:
    async def test(queue: Asyncio) -> None:
        assert not queue.full()
        await queue.put("item_1")
        assert not queue.full()
        await queue.get()
        assert not queue.full()

    run_with(inbox_dir, 0, test)
