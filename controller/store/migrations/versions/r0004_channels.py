"""What each channel has been told, what notifiers must remember, and the alerts that others tell of."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("notices", sa.Column("data", sa.Text(), comment="null in those of older releases"))
    op.add_column("notices", sa.Column("routed_at", TIME, comment="null while no channel was given it"))
    op.drop_column("notices", "attempts")
    unrouted = sa.text("routed_at IS NULL AND delivered_at IS NULL")
    op.create_index("notices_unrouted", "notices", ["at", "id"], sqlite_where=unrouted, postgresql_where=unrouted)
    op.create_table(
        "deliveries",
        sa.Column("id", BIG, nullable=False),
        sa.Column("notice", BIG, nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("batch", sa.Text(), nullable=False, comment="which message carries it; empty before the first attempt"),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="begun"),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("done_at", TIME),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="deliveries_pk"),
        sa.ForeignKeyConstraint(["notice"], ["notices.id"], name="deliveries_notice_fk"),
        sa.UniqueConstraint("notice", "channel", name="deliveries_notice_channel_unique"),
    )
    undone = sa.text("done_at IS NULL")
    op.create_index("deliveries_undone", "deliveries", ["channel", "due_at"], sqlite_where=undone, postgresql_where=undone)
    op.create_table(
        "kept",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name="kept_pk"),
    )
    op.create_table(
        "alerts",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("said_at", TIME, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="alerts_pk"),
    )
    if op.get_bind().dialect.name == "postgresql":
        for table, column in (("deliveries", "channel"), ("kept", "key"), ("alerts", "fingerprint")):
            op.execute(f'ALTER TABLE {table} ALTER COLUMN {column} TYPE text COLLATE "C"')
