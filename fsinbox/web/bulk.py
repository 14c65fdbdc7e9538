"""Changes of failed elements that ask first: counted, then confirmed, then made, some seconds at a time.

What is confirmed is what was counted, element by element: what fails meanwhile is not touched.
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

from ..operate.rows import Row
from ..operate.steering import Steering
from .listing import Narrowed

SECONDS = 10.0
"""How long one answer may take: proxies give up after half a minute or so."""

_KEPT = 200_000
"""Elements of plans that are remembered: 60 MB."""

_SAID = {
    "retry": {
        "queued": "queued again",
        "newer": "skipped (a newer value of the key is waiting, in flight or deferred)",
        "foreign": "skipped (not a regular file)",
        "gone": "not there any more",
    },
    "discard": {
        "discarded": "discarded",
        "gone": "not there any more",
        "full": "skipped (a directory with something in it)",
    },
}
"""What is done -> its outcomes, and what is said of them."""


@dataclass(slots=True)
class Plan:
    """What is to be done, "retry" or "discard", with which elements, the last first. `narrowed`: how they
    were chosen; None if one by one. `unread`: see listing.Matching. `more`: failed/ has more names than were
    looked at."""

    do: str
    rows: list[Row]
    narrowed: Narrowed | None = None
    unread: int = 0
    more: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)

    def carry_out(self, path: str) -> None:
        """Do it, for SECONDS at most: `rows` are those that are left. Raises
        UnusableInbox."""
        end = monotonic() + SECONDS
        with Steering(path) as steering:
            change = steering.retry if self.do == "retry" else steering.discard
            while self.rows:
                self.outcomes[change(self.rows.pop())] += 1
                if monotonic() > end:
                    return

    def says(self) -> str:
        """Return what became of the elements so far."""
        said = _SAID[self.do]
        first = next(iter(said))
        found = [
            f"{self.outcomes[one]:,} {text}"
            for one, text in said.items()
            if self.outcomes[one] or (one == first and self.do == "discard")
        ]
        return "; ".join(found) + "."


class Plans:
    """Plans that wait for their confirmation."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, str], Plan] = {}

    def keep(self, visitor: str, plan: Plan) -> str:
        """Keep a plan of a visitor (the secret of a session); return its name. The oldest ones are
        forgotten, when there are many elements in them."""
        name = secrets.token_urlsafe(16)
        self._plans[visitor, name] = plan
        while len(self._plans) > 1 and sum(len(one.rows) for one in self._plans.values()) > _KEPT:
            del self._plans[next(iter(self._plans))]
        return name

    def take(self, visitor: str, name: str) -> Plan | None:
        """Return a plan of this visitor, once; None if there is none."""
        return self._plans.pop((visitor, name), None)
