"""The doctor: measures the file system, checks an inbox, and repairs it. `fsinbox doctor` is its command.

filesystem.py    what the file system does, measured      measure(path) -> Facts
report.py        what follows from that, in words         describe(facts) -> lines
examination.py   what is wrong with an inbox              examine(path) -> Examination
  frame.py       ... with `format`, folders, modes
  folders.py     ... with what lies in the folders
  numbers.py     ... with the index
findings.py      what that means, in words
mending.py       the repair                               repair(path) -> lines
"""

from .examination import examine
from .filesystem import measure
from .mending import repair
from .report import describe

__all__ = ["measure", "describe", "examine", "repair"]
