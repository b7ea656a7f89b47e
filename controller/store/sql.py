"""The store on an SQL database: current rows, an append-only event table and an outbox, written in one transaction a commit.

Every writing transaction reads the leadership row first, under the lock that it holds to its end (SQLite: the write lock; elsewhere
`FOR UPDATE`). So writers run one after the other, and a leader that was replaced finds out before it writes (invariant 6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from controller.incidents import NO_MODEL
from controller.state import Cycle, Event, Incident, ModelState, NoticeRecord, Version
from controller.store import tables as t
from controller.store.address import parse_address
from controller.store.database import Database
from controller.store.engine import SqliteDatabase
from controller.store.lease import Lease
from controller.store.migrate import migrate, revision_of
from controller.store.port import Commit, ConflictError, Record, Store, StoreError
from controller.store.postgres import PostgresDatabase
from controller.store.rows import (
    cycle_of,
    cycle_values,
    event_of,
    event_values,
    model_of,
    model_values,
    notice_values,
    version_of,
    version_values,
)
from controller.store.rules import Stored, check_conflict, check_invariants, stored_as
from controller.store.sql_incidents import read_incidents, write_faults
from controller.store.sql_notices import SqlNotices, forget_told

CHANGED_MAX = 30
"""Models that are read one by one; where more have changed, all are read at once."""


def open_store(url: str, password_file: Path | None = None) -> SqlStore:
    """The store at `url`, created or brought to this release's schema if need be. Raises StoreError, CorruptStoreError."""
    migrate(url, password_file)
    return SqlStore(url, password_file)


