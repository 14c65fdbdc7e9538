"""Proves the order of system calls that a power cut tests: content before its name, the name before the
return.

Read off real runs with strace; the states that a power cut may leave are another harness's to build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import fsinbox
from fsinbox import Inbox

pytestmark = [pytest.mark.bare, pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")]

CALLS = "sync,fsync,fdatasync,syncfs,rename,renameat,renameat2,mkdir,mkdirat"


def traced(tmp_path: Path, code: str) -> list[str]:
    """Run Python code in tmp_path under strace; return its calls of CALLS, as `call folder` or `call from ->
    to`."""
    trace = tmp_path.with_name(tmp_path.name + ".trace")
    program = "from fsinbox import Inbox\n" + code
    environment = os.environ | {
        "PYTHONPATH": str(Path(fsinbox.__file__).parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(trace),
        sys.executable,
        "-c",
        program,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = []
    for line in trace.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += 0$", line)
        if match:
            folders = [
                re.sub(r"^.*/(?=\w+(/\d[^/]*)?$)", "", path) for path in re.findall(r"<([^>]+)>", match[2])
            ]
            calls.append(
                f"{match[1]} "
                f"{' -> '.join(folder.split('/')[0] for folder in folders) or match[2].split(',')[0]}"
            )
    return calls


def flushes(calls: list[str]) -> list[str]:
    """Return those of the calls that flush, without what a consumer flushes as it starts."""
    found = [call for call in calls if "sync" in call]
    assert found[:3] == ["fsync pending", "fsync inflight", "fsync deferred"], (
        "what was visible before it started"
    )
    return found[3:]


def test_an_add_flushes_its_content_then_names_it_then_flushes_the_name(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    calls = traced(tmp_path, "Inbox('inbox').add('a', 1)")
    assert calls == ["fsync tmp", "renameat tmp -> pending", "fsync pending"]


def test_an_add_that_need_not_be_durable_flushes_nothing(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    assert traced(tmp_path, "Inbox('inbox').add('a', 1, durable=False)") == ["renameat tmp -> pending"]


@pytest.mark.parametrize(("count", "flushes"), [(3, ["fsync tmp"] * 3), (20, ["syncfs tmp"])])
def test_a_batch_flushes_all_content_before_the_first_name(
    tmp_path: Path, count: int, flushes: list[str]
) -> None:
    Inbox(tmp_path / "inbox").close()
    calls = traced(tmp_path, f"Inbox('inbox').add_many((str(n), n) for n in range({count}))")
    assert calls == [*flushes, *["renameat tmp -> pending"] * count, "fsync pending"]


@pytest.mark.parametrize("move", [False, True])
def test_a_file_is_flushed_before_it_is_named(tmp_path: Path, move: bool) -> None:
    Inbox(tmp_path / "inbox").close()
    (tmp_path / "payload").write_text("1")
    calls = traced(tmp_path, f"Inbox('inbox').add_file('a', 'payload', move={move})")
    assert calls[-3:] == ["fsync tmp", "renameat tmp -> pending", "fsync pending"]


def test_a_dropped_file_is_flushed_before_it_is_named(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        (tmp_path / "draft").write_text("1")
        os.utime(tmp_path / "draft", (1, 1))
        os.rename(tmp_path / "draft", Path(inbox.path, "drop", "a"))
    calls = traced(tmp_path, "assert Inbox('inbox').take().key == 'a'")
    assert flushes(calls) == ["fsync a", "fsync pending", "fsync drop"]
    moved = calls.index("renameat drop -> pending")
    assert calls.index("fsync a") < moved < calls.index("fsync pending", moved) < calls.index("fsync drop")


def test_a_copy_of_a_dropped_file_is_flushed_before_it_takes_its_place(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        (tmp_path / "draft").write_text("1")
        os.utime(tmp_path / "draft", (1, 1))
        os.link(tmp_path / "draft", Path(inbox.path, "drop", "a"))
    calls = traced(tmp_path, "assert Inbox('inbox').take().key == 'a'")
    assert flushes(calls) == ["fsync tmp", "fsync pending", "fsync drop"]
    moved = calls.index("renameat drop -> pending")
    assert calls[moved - 1 :][:3] == ["fsync tmp", "renameat drop -> pending", "renameat tmp -> pending"]
    assert calls.index("fsync pending", moved) < calls.index("fsync drop")


def test_a_dropped_file_is_flushed_before_an_add_of_its_key_moves_it(tmp_path: Path) -> None:
    """And what replaces it is there for good before its name in drop/ is gone for good."""
    with Inbox(tmp_path / "inbox") as inbox:
        (tmp_path / "draft").write_text("1")
        os.utime(tmp_path / "draft", (1, 1))
        os.rename(tmp_path / "draft", Path(inbox.path, "drop", "a"))
    calls = traced(tmp_path, "Inbox('inbox').add('a', 2)")
    assert calls == [
        "fsync tmp",
        "fsync a",
        "renameat drop -> pending",
        "renameat tmp -> pending",
        "fsync pending",
        "fsync drop",
    ]


def drop_into_subfolder(tmp_path: Path) -> None:
    """Drop a file as sub/a, where subfolders are ingested."""
    with Inbox(tmp_path / "inbox", drop_recursive=True) as inbox:
        inbox.become_consumer()
        (tmp_path / "draft").write_text("1")
        os.utime(tmp_path / "draft", (1, 1))
        Path(inbox.path, "drop", "sub").mkdir()
        os.rename(tmp_path / "draft", Path(inbox.path, "drop", "sub", "a"))


def test_a_dropped_file_in_a_subfolder_is_flushed_before_it_is_named(tmp_path: Path) -> None:
    drop_into_subfolder(tmp_path)
    calls = traced(tmp_path, "assert Inbox('inbox', drop_recursive=True).take().key == 'sub/a'")
    assert flushes(calls) == ["fsync a", "fsync pending", "fsync sub"]
    moved = calls.index("renameat sub -> pending")
    assert calls.index("fsync a") < moved < calls.index("fsync pending", moved) < calls.index("fsync sub")


def test_a_dropped_file_in_a_subfolder_is_flushed_before_an_add_of_its_key_moves_it(tmp_path: Path) -> None:
    drop_into_subfolder(tmp_path)
    assert traced(tmp_path, "Inbox('inbox').add('sub/a', 2)") == [
        "fsync tmp",
        "fsync a",
        "renameat sub -> pending",
        "renameat tmp -> pending",
        "fsync pending",
        "fsync sub",
    ]


def test_what_fits_of_many_is_flushed_before_it_is_said_that_the_rest_does_not(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.limit(max_waiting=2)
    code = """
