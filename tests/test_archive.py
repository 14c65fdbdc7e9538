"""`fsinbox export` and `import`: an inbox in a tar file and back, in order, cut short and gone on with."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from helpers import run

import fsinbox.operate.archive
from fsinbox import AddFailed, Inbox
from fsinbox.cli.commands import cli
from fsinbox.operate import archive
from fsinbox.operate.rows import rows
from fsinbox.store import files
from fsinbox.store import transitions as protocol
from tests.shim import meanwhile
from tests.usual import drain, take

KEYS = ["a", "é/\n", "c"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Inbox(tmp_path / "inbox", codec="text", keep_done=1) as inbox:
        for key in ("done", "failed", "deferred"):
            inbox.add(key, f"{key}'s value")
            element = take(inbox)
            element.ack() if key == "done" else element.nack(
                delay=1000
            ) if key == "deferred" else element.fail("why\nnot")
        for key in KEYS:
            inbox.add(key, f"{key}'s value")
    return tmp_path


def waiting(path: Path) -> list[tuple[str, str]]:
    with Inbox(path, codec="text") as inbox:
        return drain(inbox)


VALUES = [(key, f"{key}'s value") for key in ["deferred", *KEYS]]


def test_an_export_is_imported_in_order(home: Path) -> None:
    assert run("export", "all.tar", cwd=home).stdout == "exported 4 elements to all.tar\n"
    assert oct((home / "all.tar").stat().st_mode)[-3:] == "600"
    told = json.loads(run("--inbox", "new", "import", "all.tar", "--json", cwd=home).stdout)
    assert told == {"imported": 4, "failed": 0, "kept": 0, "skipped": 0, "before": 0}
    assert sorted(waiting(home / "new")) == sorted(VALUES)
    run("--inbox", "new", "import", "all.tar", cwd=home)
    assert [key for key, _ in waiting(home / "new")] == [*KEYS, "deferred"]
    assert list((home / "new" / "control").iterdir()) == []


def test_other_states_only_if_asked_for_and_reasons_go_with_them(home: Path) -> None:
    run("export", "--state", "failed", "--state", "done", "--state", "waiting", "all.tar", cwd=home)
    assert "is there" in run("export", "all.tar", cwd=home, status=2).stderr
    assert json.loads(
        run("export", "all.tar", "--yes", "--json", "--state", "failed", "--state", "done", cwd=home).stdout
    ) == {
        "file": str(home / "all.tar"),
        "exported": 2,
    }
    told = run("--inbox", "new", "import", "all.tar", cwd=home).stdout
    assert (
        told == "imported 0 elements into new, 1 into failed/; "
        "0 left out, for one of their key is here; 1 were done\n"
    )
    (failed,) = map(json.loads, run("--inbox", "new", "failed", "--json", cwd=home).stdout.splitlines())
    assert failed["reason"].endswith("why\nnot\n")
    assert "failed: left out" in run("--inbox", "new", "import", "all.tar", cwd=home).stderr


def test_it_goes_through_a_pipe(home: Path) -> None:
    import subprocess
    import sys

    from helpers import command, environment

    exported = subprocess.run(
        command("export", "-"), cwd=home, env=environment(), capture_output=True, timeout=60, check=True
    )
    assert exported.stderr == b"fsinbox: exported 4 elements\n"
    run("--inbox", "new", "import", "-", cwd=home, stdin=exported.stdout)
    assert sorted(waiting(home / "new")) == sorted(VALUES)
    assert sys.executable


def test_what_waits_is_newer_than_what_is_imported_unless_told_otherwise(home: Path) -> None:
    run("export", "all.tar", cwd=home)
    with Inbox(home / "new", codec="text") as inbox:
        inbox.add("a", "newer")
    told = run("--inbox", "new", "import", "all.tar", cwd=home)
    assert "a: left out: one of its key is here already\n" in told.stderr
    assert dict(waiting(home / "new"))["a"] == "newer"
    with Inbox(home / "new", codec="text") as inbox:
        inbox.add("a", "newer")
    told = run("--inbox", "new", "import", "--replace", "--json", "all.tar", cwd=home)
    assert json.loads(told.stdout)["imported"] == 4
    assert dict(waiting(home / "new"))["a"] == "a's value"
    with Inbox(home / "new", codec="text") as inbox:
        inbox.add("a", "newer")
    told = run("--inbox", "new", "import", "--json", "all.tar", cwd=home)
    assert json.loads(told.stdout.splitlines()[0])["outcome"] == "kept"


@pytest.mark.parametrize("cut", [0, 1, 511, 1024, 1536, 2048, 5000, 6144])
def test_an_export_that_was_cut_short_goes_on(home: Path, cut: int) -> None:
    run("export", "whole.tar", cwd=home)
    part = (home / "whole.tar").read_bytes()[:cut]
    (home / "all.tar.part").write_bytes(part)
    run("export", "all.tar", cwd=home)
    with tarfile.open(home / "all.tar") as one, tarfile.open(home / "whole.tar") as other:
        assert one.getnames() == other.getnames()
    run("--inbox", "new", "import", "all.tar", cwd=home)
    assert sorted(waiting(home / "new")) == sorted(VALUES)


def test_an_import_that_was_cut_short_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsinbox.operate.archive, "_BATCH", 2)
    monkeypatch.chdir(home)
    run("export", "all.tar", cwd=home)
    put = archive.Import._put

    def killed_at(number: int):  # type: ignore[no-untyped-def]
        def one(self: archive.Import, member: archive.Member) -> str:
            if self.done == number:
                raise KeyboardInterrupt
            return put(self, member)

        return one

    monkeypatch.setattr(archive.Import, "_put", killed_at(3))
    assert CliRunner().invoke(cli, ["--inbox", "new", "import", "all.tar"]).exit_code != 0
    monkeypatch.setattr(archive.Import, "_put", put)
    with Inbox(home / "new", codec="text") as inbox:
        first = drain(inbox)  # the consumer goes on meanwhile
    again = CliRunner().invoke(cli, ["--inbox", "new", "import", "all.tar"])
    assert "going on: 2 elements were imported before" in again.output
    second = waiting(home / "new")
    assert len(first) + len(second) == 5  # the third one came twice: its batch was not noted
    assert set(first + second) == set(VALUES)


def test_an_import_is_flushed_before_it_is_noted(home: Path) -> None:
    from tests.shim import intercepted

    run("export", "all.tar", cwd=home)
    calls: list[str] = []

    def hook(
        name: str, call: Callable[..., object], arguments: tuple[object, ...], more: dict[str, object]
    ) -> object:
        if name == "fsync":
            calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")))
        if name == "symlink":
            calls.append("note")
        return call(*arguments, **more)

    with Inbox(home / "new") as inbox, (home / "all.tar").open("rb") as file:
        inbox.layout.make("control")
        work = archive.Import(inbox, b"it", replace=False)
        for member in archive.members(file):
            work.put(member)
        with intercepted(hook):
            work.finish()
    assert calls == ["pending", "note"]


def test_what_is_no_archive_is_refused(home: Path) -> None:
    assert "cannot read no.tar" in run("--inbox", "new", "import", "no.tar", cwd=home, status=2).stderr
    (home / "text.tar").write_text("this is no archive" * 100)
    assert "cannot read the archive" in run("--inbox", "new", "import", "text.tar", cwd=home, status=2).stderr
    run("export", "all.tar", cwd=home)
    (home / "half.tar").write_bytes((home / "all.tar").read_bytes()[:3000])
    told = run("--inbox", "new", "import", "half.tar", cwd=home, status=2).stderr
    assert "export it again" in told


@pytest.mark.parametrize(
    "name, key, kind",
    [
        ("../../etc/passwd", "", tarfile.REGTYPE),
        ("waiting/1795552753631524533-a", "", tarfile.SYMTYPE),
        ("waiting/1795552753631524533-a", "", tarfile.DIRTYPE),
        ("elsewhere/1795552753631524533-a", "", tarfile.REGTYPE),
        ("waiting/1795552753631524533-%zz", "", tarfile.REGTYPE),
        ("waiting/1795552753631524533-a", "k" * 300, tarfile.REGTYPE),
    ],
)
def test_a_forged_member_is_refused_and_nothing_is_written(
    home: Path, name: str, key: str, kind: bytes
) -> None:
    with tarfile.open(home / "forged.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        member.pax_headers = {"FSINBOX.key": key} if key else {}
        tar.addfile(member, io.BytesIO())
    assert "in the archive" in run("--inbox", "new", "import", "forged.tar", cwd=home, status=2).stderr
    assert os.listdir(home / "new" / "pending") == []


def test_what_the_system_refuses_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("export", "all.tar", cwd=home)

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(protocol, "_rename", full)
    with Inbox(home / "new") as inbox, (home / "all.tar").open("rb") as file:
        work = archive.Import(inbox, b"it", replace=False)
        found = archive.members(file)
        with pytest.raises(AddFailed, match=r"No space left .*: fix that, then import again"):
            work.put(next(found))
        assert os.listdir(home / "new" / "tmp") == []


def test_an_element_that_ends_while_it_is_exported_is_left_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inbox(home / "inbox") as inbox:
        listed = list(rows(inbox.layout, ("waiting",)))
        (home / "inbox" / "pending" / listed[0].file).unlink()
        monkeypatch.setattr(fsinbox.operate.archive, "rows", lambda layout, states: iter(listed))
        file = io.BytesIO()
        assert (
            archive.write(inbox.layout, file, ("waiting",), progress=lambda done: None, skip=set())
            == len(KEYS) - 1
        )


def test_a_value_that_a_producer_adds_while_one_is_imported_wins(home: Path) -> None:
    """It comes when the imported one is written, and just before the lock is taken for it."""
    with Inbox(home / "inbox", codec="text") as inbox, Inbox(home / "inbox", codec="text") as producer:
        drain(inbox)
        drafts: list[str] = []
        files.write_payload(inbox.layout, b"imported", drafts, durable=False)
        step = protocol.add_if_none_waits

        def produce() -> None:
            thread = Thread(target=producer.add, args=("k", "produced"))
            thread.start()
            thread.join()

        with meanwhile("flock", produce):
            assert not inbox._handle.index.locked(step, inbox.layout, inbox._handle.index, drafts[0], "k")
        assert drain(inbox) == [("k", "produced")]
        assert inbox._handle.index.locked(step, inbox.layout, inbox._handle.index, drafts[0], "k")
        assert inbox.add("k", "newer") == "replaced"
        assert drain(inbox) == [("k", "newer")]
