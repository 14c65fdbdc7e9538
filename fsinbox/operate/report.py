"""How an inbox stands, in words for people: a verdict, and how quickly the work goes."""

from __future__ import annotations

from time import time

from .units import length, seconds, when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .survey import Summary


class Limits:
    """What an inbox must not exceed, each None for no limit. `age` in seconds, of the oldest that is not
    done."""

    def __init__(
        self, age: float | None = None, pending: int | None = None, failed: int | None = None
    ) -> None:
        self.age = age
        self.pending = pending
        self.failed = failed


def verdict(found: Summary, limits: Limits) -> tuple[str, str]:
    """Return how it is in one line: "OK", "WARNING" (a person may want to know) or "CRITICAL" (a limit is
    exceeded), and why."""
    oldest = max(
        (age for age in (found.oldest_waiting, found.oldest_out, found.oldest_deferred) if age is not None),
        default=0.0,
    )
    broken = []
    if limits.age is not None and oldest > limits.age:
        broken.append(f"the oldest is there for {seconds(oldest)}, more than {seconds(limits.age)}")
    if limits.pending is not None and found.waiting > limits.pending:
        broken.append(f"{found.waiting} wait, more than {limits.pending}")
    if limits.failed is not None and found.failed > limits.failed:
        broken.append(f"{found.failed} failed, more than {limits.failed}")
    odd = oddities(found, failures=limits.failed is None)
    if broken:
        return "CRITICAL", "; ".join(broken + odd)
    if odd:
        return "WARNING", "; ".join(odd)
    if not found.waiting:
        return "OK", "nothing waits"
    text = f"{found.waiting} {'waits' if found.waiting == 1 else 'wait'}"
    return "OK", f"{text}, done in about {length(found.pace.to_empty)}" if found.pace.to_empty else text


def oddities(found: Summary, *, failures: bool) -> list[str]:
    """Return what a person may want to know though no limit says so; that something has failed only if
    `failures`."""
    odd = []
    if found.stuck is not None:
        odd.append(f"the lock is held, and all adds wait: {found.stuck}")
    missing = [str(one["shard"]) for one in found.consumers if not one["holder"]]
    there = found.waiting + found.out + found.deferred + found.dropped
    if found.consumer is None and there:
        odd.append(f"nobody consumes, and {there} {'is' if there == 1 else 'are'} there")
    elif missing and found.consumer:
        odd.append(f"no consumer of shard {', '.join(missing)}: its keys wait")
    odd += [f"the lease of {one['holder']} has lapsed" for one in found.consumers if one.get("lapsed")]
    if found.paused:
        odd.append(pause(found))
    if found.failed and failures:
        odd.append(f"{found.failed} failed: see `fsinbox failed`")
    return odd


def pause(found: Summary) -> str:
    """Return who has paused the consumer, and until when."""
    until = (
        "until it is resumed"
        if found.paused_until is None
        else f"until {when(int(found.paused_until * 1e9))[:19]}+00:00"
    )
    return f"paused {until}{f' by {found.paused_by}' if found.paused_by else ''}"


def rate(found: Summary) -> str:
    """Return how quickly the work goes: "12.3/min over the last 4m"."""
    pace = found.pace
    if pace.rate is None:
        return "unknown: only `fsinbox consume` keeps an account"
    last = "" if pace.last is None else f"; the last {seconds(time() - pace.last)} ago"
    return f"{pace.rate:.4g}/min acknowledged over the last {seconds(pace.window)}{'' if pace.rate else last}"
