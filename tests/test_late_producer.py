"""A producer that was paused between finding its place and publishing there publishes at a place that was given up: here, below
an element of its key that is out, or waits out a back-off. A storm found what could go wrong then: folding a newer value down
to that place made it look older than the element that came back, and it was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fsinbox import Inbox, protocol
from fsinbox.names import element_name


def paused_add(inbox: Inbox, value: bytes, key: str = "k") -> Callable[[], None]:
    """Begin to add, up to the publishing; what is returned does the rest."""
    temporary = protocol.write_payload(inbox._layout, value, durable=False)
    number, _ = protocol.find_place(inbox._layout, inbox._sequence, key, None)

    def go_on() -> None:
        protocol.publish(inbox._layout, temporary, element_name(number, key))
        protocol.confirm(inbox._layout, inbox._sequence, element_name(number, key), number, key)

    return go_on


@pytest.mark.parametrize("end", ["ack", "nack", "fail", "die", "defer", "defer, die"])
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("newer", [True, False])
def test_a_value_that_was_published_below_what_is_out_hides_nothing_newer(
    inbox_dir: Path, end: str, lists: bool, newer: bool
) -> None:
    with Inbox(inbox_dir, codec="bytes") as producer, Inbox(inbox_dir, codec="bytes", max_inflight=2) as consumer:
        producer.add("k", b"first")
        go_on = paused_add(producer, b"late")
        consumer.take().ack()
        producer.add("k", b"second")
        second = consumer.take()
        assert second.data == b"second"
        go_on()
        if newer:
            producer.add("k", b"third")
        if lists:
            assert consumer.take() is None  # the key is out
        if end == "ack":
            second.ack()
        elif end == "fail":
            second.fail("as the test says")
        elif end == "nack":
            second.nack()
        elif "defer" in end:
            second.nack(delay=1e-9)
        if "die" in end:
            consumer._consumer.close()
            consumer._consumer = None
            consumer._elements.clear()
        got = []
        while element := consumer.take():
            got.append(element.data)
            element.ack()
    # `late` overlaps `second`, and that was delivered first: it may come or be dropped, but `second` must not come after it.
    assert got in ([], [b"second"], [b"late"], [b"second", b"late"]) if not newer else got[-1:] == [b"third"]
    assert got[:-1] in ([], [b"second"], [b"late"], [b"second", b"late"])
    if not newer and end not in ("ack", "fail"):
        assert b"second" in got


@pytest.mark.parametrize("removed", [False, True])
def test_a_value_that_was_published_below_what_is_out_is_not_delivered_before_that_comes_back(
    inbox_dir: Path, removed: bool
) -> None:
    """The consumer has listed it, and works on another key first; then the newer element is put back."""
    with Inbox(inbox_dir, codec="bytes") as producer, Inbox(inbox_dir, codec="bytes", max_inflight=3) as consumer:
        late = []
        for key in ("j", "k"):
            producer.add(key, b"first")
            late.append(paused_add(producer, b"late", key))
        for _ in late:
            consumer.take().ack()
        producer.add("k", b"second")
        second = consumer.take()
        for go_on in late:
            go_on()
        other = consumer.take()
        assert (other.key, second.data) == ("j", b"second")
        second.nack()
        other.ack()
        if removed:  # by hand: then the late one is the newest there is
            (path,) = Path(inbox_dir, "pending").glob(f"{second.seq}-k")
            path.unlink()
        got = []
        while element := consumer.take():
            got.append(element.data)
            element.ack()
    assert got == [b"late" if removed else b"second"]
