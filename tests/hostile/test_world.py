"""Proves that somebody who may write into the inbox's folders can do no more than spoil what is his, whenever
he does it.

The race is not left to chance: while the consumer takes, a file is swapped for something else just before its
N-th call to the system, for every N (tests/shim.py). And for the half second of a real race, another user's
process swaps, links and drops without rest. Replay: the test's id has the folder and the thing; the failure
names N.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsinbox import AddFailed, Inbox, UnusableInbox
from tests.driver import payload, value_of
from tests.hostile import things
from tests.hostile.place import SECRET, USER, Case, Outside, Place, ask, in_memory, is_root
from tests.shim import intercepted

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="inotify, leases"),
]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


class Here:
    """For things.py: a place with something outside."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside


def missing(place: Place, path: Path) -> None:
    """Nothing."""


SWAPS = (things.link_outside, things.fifo, things.full_directory, things.sparse_file, missing)


@pytest.mark.parametrize("folder", ["drop", "pending", "inflight"])
@pytest.mark.parametrize("put", SWAPS, ids=lambda put: put.__name__)
def test_a_file_swapped_before_any_call_of_a_take_stops_nothing_and_leads_nowhere(
    tmp_path: Path, folder: str, put: Callable[[Any, Path], None], figure: Callable[[str], None]
) -> None:
    unmount = in_memory(tmp_path) if is_root() else lambda: None
    try:
        Inbox(tmp_path / "made").close()  # once: making one flushes much
        swaps = 0
        while swap_at(tmp_path, folder, put, swaps):
            swaps += 1
    finally:
        unmount()
    assert swaps > 40
    figure(f"{swaps} moments")


def swap_at(path: Path, folder: str, put: Callable[[Any, Path], None], moment: int) -> bool:
    """Deliver all of an inbox with `b` swapped for something before the call of that number; False if there
    is none."""
    made, path = path / "made", path / str(moment)
    path.mkdir()
    shutil.copytree(made, path / "inbox", symlinks=True)
    outside = Outside(path / "outside")
    calls = 0

    def swap() -> None:
        for file in (path / "inbox" / folder).glob("b" if folder == "drop" else "*-b"):
            things.remove(file)
            put(Here(outside), file)

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        nonlocal calls
        if calls == moment:
            calls += 1
            swap()
        calls += 1
        return call(*arguments, **more)

    with Inbox(path / "inbox", codec="bytes", durable=False, drop_settle=0, max_inflight=3) as inbox:
        for key in "abc":
            (path / key).write_bytes(payload("1"))
            (path / key).rename(path / "inbox/drop" / key)
            if folder != "drop":
                inbox.add_bytes(key, payload("1"))
        outside.begin()
        delivered = []
        with intercepted(hook):
            for _ in range(20):
                try:
                    element = inbox.take()
                    if element is None:
                        break
                    if Path(element.path).lstat().st_size < 1 << 20:
                        delivered.append((element.key, element.data))
                    element.ack()
                except MemoryError:
                    continue  # of 200 gigabytes
                except (OSError, UnusableInbox) as error:
                    assert "'b'" in str(error) or "-b" in str(error), f"call {moment}: {error}"
        assert not outside.complaints(), f"call {moment}"
        assert not any(SECRET in data for _, data in delivered), f"call {moment}"
        assert [key for key, _ in delivered if key != "b"] == ["a", "c"], f"call {moment}: {delivered}"
    return calls > moment


