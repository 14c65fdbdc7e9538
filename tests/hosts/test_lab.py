"""Runs the storm on two hosts (storm.py) in labs of real network file systems: a kernel NFS server with two
kernel clients, version 4.2 and 3, and GlusterFS with two clients. Nothing is missed, torn, or delivered after
a newer value, whatever is killed, cut off or restarted, and a standby takes over from a host that died.

In CI a short storm each; with --long one of 100,000 adds, with clocks that differ, too. scripts/hosts-lab
says what a lab needs; where this machine cannot, the tests are skipped and say why. They install nothing: run
`scripts/hosts-lab run true` (or with --on gluster) once, as root, to have it installed. A failure prints how
to blow the same storm again, and keeps its logs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine import disk
from tests.oracle import Event

from .storm import cut_by_restart, fenced

pytestmark = pytest.mark.storm

ROOT = Path(__file__).parents[2]
KINDS = ("nfs4.2", "nfs3", "gluster")

_GLUSTER = ("gluster", "glusterd", "glusterfs", "mount.glusterfs", "ip", "unshare", "nsenter")


def lab(*words: str, on: str, limit: float) -> subprocess.CompletedProcess[str]:
    """Run scripts/hosts-lab; skip the test if this machine cannot."""
    if on == "gluster":
        if not (ROOT / "scripts/lab/gluster").exists():
            pytest.skip("there is no lab for GlusterFS here")
        lacking = [program for program in _GLUSTER if not shutil.which(program)]
        if os.geteuid() == 0 and lacking:
            pytest.skip(f"{lacking[0]} is not installed: scripts/hosts-lab run --on gluster true")
    command = [str(ROOT / "scripts/hosts-lab"), words[0], "--on", on, *words[1:]]
    # (A guest has a /dev of its own: it would not see a folder in /dev/shm.)
    environment = os.environ | {"HOSTS_LAB_INSTALL": "no", "TMPDIR": str(disk())}
    child = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = child.communicate(timeout=limit)
    except BaseException:
        child.terminate()  # and it ends its lab
        child.communicate()
        raise
    if child.returncode == 77:
        pytest.skip(err.strip().splitlines()[-1])
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def lab_broke(report: str) -> bool:
    """Tell whether a storm was ended by its lab (a busy machine: a client does not come back), and all that
    is wrong is that, and the processes that hang in it."""
    _, _, wrong = report.partition(" drained ")
    kinds = [line.partition(":")[0] for line in wrong.splitlines()[1:] if not line.startswith("its logs:")]
    return "broken" in kinds and set(kinds) <= {"broken", "stuck"}


def blow(*words: str, on: str, limit: float) -> str:
    """Blow a storm; return its figures. Once more, if the lab broke, and nothing else is wrong."""
    done = lab("storm", *words, on=on, limit=limit)
    if done.returncode and lab_broke(done.stdout):
        done = lab("storm", *words, on=on, limit=limit)
    assert done.returncode == 0, f"the storm ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    (figures,) = [line for line in done.stdout.splitlines() if line.startswith("storm: ")]
    return figures.removeprefix("storm: ")


@pytest.mark.timeout(1500)  # (a lab waits for another one that runs beside it; and see `blow`)
@pytest.mark.parametrize("on", KINDS)
def test_nothing_is_missed_in_a_storm_on_two_hosts(on: str, figure: Callable[[str], None]) -> None:
    figure(blow("--adds", "400", "--seconds", "300", on=on, limit=720))


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("skew", ["0", "20"])
@pytest.mark.parametrize("on", KINDS)
def test_nothing_is_missed_in_a_long_storm_on_two_hosts(
    on: str, skew: str, figure: Callable[[str], None]
) -> None:
    seconds = 3 * 3600
    figure(
        blow(
            "--adds",
            "100000",
            "--seconds",
            str(seconds),
            "--batch",
            "1000",
            "--pause",
            "2",
            "--calm",
            "10",
            "--seed",
            "11",
            "--skew",
            skew,
            on=on,
            limit=seconds + 1200,
        )
    )


@pytest.mark.timeout(600)
def test_nothing_asks_an_nfs_server_more_often_than_it_may(figure: Callable[[str], None]) -> None:
    done = lab("trips", on="nfs4.2", limit=550)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for line in done.stdout.splitlines():
        if "at most" in line:
            figure(line)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("on", KINDS)
def test_a_lab_has_two_hosts_and_hands_on_the_exit_status(on: str) -> None:
    script = """
        echo seen >"$LAB_A/file" && cat "$LAB_B/file"
        lab-control on a hostname; lab-control on b hostname
        echo kept >"$LAB_JOB/result" || exit 1
        lab-control cut a; timeout 2 ls "$LAB_A/other" 2>/dev/null; echo "cut: $?"; lab-control heal a
        exit 5
    """
    done = lab("run", "--", "sh", "-c", script, on=on, limit=500)
    assert done.returncode == 5, done.stderr
    seen, host_a, host_b, cut = done.stdout.splitlines()
    assert (seen, cut) == ("seen", "cut: 124")
    assert host_a != host_b
    (folder,) = [Path(line.split(": ")[-1]) for line in done.stderr.splitlines() if "folder is kept" in line]
    assert (folder / "result").read_text() == "kept\n"
    shutil.rmtree(folder)


# --- the judge ----------------------------------------------------------------------------------------


def judged(
    folder: Path, events: list[Event], notes: str = "", incidents: str = ""
) -> tuple[list[Event], list[str]]:
    """Let `fenced` see these."""
    (folder / "notes").mkdir()
    (folder / "notes" / "a.log").write_text(notes)
    (folder / "incidents").write_text(incidents)
    return fenced(folder, events)


def test_a_delivery_to_a_consumer_that_was_replaced_is_wrong(tmp_path: Path) -> None:
    events = [Event("deliver", "a", "k", "1", 1), Event("died", "a", t=2), Event("deliver", "a", "k", "2", 3)]
    assert "fenced" in judged(tmp_path, events)[1][0]


def test_what_a_replaced_consumer_ends_is_not_ended(tmp_path: Path) -> None:
    events = [
        Event("deliver", "a", "k", "1", 1),
        Event("died", "a", t=2),
        Event("deliver", "b", "k", "1", 3),
        Event("ack", "a", "k", t=4),
    ]
    assert judged(tmp_path, events) == (events[:3], [])


def test_an_acknowledgement_that_was_refused_is_none(tmp_path: Path) -> None:
    events = [Event("deliver", "a", "k", "1", 1), Event("ack", "a", "k", t=2), Event("died", "a", t=3)]
    seen, wrong = judged(tmp_path, events, notes="not-acknowledged a 4 k 1\n")
    assert [event.what for event in seen] == ["deliver", "nack", "died"]
    assert not wrong


def test_an_acknowledgement_across_a_restart_may_have_been_done(tmp_path: Path) -> None:
    events = [Event("deliver", "a", "k", "1", 1), Event("ack", "a", "k", t=2), Event("died", "a", t=4)]
    assert judged(tmp_path, events, notes="not-acknowledged a 4 k 1\n", incidents="3 restart\n")[0] == events


def test_only_an_add_that_raised_across_a_restart_leaves_a_key_in_doubt(tmp_path: Path) -> None:
    events = [
        Event("add_start", "a", "before", "1", 1),
        Event("add_start", "b", "across", "1", 2),
        Event("add_start", "c", "done", "1", 2),
        Event("add_end", "c", "done", "1", 4),
        Event("add_start", "d", "killed", "1", 2),
        Event("add_start", "e", "after", "1", 4),
    ]
    raised = "add-raised a 2 x\nadd-raised b 5 x\nadd-raised c 6 x\nadd-raised e 5 x\n"
    judged(tmp_path, events, notes=raised, incidents="3 restart\n")
    assert cut_by_restart(tmp_path, events) == {"across"}


def test_a_storm_is_blown_again_only_if_the_lab_alone_broke() -> None:
    figures, logs = "storm: gluster: 9 adds, 0 wrong in all; blew 1 s, drained 0 s\n", "its logs: /x\n"
    broken, stuck, missed = "broken: the lab\n", "stuck: process 4\n", "missed: key a: 1 added\n"
    assert lab_broke(figures + broken + stuck + logs)
    assert not lab_broke(figures + broken + missed + logs)
    assert not lab_broke(figures + stuck + logs)
    assert not lab_broke("no figures at all\n" + broken)
