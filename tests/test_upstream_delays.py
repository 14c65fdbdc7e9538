"""What other queues test of delays, and of the first value that wins: their cases under their own names,
asked of an inbox. Their clocks are stepped; here a consumer's is.

client-go   util/workqueue/delaying_queue_test.go: a set of keys, AddAfter. (TestDeduping is three here)
BullMQ      tests/delay.test.ts, deduplication.test.ts, job.test.ts (.promote): jobs with a delay, the first
            of an id wins. (The restart is a case of version 1's test_delay.ts)
Graphile    __tests__/main.runTaskListOnce.test.ts, workerUtils.addJob.test.ts: run_at, job_key and its modes.
            (preserve_run_at, a new value at the old time, is not to be had: a newer value brings its own)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest

from fsinbox import Element, Inbox
from fsinbox.operate.steering import Steering


class Clock:
    """A consumer's clock, which can be stepped."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = time.time_ns

    def __call__(self) -> int:
        return self._real() + int(self.ahead * 1e9)

    def step(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with mock.patch("fsinbox.consumer.ownership.time_ns", clock):
        yield clock


@pytest.fixture
def inbox(inbox_dir: Path, clock: Clock) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="text", max_inflight=20) as opened:
        yield opened


def take(inbox: Inbox) -> Element | None:
    """Take what may be taken by the clock as it is now. (A consumer looks at it every 20 ms.)"""
    consumer = inbox._taking()._consume()
    consumer._next_look = 0.0
    return inbox.take()


def drain(inbox: Inbox) -> list[tuple[str, str]]:
    """Take and acknowledge all that may be taken; return keys and values."""
    found = []
    while element := take(inbox):
        found.append((element.key, element.value))
        element.ack()
    return found


# --- client-go ----------------------------------------------------------------------------------------


def test_client_go_simple_queue(inbox: Inbox, clock: Clock) -> None:
    inbox.add("foo", "1", delay=50)
    assert take(inbox) is None
    clock.step(60)
    assert drain(inbox) == [("foo", "1")]
    clock.step(10_000)  # past the next heartbeat: it is not added again
    assert take(inbox) is None
    assert len(inbox) == 0


def test_client_go_deduping(inbox: Inbox, clock: Clock) -> None:
    inbox.add("foo", "1", delay=50)
    inbox.add("foo", "2", delay=70)
    assert take(inbox) is None
    clock.step(80)
    assert drain(inbox) == [("foo", "2")]
    clock.step(40)
    assert take(inbox) is None  # not a second time


def test_client_go_deduping_again_but_this_time_the_earlier_should_override(
    inbox: Inbox, clock: Clock
) -> None:
    """There the earlier of two times counts; here the newer value's, which is the earlier one this time."""
    inbox.add("foo", "1", delay=50)
    assert take(inbox) is None
    inbox.add("foo", "2", delay=30)
    assert take(inbox) is None
    clock.step(40)
    assert drain(inbox) == [("foo", "2")]
    clock.step(1)
    assert take(inbox) is None
    clock.step(60)  # past the time of the first
    assert take(inbox) is None


def test_client_go_add_two_fire_early(inbox: Inbox, clock: Clock) -> None:
    inbox.add("foo", "1", delay=1000)
    inbox.add("bar", "1", delay=50)
    assert take(inbox) is None
    clock.step(60)
    assert drain(inbox) == [("bar", "1")]
    inbox.add("baz", "1", delay=clock.ahead + 2000)
    assert take(inbox) is None
    clock.step(1000)
    assert drain(inbox) == [("foo", "1")]
    clock.step(2000)
    assert drain(inbox) == [("baz", "1")]


def test_client_go_copy_shifting(inbox: Inbox, clock: Clock) -> None:
    """Three that are due at once. (There by their times; here by their arrival.)"""
    inbox.add("foo", "1", delay=1000)
    inbox.add("bar", "1", delay=500)
    inbox.add("baz", "1", delay=250)
    assert take(inbox) is None
    clock.step(2000)
    assert [key for key, _ in drain(inbox)] == ["foo", "bar", "baz"]


def test_client_go_deduping_again_but_this_time_item_is_being_processed(inbox: Inbox, clock: Clock) -> None:
    inbox.add("foo", "1")
    element = take(inbox)
    assert element
    assert inbox.add("foo", "2", delay=50) == "behind"
    assert take(inbox) is None
    element.ack()
    assert take(inbox) is None
    clock.step(60)
    assert drain(inbox) == [("foo", "2")]


# --- BullMQ: delays -----------------------------------------------------------------------------------


