"""Incidents in the SQL store: who joins and who leaves, inside the transaction of the commit that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from controller.incidents import Change, join, leave, may_join
from controller.state import Event, Incident, KnownFault, NoticeRecord
from controller.store import tables as t
from controller.store.rows import incident_of, incident_values


def read_incidents(db: Connection, *, open_only: bool, limit: int, where: str) -> Sequence[Incident]:
    """Newest first."""
    query = sa.select(t.incidents.c.id, t.incidents.c.document).order_by(t.incidents.c.id.desc()).limit(limit)
    if open_only:
        query = query.where(t.incidents.c.closed_at.is_(None))
    return [incident_of(row, where=where) for row in db.execute(query)]


def write_faults(
    db: Connection, model: str, found: Sequence[KnownFault], gone: Sequence[KnownFault], *, where: str
) -> tuple[list[Event], list[NoticeRecord]]:
    """Let the model join and leave incidents; what is to be recorded and told of it."""
    events: list[Event] = []
    notices: list[NoticeRecord] = []
    for fault, joins in [*((fault, True) for fault in found), *((fault, False) for fault in gone)]:
        at = fault.found_at if joins else fault.absent_at or fault.found_at
        change = _join(db, fault, model, where) if joins else _leave(db, fault, model, at, where)
        if change is not None:
            told = _keep(db, change, model, at, joins=joins)
            events += told.events(model, at)
            notices += told.notices(model, at)
    return events, notices


def _join(db: Connection, fault: KnownFault, model: str, where: str) -> Change | None:
    known = _newest(db, fault, where)
    incident = known if known is not None and may_join(known, fault) else None
    member = _membership(db, incident, model)
    if member is not None and member.left_at is None:
        return None
    return join(incident, fault, model, is_new=member is None)


def _leave(db: Connection, fault: KnownFault, model: str, at: datetime, where: str) -> Change | None:
    incident = _newest(db, fault, where)
    member = _membership(db, incident, model)
    if incident is None or member is None or member.left_at is not None:
        return None
    return leave(incident, at)


def _newest(db: Connection, fault: KnownFault, where: str) -> Incident | None:
    """The newest incident of the fault, open or closed."""
    same = sa.and_(
        t.incidents.c.kind == fault.kind,
        t.incidents.c.source == fault.source,
        t.incidents.c.subject == fault.subject,
    )
    query = sa.select(t.incidents.c.id, t.incidents.c.document).where(same).order_by(t.incidents.c.id.desc()).limit(1)
    return next((incident_of(row, where=where) for row in db.execute(query)), None)


def _membership(db: Connection, incident: Incident | None, model: str) -> sa.Row[tuple[datetime | None]] | None:
    if incident is None:
        return None
    return db.execute(sa.select(t.incident_models.c.left_at).where(_member(incident, model))).one_or_none()


def _member(incident: Incident, model: str) -> sa.ColumnElement[bool]:
    return sa.and_(t.incident_models.c.incident == incident.id, t.incident_models.c.model == model)


def _keep(db: Connection, change: Change, model: str, at: datetime, *, joins: bool) -> Change:
    """Write the incident and the membership; the change with the incident's id."""
    incident = change.incident
    if incident.id == 0:
        made = db.execute(sa.insert(t.incidents).values(incident_values(incident)))
        assert made.inserted_primary_key is not None
        incident = replace(incident, id=int(made.inserted_primary_key[0]))
    else:
        db.execute(sa.update(t.incidents).where(t.incidents.c.id == incident.id).values(incident_values(incident)))
    left_at = None if joins else at
    known = db.execute(sa.update(t.incident_models).where(_member(incident, model)).values(left_at=left_at))
    if not known.rowcount:
        row = {"incident": incident.id, "model": model, "joined_at": at, "left_at": left_at}
        db.execute(sa.insert(t.incident_models).values(row))
    return replace(change, incident=incident)
