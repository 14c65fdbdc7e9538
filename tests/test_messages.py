"""worker/messages.py: what the consumer and its worker processes send each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fsinbox.worker.messages import AT_ONCE, Incoming, packed, send


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


@pytest.mark.parametrize("values", [None, ("a", [1, 2.5, "\udcff"], ()), "x" * 3_000_000])
def test_what_is_sent_comes_out_whatever_its_size(pipe: tuple[int, int], values: object) -> None:
    reader, writer = pipe
    sender = threading.Thread(target=send, args=(writer, packed(values)))
    sender.start()
    incoming = Incoming(reader)
    assert incoming.receive() == values
    sender.join()
    send(writer, packed("the next"))
    assert incoming.receive() == "the next"


def test_a_small_message_takes_one_read_and_an_empty_pipe_takes_it_without_a_reader(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    message = packed("x" * (AT_ONCE - 20))
    assert len(message) <= AT_ONCE
    send(writer, message)
    assert Incoming(reader).read() is not None


def test_what_comes_in_pieces_is_a_message_when_the_last_has_come(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    message = packed(("a", "b"))
    incoming = Incoming(reader)
    for begin in range(len(message) - 1):
        os.write(writer, message[begin : begin + 1])
        assert incoming.read() is None
    os.write(writer, message[-1:])
    assert incoming.read() == message[8:]


def test_the_end_of_a_pipe_is_told_by_whoever_reads_and_by_whoever_writes(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, packed("cut short")[:-1])
    os.close(writer)
    with pytest.raises(EOFError):
        Incoming(reader).receive()
    other_reader, other_writer = os.pipe()
    os.close(other_reader)
    with pytest.raises(BrokenPipeError):
        send(other_writer, packed("nobody reads it"))
    os.close(other_writer)
