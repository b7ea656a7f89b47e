"""A restored backup moves no traffic by itself, and counts far beyond what was lost once a person says so."""

from __future__ import annotations

import pytest
from controller_rig import Rig
from controller_states import NAME, NOW, POLICY, state

from controller.recovering import GENERATIONS_SKIPPED, NUMBERS_SKIPPED, recover
from controller.state import ModelState, Phase
from controller.store.port import Commit
from deployers.target import TrafficPlan


def go_back(rig: Rig, backup: ModelState) -> None:
    """Let the store hold what it held before, as a restored backup does; what was told to the target stays."""
    rig.store._states[NAME] = backup
    rig.reconciler._newest.clear()  # another process reads it


@pytest.mark.parametrize("phase", [None, Phase.TRAINING, Phase.ROLLING_OUT])
def test_an_older_plan_is_not_even_offered(phase: Phase | None) -> None:
    """Whatever the epoch: the target has a newer plan in force, so nothing is decided, asked of jobs, or told to it."""
    rig = Rig()
    rig.add(state(phase))
    rig.look(NAME)
    backup = rig.state(NAME)
    assert backup.plan is not None
    newer = TrafficPlan(
        model=NAME, epoch=rig.leadership.held, generation=backup.plan.generation + 3, digests={9: "sha256:lost"},
        weights={9: 100.0},
    )  # fmt: skip
    rig.target.apply(newer)
    for _ in range(3):
        rig.target.observe(NAME)
    go_back(rig, backup)
    in_force, starts = rig.target.in_force[NAME], dict(rig.jobs.starts)
    rig.leadership.held += 100
    said = rig.look(NAME)
    assert "an older database was restored" in said
    assert "ratchet recover" in said
    assert rig.target.in_force[NAME] == in_force
    assert (rig.state(NAME), rig.jobs.starts) == (backup, starts)

    decision = recover(backup, POLICY, "ann", "disk lost", NOW)
    rig.leadership.held -= 100
    rig.store.commit(
        rig.leadership.epoch(),
        Commit(model=decision.after, closed=decision.closed, events=decision.events, notices=decision.notices),
    )
    after = rig.state(NAME)
    assert after.plan is not None
    assert after.plan.generation >= newer.generation + GENERATIONS_SKIPPED - 3
    assert (after.next_version, after.next_cycle) == (
        backup.next_version + NUMBERS_SKIPPED, backup.next_cycle + NUMBERS_SKIPPED,
    )  # fmt: skip
    assert after.cycle is None
    assert after.champion == backup.champion
    assert "ann: goes on from a restored backup (disk lost)" in [event.sentence for event in decision.events]
    assert "restored" not in rig.look(NAME)
    assert rig.target.plans[NAME].weights == after.plan.weights
