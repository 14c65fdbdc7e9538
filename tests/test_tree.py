"""The parts of `fsinbox watch`, one by one: what no process can be made to meet at will."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from helpers import wait_until

from fsinbox import Inbox
from fsinbox.worker.tree import events, watcher
from fsinbox.worker.tree.events import Hint, Hints, InotifySource, ObserverSource, Source, make_source
from fsinbox.worker.tree.folders import Fingerprint, Tree, fingerprint
from fsinbox.worker.tree.opening import open_trees
from fsinbox.worker.tree.patterns import Patterns
from fsinbox.worker.tree.queueing import Change, Left, Queue, Unreadable, Unsteady, _Content
from fsinbox.worker.tree.roots import Root, parse_roots
from fsinbox.worker.tree.scanning import Scanner
from fsinbox.worker.tree.settling import TICK, Settling
from fsinbox.worker.tree.state import State
from fsinbox.worker.tree.watcher import Times, Watcher
from tests.usual import drain

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

PRINT = Fingerprint(1, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to be watched, with a file in a folder in it."""
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/a").write_text("a")
    return tmp_path / "tree"


@pytest.fixture
def tree(folder: Path) -> Tree:
    return Tree(Root(str(folder)), Patterns(), frozenset())


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    with Inbox(tmp_path / "inbox", codec="bytes", durable=False) as inbox:
        yield inbox


@pytest.fixture
def trees(inbox: Inbox, folder: Path) -> Iterator[dict[Tree, State]]:
    trees = open_trees(inbox, [Root(str(folder))], Patterns(), None)
    yield trees
    for state in trees.values():
        state.close()


# --- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 201, "é" * 100, "a/" * 200, "\udcff" * 100, "." * 201])
def test_a_short_key_is_a_key_and_no_other_s(name: str) -> None:
    root = Root("/srv", "docs/")
    key = root.short_key_of(name)
    assert key == Root("/elsewhere", "docs/").short_key_of(name)  # of the path in the tree alone
    assert key != root.short_key_of(name + "x")
    assert key.startswith("docs/")
    assert root.key_of("short") == "docs/short"


def test_the_root_of_all_may_be_watched() -> None:
    (root,) = parse_roots(["/"])
    assert root.path_of("etc/hosts") == "/etc/hosts"
    assert root.key_of("etc/hosts") == "etc/hosts"


# --- debounce -----------------------------------------------------------------------------------------


def test_what_is_seen_again_and_again_waits_to_its_limit_only() -> None:
    settling = Settling[str](1.0, 2.5)
    for now in (0.0, 0.9, 1.8):
        settling.saw("a", PRINT, now)
        assert list(settling.due(now)) == []
    assert list(settling.due(2.4)) == []  # it would be due at 2.8
    assert list(settling.due(2.5)) == ["a"]
    assert settling.is_overdue("a", 2.5) and not settling.is_overdue("a", 2.4)


def test_what_looks_otherwise_when_it_is_due_waits_on() -> None:
    settling = Settling[str](1.0, 60.0)
    settling.saw("a", PRINT, 0.0)
    assert settling.next_due() == 1.0
    assert list(settling.due(1.0)) == ["a"]
    assert not settling.is_still("a", None, 1.0)
    assert list(settling.due(1.9)) == [] and "a" in settling
    assert list(settling.due(2.0)) == ["a"]
    assert settling.is_still("a", None, 2.0)
    assert not len(settling) and settling.next_due() is None


def test_two_looks_are_never_within_a_tick_of_the_clock() -> None:
    settling = Settling[str](0.0, 0.0)
    settling.saw("a", PRINT, 0.0)
    assert settling.next_due() == TICK


def test_what_was_forgotten_or_put_off_is_not_due() -> None:
    settling = Settling[str](1.0, 60.0)
    for name in "ab":
        settling.saw(name, PRINT, 0.0)
    settling.forget("a")
    settling.postpone("b", PRINT, 5.0)
    assert list(settling.due(4.9)) == []
    assert list(settling.due(5.0)) == ["b"]


# --- the state ----------------------------------------------------------------------------------------


