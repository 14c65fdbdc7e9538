"""close() while another thread is in a call: the call ends rightly, or raises WrongState, and writes nowhere
else."""

from __future__ import annotations

import gc
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import wait_until

from fsinbox import Inbox, WrongState
from tests.shim import intercepted
from tests.usual import drain, held, is_free, names, take


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Open a foreign folder so often that it has every number that was given back; return its path."""
    fds: list[int] = []
    folder = tmp_path / "foreign"
    folder.mkdir()

    def take_numbers() -> Path:
        fds.extend(os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for _ in range(40))
        return folder

    yield take_numbers
    for fd in fds:
        os.close(fd)


def ended(call: Future[object]) -> str:
    """Return how a call ended: what it returned, or "closed"."""
    try:
        return str(call.result(20))
    except WrongState as error:
        assert "was closed" in str(error) or "was requeued" in str(error)
        return "closed"


class Slow(io.BytesIO):
    """A stream that gives nothing before it is told to."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.begun.set()
        assert self.go_on.wait(20)
        return super().read(size)


def check(path: Path, foreign: Path, key: str, outcome: str) -> None:
    """What was said is so, and nothing is left, or was written elsewhere."""
    assert os.listdir(foreign) == []
    assert is_free(path)
    with Inbox(path, codec="bytes") as again:
        assert names(again, "tmp") == names(again, "inflight") == []
        assert drain(again) == ([] if outcome == "closed" else [(key, b"1")])


def test_an_add_that_waits_for_the_lock_ends_in_its_inbox(
    inbox_dir: Path, threads: ThreadPoolExecutor, foreign: Callable[[], Path]
) -> None:
    inbox = Inbox(inbox_dir, codec="bytes")
    with held(inbox_dir):
        call = threads.submit(inbox.add, "k", b"1")
        wait_until(lambda: names(inbox, "tmp"))
        time.sleep(0.05)
        inbox.close()
        folder = foreign()
        assert not call.done()
    outcome = ended(call)
    assert outcome == "new"
    check(inbox_dir, folder, "k", outcome)


def test_an_add_of_a_slow_stream_ends_in_its_inbox(
    inbox_dir: Path, threads: ThreadPoolExecutor, foreign: Callable[[], Path]
) -> None:
    inbox = Inbox(inbox_dir, codec="bytes")
    stream = Slow(b"1")
    call = threads.submit(inbox.add_stream, "k", stream)
    assert stream.begun.wait(20)
    inbox.close()
    folder = foreign()
    stream.go_on.set()
    check(inbox_dir, folder, "k", ended(call))


def test_an_add_is_closed_under_at_each_of_its_calls(
    inbox_dir: Path, threads: ThreadPoolExecutor, foreign: Callable[[], Path]
) -> None:
    folder = foreign()

    def closed_under(nth: int) -> bool:
        """Have it closed at the nth call, and wait for that; False if there are fewer."""
        inbox = Inbox(inbox_dir, codec="bytes")
        seen = 0

        def hook(
            name: str, call: Callable[..., object], arguments: tuple[object, ...], others: dict[str, object]
        ) -> object:
            nonlocal seen
            if threading.current_thread() is not threading.main_thread():
                seen += 1
                if seen == nth:
                    closing = threading.Thread(target=inbox.close)
                    closing.start()
                    closing.join()
                    foreign()
            return call(*arguments, **others)

        with intercepted(hook):
            outcome = ended(threads.submit(inbox.add, "k", b"1"))
        inbox.close()
        check(inbox_dir, folder, "k", outcome)
        return seen >= nth

    assert next(nth for nth in range(1, 100) if not closed_under(nth)) > 10


