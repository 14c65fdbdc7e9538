"""What is said of an exception: as Python says it; and of one with megabytes of text, soon."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import thread_time

import pytest
from helpers import run

from fsinbox import Inbox
from fsinbox.worker import describing
from fsinbox.worker.describing import LONGEST, describe

SIZE = 50 << 20


class Own(Exception):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text


class Broken(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


def caused(cause: BaseException) -> BaseException:
    error = RuntimeError("above")
    error.__cause__ = cause
    return error


def noted(*notes: str) -> BaseException:
    error = ValueError("said")
    for note in notes:
        error.add_note(note)
    return error


LONG: dict[str, Callable[[], BaseException]] = {
    "one line": lambda: ValueError("x" * SIZE),
    "many lines": lambda: ValueError("x\n" * (SIZE // 2)),
    "newlines": lambda: ValueError("\n" * SIZE),
    "bytes": lambda: ValueError(bytes(SIZE)),
    "a key": lambda: KeyError("\n" * SIZE),
    "two": lambda: ValueError("\n" * SIZE, bytearray(SIZE), 7),
    "its own": lambda: Own("x\n" * (SIZE // 2)),
    "exit": lambda: SystemExit("x\n" * (SIZE // 2)),
    "a cause": lambda: caused(ValueError("x\n" * (SIZE // 2))),
    "notes": lambda: noted("first", "x\n" * (SIZE // 2), "last"),
    "a group": lambda: ExceptionGroup("several", [ValueError("x\n" * (SIZE // 2)), KeyError("other")]),
    "a group's text": lambda: BaseExceptionGroup("g" * SIZE, [KeyError("other")]),
    "syntax": lambda: SyntaxError("x\n" * (SIZE // 2), ("f.py", 1, 1, "y" * SIZE)),
}


SAID = {"a cause": ("above", "direct cause"), "a group": ("other", "several"), "notes": ("first", "last")}


def raised(make: Callable[[], BaseException]) -> BaseException:
    error = make()
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("kind", LONG)
def test_megabytes_of_text_take_no_time(kind: str, figure: Callable[[str], None]) -> None:
    """20 s before, in which no other handler went on."""
    error = raised(LONG[kind])
    seconds = own = 9.0
    for _ in range(4):
        begun = thread_time()
        described = describe(error)
        seconds = min(seconds, thread_time() - begun)
        begun = thread_time()
        str(error)
        own = min(own, thread_time() - begun)
    assert seconds < 0.1 + own
    figure(f"an exception of 50 MB ({kind}): {1000 * seconds:.1f} ms, its own str() {1000 * own:.1f} ms")
    assert len(described.full) < 6 * LONGEST
    assert "characters left out" in described.full or "bytes" in kind
    assert described.name.rpartition(".")[2] == type(error).__name__
    assert "in raised" in described.full and "Traceback (most recent call last)" in described.full
    for said in SAID.get(kind, ()):
        assert said in described.full


def test_a_consumer_whose_handler_says_megabytes_goes_on_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "import time\n"
        "def work(key, value):\n"
        "    if key == 'loud':\n"
        "        raise ValueError('x\\n' * (25 << 20))\n"
        "    open('times', 'a').write(f'{time.monotonic()}\\n')\n"
        "    time.sleep(0.01)\n"
    )
    with Inbox(tmp_path / "inbox") as inbox:
        for number in range(100):
            inbox.add(f"quiet/{number}", 1)
            if number == 10:
                inbox.add("loud", 1)
    words = ("--handler", "tasks:work", "--max-attempts", "1", "-c", "2", "--drain", "-q")
    run("consume", *words, cwd=tmp_path, status=1)
    times = list(map(float, (tmp_path / "times").read_text().split()))
    assert max(later - earlier for earlier, later in pairwise(times)) < 1  # 20 s before
    (reason,) = (tmp_path / "inbox/failed").glob("*~reason.txt")
    assert reason.stat().st_size < 200_000


def test_what_a_handler_itself_gives_as_a_reason_is_bounded_too(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("k", 1)
        element = inbox.take()
        assert element
        element.fail("first " + "x" * SIZE + " last")
    (path,) = (tmp_path / "inbox/failed").glob("*~reason.txt")
    kept = path.read_text()
    assert len(kept) < 140_000 and "first" in kept and kept.rstrip().endswith("last")


def test_what_is_short_is_said_as_python_says_it() -> None:
    for make in (
        lambda: caused(KeyError("b")),
        lambda: noted("one", "two\nthree"),
        lambda: ExceptionGroup("several", [ValueError("x"), caused(TypeError())]),
        lambda: Broken(),
        lambda: SyntaxError("m", ("f.py", 1, 1, "text")),
    ):
        error = raised(make)
        assert describe(error).full == "".join(traceback.format_exception(error))
    assert describe(ValueError("a: b"))[:2] == ("ValueError", "a: b")
    assert describe(ValueError())[:2] == ("ValueError", "")


def test_a_chain_without_end_and_one_that_is_very_long_come_to_an_end() -> None:
    first, second = ValueError("x" * LONGEST * 2), KeyError("y")
    first.__context__, second.__context__ = second, first
    assert "characters left out" in describe(first).full and "'y'" in describe(first).full
    error: BaseException = ValueError("x" * LONGEST * 2)
    for _ in range(200):
        error = caused(error)
    assert len(list(describing._chain(error))) == 100
    group = ExceptionGroup("many", [ValueError("x" * LONGEST * 2) for _ in range(200)])
    assert len(describe(group).full) < 20 * LONGEST
    odd = Broken("x" * LONGEST * 2)
    odd.__notes__ = "no list"  # type: ignore[assignment]
    assert "str() failed" in describe(caused(ExceptionGroup("g" * LONGEST * 2, [odd]))).full
