"""`fsinbox migrate`: from a database table of the kind that many teams write first, into an inbox."""

from __future__ import annotations

import datetime
import pty
import subprocess
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import command, contents, environment, json_lines, run

from fsinbox import Inbox
from fsinbox.cli.commands import cli
from fsinbox.store.layout import Layout
from tests.usual import drain

sqlalchemy = pytest.importorskip("sqlalchemy", reason="pip install 'fsinbox[migrate]'")

from fsinbox.operate.migration import Place, Source  # noqa: E402


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSINBOX_SETTINGS", "")
    return tmp_path


def migrate(*words: str, inbox: str = "inbox", status: int = 0) -> Result:
    """Run the command in this process: SQLAlchemy takes half a second to import."""
    result = CliRunner().invoke(cli, ["--inbox", inbox, "migrate", "--create", *words])
    assert result.exit_code == status, result.output
    return result


def make(folder: Path, *columns: str, rows: list[tuple[Any, ...]], name: str = "inbox") -> str:
    """Make a table from the definitions of its columns in jobs.db; return its URL."""
    url = f"sqlite:///{folder}/jobs.db"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {name} ({', '.join(columns)})")
        if rows:
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    engine.dispose()
    return url


DRAFT = ("id INTEGER PRIMARY KEY", "key VARCHAR UNIQUE", "value BLOB", "locked BOOLEAN")
"""As update-or-insert by key with a lock has it."""


def in_order(inbox: Path) -> list[tuple[str, bytes]]:
    """Return (encoded key, payload) of what waits, oldest first."""
    return [*contents(inbox).items()]


def test_rows_are_queued_in_order_those_that_were_taken_first_and_the_table_stays_as_it_is(
    project: Path,
) -> None:
    url = make(
        project,
        *DRAFT,
        rows=[(1, "a", b"1", 0), (2, "b", b"\xff", 1), (3, "c", b"3", None), (7, "d", b"4", 1)],
    )
    before = (project / "jobs.db").read_bytes()
    done = run("migrate", "--create", url, cwd=project)
    assert in_order(project / "inbox") == [("b", b"\xff"), ("d", b"4"), ("a", b"1"), ("c", b"3")]
    assert (project / "jobs.db").read_bytes() == before
    assert done.stdout == (
        f"queued 4 of table 'inbox' in {project}/inbox: 4 new, 0 replaced, 0 behind; 0 skipped\n"
        "nothing was deleted from the table: drop it yourself when the consumer has drained the inbox\n"
        f"next: fsinbox --inbox {project}/inbox consume --handler MODULE:FUNC\n"
    )
    assert list((project / "inbox/control").iterdir()) == []


def test_a_consumer_works_through_what_was_migrated_in_order(project: Path) -> None:
    url = make(
        project, *DRAFT, rows=[(number, f"k{number}", b'{"n": %d}' % number, 0) for number in range(1, 6)]
    )
    run("migrate", "--create", url, cwd=project)
    (project / "tasks.py").write_text(
        "def note(key, value): open('log', 'a').write(f\"{key}={value['n']} \")\n"
    )
    run("consume", "--handler", "tasks:note", "--drain", cwd=project)
    assert (project / "log").read_text() == "k1=1 k2=2 k3=3 k4=4 k5=5 "


def test_a_run_after_a_whole_one_replaces_what_still_waits_and_keeps_its_place(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(1, "a", b"1", 0), (2, "b", b"2", 0)])
    run("migrate", "--create", url, cwd=project)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE inbox SET value = 'new' WHERE key = 'a'")
    engine.dispose()
    again = json_lines(run("migrate", "--create", "--json", url, cwd=project).stdout)
    assert again == [
        {"path": f"{project}/inbox", "table": "inbox", "new": 0, "replaced": 2, "behind": 0, "skipped": 0}
    ]
    assert in_order(project / "inbox") == [("a", b"new"), ("b", b"2")]


