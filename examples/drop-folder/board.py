"""The consumer's side: `fsinbox consume --handler board:pin`.

board/ holds the last report of each job, for a web server or for `cat`.
"""

from pathlib import Path

from fsinbox import Element

BOARD = Path("board")


def pin(element: Element) -> None:
    """Keep the last report of a job. To do it twice gives the same file."""
    BOARD.mkdir(exist_ok=True)
    draft = BOARD / f".{element.key}"
    draft.write_bytes(element.data)
    draft.replace(BOARD / element.key)  # a reader sees the old page or the new one, whole
    verdict = element.data.decode(errors="replace").rstrip().rpartition("\n")[2]
    print(f"{element.key}: {verdict}", flush=True)
