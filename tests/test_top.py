"""`fsinbox top` in a real terminal, beside a real consumer: what is seen, and how the terminal is left."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from helpers import PATIENCE, Consumer, command, environment, run

from fsinbox import Inbox
from fsinbox.cli.top import bars, by_minute, keyboard, short
from fsinbox.consumer.ownership import WHOLE, parse_shard
from fsinbox.operate.stats import ConsumerStats, StatsWriter
from fsinbox.store.layout import Layout

HANDLER = """
import pathlib, time

def work(key, value):
    if key.startswith("bad"):
        raise ValueError("no [red]such[/red] thing \\x1b[2J")
    if key.startswith("slow"):
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
"""

LEAVES = "\x1b[?1049l"
"""Back from the alternate screen."""


class Terminal:
    """A program in a pseudo-terminal, and what its screen shows."""

    def __init__(
        self, words: list[str], cwd: Path, rows: int = 40, columns: int = 100, **variables: str
    ) -> None:
        variables = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "COLUMNS": "", "LINES": ""} | variables
        env = {name: value for name, value in environment(**variables).items() if value}
        self.child = pexpect.spawn(
            words[0],
            words[1:],
            cwd=str(cwd),
            env=env,
            dimensions=(rows, columns),
            timeout=PATIENCE,
            use_poll=True,
        )
        self.raw = ""

    def read(self) -> bool:
        """Read what there is within a moment; tell whether there may be more."""
        try:
            self.raw += self.child.read_nonblocking(65536, timeout=0.2).decode(errors="replace")
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            return False
        return True

    def screen(self, *wanted: str) -> str:
        """Wait until one view has all that is wanted (regular expressions), and return it as plain text."""
        deadline = time.monotonic() + PATIENCE
        while True:
            more = self.read()
            for frame in self.raw.split("\x1b[H")[-2:]:
                text = re.sub(r"(?m)\x1b\[[0-9;?]*[a-zA-Z]|[ \r]+$", "", frame)
                if all(re.search(one, text) for one in wanted):
                    return text
            assert more, f"it ended\n{self.raw}"
            assert time.monotonic() < deadline, f"waited in vain for {wanted}\n{text}"

    def rest(self) -> str:
        """Wait until it ends, and return all it ever wrote."""
        deadline = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < deadline, f"it does not end\n{self.raw}"
        self.child.wait()
        return self.raw


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start `fsinbox top` in a terminal. Killed at the end of the test."""
    started: list[Terminal] = []

    def start(*words: str, program: list[str] | None = None, **more: object) -> Terminal:
        line = program or [str(word) for word in command("top", "--interval", "0.1", *words)]
        started.append(Terminal(line, tmp_path, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.child.close(force=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an inbox and a handler."""
    (tmp_path / "tasks.py").write_text(HANDLER)
    Inbox(tmp_path / "inbox").close()
    return tmp_path


def test_it_shows_how_the_work_goes_beside_a_real_consumer(
    place: Path, terminal: Callable[..., Terminal]
) -> None:
    with Inbox(place / "inbox", codec="text") as inbox:
        for key in ("good-1", "good-2", "bad[b]-1", "slow-1", "slow-2"):
            inbox.add(key, "v")
    view = terminal()
    first = view.screen(
        "WARNING: No consumer is running; 5 elements are waiting",
        "waiting 5",
        "consumer +1/1  none",
        "no failures",
    )
    assert re.search(r"fsinbox top  \d\d:\d\d:\d\d  q quits  /", first)
    words = ("--handler", "tasks:work", "--codec", "text", "--concurrency", "2", "--retry-delay", "600")
    with Consumer(*words, cwd=place) as consumer:
        text = view.screen(
            rf"consumer +1/1  pid {consumer.process.pid} on .*: tasks:work, 2 at once",
            "in flight: 2",
            r"attempt 1 +slow-1",
            r"attempt 1 +slow-2",
            r"tried again +bad\[b\]-1: .*no \[red\]such\[/red\] thing \\x1b\[2J",
            r"deferred 1",
            r"OK: No elements are waiting",
        )
        assert re.search(r"acknowledged .*█.* [12]$", text, re.M)  # (fewer if the minute has just changed)
        assert re.search(r"failed .*█.* 1$", text, re.M)
        assert re.search(r"arrived .*█.* [345]$", text, re.M)
        assert re.search(r"waiting .*█.* 5$", text, re.M), "the depth since it was started"
        assert re.search(r"\d/min acknowledged over the last ", text)
        view.screen(r" [2-9]s +attempt 1 +slow-1")
        (place / "go").touch()
        view.screen("in flight: 0", r"acknowledged .*█.* [234]\n")
        run("add", "bad-2", "v", cwd=place)
        view.screen(r"(?s)tried again +bad-2.*tried again +bad\[b\]-1")
    view.child.send("q")
    assert view.rest().endswith(LEAVES)
    assert view.child.exitstatus == 0


def test_limits_make_the_verdict_critical(place: Path, terminal: Callable[..., Terminal]) -> None:
    run("add", "k", "v", cwd=place)
    view = terminal("--max-waiting", "0")
    view.screen(r"CRITICAL: 1 element is waiting \(limit 0\)")
    view.child.send("x ")  # no key of ours
    run("add", "other", "v", cwd=place)
    view.screen(r"CRITICAL: 2 elements are waiting \(limit 0\)")


@pytest.mark.parametrize("end", ["q", "Q", "\x04", "ctrl-c", "SIGTERM", "SIGHUP"])
def test_however_it_ends_the_terminal_is_as_it_was(
    place: Path, terminal: Callable[..., Terminal], end: str
) -> None:
    line = " ".join(str(word) for word in command("top", "--interval", "60"))
    view = terminal(
        program=["/bin/sh", "-c", f"trap : INT; stty -a >before; {line}; echo status $?; stty -a >after"]
    )
    view.screen("OK: No elements are waiting")
    view.child.send("\x1a")  # Ctrl-Z: ignored, or the shell would be left on our screen
    if end == "ctrl-c":
        view.child.sendintr()
    elif end.startswith("SIG"):
        if not Path("/proc/self/task").exists():
            pytest.skip("the shell's child is found in /proc")
        (pid,) = Path(f"/proc/{view.child.pid}/task/{view.child.pid}/children").read_text().split()
        os.kill(int(pid), getattr(signal, end))
    else:
        view.child.send(end)
    text = view.rest()
    assert "status 0" in text.partition(LEAVES)[2]
    assert "\x1b[?25h" in text, "the cursor is back"
    assert (place / "before").read_text() == (place / "after").read_text()


def test_a_key_that_ctrl_c_takes_back_before_it_is_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(The kernel forgets what was typed before a Ctrl-C: as if between a look and a read.)"""
    ours, theirs = pty.openpty()
    select_ = select.select

    def forget(*arguments: object) -> object:
        ready = select_(*arguments)  # type: ignore[arg-type]
        termios.tcflush(theirs, termios.TCIFLUSH)
        return ready

    with open(theirs) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with keyboard() as quits_within:
            os.write(ours, b"x")
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(select, "select", forget)
                assert not quits_within(30)
            os.write(ours, b"q")
            assert quits_within(30)
            os.write(ours, b"x")
            assert not quits_within(30)
            os.close(ours)
            assert quits_within(30), "the terminal has gone"


def test_an_inbox_that_goes_away_ends_it_with_a_message_on_a_clean_terminal(
    place: Path, terminal: Callable[..., Terminal]
) -> None:
    view = terminal()
    view.screen("OK: No elements are waiting")
    shutil.rmtree(place / "inbox")
    text = view.rest()
    assert "was removed, or moved away while it was being watched" in text.partition(LEAVES)[2]
    assert view.child.exitstatus == 3


def test_where_there_is_no_inbox_it_says_so(tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    view = terminal()
    assert "there is no inbox at" in view.rest()
    assert view.child.exitstatus == 3


def test_without_a_terminal_it_points_to_status(place: Path, terminal: Callable[..., Terminal]) -> None:
    done = run("top", cwd=place, status=2)
    assert "top needs a terminal" in done.stderr
    assert "`fsinbox status`" in done.stderr
    view = terminal(TERM="dumb")
    assert "top needs a terminal" in view.rest()
    assert view.child.exitstatus == 2


def test_a_terminal_that_knows_only_ascii_is_drawn_on_with_ascii(
    place: Path, terminal: Callable[..., Terminal]
) -> None:
    layout = Layout(str(place / "inbox"))
    account = StatsWriter(layout, WHOLE, "handlër", 1)
    account.started("kü", 1, 1, replaced=False, latency=None)
    account.ended("kü", 1, "failed", "brökèn", 0.1)
    account.write()
    layout.close()
    text = terminal(PYTHONIOENCODING="ascii").screen(r"given up +k\?: br\?k\?n")
    assert re.search(r"failed .*@.* 1", text)
    assert text.isascii()


def test_much_is_cut_to_what_fits(place: Path, terminal: Callable[..., Terminal]) -> None:
    layout = Layout(str(place / "inbox"))
    with Inbox(place / "inbox", shard="2/6") as inbox:
        inbox.become_consumer()
        account = StatsWriter(layout, parse_shard("2/6"), "handler", 12)
        for number in range(12):
            account.started(f"key-{number}-{'x' * 150}", number, 1, replaced=False, latency=None)
        account.write()
        text = terminal(columns=60, rows=50).screen(
            "in flight: 12", "and 2 more", "and 2 more: see `fsinbox status`"
        )
        assert "key-9" in text
        assert "key-10" not in text
        assert max(map(len, text.splitlines())) <= 60
    layout.close()


def test_a_plot_is_of_the_last_hour_only_and_of_all_shards() -> None:
    now = int(time.time() // 60)
    one, two = (
        ConsumerStats(minutes=[[now - 70, 9, 9, 9], [now - 2, 1, 0, 0]]),
        ConsumerStats(minutes=[[now - 2, 2, 0, 0], [now + 5, 9, 9, 9]]),
    )
    drawn = by_minute([one, two], 1)
    assert len(drawn) == 60
    assert (sum(drawn), max(drawn[-4:])) == (3, 3)


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([0, 0], "  "), ([1, 1000], "▁█"), ([0, 4, 8], " ▄█"), ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█")],
)
def test_bars_are_as_high_as_their_numbers_and_what_is_not_0_is_seen(values: list[int], drawn: str) -> None:
    assert bars(values, " ▁▂▃▄▅▆▇█") == drawn


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (99999, "99999"), (100000, "100k"), (999999, "999k"), (1234567, "1.23M"), (56 * 10**9, "56G")],
)
def test_numbers_are_cut_to_five_characters(number: int, text: str) -> None:
    assert short(number) == text
    assert len(text) <= 5
