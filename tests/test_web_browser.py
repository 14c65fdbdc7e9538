"""`fsinbox web` in a real browser: headless Chromium, driven by playwright."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
from helpers import PATIENCE, Consumer, run, wait_until
from test_web import Site, fail

from fsinbox import Inbox

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    """The system's Chromium."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("neither chromium nor google-chrome is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: sync_api.Browser) -> Iterator[Callable[..., sync_api.Page]]:
    """Return a new page of a new visitor. At the end of the test none of its pages may have complained, or
    asked anything."""
    complaints: list[str] = []
    contexts = []

    def new(**options: object) -> sync_api.Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        return page

    yield new
    for context in contexts:
        context.close()
    assert [text for text in complaints if "net::ERR_CONNECTION_REFUSED" not in text] == []


def expect(where: sync_api.Locator) -> sync_api.LocatorAssertions:
    """Expect something of a part of a page, in time."""
    return sync_api.expect(where)


sync_api.expect.set_options(timeout=1000 * PATIENCE)


def is_fetch(request: sync_api.Request) -> bool:
    """Tell whether the script of an open page has asked this."""
    return request.resource_type == "fetch"


TASKS = """
import os, time
def work(key, value):
    while os.path.exists("wait"):
        time.sleep(0.005)
    if os.path.exists("broken"):
        raise ValueError(f"no template for {key}")
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with tasks.py, whose handler waits while a file `wait` is there, and fails while `broken` is
    there."""
    (tmp_path / "tasks.py").write_text(TASKS)
    run("init", cwd=tmp_path)
    return tmp_path


def consumer_of(app: Path, *words: str) -> Consumer:
    """Return a consumer with that handler."""
    return Consumer("--handler", "tasks:work", "--max-attempts", "1", *words, cwd=app)


