"""The inbox for asyncio programs: nothing blocks the event loop, and a cancelled take loses nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from .element import Element
from .inbox import Inbox
from .store.amounts import patience
from .store.errors import InboxError

if TYPE_CHECKING:
    from .store.adding import Added
    from .store.amounts import Time
    from .store.terms import How


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
    """An Inbox whose calls are awaited; `async with AsyncInbox(path) as inbox`. Elements are the same as
    Inbox gives.

    Calls run in threads, one at a time where the inbox needs it. Where Inbox has `element.ack()`, here it is
    `await inbox.ack(element)`; the element's own method works too, and blocks for one system call.
    """

    def __init__(self, path: str | os.PathLike[str] = "inbox", **options: Any) -> None:
        """Take what Inbox takes. Raises UnusableInbox, ValueError."""
        self.inbox = Inbox(path, **options)
        self._order = threading.Lock()
        self._waiting = asyncio.Lock()  # one sleeper at a time: a wake reaches one

    async def add(self, key: str, value: object, **how: Unpack[How]) -> Added:
        """See Inbox.add."""
        return await asyncio.to_thread(self.inbox.add, key, value, **how)

    async def add_file(
        self, key: str, path: str | os.PathLike[str], *, move: bool = False, **how: Unpack[How]
    ) -> Added:
        """See Inbox.add_file."""
        return await asyncio.to_thread(self.inbox.add_file, key, path, move=move, **how)

    async def add_many(
        self,
        items: Iterable[tuple[str, object]],
        *,
        progress: Callable[[int], object] | None = None,
        **how: Unpack[How],
    ) -> dict[Added, int]:
        """See Inbox.add_many. `items` and `progress` are used in another thread."""
        return await asyncio.to_thread(self.inbox.add_many, items, progress=progress, **how)

    async def take(self, timeout: Time | None = 0.0) -> Element | None:
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

    async def _wait_for_one(self, deadline: float | None) -> Element | None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def relay() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(woken.set)

        listening = await asyncio.to_thread(lambda: self.inbox.sleeper.listening())
        with listening as watch:
            watch.waker.relay = relay
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
                watch.waker.relay = None

    async def _take_now(self) -> Element | None:
        claim = _Claim(self.inbox, self._order)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, claim.take)
        except asyncio.CancelledError:
            claim.abandon()
            raise

    async def ack(self, element: Element) -> None:
        """See Element.ack."""
        await asyncio.to_thread(element.ack)

    async def nack(self, element: Element, delay: Time = 0.0) -> bool:
        """See Element.nack."""
        return await asyncio.to_thread(element.nack, delay)

    async def fail(self, element: Element, reason: str) -> bool:
        """See Element.fail."""
        return await asyncio.to_thread(element.fail, reason)

    async def commit(self) -> None:
        """See Inbox.commit."""
        await asyncio.to_thread(self.inbox.commit)

    async def rollback(self) -> bool:
        """See Inbox.rollback."""
        return await asyncio.to_thread(self.inbox.rollback)

    async def close(self) -> None:
        """See Inbox.close."""
        await asyncio.to_thread(self.inbox.close)

    async def __aiter__(self) -> AsyncIterator[Element]:
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
