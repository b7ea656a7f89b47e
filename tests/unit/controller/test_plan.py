"""The traffic that a state asks for, and the checks that no change of state gets past."""

from __future__ import annotations

from dataclasses import replace

import pytest
from controller_states import NOW, POLICY, hold, in_line, newborn, policy, state, version, with_cycle

from controller.invariants import InvariantBroken, check_transition
from controller.plan import desired_plan
from controller.state import ModelState, Phase, VersionStatus


@pytest.mark.parametrize("phase", [None, *Phase])
def test_the_champion_and_its_way_back_are_always_kept_ready(phase: Phase | None) -> None:
    """At every step, also at 100 %; and through the bake the version before (invariant 8)."""
    made = state(phase)
    for step in range(4):
        at = with_cycle(made, step=step) if phase else made
        ready = desired_plan(at, POLICY).digests.keys()
        assert at.champion in ready
        if phase is Phase.BAKING:
            assert at.previous in ready
        if phase is Phase.ROLLING_OUT:
            assert 3 in ready


def test_only_rollout_and_bake_share_the_traffic() -> None:
    """From the last step to the end of the bake the version before keeps the holdback; in other phases the champion has all."""
    for phase in (None, *Phase):
        made = state(phase)
        shares = {
            n: desired_plan(with_cycle(made, step=s) if phase else made, POLICY).weights
            for n, s in enumerate((0, 1, 3))
        }
        if phase is Phase.ROLLING_OUT:
            assert list(shares.values()) == [{2: 100}, {2: 90, 3: 10}, {2: 2, 3: 98}]
        elif phase is Phase.BAKING:
            assert list(shares.values()) == [{2: 2, 3: 98}] * 3
        else:
            assert list(shares.values()) == [{made.champion: 100}] * 3


def test_without_a_holdback_the_challenger_gets_everything() -> None:
    """`holdback: 0%`, and a last step that leaves the champion less than the holdback."""
    for steps, holdback, kept in ((["10%", "100%"], "0%", {}), (["99%", "100%"], "2%", {2: 1})):
        follow = policy(rollout={"steps": steps, "holdback": holdback})
        for made in (with_cycle(state(Phase.ROLLING_OUT), step=1), state(Phase.BAKING)):
            assert desired_plan(made, follow).weights == {3: 100 - sum(kept.values()), **kept}


def test_a_canary_has_a_baseline_of_its_size_and_age() -> None:
    """From the shadow on, as large as the canary is or will be; none for a first version, at 100 % and in the bake."""
    rolling = state(Phase.ROLLING_OUT)
    plans = [desired_plan(with_cycle(rolling, step=step), POLICY) for step in range(4)]
    assert [(p.baseline, p.baseline_weight) for p in plans] == [(2, 10), (2, 10), (2, 50), (None, 0)]
    for made in (newborn(Phase.ROLLING_OUT), state(Phase.BAKING), state(Phase.PACKAGING), state()):
        assert desired_plan(made, POLICY).baseline is None


def test_a_model_without_versions_asks_for_nothing() -> None:
    """There is no plan before there is something to serve."""
    assert not desired_plan(newborn(), POLICY).digests


def broken(before: ModelState, after: ModelState) -> str:
    with pytest.raises(InvariantBroken) as caught:
        check_transition(before, after, person=False)
    return str(caught.value)


def test_no_change_of_state_breaks_an_invariant_unnoticed() -> None:
    """Whatever a bug may write into a decision, the check before the commit names the invariant."""
    made = state(Phase.ROLLING_OUT)
    assert made.plan is not None
    assert made.cycle is not None
    alone = replace(made.plan, baseline=None, baseline_weight=0.0)
    moved = replace(made, plan=replace(alone, generation=5, weights={2: 50, 3: 50}, shadow=None))
    unpassed = replace(version(3), lineage={"verdict": "fail"})
    cases: list[tuple[ModelState, ModelState, str]] = [
        (made, replace(made, cycle=replace(made.cycle, number=8), next_cycle=9), "invariant 1"),
        (made, replace(made, next_cycle=7), "invariant 1"),
        (made, replace(moved, versions={**made.versions, 3: unpassed}), "invariant 2"),
        (
            made,
            replace(made, plan=replace(alone, digests={1: "d", 2: "d"}, weights={1: 100}, shadow=None)),
            "invariant 2",
        ),
        (made, replace(made, versions={k: v for k, v in made.versions.items() if k != 1}), "invariant 3: v1"),
        (made, replace(made, versions={**made.versions, 1: version(1, digest="sha256:other")}), "invariant 3: v1"),
        (made, replace(made, next_version=3), "invariant 3"),
        (made, replace(moved, versions={**made.versions, 3: version(3, VersionStatus.QUARANTINED)}), "invariant 7"),
        (made, replace(made, plan=replace(alone, weights={}, shadow=None)), "invariant 8"),
        (made, replace(made, plan=replace(made.plan, generation=3)), "invariant 9"),
        (replace(made, frozen=hold()), replace(moved, frozen=hold()), "invariant 11: traffic moved while held by bob"),
    ]
    for before, after, words in cases:
        assert broken(before, after).startswith(words)
    check_transition(replace(made, frozen=hold(NOW)), moved, person=True)
    check_transition(made, in_line(with_cycle(made, step=1), POLICY), person=False)
