"""Small frozen states to decide on: one line for what matters to a test, defaults for the rest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.decide import Observation, Snapshot
from controller.plan import desired_plan
from controller.state import Cycle, Hold, ModelState, Phase, Version, VersionStatus
from deployers.target import ReplicaState, ReplicaStatus, TargetStatus
from pipelines.jobs.port import JobState, JobStatus
from policies.schema import ModelPolicy
from policies.signals import Comparison, Signal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NAME = "flight-late"
PERFORMANCE_KEY = "performance:accuracy:1h:100"
OUTPUTS: dict[str, dict[str, Any]] = {
    "preparing": {"fingerprint": "sha256:data", "sentence": "1,000 rows are ready"},
    "tuning": {"component": "c", "parameters": {"a": 1}, "window_s": None, "sentence": "tuned in 3 trials"},
    "training": {
        "model_dir": "/models/m", "model_digest": "sha256:new", "component": "c", "parameters": {"a": 1},
        "window_s": None, "rows": 1000, "trained_to": (NOW - DAY).isoformat(), "sentence": "trained on 1,000 rows",
    },
    "judging": {"verdict": "pass", "sentence": "3 gates passed", "scores": {"accuracy": 0.8}},
    "packaging": {"digest": "sha256:image", "sentence": "packaged"},
}  # fmt: skip
"""What the job of each phase gives when all goes well."""
PHASES_BEFORE = {phase: [p.value for p in list(Phase)[:i] if p.value in OUTPUTS] for i, phase in enumerate(list(Phase))}


def policy(**changes: Any) -> ModelPolicy:
    """A policy with keys of its spec replaced."""
    spec: dict[str, Any] = {
        "task": "binary",
        "data": {"source": {"kind": "csv", "path": "x.csv"}, "label": "y"},
        "train": {"component": "sklearn.logistic_regression"},
        "objective": {"metric": "accuracy"},
        "triggers": {"any": [{"performance": {"metric": "accuracy", "below": 0.5, "window": "1h", "min_rows": 100}}]},
        "cooldown": "2h",
        "budget": {"cycles": 3, "per": "2d"},
        "rollout": {
            "steps": [{"shadow": "30m"}, {"10%": "1h"}, {"50%": "1h"}, "100%"],
            "bake": "4h", "min_labelled_rows": 20, "deadline": "1d",
        },
    }  # fmt: skip
    document = {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": NAME}}
    return ModelPolicy.model_validate({**document, "spec": {**spec, **changes}})


POLICY = policy()


def version(number: int, status: VersionStatus = VersionStatus.RETIRED, **changes: Any) -> Version:
    """A version that passed its gates."""
    made = Version(
        model=NAME, number=number, digest=f"sha256:{number:064x}", status=status, created_at=NOW - 9 * DAY,
        cycle=number, trained_to=NOW - 10 * DAY, scores={"accuracy": 0.8},
        lineage={"verdict": "pass", "model_digest": f"sha256:model-{number}", "component": "c", "parameters": {},
                 "window_s": None},
    )  # fmt: skip
    return replace(made, **changes)


def cycle(phase: Phase, **changes: Any) -> Cycle:
    """Cycle 7 in a phase since now, with what came of the phases before."""
    started = phase in (Phase.PACKAGING, Phase.ROLLING_OUT, Phase.BAKING)
    made = Cycle(
        model=NAME, number=7, phase=phase, sentence="so it was said", cause="trigger: accuracy fell",
        opened_at=NOW - HOUR, phase_since=NOW, cutoff=NOW - HOUR,
        outputs={name: OUTPUTS[name] for name in PHASES_BEFORE[phase]}, challenger=3 if started else None,
    )  # fmt: skip
    return replace(made, **changes)


def state(phase: Phase | None = None, *, follow: ModelPolicy = POLICY, **changes: Any) -> ModelState:
    """v2 serves, v1 served before. With a phase, cycle 7 is open; its challenger is v3. The plan is in line with that."""
    versions = {1: version(1), 2: version(2, VersionStatus.CHAMPION)}
    given: dict[str, Any] = {"champion": 2, "previous": 1}
    if phase is Phase.ROLLING_OUT:
        versions[3] = version(3, VersionStatus.CANDIDATE)
    if phase is Phase.BAKING:
        versions |= {2: version(2), 3: version(3, VersionStatus.CHAMPION)}
        given = {"champion": 3, "previous": 2}
    made = ModelState(
        name=NAME, row_version=5, policy=follow.model_dump_json(by_alias=True), policy_digest="p", created_at=NOW - 30 * DAY,
        next_version=4, next_cycle=8, versions=versions, cycle=cycle(phase) if phase else None, **given,
    )  # fmt: skip
    made = replace(made, **changes)
    return in_line(made, follow)


def newborn(phase: Phase | None = None, **changes: Any) -> ModelState:
    """A model that no version serves yet; rolling out, its challenger is v1."""
    number = 1 if phase in (Phase.PACKAGING, Phase.ROLLING_OUT) else None
    made = ModelState(
        name=NAME, row_version=1, policy=POLICY.model_dump_json(by_alias=True), policy_digest="p", created_at=NOW - DAY,
        next_version=2 if number else 1, next_cycle=8 if phase else 1,
        versions={1: version(1, VersionStatus.CANDIDATE)} if phase is Phase.ROLLING_OUT else {},
        cycle=cycle(phase, challenger=number, cause="bootstrap") if phase else None,
    )  # fmt: skip
    return in_line(replace(made, **changes), POLICY)


def in_line(made: ModelState, follow: ModelPolicy) -> ModelState:
    """The state with the plan that it asks for, at generation 4."""
    plan = replace(desired_plan(made, follow), generation=4)
    return replace(made, plan=plan) if plan.digests else made


def with_cycle(made: ModelState, **changes: Any) -> ModelState:
    """The state with fields of its open cycle replaced (and the plan in line)."""
    assert made.cycle is not None
    return in_line(replace(made, cycle=replace(made.cycle, **changes)), POLICY)


def hold(at: datetime = NOW - HOUR) -> Hold:
    return Hold(by="bob", reason="an audit", at=at)


def serving(made: ModelState, *, generation: int | None = None, **replicas: ReplicaStatus) -> TargetStatus:
    """The target follows the state's plan and all that it wants is ready; `v3=…` gives a replica another status."""
    assert made.plan is not None
    ready = {n: ReplicaStatus(state=ReplicaState.READY) for n in made.plan.digests}
    return TargetStatus(
        generation=made.plan.generation if generation is None else generation, weights=made.plan.weights,
        shadow=made.plan.shadow, replicas=ready | {int(name[1:]): status for name, status in replicas.items()},
    )  # fmt: skip


