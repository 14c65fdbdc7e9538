"""`fsinbox web`, asked as a browser would ask, and as an attacker's page would: a real process, over a real
socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import httpx
import pytest
from helpers import PATIENCE, Consumer, command, environment, keys_in, run, wait_until

from fsinbox import Inbox
from fsinbox.operate.report import Limits
from fsinbox.store.layout import Layout
from fsinbox.store.names import encode_key
from fsinbox.web import listing
from fsinbox.web.app import make_app
from fsinbox.web.auth import Rules


class Site:
    """`fsinbox web` in the background, for a `with` block. `address` is without the token."""

    def __init__(self, *words: str, cwd: Path, **variables: str) -> None:
        self._log = cwd / "web.err"
        self._words = words
        self._cwd = cwd
        self._variables = variables

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command("web", "--port", "0", *self._words),
                cwd=self._cwd,
                stderr=log,
                env=environment(**self._variables),
            )
        wait_until(lambda: " at http" in self.log or self.process.poll() is not None, "for the site")
        found = re.search(r" at (http://\S+/)(?:\?token=(\S+))?\n", self.log)
        assert found, self.log
        self.address, self.token = found[1], found[2] or ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    def end(self, number: signal.Signals) -> None:
        """Tell it to stop by a signal: it must end well."""
        self.process.send_signal(number)
        try:
            assert self.process.wait(PATIENCE) == 0, self.log
        finally:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def client(self, *, unlocked: bool = False) -> Iterator[httpx.Client]:
        """Ask it, with the token or without."""
        with httpx.Client(base_url=self.address, timeout=PATIENCE) as client:
            if unlocked:
                answer = client.get("/", params={"token": self.token})
                assert answer.status_code == 303
                client.base_url = httpx.URL(self.address).join(answer.headers["location"])
            yield client


HOME = re.compile(r"^/[\w-]{22}(?=/)")
"""What the addresses of those who have a session begin with."""


def where(answer: httpx.Response) -> tuple[int, str]:
    """Return an answer's status, and where it leads to: without what only the visitor knows."""
    return answer.status_code, HOME.sub("", answer.headers["location"])


