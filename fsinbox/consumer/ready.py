"""What may be taken next: in memory, without a system call.

A name stands for an element in one of three places: it waits in pending/ (then the last listing has it, or it
is ready again), or it is deferred, and due. The lowest name of all is taken next: names sort by arrival.

    listed     the last listing of pending/, oldest last. Every name in it had been given out when the listing
               began, so for each key nothing older can turn up later
    again      a heap of names that are ready again: requeued, unblocked, debounced, or deferred and due
    timers     a heap of (when, name, its name in deferred/ or ""): ready then, by the monotonic clock, since
               the other one may be set. An entry whose deferred element is gone from `deferred` is void
    deferred   encoded key -> its name in deferred/; at most one a key
    blocked    encoded key -> a name that waits until the element of its key that is in flight is done. It is
               in no other view
    held       names of deferred elements that were passed over, since people hold their keys
"""

from __future__ import annotations

import heapq

from ..store.names import element_of, encoded_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Ready:
    """What may be taken next, and when more will be."""

    def __init__(self) -> None:
        self.deferred: dict[str, str] = {}
        self._listed: list[str] = []
        self._again: list[str] = []
        self._timers: list[tuple[float, str, str]] = []
        self._blocked: dict[str, str] = {}
        self._held: list[str] = []

    def __bool__(self) -> bool:
        """Whether anything of the last listing is left."""
        return bool(self._listed)

    def clear(self) -> None:
        """Forget all but what is blocked, for the folders are looked at again."""
        self.deferred = {}
        self._listed, self._again, self._timers, self._held = [], [], [], []

    def replace(self, listed: list[str]) -> None:
        """Take a new listing of pending/, newest first, in place of the last one.

        What is blocked or debounced comes up by itself, and what is ready again is in the listing, but for
        what lies in deferred/.
        """
        later = set(self._blocked.values()) | {name for _, name, deferred in self._timers if not deferred}
        self._listed = [name for name in listed if name not in later] if later else listed
        self._again = [name for name in self._again if self._deferred_as(name)]
        heapq.heapify(self._again)

    # --- what is next ------------------------------------------------------------------------------------

    def oldest(self, now: float) -> str | None:
        """Return the lowest of the names that may be taken now (monotonic seconds); None if there is none."""
        while self._timers and self._timers[0][0] <= now:
            _, name, deferred = heapq.heappop(self._timers)
            if not deferred or self._is_deferred(deferred):
                heapq.heappush(self._again, name)
        if not self._again:
            return self._listed[-1] if self._listed else None
        return min(self._again[0], self._listed[-1]) if self._listed else self._again[0]

    def pop(self, name: str) -> str | None:
        """Remove the oldest name from the view; return its name in deferred/ if that is where it is."""
        if self._listed and self._listed[-1] == name:
            self._listed.pop()
            return None  # (what is deferred under the same name is older, and is dropped when this is taken)
        while self._again and self._again[0] == name:
            heapq.heappop(self._again)
        return self._deferred_as(name)

    def next_time(self) -> float | None:
        """Return when (monotonic seconds) something becomes ready by itself; None if nothing will."""
        while self._timers and self._timers[0][2] and not self._is_deferred(self._timers[0][2]):
            heapq.heappop(self._timers)  # superseded, or moved by hand
        return self._timers[0][0] if self._timers else None

    def names(self, wanted: Callable[[str], bool]) -> list[str]:
        """Return those names of the last listing for which `wanted` is true."""
        return list(filter(wanted, self._listed))

    # --- what becomes ready ------------------------------------------------------------------------------

    def push(self, name: str) -> None:
        """What waits under this name may be taken."""
        heapq.heappush(self._again, name)

    def debounce(self, name: str, until: float) -> None:
        """What waits under this name is left alone until then (monotonic seconds)."""
        heapq.heappush(self._timers, (until, name, ""))

    def defer(self, encoded: str, deferred: str, until: float) -> None:
        """The element of this key lies in deferred/, under this name, and is due then (monotonic seconds)."""
        self.deferred[encoded] = deferred
        heapq.heappush(self._timers, (until, element_of(deferred), deferred))

    def block(self, encoded: str, name: str) -> None:
        """What waits under this name is ready when the element of its key that is in flight is done."""
        self._blocked[encoded] = min(name, self._blocked.get(encoded, name))

    def unblock(self, encoded: str) -> None:
        """The element of this key is done."""
        blocked = self._blocked.pop(encoded, None)
        if blocked:
            heapq.heappush(self._again, blocked)

    def pass_over(self, name: str) -> None:
        """The oldest name is of a key that people hold. (If it waits in pending/, it is found there
        again.)"""
        if self.pop(name):
            self._held.append(name)

    def resume_held(self) -> None:
        """Some key is held no more: what was passed over is ready again, or passed over again."""
        self._again += self._held
        heapq.heapify(self._again)
        self._held = []

    def _is_deferred(self, deferred: str) -> bool:
        return self.deferred.get(encoded_of(element_of(deferred))) == deferred

    def _deferred_as(self, name: str) -> str | None:
        """Return the name in deferred/ of the element of this name, if it is deferred."""
        deferred = self.deferred.get(encoded_of(name))
        return deferred if deferred and element_of(deferred) == name else None
