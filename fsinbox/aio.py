"""The inbox for asyncio programs: nothing blocks the event loop, and a cancelled take loses nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from .element import Element
from .inbox import Inbox
from .store.amounts import patience
from .store.errors import InboxError

if TYPE_CHECKING:
    from .store.adding import Added
    from .store.amounts import Time
    from .store.terms import How


ADDS_AT_ONCE = 32
"""Adds of an AsyncInbox that run at the same time, and share the disk's commits."""

Result = TypeVar("Result")


async def _to_its_end(call: Callable[[], Result]) -> Result:
    """Run a call in a thread. Who is cancelled meanwhile is cancelled once it is done: then it is certain how
    things stand, and nobody begins the next step beside it."""
    work = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError, Exception):
                await asyncio.shield(work)
        work.exception()  # is looked at: a cancelled task does not raise it
        raise


class AsyncElement(Element):
    """An element whose ends are awaited: `await element.ack()`. All else is as of Element.

    A task that is cancelled while it ends an element is cancelled when that is done.
    """

    __slots__ = ()

    @classmethod
    def of(cls, element: Element) -> Self:
        """Return the same element; only one of the two is to be used."""
        return cls(element._handle, element._codec, element._claim)

    async def ack(self) -> None:  # type: ignore[override]
        """See Element.ack."""
        await _to_its_end(super().ack)

    async def nack(self, delay: Time = 0.0) -> bool:  # type: ignore[override]
        """See Element.nack."""
        return await _to_its_end(partial(super().nack, delay))

    async def release(self, delay: Time = 0.0) -> bool:  # type: ignore[override]
        """See Element.release."""
        return await _to_its_end(partial(super().release, delay))

    async def fail(self, reason: str) -> bool:  # type: ignore[override]
        """See Element.fail."""
        return await _to_its_end(partial(super().fail, reason))


class _Claim:
    """One take in a thread, by a task that may be cancelled meanwhile: then what is taken goes back."""

    def __init__(self, inbox: Inbox, order: threading.Lock) -> None:
        """`order` is shared by all claims: what one requeues must wait again before the next takes."""
        self._inbox = inbox
        self._order = order
        self._mutex = threading.Lock()
        self._abandoned = False
        self._element: Element | None = None

    def take(self) -> Element | None:
        with self._order:
            element = self._inbox.take()
            with self._mutex:
                self._element = element
                if self._abandoned:
                    self._give_back()
        return element

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        with self._mutex:
            self._abandoned = True
            self._give_back()

    def _give_back(self) -> None:
        if self._element:
            with suppress(InboxError):  # closed meanwhile: that has put it back
                self._element.release()


class AsyncInbox:
    """An Inbox whose calls are awaited; `async with AsyncInbox(path) as inbox`, `async for element in inbox`.

    Calls run in threads, one at a time where the inbox needs it. Elements are ended by `await element.ack()`
    (or `await inbox.ack(element)`, the same). A cancelled take has taken nothing; a cancelled end is done
    first; a cancelled add may have been added, as one that raised.

    Adds have threads of their own, so that they may all wait for the lock, the disk or for room, and what is
    taken and acknowledged meanwhile does not wait behind them. Those that wait for the disk at the same time
    share its commits: up to ADDS_AT_ONCE. All else runs in the loop's default executor.
    """

    def __init__(self, path: str | os.PathLike[str] = "inbox", **options: Any) -> None:
        """Take what Inbox takes. Raises UnusableInbox, ValueError."""
        self.inbox = Inbox(path, **options)
        self._adding: ThreadPoolExecutor | None = ThreadPoolExecutor(ADDS_AT_ONCE, "fsinbox-add")
        self._order = threading.Lock()
        self._waiting = asyncio.Lock()  # one sleeper at a time: a wake reaches one

    async def add(self, key: str, value: object, **how: Unpack[How]) -> Added:
        """See Inbox.add."""
        return await self._add(self.inbox.add, key, value, **how)

    async def add_file(
        self, key: str, path: str | os.PathLike[str], *, move: bool = False, **how: Unpack[How]
    ) -> Added:
        """See Inbox.add_file."""
        return await self._add(self.inbox.add_file, key, path, move=move, **how)

    async def add_many(
        self,
        items: Iterable[tuple[str, object]],
        *,
        progress: Callable[[int], object] | None = None,
        **how: Unpack[How],
    ) -> dict[Added, int]:
        """See Inbox.add_many. `items` and `progress` are used in another thread."""
        return await self._add(self.inbox.add_many, items, progress=progress, **how)

    async def _add(self, add: Callable[..., Result], *arguments: Any, **how: Any) -> Result:
        """Run an add in a thread, as asyncio.to_thread does."""
        call = partial(copy_context().run, add, *arguments, **how)
        return await asyncio.get_running_loop().run_in_executor(self._adding, call)

    async def take(self, timeout: Time | None = 0.0) -> AsyncElement | None:
        """See Inbox.take. If it is cancelled, it has taken nothing."""
        element = await self._take_now()
        if element or timeout == 0:
            return element
        timeout = patience(timeout)
        deadline = None if timeout is None else monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._waiting.acquire()
        except TimeoutError:
            return None
        try:
            return await self._wait_for_one(deadline)
        finally:
            self._waiting.release()

    async def _wait_for_one(self, deadline: float | None) -> AsyncElement | None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        listening = await asyncio.to_thread(lambda: self.inbox.sleeper.listening())
        with listening as watch:

            def notice() -> None:
                watch.noticed()
                woken.set()

            descriptors = watch.descriptors
            for descriptor in descriptors:
                loop.add_reader(descriptor, notice)
            try:
                while True:
                    woken.clear()
                    watch.waker.clear()
                    element = await self._take_now()
                    if element:
                        return element
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return None
                    # Not wait_for: in Python 3.11 it swallows a cancel that comes together with the wake.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(watch.patience(self.inbox.sleeper.limit(left))):
                            await woken.wait()
            finally:
                for descriptor in descriptors:
                    loop.remove_reader(descriptor)

    async def _take_now(self) -> AsyncElement | None:
        claim = _Claim(self.inbox, self._order)
        try:
            element = await asyncio.get_running_loop().run_in_executor(None, claim.take)
        except asyncio.CancelledError:
            claim.abandon()
            raise
        return AsyncElement.of(element) if element else None

    async def ack(self, element: AsyncElement) -> None:
        """See Element.ack."""
        await element.ack()

    async def nack(self, element: AsyncElement, delay: Time = 0.0) -> bool:
        """See Element.nack."""
        return await element.nack(delay)

    async def release(self, element: AsyncElement, delay: Time = 0.0) -> bool:
        """See Element.release."""
        return await element.release(delay)

    async def fail(self, element: AsyncElement, reason: str) -> bool:
        """See Element.fail."""
        return await element.fail(reason)

    async def commit(self) -> None:
        """See Inbox.commit."""
        await _to_its_end(self.inbox.commit)

    async def rollback(self) -> bool:
        """See Inbox.rollback."""
        return await _to_its_end(self.inbox.rollback)

    async def close(self) -> None:
        """See Inbox.close."""
        await _to_its_end(self.inbox.close)
        if self._adding:
            self._adding.shutdown(wait=False)  # what still waits in it is told that the inbox is closed
            self._adding = None

    async def __aiter__(self) -> AsyncIterator[AsyncElement]:
        """Take for ever: `async for element in inbox`. End each element, or max_inflight of them stop the
        loop."""
        while True:
            element = await self.take(timeout=None)
            assert element  # it waits until there is one
            yield element

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
