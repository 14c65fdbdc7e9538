"""The folders: created durably and privately, by any number of processes at once; nothing foreign is touched
or followed."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fsinbox.store.index
from fsinbox import AddFailed, Inbox, InboxError, UnusableInbox
from fsinbox.store.creating import set_mode
from fsinbox.store.folders import FILES, FOLDERS
from fsinbox.store.layout import Layout
from fsinbox.store.mounts import NETWORK_FILE_SYSTEMS, file_system_type, has_no_journal, is_network
from tests.shim import intercepted, meanwhile, refusing

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    """Restores the umask after a test that sets it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_an_inbox_is_created_with_all_its_parts(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        assert inbox.path == str(inbox_dir)
    assert {path.name for path in inbox_dir.iterdir()} == {*FOLDERS, *FILES}
    assert all((inbox_dir / name).is_dir() for name in FOLDERS)
    assert (inbox_dir / "format").read_text() in ("fsinbox 2 local\n", "fsinbox 2 network\n")


def test_a_relative_path_stays_the_same_inbox_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Inbox() as inbox:
        monkeypatch.chdir(tmp_path / "elsewhere")
        inbox.add("a", 1)
        assert inbox.path == str(tmp_path / "inbox")
    assert len(list((tmp_path / "inbox/pending").iterdir())) == 1


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_private_inbox_is_private_whatever_the_umask(inbox_dir: Path, umask: None, mask: int) -> None:
    os.umask(mask)
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        inbox.add("b", 1)
        element = inbox.take()
        assert element
        element.fail("no")
    assert mode_of(inbox_dir) == 0o700
    assert {mode_of(inbox_dir / name) for name in FOLDERS} == {0o700}
    assert {mode_of(inbox_dir / name) for name in FILES} == {0o600}
    files = [*(inbox_dir / "pending").iterdir(), *(inbox_dir / "failed").iterdir()]
    assert len(files) == 3
    assert {mode_of(path) for path in files} == {0o600}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_shared_inbox_is_the_group_s_whatever_the_umask(
    inbox_dir: Path, tmp_path: Path, umask: None, mask: int
) -> None:
    os.umask(mask)
    for name in ("copied", "moved"):
        (tmp_path / name).write_text("1")
        (tmp_path / name).chmod(0o600)
    with Inbox(inbox_dir, shared=True) as inbox:
        for key in "ab":
            inbox.add(key, 1)
        inbox.add_file("copied", tmp_path / "copied")
        inbox.add_file("moved", tmp_path / "moved", move=True)
        element = inbox.take()
        assert element
        element.fail("no")
    assert mode_of(inbox_dir) == 0o2770
    assert {mode_of(inbox_dir / name) for name in FOLDERS} == {0o2770}
    assert {mode_of(inbox_dir / name) for name in FILES} == {0o660}
    files = [*(inbox_dir / "pending").iterdir(), *(inbox_dir / "failed").iterdir()]
    assert len(files) == 5
    assert {mode_of(path) for path in files} == {0o660}


@pytest.mark.parametrize("name", ["index", "consumer.lock"])
def test_a_shared_inbox_stays_the_group_s_when_a_file_of_it_is_made_anew(
    inbox_dir: Path, umask: None, name: str
) -> None:
    Inbox(inbox_dir, shared=True).close()
    (inbox_dir / name).unlink()
    os.umask(0o077)
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        assert inbox.take()
    assert mode_of(inbox_dir / name) == 0o660


def test_the_group_may_use_a_shared_inbox_that_was_opened_without_shared(
    inbox_dir: Path, umask: None
) -> None:
    Inbox(inbox_dir, shared=True).close()
    os.umask(0o077)
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
    (element,) = (inbox_dir / "pending").iterdir()
    assert mode_of(element) == 0o660


def test_processes_that_create_an_inbox_at_once_all_succeed(tmp_path: Path) -> None:
    rounds, several = 12, 4
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(several)

    def create() -> None:
        for number in range(rounds):
            barrier.wait(20)
            with Inbox(tmp_path / str(number), durable=False) as inbox:
                inbox.add(str(os.getpid()), number)

    children = [fork.Process(target=create) for _ in range(several)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    for number in range(rounds):
        with Inbox(tmp_path / str(number), create=False) as inbox:
            assert len(inbox) == several
            assert {path.name for path in Path(inbox.path).iterdir()} == {*FOLDERS, *FILES}


def test_an_existing_empty_directory_becomes_an_inbox(inbox_dir: Path) -> None:
    inbox_dir.mkdir()
    with Inbox(inbox_dir) as inbox:
        assert inbox.add("a", 1) == "new"


def test_a_directory_with_foreign_files_is_refused_and_left_as_it_was(inbox_dir: Path) -> None:
    inbox_dir.mkdir()
    (inbox_dir / "thesis.tex").write_text("mine")
    with pytest.raises(UnusableInbox, match=r"thesis\.tex.*empty or does not exist"):
        Inbox(inbox_dir)
    assert [path.name for path in inbox_dir.iterdir()] == ["thesis.tex"]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInbox, match=f"{tmp_path}/no does not exist: create it first"):
        Inbox(tmp_path / "no" / "inbox")
    assert not list(tmp_path.iterdir())


def test_without_create_a_missing_inbox_is_an_error_that_says_how_to_make_one(inbox_dir: Path) -> None:
    with pytest.raises(UnusableInbox, match="init"):
        Inbox(inbox_dir, create=False)
    assert not inbox_dir.exists()
    inbox_dir.mkdir()
    with pytest.raises(UnusableInbox, match="init"):
        Inbox(inbox_dir, create=False)
    assert not list(inbox_dir.iterdir())


def test_a_path_that_is_a_file_is_an_error(inbox_dir: Path) -> None:
    inbox_dir.write_text("")
    with pytest.raises(UnusableInbox, match="Not a directory"):
        Inbox(inbox_dir)


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_is_refused_with_the_way_out(inbox_dir: Path, version: int) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_text(f"fsinbox {version} local\n")
    with pytest.raises(
        UnusableInbox, match=rf"format {version}.*knows 2: .*`fsinbox export` it .*`fsinbox import` it"
    ):
        Inbox(inbox_dir)


@pytest.mark.parametrize("text", [b"", b"\0" * 16, b"fsinbox", b"mbox 1 local\n", b"\xff\xfe\xfd 1 local"])
def test_a_damaged_format_is_refused_with_a_way_out(inbox_dir: Path, text: bytes) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_bytes(text)
    with pytest.raises(UnusableInbox, match=r"format.*fsinbox 2 local"):
        Inbox(inbox_dir)


def test_a_format_that_is_a_fifo_or_a_link_does_not_hang_or_mislead(inbox_dir: Path, tmp_path: Path) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").rename(tmp_path / "format")
    os.mkfifo(inbox_dir / "format")
    with pytest.raises(UnusableInbox):
        Inbox(inbox_dir)
    (inbox_dir / "format").unlink()
    (inbox_dir / "format").symlink_to(tmp_path / "format")
    with pytest.raises(UnusableInbox):
        Inbox(inbox_dir)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_a_link_is_not_followed(inbox_dir: Path, tmp_path: Path, name: str) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / name).rename(tmp_path / "victim")
    (inbox_dir / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UnusableInbox, match=rf"{name}.*(real directory|check the path)"):
        Layout(str(inbox_dir)).folder(name)


