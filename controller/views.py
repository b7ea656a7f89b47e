"""What people and programs are shown of the state: frozen values that the API sends as JSON and its schema documents. Pure.

They say less than the state does (no job records, no snapshots), and what they say keeps its name from release to release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controller.reconcile import GROUNDS
from controller.state import Cycle, Event, Hold, Incident, ModelState, Origin, Version
from deployers.target import ReplicaStatus, TargetStatus
from policies.durations import about
from policies.signals import Signal, SignalKind


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficView:
    """Percent of the requests a version, as ordered; what is in force is the target's to say."""

    weights: Mapping[int, float] = field(default_factory=dict)
    shadow: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldView:
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldView:
    """A person's stops; None where there is none."""

    paused: HoldView | None
    frozen: HoldView | None
    pinned: HoldView | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CycleView:
    """One pass round the loop. `outcome` is None while it is open."""

    model: str
    number: int
    phase: str
    outcome: str | None
    cause: str
    sentence: str
    opened_at: datetime
    phase_since: datetime
    closed_at: datetime | None
    attempt: int
    challenger: int | None
    step: int
    """Index into the policy's rollout steps."""
    step_since: datetime | None
    compute_s: float
    said: Mapping[str, str]
    """Phase → the sentence with which its job ended."""
    gates: Sequence[Mapping[str, Any]]
    """What each gate found: `gate`, `verdict`, `sentence`, `numbers`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionView:
    """An immutable image under a number."""

    model: str
    number: int
    digest: str
    status: str
    created_at: datetime
    cycle: int
    component: str
    parameters: Mapping[str, Any]
    trained_to: datetime | None
    rows: int | None
    """Rows that it was trained on."""
    scores: Mapping[str, float]
    verdict: str
    """The judge's sentence."""
    forced: str
    """Who let it serve against the gates or out of quarantine, and why; else empty."""
    code_commit: str | None = None
    """Commit of the owner's code that trained it; `-dirty` if it had changes that were not committed."""
    policy_commit: str | None = None
    """Commit that its policy came with; None if it was applied by hand."""
    policy_file: str | None = None
    policy_source: str | None = None
    containers: Sequence[str] = ()
    """Names of the containers that serve it now, where containers do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaView:
    version: int
    state: str
    reason: str
    requests: int
    errors: int
    shadow_requests: int
    shadow_errors: int
    latency_ms_p95: float | None = None
    """Of the latest live answers."""
    containers: Sequence[str] = ()
    """Names of its containers, for `docker logs`; none on a target without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetView:
    """What is in force, as observed; `error` says why nothing could be."""

    weights: Mapping[int, float]
    shadow: int | None
    generation: int
    replicas: Sequence[ReplicaView]
    baseline: ReplicaView | None = None
    """Fresh replicas of the champion, as many as of the canary that is compared with them."""
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedView:
    """How labels come in, as last measured; a number that is None is unknown, and the sentence says why."""

    coverage: float | None
    """Share of the rows old enough to have a label that do have one."""
    rows: int
    """How many rows are old enough."""
    lag_s: float | None
    """Within this 99 % of labels came."""
    sentence: str
    observed_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """A model in a list."""

    name: str
    champion: int | None
    previous: int | None
    phase: str | None
    """Of the open cycle; None if none is open."""
    cycle: CycleView | None
    sentence: str
    """What the controller said when it last looked."""
    traffic: TrafficView
    held: HeldView
    metric: str
    score: float | None
    """Of the champion when it was judged, by `metric`."""
    labels: Mapping[str, str]
    row_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginView:
    """Where a policy is followed from."""

    source: str
    where: str
    file: str
    commit: str
    """With which this policy came."""
    said: str
    code_commit: str
    """In whose worktree its relative paths start; empty if it names none."""
    lost: str
    """Why nothing follows it any more."""
    forced: str
    """Who applied another by hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDetail(ModelSummary):
    """All about a model but its history."""

    task: str
    policy_digest: str
    policy_dir: str
    created_at: datetime
    versions: Sequence[VersionView]
    address: str
    """Where predictions are asked for; empty if nothing serves."""
    target: TargetView
    feed: FeedView | None = None
    """None until it is measured."""
    origin: OriginView | None = None
    """None if the policy was applied by hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentView:
    """Something wrong with what feeds models: one incident, however many have it. `closed_at` is None while it lasts."""

    id: int
    kind: str
    source: str
    """Where the rows come from."""
    subject: str
    """The column; empty for the whole table."""
    sentence: str
    since: datetime
    """From when on rows are affected."""
    opened_at: datetime
    closed_at: datetime | None
    models: int
    """That ever had it."""
    affected: int
    """That have it now."""
    names: Sequence[str]
    """Some of the models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventView:
    """One line of the record."""

    seq: int
    at: datetime
    model: str
    cycle: int | None
    kind: str
    actor: str
    sentence: str
    data: Mapping[str, Any]


def summary(state: ModelState, sentence: str) -> ModelSummary:
    """`sentence`: what the controller said last, or empty."""
    return ModelSummary(**_summary_fields(state, sentence))


def detail(
    state: ModelState, sentence: str, target: TargetStatus | None, target_error: str = "",
    signals: Mapping[str, Signal] = {},
) -> ModelDetail:  # fmt: skip
    """`signals`: the newest measurements, by their keys."""
    spec = json.loads(state.policy)["spec"]
    return ModelDetail(
        **_summary_fields(state, sentence),
        task=spec["task"],
        policy_digest=state.policy_digest,
        policy_dir=state.policy_dir,
        created_at=state.created_at,
        versions=[version(v) for _, v in sorted(state.versions.items())],
        address=target.address if target else "",
        target=_target(target, target_error, state.champion),
        feed=feed(signals),
        origin=_origin(state.origin),
    )


def _origin(value: Origin | None) -> OriginView | None:
    if value is None:
        return None
    return OriginView(
        source=value.source, where=value.where, file=value.file, commit=value.revision, said=value.said,
        code_commit=value.pinned, lost=value.lost, forced=value.forced,
    )  # fmt: skip


def feed(signals: Mapping[str, Signal]) -> FeedView | None:
    """From the measurements of any version; None if these two are not among them.

    >>> from datetime import UTC
    >>> night = datetime(2013, 3, 2, 3, 0, tzinfo=UTC)
    >>> feed({"label_coverage": Signal.of(0.981, observed_at=night, rows=1204),
    ...       "label_lag": Signal.of(21600.0, observed_at=night)}).sentence
    '98.1 % of the 1,204 rows old enough have a label; 99 % of labels come within 6h'
    """
    share, lag = signals.get(SignalKind.LABEL_COVERAGE.value), signals.get(SignalKind.LABEL_LAG.value)
    if share is None or lag is None:
        return None
    covered = (
        f"{share.value * 100:.1f} % of the {share.rows:,} rows old enough have a label"
        if share.value is not None
        else share.reason
    )
    late = f"99 % of labels come within {about(timedelta(seconds=lag.value))}" if lag.value is not None else lag.reason
    return FeedView(
        coverage=share.value,
        rows=share.rows,
        lag_s=lag.value,
        sentence="; ".join(dict.fromkeys([covered, late])),
        observed_at=share.observed_at,
    )


def _summary_fields(state: ModelState, sentence: str) -> dict[str, Any]:
    document = json.loads(state.policy)
    metric = document["spec"]["objective"]["metric"]
    champion = state.versions.get(state.champion) if state.champion is not None else None
    return {
        "name": state.name,
        "champion": state.champion,
        "previous": state.previous,
        "phase": state.cycle.phase.value if state.cycle else None,
        "cycle": cycle(state.cycle) if state.cycle else None,
        "sentence": sentence or (state.cycle.sentence if state.cycle else "not looked at yet"),
        "traffic": TrafficView(weights=dict(state.plan.weights), shadow=state.plan.shadow) if state.plan else TrafficView(),
        "held": HeldView(paused=_hold(state.paused), frozen=_hold(state.frozen), pinned=_hold(state.pinned)),
        "metric": metric,
        "score": champion.scores.get(metric) if champion else None,
        "labels": document["metadata"].get("labels") or {},
        "row_version": state.row_version,
    }  # fmt: skip


def _hold(hold: Hold | None) -> HoldView | None:
    return HoldView(by=hold.by, reason=hold.reason, at=hold.at) if hold else None


def cycle(value: Cycle) -> CycleView:
    said = {phase: str(output.get("sentence", "")) for phase, output in value.outputs.items()}
    return CycleView(
        model=value.model, number=value.number, phase=value.phase.value,
        outcome=value.outcome.value if value.outcome else None, cause=value.cause, sentence=value.sentence,
        opened_at=value.opened_at, phase_since=value.phase_since, closed_at=value.closed_at, attempt=value.attempt,
        challenger=value.challenger, step=value.step, step_since=value.step_since, compute_s=value.compute_s,
        said=said, gates=list(value.outputs.get("judging", {}).get("gates") or ()),
    )  # fmt: skip


def version(value: Version, target: TargetStatus | None = None) -> VersionView:
    replica = target.replicas.get(value.number) if target is not None else None
    lineage = value.lineage
    policy = lineage.get("policy_source") or {}
    return VersionView(
        model=value.model, number=value.number, digest=value.digest, status=value.status.value,
        created_at=value.created_at, cycle=value.cycle, component=str(lineage.get("component", "")),
        parameters=lineage.get("parameters") or {}, trained_to=value.trained_to, rows=lineage.get("rows"),
        scores=value.scores, verdict=str(lineage.get("gates", "")), forced=value.forced,
        code_commit=(lineage.get("code") or {}).get("commit"), policy_commit=policy.get("commit"),
        policy_file=policy.get("file"), policy_source=policy.get("source"),
        containers=replica.containers if replica is not None else (),
    )  # fmt: skip


def incident(value: Incident) -> IncidentView:
    return IncidentView(
        id=value.id, kind=value.kind, source=value.source, subject=value.subject, sentence=value.sentence,
        since=value.since, opened_at=value.opened_at, closed_at=value.closed_at, models=value.models,
        affected=value.affected, names=value.names,
    )  # fmt: skip


def event(value: Event, *, grounds: bool = False) -> EventView:
    """Without `grounds`, what the decision rested on is left out: it is long, and meant for replaying."""
    data = value.data if grounds else {k: v for k, v in value.data.items() if k not in GROUNDS}
    return EventView(
        seq=value.seq, at=value.at, model=value.model, cycle=value.cycle, kind=value.kind, actor=value.actor,
        sentence=value.sentence, data=data,
    )  # fmt: skip


def _target(status: TargetStatus | None, error: str, baseline: int | None) -> TargetView:
    """`baseline`: the version that baseline replicas are of."""
    if status is None:
        return TargetView(weights={}, shadow=None, generation=0, replicas=[], error=error)
    return TargetView(
        weights=dict(status.weights), shadow=status.shadow, generation=status.generation,
        replicas=[_replica(number, r) for number, r in sorted(status.replicas.items())],
        baseline=_replica(baseline, status.baseline) if status.baseline is not None and baseline is not None else None,
        error=error,
    )  # fmt: skip


def _replica(number: int, status: ReplicaStatus) -> ReplicaView:
    return ReplicaView(
        version=number, state=status.state.value, reason=status.reason, requests=status.requests, errors=status.errors,
        shadow_requests=status.shadow_requests, shadow_errors=status.shadow_errors, latency_ms_p95=status.latency_ms_p95,
        containers=status.containers,
    )  # fmt: skip
