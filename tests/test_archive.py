"""`fsinbox export` and `import`: an inbox in a tar file and back, in order; interrupted, damaged, forged."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

import pytest
from click.testing import CliRunner
from helpers import command, environment, run

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


def test_an_export_is_imported_in_order_and_says_what_it_leaves_out(home: Path) -> None:
    (home / "inbox/drop/dropped").touch()
    told = run("export", "all.tar", cwd=home).stdout
    assert told == "exported 4 elements to all.tar; left out: 1 failed, 1 done, 1 in drop/\n"
    assert oct((home / "all.tar").stat().st_mode)[-3:] == "600"
    assert not list(home.glob(".fsinbox.*"))
    assert "no inbox at" in run("--inbox", "new", "import", "all.tar", cwd=home, status=3).stderr
    told = json.loads(run("--inbox", "new", "import", "--create", "all.tar", "--json", cwd=home).stdout)
    assert told == {"imported": 4, "failed": 0, "kept": 0, "skipped": 0, "large": 0, "before": 0}
    assert sorted(waiting(home / "new")) == sorted(VALUES)
    run("--inbox", "new", "import", "all.tar", cwd=home)
    assert [key for key, _ in waiting(home / "new")] == [*KEYS, "deferred"]
    assert list((home / "new" / "control").iterdir()) == []


def test_nothing_is_said_of_what_is_left_out_if_there_is_none(home: Path) -> None:
    every = [word for state in archive.STATES for word in ("--state", state)]
    assert run("export", *every, "all.tar", cwd=home).stdout == "exported 6 elements to all.tar\n"
    told = json.loads(run("export", *every, "--yes", "--json", "all.tar", cwd=home).stdout)
    assert told == {"file": f"{home}/all.tar", "exported": 6, "unreadable": 0, "left_out": {}}


def test_other_states_only_if_asked_for_and_reasons_go_with_them(home: Path) -> None:
    run("export", "--state", "failed", "--state", "done", "--state", "waiting", "all.tar", cwd=home)
    assert "all.tar exists" in run("export", "all.tar", cwd=home, status=2).stderr
    assert json.loads(
        run("export", "all.tar", "--yes", "--json", "--state", "failed", "--state", "done", cwd=home).stdout
    ) == {
        "file": str(home / "all.tar"),
        "exported": 2,
        "unreadable": 0,
        "left_out": {"waiting": 3, "deferred": 1},
    }
    told = run("--inbox", "new", "import", "--create", "all.tar", cwd=home).stdout
    assert told == "imported 0 elements into new, 1 into failed/; 1 skipped (done)\n"
    (failed,) = map(json.loads, run("--inbox", "new", "failed", "--json", cwd=home).stdout.splitlines())
    assert failed["reason"].endswith("why\nnot\n")
    assert (
        "failed: skipped: its key is there already"
        in run("--inbox", "new", "import", "--create", "all.tar", cwd=home).stderr
    )


def test_it_goes_through_a_pipe(home: Path) -> None:
    exported = subprocess.run(
        command("export", "-"), cwd=home, env=environment(), capture_output=True, timeout=60, check=True
    )
    assert exported.stderr == b"fsinbox: exported 4 elements; left out: 1 failed, 1 done\n"
    run("--inbox", "new", "import", "--create", "-", cwd=home, stdin=exported.stdout)
    assert sorted(waiting(home / "new")) == sorted(VALUES)


def test_what_waits_is_newer_than_what_is_imported_unless_told_otherwise(home: Path) -> None:
    run("export", "all.tar", cwd=home)
    with Inbox(home / "new", codec="text") as inbox:
        inbox.add("a", "newer")
    told = run("--inbox", "new", "import", "--create", "all.tar", cwd=home)
    assert "a: skipped: its key is there already\n" in told.stderr
    assert "3 elements into new; 1 skipped (key already there)" in told.stdout
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


def test_an_export_that_was_killed_leaves_its_draft_and_the_next_one_starts_again(home: Path) -> None:
    """What it has written may have been replaced, or have ended, since: a number and a key do not tell."""
    code = """if True:
        import os
        from fsinbox.operate import archive
        from fsinbox.cli.commands import cli
        write = archive.write
        def cut(layout, file, *arguments, **more):
            write(layout, file, *arguments, **more)
            file.flush()
            os.kill(os.getpid(), 9)
        archive.write = cut
        cli(["export", "all.tar"])
    """
    subprocess.run([sys.executable, "-c", code], cwd=home, env=environment())
    (left,) = home.glob(".fsinbox.*")
    assert left.stat().st_size and not (home / "all.tar").exists()
    with Inbox(home / "inbox", codec="text") as inbox:
        inbox.add("a", "newer")
    run("discard", "--state", "waiting", "c", "--yes", cwd=home)
    run("export", "all.tar", cwd=home)
    assert list(home.glob(".fsinbox.*")) == [left]
    run("--inbox", "new", "import", "--create", "all.tar", cwd=home)
    newest = [("a", "newer"), ("deferred", "deferred's value"), ("é/\n", "é/\n's value")]
    assert sorted(waiting(home / "new")) == newest


def test_an_export_that_is_interrupted_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "all.tar").write_text("the one before")

    def interrupted(layout: object, file: io.BytesIO, *arguments: object, **more: object) -> None:
        file.write(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "write", interrupted)
    assert CliRunner().invoke(cli, ["export", "--yes", "all.tar"]).exit_code == 130
    assert (home / "all.tar").read_text() == "the one before"
    assert not list(home.glob(".fsinbox.*"))


def test_an_export_replaces_a_link_and_writes_nothing_through_it(home: Path) -> None:
    other = home / "other"
    other.write_text("theirs")
    for name in ("all.tar", "all.tar.part"):
        (home / name).symlink_to(other)
    run("export", "--yes", "all.tar", cwd=home)
    assert other.read_text() == "theirs"
    assert tarfile.is_tarfile(home / "all.tar") and not (home / "all.tar").is_symlink()
    assert (home / "all.tar").stat().st_mode & 0o777 == 0o600
    assert (home / "all.tar.part").is_symlink()


def test_an_export_where_nothing_can_be_written_says_where(home: Path) -> None:
    told = run("export", "no/such/all.tar", cwd=home, status=3).stderr
    assert told.startswith("fsinbox: cannot write no/such/all.tar: No such file or directory")


def test_an_import_from_a_terminal_is_refused(home: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command("import", "-"),
            cwd=home,
            env=environment(),
            stdin=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert b"standard input is a terminal: redirect it" in done.stderr


def test_an_export_to_a_terminal_is_refused(home: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command("export", "-"), cwd=home, env=environment(), stdout=theirs, stderr=subprocess.PIPE
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert b"standard output is a terminal: redirect it" in done.stderr


def test_an_export_whose_reader_has_gone_is_no_success(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            command("export", "-"), cwd=home, env=environment(), stdout=pipe, stderr=subprocess.PIPE
        )
    assert done.returncode == 3
    assert done.stderr == b"fsinbox: the archive is incomplete: its reader has closed the pipe\n"


def test_what_cannot_be_read_is_named_and_counts_as_a_failure(home: Path) -> None:
    (path,) = (home / "inbox/pending").glob("*-a")
    path.unlink()
    path.mkdir()  # (a file without permissions root could read)
    done = run("export", "--json", "all.tar", cwd=home, status=1)
    assert done.stderr == "fsinbox: a: left out: cannot be read: not a regular file\n"
    told = json.loads(done.stdout)
    assert (told["exported"], told["unreadable"]) == (3, 1)


def test_an_import_that_was_interrupted_continues_and_nothing_comes_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    run("export", "all.tar", cwd=home)
    put = archive.Import._put

    def interrupted(self: archive.Import, member: archive.Member) -> str:
        if self.done == 3:
            raise KeyboardInterrupt
        return put(self, member)

    monkeypatch.setattr(archive.Import, "_put", interrupted)
    assert CliRunner().invoke(cli, ["--inbox", "new", "import", "--create", "all.tar"]).exit_code == 130
    monkeypatch.setattr(archive.Import, "_put", put)
    with Inbox(home / "new", codec="text") as inbox:
        first = drain(inbox)  # the consumer goes on meanwhile
    again = CliRunner().invoke(cli, ["--inbox", "new", "import", "all.tar"])
    assert "continuing; imported before: 3 elements" in again.output
    assert sorted(first + waiting(home / "new")) == sorted(VALUES)


@pytest.mark.parametrize("option", [(), ("--replace",)], ids=["keep", "replace"])
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_an_import_that_finds_the_inbox_full_continues_when_there_is_room(
    home: Path, pipe: bool, option: tuple[str, ...]
) -> None:
    run("export", "--state", "waiting", "--state", "failed", "all.tar", cwd=home)
    content = (home / "all.tar").read_bytes()
    found: list[tuple[str, str]] = []
    with Inbox(home / "new", codec="text") as inbox:
        inbox.limit(max_waiting=1)
        for status in (6, 6, 0):
            words = ("--inbox", "new", "import", *option, "-" if pipe else "all.tar")
            done = run(*words, cwd=home, status=status, stdin=content if pipe else b"")
            assert status == 0 or "is full" in done.stderr
            assert status == 0 or "again when there is room, or with --timeout" in done.stderr
            found += drain(inbox)
    assert found == [(key, f"{key}'s value") for key in KEYS]
    assert len(list((home / "new/failed").glob("*-failed"))) == 1  # what has failed waits for nothing
    assert list((home / "new/tmp").iterdir()) == []


def test_an_import_waits_for_room(home: Path) -> None:
    run("export", "all.tar", cwd=home)
    with Inbox(home / "new", codec="text") as inbox:
        inbox.limit(max_waiting=1)
        words = command("--inbox", "new", "import", "--timeout", "1m", "all.tar")
        child = subprocess.Popen(words, cwd=home, env=environment(), stdout=subprocess.DEVNULL)
        found: list[tuple[str, str]] = []
        while child.poll() is None:
            found += drain(inbox)
        found += drain(inbox)
    assert child.returncode == 0
    assert sorted(found) == sorted(VALUES)


def test_an_import_replaces_what_waits_though_the_inbox_is_full(home: Path) -> None:
    run("export", "--state", "waiting", "all.tar", cwd=home)
    with Inbox(home / "new", codec="text") as inbox:
        for key in KEYS:
            inbox.add(key, "older")
        inbox.limit(max_waiting=1)
        run("--inbox", "new", "import", "--replace", "all.tar", cwd=home)
        assert drain(inbox) == [(key, f"{key}'s value") for key in KEYS]
        for key in KEYS:
            inbox.add(key, "newer") if key == KEYS[0] else None
        run("--inbox", "new", "import", "all.tar", cwd=home, status=6)  # the first is kept, the next is new
        assert drain(inbox) == [(KEYS[0], "newer")]


def test_an_import_that_is_killed_repeats_no_more_than_its_last_batch(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_BATCH", 2)
    run("export", "all.tar", cwd=home)
    with Inbox(home / "new", codec="text") as inbox, (home / "all.tar").open("rb") as file:
        found = archive.members(file)
        work = archive.Import(inbox, b"it")
        for _ in range(3):
            work.put(next(found))
        assert archive.Import(inbox, b"it").done == 2
        assert archive.Import(inbox, b"another").done == 0


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_an_archive_that_was_incomplete_continues_when_the_whole_one_is_imported(
    home: Path, pipe: bool
) -> None:
    run("export", "all.tar", cwd=home)
    whole = (home / "all.tar").read_bytes()
    with tarfile.open(home / "all.tar") as tar:
        third = tar.getmembers()[2]
    cut = whole[: third.offset_data + 5]  # within a payload

    def imported(content: bytes, status: int) -> str:
        (home / "some.tar").write_bytes(content)
        word, given = ("-", content) if pipe else ("some.tar", b"")
        words = ("--inbox", "new", "import", "--create", word)
        return run(*words, cwd=home, stdin=given, status=status).stderr

    told = imported(cut, 2)
    assert "it is not a tar file, or is damaged or incomplete: imported so far: 2 elements; export" in told
    assert "Traceback" not in told
    assert os.listdir(home / "new/tmp") == []
    done = waiting(home / "new")  # the consumer goes on meanwhile
    assert len(done) == 2
    assert "imported before: 2 elements" in imported(cut, 2)
    assert waiting(home / "new") == []
    imported(whole, 0)
    assert sorted(done + waiting(home / "new")) == sorted(VALUES)
    assert list((home / "new/control").iterdir()) == []


def test_what_may_not_be_noted_is_told_as_what_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run("export", "all.tar", cwd=home)
    monkeypatch.chdir(home)
    monkeypatch.setattr(protocol, "_rename", full)
    monkeypatch.setattr(archive.control, "put", full)
    done = CliRunner().invoke(cli, ["--inbox", "new", "import", "--create", "all.tar"])
    assert done.exit_code == 3
    assert "cannot add key" in done.output
    assert "No space left" in done.output


def test_what_is_larger_than_it_may_be_is_skipped(home: Path) -> None:
    with Inbox(home / "inbox", codec="text") as inbox:
        inbox.add("c", "x" * 1000)
    run("export", "all.tar", cwd=home)
    words = ("--inbox", "new", "import", "--create", "--max-size", "999", "all.tar")
    told = run(*words, cwd=home, status=1)
    assert told.stderr == "c: skipped: larger than --max-size\n"
    assert told.stdout == "imported 3 elements into new; 1 skipped (too large)\n"
    assert "c" not in dict(waiting(home / "new"))


def test_an_archive_of_an_earlier_version_is_imported(home: Path) -> None:
    """It calls in flight `out`, and does not say which export it is."""
    with tarfile.open(home / "old.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, state in (("a", "out"), ("b", "waiting")):
            member = tarfile.TarInfo(f"{state}/1795552753631524533-{name}")
            member.size = 2
            member.pax_headers = {"FSINBOX.key": name}
            tar.addfile(member, io.BytesIO(b"ok"))
    with Inbox(home / "new", codec="text") as inbox:
        inbox.add("b", "newer")
    words = ("--inbox", "new", "import")
    assert "imported 1 element into" in run(*words, "old.tar", cwd=home).stdout
    run(*words, "-", cwd=home, stdin=(home / "old.tar").read_bytes())
    assert dict(waiting(home / "new")) == {"a": "ok", "b": "newer"}


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
        work = archive.Import(inbox, b"it")
        for member in archive.members(file):
            work.put(member)
        with intercepted(hook):
            work.finish()
    assert calls == ["pending", "note"]


def test_what_is_no_archive_is_refused(home: Path) -> None:
    Inbox(home / "new").close()
    assert "cannot read no.tar" in run("--inbox", "new", "import", "no.tar", cwd=home, status=2).stderr
    (home / "text.tar").write_text("this is no archive" * 100)
    assert "cannot read the archive" in run("--inbox", "new", "import", "text.tar", cwd=home, status=2).stderr
    (home / "empty.tar").touch()
    assert (
        "cannot read the archive" in run("--inbox", "new", "import", "empty.tar", cwd=home, status=2).stderr
    )


def test_an_inbox_without_elements_is_exported_and_imported(home: Path) -> None:
    Inbox(home / "none").close()
    assert run("--inbox", "none", "export", "all.tar", cwd=home).stdout == "exported 0 elements to all.tar\n"
    assert run("--inbox", "none", "import", "all.tar", cwd=home).stdout == "imported 0 elements into none\n"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive of three elements, one of them large enough for several blocks."""
    with Inbox(tmp_path_factory.mktemp("example") / "inbox", codec="text") as inbox:
        for key, value in (("a", "1"), ("b", "2" * 3000), ("c", "3")):
            inbox.add(key, value)
        file = io.BytesIO()
        archive.write(inbox.layout, file, ("waiting",), progress=lambda done: None)
    return file.getvalue()


