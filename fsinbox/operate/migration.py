"""Reads an inbox that is a table of a database (update or insert by key, a lock column, delete when done), in
order.

Rows are read by the keyset, `WHERE (order, ...) > (last, ...) LIMIT n`, each time in a short transaction, so
that a large table is neither held nor loaded whole. Rows that come, go, or are locked meanwhile are no harm:
at worst one is queued twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

from ..store.errors import InboxError, InvalidKey, UnusableInbox
from ..store.files import open_for_reading, write_whole
from ..store.layout import Layout
from ..store.names import encode_key

Start = tuple[bool, list[Any]]
"""Where rows begin: whether among those that are locked, and behind which values of the columns of the order
([]: the first)."""


class BadSource(InboxError, ValueError):
    """The database, the table or a column that was named is not there, or SQLAlchemy is not."""


class SourceFailed(UnusableInbox):
    """The database refused."""


@dataclass(slots=True)
class Rows:
    """Some rows in order, and where the next begin."""

    after: Start
    good: list[tuple[str, bytes]] = field(default_factory=list)
    """(Key, payload.)"""
    ends: list[Start] = field(default_factory=list)
    """Behind each of those."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(Which row, why it cannot be an element.)"""


class Source:
    """A table; close it when done."""

    def __init__(self, url: str, table: str, key: str, value: str, locked: str, order: str | None) -> None:
        """Look at the table. Raises BadSource, SourceFailed."""
        try:
            import sqlalchemy
        except ImportError as error:
            raise BadSource(
                "migrate needs SQLAlchemy, which is not installed: pip install 'fsinbox[migrate]'"
            ) from error
        self._sql = sqlalchemy
        self._name = table
        try:
            address = sqlalchemy.make_url(url)
        except sqlalchemy.exc.ArgumentError as error:
            raise BadSource(
                "the URL is not one of SQLAlchemy's: write it like sqlite:///jobs.db, postgresql://host/db"
            ) from error
        shown = address.render_as_string(hide_password=True)
        self._is_sqlite = address.get_backend_name() == "sqlite"
        if self._is_sqlite and not os.path.exists(address.database or ""):  # (SQLite would make one)
            raise BadSource(f"there is no database {address.database!r}: check the URL, {shown}")
        schema, _, name = table.rpartition(".")
        try:
            self._engine = sqlalchemy.create_engine(address)
            self._table = sqlalchemy.Table(
                name, sqlalchemy.MetaData(), schema=schema or None, autoload_with=self._engine
            )
        except sqlalchemy.exc.NoSuchTableError as error:
            raise BadSource(f"there is no table {table!r} in {shown}: name it with --table") from error
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise BadSource(
                f"the driver for {shown} is not installed ({error}): install it with pip"
            ) from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise self._failed(error) from error
        self._key, self._value = self._column(key, "--key-column"), self._column(value, "--value-column")
        self._locked = self._is_locked(locked)
        self._order = self._ordering(order)
        names = [shown, table, key, value, locked, *(column.name for column in self._order)]
        self.identity = sha256("\0".join(names).encode()).hexdigest()[:16]
        """The same for the same columns of the same table in the same order."""

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _failed(self, error: Exception) -> SourceFailed:
        why = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        return SourceFailed(
            f"the database refused: {why}: mend that, and run this again; it goes on where it was"
        )

    def _read(self, query: Any) -> list[Any]:
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query).fetchall())
        except self._sql.exc.SQLAlchemyError as error:
            raise self._failed(error) from error

    def _column(self, name: str, option: str) -> Any:
        column = self._table.columns.get(name)
        if column is None:
            there = ", ".join(self._table.columns.keys())
            raise BadSource(f"table {self._name!r} has no column {name!r}: name one of {there} with {option}")
        return column

    def _is_locked(self, name: str) -> Any:
        """Return the condition that a row is locked; None if no column tells."""
        column = self._table.columns.get(name)
        if column is None:
            return None
        if isinstance(column.type, self._sql.Boolean):
            return column.is_(True)
        if isinstance(column.type, self._sql.Numeric | self._sql.Integer):
            return column != 0
        return column.is_not(None)

    def _ordering(self, order: str | None) -> list[Any]:
        """Return the columns that tell the order, so many that no two rows are the same in all of them."""
        own = list(self._table.primary_key.columns)
        if not (own or order):
            raise BadSource(
                f"table {self._name!r} has no primary key: name the column that tells the order with "
                "--order-by"
            )
        first = [self._column(order, "--order-by")] if order else []
        return list(dict.fromkeys([*first, *(own or [self._key])]))

    def count(self) -> int:
        """Return how many rows there are. Raises SourceFailed; BadSource if some have no place in the
        order."""
        counted = self._sql.select(self._sql.func.count()).select_from(self._table)
        homeless = self._read(counted.where(self._sql.or_(*(column.is_(None) for column in self._order))))[0][
            0
        ]
        if homeless:
            names = " or ".join(column.name for column in self._order)
            raise BadSource(
                f"{homeless} rows of {self._name!r} have NULL as {names}: set it, or name another with "
                "--order-by"
            )
        return int(self._read(counted)[0][0])

    def batches(self, start: Start | None, size: int) -> Iterator[Rows]:
        """Go through the rows, those that are locked first, from where `Rows.after` told. Raises
        SourceFailed."""
        locked, last = start or (True, [])
        done: set[str] = set()
        if locked and self._locked is not None:
            yield from self._walk(last, size, done)
        # Not only those that are not locked: a row that was locked since would be missed.
        yield from self._walk(last if not locked else [], size, done, free=True)

    def _walk(self, last: list[Any], size: int, done: set[str], *, free: bool = False) -> Iterator[Rows]:
        order = [self._bare(column) for column in self._order]
        query = (
            self._sql.select(self._bare(self._key), self._bare(self._value), *order)
            .order_by(*order)
            .limit(size)
        )
        if not free:
            query = query.where(self._locked)
        while True:
            found = self._read(query.where(self._behind(order, last)) if last else query)
            if not found:
                return
            last = list(found[-1][2:])
            rows = Rows((not free, last))
            for key, value, *place in found:
                name = ", ".join(
                    f"{column.name} {text!r}" for column, text in zip(self._order, place, strict=True)
                )
                if free and name in done:
                    continue
                if not free:
                    done.add(name)
                try:
                    rows.good.append(_element(key, value))
                    rows.ends.append((not free, place))
                except (InvalidKey, UnicodeError) as error:
                    rows.bad.append((name, str(error)))
            yield rows

    def _bare(self, column: Any) -> Any:
        """Return a column so that it gives what is stored. SQLite stores times as text, in more forms than
        SQLAlchemy writes: what it has made of one would not be found again."""
        return self._sql.type_coerce(column, self._sql.types.NullType()) if self._is_sqlite else column

    def _behind(self, order: list[Any], last: list[Any]) -> Any:
        """Return the condition that a row comes after `last` in the order."""
        ways = []
        for index, column in enumerate(order):
            same = [before == value for before, value in zip(order[:index], last, strict=False)]
            ways.append(self._sql.and_(*same, column > last[index]))
        return self._sql.or_(*ways)


