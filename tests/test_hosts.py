"""An inbox that several hosts share, on this one: how its file system is chosen, and what every add does
there.

tests/hosts/ runs the real thing, over NFS and GlusterFS. Here `network` is asked for on a local disk, as on
the server itself, or with the locks of a client.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
from helpers import wait_until

import fsinbox.store.network.sharing
from fsinbox import AddFailed, Inbox, UnusableInbox
from fsinbox.store.layout import Layout
from fsinbox.store.lines import BUCKET, HEADER, LINE
from fsinbox.store.names import element_name
from fsinbox.store.network.sections import LINES, NetworkIndex, read_words
from fsinbox.store.network.sharing import Sharing, range_lock, sharing_of
from fsinbox.store.section import Busy
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, take

CLIENT = Sharing("nfs", opens_first=True, touches_first=True)


@pytest.fixture(params=["server", "client"])
def shared(
    request: pytest.FixtureRequest, inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Inbox]:
    """An inbox for several hosts: as the server itself sees it, or with all that a client must do."""
    if request.param == "client":
        monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network", max_inflight=2) as inbox:
        yield inbox


def index_of(inbox: Inbox) -> NetworkIndex:
    assert isinstance(inbox._handle.index, NetworkIndex)
    return inbox._handle.index


def header_of(inbox: Inbox) -> bytes:
    return Path(inbox.path, "index").read_bytes()[:HEADER]


def write_over(inbox: Inbox, data: bytes, offset: int = 0) -> None:
    """Write into the file `index`, as a write does that comes late, or from somebody who must not."""
    with Path(inbox.path, "index").open("r+b") as file:
        file.seek(offset)
        file.write(data)


class CutOff(BaseException):
    """Stands for the end of a process, or for a host that is cut off for good."""


def cut_off() -> None:
    raise CutOff


def run_beside(act: Callable[[], object]) -> None:
    """Do it in a thread, to its end: a thread that is in a section may not begin another one."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def leave_open(inbox: Inbox) -> None:
    """Have a section of another process end in its midst: before it publishes what it has said that it
    would."""
    with Inbox(inbox.path) as other, meanwhile("rename", cut_off), pytest.raises(CutOff):
        other.add("left", "open", durable=False)
    assert b" open " in header_of(inbox)


