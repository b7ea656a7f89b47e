"""Upgrades from the first release's schema, and backups: dumped, restored and gone on from, on both databases."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from controller_states import NAME, state
from servers.postgres import Postgres

from controller.invariants import InvariantBroken
from controller.recovering import EPOCHS_SKIPPED, GENERATIONS_SKIPPED, NUMBERS_SKIPPED
from controller.state import Event, Phase
from controller.store import migrate as migrate_module
from controller.store.port import Commit, StoreError
from controller.store.sql import SqlStore, open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
REPOSITORY = Path(__file__).parents[3]


class Place:
    """A database of one kind, and how its owner copies it."""

    def __init__(self, folder: Path, server: Postgres | None) -> None:
        self.folder, self.server = folder, server
        self.name = server.clean_database() if server else ""

    @property
    def url(self) -> str:
        return self.server.url(self.name) if self.server else f"sqlite:///{self.folder}/state.db"

    @property
    def password_file(self) -> Path | None:
        return self.server.password_file if self.server else None

    def open(self) -> SqlStore:
        return open_store(self.url, self.password_file)

    def engine(self) -> sa.Engine:
        plain = self.url.replace("postgresql:", "postgresql+psycopg:")
        given = {"password": self.server.password_file.read_text().strip()} if self.server else {}
        return sa.create_engine(plain, connect_args=given)

    def back_up(self) -> Path:
        copy = self.folder / "backup"
        if self.server is None:
            with closing(sqlite3.connect(self.folder / "state.db")) as db, closing(sqlite3.connect(copy)) as to:
                db.backup(to)
        else:
            self._run("pg_dump", "-Fc", "-f", str(copy), self.name)
        return copy

    def restore(self, copy: Path) -> None:
        """As docs/postgresql.md says: over an empty database, and for SQLite without the log of the old one."""
        if self.server is None:
            for name in ("state.db-wal", "state.db-shm"):
                (self.folder / name).unlink(missing_ok=True)
            shutil.copyfile(copy, self.folder / "state.db")
            return
        self.server.clean_database()
        self._run("pg_restore", "--no-owner", "--clean", "--if-exists", "-d", self.name, str(copy))

    def _run(self, name: str, *args: str) -> None:
        assert self.server is not None
        subprocess.run([self.server.command(name), *args], env=self.server.env(), check=True, timeout=60)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Place(home, request.getfixturevalue("postgres") if request.param == "postgresql" else None)


FIRST_RELEASE = [
    """INSERT INTO models (name, row_version, policy_digest, champion, phase, document) VALUES ('flight-late', 7, 'p', 1, 'queued',
    '{"schema":1,"value":{"name":"flight-late","row_version":7,"policy":"{}","policy_digest":"p","created_at":"2026-01-01T00:00:00Z",
    "champion":1,"next_version":2,"next_cycle":3}}')""",
    """INSERT INTO versions (model, number, digest, status, created_at, document) VALUES ('flight-late', 1, 'sha256:1', 'champion',
    '2026-01-01 00:00:00+00', '{"schema":1,"value":{"model":"flight-late","number":1,"digest":"sha256:1","status":"champion",
    "created_at":"2026-01-01T00:00:00Z","cycle":1}}')""",
    """INSERT INTO cycles (model, number, phase, outcome, opened_at, closed_at, document) VALUES ('flight-late', 2, 'queued', NULL,
    '2026-01-02 00:00:00+00', NULL, '{"schema":1,"value":{"model":"flight-late","number":2,"phase":"queued","sentence":"queued",
    "cause":"person: asked","opened_at":"2026-01-02T00:00:00Z","phase_since":"2026-01-02T00:00:00Z"}}')""",
    """INSERT INTO events (model, kind, sentence, at, cycle, actor, data) VALUES ('flight-late', 'cycle.opened', 'opens',
    '2026-01-02 00:00:00+00', 2, 'ratchet', '{"schema":1,"value":{}}')""",
    """INSERT INTO notices (key, model, kind, text, at, attempts, delivered_at) VALUES ('k', 'flight-late', 'cycle.opened', 'opens',
    '2026-01-02 00:00:00+00', 1, NULL)""",
    "UPDATE leadership SET holder = 'old:1:1', epoch = 5, expires_at = '2026-01-02 00:00:00+00'",
]


