"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)

GUARDS = {
    "events_no_update": "BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "events_no_delete": "BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "versions_digest_fixed": (
        "BEFORE UPDATE ON versions WHEN NEW.digest <> OLD.digest OR NEW.number <> OLD.number OR NEW.model <> OLD.model "
        "BEGIN SELECT RAISE(ABORT, 'the digest of a version never changes'); END"
    ),
    "cycles_stay_closed": (
        "BEFORE UPDATE ON cycles WHEN OLD.outcome IS NOT NULL "
        "BEGIN SELECT RAISE(ABORT, 'a closed cycle never changes'); END"
    ),
    "leadership_epoch_grows": (
        "BEFORE UPDATE ON leadership WHEN NEW.epoch < OLD.epoch "
        "BEGIN SELECT RAISE(ABORT, 'the epoch never goes back'); END"
    ),
}


def upgrade() -> None:
    leadership = op.create_table(
        "leadership",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", TIME),
        sa.PrimaryKeyConstraint("id", name="leadership_pk"),
        sa.CheckConstraint("id = 1", name="leadership_one_row"),
    )
    op.bulk_insert(leadership, [{"id": 1, "holder": None, "epoch": 0, "expires_at": None}])
    op.create_table(
        "models",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("row_version", sa.Integer(), nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("champion", sa.Integer()),
        sa.Column("phase", sa.Text(), comment="of the open cycle"),
        sa.Column("document", sa.Text(), nullable=False, comment="ModelState without cycle and versions"),
        sa.PrimaryKeyConstraint("name", name="models_pk"),
    )
    op.create_table(
        "cycles",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), comment="null while open"),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "number", name="cycles_pk"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="cycles_model_fk"),
        sa.CheckConstraint("(outcome IS NULL) = (closed_at IS NULL)", name="cycles_outcome_with_closed_at"),
    )
    op.create_index("cycles_opened_at", "cycles", ["opened_at"])
    still_open = sa.text("outcome IS NULL")
    op.create_index(
        "cycles_one_open", "cycles", ["model"], unique=True, sqlite_where=still_open, postgresql_where=still_open
    )
    op.create_table(
        "versions",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "number", name="versions_pk"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="versions_model_fk"),
    )
    _create_events_and_notices()
    if op.get_bind().dialect.name == "sqlite":
        for name, body in GUARDS.items():
            op.execute(f"CREATE TRIGGER {name} {body}")


def _create_events_and_notices() -> None:
    op.create_table(
        "events",
        sa.Column("seq", BIG, nullable=False),
        sa.Column("model", sa.Text(), nullable=False, comment="no foreign key: events outlive their model"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("cycle", sa.Integer()),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="events_pk"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_model_seq", "events", ["model", "seq"])
    op.create_table(
        "notices",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("delivered_at", TIME),
        sa.PrimaryKeyConstraint("id", name="notices_pk"),
        sa.UniqueConstraint("key", name="notices_key_unique"),
    )
    undelivered = sa.text("delivered_at IS NULL")
    op.create_index(
        "notices_pending", "notices", ["at", "id"], sqlite_where=undelivered, postgresql_where=undelivered
    )