# --- how it is chosen ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("nfs4", "rw,vers=4.2,hard", Sharing("nfs4", opens_first=True, slow_exclusive=True)),
        ("nfs4", "rw,vers=4.2,lookupcache=none,local_lock=none", Sharing("nfs4", slow_exclusive=True)),
        ("nfs", "rw,vers=4.1,hard", Sharing("nfs", opens_first=True, slow_exclusive=True)),
        ("nfs", "rw,vers=3,lookupcache=none,hard", Sharing("nfs", touches_first=True, slow_exclusive=True)),
        ("ceph", "rw", Sharing("ceph", one_clock=False)),
        ("lustre", "rw,flock", Sharing("lustre", one_clock=False)),
        ("tmpfs", "rw", Sharing("tmpfs", range_locks=True, local=True)),
        ("ext4", "rw", Sharing("ext4", range_locks=True, local=True)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_host_works_on_a_shared_inbox_as_its_mount_needs_it(
    kind: str, options: str, wanted: Sharing
) -> None:
    assert sharing_of("/i", (kind, options)) == wanted


@pytest.mark.parametrize(
    ("kind", "options", "reason", "way_out"),
    [
        ("nfs", "rw,vers=3,hard", "names that another host has changed", "-o lookupcache=none"),
        ("nfs", "rw,vers=3,lookupcache=pos", "names that another host has changed", "-o vers=4.2"),
        ("nfs4", "rw,vers=4.2,nocto", "nocto", "mount it without"),
        ("nfs4", "rw,vers=4.2,local_lock=flock", "keeps locks to this host", "without local_lock"),
        (
            "nfs",
            "rw,vers=3,nolock,lookupcache=none",
            "keeps locks to this host",
            "without local_lock, nolock",
        ),
        ("lustre", "rw,localflock", "keeps locks to this host", "without localflock"),
        ("ocfs2", "rw,localflocks", "keeps locks to this host", "without localflocks"),
        ("9p", "rw,trans=virtio", "a lock of one side need not keep out the other", "--scope local --force"),
        ("virtiofs", "rw", "a lock of one side need not keep out the other", "--scope local --force"),
        ("orangefs", "rw", "not known to be safe", "put it on NFS or GlusterFS"),
        ("newfs", "rw", "not known to be safe", "--scope local --force"),
        ("fuseblk", "rw", "not known to be safe", "--scope local --force"),
        ("cifs", "rw", "not known to be safe", "--scope local"),
        ("fuse.sshfs", "rw", "not known to be safe", "--scope local --force"),
    ],
)
def test_a_mount_on_which_it_would_not_be_right_is_refused(
    kind: str, options: str, reason: str, way_out: str
) -> None:
    with pytest.raises(UnusableInbox, match=reason) as caught:
        sharing_of("/i", (kind, options))
    assert way_out in str(caught.value)


GOOD_GLUSTER = {
    "graphs/active/volfile": "volume lab\n    type debug/io-stats\nend-volume\n",
    "root/private": "direct_io_mode = 1\nentry_timeout = 0.000000\nattribute_timeout = 0.000000\n",
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        (
            {"graphs/active/volfile": "    type performance/quick-read\n"},
            "has performance/quick-read, which shows old states",
        ),
        (
            {"graphs/active/volfile": "    type performance/md-cache\n    type performance/write-behind\n"},
            "md-cache, performance/w",
        ),
        (
            {"root/private": "direct_io_mode = 2\nentry_timeout = 0.0\nattribute_timeout = 0.0\n"},
            "direct-io-mode=enable",
        ),
        (
            {"root/private": "direct_io_mode = 1\nentry_timeout = 1.0\nattribute_timeout = 0.0\n"},
            "entry-timeout=0",
        ),
        ({"root/private": ""}, "direct-io-mode=enable"),
        ({"root/private": None}, "does not say how it is set up"),
    ],
)
def test_a_glusterfs_mount_says_itself_what_it_remembers(
    changed: dict[str, str | None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is as GlusterFS 10.3 has it in `.meta`."""
    for name, text in (GOOD_GLUSTER | changed).items():
        if text is not None:
            (tmp_path / ".meta" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / ".meta" / name).write_text(text)
    monkeypatch.setattr("os.path.ismount", lambda path: path == str(tmp_path))
    if said:
        with pytest.raises(UnusableInbox, match=said):
            sharing_of(f"{tmp_path}/a/inbox", ("fuse.glusterfs", "rw"))
    else:
        assert sharing_of(f"{tmp_path}/a/inbox", ("fuse.glusterfs", "rw")) == Sharing(
            "fuse.glusterfs", one_clock=False
        )


def test_nothing_is_made_on_a_mount_that_is_refused(inbox_dir: Path) -> None:
    with (
        mock.patch("fsinbox.store.mounts.mount_of", lambda path: ("nfs", "rw,vers=3")),
        pytest.raises(UnusableInbox),
    ):
        Inbox(inbox_dir)
    assert not inbox_dir.exists() or not os.listdir(inbox_dir)


def test_a_scope_that_is_none_is_refused(inbox_dir: Path) -> None:
    with pytest.raises(ValueError, match="use 'auto', 'local' or 'network'"):
        Inbox(inbox_dir, scope="galaxy")


# --- the same queue -----------------------------------------------------------------------------------


def test_order_and_replacement_are_as_always(shared: Inbox) -> None:
    outcomes = [shared.add(key, value) for key, value in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"))]
    assert outcomes == ["new", "new", "replaced", "new"]
    assert [(waiting.key, waiting.value) for waiting in shared] == [("a", "3"), ("b", "2"), ("c", "4")]
    element = take(shared)
    assert (element.key, element.value, element.data) == ("a", "3", Path(element.path).read_bytes())
    assert shared.add("a", "5") == "behind"
    assert element.superseded()
    assert element.nack() is False
    assert drain(shared) == [("b", "2"), ("c", "4"), ("a", "5")]


def test_what_is_requeued_deferred_or_given_up_is_as_always(shared: Inbox) -> None:
    for key in "abc":
        shared.add(key, key)
    element = take(shared)
    assert element.nack()
    element = take(shared)
    assert (element.key, element.attempts) == ("a", 2)
    element.fail("no good")
    element = take(shared)
    assert element.nack(0.05)
    assert drain(shared) == [("c", "c")]
    assert take(shared, timeout=5).key == "b"
    assert [name[20:] for name in names(shared, "failed")] == ["a", "a~reason.txt"]


def test_many_are_added_in_order(shared: Inbox) -> None:
    counts = shared.add_many((f"k{number % 7}", str(number)) for number in range(20))
    assert counts == {"new": 7, "replaced": 13, "behind": 0}
    assert drain(shared) == [
        (f"k{number}", str(last)) for number, last in enumerate([14, 15, 16, 17, 18, 19, 13])
    ]


def test_a_key_with_several_places_is_coalesced(shared: Inbox) -> None:
    shared.add("a", "1")
    shared.add("b", "2")
    for value in ("3", "4"):
        leave_open(shared)
        assert shared.add("a", value) == "new"
    assert len(names(shared, "pending")) == 4
    assert drain(shared) == [("a", "4"), ("b", "2")]


def test_a_drop_is_adopted_and_one_that_came_earlier_is_superseded(shared: Inbox) -> None:
    for key, value in (("x", "1"), ("y", "2")):
        draft = Path(shared.path, "drop", f".{key}")
        draft.write_text(value)
        os.utime(draft, ns=(1, 1))
        draft.rename(draft.with_name(key))
    assert shared.add("x", "3") == "replaced"
    assert drain(shared) == [("x", "3"), ("y", "2")]


def test_the_shell_producer_drops_its_value(
    shared: Inbox, shell_producer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert shell_producer(shared, "k.1", "value").returncode == 0
    assert names(shared, "drop") == ["k.1"]
    refused = shell_producer(shared, "a/b", "value")
    assert refused.returncode == 2
    assert "the key must be a file name" in refused.stderr
    element = take(
        shared, timeout=5
    )  # (written and renamed within one tick of the clock, it has to lie still)
    assert (element.key, element.value) == ("k.1", "value")
    assert names(shared, "tmp") == []


@pytest.fixture
def shell_producer() -> Callable[..., subprocess.CompletedProcess[str]]:
    script = Path(__file__).parents[1] / "scripts" / "fsinbox-add"

    def run(inbox: Inbox, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", script, "--inbox", inbox.path, *words], capture_output=True, text=True, timeout=30
        )

    return run


# --- clocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_whose_clock_is_an_hour_off_neither_loses_nor_reorders(shared: Inbox, hours: int) -> None:
    def elsewhere() -> int:
        return time.time_ns() + hours * 3600 * 10**9

    shared.add("a", "1")
    with (
        mock.patch("fsinbox.store.network.sections.time_ns", elsewhere),
        Inbox(shared.path, codec="text") as other,
    ):
        other.add("a", "2")
        other.add("b", "3")
    shared.add("b", "4")
    shared.add("c", "5")
    element = take(shared)
    assert (element.key, element.value) == ("a", "2")
    with (
        mock.patch("fsinbox.store.network.sections.time_ns", elsewhere),
        Inbox(shared.path, codec="text") as other,
    ):
        other.add("a", "6")
    shared.add("a", "7")
    element.nack()
    assert drain(shared) == [("b", "4"), ("c", "5"), ("a", "7")]


# --- a host that is cut off ---------------------------------------------------------------------------


def test_an_add_that_the_server_did_not_take_is_an_error(shared: Inbox) -> None:
    """The flush of the header is where a client learns that it has lost the lock: before it publishes, and
    after."""
    for _ in range(2):
        with refusing(fsync=errno.EIO), pytest.raises(AddFailed, match="was not added") as caught:
            shared.add("a", "1", durable=False)
        assert not caught.value.maybe_added
        assert names(shared, "pending") == []
    shared.add("a", "2")
    flushes = iter(["before", "after"])
    with (
        refusing(fsync=errno.EIO, when=lambda _: next(flushes) == "after"),
        pytest.raises(AddFailed, match="may or may not") as caught,
    ):
        shared.add("a", "3", durable=False)
    assert caught.value.maybe_added
    assert names(shared, "tmp") == []
    assert drain(shared)[-1] == ("a", "3")


def test_a_producer_that_has_lost_the_lock_without_being_told_says_so(shared: Inbox) -> None:
    """NFS 3 takes its writes all the same."""
    shared.add("a", "0")

    def another_host() -> None:
        last, tag, lines, sections, _ = read_words(header_of(shared))
        write_over(shared, b"%019d %b %010d %012d done 00000" % (last + 1, tag.encode(), lines, sections + 1))

    with (
        meanwhile("rename", another_host),
        pytest.raises(AddFailed, match="another one has had the lock") as caught,
    ):
        shared.add("a", "1")
    assert caught.value.maybe_added


def test_a_rename_whose_answer_was_lost_was_done(shared: Inbox) -> None:
    """After a restart of the server the client asks again, and hears that the file is gone."""
    twice: list[str] = []

    def done_before(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "rename" and not twice:
            twice.append(name)
            call(*arguments, **more)
        return call(*arguments, **more)

    with intercepted(done_before):
        assert shared.add("a", "1") == "new"
    for step in ("take", "defer", "take again", "fail"):
        twice.clear()
        with intercepted(done_before):
            if step.startswith("take"):
                element = take(shared, timeout=5)
            elif step == "defer":
                assert element.nack(0.01)
            else:
                assert element.fail("no good")
    assert [name[20:] for name in names(shared, "failed")] == ["a", "a~reason.txt"]


def test_a_value_that_was_removed_before_it_was_published_is_in_doubt(shared: Inbox) -> None:
    def remove() -> None:
        for name in names(shared, "tmp"):
            os.unlink(os.path.join(shared.path, "tmp", name))

    with meanwhile("rename", remove), pytest.raises(AddFailed, match="may or may not"):
        shared.add("a", "1")


def test_a_value_that_is_taken_before_its_add_has_ended(shared: Inbox) -> None:
    """The consumer needs no lock to take."""
    with Inbox(shared.path, codec="text") as other:
        shared.add("a", "0")
        taken: list[str] = []
        with meanwhile("rename", lambda: taken.append(take(other).value)):
            assert shared.add("a", "1") == "replaced"  # as it was when it looked; now it is next in turn
        assert taken == ["0"]
        assert shared.add("a", "2") == "replaced"
        other.commit()
        assert drain(other) == [("a", "2")]


def test_a_full_disk_in_the_midst_of_a_section_is_an_error_and_heals(shared: Inbox) -> None:
    shared.add("a", "1")

    def half(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name != "pwrite":
            return call(*arguments, **more)
        fd, line, offset = arguments
        assert isinstance(line, bytes)
        return call(fd, line[:30], offset)

    with intercepted(half), pytest.raises(AddFailed, match="only a part could be written") as caught:
        shared.add("b", "2")
    assert not caught.value.maybe_added
    assert shared.add("b", "3") == "new"
    assert shared.add("a", "4") in ("replaced", "new")
    assert sorted(drain(shared)) == [("a", "4"), ("b", "3")]


def test_the_lock_of_a_shared_inbox_excludes_others(shared: Inbox) -> None:
    with Path(shared.path, "index").open("r+b") as file:
        if index_of(shared)._range_locks:
            range_lock(file.fileno(), fcntl.LOCK_EX)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            index_of(shared).try_locked(index_of(shared).last_number)
    wait_until(lambda: threads() == 0)
    assert index_of(shared).try_locked(index_of(shared).last_number) == 0


@contextmanager
def held(inbox: Inbox) -> Iterator[Callable[[], None]]:
    """Hold the lock as another host does; gives what lets go of it."""
    with Path(inbox.path, "index").open("r+b") as file:

        def lock(how: int) -> None:
            range_lock(file.fileno(), how) if index_of(inbox)._range_locks else fcntl.flock(file, how)

        lock(fcntl.LOCK_EX)
        yield lambda: lock(fcntl.LOCK_UN)


def threads() -> int:
    return sum(thread.name == "fsinbox-turn" for thread in threading.enumerate())


def test_who_tries_for_the_lock_keeps_its_turn(shared: Inbox) -> None:
    shared.add("a", "1")
    index = index_of(shared)
    wait_until(lambda: threads() == 0)
    with held(shared) as close_quietly:
        for _ in range(3):
            with pytest.raises(Busy):
                index.try_locked(index.last_number, patience=0)
        assert threads() == 1
        close_quietly()

        def has_its_turn() -> bool:
            try:
                return index.try_locked(index.last_number) > 0
            except Busy:
                return False

        wait_until(has_its_turn)
    wait_until(lambda: threads() == 0)
    assert shared.add("a", "2") == "replaced"


def test_a_turn_that_nobody_comes_back_for_is_given_up(shared: Inbox) -> None:
    index = index_of(shared)
    ends: list[Callable[[], object]] = [list, index.close]
    for end in ends:
        with held(shared):
            with pytest.raises(Busy):
                index.try_locked(index.last_number, patience=0)
            end()
        wait_until(lambda: threads() == 0)
        with Inbox(shared.path, codec="text") as other:
            other.add("a", "1")
    assert shared.add("a", "2") == "replaced"


def test_a_turn_that_the_system_refuses_is_tried_again(shared: Inbox) -> None:
    index = index_of(shared)
    real = index._lock_file

    def refuse(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            raise OSError(errno.ENOLCK, "no locks")
        real(fd, how)

    with held(shared), mock.patch.object(index, "_lock_file", refuse):
        for _ in range(2):
            with pytest.raises(Busy):
                index.try_locked(index.last_number)
    assert index.try_locked(index.last_number) == 0


def test_a_long_listing_is_only_done_if_there_is_something_new(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: CLIENT)
    monkeypatch.setattr("fsinbox.consumer.listing._LONG", 3)
    with (
        Inbox(inbox_dir, codec="text", scope="network", shard="1/2") as inbox,
        Inbox(inbox_dir, codec="text") as producer,
    ):
        for number in range(40):
            producer.add(f"k{number}", "v")
        mine = len(drain(inbox))
        assert 0 < mine < 40
        listed: list[str] = []
        real = Layout.names

        def names_of(layout: Layout, folder: str, *, hidden: bool = False) -> list[str]:
            listed.append(folder)
            return real(layout, folder, hidden=hidden)

        monkeypatch.setattr(Layout, "names", names_of)
        for _ in range(5):
            assert inbox.take() is None
        assert "pending" not in listed
        for number in range(40):
            producer.add(f"again{number}", "v")
        assert len(drain(inbox)) > 0


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_who_may_only_look_is_shown_what_this_host_knows(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """On NFS 3 a listing is only sure to be current after a change of one's own to the folder."""
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network") as inbox:
        inbox.add("a", "1")
        with refusing(utime=error):
            assert [waiting.key for waiting in inbox] == ["a"]
            assert [name[20:] for name in inbox._handle.layout.names("pending")] == ["a"]


def test_a_listing_that_may_be_an_old_one_is_an_error(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsinbox.store.network.sharing, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network") as inbox:
        inbox.add("a", "1")
        with refusing(utime=errno.EIO), pytest.raises(UnusableInbox, match="cannot look into inbox"):
            list(inbox)


def test_a_file_in_drop_must_lie_still_by_this_host_s_own_watch(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hosts share the inbox, the age of a file by its times is another clock's: it says nothing
    here."""
    with Inbox(inbox_dir, codec="text", scope="network", drop_settle=0.1) as inbox:
        dropped = inbox_dir / "drop" / "a"
        dropped.write_text("1")
        later = time.time_ns() + 3600 * 10**9
        os.utime(dropped, ns=(later, later))  # nothing shows that it was renamed in
        monkeypatch.setattr("fsinbox.consumer.ingest.time_ns", lambda: later)
        assert inbox.take() is None
        time.sleep(0.12)
        assert drain(inbox) == [("a", "1")]


def just_dropped(inbox: Inbox, key: str, value: str) -> Path:
    """Drop a file whose times do not tell that it was renamed in: as when that was within a tick of the
    clock."""
    path = Path(inbox.path, "drop", key)
    path.write_text(value)
    later = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(later, later))
    return path


def test_a_drop_that_lies_still_has_come_before_an_add(
    shared: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsinbox.store.drops.UNTOLD", 0.01)
    just_dropped(shared, "a", "1")
    assert shared.add("a", "2") == "replaced"
    assert names(shared, "drop") == []
    assert drain(shared) == [("a", "2")]


@pytest.mark.parametrize(
    "done",
    [
        lambda path: path.write_text("more of it"),
        lambda path: (path.with_name(".new").write_text("1"), path.with_name(".new").rename(path)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
    ],
    ids=["written", "replaced", "gone", "a-link"],
)
def test_a_drop_that_something_is_done_to_is_later_than_an_add(
    shared: Inbox, done: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = just_dropped(shared, "a", "1")
    monkeypatch.setattr("fsinbox.store.drops.sleep", lambda seconds: done(path))
    assert shared.add("a", "2") == "new"
    assert len(names(shared, "pending")) == 1
    assert next(iter(shared)).value == "2"


def test_the_group_s_inbox_can_be_shared_by_hosts_too(inbox_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        with Inbox(inbox_dir, codec="text", scope="network", shared=True) as inbox:
            (inbox_dir / "index").unlink()
            assert inbox.add("a", "1") == "new"
            assert inbox.add("a", "2") == "replaced"
            assert stat.S_IMODE((inbox_dir / "index").stat().st_mode) == 0o660
            (name,) = names(inbox, "pending")
            assert stat.S_IMODE((inbox_dir / "pending" / name).stat().st_mode) == 0o660
            assert drain(inbox) == [("a", "2")]
    finally:
        os.umask(before)


# --- the index, and what comes late -------------------------------------------------------------------


def test_a_header_has_three_words_more_for_hosts(shared: Inbox) -> None:
    for value in "12":
        shared.add("a", value)
    number, tag, lines, sections, state, reserved = header_of(shared).decode().split()
    assert (len(number), len(tag), lines, sections) == (19, 8, f"{LINES:010d}", "000000000002")
    assert (state, reserved) == ("done", "00000")
    assert shared.index.peek() == shared.index.mark() == int(number)
    assert os.path.getsize(os.path.join(shared.path, "index")) == HEADER + LINES * LINE
    with Inbox(shared.path, codec="text") as other:
        assert other.add("a", "3") == "replaced"
    assert header_of(shared).split()[1].decode() == tag


GOOD = b"1780000000000000000 0a1b2c3d 0000065536 000000000007 done 00000\n"


def test_a_header_that_is_right_is_read() -> None:
    assert read_words(GOOD) == (1780000000000000000, "0a1b2c3d", 65536, 7, True)
    opened = GOOD.replace(b"done 00000", b"open 00100")
    assert read_words(opened) == (1780000000000000000, "0a1b2c3d", 65536, 7, False)


DAMAGE = {
    "nothing": b"",
    "rubbish": b"rubbish",
    "zeros": bytes(HEADER),
    "short": GOOD[:-1],
    "another-end": GOOD[:-1] + b" ",
    "for-one-host": b"1780000000000000000 0a1b2c3d 0000065536".ljust(HEADER - 1) + b"\n",
    "a-number-too-high": b"9" + GOOD[1:],
    "a-sign": b"+" + GOOD[1:],
    "digits-of-elsewhere": "\u0661".encode() + GOOD[2:],
    "a-tag-not-ascii": GOOD[:20] + b"\xc3\xa4" + GOOD[22:],
    "a-tag-of-zeros": GOOD[:20] + bytes(8) + GOOD[28:],
    "lines-not-in-buckets": GOOD.replace(b"65536", b"65537"),
    "sections-full": GOOD.replace(b"000000000007", b"9" * 12),
    "sections-of-13-digits": GOOD.replace(b" 000000000007", b" 1000000000007")[:HEADER],
    "sections-negative": GOOD.replace(b"000000000007", b"-00000000007"),
    "neither-open-nor-done": GOOD.replace(b"done", b"gone"),
    "reserved-when-done": GOOD.replace(b"done 00000", b"done 99999"),
    "reserved-negative": GOOD.replace(b"done 00000", b"open -0001"),
    "reserved-more-than-there-are": b"0" * 19 + GOOD[19:].replace(b"done 00000", b"open 00001"),
    "spaces": GOOD.replace(b"000000000007", b" 00000000007"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_header_that_is_damaged_mends_itself_at_the_next_add(shared: Inbox, damage: bytes) -> None:
    shared.add("a", "1")
    shared.add("b", "2")
    tag = read_words(header_of(shared))[1]
    write_over(shared, damage.ljust(HEADER, b"\0"))
    assert read_words(header_of(shared)) == (0, "", 0, 0, False)
    with Inbox(shared.path, codec="text") as other:  # (it has not seen what was there before)
        assert other._handle.index.peek() == other._handle.index.mark() == 0
        assert other.add("a", "3") == "new"  # nothing is known any more
        last, new_tag, lines, _, done = read_words(header_of(shared))
        assert (done, lines) == (True, LINES)
        assert new_tag != tag
        assert other.add("a", "4") == "replaced"
    waiting = names(shared, "pending")
    assert int(waiting[-1][:19]) == last == max(int(name[:19]) for name in waiting)
    assert drain(shared) == [("a", "4"), ("b", "2")]


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER, HEADER + LINE, HEADER + LINES * LINE - 1])
def test_a_file_that_is_cut_short_mends_itself_at_the_next_add(shared: Inbox, size: int) -> None:
    """As by an ftruncate that comes late, of a host that was about to make the table."""
    shared.add("a", "1")
    os.truncate(os.path.join(shared.path, "index"), size)
    assert shared.add("b", "2") == "new"
    assert os.path.getsize(os.path.join(shared.path, "index")) == HEADER + LINES * LINE
    assert shared.add("a", "3") == "new"
    assert shared.add("b", "4") == "replaced"
    assert drain(shared) == [("a", "3"), ("b", "4")]


def test_an_ftruncate_that_comes_late_in_the_midst_of_a_section_takes_only_lines_away(shared: Inbox) -> None:
    shared.add("a", "1")
    with meanwhile("rename", lambda: os.truncate(os.path.join(shared.path, "index"), HEADER)):
        assert shared.add("b", "2") == "new"
    assert shared.add("a", "3") == "new"
    assert drain(shared) == [("a", "3"), ("b", "2")]


@pytest.mark.parametrize("remove", [False, True])
def test_a_file_that_is_lost_is_made_anew(shared: Inbox, remove: bool) -> None:
    shared.add("a", "1")
    last = shared.index.peek()
    path = Path(shared.path, "index")
    path.unlink() if remove else path.write_bytes(b"")
    assert shared.index.peek() == shared.index.peek_place("a") == 0
    element = take(shared)  # nothing is wrong with the consumer meanwhile
    assert not element.superseded()
    assert shared.add("a", "2") == "new"
    assert shared.index.peek() > last
    element.ack()
    assert drain(shared) == [("a", "2")]


def test_a_section_that_was_left_open_is_followed_by_a_new_tag_and_no_old_line_is_believed(
    shared: Inbox,
) -> None:
    shared.add("a", "1")
    (older,) = names(shared, "pending")
    tag = read_words(header_of(shared))[1]
    leave_open(shared)
    assert shared.index.peek_place("a") == 0
    assert shared.add("a", "2") == "new"
    assert read_words(header_of(shared))[1] != tag
    assert len(names(shared, "pending")) == 2
    assert shared.add("a", "3") == "replaced"  # where 2 was, not where 1 is
    assert Path(shared.path, "pending", older).read_text() == "1"
    assert drain(shared) == [("a", "3")]


def test_each_kind_of_section_marks_itself_as_open_before_it_publishes(shared: Inbox) -> None:
    """Whoever publishes in a place that was found could be late there, as well as whoever was given a
    number."""
    seen: list[bytes] = []

    def look(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "rename":
            seen.append(header_of(shared)[53:])
        return call(*arguments, **more)

    def renames(step: Callable[[], object]) -> list[bytes]:
        seen.clear()
        with intercepted(look):
            step()
        assert header_of(shared)[53:] == b"done 00000\n"
        return seen

    assert renames(lambda: shared.add("a", "1")) == [b"open 00001\n"]
    assert renames(lambda: shared.add("a", "2")) == [b"open 00000\n"]
    new = [(f"k{number}", "v") for number in range(3)]
    assert renames(lambda: shared.add_many(new)) == [b"open 00003\n"] * 3
    assert (
        renames(lambda: shared.add_many([*new, ("b", "1"), *new]))
        == [b"open 00000\n"] * 3 + [b"open 00004\n"] * 4
    )


def test_a_listing_does_not_count_on_numbers_that_are_being_published(shared: Inbox) -> None:
    """Of two that come while it runs a listing may show the later one only."""
    shared.add("a", "1")
    first = shared.index.mark()
    marks: list[int] = []

    def look(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "rename":
            marks.append(shared.index.mark())
        return call(*arguments, **more)

    with intercepted(look):
        shared.add_many((f"k{number}", "v") for number in range(250))
    last = shared.index.mark()
    numbers = sorted(int(name[:19]) for name in names(shared, "pending"))
    assert len(numbers) == 251
    for section in range(3):
        before = first if section == 0 else numbers[100 * section]
        for mark in marks[100 * section : 100 * section + 100]:
            assert before <= mark < numbers[100 * section + 1]
    assert last == numbers[-1]


def test_what_is_being_published_is_not_taken(shared: Inbox) -> None:
    with Inbox(shared.path, codec="text", max_inflight=10) as consumer:
        assert consumer.take() is None
        taken: list[str] = []

        def look() -> None:
            while element := consumer.take():
                taken.append(element.key)

        hits = iter(range(5))
        with meanwhile("rename", look, when=lambda *_: next(hits) == 3):
            shared.add_many((f"k{number}", "v") for number in range(5))
        assert taken == []
        look()
        assert taken == [f"k{number}" for number in range(5)]


def test_a_section_left_open_by_a_dead_host_does_not_stop_the_consumer(shared: Inbox) -> None:
    with Inbox(shared.path, codec="text") as consumer, Inbox(shared.path, codec="text") as dead:
        consumer.become_consumer()
        hits = iter(range(9))
        with meanwhile("rename", cut_off, when=lambda *_: next(hits) == 2), pytest.raises(CutOff):
            dead.add_many((f"k{number}", "v") for number in range(4))
        assert b" open 00004" in header_of(shared)
        began = time.monotonic()
        assert take(consumer, timeout=10).key == "k0"
        assert time.monotonic() - began < 2.5
        assert b" done 00000" in header_of(shared)
        consumer.commit()
        assert drain(consumer) == [("k1", "v")]


def test_what_cannot_be_settled_now_is_tried_again(shared: Inbox) -> None:
    shared.become_consumer()
    with Inbox(shared.path, codec="text") as dead:
        hits = iter(range(9))
        with meanwhile("rename", cut_off, when=lambda *_: next(hits) == 1), pytest.raises(CutOff):
            dead.add_many([("a", "1"), ("b", "2")], durable=False)
    with refusing(pwrite=errno.EIO):
        assert shared.take(timeout=1.6) is None
    assert take(shared, timeout=5).key == "a"


@pytest.mark.parametrize("end", ["ack", "nack"])
def test_what_a_cut_off_producer_does_late_counts_for_nobody(shared: Inbox, end: str) -> None:
    """Its line and its value come when a newer one has been taken: what is added then must not go below
    that."""
    late: list[tuple[int, bytes]] = []

    def cut(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "pwrite" and len(arguments[1]) == LINE:  # type: ignore[arg-type]
            late.append((arguments[2], arguments[1]))  # type: ignore[arg-type]
            raise CutOff
        return call(*arguments, **more)

    with Inbox(shared.path, codec="text") as other, intercepted(cut), pytest.raises(CutOff):
        other.add("k", "late")
    ((slot, line),) = late
    with Inbox(shared.path, codec="text") as other:
        other.add("k", "newer")
        element = take(shared)
        assert element.value == "newer"
        write_over(shared, line, slot)
        Path(shared.path, "pending", element_name(int(line[11:30]), "k")).write_text("late")
        other.add("k", "newest")
    element.ack() if end == "ack" else element.nack()
    assert drain(shared) == [("k", "newest")], "what goes back is superseded"


def test_a_rename_that_comes_late_to_a_place_that_was_found_is_older_than_what_was_added_since(
    shared: Inbox,
) -> None:
    shared.add("k", "old")
    late: list[str] = []

    def cut(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "rename":
            late.append(str(arguments[1]))
            Path(shared.path, "kept").write_bytes(Path(shared.path, "tmp", str(arguments[0])).read_bytes())
            raise CutOff
        return call(*arguments, **more)

    with Inbox(shared.path, codec="text") as other, intercepted(cut), pytest.raises(CutOff):
        other.add("k", "late")
    assert late == names(shared, "pending")  # it had found the place of the old one
    assert shared.add("k", "newer") == "new"
    os.rename(os.path.join(shared.path, "kept"), os.path.join(shared.path, "pending", late[0]))
    assert shared.add("k", "newest") == "replaced"
    assert drain(shared) == [("k", "newest")]


def test_a_consumer_that_coalesces_late_does_not_put_an_older_value_over_a_newer_one(shared: Inbox) -> None:
    """It is cut off between its two renames, and loses the lock; it is still the consumer when it is back."""
    shared.add("k", "1")
    leave_open(shared)
    shared.add("k", "2")
    added: list[str] = []

    def another_host() -> None:
        with mock.patch.object(NetworkIndex, "_flock"), Inbox(shared.path, codec="text") as other:
            added.append(other.add("k", "3"))

    shared.become_consumer()

    def renamed(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, int]
    ) -> object:
        if name == "rename" and more.get("src_dir_fd") == shared.layout.folder("inflight") and not added:
            run_beside(another_host)
        return call(*arguments, **more)

    with intercepted(renamed), pytest.raises(UnusableInbox, match="another one has had the lock since"):
        shared.take()
    assert added == ["new"]
    assert drain(shared)[-1] == ("k", "3")


@pytest.mark.parametrize("state", ["open 00001", "done 00000"])
def test_a_header_that_comes_late_does_not_set_back_who_has_seen_a_later_one(
    shared: Inbox, state: str
) -> None:
    """NFS 3 takes it from a host that has lost the lock when the server was restarted. By then that host's
    own lines and its tag are those of others: no line may be believed."""
    shared.add("a", "1")
    late = header_of(shared)[:53] + state.encode()
    with mock.patch(
        "fsinbox.store.network.sections.time_ns", lambda: time.time_ns() + 3600 * 10**9
    ):  # another host, whose clock is ahead
        leave_open(shared)
        shared.add("a", "2")
        shared.add("b", "3")
    write_over(shared, late)
    last = max(int(name[:19]) for name in names(shared, "pending"))
    assert shared.add("a", "4") == "new"
    assert shared.index.peek() > last
    write_over(shared, late)
    assert drain(shared) == [("a", "4"), ("b", "3")]
    assert shared.add("c", "5") == "new"
    assert shared.index.peek() > last


def test_a_line_above_the_last_number_shows_that_the_header_was_set_back(shared: Inbox) -> None:
    shared.add("a", "1")
    late = header_of(shared)
    shared.add("a", "2")
    shared.add("b", "3")
    write_over(shared, late)
    with Inbox(shared.path, codec="text") as other:  # (it has not seen what was there before)
        assert other.add("b", "4") == "new"
        assert read_words(header_of(shared))[1].encode() != late[20:28]
        write_over(shared, late)
    with Inbox(shared.path, codec="text") as other:
        assert sorted(drain(other)) == [("a", "2"), ("b", "4")]
        assert names(other, "failed") == []


def test_numbers_that_were_reserved_are_not_used_after_the_header_was_found_to_be_set_back(
    shared: Inbox,
) -> None:
    shared.add("a", "1")
    late = header_of(shared)
    shared.add("b", "2")
    last = shared.index.peek()
    write_over(shared, late)
    with (
        mock.patch("fsinbox.store.network.sections.time_ns", lambda: 1),
        Inbox(shared.path, codec="text") as other,
    ):
        other.add_many([("c", "3"), ("b", "4"), ("d", "5"), ("e", "6")])
    added = [int(name[:19]) for key in "bde" for name in names(shared, "pending") if name.endswith(key)]
    assert added[0] == last  # the first b
    assert added == sorted(set(added))
    assert drain(shared) == [("a", "1"), ("c", "3"), ("b", "4"), ("d", "5"), ("e", "6")]


def test_a_section_that_took_long_asks_before_it_goes_on(
    shared: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was stopped in its midst, say: others may have had the lock since, and it is told before it
    publishes."""
    shared.add("a", "0")
    ticks = iter([0.0] + [100.0] * 100)
    monkeypatch.setattr("fsinbox.store.network.sections.monotonic", lambda: next(ticks))

    def another_host() -> None:
        last, tag, lines, sections, _ = read_words(header_of(shared))
        write_over(shared, b"%019d %b %010d %012d done 00000" % (last, tag.encode(), lines, sections + 1))

    with meanwhile("rename", another_host), pytest.raises(AddFailed, match="another one has had the lock"):
        shared.add_many([("a", "1"), ("a", "2"), ("b", "3")])
    assert [waiting.value for waiting in shared] == ["1"]


def test_a_full_bucket_forgets_its_oldest_line(shared: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsinbox.store.network.sections.LINES", BUCKET)
    keys = [f"k{number}" for number in range(BUCKET + 8)]
    for key in keys:
        assert shared.add(key, "1") == "new"
    assert os.path.getsize(os.path.join(shared.path, "index")) == HEADER + BUCKET * LINE
    assert [shared.add(key, "2") for key in keys[8:]] == ["replaced"] * BUCKET
    assert [shared.add(key, "2") for key in keys[:8]] == ["new"] * 8
    assert drain(shared) == [(key, "2") for key in keys]


def test_many_are_looked_for_in_drop_with_one_listing(shared: Inbox) -> None:
    looked: list[str] = []
    real = os.lstat

    def look(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "lstat" and more.get("dir_fd") == shared.layout.folder("drop"):
            looked.append(str(arguments[0]))
        return call(*arguments, **more)

    shared.add("k7", "0")
    dropped = just_dropped(shared, "k3", "older")
    os.utime(dropped, ns=(1, 1))
    assert real(dropped)
    with intercepted(look):
        shared.add_many((f"k{number}", "1") for number in range(50))
    assert set(looked) == {"k3", ".fsinboxignore"}
    assert names(shared, "drop") == []
    assert sorted(value for _, value in drain(shared)) == ["1"] * 50


def test_what_cannot_be_looked_up_counts_as_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnusableInbox, match="not known to be safe"):
        sharing_of("/i", ("ext4", "rw"))
    assert sharing_of("/i", ("tmpfs", "rw")).local