class SqlStore(SqlNotices, Store):
    """A migrated database; `open_store` migrates first. May be shared between threads and opened by several processes."""

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        address = parse_address(url, password_file)
        self._db: Database = SqliteDatabase(address) if isinstance(address, Path) else PostgresDatabase(address)
        self._where = self._db.where
        self._led: int | None = None
        """The epoch that was taken through this object last, and not released. While it leads nobody else writes, so what it read of a
        model at a row version stays true of that version."""
        self._known: Mapping[str, ModelState] = {}
        self._lives = 0
        """Grows whenever a row version may come to mean something else."""
        self._remembering = Lock()
        try:
            self._check_schema()
        except StoreError:
            self.close()
            raise

    def skip_epochs(self, epoch: int, by: int) -> None:
        """Let the epoch grow beyond any that was handed out before a backup was restored. The lease must be taken anew."""

        def write(db: Connection) -> None:
            lease = _lease(db)
            lease.check(epoch)
            _write_lease(db, replace(lease, holder=None, expires_at=None, epoch=epoch + by))

        self._db.write(write)

    @property
    def shared(self) -> bool:
        """Whether daemons on several machines can use it at once."""
        return isinstance(self._db, PostgresDatabase)

    def _check_schema(self) -> None:
        found = self._db.read(revision_of)
        if found != t.REVISION:
            raise StoreError(
                f"{self._where}: the schema is at {found}, this release needs {t.REVISION}; migrate it first"
            )

    # leadership
    def acquire(self, holder: str, now: datetime | None, ttl_s: float) -> int | None:
        def take(db: Connection) -> int | None:
            lease = _lease(db).taken_by(holder, now or self._db.now(db), ttl_s)
            if lease is None:
                return None
            _write_lease(db, lease)
            return lease.epoch

        if self._is_anothers(holder, now):  # without its lock, in which the leader works
            return None
        epoch = self._db.write(take)
        if epoch != self._led:
            self._forget_known()
        self._led = epoch or self._led
        return epoch

    def _forget_known(self) -> None:
        with self._remembering:
            self._lives += 1
            self._known = {}

    def _is_anothers(self, holder: str, now: datetime | None) -> bool:
        def look(db: Connection) -> bool:
            lease = _lease(db, wait=False)
            return lease.holder not in (None, holder) and lease.taken_by(holder, now or self._db.now(db), 1.0) is None

        return self._db.read(look)

    def release(self, holder: str) -> None:
        def give_up(db: Connection) -> None:
            _write_lease(db, _lease(db).released_by(holder))

        self._db.write(give_up)
        self._led = None
        self._forget_known()

    def holder(self) -> str | None:
        return self._db.read(lambda db: _lease(db, wait=False).holder)

    def check_led(self, db: Connection) -> None:
        lease = _lease(db)
        if self._led is not None:
            lease.check(self._led)

    # reading
    def names(self) -> Sequence[str]:
        return self._db.read(lambda db: list(db.scalars(sa.select(t.models.c.name).order_by(t.models.c.name))))

    def load(self, name: str) -> ModelState | None:
        return self._db.read(lambda db: next(iter(self._load(db, name)), None))

    def load_all(self) -> Sequence[ModelState]:
        if self._led is None:
            return self._db.read(lambda db: self._load(db, None))
        known, lives = self._known, self._lives
        states = self._db.read(lambda db: self._load_changed(db, known))
        with self._remembering:
            if lives == self._lives:  # else a deleted model's state could pass for that of one made since
                self._known = {state.name: state for state in states}
        return states

    def _load_changed(self, db: Connection, known: Mapping[str, ModelState]) -> list[ModelState]:
        """All models; those that are known at their present row version are not read again."""
        query = sa.select(t.models.c.name, t.models.c.row_version).order_by(t.models.c.name)
        present: dict[str, int] = {row.name: row.row_version for row in db.execute(query)}
        kept = {n: known[n] for n, version in present.items() if n in known and known[n].row_version == version}
        changed = [name for name in present if name not in kept]
        if len(changed) > CHANGED_MAX:
            read = self._load(db, None)
        else:
            read = [state for name in changed for state in self._load(db, name)]
        states = {**kept, **{state.name: state for state in read}}
        return [states[name] for name in present]

    def _load(self, db: Connection, name: str | None) -> list[ModelState]:
        """One model or all, in three queries."""
        of_model = sa.select(t.models.c.name, t.models.c.document).order_by(t.models.c.name)
        of_cycle = sa.select(t.cycles.c.model, t.cycles.c.number, t.cycles.c.document).where(
            t.cycles.c.outcome.is_(None)
        )
        of_version = sa.select(t.versions.c.model, t.versions.c.number, t.versions.c.document).order_by(
            t.versions.c.number
        )
        if name is not None:
            of_model = of_model.where(t.models.c.name == name)
            of_cycle = of_cycle.where(t.cycles.c.model == name)
            of_version = of_version.where(t.versions.c.model == name)
        open_cycle = {row.model: cycle_of(row, where=self._where) for row in db.execute(of_cycle)}
        numbered: defaultdict[str, dict[int, Version]] = defaultdict(dict)
        for row in db.execute(of_version):
            numbered[row.model][row.number] = version_of(row, where=self._where)
        return [
            model_of(row, open_cycle.get(row.name), numbered[row.name], where=self._where)
            for row in db.execute(of_model)
        ]

    def cycles(self, name: str | None = None, *, limit: int = 100) -> Sequence[Cycle]:
        query = sa.select(t.cycles.c.model, t.cycles.c.number, t.cycles.c.document).limit(limit)
        if name is None:
            query = query.order_by(t.cycles.c.opened_at.desc(), t.cycles.c.model, t.cycles.c.number.desc())
        else:
            query = query.where(t.cycles.c.model == name).order_by(t.cycles.c.number.desc())
        return self._db.read(lambda db: [cycle_of(row, where=self._where) for row in db.execute(query)])

    def open_cycles(self) -> int:
        query = sa.select(sa.func.count()).select_from(t.cycles).where(t.cycles.c.outcome.is_(None))
        return self._db.read(lambda db: db.scalars(query).one())

    def events(
        self, name: str | None = None, *, after: int = 0, limit: int = 100, newest: bool = False
    ) -> Sequence[Event]:
        query = sa.select(t.events).where(t.events.c.seq > after).limit(limit)
        if name is not None:
            query = query.where(t.events.c.model == name)
        query = query.order_by(t.events.c.seq.desc() if newest else t.events.c.seq)
        found = self._db.read(lambda db: [event_of(row, where=self._where) for row in db.execute(query)])
        return found[::-1] if newest else found

    def incidents(self, *, open_only: bool = False, limit: int = 100) -> Sequence[Incident]:
        return self._db.read(lambda db: read_incidents(db, open_only=open_only, limit=limit, where=self._where))

    # writing
    def create(self, epoch: int, state: ModelState, events: Sequence[Event]) -> ModelState:
        def write(db: Connection) -> ModelState:
            _lease(db).check(epoch)
            check_conflict(state.name, _stored(db, state.name), None)
            after = stored_as(state)
            check_invariants(Stored(), after, None)
            db.execute(sa.insert(t.models).values(model_values(after)))
            if after.cycle is not None:
                db.execute(sa.insert(t.cycles).values(cycle_values(after.cycle)))
            _write_versions(db, after)
            _append(db, events)
            return after

        return self._db.write(write)

    def commit(self, epoch: int, commit: Commit) -> ModelState:
        name = commit.model.name

        def write(db: Connection) -> ModelState:
            _lease(db).check(epoch)
            stored = _stored(db, name)
            check_conflict(name, stored, commit.model.row_version)
            check_invariants(stored, commit.model, commit.closed)
            after = stored_as(commit.model)
            db.execute(sa.update(t.models).where(t.models.c.name == name).values(model_values(after)))
            if (cycle := commit.closed or after.cycle) is not None:
                _write_cycle(db, cycle, is_new=stored.open_cycle is None)
            _write_versions(db, after)
            told, notices = write_faults(db, name, commit.found, commit.gone, where=self._where)
            _append(db, [*commit.events, *told])
            _enqueue(db, [*commit.notices, *notices])
            return after

        return self._db.write(write)

    def record(self, epoch: int, commit: Record) -> None:
        def write(db: Connection) -> None:
            _lease(db).check(epoch)
            told, notices = write_faults(db, NO_MODEL, commit.found, commit.gone, where=self._where)
            _append(db, [*commit.events, *told])
            _enqueue(db, [*commit.notices, *notices])

        self._db.write(write)

    def delete(self, epoch: int, name: str, events: Sequence[Event]) -> None:
        def write(db: Connection) -> None:
            _lease(db).check(epoch)
            if _stored(db, name).row_version is None:
                raise ConflictError(f"{name}: there is no such model; was it deleted?")
            at = events[0].at if events else None
            faults = [replace(f, absent_at=at or f.found_at) for state in self._load(db, name) for f in state.faults]
            told, notices = write_faults(db, name, (), faults, where=self._where)
            forget_told(db, name)
            db.execute(sa.delete(t.cycles).where(t.cycles.c.model == name))
            db.execute(sa.delete(t.versions).where(t.versions.c.model == name))
            db.execute(sa.delete(t.models).where(t.models.c.name == name))
            _append(db, [*events, *told])
            _enqueue(db, notices)

        self._forget_known()  # what is read from here on is not remembered beyond the end
        self._db.write(write)
        self._forget_known()

    def close(self) -> None:
        self._db.close()


