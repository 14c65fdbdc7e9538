"""Proves that an inbox keeps its promises in hostile surroundings: each row of the table (cases.py) is met by
four clients, and each time the four questions of place.py are asked.

A failing case is replayed by its id, which the failure prints: pytest
'tests/hostile/test_hostile.py::test_...[client-case]'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.hostile.cases import CASES
from tests.hostile.place import Case, ask, is_root

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="mounts, inotify"),
]

ROWS = [
    pytest.param(case, client, id=f"{client}-{case.name}".encode("ascii", "backslashreplace").decode())
    for case in CASES
    for client in case.clients
]


@pytest.mark.parametrize(("case", "client"), ROWS)
def test_nothing_hangs_stops_others_reaches_outside_or_goes_without_a_reason(
    case: Case, client: str, request: pytest.FixtureRequest
) -> None:
    if case.needs_root and not is_root():
        pytest.skip("only root can make these surroundings, where it may mount")
    report = ask(case, client)
    if report.slow() and not report.wrong:
        # Another process may have had the machine. Whatever is slow by itself is slow again.
        again = ask(case, client)
        report.slowest = {
            call: min(took, again.slowest.get(call, took)) for call, took in report.slowest.items()
        }
    wrong = report.wrong + report.slow()
    assert not wrong, "\n".join([*wrong, "replay:", f"pytest {request.node.nodeid!r}"])


def test_the_table_is_as_long_as_promised(figure: Callable[[str], None]) -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(CASES) >= 150
    figure(f"{len(CASES)} cases, met by four clients: {len(ROWS)} meetings, four questions each")
