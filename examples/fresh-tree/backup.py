"""Keeps a copy of a folder fresh: a command for `fsinbox consume --exec 'python backup.py COPY' --batch 100`.

It reads a JSON object a line, one for each file of the batch. What it did of a batch that ends early is done
again: that is no harm.
"""

import json
import os
import shutil
import sys
from pathlib import Path

UNUSABLE = 65
"""Exit status: the element goes to failed/ at once."""


def refresh(name: str, source: str, copy: Path) -> None:
    """Bring the copy of a file up to what it is now."""
    target, draft = copy / name, copy / f"{name}.draft"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, draft)
        os.replace(draft, target)  # whoever reads it sees the old file or the new one
    except FileNotFoundError:  # removed, or renamed: now, or since it was queued
        target.unlink(missing_ok=True)


def main(copy: Path) -> None:
    """Work through standard input."""
    for line in sys.stdin:
        element = json.loads(line)
        name = element["key"]
        if name.startswith("/") or ".." in name.split("/"):  # from `watch`, no key is so
            print(f"{name!r} is no path in the copy", file=sys.stderr)
            sys.exit(UNUSABLE)
        refresh(name, json.loads(element["text"])["path"], copy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
