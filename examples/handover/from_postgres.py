"""python from_postgres.py INBOX: move what waits in the table `handover` into an inbox, for ever.

Any error ends it. The service manager starts it again (Restart=always), and it begins with a look.
"""

import fcntl
import sys

import psycopg

from fsinbox import Inbox

TAKE = """DELETE FROM handover
    WHERE key IN (SELECT key FROM handover ORDER BY place LIMIT 100 FOR UPDATE SKIP LOCKED)
    RETURNING place, key, payload"""


def take(db: psycopg.Connection, inbox: Inbox) -> int:
    """Add what waits longest; return how many. It is gone from the table once it is durable in the inbox."""
    with db.transaction():
        rows = sorted(db.execute(TAKE).fetchall())
        inbox.add_many((key, payload) for _, key, payload in rows)
    return len(rows)


def main(path: str) -> None:
    """Look, then listen. A second one waits: two could add an older value after a newer one."""
    with Inbox(path, codec="bytes") as inbox, open(f"{inbox.path}.listener", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect("", autocommit=True, connect_timeout=10) as db:
            db.execute("LISTEN handover")  # before the look: what comes after that one is announced
            while True:
                while take(db, inbox):
                    pass
                next(db.notifies(timeout=30, stop_after=1), None)  # and look again, whether one came or not


if __name__ == "__main__":
    main(sys.argv[1])
