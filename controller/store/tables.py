"""The tables of the state database, as this release reads and writes them.

Columns are what a person or an index asks for; the whole record is the JSON in `document`. The migrations up to `REVISION` make them, and
a test holds the two together. Only constructs that SQLite and PostgreSQL share; the triggers that guard events, digests and closed
cycles are in the migrations, as is the collation that lets PostgreSQL sort names as Python does.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

REVISION = "0004"
"""The migration that makes exactly these tables."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_N_name)s_unique",
    }
)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, kept in UTC: SQLite's text has no zone, so it is taken off on the way in and put back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; times are UTC-aware everywhere")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(sa.types.TypeDecorator[str]):
    """Text from outside. PostgreSQL keeps no NUL characters, so U+FFFD stands for them there."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value if value is None or dialect.name == "sqlite" else value.replace("\0", "\ufffd")


BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts a primary key up by itself only where it is called INTEGER."""


leadership = sa.Table(
    "leadership",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", Words),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("receipt", Words, comment="of the last change, by which its writer knows it again (PostgreSQL)"),
    sa.CheckConstraint("id = 1", name="one_row"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", Words, primary_key=True),
    sa.Column("row_version", sa.Integer, nullable=False),
    sa.Column("policy_digest", Words, nullable=False),
    sa.Column("champion", sa.Integer),
    sa.Column("phase", Words, comment="of the open cycle"),
    sa.Column("document", sa.Text, nullable=False, comment="ModelState without cycle and versions"),
)

cycles = sa.Table(
    "cycles",
    metadata,
    sa.Column("model", Words, sa.ForeignKey("models.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("phase", Words, nullable=False),
    sa.Column("outcome", Words, comment="null while open"),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("document", sa.Text, nullable=False),
    sa.CheckConstraint("(outcome IS NULL) = (closed_at IS NULL)", name="outcome_with_closed_at"),
    sa.Index("cycles_opened_at", "opened_at"),
)
sa.Index(
    "cycles_one_open",
    cycles.c.model,
    unique=True,
    sqlite_where=cycles.c.outcome.is_(None),
    postgresql_where=cycles.c.outcome.is_(None),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("model", Words, sa.ForeignKey("models.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", Words, nullable=False),
    sa.Column("status", Words, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", BIG, primary_key=True),
    sa.Column("model", Words, nullable=False, comment="no foreign key: events outlive their model"),
    sa.Column("kind", Words, nullable=False),
    sa.Column("sentence", Words, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("cycle", sa.Integer),
    sa.Column("actor", Words, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index("events_model_seq", "model", "seq"),
    sqlite_autoincrement=True,
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("key", Words, nullable=False),
    sa.Column("model", Words, nullable=False),
    sa.Column("kind", Words, nullable=False),
    sa.Column("text", Words, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("delivered_at", UtcDateTime),
    sa.Column("data", sa.Text, comment="null in those of older releases"),
    sa.Column("routed_at", UtcDateTime, comment="null while no channel was given it"),
    sa.UniqueConstraint("key"),
)
sa.Index(
    "notices_pending",
    notices.c.at,
    notices.c.id,
    sqlite_where=notices.c.delivered_at.is_(None),
    postgresql_where=notices.c.delivered_at.is_(None),
)
_UNROUTED = sa.text("routed_at IS NULL AND delivered_at IS NULL")
sa.Index("notices_unrouted", notices.c.at, notices.c.id, sqlite_where=_UNROUTED, postgresql_where=_UNROUTED)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("notice", BIG, sa.ForeignKey("notices.id"), nullable=False),
    sa.Column("channel", Words, nullable=False),
    sa.Column("batch", Words, nullable=False, comment="which message carries it; empty before the first attempt"),
    sa.Column("attempts", sa.Integer, nullable=False, comment="begun"),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("done_at", UtcDateTime),
    sa.Column("error", Words, nullable=False),
    sa.UniqueConstraint("notice", "channel"),
)
sa.Index(
    "deliveries_undone",
    deliveries.c.channel,
    deliveries.c.due_at,
    sqlite_where=deliveries.c.done_at.is_(None),
    postgresql_where=deliveries.c.done_at.is_(None),
)

kept = sa.Table(
    "kept",
    metadata,
    sa.Column("key", Words, primary_key=True),
    sa.Column("value", Words, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("fingerprint", Words, primary_key=True),
    sa.Column("name", Words, nullable=False),
    sa.Column("said_at", UtcDateTime, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("kind", Words, nullable=False),
    sa.Column("source", Words, nullable=False),
    sa.Column("subject", Words, nullable=False),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("incidents_kind_source_subject", "kind", "source", "subject"),
)

incident_models = sa.Table(
    "incident_models",
    metadata,
    sa.Column("incident", BIG, sa.ForeignKey("incidents.id"), primary_key=True, autoincrement=False),
    sa.Column("model", Words, primary_key=True, comment="no foreign key: incidents outlive their models"),
    sa.Column("joined_at", UtcDateTime, nullable=False),
    sa.Column("left_at", UtcDateTime, comment="null while it has the fault"),
)
