"""Does a file outlive a rename during which the server is killed? With nothing of fsinbox: bare rename(2).

    scripts/hosts-lab run --on gluster -- python3 tests/hosts/renames.py [--rounds 8]

Ten processes on two hosts create files in tmp/, flush them, and rename each to drop/ and on to pending/,
while the server is killed and started again. Whatever a rename said, the file must then be at its old name or
at the new one. Exit status 1 if one is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

FOLDERS = ("tmp", "drop", "pending")


def work(root: Path, name: str, stop: Path, log: Path) -> None:
    """Rename until told to stop; note what each rename said."""
    number = 0
    with open(log, "w", buffering=1) as notes:
        while not stop.exists():
            number += 1
            key = f"{name}-{number}"
            try:
                with open(root / "tmp" / key, "x") as file:
                    file.write(key)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                time.sleep(0.02)
                continue
            for before, after in pairwise(FOLDERS):
                try:
                    os.rename(root / before / key, root / after / key)
                except OSError as error:
                    notes.write(f"{key} error-{error.errno}-{before}-{after}\n")
                    break
                notes.write(f"{key} {after}\n")


def one_round(number: int, mounts: dict[str, Path], job: Path) -> tuple[int, int, list[str]]:
    """Return how many files there were, how many renames failed, and what was lost."""
    stop = job / f"stop-{number}"
    logs = {f"{number}-{one}": job / f"log-{number}-{one}" for one in range(10)}
    workers = []
    for at, (name, log) in enumerate(logs.items()):
        host = "ab"[at % 2]
        words = [sys.executable, __file__, "--work", str(mounts[host] / "renames"), name, str(stop), str(log)]
        workers.append(subprocess.Popen(["lab-control", "on", host, *words]))
    time.sleep(2)
    subprocess.run(["lab-control", "restart"], check=True)
    time.sleep(1)
    stop.touch()
    for worker in workers:
        worker.wait()
    time.sleep(1)
    said = dict(line.split() for log in logs.values() for line in log.read_text().splitlines())
    roots = [mount / "renames" / folder for mount in mounts.values() for folder in FOLDERS]
    found = {path.name for root in roots for path in root.iterdir()}
    lost = [f"{key} ({how})" for key, how in said.items() if key not in found]
    return len(said), sum("error" in how for how in said.values()), lost


def main() -> None:
    """Rename, and say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        root, name, stop, log = options.work
        work(Path(root), name, Path(stop), Path(log))
        return
    mounts = {"a": Path(os.environ["LAB_A"]), "b": Path(os.environ["LAB_B"])}
    for folder in FOLDERS:
        (mounts["a"] / "renames" / folder).mkdir(parents=True, exist_ok=True)
    files = failed = 0
    lost: list[str] = []
    for number in range(options.rounds):
        more, errors, gone = one_round(number, mounts, Path(os.environ["LAB_JOB"]))
        files, failed, lost = files + more, failed + errors, lost + gone
        print(f"round {number + 1}: {more} files, {errors} renames failed, lost: {gone}", flush=True)
    print(f"{files} files, {failed} renames failed, {len(lost)} files lost")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