def test_a_record_that_is_cut_short_is_none(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state.db"))

    def changes() -> Iterator[tuple[str, Fingerprint]]:
        yield "a", PRINT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.record(changes())
    assert not state.any()
    state.record([("a", PRINT), ("b/c", PRINT), ("b-c", PRINT), ("b/d/e", PRINT), ("b0", PRINT)])
    assert sorted(state.folders("")) == ["", "b", "b/d"]
    assert sorted(state.folders("b")) == ["b", "b/d"]
    assert state.get("b/c") == PRINT
    state.record([("b/c", None)])
    assert state.get("b/c") is None and state.files("b") == {}
    state.close()


# --- reading ------------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_read_is_not_queued(folder: Path) -> None:
    path = folder / "sub/a"
    with path.open("rb", buffering=0) as file:
        content = _Content(file, fingerprint(os.stat(path)))
        assert content.read(10) == b"a"
        os.utime(path, (1, 1))
        with pytest.raises(Unsteady):
            content.read(10)
        assert _Content(file, None).read(10) == b""  # whatever it looks like


def test_what_cannot_be_read_is_no_fault_of_the_inbox(folder: Path) -> None:
    with open(folder / "sub/a", "wb", buffering=0) as file, pytest.raises(Unreadable):
        _Content(file, None).read(10)


def test_a_file_that_is_not_as_it_was_seen_is_left_for_later(
    inbox: Inbox, trees: dict[Tree, State], folder: Path
) -> None:
    ((tree, state),) = trees.items()
    queue = Queue(inbox, trees, "file")
    gone, other = Change(tree, "gone", PRINT), Change(tree, "sub/a", PRINT)
    assert queue.put([gone, other]).unsteady == [gone, other]
    assert drain(inbox) == [] and not state.any()
    assert queue.put([other._replace(hurry=True)]) == ([], [], [])  # it was waited for long enough
    assert drain(inbox) == [("sub/a", b"a")]
    assert state.get("sub/a") == tree.look("sub/a")


def test_what_has_become_a_folder_or_a_fifo_is_no_file(tree: Tree, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    for name in ("fifo", "sub"):
        assert tree.look(name) is None
        with pytest.raises(FileNotFoundError):
            tree.open_file(name)


def test_a_link_leads_nowhere_wherever_it_stands(tree: Tree, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "file").symlink_to(tmp_path / "elsewhere/secret")
    for name in ("link/secret", "file"):
        assert tree.look(name) is None
        with pytest.raises(FileNotFoundError):
            tree.open_file(name)
    assert not tree.holds_folder("link")


def test_a_file_that_goes_while_its_folder_is_listed_is_not_there(folder: Path) -> None:
    class Quick(Patterns):
        """Asked about a file, it is removed."""

        def wants(self, name: str) -> bool:
            (folder / name).unlink()
            return True

    tree = Tree(Root(str(folder)), Quick(), frozenset())
    with tree.opened("sub") as fd:
        assert tree.list(fd, "sub").files == {}


def test_what_is_skipped_or_shortened_is_said_once(
    inbox: Inbox, trees: dict[Tree, State], caplog: pytest.LogCaptureFixture
) -> None:
    ((tree, _),) = trees.items()
    caplog.set_level("INFO", "fsinbox")
    queue = Queue(inbox, trees, "path")
    for _ in range(2):
        queue.skip(tree, "a", "no reason")
        queue.put([Change(tree, "x" * 201, PRINT)])
    assert queue.skipped == 1
    assert [record.event for record in caplog.records] == ["skipped", "shortened"]  # type: ignore
    queue.put([Change(tree, "a", PRINT)])
    queue.skip(tree, "a", "no reason")
    assert len(caplog.records) == 3


def test_batches_are_bounded(inbox: Inbox, trees: dict[Tree, State], folder: Path) -> None:
    ((tree, _),) = trees.items()
    added: list[int] = []
    many = inbox.add_many
    inbox.add_many = lambda items: added.append(sum(many(items).values())) or {}  # type: ignore
    for number in range(20):
        (folder / f"{number}").write_bytes(b"x" * 1_000_000)
    changes = [Change(tree, f"{number}", tree.look(f"{number}")) for number in range(20)]
    assert Queue(inbox, trees, "file").put(changes) == ([], [], [])
    assert added == [17, 3]
    assert len(drain(inbox)) == 20


# --- hints --------------------------------------------------------------------------------------------


def test_more_hints_than_are_kept_are_a_rescan(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST", 2)
    hints = Hints(lambda: None)
    put = [Hint(tree, name, False, False) for name in "abca"]
    for hint in put:
        hints.put(hint)
    assert hints.taken() == (put[:2], True)
    assert hints.taken() == ([], False)


@pytest.fixture
def hints() -> Hints:
    return Hints(lambda: None)


def collected(hints: Hints, found: set[str]) -> set[str]:
    """Return the names of all hints so far."""
    found |= {hint.name for hint in hints.taken()[0]}
    return found


def watch(source: Source, tree: Tree, name: str) -> None:
    with tree.opened(name) as fd:
        source.watch(tree, name, fd)


@linux
def test_a_folder_under_a_new_name_gives_hints_of_that(tree: Tree, folder: Path, hints: Hints) -> None:
    source = InotifySource(hints)
    try:
        watch(source, tree, "sub")
        (folder / "sub").rename(folder / "new")
        watch(source, tree, "new")
        watch(source, tree, "new")
        collected(hints, set())
        (folder / "new/x").touch()
        found: set[str] = set()
        wait_until(lambda: "new/x" in collected(hints, found))
        assert not {name for name in found if name.startswith("sub/")}
    finally:
        source.close()


@linux
def test_an_end_that_is_told_late_does_not_end_the_watch_of_its_successor(
    tree: Tree, folder: Path, hints: Hints
) -> None:
    source = InotifySource(hints)
    try:
        watch(source, tree, "sub")
        (first,) = source._folders.values()
        shutil.rmtree(folder / "sub")
        wait_until(lambda: not source._folders)
        (folder / "sub").mkdir()
        watch(source, tree, "sub")
        (second,) = source._folders.values()
        first.key = second.key  # the inode's number is used again
        source.forget(first)
        assert list(source._folders.values()) == [second]
    finally:
        source.close()


@linux
def test_a_folder_whose_times_or_rights_change_needs_no_look(tree: Tree, folder: Path, hints: Hints) -> None:
    source = InotifySource(hints)
    try:
        for name in ("", "sub"):
            watch(source, tree, name)
        os.utime(folder / "sub")
        os.utime(folder)
        (folder / "x").touch()
        found: set[str] = set()
        wait_until(lambda: "x" in collected(hints, found))
        assert found == {"x"}
    finally:
        source.close()


def test_other_systems_give_hints_as_well(
    tree: Tree, folder: Path, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    ObserverSource(hints).close()  # imports what this system has, before it is called another
    monkeypatch.setattr(sys, "platform", "darwin")
    source = make_source(hints)
    try:
        assert isinstance(source, ObserverSource)
        watch(source, tree, "")
        watch(source, tree, "sub")
        found: set[str] = set()
        (folder / "sub/x").write_text("x")
        (folder / "sub/a").rename(folder / "b")
        wait_until(lambda: {"sub/x", "sub/a", "b"} <= collected(hints, found))
        source.unwatch(tree, "sub")
        (folder / "sub").rename(folder / "moved")
        wait_until(lambda: "moved" in collected(hints, found))
    finally:
        source.close()


# --- the loop -----------------------------------------------------------------------------------------


def watcher_of(inbox: Inbox, trees: dict[Tree, State], payload: str = "path", **more: object) -> Watcher:
    queue = Queue(inbox, trees, payload)
    scanners = [Scanner(tree, state, queue) for tree, state in trees.items()]
    return Watcher(scanners, queue, Times(settle=0.0, poll=0.1), **more)  # type: ignore[arg-type]


def stopped_when(condition: object, run: Watcher) -> None:
    """Run it until a condition holds."""

    def wait() -> None:
        wait_until(condition)  # type: ignore[arg-type]
        run._on_signal(15, None)

    thread = threading.Thread(target=wait)
    thread.start()
    run.run()
    thread.join()


def test_a_scan_is_cut_into_slices(
    inbox: Inbox, trees: dict[Tree, State], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        (folder / f"f{number}").mkdir()
        for name in "xyz":
            (folder / f"f{number}/{name}").touch()
    monkeypatch.setattr(watcher, "_SLICE", 0.0)
    monkeypatch.setattr(watcher, "_TOGETHER", 2)
    time.sleep(2 * TICK)  # all lie still
    run = watcher_of(inbox, trees, once=True)
    rounds: list[None] = []
    attend = run._attend
    run._attend = lambda: (rounds.append(None), attend())[1]  # type: ignore
    run.run()
    assert len(rounds) > 30
    assert len(drain(inbox)) == 91


def test_a_file_that_changes_as_it_is_queued_is_looked_at_again(
    inbox: Inbox, trees: dict[Tree, State], folder: Path
) -> None:
    run = watcher_of(inbox, trees, "file", once=True)
    put = run.queue.put

    def meddle(changes: Iterable[Change]) -> Left:
        if list(changes):
            (folder / "sub/a").write_text("changed")
            run.queue.put = put  # type: ignore[method-assign]
        return put(changes)

    run.queue.put = meddle  # type: ignore[method-assign]
    run.run()
    assert drain(inbox) == [("sub/a", b"changed")]


@linux
def test_a_folder_is_watched_before_it_is_listed(
    trees: dict[Tree, State], folder: Path, inbox: Inbox
) -> None:
    """What comes between the two would be seen by neither, the other way round."""
    ((tree, state),) = trees.items()
    scanner = Scanner(tree, state, Queue(inbox, trees, "path"))
    scanner.watch = lambda tree, name, fd: name and (folder / name / "new").touch()
    found = {difference.name for differences in scanner.differences() for difference in differences}
    assert found == {"sub/a", "sub/new"}


def test_a_network_file_system_is_polled(
    inbox: Inbox, trees: dict[Tree, State], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tree,) = trees
    tree.local = False
    run = watcher_of(inbox, trees)
    caplog.set_level("INFO", "fsinbox")
    (folder / "later").touch()
    stopped_when(lambda: run.queue.counts["queued"] == 2, run)
    assert "is on a network file system" in caplog.text
    assert sorted(key for key, _ in drain(inbox)) == ["later", "sub/a"]
