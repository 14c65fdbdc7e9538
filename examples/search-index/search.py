"""A full-text index of documents, kept fresh by `fsinbox consume --handler search:index`.

python search.py WORDS... prints the documents that have all of them. The key of an element is the name of a
document, and its value the text; an empty text means that the document was removed.
"""

import sqlite3
import sys
from contextlib import closing

DATABASE = "search.db"


def connect() -> sqlite3.Connection:
    """Open the index; create it if it is not there. Each call its own: handlers run in several threads."""
    database = sqlite3.connect(DATABASE, timeout=30)
    database.execute("CREATE VIRTUAL TABLE IF NOT EXISTS documents USING fts5(name UNINDEXED, text)")
    return database


def index(name: str, text: str) -> None:
    """Put a document into the index, in place of what it had of it: twice gives the same index."""
    with (
        closing(connect()) as database,
        database,
    ):  # one transaction: a search sees the old text or the new one
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM documents WHERE name = ?", (name,))
        if text:
            database.execute("INSERT INTO documents VALUES (?, ?)", (name, text))


def search(words: list[str]) -> list[tuple[str, str]]:
    """Return (name, excerpt) of the documents that have all words, the best first."""
    query = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    with closing(connect()) as database:
        return database.execute(
            "SELECT name, snippet(documents, 1, '[', ']', '...', 8) FROM documents "
            "WHERE documents MATCH ? ORDER BY rank",
            (query,),
        ).fetchall()


if __name__ == "__main__":
    for name, excerpt in search(sys.argv[1:]):
        print(f"{name}: {excerpt}")
