"""What a handler is, and what becomes of an element that it has handled."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ..element import Element
from ..store.printing import cut

_LONGEST_SUMMARY = 1000
_LONGEST_DETAIL = 96 * 1024
"""Characters; of what is longer the middle is left out. A message of megabytes would stall the log."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`done`: acknowledge. `retry`: a failed attempt. `later`: try again, uncounted. `reject`: to failed/ at
    once. `cancelled`: its work was ended because a newer value waits, uncounted."""

    kind: Literal["done", "retry", "later", "reject", "cancelled"]
    summary: str = ""
    """One line, for the log."""
    detail: str = ""
    """All of it (traceback, output), for failed/."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", cut(self.summary, _LONGEST_SUMMARY))
        object.__setattr__(self, "detail", cut(self.detail, _LONGEST_DETAIL))


DONE = Outcome("done")


class HandlerError(Exception):
    """The handler that was named cannot be used."""


class Handler(Protocol):
    """Works on elements, several at once if asked, each in a thread of the worker's."""

    name: str
    interruptible: bool
    """Whether `interrupt` can end its work."""

    def handle(self, element: Element) -> Outcome:
        """Work on the element. Never raises."""

    def interrupt(self, element: Element, *, force: bool) -> bool:
        """End the work on an element from outside: kindly, or by force. False if there is none (yet)."""

    def began(self, element: Element) -> float:
        """Return when (monotonic seconds) the work itself began, if that may be later than when the element
        was handed over; 0.0 if it is not, infinity if it has not begun."""

    def stop_now(self) -> None:
        """Stop what is running, as far as that is possible from outside."""


class BatchHandler(Handler, Protocol):
    """Works on batches of elements, too."""

    def handle_batch(self, elements: list[Element]) -> Outcome:
        """Work on them all, several batches at once if asked. Never raises. `interrupt` is called with the
        first one."""


class DetachedHandler(ABC):
    """One whose work goes on elsewhere: as long as it does, no thread need wait for it. Also a BatchHandler,
    called in a thread of the worker's, for what cannot be done without a wait."""

    @property
    @abstractmethod
    def readers(self) -> Collection[int]:
        """Descriptors: where there is something to read, `answers` has something to tell."""

    @abstractmethod
    def begin(self, elements: list[Element], *, is_batch: bool) -> bool:
        """Have them worked on, and do not wait. False if that cannot be: then `handle` can. Like `answers`,
        it is called by one thread only."""

    @abstractmethod
    def answers(self) -> Iterator[tuple[list[Element], Outcome | None, float]]:
        """Go through what has ended: elements that were begun, what their handler says, and when (monotonic
        seconds) it began. None: `handle`, called with them again, says it, for it has to wait for that."""