def test_the_figures_change_while_a_consumer_works_and_the_page_stays_where_it_was(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    (app / "wait").touch()
    with Inbox(app / "inbox", durable=False) as inbox:
        for number in range(40):
            inbox.add(f"page/{number}", number)
    with Site(cwd=app) as site:
        page = open_page(viewport={"width": 900, "height": 300})
        page.goto(site.address)
        expect(page.locator("#count-waiting")).to_have_text("40")
        page.evaluate("window.scrollTo(0, 400)")
        page.locator("#ages").evaluate("part => getSelection().selectAllChildren(part.querySelector('h2'))")
        before = page.evaluate("window.scrollY")
        with consumer_of(app, "-c", "2"):
            expect(page.locator("#count-in_flight")).to_have_text("2")
            expect(page.locator("#running tbody tr")).to_have_count(2)
            expect(page.locator("#consumers")).to_contain_text("tasks:work, 2 at once")
            (app / "wait").unlink()
            expect(page.locator("#count-waiting")).to_have_text("0")
            expect(page.locator(".legend .acknowledged")).to_contain_text("40")
        assert (
            abs(page.evaluate("window.scrollY") - before) < 20
        )  # (browsers follow what is looked at when lines come above it)
        assert page.evaluate("getSelection().toString()") == "Age of waiting elements"
        expect(page.locator("#freshness")).to_contain_text("As of")


def test_failed_elements_are_retried_and_discarded_by_hand(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    (app / "broken").touch()
    for key in ("<script>alert(1)</script>", "two", "three"):
        run("add", key, "1", cwd=app)
    with consumer_of(app), Site("--allow-changes", cwd=app) as site:
        page = open_page()
        page.goto(f"{site.address}?token={site.token}")
        assert page.url.startswith(site.address) and site.token not in page.url
        expect(page.locator("#count-failed")).to_have_text("3")
        (app / "broken").unlink()
        page.get_by_role("navigation", name="Pages").get_by_role("link", name="Failed").click()
        page.locator("summary", has_text="no template for two").click()
        expect(page.locator("details[open] pre")).to_contain_text("Traceback")
        page.get_by_role("checkbox", name="Tick <script>alert(1)</script>").check()
        page.get_by_role("button", name="Retry ticked").click()
        expect(page.get_by_role("status")).to_have_text("1 queued again.")
        expect(page.locator(".given-up > li")).to_have_count(2)
        page.get_by_role("checkbox", name="all 2 shown").check()
        page.get_by_role("button", name="Discard ticked").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Discard 2 elements?")
        page.get_by_role("button", name="Discard").click()
        expect(page.get_by_role("status")).to_have_text("2 discarded.")
        page.get_by_role("link", name="Overview").click()
        expect(page.locator(".legend .acknowledged")).to_contain_text("1")
        page.get_by_role("button", name="Pause consumers").click()
        expect(page.locator("#verdict")).to_contain_text("paused until resumed")
        page.get_by_role("button", name="Resume consumers").click()
        expect(page.locator("#verdict")).to_contain_text("OK")


class Thief:
    """A server of another user on this host, on another port: notes what browsers send it, and answers as it
    is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.page = "<h1>Bait</h1>"
        thief = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                thief.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(302 if "Location" in thief.headers else 200)
                for name, value in {"Content-Type": "text/html", **thief.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(thief.page.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_server_on_another_port_gets_no_session_and_cannot_use_it(
    app: Path, browser: sync_api.Browser
) -> None:
    """Cookies know no port: a click on a link to another user's server used to hand over the session."""
    run("add", "key", "1", cwd=app)
    with Site("--allow-changes", cwd=app) as site, Thief() as thief:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{site.address}?token={site.token}")
        home = page.url.removeprefix(site.address).strip("/")
        (cookie,) = context.cookies()
        # One click, from the very page that has the session; and an address that somebody types.
        page.evaluate(
            "there => { const link = document.createElement('a'); link.href = there; link.id = 'bait';"
            "link.textContent = 'bait'; document.querySelector('main').prepend(link); }",
            thief.address,
        )
        page.locator("#bait").click()
        expect(page.get_by_role("heading", name="Bait")).to_be_visible()
        page.goto(f"{thief.address}elements/failed")
        # Its page asks itself, and us, in each way that a page can.
        page.evaluate(
            """async there => {
                for (const from of ["", "live", "unlock", "elements/failed"]) {
                    for (const mode of ["no-cors", "cors"]) {
                        await fetch(there + from, {mode, credentials: "include"}).catch(() => {});
                        await fetch("/" + from, {credentials: "include"}).catch(() => {});
                    }
                }
                document.cookie = "fsinbox=1; path=/";
            }""",
            site.address,
        )
        # It leads the browser through our site, and back to itself.
        page.evaluate(
            """there => {
                const form = document.createElement("form");
                form.method = "post"; form.action = there + "pause";
                document.body.append(form); form.submit();
            }""",
            site.address,
        )
        expect(page.get_by_role("heading", level=1)).to_have_text("Refused")
        thief.headers = {"Location": site.address}
        page.goto(thief.address)
        assert page.url == site.address
        expect(page.get_by_role("link", name="locked")).to_be_visible()
        assert len(thief.asked) > 8
        for path, headers in thief.asked:
            text = path + json.dumps(headers)
            assert cookie["value"] not in text and cookie["name"] not in text and home not in text, text
            assert site.token not in text
        # The visitor's own session is as it was.
        page.goto(f"{site.address}{home}/")
        page.get_by_role("button", name="Pause consumers").click()
        expect(page.locator("#verdict")).to_contain_text("paused until resumed")
        context.close()


def test_it_works_without_javascript(app: Path, open_page: Callable[..., sync_api.Page]) -> None:
    (app / "broken").touch()
    run("add", "key", '{"a": 1}', cwd=app)
    run("consume", "--handler", "tasks:work", "--max-attempts", "1", "--drain", cwd=app, status=1)
    with Site("--allow-changes", cwd=app) as site:
        page = open_page(java_script_enabled=False)
        page.goto(site.address)
        expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()
        page.get_by_role("link", name="locked").click()
        page.get_by_label("Token").fill(site.token)
        page.get_by_role("button", name="Unlock").click()
        expect(page.locator("#count-failed")).to_have_text("1")
        page.locator("a.card.failed").click()
        page.get_by_role("link", name="key", exact=True).click()
        expect(page.get_by_label("Payload")).to_have_text('{ "a": 1 }')
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert Path(download.value.path()).read_bytes() == b'{"a": 1}'
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("status")).to_have_text("1 queued again.")
        page.get_by_role("link", name="Waiting").click()
        page.get_by_label("Key contains").fill("KE")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator(".elements tbody tr")).to_have_count(1)


