"""python from_redis.py INBOX: move what comes through the stream into an inbox, for ever.

Any error ends it. The service manager starts it again (Restart=always), and it begins with what was delivered
to it, and not acknowledged.
"""

import fcntl
import os
import sys
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fsinbox import Inbox

STREAM, NEWEST, GROUP = "{handover}:stream", "{handover}:newest", "fsinbox"
DONE = """
    for i = 1, #ARGV, 2 do
        redis.call('XACK', KEYS[1], KEYS[3], ARGV[i])
        redis.call('XDEL', KEYS[1], ARGV[i])
        local newest = redis.call('HGET', KEYS[2], ARGV[i + 1])
        if newest == ARGV[i] then redis.call('HDEL', KEYS[2], ARGV[i + 1]) end
    end"""


def main(path: str) -> None:
    """Read, add, acknowledge. A second one waits: two could add an older value after a newer one."""
    with Inbox(path, codec="bytes") as inbox, open(f"{inbox.path}.listener", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        url = os.environ.get("REDIS_URL", "redis://localhost")
        once = Retry(NoBackoff(), 0)  # an answer that was lost comes again at the next start, and not before
        db = redis.from_url(url, retry=once, socket_timeout=60, protocol=2)
        with suppress(redis.ResponseError):  # it is there
            db.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        since = "0"  # first what was not acknowledged, oldest first; then, with ">", what is new
        while True:
            answer = db.xreadgroup(GROUP, "listener", {STREAM: since}, count=100, block=30_000)
            entries = answer[0][1] if answer else []
            if not entries:
                since = ">"
                continue
            whole = [fields for _, fields in entries if fields]  # (the others: a newer one comes)
            inbox.add_many((os.fsdecode(fields[b"key"]), fields[b"payload"]) for fields in whole)
            done = [word for place, fields in entries for word in (place, (fields or {}).get(b"key", b""))]
            db.eval(DONE, 3, STREAM, NEWEST, GROUP, *done)


if __name__ == "__main__":
    main(sys.argv[1])