def _lease(db: Connection, *, wait: bool = True) -> Lease:
    """The leadership row; with `wait` locked until the transaction ends."""
    query = sa.select(t.leadership.c.holder, t.leadership.c.epoch, t.leadership.c.expires_at)
    row = db.execute(query.with_for_update() if wait else query).one()
    return Lease(holder=row.holder, epoch=row.epoch, expires_at=row.expires_at)


def _write_lease(db: Connection, lease: Lease) -> None:
    db.execute(sa.update(t.leadership).values(holder=lease.holder, epoch=lease.epoch, expires_at=lease.expires_at))


def _stored(db: Connection, name: str) -> Stored:
    open_number = sa.case((t.cycles.c.outcome.is_(None), t.cycles.c.number))
    numbers = sa.select(sa.func.max(open_number), sa.func.max(t.cycles.c.number)).where(t.cycles.c.model == name)
    open_cycle, last_cycle = db.execute(numbers).one()
    digests = sa.select(t.versions.c.number, t.versions.c.digest).where(t.versions.c.model == name)
    return Stored(
        row_version=db.scalar(sa.select(t.models.c.row_version).where(t.models.c.name == name)),
        open_cycle=open_cycle,
        last_cycle=last_cycle or 0,
        digests={row.number: row.digest for row in db.execute(digests)},
    )


def _write_cycle(db: Connection, cycle: Cycle, *, is_new: bool) -> None:
    if is_new:
        db.execute(sa.insert(t.cycles).values(cycle_values(cycle)))
    else:
        this = sa.and_(t.cycles.c.model == cycle.model, t.cycles.c.number == cycle.number)
        db.execute(sa.update(t.cycles).where(this).values(cycle_values(cycle)))


def _write_versions(db: Connection, state: ModelState) -> None:
    """Insert the new and update the changed, and leave the others alone."""
    query = sa.select(t.versions.c.number, t.versions.c.document).where(t.versions.c.model == state.name)
    known: dict[int, str] = {row.number: row.document for row in db.execute(query)}
    values = [version_values(version) for version in state.versions.values()]
    if new := [row for row in values if row["number"] not in known]:
        db.execute(sa.insert(t.versions), new)
    for row in values:
        if known.get(row["number"], row["document"]) != row["document"]:
            this = sa.and_(t.versions.c.model == state.name, t.versions.c.number == row["number"])
            db.execute(sa.update(t.versions).where(this).values(row))


def _append(db: Connection, new: Iterable[Event]) -> None:
    if rows := [event_values(event) for event in new]:
        db.execute(sa.insert(t.events), rows)


def _enqueue(db: Connection, new: Iterable[NoticeRecord]) -> None:
    """Those whose key was never seen; the lock makes looking first safe."""
    rows: dict[str, Any] = {}
    for notice in new:
        rows.setdefault(notice.key, notice_values(notice))
    if rows:
        seen = set(db.scalars(sa.select(t.notices.c.key).where(t.notices.c.key.in_(rows))))
        if unseen := [row for key, row in rows.items() if key not in seen]:
            db.execute(sa.insert(t.notices), unseen)