def test_a_database_of_the_first_release_is_brought_to_this_one(place: Place) -> None:
    """With all its rows, in one go; who led before is fenced, and the open cycle goes on."""
    engine = place.engine()
    with engine.begin() as db:
        config = migrate_module._config()
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        for statement in FIRST_RELEASE:
            db.exec_driver_sql(statement if place.server else statement.replace("+00'", "'"))
    engine.dispose()
    store = place.open()
    (found,) = store.load_all()
    assert (found.name, found.champion, found.row_version, found.versions[1].digest) == (NAME, 1, 7, "sha256:1")
    assert found.cycle is not None
    assert (found.cycle.number, found.cycle.phase) == (2, Phase.QUEUED)
    assert [event.sentence for event in store.events()] == ["opens"]
    assert [notice.key for notice in store.pending_notices()] == ["k"]
    epoch = store.acquire("new", None, 60)
    assert epoch is not None
    assert epoch > 5
    told = Event(model=NAME, kind="a.b", sentence="goes on", at=NOW)
    assert store.commit(epoch, Commit(model=found, events=[told])).row_version == 8
    assert [event.sentence for event in store.events()] == ["opens", "goes on"]
    with pytest.raises((InvariantBroken, StoreError), match="append-only"):
        store._db.write(lambda db: db.exec_driver_sql("DELETE FROM events"))
    store.close()


def test_an_upgrade_waits_until_nobody_leads(postgres: Postgres, tmp_path: Path) -> None:
    """A daemon of the older release may be leading, and knows nothing of the new schema."""
    place = Place(tmp_path, postgres)
    engine = place.engine()
    with engine.begin() as db:
        config = migrate_module._config()
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        db.exec_driver_sql("UPDATE leadership SET holder = 'old:1:1', epoch = 5, expires_at = now() + interval '1 min'")
    with pytest.raises(StoreError, match="old:1:1 leads on it; stop all daemons"):
        place.open()
    with engine.begin() as db:
        db.exec_driver_sql("UPDATE leadership SET expires_at = now()")
    place.open().close()
    engine.dispose()


def test_a_restored_backup_goes_on_where_it_was(place: Place) -> None:
    """Everything is there, guards and counters too: the next event, epoch and row version are greater than those before."""
    store = place.open()
    epoch = store.acquire("a", None, 0.01)
    assert epoch is not None
    made = store.create(
        epoch, replace(state(Phase.TRAINING), row_version=0), [Event(model=NAME, kind="a.b", sentence="1", at=NOW)]
    )
    last = store.events()[-1].seq
    store.close()
    place.restore(place.back_up())
    store = place.open()
    assert list(store.load_all()) == [made]
    newer = _lead(store)
    assert newer > epoch
    told = Event(model=NAME, kind="a.b", sentence="2", at=NOW)
    assert store.commit(newer, Commit(model=made, events=[told])).row_version == made.row_version + 1
    assert store.events()[-1].seq > last
    with pytest.raises((InvariantBroken, StoreError), match="append-only"):
        store._db.write(lambda db: db.exec_driver_sql("UPDATE events SET sentence = 'x'"))
    store.close()


def _lead(store: SqlStore) -> int:
    epoch = None
    while epoch is None:
        epoch = store.acquire("b", None, 60)
    return epoch


def test_recover_counts_far_beyond_what_a_stale_backup_lost(place: Place) -> None:
    """`ratchet recover` refuses while a daemon leads; then numbers, generations and the epoch are beyond any that was given out since."""
    store = place.open()
    epoch = store.acquire("a", None, 600)
    assert epoch is not None
    made = store.create(epoch, replace(state(Phase.TRAINING), row_version=0), [])
    if place.server is not None:
        assert "a leads on this database" in _recover(place, code=1)
    store.release("a")
    store.close()
    assert f"{NAME}: " in _recover(place)
    store = place.open()
    after = store.load(NAME)
    assert after is not None
    assert after.plan is not None
    assert made.plan is not None
    assert after.cycle is None
    assert after.champion == made.champion
    assert after.next_version == made.next_version + NUMBERS_SKIPPED
    assert after.next_cycle == made.next_cycle + NUMBERS_SKIPPED
    assert after.plan.generation > made.plan.generation + GENERATIONS_SKIPPED - 1
    assert _lead(store) > epoch + EPOCHS_SKIPPED
    assert store.events(newest=True)[0].kind == "model.recovered"
    store.close()


def _recover(place: Place, code: int = 0) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
    env |= {"RATCHET_HOME": str(place.folder), "RATCHET_DATABASE": place.url}
    if place.password_file is not None:
        env["RATCHET_DATABASE_PASSWORD_FILE"] = str(place.password_file)
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli.main", "recover", "--reason", "disk lost", "--yes"], cwd=REPOSITORY,
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
