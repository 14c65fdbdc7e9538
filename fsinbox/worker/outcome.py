"""What became of one element in the hands of a handler."""

from dataclasses import dataclass
from typing import Literal, Protocol

from ..element import Element


@dataclass(frozen=True, slots=True)
class Outcome:
    """`done`: acknowledge. `retry`: a failed attempt. `later`: try again, uncounted. `reject`: to failed/ at
    once."""

    kind: Literal["done", "retry", "later", "reject"]
    summary: str = ""
    """One line, for the log."""
    detail: str = ""
    """All of it (traceback, output), for failed/."""


DONE = Outcome("done")


class HandlerError(Exception):
    """The handler that was named cannot be used."""


class Handler(Protocol):
    """Something that works on elements, several at once if asked, each in a thread of the worker's."""

    name: str

    def handle(self, element: Element) -> Outcome:
        """Work on the element; never raises."""

    def stop_now(self) -> None:
        """End what is being worked on, as far as that is possible from outside."""
