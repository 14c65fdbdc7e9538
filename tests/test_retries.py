"""Failing elements: retries that outlast an outage, and the circuit breaker."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import json_lines, keys_in, reason, run
from test_consume import Place

from fsinbox import Element, Inbox
from fsinbox.consumer.attempts import deaths_alone, died_alone
from fsinbox.operate.stats import read_stats
from fsinbox.worker.backoff import MAX_ATTEMPTS, MAX_DEATHS, Backoff, Retries
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.observer import Observer
from fsinbox.worker.outcome import DONE, Outcome
from fsinbox.worker.pacing import Breaker, Pacing
from fsinbox.worker.runner import Runner

DAY = 24 * 3600.0
FAILED = Outcome("retry", "no route to host", "no route to host")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


# --- how long -----------------------------------------------------------------------------------------


def test_by_default_the_last_attempt_comes_more_than_a_day_after_the_first() -> None:
    shortest = sum(0.75 * min(2.0 ** (attempt - 1), 3600) for attempt in range(1, MAX_ATTEMPTS))
    assert DAY < shortest < 2 * DAY
    assert Backoff() == Backoff(1.0, 3600.0)
    assert Retries().max_attempts == MAX_ATTEMPTS


def test_without_a_bound_it_is_tried_again_for_ever_and_gives_up_by_age_only() -> None:
    for_ever = Retries(max_attempts=0)
    assert for_ever.why_no_more(10**6, 1e9) == ""
    assert for_ever.of(7) == "7"
    three_days = Retries(0, give_up_after=3 * DAY)
    assert three_days.why_no_more(1, 3 * DAY - 1) == ""
    assert three_days.why_no_more(9, 3 * DAY) == "attempt 9 failed, 259200 s after it was queued"
    assert Retries(2).why_no_more(2, 0) == "attempt 2 of 2 failed"


def test_max_attempts_0_tries_until_it_succeeds(place: Place) -> None:
    place.jobs(
        "def job(element):\n    note(element.attempts)\n    if element.attempts < 60: raise OSError('down')"
    )
    place.add("a")
    done = place.drain("--max-attempts", "0", "--retry-delay", "0.001", "--max-retry-delay", "0.002")
    assert place.notes[-1] == "60"
    assert "attempt 59 failed: OSError: down" in done.stderr


def test_what_was_queued_too_long_ago_fails_with_its_next_failed_attempt(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    raise OSError('down')")
    place.add("a")
    began = time.monotonic()
    place.drain("--give-up-after", "4", "--retry-delay", "0.3", "--max-retry-delay", "0.3", status=1)
    assert time.monotonic() - began >= 3
    assert len(place.notes) > 1
    assert "OSError: down" in reason(place.inbox, "a")


def test_a_retry_by_hand_has_its_whole_time_again(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    raise OSError('down')")
    place.add("a")
    words = ("--give-up-after", "60", "--once", "--handler", "jobs:job")
    old = time.time() - 3600
    (path,) = (place.inbox / "pending").iterdir()
    os.utime(path, (old, old))
    os.rename(path, path.with_name(f"{int(old * 1e9)}-a"))
    (place.inbox / "index").unlink()
    place.consume(*words, status=1)
    assert keys_in(place.inbox, "failed") == ["a"]
    run("retry", "a", cwd=place.path)
    place.consume(*words)
    assert keys_in(place.inbox, "deferred") == ["a"]


def test_the_age_of_a_value_is_that_of_the_newest(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        time.sleep(0.3)
        inbox.add("a", 2)
        element = inbox.take()
        assert element
        assert element.age < 0.3
        later = time.time() + 1000
        os.utime(element.path, (later, later))  # a clock that is ahead
        element.nack()
        again = inbox.take()
        assert again
        assert 0.3 <= again.age < 100


# --- deaths -------------------------------------------------------------------------------------------


def test_deaths_in_a_row_are_counted_in_the_note() -> None:
    said = ["", "suspect"]
    for _ in range(3):
        said.append(died_alone(said[-1]))
    assert said[2:] == ["died", "died2", "died3"]
    assert [deaths_alone(one) for one in said] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("bound", ["0", "45"])
def test_what_kills_the_consumer_is_given_up_after_a_few_deaths_whatever_the_bound(
    place: Place, bound: str
) -> None:
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    note(element.key)\n"
        "    if element.key == 'bad': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place.add("bad", "b")
    words = ("--handler", "jobs:job", "--max-attempts", bound)
    place.drain_through_deaths(*words, deaths=MAX_DEATHS, status=1)
    assert place.notes == ["bad"] * MAX_DEATHS + ["b"]
    assert "a consumer died 5 times while it was in flight" in reason(place.inbox, "bad")
    assert run("doctor", cwd=place.path, status=None).returncode == 0


def test_a_death_after_many_failed_attempts_is_no_reason_to_give_up(place: Place) -> None:
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    note(element.attempts)\n"
        "    if element.attempts < 9: raise OSError('down')\n"
        "    if element.attempts == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place.add("a")
    words = ("--handler", "jobs:job", "--retry-delay", "0.001", "--max-retry-delay", "0.001")
    place.drain_through_deaths(*words, deaths=1, status=0)
    assert place.notes[-1] == "10"
    assert place.left() == {}


# --- the circuit breaker ------------------------------------------------------------------------------


class Slowed(Observer):
    def __init__(self) -> None:
        self.told: list[float] = []

    def slowed(self, until: float) -> None:
        self.told.append(until)


def element_of(inbox: Inbox, key: str) -> Element:
    inbox.add(key, 1)
    element = inbox.take()
    assert element
    return element


def test_the_breaker_opens_after_enough_different_elements_and_closes_with_the_first_that_is_done(
    inbox_dir: Path,
) -> None:
    told: list[float] = []
    with Inbox(inbox_dir, max_inflight=5) as inbox:
        a, b, c, d = (element_of(inbox, key) for key in "abcd")
        breaker = Breaker(3, Backoff(0.1, 0.1))
        breaker.tell = told.append
        for element in (a, a, a, b, b):
            breaker.ended(element, FAILED)
        breaker.ended(c, Outcome("reject"))
        breaker.ended(d, Outcome("later"))
        assert (breaker.wait(0), breaker.wait(4), told) == (0.0, 0.0, [])
        breaker.ended(c, FAILED)
        assert len(told) == 1 and told[0] > time.time() - 1
        assert breaker.wait(1) is None
        assert 0 < (breaker.wait(0) or 0) <= 0.125
        breaker.ended(d, FAILED)  # it began before the pause: not the one that is tried
        assert len(told) == 1
        time.sleep(0.13)
        assert breaker.wait(0) == 0.0
        breaker.ended(d, FAILED)
        assert len(told) == 2
        breaker.ended(a, DONE)
        assert told[2:] == [0.0]
        assert breaker.wait(5) == 0.0
        breaker.ended(a, FAILED)
        breaker.ended(b, FAILED)
        assert breaker.wait(0) == 0.0  # counted anew


def test_in_an_outage_the_consumer_slows_down_and_goes_on_at_full_speed_after_it(inbox_dir: Path) -> None:
    down = True
    calls = []

    def handle(key: str, value: int) -> None:
        nonlocal down
        calls.append(key)
        if down and len(calls) > 6:
            down = False
        if down:
            raise OSError("no route to host")

    slowed = Slowed()
    with Inbox(inbox_dir, durable=False) as inbox:
        for number in range(30):
            inbox.add(f"k{number}", number)
        began = time.monotonic()
        tally = Runner(
            inbox,
            FunctionHandler("handle", handle),
            retries=Retries(backoff=Backoff(2, 2)),
            pacing=Pacing(Breaker(4, Backoff(0.2, 0.2))),
            drain=True,
            observers=[slowed],
        ).run()
        lasted = time.monotonic() - began
    assert tally.acknowledged == 30
    assert tally.retried == 6  # four that open it, and two that were tried
    assert len(slowed.told) == 4
    assert slowed.told[-1] == 0.0
    assert lasted >= 3 * 0.15


def test_a_consumer_that_is_slowed_down_says_so_everywhere_and_stops_at_once(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.key)\n    raise OSError('no route to host')")
    place.add(*map(str, range(40)))
    words = ("--handler", "jobs:job", "--breaker", "3", "--log-format", "json", "--retry-delay", "600")

    def standing() -> dict[str, object]:
        found: dict[str, object] = json.loads(run("status", "--json", cwd=place.path).stdout)
        return found

    with place.consumer(*words) as consumer:
        consumer.until(lambda: standing()["slowed_until"])
        text = run("status", cwd=place.path).stdout
        assert "WARNING: Slowed down: many elements in a row failed; the next is tried alone in" in text
        assert "fsinbox_consumer_slowed{inbox=" in run("metrics", cwd=place.path).stdout
        consumer.signal(signal.SIGTERM)
        consumer.end(0, patience=20)
    events = [line for line in json_lines(consumer.log) if line["event"] == "slowed"]
    assert events[0]["failed"] == 3
    assert events[0]["reason"] == "OSError: no route to host"
    assert len(place.notes) < 20  # after three: one, and pauses of 1, 2, 4, ... seconds
    assert standing()["slowed_until"] is None


def test_a_killed_consumer_leaves_no_breaker_behind(place: Place) -> None:
    place.jobs(
        "def job(element):\n    note(element.key)\n    if not Path('up').exists(): raise OSError('down')"
    )
    place.add(*"abcdef")
    words = ("--handler", "jobs:job", "--breaker", "2", "--retry-delay", "0.01", "--max-retry-delay", "0.01")
    with place.consumer(*words) as consumer:
        consumer.until(lambda: "slowed down: 2 elements in a row failed" in consumer.log)
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    place.make("up")
    place.consume("--drain", *words)
    assert place.left() == {}
    with Inbox(place.inbox) as inbox:
        assert [stats.slowed_until for stats in read_stats(inbox.layout)] == [0.0]


def test_the_breaker_can_be_turned_off(place: Place) -> None:
    place.jobs("def job(element):\n    raise OSError('down')")
    place.add(*map(str, range(25)))
    done = place.drain("--breaker", "0", "--max-attempts", "1", status=1)
    assert "slowed down" not in done.stderr
    assert len(place.left()["failed"]) == 25
