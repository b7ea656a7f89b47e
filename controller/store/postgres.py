"""A PostgreSQL state database: connections that may be cut at any moment, and changes that happen once all the same.

A call whose connection is lost is made again, for a bounded time. Where it was lost after the commit was asked for, nobody knows what
became of it; so every change also leaves a receipt of its own in the leadership row, and the next attempt first looks whether it is there.
The row keeps the last few, because daemons that stand by write too (the alerts that they are told of). That look takes the row's lock,
which the lost transaction held to its end: once it has the lock, the answer is final.

The server ends what is left of a client that went away or was suspended within a transaction (`IDLE_S`), so that a leader that died with
the lock in its hands does not keep its successor out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from controller.invariants import InvariantBroken
from controller.store import tables as t
from controller.store.address import PostgresAddress
from controller.store.database import Database
from controller.store.port import CorruptStoreError, StoreError, UnknownOutcomeError

T = TypeVar("T")
log = structlog.get_logger()

CONNECT_S = 3
"""Of each server that the URL names."""
STATEMENT_S = 15.0
LOCK_S = 7.0
"""Longer than `IDLE_S`, so that a lock left behind by a client that went away is waited for."""
IDLE_S = 4.0
"""A transaction whose client says nothing for so long is undone by the server."""
PATIENCE_S = 6.0
"""A call whose connection is lost is made again until so long after the first attempt."""
PAUSES_S = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Before each attempt; the last holds for all that follow."""
RECEIPTS = 32
"""Of the newest changes, of whichever daemon."""
POOL, POOL_MORE, POOL_WAIT_S = 5, 15, 5.0
_SERIALIZATION = ("40001", "40P01")
_TRANSIENT = ("08", "57P", "25P03", "25006", "40001", "40P01", "55P03", "53300")
"""Beginnings of SQLSTATE codes: the connection, a server that stops or starts, a server that is not (or no more) the one to write to, two
transactions in each other's way, no connection to be had."""
_ADVICE = {
    "25006": "the server takes no writes; it is a replica, so name the primary, or all servers with target_session_attrs=read-write",
    "28": "the server refuses the user or the password; look at RATCHET_DATABASE and RATCHET_DATABASE_PASSWORD_FILE",
    "3D": "there is no such database; make it with CREATE DATABASE",
    "42501": "the user lacks a right; let it own the database, or its schema",
    "42P01": "a table is missing; was the database restored in part? docs/postgresql.md says how to restore",
    "53100": "the server's disk is full; free space on it, nothing was lost",
    "53300": "the server has no connection left; raise max_connections or look for what holds them",
    "55P03": "another session holds the lock; look in pg_stat_activity for what it does",
    "57014": "the server took too long; look at its load",
}


def make_engine(address: PostgresAddress) -> Engine:
    """An engine whose every connection has its time-outs, and whose password is read when a connection is made."""
    engine = sa.create_engine(
        address.url, pool_pre_ping=True, pool_size=POOL, max_overflow=POOL_MORE, pool_timeout=POOL_WAIT_S,
        pool_recycle=1800, hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_S, "application_name": "ratchet", "target_session_attrs": "read-write",
            "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000,
            **_as_given(address),
        },
    )  # fmt: skip
    sa.event.listen(engine, "do_connect", lambda _d, _r, _args, given: _add_password(given, address))
    sa.event.listen(engine, "connect", _set_session)
    return engine


def _as_given(address: PostgresAddress) -> dict[str, Any]:
    return {
        name: value for name, value in address.url.query.items() if name in ("application_name", "target_session_attrs")
    }


def _add_password(given: dict[str, Any], address: PostgresAddress) -> None:
    password = address.password()
    if password is not None:
        given["password"] = password


def _set_session(connection: Any, _record: object) -> None:
    """Time-outs, and that a commit is on disk before it counts, whatever the server's defaults are."""
    settings = {
        "statement_timeout": f"{STATEMENT_S * 1000:.0f}", "lock_timeout": f"{LOCK_S * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{IDLE_S * 1000:.0f}", "client_min_messages": "warning",
        "TimeZone": "UTC",
    }  # fmt: skip
    asked = "current_setting('synchronous_commit')"
    durable = f"set_config('synchronous_commit', CASE {asked} WHEN 'off' THEN 'on' ELSE {asked} END, false)"
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {calls}, {durable}")
    connection.autocommit = False


