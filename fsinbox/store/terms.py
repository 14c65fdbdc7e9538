"""On what terms a value is added: how lasting, not before when, and whether it replaces one that waits."""

from __future__ import annotations

from time import time_ns

from .amounts import checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal, TypedDict

    from .amounts import Time

    class How(TypedDict, total=False):
        """How a value is added; each may be left out.

        durable      whether add returns only when a power cut can no longer lose it; None: as the inbox says
        delay        how long it is not handed out: seconds, "5m" or a timedelta ...
        not_before   ... or the moment until which it is not: a datetime, or seconds since the epoch
        if_waiting   "replace": it takes the place of a value of its key that waits; "keep": that one stays,
                     and this one is not added
        timeout      how long to wait for room if the inbox is full (see Inbox.limit)
        """

        durable: bool | None
        delay: Time | None
        not_before: float | datetime | None
        if_waiting: Literal["replace", "keep"]
        timeout: Time


LONGEST = 3650 * 86_400
"""Seconds for which a value may be delayed: ten years. (Some file systems' times end in 2038.)"""


class Terms:
    """The same, checked. `not_before` in nanoseconds since the epoch; 0: at once. `timeout` in seconds."""

    __slots__ = ("durable", "not_before", "keep", "timeout")

    def __init__(
        self, *, durable: bool = True, not_before: int = 0, keep: bool = False, timeout: float = 0.0
    ) -> None:
        self.durable = durable
        self.not_before = not_before
        self.keep = keep
        self.timeout = timeout


_USUAL = {True: Terms(), False: Terms(durable=False)}


def terms_of(
    lasting: bool,
    *,
    durable: bool | None = None,
    delay: Time | None = None,
    not_before: float | datetime | None = None,
    if_waiting: str = "replace",
    timeout: Time = 0.0,
) -> Terms:
    """Return the terms of an add to an inbox whose adds are durable, or not. Raises ValueError."""
    if durable is None:
        durable = lasting
    if delay is None and not_before is None and if_waiting == "replace" and not timeout:
        return _USUAL[bool(durable)]
    if if_waiting not in ("replace", "keep"):
        raise ValueError(f"unknown if_waiting {if_waiting!r}: use 'replace' or 'keep'")
    length = checked(timeout=timeout)["timeout"]
    moment = _moment(delay, not_before)
    return Terms(durable=durable, not_before=moment, keep=if_waiting == "keep", timeout=length)


def _moment(delay: Time | None, not_before: float | datetime | None) -> int:
    """Return the moment, in nanoseconds since the epoch, before which a value is not handed out; 0 if it may
    be at once."""
    if delay is not None and not_before is not None:
        raise ValueError("delay and not_before say the same thing: give one of them")
    now = time_ns()
    if not_before is not None:
        moment = not_before if isinstance(not_before, int | float) else not_before.timestamp()
        left = moment - now / 1e9
    else:
        left = 0.0 if delay is None else checked(delay=delay)["delay"]
    if not left <= LONGEST:  # (NaN, too)
        raise ValueError(f"a value can be delayed for {LONGEST // 86_400} days at most, not {left:g} s")
    return now + int(left * 1e9) if left > 0 else 0
