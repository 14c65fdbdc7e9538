"""AsyncInbox: the same queue for an asyncio program, whose event loop goes on and whose cancelled takes lose
nothing."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from helpers import PATIENCE, command, contents, environment, keys_in, run

from fsinbox import AsyncElement, AsyncInbox, Element, Inbox, InboxBusy, InvalidKey, WrongState
from fsinbox.aio import ADDS_AT_ONCE


async def soon(what: object) -> Element | None:
    """Await a take that must end well before an idle consumer would look by itself (30 s)."""
    async with asyncio.timeout(20):
        return await what  # type: ignore[misc, no-any-return]


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """While this lasts, the event loop notes the time whenever it gets to it, at least every few
    milliseconds."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.002)

    task = asyncio.create_task(beat())
    try:
        yield beats
    finally:
        task.cancel()


def test_the_example_of_the_readme_holds_for_asyncio(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            assert await inbox.add("a", {"a": 1}) == "new"
            assert await inbox.add("b", {"b": 2}) == "new"
            assert await inbox.add("a", {"a": 3}) == "replaced"
            element = await inbox.take()
            assert element
            key, value = element
            assert (key, value) == ("a", {"a": 3})
            with pytest.raises(WrongState, match="an element is in flight"):
                await inbox.take()
            assert await inbox.add("a", {"a": 4}) == "behind"
            await inbox.commit()
            element = await inbox.take()
            assert element
            assert tuple(element) == ("b", {"b": 2})
            assert await inbox.rollback()
            element = await inbox.take()
            assert element
            assert (element.key, element.attempts) == ("b", 2)
            await inbox.ack(element)
            element = await inbox.take()
            assert element
            assert tuple(element) == ("a", {"a": 4})
            await inbox.commit()
            assert await inbox.take() is None

    asyncio.run(main())


def test_nack_fail_and_the_elements_own_methods(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir, codec="text") as inbox:
            for key in ("later", "bad", "direct"):
                await inbox.add(key, key)
            element = await inbox.take()
            assert element
            assert await inbox.nack(element, delay=3600)
            element = await inbox.take()
            assert element
            assert await inbox.fail(element, "no good")
            element = await inbox.take()
            assert element
            await element.ack()
            with pytest.raises(WrongState):
                await inbox.ack(element)
            with pytest.raises(WrongState):
                await inbox.commit()
            with pytest.raises(InvalidKey):
                await inbox.add("", "x")

    asyncio.run(main())
    assert keys_in(inbox_dir, "deferred") == ["later"]
    assert keys_in(inbox_dir, "failed") == ["bad"]
    assert keys_in(inbox_dir, "pending") == []


def test_add_many_and_add_file(inbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12")
    progress: list[int] = []

    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            items = [(f"k{number % 10}", number) for number in range(30)]
            assert await inbox.add_many(items, progress=progress.append) == {
                "new": 10,
                "replaced": 20,
                "behind": 0,
            }
            assert await inbox.add_file("k3", tmp_path / "f", move=True) == "replaced"

    asyncio.run(main())
    assert progress == [30]
    assert not (tmp_path / "f").exists()
    assert contents(inbox_dir) == {f"k{n}": b"12" if n == 3 else str(20 + n).encode() for n in range(10)}


def test_adds_that_wait_for_room_do_not_hold_up_what_makes_room(inbox_dir: Path) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with AsyncInbox(inbox_dir) as inbox:
            inbox.inbox.limit(max_waiting=4)
            adds = [asyncio.create_task(inbox.add(f"k{number}", number, timeout=30)) for number in range(8)]
            for _ in adds:
                element = await soon(inbox.take(timeout=None))
                assert element
                await inbox.ack(element)
            assert await asyncio.gather(*adds) == ["new"] * 8

    asyncio.run(main())


def test_an_add_to_a_closed_inbox_says_so_however_it_comes_too_late(inbox_dir: Path) -> None:
    async def main() -> None:
        inbox = AsyncInbox(inbox_dir)
        adds = [asyncio.create_task(inbox.add(f"k{number}", number)) for number in range(ADDS_AT_ONCE + 20)]
        await asyncio.sleep(0)
        await inbox.close()
        await inbox.close()
        for became in await asyncio.gather(*adds, return_exceptions=True):
            assert became == "new" or isinstance(became, WrongState)
        with pytest.raises(WrongState, match="closed"):
            await inbox.add("late", 1)

    asyncio.run(main())


def test_take_waits_no_longer_than_its_timeout(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            assert await inbox.take() is None
            begun = time.monotonic()
            assert await soon(inbox.take(timeout=0.2)) is None
            assert time.monotonic() - begun >= 0.2

    asyncio.run(main())


def test_a_take_that_does_not_wait_is_not_held_up_by_one_that_does(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            waiting = asyncio.create_task(inbox.take(timeout=None))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(5):
                assert await inbox.take() is None
                assert await inbox.take(timeout=0.01) is None
            waiting.cancel()
            await asyncio.wait([waiting])

    asyncio.run(main())


@pytest.mark.parametrize("watch", ["auto", "poll"])
def test_another_process_wakes_a_waiting_take(inbox_dir: Path, watch: str) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir, watch=watch, poll_interval=0.1) as inbox:
            for number in range(3):
                waiting = asyncio.create_task(inbox.take(timeout=None))
                await asyncio.sleep(0.05)
                adding = await asyncio.create_subprocess_exec(
                    *map(str, command("--inbox", inbox_dir, "add", "k", str(number))), env=environment()
                )
                element = await soon(waiting)
                assert element
                assert element.value == number
                await inbox.ack(element)
                assert await adding.wait() == 0

    asyncio.run(main())


def test_a_file_moved_into_drop_wakes_a_waiting_take(inbox_dir: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            waiting = asyncio.create_task(inbox.take(timeout=None))
            await asyncio.sleep(0.05)
            (tmp_path / "ready").write_text("5")
            os.rename(tmp_path / "ready", inbox_dir / "drop/k")
            element = await soon(waiting)
            assert element
            assert tuple(element) == ("k", 5)

    asyncio.run(main())


def test_a_back_off_that_ends_wakes_a_waiting_take(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            await inbox.add("k", 1)
            element = await inbox.take()
            assert element
            await inbox.nack(element, delay=0.2)
            element = await soon(inbox.take(timeout=None))
            assert element
            assert element.attempts == 2

    asyncio.run(main())


def test_async_for_gives_what_waits_and_then_what_comes(inbox_dir: Path) -> None:
    async def main() -> list[object]:
        seen: list[object] = []
        async with AsyncInbox(inbox_dir) as inbox:
            await inbox.add_many((str(number), number) for number in range(5))
            async with asyncio.timeout(20):
                async for element in inbox:
                    seen.append(element.value)
                    await inbox.ack(element)
                    if len(seen) in (5, 6):
                        adding = threading.Timer(
                            0.05, run, ("--inbox", inbox_dir, "add", "later", "9"), {"cwd": inbox_dir.parent}
                        )
                        adding.start()
                    if len(seen) == 7:
                        break
        adding.join()
        return seen

    assert asyncio.run(main()) == [0, 1, 2, 3, 4, 9, 9]


def test_several_workers_share_an_inbox_and_never_have_two_of_one_key(inbox_dir: Path) -> None:
    async def main() -> None:
        running: set[str] = set()
        most = 0
        done: list[tuple[str, int]] = []

        async def work(inbox: AsyncInbox) -> None:
            nonlocal most
            while element := await inbox.take(timeout=0.5):
                assert element.key not in running
                running.add(element.key)
                most = max(most, len(running))
                if element.value < 3:
                    await inbox.add(element.key, element.value + 1)
                await asyncio.sleep(0.001)
                done.append((element.key, element.value))
                running.discard(element.key)
                await inbox.ack(element)

        async with AsyncInbox(inbox_dir, max_inflight=4, durable=False) as inbox:
            await inbox.add_many((f"k{number}", 0) for number in range(12))
            async with asyncio.timeout(60):
                await asyncio.gather(*(work(inbox) for _ in range(4)))
        assert sorted(done) == [
            (key, value) for key in sorted(f"k{number}" for number in range(12)) for value in range(4)
        ]
        assert most > 1

    asyncio.run(main())
    assert keys_in(inbox_dir, "pending") == keys_in(inbox_dir, "inflight") == []


def test_leaving_the_block_puts_back_what_is_out(inbox_dir: Path) -> None:
    async def main() -> None:
        with pytest.raises(LookupError):
            async with AsyncInbox(inbox_dir) as inbox:
                await inbox.add("k", 1)
                assert await inbox.take()
                raise LookupError

    asyncio.run(main())
    assert contents(inbox_dir) == {"k": b"1"}
    assert keys_in(inbox_dir, "inflight") == []


def test_a_second_consumer_is_refused(inbox_dir: Path) -> None:
    async def main() -> None:
        with Inbox(inbox_dir) as first:
            assert first.take() is None
            async with AsyncInbox(inbox_dir) as second:
                with pytest.raises(InboxBusy, match=f"pid {os.getpid()}"):
                    await second.take()
                with pytest.raises(InboxBusy):
                    await soon(second.take(timeout=None))

    asyncio.run(main())


# --- cancelling ---------------------------------------------------------------------------------------


def test_a_take_that_is_cancelled_again_and_again_while_adds_go_on_loses_nothing(inbox_dir: Path) -> None:
    Inbox(inbox_dir).close()
    total = 150
    code = (
        "import sys, time\n"
        "from fsinbox import Inbox\n"
        "with Inbox(sys.argv[1], durable=False) as inbox:\n"
        f"    for number in range({total}):\n"
        "        inbox.add(f'k{number}', number)\n"
        "        time.sleep(0.001)\n"
    )

    async def main() -> list[int]:
        seen: list[int] = []
        cancelled = 0
        async with AsyncInbox(inbox_dir) as inbox:
            producer = subprocess.Popen([sys.executable, "-c", code, str(inbox_dir)], env=environment())
            try:
                deadline = time.monotonic() + PATIENCE
                round_ = 0
                while len(seen) < total:
                    assert time.monotonic() < deadline, (len(seen), cancelled)
                    round_ += 1
                    taking = asyncio.create_task(inbox.take(timeout=None))
                    # From at once to a few milliseconds: cancelled at every stage of a take.
                    for _ in range(round_ % 7):
                        await asyncio.sleep(0)
                    await asyncio.sleep((round_ % 5) * 0.0005)
                    taking.cancel()
                    try:
                        element = await taking
                    except asyncio.CancelledError:
                        cancelled += 1
                        continue
                    assert element
                    assert element.attempts == 1  # a cancelled take does not count
                    seen.append(element.value)
                    await inbox.ack(element)
                assert cancelled > 10
                assert await inbox.take() is None
                # And it can still be woken.
                waiting = asyncio.create_task(inbox.take(timeout=None))
                await asyncio.sleep(0.05)
                run("--inbox", inbox_dir, "add", "last", "1", cwd=inbox_dir.parent)
                element = await soon(waiting)
                assert element
                await inbox.ack(element)
            finally:
                producer.kill()
                producer.wait()
        return seen

    seen = asyncio.run(main())
    assert seen == list(range(total))


def test_a_cancelled_take_ends_at_whatever_moment_the_cancel_comes(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            for round_ in range(60):
                taking = asyncio.create_task(inbox.take(timeout=None))
                await asyncio.sleep(0.004)
                inbox.inbox.sleeper.waker.set()  # as if something had come, which somebody else took away
                for _ in range(round_ % 6):
                    await asyncio.sleep(0)
                taking.cancel()
                ended, _ = await asyncio.wait([taking], timeout=10)
                assert ended, f"it still waits (round {round_})"
                assert taking.cancelled()

    asyncio.run(main())


def test_waiting_takes_that_are_cancelled_do_not_block_those_that_come_after(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir, max_inflight=9) as inbox:
            for round_ in range(60):
                several = [asyncio.create_task(inbox.take(timeout=None)) for _ in range(3)]
                await asyncio.sleep(0.004)
                # The next in line is let in by the first one's end, and cancelled at that moment.
                for taking in several:
                    taking.cancel()
                    for _ in range(round_ % 5):
                        await asyncio.sleep(0)
                ended, waiting = await asyncio.wait(several, timeout=10)
                assert not waiting, f"it still waits (round {round_})"
                assert all(taking.cancelled() for taking in ended)
            last = asyncio.create_task(inbox.take(timeout=None))
            await asyncio.sleep(0.05)
            await inbox.add("k", 1)
            element = await soon(last)
            assert element
            await inbox.ack(element)

    asyncio.run(main())


def test_a_take_that_is_cancelled_twice_loses_nothing_either(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            await inbox.add("k", 1)
            for round_ in range(300):
                taking = asyncio.create_task(inbox.take())
                for _ in range(round_ % 3 + 1):
                    await asyncio.sleep(0)
                taking.cancel()
                for _ in range(round_ % 4):
                    await asyncio.sleep(0)
                taking.cancel()
                await asyncio.wait([taking])
                if not taking.cancelled():
                    element = taking.result()
                    assert element
                    await inbox.nack(element)
                    continue
                # What the cancelled take had begun may still be ending in its thread.
                deadline = time.monotonic() + 5
                while keys_in(inbox_dir, "inflight"):
                    assert time.monotonic() < deadline, (
                        f"lost in round {round_}: it is out, and nobody has it"
                    )
                    await asyncio.sleep(0.001)
            element = await inbox.take()
            assert element
            assert element.value == 1

    asyncio.run(main())


def test_a_timeout_around_take_loses_nothing(inbox_dir: Path) -> None:
    Inbox(inbox_dir).close()

    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            for number in range(40):
                adding = threading.Timer(0.002 * (number % 4), inbox.inbox.add, ("k", number))
                adding.start()
                element = None
                async with asyncio.timeout(PATIENCE):
                    while element is None:
                        try:
                            element = await asyncio.wait_for(inbox.take(timeout=None), 0.003)
                        except TimeoutError:
                            continue
                assert element.value == number
                await inbox.ack(element)
                adding.join()

    asyncio.run(main())


@pytest.mark.bare
def test_a_program_that_ends_while_a_take_waits_ends_at_once(inbox_dir: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from fsinbox import AsyncInbox\n"
        "async def main():\n"
        "    async with AsyncInbox(sys.argv[1]) as inbox:\n"
        "        await inbox.add('k', 1)\n"
        "        element = await inbox.take()\n"
        "        await inbox.ack(element)\n"
        "        print('waiting', flush=True)\n"
        "        await inbox.take(timeout=None)\n"
        "asyncio.run(main())\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(inbox_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert program.stdout
    assert program.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=20)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert program.returncode in (1, 130, -signal.SIGINT)


# --- the event loop -----------------------------------------------------------------------------------


def test_the_event_loop_goes_on_while_an_add_waits_for_the_admission_lock(inbox_dir: Path) -> None:
    Inbox(inbox_dir).close()

    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            fd = os.open(inbox_dir / "index", os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                async with heartbeat() as beats:
                    adding = asyncio.create_task(inbox.add("k", 1))
                    await asyncio.sleep(0.2)
                    assert not adding.done()
                    assert len(beats) > 10
                fcntl.flock(fd, fcntl.LOCK_UN)
                async with asyncio.timeout(20):
                    assert await adding == "new"
            finally:
                os.close(fd)

    asyncio.run(main())


def test_the_event_loop_goes_on_while_a_take_waits(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox, heartbeat() as beats:
            waiting = asyncio.create_task(inbox.take(timeout=None))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            assert len(beats) > 10
            await inbox.add("k", 1)
            assert await soon(waiting)

    asyncio.run(main())


@pytest.mark.bare
def test_a_program_without_asyncio_does_not_import_it(tmp_path: Path) -> None:
    code = (
        "import sys, fsinbox\n"
        "from fsinbox import Inbox\n"
        "print('asyncio' in sys.modules)\n"
        "fsinbox.AsyncInbox\n"
        "print('asyncio' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.split() == ["False", "True"]


# --- elements whose ends are awaited ------------------------------------------------------------------


def test_each_end_of_an_element_is_awaited(inbox_dir: Path) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir, codec="text", max_inflight=9) as inbox:
            for key in ("ack", "nack", "release", "fail", "inbox"):
                await inbox.add(key, key)
            taken = {}
            async for element in inbox:
                assert isinstance(element, AsyncElement)
                taken[element.key] = element
                if len(taken) == 5:
                    break
            assert (taken["ack"].value, taken["ack"].attempts, taken["ack"].size) == ("ack", 1, 3)
            await taken["ack"].ack()
            assert await taken["nack"].nack("1h")
            assert await taken["release"].release(3600)
            assert await taken["fail"].fail("no good")
            assert await inbox.release(taken["inbox"], delay=3600)
            assert taken["inbox"].ended == "requeued"
            with pytest.raises(WrongState):
                await taken["ack"].ack()

    asyncio.run(main())
    assert sorted(keys_in(inbox_dir, "deferred")) == ["inbox", "nack", "release"]
    assert keys_in(inbox_dir, "failed") == ["fail"]
    assert keys_in(inbox_dir, "inflight") == []


def test_a_task_that_is_cancelled_while_it_ends_an_element_is_cancelled_once_that_is_done(
    inbox_dir: Path,
) -> None:
    """However often it is cancelled; the inbox's lock makes the end take its time."""

    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            await inbox.add("k", 1)
            element = await inbox.take()
            assert element
            session = inbox.inbox._taking()
            held = threading.Event()
            let_go = threading.Event()

            def hold() -> None:
                with session._mutex:
                    held.set()
                    let_go.wait(PATIENCE)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait(PATIENCE)
            ending = asyncio.create_task(element.ack())
            for _ in range(3):
                await asyncio.sleep(0.02)
                ending.cancel()
            await asyncio.sleep(0.02)
            assert not ending.done()
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert element.ended == "acknowledged"
            holder.join()

    asyncio.run(main())
    assert keys_in(inbox_dir, "inflight") == keys_in(inbox_dir, "pending") == []


def test_an_end_that_fails_while_its_task_is_cancelled_is_no_unraised_error(
    inbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with AsyncInbox(inbox_dir) as inbox:
            await inbox.add("k", 1)
            element = await inbox.take()
            assert element
            await element.ack()
            ending = asyncio.create_task(element.ack())
            await asyncio.sleep(0)
            ending.cancel()
            with pytest.raises((asyncio.CancelledError, WrongState)):
                await ending

    asyncio.run(main())
    assert "never retrieved" not in caplog.text


def test_workers_that_are_cancelled_at_any_moment_lose_nothing_and_do_nothing_twice_at_once(
    inbox_dir: Path,
) -> None:
    async def main() -> dict[str, int]:
        done: dict[str, int] = {}

        async def work(inbox: AsyncInbox) -> None:
            async for element in inbox:
                await asyncio.sleep(0.001)
                await element.ack()
                done[element.key] = done.get(element.key, 0) + 1

        async with AsyncInbox(inbox_dir, max_inflight=50, durable=False) as inbox:
            await inbox.add_many((f"k{number}", number) for number in range(200))
            for round_ in range(40):
                workers = [asyncio.create_task(work(inbox)) for _ in range(3)]
                await asyncio.sleep(0.003 + round_ % 7 / 1000)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return done

    done = asyncio.run(main())
    left = set(keys_in(inbox_dir, "pending"))
    assert keys_in(inbox_dir, "inflight") == []
    assert set(done.values()) <= {1}
    # (An end that was cancelled is done, but its worker could not count it.)
    assert set(done) | left <= {f"k{number}" for number in range(200)}
    assert not set(done) & left
