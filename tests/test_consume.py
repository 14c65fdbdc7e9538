"""`fsinbox consume` as a person runs it: real handlers in real modules, real commands, real signals, real
deaths."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import (
    PATIENCE,
    Consumer,
    command,
    contents,
    environment,
    json_lines,
    keys_in,
    reason,
    run,
    wait_until,
)

from fsinbox import Inbox

# --- handlers for the tests: each test writes a jobs.py that may use these ----------------------------

TOOLS = '''
import os, threading, time
from pathlib import Path

def note(*words):
    """Append a line to the file `notes`, at once and whole."""
    fd = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

def wait_for(name):
    """Wait until the test makes the file `name`."""
    deadline = time.monotonic() + 60
    while not Path(name).exists():
        assert time.monotonic() < deadline, name
        time.sleep(0.005)
'''


class Place:
    """A working directory with an inbox, a module of handlers, and the notes those leave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inbox = path / "inbox"
        (path / "tools.py").write_text(TOOLS)

    def jobs(self, code: str) -> None:
        """Write jobs.py."""
        (self.path / "jobs.py").write_text("from tools import *\n" + code)

    def add(self, *keys: str, **values: object) -> None:
        """Add each key with its position as value, then each of `values`, as a producer beside the consumer
        would."""
        with Inbox(self.inbox, durable=False) as inbox:
            for number, key in enumerate(keys):
                inbox.add(key, number)
            for key, value in values.items():
                inbox.add(key, value)

    @property
    def notes(self) -> list[str]:
        """What the handlers noted so far, in order."""
        path = self.path / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def make(self, name: str) -> None:
        """Make an empty file, which a handler may wait for."""
        (self.path / name).touch()

    def consume(self, *words: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a consumer to its end."""
        return run("consume", *words, cwd=self.path, status=status, **variables)

    def drain(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run jobs:job until the inbox is drained."""
        return self.consume("--handler", "jobs:job", "--drain", *words, status=status)

    def consumer(self, *words: str, **variables: str) -> Consumer:
        """Make a consumer for the background."""
        return Consumer(*words, cwd=self.path, **variables)

    def left(self) -> dict[str, list[str]]:
        """Return folder -> keys, of the folders that hold elements."""
        folders = ("pending", "inflight", "deferred", "failed")
        return {folder: keys for folder in folders if (keys := keys_in(self.inbox, folder))}

    def drain_through_deaths(self, *words: str, deaths: int, status: int) -> None:
        """Start consumers until one is not killed: there must be `deaths`, then one that ends with
        `status`."""
        ends = []
        while len(ends) <= deaths:
            done = subprocess.run(
                command("consume", "--drain", *words),
                cwd=self.path,
                env=environment(),
                capture_output=True,
                timeout=PATIENCE,
            )
            ends.append(done.returncode)
            if done.returncode != -signal.SIGKILL:
                break
        assert ends == [-signal.SIGKILL] * deaths + [status], done.stderr.decode()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A fresh Place with an empty inbox."""
    place = Place(tmp_path)
    Inbox(place.inbox).close()
    return place


# --- what may be a handler ----------------------------------------------------------------------------

HANDLERS = {
    "jobs:two": "def two(key, value): note(key, value)",
    "jobs:one": "def one(element): note(element.key, element.value)",
    "jobs:with_default": "def with_default(element, *, loud=False): note(element.key, element.value)",
    "jobs:async_two": "async def async_two(key, value): note(key, value)",
    "jobs:async_one": "async def async_one(element): note(element.key, element.value)",
    "jobs:worker": "class W:\n  def __call__(self, key, value): note(key, value)\nworker = W()",
    "jobs:async_worker": "class W:\n  async def __call__(self, element): note(*element)\nasync_worker = W()",
    "jobs:W.static": "class W:\n  @staticmethod\n  def static(key, value): note(key, value)",
    "jobs:W.of_class": "class W:\n  @classmethod\n  def of_class(cls, element): note(*element)",
    "jobs:w.method": "class W:\n  def method(self, key, value): note(key, value)\nw = W()",
    "jobs:partial": (
        "import functools\npartial = functools.partial(lambda greeting, key, value: note(key, value), "
        "'hello')"
    ),
    "jobs:W": "class W:\n  def __init__(self, key, value): note(key, value)",
    "package.jobs:two": "def two(key, value): note(key, value)",
}


@pytest.mark.parametrize("spec", HANDLERS)
def test_a_handler_may_be_anything_that_can_be_called(place: Place, spec: str) -> None:
    place.jobs(HANDLERS[spec])
    (place.path / "package").mkdir()
    shutil.copy(place.path / "jobs.py", place.path / "package/jobs.py")
    place.add("a", "b")
    place.consume("--handler", spec, "--drain")
    assert place.notes == ["a 0", "b 1"]
    assert place.left() == {}


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("nosuch:job", "", "cannot import 'nosuch': no such module"),
        ("jobs.nosuch:job", "", "no such module"),
        ("jobs:nosuch", "", "'jobs' has no 'nosuch': name a function that is defined there"),
        ("jobs:sned", "def send(key, value): pass", "'jobs' has no 'sned': did you mean 'send'?"),
        ("jobs:W.nosuch", "class W: pass", "'jobs' has no 'W.nosuch'"),
        ("jobs:job", "job = 5", "jobs:job is int, not a function"),
        ("jobs:job", "def job(): pass", "can be called neither as func(key, value) nor as func(element)"),
        (
            "jobs:job",
            "def job(a, b, c): pass",
            "can be called neither as func(key, value) nor as func(element)",
        ),
        ("jobs:job", "def job(key, value, *, loud): pass", "can be called neither as"),
        (
            "jobs:job",
            "def job(job, *more): pass",
            "it is not clear whether it takes (key, value) or (element)",
        ),
        ("jobs:job", "def job(key, value): yield", "jobs:job is a generator (it has `yield`)"),
        ("jobs:job", "async def job(element): yield", "is a generator"),
        ("jobs:job", "class W:\n  def __call__(self, element): yield\njob = W()", "is a generator"),
        (
            "jobs",
            "def job(a): pass",
            "is not of the form module:func, as tasks:handle is for handle() in tasks.py",
        ),
        (":job", "", "is not of the form module:func"),
        ("jobs:", "", "is not of the form module:func"),
        ("jobs:job", "1 / 0", "ZeroDivisionError"),
        ("jobs:job", "import surely_not_installed", "No module named 'surely_not_installed'"),
        ("jobs:job", "from tools import nothing_like_it", "cannot import name 'nothing_like_it'"),
        ("jobs:job", "def job(:", "SyntaxError"),
        ("jobs:job", "raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_handler_that_cannot_be_imported_ends_the_consumer_at_once(
    place: Place, spec: str, code: str, message: str
) -> None:
    place.jobs(code)
    place.add("a")
    done = place.consume("--handler", spec, "--drain", status=2)
    assert message in done.stderr
    assert place.left() == {"pending": ["a"]}
    assert place.notes == []


def test_the_traceback_of_a_module_that_raises_at_import_is_shown(place: Place) -> None:
    place.jobs("def inner():\n    raise LookupError('no settings')\ninner()")
    done = place.consume("--handler", "jobs:job", "--drain", status=2)
    assert "Traceback" in done.stderr
    assert "in inner" in done.stderr
    assert done.stderr.endswith("LookupError: no settings\n")  # and no empty line


def test_a_handlers_prints_go_through(place: Place) -> None:
    place.jobs(
        "import sys\ndef job(key, value):\n    print('out', key)\n    print('err', key, file=sys.stderr)"
    )
    place.add("a")
    done = place.drain("--quiet")
    assert (done.stdout, done.stderr) == ("out a\n", "err a\n")


@pytest.mark.parametrize(
    ("codec", "value"), [("json", "{'n': 1}"), ("text", "'{\"n\":1}'"), ("bytes", "b'{\"n\":1}'")]
)
def test_the_codec_says_what_a_value_is(place: Place, codec: str, value: str) -> None:
    place.jobs("def job(key, value): note(repr(value))")
    place.add(a={"n": 1})
    place.drain("--codec", codec)
    assert place.notes == [value]


# --- how an element ends ------------------------------------------------------------------------------


def test_raising_requeues_for_later_while_others_go_on_and_in_the_end_fails(place: Place) -> None:
    place.jobs(
        "def job(element):\n    note(element.key, element.attempts)\n    if element.key == 'bad': raise "
        "OSError('disk on fire')"
    )
    place.add("bad", "b", "c")
    done = place.drain("--max-attempts", "3", "--retry-delay", "0.2", status=1)
    assert place.notes == ["bad 1", "b 1", "c 1", "bad 2", "bad 3"]
    assert place.left() == {"failed": ["bad"]}
    why = reason(place.inbox, "bad")
    assert "Traceback (most recent call last)" in why
    assert "OSError: disk on fire" in why
    assert "attempts: 3" in why
    assert "attempt 1 of 3 failed: OSError: disk on fire; again in" in done.stderr
    assert "key 'bad' moved to failed/ after attempt 3: OSError: disk on fire" in done.stderr
    assert "2 acknowledged, 2 requeued, 0 dropped for a newer value, 1 failed" in done.stderr


def test_the_back_off_doubles(place: Place) -> None:
    place.jobs("def job(key, value):\n    note(time.monotonic())\n    raise OSError")
    place.add("a")
    place.drain("--max-attempts", "4", "--retry-delay", "0.08", status=1)
    times = [float(line) for line in place.notes]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # Never too early; how much too late depends on how busy the machine is.
    assert [gap >= 0.75 * 0.08 * 2**number for number, gap in enumerate(gaps)] == [True, True, True]


def test_a_back_off_survives_a_restart_with_its_attempts(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    raise OSError")
    place.add("a")
    for _ in range(3):
        place.consume("--handler", "jobs:job", "--once", "--retry-delay", "0.01")
    assert place.notes == ["1", "2", "3"]
    assert place.left() == {"deferred": ["a"]}


def test_reject_goes_to_failed_at_once_with_its_text(place: Place) -> None:
    place.jobs(
        "from fsinbox import Reject\ndef job(key, value):\n    note(key)\n    raise Reject('no such "
        "customer')"
    )
    place.add("a")
    place.drain(status=1)
    assert place.notes == ["a"]
    assert place.left() == {"failed": ["a"]}
    assert "no such customer" in reason(place.inbox, "a")


def test_try_later_is_tried_again_and_never_counted(place: Place) -> None:
    place.jobs(
        "from fsinbox import TryLater\n"
        "def job(element):\n"
        "    note(element.attempts)\n"
        "    if not Path('ready').exists(): raise TryLater('not yet')\n"
    )
    place.add("a")
    with place.consumer(
        "--handler", "jobs:job", "--drain", "--max-attempts", "1", "--retry-delay", "0.01"
    ) as consumer:
        # The wait grows with the element's age; three tries come quickly all the same.
        consumer.until(lambda: len(place.notes) >= 3)
        place.make("ready")
        consumer.end(0)
    assert set(place.notes) == {"1"}
    assert "not now: not yet" in consumer.log
    assert place.left() == {}


def test_a_payload_that_cannot_be_decoded_goes_to_failed_at_once_with_a_clear_reason(place: Place) -> None:
    place.jobs("def job(key, value): note(key)\ndef one(element): note(element.key, element.value)")
    run("add", "a", "not json", cwd=place.path)
    place.add("b")
    place.drain(status=1)
    assert place.notes == ["b"]
    assert "the payload for key 'a' is not JSON" in reason(place.inbox, "a")
    run("add", "c", "nor this", cwd=place.path)
    place.consume("--handler", "jobs:one", "--drain", status=1)
    assert "the payload for key 'c' is not JSON" in reason(place.inbox, "c")


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize(
    "how", ["sys.exit(3)", "sys.exit(0)", "raise KeyboardInterrupt", "raise BaseException('odd')"]
)
def test_a_handler_that_tries_to_exit_has_failed_and_does_not_end_the_consumer(
    place: Place, define: str, how: str
) -> None:
    place.jobs(f"import sys\n{define} job(key, value):\n    note(key)\n    if key == 'a': {how}")
    place.add("a", "b")
    with place.consumer("--handler", "jobs:job", "--drain", "--max-attempts", "1") as consumer:
        consumer.end(1, patience=15)
    assert place.notes == ["a", "b"]
    assert place.left() == {"failed": ["a"]}
    assert how.split()[-1].split("(")[0].replace("sys.exit", "SystemExit") in reason(place.inbox, "a")


REMOVED = {"raise OSError('late')": 1, "raise Reject('bad')": 1, "raise TryLater": 1, "return": 0}


@pytest.mark.parametrize("ending", REMOVED)
def test_a_handler_that_removes_its_payload_and_fails_has_failed(place: Place, ending: str) -> None:
    """There is nothing to be tried again: it must not pass for one that a newer value has superseded."""
    place.jobs(
        "from fsinbox import Reject, TryLater\n"
        "def job(element):\n"
        "    note(element.key)\n"
        "    if element.key == 'a':\n"
        "        os.rename(element.path, 'taken-away')\n"
        f"        {ending}\n"
    )
    place.add("a", "b")
    status = REMOVED[ending]
    done = place.drain("--retry-delay", "0.01", "--max-attempts", "2", status=status)
    assert "Traceback" not in done.stderr
    assert f"0 dropped for a newer value, {status} failed" in done.stderr
    assert ("its payload was removed meanwhile" in done.stderr) == (status == 1)
    assert place.notes == ["a", "b"]
    assert place.left() == {}


def test_a_handler_that_removes_its_payload_when_a_newer_value_waits_is_superseded(place: Place) -> None:
    place.jobs(
        "from fsinbox import Inbox\n"
        "def job(element):\n"
        "    note(element.value)\n"
        "    if element.value == 'old':\n"
        "        os.remove(element.path)\n"
        "        with Inbox('inbox') as inbox: inbox.add(element.key, 'new')\n"
        "        raise OSError\n"
    )
    place.add(k="old")
    done = place.drain()
    assert place.notes == ["old", "new"]
    assert "1 acknowledged, 0 requeued, 1 dropped for a newer value, 0 failed" in done.stderr


ENDED: dict[str, tuple[dict[str, list[str]], int]] = {
    "element.ack()": ({}, 0),
    "element.fail('no')": ({"failed": ["a"]}, 1),
    "element.nack(600)": ({"deferred": ["a"]}, 0),
    "element.release(600)": ({"deferred": ["a"]}, 0),
}


@pytest.mark.parametrize("then", ["return", "raise OSError('after that')"])
@pytest.mark.parametrize("end", ENDED)
def test_a_handler_may_end_its_element_itself(place: Place, end: str, then: str) -> None:
    place.jobs(
        "def job(element):\n"
        "    note(element.key)\n"
        "    if element.key == 'a':\n"
        f"        {end}\n"
        f"        {then}\n"
    )
    place.add("a", "b")
    left, status = ENDED[end]
    done = place.consume("--handler", "jobs:job", "--once", status=status)
    assert place.left() == {"pending": ["b"]} | left
    more = place.consume("--handler", "jobs:job", "--once")
    assert place.notes == ["a", "b"]
    assert place.left() == left
    assert "Traceback" not in done.stderr + more.stderr
    assert ("by the handler itself, which then failed: OSError: after that" in done.stderr) == (
        then != "return"
    )


def test_a_handler_may_requeue_its_element_itself_and_gets_it_again(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    if element.attempts < 3: element.nack()\n")
    place.add("a")
    done = place.drain("-v")
    assert place.notes == ["1", "2", "3"]
    assert "1 acknowledged, 2 requeued, 0 dropped for a newer value, 0 failed" in done.stderr
    assert "key 'a': requeued by the handler itself" in done.stderr


CHILDREN = {
    "sys.exit(3)": 3,
    "sys.exit()": 0,
    "sys.exit('why')": 1,
    "raise OSError('in the child')": 1,
    "return": 0,
}


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize("ending", CHILDREN)
def test_a_child_that_a_handler_forks_ends_there_and_is_no_second_worker(
    place: Place, define: str, ending: str
) -> None:
    place.jobs(
        "import sys\n"
        f"{define} job(key, value):\n"
        "    note('begin', key)\n"
        "    if key != 'a': return\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        f"            {ending}\n"
        "        finally: note('cleaned up')\n"
        "    note('ended with', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    place.add("a", "b")
    done = place.drain()
    assert place.notes == ["begin a", "cleaned up", f"ended with {CHILDREN[ending]}", "begin b"]
    assert place.left() == {}
    assert "2 acknowledged" in done.stderr
    assert ("\nwhy\n" in done.stderr) == ("why" in ending)
    assert ("OSError: in the child" in done.stderr) == ("OSError" in ending)


def test_a_message_of_megabytes_is_cut(place: Place) -> None:
    place.jobs("def job(key, value): raise OSError('begin' + 'x' * 50_000_000 + 'end')")
    place.add("a")
    begun = time.monotonic()
    done = place.drain("--max-attempts", "1", status=1)
    assert time.monotonic() - begun < 15
    assert len(done.stderr) < 5000
    why = reason(place.inbox, "a")
    assert len(why) < 200_000
    assert "OSError: beginxxx" in why
    assert "characters left out" in why
    assert why.endswith("xxxend\n")


# --- when it stops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--drain", "--burst"])
def test_draining_an_empty_inbox_ends_at_once(place: Place, word: str) -> None:
    place.jobs("def job(key, value): note(key)")
    begun = time.monotonic()
    done = place.consume("--handler", "jobs:job", word)
    assert time.monotonic() - begun < 20  # it neither polls nor waits for the half-minute look
    assert "0 acknowledged" in done.stderr
    assert done.stdout == ""


def test_once_handles_one_and_leaves_the_rest(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    place.add("a", "b", "c")
    place.consume("--handler", "jobs:job", "--once")
    assert place.notes == ["a"]
    assert place.left() == {"pending": ["b", "c"]}
    place.consume("--handler", "jobs:job", "--once", "--concurrency", "2")
    assert place.notes == ["a", "b"]


def test_once_with_a_failure_ends_with_1(place: Place) -> None:
    place.jobs("def job(key, value): 1 / 0")
    place.add("a", "b")
    place.consume("--handler", "jobs:job", "--once", "--max-attempts", "1", status=1)
    assert place.left() == {"pending": ["b"], "failed": ["a"]}


def test_once_waits_for_the_first(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    with place.consumer("--handler", "jobs:job", "--once") as consumer:
        consumer.until_idle()
        place.add("a")
        consumer.end(0)
    assert place.notes == ["a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_takes_nothing_new(place: Place, number: signal.Signals) -> None:
    place.jobs("def job(key, value):\n    note('begin', key)\n    wait_for('go')\n    note('end', key)")
    place.add("a", "b", "c")
    with place.consumer("--handler", "jobs:job", "--concurrency", "2") as consumer:
        consumer.until(lambda: len(place.notes) == 2)
        consumer.signal(number)
        consumer.until(
            lambda: (
                f"{number.name}: waiting for 2 in flight; a second signal requeues at once" in consumer.log
            )
        )
        place.make("go")
        consumer.end(0)
    assert sorted(place.notes) == ["begin a", "begin b", "end a", "end b"]
    assert place.left() == {"pending": ["c"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_consumer_at_once(place: Place, number: signal.Signals) -> None:
    place.jobs("def job(key, value): note(key)")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until_idle()
        consumer.signal(number)
        consumer.end(0)
    assert "Traceback" not in consumer.log


def test_a_stop_by_signal_is_a_clean_end_even_if_something_failed_before(place: Place) -> None:
    place.jobs("def job(key, value): 1 / 0")
    place.add("a")
    with place.consumer("--handler", "jobs:job", "--max-attempts", "1") as consumer:
        consumer.until(lambda: place.left() == {"failed": ["a"]})
        consumer.signal(signal.SIGTERM)
        consumer.end(0)


@pytest.mark.parametrize("define", ["def", "async def"])
def test_a_second_signal_requeues_at_once_uncounted(place: Place, define: str) -> None:
    wait = "await asyncio.sleep(600)" if define == "async def" else "time.sleep(600)"
    place.jobs(f"import asyncio\n{define} job(element):\n    note(element.key, element.attempts)\n    {wait}")
    place.add("a", "b")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until(lambda: place.notes == ["a 1"])
        consumer.signal(signal.SIGTERM)
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        consumer.signal(signal.SIGINT)
        consumer.end(0)
        assert "requeued 1 at the second signal" in consumer.log
    assert place.left() == {"pending": ["a", "b"]}
    place.jobs("def job(element): note(element.key, element.attempts)")
    place.drain()
    assert place.notes == ["a 1", "a 1", "b 1"]


def test_two_signals_at_once_requeue_at_whatever_moment_they_come(place: Place) -> None:
    # Sent by the handler as it begins: the consumer is then busy looking for a second element, not asleep.
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    note(element.attempts)\n"
        "    time.sleep(element.value / 1000)\n"
        "    for number in (signal.SIGTERM, signal.SIGINT): os.kill(os.getpid(), number)\n"
        "    time.sleep(600)\n"
    )
    for round_ in range(5):
        place.add(a=round_)
        with place.consumer("--handler", "jobs:job", "--concurrency", "2") as consumer:
            consumer.end(0, patience=15)
        assert place.left() == {"pending": ["a"]}
    assert place.notes == ["1"] * 5


def test_a_second_consumer_is_refused_and_told_who_holds_the_inbox(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until_idle()
        done = place.drain(status=4)
        assert f"already has a consumer (pid {consumer.process.pid} on " in done.stderr
        assert "Traceback" not in done.stderr
        place.add("a")
        consumer.until(lambda: place.notes == ["a"])  # the first is none the worse for it


def test_a_standby_says_for_whom_it_stands_by_and_a_signal_ends_it(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    with Inbox(place.inbox) as active:
        active.become_consumer()
        with place.consumer("--handler", "jobs:job", "--standby") as standby:
            standby.until(lambda: f"standing by: pid {os.getpid()} on " in standby.log)
            standby.signal(signal.SIGTERM)
            standby.end(0)
        assert "stopped: 0 acknowledged" in standby.log
        active.add("a", 1)
        assert active.take() is not None  # it is none the worse for it


def test_consumers_of_shards_divide_the_keys_between_them(place: Place) -> None:
    place.jobs("def job(key, value): note(os.environ['WHO'], key)")
    keys = [f"k{number}" for number in range(12)]
    place.add(*keys)
    done: dict[str, list[str]] = {}
    for shard in ("1/2", "2/2"):
        place.consume("--handler", "jobs:job", "--drain", "--shard", shard, WHO=shard)
        done[shard] = [line.split()[1] for line in place.notes if line.startswith(shard)]
        assert done[shard] == [key for key in keys if key in done[shard]]  # in their order
    assert sorted(done["1/2"] + done["2/2"]) == sorted(keys)
    assert done["1/2"] and done["2/2"]
    assert place.left() == {}


def test_an_inbox_that_is_removed_ends_its_consumer(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    # With events it notices when it looks by itself, after half a minute: no event tells that an open folder
    # is gone.
    with place.consumer("--handler", "jobs:job", "--watch", "poll", "--poll-interval", "0.05") as consumer:
        place.add("a")
        consumer.until(lambda: place.notes == ["a"])
        shutil.rmtree(place.inbox)
        consumer.end(3)
        assert "was removed" in consumer.log
        assert "Traceback" not in consumer.log


def test_a_missing_inbox_is_created_and_consumed(tmp_path: Path) -> None:
    with Consumer("--exec", "cat {}", cwd=tmp_path) as consumer:
        consumer.until_idle()
        assert f"created inbox {tmp_path}/inbox" in consumer.log
        run("add", "k", "first", cwd=tmp_path)
        consumer.until(lambda: consumer.output == "first")


# --- several at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("define", ["def", "async def"])
def test_concurrency_runs_that_many_at_once_and_not_one_more(place: Place, define: str) -> None:
    pause = "await asyncio.sleep(0.005)" if define == "async def" else "time.sleep(0.005)"
    place.jobs(
        "import asyncio\n"
        f"{define} job(key, value):\n"
        "    note('begin', key)\n"
        "    while not Path('go').exists():\n"
        f"        {pause}\n"
        "    note('end', key)\n"
    )
    place.add(*"abcdefgh")
    with place.consumer("--handler", "jobs:job", "--concurrency", "4", "--drain") as consumer:
        consumer.until(lambda: len(place.notes) == 4)  # all four are inside at the same time
        time.sleep(0.1)
        assert sorted(place.notes) == ["begin a", "begin b", "begin c", "begin d"]
        assert len(keys_in(place.inbox, "inflight")) == 4
        place.make("go")
        consumer.end(0)
    running = most = 0
    for line in place.notes:
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 4
    assert sorted(line[4:] for line in place.notes if line.startswith("end")) == list("abcdefgh")


def test_never_two_of_one_key_at_once_and_never_an_older_value_after_a_newer(place: Place) -> None:
    place.jobs(
        "def job(key, value):\n    note('begin', key, value)\n    time.sleep(0.002)\n    note('end', key, "
        "value)\n"
    )
    with place.consumer("--handler", "jobs:job", "--concurrency", "4") as consumer:
        for value in range(150):
            place.add(a=value, b=value)
        consumer.until(lambda: {"end a 149", "end b 149"} <= set(place.notes))
        consumer.signal(signal.SIGTERM)
        consumer.end(0)
    for key in "ab":
        lines = [line.split() for line in place.notes if f" {key} " in line]
        assert [line[0] for line in lines] == ["begin", "end"] * (len(lines) // 2)
        values = [int(line[2]) for line in lines if line[0] == "begin"]
        assert values == sorted(
            values
        )  # the same one twice may be: its place was given up while it was being added
    assert place.left() == {}


# --- updates meanwhile --------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_an_update_during_the_run_is_neither_dropped_nor_run_beside_it(
    place: Place, concurrency: str
) -> None:
    place.jobs(
        "def job(key, value):\n    note('begin', value)\n    wait_for(f'go{value}')\n    note('end', value)"
    )
    place.add(k=1)
    with place.consumer("--handler", "jobs:job", "--concurrency", concurrency) as consumer:
        consumer.until(lambda: place.notes == ["begin 1"])
        place.add(k=2)
        time.sleep(0.1)
        assert place.notes == ["begin 1"]
        assert place.left() == {"pending": ["k"], "inflight": ["k"]}
        place.make("go1")
        consumer.until(lambda: place.notes == ["begin 1", "end 1", "begin 2"])
        place.make("go2")
        consumer.until(lambda: place.left() == {})
    assert place.notes == ["begin 1", "end 1", "begin 2", "end 2"]


def test_an_update_supersedes_a_failing_value_at_once(place: Place) -> None:
    place.jobs("def job(key, value):\n    note(value)\n    if value == 'old': raise OSError('broken')")
    place.add(k="old")
    with place.consumer("--handler", "jobs:job", "--retry-delay", "600") as consumer:
        consumer.until(lambda: place.left() == {"deferred": ["k"]})
        place.add(k="new")
        consumer.until(lambda: place.left() == {})
    assert place.notes == ["old", "new"]
    place.drain()
    assert place.notes == ["old", "new"]


def test_an_update_that_came_while_the_older_value_was_failing_drops_it(place: Place) -> None:
    place.jobs(
        "def job(key, value):\n    note(value)\n    if value == 'old':\n        wait_for('go')\n        "
        "raise OSError('broken')"
    )
    place.add(k="old")
    with place.consumer("--handler", "jobs:job", "--drain", "--retry-delay", "600") as consumer:
        consumer.until(lambda: place.notes == ["old"])
        place.add(k="new")
        place.make("go")
        consumer.end(0)
    assert place.notes == ["old", "new"]
    assert "1 acknowledged, 0 requeued, 1 dropped for a newer value, 0 failed" in consumer.log


def test_an_update_supersedes_a_value_at_its_last_attempt_too(place: Place) -> None:
    place.jobs(
        "def job(key, value):\n    note(value)\n    if value == 'old':\n        wait_for('go')\n        "
        "raise OSError('broken')"
    )
    place.add(k="old")
    with place.consumer("--handler", "jobs:job", "--drain", "--max-attempts", "1") as consumer:
        consumer.until(lambda: place.notes == ["old"])
        place.add(k="new")
        place.make("go")
        consumer.end(0)
    assert place.notes == ["old", "new"]
    assert place.left() == {}


def test_a_newer_value_starts_with_its_own_attempts(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.value, element.attempts)\n    raise OSError")
    place.add(k="old")
    for _ in range(2):
        place.consume("--handler", "jobs:job", "--once", "--retry-delay", "0.01")
    place.add(k="new")
    place.drain("--retry-delay", "0.01", "--max-attempts", "2", status=1)
    assert place.notes == ["old 1", "old 2", "new 1", "new 2"]


def test_a_running_handler_can_see_that_it_is_superseded_and_stop_early(place: Place) -> None:
    place.jobs(
        "def job(element):\n"
        "    note('begin', element.value, element.superseded())\n"
        "    if element.value == 1:\n"
        "        deadline = time.monotonic() + 60\n"
        "        while not element.superseded() and time.monotonic() < deadline: time.sleep(0.005)\n"
        "        note('superseded')\n"
    )
    place.add(k=1)
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until(lambda: place.notes == ["begin 1 False"])
        place.add(other=3)
        place.add(k=2)
        consumer.until(lambda: "begin 2 False" in place.notes)
    assert place.notes[:2] == ["begin 1 False", "superseded"]


# --- waking up ----------------------------------------------------------------------------------------


def test_an_idle_consumer_wakes_for_an_add_and_for_a_file_moved_into_drop(place: Place) -> None:
    place.jobs("def job(key, value): note(key, value)")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until_idle()
        begun = time.monotonic()
        for number in range(5):
            place.add(k=number)
            consumer.until(lambda count=2 * number + 1: len(place.notes) == count)
            (place.path / "ready").write_text(str(number))
            subprocess.run(["mv", "ready", "inbox/drop/report.json"], cwd=place.path, check=True)
            consumer.until(lambda count=2 * number + 2: len(place.notes) == count)
        assert time.monotonic() - begun < 25  # an idle consumer looks by itself every 30 seconds only
    assert place.notes == [f"{key} {number}" for number in range(5) for key in ("k", "report.json")]


def test_polling_notices_arrivals_too(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    with place.consumer("--handler", "jobs:job", "--watch", "poll", "--poll-interval", "0.05") as consumer:
        consumer.until(lambda: "consuming" in consumer.log)
        for number, key in enumerate("abc"):
            place.add(key)
            consumer.until(lambda count=number + 1: len(place.notes) == count)
        consumer.signal(signal.SIGTERM)
        consumer.end(0)
    assert place.notes == ["a", "b", "c"]


def test_settle_handles_a_burst_of_updates_once(place: Place) -> None:
    place.jobs("def job(key, value): note(value)")
    place.add(k=0)
    with place.consumer("--handler", "jobs:job", "--settle", "1.5", "--drain") as consumer:
        for value in range(1, 6):
            place.add(k=value)
            time.sleep(0.01)
        last = time.time()
        consumer.end(0)
    assert place.notes == ["5"]
    assert (place.path / "notes").stat().st_mtime - last > 1.3


def test_a_storm_of_updates_cannot_put_off_a_key_longer_than_max_settle(place: Place) -> None:
    place.jobs("def job(key, value): note(value)")
    with place.consumer("--handler", "jobs:job", "--settle", "3600", "--max-settle", "0.3") as consumer:

        def update() -> bool:
            place.add(k=time.time())
            return len(place.notes) >= 2

        consumer.until(update)


def test_drain_waits_for_a_file_in_drop_that_must_lie_still_first(place: Place) -> None:
    place.jobs("def job(key, value): note(key, value)")
    (place.inbox / "drop/copied").write_text("1")
    (place.inbox / "drop/draft.part").write_text("2")
    (place.inbox / "drop/.hidden").write_text("3")
    place.drain("--drop-settle", "0.3")
    assert place.notes == ["copied 1"]
    assert sorted(os.listdir(place.inbox / "drop")) == [".hidden", "draft.part"]


def test_what_is_no_element_is_set_aside_and_stops_nothing(place: Place) -> None:
    place.jobs("def job(key, value): note(key)")
    os.mkfifo(place.inbox / "drop/pipe")
    (place.inbox / "drop/folder").mkdir()
    (place.inbox / "drop/link").symlink_to("/etc/passwd")
    (place.inbox / "drop/large").write_bytes(b"1" * 101)
    (place.inbox / "pending/foreign").write_text("1")
    place.add("a")
    done = place.drain("--max-size", "100", status=1)
    assert "1 acknowledged, 0 requeued, 0 dropped for a newer value, 0 failed, 5 set aside" in done.stderr
    assert place.notes == ["a"]
    assert sorted(keys_in(place.inbox, "failed")) == ["folder", "foreign", "large", "link", "pipe"]
    for word in ("a FIFO", "a directory", "a symbolic link", "more than the limit of 100", "its name is not"):
        assert word in done.stderr


def test_what_is_set_aside_counts_whatever_becomes_of_the_log(place: Place) -> None:
    (place.inbox / "drop/a directory").mkdir()
    (place.path / "hushed.py").write_text(
        "import logging\nlogging.disable(logging.CRITICAL)\ndef work(key, value):\n    pass\n"
    )
    run("consume", "--handler", "hushed:work", "--drain", cwd=place.path, status=1)


def test_once_with_something_set_aside_ends_with_1(place: Place) -> None:
    (place.inbox / "drop/folder").mkdir()
    place.jobs("def job(key, value): pass")
    place.add("a")
    done = place.consume("--handler", "jobs:job", "--once", status=1)
    assert "1 set aside in failed/" in done.stderr
    assert json_lines(run("status", "--json", cwd=place.path).stdout)[0]["failed"] == 1


# --- deaths -------------------------------------------------------------------------------------------


def test_a_payload_that_kills_its_consumer_each_time_ends_in_failed_and_the_rest_is_handled(
    place: Place,
) -> None:
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    note(element.key, element.attempts)\n"
        "    if element.value == 'poison': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place.add(a=1, bad="poison", z=2)
    place.drain_through_deaths("--handler", "jobs:job", "--max-attempts", "3", deaths=3, status=1)
    assert place.notes == ["a 1", "bad 1", "bad 2", "bad 3", "z 1"]
    assert place.left() == {"failed": ["bad"]}
    assert "a consumer died 3 times while it was in flight" in reason(place.inbox, "bad")


def test_one_poison_among_many_in_flight_at_once_takes_no_innocent_with_it(place: Place) -> None:
    place.jobs(
        "import signal\n"
        "def job(element):\n"
        "    if element.value == 'poison':\n"
        "        # The first time it strikes when three others are out, later when it is alone.\n"
        "        while element.attempts == 1 and len(os.listdir('inbox/inflight')) < 4: time.sleep(0.005)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    wait_for('died')\n"
        "    note(element.key)\n"
    )
    place.add(a=1, b=2, bad="poison", c=3, d=4, e=5)
    words = ("--handler", "jobs:job", "--max-attempts", "2", "--concurrency", "4")
    with place.consumer("--drain", *words) as consumer:
        consumer.end(-signal.SIGKILL)
    assert sorted(place.left()["inflight"]) == ["a", "b", "bad", "c"]
    place.make("died")
    place.drain_through_deaths(*words, deaths=1, status=1)
    assert place.left() == {"failed": ["bad"]}
    assert (
        "a consumer died 2 times while it was in flight, the last time with nothing else in flight"
        in reason(place.inbox, "bad")
    )
    assert sorted(place.notes) == ["a", "b", "c", "d", "e"]


def test_suspects_run_alone(place: Place) -> None:
    place.jobs(
        "def job(element):\n"
        "    note('begin', element.key, element.attempts, element.suspect)\n"
        "    if element.attempts == 1 and not element.suspect: wait_for('go')\n"
        "    time.sleep(0.01)\n"
        "    note('end', element.key)\n"
    )
    place.add("a", "b", "c")
    words = ("--handler", "jobs:job", "--concurrency", "3", "--drain")
    with place.consumer(*words) as consumer:
        consumer.until(lambda: len(place.notes) == 3)
        consumer.process.kill()
        consumer.end(-signal.SIGKILL)
    place.add("d")
    place.make("go")
    (place.path / "notes").unlink()
    place.consume(*words)
    assert place.notes == [
        "begin a 2 True",
        "end a",
        "begin b 2 True",
        "end b",
        "begin c 2 True",
        "end c",
        "begin d 1 False",
        "end d",
    ]


def test_an_innocent_that_was_out_when_the_consumer_died_once_is_handled_next(place: Place) -> None:
    place.jobs("def job(element):\n    note(element.attempts)\n    if element.attempts == 1: time.sleep(600)")
    place.add("a")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until(lambda: place.notes == ["1"])
        consumer.process.kill()
        consumer.end(-signal.SIGKILL)
    assert place.left() == {"inflight": ["a"]}
    done = place.drain()
    assert place.notes == ["1", "2"]
    assert "a consumer died with key 'a' in flight: requeued" in done.stderr


def test_what_a_dead_consumer_held_is_dropped_for_a_newer_value(place: Place) -> None:
    place.jobs("def job(key, value):\n    note(value)\n    if value == 'old': time.sleep(600)")
    place.add(k="old")
    with place.consumer("--handler", "jobs:job") as consumer:
        consumer.until(lambda: place.notes == ["old"])
        place.add(k="new")
        consumer.process.kill()
        consumer.end(-signal.SIGKILL)
    place.drain()
    assert place.notes == ["old", "new"]
    assert place.left() == {}


# --- the terminal -------------------------------------------------------------------------------------


def on_terminal(place: Place, *words: str) -> str:
    """Run a consumer whose standard error is a terminal; return what appears there. It must end with 0."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("consume", *words),
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment(),
    )
    os.close(theirs)
    screen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # EIO: nobody has the other end any more
            break
        if not piece:
            break
        screen += piece
    os.close(ours)
    assert process.wait(PATIENCE) == 0, screen
    return screen.decode()


