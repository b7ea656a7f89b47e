"""A cycle's study on PostgreSQL, in Optuna's own tables, where the daemon's settings ask for it.

Everybody who may look at the database can follow the search (`optuna-dashboard`), and its record outlives the working folders. Optuna's
tables stand in a schema of their own, since both Optuna and Ratchet keep a table called `alembic_version`. The job is told the address
and where the password's file is, never the password: what a job is told is written down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from pipelines.jobs.port import RetryableJobError

SCHEMA = "ratchet_studies"
KEEP = 5
"""So many of a model's newest studies stay, as do its working folders."""
AWAY = (StorageInternalError, SQLAlchemyError)
"""What its calls raise when the database is not there."""
_OPEN: list[sa.Engine] = []
"""Of this process, for `disconnect`."""
_LOCK = 0x73747564
_SESSION = f"-c search_path={SCHEMA} -c statement_timeout=30000 -c lock_timeout=15000 -c idle_in_transaction_session_timeout=30000"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlace:
    """Which study, and where."""

    url: str
    """`postgresql+psycopg://user@host:port/database`, without password."""
    model: str
    cycle: int
    password_file: str | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None) -> StudyPlace | None:
        return cls(**raw) if raw else None

    @property
    def name(self) -> str:
        return f"{self.model}/c{self.cycle}"

    def storage(self) -> RDBStorage:
        """Connected, with its tables made. Raises RetryableJobError."""
        try:
            options = self._options()
            self._make_schema(options)
            storage = RDBStorage(self.url, engine_kwargs=options)
        except (*AWAY, OSError) as error:
            raise away(error) from None
        _OPEN.append(storage.engine)
        return storage

    def _options(self) -> dict[str, Any]:
        connect: dict[str, Any] = {"connect_timeout": 5, "application_name": "ratchet-study", "options": _SESSION}
        if self.password_file is not None:
            connect["password"] = (Path(self.password_file).read_text().splitlines() or [""])[0]
        return {
            "connect_args": connect,
            "pool_pre_ping": True,
            "pool_size": 2,
            "max_overflow": 4,
            "hide_parameters": True,
        }

    def _make_schema(self, options: Mapping[str, Any]) -> None:
        """Two jobs that are the first make the tables one after the other."""
        engine = sa.create_engine(self.url, **options)
        try:
            with engine.begin() as db:
                if db.scalar(sa.text("SELECT to_regclass(:table)"), {"table": f"{SCHEMA}.version_info"}) is not None:
                    return
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                db.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            with engine.connect() as db, db.begin():
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                db.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '5min'"))
                RDBStorage(self.url, engine_kwargs=dict(options)).engine.dispose()
        finally:
            engine.dispose()


def open_shared(
    place: StudyPlace, *, direction: StudyDirection, pruner: optuna.pruners.BasePruner, signature: str
) -> optuna.Study:
    """The study, made if it is not there. One of another signature is about other rows or ranges, and gives way to a new one.

    Raises RetryableJobError."""
    storage = place.storage()
    try:
        for _ in range(2):
            study = optuna.create_study(
                study_name=place.name, storage=storage, direction=direction, pruner=pruner, load_if_exists=True
            )
            known = study.user_attrs.get("signature")
            if known is None:
                study.set_user_attr("signature", signature)
            if known in (None, signature):
                break
            optuna.delete_study(study_name=place.name, storage=storage)
    except AWAY as error:
        raise away(error) from None
    return study


def disconnect() -> None:
    """Close all connections of this process to studies."""
    while _OPEN:
        _OPEN.pop().dispose()


def forget_old(place: StudyPlace) -> None:
    """Delete the model's studies of long ago. What cannot be deleted now is deleted by a later cycle."""
    numbered = re.compile(rf"{re.escape(place.model)}/c([0-9]+)")
    storage = place.storage()
    with suppress(*AWAY, KeyError):
        for name in optuna.get_all_study_names(storage=storage):
            match = numbered.fullmatch(name)
            if match and int(match[1]) <= place.cycle - KEEP:
                optuna.delete_study(study_name=name, storage=storage)


def away(error: Exception) -> RetryableJobError:
    """What to say when the database does not do it: without the statement and its values."""
    told = (
        error.orig if isinstance(error, sa.exc.StatementError) and error.orig is not None else error.__cause__ or error
    )
    words = " ".join(str(told).split())[:300]
    return RetryableJobError(
        f"the database of studies (RATCHET_STUDY_DATABASE) is away: {words}; the next attempt goes on from its last trial"
    )
