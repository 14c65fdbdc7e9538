"""`fsinbox web`: an open page asks whether something has changed, and that costs next to nothing."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from helpers import Consumer, run, wait_until
from test_web import Site, change, fail, see, spool, where

from fsinbox import Element, Inbox
from fsinbox.operate.rows import row_of
from fsinbox.store.layout import Layout
from fsinbox.store.names import REASON, element_name
from fsinbox.web import version as versions
from fsinbox.web.version import of_element, of_list, of_overview

__all__ = ["spool"]


def settled(path: Path) -> None:
    """Have all folders of an inbox look as if nothing had happened for a minute."""
    before = time.time() - 60
    for folder in (path, *(one for one in path.iterdir() if one.is_dir())):
        os.utime(folder, (before, before))


@pytest.fixture
def quiet(spool: Path) -> Path:
    """The same inbox, in which nothing has happened for a minute."""
    settled(spool)
    return spool


def cpu(pid: int) -> float:
    """Return the seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def live(client: httpx.Client, tag: str = "", address: str = "/") -> httpx.Response:
    """Ask as an open page does."""
    return client.get(address, headers={"If-None-Match": tag})


def unchanged(client: httpx.Client, address: str = "/") -> str:
    """Return the tag of a page that has not changed. (It does, each half a minute.)"""
    tags: list[str] = []

    def stays() -> bool:
        tags.append(live(client, address=address).headers["etag"])
        return live(client, tags[-1], address).status_code == 304

    wait_until(stays, "for a page that stays as it is")
    return tags[-1]


def test_nothing_is_sent_while_nothing_changes_and_everything_after_each_change(quiet: Path) -> None:
    with Site("--allow-changes", cwd=quiet.parent) as site, site.client(unlocked=True) as client:
        tag = unchanged(client)
        answer = live(client, tag)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert answer.headers["cache-control"] == "no-store"
        steps = [
            lambda: run("add", "new", "1", cwd=quiet.parent),
            lambda: run("add", "new", "2", cwd=quiet.parent),
            lambda: (quiet / "drop/dropped").write_bytes(b"1"),
            lambda: run("hold", "new", cwd=quiet.parent),
            lambda: run("pause", cwd=quiet.parent),
            lambda: run("resume", cwd=quiet.parent),
        ]
        for step in steps:
            settled(quiet)
            tag = unchanged(client)
            step()
            answer = live(client, tag)
            assert answer.status_code == 200 and "etag" in answer.headers


def test_a_list_is_sent_again_after_each_change_that_it_shows_and_after_no_other(quiet: Path) -> None:
    run("add", "--delay", "1h", "later", "1", cwd=quiet.parent)
    states = ("waiting", "in_flight", "deferred", "failed", "done")
    with (
        Site(cwd=quiet.parent) as site,
        site.client() as client,
        Inbox(quiet, durable=False, keep_done=5) as inbox,
    ):
        inbox.take().ack()
        taken: list[Element] = []
        steps: list[tuple[Callable[[], object], set[str]]] = [
            (lambda: inbox.add("new", 1), {"waiting"}),
            (lambda: inbox.add("new", "a longer value"), {"waiting"}),
            (lambda: run("retry", "later", cwd=quiet.parent), {"waiting"}),
            (lambda: taken.append(inbox.take()), {"waiting", "in_flight"}),
            (lambda: taken.pop().nack(3600), {"in_flight", "deferred"}),
            (lambda: taken.append(inbox.take()), {"waiting", "in_flight"}),
            (lambda: taken.pop().fail("it broke"), {"in_flight", "failed"}),
            (lambda: run("discard", "--yes", "--all", cwd=quiet.parent), {"failed"}),
            (lambda: taken.append(inbox.take()), {"waiting", "in_flight"}),
            (lambda: taken.pop().ack(), {"in_flight", "done"}),
        ]
        for number, (step, where) in enumerate(steps):
            settled(quiet)
            tags = {state: unchanged(client, f"/elements/{state}") for state in states}
            step()
            answers = {state: live(client, tag, f"/elements/{state}") for state, tag in tags.items()}
            assert {state for state, one in answers.items() if one.status_code == 200} == where, number


def test_an_element_s_page_is_sent_again_when_it_changes_or_moves_and_when_no_other_does(quiet: Path) -> None:
    fail(quiet, "mine", why="it broke")
    (file,) = (name for name in os.listdir(quiet / "failed") if not name.endswith(REASON))
    failed, waiting = f"/elements/failed/{file}", f"/elements/waiting/{file}"
    with Site(cwd=quiet.parent) as site, site.client() as client:
        tag = unchanged(client, failed)
        run("add", "another", "1", cwd=quiet.parent)
        fail(quiet, "a third", why="it broke")
        assert live(client, tag, failed).status_code == 304
        (quiet / "failed" / f"{file}{REASON}").write_text("of another kind")
        assert live(client, tag, failed).status_code == 200
        tag = unchanged(client, failed)
        run("retry", "mine", cwd=quiet.parent)
        moved = live(client, tag, failed)
        assert where(moved) == (303, waiting)
        assert live(client, tag, waiting).status_code == 200
        tag = unchanged(client, waiting)
        run("add", "mine", "3", cwd=quiet.parent)
        assert live(client, tag, waiting).status_code == 200
        run("discard", "--yes", "--state", "waiting", "mine", cwd=quiet.parent)
        gone = live(client, tag, waiting)
        assert gone.status_code == 404 and "not here any more" in gone.text