def test_bullmq_should_process_a_delayed_job_only_after_delayed_time(inbox: Inbox, clock: Clock) -> None:
    inbox.add("job", "1", delay=1000)
    for _ in range(9):
        clock.step(100)
        assert take(inbox) is None
    clock.step(101)
    assert drain(inbox) == [("job", "1")]


def test_bullmq_should_process_delayed_jobs_in_correct_order_respecting_delay(
    inbox: Inbox, clock: Clock
) -> None:
    delays = [5, 3, 9, 1, 7]
    for number in delays:
        inbox.add(f"job-{number}", "1", delay=number * 100)
    found = []
    assert take(inbox) is None
    for _ in range(10):
        clock.step(100)
        found += drain(inbox)
    assert [key for key, _ in found] == [f"job-{number}" for number in sorted(delays)]


def test_bullmq_should_process_delayed_jobs_in_correct_order_even_in_case_of_restart(
    inbox_dir: Path, clock: Clock
) -> None:
    found = []
    with Inbox(inbox_dir, codec="text") as inbox:
        for number in (4, 2, 3, 1):
            inbox.add(f"job-{number}", "1", delay=number * 100)
        assert take(inbox) is None
    for _ in range(5):
        clock.step(100)
        with Inbox(inbox_dir, codec="text") as inbox:
            found += drain(inbox)
    assert [key for key, _ in found] == ["job-1", "job-2", "job-3", "job-4"]


def test_bullmq_should_process_delayed_jobs_with_exact_same_timestamps_in_correct_order_fifo(
    inbox: Inbox, clock: Clock
) -> None:
    moment = time.time() + 100
    for number in range(12):
        inbox.add(f"job-{number}", "1", not_before=moment)
    assert take(inbox) is None
    clock.step(101)
    assert [key for key, _ in drain(inbox)] == [f"job-{number}" for number in range(12)]


def test_bullmq_should_process_a_delayed_job_added_after_an_initial_long_delayed_job(
    inbox: Inbox, clock: Clock
) -> None:
    inbox.add("in-a-year", "1", delay=365 * 86_400)
    assert take(inbox) is None
    clock.step(1000)
    inbox.add("soon", "1", delay=clock.ahead + 1000)
    assert take(inbox) is None
    clock.step(1001)
    assert drain(inbox) == [("soon", "1")]
    assert len(inbox) == 1


def test_bullmq_when_delay_is_provided_as_0_should_add_job_directly_into_wait_state(inbox: Inbox) -> None:
    inbox.add("job", "1", delay=0)
    assert drain(inbox) == [("job", "1")]


def test_bullmq_should_process_delayed_jobs_concurrently_respecting_delay_and_concurrency(
    inbox: Inbox, clock: Clock
) -> None:
    for number in range(10):
        inbox.add(f"job-{number}", "1", delay=clock.ahead + 250)
        assert take(inbox) is None
        clock.step(5)
    clock.step(250)
    elements = [take(inbox) for _ in range(11)]
    assert [element and element.key for element in elements] == [*(f"job-{n}" for n in range(10)), None]


def test_bullmq_when_failed_jobs_are_retried_and_moved_to_delayed_processes_jobs_without_getting_stuck(
    inbox: Inbox, clock: Clock
) -> None:
    for number in range(2):
        inbox.add(f"bar{number}", "1")
    for _ in range(2):
        element = take(inbox)
        assert element
        element.nack(10)
    assert take(inbox) is None
    clock.step(11)
    assert drain(inbox) == [("bar0", "1"), ("bar1", "1")]
    assert len(inbox) == 0


def test_bullmq_can_promote_a_delayed_job_to_be_executed_immediately(inbox: Inbox, clock: Clock) -> None:
    inbox.add("job", "1", delay=100)
    assert take(inbox) is None
    with Steering(inbox.path) as steering:
        assert [steering.requeue(row) for row in steering.rows(("deferred",))] == ["queued"]
    assert drain(inbox) == [("job", "1")]
    clock.step(101)
    assert take(inbox) is None


# --- BullMQ: the first of an id wins ------------------------------------------------------------------


def test_bullmq_when_added_again_with_same_deduplication_id_emits_deduplicated_event(
    inbox: Inbox, clock: Clock
) -> None:
    assert inbox.add("id", "0", delay=100, if_waiting="keep") == "new"
    for number in range(1, 5):
        assert inbox.add("id", str(number), delay=100, if_waiting="keep") == "kept"
        assert take(inbox) is None
    clock.step(101)
    assert drain(inbox) == [("id", "0")]


