"""What all tests share: `--long`, an inbox's path, and child processes that do not outlive their test."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import fsinbox
from fsinbox.cli.options import Failure
from tests.machine import default_signals, keep_bytecode, work_in_memory

# The same examples every time, and no database of earlier ones: a run depends on nothing but the code.
settings.register_profile("fsinbox", derandomize=True, deadline=None, database=None, max_examples=150)
settings.register_profile("long", derandomize=True, deadline=None, database=None, max_examples=5000)


HARNESSES = {"crash", "disk", "faults", "lossy", "storm", "model", "hostile", "mutants", "interleave"}
"""Markers of what takes minutes, and is left out unless it is asked for."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the harnesses of docs/reliability.md, too")
    parser.addoption("--long", action="store_true", help="the same, with what is marked long: hours")


def pytest_configure(config: pytest.Config) -> None:
    default_signals()
    work_in_memory()
    keep_bytecode()
    settings.load_profile("long" if config.getoption("--long") else "fsinbox")


@pytest.hookimpl(optionalhook=True)  # some run without xdist
def pytest_xdist_auto_num_workers() -> int:
    """Two workers a core: about half of the time a test waits, for a process or for a moment to pass."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _asks_for_harnesses(config):
        config.hook.pytest_deselected(items=[item for item in items if HARNESSES & item.keywords.keys()])
        items[:] = [item for item in items if not HARNESSES & item.keywords.keys()]
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="the long version of a check: run with --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


def _asks_for_harnesses(config: pytest.Config) -> bool:
    """Tell whether the command line asks for harnesses: for all of them, by a marker, or by a file."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    marked = any(marker in config.option.markexpr for marker in HARNESSES)
    return named or marked or config.option.all or config.option.long


@pytest.fixture
def inbox_dir(tmp_path: Path) -> Path:
    """Path of an inbox that does not exist yet."""
    return tmp_path / "inbox"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test calls in this process sets up its log: not for the tests after it."""
    ours = logging.getLogger("fsinbox")
    level, before = ours.level, (logging.raiseExceptions, Failure.log)
    yield
    ours.setLevel(level)
    logging.raiseExceptions, Failure.log = before


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged, while this lasts."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code arguments...`, with pipes for its standard input and output. Killed at the end of
    the test."""
    started: list[subprocess.Popen[str]] = []
    package = str(Path(fsinbox.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def run_python(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run `python -c code arguments...` to its end and return what it printed, stripped. It must succeed, or
    be killed."""

    def run(code: str, *arguments: object) -> str:
        child = start_python(code, *arguments)
        output, _ = child.communicate(timeout=30)
        assert child.returncode in (0, -9), f"the child ended with {child.returncode}"
        return output.strip()

    return run


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a figure for the run's summary: how many states, kills, disks. A check that ran says how much it
    did."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of all tests, and what could not run here: so that a log tells what was proved, and
    what was not."""
    figures = [
        (report.nodeid, value)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "figure" and report.when == "call"
    ]
    if figures:
        terminalreporter.section("what was tried")
        for nodeid, text in sorted(figures):
            terminalreporter.write_line(f"{nodeid.rpartition('/')[2]}: {text}")
