"""The contenders: each a queue with the same few methods, and what can be said of it.

`durable`: whether an add that has returned survives a power cut. Two classes, never compared with each other:

    durable   what SQLite calls synchronous=FULL, and fsinbox durable=True
    quick     nothing is flushed, or only now and then (synchronous=NORMAL or OFF)

Each is used as its documentation shows, with the settings that serve it best in that class.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

DURABLE, QUICK = "durable", "quick"

BUSY = 60
"""Seconds that a database waits for another process's lock: with 16 writers some libraries' own default gives
up."""


class Queue:
    """A queue under test. `add` and `take` are one element's; a `take` gives what `ack` wants."""

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = (DURABLE, QUICK)
    replaces: ClassVar[bool] = False
    """Whether a value added for a key that waits replaces it."""
    acknowledges: ClassVar[bool] = True
    """Whether what was taken comes back if the consumer dies before it is done."""
    shared: ClassVar[bool] = True
    """Whether several processes may use it at once."""

    def __init__(self, path: str, durability: str) -> None:
        """Open it in the directory `path`, which is there, and make it if need be."""

    def add(self, key: str, data: bytes) -> None:
        """Queue `data` for `key`."""
        raise NotImplementedError

    def add_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Queue many, as fast as it can without flushing each."""
        for key, data in items:
            self.add(key, data)

    def take(self) -> Any:
        """Take the next element and read its data; None if there is none."""
        raise NotImplementedError

    def ack(self, token: Any) -> None:
        """What `take` gave is done."""

    def close(self) -> None:
        """Close it."""


class Fsinbox(Queue):
    """This project."""

    name = "fsinbox"
    replaces = True

    def __init__(self, path: str, durability: str) -> None:
        from fsinbox import Inbox

        self.inbox = Inbox(f"{path}/inbox", codec="bytes", durable=durability == DURABLE)
        self.add = self.inbox.add_bytes  # type: ignore[method-assign]

    def add_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        self.inbox.add_many(items)

    def take(self) -> Any:
        element = self.inbox.take()
        if element is not None:
            _ = element.data
        return element

    def ack(self, token: Any) -> None:
        token.ack()

    def close(self) -> None:
        self.inbox.close()


class FsinboxVolatile(Fsinbox):
    """The same where a power cut may take a value that is replaced, too."""

    name = "fsinbox, volatile"
    classes = (QUICK,)

    def __init__(self, path: str, durability: str) -> None:
        from fsinbox import Inbox

        self.inbox = Inbox(f"{path}/inbox", codec="bytes", durable=False, volatile=True)
        self.add = self.inbox.add_bytes  # type: ignore[method-assign]


class BareSQLite(Queue):
    """The standard library's sqlite3, WAL, one statement a step: as well as it can be written."""

    name = "bare SQLite"
    replaces = True

    def __init__(self, path: str, durability: str) -> None:
        self.db = db = sqlite3.connect(f"{path}/queue.db", timeout=BUSY, isolation_level=None)
        _retry(lambda: db.execute("PRAGMA journal_mode=WAL"))
        db.execute(f"PRAGMA synchronous={'FULL' if durability == DURABLE else 'NORMAL'}")
        _retry(
            lambda: db.execute(
                "CREATE TABLE IF NOT EXISTS queue (seq INTEGER PRIMARY KEY, key TEXT NOT NULL, data BLOB NOT "
                "NULL, out INTEGER)"
            )
        )
        _retry(
            lambda: db.execute("CREATE UNIQUE INDEX IF NOT EXISTS waiting ON queue (key) WHERE out IS NULL")
        )

    def add(self, key: str, data: bytes) -> None:
        self.db.execute(
            "INSERT INTO queue (key, data) VALUES (?, ?) ON CONFLICT (key) WHERE out IS NULL DO UPDATE SET "
            "data = excluded.data",
            (key, data),
        )

    def add_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(
            "INSERT INTO queue (key, data) VALUES (?, ?) ON CONFLICT (key) WHERE out IS NULL DO UPDATE SET "
            "data = excluded.data",
            items,
        )
        self.db.execute("COMMIT")

    def take(self) -> Any:
        return self.db.execute(
            "UPDATE queue SET out = 1 WHERE seq = (SELECT seq FROM queue WHERE out IS NULL ORDER BY seq "
            "LIMIT 1) "
            "RETURNING seq, data"
        ).fetchone()

    def ack(self, token: Any) -> None:
        self.db.execute("DELETE FROM queue WHERE seq = ?", (token[0],))

    def close(self) -> None:
        self.db.close()


