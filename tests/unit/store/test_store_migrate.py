"""Migrations: they make exactly the tables of the code, never damage a database, and leave a way back."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import controller.store
from controller.state import ModelState
from controller.store import migrate as migrate_module
from controller.store import tables
from controller.store.engine import make_engine
from controller.store.migrate import migrate
from controller.store.port import CorruptStoreError, StoreError
from controller.store.sql import SqlStore, open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATE = ModelState(name="m", policy="{}", policy_digest="d", created_at=NOW)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of today's schema that holds one model."""
    made = tmp_path / "home" / "state.db"
    store = open_store(f"sqlite:///{made}")
    epoch = store.acquire("a", NOW, 60)
    assert epoch is not None
    store.create(epoch, STATE, [])
    store.close()
    return made


def url(file: Path) -> str:
    return f"sqlite:///{file}"


def schema(file: Path) -> set[tuple[str, str]]:
    """(name, SQL) of all tables, indexes and triggers."""
    with closing(sqlite3.connect(file)) as db:
        return set(db.execute("SELECT name, sql FROM sqlite_master"))


def release(monkeypatch: pytest.MonkeyPatch, folder: Path, upgrade: str) -> None:
    """Let the code be a later release, with one migration `0005` more."""
    scripts = folder / "migrations"
    shutil.copytree(Path(controller.store.__file__).parent / "migrations", scripts, dirs_exist_ok=True)
    text = f"from alembic import op\nrevision = '0005'\ndown_revision = '0004'\ndef upgrade():\n    {upgrade}\n"
    (scripts / "versions" / "r0005_next.py").write_text(text)
    monkeypatch.setattr(migrate_module, "SCRIPTS", str(scripts))
    monkeypatch.setattr(migrate_module, "REVISION", "0005")
    monkeypatch.setattr(tables, "REVISION", "0005")


def test_migrations_make_exactly_the_tables_of_the_code(file: Path) -> None:
    """Alembic finds no difference between what the migrations made and what the code declares."""
    engine = make_engine(file)
    with engine.connect() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        made = {(t, i["name"]): i for t in tables.metadata.tables for i in sa.inspect(db).get_indexes(t)}
    engine.dispose()
    # Alembic does not compare what makes an index partial.
    for table in tables.metadata.tables.values():
        for index in table.indexes:
            found = made[table.name, str(index.name)]["dialect_options"].get("sqlite_where")
            assert predicate(found) == predicate(index.dialect_options["sqlite"]["where"])


def predicate(where: object) -> str:
    """The condition of a partial index, without the table's name."""
    return str(where).split(".")[-1]


def test_the_code_names_the_last_migration() -> None:
    """`REVISION` is the head of the migrations, of which there is one line only."""
    assert ScriptDirectory.from_config(migrate_module._config()).get_heads() == [tables.REVISION]


def test_migrating_again_changes_nothing_and_needs_no_alembic(file: Path) -> None:
    """Starting on an up-to-date database leaves it byte for byte and imports neither Alembic nor the ORM."""
    before = file.read_bytes()
    script = (
        "import sys\nfrom controller.store.sql import open_store\n"
        f"print(open_store({url(file)!r}).names())\n"
        "print([m for m in ('alembic', 'sqlalchemy.orm', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['m']", "[]"]
    assert file.read_bytes() == before


