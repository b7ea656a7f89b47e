"""When traffic may move, and the table that the router is told. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from deployers.routed.record import InForce
from deployers.target import TrafficPlan


def next_in_force(plan: TrafficPlan, before: InForce, full: Collection[int], some: Collection[int]) -> InForce:
    """The traffic to be in force now. `full`: versions with all replicas ready; `some`: with at least one ready.

    Weights move when every version that carries some is full. The champion of the traffic in force need only be serving: waiting for its
    own missing replicas would protect nothing, and a rollback must not wait. Until then everything stays (invariant 8). The shadow
    follows once it is full; only then is the plan's generation in force."""
    champion = max(before.weights, key=lambda v: (before.weights[v], -v), default=None)
    if not all(v in full or (v == champion and v in some) for v in plan.weights):
        return before
    shadow = plan.shadow if plan.shadow is not None and plan.shadow in full else None
    carried = [*plan.weights, *([] if shadow is None else [shadow])]
    return InForce(
        generation=plan.generation if shadow == plan.shadow else before.generation,
        weights=plan.weights,
        shadow=shadow,
        digests={v: plan.digests[v] for v in carried},
    )


def router_table(
    plan: TrafficPlan, in_force: InForce, ready: Mapping[int, Sequence[str]], baseline: Sequence[str] = ()
) -> dict[str, Any]:
    """The body of the router's PUT: only versions that carry traffic, with the replicas of theirs that are ready.

    `baseline`: URLs of the plan's baseline replicas. They get their share once all are ready, and once the canary has its."""
    table: dict[str, Any] = {
        "epoch": plan.epoch,
        "generation": plan.generation,
        "backends": {str(v): list(ready.get(v, ())) for v in in_force.digests},
        "weights": {str(v): w for v, w in in_force.weights.items()},
        "shadow": None if in_force.shadow is None else str(in_force.shadow),
    }
    if plan.baseline is not None and len(baseline) >= plan.replicas and dict(in_force.weights) == dict(plan.weights):
        table["baseline"] = {"version": str(plan.baseline), "weight": plan.baseline_weight, "urls": list(baseline)}
    return table