def compared(verdict: str = "undecided", rows: int = 1000, at: datetime = NOW) -> Comparison:
    return Comparison(
        state=verdict, challenger_rows=rows, champion_rows=rows, challenger_score=0.7, champion_score=0.8,
        sentence=f"compared on {rows} rows: {verdict}", observed_at=at,
    )  # type: ignore[arg-type]  # fmt: skip


def measured(made: ModelState, value: float | None = None, comparison: Comparison | None = None) -> Observation:
    """What is known about the champion, and about the challenger if one has traffic."""
    signal = Signal.unknown("no labels", observed_at=NOW)
    if value is not None:
        signal = Signal.of(value, observed_at=NOW, rows=500)
    baking = made.cycle is not None and made.cycle.phase is Phase.BAKING
    return Observation(
        champion=made.champion, baseline=made.previous if baking else made.champion,
        challenger=made.cycle.challenger if made.cycle else None, signals={PERFORMANCE_KEY: signal}, comparison=comparison,
    )  # fmt: skip


def look(made: ModelState, **changes: Any) -> Snapshot:
    """A snapshot in which the target follows the plan, unless told otherwise."""
    target = serving(made) if made.plan is not None else None
    return Snapshot(state=made, **{"target": target, **changes})


def succeeded(output: dict[str, Any], seconds: float = 10) -> JobStatus:
    return JobStatus(state=JobState.SUCCEEDED, output=output, seconds=seconds)


def failed(error: str = "out of memory", *, retryable: bool = False) -> JobStatus:
    return JobStatus(state=JobState.FAILED, error=error, retryable=retryable, seconds=10)