class Document(HTMLParser):
    """A page, as a browser sees it: its text, its tags, and what its links and fields hold."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(response.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self, beginning: str) -> list[str]:
        """Return where links lead that begin so."""
        return [
            link
            for tag, attributes in self.tags
            if tag == "a" and (link := HOME.sub("", attributes.get("href") or "")).startswith(beginning)
        ]

    def fields(self) -> list[tuple[str, str]]:
        """Return the hidden fields of its forms."""
        return [
            (attributes["name"] or "", attributes["value"] or "")
            for tag, attributes in self.tags
            if tag == "input" and attributes.get("type") == "hidden"
        ]


def see(client: httpx.Client, address: str, status: int = 200) -> Document:
    """Return a page; it must come with this status."""
    response = client.get(address)
    assert response.status_code == status, response.text
    return Document(response)


def count(document: httpx.Response) -> dict[str, str]:
    """Return the figures of an overview: state -> number."""
    return dict(re.findall(r'id="count-(\w+)">([^<]+)<', document.text))


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """An inbox in which three elements wait."""
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        for number in range(3):
            inbox.add(f"page/{number}", {"id": number})
    return tmp_path / "inbox"


def fail(path: Path, *keys: str, why: str = "it broke") -> None:
    """Have elements of these keys fail, each with a payload of its own."""
    with Inbox(path, durable=False) as inbox:
        for key in keys:
            inbox.add_bytes(key, json.dumps({"of": key}).encode())
        left = set(keys)
        while left and (element := inbox.take()):
            if element.key in left:
                element.fail(why)
                left.discard(element.key)
            else:
                element.nack(3600)
        inbox.close()


def change(
    client: httpx.Client, address: str, fields: list[tuple[str, str]], **headers: str
) -> httpx.Response:
    """Send a form as a browser does."""
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Origin": str(client.base_url.copy_with(path="")),
    } | headers
    return client.post(address, content=urlencode(fields), headers=headers)


# --- starting and stopping ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_stops_cleanly_at_a_signal(spool: Path, number: signal.Signals) -> None:
    with Site(cwd=spool.parent) as site:
        with site.client() as client:  # its connection is open still when the signal comes
            assert client.get("/").status_code == 200
            site.end(number)
        assert site.log == f"fsinbox: showing {spool} at {site.address}\n"


def test_a_port_that_is_taken_is_an_error_that_names_it(spool: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("web", "--port", port, cwd=spool.parent, status=3)
    assert (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use: name another with --port"
        in done.stderr
    )


def test_a_host_that_is_not_there_is_an_error_that_names_it(spool: Path) -> None:
    assert (
        "cannot listen on no.such.invalid port"
        in run("web", "--host", "no.such.invalid", cwd=spool.parent, status=3).stderr
    )


def test_without_an_inbox_there_is_no_site(tmp_path: Path) -> None:
    assert f"there is no inbox at {tmp_path}/inbox" in run("web", cwd=tmp_path, status=3).stderr


def test_without_the_extra_it_says_how_to_install_it(spool: Path) -> None:
    (spool.parent / "gone").mkdir()
    (spool.parent / "gone/starlette.py").write_text("raise ModuleNotFoundError('no', name='starlette')")
    path = os.pathsep.join([str(spool.parent / "gone"), environment()["PYTHONPATH"]])
    done = run("web", cwd=spool.parent, status=2, PYTHONPATH=path)
    assert done.stderr == "fsinbox: web needs starlette, which is not installed: pip install 'fsinbox[web]'\n"


def test_nothing_but_the_command_imports_the_site() -> None:
    code = (
        "import sys, fsinbox, fsinbox.cli.commands as c, fsinbox.cli.serving; c.cli.get_command(None, 'web');"
        "print([m for m in sys.modules if m.startswith(('starlette', 'uvicorn', 'jinja2', 'fsinbox.web'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "[]\n"


def test_other_addresses_than_loopback_are_warned_of_unless_it_is_private(spool: Path) -> None:
    with Site("--host", "0.0.0.0", "--allow-host", "Queue.Example", cwd=spool.parent) as site:
        assert "whoever reaches 0.0.0.0 can read all of it: --private" in site.log
        assert site.address.startswith("http://127.0.0.1:")
        with site.client() as client:
            assert client.get("/", headers={"Host": "queue.example:80"}).status_code == 200
            assert client.get("/", headers={"Host": "0.0.0.0"}).status_code == 421
    with Site("--host", "0.0.0.0", "--private", cwd=spool.parent) as site:
        assert site.log.count("\n") == 1 and site.token


# --- who may see, and who may change ------------------------------------------------------------------


def test_each_answer_keeps_browsers_from_loading_framing_sniffing_and_keeping_anything(spool: Path) -> None:
    with Site(cwd=spool.parent) as site, site.client() as client:
        for address in ("/", "/elements/waiting", "/no/such/page", "/static/style.css"):
            headers = client.get(address).headers
            assert headers["content-security-policy"].startswith(
                "default-src 'none'; style-src 'self'; script-src 'self'"
            )
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["cache-control"] == "no-store"
            assert "set-cookie" not in headers and "server" not in headers


def test_a_name_that_is_not_ours_gets_no_answer(spool: Path) -> None:
    with Site(cwd=spool.parent) as site, site.client() as client:
        for theirs in ("evil.example", "127.0.0.1.evil.example:8470", "", "[", "0.0.0.0"):
            answer = client.get("/elements/waiting", headers={"Host": theirs})
            assert (
                answer.status_code == 421 and "page/0" not in answer.text and str(spool) not in answer.text
            ), theirs
        for ours in ("localhost", "127.0.0.1:1", "[::1]:8470", "LOCALHOST:8470"):
            assert client.get("/", headers={"Host": ours}).status_code == 200, ours


def test_without_allow_changes_nothing_can_be_changed_and_no_form_is_there(spool: Path) -> None:
    fail(spool, "bad")
    with Site(cwd=spool.parent) as site, site.client() as client:
        assert client.get("/?token=guess").status_code == 200  # there is none
        assert "read-only" in client.get("/").text
        for address in ("/", "/elements/failed", see(client, "/elements/failed").links("/elements/")[-1]):
            assert "POST" not in client.get(address).text.upper()
            assert "This page only shows" in client.get(address).text and see(client, address).links(
                "/unlock"
            )
        assert "nothing to unlock" in see(client, "/unlock").text
        for address in ("/failed", "/pause", "/resume"):
            answer = change(client, address, [("secret", ""), ("do", "retry"), ("all", "1")])
            assert answer.status_code == 403 and "start it with --allow-changes" in Document(answer).text
        assert change(client, "/unlock", [("token", "guess")]).status_code == 403
        assert client.get("/failed").status_code == 405
    assert keys_in(spool, "failed") == ["bad"] and not (spool / "control").exists()


def test_without_the_token_changes_are_refused_with_a_page_that_says_how(spool: Path) -> None:
    fail(spool, "bad")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client() as client:
        assert see(client, "/").links("/unlock")
        for address in ("/", "/elements/failed", see(client, "/elements/failed").links("/elements/")[-1]):
            page = see(client, address)
            assert "pause and resume need the token that was printed" in page.text, page.text
            assert len(page.links("/unlock")) == 2
        said = " ".join(see(client, "/unlock").text.split())
        assert "Each change (retry, discard, pause, resume) needs the token; looking needs none." in said
        assert "Each start makes a new one" in said
        answer = change(client, "/pause", [("secret", "")])
        assert answer.status_code == 403 and "the token that was printed" in answer.text
        assert client.get("/", params={"token": "wrong"}).status_code == 403
        assert client.get("/", params={"token": "\ud800ä"}.__class__(token="ä")).status_code == 403
        assert "set-cookie" not in change(client, "/unlock", [("token", "wrong")]).headers


def test_the_token_gives_a_session_and_does_not_stay_in_the_address(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client() as client:
        answer = client.get("/elements/waiting", params={"token": site.token})
        home = answer.headers["location"].removesuffix("/elements/waiting")
        assert (answer.status_code, len(home)) == (303, 23)
        elsewhere = httpx.URL(site.address).copy_with(raw_path=f"//evil.example/?token={site.token}".encode())
        assert client.get(elsewhere).headers["location"] == f"{home}/evil.example/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and site.token.lower() not in cookie
        assert f"path={home.lower()};" in cookie and "max-age" not in cookie
        assert "changes allowed" in see(client, f"{home}/").text
        assert "unlocked already" in see(client, f"{home}/unlock").text
        again = client.get(f"{home}/elements/failed", params={"token": site.token})
        assert again.headers["location"] == f"{home}/elements/failed"
        assert client.get(f"{home}/", params={"token": "wrong"}).status_code == 403


def test_the_token_can_be_typed_in(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client() as client:
        assert "Token" in see(client, "/unlock").text
        answer = change(client, "/unlock", [("token", f" {site.token} ")])
        assert where(answer) == (303, "/")
        assert "changes allowed" in see(client, answer.headers["location"]).text


def test_a_private_site_shows_nothing_before_it_has_the_token(spool: Path) -> None:
    with Site("--private", cwd=spool.parent) as site, site.client() as client:
        for address in ("/", "/elements/waiting", "/no/such/page"):
            answer = client.get(address)
            assert answer.status_code == 403 and "page/" not in answer.text and str(spool) not in answer.text
            assert "the token that was printed" in answer.text
        assert client.get("/static/style.css").status_code == 200
        assert client.get("/unlock").status_code == 200
        home = client.get("/", params={"token": site.token}).headers["location"]
        assert count(client.get(home))["waiting"] == "3"
        assert client.get("/").status_code == 403  # the cookie is not sent there
        with site.client() as other:
            assert other.get(home).status_code == 403  # to know the address is not enough
        answer = change(client, f"{home}pause", [("secret", "")])
        assert answer.status_code == 403 and "--allow-changes" in answer.text


def test_a_form_of_another_session_or_another_site_changes_nothing(spool: Path) -> None:
    fail(spool, "bad")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        with site.client(unlocked=True) as other:
            theirs = see(other, "/elements/failed").fields()
        ours = see(client, "/elements/failed").fields()
        retry = [("do", "retry"), ("all", "1")]
        assert change(client, "/failed", theirs + retry).status_code == 403
        assert (
            change(client, "/failed", [field for field in ours if field[0] != "secret"] + retry).status_code
            == 403
        )
        for origin in (
            "http://evil.example",
            "null",
            "",
            f"http://127.0.0.1:{httpx.URL(site.address).port}1",
        ):
            assert change(client, "/failed", ours + retry, Origin=origin).status_code == 403
            assert change(client, "/unlock", [("token", site.token)], Origin=origin).status_code == 403
        assert keys_in(spool, "failed") == ["bad"]
        assert change(client, "/failed", ours + retry).status_code == 303
    assert keys_in(spool, "failed") == []


def test_where_the_session_is_not_its_address_is_not_either(spool: Path) -> None:
    """No page without a session, no redirect and no header may name what the cookie is bound to."""
    fail(spool, "bad")
    with Site("--allow-changes", cwd=spool.parent) as site:
        with site.client(unlocked=True) as client:
            home = client.base_url.path.strip("/")
            cookie = client.cookies.jar.__iter__().__next__()
            assert (cookie.path, cookie.name) == (f"/{home}", f"fsinbox-{home}")
        with site.client() as client:
            addresses = [
                "/",
                "/unlock",
                "/elements/failed",
                "/static/live.js",
                "/no",
                "//",
                "/static",
            ]
            addresses += [f"{one}?token=wrong" for one in addresses]
            addresses += see(client, "/elements/failed").links("/")
            for address in addresses:
                answer = client.get(address)
                assert home not in answer.text + str(answer.headers), address
                assert "set-cookie" not in answer.headers
            for address in ("/failed", "/pause", "/resume", "/unlock"):
                answer = change(client, address, [("token", "wrong")])
                assert home not in answer.text + str(answer.headers) and answer.status_code == 403


def test_a_cookie_that_another_made_is_no_session(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        home = client.base_url.path.strip("/")
        with Site("--allow-changes", cwd=spool.parent) as other, other.client(unlocked=True) as theirs:
            (cookie,) = theirs.cookies.jar
        for forged in (cookie.value, "", "x", "e30=.x.y"):
            answer = httpx.get(f"{site.address}{home}/", headers={"Cookie": f"fsinbox-{home}={forged}"})
            assert answer.status_code == 200 and "changes allowed" not in answer.text


def test_a_form_that_is_too_large_is_refused(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        answer = change(client, "/failed", [("file", "x" * (1 << 20))])
        assert answer.status_code == 413 and "too large" in answer.text


# --- changes ------------------------------------------------------------------------------------------


def test_a_failed_element_is_queued_again_and_all_that_are_shown_at_once(spool: Path) -> None:
    fail(spool, "one", "two", "three")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        (link,) = [
            link
            for link in see(client, "/elements/failed").links("/elements/failed/")
            if link.endswith("-two")
        ]
        answer = change(client, "/failed", [*see(client, link).fields(), ("do", "retry")])
        assert where(answer) == (303, "/elements/failed")
        page = see(client, "/elements/failed")
        assert "1 queued again." in page.text
        assert "queued again" not in see(client, "/elements/failed").text  # it is said once
        assert "two" in keys_in(spool, "pending") and len(keys_in(spool, "failed")) == 2
        assert change(client, "/failed", [*page.fields(), ("do", "retry"), ("all", "1")]).status_code == 303
        assert "2 queued again." in see(client, "/").text
        assert change(client, "/failed", [*page.fields(), ("do", "retry"), ("all", "1")]).status_code == 303
        assert "2 not there any more." in see(client, "/").text
    assert list((spool / "failed").iterdir()) == []


def test_a_newer_value_is_not_undone_by_a_retry(spool: Path) -> None:
    fail(spool, "one")
    with Inbox(spool, durable=False) as inbox:
        inbox.add("one", "newer")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        change(client, "/failed", [*see(client, "/elements/failed").fields(), ("do", "retry"), ("all", "1")])
        assert "1 skipped (a newer value of the key is waiting" in see(client, "/elements/failed").text
    assert keys_in(spool, "failed") == ["one"]


def test_a_discard_asks_first_and_then_the_element_and_its_reason_are_gone(spool: Path) -> None:
    fail(spool, "one", "two")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        fields = see(client, "/elements/failed").fields()
        asked = change(client, "/failed", [*fields, ("do", "discard"), ("all", "1")])
        assert asked.status_code == 200 and "Discard 2 elements?" in Document(asked).text
        assert len(keys_in(spool, "failed")) == 2
        again = Document(change(client, "/failed", [*fields, ("do", "discard"), ("all", "1")])).fields()
        sure = Document(asked).fields()
        assert change(client, "/failed", sure).status_code == 303
        assert "2 discarded." in see(client, "/").text
        twice = change(client, "/failed", sure)
        assert twice.status_code == 400 and "done already" in twice.text
        change(client, "/failed", again)
        assert "0 discarded; 2 not there any more." in see(client, "/").text
    assert list((spool / "failed").iterdir()) == []
    assert keys_in(spool, "pending") == []


def test_a_change_of_nothing_or_of_what_is_no_element_says_so(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        (secret,) = see(client, "/").fields()
        for files in ([], ["../format"], ["../../etc/passwd", "~reason.txt", "", "1-x"]):
            answer = change(
                client,
                "/failed",
                [secret, ("do", "discard"), *(("file", name) for name in files)],
            )
            assert answer.status_code == 400 and "No element was chosen" in answer.text
    assert (spool / "format").exists()


def test_consumers_are_paused_and_resumed(spool: Path) -> None:
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        assert change(client, "/pause", see(client, "/").fields()).status_code == 303
        page = see(client, "/")
        assert "Paused. Consumers take nothing" in page.text and "Resume consumers" in page.text
        assert os.path.lexists(spool / "control/pause")
        assert change(client, "/resume", page.fields()).status_code == 303
        assert "Resumed." in see(client, "/").text
    assert not os.path.lexists(spool / "control/pause")


# --- what is shown ------------------------------------------------------------------------------------


def test_the_overview_has_the_figures_of_status(spool: Path) -> None:
    fail(spool, "bad")
    (spool / "drop/late").write_bytes(b"x")
    with Site("--max-failed", "0", cwd=spool.parent) as site, site.client() as client:
        page = client.get("/")
        status = json.loads(run("status", "--json", cwd=spool.parent).stdout)
        assert count(page) == {
            name: str(status[name]) for name in ("waiting", "in_flight", "deferred", "failed", "dropped")
        }
        assert "CRITICAL" in page.text and "1 element failed (limit 0)." in page.text
        assert count(client.get("/", headers={"If-None-Match": '"another"'})) == count(page)


def test_a_running_consumer_is_seen_with_what_it_handles_and_what_failed(spool: Path) -> None:
    (spool.parent / "tasks.py").write_text(
        "import threading\n"
        "def work(key, value):\n"
        "    if key == 'page/0': raise ValueError('no `template`')\n"
        "    threading.Event().wait()\n"
    )
    with Inbox(spool, durable=False) as inbox:
        for number in range(30):
            inbox.add(f"more/{number}", number)
    words = ("--handler", "tasks:work", "-c", "22", "--max-attempts", "1")
    with (
        Consumer(*words, cwd=spool.parent) as consumer,
        Site(cwd=spool.parent) as site,
        site.client() as client,
    ):
        consumer.until(lambda: "22" in client.get("/").text and "And 2 more." in client.get("/").text)
        page = see(client, "/")
        assert f"pid {consumer.process.pid} on " in page.text and "tasks:work, 22 at once" in page.text
        assert "ValueError: no `template`" in page.text and "given up" in page.text
        out, failed = page.links("/elements/in_flight/"), page.links("/elements/failed/")
        assert len(out) == 20 and len(failed) == 1
        assert "page/1" in see(client, out[0]).text and "in flight" in see(client, out[0]).text
        assert "in work" in see(client, failed[0]).text  # the traceback
        assert "page/1" in see(client, "/elements/in_flight").text
        assert "Traceback" in see(client, "/elements/failed").text


def test_a_shared_inbox_shows_its_lease_and_what_is_in_the_consumer_s_folder(tmp_path: Path) -> None:
    run("init", "--scope", "network", cwd=tmp_path)
    run("add", "k", "1", cwd=tmp_path)
    (tmp_path / "tasks.py").write_text("import threading\ndef work(key, value): threading.Event().wait()\n")
    with (
        Consumer("--handler", "tasks:work", cwd=tmp_path) as consumer,
        Site(cwd=tmp_path) as site,
        site.client() as client,
    ):
        consumer.until(lambda: count(client.get("/"))["in_flight"] == "1")
        assert "heartbeat " in see(client, "/").text
        (link,) = see(client, "/elements/in_flight").links("/elements/in_flight/")
        page = see(client, link)
        assert "inflight/lease-" in page.text and "1 byte, JSON" in page.text


def test_shards_keys_on_hold_and_kept_elements_are_seen(spool: Path) -> None:
    (spool.parent / "tasks.py").write_text("def work(key, value): pass\n")
    run("hold", *[f"held/{number}" for number in range(25)], cwd=spool.parent)
    run(
        "consume",
        "--handler",
        "tasks:work",
        "--drain",
        "--keep-done",
        "9",
        "--shard",
        "1/2",
        cwd=spool.parent,
    )
    run(
        "consume",
        "--handler",
        "tasks:work",
        "--drain",
        "--keep-done",
        "9",
        "--shard",
        "2/2",
        cwd=spool.parent,
    )
    with Site(cwd=spool.parent) as site, site.client() as client:
        page = see(client, "/")
        assert "shard 1/2" in page.text and "shard 2/2" in page.text
        assert "Keys on hold" in page.text and "and 5 more" in page.text
        links = see(client, "/elements/done").links("/elements/done/")
        assert len(links) == 3
        assert "done/" in see(client, links[0]).text


def test_pages_of_fifty_and_a_filter_by_what_a_key_contains(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        for number in range(120):
            inbox.add(f"{'Page' if number % 2 else 'feed'}/{number:03d}", number)
    with Site(cwd=tmp_path) as site, site.client() as client:

        def keys(address: str) -> list[str]:
            return [link[-3:] for link in see(client, address).links("/elements/waiting/")]

        assert keys("/elements/waiting") == [f"{number:03d}" for number in range(50)]
        assert keys("/elements/waiting?page=3") == [f"{number:03d}" for number in range(100, 120)]
        assert keys("/elements/waiting?page=99") == keys("/elements/waiting?page=3")
        assert (
            keys("/elements/waiting?page=zero")
            == keys("/elements/waiting?page=0")
            == keys("/elements/waiting")
        )
        assert keys("/elements/waiting?q=page/") == [f"{number:03d}" for number in range(1, 100, 2)]
        assert see(client, "/elements/waiting?q=page/").links("?q=page%2F&page=2")
        assert keys("/elements/waiting?q=page%2F&page=2") == [
            f"{number:03d}" for number in range(101, 120, 2)
        ]
        nothing = see(client, "/elements/waiting?q=<b>")
        assert (
            "No elements." in nothing.text
            and "“<b>”" in nothing.text
            and not any(tag == "b" for tag, _ in nothing.tags)
        )


def test_a_deferred_element_tells_when_it_is_tried_again(spool: Path) -> None:
    with Inbox(spool, durable=False, max_inflight=2) as inbox:
        inbox.take().nack(7200)
        inbox.take().nack(0.001)
        inbox.take()
        (now,) = [name for name in os.listdir(spool / "deferred") if "page%2F1" in name]
        with Site(cwd=spool.parent) as site, site.client() as client:
            page = see(client, "/elements/deferred")
            assert "in 1h" in page.text and "now" in page.text
            (link,) = [link for link in page.links("/elements/deferred/") if link.endswith("252F0")]
            assert "Next try" in see(client, link).text
            assert client.get(f"/elements/deferred/{now.replace('%', '%25')}").status_code == 200


def test_an_element_that_has_moved_on_is_found_where_it_is_now(spool: Path) -> None:
    with Site(cwd=spool.parent) as site, site.client() as client:
        first, second, third = see(client, "/elements/waiting").links("/elements/waiting/")
        with Inbox(spool, durable=False, max_inflight=3) as inbox:
            inbox.take().ack()
            element = inbox.take()
            inbox.take().nack(3600)
            for suffix in ("", "/payload"):
                assert client.get(second + suffix).headers["location"].startswith("/elements/in_flight/")
                assert client.get(third + suffix).headers["location"].startswith("/elements/deferred/")
                gone = client.get(first + suffix)
                assert gone.status_code == 404 and "not here any more" in gone.text
            (deferred,) = see(client, "/elements/deferred").links("/elements/deferred/")
            element.fail("why")
            assert see(client, client.get(second).headers["location"]).text.count("why")
        (spool / "deferred" / os.listdir(spool / "deferred")[0]).rename(
            spool / "pending" / third.rpartition("/")[2].replace("%25", "%")
        )
        assert client.get(deferred).headers["location"] == third


def test_what_is_no_element_is_not_there(spool: Path) -> None:
    addresses = """
        /elements/tmp /elements/done /elements/inflight/x /elements/waiting/format
        /elements/waiting/..%2fformat
        /elements/waiting/%2e%2e /elements/failed/1795492382055025610-a~reason.txt
        /elements/deferred/1795492382055025610-a
        /elements/waiting/1795492382055025610-%252e%252e%252fformat /elements/waiting/%ff%00 /static/../app.py
        /static/%2e%2e/app.py /elements/in_flight/1795492382055025610-a
    """
    with Site(cwd=spool.parent) as site, site.client() as client:
        for address in addresses.split():
            answer = client.get(httpx.URL(site.address).copy_with(raw_path=address.encode()))
            assert answer.status_code == 404, address


# --- payloads -----------------------------------------------------------------------------------------


PAYLOADS: list[tuple[bytes, list[str], list[str]]] = [
    (b'{"b":[1,"\xc3\xbc"]}',
     ["14 bytes, JSON", '{\n  "b": [\n    1,\n    "ü"\n  ]\n}', "show it as stored"], []),
    ("naïve\r\nsecond\u202eline \u3000".encode(),
     ["text", "naïve\nsecond\\u202eline \u3000"], ["\u202e", "Indented"]),
    (b"a\0b\xff" + bytes(range(64)), ["binary",
     "00000000  61 00 62 ff 00 01 02 03  04 05 06 07 08 09 0a 0b  |a.b.....", "|,-./01"], []),
    (b"x" * 65535 + "ä".encode() * 10,
     ["65,555 bytes, text; only the first 65,536 are shown", "x" * 65535], ["x\\", "ä"]),
    (b"\0" * 5000, ["5,000 bytes, binary; only the first 1,024 are shown", "000003f0  "], ["00000400"]),
    (b"", ["0 bytes, text"], []),
    (b"[" * 30000 + b"]" * 30000, ["text", "[[[[", "]]]]"], ["Indented"]),
    (b"[" * 400 + b"1," * 20000 + b"1" + b"]" * 400, ["text", "[[[[", "1,1,1"], ["Indented"]),
    (b'"\\ud800 <i>"', ["JSON", '"\\ud800 <i>"'], []),
]  # fmt: skip
"""What is stored, what is shown of it, and what is not."""


def test_a_payload_is_shown_for_what_it_is(spool: Path) -> None:
    with Inbox(spool, durable=False) as inbox:
        for number, (payload, _, _) in enumerate(PAYLOADS):
            inbox.add_bytes(f"it{number}", payload)
    with Site(cwd=spool.parent) as site, site.client() as client:
        for link, (payload, shown, hidden) in zip(
            see(client, "/elements/waiting?q=it").links("/elements/waiting/"), PAYLOADS, strict=True
        ):
            page = see(client, link)
            assert [text for text in shown if text not in page.text] == []
            assert [text for text in hidden if text in page.text] == []
            stored = see(client, f"{link}?stored")
            if payload.startswith(b"{"):
                assert '{"b":[1,"ü"]}' in stored.text and stored.links("?")
            answer = client.get(f"{link}/payload")
            assert answer.content == payload
            assert (
                answer.headers["content-disposition"] == f'attachment; filename="{link.rpartition("/")[2]}"'
            )
            assert answer.headers["content-type"] == "application/octet-stream"


def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(spool: Path) -> None:
    (spool.parent / "secret").write_text("SECRET")
    odd = [spool / f"pending/179549238205502561{number}-odd" for number in range(3)]
    odd[0].symlink_to(spool.parent / "secret")
    os.mkfifo(odd[1])
    odd[2].mkdir()
    with Site(cwd=spool.parent) as site, site.client() as client:
        for path in odd:
            page = see(client, f"/elements/waiting/{path.name}")
            assert "It cannot be read: " in page.text and "SECRET" not in page.text
            answer = client.get(f"/elements/waiting/{path.name}/payload")
            assert answer.status_code == 503 and "SECRET" not in answer.text


# --- hostile content ----------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "\x1b]0;title\x07\x1b[31m",
    "line\nbreak\ttab\r",
    "\u202etxt.exe",
    os.fsdecode(b"\xff\xfe byte"),
    "k" * 200,
    "..",
    "/etc/passwd",
    "?q=1&page=2#x",
    "%2e%2e",
    "é" * 33,
]


def test_hostile_keys_and_reasons_are_text_on_every_page(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    fail(path, *HOSTILE, why="<script>alert(2)</script>\n\x1b[2J \u202e\udc80 </pre></details>")
    with Inbox(path, durable=False) as inbox:
        for key in HOSTILE:
            inbox.add_bytes(key, json.dumps({"payload": key}).encode())
    with Site("--allow-changes", cwd=tmp_path) as site, site.client(unlocked=True) as client:
        for state in ("waiting", "failed"):
            links = see(client, f"/elements/{state}").links(f"/elements/{state}/")
            assert len(links) == len(HOSTILE)
            pages = [f"/elements/{state}", "/", *links]
            for address in pages:
                page = see(client, address)
                assert "img" not in {tag for tag, _ in page.tags}
                scripts = [value for tag, value in page.tags if tag == "script"]
                assert scripts == [{"src": "/static/live.js", "defer": None}]
                assert not any(
                    name.startswith("on") or name == "style"
                    for _, attributes in page.tags
                    for name in attributes
                )
                assert all(character.isprintable() or character in "\n\t" for character in page.text)
        whole = see(client, "/elements/failed").text
        for seen in (
            "<script>alert(1)</script>",
            "\\x1b]0;title\\x07",
            "\\u202etxt.exe",
            "\\xff\\xfe byte",
            "k" * 200,
            "{{ 7 * 7 }}",
        ):
            assert seen in whole
        for key in HOSTILE:
            (link,) = [link for link in links if link.endswith("-" + quote(encode_key(key), safe=""))]
            assert client.get(f"{link}/payload").json() == {"of": key}
        for text in HOSTILE:  # as a filter, too
            see(
                client,
                str(
                    httpx.URL(
                        "/elements/waiting",
                        params={"q": text.encode(errors="surrogateescape").decode(errors="replace")},
                    )
                ),
            )


def test_a_reason_that_is_missing_or_long_is_told(spool: Path) -> None:
    fail(spool, "none", "long", "blank", why="TheEnd: of it\n" + "x" * 70000)
    (path,) = (spool / "failed").glob("*-none~reason.txt")
    path.unlink()
    (path,) = (spool / "failed").glob("*-blank~reason.txt")
    path.write_text(" \n")
    with Site(cwd=spool.parent) as site, site.client() as client:
        page = see(client, "/elements/failed")
        assert (
            "No reason is kept." in page.text and "TheEnd: of it" in page.text and "(no message)" in page.text
        )
        for key, said in (
            ("none", "No reason is kept."),
            ("long", "Only its end is shown; all of it is in"),
            ("blank", "Why"),
        ):
            (link,) = [link for link in page.links("/elements/failed/") if link.endswith(f"-{key}")]
            assert said in see(client, link).text


def account(**more: object) -> dict[str, object]:
    """Return an account of a consumer, as one would have written it."""
    totals = {"taken": 1, "arrived": 1}
    mine = {
        "shard": "1/1",
        "pid": 1,
        "host": "h",
        "handler": "m:f",
        "concurrency": 1,
        "since": 1.0,
        "at": 2.0,
    }
    return mine | {"totals": totals, "minutes": [], "running": [], "failures": []} | more


FORGED: list[dict[str, object]] = [
    {"host": 5},
    {"since": -1.0},
    {"minutes": [[1, -5, 2, 3]]},
    {"minutes": [[float("inf"), 5, 2, 3]]},
    {"failures": [{"key": "k", "seq": -1, "at": 1.0, "summary": "", "last": False}]},
    {"minutes": [[1, 5, 2, 3]]},
    {"minutes": [[1, 10**400, 2, 3]]},
    {"running": [{"key": "k", "seq": 1, "attempts": 1, "started": 1e300}]},
    {"failures": [{"key": "k", "seq": "1", "at": 1.0, "summary": "", "last": True}]},
    {"failures": [{"key": "", "seq": 1, "at": 1.0, "summary": "HERE <b>\x1b", "last": True}]},
    {"failures": [{"key": "/k\udcff", "seq": 1, "at": 1.0, "summary": "HERE <b>\x1b", "last": False}]},
]


def test_forged_statistics_are_shown_as_text_or_left_out_and_stops_nothing(spool: Path) -> None:
    (spool / "stats").mkdir()
    with Site(cwd=spool.parent) as site, site.client() as client:
        for more in FORGED:
            (spool / "stats/1of1.json").write_text(json.dumps(account(**more)))
            page = see(client, "/")
            assert count(client.get("/"))["waiting"] == "3"
            assert ("HERE <b>\\x1b" in page.text) == ("HERE" in json.dumps(more)), more
            for link in page.links("/elements/failed/"):
                assert client.get(link).status_code == 404


# --- large, and gone ----------------------------------------------------------------------------------


def test_of_a_very_large_folder_only_so_much_is_looked_at_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inbox(tmp_path / "inbox", durable=False) as inbox:
        for number in range(30):
            inbox.add(f"k{number}", number)
    monkeypatch.setattr(listing, "MOST", 20)
    page, listed, failed = asked_in_this_process(
        tmp_path / "inbox", "/", "/elements/waiting", "/elements/failed"
    )
    assert count(page)["waiting"] == "20+"
    assert count(page)["failed"] == "0"
    assert (
        "Only the first 20 names" in page.text and "unknown: not all elements are counted here" in page.text
    )
    assert "20+ elements" in listed.text and "fsinbox ls --state waiting" in listed.text
    assert len(Document(listed).links("/elements/waiting/")) == 20
    assert "0 elements" in failed.text


def asked_in_this_process(path: Path, *addresses: str) -> list[httpx.Response]:
    """Return the answers of a site that is no process of its own."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make_app(str(path), Rules(), Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get(address) for address in addresses]

    return asyncio.run(ask())


def test_an_inbox_that_goes_and_comes_back_is_told_and_shown(spool: Path) -> None:
    with Site(cwd=spool.parent) as site, site.client() as client:
        spool.rename(spool.parent / "away")
        answer = client.get("/")
        assert answer.status_code == 503 and f"there is no inbox at {spool}" in answer.text
        assert client.get("/elements/waiting", headers={"If-None-Match": '"one"'}).status_code == 503
        (spool.parent / "away").rename(spool)
        assert count(client.get("/"))["waiting"] == "3"
    assert site.log.count("\n") == 1  # (that is no error of the site's)


def test_a_glance_lists_hidden_names_only_if_asked(spool: Path) -> None:
    (spool / "drop/.part").write_bytes(b"")
    (spool / "drop/whole").write_bytes(b"")
    glance = listing.Glance(str(spool))
    assert glance.names("drop") == ["whole"]
    assert sorted(glance.names("drop", hidden=True)) == sorted(Layout(str(spool)).names("drop", hidden=True))
    glance.close()
