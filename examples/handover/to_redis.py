"""Move elements into a stream: fsinbox consume --handler to_redis:move --batch 100 --max-attempts 0.

REDIS_URL says where. Of each key the stream has one entry, the newest; a hash says which that is.
"""

import os
import threading

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

NAME = os.environ.get("HANDOVER_NAME", "inbox")  # of the consumer: each that writes here has its own
STREAM, NEWEST, CLAIM = "{handover}:stream", "{handover}:newest", "{handover}:claim:" + NAME
PUT = """
    if redis.call('GET', KEYS[3]) ~= ARGV[1] then return redis.error_reply('claimed by another since') end
    for i = 2, #ARGV, 2 do
        local older = redis.call('HGET', KEYS[2], ARGV[i])
        if older then redis.call('XDEL', KEYS[1], older) end
        local newest = redis.call('XADD', KEYS[1], '*', 'key', ARGV[i], 'payload', ARGV[i + 1])
        redis.call('HSET', KEYS[2], ARGV[i], newest)
    end"""


class Engine:
    """A connection with a claim. What a dead one has sent, and arrives late, finds a later claim: refused."""

    def __init__(self) -> None:
        self.db = redis.from_url(
            os.environ.get("REDIS_URL", "redis://localhost"),
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),  # on a new connection it would have no claim of its own
            socket_timeout=10,
            protocol=2,
        )
        settings = self.db.config_get("append*")
        if (settings["appendonly"], settings["appendfsync"]) != ("yes", "always"):
            raise RuntimeError("this Redis forgets what it has confirmed: appendonly yes, appendfsync always")
        self.claim = self.db.incr(CLAIM)

    def put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        words = [word for pair in pairs for word in pair]
        self.db.eval(PUT, 3, STREAM, NEWEST, CLAIM, self.claim, *words)


engines: list[Engine] = []  # the one in use; any error ends it
one_at_a_time = threading.Lock()


def move(elements):
    """Put all of them into the stream, or none. Returning acknowledges them to fsinbox; raising does not."""
    with one_at_a_time:
        try:
            # First the claim, then the payloads: who may still read them is still the consumer.
            if not engines:
                engines.append(Engine())
            engines[0].put([(os.fsencode(element.key), element.data) for element in elements])
        except BaseException:
            for engine in engines:
                engine.db.close()
            engines.clear()
            raise
