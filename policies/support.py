"""What the schema knows but the software does not do yet. It is refused by name, never ignored."""

from __future__ import annotations

from policies.problems import Path
from policies.schema import DriftTrigger, EstimatedPerformance, EstimatedPerformanceTrigger, ModelPolicy
from policies.trigger_shapes import leaves_with_paths


def unsupported(policy: ModelPolicy) -> list[tuple[Path, str]]:
    """Places in the policy, each with what is not supported there and what is instead."""
    found: list[tuple[Path, str]] = []
    for path, leaf in leaves_with_paths(policy.spec.triggers):
        for place, rule in _estimates(leaf):
            if (rule.metric or policy.spec.objective.metric) == "r2":
                found.append((("spec", "triggers", *path, *place, "metric"), "an estimated r2; mae and rmse are"))
    deploy = policy.spec.deploy
    if deploy.target == "kubernetes":
        found.append((("spec", "deploy", "target"), f"{deploy.target}; local and docker are"))
    for key in ("memory_mb", "cpus"):
        if deploy.target == "local" and getattr(deploy, key) is not None:
            found.append((("spec", "deploy", key), "limits of a process; with target: docker they are"))
    return found


def _estimates(leaf: object) -> list[tuple[Path, EstimatedPerformance]]:
    """Rules on an estimate in a trigger, each with its place there."""
    match leaf:
        case EstimatedPerformanceTrigger():
            return [((), leaf.estimated_performance)]
        case DriftTrigger() if leaf.drift.only_if is not None and leaf.drift.only_if.estimated_performance is not None:
            return [(("only_if", "estimated_performance"), leaf.drift.only_if.estimated_performance)]
        case _:
            return []
