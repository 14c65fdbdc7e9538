"""For people who test their handlers with pytest: the fixtures `inbox` and `run_handler`, there once fsinbox
is installed.

pytest imports this module at its start, in every project of that environment: it imports nothing of fsinbox
before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from ..inbox import Inbox
    from .handling import Handled


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "fsinbox(**settings): how the fixture `inbox` is opened, for one: @pytest.mark.fsinbox(codec='text')",
    )


@pytest.fixture
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inbox]:
    """An empty fsinbox.Inbox in the test's own directory, closed at its end. The test fails if it leaves an
    element in flight.

    Adds are not flushed: a power cut ends the test anyway.
    """
    from ..inbox import Inbox

    marker = request.node.get_closest_marker("fsinbox")
    settings: dict[str, Any] = {"durable": False, **(marker.kwargs if marker else {})}
    with Inbox(tmp_path / "inbox", **settings) as opened:
        yield opened
        left = opened.in_flight
    if left:
        keys = ", ".join(map(repr, left))
        pytest.fail(
            f"the test left elements of the inbox in flight ({keys}): end each with ack(), nack() or fail()",
            pytrace=False,
        )


@pytest.fixture
def run_handler() -> Callable[..., Handled]:
    """Have a handler work through an inbox, as `fsinbox consume --drain` would, and tell what became of each
    element.

    run_handler(handler, inbox, concurrency=1, max_attempts=5): see fsinbox.testing.handling.handle_all.
    """
    from .handling import handle_all

    return handle_all
