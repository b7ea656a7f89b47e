"""A query on a database as a data source: read-only and bounded.

Whatever the query says, it runs in a transaction that cannot write (SQLite, PostgreSQL) and is always rolled back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.schema import SqlSource

if TYPE_CHECKING:
    import pandas as pd

ROWS_MAX = 5_000_000
_CHUNK_ROWS = 50_000
_SQLITE_BUSY = ("database is locked", "database table is locked")


@dataclass(frozen=True, slots=True)
class SqlQuery:
    """The rows of one SELECT, at most `rows_max` of them."""

    url: sqlalchemy.URL
    query: str
    rows_max: int = ROWS_MAX

    @classmethod
    def of(cls, spec: SqlSource, policy_dir: Path) -> Self:
        """Raises PermanentJobError for a URL that is missing, malformed, or names an SQLite file that does not exist."""
        text = spec.url if spec.url is not None else os.environ.get(spec.url_env or "")
        if not text:
            raise PermanentJobError(f"data.source.url_env: the environment variable {spec.url_env} is not set")
        try:
            url = sqlalchemy.make_url(text)
        except ArgumentError as error:
            raise PermanentJobError(
                "data.source.url: not a URL of SQLAlchemy's form dialect://user@host/database"
            ) from error
        if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
            path = policy_dir / url.database
            if not path.is_file():  # SQLite would make an empty one
                raise PermanentJobError(f"data.source.url: there is no SQLite file {path}")
            url = url.set(database=str(path))
        return cls(url=url, query=spec.query)

    def fingerprint(self) -> None:
        return None

    def read(self) -> pd.DataFrame:
        """All rows. Raises RetryableJobError if the database is away, PermanentJobError for a wrong query or too many rows."""
        where = self.url.set(query={}).render_as_string(hide_password=True)  # some drivers take passwords as parameters
        try:
            engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        except (NoSuchModuleError, ImportError) as error:
            raise PermanentJobError(f"data.source.url: no driver is installed for {where}: {error}") from error
        try:
            with _read_only(engine) as connection:
                return self._fetch(connection)
        except SQLAlchemyError as error:
            cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig else error
            text = (str(cause).splitlines() or [type(cause).__name__])[0]
            if _may_pass(error, text, self.url):
                raise RetryableJobError(f"data.source: {where} could not be read now: {text}") from error
            raise PermanentJobError(f"data.source.query: {where} refuses the query: {text}") from error
        finally:
            engine.dispose()

    def _fetch(self, connection: sqlalchemy.Connection) -> pd.DataFrame:
        import pandas as pd

        result = connection.exec_driver_sql(self.query)
        if not result.returns_rows:
            raise PermanentJobError("data.source.query: must be a query that gives rows (SELECT …)")
        columns = list(result.keys())
        chunks: list[Any] = []
        rows = 0
        while chunk := result.fetchmany(_CHUNK_ROWS):
            rows += len(chunk)
            if rows > self.rows_max:
                raise PermanentJobError(
                    f"data.source.query: the result must have at most {self.rows_max:,} rows but has more; narrow it"
                )
            records = [tuple(row) for row in chunk]
            chunks.append(pd.DataFrame.from_records(records, columns=columns, coerce_float=True))
        return pd.concat(chunks, ignore_index=True) if chunks else pd.DataFrame(columns=columns)


def _read_only(engine: sqlalchemy.Engine) -> sqlalchemy.Connection:
    options: dict[str, Any] = {"stream_results": True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    connection = engine.connect().execution_options(**options)
    if engine.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    return connection


def _may_pass(error: SQLAlchemyError, text: str, url: sqlalchemy.URL) -> bool:
    """Whether the database is away or busy, rather than the query wrong. SQLite says OperationalError for both."""
    if not isinstance(error, OperationalError):
        return isinstance(error, DBAPIError) and error.connection_invalidated
    return url.get_backend_name() != "sqlite" or text in _SQLITE_BUSY
