"""Faults of what feeds the models, and incidents: one for each fault, however many models have it. Pure.

A model remembers the faults that it has (`ModelState.faults`); which incident they belong to is for the store to say, inside the commit
that records them, because only there is it certain who was first. What is not observed stays as it is: an incident is closed when the
fault was looked for and not found, twice and `GONE_AFTER` apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from controller.state import Event, FaultOrigin, Incident, KnownFault, NoticeRecord
from policies.durations import about
from policies.signals import Fault, Signal, SignalKind

GONE_AFTER = timedelta(minutes=10)
"""How long a fault of live traffic must not be found before it is gone."""
REJOIN = timedelta(hours=1)
"""A fault that comes back so soon is the same incident."""
NAMES_MAX = 20
"""Models that an incident names; the others are counted."""
ACTOR = "fleet"
"""The actor of events that no single model's decision makes."""
NO_MODEL = "*"
"""Stands for the model in records about what all models share, such as the repository that their policies are followed from."""
LABEL_FAULTS = frozenset({"label_feed_stalled"})
"""Faults that say nothing about the features."""
_WITHOUT_LABELS = frozenset({SignalKind.DRIFT.value, SignalKind.ESTIMATED_PERFORMANCE.value})
_FAULTS = TypeAdapter(tuple[Fault, ...])

Key = tuple[str, str, str]


def key_of(fault: Fault | KnownFault | Incident) -> Key:
    """What the same fault has in common in many models."""
    return fault.kind, fault.source, fault.subject


def faults_of(output: Mapping[str, Any]) -> tuple[Fault, ...]:
    """The faults in a job's result. Raises pydantic.ValidationError if they are something else."""
    return _FAULTS.validate_python(output.get("faults") or ())


# ---------------------------------------------------------------- one model
@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What one look at a model's feed changes."""

    after: tuple[KnownFault, ...]
    found: tuple[KnownFault, ...]
    gone: tuple[KnownFault, ...]


def look(known: Sequence[KnownFault], faults: Iterable[Fault], origin: FaultOrigin, at: datetime) -> Looked:
    """The faults that a model has, after those of one origin were looked for at `at` and only `faults` were found."""
    now = {key_of(fault): fault for fault in faults}
    mine = {key_of(fault): fault for fault in known if fault.origin is origin}
    found = tuple(_known(fault, origin, at) for key, fault in now.items() if key not in mine)
    kept, gone = [], []
    for key, fault in mine.items():
        if key in now:
            kept.append(replace(fault, absent_at=None))
        elif origin is FaultOrigin.PREPARED or (fault.absent_at is not None and at >= fault.absent_at + GONE_AFTER):
            gone.append(replace(fault, absent_at=at))
        else:
            kept.append(replace(fault, absent_at=fault.absent_at or at))
    others = [fault for fault in known if fault.origin is not origin]
    return Looked(after=(*others, *kept, *found), found=found, gone=tuple(gone))


def _known(fault: Fault, origin: FaultOrigin, at: datetime) -> KnownFault:
    return KnownFault(
        kind=fault.kind, source=fault.source, subject=fault.subject, sentence=fault.sentence, since=fault.since,
        origin=origin, found_at=at,
    )  # fmt: skip


def trusted(signals: Mapping[str, Signal], known: Sequence[KnownFault]) -> Mapping[str, Signal]:
    """The signals that may fire a trigger: of a live feed with a fault, none that rests on what is broken (invariant 4)."""
    live = [fault for fault in known if fault.origin is FaultOrigin.LIVE]
    if not live:
        return signals
    labels_only = all(fault.kind in LABEL_FAULTS for fault in live)
    reason = f"window held: {live[0].sentence}"
    return {
        key: signal
        if labels_only and key.split(":")[0] in _WITHOUT_LABELS
        else Signal.unknown(reason, observed_at=signal.observed_at, rows=signal.rows)
        for key, signal in signals.items()
    }


