"""The benchmark's arithmetic and its pages: what is compared is compared within a round, and what was missed
is said."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
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


def test_what_is_only_for_comparison_is_neither_met_nor_missed(bench: Any) -> None:
    results = bench.results
    target = results.Target("beside theirs", "ours", ["theirs"])
    group = results.Group("g", "adds/s", {"ours": [1.0], "theirs": [4.0]}, [target])
    assert group.is_met(target) is None
    assert bench.report.verdict(group, target) == "beside: g: beside theirs: 0.25x"


def work(bench: Any, path: Path) -> Any:
    """Where a case works, at a tiny size."""
    return bench.bench.Bench(bench.bench.TINY, path, path, lambda text: None)


def test_one_that_fails_is_left_out_and_named(bench: Any, tmp_path: Path) -> None:
    results = bench.results
    figures = iter([1.0, OSError("no room")])

    def fails() -> float:
        figure = next(figures)
        if isinstance(figure, OSError):
            raise figure
        return figure

    target = results.Target("ahead", "ours", ["fails", "other"], at_least=1)
    contenders = {"ours": lambda: 4.0, "fails": fails, "other": lambda: 2.0}
    group = work(bench, tmp_path).group("g", "adds/s", contenders, target, rounds=3)
    assert group.figures == {"ours": [4.0] * 3, "other": [2.0] * 3}
    assert group.notes == ["fails failed: OSError: no room"]
    assert group.reached(target) == 2


def test_what_measures_several_things_at_once_fills_several_groups(bench: Any, tmp_path: Path) -> None:
    groups = [bench.results.Group(title, "s") for title in ("a", "b")]
    contenders = {"one": lambda: (1.0, None), "two": lambda: (2.0, 3.0)}
    work(bench, tmp_path).interleave(groups, contenders, 2)
    assert [group.figures for group in groups] == [{"one": [1.0] * 2, "two": [2.0] * 2}, {"two": [3.0] * 2}]


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
    marks = ("machine", "summary", "case 1", "case 3", "case 4")
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
    assert "<!-- case 4 -->\nNot measured in this run.\n" in text
    report.fill_page(page, about, cases, "plots")
    assert page.read_text() == text, "filling it again changes nothing"


def test_the_readme_shows_some_of_the_same_run(bench: Any, tmp_path: Path) -> None:
    results, report = bench.results, bench.report
    sqlite = bench.queues.BareSQLite.name
    target = results.Target("beside", "fsinbox", [sqlite])
    figures = {"fsinbox": [23.0], sqlite: [100.0]}
    cases = [
        results.Case(1, "Add", [results.Group("1 producer, 200 B", "adds/s", figures, [target])]),
        results.Case(3, "Take", [results.Group("200 B", "elements/s", figures)]),
    ]
    page = tmp_path / "README.md"
    page.write_text("slow (<!-- lone -->0.9<!-- /lone --> of it)\n")
    report.fill_page(page, {}, cases, "plots")
    assert page.read_text() == "slow (<!-- lone -->0.2<!-- /lone --> of it)\n"
    assert report.lone([]) == ""
    shown = report.shown_first(cases)
    assert (shown.number, [group.title for group in shown.groups]) == (0, ["Durable: take and acknowledge"])


def test_figures_of_two_machines_are_never_kept_together(bench: Any, tmp_path: Path) -> None:
    results = bench.results
    kept = tmp_path / "results.json"
    results.save(kept, {"boot": "1", "system": "Linux"}, [results.Case(1, "Add", [])])
    with pytest.raises(results.OtherMachine, match=r"another machine \(boot 1\): measure --all"):
        results.save(kept, {"boot": "2", "system": "Linux"}, [results.Case(3, "Take", [])])
    assert [case.number for case in results.load(kept)[1]] == [1]
    results.save(kept, {"boot": "1", "system": "Linux", "load": "0.1"}, [results.Case(3, "Take", [])])
    assert [case.number for case in results.load(kept)[1]] == [1, 3]


@pytest.fixture
def command(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line, whose cases measure nothing. Case 2 fails."""
    module = importlib.import_module("benchmarks.__main__")

    def case(number: int, where: Any) -> Any:
        if number == 2:
            raise OSError("no room")
        return bench.results.Case(number, f"{where.scale.rounds} rounds", [])

    monkeypatch.setattr(module, "CASES", {n: partial(case, n) for n in module.CASES})
    return module


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], ["4. 3 rounds"]),
        (["--only", "4", "--only", "6", "--rounds", "2"], ["4. 2 rounds", "6. 2 rounds"]),
    ],
)
def test_the_first_question_is_answered_unless_more_is_asked_for(
    command: Any, words: list[str], shown: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(command.main, [*words, "--dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert re.findall("^## (.*)$", result.output, re.M) == shown


def test_a_case_that_fails_does_not_end_the_others_and_is_named(command: Any, tmp_path: Path) -> None:
    words = ["--all", "--dir", str(tmp_path / "here"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command.main, words)
    assert result.exit_code == 1
    assert "case 2 failed: no room" in result.output
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert [case["number"] for case in kept["cases"]] == [1, *range(3, 13)]


def test_a_whole_run_keeps_nothing_of_another_and_a_part_refuses_to_mix(
    command: Any, bench: Any, tmp_path: Path
) -> None:
    words = ["--dir", str(tmp_path / "here"), "--out", str(tmp_path / "out")]
    bench.results.save(tmp_path / "out/results.json", {"boot": "x"}, [bench.results.Case(2, "Old", [])])
    refused = CliRunner().invoke(command.main, ["--only", "1", *words])
    assert refused.exit_code == 2
    assert "of another machine" in refused.output
    CliRunner().invoke(command.main, ["--all", *words])
    kept = (tmp_path / "out/results.json").read_text()
    assert "Old" not in kept and '"boot": "x"' not in kept


def test_the_first_question_is_answered_in_three_groups(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cases, "peers", lambda durability: [bench.queues.BareSQLite])
    case = bench.cases.compare(work(bench, tmp_path))
    assert [group.title for group in case.groups] == [
        "durable, 200 B",
        "not durable, 200 B",
        "not durable, 64 KiB",
    ]
    assert all(min(figures) > 0 for group in case.groups for figures in group.figures.values())


def test_what_threads_and_tasks_add_is_there(bench: Any, tmp_path: Path) -> None:
    here = work(bench, tmp_path)
    assert bench.cases._by_threads(here, 2) > 0
    assert bench.cases._by_tasks(here) > 0


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


def test_where_no_fresh_disk_can_be_had_the_way_out_is_named(
    command: Any, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bench.disks.missing():
        pytest.skip(bench.disks.missing())
    monkeypatch.setattr(command, "_ROOM", 1 << 62)
    result = CliRunner().invoke(command.main, ["--fresh", "--dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "fallocate failed" in result.output and "name another --dir" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_disk_is_gone_afterwards(bench: Any, tmp_path: Path) -> None:
    if bench.disks.missing():
        pytest.skip(bench.disks.missing())
    with bench.disks.fresh(tmp_path, 32 << 20, has_journal=False) as place:
        assert os.path.ismount(place)
        (place / "file").touch()
        assert bench.results.machine(place)["file system"] == "ext4, without a journal"
    assert list(tmp_path.iterdir()) == []