def test_bullmq_when_ttl_is_provided_uses_a_fixed_time_period(inbox: Inbox, clock: Clock) -> None:
    """At most once in 20 s, however often it is added."""
    found = []
    for second in range(60):
        inbox.add("id", str(second), delay=clock.ahead + 20, if_waiting="keep")
        found += drain(inbox)
        clock.step(1)
    assert len(found) in (2, 3)
    assert found[0] == ("id", "0")


def test_bullmq_when_extend_and_replace_resets_ttl_and_removes_last_job_if_it_is_in_delayed_state(
    inbox: Inbox, clock: Clock
) -> None:
    """With `replace` and `extend`: the last one, when it has been quiet for 20 s."""
    for second in range(30):
        inbox.add("id", str(second), delay=clock.ahead + 20)
        assert take(inbox) is None
        clock.step(1)
    clock.step(20)
    assert drain(inbox) == [("id", "29")]


def test_bullmq_when_removing_deduplicated_job_removes_deduplication_key(inbox: Inbox) -> None:
    inbox.add("id", "1", delay=100, if_waiting="keep")
    assert take(inbox) is None
    with Steering(inbox.path) as steering:
        assert [steering.discard(row) for row in steering.rows(("deferred",))] == ["discarded"]
    assert inbox.add("id", "2", if_waiting="keep") == "new"
    assert drain(inbox) == [("id", "2")]


def test_bullmq_when_replace_is_provided_as_true_removes_last_job_if_it_is_in_delayed_state(
    inbox: Inbox, clock: Clock
) -> None:
    inbox.add("a1", "bar", delay=500)
    assert take(inbox) is None
    clock.step(150)
    assert inbox.add("a1", "baz", delay=clock.ahead + 250) == "new"  # (it was deferred: it has no place)
    clock.step(251)
    assert drain(inbox) == [("a1", "baz")]
    inbox.add("a1", "bax", delay=clock.ahead + 500)
    clock.step(501)
    assert drain(inbox) == [("a1", "bax")]


def test_bullmq_when_keep_last_if_active_should_store_next_job_data_and_create_new_job_when_completed(
    inbox: Inbox,
) -> None:
    inbox.add("id", "1")
    element = take(inbox)
    assert element
    assert inbox.add("id", "2") == "behind"
    assert inbox.add("id", "3") == "replaced"
    assert take(inbox) is None
    element.ack()
    assert drain(inbox) == [("id", "3")]


# --- Graphile Worker ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [lambda moment: moment, lambda moment: datetime.fromtimestamp(moment, UTC)],
    ids=["seconds", "datetime"],
)
def test_graphile_supports_future_scheduled_jobs(
    inbox: Inbox, clock: Clock, when: Callable[[float], object]
) -> None:
    inbox.add("job", "1", not_before=when(time.time() + 3600))
    assert drain(inbox) == []
    clock.step(3599)
    assert drain(inbox) == []
    clock.step(2)
    assert drain(inbox) == [("job", "1")]


def test_graphile_allows_update_of_pending_jobs(inbox: Inbox, clock: Clock) -> None:
    """Both the payload and run_at."""
    inbox.add("abc", "wrong", delay=60)
    assert inbox.add("abc", "right", delay=30) == "replaced"
    assert drain(inbox) == []
    clock.step(31)
    assert drain(inbox) == [("abc", "right")]
    clock.step(60)
    assert drain(inbox) == []


def test_graphile_schedules_a_new_job_if_existing_is_being_processed(inbox: Inbox) -> None:
    inbox.add("abc", "first")
    element = take(inbox)
    assert element
    assert inbox.add("abc", "second") == "behind"
    element.ack()
    assert drain(inbox) == [("abc", "second")]


def test_graphile_schedules_a_new_job_if_existing_is_completed(inbox: Inbox) -> None:
    inbox.add("abc", "first")
    assert drain(inbox) == [("abc", "first")]
    assert inbox.add("abc", "second") == "new"
    assert drain(inbox) == [("abc", "second")]


def test_graphile_schedules_a_new_job_if_the_existing_is_pending_retry(inbox: Inbox, clock: Clock) -> None:
    """The new one runs at once, and the one that waits for its retry does not any more."""
    inbox.add("abc", "first", delay=10)
    assert drain(inbox) == []
    clock.step(11)
    element = take(inbox)
    assert element
    element.nack(3600)
    inbox.add("abc", "second")
    assert drain(inbox) == [("abc", "second")]
    clock.step(3601)
    assert drain(inbox) == []


def test_graphile_supports_the_job_key_api(inbox: Inbox) -> None:
    outcomes = [inbox.add("UNIQUE", str(number)) for number in (1, 2, 3, 4)]
    assert outcomes == ["new", "replaced", "replaced", "replaced"]
    assert drain(inbox) == [("UNIQUE", "4")]


