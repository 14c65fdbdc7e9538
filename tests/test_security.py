"""Who is trusted with what: docs/security.md, and what a second user of the host can do."""

from __future__ import annotations

import ast
import ctypes
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import environment, run, wait_until

from fsinbox import Inbox
from fsinbox.consumer import trust
from fsinbox.consumer.ownership import WHOLE
from fsinbox.operate import archive
from fsinbox.store.replacing import Replacement
from fsinbox.worker.observer import StatsObserver

ROOT = Path(__file__).parents[1]
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
USER, GROUP = 65534, 54321
"""Another user of this host, and the group whose member he is."""

SECRET = b"root's secret"

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may enter."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def secret(folder: Path) -> Path:
    """A file that only root may read."""
    path = folder / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def shared(folder: Path) -> Iterator[Path]:
    """An inbox of root's that a group shares: `fsinbox init --shared` in a folder of the group."""
    own = folder / "group"
    own.mkdir()
    os.chown(own, 0, GROUP)
    own.chmod(0o2770)
    Inbox(own / "inbox", shared=True).close()
    yield own / "inbox"


class Member:
    """A process of another user, a member of the group, that does something again and again until the `with`
    block ends; `count` tells how often."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self.count = 0

    def __enter__(self) -> Member:
        self._tally, theirs = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.setgroups([GROUP])
                os.setgid(USER)
                os.setuid(USER)
                signal.alarm(60)
                while True:
                    try:
                        self._step()
                        os.write(theirs, b".")
                    except OSError:
                        pass
            finally:
                os._exit(1)
        os.close(theirs)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        while piece := os.read(self._tally, 1 << 16):
            self.count += len(piece)
        os.close(self._tally)


def once(step: Callable[[], object]) -> None:
    """Do one thing as the other user; it must succeed."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([GROUP])
            os.setgid(USER)
            os.setuid(USER)
            step()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the attack itself failed"


def untouched(secret: Path) -> bool:
    return secret.read_bytes() == SECRET and secret.stat().st_mode & 0o777 == 0o600


def swap(folder: Path, prefix: str, secret: Path) -> None:
    """Put a link to the secret in place of each file whose name begins so."""
    for name in os.listdir(folder):
        if name.startswith(prefix) and not os.path.islink(folder / name):
            os.unlink(folder / name)
            os.symlink(secret, folder / name)


# --- the table ----------------------------------------------------------------------------------------

TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/security.md").read_text().splitlines()
    if line.startswith("| **")
]


def test_each_row_says_who_is_trusted_with_what_and_names_its_tests() -> None:
    assert len(TABLE) >= 16
    for row in TABLE:
        who, trusted, _, tests = row
        assert who.startswith("**") and trusted, row
        assert re.findall(r"`([\w/]+\.py)::(\w+)`", tests), f"{who} has no test"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0].strip("*"))
def test_the_tests_of_a_row_are_there_and_have_something_to_say(row: list[str]) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1]):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, f"there is no tests/{file}::{name}"
        says = {type(node) for node in ast.walk(found[0])}
        assert says & {ast.Assert, ast.With}, f"{name} asserts nothing"


# --- drafts beside a user's files ---------------------------------------------------------------------


