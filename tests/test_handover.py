"""examples/handover against real servers, while the consumer, the listener and the server are killed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from engines import ENGINES, Engine, Nats, Redis
from helpers import Consumer, environment, reason, wait_until
from helpers import run as run_command

from fsinbox import Element, Inbox
from tests.usual import drain, take

HANDOVER = Path(__file__).parent.parent / "examples/handover"
RETRIES = ("--max-attempts", "0", "--retry-delay", "0.1", "--max-retry-delay", "0.5")


def installed(name: str) -> Engine:
    """Return a server, which is not started; skip where it, or its client, is not installed."""
    engine = ENGINES[name]
    pytest.importorskip({"postgres": "psycopg"}.get(name, name), reason="pip install 'fsinbox[handover]'")
    if not engine.program():
        pytest.skip(f"{engine.package} is not installed")
    return engine()


@pytest.fixture(scope="module", params=sorted(ENGINES))
def server(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with installed(request.param) as engine:
        engine.start()
        yield engine


@pytest.fixture
def engine(server: Engine) -> Engine:
    """A server that has nothing."""
    server.clear()
    return server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(HANDOVER, tmp_path / "handover", ignore=shutil.ignore_patterns("__pycache__"))
    )


def handler(engine: Engine) -> tuple[str, ...]:
    return ("--handler", f"to_{engine.name}:move", "--batch", "50", *RETRIES)


def hand_over(engine: Engine, folder: Path, *more: str, status: int = 0) -> None:
    """Run the handler until the inbox is empty."""
    run_command("consume", "--drain", *handler(engine), *more, cwd=folder, status=status, **engine.variables)


class Kept:
    """A process that is started again whenever it has ended, as a service manager does it."""

    def __init__(self, words: list[Any], folder: Path, variables: dict[str, str]) -> None:
        self.log = folder / f"{Path(str(words[1])).stem}{len(words)}.log"
        with self.log.open("ab") as log:
            self._start = partial(
                subprocess.Popen,
                [str(word) for word in words],
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=os.dup(log.fileno()),
                stderr=subprocess.STDOUT,
            )
        self.process = self._start()

    def keep(self) -> None:
        if self.process.poll() is not None:
            self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def listener(engine: Engine, folder: Path) -> Kept:
    return Kept([sys.executable, f"from_{engine.name}.py", "back"], folder, engine.variables)


# --- the way there ------------------------------------------------------------------------------------


def test_the_newest_of_each_key_is_there_byte_by_byte(engine: Engine, folder: Path) -> None:
    values = {
        "plain": bytes(range(256)),
        "empty": b"",
        "a b.c..d*>.e/f\n%41$": b"1",
        ".é☃": b"2",
        "large": os.urandom(900_000),
    }
    if engine.name != "postgres":
        values |= {"nul\0": b"3", os.fsdecode(b"\xff\xfe"): b"4"}
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        for value in (b"old", b"older"):
            inbox.add_many((key, value) for key in values)
            hand_over(engine, folder)
        assert engine.contents() == dict.fromkeys(values, b"older")
        inbox.add_many((key, b"replaced while it waited") for key in values)
        inbox.add_many(values.items())
    hand_over(engine, folder)
    assert engine.contents() == values


def test_what_was_handed_over_twice_is_there_once(engine: Engine, folder: Path) -> None:
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add("k", b"1")
        call(
            engine, load(engine, folder), [take(inbox)]
        )  # as a consumer that dies between the commit and its ack
    hand_over(engine, folder)
    assert engine.contents() == {"k": b"1"}


def test_a_newer_value_at_the_place_of_one_that_was_handed_over_and_requeued_arrives(
    engine: Engine, folder: Path
) -> None:
    """Both have the same number: an engine that is asked to ignore what it has by number would lose it."""
    module = load(engine, folder)
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add("k", b"1")
        first = take(inbox)
        call(engine, module, [first])
        first.nack()
        inbox.add("k", b"2")
        second = take(inbox)
        assert second.seq == first.seq
        call(engine, module, [second])
    assert engine.contents() == {"k": b"2"}


def test_what_a_dead_consumer_has_sent_does_not_arrive_after_what_its_successor_sends(
    engine: Engine, folder: Path
) -> None:
    dead, alive = load(engine, folder), load(engine, folder)
    with Inbox(folder / "inbox", codec="bytes", max_inflight=2) as inbox:
        inbox.add("k", b"1")
        first = take(inbox)
        late = delayed(engine, dead, first)
        first.nack()
        inbox.add("k", b"2")
        call(engine, alive, [take(inbox)])
        with pytest.raises(Exception, match=r"claimed|wrong last sequence"):
            late()
        assert engine.contents() == {"k": b"2"}
        inbox.add("other", b"3")  # and who is refused by mistake claims it again
        other = take(inbox)
        if not isinstance(engine, Nats):
            with pytest.raises(Exception, match="claimed"):
                call(engine, dead, [other])
        call(engine, dead, [other])
        assert engine.contents() == {"k": b"2", "other": b"3"}


loop = asyncio.new_event_loop()
"""Where the coroutines of to_nats.py run, as they do in a consumer."""


def load(engine: Engine, folder: Path) -> Any:
    """Return a handler's module, each time anew, as a process of its own would have it."""
    spec = importlib.util.spec_from_file_location(f"to_{engine.name}", folder / f"to_{engine.name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(engine: Engine, module: Any, elements: list[Element]) -> None:
    """Call a handler."""
    with variables(engine):
        result = module.move(elements)
        if result:
            loop.run_until_complete(result)


@contextmanager
def variables(engine: Engine) -> Iterator[None]:
    """What a client is told by its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine.variables.items():
            patch.setenv(name, value)
        yield


def delayed(engine: Engine, module: Any, element: Element) -> Callable[[], Any]:
    """Have a handler begin with an element; return what sends it."""
    with variables(engine):
        if isinstance(engine, Nats):
            run = loop.run_until_complete
            client = run(module.connect())
            last = run(client.jetstream().stream_info(module.STREAM)).state.last_seq
            name, payload = module.subject(element.key), element.data
            return lambda: run(module.put(client.jetstream(), last, [(name, payload)]))
        module.engines.append(module.Engine())
    key = os.fsencode(element.key) if isinstance(engine, Redis) else element.key
    return partial(module.engines[0].put, [(key, element.data)])


def test_an_outage_costs_time_and_nothing_else(folder: Path, server: Engine) -> None:
    with installed(server.name) as engine, Inbox(folder / "inbox", codec="bytes") as inbox:
        values = {f"key-{number}": str(number).encode() for number in range(200)}
        inbox.add_many(values.items())
        with Consumer(
            *handler(engine), "--breaker", "3", "--log-format", "json", cwd=folder, **engine.variables
        ) as consumer:
            consumer.until(lambda: '"slowed"' in consumer.log, "for the circuit breaker")
            assert len(os.listdir(folder / "inbox/pending")) > 140  # it does not burn everybody's attempts
            engine.start()
            consumer.until(lambda: engine.contents() == values)
            consumer.until(lambda: not len(inbox))
            assert os.listdir(folder / "inbox/failed") == []


@pytest.mark.parametrize(
    ("server", "key", "value", "why"),
    [
        ("postgres", "nul\0", b"1", "cannot contain NUL"),
        ("nats", "large", bytes(2_000_000), "takes no payload of this size"),
    ],
    indirect=["server"],
)
def test_what_an_engine_never_takes_is_in_failed_and_the_rest_is_not(
    engine: Engine, folder: Path, key: str, value: bytes, why: str
) -> None:
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add("first", b"1")
        inbox.add(key, value)
        inbox.add("last", b"2")
    hand_over(engine, folder, status=1)
    assert engine.contents() == {"first": b"1", "last": b"2"}
    assert why in reason(folder / "inbox", key.replace("\0", "%00"))


@pytest.mark.parametrize("server", ["redis"], indirect=True)
def test_a_redis_that_forgets_what_it_has_confirmed_is_refused(engine: Engine, folder: Path) -> None:
    assert isinstance(engine, Redis)
    module, db = load(engine, folder), engine.connect()
    with Inbox(folder / "inbox", codec="bytes") as inbox:
        inbox.add("k", b"1")
        element = take(inbox)
        db.config_set("appendfsync", "everysec")
        try:
            with pytest.raises(RuntimeError, match="forgets"):
                call(engine, module, [element])
        finally:
            db.config_set("appendfsync", "always")
        call(engine, module, [element])
        assert engine.contents() == {"k": b"1"}


# --- the way back -------------------------------------------------------------------------------------


def test_the_listener_looks_at_start_and_then_listens(engine: Engine, folder: Path) -> None:
    with (
        Inbox(folder / "inbox", codec="bytes") as inbox,
        Inbox(folder / "back", codec="bytes") as back,
    ):
        inbox.add_many([("a/b .c", b"\0\xff"), ("k", b"1")])
        hand_over(engine, folder)
        with listener(engine, folder):
            for key, value in (("a/b .c", b"\0\xff"), ("k", b"1")):
                element = take(back, 30)
                assert (element.key, element.value) == (key, value)
                element.ack()
            inbox.add("k", b"2")
            hand_over(engine, folder)
            assert take(back, 30).value == b"2"
            if engine.name != "nats":  # which keeps the last of each subject
                wait_until(lambda: engine.contents() == {})


def test_a_listener_whose_connection_breaks_ends(engine: Engine, folder: Path) -> None:
    """It must not go on with another: what was sent to it on the first, and lost, comes only at a start."""
    with (
        Inbox(folder / "inbox", codec="bytes") as inbox,
        Inbox(folder / "back", codec="bytes") as back,
    ):
        inbox.add("k", b"1")
        hand_over(engine, folder)
        with listener(engine, folder) as service:
            take(back, 30).ack()
            if isinstance(engine, Redis):  # which is there again at once
                engine.connect().client_kill_filter(_type="normal", skipme=True)
            else:
                engine.kill()
                engine.start()
            wait_until(lambda: service.process.poll() is not None, "for its end")
            assert service.process.returncode == 1


def unacknowledged(engine: Engine) -> int:
    """Return how many values an engine has of which it was not told that the inbox has them."""
    if isinstance(engine, Redis):
        return int(engine.connect().xpending("{handover}:stream", "fsinbox")["pending"])
    if isinstance(engine, Nats):
        info = engine.ask(lambda jetstream: jetstream.consumer_info("handover", "fsinbox"))
        return int(info.num_ack_pending + info.num_pending)
    return len(engine.contents())


def test_what_the_inbox_refuses_stays_with_the_engine(engine: Engine, folder: Path) -> None:
    with (
        Inbox(folder / "inbox", codec="bytes") as inbox,
        Inbox(folder / "back", codec="bytes") as back,
    ):
        inbox.add_many([("one", b"1"), ("two", b"2")])
        hand_over(engine, folder)
        back.add("before", b"0")
        run_command("--inbox", "back", "limit", "--max-waiting", "1", cwd=folder)
        with listener(engine, folder) as service:
            wait_until(lambda: service.process.poll() is not None, "for the listener's end")
            assert service.process.returncode == 1 and "InboxFull" in service.log.read_text()
        assert unacknowledged(engine) == 2
        run_command("--inbox", "back", "limit", "--max-waiting", "0", cwd=folder)
        with listener(engine, folder):
            wait_until(lambda: unacknowledged(engine) == 0)
        assert drain(back) == [("before", b"0"), ("one", b"1"), ("two", b"2")]


@pytest.mark.storm
def test_nothing_is_missed_and_nothing_older_comes_after_a_newer_value(
    engine: Engine, folder: Path, figure: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    """Producers > inbox > consumer > engine > listener > inbox; all that is between is killed."""
    seconds, chance = 120.0 if request.config.getoption("--long") else 8.0, random.Random(1)
    history: dict[str, list[int]] = {}
    last: dict[str, int] = {}
    stop, done, turn = threading.Event(), threading.Event(), threading.Lock()

    def produce(number: int) -> None:
        with Inbox(folder / "inbox", codec="bytes", durable=False) as inbox:
            while not stop.wait(0.004):
                shared = random.random() < 0.2
                key = "shared" if shared else f"key-{number}-{random.randrange(4)}"
                with turn if shared else nullcontext():
                    last[key] = last.get(key, 0) + 1
                    inbox.add(key, str(last[key]).encode())

    def collect() -> None:
        with Inbox(folder / "back", codec="bytes", durable=False) as back:
            while not done.is_set():
                if element := back.take(timeout=0.1):
                    history.setdefault(element.key, []).append(int(element.value))
                    element.ack()

    consume = [sys.executable, "-m", "fsinbox", "consume", *handler(engine), "--breaker", "0", "--standby"]
    threads = [threading.Thread(target=produce, args=(number,)) for number in range(3)]
    collector = threading.Thread(target=collect)
    kills = dict.fromkeys(("consumer", "listener", "server"), 0)
    with Kept(consume, folder, engine.variables) as consumer, listener(engine, folder) as back:
        for thread in (*threads, collector):
            thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end or min(kills.values()) < 2:
                time.sleep(chance.uniform(0.1, 0.8))
                victim = chance.choice(list(kills))
                kills[victim] += 1
                if victim == "server":
                    engine.kill()
                    time.sleep(chance.uniform(0, 0.3))
                    engine.start()
                else:
                    {"consumer": consumer, "listener": back}[victim].kill()
                consumer.keep()
                back.keep()
            stop.set()
            for thread in threads:
                thread.join()

            def arrived() -> bool:
                consumer.keep()
                back.keep()
                return {key: values[-1] for key, values in history.items()} == last

            wait_until(arrived, f"for the newest of each key: {last}")
        finally:
            stop.set()
            done.set()
            collector.join()
    assert len(last) == 13
    killed = ", ".join(f"{count} of the {name}" for name, count in kills.items())
    came = sum(map(len, history.values()))
    figure(f"{engine.name}: {sum(last.values())} adds, {came} came back; kills: {killed}; 0 bad")
    for key, values in history.items():
        assert values == sorted(values), f"older after newer: {key} {values}"
    if engine.name != "nats":
        assert engine.contents() == {}
    with Inbox(folder / "inbox") as inbox:
        assert drain(inbox) == [] and os.listdir(folder / "inbox/failed") == []


# --- wrong variants -----------------------------------------------------------------------------------

LATE = test_what_a_dead_consumer_has_sent_does_not_arrive_after_what_its_successor_sends
REFUSED = test_what_the_inbox_refuses_stays_with_the_engine
ADD = "inbox.add_many("
WRONG = {
    "postgres": [
        ("to_postgres.py", "if not self.db.execute(HELD,", "if 0 and (HELD,", LATE),
        ("from_postgres.py", "with db.transaction():", "if True:", REFUSED),
    ],
    "redis": [
        ("to_redis.py", "~= ARGV[1]", "== 'never'", LATE),
        ("from_redis.py", ADD, f"db.xack(STREAM, GROUP, *[place for place, _ in entries]), {ADD}", REFUSED),
    ],
    "nats": [
        ("to_nats.py", "Nats-Expected-Last-Sequence", "Any-Sequence", LATE),
        ("from_nats.py", ADD, f"[await message.ack() for message in messages], {ADD}", REFUSED),
    ],
}
"""Without the claim; and acknowledged to the engine before it is in the inbox."""


def test_each_wrong_variant_is_found(engine: Engine, tmp_path: Path) -> None:
    for file, right, wrong, check in WRONG[engine.name]:
        engine.clear()
        folder = Path(shutil.copytree(HANDOVER, tmp_path / file))
        source = folder / file
        assert source.read_text().count(right) == 1
        source.write_text(source.read_text().replace(right, wrong))
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(engine, folder)