def test_draining_on_a_terminal_shows_progress(place: Place) -> None:
    place.jobs("def job(key, value): time.sleep(0.02)")
    place.add(*"abcdefgh")
    screen = on_terminal(place, "--handler", "jobs:job", "--drain", "--quiet")
    assert "draining" in screen
    assert "8/8" in screen


def test_without_a_terminal_there_is_no_progress_bar(place: Place) -> None:
    place.jobs("def job(key, value): pass")
    place.add("a")
    assert "draining" not in place.drain().stderr


# --- --exec -------------------------------------------------------------------------------------------


def test_exec_gives_the_payload_on_standard_input_and_as_a_path(place: Place) -> None:
    payload = bytes(range(256)) * 300
    (place.path / "payload").write_bytes(payload)
    run("add", "k", "--file", "payload", cwd=place.path)
    place.consume("--exec", "cp {} by-path", "--once")
    run("add", "k", "--file", "payload", cwd=place.path)
    place.consume("--exec", "dd of=by-stdin", "--once")
    assert (place.path / "by-path").read_bytes() == payload
    assert (place.path / "by-stdin").read_bytes() == payload
    assert place.left() == {}


def test_exec_replaces_braces_inside_a_word_and_more_than_once(place: Place) -> None:
    place.add("k")
    done = place.consume("--exec", "printf '%s\\n' --in={} 'a b' {}", "--drain", "--quiet")
    first, middle, last = done.stdout.splitlines()
    assert middle == "a b"
    assert first == "--in=" + last
    assert last.startswith(f"{place.inbox}/inflight/")


