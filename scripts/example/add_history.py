"""add_history.py REPOSITORY: queue an event for each file of each commit, oldest commit first, into
$FSINBOX_DIR.

A key is `commit.<path>`; its value tells of the last commit that touched it. A later commit replaces one that
waits.
"""

import os
import subprocess
import sys
from collections import Counter

from fsinbox import Inbox


def commits(repository: str):
    """Yield (commit, date, paths), oldest first; nothing if this is not a git checkout (an unpacked
    archive)."""
    command = ["git", "-C", repository, "log", "--reverse", "--name-only", "--format=%x00%H %cI"]
    log = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for entry in log.split("\0")[1:]:
        head, *paths = entry.strip().splitlines()
        commit, date = head.split(" ")
        yield commit, date, [path for path in paths if path]


def main() -> None:
    outcomes: Counter[str] = Counter()
    with Inbox(os.environ["FSINBOX_DIR"]) as inbox:
        for commit, date, paths in commits(sys.argv[1]):
            events = [("commit." + path, {"commit": commit, "date": date, "from": "git"}) for path in paths]
            outcomes.update(inbox.add_many(events))
    print(f"added {sum(outcomes.values())} events: {dict(outcomes)}")


main()
