"""Exceptions out of signal handlers, and handlers that use the inbox themselves: no lock is left behind, and
nothing is lost.

tests/interrupts.py has the cases, and what must hold after each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, environment

from fsinbox import Inbox, WrongState
from tests.interrupts import CASES
from tests.shim import intercepted
from tests.usual import drain, is_free, names, take

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def interrupted(folder: Path, case: str, how: str, *numbers: int) -> int:
    """Run a case of tests/interrupts.py in a process of its own; return how often it was interrupted."""
    folder.mkdir()
    words = [sys.executable, "-m", "tests.interrupts", folder, case, how, *map(str, numbers)]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=10 * PATIENCE
    )
    assert done.returncode == 0, f"{case}, {how} {numbers}\n{done.stderr}"
    return int(done.stdout)


@pytest.mark.bare
def test_a_call_may_be_interrupted_anywhere(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """At every fifth place; at which ones differs from call to call."""
    count = sum(interrupted(tmp_path / str(n), case, "traced", 1 + n % 5, 5) for n, case in enumerate(CASES))
    assert count > 900
    figure(f"{count} interrupts at places in {len(CASES)} calls")


@pytest.mark.bare
def test_a_call_may_be_interrupted_at_any_moment(tmp_path: Path, figure: Callable[[str], None]) -> None:
    count = sum(interrupted(tmp_path / str(n), case, "alarms", 20, 1) for n, case in enumerate(CASES))
    assert count == 20 * len(CASES)
    figure(f"{count} interrupts by a timer of {len(CASES)} calls")


@pytest.mark.long
@pytest.mark.bare
@pytest.mark.parametrize("case", CASES)
def test_a_call_may_be_interrupted_anywhere_and_at_any_moment(
    tmp_path: Path, case: str, figure: Callable[[str], None]
) -> None:
    """10,000 in all."""
    places = interrupted(tmp_path / "traced", case, "traced", 1, 1)
    moments = interrupted(tmp_path / "alarms", case, "alarms", 300, 2)
    figure(f"{places} interrupts at all places in `{case}`, {moments} by a timer")


# --- a handler that uses the inbox itself -------------------------------------------------------------


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, max_inflight=3, durable=True) as inbox:
        yield inbox


def signalled(
    call: str, handler: Callable[[], object], *, when: Callable[..., bool] = lambda *_: True
) -> Callable[..., Any]:
    """Return a hook that has a signal handler run `handler` just before the first such call for which `when`
    holds."""
    hits: list[str] = []

    def hook(name: str, do: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == call and not hits and when(*arguments):
            hits.append(name)
            before = signal.signal(signal.SIGUSR1, lambda *_: handler())
            try:
                signal.raise_signal(signal.SIGUSR1)
            finally:
                signal.signal(signal.SIGUSR1, before)
        return do(*arguments, **more)

    return hook


@pytest.mark.parametrize("call", ["flock", "pread", "pwrite", "rename"])
@pytest.mark.parametrize("which", ["the same", "another", "by another path"])
def test_an_add_in_a_handler_that_interrupted_an_add_is_an_error(
    inbox: Inbox, tmp_path: Path, call: str, which: str
) -> None:
    """Not a deadlock: what it would wait for is what it interrupted."""
    link = tmp_path / "link"
    link.symlink_to(inbox.path)
    with Inbox(link if which == "by another path" else inbox.path) as another:
        used = inbox if which == "the same" else another
        errors = []

        def handler() -> None:
            with pytest.raises(WrongState, match="set a flag, and add later") as caught:
                used.add("b", 1)
            errors.append(caught.value)

        with intercepted(signalled(call, handler)):
            assert inbox.add("a", 1) == "new"
        assert len(errors) == 1
        assert is_free(inbox.path)
        assert names(inbox, "tmp") == []
        assert used.add("b", 2) == "new"
    assert drain(inbox) == [("a", 1), ("b", 2)]


def test_an_add_in_a_handler_that_interrupted_an_add_outside_its_section_is_done(inbox: Inbox) -> None:
    with intercepted(signalled("fsync", lambda: inbox.add("b", 1))):
        inbox.add("a", 1)
    assert drain(inbox) == [("b", 1), ("a", 1)]


def test_an_add_in_a_handler_to_another_inbox_is_done(inbox: Inbox, tmp_path: Path) -> None:
    with Inbox(tmp_path / "other") as other:
        with intercepted(signalled("rename", lambda: other.add("b", 1))):
            inbox.add("a", 1)
        assert drain(other) == [("b", 1)]
    assert drain(inbox) == [("a", 1)]


def test_a_handler_that_raises_in_an_add_which_it_interrupted_adds_nothing(inbox: Inbox) -> None:
    with intercepted(signalled("pwrite", lambda: inbox.add("b", 1))), pytest.raises(WrongState):
        inbox.add("a", 1)
    assert is_free(inbox.path)
    assert names(inbox, "tmp") == names(inbox, "pending") == []
    assert inbox.add("a", 2) == "new"


USES: dict[str, Callable[[Inbox], object]] = {
    "take": lambda inbox: inbox.take(),
    "take, waiting": lambda inbox: inbox.take(timeout=1),
    "ack": lambda inbox: inbox._taking().the_one_in_flight("ack").acknowledge(),
    "nack": lambda inbox: inbox._taking().the_one_in_flight("nack").requeue(counted=True),
    "commit": lambda inbox: inbox.commit(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("interrupted", ["take", "ack", "nack"])
def test_a_handler_that_interrupted_the_consumer_does_not_work_on_what_is_half_done(
    inbox: Inbox, use: str, interrupted: str
) -> None:
    for key in "abc":
        inbox.add(key, 1)
    element = take(inbox)
    errors = []

    def handler() -> None:
        with pytest.raises(WrongState, match="what this signal handler interrupted") as caught:
            USES[use](inbox)
        errors.append(caught.value)

    with intercepted(signalled("unlink" if interrupted == "ack" else "rename", handler)):
        second = take(inbox) if interrupted == "take" else getattr(element, interrupted)()
    assert len(errors) == 1
    if interrupted == "take":
        element.ack()
        second.ack()
    assert is_free(inbox.path)
    left = {"take": "c", "ack": "bc", "nack": "abc"}[interrupted]
    assert drain(inbox) == [(key, 1) for key in left]
    assert os.listdir(Path(inbox.path, "inflight")) == []
