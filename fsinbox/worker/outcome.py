"""What a handler is, and what becomes of an element that it has handled."""

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
    once."""

    kind: Literal["done", "retry", "later", "reject"]
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

    def handle(self, element: Element) -> Outcome:
        """Work on the element. Never raises."""

    def stop_now(self) -> None:
        """Stop what is running, as far as that is possible from outside."""
