"""Move elements into a table: fsinbox consume --handler to_postgres:move --batch 100 --max-attempts 0.

PGHOST, PGDATABASE and so on say where. A newer payload replaces one that waits in the table (a job key).
"""

import os
import threading

import psycopg

from fsinbox import Reject

NAME = os.environ.get("HANDOVER_NAME", "inbox")  # of the consumer: each that writes here has its own
SCHEMA = """
    SET synchronous_commit = on;
    CREATE TABLE IF NOT EXISTS handover (key text PRIMARY KEY, payload bytea NOT NULL, place bigserial);
    CREATE TABLE IF NOT EXISTS handover_claim (name text PRIMARY KEY, claim bigint NOT NULL)"""
CLAIM = """INSERT INTO handover_claim AS mine VALUES (%s, 1)
    ON CONFLICT (name) DO UPDATE SET claim = mine.claim + 1 RETURNING claim"""
HELD = "SELECT FROM handover_claim WHERE name = %s AND claim = %s FOR SHARE"
PUT = """INSERT INTO handover (key, payload) VALUES (%s, %s)
    ON CONFLICT (key) DO UPDATE SET payload = excluded.payload"""


class Engine:
    """A connection with a claim. What a dead one has sent, and arrives late, finds a later claim: refused."""

    def __init__(self) -> None:
        self.db = psycopg.connect("", autocommit=True, connect_timeout=10)
        self.db.execute(SCHEMA)
        self.claim = self.db.execute(CLAIM, [NAME]).fetchone()[0]

    def put(self, rows: list[tuple[str, bytes]]) -> None:
        with self.db.transaction():
            if not self.db.execute(HELD, [NAME, self.claim]).rowcount:
                raise PermissionError(f"another consumer has claimed the table as {NAME!r} since")
            self.db.cursor().executemany(PUT, rows)
            self.db.execute("NOTIFY handover")


engines: list[Engine] = []  # the one in use; any error ends it
one_at_a_time = threading.Lock()


def move(elements):
    """Commit all of them, or none. Returning acknowledges them to fsinbox; raising has them tried again."""
    with one_at_a_time:
        try:
            # First the claim, then the payloads: who may still read them is still the consumer.
            if not engines:
                engines.append(Engine())
            engines[0].put([(element.key, element.data) for element in elements])
        except BaseException as error:
            for engine in engines:
                engine.db.close()
            engines.clear()
            if isinstance(error, (psycopg.DataError, UnicodeEncodeError)):  # a key with NUL, or not UTF-8
                raise Reject(str(error)) from error
            raise