@pytest.mark.parametrize("name", ["tmp", "pending"])
def test_a_producer_writes_nothing_through_a_link(inbox_dir: Path, tmp_path: Path, name: str) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / name).rename(tmp_path / "victim")
    (inbox_dir / name).symlink_to(tmp_path / "victim")
    with pytest.raises(InboxError), Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("name", ["inflight", "deferred", "drop", "attempts"])
def test_a_consumer_takes_nothing_through_a_link_and_loses_nothing(
    inbox_dir: Path, tmp_path: Path, name: str
) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
    (inbox_dir / name).rename(tmp_path / "victim")
    (inbox_dir / name).symlink_to(tmp_path / "victim")
    with Inbox(inbox_dir) as inbox, pytest.raises(UnusableInbox):
        inbox.take()
    (inbox_dir / name).unlink()
    (tmp_path / "victim").rename(inbox_dir / name)
    with Inbox(inbox_dir) as inbox:
        assert tuple(inbox.take() or ()) == ("a", 1)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_belongs_is_an_error_that_names_it(inbox_dir: Path, name: str) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / name).rmdir()
    (inbox_dir / name).write_text("")
    with pytest.raises(UnusableInbox, match=name):
        Layout(str(inbox_dir)).folder(name)


@pytest.mark.parametrize("name", ["tmp", "failed"])
def test_a_file_where_a_folder_belongs_in_a_half_made_inbox_is_an_error_that_names_it(
    inbox_dir: Path, name: str
) -> None:
    inbox_dir.mkdir()
    (inbox_dir / name).write_text("")
    with pytest.raises(UnusableInbox, match=name):
        Inbox(inbox_dir)


