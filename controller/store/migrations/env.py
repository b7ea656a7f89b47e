"""What Alembic runs for each command: the migrations, on the connection and in the transaction of `controller.store.migrate`.

It configures no logging and reads no ini file, because it runs inside the daemon.
"""

from alembic import context

from controller.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Both databases can roll back DDL; Alembic does not assume so of SQLite.
    transactional_ddl=True,
    # SQLite changes columns only by copying the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
