"""How many calls fsinbox makes that a client of a network file system turns into requests: none may creep in.

tests/hosts/trips.py counts the requests themselves, with a kernel's NFS client and server. Here it is the
calls, on a local disk, as on a client of NFS 4 or 3: what each call costs there is in docs/hosts.md.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fsinbox.store.network.sharing
from fsinbox import Inbox
from fsinbox.store.network.sharing import sharing_of
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.runner import Runner
from tests.shim import intercepted
from tests.usual import take

NFS_4 = sharing_of("/i", ("nfs4", "rw,vers=4.2,hard"))
NFS_3 = sharing_of("/i", ("nfs", "rw,vers=3,hard,lookupcache=none"))


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


@pytest.fixture
def counting(calls: Counter[str]) -> Callable[[Callable[[], object]], Counter[str]]:
    """Return what runs a step, and returns the calls that it has made. (Of a listing, open(".") is the one
    that asks.)"""

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        calls["list" if name == "open" and arguments[0] == "." else name] += 1
        return call(*arguments, **more)

    def count(step: Callable[[], object]) -> Counter[str]:
        calls.clear()
        with intercepted(hook):
            step()
        for free in ("close", "fstat", "listdir"):
            del calls[free]
        return Counter(calls)

    return count


@pytest.fixture(params=["nfs4", "nfs3"])
def shared(
    request: pytest.FixtureRequest, inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Inbox]:
    """An inbox that lies on NFS, as far as it knows."""
    sharing = NFS_4 if request.param == "nfs4" else NFS_3
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: sharing)
    with Inbox(inbox_dir, codec="bytes", scope="network", max_inflight=2) as inbox:
        inbox.add("first", b"1")
        yield inbox


Count = Callable[[Callable[[], object]], Counter[str]]


def is_nfs4(inbox: Inbox) -> bool:
    return inbox.layout.sharing == NFS_4


def of_drop(inbox: Inbox) -> Counter[str]:
    """Return the calls by which an add sees what was dropped: a listing, where the client knows its own is
    good; else a lookup."""
    return Counter({"list": 1} if is_nfs4(inbox) else {"lstat": 1})


def test_an_add_of_a_new_key(shared: Inbox, counting: Count) -> None:
    section = Counter(flock=2, pread=4, pwrite=3, fsync=2, rename=1)  # the header is read before each write
    draft = Counter(open=1, write=1, fsync=1)
    flush = Counter(fsync=1)  # of the folder: not asked for over NFS
    assert counting(lambda: shared.add("new", b"1")) == section + draft + flush + of_drop(shared)


def test_an_add_of_a_key_that_waits(shared: Inbox, counting: Count) -> None:
    section = Counter(flock=2, pread=4, pwrite=2, fsync=2, rename=1, access=1)
    section += Counter(list=is_nfs4(shared))  # the folder is opened before its name is looked up
    draft = Counter(open=1, write=1, fsync=1)
    assert counting(lambda: shared.add("first", b"2")) == section + draft + Counter(fsync=1) + of_drop(shared)


def test_a_draft_is_made_by_one_request(shared: Inbox) -> None:
    """Created exclusively it would have its times set by a second one."""
    flags = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "open" and arguments[1] & os.O_CREAT:
            flags.append(arguments[1])
        return call(*arguments, **more)

    with intercepted(hook):
        shared.add("new", b"1")
    assert len(flags) == 1
    assert not flags[0] & os.O_EXCL


def test_where_others_may_make_drafts_too_each_is_made_exclusively(shared: Inbox, tmp_path: Path) -> None:
    """A member of the group could put a file of his own there, and keep it open."""
    flags = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "open" and arguments[1] & os.O_CREAT and arguments[1] & os.O_WRONLY:
            flags.append(arguments[1])
        return call(*arguments, **more)

    with Inbox(tmp_path / "group", codec="bytes", scope="network", shared=True) as inbox, intercepted(hook):
        inbox.add("new", b"1")
    assert len(flags) == 1
    assert flags[0] & os.O_EXCL


def test_an_add_of_a_hundred_keys(shared: Inbox, counting: Count) -> None:
    """The table is read as a whole, once, and then from this host's memory."""
    section = Counter(flock=2, pread=5 + 99, pwrite=2 + 100, fsync=2, rename=100)
    drafts = Counter(open=100, write=100)
    listing = Counter(list=1, utime=0 if is_nfs4(shared) else 1)
    made = counting(lambda: shared.add_many((f"new-{n}", b"1") for n in range(100)))
    assert made == section + drafts + listing + Counter(fsync=1)


def test_drop_is_looked_into_for_one_key_where_a_listing_would_be_long(
    shared: Inbox, counting: Count
) -> None:
    for number in range(300):  # so that the folder itself has more than a block
        Path(shared.path, "drop", f".{'long' * 20}-{number}").touch()
    if os.stat(Path(shared.path, "drop")).st_size <= 4096:
        pytest.skip("folders do not grow on this file system")
    made = counting(lambda: shared.add("new", b"1"))
    assert made["lstat"] == 1
    assert made["list"] == (1 if is_nfs4(shared) else 0)


def test_a_take_and_an_acknowledgement(shared: Inbox, counting: Count) -> None:
    for number in range(50):
        shared.add(f"{number}", b"1", durable=False)
    take(shared).ack()
    made = counting(lambda: [take(shared).ack() for _ in range(40)])
    looks = made["lstat"] - 40  # a look into drop/, every 20 ms
    assert looks <= 10
    assert made["rename"] == made["unlink"] == 40
    assert made["open"] == made["readlink"] == made["access"] == made["stat"] == 0
    assert made["list"] <= 2 * looks


def test_an_idle_consumer_looks_once_a_poll(inbox_dir: Path, counting: Count) -> None:
    slept: list[float | None] = []
    with Inbox(inbox_dir, codec="bytes", watch="poll", poll_interval=0.05) as inbox:
        sleeper = inbox.sleeper.watch()
        asleep = sleeper.sleep

        def count_sleep(limit: float | None) -> None:
            slept.append(limit)
            asleep(limit)

        sleeper.sleep = count_sleep  # type: ignore[method-assign]
        runner = Runner(inbox, FunctionHandler("f", lambda key, value: None))
        stop = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stop.start()
        made = counting(runner.run)
    assert len(slept) > 5
    assert made["list"] <= 2 * len(slept) + 12  # drop/ and pending/, and all folders at the start
