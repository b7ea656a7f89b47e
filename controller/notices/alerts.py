"""What Alertmanager is told: which alerts fire, as a pure function of the state of all models and the open incidents.

An alert is a state and not a message: it fires as long as what it says is so, and the same happening always has the same labels, by which
Alertmanager knows it. So nothing is queued and nothing can be lost: whoever comes back is told what is so now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controller.incidents import describe
from controller.state import Incident, ModelState, Outcome, Phase

OUTCOME_LASTS = timedelta(hours=24)
"""A cycle that ended badly is news for so long, or until the next one opens."""
VALUE_MAX = 1_000
_NAME = re.compile(r"[^a-zA-Z0-9_]")
_OURS = frozenset({"alertname", "model", "severity", "fault", "source", "column"})
_BAD_ENDS: Mapping[Outcome, tuple[str, str]] = {
    Outcome.ROLLED_BACK: ("RatchetRolledBack", "warning"),
    Outcome.FAILED: ("RatchetCycleFailed", "warning"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One that fires."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    key: tuple[tuple[str, str], ...] = field(init=False)
    """The labels, by which it is the same alert."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", tuple(sorted(self.labels.items())))

    def body(self, ends_at: datetime, now: datetime, link: str) -> dict[str, Any]:
        """As the v2 API takes it. `now`: of the real clock, of which no start may be ahead."""
        body = {
            "labels": dict(self.labels), "annotations": dict(self.annotations),
            "startsAt": min(self.starts_at, now).isoformat(), "endsAt": ends_at.isoformat(),
        }  # fmt: skip
        return {**body, "generatorURL": link} if link else body


def firing(
    states: Iterable[ModelState],
    incidents: Sequence[Incident],
    labels_of: Callable[[ModelState], Mapping[str, str]],
    now: datetime,
) -> list[Alert]:
    """`labels_of`: what the policy of a model says under `metadata.labels`; asked of those only that have an alert."""
    alerts = [_of_incident(incident, now) for incident in incidents if incident.closed_at is None]
    for state in states:
        if (found := _of_model(state, now)) is not None:
            name, severity, text, since = found
            labels = {**_clean(labels_of(state)), "alertname": name, "model": state.name, "severity": severity}
            alerts.append(Alert(labels=labels, annotations=_annotations(state, text), starts_at=since))
    return alerts


def _of_model(state: ModelState, now: datetime) -> tuple[str, str, str, datetime] | None:
    """Name, severity, sentence and beginning of what a model's state calls for."""
    cycle, ended = state.cycle, state.ended
    if cycle is not None and cycle.alarmed:
        return "RatchetChallengerFailing", "critical", cycle.sentence, cycle.phase_since
    if cycle is not None and cycle.phase is Phase.AWAITING_APPROVAL:
        return "RatchetApprovalWanted", "info", cycle.sentence, cycle.phase_since
    if cycle is None and ended is not None and ended.outcome in _BAD_ENDS and now - ended.at < OUTCOME_LASTS:
        name, severity = _BAD_ENDS[ended.outcome]
        return name, severity, ended.sentence, ended.at
    return None


def _annotations(state: ModelState, text: str) -> dict[str, str]:
    number = state.cycle.number if state.cycle else state.ended.cycle if state.ended else None
    said = {
        "summary": text, "cycle": number, "champion": f"v{state.champion}" if state.champion is not None else None,
        "challenger": f"v{state.cycle.challenger}" if state.cycle and state.cycle.challenger else None,
    }  # fmt: skip
    return {name: str(value)[:VALUE_MAX] for name, value in said.items() if value is not None}


def _of_incident(incident: Incident, now: datetime) -> Alert:
    labels = {
        "alertname": "RatchetIncident", "severity": "warning", "fault": incident.kind, "source": incident.source,
        "column": incident.subject,
    }  # fmt: skip
    annotations = {
        "summary": describe(incident, now), "models": str(incident.models), "affected": str(incident.affected),
        "names": ", ".join(incident.names), "incident": str(incident.id),
    }  # fmt: skip
    return Alert(
        labels={name: value[:VALUE_MAX] for name, value in labels.items() if value},
        annotations={name: value[:VALUE_MAX] for name, value in annotations.items()}, starts_at=incident.opened_at,
    )  # fmt: skip


def _clean(labels: Mapping[str, str]) -> dict[str, str]:
    """A policy's labels as Alertmanager takes them; none may pass for one of ours, and empty ones are none.

    >>> _clean({"app.kubernetes.io/team": "ops", "model": "x", "9": "y", "empty": ""})
    {'app_kubernetes_io_team': 'ops', '_9': 'y'}
    """
    named = {_NAME.sub("_", name): value[:VALUE_MAX] for name, value in labels.items() if value}
    named = {name if not name[:1].isdigit() else f"_{name}": value for name, value in named.items() if name}
    return {name: value for name, value in named.items() if name not in _OURS and not name.startswith("__")}
