"""What the schema knows but the software does not do yet. It is refused by name, never ignored."""

from __future__ import annotations

from policies.problems import Path
from policies.schema import EstimatedPerformanceTrigger, LogNotice, ModelPolicy
from policies.trigger_shapes import leaves_with_paths


def unsupported(policy: ModelPolicy) -> list[tuple[Path, str]]:
    """Places in the policy, each with what is not supported there and what is instead."""
    found: list[tuple[Path, str]] = []
    for path, leaf in leaves_with_paths(policy.spec.triggers):
        if isinstance(leaf, EstimatedPerformanceTrigger):
            found.append((("spec", "triggers", *path), "estimated_performance; performance and drift are"))
    if policy.spec.deploy.target != "local":
        found.append((("spec", "deploy", "target"), f"{policy.spec.deploy.target}; local is"))
    for i, notice in enumerate(policy.spec.notify):
        if not isinstance(notice, LogNotice):
            kind = next(iter(type(notice).model_fields))
            found.append((("spec", "notify", i, kind), f"{kind}; log is"))
    return found
