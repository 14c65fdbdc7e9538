"""What is measured of a process of its own: a consumer, or a command; and the small programs that run there.

`python -m benchmarks.consuming WHAT ARGUMENTS...` runs one of PROGRAMS, which prints its figures as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from time import monotonic_ns, perf_counter
from typing import Any
from urllib.request import urlopen

from fsinbox import Inbox


def _memory() -> int:
    """Return how many bytes this process has taken at most. (What getrusage tells counts what its parent took
    before exec.)"""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


# --- programs of their own ----------------------------------------------------------------------------


def _first_take(path: str) -> tuple[float, int]:
    before = _memory()
    begun = perf_counter()
    with Inbox(f"{path}/inbox", codec="bytes", durable=False) as inbox:
        element = inbox.take()
        seconds = perf_counter() - begun
        peak = _memory() - before
        assert element is not None
        element.release()
    return seconds, peak


def _added(path: str, turn: str, operations: str) -> tuple[float, float]:
    with Inbox(f"{path}/inbox", codec="bytes", durable=False) as inbox:
        for number in range(20):
            inbox.add_bytes(f"warm{turn}-{number}", bytes(200))
        begun = perf_counter()
        for number in range(int(operations)):
            inbox.add_bytes(f"new{turn}-{number}", bytes(200))
        return (perf_counter() - begun) / int(operations) * 1e6, _memory() / (1 << 20)


def _taken(path: str, operations: str) -> float:
    with Inbox(f"{path}/inbox", codec="bytes", durable=False) as inbox:

        def work(elements: int) -> None:
            for _ in range(elements):
                element = inbox.take()
                assert element is not None
                _ = element.data
                element.ack()

        work(20)
        begun = perf_counter()
        work(int(operations))
        return (perf_counter() - begun) / int(operations) * 1e6


def _looked(path: str, *words: str) -> tuple[float, float]:
    """Run a command that looks at an inbox, from its imports on; return seconds, and the process's MiB."""
    begun = perf_counter()
    from fsinbox.cli import main

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sys.argv = ["fsinbox", "--inbox", f"{path}/inbox", *words]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    return perf_counter() - begun, _memory() / (1 << 20)


def _watchdog(path: str) -> None:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    class Handler(FileSystemEventHandler):
        """What a queue does: it takes the file that came, out of the folder that is watched."""

        def on_created(self, event: FileSystemEvent) -> None:
            now = monotonic_ns()
            name = os.path.basename(os.fsdecode(event.src_path))
            os.rename(f"{path}/drop/{name}", f"{path}/taken/{name}")
            sender.sendto(b"%d" % now, f"{path}/socket")

    observer = Observer()
    observer.schedule(Handler(), f"{path}/drop")
    observer.start()
    observer.join()


def _inotify(path: str) -> None:
    """The limit: a process that does nothing but read one event after the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    moved_to = 0x80  # IN_MOVED_TO, inotify(7)
    events = libc.inotify_init1(0)
    if events < 0 or libc.inotify_add_watch(events, f"{path}/drop".encode(), moved_to) < 0:
        raise OSError(ctypes.get_errno(), "no inotify")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    while os.read(events, 4096):
        sender.sendto(b"%d" % monotonic_ns(), f"{path}/socket")


def _waited(path: str, kind: str, threads: str, times: str) -> float:
    """Threads that wait 10 ms, again and again; between a take and an acknowledgement, if there is a queue of
    this kind (its name, or "")."""
    from .bare import BareCalls  # (here: what the others take of memory is measured)
    from .queues import QUICK, Fsinbox, make

    kinds = {one.name: one for one in (Fsinbox, BareCalls)}
    queue = make(kinds[kind], Path(path), QUICK) if kind else None
    if isinstance(queue, Fsinbox):
        queue.inbox.max_inflight = int(threads)
    lock, left, waits = threading.Lock(), iter(range(int(threads) * int(times))), list[tuple[float, float]]()

    def work() -> None:
        token = None
        while True:
            with lock:
                if queue and token is not None:
                    queue.ack(token)
                if next(left, None) is None:
                    return
                token = queue.take() if queue else None
            begun = perf_counter()
            time.sleep(0.01)
            waits.append((begun, perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    first, last = min(begun for begun, _ in waits), max(ended for _, ended in waits)
    return (last - first) / len(waits)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "first_take": _first_take,
    "added": _added,
    "taken": _taken,
    "looked": _looked,
    "watchdog": _watchdog,
    "inotify": _inotify,
    "waited": _waited,
}


def _command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.consuming", program, *map(str, arguments)]


def _environment(**also: object) -> dict[str, str]:
    return (
        os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path)}
        | {name: str(value) for name, value in also.items()}
    )


def run(program: str, *arguments: object) -> Any:
    """Return what one of PROGRAMS measures in a process of its own."""
    done = subprocess.run(
        _command(program, *arguments),
        env=_environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    return json.loads(done.stdout)


def page(path: Path) -> float:
    """Return the seconds in which `fsinbox web` answers with its first page. The page is asked for twice: the
    first one loads what a site needs."""
    words = [_FSINBOX, "--inbox", f"{path}/inbox", "web", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            said = next((line for line in server.stderr if "http://" in line), "")
            address = said[said.index("http://") :].strip()
            for _ in range(2):
                begun = perf_counter()
                with urlopen(address, timeout=120) as answer:
                    answer.read()
            return perf_counter() - begun
        finally:
            server.terminate()


# --- wake-up ------------------------------------------------------------------------------------------


@contextmanager
def _ears(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind(os.fspath(path / "socket"))
        ears.settimeout(60)
        yield ears


@contextmanager
def _process(words: list[str], **also: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        words, env=_environment(**also), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


_FSINBOX = os.path.join(os.path.dirname(sys.executable), "fsinbox")


def _consume(path: Path, handler: str, *options: str) -> list[str]:
    words = ["consume", "--handler", f"benchmarks.handlers:{handler}", *options]
    return [_FSINBOX, "--inbox", f"{path}/inbox", *words]


def _wakes(ears: socket.socket, drop: Callable[[int], object], times: int) -> list[float]:
    """Return for each drop the seconds from its begin to the handler's first line. A first one sees that all
    is up."""
    latencies = []
    pause = random.Random(times)
    for number in range(times + 1):
        if number:
            time.sleep(pause.uniform(0.02, 0.06))
        begun = drop(number) or monotonic_ns()
        latencies.append((int(ears.recv(100)) - int(begun)) / 1e9)  # type: ignore[call-overload]
    return latencies[1:]


def _mover(path: Path, drop: Path) -> Callable[[int], int]:
    """Return what writes a file, then moves it to `drop`, and tells when it did that."""

    def move(number: int) -> int:
        (path / "file").write_bytes(bytes(200))
        begun = monotonic_ns()
        os.rename(path / "file", drop / f"key{number}")
        return begun

    return move


def wakes_by_mv(path: Path, times: int) -> list[float]:
    """Return the seconds from `mv` into drop/ to the handler's first line, of an idle consumer."""
    Inbox(path / "inbox").close()
    with _ears(path) as ears, _process(_consume(path, "note"), BENCH_SOCKET=path / "socket"):
        return _wakes(ears, _mover(path, path / "inbox" / "drop"), times)