def _element(key: Any, value: Any) -> tuple[str, bytes]:
    """Return the key and payload of a row; what is neither text nor bytes becomes JSON. Raises InvalidKey,
    UnicodeError."""
    if key is None:
        raise InvalidKey("its key is NULL")
    name = os.fsdecode(key) if isinstance(key, bytes) else str(key)
    encode_key(name)
    if isinstance(value, str):
        return name, value.encode()
    if isinstance(value, bytes | memoryview):
        return name, bytes(value)
    return name, json.dumps(value, ensure_ascii=False, default=str).encode()


_LARGEST = 1 << 20
"""Bytes of a note that are read: in a shared inbox it may be anybody's, and without end."""

_KINDS: dict[str, tuple[type, Any, Any]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "uuid": (UUID, str, UUID),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
}
"""Kinds of values that JSON does not have: the type, how one is written, how it is read. (A datetime is a
date, too.)"""


class Place:
    """How far a run has come, in control/ of the inbox, for the run after it. If it is lost, that begins
    anew."""

    def __init__(self, layout: Layout, identity: str) -> None:
        self._layout = layout
        self._name = f"migrate-{identity}"

    def read(self) -> Start | None:
        """Return where to go on; None for at the beginning."""
        if not self._layout.has("control"):
            return None
        try:
            with open(open_for_reading(self._layout, "control", self._name), encoding="utf-8") as file:
                locked, values = json.loads(file.read(_LARGEST))
            return bool(locked), [
                _KINDS[value["kind"]][2](value["text"]) if isinstance(value, dict) else value
                for value in values
            ]
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None

    def write(self, start: Start) -> None:
        """Keep where to go on. Raises OSError."""
        self._layout.make("control")
        text = json.dumps([start[0], [_written(value) for value in start[1]]])
        write_whole(self._layout, "control", self._name, text.encode())

    def forget(self) -> None:
        """The run is through. Raises OSError."""
        if self._layout.has("control") and self._layout.exists("control", self._name):
            os.unlink(self._name, dir_fd=self._layout.folder("control"))


def _written(value: Any) -> Any:
    for kind, (python, write, _) in _KINDS.items():
        if isinstance(value, python):
            return {"kind": kind, "text": write(value)}
    return value
