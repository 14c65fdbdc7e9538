"""A full-text index of the files of a folder, kept fresh by `fsinbox watch` and `fsinbox consume --batch`.

`fsinbox consume --handler fresh:refresh --batch 100` keeps it; python fresh.py WORDS... prints the files that
have all of them.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsinbox import Element

DATABASE = "fresh.db"


def connect() -> sqlite3.Connection:
    """Open the index; create it if it is not there. Each call its own: handlers run in several threads."""
    database = sqlite3.connect(DATABASE, timeout=30)
    database.execute("CREATE VIRTUAL TABLE IF NOT EXISTS files USING fts5(name UNINDEXED, text)")
    return database


def refresh(elements: list[Element]) -> None:
    """Bring the index up to what these files hold now, in one transaction: twice gives the same index."""
    with closing(connect()) as database, database:  # a search sees the old texts or the new ones
        database.execute("BEGIN IMMEDIATE")
        for element in elements:
            database.execute("DELETE FROM files WHERE name = ?", (element.key,))
            try:
                text = Path(element.value["path"]).read_text(errors="replace")
            except FileNotFoundError:  # removed, or renamed: now, or since it was queued
                continue
            database.execute("INSERT INTO files VALUES (?, ?)", (element.key, text))


def search(words: list[str]) -> list[tuple[str, str]]:
    """Return (name, excerpt) of the files that have all words, the best first."""
    query = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    with closing(connect()) as database:
        return database.execute(
            "SELECT name, snippet(files, 1, '[', ']', '...', 8) FROM files WHERE files MATCH ? ORDER BY rank",
            (query,),
        ).fetchall()


if __name__ == "__main__":
    for name, excerpt in search(sys.argv[1:]):
        print(f"{name}: {excerpt.strip()}")
