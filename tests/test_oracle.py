"""The oracle finds what is wrong with a history, and only that."""

from __future__ import annotations

import pytest

from tests.oracle import Event, judge, judge_order


def history(text: str) -> list[Event]:
    """Return the events of a short text: +a begins to add a, -a ends it; =a ends it, for one waits; #a, for
    it is refused; !a delivers a, . acknowledges, ~ gives back what is out, x is the consumer's death. A key
    other than k stands before a colon: +j:a"""
    events = []
    out = ""
    for t, word in enumerate(text.split()):
        sign, rest = word[0], word[1:]
        key, _, value = rest.rpartition(":")
        key = key or "k"
        if sign == "!":
            out = key
        what = {"+": "add_start", "-": "add_end", "!": "deliver", ".": "ack", "~": "nack", "x": "died"}
        what = (what | {"=": "kept", "#": "refused"})[sign]
        who = "consumer" if sign in "!.~x" else f"producer of {value}"
        events.append(Event(what, who, out if sign in ".~" else key, value, t))
    return events


@pytest.mark.parametrize(
    "good",
    [
        "",
        "+a -a !a .",
        "+a !a . -a",
        "+a -a +b -b !b .",
        "+a -a !a . +b -b !b .",
        "+a -a !a ~ !a .",
        "+a -a !a +b -b ~ !b .",
        "+a -a !a x !a .",
        "+a -a !a . x !a .",  # acknowledged, it said; and died before it was
        "+a -a !a . x",
        "+a +b -b -a !a .",
        "+a +b -b -a !b . !a .",
        "+a +b -b !b . -a",  # a came before b
        "+a -a +b =b !a .",
        "+a -a +b !a =b .",
        "+a -a +b #b !a .",
        "+a",  # died: it may be there, or not
        "+a +b -b !b . !a .",  # a's producer died: its value comes whenever it comes
        "+a +b -b !a . !b .",
        "+k:a -k:a +j:b -j:b !k:a !j:b .",
    ],
)
def test_good_history(good: str) -> None:
    events = history(good)
    if "!j:b" in good:
        events.append(Event("ack", "consumer", "k", "", len(events)))
    assert judge(events) == []
    assert judge_order(events) == []


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("+a -a", "missed"),
        ("+a -a !a . +b =b", "kept"),
        ("+a -a +b =b !a . !b .", "kept"),
        ("+a -a +b #b !a . !b .", "refused"),
        ("+a -a +b !b #b .", "refused"),
        ("+a -a !a", "missed"),
        ("+a -a !a ~", "missed"),
        ("+a -a !a x", "missed"),
        ("+a -a !a . +b -b", "missed"),
        ("+a -a +b -b !a .", "missed"),
        ("+a !a +b -b . -a", "missed"),  # a was delivered before b began
        ("+a !a . +b -b", "missed"),  # the same, though a's producer died
        ("+a -a +b -b !b . !a .", "older"),
        ("+a -a !a . +b -b !b . !a .", "older"),
        ("+a !a ~ +b -b !b . !a . -a", "older"),
        ("+a +b !a . !b . !a . -a -b", "older"),
        ("!a . +a -a", "foreign"),
        ("+a -a !a . !b .", "foreign"),
        ("+a -a !a !a .", "twice"),
        ("+a -a +b !a !b .", "twice"),
    ],
)
def test_bad_history(bad: str, rule: str) -> None:
    assert any(wrong.startswith(rule) for wrong in judge(history(bad)))


@pytest.mark.parametrize("bad", ["+a !a ~ +b -b !b . !a . -a", "+a +b !a . !b . !a . -a -b"])
def test_without_causality_only_the_ends_of_adds_count(bad: str) -> None:
    assert judge(history(bad), causal=False) == []


def test_a_history_that_was_not_drained_may_miss_what_is_left() -> None:
    assert judge(history("+a -a !a . +b -b"), drained=False) == []
    assert judge(history("+a -a"), drained=False) == []
    assert judge(history("+a -a +b -b !b . !a ."), drained=False)


def test_keys_that_were_added_once_come_in_order() -> None:
    assert judge_order(history("+k:a -k:a +j:b -j:b !j:b . !k:a ."))
    assert not judge_order(history("+k:a +j:b -j:b -k:a !j:b . !k:a ."))
    assert not judge_order(history("+k:a -k:a +j:b -j:b +k:c -k:c !j:b . !k:c ."))


def test_the_same_value_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        judge(history("+a -a +a -a"))


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        judge([Event("sneeze", "producer")])
