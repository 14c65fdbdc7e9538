"""What is for later, where a person looks: told from what waits, and not late before its time has come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from time import time, time_ns

import pytest
from helpers import json_lines, run
from prometheus_client.parser import text_string_to_metric_families

from fsinbox import Inbox
from fsinbox.cli.top import head
from fsinbox.operate import later as looks
from fsinbox.operate.census import census
from fsinbox.operate.report import Limits, verdict
from fsinbox.operate.status import Summary, summary
from fsinbox.store.files import end_delay
from fsinbox.store.names import element_name
from tests.shim import meanwhile
from tests.test_status import AtWork, line

pytest.importorskip("starlette")
from tests.test_web import Site, see

DAY = 86_400


@pytest.fixture
def inbox(inbox_dir: Path) -> Iterator[Inbox]:
    with Inbox(inbox_dir, codec="text") as inbox:
        yield inbox


def arrived(inbox: Inbox, key: str, ago: float, due_in: float | None = None, folder: str = "pending") -> Path:
    """Put an element where it would lie had it arrived so many seconds ago; `due_in`: for later, in so many
    seconds."""
    number = time_ns() - int(ago * 1e9)
    name = element_name(number, key)
    due = time_ns() + int((due_in or 0) * 1e9)
    path = Path(inbox.path, folder, name if folder == "pending" else f"{due:019d}-{name}")
    path.write_text("1")
    if due_in is not None:
        path.chmod(0o1600)
        os.utime(path, ns=(time_ns(), due))
    return path


def said(inbox: Inbox) -> list[str]:
    return run("status", cwd=Path(inbox.path).parent).stdout.splitlines()


def found(inbox: Inbox) -> Summary:
    return summary(inbox.layout)


def test_status_says_how_many_are_for_later_and_the_others_ages(inbox: Inbox) -> None:
    arrived(inbox, "reminder", 3 * DAY, DAY)
    arrived(inbox, "work", 120)
    arrived(inbox, "a", 2 * DAY, DAY, "deferred")
    arrived(inbox, "b", 600, folder="deferred")
    lines = said(inbox)
    assert line(lines, "waiting") == "2  (oldest 2m, 1 for later)"
    assert line(lines, "deferred") == "2  (oldest 10m, 1 for later)"
    assert line(lines, "TOTAL").split()[0] == "1"
    (told,) = json_lines(run("status", "--json", cwd=Path(inbox.path).parent).stdout)
    assert told["later"] == {"waiting": 1, "deferred": 1}
    assert told["later_known"] is True


def test_an_inbox_in_which_all_is_for_later_is_not_late(inbox: Inbox) -> None:
    arrived(inbox, "a", 3 * DAY, DAY)
    arrived(inbox, "b", 3 * DAY, DAY, "deferred")
    with AtWork(inbox.layout):
        level, text = verdict(found(inbox), Limits(age=60, pending=0))
    assert (level, text) == ("OK", "1 element is waiting, 1 for later.")
    lines = said(inbox)
    assert line(lines, "waiting") == "1  (1 for later)"
    assert not [text for text in lines if text.startswith(("ages", "to empty"))]


def test_what_has_come_due_is_as_old_as_that(inbox: Inbox) -> None:
    arrived(inbox, "due", 3 * DAY, -30)
    assert 30 <= (found(inbox).oldest_waiting or 0) < 60
    assert found(inbox).later == {"waiting": 0, "deferred": 0}
    arrived(inbox, "older", 90)
    assert 90 <= (found(inbox).oldest_waiting or 0) < 120


def test_a_delay_that_people_have_ended_is_over(inbox: Inbox) -> None:
    path = arrived(inbox, "a", 3 * DAY, DAY)
    end_delay(inbox.layout, "pending", path.name)
    assert found(inbox).later["waiting"] == 0
    assert (found(inbox).oldest_waiting or 0) < 30


def test_the_limits_do_not_count_it(inbox: Inbox) -> None:
    for number in range(3):
        arrived(inbox, f"later{number}", 3 * DAY, DAY)
    arrived(inbox, "work", 120)
    assert verdict(found(inbox), Limits(age=600, pending=1))[0] == "WARNING"  # (nobody consumes)
    level, text = verdict(found(inbox), Limits(age=60, pending=0))
    assert level == "CRITICAL"
    assert text.startswith("The oldest element is 2m old (limit 1m). 1 element is waiting (limit 0).")


def test_the_time_to_empty_does_not_wait_for_it(inbox: Inbox) -> None:
    arrived(inbox, "later", 3 * DAY, DAY)
    with AtWork(inbox.layout) as work:
        work.did({1: 60, 2: 60, 3: 60})
        assert found(inbox).pace.to_empty == 0
        arrived(inbox, "a", 600)
        assert 0.5 < (found(inbox).pace.to_empty or 0) < 5


@pytest.mark.parametrize("state", ["waiting", "deferred"])
def test_of_very_many_some_are_looked_at_and_that_is_said(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(looks, "LOOKS", 5)
    folder = "pending" if state == "waiting" else state
    for number in range(20):
        arrived(inbox, f"later{number}", DAY, DAY + number, folder)
    arrived(inbox, "work", 600, folder=folder)
    told = found(inbox)
    assert not told.later_known
    assert told.later[state] in (4, 5)
    oldest = told.oldest_waiting if state == "waiting" else told.oldest_deferred
    # Of what waits the head is looked at, and whoever is behind it may be late; of what is deferred, what is
    # due first.
    assert oldest is not None
    assert (DAY - 60 < oldest <= DAY + 60) if state == "waiting" else 600 <= oldest < 660
    assert f"at least {told.later[state]} for later)" in line(said_in(inbox), state)


def said_in(inbox: Inbox) -> list[str]:
    """The same, in this process: for what is set here."""
    from fsinbox.cli.seeing import lines

    return lines(found(inbox))


def test_of_very_many_the_oldest_is_right_if_the_head_is_not_for_later(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LOOKS", 5)
    for number in range(20):
        arrived(inbox, f"later{number}", 600, DAY)
    arrived(inbox, "work", 900)
    assert 900 <= (found(inbox).oldest_waiting or 0) < 960


def test_of_very_many_the_one_behind_the_head_is_found(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "LOOKS", 5)
    for number in range(3):
        arrived(inbox, f"later{number}", DAY, DAY)
    for number in range(20):
        arrived(inbox, f"work{number}", 600 - number)
    assert 600 <= (found(inbox).oldest_waiting or 0) < 660


def test_what_goes_while_it_is_looked_at_counts_as_its_name_says(inbox: Inbox) -> None:
    path = arrived(inbox, "a", 600, DAY)
    with meanwhile("lstat", path.unlink, when=lambda name, *_: name == path.name):
        counted = census(inbox.layout)
    assert counted.count["waiting"] == 1
    assert counted.later["waiting"] == set()
    assert time() - counted.oldest["waiting"] / 1e9 == pytest.approx(600, abs=60)


def test_the_metrics_say_it(inbox: Inbox) -> None:
    arrived(inbox, "a", 3 * DAY, DAY)
    arrived(inbox, "b", 3 * DAY, DAY, "deferred")
    arrived(inbox, "work", 120)
    text = run("metrics", cwd=Path(inbox.path).parent).stdout
    values = {
        (sample.name, sample.labels["state"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "state" in sample.labels
    }
    assert values["fsinbox_elements_for_later", "waiting"] == 1
    assert values["fsinbox_elements_for_later", "deferred"] == 1
    assert values["fsinbox_elements", "waiting"] == 2
    assert 120 <= values["fsinbox_oldest_age_seconds", "waiting"] < 180
    assert values["fsinbox_oldest_age_seconds", "deferred"] == 0


def test_the_site_says_it(inbox: Inbox) -> None:
    later = arrived(inbox, "reminder", 3 * DAY, DAY)
    arrived(inbox, "b", 3 * DAY, DAY, "deferred")
    arrived(inbox, "work", 120)
    with Site(cwd=Path(inbox.path).parent) as site, site.client() as client:
        overview = " ".join(see(client, "/").text.split())
        assert "oldest 2m, 1 for later" in overview
        assert "Deferred until the next try, or its time 1 for later" in overview
        rows = " ".join(see(client, "/elements/waiting").text.split())
        assert re.search(r"reminder \S+ \S+ \(for later: in (24h|1d|23h)", rows)
        assert rows.count("for later") == 1
        assert re.search(r"in (24h|1d|23h)", see(client, "/elements/deferred").text)
        assert "Not before" in see(client, f"/elements/waiting/{later.name}").text
        Path(inbox.path, "pending", element_name_of(inbox, "work")).unlink()
        assert "all that is waiting is for later" in see(client, "/").text


def element_name_of(inbox: Inbox, key: str) -> str:
    (path,) = Path(inbox.path, "pending").glob(f"*-{key}")
    return path.name


def test_top_says_it(inbox: Inbox) -> None:
    arrived(inbox, "reminder", 3 * DAY, DAY)
    counts = [str(part) for part in head(found(inbox), [], Limits())]
    assert any("waiting 1 (1 for later)" in text for text in counts)
    assert any(text.endswith("empty now") for text in counts)
    arrived(inbox, "work", 120)
    assert any("waiting 2 (2m, 1 for later)" in str(part) for part in head(found(inbox), [], Limits()))
