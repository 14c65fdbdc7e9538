"""What all tests share: `--long`, an inbox's path, and child processes that do not outlive their test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest
from hypothesis import settings

import fsinbox

# Where there is a libfuse 2 as well (GlusterFS brings it), mfusepy would load that. Ours are for 3.
if library := find_library("fuse3"):
    os.environ.setdefault("FUSE_LIBRARY_PATH", library)


# The same examples every time, and no database of earlier ones: a run depends on nothing but the code.
settings.register_profile("fsinbox", derandomize=True, deadline=None, database=None, max_examples=150)
settings.register_profile("long", derandomize=True, deadline=None, database=None, max_examples=5000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, too: hours")
    parser.addoption(
        "--quick", action="store_true", help="leave out the harnesses of docs/reliability.md: a minute or two"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "fsinbox")


HARNESSES = {"crash", "disk", "faults", "lossy", "storm", "model", "hostile", "mutants", "interleave"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if HARNESSES & item.keywords.keys()]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="the long version of a check: run with --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def inbox_dir(tmp_path: Path) -> Path:
    """Path of an inbox that does not exist yet."""
    return tmp_path / "inbox"


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
