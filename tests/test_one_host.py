"""An inbox of one host: where another host, or the server, may use it too, it is refused, unless forced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import run, wait_until

from fsinbox import Inbox, UnusableInbox
from fsinbox.cli.commands import cli
from fsinbox.doctor import examine, repair
from fsinbox.doctor.filesystem import measure
from fsinbox.store import host, mounts
from fsinbox.store.layout import Layout
from fsinbox.store.network.sharing import sharing_of
from tests.machine import served
from tests.usual import drain

Mount = Callable[..., None]


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Mount:
    """Has the table of mounts say that all lies on a file system of this type."""

    def mounted(kind: str, options: str = "rw") -> None:
        monkeypatch.setattr(mounts, "mount_of", lambda path: (kind, options))
        monkeypatch.setattr(host, "_SHARED_DISKS", ("/",))

    return mounted


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes this another machine; returns its fingerprint."""

    def be(name: str) -> str:
        path = tmp_path / f"machine-id-{name}"
        path.write_text(name * 32 + "\n")
        monkeypatch.setattr(host, "MACHINE_ID", str(path))
        return host.machine()

    return be


def said(inbox_dir: Path) -> str:
    return (inbox_dir / "format").read_text()


def kinds(inbox_dir: Path) -> dict[str, str]:
    return {finding.kind: finding.level for finding in examine(str(inbox_dir), pause=0).findings}


# --- refused ------------------------------------------------------------------------------------------

REMOTE = ["nfs4", "nfs", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse", "fuse.odd", "ceph", "ocfs2"]


@pytest.mark.parametrize("kind", REMOTE)
def test_an_inbox_of_one_host_is_refused_where_others_may_use_it(
    inbox_dir: Path, mounted: Mount, kind: str
) -> None:
    Inbox(inbox_dir).close()
    mounted(kind)
    for opened in (Inbox, Layout):
        with pytest.raises(
            UnusableInbox, match=f"lies on {kind}, where others may use it.*--force"
        ) as caught:
            opened(str(inbox_dir))
        assert "use it on the host that has it on its disk" in str(caught.value)
    assert kinds(inbox_dir) == {"format-scope": "person"}
    assert said(inbox_dir) == "fsinbox 2 local\n"


def test_one_that_is_to_be_made_there_is_refused_and_nothing_is_made(inbox_dir: Path, mounted: Mount) -> None:
    mounted("fuse.sshfs")
    with pytest.raises(UnusableInbox, match=r"lies on fuse\.sshfs"):
        Inbox(inbox_dir, scope="local")
    assert os.listdir(inbox_dir) == []


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "btrfs", "overlay", "zfs"])
def test_on_a_file_system_of_this_host_nothing_is_asked(inbox_dir: Path, mounted: Mount, kind: str) -> None:
    mounted(kind)
    device = os.makedev(8, 1) if kind == "ext4" else os.makedev(0, 40)
    assert host.format_for_one_host(device, "/i", "") == "local"
    assert host.format_for_one_host(device, "/i", "local") == "local"
    assert host.format_for_one_host(device, "/i", "local", force=True) == "local"


def test_on_a_disk_the_table_of_mounts_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be long, and `fsinbox add` opens an inbox each time."""
    monkeypatch.setattr(mounts, "mount_of", lambda path: pytest.fail("it was read"))
    monkeypatch.setattr(host, "_SHARED_DISKS", ("/no/such",))
    assert host.place_of(os.makedev(8, 1), "/i") == ("here", "", "")


def test_a_disk_that_several_hosts_mount_is_one_of_others(mounted: Mount) -> None:
    mounted("gfs2")
    assert host.place_of(os.makedev(8, 1), "/i") == ("remote", "gfs2", "rw")
    mounted("fuseblk")
    assert host.place_of(os.makedev(8, 1), "/i") == ("here", "fuseblk", "rw")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a folder through FUSE, as another host would see it; returns where."""
    point = tmp_path / "point"
    point.mkdir()
    mounts_made = []

    def show(folder: Path) -> Path:
        mounts_made.append(served(point, "-m", "tests.odd", folder, point))
        mounts_made[0].__enter__()
        wait_until(lambda: os.path.ismount(point), "for the mount")
        return point

    yield show
    for mount in mounts_made:
        mount.__exit__(None, None, None)


def test_an_inbox_that_is_seen_through_a_real_fuse_mount_is_refused_by_every_command(
    tmp_path: Path, elsewhere: Callable[[Path], Path]
) -> None:
    """Made on the server's disk, and mounted by sshfs: there, two consumers ran one element at once."""
    served_folder = tmp_path / "served"
    served_folder.mkdir()
    with Inbox(served_folder / "inbox", codec="text") as inbox:
        inbox.add("a", "1")
        seen = elsewhere(served_folder) / "inbox"
        for words in (["add", "b", "2"], ["consume", "--exec", "true", "--drain"], ["ls"], ["wait", "a"]):
            done = run("--inbox", seen, *words, cwd=tmp_path, status=3)
            assert "is for one host, and lies on fuse" in done.stderr
        assert drain(inbox) == [("a", "1")]


