"""Incidents, and which models are in them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "incidents",
        sa.Column("id", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="incidents_pk"),
    )
    op.create_index("incidents_kind_source_subject", "incidents", ["kind", "source", "subject"])
    op.create_table(
        "incident_models",
        sa.Column("incident", BIG, autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False, comment="no foreign key: incidents outlive their models"),
        sa.Column("joined_at", TIME, nullable=False),
        sa.Column("left_at", TIME, comment="null while it has the fault"),
        sa.PrimaryKeyConstraint("incident", "model", name="incident_models_pk"),
        sa.ForeignKeyConstraint(["incident"], ["incidents.id"], name="incident_models_incident_fk"),
    )