def test_exec_gives_key_and_place_in_the_environment(place: Place) -> None:
    place.add("ä b/c")
    done = place.consume("--exec", "env", "--drain", "--quiet", GIVEN_BEFORE="kept")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert found["FSINBOX_KEY"] == "ä b/c"
    assert found["FSINBOX_ATTEMPTS"] == "1"
    assert found["FSINBOX_DIR"] == str(place.inbox)
    assert found["FSINBOX_PATH"].startswith(f"{place.inbox}/inflight/{found['FSINBOX_SEQ']}-")
    assert found["GIVEN_BEFORE"] == "kept"


def test_in_a_command_every_form_of_add_means_the_same_inbox(tmp_path: Path) -> None:
    run("--inbox", "spool", "add", "--create", "first", "1", cwd=tmp_path)
    add = " ".join(map(str, command("add")))
    run(
        "--inbox",
        "spool",
        "consume",
        "--exec",
        f"{add} second 2; {add} --durable third 3",
        "--shell",
        "--once",
        cwd=tmp_path,
    )
    places = [folder for folder in tmp_path.iterdir() if contents(folder)]
    assert [list(contents(folder)) for folder in places] == [["second", "third"]]


def test_a_key_cannot_make_a_shell_do_anything(place: Place) -> None:
    evil = "$(touch hacked); `touch hacked` 'q' \" & > hacked"
    place.add(evil)
    done = place.consume("--exec", "printenv FSINBOX_KEY", "--once", "--quiet")
    assert done.stdout == evil + "\n"
    place.add(evil)
    done = place.consume("--exec", "cat {} && printenv FSINBOX_KEY", "--shell", "--once", "--quiet")
    assert done.stdout == "0" + evil + "\n"
    assert not (place.path / "hacked").exists()


