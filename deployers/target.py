"""The port to what serves: a target is told the whole plan for a model and converges to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class TargetError(Exception):
    """The target could not be reached or refused; trying again later may help. The message says what to do."""


class StalePlanError(TargetError):
    """The target already follows a plan of a newer epoch or generation: whoever sent this one must stop (invariant 6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficPlan:
    """All that a target needs to know about one model. Applying an equal plan again changes nothing."""

    model: str
    epoch: int
    """Fencing token of the controller that leads; a target refuses plans of an older one."""
    generation: int
    """Grows with every change of the plan; a target refuses an older one."""
    digests: Mapping[int, str]
    """Image digest (`sha256:…`) of every version that must run; others are drained and stopped."""
    weights: Mapping[int, float]
    """Percent of live traffic a version; adds up to 100, or is empty (nothing serves yet). Keys are in `digests`."""
    shadow: int | None = None
    """Version that gets a copy of live requests and whose answers are thrown away. In `digests`, not in `weights`."""
    replicas: int = 1
    workers: int = 1
    target: str = ""
    """What serves: `local`, `docker`; empty for what the daemon's settings say."""
    memory_mb: int | None = None
    """A replica may use so many million bytes, where the target can see to it; None for no limit."""
    cpus: float | None = None
    """And so much of the processors' time, 1 being one of them."""
    baseline: int | None = None
    """Version of which a second, equally large set of replicas is started, to compare a canary of the same age with. In `weights`."""
    baseline_weight: float = 0.0
    """Percent of live traffic that this set answers, out of its version's weight; while it is not ready, the version's others do."""

    def __post_init__(self) -> None:
        assert not self.weights or abs(sum(self.weights.values()) - 100) < 1e-9, self.weights
        assert set(self.weights) <= set(self.digests), (self.weights, self.digests)
        assert self.baseline is None or self.baseline_weight <= self.weights.get(self.baseline, -1), self
        assert self.shadow is None or (self.shadow in self.digests and self.shadow not in self.weights)


class ReplicaState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    """Cannot start, or died again and again; `reason` says why."""
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaStatus:
    state: ReplicaState
    reason: str = ""
    requests: int = 0
    """Live answers since the replica started (not shadow)."""
    errors: int = 0
    """Of these, answers 5xx, connections lost and time-outs."""
    shadow_requests: int = 0
    shadow_errors: int = 0
    latency_ms_p95: float | None = None
    """Of the latest live answers, as the router saw them; None if that is not known."""
    containers: tuple[str, ...] = ()
    """Names of its containers, where it has any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetStatus:
    """What is in force, as observed."""

    generation: int
    """Of the newest plan whose weights are fully in force; 0 if none."""
    weights: Mapping[int, float]
    shadow: int | None
    replicas: Mapping[int, ReplicaStatus]
    baseline: ReplicaStatus | None = None
    """Of the plan's baseline replicas; their requests are not among those of the version."""
    address: str = ""
    """Where clients send requests, e.g. `http://127.0.0.1:8600`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsPage:
    """Where a monitoring system reads counters: `http://ADDRESS/metrics`."""

    address: str
    """`host:port`."""
    instance: str
    """A name that stays when a process takes another's place: then its counters begin again in the same series, which a rate sees through.
    Under a new name each restart would lose what was counted before the first look."""
    model: str = ""
    """Of the replica; empty for what serves all models, such as the router."""
    version: int | None = None
    arm: str = ""
    """`main`, or `baseline`: beside a canary, to compare it with."""


class Target(Protocol):
    """Serves versions. Weights move only once every version with a weight above 0 is ready (invariant 8)."""

    def apply(self, plan: TrafficPlan) -> None:
        """Take one bounded, non-blocking stride towards the plan; called again each tick, also when it is in force.

        Starts missing versions; when all that carry weight are ready moves weights and shadow; then drains and stops what is not in
        the plan. What died is started again. Cheap when nothing is to be done. Raises StalePlanError, TargetError."""

    def observe(self, model: str) -> TargetStatus | None:
        """What is in force; None if the target knows nothing of the model. Raises TargetError."""

    def models(self) -> Sequence[str]:
        """Names of all models that a plan is followed for, sorted."""

    def pages(self) -> Sequence[MetricsPage]:
        """Where the counters of all that runs are, the router's too, by instance; as known without asking anybody. Raises TargetError."""

    def remove(self, model: str, epoch: int) -> None:
        """Stop serving the model altogether. May be repeated. Raises StalePlanError if a newer controller leads, TargetError."""


@dataclass
class FakeTarget:
    """A target in memory that is ready at once, unless told otherwise. Held to the same contract suite as the real ones."""

    plans: dict[str, TrafficPlan] = field(default_factory=dict)
    in_force: dict[str, TargetStatus] = field(default_factory=dict)
    unready: set[str] = field(default_factory=set)
    """Digests that stay `starting`."""
    broken: dict[str, str] = field(default_factory=dict)
    """Digest → reason why it cannot start."""
    errors: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Digest → (requests, errors) to report."""
    removed: dict[str, int] = field(default_factory=dict)
    """Model → epoch under which it was removed; older controllers may not bring it back."""

    def apply(self, plan: TrafficPlan) -> None:
        known = self.plans.get(plan.model)
        if known and (plan.epoch, plan.generation) < (known.epoch, known.generation):
            raise StalePlanError(
                f"{plan.model}: plan {plan.epoch}/{plan.generation} is older than {known.epoch}/{known.generation}"
            )
        if plan.epoch < self.removed.get(plan.model, plan.epoch):
            raise StalePlanError(
                f"{plan.model}: was removed by a controller newer than epoch {plan.epoch}; older plans stay out"
            )
        self.plans[plan.model] = plan
        replicas = {v: self._replica(d) for v, d in plan.digests.items()}
        before = self.in_force.get(plan.model)
        carry = set(plan.weights) | ({plan.shadow} if plan.shadow is not None else set())
        if all(replicas[v].state is ReplicaState.READY for v in carry):
            generation, weights, shadow = plan.generation, plan.weights, plan.shadow
        else:
            generation, weights, shadow = (
                (before.generation, before.weights, before.shadow) if before else (0, {}, None)
            )
            for version in set(weights) - set(replicas):
                assert before is not None
                replicas[version] = before.replicas[version]
        self.in_force[plan.model] = TargetStatus(
            generation=generation, weights=weights, shadow=shadow, replicas=replicas, address="fake://router",
            baseline=None if plan.baseline is None else self._replica(plan.digests[plan.baseline]),
        )  # fmt: skip

    def _replica(self, digest: str) -> ReplicaStatus:
        if digest in self.broken:
            return ReplicaStatus(state=ReplicaState.FAILED, reason=self.broken[digest])
        if digest in self.unready:
            return ReplicaStatus(state=ReplicaState.STARTING)
        requests, errors = self.errors.get(digest, (0, 0))
        return ReplicaStatus(state=ReplicaState.READY, requests=requests, errors=errors)

    def observe(self, model: str) -> TargetStatus | None:
        return self.in_force.get(model)

    def models(self) -> Sequence[str]:
        return sorted(self.plans)

    def pages(self) -> Sequence[MetricsPage]:
        return [
            MetricsPage(address="fake:1", instance=f"{model}/v{version}-0", model=model, version=version, arm="main")
            for model, status in sorted(self.in_force.items())
            for version, replica in sorted(status.replicas.items())
            if replica.state is ReplicaState.READY
        ]

    def remove(self, model: str, epoch: int) -> None:
        known = self.plans.get(model)
        if known and epoch < known.epoch:
            raise StalePlanError(f"{model}: epoch {epoch} is older than {known.epoch}")
        self.plans.pop(model, None)
        self.in_force.pop(model, None)
        self.removed[model] = max(epoch, self.removed.get(model, epoch))
