"""Threads beside processes, for a handler that computes: `consume --concurrency N` and `--processes N`.

    python scripts/benchmarks/parallel.py [--workers 2] [--elements 40] [--work 1500000] [--rounds 3]

Each round drains the same elements with one thread, with N threads and with N processes, one after the other;
the best round of each counts. What starting takes is measured with an empty inbox, and is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fsinbox import Inbox

HANDLER = """
def compute(key, value):
    total = 0
    for number in range(value):
        total += number * number % 7
"""


def drain(folder: Path, elements: int, work: int, *words: str) -> float:
    """Return how many seconds a drain of so many elements takes."""
    with Inbox(folder / "inbox", durable=False) as inbox:
        for number in range(elements):
            inbox.add(str(number), work)
    began = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "fsinbox",
            "consume",
            "--drain",
            "--quiet",
            "--handler",
            "work:compute",
            *words,
        ],
        cwd=folder,
        check=True,
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("workers", 2), ("elements", 40), ("work", 1_500_000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    ways = {
        "1 thread": (),
        f"{asked.workers} threads": ("--concurrency", str(asked.workers)),
        f"{asked.workers} processes": ("--processes", str(asked.workers)),
    }
    best = dict.fromkeys(ways, float("inf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work.py").write_text(HANDLER)
        empty = {way: min(drain(folder, 0, 0, *words) for _ in range(3)) for way, words in ways.items()}
        for _ in range(asked.rounds):
            for way, words in ways.items():
                best[way] = min(best[way], drain(folder, asked.elements, asked.work, *words) - empty[way])
    first = best["1 thread"]
    print(f"{'':<14} {'elements/s':>10} {'beside 1 thread':>16} {'start':>8}")
    for way, seconds in best.items():
        print(f"{way:<14} {asked.elements / seconds:>10.1f} {first / seconds:>15.2f}x {empty[way]:>7.2f}s")


if __name__ == "__main__":
    main()
