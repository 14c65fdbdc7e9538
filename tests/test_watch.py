"""Asleep until something changes: woken at once, idle for nothing, and polling where the kernel cannot
tell."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fsinbox.store.network.sharing
from fsinbox import AsyncInbox, Inbox, UnusableInbox, WrongState
from fsinbox.consumer.waker import Waker
from fsinbox.consumer.watch import ObserverSource, Source, Watch, make_source, probe
from fsinbox.store.layout import Layout
from fsinbox.store.network.sharing import Sharing
from tests.shim import refusing

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify and /proc are Linux's")

WAKE = 0.3
"""Seconds within which an arrival must wake: a loaded machine's share of about a millisecond."""


@pytest.fixture
def layout(inbox_dir: Path) -> Iterator[Layout]:
    layout = Layout(str(inbox_dir))
    yield layout
    layout.close()


@pytest.fixture
def mover(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[[Path, Path], None]:
    """Move one file over another a tenth of a second from now, with mv(1); it prints when it did."""
    code = """
import subprocess, sys, time
for line in sys.stdin:
    source, target = line.rstrip("\\n").split("\\t")
    time.sleep(0.1)
    print(time.monotonic(), flush=True)
    subprocess.run(["mv", source, target], check=True)
"""
    child = start_python(code)
    assert child.stdin
    assert child.stdout

    def move(source: Path, target: Path) -> None:
        assert child.stdin
        child.stdin.write(f"{source}\t{target}\n")
        child.stdin.flush()

    move.when = lambda: float(child.stdout.readline())  # type: ignore[attr-defined]
    return move


# --- the waker ----------------------------------------------------------------------------------------


def test_a_waker_wakes_its_sleeper_from_another_thread() -> None:
    waker = Waker()
    timer = threading.Timer(0.05, waker.set)
    timer.start()
    began = time.monotonic()
    assert waker.wait(10) is True
    assert time.monotonic() - began < WAKE
    timer.join()


def test_a_wake_before_the_sleep_is_not_lost() -> None:
    waker = Waker()
    waker.set()
    assert waker.wait(10) is True
    assert waker.wait(0) is False


def test_a_waker_forgets_when_cleared_and_times_out() -> None:
    waker = Waker()
    waker.set()
    waker.set()
    waker.clear()
    began = time.monotonic()
    assert waker.wait(0.1) is False
    assert 0.1 <= time.monotonic() - began < WAKE
    assert waker.wait(-1) is False


def test_many_wakes_are_one_and_fill_nothing() -> None:
    waker = Waker()
    for _ in range(100_000):  # more than a pipe holds
        waker.set()
    assert waker.wait(10) is True
    assert waker.wait(0) is False


@linux
def test_what_signals_write_wakes_once_and_a_full_pipe_is_no_error() -> None:
    """signal.set_wakeup_fd writes past the waker."""
    waker = Waker()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(waker.writer, bytes(4096))
    waker.set()
    while waker.wait(0):
        pass
    assert waker.wait(0.01) is False
    os.write(waker.writer, b"\0")
    assert waker.wait(10) is True
    assert waker.wait(0.01) is False


def test_something_to_read_at_one_of_many_places_wakes() -> None:
    waker = Waker()
    pipes = [os.pipe() for _ in range(3)]
    waker.more = [reader for reader, _ in pipes]
    assert waker.wait(0.01) is False
    os.write(pipes[1][1], b"!")
    assert waker.wait(10) is True
    waker.more = waker.more[2:]
    assert waker.wait(0) is False
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)


def test_something_to_read_elsewhere_wakes_and_is_left_there() -> None:
    waker = Waker()
    reader, writer = os.pipe()
    assert waker.wait(0.01, reader) is False
    os.write(writer, b"!")
    assert waker.wait(10, reader) is True
    assert waker.wait(10, reader) is True
    assert os.read(reader, 10) == b"!"
    assert waker.wait(0, reader) is False
    for end in (reader, writer):
        os.close(end)


@linux
def test_a_waker_that_nobody_holds_closes_its_pipe_even_if_that_was_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    waker, closed = Waker(), Waker()
    os.close(closed.reader)
    os.close(closed.writer)
    closed.set()
    assert closed.wait(10) is True  # rather than to sleep on what nobody can wake
    del waker, closed
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_signal_handler_may_wake(run_python: Callable[..., str]) -> None:
    code = """
import signal, threading, os, time
from fsinbox.consumer.waker import Waker
waker = Waker()
signal.signal(signal.SIGUSR1, lambda *_: waker.set())
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
began = time.monotonic()
assert waker.wait(10)
assert time.monotonic() - began < 1
for _ in range(2000):  # while the same thread is inside the waker, too
    os.kill(os.getpid(), signal.SIGUSR1)
    waker.clear()
print("woken")
"""
    assert run_python(code) == "woken"


