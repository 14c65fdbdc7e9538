"""Move elements into JetStream: fsinbox consume --handler to_nats:move --batch 100 --max-attempts 0.

NATS_URL says where. A key is a subject, and the stream keeps the last message of each subject.
"""

import asyncio
import os
from urllib.parse import quote

import nats
from nats.errors import MaxPayloadError

from fsinbox import Reject

STREAM = "handover"


def subject(key: str) -> str:
    """Return the subject of a key: one token, without the characters that mean something there."""
    return f"{STREAM}." + quote(os.fsencode(key), safe="").replace(".", "%2E")


async def connect():
    """Connect; create the stream. Its configuration is compared if it is there: another one is refused."""
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    client = await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0)
    await client.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.>"], max_msgs_per_subject=1)
    return client


async def put(jetstream, last: int, messages: list[tuple[str, bytes]]) -> None:
    """Publish them right behind message `last`. What a dead consumer has sent, and comes late, is refused."""
    await asyncio.gather(
        *(
            jetstream.publish(name, payload, timeout=10, headers={"Nats-Expected-Last-Sequence": str(number)})
            for number, (name, payload) in enumerate(messages, last)
        )
    )


clients: list = []  # the one in use; any error ends it
one_at_a_time = asyncio.Lock()


async def move(elements):
    """Publish all of them. Returning acknowledges them to fsinbox; raising has them tried again."""
    async with one_at_a_time:
        try:
            if not clients:
                clients.append(await connect())
            jetstream = clients[0].jetstream()
            # First where the stream ends, then the payloads: who may still read them is still the consumer.
            last = (await jetstream.stream_info(STREAM)).state.last_seq
            await put(jetstream, last, [(subject(element.key), element.data) for element in elements])
        except BaseException as error:
            for client in clients:
                await client.close()
            clients.clear()
            if isinstance(error, MaxPayloadError):  # 1 MB, unless the server allows more
                raise Reject(f"the server takes no payload of this size ({error})") from error
            raise