def test_no_shell_unless_asked(place: Place) -> None:
    place.add("k")
    line = "echo $HOME | cat > out; '{}'"
    done = place.consume("--exec", line, "--drain", "--quiet", status=2)
    assert "has shell syntax ('$H'), but no shell runs it: add --shell" in done.stderr
    assert place.left() == {"pending": ["k"]}
    done = place.consume("--exec", line, "--no-shell", "--drain", "--quiet")
    assert done.stdout.startswith("$HOME | cat > out; /")
    assert not (place.path / "out").exists()


def test_shell_understands_pipes_and_quotes(place: Place) -> None:
    with Inbox(place.inbox, codec="text") as inbox:
        inbox.add("it's", "b\na\n")
    done = place.consume(
        "--exec", "sort {} | tr '\\n' \"-\" >&2; cat | wc -l", "--shell", "--drain", "--quiet"
    )
    assert done.stderr == "" or done.stderr == "a-b-"
    assert "a-b-" in done.stdout + done.stderr
    assert "2" in done.stdout


def test_shell_quotes_the_path(tmp_path: Path) -> None:
    spaced = tmp_path / "it's a $(touch hacked) place"
    spaced.mkdir()
    place = Place(spaced)
    place.add("k")
    assert place.consume("--exec", "cat {}; cat <{}", "--shell", "--drain", "--quiet").stdout == "00"
    assert not (spaced / "hacked").exists()