def test_a_run_that_was_killed_goes_on_where_it_was(project: Path) -> None:
    rows = [(number, f"k{number:04}", b"%d" % number, number % 50 == 0) for number in range(1, 2001)]
    url = make(project, *DRAFT, rows=rows)
    waiting = project / "inbox/pending"
    child = subprocess.Popen(
        command("migrate", "--create", "--batch", "3", url),
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not (waiting.is_dir() and len(list(waiting.iterdir())) > 60):
        assert child.poll() is None, child.communicate()[1]
    child.kill()
    child.communicate()
    half = len(list(waiting.iterdir()))
    assert half < 2000
    done = run("migrate", "--create", "--batch", "700", url, cwd=project)
    assert "continuing the run that was interrupted" in done.stderr
    keys = [key for key, _ in in_order(project / "inbox")]
    locked = [f"k{number:04}" for number in range(50, 2001, 50)]
    assert keys == locked + [f"k{number:04}" for number in range(1, 2001) if number % 50]
    assert f"{2000 - half} new" in done.stdout


def test_a_run_that_finds_the_inbox_full_goes_on_behind_what_was_queued(project: Path) -> None:
    rows = [(number, f"k{number:04}", b"%d" % number, False) for number in range(1, 501)]
    url = make(project, *DRAFT, rows=rows)
    with Inbox(project / "inbox", codec="bytes") as inbox:
        inbox.limit(max_waiting=220)
        found: list[str] = []
        for status in (6, 6, 0):
            done = run("migrate", url, cwd=project, status=status)
            assert status == 0 or "it goes on there" in done.stderr
            found += [key for key, _ in drain(inbox)]
            time.sleep(0.05)  # (a count is made anew 10 us for each that waited after the last)
    assert found == [key for _, key, _, _ in rows]


def test_a_run_that_finds_no_room_at_all_keeps_its_place(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(1, "a", b"1", False), (2, "b", b"2", False)])
    with Inbox(project / "inbox", codec="bytes") as inbox:
        inbox.limit(max_waiting=1)
        run("migrate", "--batch", "1", url, cwd=project, status=6)
        run("migrate", "--batch", "1", url, cwd=project, status=6)
        assert [key for key, _ in drain(inbox)] == ["a"]
        run("migrate", "--batch", "1", url, cwd=project)
        assert [key for key, _ in drain(inbox)] == ["b"]


def test_a_run_waits_for_room(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(number, f"k{number}", b"1", False) for number in range(1, 31)])
    with Inbox(project / "inbox", codec="bytes") as inbox:
        inbox.limit(max_waiting=4)
        child = subprocess.Popen(
            command("migrate", "--timeout", "1m", url),
            cwd=project,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        found: list[str] = []
        while child.poll() is None:
            found += [key for key, _ in drain(inbox)]
        found += [key for key, _ in drain(inbox)]
    assert child.returncode == 0
    assert found == [f"k{number}" for number in range(1, 31)]


def test_the_place_is_kept_for_each_table_and_order_and_restart_forgets_it(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(1, "a", b"1", 0), (2, "b", b"2", 0), (3, "c", b"3", 1)])
    source = Source(url, "inbox", "key", "value", "locked", None)
    with Inbox(project / "inbox") as inbox:
        place = Place(inbox.layout, source.identity)
        assert place.read() is None
        place.write((True, [3]))  # between the parts
        assert Place(inbox.layout, source.identity).read() == (True, [3])
        assert (
            Place(inbox.layout, Source(url, "inbox", "key", "value", "locked", "key").identity).read() is None
        )
        place.write((False, [1]))
    source.close()
    run("migrate", "--create", url, cwd=project)
    assert contents(project / "inbox") == {"b": b"2", "c": b"3"}
    with Inbox(project / "inbox") as inbox:
        Place(inbox.layout, source.identity).write((False, [2]))
    run("migrate", "--create", "--restart", url, cwd=project)
    assert contents(project / "inbox") == {"a": b"1", "b": b"2", "c": b"3"}


@pytest.mark.parametrize(
    "junk",
    ["", "[]", "[true, [{}]]", "[true, 5]", '[true, [{"kind": "date", "text": "x"}]]', "[" * 10**5],
    ids=range(6),
)
def test_a_place_that_is_damaged_is_none(project: Path, junk: str) -> None:
    with Inbox(project / "inbox") as inbox:
        place = Place(inbox.layout, "x")
        place.write((True, [1]))
        (project / "inbox/control/migrate-x").write_text(junk)
        assert place.read() is None


