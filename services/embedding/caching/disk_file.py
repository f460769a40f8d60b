"""A SQLite file of records; everything here happens on the one thread that opened it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)

_APPLICATION = 0x4D454D42
_FORMAT = 1
# Rows of 384 numbers fill such a page to 95 %; larger ones would make the log larger.
_PAGE_BYTES = 8192
_VACUUMED_PAGES = 1024
# More than a batch, so that a file over its size shrinks; few enough to be done at once.
_SURPLUS_ROWS = 512
# A row and its places in the indexes take that much more than its record.
_BYTES_PER_ROW = 128
_MOST_PARAMETERS = 32_000
_MOST_TOUCHED = 4096
# Seconds to wait for another process that is writing.
_BUSY = 1.0
_RUINED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = (
    """CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE,
    record BLOB NOT NULL, used INTEGER NOT NULL)""",
    "CREATE INDEX by_use ON entries (used)",
    # Ticks count transactions: they order uses by all processes without a clock.
    "CREATE TABLE state (tick INTEGER NOT NULL, entries INTEGER NOT NULL)",
    "INSERT INTO state VALUES (0, 0)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_FORMAT}",
)


class _ForeignFileError(Exception):
    """The file is a database, but none of ours."""


class DiskFile:
    """Records by key in a file of bounded size; what was used longest ago makes room.

    Several processes may use one file. A crash loses at most the last writes. A file that is
    broken, or none of ours, is renamed and a new one begun.

    Args:
        path: The file; its folder is made if need be.
        max_bytes: Size it may reach, apart from the log beside it of some 10 MB.

    Attributes:
        entries: Records in it, at the last write.
        size_bytes: Bytes in use, at the last write.
        evictions: Records that made room for others.
        set_aside: Files that were renamed.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._open_connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._touched: set[bytes] = set()
        self.entries = self.size_bytes = self.evictions = self.set_aside = 0

    def open(self) -> None:
        """Open the file, unless it is open.

        Raises:
            OSError: It cannot be opened.
            sqlite3.Error: The same, as SQLite says it.
        """
        with self._renewing():
            self._connection()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the records there are, by key; raises as `open` does."""
        found: dict[bytes, bytes] = {}
        with self._renewing():
            connection = self._connection()
            for start in range(0, len(keys), _MOST_PARAMETERS):
                part = keys[start : start + _MOST_PARAMETERS]
                marks = ",".join("?" * len(part))
                found.update(
                    connection.execute(
                        f"SELECT key, record FROM entries WHERE key IN ({marks})",  # noqa: S608
                        part,
                    )
                )
        if len(self._touched) < _MOST_TOUCHED:
            self._touched.update(found)
        return found

    def write(self, records: Mapping[bytes, bytes]) -> None:
        """Keep records, and note which were read since; raises as `open` does."""
        with self._renewing(), self._transaction() as connection:
            connection.execute("UPDATE state SET tick = tick + 1")
            ((tick,),) = connection.execute("SELECT tick FROM state")
            self._touch(connection, tick)
            self._delete(connection, "key", list(records))
            places = self._make_room(connection, records)
            rows = zip(itertools.chain(places, itertools.repeat(None)), records.items())  # noqa: B905 - the first never ends
            connection.executemany(
                "INSERT INTO entries (id, key, record, used) VALUES (?, ?, ?, ?)",
                [(place, key, record, tick) for place, (key, record) in rows],
            )
            connection.execute("UPDATE state SET entries = entries + ?", (len(records),))

    def discard(self, keys: Sequence[bytes]) -> None:
        """Delete records; raises as `open` does."""
        with self._renewing(), self._transaction() as connection:
            self._delete(connection, "key", keys)

    def clear(self) -> None:
        """Delete every record; raises as `open` does."""
        with self._renewing():
            with self._transaction() as connection:
                connection.execute("DELETE FROM entries")
                connection.execute("UPDATE state SET entries = 0")
            _vacuum(self._connection(), 0)
            self._measure(self._connection())

    def close(self) -> None:
        """Close the file; `open` opens it again."""
        connection, self._open_connection = self._open_connection, None
        self._touched.clear()
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        if self._open_connection is not None and self._is_elsewhere():
            self.close()  # SQLite would go on with what nobody else sees
        if self._open_connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Vectors tell a lot about their texts: nobody else may read them.
            self._path.touch(mode=0o600)
            status = self._path.stat()
            self._identity = (status.st_dev, status.st_ino)
            connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
            try:
                _prepare(connection)
                self._measure(connection)
            except BaseException:
                connection.close()
                raise
            self._open_connection = connection
        return self._open_connection

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        connection = self._connection()
        with _immediately(connection):
            yield connection
        if self._measure(connection) > self._max_bytes:
            _vacuum(connection, _VACUUMED_PAGES)

    @contextlib.contextmanager
    def _renewing(self) -> Generator[None]:
        """Begin a new file instead of one that is ruined; whatever was wanted of it is left."""
        try:
            yield
        except (sqlite3.Error, _ForeignFileError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            is_ruined = isinstance(error, _ForeignFileError) or code & 0xFF in _RUINED
            if not is_ruined:
                raise
            self.close()
            if not self._is_elsewhere():
                self._set_aside(error)
            self._connection()

    def _is_elsewhere(self) -> bool:
        """Return whether the file was removed, or another process has begun a new one."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return True
        return self._identity != (status.st_dev, status.st_ino)

    def _set_aside(self, error: Exception) -> None:
        names = (f"{self._path.name}.aside-{number}" for number in itertools.count(1))
        aside = next(path for path in map(self._path.with_name, names) if not path.exists())
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")  # noqa: PTH105 - no Path
        self.set_aside += 1
        _log.warning(
            "the embedding cache %s is broken, or none of ours: %s; it is %s now, and a new one "
            "begins",
            self._path,
            error,
            aside.name,
        )

    def _touch(self, connection: sqlite3.Connection, tick: int) -> None:
        """Note uses; of what is young already they need not be noted."""
        touched, self._touched = self._touched, set()
        ((oldest,),) = connection.execute("SELECT min(used) FROM entries")
        if touched and oldest is not None:
            middle = (oldest + tick) // 2
            connection.executemany(
                "UPDATE entries SET used = ? WHERE key = ? AND used <= ?",
                [(tick, key, middle) for key in touched],
            )

    def _make_room(
        self, connection: sqlite3.Connection, records: Mapping[bytes, bytes]
    ) -> list[int]:
        """Evict as many as come, if there is no room for all; return the places they leave.

        In their places, new ones fill the gaps exactly.
        """
        self._measure(connection)
        needed = sum(len(record) + _BYTES_PER_ROW for record in records.values())
        surplus = self.size_bytes + needed - self._max_bytes
        if surplus <= 0 or not self.entries:
            return []
        rows = math.ceil(surplus * self.entries / self.size_bytes)
        rows = min(rows, len(records) + _SURPLUS_ROWS)
        oldest = connection.execute("SELECT id FROM entries ORDER BY used LIMIT ?", (rows,))
        places = [int(place) for (place,) in oldest]
        self.evictions += self._delete(connection, "id", places)
        return places[: len(records)]

    def _delete(
        self, connection: sqlite3.Connection, column: str, values: Sequence[bytes] | Sequence[int]
    ) -> int:
        if not values:
            return 0
        deleted = connection.executemany(
            f"DELETE FROM entries WHERE {column} = ?",  # noqa: S608 - a name of ours
            [(value,) for value in values],
        ).rowcount
        connection.execute("UPDATE state SET entries = entries - ?", (deleted,))
        return deleted

    def _measure(self, connection: sqlite3.Connection) -> int:
        """Take note of the sizes; return that of the file, in use or not."""
        ((pages,),) = connection.execute("PRAGMA page_count")
        ((free,),) = connection.execute("PRAGMA freelist_count")
        ((self.entries,),) = connection.execute("SELECT entries FROM state")
        self.size_bytes = (pages - free) * _PAGE_BYTES
        return int(pages * _PAGE_BYTES)


@contextlib.contextmanager
def _immediately(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _vacuum(connection: sqlite3.Connection, pages: int) -> None:
    """Give pages back that nobody uses; 0 is all."""
    # A row a page comes back, and `execute` would stop at the first.
    connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def _prepare(connection: sqlite3.Connection) -> None:
    if _is_new(connection):
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with _immediately(connection):
            if _is_new(connection):  # still: another process may have been faster
                for statement in _SCHEMA:
                    connection.execute(statement)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"journal_size_limit = {2 * 1000 * _PAGE_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether a file is empty; raise if it is neither empty nor ours."""
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    if not tables and not application:
        return True
    if (application, version) != (_APPLICATION, _FORMAT):
        raise _ForeignFileError("it is a database, but no cache of this format")
    try:
        connection.execute("SELECT id, key, record, used FROM entries LIMIT 0")
        ((_, _),) = connection.execute("SELECT tick, entries FROM state")
    except (sqlite3.OperationalError, ValueError) as error:
        raise _ForeignFileError(f"it lacks what a cache has: {error}") from error
    return False