class BareSQLiteLazyConsumer(BareSQLite):
    """The same with a consumer that does not flush: what it took or acknowledged comes back after a power
    cut."""

    name = "bare SQLite, consumer NORMAL"
    classes = (DURABLE,)

    def take(self) -> Any:
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.take = super().take  # type: ignore[method-assign]
        return self.take()


class Draft(Queue):
    """What many teams write first: SQLAlchemy's ORM, update or insert by key, a lock column, delete when
    done."""

    name = "SQLAlchemy draft"
    replaces = True

    def __init__(self, path: str, durability: str) -> None:
        from sqlalchemy import Boolean, Integer, LargeBinary, String, create_engine, event, select
        from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

        class Base(DeclarativeBase):
            pass

        class Item(Base):
            __tablename__ = "inbox"
            id = mapped_column(Integer, primary_key=True)
            key = mapped_column(String, unique=True)
            value = mapped_column(LargeBinary)
            locked = mapped_column(Boolean, default=False)

        engine = create_engine(f"sqlite:///{path}/draft.db", connect_args={"timeout": BUSY})

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            _retry(lambda: connection.execute("PRAGMA journal_mode=WAL"))
            connection.execute(f"PRAGMA synchronous={'FULL' if durability == DURABLE else 'NORMAL'}")

        _retry(lambda: Base.metadata.create_all(engine))
        self.engine, self.item, self.select, self.session = engine, Item, select, Session

    def add(self, key: str, data: bytes) -> None:
        _retry(
            lambda: self._add(key, data)
        )  # what was read may be out of date by the time it is to be written

    def _add(self, key: str, data: bytes) -> None:
        with self.session(self.engine) as session:
            item = session.scalars(self.select(self.item).where(self.item.key == key)).first()
            if item:
                item.value = data
            else:
                session.add(self.item(key=key, value=data))
            session.commit()

    def take(self) -> Any:
        return _retry(self._take)

    def _take(self) -> Any:
        with self.session(self.engine) as session:
            query = self.select(self.item).where(self.item.locked.is_(False)).order_by(self.item.id).limit(1)
            item = session.scalars(query).first()
            if item is None:
                return None
            item.locked = True
            token = item.id, item.value
            session.commit()
            return token

    def ack(self, token: Any) -> None:
        _retry(lambda: self._ack(token))

    def _ack(self, token: Any) -> None:
        with self.session(self.engine) as session:
            session.delete(session.get(self.item, token[0]))
            session.commit()

    def close(self) -> None:
        self.engine.dispose()


def _get(queue: Any) -> Any:
    """Return what is next in one of persist-queue's queues, None if there is nothing."""
    from persistqueue import Empty

    try:
        return queue.get(block=False)
    except Empty:
        return None


class PersistAck(Queue):
    """persist-queue, SQLiteAckQueue: WAL at SQLite's default, which is FULL."""

    name = "persist-queue SQLiteAckQueue"
    classes = (DURABLE,)

    def __init__(self, path: str, durability: str) -> None:
        self.queue = _retry(lambda: self._make(path))

    def _make(self, path: str) -> Any:
        from persistqueue import SQLiteAckQueue

        return SQLiteAckQueue(f"{path}/ack", auto_commit=True, timeout=BUSY)

    def add(self, key: str, data: bytes) -> None:
        self.queue.put(data)

    def take(self) -> Any:
        return _get(self.queue)

    def ack(self, token: Any) -> None:
        self.queue.ack(token)

    def close(self) -> None:
        self.queue.close()


class PersistUnique(PersistAck):
    """persist-queue, UniqueAckQ: the same, and an equal value is queued once."""

    name = "persist-queue UniqueAckQ"

    def _make(self, path: str) -> Any:
        from persistqueue import UniqueAckQ
        from persistqueue.serializers import json

        return UniqueAckQ(f"{path}/unique", auto_commit=True, timeout=BUSY, serializer=json)

    def add(self, key: str, data: bytes) -> None:
        self.queue.put([key, data.decode("latin-1")])


class PersistFile(Queue):
    """persist-queue, Queue: chunks of pickles in files. One process at a time; task_done() after each saves
    the position."""

    name = "persist-queue Queue"
    classes = (QUICK,)
    shared = False

    def __init__(self, path: str, durability: str) -> None:
        from persistqueue import Queue as FileQueue

        self.queue = FileQueue(f"{path}/files", tempdir=path)

    def add(self, key: str, data: bytes) -> None:
        self.queue.put(data)

    def take(self) -> Any:
        return _get(self.queue)

    def ack(self, token: Any) -> None:
        self.queue.task_done()


