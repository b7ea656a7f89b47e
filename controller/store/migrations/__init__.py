"""Alembic's scripts for the state database; run by `controller.store.migrate` only."""