@only_root
def test_the_draft_of_the_metrics_is_not_written_through_a_link(
    folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was FILE.<pid>.new, through whatever was there, and then readable by all."""
    from fsinbox.worker.metrics import Metrics

    place = folder / "textfile"
    place.mkdir()
    os.chown(place, 0, GROUP)
    place.chmod(0o2775)
    file = place / "m.prom"
    bait = f"{file}.{os.getpid()}.new"
    once(lambda: os.symlink(secret, bait))
    with Inbox(folder / "inbox") as inbox:
        metrics = Metrics(inbox.path, WHOLE, StatsObserver(inbox.layout, WHOLE, "handler", 1))
        metrics.keep_file(str(file))
        assert untouched(secret)
        assert b"fsinbox" in file.read_bytes() and not file.is_symlink()

        with Member(lambda: swap(place, ".fsinbox.", secret)) as member:
            for _ in range(300):
                try:
                    metrics._write_file()
                except OSError:
                    continue  # its draft was removed before it was renamed
                assert untouched(secret)
    assert member.count


@only_root
def test_an_archive_is_not_written_through_a_link_and_is_its_owner_s(folder: Path, secret: Path) -> None:
    place = folder / "open"
    place.mkdir()
    place.chmod(0o777)
    with Inbox(folder / "inbox") as inbox:
        for key in range(20):
            inbox.add(str(key), key)
        once(lambda: os.symlink(secret, place / "all.tar.part"))
        run("--inbox", inbox.path, "export", place / "all.tar", cwd=folder)
        assert untouched(secret)
        assert (place / "all.tar").stat().st_mode & 0o777 == 0o600

        with Member(lambda: swap(place, ".fsinbox.", secret)) as member:
            for _ in range(200):
                try:
                    with Replacement(str(place / "all.tar"), 0o600) as draft:
                        archive.write(inbox.layout, draft, ("waiting",), progress=lambda done: None)
                except OSError:
                    continue
                assert untouched(secret)
        assert member.count


def writes_in_place(path: Path) -> list[str]:
    """Return the calls of a module that make or write a file that may be there already: open(..., "w"), and
    os.open(... O_CREAT ...) without O_EXCL."""
    found = []
    nodes = list(ast.walk(ast.parse(path.read_text())))
    inner = {id(side) for node in nodes if isinstance(node, ast.BinOp) for side in (node.left, node.right)}
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in inner:
            flags = ast.unparse(node)
            if "O_CREAT" in flags and "O_EXCL" not in flags:
                found.append(flags)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "os.fdopen", "io.open"):
            modes = [argument for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
            if any(set(str(mode.value)) & set("wax+") for mode in modes) and "fd" not in ast.unparse(
                node.args[0]
            ):
                found.append(ast.unparse(node))
    return found


def test_no_module_writes_a_file_in_place_but_where_it_says_why() -> None:
    """What is drafted goes through store/replacing.py or a new file of tmp/."""
    package = ROOT / "fsinbox"
    allowed = {
        "consumer/ownership.py",  # consumer.lock: opened by dir_fd, O_NOFOLLOW, one name
        "store/creating.py",  # index and consumer.lock: the same
        "store/bounds.py",  # limits: the same
        "store/subfolders.py",  # subfolders: the same
        "store/section.py",  # index: the same
        "doctor/filesystem.py",  # within a new folder of its own, mode 0700
    }
    found = {
        str(path.relative_to(package)): calls
        for path in sorted(package.rglob("*.py"))
        if (calls := writes_in_place(path))
    }
    assert found.keys() == allowed, found


@pytest.mark.parametrize(
    "text",
    ['open(path, "wb")', 'open(path, "r+b")', "os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)"],
)
def test_a_write_in_place_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(text)
    assert len(writes_in_place(tmp_path / "module.py")) == 1


# --- the shell producer -------------------------------------------------------------------------------

SHELL = ROOT / "scripts/fsinbox-add"


@only_root
def test_the_shell_producer_s_draft_is_not_written_through_a_link(
    shared: Path, folder: Path, secret: Path
) -> None:
    """It was opened by its name once more: here somebody swaps it just before it is written."""
    bin = folder / "bin"
    bin.mkdir()
    real = shutil.which("dd")
    (bin / "dd").write_text(
        f"#!/bin/sh\nfor file in {shared}/tmp/sh.*; do rm -f $file; ln -s {secret} $file; done\n"
        f'exec {real} "$@"\n'
    )
    (bin / "dd").chmod(0o755)
    path = f"{bin}:{os.environ['PATH']}"
    words = [SHELL, "--inbox", shared, "key", "-"]
    subprocess.run(words, input=b"value", env=environment(PATH=path), capture_output=True)
    assert untouched(secret)


@only_root
def test_the_shell_producer_s_index_is_not_opened_through_a_link(shared: Path, secret: Path) -> None:
    """It looks, then opens: a link that comes in between must not be written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    index, mine = bytes(shared / "index"), bytes(shared / "mine")
    once(lambda: os.symlink(secret, mine))

    def flip() -> None:
        for _ in range(1000):
            if libc.renameat2(AT_FDCWD, mine, AT_FDCWD, index, RENAME_EXCHANGE):
                raise OSError(ctypes.get_errno(), "renameat2")

    with Member(flip) as member:
        for number in range(200):
            subprocess.run([SHELL, "--inbox", shared, "key", str(number)], capture_output=True)
            assert untouched(secret)
    assert member.count


# --- the payload's file -------------------------------------------------------------------------------

PUBLISH = """\
: >{folder}/go
while [ ! -e {folder}/swapped ]; do sleep 0.01; done
{read} >{folder}/published
"""

BY_DESCRIPTOR = {"{fd}": "cat {fd}", "standard input": "cat", "FSINBOX_FD": 'cat "/dev/fd/$FSINBOX_FD"'}
BY_PATH = {"{}": "cat {}", "FSINBOX_PATH": 'cat "$FSINBOX_PATH"'}


def published(shared: Path, folder: Path, secret: Path, read: str) -> tuple[bytes, str]:
    """Have root's consumer run a command on an element whose file a member of the group swaps for a link to
    the secret before it is read. Return what was read, and what the consumer has logged."""
    with Inbox(shared, codec="text") as inbox:
        inbox.add("key", "payload")
    words = ["consume", "--exec", PUBLISH.format(folder=folder, read=read), "--shell", "--once"]
    consumer = subprocess.Popen(
        [sys.executable, "-m", "fsinbox", "--inbox", shared, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_until(lambda: (folder / "go").exists(), "for the command")
    once(lambda: swap(shared / "inflight", "1", secret))
    (folder / "swapped").touch()
    _, log = consumer.communicate(timeout=60)
    return (folder / "published").read_bytes(), log


@only_root
@pytest.mark.parametrize("how", BY_DESCRIPTOR)
def test_a_command_that_reads_a_descriptor_is_not_misled_by_a_swapped_file(
    shared: Path, folder: Path, secret: Path, how: str
) -> None:
    read, log = published(shared, folder, secret, BY_DESCRIPTOR[how])
    assert read == b"payload"
    assert "by its path" not in log


@only_root
@pytest.mark.parametrize("how", BY_PATH)
def test_a_command_that_reads_a_path_is_misled_and_that_is_warned_of(
    shared: Path, folder: Path, secret: Path, how: str
) -> None:
    read, log = published(shared, folder, secret, BY_PATH[how])
    assert read == SECRET, "if this is no longer so, the warning is not needed"
    assert f"by its path, and others may have another file there by then: group {GROUP} (the inbox" in log
    assert "use {fd}, or read standard input" in log


@only_root
def test_an_element_that_is_opened_never_gives_another_s_file(shared: Path, secret: Path) -> None:
    with Inbox(shared, codec="text") as inbox:
        for key in ("opened before", "opened after"):
            inbox.add(key, "payload")
        element = inbox.take()
        assert element
        with open(element.open(), "rb") as before:
            once(lambda: swap(shared / "inflight", "1", secret))
            assert before.read() == b"payload"
        element.ack()
        element = inbox.take()
        assert element
        once(lambda: swap(shared / "inflight", "1", secret))
        for read in (element.open, lambda: element.data, lambda: element.value):
            with pytest.raises(OSError, match="symbolic links"):
                read()
        assert Path(element.path).read_bytes() == SECRET, "a path is walked again"
        element.ack()
    assert untouched(secret)


@only_root
def test_a_thousand_races_of_a_group_member_lead_nowhere(
    shared: Path, secret: Path, figure: Callable[[str], None]
) -> None:
    """He swaps files of every folder for links while root adds, takes and acknowledges."""

    def attack() -> None:
        for name in ("tmp", "pending", "inflight", "drop"):
            swap(shared / name, "", secret)
            os.symlink(secret, shared / "drop" / str(time.time_ns()))

    races = 0
    with Member(attack) as member, Inbox(shared, codec="bytes", drop_settle=0) as inbox:
        while races < 1000:
            races += 1
            for step in (partial(inbox.add, str(races % 7), b"payload"), inbox.take):
                try:
                    element: Any = step()
                    if hasattr(element, "ack"):
                        assert SECRET not in element.data
                        element.ack()
                except OSError:
                    pass  # he has spoilt what is there for all
            for claim in list(inbox._taking().claims.values()):
                claim.acknowledge()
            assert untouched(secret)
    assert member.count
    figure(f"{races} adds and takes beside {member.count} rounds of swaps, 0 led outside")


def test_a_payload_is_never_unpickled_or_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/hacked",)

    for codec, payload in (("bytes", pickle.dumps(Evil())), ("text", f"$(touch {tmp_path}/hacked)".encode())):
        with Inbox(tmp_path / "inbox", codec=codec) as inbox:
            inbox.add_bytes("key", payload)
        run("consume", "--exec", "cat {fd}", "--shell", "--once", cwd=tmp_path)
        with Inbox(tmp_path / "inbox", codec=codec) as inbox:
            inbox.add_bytes("key", payload)
            assert [waiting.value for waiting in inbox] == [payload if codec == "bytes" else payload.decode()]
    assert not (tmp_path / "hacked").exists()


# --- who may write ------------------------------------------------------------------------------------


@pytest.fixture
def private(folder: Path) -> Iterator[Inbox]:
    with Inbox(folder / "inbox") as inbox:
        yield inbox


def test_in_a_private_inbox_nobody_else_may_write(private: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    assert trust.writers(private.layout) == trust.path_writers(private.layout) == ""
    private.become_consumer()
    trust.warn_by_path(private.layout, "cat {}")
    assert not caplog.messages


@only_root
@pytest.mark.parametrize(
    ("name", "owner", "group", "mode", "who"),
    [
        ("pending", 0, GROUP, 0o770, f"group {GROUP} (pending/)"),
        ("drop", 0, 0, 0o1777, "everybody (drop/)"),
        ("failed", USER, 0, 0o700, f"user {USER} (failed/)"),
        ("", USER, USER, 0o770, f"group {USER} (the inbox itself), user {USER} (the inbox itself)"),
    ],
)
def test_root_is_warned_of_who_else_may_write(
    private: Inbox,
    caplog: pytest.LogCaptureFixture,
    name: str,
    owner: int,
    group: int,
    mode: int,
    who: str,
) -> None:
    path = Path(private.path, name)
    os.chown(path, owner, group)
    path.chmod(mode)
    private.become_consumer()
    (message,) = caplog.messages
    assert message.startswith(f"root consumes {private.path}, where others may write: {who}: ")
    assert "consume it as a user of its own" in message


@only_root
def test_who_is_not_root_is_not_warned_of_the_group_that_shares_the_inbox(shared: Path) -> None:
    code = f"""if True:
        import logging, os
        from fsinbox import Inbox
        import fsinbox.consumer.session, filelock
        from fsinbox.consumer import trust
        logging.basicConfig(level=logging.INFO)
        os.setgroups([{GROUP}])
        os.setgid({USER})
        os.setuid({USER})
        with Inbox({str(shared)!r}) as inbox:
            inbox.become_consumer()
            print(trust.writers(inbox.layout))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith(f"group {GROUP} (the inbox itself, tmp/, "), done.stderr
    assert "root consumes" not in done.stderr


@only_root
def test_a_parent_in_which_others_may_write_counts_unless_it_is_sticky(private: Inbox, folder: Path) -> None:
    folder.chmod(0o777)
    assert trust.path_writers(private.layout) == f"everybody ({folder})"
    folder.chmod(0o1777)
    assert trust.path_writers(private.layout) == ""
    os.chown(folder, 0, GROUP)
    folder.chmod(0o775)
    assert trust.path_writers(private.layout) == f"group {GROUP} ({folder})"


def test_what_is_not_there_is_written_by_nobody(private: Inbox, folder: Path) -> None:
    moved = folder / "moved"
    moved.mkdir()
    os.rename(private.path, moved / "inbox")
    (moved / "inbox/failed").rmdir()
    shutil.rmtree(moved / "inbox/drop")
    assert trust.writers(private.layout) == ""
    private.layout.path = str(folder / "no/such")
    assert trust.path_writers(private.layout) == ""
    private.layout.path = str(folder / "inbox")
