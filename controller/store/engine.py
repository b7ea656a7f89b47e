"""Connections to an SQLite state database, and what its errors mean to whoever uses the store.

SQLite runs with a write-ahead log and `synchronous=FULL`: a decision that was committed may already have moved traffic, so it must survive
a loss of power, which `NORMAL` does not promise. Transactions are begun explicitly (the driver's own habit is to begin late and
only for some statements): a reader gets one snapshot, a writer takes the write lock at once and so can never deadlock with another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.pool import ConnectionPoolEntry

from controller.invariants import InvariantBroken
from controller.store.database import Database
from controller.store.port import CorruptStoreError, StoreError

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process's write lock."""

_ADVICE = {
    "SQLITE_BUSY": "another process holds the write lock; it is tried again, but look for a backup or shell that keeps it open",
    "SQLITE_LOCKED": "another connection holds the write lock; it is tried again",
    "SQLITE_FULL": "the disk is full; free space on it, nothing was lost",
    "SQLITE_IOERR": "the disk gives errors; look at the system's log and free space, nothing was written",
    "SQLITE_READONLY": "it cannot be written; give this user write permission on the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened; look at the folder's existence and permissions",
    "SQLITE_PERM": "access is denied; give this user permission on the file and its folder",
}


class SqliteDatabase(Database):
    """A file. Its transactions cannot be lost on the way, so nothing is tried twice."""

    def __init__(self, file: Path) -> None:
        """Raises StoreError if there is no such file."""
        if not file.exists():
            raise StoreError(f"{file}: there is no such database; migrate it first")
        self._file = file
        self._engine = make_engine(file)
        self._turn = Lock()

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def where(self) -> str:
        return str(self._file)

    def read(self, work: Callable[[Connection], T]) -> T:
        with reading(self._engine, self._file) as db:
            return work(db)

    def write(self, work: Callable[[Connection], T]) -> T:
        # Threads queue here, because waiting for SQLite's lock is polling: one of 16 threads once waited a second for it.
        with self._turn, writing(self._engine, self._file) as db:
            return work(db)

    def now(self, db: Connection) -> datetime:
        """This machine's clock: a file is for one machine."""
        return datetime.now(UTC)

    def close(self) -> None:
        self._engine.dispose()


def make_engine(file: Path) -> Engine:
    """An engine on an SQLite file whose transactions are snapshots (`reading`) or hold the write lock (`writing`)."""
    engine = sa.create_engine(
        URL.create("sqlite", database=str(file)), connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
    )
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ratchet_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine, file: Path) -> Iterator[Connection]:
    """A transaction that sees one state of the database. Raises StoreError, CorruptStoreError."""
    with wrapped_errors(file), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine, file: Path) -> Iterator[Connection]:
    """A transaction that no other writer runs beside; everything in it is written at its end, or nothing.

    Raises StoreError, CorruptStoreError, InvariantBroken (a constraint of the database said no)."""
    with wrapped_errors(file), engine.execution_options(ratchet_writes=True).begin() as connection:
        yield connection


@contextmanager
def wrapped_errors(file: Path) -> Iterator[None]:
    """Turn the database's errors into the port's, naming the file and what to do."""
    try:
        yield
    except IntegrityError as exc:
        raise InvariantBroken(f"{file}: the database refused it: {exc.orig}") from exc
    except StatementError as exc:
        raise _meaning(file, exc.orig or exc) from exc
    except sqlite3.Error as exc:
        raise _meaning(file, exc) from exc
    except (SQLAlchemyError, OSError) as exc:
        raise StoreError(f"{file}: {exc}") from exc


def _meaning(file: Path, error: BaseException) -> StoreError:
    code = str(getattr(error, "sqlite_errorname", ""))
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return corrupt(file, str(error))
    # Extended codes such as SQLITE_IOERR_WRITE begin with the plain one.
    advice = next((f": {text}" for prefix, text in _ADVICE.items() if code.startswith(prefix)), "")
    return StoreError(f"{file}: {error}{advice}")


def corrupt(file: Path, found: str) -> CorruptStoreError:
    """The error for a damaged file: which, what was found, and how to get going again."""
    return CorruptStoreError(
        f"{file}: the database is damaged ({found}). It was left as it is. Stop the daemon, move {file.name}, {file.name}-wal and "
        f"{file.name}-shm to another folder, and put a backup in place (upgrades leave {file.name}.before-* beside it), or save what "
        f"can be read with: sqlite3 {file} .recover | sqlite3 recovered.db"
    )
