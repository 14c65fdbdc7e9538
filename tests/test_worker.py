"""The worker, in this process: handlers whose payload cannot be read, what ends them from outside, and the
second signal.

What a person sees of it is in test_consume.py, with processes of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import NoReturn

import pytest
from helpers import wait_until

from fsinbox import Element, Inbox, Reject, TryLater
from fsinbox.worker.backoff import Backoff, Retries
from fsinbox.worker.commands import CommandHandler, shell_syntax
from fsinbox.worker.ending import Ending, Tally
from fsinbox.worker.functions import FunctionHandler, load_function
from fsinbox.worker.outcome import DONE, HandlerError, Outcome
from fsinbox.worker.runner import Runner


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, max_inflight=2) as inbox:
        yield inbox


@pytest.fixture
def element(inbox: Inbox) -> Element:
    inbox.add("a", 1)
    element = inbox.take()
    assert element
    return element


class Handling(threading.Thread):
    """A handler at work on an element, in a thread of its own."""

    def __init__(self, handler: CommandHandler | FunctionHandler, element: Element) -> None:
        super().__init__(daemon=True)
        self._work = lambda: handler.handle(element)
        self.start()

    def run(self) -> None:
        self.outcome = self._work()

    def end(self) -> Outcome:
        """Wait for the outcome."""
        self.join(30)
        assert not self.is_alive()
        return self.outcome


# --- functions ----------------------------------------------------------------------------------------


def test_a_handler_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs_of_this_test.py").write_text("def handle(key, value): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    assert load_function("jobs_of_this_test:handle").name == "jobs_of_this_test:handle"
    assert sys.path[0] == str(tmp_path)
    assert load_function("jobs_of_this_test:handle")
    assert sys.path.count(str(tmp_path)) == 1


def test_a_payload_that_cannot_be_read_now_is_tried_again(element: Element) -> None:
    os.unlink(element.path)
    outcome = FunctionHandler("f", lambda key, value: None).handle(element)
    assert outcome.kind == "retry"
    assert "cannot read its payload" in outcome.summary


def test_a_payload_that_is_too_large_for_the_memory_is_given_up_and_it_is_said_how_to_read_it(
    element: Element, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: Element) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(Element, "value", property(too_large))
    outcome = FunctionHandler("f", lambda key, value: None).handle(element)
    assert outcome.kind == "reject"
    assert "read from element.open()" in outcome.summary


def _two(key: str, value: object) -> None: ...


FORMS: dict[str, tuple[object, int]] = {
    "(key, value)": (lambda key, value: None, 2),
    "(a, b)": (lambda a, b: None, 2),
    "(key, value=None)": (lambda key, value=None: None, 2),
    "(key=None, value=None)": (lambda key=None, value=None: None, 2),
    "(_key, value)": (lambda _key, value: None, 2),
    "(key, payload=None)": (lambda key, payload=None: None, 2),
    "(job, value=None)": (lambda job, value=None: None, 2),
    "(key, value, more=1)": (lambda key, value, more=1: None, 2),
    "(key, *more)": (lambda key, *more: None, 2),
    "(element)": (lambda element: None, 1),
    "(job)": (lambda job: None, 1),
    "(_)": (lambda _: None, 1),
    "(element, loud=False)": (lambda element, loud=False: None, 1),
    "(element, *, loud=False)": (lambda element, *, loud=False: None, 1),
    "(element=None)": (lambda element=None: None, 1),
    "partial(key, value)": (partial(lambda greeting, key, value: None, "hello"), 2),
    "a wrapper that tells": (wraps(_two)(lambda *args: None), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_and_numbers_of_parameters_say_what_a_function_is_called_with(form: str) -> None:
    function, count = FORMS[form]
    assert callable(function)
    assert FunctionHandler("f", function)._takes_element == (count == 1)


class Silent:
    __signature__ = "none"

    def __call__(self, *arguments: object) -> None: ...


UNCLEAR: dict[str, object] = {
    "(job, loud=False)": lambda job, loud=False: None,
    "(*args)": lambda *args: None,
    "(a=1, b=2)": lambda a=1, b=2: None,
    "(key)": lambda key: None,
    "(value)": lambda value: None,
    "(value, key)": lambda value, key: None,
    "(element, value)": lambda element, value: None,
    "no signature": Silent(),
    "print": print,
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_what_may_be_meant_in_two_ways_is_refused_with_the_way_out(form: str) -> None:
    function = UNCLEAR[form]
    assert callable(function)
    with pytest.raises(HandlerError, match=r"def handle\(key, value\) or def handle\(element\)"):
        FunctionHandler("f", function)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_that_returns_a_generator_has_failed(element: Element, kind: str) -> None:
    began = []

    def plain() -> Iterator[None]:
        began.append(1)
        yield

    async def other() -> AsyncIterator[None]:
        began.append(1)
        yield

    made = plain if kind == "plain" else other
    outcome = FunctionHandler("f", lambda element: made()).handle(element)
    assert outcome.kind == "retry"
    assert "it returned a generator, which nobody runs" in outcome.summary
    assert began == []


class Mute(Reject):
    def __str__(self) -> str:
        raise ValueError


def test_an_exception_that_cannot_be_printed_is_one_like_others(element: Element) -> None:
    def mute(element: Element) -> NoReturn:
        raise Mute

    outcome = FunctionHandler("f", mute).handle(element)
    assert (outcome.kind, outcome.summary) == ("reject", "rejected: <exception str() failed>")


def test_the_summary_of_an_exception_is_its_last_line(element: Element) -> None:
    def wrong(element: Element) -> None:
        compile("x = = 1", "made.py", "exec")

    def silent(element: Element) -> NoReturn:
        raise TryLater

    assert FunctionHandler("f", wrong).handle(element).summary == "SyntaxError: invalid syntax"
    assert FunctionHandler("f", silent).handle(element).summary == "not now: "


def test_a_coroutine_that_runs_is_cancelled_from_outside(element: Element) -> None:
    began = threading.Event()

    async def forever(key: str, value: object) -> None:
        began.set()
        await asyncio.sleep(3600)

    handler = FunctionHandler("f", forever)
    handler.stop_now()  # nothing runs: no event loop was made
    handling = Handling(handler, element)
    assert began.wait(30)
    handler.stop_now()
    outcome = handling.end()
    assert outcome.kind == "retry"
    assert "CancelledError" in outcome.summary


# --- how an element is ended ----------------------------------------------------------------------------


def test_an_element_that_a_thread_of_the_handler_ends_at_the_last_moment_stays_ended(
    inbox: Inbox,
) -> None:
    """Just before the worker would do it."""
    inbox.add("a", 1)
    looked = []

    class Late(Element):
        @property
        def ended(self) -> str:
            if not looked:
                looked.append(1)
                self.ack()
                return ""
            return super().ended

    element = inbox.take()
    assert element
    late = Late(element._handle, element._codec, element._claim)
    tally = Tally()
    assert Ending(tally, Retries()).end(late, DONE) == "acknowledged"
    assert tally == Tally(acknowledged=1)
    assert os.listdir(f"{inbox.path}/inflight") == []


# --- commands -----------------------------------------------------------------------------------------


def test_a_command_whose_payload_cannot_be_opened_is_tried_again(element: Element) -> None:
    os.unlink(element.path)
    outcome = CommandHandler("true").handle(element)
    assert outcome.kind == "retry"
    assert "cannot start 'true'" in outcome.summary


@pytest.mark.parametrize(
    ("line", "how"),
    [("touch began; sleep 3600", "SIGTERM"), ("trap '' TERM; touch began; sleep 3600", "SIGKILL")],
)
def test_a_command_that_runs_is_ended_from_outside_whether_it_listens_or_not(
    element: Element, tmp_path: Path, line: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = CommandHandler(line, shell=True)
    handling = Handling(handler, element)
    wait_until(lambda: handler._running and (tmp_path / "began").exists(), "for the command")
    handler.stop_now()
    outcome = handling.end()
    assert outcome.kind == "retry"
    assert outcome.summary.endswith(f"was killed by {how}")


@pytest.mark.parametrize("shell", [False, True])
@pytest.mark.parametrize("name", ["inbox", "a {fd} b {} c"])
def test_a_command_gets_a_descriptor_of_its_element(tmp_path: Path, name: str, *, shell: bool) -> None:
    """Which is another than its standard input, and of the same open file; and a path with braces is none."""
    with Inbox(tmp_path / name, codec="text") as inbox:
        inbox.add("a", "payload")
        element = inbox.take()
        assert element
        show = "print(*sys.argv[1:], os.environ['FSINBOX_FD'], open(sys.argv[1]).read())"
        program = f"import os, sys; {show}; exit(1)"
        line = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {{fd}} {{}} x{{fd}}={{}}"
        before = os.listdir("/proc/self/fd")
        told = CommandHandler(line, shell=shell).handle(element).detail.splitlines()[-1]
        fd, rest = told.partition(" ")[::2]
        assert re.fullmatch(r"/dev/fd/([3-9]|\d\d+)", fd)
        number = fd.rpartition("/")[2]
        assert rest == f"{element.path} x{fd}={element.path} {number} payload"
        assert os.listdir("/proc/self/fd") == before


def test_a_command_that_cannot_be_started_leaves_no_descriptor_open(element: Element) -> None:
    handler = CommandHandler("true {fd}")
    handler._guard = ["/no/such/program"]
    before = os.listdir("/proc/self/fd")
    assert handler.handle(element).kind == "retry"
    assert os.listdir("/proc/self/fd") == before


def test_a_command_of_which_nothing_is_left_needs_no_second_signal(element: Element) -> None:
    handler = CommandHandler("sleep 3600")
    handling = Handling(handler, element)
    wait_until(lambda: handler._running, "for the command")
    handler.stop_now()
    assert handling.end().summary == "'sleep 3600' was killed by SIGTERM"


def test_a_command_is_not_held_up_by_an_output_that_nobody_reads(
    element: Element, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        outcome = CommandHandler("echo said; exit 3", shell=True).handle(element)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that closing it has somewhere to write
    assert outcome.kind == "retry"
    assert outcome.detail.endswith("the end of its output:\nsaid\n")


SYNTAX = {
    "echo $X | tr a b": "$X",
    "a > b": ">",
    "a < b": "<",
    "a; b": ";",
    "a && b": "&",
    "(a)": "(",
    "a\nb": "\n",
    "ls `x`": "`",
    'echo "$X"': "$X",
    'x "it\'s ${Y}"': "${",
    'a "b`c`"': "`",
    'a "\\\\$X"': "$X",
    "curl http://host/?a=1&b=2": "&",
    "grep 'a|b' {}": "",
    'grep "a|b" {}': "",
    'echo "\\$X"': "",
    "echo \\$X \\; {} \\;": "",
    "awk '{print $1}' {}": "",
    "grep price$ {}": "",
    "rsync --exclude=*.o {} backup:": "",
    "it's 'ok'": "",
}
"""A line -> what in it only a shell would understand."""


@pytest.mark.parametrize("line", SYNTAX)
def test_shell_syntax_is_what_is_neither_quoted_nor_escaped(line: str) -> None:
    assert shell_syntax(line) == SYNTAX[line]


def test_a_command_finds_its_inbox_on_several_hosts_too(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inflight", scope="network") as shared:
        shared.add("a", 1)
        element = shared.take()
        assert element
        outcome = CommandHandler("printenv FSINBOX_DIR; exit 1", shell=True).handle(element)
    assert outcome.detail.endswith(f"\n{tmp_path}/inflight\n")


# --- the second signal --------------------------------------------------------------------------------


class Ended(BaseException):
    """Stands for the end of the process."""


class Stuck:
    """A handler that never comes back from `a`, and does `then` once both elements have been handed to it."""

    name = "stuck"
    interruptible = False

    def __init__(self, then: Callable[[], None]) -> None:
        self.stopped = False
        self._then = then
        self._free = threading.Event()
        self._a_began = threading.Event()

    def handle(self, element: Element) -> Outcome:
        if element.key == "a":
            self._a_began.set()
            self._free.wait(60)
        else:
            assert self._a_began.wait(30)
            self._then()
        return DONE

    def interrupt(self, element: Element, *, force: bool) -> bool:
        return False

    def began(self, element: Element) -> float:
        return 0.0

    def stop_now(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("output", ["open", "broken"])
def test_a_second_signal_requeues_what_runs_and_ends_at_once(
    inbox: Inbox, output: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> NoReturn:
        raise Ended(status)

    class Broken:
        def flush(self) -> None:
            raise BrokenPipeError

    def two_signals() -> None:
        for _ in range(2):
            runner._on_signal(signal.SIGTERM, None)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    if output == "broken":
        monkeypatch.setattr(sys, "stdout", Broken())
    for key in "ab":
        inbox.add(key, 1)
    handler = Stuck(two_signals)
    runner = Runner(inbox, handler, concurrency=2)
    with pytest.raises(Ended, match="0"):
        runner.run()
    monkeypatch.undo()
    assert handler.stopped
    assert runner.stopped_by_signal
    assert "SIGTERM: waiting for" in capfd.readouterr().err
    handler._free.set()
    with Inbox(inbox.path) as again:
        element = again.take()
        assert element
        assert (element.key, element.attempts) == ("a", 1)


def test_what_was_reported_before_the_second_signal_is_not_requeued(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(status: int) -> NoReturn:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    inbox.add("a", 1)
    runner = Runner(inbox, FunctionHandler("f", lambda key, value: None))
    element = inbox.take()
    assert element
    runner.waker = inbox.sleeper.waker
    runner._crew.running.append([element])
    runner._crew.report([element], DONE, 0.0)
    inbox.add("b", 1)
    handled = inbox.take()
    assert handled
    handled.ack()  # its handler did, and has not returned yet
    runner._crew.running.append([handled])
    with pytest.raises(Ended):
        runner._requeue_all("at once")
    assert runner.tally.acknowledged == 1
    assert os.listdir(f"{inbox.path}/pending") == []


# --- standing by --------------------------------------------------------------------------------------


def test_a_standby_takes_over_when_the_consumer_ends_and_says_once_that_it_waits(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fsinbox.worker.comings._STANDBY", 0.01)
    caplog.set_level(logging.INFO, logger="fsinbox")
    active = Inbox(inbox.path)
    active.add("a", 1)
    element = active.take()
    assert element
    runner = Runner(inbox, FunctionHandler("f", lambda key, value: None), drain=True, standby=True)
    looks: list[float | None] = []
    wait = runner.inbox.sleeper.waker.wait

    def looked(timeout: float | None) -> bool:
        looks.append(timeout)
        if len(looks) == 3:
            active.close()
        return wait(timeout)

    monkeypatch.setattr(inbox.sleeper.waker, "wait", looked)
    assert runner.run().acknowledged == 1
    assert looks[:3] == [0.01] * 3
    said = [record.getMessage() for record in caplog.records if "standing by" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"standing by: pid {os.getpid()} on ")


def test_a_signal_ends_a_standby_before_it_is_the_consumer(inbox: Inbox) -> None:
    with Inbox(inbox.path) as active:
        active.become_consumer()
        runner = Runner(inbox, FunctionHandler("f", lambda key, value: None), standby=True)
        runner.waker = inbox.sleeper.waker
        runner._on_signal(signal.SIGTERM, None)
        runner._stand_by()
        assert inbox._taking().consumer is None
        assert runner.stopped_by_signal


def test_a_back_off_is_never_longer_than_the_longest() -> None:
    backoff = Backoff(first=1.0, longest=10.0)
    assert 0.75 <= backoff.after(1) <= 1.25
    assert 7.5 <= backoff.after(10_000) <= 12.5
    assert 7.5 <= backoff.by_age(0) <= 12.5


def test_a_forked_child_ends_though_its_output_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsinbox.worker.functions import _end_child

    def end(status: int) -> NoReturn:
        raise Ended(status)

    class Broken:
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(Ended, match="3"):
        _end_child(SystemExit(3))
