"""operate/census.py and ages.py: counted as the names are listed, whatever waits."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from time import time_ns

import pytest

from fsinbox import Inbox
from fsinbox.consumer.ownership import parse_shard
from fsinbox.operate import ages, census
from fsinbox.store.layout import Layout
from fsinbox.store.names import element_name, encode_key, split_name

NOW = time_ns()
MINUTE = 60 * 10**9


@pytest.fixture(params=[2, 5000], ids="{} at once".format)
def layout(
    inbox_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Layout]:
    monkeypatch.setattr(census, "_AT_ONCE", request.param)
    Inbox(inbox_dir).close()
    layout = Layout(str(inbox_dir))
    yield layout
    layout.close()


def wait(layout: Layout, key: str, minutes: int, folder: str = "pending") -> None:
    Path(layout.path, folder, element_name(NOW - minutes * MINUTE, encode_key(key))).touch()


def test_a_key_at_several_places_counts_once_and_by_its_oldest(layout: Layout) -> None:
    for minutes in (3, 30, 7):
        wait(layout, "a/1", minutes)
    wait(layout, "a/2", 1)
    wait(layout, "b", 15)
    found = census.census(layout, now=NOW)
    assert found.count["waiting"] == 3
    assert found.oldest["waiting"] == NOW - 30 * MINUTE
    assert sum(found.ages.total) == 3
    assert found.ages.total[:4] == [1, 0, 1, 1]
    assert found.ages.prefixes == {"a": [1, 0, 0, 1, *[0] * 6]}


def test_what_is_on_hold_is_not_ready(layout: Layout) -> None:
    wait(layout, "a", 30)
    wait(layout, "b", 20)
    wait(layout, "b", 10)
    found = census.census(layout, held=frozenset({"a"}), now=NOW)
    assert (found.count["waiting"], found.ready, found.oldest_ready) == (2, 1, NOW - 20 * MINUTE)
    none = census.census(layout, held=frozenset({"a", "b"}), now=NOW)
    assert (none.ready, none.oldest_ready) == (0, 0)


def test_what_is_no_element_and_other_shards_are_not_counted(layout: Layout) -> None:
    for number in range(20):
        wait(layout, f"k{number}", number)
    wait(layout, "bad", 1, "failed")
    Path(layout.path, "failed", element_name(NOW, "bad~reason.txt")).touch()
    Path(layout.path, "pending", "notes.txt").touch()
    shards = [census.census(layout, parse_shard(f"{part}/3")).count for part in (1, 2, 3)]
    assert sum(one["waiting"] for one in shards) == 20
    assert sum(one["failed"] for one in shards) == 1
    assert max(one["waiting"] for one in shards) < 20


def test_many_names_are_split_as_one_is() -> None:
    heads = (
        "",
        "1",
        f"{NOW}-",
        f"{NOW}",
        f"x{NOW}-",
        f"{NOW}1-",
        f"{NOW}".replace("1", "²") + "-",
        f"{NOW} -",
    )
    tails = (
        "",
        "k",
        "-",
        "%",
        "%2F",
        "a%2Fb",
        ".x",
        "a.b-c",
        "--a-b",
        "a\nb",
        "ä",
        "\udcff",
        f"{NOW}-k",
        "a b",
    )
    names = [head + tail for head in heads for tail in tails if head + tail]
    found = ages.PLACES.findall("/".join(["", *names]))
    assert [place[:2] for place in found] == [split for name in names if (split := split_name(name))]
    prefixes = {encoded: prefix for _, encoded, prefix in found}
    assert {key: prefixes[key] for key in ("a%2Fb", "%2F", ".x", "a.b-c", "--a-b", "%")} == {
        "a%2Fb": "a", "%2F": "%2F", ".x": ".x", "a.b-c": "a", "--a-b": "--a", "%": "%"
    }  # fmt: skip


def test_the_commonest_prefixes_are_found_and_counted_among_many(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Those of few are forgotten while all is listed: the ones that are shown are counted again.)"""
    monkeypatch.setattr(ages, "MOST_PREFIXES", 40)
    sizes = {f"common{number}": 20 + number for number in range(ages.PREFIXES)}
    for prefix, size in sizes.items():
        for number in range(size):
            wait(layout, f"{prefix}/{number}", 1)
    for number in range(300):
        wait(layout, f"lone{number}", 1)
    found = census.census(layout, now=NOW)
    assert {prefix: sum(row) for prefix, row in found.ages.prefixes.items()} == sizes
    assert list(found.ages.prefixes) == sorted(sizes, key=lambda prefix: -sizes[prefix])
    assert sum(found.ages.total) == 300 + sum(sizes.values())


def test_as_many_prefixes_of_two_as_are_forgotten_end_the_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ages, "MOST_PREFIXES", 10)
    histogram = ages.Histogram(NOW)
    for number in range(100):
        histogram.add(3 * [(f"{NOW:019d}", f"p{number}-1", f"p{number}")])
    assert histogram.is_rough
    assert len(histogram.top()) <= 10
    assert sum(histogram.result().total) == 300


def test_a_census_of_many_takes_little_memory(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(folder: str) -> Iterator[str]:
        return (
            element_name(NOW - number, f"job-{number}") for number in range(60_000 * (folder == "pending"))
        )

    monkeypatch.setattr(layout, "names_one_by_one", names)
    tracemalloc.start()
    found = census.census(layout, now=NOW)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count["waiting"] == 60_000
    assert most < 120 * 60_000