def test_a_place_without_end_is_none(project: Path) -> None:
    """In a shared inbox it may be anybody's."""
    with Inbox(project / "inbox") as inbox:
        place = Place(inbox.layout, "x")
        place.write((True, [1]))
        with (project / "inbox/control/migrate-x").open("r+") as file:
            file.seek(1 << 20)
            file.truncate(1 << 40)
        assert place.read() is None


def test_a_place_keeps_every_kind_of_value_that_a_column_of_the_order_may_have(project: Path) -> None:
    now = datetime.datetime(2026, 11, 24, 10, 2, 56, 7, tzinfo=datetime.UTC)
    values = [1, 1.5, "t\x00\udc80/", now, now.date(), Decimal("1.10"), uuid.UUID(int=5), b"\xff", True]
    place = Place(Layout(str(project / "inbox")), "x")
    place.write((False, values))
    assert place.read() == (False, values)
    read = place.read()
    assert read and [type(value) for value in read[1]] == [type(value) for value in values]


# --- tables of other kinds ----------------------------------------------------------------------------


def test_columns_may_have_any_names_and_values_any_type(project: Path) -> None:
    url = make(
        project, "nr INTEGER PRIMARY KEY", "what TEXT", "payload", "taken_at DATETIME", "prio FLOAT",
        name="jobs",
        rows=[
            (1, "text", "ü", None, 3.0),
            (2, "number", 5, None, 2.0),
            (3, "null", None, "2026-01-01", 1.0),
            (4, b"byt\xffes", b"", None, 0.5),
            (5, 17, 1.5, None, 0.1),
        ],
    )  # fmt: skip
    words = ["--table", "jobs", "--key-column", "what", "--value-column", "payload", "--order-by", "prio"]
    migrate(*words, "--locked-column", "taken_at", url)
    wanted = [("null", b"null"), ("17", b"1.5"), ("byt%FFes", b""), ("number", b"5"), ("text", "ü".encode())]
    assert in_order(project / "inbox") == wanted


@pytest.mark.parametrize("kind", ["INTEGER", "NUMERIC(3)", "BOOLEAN", "VARCHAR"])
def test_a_lock_may_be_a_flag_a_number_or_a_name(project: Path, kind: str) -> None:
    taken = {"VARCHAR": "worker 3"}.get(kind, 1)
    free = {"VARCHAR": None}.get(kind, 0)
    rows = [(1, "a", "1", free), (2, "b", "2", taken), (3, "c", "3", None)]
    url = make(project, "id INTEGER PRIMARY KEY", "key TEXT", "value TEXT", f"locked {kind}", rows=rows)
    migrate(url)
    assert [key for key, _ in in_order(project / "inbox")] == ["b", "a", "c"]


