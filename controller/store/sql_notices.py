"""The outbox in the SQL store: which channel has still to be told what; and what notifiers and hooks remember."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from controller.state import Delivery, NoticeRecord, ToldAlert
from controller.store import tables as t
from controller.store.database import Database
from controller.store.port import NoticeStore
from controller.store.rows import alert_of, alert_values, delivery_of, notice_of

_CHUNK = 400
"""Keys in one query; a database takes only so many parameters."""


class SqlNotices(NoticeStore):
    """The part of the SQL store that has to do with telling people."""

    _where: str

    _db: Database

    @abstractmethod
    def check_led(self, db: Connection) -> None:
        """Raises FencedError if this store object took the lease and lost it. Locks the leadership row: writers run one after the other
        where the database would let them look side by side."""

    def pending_notices(self, limit: int = 100) -> Sequence[NoticeRecord]:
        return self._notices(t.notices.c.delivered_at.is_(None), limit)

    def unrouted_notices(self, limit: int = 1000) -> Sequence[NoticeRecord]:
        return self._notices(sa.and_(t.notices.c.routed_at.is_(None), t.notices.c.delivered_at.is_(None)), limit)

    def _notices(self, which: sa.ColumnElement[bool], limit: int) -> list[NoticeRecord]:
        query = sa.select(t.notices).where(which).order_by(t.notices.c.at, t.notices.c.id).limit(limit)
        return self._db.read(lambda db: [notice_of(row, where=self._where) for row in db.execute(query)])

    def route_notices(self, routes: Mapping[str, Sequence[str]], at: datetime) -> None:
        def write(db: Connection) -> None:
            self.check_led(db)
            for keys in _chunks(list(routes)):
                _route(db, keys, routes, at)

        self._db.write(write)

    def waiting(self) -> Mapping[str, int]:
        undone = t.deliveries.c.done_at.is_(None)
        query = sa.select(t.deliveries.c.channel, sa.func.count()).where(undone).group_by(t.deliveries.c.channel)
        return self._db.read(lambda db: {row[0]: row[1] for row in db.execute(query)})

    def due_deliveries(self, channel: str, now: datetime, limit: int = 1000) -> Sequence[Delivery]:
        d, n = t.deliveries.c, t.notices.c
        query = (
            sa.select(t.notices, d.channel, d.due_at, d.attempts, d.batch, d.error)
            .join_from(t.deliveries, t.notices, d.notice == n.id)
            .where(d.channel == channel, d.done_at.is_(None), sa.or_(d.due_at <= now, d.attempts == 0))
            .order_by(n.at, n.id)
            .limit(limit)
        )
        return self._db.read(lambda db: [delivery_of(row, where=self._where) for row in db.execute(query)])

    def begin_deliveries(self, channel: str, keys: Sequence[str], batch: str) -> None:
        def write(db: Connection) -> None:
            self.check_led(db)
            for ids in _ids(db, keys):
                marks = {"attempts": t.deliveries.c.attempts + 1, "batch": batch}
                db.execute(sa.update(t.deliveries).where(_undone(channel, ids)).values(marks))

        self._db.write(write)

    def end_deliveries(
        self,
        channel: str,
        keys: Sequence[str],
        *,
        at: datetime,
        done: bool,
        due_at: datetime | None = None,
        error: str = "",
    ) -> None:
        marks = {"error": error, **({"done_at": at} if done else {}), **({"due_at": due_at} if due_at else {})}

        def write(db: Connection) -> None:
            self.check_led(db)
            for ids in _ids(db, keys):
                db.execute(sa.update(t.deliveries).where(_undone(channel, ids)).values(marks))
                if done:
                    _mark_told(db, ids, at)

        self._db.write(write)

    def kept(self, key: str) -> str | None:
        query = sa.select(t.kept.c.value).where(t.kept.c.key == key)

        def read(db: Connection) -> str | None:
            value: str | None = db.scalar(query)
            return value

        return self._db.read(read)

    def keep(self, key: str, value: str, at: datetime) -> None:
        def write(db: Connection) -> None:
            self.check_led(db)
            if not db.execute(sa.update(t.kept).where(t.kept.c.key == key).values(value=value, at=at)).rowcount:
                db.execute(sa.insert(t.kept).values(key=key, value=value, at=at))

        self._db.write(write)

    def keep_once(self, key: str, value: str, at: datetime) -> bool:
        def write(db: Connection) -> bool:
            self.check_led(db)
            if db.scalar(sa.select(t.kept.c.key).where(t.kept.c.key == key)) is not None:
                return False
            db.execute(sa.insert(t.kept).values(key=key, value=value, at=at))
            return True

        return self._db.write(write)

    def alerts(self) -> Sequence[ToldAlert]:
        query = sa.select(t.alerts).order_by(t.alerts.c.fingerprint)
        return self._db.read(lambda db: [alert_of(row, where=self._where) for row in db.execute(query)])

    def put_alerts(self, alerts: Sequence[ToldAlert], drop: Sequence[str] = ()) -> None:
        rows = {alert.fingerprint: alert_values(alert) for alert in alerts}

        def write(db: Connection) -> None:
            self.check_led(db)
            for gone in _chunks([*rows, *drop]):
                db.execute(sa.delete(t.alerts).where(t.alerts.c.fingerprint.in_(gone)))
            if rows:
                db.execute(sa.insert(t.alerts), list(rows.values()))

        self._db.write(write)

    def forget(self, before: datetime) -> None:
        def write(db: Connection) -> None:
            self.check_led(db)
            db.execute(sa.delete(t.deliveries).where(t.deliveries.c.done_at < before))
            db.execute(sa.delete(t.kept).where(t.kept.c.at < before))

        self._db.write(write)


def _route(db: Connection, keys: Sequence[str], routes: Mapping[str, Sequence[str]], at: datetime) -> None:
    unrouted = sa.and_(t.notices.c.key.in_(keys), t.notices.c.routed_at.is_(None))
    found = db.execute(sa.select(t.notices.c.id, t.notices.c.key, t.notices.c.at).where(unrouted)).all()
    rows = [
        {"notice": n.id, "channel": channel, "batch": "", "attempts": 0, "due_at": n.at, "error": ""}
        for n in found
        for channel in dict.fromkeys(routes[n.key])
    ]
    if rows:
        db.execute(sa.insert(t.deliveries), rows)
    for told, delivered_at in ((True, None), (False, at)):
        ids = [n.id for n in found if bool(routes[n.key]) is told]
        marks = {"routed_at": at, "delivered_at": delivered_at}
        db.execute(sa.update(t.notices).where(t.notices.c.id.in_(ids)).values(marks))


def _mark_told(db: Connection, ids: Sequence[int], at: datetime) -> None:
    """Those of these notices that no channel has yet to be told are done."""
    mine, undone = t.deliveries.c.notice.in_(ids), t.deliveries.c.done_at.is_(None)
    left = sa.select(t.deliveries.c.notice).where(mine, undone)
    told = sa.and_(t.notices.c.id.in_(ids), t.notices.c.id.not_in(left))
    db.execute(sa.update(t.notices).where(told).values(delivered_at=at))


def forget_told(db: Connection, model: str) -> None:
    """The notices of a model that was deleted, but for those that are still to be told."""
    told = sa.select(t.notices.c.id).where(t.notices.c.model == model, t.notices.c.delivered_at.is_not(None))
    db.execute(sa.delete(t.deliveries).where(t.deliveries.c.notice.in_(told)))
    db.execute(sa.delete(t.notices).where(t.notices.c.id.in_(told)))


def _ids(db: Connection, keys: Sequence[str]) -> Iterable[list[int]]:
    for some in _chunks(keys):
        yield list(db.scalars(sa.select(t.notices.c.id).where(t.notices.c.key.in_(some))))


def _undone(channel: str, ids: Sequence[int]) -> sa.ColumnElement[bool]:
    return sa.and_(t.deliveries.c.channel == channel, t.deliveries.c.notice.in_(ids), t.deliveries.c.done_at.is_(None))


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
