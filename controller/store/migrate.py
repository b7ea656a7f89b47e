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

from controller.store.engine import BUSY_TIMEOUT_S, corrupt, make_engine, reading, sqlite_file, wrapped_errors, writing
from controller.store.port import CorruptStoreError, StoreError
from controller.store.tables import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = "controller.store:migrations"
"""Found by package, so that it works from an installed wheel."""


def migrate(url: str) -> None:
    """Create the database at `url`, or check it and bring it to this release's schema, after a backup beside it.

    Raises CorruptStoreError (damaged, or of a newer release; the file is untouched) and StoreError (cannot be read or written now)."""
    file = sqlite_file(url)
    with wrapped_errors(file):
        if not file.exists():
            _create_file(file)
        _check_intact(file)
    engine = make_engine(file)
    try:
        with reading(engine, file) as db:
            found = revision_of(db)
            tables = sa.inspect(db).get_table_names()
        if found == REVISION:
            return
        if found is None and tables:
            raise StoreError(f"{file}: holds tables of something else ({', '.join(tables[:3])}); name another file")
        if found is not None:
            _refuse_newer(file, found)
            with wrapped_errors(file):
                _back_up(file)
        with writing(engine, file) as db:
            _upgrade(db)
    finally:
        engine.dispose()


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


def _refuse_newer(file: Path, found: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise CorruptStoreError(
            f"{file}: the schema is at {found}, which this release (up to {REVISION}) does not know: a newer release wrote it. "
            f"Install that release again, or put back the backup that its upgrade left ({file.name}.before-{found})"
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
