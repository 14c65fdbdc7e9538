"""Proves that the checks can tell: with a line of the code put out of action, one of them turns red.

Each mutant of catalogue.py is applied to a copy of the tree, and the check it names is run there: it must
fail. So must, for every place where the package or the shell producer flushes, the check of a mutant without
that flush: remove any one, and this is red. (tests/interleave has mutants of its own, of what only the order
of steps shows.)

    pytest 'tests/mutants/test_mutants.py::test_a_mutant_is_found[name-not-flushed]'     runs one again
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .catalogue import MUTANTS, Mutant

pytestmark = [pytest.mark.mutants, pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")]

ROOT = Path(__file__).parents[2]
TREE = ("fsinbox", "scripts", "tests", "pyproject.toml", "README.md", "docs")
FLUSH = re.compile(r"\b(?:f?sync|syncfs|flush\w*)\(|\bcommit\((?:fd|layout)|_BTRFS_SYNC\)|fcntl\(fd, full\)")
SHELL_FLUSH = re.compile(
    r"\bsync (?:-f )?\"|\bflush_shared \"|\bflush (?:drop|pending)$|\bconv=fsync", re.MULTILINE
)
WORKLOAD = "workload: "


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree. Each mutant is put into it and taken out again: so what the interpreter has
    compiled of all else is there for the next."""
    copy = tmp_path_factory.mktemp("mutants") / "tree"
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    """The mutant is in the tree, while this lasts."""
    changed = tree / mutant.file
    source, times = changed.read_text(), changed.stat()
    found = source.count(mutant.old)
    assert found == 1, (
        f"{mutant.file} holds this {found} times, not once; look at its mutants again:\n{mutant.old}"
    )
    changed.write_text(source.replace(mutant.old, mutant.new))
    # What was compiled is told from the source's second and size: each mutant has a second of its own.
    second = int(times.st_mtime) + 1 + MUTANTS.index(mutant)
    os.utime(changed, (second, second))
    try:
        yield
    finally:
        changed.write_text(source)
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found(mutant: Mutant, tree: Path) -> None:
    words, environment = shlex.split(mutant.check), dict(os.environ)
    if mutant.check.startswith(WORKLOAD):
        words = ["tests/crash", "-k", "one_workload"]
        environment["FSINBOX_WORKLOAD"] = mutant.check.removeprefix(WORKLOAD)
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "COVERAGE_PROCESS_START"):
        environment.pop(name, None)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a fifth of the time: two are used
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_timeout",
        "-p",
        "fsinbox.testing.pytest_plugin",
        "-o",
        "timeout=60",
        *words,
    ]
    with applied(mutant, tree):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=250)
    told = done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 1, (
        f"pytest ended with {done.returncode}; with 1, something would have been found\n{told}"
    )
    assert re.search(r"\b1 failed\b", done.stdout), told


def test_every_flush_has_a_mutant_without_it() -> None:
    """Wherever one is called, a mutant takes it away. (The doctor's measurements flush to see what it
    costs.)"""
    files = [
        *(ROOT / "fsinbox").glob("*.py"),
        *(
            path
            for storey in ("store", "consumer", "operate")
            for path in (ROOT / "fsinbox" / storey).rglob("*.py")
        ),
        ROOT / "fsinbox" / "doctor" / "mending.py",
        ROOT / "scripts" / "fsinbox-add",
    ]
    missing = []
    for path in sorted(files):
        file = str(path.relative_to(ROOT))
        flush = FLUSH if path.suffix else SHELL_FLUSH
        source = path.read_text()
        taken_away: set[int] = set()
        for mutant in MUTANTS:
            if mutant.file == file and len(flush.findall(mutant.old)) > len(flush.findall(mutant.new)):
                first = source.count("\n", 0, source.index(mutant.old)) + 1
                left = mutant.new.split("\n")
                taken_away.update(
                    first + at
                    for at, line in enumerate(mutant.old.split("\n"))
                    if flush.search(line) and line not in left
                )
        for number, line in enumerate(source.splitlines(), 1):
            if (
                flush.search(line.partition("# ")[0])
                and not re.match(r" *(?:def |\"\"\")", line)
                and number not in taken_away
            ):
                missing.append(f"{file}:{number}: {line.strip()}")
    assert not missing, "no mutant takes these flushes away:\n" + "\n".join(missing)