def test_an_upgrade_leaves_a_backup_of_what_was(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before a schema is changed, the old database is copied beside it, whole and usable."""
    release(monkeypatch, tmp_path, "op.execute('CREATE TABLE extra (id INTEGER)')")
    before = schema(file)
    migrate(url(file))
    backup = file.with_name("state.db.before-0005")
    assert schema(backup) == before
    assert {name for name, _ in schema(file) - before} == {"extra"}
    store = SqlStore(url(file))
    assert store.names() == ["m"]
    store.close()
    migrate(url(file))
    assert sorted(p.name for p in file.parent.glob("*before*")) == [backup.name]
    backup.rename(file)
    monkeypatch.undo()
    old = open_store(url(file))
    assert old.names() == ["m"]
    old.close()


def test_a_second_backup_never_covers_the_first(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An upgrade that is tried again keeps the backup of the first attempt."""
    release(monkeypatch, tmp_path, "op.execute('CREATE TABLE extra (id INTEGER)')")
    first = file.with_name("state.db.before-0005")
    first.write_text("precious")
    migrate(url(file))
    assert first.read_text() == "precious"
    assert file.with_name("state.db.before-0005.1").stat().st_size > 0


def test_a_migration_that_fails_leaves_the_old_schema(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All migrations are one transaction: an error in the middle undoes what came before it."""
    release(monkeypatch, tmp_path, "op.execute('CREATE TABLE extra (id INTEGER)'); op.execute('SELECT nonsense')")
    before = schema(file)
    with pytest.raises(StoreError, match=r"state.db: no such column: nonsense"):
        migrate(url(file))
    assert schema(file) == before
    with pytest.raises(StoreError, match="the schema is at 0004, this release needs 0005"):
        SqlStore(url(file))


def test_a_database_of_a_newer_release_is_refused_untouched(file: Path) -> None:
    """An older release does not open what it does not understand, and says which release to install."""
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '0099'")
    before = file.read_bytes()
    with pytest.raises(CorruptStoreError, match=r"state.db: the schema is at 0099.*newer release.*Install"):
        migrate(url(file))
    assert file.read_bytes() == before


def test_a_database_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    """Another program's database is not taken over."""
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as db, db:
        db.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(StoreError, match=r"other.db: holds tables of something else \(photos\)"):
        migrate(url(other))
    assert {name for name, _ in schema(other)} == {"photos"}


def test_a_missing_database_is_not_made_by_opening(tmp_path: Path) -> None:
    """Only `migrate` creates; opening what is not there is an error that says so."""
    with pytest.raises(StoreError, match=r"state.db: there is no such database"):
        SqlStore(url(tmp_path / "state.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("state.db", "is not a database URL"),
        ("postgresql//ratchet:secret@db/ratchet", "is not a database URL"),
        ("postgresql://db/ratchet?password=secret", "must not hold a password"),
        ("postgresql://db/ratchet?options=-csecret", "has the parameter 'options'"),
        ("postgresql://ratchet:secret@db", "names no database"),
        ("postgresql+asyncpg://ratchet:secret@db/ratchet", "names another driver"),
        ("mysql://ratchet:secret@db/ratchet?ssl=secret", "is not supported"),
        ("sqlite://", "names no plain file"),
        ("sqlite:///:memory:", "names no plain file"),
        ("sqlite:////tmp/x.db?mode=ro", "names no plain file"),
    ],
)
def test_a_url_that_cannot_be_served_is_refused(bad: str, message: str) -> None:
    """The message names the setting and what to give, and hides passwords."""
    with pytest.raises(StoreError, match=message) as caught:
        migrate(bad)
    assert "store url" in str(caught.value)
    assert "secret" not in str(caught.value)


def garbage(data: bytes) -> bytes:
    return b"not a database, whatever its name says" * 200


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def overwritten(data: bytes) -> bytes:
    return data[:4096] + b"\xff" * 8192 + data[12288:]


def emptied(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [garbage, truncated, overwritten, emptied])
def test_a_damaged_database_is_named_and_left_as_it_is(file: Path, damage: object) -> None:
    """The error names the file, says how to get going again, and nothing was written to the file or its folder."""
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(
        CorruptStoreError, match=r"state.db: the database is damaged .* put a backup in place"
    ) as caught:
        open_store(url(file))
    assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    """What is no file at all is reported with its path and what to give instead."""
    with pytest.raises(StoreError, match=r"is not a file; name the database file itself"):
        migrate(url(tmp_path))


def test_two_that_start_at_once_on_nothing_both_get_the_same_database(tmp_path: Path) -> None:
    """Creating and migrating is safe to do twice at the same time."""
    file = tmp_path / "state.db"
    script = f"from controller.store.sql import open_store\nopen_store({url(file)!r}).close()"
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(3)]
    outcomes = [(p.communicate(timeout=60)[1], p.returncode) for p in running]
    assert outcomes == [(b"", 0)] * 3
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("state.db")] == []