@pytest.mark.parametrize("watch", ["events", "poll"])
def test_a_take_that_waits_raises_and_the_inbox_can_be_consumed_at_once(
    inbox_dir: Path, threads: ThreadPoolExecutor, watch: str, foreign: Callable[[], Path]
) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    inbox = Inbox(inbox_dir, codec="bytes", watch=watch)
    waiting = [threads.submit(inbox.take, None) for _ in range(3)]
    wait_until(lambda: inbox._taking().consumer)
    time.sleep(0.2)
    inbox.close()
    assert {ended(call) for call in waiting} == {"closed"}
    assert len(os.listdir("/proc/self/fd")) == before
    with Inbox(inbox_dir, codec="bytes") as again:
        again.add("k", b"1")
        assert drain(again) == [("k", b"1")]
    assert os.listdir(foreign()) == []


@pytest.mark.parametrize("nth", range(1, 40, 3))
def test_what_a_take_has_in_its_hands_when_it_is_closed_under_it_is_not_left_in_flight(
    inbox_dir: Path, threads: ThreadPoolExecutor, nth: int
) -> None:
    """close() comes at one of its calls, and waits, or is there first."""
    inbox = Inbox(inbox_dir, codec="bytes", max_inflight=3)
    inbox.add("k", b"1")
    inbox.add("l", b"1")
    take(inbox)
    seen = 0
    closing = threading.Thread(target=inbox.close)

    def hook(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], others: dict[str, object]
    ) -> object:
        nonlocal seen
        if threading.current_thread() not in (threading.main_thread(), closing):
            seen += 1
            if seen == nth:
                closing.start()
                closing.join(0.05)
        return call(*arguments, **others)

    with intercepted(hook):
        outcome = ended(threads.submit(inbox.take, 0.0))
    if seen < nth:
        closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert outcome == "closed" or "inflight" in outcome
    with Inbox(inbox_dir, codec="bytes") as again:
        assert names(again, "inflight") == []
        assert drain(again) == [("k", b"1"), ("l", b"1")]


def test_an_element_that_is_ended_while_the_inbox_is_closed_is_ended_or_requeued(
    inbox_dir: Path, threads: ThreadPoolExecutor
) -> None:
    for end in ("ack", "nack", "fail") * 10:
        inbox = Inbox(inbox_dir, codec="bytes", durable=False)
        inbox.add("k", b"1")
        element = take(inbox)
        words = ("no",) if end == "fail" else ()
        call = threads.submit(getattr(element, end), *words)
        inbox.close()
        outcome = ended(call)
        with Inbox(inbox_dir, codec="bytes", durable=False) as again:
            assert names(again, "inflight") == []
            failed = [path.unlink() for path in (inbox_dir / "failed").iterdir()]
            assert len(drain(again)) == (1 if outcome == "closed" or end == "nack" else 0)
            assert len(failed) == (2 if end == "fail" and outcome != "closed" else 0)


def test_inboxes_that_are_closed_and_opened_under_producers_get_only_what_is_theirs(
    tmp_path: Path, threads: ThreadPoolExecutor, figure: Callable[[str], None]
) -> None:
    """The number of a descriptor of the one is at once that of a folder of the other."""
    added: dict[str, set[str]] = {"one": set(), "two": set()}
    refused = 0
    for turn in range(100):
        which, other = ("one", "two") if turn % 2 else ("two", "one")
        inbox = Inbox(tmp_path / which, durable=False)
        start = threading.Barrier(4)

        def produce(
            name: str, inbox: Inbox = inbox, start: threading.Barrier = start, which: str = which
        ) -> int:
            start.wait()
            for number in range(1000):
                try:
                    inbox.add(f"{name}-{number}", which)
                except WrongState:
                    return number
                added[which].add(f"{name}-{number}")
            return 1000

        calls = [threads.submit(produce, f"{turn}-{thread}") for thread in range(3)]
        start.wait()
        time.sleep(0.001 * (turn % 7))
        inbox.close()
        with Inbox(tmp_path / other, durable=False) as another:
            refused += sum(call.result(20) < 1000 for call in calls)
            assert names(another, "tmp") == []
    for which, keys in added.items():
        with Inbox(tmp_path / which, durable=False) as inbox:
            assert names(inbox, "tmp") == []
            assert dict(drain(inbox)) == dict.fromkeys(keys, which)
    assert refused > 100
    figure(f"{refused} producers closed under, {sum(map(len, added.values()))} adds")
