"""What is measured of a process of its own: a consumer, or a command; and the small programs that run there.

`python -m benchmarks.consuming WHAT ARGUMENTS...` runs one of PROGRAMS, which prints its figures as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns, perf_counter
from typing import Any

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


PROGRAMS: dict[str, Callable[..., Any]] = {
    "first_take": _first_take,
    "added": _added,
    "taken": _taken,
    "watchdog": _watchdog,
    "inotify": _inotify,
}


def _command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.consuming", program, *map(str, arguments)]


def _environment(**also: object) -> dict[str, str]:
    return (
        os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path)}
        | {name: str(value) for name, value in also.items()}
    )


def _run(program: str, *arguments: object) -> Any:
    done = subprocess.run(
        _command(program, *arguments),
        env=_environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    return json.loads(done.stdout)


# --- depth --------------------------------------------------------------------------------------------


def first_take(path: Path) -> tuple[float, int]:
    """Return the seconds that opening and a first take need in a fresh process, and the bytes it takes for
    that."""
    seconds, peak = _run("first_take", path)
    return seconds, peak


def added(path: Path, turn: int, operations: int) -> tuple[float, float]:
    """Add so many new keys in a fresh process; return the microseconds of one, and the process's MiB at its
    peak."""
    microseconds, memory = _run("added", path, turn, operations)
    return microseconds, memory


def taken(path: Path, operations: int) -> float:
    """Take and acknowledge so many in a fresh process; return the microseconds of one."""
    return float(_run("taken", path, operations))


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


def _consume(path: Path, root: Path, handler: str, *options: str) -> list[str]:
    command = os.path.join(os.path.dirname(sys.executable), "fsinbox")
    return [
        command,
        "--inbox",
        str(path / "inbox"),
        "consume",
        "--handler",
        f"benchmarks.handlers:{handler}",
        *options,
    ]


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


def wakes_by_mv(path: Path, root: Path, times: int) -> list[float]:
    """Return the seconds from `mv` into drop/ to the handler's first line, of an idle consumer."""
    Inbox(path / "inbox").close()
    with _ears(path) as ears, _process(_consume(path, root, "note"), BENCH_SOCKET=path / "socket"):
        return _wakes(ears, _mover(path, path / "inbox" / "drop"), times)


def wakes_by_add(path: Path, root: Path, times: int) -> list[float]:
    """Return the seconds from the call of add (not durable) to the handler's first line, of an idle
    consumer."""
    with (
        Inbox(path / "inbox", codec="bytes", durable=False) as inbox,
        _ears(path) as ears,
        _process(_consume(path, root, "note"), BENCH_SOCKET=path / "socket"),
    ):

        def add(number: int) -> int:
            begun = monotonic_ns()
            inbox.add_bytes(f"key{number}", bytes(200))
            return begun

        return _wakes(ears, add, times)


def wakes_of_watchdog(path: Path, root: Path, times: int) -> list[float]:
    """The same of a watchdog observer as its documentation shows it."""
    return _wakes_of("watchdog", path, max(2, times // 5))  # each takes half a second


def wakes_of_inotify(path: Path, root: Path, times: int) -> list[float]:
    """The same of a process that does nothing but read events."""
    return _wakes_of("inotify", path, times)


def _wakes_of(program: str, path: Path, times: int) -> list[float]:
    (path / "drop").mkdir()
    (path / "taken").mkdir()
    with _ears(path) as ears, _process(_command(program, path)):
        time.sleep(1)  # there is no telling when it listens
        return _wakes(ears, _mover(path, path / "drop"), times)


def switches_while_idle(path: Path, root: Path, seconds: float) -> float:
    """Return how often a second an idle consumer is woken, by what all its threads' context switches say
    (proc(5))."""
    Inbox(path / "inbox").close()
    with _ears(path) as ears, _process(_consume(path, root, "note"), BENCH_SOCKET=path / "socket") as process:
        _wakes(ears, _mover(path, path / "inbox" / "drop"), 1)
        time.sleep(min(3.0, seconds))
        before = _switches(process.pid)
        time.sleep(seconds)
        return (_switches(process.pid) - before) / seconds


def _switches(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if "ctxt_switches" in line
    )


# --- commands -----------------------------------------------------------------------------------------


def whole_process(words: list[str], folder: Path) -> float:
    """Return the seconds that a command takes from its start to its end."""
    begun = perf_counter()
    done = subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL)
    seconds = perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}")
    return seconds


def share_of_ideal(path: Path, root: Path, threads: int) -> float:
    """Have a consumer with so many threads work off what waits, 10 ms each; return its part of the best
    possible rate."""
    words = _consume(path, root, "wait", "--concurrency", str(threads), "--drain")
    subprocess.run(words, env=_environment(BENCH_TIMES=path / "times"), check=True, stderr=subprocess.DEVNULL)
    first, last, number = map(int, (path / "times").read_text().split())
    return number * 0.01e9 / threads / (last - first)


if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
