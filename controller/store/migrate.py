"""Bringing a state database to this release's schema when the daemon starts.

Each migration is one file in `migrations/versions`, written by hand and never changed once released; `tables.REVISION` names the last. All
missing ones run in one transaction, so a kill in the middle leaves the old schema. Alembic (12 MB) is imported only when there
is something to migrate. A damaged database is found before anything opens it for writing, and is left as it was found.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from controller.store.address import parse_address
from controller.store.engine import BUSY_TIMEOUT_S, corrupt, make_engine, reading, wrapped_errors, writing
from controller.store.port import CorruptStoreError, StoreError
from controller.store.postgres import PostgresDatabase
from controller.store.tables import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = "controller.store:migrations"
"""Found by package, so that it works from an installed wheel."""
_ADVISORY_LOCK = 0x7261746368
"""The same number in every release."""


def migrate(url: str, password_file: Path | None = None) -> None:
    """Create the database at `url`, or check it and bring it to this release's schema: an SQLite file after a backup beside it, a
    PostgreSQL database, of which only its owner makes backups, while nobody leads on it.

    Raises CorruptStoreError (damaged, or of a newer release; it is untouched) and StoreError (cannot be read or written now)."""
    address = parse_address(url, password_file)
    if isinstance(address, Path):
        _migrate_file(address)
    else:
        _migrate_server(PostgresDatabase(address))


def _migrate_file(file: Path) -> None:
    with wrapped_errors(file):
        if not file.exists():
            _create_file(file)
        _check_intact(file)
    engine = make_engine(file)
    try:
        with reading(engine, file) as db:
            found = _found(db, str(file))
        if found == REVISION:
            return
        if found is not None:
            _refuse_newer(str(file), found, f"put back the backup that its upgrade left ({file.name}.before-{found})")
            with wrapped_errors(file):
                _back_up(file)
        with writing(engine, file) as db:
            _upgrade(db)
    finally:
        engine.dispose()


def _migrate_server(database: PostgresDatabase) -> None:
    try:
        encoding, found = database.read(
            lambda db: (db.scalar(sa.text("SHOW server_encoding")), _found(db, database.where))
        )
        if encoding != "UTF8":
            raise StoreError(
                f"{database.where}: its encoding is {encoding}; make it with CREATE DATABASE … ENCODING 'UTF8'"
            )
        if found is not None and found != REVISION:
            _refuse_newer(
                database.where, found, "restore the backup that was made before the upgrade (docs/postgresql.md)"
            )
        if found != REVISION:
            database.change_schema(lambda db: _upgrade_server(db, database.where))
    finally:
        database.close()


def _upgrade_server(db: Connection, where: str) -> None:
    """Two that start at once come one after the other. Nobody may lead meanwhile, and who led before writes nothing any more: he may be of
    the release that does not know the new schema."""
    db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    found = _found(db, where)
    if found == REVISION:
        return
    if found is not None:
        leads = "SELECT holder FROM leadership WHERE holder IS NOT NULL AND expires_at > clock_timestamp() FOR UPDATE"
        if holder := db.scalar(sa.text(leads)):
            raise StoreError(
                f"{where}: must be upgraded from {found} to {REVISION}, but {holder} leads on it; stop all daemons, back it up, then "
                "start this one"
            )
        db.execute(sa.text("UPDATE leadership SET holder = NULL, expires_at = NULL, epoch = epoch + 1"))
    _upgrade(db)


def _found(db: Connection, where: str) -> str | None:
    """The revision; None for an empty database. Raises StoreError for one of something else."""
    found = revision_of(db)
    if found is None and (tables := sa.inspect(db).get_table_names()):
        raise StoreError(f"{where}: holds tables of something else ({', '.join(sorted(tables)[:3])}); name another one")
    return found


def revision_of(db: Connection) -> str | None:
    """The migration that the database stands at; None if it has never been migrated."""
    if not sa.inspect(db).has_table("alembic_version"):
        return None
    revision: str | None = db.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _create_file(file: Path) -> None:
    """Put an empty database in place in one move.

    SQLite by itself creates a file of 0 bytes first, and a kill just then would leave one that looks like a lost database."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        with closing(sqlite3.connect(made)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        try:
            os.link(made, file)
        except FileExistsError:
            return  # another process was quicker; both go on with its file


def _check_intact(file: Path) -> None:
    """Raises CorruptStoreError unless the file is a whole SQLite database. Reads all of it (about 1 s a GB), changes nothing."""
    if not file.is_file():
        raise StoreError(f"{file}: is not a file; name the database file itself, such as {file / 'state.db'}")
    if file.stat().st_size == 0:
        raise corrupt(file, "the file is empty")
    uri = f"{file.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise corrupt(file, " ".join(found.split()))


def _refuse_newer(where: str, found: str, way_back: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise CorruptStoreError(
            f"{where}: the schema is at {found}, which this release (up to {REVISION}) does not know: a newer release wrote it. "
            f"Install that release again, or {way_back}"
        )


def _back_up(file: Path) -> None:
    """Copy the database to `<file>.before-<revision>` (never over another: then with a number more)."""
    names = (f"{file.name}.before-{REVISION}{f'.{i}' if i else ''}" for i in count())
    copy = next(path for name in names if not (path := file.with_name(name)).exists())
    part = file.with_name(f".{copy.name}.part")
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
    part.replace(copy)


def _upgrade(db: Connection) -> None:
    from alembic import command

    config = _config()
    config.attributes["connection"] = db
    command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    return config