def wakes_by_add(path: Path, times: int) -> list[float]:
    """Return the seconds from the call of add (not durable) to the handler's first line, of an idle
    consumer."""
    with (
        Inbox(path / "inbox", codec="bytes", durable=False) as inbox,
        _ears(path) as ears,
        _process(_consume(path, "note"), BENCH_SOCKET=path / "socket"),
    ):

        def add(number: int) -> int:
            begun = monotonic_ns()
            inbox.add_bytes(f"key{number}", bytes(200))
            return begun

        return _wakes(ears, add, times)


def wakes_of_watchdog(path: Path, times: int) -> list[float]:
    """The same of a watchdog observer as its documentation shows it."""
    return _wakes_of("watchdog", path, max(2, times // 5))  # each takes half a second


def wakes_of_inotify(path: Path, times: int) -> list[float]:
    """The same of a process that does nothing but read events."""
    return _wakes_of("inotify", path, times)


def _wakes_of(program: str, path: Path, times: int) -> list[float]:
    (path / "drop").mkdir()
    (path / "taken").mkdir()
    with _ears(path) as ears, _process(_command(program, path)):
        time.sleep(1)  # there is no telling when it listens
        return _wakes(ears, _mover(path, path / "drop"), times)


def idle(path: Path, seconds: float) -> tuple[float, float]:
    """Return how often a second an idle consumer is woken, by what all its threads' context switches say
    (proc(5)), and the microseconds of CPU time that it takes a second."""
    Inbox(path / "inbox").close()
    with _ears(path) as ears, _process(_consume(path, "note"), BENCH_SOCKET=path / "socket") as process:
        _wakes(ears, _mover(path, path / "inbox" / "drop"), 1)
        time.sleep(min(3.0, seconds))
        switches, nanoseconds = _used(process.pid)
        time.sleep(seconds)
        switches_now, nanoseconds_now = _used(process.pid)
    return (switches_now - switches) / seconds, (nanoseconds_now - nanoseconds) / 1e3 / seconds


def _used(pid: int) -> tuple[int, int]:
    """Return (context switches, nanoseconds of CPU time) of a process, all its threads together."""
    switches = nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((thread / "schedstat").read_text().split()[0])
        lines = (thread / "status").read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return switches, nanoseconds


# --- commands -----------------------------------------------------------------------------------------


def whole_process(words: list[str], folder: Path) -> float:
    """Return the seconds that a command takes from its start to its end."""
    begun = perf_counter()
    done = subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL)
    seconds = perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}")
    return seconds


def handled(path: Path, handler: str, *options: str) -> float:
    """Have a consumer work off what waits; return the seconds an element takes, from the first handler's
    begin to the last one's end, all threads and processes together."""
    (path / "times").mkdir()
    words = _consume(path, handler, *options, "--drain", "--quiet")
    subprocess.run(words, env=_environment(BENCH_TIMES=path / "times"), check=True)
    noted = [struct.unpack("qqq", file.read_bytes()) for file in (path / "times").iterdir()]
    firsts, lasts, counts = zip(*(one for one in noted if one[2]), strict=True)
    return (max(lasts) - min(firsts)) / 1e9 / sum(counts)


if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
