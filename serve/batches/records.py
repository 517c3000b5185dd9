"""What is known of files and batches: OpenAI's objects, each of one owner, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

BUSY_S = 10.0
"""Replicas and the runner write the same file, each for a moment."""
Object = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    label TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    object BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_owner ON records (owner, kind, number);
CREATE INDEX IF NOT EXISTS records_by_label ON records (kind, label);
"""


class Kind(Enum):
    """What an object is; its value begins its id."""

    file = "file"
    batch = "batch"


class Records:
    """Objects by id. Each call is a transaction of its own, of which processes see all or nothing.

    An object's label, which can be asked for, is a file's purpose and a batch's status.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            sqlite3.Error, OSError: when it can be neither.
        """
        self._path = path
        with self._transaction() as base:
            base.executescript(_SCHEMA)

    def add(self, kind: Kind, owner: str, value: Object, limit: Callable[[int, int], None] | None = None) -> None:
        """Adds an object.

        Args:
            kind: what it is.
            owner: who alone may see it.
            value: the object, with its ``id``.
            limit: is told how many the owner has that are not at their end, and the bytes of all; raises what refuses.
        """
        with self._transaction() as base:
            if limit is not None:
                limit(*_used(base, kind, owner))
            row = (value["id"], kind.value, owner, _label(value), value.get("bytes", 0), msgspec.json.encode(value))
            base.execute("INSERT INTO records (id, kind, owner, label, bytes, object) VALUES (?, ?, ?, ?, ?, ?)", row)

    def get(self, kind: Kind, owner: str, name: str) -> Object | None:
        """Returns an owner's object; null where there is none of that id, or it is another's."""
        with self._transaction() as base:
            row = base.execute(
                "SELECT object FROM records WHERE id = ? AND kind = ? AND owner = ?", (name, kind.value, owner)
            ).fetchone()
        return None if row is None else msgspec.json.decode(row[0])

    def page(
        self,
        kind: Kind,
        owner: str,
        limit: int,
        after: str | None = None,
        is_oldest_first: bool = False,
        label: str = "",
    ) -> tuple[list[Object], bool]:
        """Returns objects of an owner, and whether there are more.

        Raises:
            KeyError: when there is no object ``after``.
        """
        sign, order = (">", "ASC") if is_oldest_first else ("<", "DESC")
        conditions, values = "owner = ? AND kind = ?", [owner, kind.value]
        with self._transaction() as base:
            if after is not None:
                row = base.execute(
                    f"SELECT number FROM records WHERE {conditions} AND id = ?", (*values, after)
                ).fetchone()
                if row is None:
                    raise KeyError(after)
                conditions, values = f"{conditions} AND number {sign} ?", [*values, row[0]]
            if label:
                conditions, values = f"{conditions} AND label = ?", [*values, label]
            query = f"SELECT object FROM records WHERE {conditions} ORDER BY number {order} LIMIT ?"
            rows = base.execute(query, (*values, limit + 1)).fetchall()
        return [msgspec.json.decode(row[0]) for row in rows[:limit]], len(rows) > limit

    def change(self, name: str, change: Callable[[Object], Object | None]) -> Object | None:
        """Replaces an object by what ``change`` makes of it; returns what stands there then, null where there is none.

        Args:
            name: the id.
            change: gets the object; null leaves it as it is.
        """
        with self._transaction() as base:
            row = base.execute("SELECT object FROM records WHERE id = ?", (name,)).fetchone()
            if row is None:
                return None
            old: Object = msgspec.json.decode(row[0])
            if (new := change(dict(old))) is None:
                return old
            row = (_label(new), new.get("bytes", 0), msgspec.json.encode(new), name)
            base.execute("UPDATE records SET label = ?, bytes = ?, object = ? WHERE id = ?", row)
            return new

    def remove(self, kind: Kind, owner: str, name: str) -> bool:
        """Removes an owner's object; returns whether it was there."""
        with self._transaction() as base:
            found = base.execute(
                "DELETE FROM records WHERE id = ? AND kind = ? AND owner = ?", (name, kind.value, owner)
            )
            return found.rowcount > 0

    def labelled(self, kind: Kind, labels: Collection[str]) -> list[tuple[str, Object]]:
        """Returns all objects that have one of the labels, with their owners, the oldest first."""
        marks = ", ".join("?" * len(labels))
        query = f"SELECT owner, object FROM records WHERE kind = ? AND label IN ({marks}) ORDER BY number"
        with self._transaction() as base:
            rows = base.execute(query, (kind.value, *labels)).fetchall()
        return [(owner, msgspec.json.decode(value)) for owner, value in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # a connection for each call: threads come and go, and a file that is replaced is seen
        base = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        try:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
            except BaseException:
                if base.in_transaction:
                    base.execute("ROLLBACK")
                raise
            if base.in_transaction:
                base.execute("COMMIT")
        finally:
            base.close()


ENDED = ("failed", "completed", "expired", "cancelled")
"""A batch's statuses that do not change any more."""


def _used(base: sqlite3.Connection, kind: Kind, owner: str) -> tuple[int, int]:
    marks = ", ".join("?" * len(ENDED))
    query = f"SELECT COUNT(*) FROM records WHERE owner = ? AND kind = ? AND label NOT IN ({marks})"
    (count,) = base.execute(query, (owner, kind.value, *ENDED)).fetchone()
    (size,) = base.execute("SELECT COALESCE(SUM(bytes), 0) FROM records WHERE owner = ?", (owner,)).fetchone()
    return count, size


def _label(value: Object) -> str:
    return value["purpose"] if value["object"] == "file" else value["status"]
