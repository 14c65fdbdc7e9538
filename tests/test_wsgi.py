"""The WSGI application of docs/recipes.md, in pre-forked workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

from helpers import PATIENCE, contents, environment, wait_until

PAGE = (Path(__file__).parent.parent / "docs/recipes.md").read_text()

SERVE = """
import os, signal, sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

from orders_wsgi import application, inbox

inbox.add("before", "the fork")
server = make_server("127.0.0.1", 0, application)
workers = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        server.serve_forever()
    workers.append(child)
print(server.server_port, *workers, flush=True)
signal.sigwait({signal.SIGTERM})
for worker in workers:
    os.kill(worker, signal.SIGKILL)
"""


def post(port: int, path: str, body: str) -> tuple[int, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_what_pre_forked_workers_have_accepted_is_there_one_of_them_killed(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(# orders_wsgi\.py\n.*?)```", PAGE, re.S)
    (tmp_path / "orders_wsgi.py").write_text(block)
    (tmp_path / "serve.py").write_text(SERVE)
    with subprocess.Popen(
        [sys.executable, "serve.py"], cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout
        port, *workers = map(int, process.stdout.readline().split())
        try:
            assert post(port, "/bad", "no json")[0] == 400
            assert post(port, "/" + "x" * 300, "1")[0] == 400
            accepted: dict[str, int] = {}

            def client(name: int) -> None:
                for number in range(10):
                    for order in range(3):
                        assert post(port, f"/{name}-{order}", str(number))[0] == 202
                        accepted[f"{name}-{order}"] = number

            clients = [threading.Thread(target=client, args=(name,)) for name in range(4)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            os.kill(workers[0], signal.SIGKILL)
            assert post(port, "/after", "1")[0] == 202
        finally:
            process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.poll() is not None)
    wanted = {key: str(number).encode() for key, number in accepted.items()}
    assert len(wanted) == 12
    assert contents(tmp_path / "inbox") == {**wanted, "before": b'"the fork"', "after": b"1"}
