"""What the compute budget of a policy leaves, as pure arithmetic on the persisted state (invariant 10).

A budget bounds what happens by itself. A cycle that a person ordered is bounded by the time-outs of its jobs only.
"""

from __future__ import annotations

from controller.state import ModelState
from policies.durations import format_duration
from policies.schema import ModelPolicy

BY_PERSON = "person"
"""How the cause of a cycle begins that a person ordered."""


def compute_left_s(state: ModelState, policy: ModelPolicy) -> float:
    """Seconds of job time that the open cycle may still use; infinite without a compute budget, or by a person's order.

        left = budget - Σ compute of cycles opened in the period before this one - compute of this one

    Negative when a job used more than was left."""
    budget, cycle = policy.spec.budget, state.cycle
    if budget.compute is None or cycle is None or cycle.cause.startswith(BY_PERSON):
        return float("inf")
    horizon = cycle.opened_at - budget.per
    earlier = sum(seconds for opened, seconds in state.recent_cycles if opened > horizon)
    return budget.compute.total_seconds() - earlier - cycle.compute_s


def spent_words(policy: ModelPolicy) -> str:
    """The budget that is spent, in words."""
    budget = policy.spec.budget
    assert budget.compute is not None
    return f"the budget of {format_duration(budget.compute)} of compute per {format_duration(budget.per)} is spent"