@pytest.mark.parametrize("made", range(len(FOLDERS) + len(FILES)))
def test_a_half_made_inbox_is_finished(inbox_dir: Path, made: int) -> None:
    """Its creator was killed after `made` of the steps."""
    inbox_dir.mkdir()
    for name in FOLDERS[:made]:
        (inbox_dir / name).mkdir()
    for name in FILES[: max(0, made - len(FOLDERS))]:
        (inbox_dir / name).touch()
    (inbox_dir / ".format.12345").write_text("fsinb")
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        assert tuple(inbox.take() or ()) == ("a", 1)


def test_an_add_to_an_inbox_that_was_removed_while_open_fails_and_says_so(inbox_dir: Path) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
        shutil.rmtree(inbox_dir)
        with pytest.raises(AddFailed, match="was not added") as caught:
            inbox.add("a", 2)
        assert not caught.value.maybe_added
    assert not inbox_dir.exists()


@pytest.mark.parametrize("after", ["nothing", "an add", "a take"])
def test_a_take_from_an_inbox_that_was_removed_while_open_fails_and_says_so(
    inbox_dir: Path, after: str
) -> None:
    with Inbox(inbox_dir) as inbox:
        if after == "an add":
            inbox.add("a", 1)
        elif after == "a take":
            assert inbox.take() is None
        shutil.rmtree(inbox_dir)
        with pytest.raises(UnusableInbox):
            inbox.take()
    assert not inbox_dir.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_an_inbox_that_was_moved_away_while_open_is_not_worked_on(inbox_dir: Path, replaced: bool) -> None:
    with Inbox(inbox_dir) as consuming, Inbox(inbox_dir) as adding:
        adding.add("a", 1)
        assert consuming.take() is not None
        consuming.commit()
        inbox_dir.rename(inbox_dir.with_name("old"))
        if replaced:
            Inbox(inbox_dir).close()
        adding._adder._next_check = 0.0  # (it looks once a second)
        with pytest.raises(UnusableInbox, match=r"moved away.*nothing was added"):
            adding.add("a", 2)
        with pytest.raises(UnusableInbox, match=r"moved away.*start anew"):
            consuming.take()
    assert not list(inbox_dir.with_name("old").glob("pending/*"))


def test_an_inbox_that_was_removed_can_be_closed_with_an_element_out(inbox_dir: Path) -> None:
    inbox = Inbox(inbox_dir)
    inbox.add("a", 1)
    assert inbox.take()
    shutil.rmtree(inbox_dir)
    try:
        inbox.close()
    except (InboxError, OSError):
        pass  # it may complain, but must be closed then
    inbox.close()
    assert inbox_dir.parent.exists()


@linux
def test_an_inbox_keeps_no_descriptor_after_an_error(inbox_dir: Path) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_text("fsinbox 3 local\n")
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(UnusableInbox):
            Inbox(inbox_dir)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@linux
def test_the_type_of_a_file_system_is_told() -> None:
    assert file_system_type("/proc/self") == "proc"
    assert file_system_type("/proc/self/../../dev/no such file") != "proc"
    assert file_system_type("/")
    assert not is_network("/proc")


@pytest.mark.parametrize(("task", "lacks"), [("<none>\n", True), ("504\n", False), (None, False)])
def test_an_ext4_without_a_journal_is_told(task: str | None, lacks: bool, tmp_path: Path) -> None:
    """As the kernel's files say it, in a folder of our own: which file system this one is does not matter."""
    device = tmp_path.stat().st_dev
    link = tmp_path / f"dev/block/{os.major(device)}:{os.minor(device)}"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../devices/virtual/block/loop7")
    if task is not None:
        (tmp_path / "fs/ext4/loop7").mkdir(parents=True)
        (tmp_path / "fs/ext4/loop7/journal_task").write_text(task)
    assert has_no_journal(str(tmp_path), str(tmp_path)) is lacks
    assert not has_no_journal(str(tmp_path / "gone"), str(tmp_path))