# --- waking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "events", "poll"])
def test_a_waiting_take_is_woken_by_mv(
    inbox_dir: Path, tmp_path: Path, mode: str, mover: Callable[[Path, Path], None]
) -> None:
    """Also by a file that was written and moved in one tick of the clock: the event tells that it is
    finished."""
    with Inbox(inbox_dir, codec="text", watch=mode, poll_interval=0.1) as inbox:
        for name in ("fresh", "old"):
            (tmp_path / name).write_text(name)
            if name == "old" or mode == "poll":
                os.utime(tmp_path / name, (1, 1))
            mover(tmp_path / name, inbox_dir / "drop" / name)
            element = inbox.take(timeout=10)
            now = time.monotonic()
            assert element is not None
            assert tuple(element) == (name, name)
            assert now - mover.when() < WAKE  # type: ignore[attr-defined]
            element.ack()


def test_a_waiting_take_is_woken_by_a_rename_into_pending(inbox_dir: Path) -> None:
    """As a producer in another language does it."""
    with Inbox(inbox_dir) as inbox, Inbox(inbox_dir) as producer:
        began = []

        def add() -> None:
            began.append(time.monotonic())
            producer.add("a", 1)

        timer = threading.Timer(0.1, add)
        timer.start()
        assert inbox.take(timeout=10)
        assert time.monotonic() - began[0] < WAKE
        timer.join()


def test_each_arrival_wakes_anew(inbox_dir: Path) -> None:
    """What watchdog holds back for half a second, the moves out of pending/, must not delay the next wake."""
    with Inbox(inbox_dir, durable=False) as inbox, Inbox(inbox_dir, durable=False) as producer:
        waits = []
        for number in range(10):
            timer = threading.Timer(0.02, producer.add, ("a", number))
            timer.start()
            began = time.monotonic()
            element = inbox.take(timeout=10)
            waits.append(time.monotonic() - began)
            assert element is not None
            assert element.value == number
            element.ack()
            timer.join()
    assert sorted(waits)[5] < 0.1
    assert max(waits) < WAKE


