"""What is left out of the coverage of the package: each time with a reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRAGMA = re.compile(r"#\s*pragma\b.*")
REASONED = re.compile(r"# pragma: no (cover|branch) - \w.{4,}")


def test_each_line_that_is_left_out_of_the_coverage_has_a_reason() -> None:
    pragmas = [
        f"{path.relative_to(ROOT)}:{number}: {pragma[0]}"
        for path in sorted((ROOT / "fsinbox").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (pragma := PRAGMA.search(line))
    ]
    assert [line for line in pragmas if not REASONED.search(line)] == []
    assert len(pragmas) <= 4, "test it, rather"


def test_nothing_else_is_left_out() -> None:
    coverage = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]
    assert coverage["run"]["branch"] is True
    assert coverage["run"]["source"] == ["fsinbox"]
    assert "omit" not in coverage["run"]
    assert coverage["report"]["fail_under"] == 100
    assert coverage["report"]["exclude_also"] == ["if TYPE_CHECKING:"]
    assert not {"exclude_lines", "partial_branches", "partial_also", "omit"} & coverage["report"].keys()
