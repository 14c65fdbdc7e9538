"""No command's start-up pays for what it does not use: the modules that each command has imported when it is
done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment

import fsinbox
from fsinbox import Inbox

HEAVY = {
    "asyncio",
    "jinja2",
    "opentelemetry",
    "prometheus_client",
    "rich",
    "sqlalchemy",
    "starlette",
    "tarfile",
    "uvicorn",
    "watchdog",
}

CODE = """
import os, runpy, sys
sys.argv = ["fsinbox", *sys.argv[1:]]
try:
    runpy.run_module("fsinbox", run_name="__main__")
finally:
    with open("modules", "w") as file:
        file.write("\\n".join(sys.modules))
"""

LINES = {
    "add": ["add", "k", "v"],
    "add --json": ["add", "--json", "k", "v"],
    "ls": ["ls"],
    "show": ["show", "k"],
    "status": ["status"],
    "failed": ["failed"],
    "retry": ["retry", "k"],
    "requeue": ["requeue", "--all"],
    "replay": ["replay", "--all"],
    "discard": ["discard", "k", "--yes"],
    "purge": ["purge", "--yes"],
    "hold": ["hold", "k"],
    "release": ["release", "k"],
    "pause": ["pause"],
    "resume": ["resume"],
    "wait": ["wait", "--timeout", "0"],
    "export": ["export", "all.tar"],
    "--help": ["--help"],
    "consume": ["consume", "--exec", "true", "--drain"],
    "consume --handler": ["consume", "--handler", "tasks:work", "--drain"],
}
NEEDED = {"export": {"tarfile"}, "consume --handler": {"asyncio"}}


@pytest.mark.bare
@pytest.mark.parametrize("name", LINES)
def test_a_command_imports_nothing_it_does_not_use(tmp_path: Path, name: str) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("k", 1)
    (tmp_path / "tasks.py").write_text("def work(key, value): pass\n")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *LINES[name]],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr.replace("SystemExit", ""), done.stderr
    imported = {module.partition(".")[0] for module in (tmp_path / "modules").read_text().split()}
    # (A drain with nothing to wait for need not watch; a site's .pth files may import what they like.)
    before = set(subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], env=environment(),
        capture_output=True, text=True, timeout=60,
    ).stdout.replace(".", " ").split())  # fmt: skip
    assert imported & HEAVY - before <= NEEDED.get(name, set())


@pytest.mark.bare
def test_a_cold_add_imports_no_more_than_the_library_needs(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    # (Without site: what finds an editable checkout imports half of the standard library.)
    code = CODE.replace(
        'runpy.run_module("fsinbox", run_name="__main__")', "import fsinbox.cli as cli; cli.main()"
    )
    subprocess.run(
        [sys.executable, "-S", "-c", code.replace(", runpy", ""), "add", "k", "v"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(Path(fsinbox.__file__).parents[1])},
        capture_output=True,
        timeout=60,
        check=True,
    )
    imported = set((tmp_path / "modules").read_text().split())
    ours = {module for module in imported if module.startswith("fsinbox")}
    assert {module for module in ours if module.startswith(("fsinbox.cli.", "fsinbox.worker"))} == {
        "fsinbox.cli.adding",
        "fsinbox.cli.locating",
    }
    # What looks, what gives reasons, and what a table is made anew with: other commands need that.
    assert not ours & {"fsinbox.inbox", "fsinbox.element", "fsinbox.store.printing"}
    assert not imported & {"click", "collections", "json", "re", "functools", "contextlib"}