STATUSES = {
    "0": ("acknowledged", 1),
    "1": ("failed", 2),
    "64": ("failed", 1),
    "65": ("failed", 1),
    "78": ("failed", 1),
    "70": ("failed", 2),
    "255": ("failed", 2),
}


@pytest.mark.parametrize("status", STATUSES)
def test_an_exit_status_says_what_becomes_of_the_element(place: Place, status: str) -> None:
    outcome, tries = STATUSES[status]
    place.add("k")
    line = f"echo run >>notes; echo told; exit {status}"
    words = ("--exec", line, "--shell", "--drain", "--max-attempts", "2", "--retry-delay", "0.01")
    place.consume(*words, status=1 if outcome == "failed" else 0)
    assert place.notes == ["run"] * tries
    assert place.left() == ({"failed": ["k"]} if outcome == "failed" else {})
    if outcome == "failed":
        assert f"exited with {status}" in reason(place.inbox, "k")
        assert "told" in reason(place.inbox, "k")


def test_exit_status_75_is_tried_again_and_never_counted(place: Place) -> None:
    place.add("k")
    line = "echo $FSINBOX_ATTEMPTS >>notes; test -e ready || exit 75"
    with place.consumer(
        "--exec", line, "--shell", "--drain", "--max-attempts", "1", "--retry-delay", "0.01"
    ) as consumer:
        consumer.until(lambda: len(place.notes) >= 3)
        place.make("ready")
        consumer.end(0)
    assert set(place.notes) == {"1"}
    assert place.left() == {}


