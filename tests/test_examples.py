"""Runs every example of examples/ from end to end: with real processes, sockets and signals.

What a README shows in a block of console lines is run as it stands, and must print what it says. (A `...`
there stands for anything.) Examples that are services are driven from here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, environment, wait_until

from fsinbox import Inbox
from tests.usual import drain, names

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())


def environment_of(folder: Path) -> dict[str, str]:
    """Return an environment in which `fsinbox` and `python` are those of this run."""
    programs = folder.with_name("bin")
    programs.mkdir(exist_ok=True)
    for name, words in (("python", ""), ("fsinbox", "-m fsinbox")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    return environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")


def copy(name: str, tmp_path: Path) -> Path:
    """Return a copy of an example, to work in."""
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / "example"))


def run(folder: Path, script: str, status: int = 0) -> str:
    """Run a script of the shell in an example's folder; return what it printed."""
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env=environment_of(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@contextmanager
def service(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `python *words` in an example's folder. Yields the process, and the port that it says.

    It is ended by SIGTERM, which must suffice.
    """
    log = folder.with_name("service.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment_of(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def port() -> str | None:
        found = re.search(r"(?:on port |127\.0\.0\.1:)(\d+)", log.read_text())
        assert found or process.poll() is None, log.read_text()
        return found and found[1]

    try:
        wait_until(port, "for the service's port")
        yield process, int(port() or 0)
        if process.returncode is None:
            process.terminate()
            wait_until(lambda: has_ended(process.pid), "for the service's end")
    finally:
        if process.returncode is None:  # else its number may be another process's by now
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
            process.wait()
    assert process.returncode in (0, -signal.SIGTERM, -signal.SIGKILL), log.read_text()


def has_ended(pid: int) -> bool:
    """Tell whether a child has ended, and leave it to be waited for: until then its number stays its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


# --- all of them --------------------------------------------------------------------------------------


def test_each_example_is_listed_and_its_readme_names_each_of_its_files() -> None:
    listed = re.findall(r"\]\(([\w-]+)/README\.md\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == [folder.name for folder in FOLDERS]
    for folder in FOLDERS:
        readme = (folder / "README.md").read_text()
        for path in folder.glob("[!.]*.*"):
            assert path.name in readme or path.name == "README.md", f"{path} is not in its README"


SHOWN = ("drop-folder", "fresh-tree", "search-index", "thumbnails")
"""Examples whose README is run."""


@pytest.mark.parametrize("name", SHOWN)
def test_the_lines_of_a_readme_print_what_it_says(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path)
    (block,) = re.findall(r"```console\n(.*?)```", (folder / "README.md").read_text(), re.S)
    lines = block.splitlines()
    script = "\n".join(line[2:] for line in lines if line.startswith("$ "))
    said = [re.escape(line).replace(r"\.\.\.", ".*") for line in lines if not line.startswith("$ ")]
    printed = run(folder, script).replace(f"created inbox {folder}/inbox\n", "").splitlines()
    assert len(printed) == len(said), printed
    for pattern, line in zip(said, printed, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} was printed, and not {pattern!r}"


# --- drop-folder --------------------------------------------------------------------------------------


def test_a_job_reports_its_failure_and_leaves_no_draft(tmp_path: Path) -> None:
    folder = copy("drop-folder", tmp_path)
    run(folder, "fsinbox init; sh report.sh backup sh -c 'echo no space; exit 5'")
    assert os.listdir(folder / "inbox/drop") == ["backup"]
    with Inbox(folder / "inbox", codec="text") as inbox:
        assert drain(inbox) == [("backup", "no space\nfailed with status 5\n")]


@pytest.mark.parametrize("words", ["../evil true", ".hidden true", "a.part true", "'' true", "backup"])
def test_a_job_that_cannot_be_reported_is_an_error(words: str, tmp_path: Path) -> None:
    folder = copy("drop-folder", tmp_path)
    run(folder, f"fsinbox init; sh report.sh {words}", status=2)
    assert os.listdir(folder / "inbox/drop") == []


# --- web-workers --------------------------------------------------------------------------------------

SERVERS = {
    "pre-forked": ("serve.py", "0", "4"),
    "started afresh": ("-m", "uvicorn", "app:app", "--workers", "3", "--port", "0"),
}


def post(port: int, order: str, value: object) -> tuple[int, dict[str, Any]]:
    """Post an order, again and again until a worker answers: one may just have been killed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            body = value if isinstance(value, str) else json.dumps(value)
            connection.request("POST", f"/orders/{order}", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, HTTPException):
            continue
        finally:
            connection.close()
    raise AssertionError("no worker answers")


@pytest.mark.parametrize("name", SERVERS)
def test_what_any_worker_of_a_web_application_has_accepted_arrives(name: str, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="pip install 'fsinbox[web]'")
    folder = copy("web-workers", tmp_path)
    answers: list[tuple[int, dict[str, Any]]] = []

    def client(number: int, port: int) -> None:
        for total in range(4):  # the same orders again: the last value must win, whichever worker had it
            for order in range(8):
                answers.append(post(port, f"{number}-{order}", {"items": {"tea": total, "mug": order}}))

    with service(folder, *SERVERS[name]) as (_, port):
        assert post(port, "bad", "no json")[0] == 400
        assert post(port, "x" * 300, {})[0] == 400
        victim = post(port, "first", {"items": {}})[1]["worker"]
        clients = [threading.Thread(target=client, args=(number, port)) for number in range(6)]
        for thread in clients:
            thread.start()
        wait_until(lambda: len(answers) > 40)
        os.kill(victim, signal.SIGKILL)
        for thread in clients:
            thread.join()
    assert [status for status, _ in answers] == [202] * (6 * 4 * 8)
    assert {answer["outcome"] for _, answer in answers} == {"new", "replaced"}
    # One quick worker may answer all that come later; but it is not the one that was killed.
    assert len({victim, *(answer["worker"] for _, answer in answers)}) > 1
    run(folder, "fsinbox consume --handler orders:bill --drain --quiet")
    bills = {path.name: json.loads(path.read_text()) for path in (folder / "bills").iterdir()}
    expected = {
        f"{n}-{order}": {"order": f"{n}-{order}", "total": 3 + order} for n in range(6) for order in range(8)
    }
    assert bills == expected | {"first": {"order": "first", "total": 0}}


def test_the_key_of_an_order_leads_nowhere_else(tmp_path: Path) -> None:
    folder = copy("web-workers", tmp_path)
    run(folder, """fsinbox init; fsinbox add ../../evil '{"items": {"tea": 5}}'""")
    run(folder, "fsinbox consume --handler orders:bill --drain --quiet")
    assert os.listdir(folder / "bills") == ["..%2F..%2Fevil"]


# --- asyncio-service ----------------------------------------------------------------------------------


def ask(port: int, lines: str) -> str:
    """Send lines to the service; return its answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(lines.encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile().read()


def test_an_asyncio_service_delivers_what_it_has_accepted(tmp_path: Path) -> None:
    folder = copy("asyncio-service", tmp_path)
    with service(folder, "service.py", "0") as (process, port):
        lines = "".join(f"key-{number} {number}\n" for number in range(40))
        assert ask(port, lines) == "queued\n" * 40
        assert ask(port, f"{'x' * 300} 1\n").startswith("refused: ")
        ask(port, "late unreachable\n")
        wait_until(lambda: os.listdir(folder / "inbox/deferred"))
        ask(port, "late 1\n")  # a newer value supersedes the one that fails
        wait_until(lambda: len(list((folder / "delivered").glob("[!.]*"))) == 41)
        process.terminate()
        assert process.wait(timeout=30) == 0
    delivered = {path.name: path.read_text() for path in (folder / "delivered").glob("[!.]*")}
    assert delivered == {f"key-{number}": str(number) for number in range(40)} | {"late": "1"}
    with Inbox(folder / "inbox") as inbox:
        assert [names(inbox, place) for place in ("pending", "inflight", "deferred", "failed")] == [[]] * 4


def test_what_an_asyncio_service_had_in_flight_comes_again(tmp_path: Path) -> None:
    folder = copy("asyncio-service", tmp_path)
    script = (folder / "service.py").read_text()
    (folder / "slow.py").write_text(script.replace("asyncio.sleep(0.01)", "asyncio.sleep(60)"))
    inflight = folder / "inbox/inflight"
    with service(folder, "slow.py", "0") as (process, port):
        ask(port, "a 1\nb 2\n")
        wait_until(lambda: len(os.listdir(inflight)) == 2)
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert os.listdir(inflight) == []
    assert len(os.listdir(folder / "inbox/pending")) == 2
    with service(folder, "slow.py", "0") as (process, _):
        wait_until(lambda: len(os.listdir(inflight)) == 2)
        process.kill()
        process.wait()
    assert len(os.listdir(inflight)) == 2
    with service(folder, "service.py", "0"):
        wait_until(lambda: len(list((folder / "delivered").glob("[!.]*"))) == 2)


# --- fastapi-service ----------------------------------------------------------------------------------


def ask_site(port: int, method: str, path: str, value: object = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, json.dumps(value), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_fastapi_application_queues_and_works_and_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="pip install fastapi")
    folder = copy("fastapi-service", tmp_path)
    words = ("-m", "uvicorn", "app:app", "--port", "0")
    with service(folder, *words) as (process, port):
        assert ask_site(port, "POST", "/reports/march", {"pages": ["a", "b"]}) == (202, {"outcome": "new"})
        wait_until(lambda: ask_site(port, "GET", "/reports/march") == (200, {"pages": 2}))
        assert ask_site(port, "GET", "/reports/none")[0] == 404
        assert ask_site(port, "POST", "/reports/bad", {"pages": 7})[0] == 422
        assert ask_site(port, "POST", "/reports/" + "x" * 300, {"pages": []})[0] == 400
        assert ask_site(port, "POST", "/reports/empty", {"pages": []})[0] == 202
        with Inbox(folder / "inbox") as inbox:
            wait_until(lambda: names(inbox, "failed"))
    script = (folder / "app.py").read_text()
    (folder / "slow.py").write_text(script.replace("asyncio.sleep(0.01)", "asyncio.sleep(60)"))
    inflight = folder / "inbox/inflight"
    with service(folder, "-m", "uvicorn", "slow:app", "--port", "0") as (process, port):
        ask_site(port, "POST", "/reports/april", {"pages": ["c"]})
        wait_until(lambda: len(os.listdir(inflight)) == 1)
        process.kill()
        process.wait()
    with service(folder, *words) as (_, port):
        wait_until(lambda: ask_site(port, "GET", "/reports/april") == (200, {"pages": 1}))
    assert os.listdir(inflight) == []


# --- search-index -------------------------------------------------------------------------------------


def test_the_search_index_follows_many_documents_in_several_threads(tmp_path: Path) -> None:
    folder = copy("search-index", tmp_path)
    with Inbox(folder / "inbox", codec="text") as inbox:
        for text in ("apples", "pears"):
            inbox.add_many((f"{number:02}.txt", f"{text} {number}") for number in range(30))
    consume = "fsinbox consume --handler search:index --codec text --concurrency 4 --drain --quiet"
    run(folder, consume)
    assert run(folder, "python search.py apples") == ""
    first = sorted(run(folder, "python search.py pears").splitlines())
    assert [line.partition(":")[0] for line in first] == [f"{number:02}.txt" for number in range(30)]
    with Inbox(folder / "inbox", codec="text") as inbox:  # delivered twice: the same index
        inbox.add("00.txt", "pears 0")
    run(folder, consume)
    assert sorted(run(folder, "python search.py pears").splitlines()) == first


# --- fresh-tree ---------------------------------------------------------------------------------------


WATCH = "fsinbox watch notes --once --quiet; "
COPIES = "fsinbox --inbox copies watch notes --once --quiet --create; "
INDEX = "fsinbox consume --handler fresh:refresh --batch 100 --drain --verbose"
BACKUP = "fsinbox --inbox copies consume --exec 'python backup.py backup' --batch 100 --drain --quiet"


def test_a_tree_of_many_files_is_indexed_and_copied_in_batches(tmp_path: Path) -> None:
    folder = copy("fresh-tree", tmp_path)
    for number in range(250):
        path = folder / f"notes/{number % 7}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"apple {number}")
    run(folder, f"fsinbox init; {WATCH}{INDEX}; {COPIES}{BACKUP}")
    found = run(folder, "python fresh.py apple").splitlines()
    assert len(found) == 250
    same = "diff -r notes backup"
    assert run(folder, same) == ""
    (folder / "notes/3").rename(folder / "notes/moved")
    (folder / "notes/1/1.txt").unlink()
    (folder / "notes/2/2.txt").write_text("pear")
    run(folder, f"{WATCH}{INDEX}; {COPIES}{BACKUP}")
    names = {line.partition(":")[0] for line in run(folder, "python fresh.py apple").splitlines()}
    assert len(names) == 248
    assert "moved/3.txt" in names and "3/3.txt" not in names and "1/1.txt" not in names
    assert run(folder, "python fresh.py pear") == "2/2.txt: [pear]\n"
    run(folder, "rmdir backup/3")  # (its files are gone; folders are not queued)
    assert run(folder, same) == ""


def test_one_poison_file_of_a_batch_does_not_take_the_others_along(tmp_path: Path) -> None:
    folder = copy("fresh-tree", tmp_path)
    with Inbox(folder / "copies") as inbox:
        (folder / "a").write_text("of a")
        for key in ("b", "../out", "c"):
            inbox.add(key, {"path": str(folder / "a")})
    done = run(
        folder, f"{BACKUP} >/dev/null 2>&1 || test $? = 1; ls -A backup; ls .. | grep -c '^out$' || true"
    )
    assert done.split() == ["b", "c", "0"]
    with Inbox(folder / "copies") as inbox:
        (reason,) = Path(inbox.path, "failed").glob("*~reason.txt")
        assert "'../out' is no path in the copy" in reason.read_text()


# --- thumbnails ---------------------------------------------------------------------------------------


def test_a_thumbnail_has_every_nth_pixel(tmp_path: Path) -> None:
    folder = copy("thumbnails", tmp_path)
    pixels = b"".join(bytes((x, y, 7)) for y in range(50) for x in range(64))
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add("a/b", b"P6 64 50 255\n" + pixels)
        inbox.add("text", b"no picture")
    run(folder, "fsinbox consume --exec 'python thumbnail.py {}' --drain --quiet", status=1)
    header, _, small = (folder / "thumbs/a%2Fb").read_bytes().partition(b"\n")
    assert header == b"P6 32 25 255"
    assert small == b"".join(bytes((x, y, 7)) for y in range(0, 50, 2) for x in range(0, 64, 2))
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        (reason,) = Path(inbox.path, "failed").glob("*~reason.txt")
        assert "it does not begin as a PPM file does" in reason.read_text()
