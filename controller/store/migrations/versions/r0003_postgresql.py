"""PostgreSQL: a receipt for each change, the guards that SQLite has, and names that sort by code point."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NAMES = {
    "models": ("name",), "cycles": ("model",), "versions": ("model",), "events": ("model",), "notices": ("model", "key"),
    "incident_models": ("model",), "incidents": ("kind", "source", "subject"),
}
GUARDS = {
    "events_no_update": ("events", "UPDATE", "ROW", "", "events are append-only"),
    "events_no_delete": ("events", "DELETE", "ROW", "", "events are append-only"),
    "events_no_truncate": ("events", "TRUNCATE", "STATEMENT", "", "events are append-only"),
    "versions_digest_fixed": (
        "versions", "UPDATE", "ROW",
        "WHEN (NEW.digest <> OLD.digest OR NEW.number <> OLD.number OR NEW.model <> OLD.model)",
        "the digest of a version never changes",
    ),
    "cycles_stay_closed": ("cycles", "UPDATE", "ROW", "WHEN (OLD.outcome IS NOT NULL)", "a closed cycle never changes"),
    "leadership_epoch_grows": (
        "leadership", "UPDATE", "ROW", "WHEN (NEW.epoch < OLD.epoch)", "the epoch never goes back",
    ),
}


def upgrade() -> None:
    comment = "of the last change, by which its writer knows it again (PostgreSQL)"
    op.add_column("leadership", sa.Column("receipt", sa.Text(), comment=comment))
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in NAMES.items():
        for column in columns:
            op.execute(f'ALTER TABLE {table} ALTER COLUMN {column} TYPE text COLLATE "C"')
    op.execute(
        "CREATE FUNCTION ratchet_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for name, (table, event, level, condition, words) in GUARDS.items():
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH {level} {condition} "
            f"EXECUTE FUNCTION ratchet_refuse('{words}')"
        )
