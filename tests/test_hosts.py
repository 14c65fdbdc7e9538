"""An inbox that several hosts share, on this one: how its file system is chosen, and what every add does there.

tests/hosts/ runs the real thing, over NFS and GlusterFS. Here `network` is asked for on a local disk, as on the server itself,
or with the locks of a client.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import fsinbox.hosts
from fsinbox import AddFailed, Inbox, UnusableInbox, protocol
from fsinbox.hosts import Sharing, sharing_of
from fsinbox.layout import Layout
from fsinbox.names import element_name
from fsinbox.sequence import Sequence
from tests.shim import intercepted, meanwhile, refusing
from tests.usual import drain, names, take

CLIENT = Sharing("nfs", opens_first=True, touches_first=True)


@pytest.fixture(params=["server", "client"])
def shared(request: pytest.FixtureRequest, inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """An inbox for several hosts: as the server itself sees it, or with all that a client must do."""
    if request.param == "client":
        monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network", max_inflight=2) as inbox:
        yield inbox


# --- how it is chosen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("nfs4", "rw,vers=4.2,hard", Sharing("nfs4", opens_first=True)),
        ("nfs4", "rw,vers=4.2,lookupcache=none,local_lock=none", Sharing("nfs4")),
        ("nfs", "rw,vers=4.1,hard", Sharing("nfs", opens_first=True)),
        ("nfs", "rw,vers=3,lookupcache=none,hard", Sharing("nfs", touches_first=True)),
        ("ceph", "rw", Sharing("ceph", one_clock=False)),
        ("9p", "rw", Sharing("9p", one_clock=False)),
        ("ext4", "rw", Sharing("ext4", range_locks=True, local=True)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_host_works_on_a_shared_inbox_as_its_mount_needs_it(kind: str, options: str, wanted: Sharing) -> None:
    assert sharing_of("/i", (kind, options)) == wanted


@pytest.mark.parametrize(
    ("kind", "options", "reason", "way_out"),
    [
        ("nfs", "rw,vers=3,hard", "names that another host has changed", "-o lookupcache=none"),
        ("nfs", "rw,vers=3,lookupcache=pos", "names that another host has changed", "-o vers=4.2"),
        ("nfs4", "rw,vers=4.2,nocto", "nocto", "mount it without"),
        ("nfs4", "rw,vers=4.2,local_lock=flock", "keeps locks to this host", "without local_lock"),
        ("nfs", "rw,vers=3,nolock,lookupcache=none", "keeps locks to this host", "without local_lock, nolock"),
        ("cifs", "rw", "not known to be safe", "--scope local"),
        ("fuse.sshfs", "rw", "not known to be safe", "--scope local"),
    ],
)
def test_a_mount_on_which_it_would_not_be_right_is_refused(kind: str, options: str, reason: str, way_out: str) -> None:
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
        ({"graphs/active/volfile": "    type performance/quick-read\n"}, "has performance/quick-read, which shows old states"),
        (
            {"graphs/active/volfile": "    type performance/md-cache\n    type performance/write-behind\n"},
            "md-cache, performance/w",
        ),
        ({"root/private": "direct_io_mode = 2\nentry_timeout = 0.0\nattribute_timeout = 0.0\n"}, "direct-io-mode=enable"),
        ({"root/private": "direct_io_mode = 1\nentry_timeout = 1.0\nattribute_timeout = 0.0\n"}, "entry-timeout=0"),
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
        assert sharing_of(f"{tmp_path}/a/inbox", ("fuse.glusterfs", "rw")) == Sharing("fuse.glusterfs", one_clock=False)


def test_nothing_is_made_on_a_mount_that_is_refused(inbox_dir: Path) -> None:
    with mock.patch("fsinbox.layout.mount_of", lambda path: ("nfs", "rw,vers=3")), pytest.raises(UnusableInbox):
        Inbox(inbox_dir)
    assert not inbox_dir.exists() or not os.listdir(inbox_dir)


def test_an_inbox_for_one_host_can_be_asked_for_anywhere(inbox_dir: Path) -> None:
    with mock.patch("fsinbox.layout.mount_of", lambda path: ("fuse.sshfs", "rw")), Inbox(inbox_dir, scope="local") as inbox:
        assert inbox._layout.sharing is None
    assert (inbox_dir / "format").read_text() == "fsinbox 1 local\n"


def test_a_scope_that_is_none_is_refused(inbox_dir: Path) -> None:
    with pytest.raises(ValueError, match="use 'auto', 'local' or 'network'"):
        Inbox(inbox_dir, scope="galaxy")


# --- the same queue ------------------------------------------------------------------------------------------------


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
    assert names(shared, "keys") == []


def test_what_is_put_back_deferred_or_given_up_is_as_always(shared: Inbox) -> None:
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
    assert drain(shared) == [(f"k{number}", str(last)) for number, last in enumerate([14, 15, 16, 17, 18, 19, 13])]


def test_a_key_with_several_places_is_folded(shared: Inbox) -> None:
    shared.add("a", "1")
    shared.add("b", "2")
    for value in ("3", "4"):
        os.unlink(os.path.join(shared.path, "keys", "a"))
        shared.add("a", value)
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
    element = take(shared, timeout=5)  # (written and renamed within one tick of the clock, it has to lie still)
    assert (element.key, element.value) == ("k.1", "value")
    assert names(shared, "tmp") == []


@pytest.fixture
def shell_producer() -> Callable[..., subprocess.CompletedProcess[str]]:
    script = Path(__file__).parents[1] / "scripts" / "fsinbox-add"

    def run(inbox: Inbox, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", script, "--inbox", inbox.path, *words], capture_output=True, text=True, timeout=30)

    return run


def test_a_damaged_sequence_heals(shared: Inbox) -> None:
    shared.add("a", "1")
    Path(shared.path, "sequence").write_bytes(b"rubbish")
    shared.add("b", "2")
    shared.add("a", "3")
    assert drain(shared) == [("a", "3"), ("b", "2")]


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_whose_clock_is_an_hour_off_neither_loses_nor_reorders(shared: Inbox, hours: int) -> None:
    def elsewhere() -> int:
        return time.time_ns() + hours * 3600 * 10**9

    shared.add("a", "1")
    with mock.patch("fsinbox.sequence.time_ns", elsewhere), Inbox(shared.path, codec="text") as other:
        other.add("a", "2")
        other.add("b", "3")
    shared.add("b", "4")
    shared.add("c", "5")
    element = take(shared)
    assert (element.key, element.value) == ("a", "2")
    with mock.patch("fsinbox.sequence.time_ns", elsewhere), Inbox(shared.path, codec="text") as other:
        other.add("a", "6")
    shared.add("a", "7")
    element.nack()
    assert drain(shared) == [("b", "4"), ("c", "5"), ("a", "7")]


# --- a host that is cut off -------------------------------------------------------------------------------------------


def test_an_add_that_the_server_did_not_take_is_an_error(shared: Inbox) -> None:
    """fsync of `sequence` is where a client learns that it has lost the lock."""
    with refusing(fsync=errno.EIO), pytest.raises(AddFailed, match="was not added") as caught:
        shared.add("a", "1", durable=False)
    assert not caught.value.maybe_added
    shared.add("a", "2")
    with refusing(fsync=errno.EIO), pytest.raises(AddFailed, match="may or may not") as caught:
        shared.add("a", "3", durable=False)
    assert caught.value.maybe_added
    assert names(shared, "tmp") == []


def test_a_producer_that_has_lost_the_lock_without_being_told_says_so(shared: Inbox) -> None:
    with Inbox(shared.path, codec="text") as other:
        shared.add("a", "0")

        def another_host() -> None:
            other._sequence._seen = Path(shared.path, "sequence").read_bytes()
            other._sequence.boot, other._sequence._sections = "elsewher", 7
            if other._sequence._fd < 0:
                other._sequence._open()
            other._sequence._write(other._sequence.read()[0] + 1, b"done")

        with meanwhile("rename", another_host), pytest.raises(AddFailed, match="another one has had the lock") as caught:
            shared.add("a", "1")
    assert caught.value.maybe_added


def test_what_a_cut_off_producer_does_late_counts_for_nobody(shared: Inbox) -> None:
    """Its hint and its value come when a newer one has been taken: what is added then must not go below that."""
    hints: list[tuple[str, str]] = []

    class CutOff(BaseException):
        pass

    def cut(layout: Layout, encoded: str, number: int, boot: str) -> None:
        hints.append((encoded, f"{number:019d}.{boot}"))
        raise CutOff

    with mock.patch.object(protocol, "write_hint", cut), pytest.raises(CutOff):
        shared.add("k", "late")
    ((encoded, target),) = hints
    with Inbox(shared.path, codec="text") as other:
        other.add("k", "newer")
        element = take(shared)
        assert element.value == "newer"
        os.symlink(target, os.path.join(shared.path, "keys", encoded))
        Path(shared.path, "pending", element_name(int(target[:19]), encoded)).write_text("late")
        other.add("k", "newest")
    assert shared.take() is None  # the key is out; what lies below it is late, and dropped
    element.ack()
    assert drain(shared)[-1] == ("k", "newest")


def test_a_rename_whose_answer_was_lost_was_done(shared: Inbox) -> None:
    """After a restart of the server the client asks again, and hears that the file is gone."""
    twice: list[str] = []

    def done_before(name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]) -> object:
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


def test_a_value_that_is_taken_before_its_add_has_ended_is_told_to_be_behind(shared: Inbox) -> None:
    """The consumer needs no lock to take, and removes the hint by which the add would have known its place."""
    with Inbox(shared.path, codec="text") as other:
        taken: list[str] = []

        def published(name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]) -> object:
            done = call(*arguments, **more)
            if name == "rename" and not taken:
                taken.append("a")
                taken.append(take(other).key)
            return done

        with intercepted(published):
            assert shared.add("a", "1") == "behind"
        assert taken == ["a", "a"]
        assert names(shared, "keys") == []
        assert shared.add("a", "2") == "behind"
        other.commit()
        assert drain(other) == [("a", "2")]


def test_a_full_disk_in_the_midst_of_a_section_is_an_error_and_heals(shared: Inbox) -> None:
    shared.add("a", "1")

    def half(name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]) -> object:
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


def test_the_lock_of_a_shared_inbox_excludes_other_descriptors(shared: Inbox) -> None:
    with Inbox(shared.path) as other, other._sequence:
        assert not shared._sequence.try_lock()
    assert shared._sequence.try_lock()
    shared._sequence.unlock()


def test_a_long_listing_is_only_done_if_there_is_something_new(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: CLIENT)
    monkeypatch.setattr("fsinbox.consumer._LONG", 3)
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
def test_who_may_only_look_is_shown_what_this_host_knows(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """On NFS 3 a listing is only sure to be current after a change of one's own to the folder."""
    monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network") as inbox:
        inbox.add("a", "1")
        with refusing(utime=error):
            assert [waiting.key for waiting in inbox] == ["a"]
            assert inbox._layout.names("keys") == ["a"]


