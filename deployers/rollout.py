"""The arithmetic of a rollout: which traffic a step asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.schema import Step


def step_traffic(
    steps: Sequence[Step], index: int, champion: int | None, challenger: int, kept_back: float = 0.0
) -> tuple[Mapping[int, float], int | None]:
    """Weights in percent by version, and the shadow version if there is one, at step `index` (0-based) of a rollout.

        weight(challenger) = w,  weight(champion) = 100 - w,  with w the step's weight, 0 for a shadow step and 100 - kept_back for 100

    Versions with weight 0 are left out. With no champion to share with, or with itself, the challenger gets everything: there is
    nobody to compare it with, and a model that serves nothing helps no one. Raises IndexError if there is no such step.

    >>> steps = [Step(shadow=True), Step(weight=5), Step(weight=100)]
    >>> step_traffic(steps, 0, 7, 8)
    ({7: 100.0}, 8)
    >>> step_traffic(steps, 1, 7, 8)
    ({7: 95.0, 8: 5.0}, None)
    >>> step_traffic(steps, 2, 7, 8)
    ({8: 100.0}, None)
    >>> step_traffic(steps, 2, 7, 8, kept_back=2.0)
    ({7: 2.0, 8: 98.0}, None)
    >>> step_traffic(steps, 0, None, 1)
    ({1: 100.0}, None)
    """
    if not 0 <= index < len(steps):
        raise IndexError(f"step {index} of a rollout that has {len(steps)} steps")
    step = steps[index]
    if champion is None or champion == challenger:
        return {challenger: 100.0}, None
    if step.shadow:
        return {champion: 100.0}, challenger
    weight = min(float(step.weight), 100.0 - kept_back)
    shares = {champion: 100.0 - weight, challenger: weight}
    return {version: share for version, share in shares.items() if share > 0}, None


def baseline_weight(steps: Sequence[Step], index: int) -> float:
    """Percent of live traffic for fresh replicas of the champion, at step `index`: as much as the canary has, if the champion has that.

    In shadow already as much as the first step will give, so that they are as old and as warm as the challenger's; nothing at 100 %.

    >>> steps = [Step(shadow=True), Step(weight=5), Step(weight=75), Step(weight=100)]
    >>> [baseline_weight(steps, index) for index in range(4)]
    [5.0, 5.0, 25.0, 0.0]
    """
    weight = next(step.weight for step in steps[index:] if not step.shadow)
    return min(float(weight), 100.0 - weight)