def test_rows_of_the_same_second_are_all_copied_whatever_the_batch(project: Path) -> None:
    """SQLite's CURRENT_TIMESTAMP has no fraction; SQLAlchemy would compare it with a text that has one, and
    skip some."""
    rows = [(f"k{number}", "v", "2026-01-01 00:00:0" + str(number // 4)) for number in range(10)]
    url = make(project, "key TEXT UNIQUE", "value TEXT", "at DATETIME", rows=rows)
    for batch in ("1", "2", "3", "1000"):
        migrate("--order-by", "at", "--batch", batch, url, inbox=f"inbox{batch}")
        assert [key for key, _ in in_order(project / f"inbox{batch}")] == [row[0] for row in rows]


def test_on_other_databases_columns_are_compared_by_their_types(project: Path) -> None:
    rows = [(number, f"k{number}", "v", f"2026-01-01 00:00:00.00000{number // 2}") for number in range(5)]
    url = make(project, "id INTEGER PRIMARY KEY", "key TEXT", "value TEXT", "at DATETIME", rows=rows)
    source = Source(url, "main.inbox", "key", "value", "locked", "at")
    source._is_sqlite = False
    found = [*source.batches(None, 2)]
    source.close()
    assert [key for some in found for key, _ in some.good] == [row[1] for row in rows]
    assert found[-1].after == (False, [datetime.datetime(2026, 1, 1, 0, 0, 0, 2), 4])


def test_a_key_of_two_columns_tells_the_order(project: Path) -> None:
    rows = [(b, a, f"{b}{a}", "v") for b in range(3) for a in range(3)]
    url = make(project, "a INT", "b INT", "key TEXT", "value TEXT", "PRIMARY KEY (a, b)", rows=rows)
    migrate("--batch", "2", url)
    assert [key for key, _ in in_order(project / "inbox")] == [row[2] for row in rows]


def test_an_empty_table_is_migrated_too(project: Path) -> None:
    url = make(project, *DRAFT, rows=[])
    assert "queued 0 of table" in run("migrate", "--create", cwd=project, FSINBOX_MIGRATE_URL=url).stdout


# --- what cannot be -----------------------------------------------------------------------------------


def test_rows_that_cannot_be_elements_are_told_and_left_and_the_others_are_copied(project: Path) -> None:
    rows = [(1, None, "v", 0), (2, "", "v", 0), (3, "x" * 300, "v", 0), (4, "ok", "v", 0)]
    url = make(project, *DRAFT, rows=rows)
    done = migrate(url, status=1)
    assert contents(project / "inbox") == {"ok": b"v"}
    lines = done.stderr.splitlines()
    assert lines[0] == "fsinbox: skipped the row of id 1: its key is NULL"
    assert [line.partition(":")[2][:24] for line in lines[1:]] == [
        " skipped the row of id 2",
        " skipped the row of id 3",
    ]
    assert "1 new, 0 replaced, 0 behind; 3 skipped" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["sqlite:///none.db"], 2, "there is no database 'none.db': check the URL, sqlite:///none.db"),
        (["sqlite://"], 2, "there is no database None"),
        (["no url"], 2, "the URL is not one of SQLAlchemy's: write it like sqlite:///jobs.db"),
        (["nosuch://me:secret@host/db"], 2, "the driver for nosuch://me:***@host/db is not installed"),
        (
            ["mysql+nodriver://me:secret@host/db"],
            2,
            "the driver for mysql+nodriver://me:***@host/db is not installed",
        ),
        (["--table", "jobs"], 2, "there is no table 'jobs' in sqlite:///jobs.db: name it with --table"),
        (
            ["--key-column", "k"],
            2,
            "table 'inbox' has no column 'k': name one of id, key, value, locked with --key-column",
        ),
        (
            ["--value-column", "v"],
            2,
            "has no column 'v': name one of id, key, value, locked with --value-column",
        ),
        (["--order-by", "at"], 2, "has no column 'at': name one of id, key, value, locked with --order-by"),
        (
            ["--order-by", "locked"],
            2,
            "1 rows of 'inbox' have NULL as locked or id: set it, or name another with --order-by",
        ),
        (
            ["--table", "bare"],
            2,
            "table 'bare' has no primary key: name the column that tells the order with --order-by",
        ),
        (
            ["sqlite:///noise.db"],
            3,
            "the database refused: file is not a database: mend that, and run this again",
        ),
    ],
)
def test_what_is_wrong_is_told_and_no_inbox_is_made(
    project: Path, words: list[str], status: int, message: str
) -> None:
    make(project, *DRAFT, rows=[(1, "a", b"1", None)])
    make(project, "key TEXT", "value TEXT", rows=[], name="bare")
    (project / "noise.db").write_bytes(b"no database" * 100)
    url = [] if "://" in words[-1] or words == ["no url"] else ["sqlite:///jobs.db"]
    done = migrate(*words, *url, status=status)
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert not (project / "inbox").exists()
    assert not (project / "none.db").exists()


def test_a_database_that_fails_on_the_way_is_told(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(1, "a", b"1", None)])
    source = Source(url, "inbox", "key", "value", "locked", None)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE inbox")
    engine.dispose()
    with pytest.raises(source._failed(ValueError("")).__class__, match="no such table: inbox"):
        source.count()
    source.close()


def test_without_sqlalchemy_it_says_what_to_install(project: Path) -> None:
    (project / "sqlalchemy.py").write_text("raise ImportError('not here')")
    done = run("migrate", "--create", "sqlite:///x", cwd=project, status=2)  # (found first)
    assert "pip install 'fsinbox[migrate]'" in done.stderr


def test_on_a_terminal_progress_is_shown(project: Path) -> None:
    url = make(project, *DRAFT, rows=[(number, f"k{number}", b"", 0) for number in range(1, 10)])
    ours, theirs = pty.openpty()
    with open(ours, "rb", 0) as screen:
        words = command("migrate", "--create", "--batch", "2", url)
        subprocess.run(
            words, cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=theirs, check=True
        )
        assert b"100%" in screen.read(100_000)