def test_a_listing_that_may_be_an_old_one_is_an_error(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsinbox.hosts, "sharing_of", lambda path, mount: CLIENT)
    with Inbox(inbox_dir, codec="text", scope="network") as inbox:
        inbox.add("a", "1")
        with refusing(utime=errno.EIO), pytest.raises(UnusableInbox, match="cannot look into inbox"):
            list(inbox)


def test_a_file_in_drop_must_lie_still_by_this_host_s_own_watch(inbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hosts share the inbox, the age of a file by its times is another clock's: it says nothing here."""
    with Inbox(inbox_dir, codec="text", scope="network", drop_settle=0.1) as inbox:
        dropped = inbox_dir / "drop" / "a"
        dropped.write_text("1")
        later = time.time_ns() + 3600 * 10**9
        os.utime(dropped, ns=(later, later))  # nothing shows that it was renamed in
        monkeypatch.setattr("fsinbox.adopt.time_ns", lambda: later)
        assert inbox.take() is None
        time.sleep(0.12)
        assert drain(inbox) == [("a", "1")]


def just_dropped(inbox: Inbox, key: str, value: str) -> Path:
    """Drop a file whose times do not tell that it was renamed in: as when that was within a tick of the clock."""
    path = Path(inbox.path, "drop", key)
    path.write_text(value)
    later = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(later, later))
    return path


