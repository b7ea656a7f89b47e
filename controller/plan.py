"""Which version should carry which traffic, as a pure function of the persisted state.

There is no other way to traffic than this function: whatever the controller decides, it decides by changing the state.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.state import ModelState, Phase
from deployers.rollout import baseline_weight, step_traffic
from deployers.target import TrafficPlan
from policies.schema import ModelPolicy, Step


def desired_plan(state: ModelState, policy: ModelPolicy) -> TrafficPlan:
    """The plan that `state` asks for, with the epoch and generation of the present one."""
    weights, shadow, warm = _traffic(state, policy)
    carry = {*weights, *warm} | ({shadow} if shadow is not None else set())
    fresh = _baseline_weight(state, policy)
    return TrafficPlan(
        model=state.name,
        epoch=state.plan.epoch if state.plan else 0,
        generation=state.plan.generation if state.plan else 0,
        digests={v: state.versions[v].digest for v in sorted(carry)},
        weights=weights,
        shadow=shadow,
        replicas=policy.spec.deploy.replicas,
        workers=policy.spec.deploy.workers,
        target=policy.spec.deploy.target or "",
        memory_mb=policy.spec.deploy.memory_mb,
        cpus=policy.spec.deploy.cpus,
        baseline=state.champion if fresh else None,
        baseline_weight=fresh,
    )


def _baseline_weight(state: ModelState, policy: ModelPolicy) -> float:
    """Of fresh replicas of the champion, for a challenger to be compared with; 0 for none."""
    cycle, steps = state.cycle, policy.spec.rollout.steps
    rolling = cycle is not None and cycle.phase is Phase.ROLLING_OUT and cycle.challenger is not None
    if cycle is None or not rolling or state.champion in (None, cycle.challenger):
        return 0.0
    return baseline_weight(steps, min(cycle.step, len(steps) - 1))


def _traffic(state: ModelState, policy: ModelPolicy) -> tuple[dict[int, float], int | None, set[int]]:
    """Weights, shadow, and versions that stay warm without traffic."""
    cycle, champion, kept_back = state.cycle, state.champion, policy.spec.rollout.kept_back
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and cycle.challenger is not None:
        steps = policy.spec.rollout.steps
        step = min(cycle.step, len(steps) - 1)  # the policy may have become shorter since
        weights, shadow = step_traffic(steps, step, champion, cycle.challenger, kept_back)
        warm = {cycle.challenger} | ({champion} if champion is not None else set())
        return dict(weights), shadow, warm
    if champion is None:
        return {}, None, set()
    previous = state.previous if cycle is not None and cycle.phase is Phase.BAKING else None
    if previous is None:
        return {champion: 100.0}, None, set()
    weights = {champion: 100.0 - kept_back, previous: kept_back} if kept_back else {champion: 100.0}
    return weights, None, {previous}


def step_after_edit(before: Sequence[Step], index: int, after: Sequence[Step]) -> int:
    """Where a rollout stands that was at step `index` of `before`, once its steps are `after`.

    The last step that gives the challenger no more traffic than it has, or the first: an edit is no evidence.

    >>> steps = [Step(shadow=True), Step(weight=5), Step(weight=25), Step(weight=100)]
    >>> step_after_edit(steps, 2, [Step(shadow=True), Step(weight=10), Step(weight=100)])
    1
    >>> step_after_edit(steps, 1, [Step(weight=50), Step(weight=100)])
    0
    """
    present = _share(before[min(index, len(before) - 1)])
    return max((i for i, step in enumerate(after) if _share(step) <= present), default=0)


def _share(step: Step) -> float:
    """Of the live answers; a shadow gives none, which is less than any weight."""
    return -1.0 if step.shadow else step.weight