# --- forced -------------------------------------------------------------------------------------------


def test_a_forced_one_says_so_in_format_and_is_opened_from_then_on(
    inbox_dir: Path, mounted: Mount, machines: Callable[[str], str]
) -> None:
    machine = machines("a")
    mounted("nfs4", "rw,vers=4.2,hard")
    with Inbox(inbox_dir, scope="local", force=True, codec="text") as inbox:
        assert inbox.add("a", "1") == "new"
        assert inbox.layout.sharing is None
    assert said(inbox_dir) == f"fsinbox 2 local forced {machine}\n"
    with Inbox(inbox_dir, codec="text") as inbox:
        assert drain(inbox) == [("a", "1")]
    assert kinds(inbox_dir) == {"forced": "note"}


def test_one_that_was_there_can_be_forced_and_freed_again(
    inbox_dir: Path, mounted: Mount, machines: Callable[[str], str]
) -> None:
    Inbox(inbox_dir, shared=True).close()
    machine = machines("a")
    mounted("fuse.sshfs")
    Inbox(inbox_dir, scope="local", force=True).close()
    assert said(inbox_dir) == f"fsinbox 2 local forced {machine}\n"
    assert (inbox_dir / "format").stat().st_mode & 0o777 == 0o660
    mounted("tmpfs")
    Inbox(inbox_dir).close()
    assert "forced" in said(inbox_dir), "nobody has asked for another"
    Inbox(inbox_dir, scope="local", force=True).close()
    assert said(inbox_dir) == "fsinbox 2 local\n"


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs"], ids=["on another client", "on the server's disk"])
def test_a_forced_one_is_refused_on_another_machine(
    inbox_dir: Path, mounted: Mount, machines: Callable[[str], str], kind: str
) -> None:
    first = machines("a")
    mounted("nfs4")
    Inbox(inbox_dir, scope="local", force=True).close()
    second = machines("b")
    mounted(kind)
    with pytest.raises(UnusableInbox, match=f"machine {first}, and this is machine {second} .*--force"):
        Inbox(inbox_dir)
    assert kinds(inbox_dir)["machine-other"] == "person"
    Inbox(inbox_dir, scope="local", force=True).close()
    wanted = "local" if kind == "tmpfs" else f"local forced {second}"
    assert said(inbox_dir) == f"fsinbox 2 {wanted}\n"


def test_init_tells_that_it_is_forced(
    inbox_dir: Path, mounted: Mount, machines: Callable[[str], str]
) -> None:
    mounted("nfs4", "rw,vers=4.2,hard")
    machine = machines("a")
    words = ["--inbox", str(inbox_dir), "init", "--scope", "local", "--force"]
    assert CliRunner().invoke(cli, words).output == (
        f"created inbox {inbox_dir}, forced: only for this machine\n"
    )
    told = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    assert told == {"path": str(inbox_dir), "created": False, "format": f"local forced {machine}"}


def test_an_inbox_of_several_hosts_is_not_forced(inbox_dir: Path, mounted: Mount) -> None:
    mounted("nfs4", "rw,vers=4.2,hard")
    Inbox(inbox_dir, scope="network").close()
    Inbox(inbox_dir, scope="local", force=True).close()
    assert said(inbox_dir) == "fsinbox 2 network\n"


def test_force_is_for_one_host(inbox_dir: Path) -> None:
    for scope in ("auto", "network"):
        with pytest.raises(ValueError, match="force is for scope 'local'"):
            Inbox(inbox_dir, scope=scope, force=True)
    assert "--force needs --scope local" in run("init", "--force", cwd=inbox_dir.parent, status=2).stderr
    assert not inbox_dir.exists()