def test_an_element_that_leaves_while_it_is_looked_at_has_a_version_too(quiet: Path) -> None:
    layout = Layout(str(quiet))
    row = row_of("waiting", "pending", element_name(1, "left"))
    assert row
    assert of_element(layout, "", row) == of_element(layout, "", row)
    layout.close()


def test_the_script_of_an_open_page_does_not_take_the_notice_that_is_for_the_next_page(quiet: Path) -> None:
    with Site("--allow-changes", cwd=quiet.parent) as site, site.client(unlocked=True) as client:
        (secret,) = see(client, "/").fields()
        assert change(client, "/pause", [secret]).status_code == 303
        assert "Paused. Consumers take nothing" not in live(client, '"one"').text
        assert "Paused. Consumers take nothing" in see(client, "/").text


def test_a_consumer_that_starts_works_and_ends_is_seen(quiet: Path) -> None:
    (quiet.parent / "tasks.py").write_text("def work(key, value):\n    pass\n")
    with Site(cwd=quiet.parent) as site, site.client() as client:
        with Consumer("--handler", "tasks:work", cwd=quiet.parent):
            wait_until(lambda: not os.listdir(quiet / "pending"))
            time.sleep(1.1)  # (its statistics are written at most once a second)
            settled(quiet)
            tag = unchanged(client)
        settled(quiet)  # only its lock tells that it has ended
        assert live(client, tag).status_code == 200


def test_what_changed_just_now_is_asked_for_again_for_clocks_tick(quiet: Path) -> None:
    layout = Layout(str(quiet))
    (quiet / "pending/x").touch()
    times = os.stat(quiet / "pending").st_mtime_ns
    seen = of_overview(layout, "")
    (quiet / "pending/y").touch()
    os.utime(quiet / "pending", ns=(times, times))  # as a clock with a coarse tick has it
    assert of_overview(layout, "") != seen
    layout.close()


def test_each_visitor_each_start_and_each_half_minute_has_another_tag(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(quiet))
    now = time.time_ns()
    monkeypatch.setattr(versions, "time_ns", lambda: now)
    seen = of_overview(layout, "")
    assert of_overview(layout, "") == seen
    assert of_overview(layout, "secret") != seen
    monkeypatch.setattr(versions, "time_ns", lambda: now + versions.FRESH * 10**9)
    assert of_overview(layout, "") != seen
    monkeypatch.undo()
    monkeypatch.setattr(versions, "_SITE", "another start")
    assert of_overview(layout, "") != seen
    layout.close()


def test_an_inbox_of_several_hosts_is_always_looked_at(tmp_path: Path) -> None:
    run("init", "--scope", "network", cwd=tmp_path)
    settled(tmp_path / "inbox")
    layout = Layout(str(tmp_path / "inbox"))
    assert of_overview(layout, "") != of_overview(layout, "")
    assert of_list(layout, "", "failed") != of_list(layout, "", "failed")
    layout.close()


@pytest.mark.parametrize("address", ["/", "/elements/waiting", "/elements/waiting?q=k1&page=9"])
def test_a_page_that_is_open_costs_next_to_nothing_however_many_elements_there_are(
    quiet: Path, address: str
) -> None:
    folder = os.open(quiet / "pending", os.O_RDONLY)
    for number in range(30_000):
        os.close(os.open(f"{number + 1:019d}-k{number}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))
    os.close(folder)
    settled(quiet)
    with Site(cwd=quiet.parent) as site, site.client() as client:
        see(client, address)
        ratios = []
        for _ in range(3):
            before = cpu(site.process.pid)
            for _ in range(5):
                assert live(client, address=address).status_code == 200
            whole = (cpu(site.process.pid) - before) / 5
            tag = unchanged(client, address)
            before = cpu(site.process.pid)
            same = [live(client, tag, address).status_code for _ in range(50)].count(304)
            ratios.append((cpu(site.process.pid) - before) / 50 / whole)
            assert same >= 49 or ratios.pop()
        assert min(ratios) < 0.1, ratios


def test_readers_that_go_away_leave_nothing_behind(quiet: Path) -> None:
    with Site(cwd=quiet.parent) as site, site.client() as client:
        see(client, "/")
        folder = f"/proc/{site.process.pid}/fd"
        before = len(os.listdir(folder))
        host, port = site.address.removeprefix("http://").rstrip("/").split(":")
        for _ in range(100):
            with socket.create_connection((host, int(port))) as reader:
                reader.sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        see(client, "/")
        wait_until(lambda: len(os.listdir(folder)) <= before, "for the descriptors of readers that went away")


def test_a_page_that_was_open_when_the_site_was_started_again_is_sent_all_of_it(quiet: Path) -> None:
    with Site("--allow-changes", cwd=quiet.parent) as site, site.client(unlocked=True) as client:
        tag = unchanged(client)
        port = site.address.rstrip("/").rpartition(":")[2]
        site.end(signal.SIGTERM)
        with Site("--port", port, cwd=quiet.parent) as again, again.client() as visitor:
            assert live(visitor, tag).status_code == 200
            assert live(client, tag).status_code == 404  # the session's address: that is said on its page
            assert change(client, "/pause", []).status_code == 404