# ---------------------------------------------------------------- the fleet
@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What becomes of an incident. Its id is 0 until the store has given one."""

    incident: Incident
    event: str = ""
    """Kind of the event to record; empty for none."""
    notice: str = ""
    """What makes the notice's key; empty for none. The same key is never told twice."""

    def events(self, model: str, at: datetime) -> list[Event]:
        if not self.event:
            return []
        data = {"incident": self.incident.id, "models": self.incident.models, "affected": self.incident.affected}
        return [
            Event(
                model=model, kind=self.event, sentence=describe(self.incident, at), at=at, actor=ACTOR,
                data={**data, "names": list(self.incident.names)},
            )
        ]  # fmt: skip

    def notices(self, model: str, at: datetime) -> list[NoticeRecord]:
        if not self.notice:
            return []
        key = f"{subject_of(self.incident)}/{self.notice}"
        text, data = describe(self.incident, at), facts_of(self.incident)
        return [NoticeRecord(key=key, model=model, kind=self.event, text=text, at=at, data=data)]


def subject_of(incident: Incident) -> str:
    """
    >>> subject_of(Incident(id=5, kind="k", source="s", subject="", sentence="", since=datetime(2026, 1, 1),
    ...                     opened_at=datetime(2026, 1, 1), models=1, affected=1))
    'incident/5'
    """
    return f"incident/{incident.id}"


def facts_of(incident: Incident) -> dict[str, Any]:
    """What a notice says of it beside its sentence, as JSON."""
    return {
        "subject": subject_of(incident), "incident": incident.id, "fault": incident.kind, "source": incident.source,
        "column": incident.subject, "since": incident.since.isoformat(), "models": incident.models,
        "affected": incident.affected, "names": list(incident.names), "over": incident.closed_at is not None,
    }  # fmt: skip


def may_join(incident: Incident, fault: KnownFault) -> bool:
    """Whether a fault that was found now is this incident: it is open, or was closed only just now."""
    return incident.closed_at is None or fault.found_at <= incident.closed_at + REJOIN


def join(incident: Incident | None, fault: KnownFault, model: str, *, is_new: bool) -> Change:
    """A model has the fault. `incident`: the one that it may join; `is_new`: the model never was in it.

    People are told when it opens, and again when it has grown tenfold.
    """
    if incident is None:
        opened = Incident(
            kind=fault.kind, source=fault.source, subject=fault.subject, sentence=fault.sentence, since=fault.since,
            opened_at=fault.found_at, models=int(model != NO_MODEL), affected=1,
            names=(model,) if model != NO_MODEL else (),
        )  # fmt: skip
        return Change(incident=opened, event="incident.opened", notice="opened")
    models = incident.models + is_new
    names = (*incident.names, model) if is_new and len(incident.names) < NAMES_MAX else incident.names
    since = min(incident.since, fault.since)
    grown = replace(
        incident, models=models, affected=incident.affected + 1, names=names, since=since, closed_at=None
    )  # fmt: skip
    if incident.closed_at is not None:
        return Change(incident=grown, event="incident.reopened")
    if is_new and _is_decade(models):
        return Change(incident=grown, event="incident.grown", notice=f"{models}")
    return Change(incident=grown)


def _is_decade(count: int) -> bool:
    """
    >>> [n for n in range(1, 2000) if _is_decade(n)]
    [10, 100, 1000]
    """
    return count >= 10 and str(count).strip("0") == "1"


def leave(incident: Incident, at: datetime) -> Change:
    """A model no longer has the fault, or is no more."""
    affected = max(0, incident.affected - 1)
    left = replace(incident, affected=affected)
    if affected:
        return Change(incident=left)
    return Change(incident=replace(left, closed_at=at), event="incident.closed", notice="closed")


def describe(incident: Incident, now: datetime) -> str:
    """One sentence for people."""
    if incident.models == 0:
        over = (
            f"over after {about(max(incident.closed_at - incident.opened_at, timedelta(0)))}: "
            if incident.closed_at
            else ""
        )
        return f"{over}{incident.sentence} ({incident.source})"
    count = "1 model" if incident.models == 1 else f"{incident.models:,} models"
    names = ", ".join(incident.names[:3]) + (", …" if incident.models > min(3, len(incident.names)) else "")
    if incident.closed_at is not None:
        lasted = about(max(incident.closed_at - incident.opened_at, timedelta(0)))
        return f"over after {lasted}: {incident.sentence} ({incident.source}; {count}: {names})"
    return f"{incident.sentence} ({incident.source}; {count}: {names}); such rows are held"