# --- what cannot be told ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "newfs"])
def test_where_the_kernel_does_not_tell_what_it_is_the_machine_decides(
    inbox_dir: Path,
    mounted: Mount,
    machines: Callable[[str], str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = os.makedev(0, 40)
    mounted(kind)
    first = machines("a")
    monkeypatch.setattr(os, "major", lambda number: 0)
    Inbox(inbox_dir).close()
    assert said(inbox_dir) == f"fsinbox 2 local unknown {first}\n"
    Inbox(inbox_dir).close()
    assert kinds(inbox_dir) == {"mount-untold": "note"}
    second = machines("b")
    with pytest.raises(UnusableInbox, match=f"machine {first}, and this is machine {second}"):
        Inbox(inbox_dir)
    assert host.format_for_one_host(device, "/i", "local") == "local", "one from before is not refused"


def test_a_machine_without_a_fingerprint_is_said_and_refuses_nobody(
    inbox_dir: Path, mounted: Mount, machines: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted("nfs4", "rw,vers=4.2,hard")
    monkeypatch.setattr(host, "MACHINE_ID", "/no/such")
    Inbox(inbox_dir, scope="local", force=True).close()
    assert said(inbox_dir) == "fsinbox 2 local forced -\n"
    assert kinds(inbox_dir) == {"forced": "note", "machine-untold": "note"}
    machines("b")
    Inbox(inbox_dir).close()


@pytest.mark.parametrize("content", ["", "uninitialized\n"])
def test_an_identity_that_is_none_gives_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "id").write_text(content)
    monkeypatch.setattr(host, "MACHINE_ID", str(tmp_path / "id"))
    assert host.machine() == "-"


def test_a_fingerprint_is_always_the_same_and_does_not_show_the_identity(
    machines: Callable[[str], str],
) -> None:
    assert machines("a") == machines("a") == "6821f952785bdd9d"
    assert machines("b") != machines("a")


def test_several_hosts_cannot_share_what_cannot_be_told(inbox_dir: Path, mounted: Mount) -> None:
    mounted("")
    with pytest.raises(UnusableInbox, match="does not tell on what file system it lies"):
        Inbox(inbox_dir, scope="network")


# --- soft ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["soft", "softerr", "softreval"])
def test_nfs_that_is_mounted_soft_is_refused(inbox_dir: Path, mounted: Mount, option: str) -> None:
    options = f"rw,vers=4.2,{option},timeo=600"
    with pytest.raises(UnusableInbox, match=f"mounted {option}: .*mount it hard"):
        sharing_of("/i", ("nfs4", options))
    mounted("nfs4", options)
    with pytest.raises(UnusableInbox, match=f"mounted {option}: .*mount it hard"):
        Inbox(inbox_dir, scope="local", force=True)
    mounted("nfs4", "rw,vers=4.2,hard")
    Inbox(inbox_dir, scope="local", force=True).close()
    mounted("nfs4", options)
    with pytest.raises(UnusableInbox, match="mount it hard"):
        Inbox(inbox_dir)
    assert kinds(inbox_dir) == {"forced": "note", "mount-soft": "person"}


# --- what the doctor does -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["local forced", "local forced xyz", "local by-hand -", "network forced -"])
def test_a_format_that_says_something_else_is_damaged(inbox_dir: Path, words: str) -> None:
    Inbox(inbox_dir).close()
    (inbox_dir / "format").write_text(f"fsinbox 2 {words}\n")
    assert kinds(inbox_dir) == {"format-damaged": "repair"}
    assert repair(str(inbox_dir), pause=0) == ["format: rewritten"]
    assert said(inbox_dir) == "fsinbox 2 local\n"


# --- producers without Python -------------------------------------------------------------------------

SHELL = Path(__file__).parents[1] / "scripts/fsinbox-add"
PERL = Path(__file__).parents[1] / "examples/producers/add.pl"


def produce(words: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input="1", capture_output=True, text=True)


@pytest.mark.parametrize("producer", ["shell", "perl"])
def test_a_producer_without_python_refuses_a_fuse_mount_too(
    tmp_path: Path, elsewhere: Callable[[Path], Path], producer: str
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    with Inbox(folder / "inbox") as inbox:
        seen = elsewhere(folder) / "inbox"
        if producer == "shell":
            done = produce([SHELL, "--inbox", seen, "a"])
            assert done.returncode == 3
            assert "is for one host, and lies on fuseblk, where others may use it, too" in done.stderr
        else:
            if not shutil.which("perl"):
                pytest.skip("needs perl")
            done = produce(["perl", PERL, seen, "a"])
            assert "lies where other hosts may use it, too" in done.stderr
        assert done.returncode
        assert len(inbox) == 0 and os.listdir(folder / "inbox/tmp") == []


@pytest.mark.skipif(host.machine() == "-", reason="this machine has no /etc/machine-id")
def test_the_shell_producer_knows_for_which_machine_an_inbox_is(inbox_dir: Path) -> None:
    with Inbox(inbox_dir, codec="text") as inbox:
        (inbox_dir / "format").write_text("fsinbox 2 local forced 0123456789abcdef\n")
        done = produce([SHELL, "--inbox", inbox_dir, "a", "1"])
        assert done.returncode == 3
        assert f"machine 0123456789abcdef, and this is machine {host.machine()}" in done.stderr
        assert len(inbox) == 0
        for machine in ("-", host.machine()):
            (inbox_dir / "format").write_text(f"fsinbox 2 local forced {machine}\n")
            assert produce([SHELL, "--inbox", inbox_dir, "a", machine]).stderr == ""
        assert drain(inbox) == [("a", host.machine())]


def test_the_doctor_does_not_ask_how_several_hosts_could_share_one_that_was_forced(
    inbox_dir: Path, mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would say for ever that a person must see to it."""
    mounted("9p")
    monkeypatch.setattr("fsinbox.doctor.filesystem.is_network", lambda path: True)
    monkeypatch.setattr("fsinbox.doctor.filesystem.mount_of", lambda path: ("9p", "rw"))
    assert "a lock of one side" in measure(str(inbox_dir)).refused
    Inbox(inbox_dir, scope="local", force=True).close()
    facts = measure(str(inbox_dir))
    assert (facts.forced, facts.refused) == (True, "")
    (inbox_dir / "format").unlink()
    (inbox_dir / "format").mkdir()
    assert not measure(str(inbox_dir)).forced
