"""The fixtures for people who test their handlers, in a pytest of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import PACKAGE, environment

from fsinbox import Inbox
from fsinbox.testing.handling import PATIENCE, handle_all
from fsinbox.worker.outcome import HandlerError


def run_pytest(folder: Path, tests: str, *words: str) -> tuple[int, str]:
    """Run pytest on a file of tests, with the plugin as pip would have installed it; return its exit status
    and output."""
    site = folder / "site"
    if not site.exists():
        (site / "fsinbox_of_a_test-1.dist-info").mkdir(parents=True)
        (site / "fsinbox_of_a_test-1.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: fsinbox-of-a-test\nVersion: 1\n"
        )
        (site / "fsinbox_of_a_test-1.dist-info/entry_points.txt").write_text(
            "[pytest11]\nfsinbox = fsinbox.testing.pytest_plugin\n"
        )
    (folder / "test_it.py").write_text(textwrap.dedent(tests))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-q",
            "--strict-markers",
            "test_it.py",
            *words,
        ],
        cwd=folder,
        env=environment(PYTHONPATH=os.pathsep.join([str(site), PACKAGE])),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_handlers_are_tested_with_retries_failures_and_newer_values(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
        import fsinbox, pytest

        def test_a_good_handler(inbox, run_handler):
            seen = []
            inbox.add("a", {"n": 1})
            inbox.add("b", 2)
            done = run_handler(lambda key, value: seen.append((key, value)), inbox)
            assert seen == [("a", {"n": 1}), ("b", 2)]
            assert done.acknowledged == ["a", "b"] and not done.failed
            assert len(inbox) == 0

        def test_one_that_works_the_third_time(inbox, run_handler):
            def flaky(element):
                if element.attempts < 3:
                    raise OSError("not yet")
            inbox.add("k", 1)
            done = run_handler(flaky, inbox)
            assert done.acknowledged == ["k"] and done.attempts == {"k": 3}

        def test_one_that_never_works(inbox, run_handler):
            def bad(key, value):
                raise ValueError("broken " + value)
            inbox.add("k", "glass")
            done = run_handler(bad, inbox, max_attempts=2)
            assert "ValueError: broken glass" in done.failed["k"] and done.attempts["k"] == 2

        def test_one_that_rejects(inbox, run_handler):
            def picky(key, value):
                raise fsinbox.Reject("no thanks")
            inbox.add("k", 1)
            assert "no thanks" in run_handler(picky, inbox).failed["k"]

        def test_a_newer_value_while_it_fails(inbox, run_handler):
            def handler(key, value):
                if value == 1:
                    inbox.add("k", 2)
                    raise OSError
            inbox.add("k", 1)
            done = run_handler(handler, inbox)
            assert done.superseded == ["k"] and done.acknowledged == ["k"]

        async def later(key, value):
            raise fsinbox.TryLater("never")

        def test_one_that_puts_off_for_ever_comes_to_an_end(inbox, run_handler):
            inbox.add("k", 1)
            assert "put off 100 times" in run_handler("test_it:later", inbox).failed["k"]

        @pytest.mark.fsinbox(codec="text", max_inflight=2)
        def test_settings_of_the_inbox(inbox, run_handler):
            inbox.add("a", "plain")
            inbox.add("b", "plain")
            with pytest.raises(fsinbox.InvalidPayload):
                inbox.add("c", 5)
            first, second = inbox.take(), inbox.take()
            first.ack()
            second.ack()
        """,
    )
    assert (status, "7 passed" in output) == (0, True), output


def test_an_element_that_is_left_in_flight_fails_the_test_and_names_it(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
        def test_careless(inbox):
            inbox.add("my key", 1)
            assert inbox.take().value == 1

        def test_careful(inbox):
            inbox.add("k", 1)
            inbox.take()
            inbox.rollback()
        """,
    )
    assert status == 1
    assert (
        "the test left elements of the inbox in flight ('my key'): end each with ack(), nack() or fail()"
        in output
    )
    assert "2 passed, 1 error" in output


def test_fixtures_of_the_same_name_take_precedence_and_nothing_is_imported_before_it_is_used(
    tmp_path: Path,
) -> None:
    status, output = run_pytest(
        tmp_path,
        """
        import sys, pytest

        @pytest.fixture
        def inbox():
            return "mine"

        def test_it(inbox):
            assert inbox == "mine"
            ours = {name for name in sys.modules if name.startswith("fsinbox")}
            assert ours == {"fsinbox", "fsinbox.testing", "fsinbox.testing.pytest_plugin"}, ours
            assert "click" not in sys.modules and "watchdog" not in sys.modules
        """,
    )
    assert status == 0, output
    status, output = run_pytest(tmp_path, "", "--fixtures")
    assert "inbox -- " in output
    assert "run_handler -- " in output


# --- the run itself -----------------------------------------------------------------------------------


def test_a_run_works_at_several_elements_at_once_and_leaves_the_inbox_as_it_was(tmp_path: Path) -> None:
    from threading import Barrier

    together = Barrier(3, timeout=30)
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        for key in "abc":
            inbox.add(key, 1)
        done = handle_all(lambda key, value: together.wait() and None, inbox, concurrency=3)
        assert sorted(done.acknowledged) == ["a", "b", "c"]
        assert inbox.max_inflight == 1
        assert handle_all("json:dumps", inbox).acknowledged == []
        with pytest.raises(HandlerError, match="no such module"):
            handle_all("no_such_module_here:f", inbox)


def test_a_handler_of_the_worker_s_own_kind_may_be_given(tmp_path: Path) -> None:
    from fsinbox.worker.commands import CommandHandler

    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        inbox.add("good", 0)
        inbox.add("bad", 1)
        done = handle_all(CommandHandler('exit "$(cat {})"', shell=True), inbox, max_attempts=1)
        assert done.acknowledged == ["good"]
        assert [*done.failed] == ["bad"]


def test_an_element_that_is_put_off_is_tried_until_it_works(tmp_path: Path) -> None:
    from fsinbox import TryLater

    turns = iter(range(PATIENCE))

    def soon(key: str, value: object) -> None:
        if next(turns) < PATIENCE - 1:
            raise TryLater("soon")

    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        inbox.add("k", 1)
        assert handle_all(soon, inbox).acknowledged == ["k"]


def test_ctrl_c_ends_the_run_once_the_handler_is_through_and_means_what_it_did_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(key: str, value: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        inbox.add("k", 1)
        with pytest.raises(KeyboardInterrupt):
            handle_all(interrupted, inbox)
        assert signal.getsignal(signal.SIGINT) is before


def test_the_package_offers_the_plugin(tmp_path: Path) -> None:
    import tomllib

    project = tomllib.loads(Path(PACKAGE, "pyproject.toml").read_text())["project"]
    assert json.dumps(project["entry-points"]["pytest11"]) == '{"fsinbox": "fsinbox.testing.pytest_plugin"}'
