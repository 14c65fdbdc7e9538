"""Reads an inbox that is a table of a database (update or insert by key, a lock column, delete when done), in order.

Rows are read by the keyset: `WHERE (order, ...) > (last, ...) LIMIT n`, a short transaction each, so that a large table is
neither held nor loaded whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from .errors import InboxError, InvalidKey, UnusableInbox
from .layout import Layout
from .names import encode_key
from .protocol import flush

if TYPE_CHECKING:
    from types import TracebackType


class BadSource(InboxError, ValueError):
    """The database, the table or a column that was named is not there, or SQLAlchemy is not."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be an element."""

    key: str
    data: bytes


@dataclass(slots=True)
class Rows:
    """Some rows in order, and where the next begin."""

    good: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(Which row, why it cannot be an element.)"""
    after: tuple[str, list[Any]] = ("", [])


class Source:
    """A table, for a `with` block: its connections are closed at the end."""

    def __init__(self, url: str, table: str, key: str, value: str, locked: str, order: str | None) -> None:
        """Look at the table. Raises BadSource, UnusableInbox if the database cannot be asked."""
        try:
            import sqlalchemy
        except ImportError as error:
            raise BadSource("migrate needs SQLAlchemy, which is not installed: pip install 'fsinbox[migrate]'") from error
        self._sql = sqlalchemy
        self._name = table
        try:
            address = sqlalchemy.make_url(url)
            shown = address.render_as_string(hide_password=True)
            file = address.database
            if address.get_backend_name() == "sqlite" and file and file != ":memory:" and not file.startswith("file:"):
                if not os.path.exists(file):
                    raise BadSource(f"there is no database {file}: check the URL ({shown})")
            self._engine = sqlalchemy.create_engine(address)
            schema, _, name = table.rpartition(".")
            self._table = sqlalchemy.Table(name, sqlalchemy.MetaData(), schema=schema or None, autoload_with=self._engine)
        except sqlalchemy.exc.NoSuchTableError as error:
            raise BadSource(f"there is no table {table!r} in {shown}: name it with --table") from error
        except sqlalchemy.exc.ArgumentError as error:
            raise BadSource("the URL is not one of SQLAlchemy's: write it like sqlite:///jobs.db, postgresql://host/db") from error
        except ImportError as error:
            raise BadSource(f"the driver of {shown} is not installed ({error}): install it with pip") from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise self._refused(error) from error
        self._key, self._value = self._column(key, "--key-column"), self._column(value, "--value-column")
        self._locked = self._table.columns.get(locked)
        self._order = self._ordering(order)
        self.identity = sha256("\0".join([shown, table, *(str(column) for column in (*self._order, self._key))]).encode()).hexdigest()
        """The same for the same table in the same order."""

    def _column(self, name: str, option: str) -> Any:
        column = self._table.columns.get(name)
        if column is None:
            there = ", ".join(self._table.columns.keys())
            raise BadSource(f"table {self._name!r} has no column {name!r}: name one of {there} with {option}")
        return column

    def _ordering(self, order: str | None) -> list[Any]:
        """Return the columns that tell the order, so many that no two rows are the same in all of them."""
        own = list(self._table.primary_key.columns)
        first = [self._column(order, "--order-by")] if order else own
        if not first:
            raise BadSource(f"table {self._name!r} has no primary key: name the column that tells the order with --order-by")
        return list(dict.fromkeys([*first, *(own or [self._key])]))

    def count(self) -> int:
        """Return how many rows there are. Raises UnusableInbox; BadSource if some have no place in the order."""
        select, function = self._sql.select, self._sql.func
        (number,) = self._read(select(function.count()).select_from(self._table))[0]
        no_place = self._sql.or_(*(column.is_(None) for column in self._order))
        (lost,) = self._read(select(function.count()).select_from(self._table).where(no_place))[0]
        if lost:
            names = ", ".join(column.name for column in self._order)
            raise BadSource(f"{lost} rows of {self._name!r} are NULL in {names}: give them a value, or name another --order-by")
        return int(number)

    def batches(self, start: tuple[str, list[Any]] | None, size: int) -> Iterator[Rows]:
        """Go through the rows: those that are locked first, each part in order; from behind a place that `Rows.after` gave."""
        first: set[Any] = set()
        phase, last = start or ("locked", [])
        if self._locked is not None:
            if phase == "locked":
                for rows in self._walk("locked", last, size, self._is_locked(), set()):
                    yield rows
                last = []
            first = {tuple(row) for row in self._read(self._sql.select(*self._order).where(self._is_locked()))}
        yield from self._walk("free", last if phase == "free" or self._locked is None else [], size, None, first)
