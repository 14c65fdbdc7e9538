"""What becomes of an element once its handler is done with it, and the count of that."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields

from ..element import Element
from ..store.errors import WrongState
from .backoff import Retries
from .outcome import Outcome

log = logging.getLogger("fsinbox")

_BY_HANDLER = {"acknowledged": "acknowledged", "requeued": "retried", "given up": "failed"}
"""Element.ended -> what that is called in a Tally."""


def about(element: Element, event: str, **more: object) -> dict[str, object]:
    """Return what a structured log says of an element, for `extra`."""
    return {"event": event, "key": element.key, "seq": element.seq, "attempts": element.attempts, **more}


@dataclass(slots=True)
class Tally:
    """What became of the elements of one run."""

    acknowledged: int = 0
    retried: int = 0
    superseded: int = 0
    failed: int = 0
    set_aside: int = 0
    """Files that cannot be elements, moved to failed/."""

    def add(self, other: Tally) -> None:
        """Count what another run has counted, too."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        aside = f", {self.set_aside} set aside in failed/" if self.set_aside else ""
        return (
            f"{self.acknowledged} acknowledged, {self.retried} requeued, "
            f"{self.superseded} dropped for a newer value, {self.failed} failed{aside}"
        )


class Ending:
    """Ends elements as their outcomes say, and counts them."""

    def __init__(self, tally: Tally, retries: Retries) -> None:
        self._tally = tally
        self._retries = retries

    def end(self, element: Element, outcome: Outcome) -> str:
        """End it; return what became of it: "acknowledged", "retried", "superseded" or "failed".

        A handler may have ended it itself: then it stays so. Raises LeaseLost, UnusableInbox.
        """
        try:
            became = self._by_handler(element, outcome) if element.ended else self._end(element, outcome)
        except WrongState:  # a thread that the handler has left behind has ended it just now
            became = self._by_handler(element, outcome)
        setattr(self._tally, became, getattr(self._tally, became) + 1)
        return became

    def _end(self, element: Element, outcome: Outcome) -> str:
        if outcome.kind == "done":
            element.ack()
            return "acknowledged"
        if not os.path.lexists(element.path) and not element.superseded():
            return self._lost(element, outcome)
        if outcome.kind == "cancelled":
            return self._cancelled(element)
        if outcome.kind == "later":
            return self._try_later(element, outcome)
        if outcome.kind == "reject" or self._retries.why_no_more(element.attempts, element.age):
            return self._fail(element, outcome)
        return self._retry(element, outcome)

    def _retry(self, element: Element, outcome: Outcome) -> str:
        delay = self._retries.backoff.after(element.attempts)
        log.warning(
            "key %r: attempt %s failed: %s; again in %.1f s",
            element.key,
            self._retries.of(element.attempts),
            outcome.summary,
            delay,
            extra=about(element, "retry", delay=delay, reason=outcome.summary),
        )
        return "retried" if element.nack(delay) else "superseded"

    def _try_later(self, element: Element, outcome: Outcome) -> str:
        delay = self._retries.backoff.by_age(element.seq / 1e9)
        log.info(
            "key %r: %s; again in %.1f s, uncounted",
            element.key,
            outcome.summary,
            delay,
            extra=about(element, "later", delay=delay, reason=outcome.summary),
        )
        return "retried" if element.release(delay) else "superseded"

    def _cancelled(self, element: Element) -> str:
        log.info(
            "key %r: ended the work on it, for a newer value waits",
            element.key,
            extra=about(element, "cancelled"),
        )
        return "retried" if element.release() else "superseded"

    def _fail(self, element: Element, outcome: Outcome) -> str:
        if not element.fail(outcome.detail):
            return "superseded"
        log.error(
            "key %r moved to failed/ after attempt %d: %s",
            element.key,
            element.attempts,
            outcome.summary,
            extra=about(element, "failed", reason=outcome.summary),
        )
        return "failed"

    def _lost(self, element: Element, outcome: Outcome) -> str:
        """The handler has removed the payload, and then failed: nothing is left to be tried again."""
        element.fail(outcome.detail)
        log.error(
            "key %r failed at attempt %d, and its payload was removed meanwhile, so it is not in failed/: %s",
            element.key,
            element.attempts,
            outcome.summary,
            extra=about(element, "failed", reason=outcome.summary),
        )
        return "failed"

    def _by_handler(self, element: Element, outcome: Outcome) -> str:
        became = _BY_HANDLER[element.ended]
        level = logging.DEBUG if outcome.kind == "done" else logging.WARNING
        log.log(
            level,
            "key %r: %s by the handler itself%s",
            element.key,
            element.ended,
            f", which then failed: {outcome.summary}" if outcome.summary else "",
            extra=about(element, "ended_by_handler", reason=outcome.summary, became=became),
        )
        return became
