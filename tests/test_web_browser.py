"""`fsinbox web` in a real browser: headless Chromium, driven by playwright."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Consumer, run
from test_web import Site

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


# --- the picture -----------------------------------------------------------------------------------------------------

PICTURE = ROOT / "docs/web-screenshot.png"


@pytest.mark.skipif("FSINBOX_SCREENSHOT" not in os.environ, reason="makes docs/web-screenshot.png: set FSINBOX_SCREENSHOT=1")
def test_picture_of_a_busy_inbox(browser: sync_api.Browser, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    busy_inbox(folder)
    with Consumer("--handler", "tasks:rebuild", "-c", "5", "--retry-delay", "600", "--inbox", "spool", cwd=folder) as consumer:
        consumer.until(lambda: len(list((folder / "spool/inflight").iterdir())) == 5)
        with Site("--inbox", "spool", "--allow-changes", cwd=folder) as site:
            context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
            page = context.new_page()
            page.goto(f"{site.address}?token={site.token}")
            sync_api.expect(page.locator("#running tbody tr")).to_have_count(5, timeout=20000)
            sync_api.expect(page.locator(".pace")).to_contain_text(
                "about", timeout=60000
            )  # the time to empty is told when the work has gone on for a while
            page.evaluate("document.querySelector('.path').textContent = '/var/spool/app'")
            page.screenshot(path=PICTURE)
            if os.environ["FSINBOX_SCREENSHOT"] != "1":  # a folder: the other pages, too
                more = Path(os.environ["FSINBOX_SCREENSHOT"])
                page.screenshot(path=more / "full.png", full_page=True)
                for name, address in (("failed", "elements/failed"), ("waiting", "elements/waiting")):
                    page.goto(site.address + address)
                    page.screenshot(path=more / f"{name}.png")
                page.goto(site.address + "elements/failed")
                page.click("a.key")
                page.screenshot(path=more / "element.png")
                phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
                phone.goto(site.address)
                phone.screenshot(path=more / "phone.png", full_page=True)


def busy_inbox(folder: Path) -> None:
    """Make an inbox, spool/, as one might be that has been at work for a while."""
    (folder / "tasks.py").write_text(
        "import time\n"
        "def rebuild(key, value):\n"
        "    if value.get('broken') == 'timeout':\n"
        "        raise TimeoutError('search.internal did not answer within 30 s')\n"
        "    if value.get('broken') == 'template':\n"
        "        raise KeyError('invoice_footer')\n"
        "    time.sleep(value.get('seconds', 0))\n"
    )
    with Inbox(folder / "spool", durable=False) as inbox:
        for number, (key, broken) in enumerate(
            [("page/pricing", "timeout"), ("invoice/2026-1187", "template"), ("page/blog/index", "timeout")]
        ):
            inbox.add(key, {"id": number, "broken": broken, "revision": 4711 + number, "paths": ["/en", "/de", "/fr"]})
    attempts = ("2", "1")
    for tries in attempts:
        run("consume", "--inbox", "spool", "--handler", "tasks:rebuild", "--drain", "--retry-delay", "0.001",
            "--max-attempts", tries, cwd=folder, status=None)  # fmt: skip
    pending = folder / "spool/pending"
    now = time.time_ns()
    minute = 60 * 10**9
    shape = [(0.5, 140), (4, 61), (7, 38), (14, 22), (31, 9), (60, 3)]
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
        [this - 59 + at, wave[at % 20] - at % 7 + at // 6, (at * 5) % 13 // 11 * 3, wave[(at + 3) % 20] + at % 5 + at // 5]
        for at in range(60)
    ]
    record["totals"] |= {"arrived": 48213, "acknowledged": 47906, "retried": 312, "superseded": 41, "failed": 3, "taken": 48530}
    path.write_text(json.dumps(record))
