"""How an inbox stands, in words for people: a verdict, and how quickly the work goes."""

from __future__ import annotations

from dataclasses import dataclass
from time import time

from .units import length, seconds, when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .status import Summary


@dataclass(frozen=True, slots=True)
class Limits:
    """What an inbox must not exceed; None: no limit.

    age      seconds, of the oldest element that is waiting, in flight or deferred, and not for later
    pending  elements that are waiting, and not for later
    failed   elements that have failed
    """

    age: float | None = None
    pending: int | None = None
    failed: int | None = None


def verdict(found: Summary, limits: Limits) -> tuple[str, str]:
    """Return how the inbox stands: "OK", "WARNING" (a person may want to know) or "CRITICAL" (a limit is
    exceeded); and why, in a few sentences."""
    broken = _exceeded(found, limits)
    odd = _oddities(found, failures=limits.failed is None)
    if broken:
        return "CRITICAL", " ".join(broken + odd)
    if odd:
        return "WARNING", " ".join(odd)
    if not found.waiting:
        return "OK", "No elements are waiting."
    return "OK", f"{elements(found.waiting)} waiting{_for_later(found)}{_to_empty(found)}."


def later(found: Summary, state: str) -> str:
    """Return how many of those in a state are for later: "3 for later", "at least 3 for later"; "" if none
    is."""
    count = found.later[state]
    return f"{'' if found.later_known else 'at least '}{count} for later" if count else ""


def _for_later(found: Summary) -> str:
    text = later(found, "waiting")
    return f", {text}" if text else ""


def elements(count: int) -> str:
    """Return "1 element is" or "3 elements are"."""
    return f"{count} element is" if count == 1 else f"{count} elements are"


def _to_empty(found: Summary) -> str:
    return f"; about {length(found.pace.to_empty)} to empty" if found.pace.to_empty else ""


def _exceeded(found: Summary, limits: Limits) -> list[str]:
    ages = (found.oldest_waiting, found.oldest_in_flight, found.oldest_deferred)
    oldest = max((age for age in ages if age is not None), default=0.0)
    broken = []
    if limits.age is not None and oldest > limits.age:
        broken.append(f"The oldest element is {seconds(oldest)} old (limit {seconds(limits.age)}).")
    if limits.pending is not None and found.ready > limits.pending:
        broken.append(f"{elements(found.ready)} waiting (limit {limits.pending}).")
    if limits.failed is not None and found.failed > limits.failed:
        broken.append(f"{_failed(found)} (limit {limits.failed}).")
    return broken


def _oddities(found: Summary, *, failures: bool) -> list[str]:
    """Return what a person may want to know although no limit is exceeded; failed elements only if
    `failures`."""
    odd = []
    if found.stuck is not None:
        odd.append(f"All adds wait: the admission lock is held by {found.stuck}.")
    missing = [str(one["shard"]) for one in found.consumers if not one["holder"]]
    count = found.waiting + found.in_flight + found.deferred + max(0, found.dropped - found.ignored)
    if found.consumer is None and count:
        odd.append(f"No consumer is running; {elements(count)} waiting.")
    elif missing and found.consumer:
        odd.append(f"No consumer is running for shard {', '.join(missing)}; its keys wait.")
    odd += [f"The lease of {one['holder']} has lapsed." for one in found.consumers if one.get("lapsed")]
    if found.paused:
        odd.append(f"Consumers are {pause(found)}.")
    if found.slowed_until is not None:
        left = seconds(max(0.0, found.slowed_until - time()))
        odd.append(f"Slowed down: many elements in a row failed; the next is tried alone in {left}.")
    if found.failed and failures:
        odd.append(f"{_failed(found)}: run `fsinbox failed` to see why.")
    return odd


def _failed(found: Summary) -> str:
    return f"{found.failed} {'element' if found.failed == 1 else 'elements'} failed"


def pause(found: Summary) -> str:
    """Return until when consumers are paused, and by whom: "paused until resumed, by alice@web1"."""
    end = "resumed" if found.paused_until is None else when(int(found.paused_until * 1e9), "seconds")
    return f"paused until {end}{f', by {found.paused_by}' if found.paused_by else ''}"


def rate(found: Summary) -> str:
    """Return how quickly the work goes: "12.3/min acknowledged over the last 4m"."""
    pace = found.pace
    if pace.rate is None:
        return "unknown: only `fsinbox consume` writes statistics"
    last = "" if pace.last is None else f"; the last {seconds(time() - pace.last)} ago"
    return f"{pace.rate:.4g}/min acknowledged over the last {seconds(pace.window)}{'' if pace.rate else last}"
