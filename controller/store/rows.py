"""Records of `controller.state` to and from rows of `controller.store.tables`. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Row

from controller.state import Cycle, Delivery, Event, Incident, ModelState, NoticeRecord, ToldAlert, Version
from controller.store.codec import decode, encode

Values = dict[str, Any]
AnyRow = Row[*tuple[Any, ...]]


def model_values(state: ModelState) -> Values:
    return {
        "name": state.name,
        "row_version": state.row_version,
        "policy_digest": state.policy_digest,
        "champion": state.champion,
        "phase": state.cycle.phase.value if state.cycle else None,
        "document": encode(replace(state, cycle=None, versions={})),
    }


def cycle_values(cycle: Cycle) -> Values:
    return {
        "model": cycle.model,
        "number": cycle.number,
        "phase": cycle.phase.value,
        "outcome": cycle.outcome.value if cycle.outcome else None,
        "opened_at": cycle.opened_at,
        "closed_at": cycle.closed_at,
        "document": encode(cycle),
    }


def version_values(version: Version) -> Values:
    return {
        "model": version.model,
        "number": version.number,
        "digest": version.digest,
        "status": version.status.value,
        "created_at": version.created_at,
        "document": encode(version),
    }


def event_values(event: Event) -> Values:
    """Without `seq`, which the database gives."""
    return {
        "model": event.model,
        "kind": event.kind,
        "sentence": event.sentence,
        "at": event.at,
        "cycle": event.cycle,
        "actor": event.actor,
        "data": encode(event.data),
    }


def notice_values(notice: NoticeRecord) -> Values:
    return {
        "key": notice.key,
        "model": notice.model,
        "kind": notice.kind,
        "text": notice.text,
        "at": notice.at,
        "data": encode(notice.data),
        "delivered_at": notice.delivered_at,
    }


def incident_values(incident: Incident) -> Values:
    """Without `id`, which the database gives."""
    return {
        "kind": incident.kind,
        "source": incident.source,
        "subject": incident.subject,
        "opened_at": incident.opened_at,
        "closed_at": incident.closed_at,
        "document": encode(replace(incident, id=0)),
    }


def model_of(row: AnyRow, cycle: Cycle | None, versions: dict[int, Version], *, where: str) -> ModelState:
    """Raises CorruptStoreError, as all readers here do."""
    state = decode(ModelState, row.document, where=f"{where}: model {row.name}")
    return replace(state, cycle=cycle, versions=versions)


def cycle_of(row: AnyRow, *, where: str) -> Cycle:
    return decode(Cycle, row.document, where=f"{where}: cycle {row.number} of {row.model}")


def version_of(row: AnyRow, *, where: str) -> Version:
    return decode(Version, row.document, where=f"{where}: version {row.number} of {row.model}")


def event_of(row: AnyRow, *, where: str) -> Event:
    data = decode(dict[str, Any], row.data, where=f"{where}: event {row.seq}")
    return Event(
        model=row.model,
        kind=row.kind,
        sentence=row.sentence,
        at=row.at,
        cycle=row.cycle,
        actor=row.actor,
        data=data,
        seq=row.seq,
    )


def incident_of(row: AnyRow, *, where: str) -> Incident:
    return replace(decode(Incident, row.document, where=f"{where}: incident {row.id}"), id=row.id)


def notice_of(row: AnyRow, *, where: str) -> NoticeRecord:
    return NoticeRecord(
        key=row.key,
        model=row.model,
        kind=row.kind,
        text=row.text,
        at=row.at,
        data=decode(dict[str, Any], row.data, where=f"{where}: notice {row.key}") if row.data else {},
        delivered_at=row.delivered_at,
    )


def delivery_of(row: AnyRow, *, where: str) -> Delivery:
    """Of a row with the columns of its notice."""
    return Delivery(
        notice=notice_of(row, where=where),
        channel=row.channel,
        due_at=row.due_at,
        attempts=row.attempts,
        batch=row.batch,
        error=row.error,
    )


def alert_values(alert: ToldAlert) -> Values:
    return {
        "fingerprint": alert.fingerprint,
        "name": alert.labels.get("alertname", ""),
        "said_at": alert.said_at,
        "document": encode(alert),
    }


def alert_of(row: AnyRow, *, where: str) -> ToldAlert:
    return decode(ToldAlert, row.document, where=f"{where}: alert {row.fingerprint}")