def test_a_subfolder_swapped_for_a_link_before_any_call_of_a_take_or_an_add_leads_nowhere(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """`sub/secret` becomes a path to a file outside, which a link could lead to."""
    unmount = in_memory(tmp_path) if is_root() else lambda: None
    try:
        Inbox(tmp_path / "made").close()
        moment = 0
        while swap_folder_at(tmp_path, moment):
            moment += 1
    finally:
        unmount()
    assert moment > 40
    figure(f"{moment} moments")


def swap_folder_at(path: Path, moment: int) -> bool:
    """Ingest, add and take with drop/sub swapped for a link before the call of that number; False if there is
    none."""
    made, path = path / "made", path / str(moment)
    path.mkdir()
    shutil.copytree(made, path / "inbox", symlinks=True)
    outside = Outside(path / "outside")
    sub = path / "inbox/drop/sub"
    calls = 0

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            sub.rename(path / "gone")
            sub.symlink_to(outside.folder)
        return call(*arguments, **more)

    with Inbox(path / "inbox", codec="bytes", durable=False, drop_settle=0, drop_recursive=True) as inbox:
        inbox.become_consumer()
        sub.mkdir()
        for name in ("secret", "other"):
            (path / "draft").write_bytes(payload(name))
            (path / "draft").rename(sub / name)
        outside.begin()
        found = []
        with intercepted(hook):
            inbox.add_bytes("sub/secret", payload("added"))
            while element := inbox.take():
                found.append(element.data)
                element.ack()
        assert not outside.complaints(), f"call {moment}"
        assert payload("added") in found
        assert not any(SECRET in data for data in found), f"call {moment}"
    return calls > moment


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, which tmp_path is not."""
    path = Path(tempfile.mkdtemp(prefix="fsinbox-hostile-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def shared(folder: Path) -> Iterator[Inbox]:
    """An inbox of root's with a drop/ for everybody, and the user's own folder beside it."""
    (folder / "his").mkdir()
    os.chown(folder / "his", USER, USER)
    with Inbox(folder / "inbox", codec="bytes", drop_settle=0) as inbox:
        (folder / "inbox").chmod(0o711)
        (folder / "inbox/drop").chmod(0o1777)
        yield inbox


def as_user(step: Callable[[], object]) -> int:
    """Start a process of USER's that does this; return its number. Its exit status is 0 if the step raised
    nothing."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            signal.setitimer(signal.ITIMER_REAL, 20)
            step()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child: int) -> int:
    """Return the exit status of a child that has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@only_root
def test_another_user_who_swaps_links_and_drops_without_rest_stops_nothing_and_learns_nothing(
    folder: Path, shared: Inbox, figure: Callable[[str], None]
) -> None:
    outside = Outside(folder / "outside")
    outside.hide()
    his, drop = folder / "his", folder / "inbox/drop"

    def attack() -> None:
        for number in range(1 << 30):
            name = str(number % 3)
            draft = his / "draft"
            things.remove(draft)
            put = (
                things.content(payload("his")),
                things.link_outside,
                things.fifo,
                things.content(b""),
                things.unix_socket,
            )[number % 5]
            put(Here(outside), draft)
            try:
                draft.rename(drop / name)
                if number % 7 == 0:
                    (drop / name).chmod(0)
                if number % 11 == 0:
                    (drop / name).unlink()
                os.link(outside.secret, drop / f"hard{number % 3}")
            except OSError:
                continue

    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    if not protected:
        pytest.skip("fs.protected_hardlinks is 0: a user may link what is root's, and so drop it")
    child = as_user(attack)
    try:
        outside.begin()
        longest, delivered, his_own = 0.0, [], 0
        end = time.monotonic() + 0.5
        number = 0
        while time.monotonic() < end or number < 20:
            shared.add_bytes(f"good-{number}", payload(str(number)), durable=False)
            number += 1
            for _ in range(5):
                began = time.monotonic()
                element = shared.take()
                longest = max(longest, time.monotonic() - began)
                if element is None:
                    break
                data = element.data
                assert SECRET not in data
                if element.key.startswith("good-"):
                    delivered.append((element.key, value_of(data)))
                else:
                    his_own += 1
                element.ack()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while element := shared.take():
        if element.key.startswith("good-"):
            delivered.append((element.key, value_of(element.data)))
        element.ack()
    assert delivered == [(f"good-{n}", str(n)) for n in range(number)]
    assert longest < 1
    assert his_own
    assert not outside.complaints()
    figure(f"{his_own} swapped files taken beside {number} others")


@only_root
def test_another_user_who_swaps_folders_and_links_without_rest_stops_nothing_and_learns_nothing(
    folder: Path, figure: Callable[[str], None]
) -> None:
    outside = Outside(folder / "outside")
    outside.hide()
    (folder / "his").mkdir()
    os.chown(folder / "his", USER, USER)
    his, drop = folder / "his", folder / "inbox/drop"

    def attack() -> None:
        for number in range(1 << 30):
            try:
                (his / "sub").mkdir()
                (his / "sub" / "secret").write_bytes(payload("his"))
                (his / "link").symlink_to(outside.folder)
                (his / "sub").rename(drop / "sub")
                (drop / "sub").rename(drop / f"sub{number % 5}")
                (his / "link").rename(drop / "sub")
                (drop / "sub").unlink()
            except OSError:
                for path in (his / "sub", his / "link", drop / "sub", drop / f"sub{number % 5}"):
                    try:
                        things.remove(path)
                    except OSError:
                        continue  # the consumer is at it

    with Inbox(folder / "inbox", codec="bytes", drop_settle=0, drop_recursive=True) as inbox:
        (folder / "inbox").chmod(0o711)
        drop.chmod(0o1777)
        child = as_user(attack)
        try:
            outside.begin()
            end, his_own, number, delivered = time.monotonic() + 0.5, 0, 0, []
            while time.monotonic() < end or not his_own:
                assert time.monotonic() < end + 20, "none of his files came"
                inbox.add_bytes(f"sub/good-{number}", payload(str(number)), durable=False)
                number += 1
                for _ in range(5):
                    element = inbox.take()
                    if element is None:
                        break
                    assert SECRET not in element.data
                    if "good" in element.key:
                        delivered.append(value_of(element.data))
                    else:
                        his_own += 1
                    element.ack()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        while element := inbox.take():
            if "good" in element.key:
                delivered.append(value_of(element.data))
            element.ack()
    assert delivered == [str(n) for n in range(number)]
    assert not outside.complaints()
    figure(f"{his_own} files out of swapped folders taken beside {number} others")


@only_root
def test_a_file_that_its_owner_goes_on_writing_after_it_was_adopted_is_only_his_loss(
    folder: Path, shared: Inbox
) -> None:
    his, drop = folder / "his", folder / "inbox/drop"
    ready, begun = os.pipe()

    def write() -> None:
        (his / "a").write_bytes(payload("1", 1 << 20))
        fd = os.open(his / "a", os.O_RDWR)
        (his / "a").rename(drop / "a")
        (drop / "a").chmod(0o444)
        os.write(begun, b"!")
        while True:
            os.ftruncate(fd, 0)
            os.pwrite(fd, payload("2", 1 << 18), 0)
            os.fsync(fd)

    child = as_user(write)
    try:
        os.read(ready, 1)
        shared.add_bytes("b", payload("b"))
        seen = set()
        for _ in range(20):
            element = shared.take()
            if element is None:
                break
            seen.add(element.key)
            for _ in range(20):
                assert element.data is not None
            element.ack()
        assert "b" in seen
    finally:
        os.close(ready)
        os.close(begun)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@only_root
def test_a_lease_on_a_dropped_file_is_waited_for_without_waiting(folder: Path, shared: Inbox) -> None:
    """Samba takes them. An open(2) would wait for up to 45 seconds."""
    his, drop = folder / "his", folder / "inbox/drop"
    ready, begun = os.pipe()

    def lease() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fd = os.open(his / "a", os.O_RDWR | os.O_CREAT, 0o644)
        os.write(fd, payload("1"))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        (his / "a").rename(drop / "a")
        os.write(begun, b"!")
        time.sleep(20)

    child = as_user(lease)
    os.read(ready, 1)
    try:
        shared.add_bytes("b", payload("b"))
        began = time.monotonic()
        element = shared.take()
        assert element and element.key == "b"
        element.ack()
        assert shared.take() is None
        assert time.monotonic() - began < 1
        assert os.listdir(drop) == ["a"]  # left for later, not set aside
        assert (
            shared.next_look_in() is not None
        )  # and looked at again by itself: no event tells when a lease ends
    finally:
        os.close(ready)
        os.close(begun)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    element = shared.take(timeout=5)
    assert element and element.key == "a"


@only_root
def test_another_user_can_make_no_hard_link_to_what_is_root_s(folder: Path, shared: Inbox) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is 0: a user may link what is root's, and so drop it")
    outside = Outside(folder / "outside")
    outside.hide()
    child = as_user(lambda: os.link(outside.secret, folder / "inbox/drop/a"))
    assert ended(child) == 1
    assert shared.take() is None


@only_root
def test_another_user_sees_nothing_but_drop(folder: Path, shared: Inbox) -> None:
    shared.add_bytes("a", SECRET)
    for path in ("pending", "index", "consumer.lock", "format"):
        assert ended(as_user(lambda path=path: os.listdir(folder / "inbox" / path))) == 1
    (name,) = os.listdir(folder / "inbox/pending")
    assert ended(as_user(lambda: (folder / "inbox/pending" / name).read_bytes())) == 1
    with pytest.raises(AddFailed):
        shared.add_file("b", folder / "no such file")


# --- the harness itself -------------------------------------------------------------------------------


def reads_outside(place: Place) -> None:
    place.outside.link_to(place.waiting.with_name("0000000000000000001-b"))


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (Case("a secret is delivered", reads_outside), "outside: a secret was delivered"),
        (
            Case("something is damaged", lambda place: things.fifo(place, place.inbox / "drop/b")),
            "reason: something went to",
        ),
        (Case("nothing is damaged", refused="No space"), "reason: nothing was refused"),
        (Case("nothing is damaged", aside="readme"), "reason: nothing in failed/"),
        (Case("all is lost", lambda place: shutil.rmtree(place.inbox / "pending")), "stops others"),
        (Case("it hangs", limit=lambda place: time.sleep(1.2) or (lambda: None)), ""),
    ],
)
def test_the_questions_can_be_answered_with_no(case: Case, complaint: str) -> None:
    report = ask(case, "fresh")
    assert any(text.startswith(complaint) for text in report.wrong) if complaint else not report.wrong


def test_the_watch_outside_misses_nothing(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "outside")
    for step, complaint in (
        (lambda: outside.secret.read_bytes(), "secret was opened"),
        (lambda: os.close(os.open(outside.folder, os.O_RDONLY)), "folder was opened"),
        (lambda: (outside.folder / "secret").chmod(0o600), "folder/secret was changed"),
        (lambda: (outside.path / "new").symlink_to("x"), "new was changed"),
        (lambda: os.utime(outside.secret, (1, 1)), "secret was changed"),
    ):
        outside.begin()
        step()
        assert complaint in " ".join(outside.complaints())
