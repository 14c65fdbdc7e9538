"""How many elements a second go to an engine, and back: the handlers of examples/handover on real servers.

    python scripts/benchmarks/handover.py [--elements 5000] [--size 200] [--batch 100] [--rounds 3]

The servers of tests/engines.py are started, in /tmp; the inbox is in the working directory. Each server
flushes what it confirms, as the handlers ask for (NATS 2.9 cannot). What starting a consumer takes is
measured with an empty inbox, and is left out. The best round counts. `a folder` is a handler that adds
to a second inbox, in batches as large.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fsinbox import Inbox

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from engines import ENGINES, Engine  # noqa: E402
from helpers import environment, wait_until  # noqa: E402

FOLDER = """
from fsinbox import Inbox

there = Inbox("there", codec="bytes")


def move(elements):
    there.add_many([(element.key, element.data) for element in elements])
"""


def fill(inbox: Inbox, count: int, size: int) -> None:
    """Queue so many new keys."""
    inbox.add_many((f"key-{number:07}", os.urandom(size)) for number in range(count))


def away(folder: Path, module: str, batch: int, variables: dict[str, str]) -> float:
    """Return how many seconds a drain takes."""
    words = ["consume", "--drain", "--quiet", "--handler", f"{module}:move", "--batch", str(batch)]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fsinbox", *words], cwd=folder, env=environment(**variables), check=True
    )
    return time.perf_counter() - began


def back(folder: Path, engine: Engine, count: int) -> float:
    """Return how many seconds the listener takes from the first that arrives to the last."""
    inbox = Inbox(folder / "back", codec="bytes")
    words = [sys.executable, f"from_{engine.name}.py", "back"]
    service = subprocess.Popen(words, cwd=folder, env=environment(**engine.variables))
    try:
        wait_until(lambda: len(inbox) > 0)
        began, first = time.perf_counter(), len(inbox)
        wait_until(lambda: len(inbox) == count, patience=600)
        return (time.perf_counter() - began) * count / max(1, count - first)
    finally:
        service.kill()
        service.wait()
        inbox.close()
        shutil.rmtree(folder / "back")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("elements", 5000), ("size", 200), ("batch", 100), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(dir="."))  # on a disk, not in memory
        folder = Path(shutil.copytree(ROOT / "examples/handover", Path(temporary).resolve() / "handover"))
        (folder / "to_folder.py").write_text(FOLDER)
        engines = {
            name: stack.enter_context(make()) for name, make in ENGINES.items() if make.program() is not None
        }
        ways = {"a folder": ("to_folder", None), **{n: (f"to_{n}", e) for n, e in engines.items()}}
        best: dict[tuple[str, str], float] = {}
        for engine in engines.values():
            engine.start()
        with Inbox(folder / "inbox", codec="bytes") as inbox:
            for _ in range(asked.rounds):
                for way, (module, engine) in ways.items():
                    for batch in (1, asked.batch):
                        if engine:
                            engine.clear()
                        variables = engine.variables if engine else {}
                        start = away(folder, module, batch, variables)
                        fill(inbox, asked.elements, asked.size)
                        taken = away(folder, module, batch, variables) - start
                        note(best, (way, f"batch {batch}"), taken)
                    if engine:
                        note(best, (way, "back"), back(folder, engine, asked.elements))
                    else:
                        shutil.rmtree(folder / "there")
    columns = ("batch 1", f"batch {asked.batch}", "back")
    print(f"{'elements/s':<12}" + "".join(f"{column:>12}" for column in columns))
    for way in ways:
        figures = (asked.elements / best[way, column] if (way, column) in best else 0 for column in columns)
        print(f"{way:<12}" + "".join(f"{figure:>12.0f}" for figure in figures))


def note(best: dict[tuple[str, str], float], what: tuple[str, str], seconds: float) -> None:
    """Keep the best round."""
    best[what] = min(best.get(what, seconds), seconds)


if __name__ == "__main__":
    main()