def read(content: bytes) -> tuple[list[tuple[str, bytes]], str]:
    """Read an archive to its end, or to where it is wrong; return what was whole, and what is wrong."""
    whole = []
    try:
        for member in archive.members(io.BytesIO(content)):
            payload, data = member.open(), b""
            while piece := payload.read(1000):
                data += piece
            whole.append((member.key, data))
    except archive.ArchiveError as error:
        return whole, str(error)
    return whole, ""


WHOLE = [("a", b"1"), ("b", b"2" * 3000), ("c", b"3")]


def test_of_an_archive_that_is_cut_anywhere_the_whole_elements_are_read_and_it_is_an_error(
    example: bytes,
) -> None:
    end = example.rindex(b"3") // 512 * 512 + 512
    assert read(example) == (WHOLE, "")
    assert read(example[: end + 512]) == (WHOLE, "")  # the first of the blocks at its end is enough
    for cut in [*range(0, end + 1, 128), *range(1, end, 509)]:
        whole, wrong = read(example[:cut])
        assert whole == WHOLE[: len(whole)]
        assert "it is not a tar file, or is damaged or incomplete" in wrong, cut


@pytest.mark.parametrize("packed", [None, gzip.compress, bz2.compress, lzma.compress])
def test_of_a_damaged_archive_whole_elements_are_read_and_then_there_is_one_error_of_ours(
    example: bytes, packed: Callable[[bytes], bytes] | None
) -> None:
    content = packed(example) if packed else example
    assert read(content) == (WHOLE, "")
    random = Random(7)
    wrong = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(random.choice((1, 1, 1, 20))):
            at = random.randrange(len(damaged))
            damaged[at] = random.choice((0, 255, damaged[at] ^ 1 << random.randrange(8), ord("9")))
        if random.random() < 0.2:
            del damaged[random.randrange(len(damaged)) :]
        whole, text = read(bytes(damaged))  # anything but an ArchiveError is raised, and fails this
        assert len(whole) <= len(WHOLE)
        wrong += bool(text)
    assert wrong > 20


