"""What a promotion was expected to gain, and what it gained: the judge's hold-out against the holdback of live traffic. Pure.

Both are told in the record of the cycle, so that an owner learns how far the one can be trusted to foretell the other.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from controller.state import Cycle, Phase
from policies.metrics import METRICS, Task
from policies.schema import ModelPolicy
from policies.signals import Comparison, Estimate


def said(cycle: Cycle, comparison: Comparison | None, policy: ModelPolicy, previous: int) -> str:
    """Both gains in words; more is better in each."""
    return f"{_predicted(cycle, policy)}; {_realised(comparison, policy, previous)}"


def numbers(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as JSON, for the record."""
    return None if estimate is None else asdict(estimate)


def _predicted(cycle: Cycle, policy: ModelPolicy) -> str:
    judged = cycle.outputs.get(Phase.JUDGING.value, {})
    ours, theirs = judged.get("scores") or {}, judged.get("champion_scores") or {}
    common = ours.keys() & theirs.keys()
    metric = (
        "brier" if "brier" in common else policy.spec.objective.metric
    )  # Brier's score is what live rows are compared by
    if metric not in common:
        return "predicted gain unknown"
    gain = ours[metric] - theirs[metric]
    gain = gain if METRICS[metric].higher_is_better else -gain
    rows = f" on {judged['rows']:,} hold-out rows" if judged.get("rows") else ""
    return f"predicted gain {gain:.4f} in {metric}{rows}"


def _realised(comparison: Comparison | None, policy: ModelPolicy, previous: int) -> str:
    found = comparison.realised if comparison is not None else None
    if found is None:
        return f"realised gain unknown: no matured answers of v{previous} since the promotion to compare with"
    loss = "scaled absolute error" if policy.spec.task is Task.REGRESSION else "brier"
    confidence = 100 * (1 - policy.spec.rollout.alpha)
    return (
        f"realised gain {-found.value:.4f} in {loss} ({confidence:g} % interval {-found.high:.4f} to {-found.low:.4f}, "
        f"{found.outcomes:,} comparisons with v{previous})"
    )