def test_a_command_that_is_killed_is_a_failed_attempt(place: Place) -> None:
    place.add("k")
    words = (
        "--exec",
        "echo run >>notes; kill -SEGV $$",
        "--shell",
        "--drain",
        "--max-attempts",
        "2",
        "--retry-delay",
        "0.01",
    )
    place.consume(*words, status=1)
    assert place.notes == ["run", "run"]
    assert "was killed by SIGSEGV" in reason(place.inbox, "k")


def test_only_the_end_of_a_long_output_is_kept_but_all_of_it_goes_through(place: Place) -> None:
    place.add("k")
    line = "echo the-beginning; head -c 200000 /dev/zero | tr '\\0' x; echo; echo the-end >&2; exit 65"
    done = place.consume("--exec", line, "--shell", "--drain", "--quiet", status=1)
    why = reason(place.inbox, "k")
    assert why.endswith("the-end\n")
    assert "\nthe-beginning" not in why
    assert why.count("x") in range(64 * 1024 - 100, 64 * 1024 + 100)
    assert done.stdout.startswith("the-beginning\n")
    assert done.stdout.count("x") == 200_000


def test_output_that_is_no_text_is_kept_readable(place: Place) -> None:
    place.add("k")
    place.consume("--exec", "printf 'a\\377b'; exit 64", "--shell", "--drain", status=1)
    assert "a\ufffdb" in reason(place.inbox, "k")


