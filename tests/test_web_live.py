"""`fsinbox web`: an open page asks whether something has changed, and that costs next to nothing."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from helpers import Consumer, run, wait_until
from test_web import Site, change, see, spool

from fsinbox.store.layout import Layout
from fsinbox.web import version as versions
from fsinbox.web.version import version

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


def live(client: httpx.Client, tag: str = "") -> httpx.Response:
    """Ask as an open page does."""
    return client.get("/live", headers={"If-None-Match": tag})


def unchanged(client: httpx.Client) -> str:
    """Return the tag of an overview that has not changed. (It does, each half a minute.)"""
    tags: list[str] = []

    def stays() -> bool:
        tags.append(live(client).headers["etag"])
        return live(client, tags[-1]).status_code == 304

    wait_until(stays, "for an overview that stays as it is")
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
    seen = version(layout, "")
    (quiet / "pending/y").touch()
    os.utime(quiet / "pending", ns=(times, times))  # as a clock with a coarse tick has it
    assert version(layout, "") != seen
    layout.close()


def test_each_visitor_each_start_and_each_half_minute_has_another_tag(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(quiet))
    now = time.time_ns()
    monkeypatch.setattr(versions, "time_ns", lambda: now)
    seen = version(layout, "")
    assert version(layout, "") == seen
    assert version(layout, "secret") != seen
    monkeypatch.setattr(versions, "time_ns", lambda: now + versions.FRESH * 10**9)
    assert version(layout, "") != seen
    monkeypatch.undo()
    monkeypatch.setattr(versions, "_SITE", "another start")
    assert version(layout, "") != seen
    layout.close()


def test_an_inbox_of_several_hosts_is_always_looked_at(tmp_path: Path) -> None:
    run("init", "--scope", "network", cwd=tmp_path)
    settled(tmp_path / "inbox")
    layout = Layout(str(tmp_path / "inbox"))
    assert version(layout, "") != version(layout, "")
    layout.close()


def test_a_page_that_is_open_costs_next_to_nothing_however_many_elements_there_are(quiet: Path) -> None:
    folder = os.open(quiet / "pending", os.O_RDONLY)
    for number in range(30_000):
        os.close(os.open(f"{number + 1:019d}-k{number}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))
    os.close(folder)
    settled(quiet)
    with Site(cwd=quiet.parent) as site, site.client() as client:
        see(client, "/")
        ratios = []
        for _ in range(3):
            before = cpu(site.process.pid)
            for _ in range(5):
                assert live(client).status_code == 200
            whole = (cpu(site.process.pid) - before) / 5
            tag = unchanged(client)
            before = cpu(site.process.pid)
            same = [live(client, tag).status_code for _ in range(50)].count(304)
            ratios.append((cpu(site.process.pid) - before) / 50 / whole)
            assert same >= 49 or ratios.pop()
        assert min(ratios) < 0.1, ratios


def test_readers_that_go_away_leave_nothing_behind(quiet: Path) -> None:
    with Site(cwd=quiet.parent) as site, site.client() as client:
        see(client, "/live")
        folder = f"/proc/{site.process.pid}/fd"
        before = len(os.listdir(folder))
        host, port = site.address.removeprefix("http://").rstrip("/").split(":")
        for _ in range(100):
            with socket.create_connection((host, int(port))) as reader:
                reader.sendall(f"GET /live HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        see(client, "/live")
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