try: Inbox('inbox').add_many([('a', 1), ('b', 1), ('c', 1)])
except Exception as error: assert error.added == 2
"""
    calls = traced(tmp_path, code)
    assert calls[-1] == "fsync pending"
    assert calls.count("renameat tmp -> pending") == 2


def test_the_mark_of_subfolders_is_flushed_before_anything_is_ingested(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    calls = traced(tmp_path, "Inbox('inbox', drop_recursive=True).become_consumer()")
    assert "fsync subfolders" in calls
    assert calls.index("fsync subfolders") < calls.index("fsync inbox")
    assert "fsync inbox" in traced(tmp_path, "Inbox('inbox').become_consumer()")


def test_take_and_ack_flush_nothing(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add_many((key, 1) for key in "abc")
    calls = traced(tmp_path, "i = Inbox('inbox')\nfor _ in range(3): i.take().ack()")
    assert flushes(calls) == []


def test_a_key_that_was_ended_is_flushed_before_it_is_taken_again(tmp_path: Path) -> None:
    """Else a power cut could bring the older one back when the newer is gone."""
    Inbox(tmp_path / "inbox").close()
    code = (
        "i = Inbox('inbox', durable={})\nfor n in range(2):\n i.add('a', n, durable=False)\n i.take().ack()"
    )
    assert flushes(traced(tmp_path, code.format(True))) == [
        "fsync pending",
        "fsync inflight",
        "fsync deferred",
    ]
    calls = traced(tmp_path, code.format(False))
    assert [call for call in calls if "sync" in call] == [], "not flushed, as asked"


def test_what_is_requeued_is_flushed_before_it_is_taken_again(tmp_path: Path) -> None:
    """Not at once: a power cut may leave it in inflight/, where the next consumer finds it."""
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
    assert flushes(traced(tmp_path, "i = Inbox('inbox')\ni.take().nack()")) == []
    again = flushes(traced(tmp_path, "i = Inbox('inbox')\ni.take().nack()\ni.take()"))
    assert again == ["fsync pending", "fsync inflight", "fsync deferred"]


@pytest.mark.parametrize("end", ["nack()", "nack(9)", "fail('why')"])
def test_a_newer_value_is_flushed_before_the_older_is_dropped(tmp_path: Path, end: str) -> None:
    """Its producer may not have got to it."""
    with Inbox(tmp_path / "inbox") as inbox:
        inbox.add("a", 1)
    calls = traced(
        tmp_path, f"i = Inbox('inbox')\ne = i.take()\ni.add('a', 2, durable=False)\nassert not e.{end}"
    )
    assert flushes(calls) == ["fsync pending"]


def test_a_deferred_element_is_dropped_between_flushes(tmp_path: Path) -> None:
    """The newer one, which has been taken, is there for good before the older goes; and it is gone before the
    newer is ended."""
    Inbox(tmp_path / "inbox").close()
    code = (
        "i = Inbox('inbox')\nfor n in (1, 2):\n i.add('a', n, durable=False)\n e = i.take()\n if n == 1: "
        "e.nack(9)"
    )
    before_the_take = after_it = ["fsync pending", "fsync inflight", "fsync deferred"]
    assert flushes(traced(tmp_path, code)) == before_the_take + after_it


def test_a_deferred_element_is_superseded_by_what_is_there_for_good(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    code = "i = Inbox('inbox')\ni.add('a', 1, durable=False)\ni.take().nack(1e-9)\n"
    code += "i._taking().consumer.ended.clear()\n"
    code += "i.add('a', 2, durable=False)\nassert i.take().value == 2"
    assert flushes(traced(tmp_path, code)) == [
        "fsync pending",
        "fsync pending",
        "fsync inflight",
        "fsync deferred",
    ]


def test_what_the_doctor_makes_is_flushed(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox").close()
    (tmp_path / "inbox" / "attempts").rmdir()
    calls = traced(tmp_path, "from fsinbox.doctor import repair\nrepair('inbox')")
    made = calls.index("mkdirat inbox")
    assert calls[made : made + 3] == ["mkdirat inbox", "fsync attempts", "fsync inbox"]


def test_the_shell_producer_flushes_a_dropped_file_and_then_as_an_add_does(tmp_path: Path) -> None:
    with Inbox(tmp_path / "inbox") as inbox:
        (tmp_path / "draft").write_text("1")
        os.utime(tmp_path / "draft", (1, 1))
        os.rename(tmp_path / "draft", Path(inbox.path, "drop", "a"))
    script = Path(__file__).parents[1] / "scripts" / "fsinbox-add"
    calls = traced(
        tmp_path,
        f"import subprocess\nsubprocess.run([{str(script)!r}, '--inbox', 'inbox', 'a', '2'], check=True)",
    )
    assert [call.split()[0][:6] for call in calls] == ["fsync", "fsync", "rename", "rename", "fsync", "fsync"]
    assert "/tmp/sh." in calls[0] and calls[1] == "fsync a"
    assert calls[-2:] == ["fsync pending", "fsync drop"]


def test_the_shell_producer_flushes_what_it_drops_for_another_host(tmp_path: Path) -> None:
    Inbox(tmp_path / "inbox", scope="network").close()
    script = Path(__file__).parents[1] / "scripts" / "fsinbox-add"
    calls = traced(
        tmp_path,
        f"import subprocess\nsubprocess.run([{str(script)!r}, '--inbox', 'inbox', 'a', '1'], check=True)",
    )
    assert [call.split()[0][:6] for call in calls] == ["fsync", "rename", "fsync"]
    assert "/tmp/sh." in calls[0] and calls[2] == "fsync drop"


def test_a_new_inbox_is_durable_before_it_is_said_to_be_one(tmp_path: Path) -> None:
    calls = traced(tmp_path, "Inbox('inbox')")
    named = next(index for index, call in enumerate(calls) if call.startswith("rename"))
    before, after = calls[:named], calls[named + 1 :]
    parent = f"fsync {tmp_path.name}"
    assert any(call.endswith(parent.split()[1]) and call.startswith("fsync") for call in before), (
        "its name in its parent"
    )
    for folder in ("tmp", "drop", "pending", "inflight", "deferred", "failed", "attempts", "index", "inbox"):
        assert f"fsync {folder}" in before
    assert "fsync inbox" in after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read a folder")
def test_where_the_parent_may_not_be_read_all_is_flushed(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o711)
        parent = Path(top, "parent")
        parent.mkdir()
        parent.chmod(0o333)
        calls = traced(tmp_path, f"import os\nInbox\nos.setuid(65534)\nInbox({str(parent / 'inbox')!r})")
    assert calls[0].startswith("mkdir")
    assert calls[1].startswith("sync")
