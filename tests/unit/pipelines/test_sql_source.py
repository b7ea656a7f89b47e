"""The SQL source: reads, never writes, is bounded, and hides passwords."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from flights import T0, flights, spec_of

from pipelines.data.sources import open_source
from pipelines.data.sql import SqlQuery
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.schema import SqlSource


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "flights.db"
    frame = flights(100)
    frame["scheduled_at"] = frame["scheduled_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    connection = sqlite3.connect(path)
    frame[["flight", "scheduled_at", "wind", "late"]].to_sql("flights", connection, index=False)
    connection.close()
    return path


def query(folder: Path, text: str, url: str = "sqlite:///flights.db") -> SqlQuery:
    return SqlQuery.of(SqlSource(kind="sql", url=url, query=text), folder)


def test_rows_of_a_query(tmp_path: Path, database: Path) -> None:
    """A relative SQLite path starts at the policy's folder; colons and percent signs in the query are left alone."""
    text = "SELECT * FROM flights WHERE wind > 0 AND scheduled_at LIKE '2026%' AND scheduled_at <> '12:30'"
    data = spec_of(data={"source": {"kind": "sql", "url": "sqlite:///flights.db", "query": text}}).data
    frame = open_source(data, policy_dir=tmp_path, log_dir=tmp_path, now=T0).read()
    assert len(frame) == 100
    assert frame["late"].tolist() == flights(100)["late"].tolist()


@pytest.mark.parametrize(
    "text", ["DELETE FROM flights", "INSERT INTO flights SELECT * FROM flights", "DROP TABLE flights"]
)
def test_a_query_cannot_write(tmp_path: Path, database: Path, text: str) -> None:
    """Whatever the query says, the table is as it was."""
    with pytest.raises(PermanentJobError, match=r"refuses the query: attempt to write a readonly database"):
        query(tmp_path, text).read()
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT count(*) FROM flights").fetchone() == (100,)
    connection.close()


def test_too_many_rows(tmp_path: Path, database: Path) -> None:
    """The bound is an error, not a silent cut."""
    bounded = SqlQuery(url=query(tmp_path, "SELECT 1").url, query="SELECT * FROM flights", rows_max=99)
    with pytest.raises(PermanentJobError, match="at most 99 rows but has more"):
        bounded.read()


def test_wrong_query_and_wrong_url_are_permanent(tmp_path: Path, database: Path) -> None:
    """No such table or column, no such file, no driver, no URL at all."""
    with pytest.raises(PermanentJobError, match="refuses the query: no such table: flihgts"):
        query(tmp_path, "SELECT * FROM flihgts").read()
    with pytest.raises(PermanentJobError, match=r"there is no SQLite file .*other\.db"):
        query(tmp_path, "SELECT 1", "sqlite:///other.db")
    assert not (tmp_path / "other.db").exists()
    with pytest.raises(PermanentJobError, match="no driver is installed"):
        query(tmp_path, "SELECT 1", "oracle+nosuch://u@db/x").read()
    with pytest.raises(PermanentJobError, match="not a URL of SQLAlchemy's form"):
        query(tmp_path, "SELECT 1", "just words")


def test_no_rows_is_an_empty_table(tmp_path: Path, database: Path) -> None:
    """The columns are there, so that the check of the table can say that it has 0 rows; what gives no table is an error."""
    with pytest.raises(PermanentJobError, match="must be a query that gives rows"):
        query(tmp_path, "PRAGMA foreign_keys = ON").read()
    frame = query(tmp_path, "SELECT * FROM flights WHERE wind < 0").read()
    assert len(frame) == 0
    assert "late" in frame


def test_locked_database_may_pass(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else writes just now: retry."""
    writer = sqlite3.connect(database)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RetryableJobError, match="could not be read now: database is locked"):
            query(tmp_path, "SELECT * FROM flights", "sqlite:///flights.db?timeout=0.05").read()
    finally:
        writer.close()


def test_url_from_the_environment_and_hidden_password(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL may come from a variable; a password never shows in a message."""
    spec = SqlSource(kind="sql", url_env="FLIGHTS_DB", query="SELECT 1 AS one")
    monkeypatch.delenv("FLIGHTS_DB", raising=False)
    with pytest.raises(PermanentJobError, match="environment variable FLIGHTS_DB is not set"):
        SqlQuery.of(spec, tmp_path)
    monkeypatch.setenv("FLIGHTS_DB", f"sqlite:///{database}")
    assert SqlQuery.of(spec, tmp_path).read()["one"].tolist() == [1]
    monkeypatch.setenv("FLIGHTS_DB", "oracle+nosuch://u:secret@db/x?password=secret")
    with pytest.raises(PermanentJobError) as caught:
        SqlQuery.of(spec, tmp_path).read()
    assert "secret" not in str(caught.value)