class LiteQueue(Queue):
    """litequeue: SQLite, WAL, NORMAL."""

    name = "litequeue"
    classes = (QUICK,)

    def __init__(self, path: str, durability: str) -> None:
        from litequeue import LiteQueue as Lite

        self.queue = _retry(lambda: Lite(f"{path}/lite.db"))
        self.queue.conn.execute(f"PRAGMA busy_timeout={BUSY * 1000}")

    def add(self, key: str, data: bytes) -> None:
        self.queue.put(data)

    def take(self) -> Any:
        return self.queue.pop()

    def ack(self, token: Any) -> None:
        self.queue.done(token.message_id)

    def close(self) -> None:
        self.queue.close()


class HueySQLite(Queue):
    """huey's SqliteStorage, its queue alone. No acknowledgement: what is taken is deleted."""

    name = "huey SqliteStorage"
    acknowledges = False

    def __init__(self, path: str, durability: str) -> None:
        from huey.storage import SqliteStorage

        self.queue = SqliteStorage(
            "bench", filename=f"{path}/huey.db", fsync=durability == DURABLE, timeout=BUSY
        )

    def add(self, key: str, data: bytes) -> None:
        self.queue.enqueue(data)

    def take(self) -> Any:
        return self.queue.dequeue()

    def close(self) -> None:
        self.queue.close()


class HueyFile(Queue):
    """huey's FileStorage, its queue alone. No acknowledgement: what is taken is deleted."""

    name = "huey FileStorage"
    classes = (QUICK,)
    acknowledges = False

    def __init__(self, path: str, durability: str) -> None:
        from huey.storage import FileStorage

        self.queue = FileStorage("bench", f"{path}/huey")

    def add(self, key: str, data: bytes) -> None:
        self.queue.enqueue(data)

    def take(self) -> Any:
        return self.queue.dequeue()


class DirQ(Queue):
    """dirq, QueueSimple: a file an element, locked by a hard link."""

    name = "dirq QueueSimple"
    classes = (QUICK,)

    def __init__(self, path: str, durability: str) -> None:
        from dirq.QueueSimple import QueueSimple

        self.queue = QueueSimple(f"{path}/dirq")
        self.name_now = ""

    def add(self, key: str, data: bytes) -> None:
        self.queue.add(data)

    def take(self) -> Any:
        name = self.name_now or self.queue.first()
        self.name_now = ""
        while name:
            if self.queue.lock(name):
                return name, self.queue.get(name)
            name = self.queue.next()
        return None

    def ack(self, token: Any) -> None:
        self.queue.remove(token[0])
        self.name_now = self.queue.next()


class DiskcacheDeque(Queue):
    """diskcache, Deque. No acknowledgement. Above 32 KiB a value is a file of its own, unless it is told
    otherwise."""

    name = "diskcache Deque"
    acknowledges = False

    def __init__(self, path: str, durability: str) -> None:
        from diskcache import Cache, Deque

        inside = 1 << 20 if durability == DURABLE else 1 << 15  # it does not flush files
        cache = Cache(
            f"{path}/diskcache",
            eviction_policy="none",
            timeout=BUSY,
            sqlite_synchronous=2 if durability == DURABLE else 1,
            disk_min_file_size=inside,
        )
        self.queue = Deque.fromcache(cache)

    def add(self, key: str, data: bytes) -> None:
        self.queue.append(data)

    def take(self) -> Any:
        try:
            return self.queue.popleft()
        except IndexError:
            return None

    def close(self) -> None:
        self.queue.cache.close()


PEERS: tuple[type[Queue], ...] = (
    BareSQLite,
    Draft,
    PersistAck,
    PersistUnique,
    PersistFile,
    LiteQueue,
    HueySQLite,
    HueyFile,
    DirQ,
    DiskcacheDeque,
)


def peers(durability: str, *also: Callable[[type[Queue]], bool]) -> list[type[Queue]]:
    """Return the peers of a durability class for which all of `also` holds."""
    return [peer for peer in PEERS if durability in peer.classes and all(holds(peer) for holds in also)]


def make(kind: type[Queue], path: Path, durability: str) -> Queue:
    """Open a contender in a directory, which is made."""
    path.mkdir(exist_ok=True)
    return kind(os.fspath(path), durability)


def _retry(step: Callable[[], Any]) -> Any:
    """Do `step` again while the database is locked: opening a database in many processes at once is not what
    is measured."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            return step()
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
