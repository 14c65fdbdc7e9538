"""`consume --processes`: functions in processes that may crash, hang, leak and compute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import Consumer, command, environment, reason, run, wait_until
from test_consume import Place
from test_limits import is_alive

from fsinbox import Inbox, WrongState
from fsinbox.cli.handling import in_process
from fsinbox.cli.logs import Logs
from fsinbox.worker.backoff import Backoff, Retries
from fsinbox.worker.child import HandedElement, Recording
from fsinbox.worker.processes import ProcessHandler
from fsinbox.worker.runner import Runner

ROOT = Path(__file__).parent.parent

WORDS = ("--handler", "jobs:job", "--processes", "2", "--retry-delay", "0.01")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


def in_processes(place: Place, monkeypatch: pytest.MonkeyPatch, **bounds: int) -> ProcessHandler:
    """Return a handler that calls jobs:job in processes."""
    monkeypatch.chdir(place.path)
    make = partial(in_process, "jobs:job", str(place.inbox), Logs("text", 30), trace=False)
    return ProcessHandler("jobs:job", make, str(place.inbox), "json", **bounds)


def test_elements_are_handled_in_processes_that_are_kept(place: Place) -> None:
    place.jobs(
        "def job(key, value):\n"
        "    note(os.getpid(), key, value)\n"
        "    while len({line.split()[0] for line in open('notes')}) < 2: time.sleep(0.01)\n"
        "    print('handled', key)\n"
    )
    place.add(*map(str, range(20)))
    done = place.consume(*WORDS, "--drain")
    pids = {note.split()[0] for note in place.notes}
    assert len(pids) == 2
    assert len(place.notes) == 20
    assert done.stdout.count("handled") == 20
    assert "jobs:job in processes" in done.stderr
    assert place.left() == {}
    wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: not Linux")
@pytest.mark.parametrize("words", [(), ("--processes", "1")], ids=["thread", "process"])
def test_what_a_handler_prints_and_nobody_can_read_costs_no_attempt(
    place: Place, words: tuple[str, ...]
) -> None:
    place.jobs(
        "import os, sys\ndef job(key, value):\n    print('handled', key, flush=True)\n"
        "    sys.stdin = sys.stderr.close()\n    sys.stdout = open(os.devnull)\n    sys.stdout.close()\n"
    )
    place.add("a", "b")
    with open("/dev/full", "w") as full:
        subprocess.run(
            command(
                *("--inbox", str(place.inbox), "consume", "--handler", "jobs:job", *words),
                *("--max-attempts", "1", "--drain"),
            ),
            cwd=place.path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert place.left() == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: not Linux")
def test_what_a_handler_prints_elsewhere_and_cannot_be_written_costs_no_attempt(place: Place) -> None:
    place.jobs(
        "import sys\ndef job(element):\n    sys.stdout = open('/dev/full', 'w')\n    print(element.key)\n"
    )
    place.add("a", "b")
    place.consume(*WORDS, "--drain", "--max-attempts", "1")
    assert place.left() == {}


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("ctypes.string_at(0)", "was killed by SIGSEGV"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "was killed by SIGKILL",
        ),  # what the kernel does, out of memory
        ("os._exit(3)", "exited with 3"),
    ],
)
def test_a_crash_costs_an_attempt_of_its_element_and_nothing_else(
    place: Place, crash: str, said: str
) -> None:
    place.jobs(
        "import ctypes, signal, subprocess\n"
        "def job(element):\n"
        "    note(element.key, element.attempts)\n"
        "    if element.key != 'bad': return\n"
        "    note('left', subprocess.Popen(['sleep', '3600']).pid)\n"
        f"    {crash}\n"
    )
    place.add("a", "bad", "b", "c")
    done = place.consume(*WORDS, "--drain", "--max-attempts", "2", status=1)
    handled = sorted(note for note in place.notes if not note.startswith("left"))
    assert handled == ["a 1", "b 1", "bad 1", "bad 2", "c 1"]
    assert f"its worker process {said}" in reason(place.inbox, "bad")
    assert "a consumer died" not in done.stderr
    left = [note.split()[1] for note in place.notes if note.startswith("left")]
    wait_until(lambda: not any(map(is_alive, left)), "for what the handler had started to end")


def test_a_time_limit_ends_the_process_and_another_one_takes_its_place(place: Place) -> None:
    place.jobs(
        "def job(element):\n    note(os.getpid(), element.key)\n    while element.key == 'stuck': pass\n"
    )
    place.add("stuck", "a", "b")
    done = place.consume(
        "--handler",
        "jobs:job",
        "--processes",
        "1",
        "--drain",
        "--timeout",
        "0.5",
        "--max-attempts",
        "1",
        status=1,
    )
    assert "timed out after 0.5 s" in done.stderr
    pids = [note.split()[0] for note in place.notes]
    assert pids[0] != pids[1] == pids[2]
    assert place.left() == {"failed": ["stuck"]}


def test_a_handler_that_is_done_at_its_time_limit_is_done_but_its_process_is_not_used_again(
    place: Place,
) -> None:
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    note(os.getpid(), element.key)\n"
        "    stopped = []\n"
        "    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))\n"
        "    while element.key == 'slow' and not stopped: time.sleep(0.01)\n"
    )
    place.add("slow", "a")
    place.consume("--handler", "jobs:job", "--processes", "1", "--drain", "--timeout", "0.5")
    assert len({note.split()[0] for note in place.notes}) == 2
    assert place.left() == {}


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("element.ack(); 1 / 0", {}),
        ("element.nack(600)", {"deferred": ["a"]}),
        ("element.release(600)", {"deferred": ["a"]}),
        ("element.fail('no good')", {"failed": ["a"]}),
        ("raise Reject('no good')", {"failed": ["a"]}),
    ],
)
def test_a_handler_may_end_its_element_itself(place: Place, words: str, left: dict[str, list[str]]) -> None:
    place.jobs(f"from fsinbox import Reject\ndef job(element):\n    {words}")
    place.add("a")
    place.consume(*WORDS, "--once", status=1 if "failed" in left else 0)
    assert place.left() == left
    if left.get("failed"):
        assert reason(place.inbox, "a").count("key: a") == 1
        assert "no good" in reason(place.inbox, "a")


def test_an_element_is_ended_once_in_a_process_too(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        element = inbox.take()
        assert element
        _, taken = element.whereabouts()
        handed = HandedElement(element._handle, "json", Recording(taken))  # type: ignore[arg-type]
        assert handed.value == 1
        assert not handed.superseded()
        handed.fail("why")
        with pytest.raises(WrongState, match="was given up before"):
            handed.ack()
        element.ack()
        handed = HandedElement(element._handle, "json", Recording(taken))  # type: ignore[arg-type]
        with pytest.raises(OSError):
            _ = handed.data  # gone; its consumer knows why


def test_what_its_handler_has_asked_for_when_it_was_ended_already_is_a_failed_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.jobs("def job(element): element.ack()")
    place.add("a")
    handler = in_processes(place, monkeypatch)
    with Inbox(place.inbox) as inbox:
        element = inbox.take()
        assert element
        assert handler.handle(element).kind == "done"
        outcome = handler.handle(element)  # it is gone
        assert (outcome.kind, "was acknowledged before" in outcome.summary) == ("retry", True)
    handler.stop_now()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("job = 1", "jobs:job is int, not a function"),
        ("1 / 0", "ZeroDivisionError"),
        ("import os\nos._exit(7)", "its worker process exited with 7"),
        ("class Odd(BaseException): ...\nraise Odd", "Odd"),
    ],
)
def test_a_handler_that_cannot_be_used_is_said_at_the_start(place: Place, code: str, said: str) -> None:
    place.jobs(code)
    place.add("a")
    done = place.consume(*WORDS, "--drain", status=2)
    assert said in done.stderr
    assert place.left() == {"pending": ["a"]}


def test_a_process_that_cannot_be_started_later_is_a_failed_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.jobs("def job(element): os._exit(1)")
    place.add("a")
    handler = in_processes(place, monkeypatch)
    (place.path / "jobs.py").write_text("raise RuntimeError('an update went wrong')")
    with Inbox(place.inbox) as inbox:
        tally = Runner(inbox, handler, retries=Retries(2, backoff=Backoff(0, 0)), drain=True).run()
    assert tally.failed == 1
    assert "cannot start a worker process" in reason(place.inbox, "a")
    assert "an update went wrong" in reason(place.inbox, "a")


@pytest.mark.parametrize("when", ["before", "this instant"])
def test_an_idle_process_that_was_killed_costs_no_element_an_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place.jobs("def job(element): note(element.attempts)")
    place.add("a")
    handler = in_processes(place, monkeypatch)
    (idle,) = handler._idle
    idle.kill(signal.SIGKILL)
    idle.process.join()
    idle.kill(signal.SIGKILL)  # it is gone already
    if when == "this instant":  # it was there, when somebody looked
        monkeypatch.setattr(idle.process, "is_alive", lambda: True)
    with Inbox(place.inbox) as inbox:
        assert Runner(inbox, handler, drain=True).run().acknowledged == 1
    handler.stop_now()
    assert place.notes == ["1"]


def test_no_thread_waits_for_a_process_and_none_is_woken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.jobs("def job(element): pass")
    place.add(*map(str, range(50)))
    handler = in_processes(place, monkeypatch)
    monkeypatch.setattr(handler, "handle", None)  # (a thread would call it)
    with Inbox(place.inbox) as inbox:
        assert Runner(inbox, handler, drain=True).run().acknowledged == 50
    handler.stop_now()


@pytest.mark.parametrize("words", [(), ("--batch", "8")])
def test_what_does_not_fit_into_a_pipe_is_handled_all_the_same(place: Place, words: tuple[str, ...]) -> None:
    batch = "element = element[0]" if words else "pass"
    place.jobs(f"def job(element):\n    {batch}\n    note(os.getpid())\n    raise ValueError('x' * 300_000)")
    place.add(*(f"{number:0200}" for number in range(8)))
    place.consume(*WORDS, *words, "--drain", "--max-attempts", "1", status=1)
    assert len(place.left()["failed"]) == 8
    assert len(reason(place.inbox, f"{1:0200}")) > 60_000
    for_batch = 1 if words else 0
    assert len(place.notes) == 8 + for_batch


def test_a_process_that_closes_its_pipes_and_works_on_is_ended_at_its_time_limit(place: Place) -> None:
    place.jobs(
        "def job(element):\n"
        "    note(element.key, os.getpid())\n"
        "    if element.key == 'odd':\n"
        "        os.closerange(3, 100)\n"
        "        time.sleep(3600)\n"
    )
    place.add("odd", "a", "b")
    done = place.consume(*WORDS, "--drain", "--timeout", "0.5", "--max-attempts", "1", status=1)
    assert "timed out after 0.5 s" in done.stderr
    assert place.left() == {"failed": ["odd"]}
    pids = [note.split()[1] for note in place.notes]
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_reason_that_is_no_text_is_a_failed_attempt_and_one_of_a_class_of_its_own_is_text(
    place: Place,
) -> None:
    place.jobs(
        "class Text(str): pass\n"
        "class Odd(Exception):\n"
        "    def __str__(self): return Text('odd')\n"
        "def job(element):\n"
        "    if element.key == 'raised': raise Odd\n"
        "    element.fail(Text('no good') if element.key == 'text' else 7)\n"
    )
    place.add("number", "raised", "text")
    place.consume(*WORDS, "--drain", "--max-attempts", "1", status=1)
    assert place.left() == {"failed": ["number", "raised", "text"]}
    assert "TypeError" in reason(place.inbox, "number")
    assert "Odd: odd" in reason(place.inbox, "raised")
    assert reason(place.inbox, "text").endswith("\n\nno good\n")


def test_an_inbox_that_cannot_be_opened_there_is_a_failed_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.jobs("def job(element): note(element.key)")
    place.add("a")
    monkeypatch.chdir(place.path)
    make = partial(in_process, "jobs:job", "elsewhere", Logs("text", 30), trace=False)
    handler = ProcessHandler("jobs:job", make, str(place.path / "elsewhere"), "json")
    with Inbox(place.inbox) as inbox:
        element = inbox.take()
        assert element
        outcome = handler.handle(element)
        handler.interrupt(element, force=True)  # not at work
    handler.stop_now()
    assert outcome.kind == "retry"
    assert "elsewhere" in outcome.summary


@pytest.mark.parametrize(("bound", "starts"), [(("--max-elements", "2"), 3), (("--max-memory", "30M"), 5)])
def test_each_process_starts_anew_after_a_while_and_the_consumer_does_not(
    place: Place, bound: tuple[str, str], starts: int
) -> None:
    place.jobs(
        "kept = []\n"
        "def job(element):\n"
        "    kept.append(b'x' * (40 << 20))\n"
        "    note(os.getppid(), os.getpid())\n"
    )
    place.add(*"abcde")
    done = place.consume("--handler", "jobs:job", "--processes", "1", "--drain", *bound)
    assert "starting anew" not in done.stderr
    parents, pids = zip(*(note.split() for note in place.notes), strict=True)
    assert (len(set(parents)), len(set(pids))) == (1, starts)


def test_where_hosts_share_the_inbox_a_process_finds_what_its_consumer_has_claimed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    run("init", "--scope", "network", cwd=tmp_path)
    place.jobs("def job(element): note(element.key, element.value, element.path)")
    place.add("a", "b")
    place.consume("--handler", "jobs:job", "--processes", "1", "--drain")
    assert [note.split()[:2] for note in place.notes] == [["a", "0"], ["b", "1"]]
    assert "inflight/lease-" in place.notes[0]


# --- ends -----------------------------------------------------------------------------------------------

HANG = (
    "import subprocess\n"
    "def job(element):\n"
    "    note(os.getpid(), element.key, element.attempts)\n"
    "    if not Path('go').exists(): time.sleep(3600)\n"
)


def at_work(consumer: Consumer, place: Place, count: int) -> list[str]:
    """Wait until so many processes are at work; return their ids."""
    consumer.until(lambda: len(place.notes) >= count)
    return [note.split()[0] for note in place.notes]


def test_a_killed_consumer_takes_its_processes_along_and_each_attempt_counts(place: Place) -> None:
    place.jobs(HANG)
    place.add("a", "b", "c")
    with place.consumer(*WORDS) as consumer:
        pids = at_work(consumer, place, 2)
        consumer.signal(signal.SIGKILL)
        consumer.end(-signal.SIGKILL)
    if sys.platform == "linux":
        wait_until(lambda: not any(map(is_alive, pids)), "for the processes to end")
    place.make("go")
    place.consume(*WORDS, "--drain")
    assert sorted(note.split(maxsplit=1)[1] for note in place.notes[2:]) == ["a 2", "b 2", "c 1"]
    assert place.left() == {}


def test_a_second_signal_ends_the_processes_and_requeues_uncounted(place: Place) -> None:
    place.jobs(HANG)
    place.add("a", "b")
    with place.consumer(*WORDS) as consumer:
        pids = at_work(consumer, place, 2)
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for 2 in flight" in consumer.log)
        consumer.signal(signal.SIGTERM)
        consumer.end(0, patience=30)
    assert not any(map(is_alive, pids))
    place.make("go")
    place.consume(*WORDS, "--drain")
    assert sorted(note.split(maxsplit=1)[1] for note in place.notes[2:]) == ["a 1", "b 1"]


def test_a_ctrl_c_lets_the_processes_finish(place: Place) -> None:
    place.jobs("def job(element):\n    note(os.getpid())\n    wait_for('go')\n    note('done')")
    place.add("a")
    with place.consumer(*WORDS) as consumer:
        at_work(consumer, place, 1)
        os.killpg(consumer.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        place.make("go")
        consumer.end(0)
    assert place.notes[1:] == ["done"]
    assert place.left() == {}


def test_a_process_whose_consumer_has_died_before_it_could_ask_for_that_ends(tmp_path: Path) -> None:
    code = "import fsinbox.worker.child as child; child._die_with(1 << 22); print('it lives')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")


def test_processes_are_for_functions(place: Place) -> None:
    done = place.consume("--exec", "true", "--processes", "2", status=2)
    assert "--processes needs --handler MODULE:FUNC" in done.stderr


@pytest.mark.bare
def test_a_consumer_without_processes_imports_nothing_of_them(place: Place) -> None:
    place.jobs("import sys\ndef job(element): note('multiprocessing' in sys.modules)")
    place.add("a")
    place.drain()
    assert place.notes == ["False"]


def test_the_script_that_measures_it_runs(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "scripts/benchmarks/parallel.py", "--elements", "4", "--work", "20000"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "processes" in done.stdout and "threads" in done.stdout


def test_a_broken_standard_output_is_nothing_to_a_process(place: Place) -> None:
    place.jobs("def job(element):\n    print('handled', element.key)\n    note(element.key)")
    place.add("a", "b")
    reader, writer = os.pipe()
    os.close(reader)
    words = command("consume", *WORDS, "--drain")
    buffered = environment(PYTHONUNBUFFERED="")
    subprocess.run(words, cwd=place.path, env=buffered, stdout=writer, check=True, timeout=60)
    os.close(writer)
    assert sorted(place.notes) == ["a", "b"]
    assert place.left() == {}


def test_a_trace_is_made_in_the_process(place: Place) -> None:
    pytest.importorskip("opentelemetry.sdk")
    place.jobs(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "def job(element): note(trace.get_current_span().get_span_context().is_valid)\n"
    )
    place.add("a")
    place.consume(*WORDS, "--drain", "--trace")
    assert place.notes == ["True"]


def test_a_trace_that_cannot_be_made_is_said_at_the_start(place: Place) -> None:
    (place.path / "opentelemetry.py").write_text("raise ImportError('not installed')")
    place.jobs("def job(element): note(element.key)")
    done = place.consume(*WORDS, "--drain", "--trace", status=2)
    assert "--trace" in done.stderr
