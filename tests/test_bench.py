"""The benchmark's arithmetic and its pages: what is compared is compared within a round, and what was missed
is said."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

SCRIPTS = str(Path(__file__).parents[1] / "scripts")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark's modules, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)

    class Modules:
        def __getattr__(self, name: str) -> ModuleType:
            return importlib.import_module(f"benchmarks.{name}")

    yield Modules()
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_a_ratio_is_taken_within_a_round(bench: Any) -> None:
    results = bench.results
    target = results.Target("twice theirs", "ours", ["one", "two"], at_least=2)
    group = results.Group(
        "g", "adds/s", {"ours": [20, 200, 30], "one": [10, 100, 1], "two": [5, 50, 10]}, [target]
    )
    assert group.reached(target) == 2  # the best of theirs in each round; the median of 2, 2, 3
    assert group.is_met(target)
    group.figures["ours"] = [19, 190, 30]
    assert not group.is_met(target)


def test_less_is_better_where_a_group_says_so(bench: Any) -> None:
    results = bench.results
    target = results.Target("at most 1.5x", "ours", ["one", "two"], at_most=1.5)
    group = results.Group(
        "g", "us", {"ours": [3.0], "one": [2.0], "two": [9.0]}, [target], more_is_better=False
    )
    assert group.reached(target) == 1.5
    assert group.is_met(target)


def test_what_was_not_measured_is_neither_met_nor_missed(bench: Any) -> None:
    results = bench.results
    target = results.Target("ahead", "ours", ["theirs"], at_least=1)
    group = results.Group("g", "adds/s", {"ours": [1.0]}, [target])
    assert group.is_met(target) is None
    assert "not measured" in bench.report.verdict(group, target)


def test_a_run_is_kept_and_a_page_shows_it_and_says_what_was_missed(bench: Any, tmp_path: Path) -> None:
    results, report = bench.results, bench.report
    target = results.Target("2x theirs", "fsinbox", ["theirs"], at_least=2)
    group = results.Group(
        "one producer", "adds/s", {"fsinbox": [1234.5], "theirs": [1000.0]}, [target], notes=["a note"]
    )
    case = results.Case(3, "Take", [group])
    kept = tmp_path / "kept" / "results.json"
    results.save(kept, {"system": "Linux"}, [results.Case(1, "Add", [])])
    results.save(kept, {"system": "Linux"}, [case])
    about, cases = results.load(kept)
    assert [case.number for case in cases] == [1, 3]
    page = tmp_path / "page.md"
    marks = ("machine", "summary", "case 1", "case 3")
    page.write_text(
        "before\n" + "".join(f"<!-- {mark} -->\nold\n<!-- /{mark} -->\n" for mark in marks) + "after\n"
    )
    report.fill_page(page, about, cases, "plots")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| **fsinbox** | 1,230 |" in text
    assert "| 3 | one producer: 2x theirs | 1.23x | **missed** |" in text
    assert "plots/case-03.svg" in text
    assert "a note" in text
    report.fill_page(page, about, cases, "plots")
    assert page.read_text() == text, "filling it again changes nothing"


def test_figures_of_two_machines_are_not_kept_together(bench: Any, tmp_path: Path) -> None:
    results = bench.results
    kept = tmp_path / "results.json"
    results.save(kept, {"system": "Linux", "processors": "2"}, [results.Case(1, "Add", [])])
    results.save(kept, {"system": "Linux", "processors": "8"}, [results.Case(3, "Take", [])])
    about, cases = results.load(kept)
    assert (about["processors"], [case.number for case in cases]) == ("8", [3])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], (0,)),
        (["--only", "4", "--only", "6"], (4, 6)),
        (["--all"], tuple(range(1, 13))),
        (["--tiny"], tuple(range(1, 13))),
    ],
)
def test_the_first_question_is_answered_unless_more_is_asked_for(
    bench: Any, words: list[str], wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    command = importlib.import_module("benchmarks.__main__")
    monkeypatch.setattr(command, "measure", lambda *all_of_it: asked.append(all_of_it))
    result = CliRunner().invoke(command.main, words)
    assert (result.exit_code, result.output) == (0, "")
    assert asked[0][0] == wanted


def test_the_first_question_is_answered_in_three_groups(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cases, "peers", lambda durability: [bench.queues.BareSQLite])
    scale = bench.cases.replace_fields(bench.cases.TINY, elements=5)
    case = bench.cases.compare(bench.cases.Bench(scale, tmp_path, tmp_path, lambda text: None))
    assert [group.title for group in case.groups] == [
        "durable, 200 B",
        "not durable, 200 B",
        "not durable, 64 KiB",
    ]
    assert all(min(figures) > 0 for group in case.groups for figures in group.figures.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1234, "0.123"),
        (1.5, "1.5"),
        (83.14, "83.1"),
        (99.96, "100"),
        (14321.0, "14,300"),
        (1e6, "1,000,000"),
    ],
)
def test_figures_have_three_digits_that_count(bench: Any, value: float, text: str) -> None:
    assert bench.report.number(value) == text


@pytest.mark.parametrize("durability", ["durable", "quick"])
def test_the_bare_calls_are_a_queue(bench: Any, tmp_path: Path, durability: str) -> None:
    """They must do what they are measured for: in order, once, replaced in place."""
    queue = bench.bare.BareCalls(str(tmp_path), durability)
    queue.add_many([("a", b"1"), ("b", b"2")])
    queue.add("a", b"3")
    pending = tmp_path / "bare" / "pending"
    assert [path.read_bytes() for path in sorted(pending.iterdir())] == [b"3", b"2"]
    for key in ("a", "b"):
        token = queue.take()
        assert token.endswith(f"-{key}")
        queue.ack(token)
    assert queue.take() is None
    queue.close()


@pytest.mark.parametrize("end", ["raises", "dies", "hangs"])
def test_a_process_that_fails_ends_its_slice_at_once(
    bench: Any, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what waits for it goes with it: a consumer whose producer died would else wait for ever."""
    monkeypatch.setattr(bench.processes, "PATIENCE", 0.5 if end == "hangs" else 30)

    def work(process: int, wait: Callable[[], object]) -> Any:
        wait()
        if process == 1 and end == "raises":
            raise ValueError("no")
        if process == 1 and end == "dies":
            os._exit(1)
        threading.Event().wait()

    reasons = {
        "raises": "process 1: ValueError: no",
        "dies": "a process died",
        "hangs": "2 of 2 processes are not done",
    }
    with pytest.raises((RuntimeError, TimeoutError), match=reasons[end]):
        bench.processes.in_processes(2, work)
    assert not multiprocessing.active_children()
