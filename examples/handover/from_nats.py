"""python from_nats.py INBOX: move what a durable consumer of the stream gets into an inbox, for ever.

Any error ends it. The service manager starts it again (Restart=always), and the server delivers anew what was
not acknowledged.
"""

import asyncio
import fcntl
import os
import sys
from urllib.parse import unquote_to_bytes

import nats
from nats.js.api import ConsumerConfig

from fsinbox import Inbox

STREAM = "handover"


async def listen(inbox: Inbox) -> None:
    """Fetch, add, acknowledge."""
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    client = await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0)
    wait = ConsumerConfig(ack_wait=5)  # seconds until what was not acknowledged comes again
    consumer = await client.jetstream().pull_subscribe(f"{STREAM}.>", "fsinbox", stream=STREAM, config=wait)
    while not client.is_closed:
        try:
            messages = await consumer.fetch(100, timeout=5)
        except nats.errors.TimeoutError:
            continue
        keys = [os.fsdecode(unquote_to_bytes(one.subject.removeprefix(f"{STREAM}."))) for one in messages]
        inbox.add_many((key, one.data) for key, one in zip(keys, messages, strict=True))
        for message in messages:
            await message.ack()  # if that is lost, it comes again; an older one does not, for it is not there
    raise ConnectionError("the server has closed the connection")


def main(path: str) -> None:
    """Listen, once: a second one waits. Two could add an older value after a newer one."""
    with Inbox(path, codec="bytes") as inbox, open(f"{inbox.path}.listener", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(listen(inbox))


if __name__ == "__main__":
    main(sys.argv[1])