def test_updates_rest_while_nobody_looks_or_wants_them_and_trouble_is_told(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    with Site(cwd=app) as site:
        page = open_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if is_fetch(request) else None)
        page.add_init_script(
            "Object.defineProperty(Document.prototype, 'hidden', {get: () => window.unseen === true});"
            "window.look = (seen) => { window.unseen = !seen; document.dispatchEvent(new "
            "Event('visibilitychange')); };"
        )
        page.clock.install()
        page.goto(site.address)
        with page.expect_response(lambda response: is_fetch(response.request)):
            page.clock.run_for(2100)
        page.evaluate("look(false)")
        seen = len(asked)
        page.clock.run_for(60000)
        assert len(asked) == seen
        with page.expect_response(lambda response: is_fetch(response.request)):
            page.evaluate("look(true)")
            page.clock.run_for(1)
        page.get_by_role("button", name="Pause updates").click()
        seen = len(asked)
        page.clock.run_for(60000)
        assert len(asked) == seen
        with page.expect_response(lambda response: is_fetch(response.request)):
            page.get_by_role("button", name="Resume updates").click()
            page.clock.run_for(1)
        site.end(signal.SIGTERM)
        page.clock.run_for(2100)
        wait_until(lambda: page.clock.run_for(500) or "No answer" in page.locator("#freshness").inner_text())


def test_an_open_page_is_sent_the_lists_only_when_something_has_changed(
    app: Path, browser: sync_api.Browser, open_page: Callable[..., sync_api.Page]
) -> None:
    with Site("--allow-changes", cwd=app) as site, browser.new_context() as context:
        page = context.new_page()  # (at last it is answered 404, of which browsers complain)
        page.set_default_timeout(1000 * PATIENCE)
        answers: list[int] = []
        page.on(
            "response",
            lambda response: answers.append(response.status) if is_fetch(response.request) else None,
        )
        page.goto(f"{site.address}?token={site.token}")
        expect(page.locator("#freshness")).to_contain_text("nothing has changed since")
        wait_until(lambda: page.wait_for_timeout(100) or answers[-2:] == [304, 304])
        run("add", "key", "1", cwd=app)
        expect(page.locator("#count-waiting")).to_have_text("1")
        assert 304 in answers and 200 in answers
        port = site.address.rstrip("/").rpartition(":")[2]
        visitor = open_page()
        visitor.goto(site.address)
        site.end(signal.SIGTERM)
        expect(visitor.locator("#freshness")).to_contain_text("No answer")
        with Site("--allow-changes", "--port", port, cwd=app) as again:
            run("add", "another", "1", cwd=app)
            expect(visitor.locator("#count-waiting")).to_have_text("2")
            expect(page.locator("#freshness")).to_contain_text("was started anew, open the address")
            expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()
            assert again.token


def row(page: sync_api.Page, key: str) -> sync_api.Locator:
    """Return an element of a list."""
    return page.locator("[data-rows] > *").filter(has=page.get_by_role("link", name=key, exact=True))