def test_a_drop_that_lies_still_has_come_before_an_add(shared: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsinbox.adopt._STILL", 0.01)
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
    monkeypatch.setattr("fsinbox.adopt.sleep", lambda seconds: done(path))
    assert shared.add("a", "2") == "new"
    assert len(names(shared, "pending")) == 1
    assert next(iter(shared)).value == "2"


def test_the_group_s_inbox_can_be_shared_by_hosts_too(inbox_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        with Inbox(inbox_dir, codec="text", scope="network", shared=True) as inbox:
            (inbox_dir / "sequence").unlink()
            assert inbox.add("a", "1") == "new"
            assert inbox.add("a", "2") == "replaced"
            assert stat.S_IMODE((inbox_dir / "sequence").stat().st_mode) == 0o660
            (name,) = names(inbox, "pending")
            assert stat.S_IMODE((inbox_dir / "pending" / name).stat().st_mode) == 0o660
            assert drain(inbox) == [("a", "2")]
    finally:
        os.umask(before)


def test_sequence_is_a_word_longer_for_hosts(shared: Inbox) -> None:
    shared.add("a", "1")
    number, tag, sections, state = Path(shared.path, "sequence").read_text().split()
    assert (len(number), len(tag), sections, state) == (19, 8, "000000000001", "done")
    assert shared._sequence.peek() == int(number)
    with Sequence(shared._layout) as again:
        assert again.boot == tag
