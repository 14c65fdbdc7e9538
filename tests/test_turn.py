"""worker/turn.py: a thread that has handled an element ends it, and goes on with the next one itself."""

import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
from helpers import wait_until

from fsinbox import Element, Inbox
from fsinbox.store.errors import LeaseLost
from fsinbox.worker.crew import Crew
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.observer import Observer
from fsinbox.worker.outcome import Outcome
from fsinbox.worker.runner import Runner
from fsinbox.worker.turn import Turn


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, max_inflight=8) as inbox:
        yield inbox


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How often, and for how long at most, the main thread has slept."""
    limits: list[float | None] = []
    rest = Turn.rest

    def noted(turn: Turn, how: object, limit: float | None) -> None:
        limits.append(limit)
        rest(turn, how, limit)  # type: ignore[arg-type]

    monkeypatch.setattr(Turn, "rest", noted)
    return limits


class Told(Observer):
    """Notes in which threads elements were ended."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        self.threads.append(threading.current_thread().name)


def test_an_element_wakes_no_other_thread_as_long_as_there_is_work(
    inbox: Inbox, rests: list[float | None]
) -> None:
    inbox.add_many((f"key-{number}", number) for number in range(300))
    told, handled = Told(), list[int]()
    handler = FunctionHandler("f", lambda key, value: handled.append(value))
    Runner(inbox, handler, drain=True, observers=[told]).run()
    assert handled == list(range(300))
    assert told.threads.count("fsinbox-1") >= 298
    assert len(rests) <= 10


def test_handlers_at_once_start_each_other_and_all_is_handled_once(inbox: Inbox) -> None:
    inbox.add_many((f"key-{number}", number) for number in range(200))
    lock, handled, at_once = threading.Lock(), list[int](), list[int]()
    running = 0

    def work(key: str, value: int) -> None:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        sleep(0.001)
        with lock:
            running -= 1
            handled.append(value)

    tally = Runner(inbox, FunctionHandler("f", work), concurrency=8, drain=True).run()
    assert sorted(handled) == list(range(200))
    assert tally.acknowledged == 200
    assert max(at_once) == 8