def test_a_command_that_does_not_exist_is_a_usage_error(place: Place) -> None:
    place.add("k")
    done = place.consume("--exec", "surely-no-such-command {}", "--drain", status=2)
    assert "there is no command 'surely-no-such-command'" in done.stderr
    for nothing in ("", "   "):
        assert "needs a command" in place.consume("--exec", nothing, "--drain", status=2).stderr
    assert "cannot be split into words" in place.consume("--exec", "echo 'open", "--drain", status=2).stderr
    assert place.left() == {"pending": ["k"]}


def test_a_command_that_reads_nothing_of_a_large_payload_is_no_failure(place: Place) -> None:
    with Inbox(place.inbox, codec="bytes") as inbox:
        inbox.add("k", b"x" * 1_000_000)
    place.consume("--exec", "true", "--drain")
    assert place.left() == {}


def test_exec_runs_several_at_once(place: Place) -> None:
    place.add(*"abcd")
    # Each waits until all four have begun.
    line = "touch begun-$FSINBOX_KEY; while [ $(ls begun-* | wc -l) -lt 4 ]; do sleep 0.01; done"
    place.consume("--exec", line, "--shell", "--drain", "--concurrency", "4")
    assert place.left() == {}


def test_ctrl_c_lets_the_running_command_finish(place: Place) -> None:
    place.add("a", "b")
    line = "echo begin >>notes; while [ ! -e go ]; do sleep 0.01; done; echo end >>notes"
    with place.consumer("--exec", line, "--shell") as consumer:
        consumer.until(lambda: place.notes == ["begin"])
        os.killpg(consumer.process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
        consumer.until(lambda: "SIGINT: waiting for 1 in flight" in consumer.log)
        place.make("go")
        consumer.end(0)
    assert place.notes == ["begin", "end"]
    assert place.left() == {"pending": ["b"]}


def gone(pid: int) -> bool:
    """Tell whether a process has ended (one that nobody waited for counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_second_signal_ends_the_running_command_and_gives_back_uncounted(place: Place) -> None:
    place.add("k")
    # With a child of its own, and deaf to SIGTERM.
    line = "trap '' TERM; sleep 600 & echo $$ $! >>notes; wait; sleep 600"
    with place.consumer("--exec", line, "--shell") as consumer:
        consumer.until(lambda: len(place.notes) == 1)
        consumer.signal(signal.SIGINT)
        consumer.until(lambda: "waiting for 1 in flight" in consumer.log)
        consumer.signal(signal.SIGINT)
        consumer.end(0)
    for pid in place.notes[0].split():
        wait_until(lambda pid=pid: gone(int(pid)), f"for {pid} to end")
    assert place.left() == {"pending": ["k"]}
    assert place.consume("--exec", "printenv FSINBOX_ATTEMPTS", "--drain", "--quiet").stdout == "1\n"


@pytest.mark.skipif(
    not shutil.which("setpriv"), reason="setpriv(1) is what has commands die with their consumer"
)
def test_a_killed_consumer_takes_its_running_command_with_it(place: Place) -> None:
    place.add("k")
    (place.path / "work").write_text("#!/bin/sh\necho $$ >>notes\nexec sleep 600\n")
    (place.path / "work").chmod(0o755)
    with place.consumer("--exec", "./work {}") as consumer:
        consumer.until(lambda: len(place.notes) == 1)
        consumer.process.kill()
        consumer.end(-signal.SIGKILL)
    wait_until(lambda: gone(int(place.notes[0])), "for the command to end")


def test_a_child_that_a_command_leaves_behind_does_not_hold_up_the_consumer(place: Place) -> None:
    place.add("a", "b")
    line = "sleep 600 & echo $! >>notes; echo said"
    try:
        done = place.consumer("--exec", line, "--shell", "--drain")
        with done as consumer:
            consumer.end(0)
            assert consumer.output.count("said") == 2
        assert place.left() == {}
    finally:
        for pid in place.notes:
            os.kill(int(pid), signal.SIGKILL)


def test_a_command_may_move_its_payload_away_and_fail(place: Place) -> None:
    place.add("a", "b")
    line = 'mv {} "moved-$FSINBOX_KEY"; echo $FSINBOX_KEY >>notes; test $FSINBOX_KEY != a'
    done = place.consume("--exec", line, "--shell", "--drain", "--retry-delay", "0.01", status=1)
    assert "Traceback" not in done.stderr
    assert "its payload was removed meanwhile" in done.stderr
    assert place.notes == ["a", "b"]
    assert place.left() == {}


def test_attempts_are_counted_over_restarts_for_commands_too(place: Place) -> None:
    place.add("k")
    for _ in range(3):
        place.consume(
            "--exec", "echo $FSINBOX_ATTEMPTS >>notes; exit 1", "--shell", "--once", "--retry-delay", "0.01"
        )
    assert place.notes == ["1", "2", "3"]
    (row,) = json_lines(run("ls", "--json", cwd=place.path).stdout)
    assert (row["state"], row["key"]) == ("deferred", "k")
    assert contents(place.inbox, "pending") == {}