class PostgresDatabase(Database):
    def __init__(self, address: PostgresAddress) -> None:
        """Connects to nothing yet."""
        try:
            self._engine = make_engine(address)
        except ImportError as error:
            raise StoreError(
                f"store url: PostgreSQL needs psycopg ({error}); pip install 'ratchetd[postgres]'"
            ) from error
        self._where = address.where
        self._turn = Lock()

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def where(self) -> str:
        return self._where

    # ------------------------------------------------------------ the two ways in
    def read(self, work: Callable[[Connection], T]) -> T:
        """As the port says; sees one snapshot."""
        for last in _attempts():
            try:
                with self._connected(isolation_level="REPEATABLE READ", postgresql_readonly=True) as db, db.begin():
                    return work(db)
            except (SQLAlchemyError, OSError) as error:
                self._trouble(error, last=last)
        raise AssertionError("the last attempt returns or raises")

    def write(self, work: Callable[[Connection], T]) -> T:
        """As the port says. Writers of this process queue; those of others wait for the leadership row, which `work` must read first."""
        with self._turn:
            return self._write(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        receipt, unsure, result = uuid4().hex, False, None
        for last in _attempts():
            try:
                with self._connected() as db, db.begin() as transaction:
                    if unsure and receipt in _receipts(db):
                        log.info("store.commit_found", note="its acknowledgement had been lost")
                        return result  # type: ignore[return-value]  # set before `unsure`
                    unsure = False
                    result = work(db)
                    db.execute(sa.update(t.leadership).values(receipt=_with(receipt)))
                    unsure = True
                    transaction.commit()
                    return result
            except (SQLAlchemyError, OSError) as error:
                if _state(error) in _SERIALIZATION or isinstance(error, IntegrityError):
                    unsure = False  # the server itself said that it undid it
                self._trouble(error, last=last, unsure=unsure)
        raise AssertionError("the last attempt returns or raises")

    def _connected(self, **options: Any) -> Connection:
        connection = self._engine.connect()
        try:
            return connection.execution_options(**options) if options else connection
        except BaseException:
            connection.close()
            raise

    def _trouble(self, error: Exception, *, last: bool, unsure: bool = False) -> None:
        """Return if the call should be made again; otherwise raise what the error means."""
        if isinstance(error, IntegrityError):
            raise InvariantBroken(f"{self._where}: the database refused it: {_words(error)}") from error
        if _is_transient(error) and not last:
            if not _state(error).startswith("40"):
                self._engine.dispose()  # what else is in the pool is as old
            log.debug("store.repeated", error=_words(error))
            return
        meant = meaning(self._where, error)
        if unsure:
            raise UnknownOutcomeError(
                f"{meant}; it was lost while it was written, so look again before you repeat it"
            ) from error
        raise meant from error

    def change_schema(self, work: Callable[[Connection], None]) -> None:
        """One transaction that may take long, made once. Raises StoreError, CorruptStoreError, and whatever `work` raises."""
        try:
            with self._connected() as db, db.begin():
                for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                    db.exec_driver_sql(f"SET LOCAL {name} = '10min'")
                work(db)
        except (SQLAlchemyError, OSError) as error:
            raise meaning(self._where, error) from error

    # ------------------------------------------------------------ the rest
    def now(self, db: Connection) -> datetime:
        moment: datetime = db.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return moment

    def close(self) -> None:
        self._engine.dispose()


def _attempts() -> Iterator[bool]:
    """Once for each attempt, after its pause: whether it is the last."""
    deadline = time.monotonic() + PATIENCE_S
    attempt = 0
    while True:
        pause_s = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
        last = time.monotonic() + pause_s >= deadline
        time.sleep(pause_s)
        yield last
        if last:
            return
        attempt += 1


def _with(receipt: str) -> sa.ColumnElement[str]:
    """It and those before, the newest first."""
    before = sa.func.coalesce(t.leadership.c.receipt, "")
    return sa.func.left(sa.func.concat(f"{receipt} ", before), RECEIPTS * (len(receipt) + 1))


def _receipts(db: Connection) -> list[str]:
    """Of the last changes that were committed, once whatever is under way has ended."""
    found: str | None = db.execute(sa.select(t.leadership.c.receipt).with_for_update()).scalar_one()
    return (found or "").split()


# ---------------------------------------------------------------- errors
def meaning(where: str, error: Exception) -> StoreError:
    """The port's error for a driver's: the server's words, and what to do."""
    state = _state(error)
    advice = next((f": {text}" for prefix, text in _ADVICE.items() if state.startswith(prefix)), "")
    if state.startswith("XX00") and state != "XX000":
        return CorruptStoreError(
            f"{where}: the database is damaged ({_words(error)}). Stop the daemon and restore a backup"
        )
    if not advice and _is_transient(error):
        advice = ": the server is away; nothing was lost, try again when it is back"
    return StoreError(f"{where}: {_words(error)}{advice}")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = _state(error)
    if state:
        return state.startswith(_TRANSIENT)
    return isinstance(error, DBAPIError) and type(error.orig).__name__ in (
        "OperationalError",
        "InterfaceError",
        "ConnectionTimeout",
    )


def _state(error: Exception) -> str:
    """The SQLSTATE; empty if the server gave none."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def _words(error: Exception) -> str:
    """What happened, on one line, without the statement and its values."""
    told = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return " ".join(str(told).split())[:500]
