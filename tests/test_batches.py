"""`consume --batch N`: many elements at once, and each alone when that has failed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import reason
from test_consume import Place

from fsinbox import Element, Inbox
from fsinbox.worker.backoff import Backoff, Retries
from fsinbox.worker.batches import BatchCommandHandler
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.intake import Batching
from fsinbox.worker.observer import Observer
from fsinbox.worker.outcome import HandlerError, Outcome
from fsinbox.worker.pacing import Breaker, Pacing
from fsinbox.worker.runner import Runner

KEYS = "abcdefghij"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    place.jobs("def job(elements): note(''.join(element.key for element in elements))")
    return place


@pytest.mark.parametrize("more", [(), ("--processes", "1"), ("--concurrency", "2")])
def test_a_function_gets_up_to_so_many_at_once(place: Place, more: tuple[str, ...]) -> None:
    place.add(*KEYS)
    done = place.drain("--batch", "4", *more)
    assert sorted(place.notes) == ["abcd", "efgh", "ij"]
    assert "10 acknowledged, 0 requeued" in done.stderr
    assert place.left() == {}


def test_a_coroutine_may_get_them(place: Place) -> None:
    place.jobs("async def job(elements): note(*(element.value for element in elements))")
    place.add(*"abc")
    place.drain("--batch", "2", "--timeout", "1m")
    assert place.notes == ["0 1", "2"]


def test_a_batch_waits_until_it_is_full_but_no_longer_than_that(place: Place) -> None:
    words = ("--handler", "jobs:job", "--batch", "3", "--batch-wait", "1.5")
    with place.consumer(*words) as consumer:
        consumer.until_idle()
        place.add("a")
        time.sleep(0.3)
        assert place.notes == []
        place.add("b", "c", "d")
        consumer.until(lambda: place.notes == ["abc"])
        consumer.until(lambda: place.notes == ["abc", "d"])
        place.add("e")
        time.sleep(0.3)
        consumer.signal(signal.SIGTERM)
        consumer.end(0)
    assert place.notes == ["abc", "d"]
    assert place.left() == {"pending": ["e"]}  # it was held for a batch, and is requeued uncounted
    place.jobs("def job(elements): note(*(element.attempts for element in elements))")
    place.drain("--batch", "3", "--batch-wait", "0.1")
    assert place.notes[2:] == ["1"]


POISON = (
    "from fsinbox import Reject, TryLater\n"
    "def job(elements):\n"
    "    note(''.join(f'{element.key}{element.attempts}' for element in elements))\n"
    "    if any(element.key == 'c' for element in elements): RAISE\n"
)


@pytest.mark.parametrize("more", [(), ("--processes", "1")])
@pytest.mark.parametrize("how", ["raise OSError('poison')", "raise Reject('poison')"])
def test_one_poison_element_does_not_take_the_others_along(
    place: Place, how: str, more: tuple[str, ...]
) -> None:
    place.jobs(POISON.replace("RAISE", how))
    place.add(*"abcde")
    done = place.drain("--batch", "3", "--max-attempts", "1", *more, status=1)
    assert place.notes == ["a1b1c1", "a1", "b1", "c1", "d1e1"]
    assert place.left() == {"failed": ["c"]}
    assert "poison" in reason(place.inbox, "c")
    assert "a batch of 3 failed:" in done.stderr
    assert "4 acknowledged, 0 requeued, 0 dropped for a newer value, 1 failed" in done.stderr


def test_try_later_puts_off_all_uncounted(place: Place) -> None:
    place.jobs(POISON.replace("RAISE", "raise TryLater('not now')"))
    place.add(*"abc")
    place.consume("--handler", "jobs:job", "--batch", "3", "--once")
    assert place.notes == ["a1b1c1"]
    assert sorted(place.left()["deferred"]) == ["a", "b", "c"]


@pytest.mark.parametrize("more", [(), ("--processes", "1")])
def test_partial_results_stay_and_only_the_rest_is_tried_again(place: Place, more: tuple[str, ...]) -> None:
    place.jobs(
        "def job(elements):\n"
        "    note(''.join(element.key for element in elements))\n"
        "    for element in elements:\n"
        "        if element.key == 'a': element.ack()\n"
        "        if element.key == 'b': element.fail('no good')\n"
        "        if element.key == 'c' and len(elements) > 1: raise OSError('down')\n"
    )
    place.add(*"abcd")
    done = place.drain("--batch", "4", *more, status=1)
    assert place.notes == ["abcd", "c", "d"]
    assert place.left() == {"failed": ["b"]}
    assert "3 acknowledged, 0 requeued, 0 dropped for a newer value, 1 failed" in done.stderr


def test_a_batch_that_takes_too_long_is_ended_and_each_has_the_whole_time_alone(place: Place) -> None:
    place.jobs(
        "import asyncio\n"
        "async def job(elements):\n"
        "    note(''.join(element.key for element in elements))\n"
        "    if any(element.key == 'b' for element in elements): await asyncio.sleep(3600)\n"
    )
    place.add(*"abc")
    place.drain("--batch", "3", "--timeout", "0.5", "--max-attempts", "1", status=1)
    assert place.notes == ["abc", "a", "b", "c"]
    assert place.left() == {"failed": ["b"]}


# --- commands -----------------------------------------------------------------------------------------


def test_a_command_gets_all_paths_and_a_line_of_json_for_each(place: Place) -> None:
    script = place.path / "work"
    script.write_text('#!/bin/sh\necho "$FSINBOX_COUNT $#" >>notes; cat "$@" >>payloads; cat >>lines\n')
    script.chmod(0o755)
    with Inbox(place.inbox, durable=False) as inbox:
        inbox.add_bytes("a", b"text")
        inbox.add_bytes("b/c d", b"\xff")
        inbox.add_bytes("e", b"more")
    place.consume("--exec", "./work {}", "--batch", "2", "--drain")
    assert place.notes == ["2 2", "1 1"]
    assert (place.path / "payloads").read_bytes() == b"text\xffmore"
    lines = [json.loads(line) for line in (place.path / "lines").read_text().splitlines()]
    told = [
        (line["key"], line["attempts"], line["size"], line.get("text"), line.get("base64")) for line in lines
    ]
    assert told == [("a", 1, 4, "text", None), ("b/c d", 1, 1, None, "/w=="), ("e", 1, 4, "more", None)]
    assert os.path.basename(lines[0]["path"]) == f"{lines[0]['seq']}-a"


def test_a_command_that_fails_is_run_for_each_alone(place: Place) -> None:
    place.add(*"abc")
    line = 'echo $(jq -r .key 2>/dev/null || grep -o \'"key": "."\') >>notes; ! grep -q 1 {}'
    done = place.consume(
        "--exec", line, "--shell", "--batch", "3", "--drain", "--max-attempts", "1", status=1
    )
    assert len(place.notes) == 4
    assert place.left() == {"failed": ["b"]}
    assert "a batch of 3 failed" in done.stderr


def test_braces_within_a_word_are_refused_unless_a_shell_runs_it() -> None:
    with pytest.raises(HandlerError, match="so it must be one of its own"):
        BatchCommandHandler("cp {} backup/{}.old")
    BatchCommandHandler("cp {} backup/{}.old", shell=True)


def test_a_function_that_cannot_take_them_is_refused(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    place.add("a")
    done = place.drain("--batch", "3", status=2)
    assert "jobs:job(key, value) cannot be called as func(elements)" in done.stderr
    FunctionHandler("a class that does not say", Silent(), batches=True)
    done = place.consume("--exec", "true", "--batch", "3", "--cancel-superseded", status=2)
    assert "does not go with --batch" in done.stderr


class Silent:
    __signature__ = "none"

    def __call__(self, *arguments: object) -> None: ...


# --- deaths, signals, and the rest ----------------------------------------------------------------------


def test_a_kill_leaves_each_to_be_tried_alone_and_takes_no_innocent_along(place: Place) -> None:
    place.jobs(
        "import signal\n"
        "def job(elements):\n"
        "    note(''.join(element.key for element in elements))\n"
        "    if any(element.key == 'b' for element in elements): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place.add(*"abcde")
    words = ("--handler", "jobs:job", "--batch", "3", "--batch-wait", "0.2", "--max-attempts", "2")
    place.drain_through_deaths(*words, deaths=2, status=1)
    assert place.notes == ["abc", "a", "b", "c", "de"]
    assert place.left() == {"failed": ["b"]}


def test_a_second_signal_requeues_the_batch_and_what_is_to_be_tried_alone(place: Place) -> None:
    place.jobs(
        "def job(elements):\n"
        "    note(''.join(f'{element.key}{element.attempts}' for element in elements))\n"
        "    if len(elements) > 1: raise OSError('down')\n"
        "    wait_for('never')\n"
    )
    place.add(*"abc")
    with place.consumer("--handler", "jobs:job", "--batch", "3") as consumer:
        consumer.until(lambda: place.notes == ["a1b1c1", "a1"])
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        consumer.signal(signal.SIGTERM)
        consumer.end(0, patience=30)
    assert "requeued 3 at the second signal" in consumer.log
    place.jobs("def job(elements): note(''.join(f'{element.key}{element.attempts}' for element in elements))")
    place.drain("--batch", "3")
    assert place.notes[2:] == ["a1b1c1"]


def test_a_first_signal_requeues_what_was_still_to_be_tried_alone(place: Place) -> None:
    place.jobs(
        "def job(elements):\n"
        "    note(''.join(element.key for element in elements))\n"
        "    if len(elements) > 1: raise OSError('down')\n"
        "    wait_for('go')\n"
    )
    place.add(*"abc")
    with place.consumer("--handler", "jobs:job", "--batch", "3") as consumer:
        consumer.until(lambda: place.notes == ["abc", "a"])
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        place.make("go")
        consumer.end(0)
    assert place.left() == {"pending": ["b", "c"]}


def test_a_consumer_that_starts_anew_hands_out_what_it_has_first(place: Place) -> None:
    place.add(*"abcdef")
    place.drain("--batch", "10", "--batch-wait", "60", "--max-elements", "3")
    assert place.notes == ["abc", "def"]


def test_a_slowed_consumer_tries_a_batch_of_one(inbox_dir: Path) -> None:
    batches = []
    down = True

    def handle(elements: list[Element]) -> None:
        nonlocal down
        batches.append("".join(element.key for element in elements))
        if len(batches) == 6:
            down = False
        if down:
            raise OSError("down")

    class Told(Observer):
        started_of: list[str] = []  # noqa: RUF012 - one test

        def started(self, element: Element, latency: float | None) -> None:
            self.started_of.append(element.key)

    told = Told()
    with Inbox(inbox_dir, durable=False, max_inflight=3) as inbox:
        for key in "abcdef":
            inbox.add(key, 1)
        tally = Runner(
            inbox,
            FunctionHandler("handle", handle, batches=True),
            batching=Batching(3),
            retries=Retries(backoff=Backoff(60, 60)),
            pacing=Pacing(Breaker(3, Backoff(0.05, 0.05))),
            observers=[told],
            once=False,
            drain=False,
            shutdown_timeout=None,
            progress=lambda tally: os.kill(os.getpid(), signal.SIGTERM) if tally.acknowledged else None,
        ).run()
    assert batches[:6] == ["abc", "a", "b", "c", "d", "e"]
    assert told.started_of[:5] == list("abcde")
    assert tally.retried >= 4


def test_a_payload_that_cannot_be_read_is_found_out_alone(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, durable=False, max_inflight=2) as inbox:
        for key in "ab":
            inbox.add(key, 1)
        first, second = inbox.take(), inbox.take()
        assert first and second
        os.unlink(second.path)
        outcome = BatchCommandHandler("true").handle_batch([first, second])
    assert outcome.kind == "retry"
    assert outcome != Outcome("retry")


def test_a_batch_is_one_span_with_a_link_to_each_producer(place: Place) -> None:
    pytest.importorskip("opentelemetry.sdk")
    place.jobs(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "def job(elements):\n"
        "    span = trace.get_current_span()\n"
        "    note(span.attributes['messaging.batch.message_count'], len(span.links))\n"
    )
    place.add("a", "b")
    place.drain("--batch", "5", "--trace")
    assert place.notes == ["2 0"]


def test_a_descriptor_of_one_payload_does_not_go_with_a_batch() -> None:
    with pytest.raises(HandlerError, match=r"\{fd\} is of one payload: leave it out with --batch"):
        BatchCommandHandler("cat {fd}")