def test_a_file_written_in_place_wakes_and_is_taken_when_it_settled(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text", drop_settle=0.2) as inbox:
        timer = threading.Timer(0.1, (inbox_dir / "drop" / "a").write_text, ("a",))
        timer.start()
        began = time.monotonic()
        assert inbox.take(timeout=10)
        assert 0.25 < time.monotonic() - began < 0.3 + WAKE
        timer.join()


# --- which way ----------------------------------------------------------------------------------------


def watch_of(inbox: Inbox) -> Watch:
    with inbox.sleeper.listening() as watch:
        return watch


@linux
def test_events_are_chosen_where_they_work(inbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fsinbox"), Inbox(inbox_dir) as inbox:
        if inbox._handle.layout.scope == "network":
            pytest.skip("the tests' folder is on a network file system")
        assert not watch_of(inbox).polling
    assert not caplog.records
    assert not os.listdir(inbox_dir / "pending")  # no trace of the probe


def test_polling_can_be_asked_for(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, watch="poll") as inbox:
        threads = threading.active_count()
        assert watch_of(inbox).polling
        assert threading.active_count() == threads


def test_polling_is_chosen_for_an_inbox_on_a_network_and_said_once(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_text("fsinbox 2 network\n")
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: Sharing("nfs4"))
    with caplog.at_level(logging.INFO, "fsinbox"), Inbox(inbox_dir, poll_interval=0.1) as inbox:
        for _ in range(3):
            assert watch_of(inbox).polling
        timer = threading.Timer(0.1, inbox.add, ("a", 1))
        timer.start()
        began = time.monotonic()
        assert inbox.take(timeout=10)
        assert time.monotonic() - began < 0.1 + 0.1 + WAKE
        timer.join()
    assert [record.message for record in caplog.records if "polling" in record.message] == [
        f"{inbox_dir} is on a network file system, where other hosts' changes send no events: polling"
    ]


@linux
def test_events_can_be_asked_for_on_a_network(inbox_dir: Path) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_text("fsinbox 2 network\n")
    with Inbox(inbox_dir, watch="events") as inbox:
        assert not watch_of(inbox).polling


@linux
def test_polling_is_chosen_when_the_system_gives_no_more_watches(
    inbox_dir: Path, run_python: Callable[..., str]
) -> None:
    """Here: no more descriptors, at the moment when it would open an inotify instance."""
    code = """
import logging, os, resource, sys, threading
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from fsinbox import Inbox
import fsinbox.consumer.watch, watchdog.observers.inotify_c
with Inbox(sys.argv[1], codec="text", poll_interval=0.1) as inbox:
    inbox.take()
    watch = inbox._taking().sleeper.watch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    with watch.armed():
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    threading.Timer(0.1, inbox.add, ("a", "1")).start()
    print(watch.polling, inbox.take(timeout=5).key)
"""
    said, result = run_python(code, inbox_dir).splitlines()
    assert "no file system events" in said
    assert said.endswith("polling")
    assert result == "True a"


def test_polls_are_short_at_first_and_no_longer_than_asked_for(layout: Layout) -> None:
    watch = Watch(layout, lambda name: None, mode="poll", poll=0.1)
    with watch.armed():
        patience = [watch.patience(None) for _ in range(10)]
    assert patience[0] <= 0.02
    assert patience == sorted(patience)
    assert patience[-1] == 0.1
    with watch.armed():
        assert watch.patience(None) == 0.1
        watch.found()
        assert watch.patience(None) == patience[0]  # anew after each arrival
        assert watch.patience(0.001) == 0.001
    watch.close()


def test_even_with_events_it_looks_again_now_and_then(layout: Layout) -> None:
    watch = Watch(layout, lambda name: None)
    with watch.armed():
        assert watch.patience(None) <= 60
        assert watch.patience(0.5) <= 0.5
    watch.close()


# --- the source of events -----------------------------------------------------------------------------


def arrived(waker: Waker, source: Source, patience: float = 5) -> bool:
    """Tell whether something arrives, as a sleeper would be woken."""
    woken = waker.wait(patience, source.fd)
    source.read()
    return woken


@linux
def test_an_overflow_of_the_event_queue_wakes(layout: Layout) -> None:
    """The kernel keeps no more than so many events, and says so."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip(f"the event queue is too long to be filled: {most}")
    waker = Waker()
    source = make_source(layout, waker.set, lambda name: None)
    try:
        source.arm()
        for number in range(most // 2 + 10):
            os.close(os.open(f"{layout.path}/drop/{number % 100}", os.O_CREAT | os.O_WRONLY))
            os.unlink(f"{layout.path}/drop/{number % 100}")
        while waker.wait(0, source.fd):
            source.read()
        Path(layout.path, "drop", "a").touch()
        assert arrived(waker, source)
    finally:
        source.close()


@linux
def test_a_source_tells_of_arrivals_only_while_armed_and_names_what_was_moved_into_drop(
    layout: Layout, tmp_path: Path
) -> None:
    waker = Waker()
    moved: list[str] = []
    source = make_source(layout, waker.set, moved.append)
    drop, pending = Path(layout.path, "drop"), Path(layout.path, "pending")

    def move(target: Path) -> None:
        (tmp_path / "draft").touch()
        (tmp_path / "draft").rename(target)

    try:
        move(drop / "unarmed")
        assert not arrived(waker, source, 0.05)
        for _ in range(2):
            source.arm()
            move(drop / "a")
            assert arrived(waker, source)
            (drop / "b").write_text("")
            assert arrived(waker, source)
            (drop / "b").unlink()
            move(pending / "c")
            assert arrived(waker, source)
            (pending / "c").rename(Path(layout.path, "inflight", "c"))
            assert not arrived(waker, source, 0.05)  # what leaves is no arrival
            move(drop / "late")
            source.disarm()
            move(drop / "unarmed")
            assert not arrived(waker, source, 0.05)
    finally:
        source.close()
    assert moved == ["a", "late"] * 2


@linux
def test_a_probe_proves_that_events_come_and_leaves_nothing(layout: Layout) -> None:
    waker = Waker()
    source = make_source(layout, waker.set, lambda name: None)
    try:
        assert probe(layout, source, waker) is True
        assert os.listdir(Path(layout.path, "pending")) == []
        assert os.listdir(Path(layout.path, "tmp")) == []
    finally:
        source.close()


class Deaf:
    """A source that tells of nothing, as inotify does where other hosts make the changes."""

    fd = None

    def arm(self) -> None: ...
    def read(self) -> None: ...
    def disarm(self) -> None: ...
    def close(self) -> None: ...


def test_a_probe_whose_event_does_not_come_fails_in_time_and_leaves_nothing(layout: Layout) -> None:
    began = time.monotonic()
    assert probe(layout, Deaf(), Waker()) is False
    assert time.monotonic() - began < 0.2 + WAKE
    assert os.listdir(Path(layout.path, "pending")) == []


def test_polling_is_chosen_where_no_events_come(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fsinbox.consumer.watch.make_source", lambda *_: Deaf())
    watch = Watch(layout, lambda name: None)
    watch.start()
    assert watch.polling
    assert "sends no events" in caplog.text
    watch.close()


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_a_probe_that_is_refused_means_polling_and_says_why(
    layout: Layout, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(layout, lambda name: None)
    with refusing(**{call: errno.EROFS}):
        watch.start()
    assert watch.polling
    assert "cannot probe" in caplog.text
    assert "Read-only" in caplog.text
    assert os.listdir(Path(layout.path, "tmp")) == []
    watch.close()


@linux
def test_a_source_that_cannot_be_made_safe_is_closed_and_polling_is_chosen(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(layout, lambda name: None)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with refusing(set_inheritable=errno.EIO):
        watch.start()
    assert watch.polling
    assert "no file system events" in caplog.text
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) - descriptors <= 2  # pending/ and drop/, opened meanwhile


def test_polling_takes_over_when_events_fail_later(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    class Exhausted(Deaf):
        def arm(self) -> None:
            if self.armed:
                raise OSError(errno.ENOSPC, "no watches left")
            self.armed = True
            waker.set()

        armed = False

    watch = Watch(layout, lambda name: None)
    waker = watch.waker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsinbox.consumer.watch.make_source", lambda *_: Exhausted())
        watch.start()
    assert not watch.polling
    with watch.armed():
        assert watch.polling
        assert watch.patience(None) < 1
    assert "no watches left" in caplog.text


@linux
def test_polling_takes_over_when_events_cannot_be_read(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(layout, lambda name: None)
    descriptors = len(os.listdir("/proc/self/fd"))
    with watch.armed():
        assert not watch.polling
        Path(layout.path, "drop", "a").touch()
        with refusing(read=errno.EIO):
            watch.sleep(10)
        assert watch.polling
    assert "no file system events" in caplog.text
    assert len(os.listdir("/proc/self/fd")) - descriptors <= 2  # pending/ and drop/, opened meanwhile
    with watch.armed():
        began = time.monotonic()
        watch.sleep(10)
        assert time.monotonic() - began < 1
    other = Watch(layout, lambda name: None)
    with refusing(read=errno.EIO), other.armed():
        pass
    assert not other.polling  # nobody had to read
    watch.close()
    other.close()


@linux
def test_a_source_may_be_armed_twice(layout: Layout) -> None:
    waker = Waker()
    source = make_source(layout, waker.set, lambda name: None)
    try:
        source.arm()
        assert probe(layout, source, waker) is True
    finally:
        source.close()


def test_the_source_of_other_systems_tells_of_arrivals_only_while_armed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """watchdog's own observer: here on inotify, on macOS on FSEvents."""
    waker = Waker()
    ObserverSource(layout, waker.set).close()  # imports what this system has, before it is called another
    monkeypatch.setattr(sys, "platform", "darwin")
    source = make_source(layout, waker.set, lambda name: None)
    monkeypatch.undo()
    try:
        assert isinstance(source, ObserverSource)
        assert probe(layout, source, waker) is True
        for folder in ("pending", "drop"):
            source.arm()
            (tmp_path / "a").write_text("1")
            waker.clear()
            (tmp_path / "a").rename(f"{layout.path}/{folder}/a")
            assert waker.wait(10) is True
            source.disarm()
        waker.clear()
        (tmp_path / "b").write_text("1")
        (tmp_path / "b").rename(f"{layout.path}/drop/b")
        assert waker.wait(0.05) is False
    finally:
        source.close()


# --- what it costs ------------------------------------------------------------------------------------


@pytest.mark.bare
@linux
def test_an_idle_consumer_uses_no_cpu(inbox_dir: Path, run_python: Callable[..., str]) -> None:
    code = """
import json, resource, sys
from fsinbox import Inbox
with Inbox(sys.argv[1]) as inbox:
    inbox.take(timeout=0.1)  # starts the watch
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert inbox.take(timeout=1.5) is None
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([inbox._taking().sleeper.watch().polling, cpu, after.ru_nvcsw - before.ru_nvcsw]))
"""
    polling, cpu, switches = json.loads(run_python(code, inbox_dir))
    if polling:
        pytest.skip("no events on this file system")
    assert cpu < 0.020
    assert switches < 20


@linux
def test_an_idle_consumer_is_not_woken_by_what_it_leaves_alone(
    inbox_dir: Path, run_python: Callable[..., str]
) -> None:
    """A set-aside file, a draft and an unfinished file that stays so must not make it spin."""
    code = """
import json, os, resource, sys
from fsinbox import Inbox
with Inbox(sys.argv[1], drop_settle=0.5) as inbox:
    os.mkdir(sys.argv[1] + "/drop/folder")
    open(sys.argv[1] + "/drop/a.part", "w").close()
    held = open(sys.argv[1] + "/drop/held", "w")
    inbox.take(timeout=0.1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert inbox.take(timeout=1.5) is None
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""
    assert float(run_python(code, inbox_dir)) < 0.030


@linux
def test_opening_waiting_and_closing_leaks_no_thread_and_no_descriptor(inbox_dir: Path) -> None:
    def once() -> None:
        with Inbox(inbox_dir) as inbox:
            assert inbox.take(timeout=0.01) is None
            assert inbox.take(timeout=0.01) is None

    once()
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.enumerate()
    for _ in range(20):
        once()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.enumerate() == threads


@linux
def test_a_watch_is_not_inherited_by_a_handler_s_program(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.take(timeout=0.01)
        listed = subprocess.run(
            [
                sys.executable,
                "-c",
                "import glob, os; print([os.readlink(n) for n in glob.glob('/proc/self/fd/*') "
                "if os.path.exists(n)])",
            ],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert "inotify" not in listed
    assert str(inbox_dir) not in listed


@pytest.mark.bare
def test_a_program_that_only_adds_starts_no_thread_and_imports_no_watchdog(
    inbox_dir: Path, run_python: Callable[..., str]
) -> None:
    code = """
import sys, threading
from fsinbox import Inbox
with Inbox(sys.argv[1], codec="text") as inbox:
    inbox.add("a", "1")
    heavy = {"watchdog", "filelock", "logging", "asyncio", "json"}
    print(threading.active_count(), sorted(heavy & set(sys.modules)))
"""
    assert run_python(code, inbox_dir) == "1 []"


@pytest.mark.bare
def test_a_program_that_ends_while_it_waits_ends_at_once(
    inbox_dir: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys, threading, os, signal
from fsinbox import Inbox
inbox = Inbox(sys.argv[1])
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    inbox.take(timeout=60)
except KeyboardInterrupt:
    print("interrupted", flush=True)  # and not closed: the watch's thread must not hold the program up
"""
    began = time.monotonic()
    output, _ = start_python(code, inbox_dir).communicate(timeout=30)
    assert output == "interrupted\n"
    assert time.monotonic() - began < 5


@linux
@pytest.mark.parametrize("call", ["pipe", "set_blocking"])
def test_who_has_no_descriptors_left_to_wait_with_is_told(inbox_dir: Path, call: str) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.take()
        before = len(os.listdir("/proc/self/fd"))
        with (
            refusing(**{call: errno.EMFILE}),
            pytest.raises(UnusableInbox, match=r"cannot wait .*Too many open") as kept,
        ):
            inbox.take(timeout=1)
        assert len(os.listdir("/proc/self/fd")) == before, "whoever keeps the exception keeps descriptors"
        assert kept.value
        assert inbox.take(timeout=0.01) is None


# --- the end of a watch that is slept on --------------------------------------------------------------


@linux
def test_a_watch_that_is_closed_while_somebody_sleeps_closes_its_descriptor_after_that(
    layout: Layout,
) -> None:
    """Else the sleeper would wait for what was opened since under the same number."""
    watch = Watch(layout, lambda name: None)
    with watch.armed():
        *_, events = watch.descriptors
        watch.waker.set()
        watch.close()
        assert "inotify" in os.readlink(f"/proc/self/fd/{events}")
        began = time.monotonic()
        watch.sleep(10)
        assert time.monotonic() - began < WAKE
    assert not os.path.exists(f"/proc/self/fd/{events}")


@linux
def test_an_asyncio_take_ends_when_its_inbox_is_closed_and_leaves_no_reader(inbox_dir: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        inbox = AsyncInbox(inbox_dir)
        taking = asyncio.create_task(inbox.take(timeout=None))
        while not (watch := inbox.inbox.sleeper._watch) or not watch._armed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        descriptors = watch.descriptors
        await inbox.close()
        with pytest.raises(WrongState, match="closed"):
            await asyncio.wait_for(taking, 10)
        assert not any(loop.remove_reader(descriptor) for descriptor in descriptors)

    asyncio.run(main())