@linux
def test_a_path_is_not_mistaken_for_a_mount_that_its_name_begins_with() -> None:
    assert file_system_type("/procession") == file_system_type("/")


def test_network_file_systems_are_known_by_their_names_in_mountinfo() -> None:
    assert {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "virtiofs"} <= NETWORK_FILE_SYSTEMS
    assert not {"ext4", "xfs", "btrfs", "tmpfs", "overlay"} & NETWORK_FILE_SYSTEMS


def test_a_boot_that_cannot_be_told_makes_an_inbox_unusable_and_leaves_nothing_open(
    inbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors() -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/proc/sys/kernel/random/boot_id")

    Inbox(inbox_dir).close()
    monkeypatch.setattr(fsinbox.store.index, "boot_tag", no_descriptors)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnusableInbox, match=f"{inbox_dir}.*Too many open files"):
        Inbox(inbox_dir)
    assert os.listdir("/proc/self/fd") == before


# --- what the system refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index", "consumer.lock"])
def test_a_file_of_ours_that_has_another_name_is_not_written_to(
    inbox_dir: Path, tmp_path: Path, name: str
) -> None:
    with Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
    other = tmp_path / "other"
    os.link(inbox_dir / name, other)
    before = other.read_bytes()
    with Inbox(inbox_dir) as inbox, pytest.raises(InboxError, match="has another name"):
        inbox.add("b", 1)
        inbox.take()
    assert other.read_bytes() == before


def test_a_descriptor_that_is_closed_with_an_error_is_closed(inbox_dir: Path) -> None:
    layout = Layout(str(inbox_dir))
    with refusing(close=errno.EIO):
        layout.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(layout.root)


def test_a_format_of_which_only_a_part_could_be_written_is_none(inbox_dir: Path) -> None:
    def half(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        return call(arguments[0], arguments[1][:9]) if name == "write" else call(*arguments, **more)

    with intercepted(half), pytest.raises(UnusableInbox, match="only a part"):
        Inbox(inbox_dir)
    assert not (inbox_dir / "format").exists()
    Inbox(inbox_dir).close()


def test_a_mode_is_not_set_through_a_link(inbox_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    outside.chmod(0o600)
    Inbox(inbox_dir).close()
    (inbox_dir / "link").symlink_to(outside)
    root = os.open(inbox_dir, os.O_RDONLY)
    set_mode(root, "link", 0o666)
    set_mode(root, "index", 0o666)
    os.close(root)
    assert (mode_of(outside), mode_of(inbox_dir / "index")) == (0o600, 0o666)


def test_whoever_makes_an_inbox_just_before_us_has_made_it(inbox_dir: Path) -> None:
    with meanwhile("mkdir", lambda: Inbox(inbox_dir).close()), Inbox(inbox_dir) as inbox:
        inbox.add("a", 1)
    assert len(os.listdir(inbox_dir / "pending")) == 1


def test_a_parent_that_may_not_be_read_is_flushed_with_all_else(inbox_dir: Path) -> None:
    synced = []

    def hook(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if name == "open" and arguments[0] == "..":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if name == "sync":
            synced.append(name)
            return None  # it takes long on a busy machine
        return call(*arguments, **more)

    with intercepted(hook):
        Inbox(inbox_dir).close()
    assert synced == ["sync"]


def test_mounts_whose_names_need_escapes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = """\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 0:40 / /a\\040b\\134c rw - nfs4 server:/x rw
"""
    monkeypatch.setattr("fsinbox.store.mounts.open", lambda *_, **__: io.StringIO(lines), raising=False)
    assert file_system_type("/a b\\c/inbox") == "nfs4"
    assert file_system_type("/a b/inbox") == "ext4"


def test_without_proc_the_type_of_a_file_system_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("fsinbox.store.mounts.open", gone, raising=False)
    assert file_system_type("/") == ""
    assert not is_network("/")
