"""The storm's handler, for `fsinbox consume --handler tests.storm.consumer:handle`: announces what it is given.

A line `D <key> <value> <monotonic ns>` at its start, `A ...` just before it returns (the acknowledgement may follow or not:
the consumer is killed at any moment), in the file $STORM_LOG. It refuses torn values loudly.
"""

import os
import random
from time import sleep

from tests.storm.producers import Announcer

_announcer = Announcer(os.environ["STORM_LOG"])


def handle(key: str, value: dict) -> None:
    mark = value["value"]
    torn = value["end"] != mark or any(part != mark for part in value["body"])
    _announcer.tell("D", key, "TORN" if torn else mark)
    if random.random() < 0.01:
        sleep(0.002)
    if random.random() < 0.01:
        raise RuntimeError("one of those days")
    _announcer.tell("A", key, mark)