def headers(*blocks: bytes) -> bytes:
    return b"".join(blocks) + bytes(10240)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


SPARSE = {
    "old": headers(header(tarfile.GNUTYPE_SPARSE, 0)),
    "0.0": {"GNU.sparse.size": "1", "GNU.sparse.numblocks": "1"},
    "0.1": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"},
    "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"},
}


@pytest.mark.parametrize("form", SPARSE)
def test_a_sparse_member_is_refused(form: str) -> None:
    content = SPARSE[form]
    if isinstance(content, dict):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo("waiting/1795552753631524533-a")
            member.pax_headers = content
            tar.addfile(member)
        content = file.getvalue()
    assert "a sparse member" in read(content)[1]


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_of_gigabytes_is_refused_before_it_is_read(kind: bytes) -> None:
    assert "a header of 8000000000 bytes" in read(headers(header(kind, 8_000_000_000)))[1]


def test_headers_without_end_are_refused() -> None:
    one = header(tarfile.GNUTYPE_LONGNAME, 512) + b"n" * 512
    assert "cannot read the archive" in read(headers(one * 5000))[1]


def test_the_longest_reason_is_kept_and_fits(home: Path) -> None:
    with Inbox(home / "inbox", codec="text") as inbox:
        inbox.add("k", "v")
        element = take(inbox)
        while element.key != "k":
            element.ack()
            element = take(inbox)
        element.fail("begin " + "\U0001f600" * 100_000 + " end")
    run("export", "--state", "failed", "all.tar", cwd=home)
    run("--inbox", "new", "import", "--create", "all.tar", cwd=home)
    (failed,) = map(json.loads, run("--inbox", "new", "failed", "k", "--json", cwd=home).stdout.splitlines())
    assert failed["reason"].rstrip().endswith("\U0001f600 end")
    assert len(failed["reason"]) > 16_000


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
    words = ("--inbox", "new", "import", "--create", "forged.tar")
    assert "in the archive" in run(*words, cwd=home, status=2).stderr
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
        written = archive.write(inbox.layout, file, ("waiting",), progress=lambda done: None)
        assert written.exported == len(KEYS) - 1
        assert written.unreadable == {}


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