def test_graphile_supports_the_job_key_api_with_job_key_mode(inbox: Inbox, clock: Clock) -> None:
    """`replace` and `unsafe_dedupe`; not `preserve_run_at`."""
    inbox.add("UNIQUE", "1", delay=60)
    assert inbox.add("UNIQUE", "3", delay=10, if_waiting="keep") == "kept"
    assert drain(inbox) == []
    clock.step(11)
    assert drain(inbox) == []
    inbox.add("UNIQUE", "4", delay=clock.ahead + 100)
    clock.step(60)
    assert drain(inbox) == []
    clock.step(41)
    assert drain(inbox) == [("UNIQUE", "4")]


def test_graphile_pending_jobs_can_be_removed(inbox: Inbox, clock: Clock) -> None:
    inbox.add("abc", "1", delay=60)
    with Steering(inbox.path) as steering:
        assert [steering.discard(row) for row in steering.rows(("waiting",))] == ["discarded"]
    clock.step(61)
    assert drain(inbox) == []


# --- ours, of which they have no case -----------------------------------------------------------------


def test_what_is_delayed_outlives_its_process(inbox_dir: Path, clock: Clock) -> None:
    """There what is delayed is lost with the process."""
    with Inbox(inbox_dir, codec="text") as inbox:
        inbox.add("foo", "1", delay=50)
        assert take(inbox) is None
    clock.step(60)
    with Inbox(inbox_dir, codec="text") as inbox:
        assert drain(inbox) == [("foo", "1")]


def test_no_delay_is_at_once_and_less_is_refused(inbox: Inbox) -> None:
    inbox.add("foo", "1", delay=0)
    with pytest.raises(ValueError, match="delay"):
        inbox.add("bar", "1", delay=-1)
    inbox.add("baz", "1", not_before=time.time() - 1)
    assert [key for key, _ in drain(inbox)] == ["foo", "baz"]


def test_a_failed_value_that_was_delayed_is_retried_at_once(inbox: Inbox, clock: Clock) -> None:
    inbox.add("job", "1", delay=100)
    assert take(inbox) is None
    clock.step(101)
    element = take(inbox)
    assert element
    element.fail("no")
    clock.step(-101)  # whatever the clock says
    with Steering(inbox.path) as steering:
        assert [steering.retry(row) for row in steering.rows(("failed",))] == ["queued"]
    assert drain(inbox) == [("job", "1")]


def test_what_is_in_flight_can_be_put_off(inbox: Inbox, clock: Clock) -> None:
    inbox.add("job", "1")
    element = take(inbox)
    assert element
    element.nack(200)
    assert take(inbox) is None
    clock.step(201)
    assert drain(inbox) == [("job", "1")]


def test_the_first_value_of_a_key_is_kept_until_it_is_taken(inbox: Inbox) -> None:
    assert inbox.add("id", "1", if_waiting="keep") == "new"
    assert inbox.add("id", "2", if_waiting="keep") == "kept"
    assert drain(inbox) == [("id", "1")]
    assert inbox.add("id", "3", if_waiting="keep") == "new"  # it is done, and kept nowhere


def test_what_is_in_flight_keeps_nothing_out(inbox: Inbox) -> None:
    """There such a job is lost in simple mode: what it is about came after the other had begun."""
    inbox.add("id", "1")
    element = take(inbox)
    assert element
    assert inbox.add("id", "2", if_waiting="keep") == "behind"
    assert inbox.add("id", "3", if_waiting="keep") == "kept"
    element.ack()
    assert drain(inbox) == [("id", "2")]


def test_the_first_value_of_each_key_is_kept(inbox: Inbox) -> None:
    for number in range(6):
        inbox.add(f"id-{number % 2}", str(number), if_waiting="keep")
    assert drain(inbox) == [("id-0", "0"), ("id-1", "1")]


def test_of_many_the_first_of_each_key_is_kept(inbox: Inbox) -> None:
    pairs = [("id", str(number)) for number in range(4)] + [("other", "1")]
    counts = inbox.add_many(pairs, if_waiting="keep")
    assert counts == {"new": 2, "replaced": 0, "behind": 0, "kept": 3}
    assert drain(inbox) == [("id", "0"), ("other", "1")]


def test_what_has_failed_keeps_nothing_out(inbox: Inbox) -> None:
    inbox.add("abc", "first")
    element = take(inbox)
    assert element
    element.fail("for good")
    assert inbox.add("abc", "second", if_waiting="keep") == "new"
    assert drain(inbox) == [("abc", "second")]