class Meeting(Observer):
    """Holds the turn, when the first element is ended, until another handler has returned."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.runner: Runner

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        self.threads.append(threading.current_thread().name)
        if len(self.threads) == 1:
            wait_until(lambda: not self.runner._crew._reports.empty())


def two_at_once(inbox: Inbox) -> tuple[Runner, Meeting, list[str]]:
    """Return a runner of two handlers, which begin together, and a third one after them; who ends which
    element; and the threads of the handlers."""
    inbox.add_many((f"key-{number}", number) for number in range(3))
    meeting, handled = Meeting(), list[str]()
    together = threading.Barrier(2)

    def work(key: str, value: int) -> None:
        if value < 2:
            together.wait(30)
            wait_until(lambda: not runner._turn._is_awake)
        else:
            wait_until(lambda: len(meeting.threads) > 1)
        handled.append(threading.current_thread().name)

    runner = Runner(inbox, FunctionHandler("f", work), concurrency=2, drain=True, observers=[meeting])
    meeting.runner = runner
    return runner, meeting, handled


def test_of_handlers_that_end_together_each_thread_ends_its_own(inbox: Inbox) -> None:
    runner, meeting, handled = two_at_once(inbox)
    assert runner.run().acknowledged == 3
    first, second, third = handled
    assert meeting.threads[0] == third, "who had the turn went on with what it has taken"
    assert set(meeting.threads[:2]) == {first, second}


def test_what_is_queued_for_a_thread_that_then_keeps_another_one_gets_a_thread_of_its_own(
    inbox: Inbox,
) -> None:
    inbox.add_many((key, 0) for key in "abcd")
    batches = [[inbox.take()] for _ in range(4)]
    free, handled = threading.Event(), list[str]()

    def work(element: Element) -> None:
        handled.append(element.key)
        if element.key != "b":
            free.wait(200)

    def go_on() -> list[Element] | None:
        free.wait(200)  # as for the turn
        return None

    crew = Crew(FunctionHandler("f", work), go_on)
    crew.start(batches[0])  # type: ignore[arg-type]
    crew.start(batches[1])  # type: ignore[arg-type]
    wait_until(lambda: len(list(crew.reports())) == 1)
    crew.start(batches[2])  # type: ignore[arg-type]
    crew.kept = []
    crew.start(batches[3])  # type: ignore[arg-type]
    wait_until(lambda: "c" in handled)
    assert crew.kept == [batches[3]]
    free.set()


def test_what_goes_wrong_while_another_thread_waits_for_the_turn_ends_the_run(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _, handled = two_at_once(inbox)
    checks = 0

    def check() -> None:
        nonlocal checks
        if threading.current_thread() is not threading.main_thread():
            checks += 1
            wait_until(lambda: len(handled) == 2 and runner._crew._reports.qsize() == 2)
            sleep(0.1)  # until it waits
            raise LeaseLost("another one is the consumer")

    monkeypatch.setattr(inbox, "check_lease", check)
    with pytest.raises(LeaseLost, match="another one"):
        runner.run()
    sleep(0.1)
    assert checks == 1
    assert runner.tally.acknowledged == 0


def test_what_goes_wrong_after_a_handler_ends_the_run(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """(In the main thread: it is the one that a program waits for.)"""
    inbox.add_many((f"key-{number}", number) for number in range(3))
    checks = 0

    def check() -> None:
        nonlocal checks
        if threading.current_thread() is not threading.main_thread():
            checks += 1
            if checks == 2:
                raise LeaseLost("another one is the consumer")

    monkeypatch.setattr(inbox, "check_lease", check)
    with pytest.raises(LeaseLost, match="another one"):
        Runner(inbox, FunctionHandler("f", lambda key, value: None), drain=True).run()
    assert checks == 2


class Clock(Observer):
    """Is due soon after the second element has begun; notes when it was called."""

    def __init__(self) -> None:
        self.begun, self.at = 0, 0.0
        self.late: list[float] = []

    def started(self, element: Element, latency: float | None) -> None:
        self.begun += 1
        self.at = monotonic() + 0.05

    def due(self) -> float | None:
        return self.at if self.begun == 2 and not self.late else None

    def tick(self) -> None:
        self.late.append(monotonic() - self.at)


def test_what_is_due_because_of_an_element_that_another_thread_has_begun_is_not_slept_through(
    inbox: Inbox,
) -> None:
    inbox.add_many((f"key-{number}", number) for number in range(2))
    clock = Clock()

    def work(key: str, value: int) -> None:
        if value:
            sleep(0.5)

    Runner(inbox, FunctionHandler("f", work), drain=True, observers=[clock]).run()
    assert len(clock.late) == 1
    assert clock.late[0] < 0.3


def test_a_handler_that_is_left_behind_ends_nothing_when_the_run_is_over(inbox: Inbox) -> None:
    inbox.add("a", 1)
    inbox.add("b", 2)
    reached, free = threading.Event(), threading.Event()

    def work(key: str, value: int) -> None:
        reached.set()
        free.wait(10)

    runner = Runner(inbox, FunctionHandler("f", work))

    def break_down() -> None:
        reached.wait(10)
        runner._turn.broken = LeaseLost("another one is the consumer")
        runner.waker.set()

    threading.Thread(target=break_down, daemon=True).start()
    with pytest.raises(LeaseLost):
        runner.run()
    free.set()
    sleep(0.1)
    assert runner.tally.acknowledged == 0
    assert [name[20:] for name in sorted(p.name for p in Path(inbox.path, "pending").iterdir())] == ["b"]


def test_a_handler_that_was_woken_goes_before_the_main_thread(
    inbox: Inbox, rests: list[float | None]
) -> None:
    def come() -> None:
        wait_until(lambda: len(rests) == 1)
        inbox.add("a", 1)

    threading.Thread(target=come, daemon=True).start()
    Runner(inbox, FunctionHandler("f", lambda key, value: None), once=True).run()
    assert rests[1] is not None
    assert rests[1] <= 0.001


def test_what_a_handler_ends_itself_wakes_though_the_main_thread_takes_and_ends_just_then(
    inbox: Inbox,
) -> None:
    inbox.add_many([("a", 1), ("b", 2)])
    first, second = inbox.take(), inbox.take()
    assert first and second
    sleeper = inbox.sleeper
    sleeper.quiet = threading.get_ident()
    first.ack()
    assert not sleeper.waker.wait(0)
    ender = threading.Thread(target=second.ack)
    ender.start()
    ender.join()
    assert sleeper.waker.wait(0)
    sleeper.quiet = 0
