"""The doctor: measures the file system, checks an inbox, and mends it. `fsinbox doctor` is its command.

filesystem.py   what the file system does, measured      words.py   what follows from it, in words
examination.py  what is wrong with an inbox              kinds.py   what that means, in words
mending.py      the repair

measure(path) -> Facts      examine(path) -> Report      repair(path) -> list of what was done, a line each
"""

from .examination import examine
from .filesystem import measure
from .mending import repair
from .words import words

__all__ = ["measure", "words", "examine", "repair"]