def test_a_list_follows_what_happens_and_its_reader_keeps_place_focus_and_what_is_typed(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    for number in range(60):
        run("add", f"page/{number}", str(number), cwd=app)
    with Site(cwd=app) as site:
        page = open_page(viewport={"width": 360, "height": 500})
        page.goto(f"{site.address}elements/waiting")
        page.get_by_label("Key contains").fill("typed, not sent")
        page.evaluate("() => { for (const row of document.querySelectorAll('tr')) row.mine = true; }")
        link = row(page, "page/30").get_by_role("link")
        link.focus()
        before = link.bounding_box()
        run("discard", "--yes", "--state", "waiting", "page/3", "page/30", "page/40", cwd=app)
        expect(page.locator("#count")).to_have_text("57 elements, page 1 of 2")
        expect(page.locator("#news")).to_have_text("Waiting: 57 elements")
        expect(row(page, "page/3")).to_have_count(0)
        expect(row(page, "page/52")).to_have_count(1)
        # The row that has the focus is kept until it is left; the others are the same nodes as before.
        expect(link).to_be_focused()
        after = link.bounding_box()
        assert before and after and abs(before["y"] - after["y"]) < 2
        expect(page.locator("#freshness")).to_contain_text("what is open, focused or selected is older")
        assert page.locator("tbody tr").evaluate_all("rows => rows.filter(row => row.mine).length") == 48
        row(page, "page/31").get_by_role("link").focus()
        expect(row(page, "page/30")).to_have_count(0)
        expect(page.get_by_label("Key contains")).to_have_value("typed, not sent")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        keys = page.locator("tbody th").all_inner_texts()
        assert keys == [f"page/{number}" for number in range(53) if number not in (3, 30, 40)]


def test_what_was_left_alone_is_put_in_place_later_without_being_sent_again(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    for number in range(3):
        run("add", f"page/{number}", str(number), cwd=app)
    with Site(cwd=app) as site:
        page = open_page()
        answers: list[int] = []
        page.on(
            "response",
            lambda response: answers.append(response.status) if is_fetch(response.request) else None,
        )
        page.goto(f"{site.address}elements/waiting")
        for number in range(3):  # (each half a minute it is sent again in any case)
            row(page, f"page/{number}").get_by_role("link").focus()
            run("discard", "--yes", "--state", "waiting", f"page/{number}", cwd=app)
            expect(page.locator("#count")).to_contain_text(f"{2 - number} element")
            wait_until(lambda: page.wait_for_timeout(100) or answers[-2:] == [304, 304])
            page.get_by_label("Key contains").focus()
            expect(row(page, f"page/{number}")).to_have_count(0)
            if answers[-1] == 304:
                break
        assert answers[-1] == 304


def test_what_is_open_selected_or_ticked_in_a_list_is_left_alone_until_it_is_not(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    fail(app / "inbox", "one", "two", why="Traceback of a kind\n" + "a line\n" * 200)
    with Site("--allow-changes", cwd=app) as site:
        page = open_page(viewport={"width": 900, "height": 500})
        page.goto(f"{site.address}?token={site.token}")
        page.goto(f"{page.url}elements/failed")
        summary = row(page, "one").locator("summary")
        summary.click()
        row(page, "one").locator("pre").evaluate("part => part.scrollTo(0, 300)")
        page.locator("h1").click()  # the focus is elsewhere
        row(page, "one").evaluate("part => part.scrollIntoView()")
        before = summary.bounding_box()
        fail(app / "inbox", "three", why="KeyError: 'footer'")
        expect(row(page, "three")).to_have_count(1)
        expect(page.get_by_role("button", name="Retry all 3 ...")).to_be_visible()
        expect(page.locator("#news")).to_have_text("Failed: 3 elements")
        expect(row(page, "one").locator("details[open] pre")).to_be_visible()
        assert row(page, "one").locator("pre").evaluate("part => part.scrollTop") == 300
        after = summary.bounding_box()
        assert before and after and abs(before["y"] - after["y"]) < 2  # though a row came above it
        # A form that is being filled is not changed at all: what was meant is what is sent.
        page.get_by_role("checkbox", name="all 3 shown").check()
        fail(app / "inbox", "four", why="KeyError: 'footer'")
        expect(page.locator("#freshness")).to_contain_text("updated once nothing is ticked")
        expect(row(page, "four")).to_have_count(0)
        page.get_by_role("checkbox", name="all 3 shown").uncheck()
        expect(row(page, "four")).to_have_count(1)
        row(page, "two").get_by_role("link").evaluate("part => getSelection().selectAllChildren(part)")
        run("discard", "--yes", "two", "four", cwd=app)
        expect(row(page, "four")).to_have_count(0)
        assert page.evaluate("getSelection().toString()") == "two"
        page.evaluate("getSelection().removeAllRanges()")
        expect(row(page, "two")).to_have_count(0)
        expect(page.locator("#freshness")).to_contain_text("what is open, focused or selected is older")
        summary.click()
        page.locator("h1").click()
        expect(page.locator("#freshness")).not_to_contain_text("older")
        assert page.locator("a.key").all_inner_texts() == ["three", "one"]
        # A question is asked of what it names, whatever happens meanwhile.
        page.get_by_role("button", name="Discard all 2 ...").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Discard 2 elements?")
        assert page.locator("script").count() == 0


def test_a_list_that_was_empty_fills_and_one_that_was_full_empties(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    with Site("--allow-changes", cwd=app) as site:
        page = open_page()
        page.goto(f"{site.address}?token={site.token}")
        page.goto(f"{page.url}elements/failed")
        expect(page.locator("#none")).to_have_text("No elements.")
        fail(app / "inbox", "one")
        page.get_by_role("checkbox", name="Tick one").check()
        page.get_by_role("button", name="Retry ticked").click()
        expect(page.get_by_role("status")).to_have_text("1 queued again.")
        expect(page.locator("#none")).to_have_text("No elements.")
        fail(app / "inbox", "one")
        expect(row(page, "one")).to_have_count(1)
        run("retry", "one", cwd=app)
        expect(page.locator("#none")).to_have_text("No elements.")


def test_an_element_s_page_follows_it_to_its_end(
    app: Path, browser: sync_api.Browser, open_page: Callable[..., sync_api.Page]
) -> None:
    (app / "wait").touch()
    (app / "broken").touch()
    run("add", "key", '"' + "word " * 2000 + '"', cwd=app)
    with Site(cwd=app) as site, browser.new_context(viewport={"width": 360, "height": 640}) as context:
        page = context.new_page()  # (at last it is answered 404, of which browsers complain)
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{site.address}elements/waiting")
        page.get_by_role("link", name="key", exact=True).click()
        page.get_by_label("Payload").evaluate("part => part.scrollTo(50, 0)")
        state = page.locator("#facts .pill")
        with consumer_of(app):
            expect(state).to_have_text("in flight")
            expect(page.locator("#news")).to_have_text("In flight")
            assert "/elements/in_flight/" in page.url
            (app / "wait").unlink()
            expect(state).to_have_text("failed")
            expect(page.get_by_label("Reason")).to_contain_text("no template for key")
        assert page.get_by_label("Payload").evaluate("part => part.scrollLeft") == 50
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        run("discard", "--yes", "key", cwd=app)
        expect(page.locator("#freshness")).to_contain_text("This element is not here any more")
        expect(page.locator("#news")).to_contain_text("This element is not here any more")
        expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()


def test_all_failed_elements_that_match_are_changed_from_the_keyboard(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    fail(app / "inbox", *(f"user:{number}" for number in range(60)), "page:1", why="no template for it")
    with Site("--allow-changes", cwd=app) as site:
        page = open_page()
        page.goto(f"{site.address}?token={site.token}")
        page.goto(f"{page.url}elements/failed")
        page.get_by_label("Key contains").fill("user:*")
        page.get_by_label("Reason contains").fill("no template")
        page.keyboard.press("Enter")
        expect(page.locator(".count")).to_contain_text("60 elements whose key matches “user:*”")
        page.get_by_role("button", name="Retry all 60 that match ...").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Retry 60 elements?")
        page.get_by_role("link", name="Back").click()
        page.get_by_role("button", name="Retry all 60 that match ...").press("Enter")
        page.get_by_role("button", name="Retry 60").press("Enter")
        expect(page.get_by_role("status")).to_have_text("60 queued again.")
        expect(page.locator(".given-up > li")).to_have_count(1)


def test_hostile_keys_do_nothing_and_every_page_fits_a_phone_and_the_dark(
    app: Path, open_page: Callable[..., sync_api.Page]
) -> None:
    (app / "broken").touch()
    keys = ["<img src=x onerror=alert(1)>", "k" * 200, "\u202egpj.exe", "\x1b[31m", "word " * 28]
    for key in keys:
        run(
            "add",
            "--",
            key,
            json.dumps({"html": "</pre><script>alert(1)</script>", "long": "x" * 500}),
            cwd=app,
        )
    run("consume", "--handler", "tasks:work", "--max-attempts", "1", "--drain", cwd=app, status=1)
    with Site("--allow-changes", cwd=app) as site:
        page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.goto(f"{site.address}?token={site.token}")
        addresses = [page.url, f"{page.url}elements/failed"]
        page.goto(addresses[1])
        addresses += [str(link.evaluate("link => link.href")) for link in page.locator("a.key").all()]
        assert len(addresses) == 2 + len(keys)
        for width in (360, 390, 400):
            page.set_viewport_size({"width": width, "height": 844})
            page.goto(addresses[1])
            tabs = page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link")
            boxes = [(tab.inner_text(), tab.bounding_box()) for tab in tabs.all()]
            assert len(boxes) >= 5
            for text, box in boxes:
                assert box and box["x"] >= 0 and box["x"] + box["width"] <= width, (text, box)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.set_viewport_size({"width": 390, "height": 844})
        for address in addresses:
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
            expect(page.get_by_role("heading", level=1)).to_have_count(1)
            unnamed = (
                "nodes => nodes.filter(n => !n.labels?.length && !n.getAttribute('aria-label')).map(n => "
                "n.outerHTML)"
            )
            assert page.locator("input:not([type=hidden])").evaluate_all(unnamed) == []
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_on_any_page(
    app: Path, open_page: Callable[..., sync_api.Page], scheme: str, width: int
) -> None:
    """axe-core, by Deque: what keeps out who sees badly, or uses a keyboard or a screen reader."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    (app / "broken").touch()
    for key in ("one", "two", "three"):
        run("add", key, '{"long": "' + "x" * 300 + '"}', cwd=app)
    run("consume", "--handler", "tasks:work", "--max-attempts", "1", "--drain", cwd=app, status=1)
    run("add", "waits", "1", cwd=app)
    run("add", "--delay", "1h", "for later", "1", cwd=app)
    with Site("--allow-changes", cwd=app) as site:
        page = open_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        pages = [site.address, f"{site.address}unlock"]
        found = {}

        def look(address: str) -> None:
            violations = axe.run(page).response["violations"]
            found[address] = [
                (one["id"], node["target"], node.get("failureSummary", "")[:300])
                for one in violations
                for node in one["nodes"]
                if one["impact"] in ("serious", "critical")
            ]

        for address in pages:
            page.goto(address)
            look(address)
        page.goto(f"{site.address}?token={site.token}")
        base = page.url
        look(base)
        for state in ("waiting", "in_flight", "deferred", "failed"):
            page.goto(f"{base}elements/{state}")
            look(page.url)
        page.goto(f"{base}elements/failed")
        page.locator("summary").first.click()
        page.get_by_role("checkbox", name="all 3 shown").check()
        look("failed, with one open")
        page.get_by_role("button", name="Discard ticked").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Discard 3 elements?")
        look(page.url)
        page.goto(f"{base}elements/failed?q=o*&why=template")
        look(page.url)
        page.get_by_role("button", name="Retry all 1 that match ...").click()
        look("the question before all that match are retried")
        page.goto(f"{base}elements/failed")
        page.locator("a.key").first.click()
        look(page.url)
        page.goto(f"{base}elements/waiting?q=nothing")
        look(page.url)
    assert len(found) > 8
    serious = [f"{address}: {one}" for address, several in found.items() for one in several]
    assert not serious, "\n".join(serious)


# --- the pictures -------------------------------------------------------------------------------------

PICTURES = ROOT / "docs"

makes_pictures = pytest.mark.skipif(
    "FSINBOX_SCREENSHOT" not in os.environ, reason="makes docs/web-*.png: set FSINBOX_SCREENSHOT=1"
)


def take_picture(page: sync_api.Page, name: str) -> None:
    """Write a picture of what is seen of a page, as it is for an inbox in a usual place."""
    page.evaluate("document.querySelector('.path').textContent = '/var/spool/app'")
    page.screenshot(path=PICTURES / f"web-{name}.png")


@makes_pictures
def test_picture_of_a_busy_inbox(browser: sync_api.Browser, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    busy_inbox(folder)
    with Consumer(
        "--handler", "tasks:rebuild", "-c", "3", "--retry-delay", "600", "--inbox", "spool", cwd=folder
    ) as consumer:
        consumer.until(lambda: len(list((folder / "spool/inflight").iterdir())) == 3)
        with Site("--inbox", "spool", "--allow-changes", cwd=folder) as site:
            context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
            page = context.new_page()
            page.goto(f"{site.address}?token={site.token}")
            sync_api.expect(page.locator("#running tbody tr")).to_have_count(3, timeout=20000)
            sync_api.expect(page.locator(".pace")).to_contain_text(
                "about", timeout=60000
            )  # the time to empty is told when the work has gone on for a while
            take_picture(page, "screenshot")
            if os.environ["FSINBOX_SCREENSHOT"] != "1":  # a folder: the other pages, too
                more = Path(os.environ["FSINBOX_SCREENSHOT"])
                page.screenshot(path=more / "full.png", full_page=True)
                for name, address in (("failed", "elements/failed"), ("waiting", "elements/waiting")):
                    page.goto(site.address + address)
                    page.screenshot(path=more / f"{name}.png")
                page.goto(site.address + "elements/failed")
                page.click("a.key")
                page.screenshot(path=more / "element.png")
                phone = browser.new_context(
                    viewport={"width": 390, "height": 844}, color_scheme="dark"
                ).new_page()
                phone.goto(site.address)
                phone.screenshot(path=more / "phone.png", full_page=True)


@makes_pictures
def test_pictures_of_failed_elements_and_of_a_question(browser: sync_api.Browser, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(REBUILD)
    with Inbox(tmp_path / "spool", durable=False) as inbox:
        for number in range(64):
            broken = "template" if number % 4 == 3 else "timeout"
            value = {"id": 4711 + number, "broken": broken, "revision": 7, "paths": ["/en", "/de", "/fr"]}
            inbox.add(f"{'invoice/2026-' if number % 3 else 'page/'}{1180 + number}", value)
    run("consume", "--inbox", "spool", "--handler", "tasks:rebuild", "--drain", "--max-attempts", "1",
        "--breaker", "0", cwd=tmp_path, status=None)  # fmt: skip
    for why in (tmp_path / "spool/failed").glob("*~reason.txt"):  # (a traceback names folders of this host)
        text = why.read_text().replace(str(ROOT), "/opt/app/.venv/lib/python3.11/site-packages")
        why.write_text(text.replace(str(tmp_path), "/opt/app"))
    with Site("--inbox", "spool", "--allow-changes", cwd=tmp_path) as site:
        page = browser.new_context(viewport={"width": 1200, "height": 700}).new_page()
        page.goto(f"{site.address}?token={site.token}")
        page.goto(f"{page.url}elements/failed?q=invoice/*&why=timeout")
        page.locator("summary").nth(1).click()
        page.locator("h1").click()
        take_picture(page, "failed")
        page.get_by_role("button", name="Retry all 32 that match ...").click()
        page.set_viewport_size({"width": 1200, "height": 400})
        take_picture(page, "question")
        page.get_by_role("link", name="Back").click()
        page.locator("a.key").first.click()
        page.set_viewport_size({"width": 1200, "height": 860})
        take_picture(page, "element")
        phone = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark").new_page()
        phone.goto(site.address)
        take_picture(phone, "phone")


REBUILD = """
import time


def rebuild(key, value):
    if value.get("broken") == "timeout":
        raise TimeoutError("search.internal did not answer within 30 s")
    if value.get("broken") == "template":
        raise KeyError("invoice_footer")
    time.sleep(value.get("seconds", 0))
"""


def busy_inbox(folder: Path) -> None:
    """Make an inbox, spool/, as one might be that has been at work for a while."""
    (folder / "tasks.py").write_text(REBUILD)
    with Inbox(folder / "spool", durable=False) as inbox:
        for number, (key, broken) in enumerate(
            [("page/pricing", "timeout"), ("invoice/2026-1187", "template"), ("page/blog/index", "timeout")]
        ):
            inbox.add(
                key,
                {"id": number, "broken": broken, "revision": 4711 + number, "paths": ["/en", "/de", "/fr"]},
            )
    attempts = ("2", "1")
    for tries in attempts:
        run("consume", "--inbox", "spool", "--handler", "tasks:rebuild", "--drain", "--retry-delay", "0.001",
            "--max-attempts", tries, cwd=folder, status=None)  # fmt: skip
    pending = folder / "spool/pending"
    now = time.time_ns()
    minute = 60 * 10**9
    shape = [(0.5, 140), (4, 61), (7, 38), (14, 22), (31, 9), (60, 1)]
    kinds = ["page/", "invoice/2026-", "thumbnail/", "feed:"]
    serial = 0
    for age, count in shape:
        for index in range(count):
            serial += 1
            arrived = now - int(age * minute * (0.6 + 0.4 * index / count))
            key = f"{kinds[serial * 7 % 11 % 4]}{1000 + serial}".replace("/", "%2F").replace(":", "%3A")
            seconds = 600 if age == 60 else 0.7
            (pending / f"{arrived:019d}-{key}").write_text(json.dumps({"id": serial, "seconds": seconds}))
    first = now - 65 * minute
    (pending / f"{first:019d}-page%2Fhome").write_text('{"id": 0, "seconds": 600}')
    path = next((folder / "spool/stats").glob("*.json"))
    record = json.loads(path.read_text())
    this = int(time.time() // 60)
    wave = [34, 36, 31, 38, 41, 44, 40, 47, 52, 49, 55, 58, 61, 57, 63, 66, 60, 58, 54, 49]
    record["minutes"] = [
        [
            this - 59 + at,
            wave[at % 20] - at % 7 + at // 6,
            (at * 5) % 13 // 11 * 3,
            wave[(at + 3) % 20] + at % 5 + at // 5,
        ]
        for at in range(60)
    ]
    record["totals"] |= {
        "arrived": 48213,
        "acknowledged": 47906,
        "retried": 312,
        "superseded": 41,
        "failed": 3,
        "taken": 48530,
    }
    path.write_text(json.dumps(record))
