"""The jobs that a state calls for: the same each time they are asked for, whoever asks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from controller_states import DAY, HOUR, NAME, NOW, OUTPUTS, hold, look, newborn, policy, state, succeeded, with_cycle

from controller.budget import compute_left_s
from controller.cycle import JOB_PHASES
from controller.decide import decide
from controller.phases import job_id
from controller.state import ModelState, Phase
from controller.store.codec import decode, encode
from controller.work import ENTRIES, wanted_job
from pipelines.jobs.port import JobSpec
from policies.schema import ModelPolicy

HOME = Path("/srv/ratchet")
JOBS = sorted(JOB_PHASES)


def asked(phase: Phase, **changes: object) -> ModelState:
    return with_cycle(state(phase, **changes), job_id=job_id(NAME, 7, phase, 1))


def spec_of(made: ModelState) -> object:
    return wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)


@pytest.mark.parametrize("phase", JOBS)
def test_the_same_state_asks_for_the_same_job(phase: Phase) -> None:
    """Also after a stay in the store, which is what the next leader reads: JSON, with the phase's own entry and folder."""
    made = asked(phase)
    spec = wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)
    assert spec is not None
    assert spec == spec_of(decode(ModelState, encode(made), where="test"))
    assert (spec.job_id, spec.entry) == (f"{NAME}-c7-{phase}-1", ENTRIES[phase])
    assert spec.workdir == f"/srv/ratchet/work/{NAME}/c7/{phase}"
    assert json.loads(json.dumps(spec.inputs)) == spec.inputs


@pytest.mark.parametrize("phase", JOBS)
def test_looking_again_asks_for_the_same_job(phase: Phase) -> None:
    """Whatever else a look changes, the job under way stays the same."""
    made = asked(phase)
    again = decide(look(made), NOW + HOUR).after
    assert spec_of(again) == spec_of(made)


def test_a_later_attempt_shares_the_working_folder() -> None:
    """Under another name, it goes on where the first one stopped (the study's journal)."""
    first = asked(Phase.TUNING)
    second = with_cycle(first, attempt=2, job_id=job_id(NAME, 7, Phase.TUNING, 2))
    one, two = (wanted_job(s, ModelPolicy.model_validate_json(s.policy), HOME) for s in (first, second))
    assert one is not None
    assert two is not None
    assert (one.workdir, one.inputs) == (two.workdir, two.inputs)
    assert one.job_id != two.job_id


@pytest.mark.parametrize("phase", list(Phase))
def test_no_job_is_wanted_before_it_is_written_down(phase: Phase) -> None:
    """Intent first (the name in the state), then the job."""
    assert spec_of(state(phase)) is None


@pytest.mark.parametrize("phase", JOBS)
def test_held_models_ask_for_nothing(phase: Phase) -> None:
    """Paused or pinned, nothing is started; a freeze lets work go on."""
    assert spec_of(replace(asked(phase), paused=hold())) is None
    assert spec_of(replace(asked(phase), pinned=hold())) is None
    assert spec_of(replace(asked(phase), frozen=hold())) is not None


def test_the_first_cycle_knows_no_champion() -> None:
    """Tuning starts from nothing and judging compares with nobody."""
    for phase in (Phase.TUNING, Phase.JUDGING):
        made = with_cycle(newborn(phase), job_id=job_id(NAME, 7, phase, 1))
        spec = wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)
        assert spec is not None
        assert spec.inputs["champion"] is None


def test_the_judge_is_told_what_earlier_verdicts_used() -> None:
    """Rows that are asked again must pay for it, so that the account goes with the question."""
    use = {"oldest": None, "newest": None, "rows": 100, "table_rows": 500, "left": 0.2, "cycle": 6}
    made = replace(asked(Phase.JUDGING), hold_out_uses=(use,))
    spec = wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)
    assert spec is not None
    assert spec.inputs["earlier"] == [use]


def test_preparing_looks_at_nothing_after_the_cutoff() -> None:
    """What was not known when the cycle started stays unknown, also to a retry days later (invariant 12)."""
    made = asked(Phase.PREPARING)
    spec = wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)
    assert spec is not None
    assert spec.inputs["now"] == (NOW - HOUR).isoformat()


def test_annotations_hold_no_clock() -> None:
    """The same inputs give the same image, whenever it is packaged (invariant 3)."""
    made = asked(Phase.PACKAGING)
    later = with_cycle(made, phase_since=NOW + HOUR)
    assert spec_of(made) == spec_of(later)
    spec = wanted_job(made, ModelPolicy.model_validate_json(made.policy), HOME)
    assert spec is not None
    assert spec.inputs["annotations"]["dev.ratchet.data"] == "sha256:data"
    assert spec.inputs["model_dir"] == OUTPUTS["training"]["model_dir"]


def test_the_judge_gets_both_fits_and_packaging_the_second() -> None:
    """What was trained on fewer rows is judged, the refit is looked at beside it, and only the refit is packaged."""
    refit = {"model_dir": "/models/refit", "model_digest": "sha256:refit", "rows": 1200, "trained_to": NOW.isoformat()}
    for phase in (Phase.JUDGING, Phase.PACKAGING):
        made = asked(phase)
        assert made.cycle is not None
        outputs = {**made.cycle.outputs, "training": {**OUTPUTS["training"], "refit": refit}}
        plain, both = spec_of(made), spec_of(with_cycle(made, outputs=outputs))
        assert isinstance(plain, JobSpec)
        assert isinstance(both, JobSpec)
        if phase is Phase.JUDGING:
            assert (plain.inputs["model_dir"], plain.inputs["refit_dir"]) == (OUTPUTS["training"]["model_dir"], None)
            assert (both.inputs["model_dir"], both.inputs["refit_dir"]) == (plain.inputs["model_dir"], "/models/refit")
        else:
            assert both.inputs["model_dir"] == "/models/refit"
            assert both.inputs["annotations"] != plain.inputs["annotations"]


def test_the_judge_is_told_up_to_when_the_champion_knows_the_rows() -> None:
    """A refit has been fitted on rows that may be asked again."""
    spec = spec_of(asked(Phase.JUDGING))
    assert isinstance(spec, JobSpec)
    assert spec.inputs["champion"]["trained_to"] == (NOW - 10 * DAY).isoformat()


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.TUNING, Phase.TRAINING])
@pytest.mark.parametrize("changed_at", [NOW - 5 * HOUR, None])
def test_jobs_are_told_when_the_world_changed(phase: Phase, changed_at: datetime | None) -> None:
    """The same moment in each, also after a stay in the store."""
    made = with_cycle(asked(phase), changed_at=changed_at)
    spec = spec_of(decode(ModelState, encode(made), where="test"))
    assert isinstance(spec, JobSpec)
    assert spec.inputs["changed_at"] == (changed_at.isoformat() if changed_at else None)


# ---------------------------------------------------------------- compute
FOLLOW = policy(
    budget={"cycles": 3, "per": "2d", "compute": "10m"},
    train={"component": "sklearn.logistic_regression", "timeout": "1h"},
)
EARLIER = ((NOW - 60 * HOUR, 500.0), (NOW - 20 * HOUR, 200.0), (NOW - HOUR, 0.0))


def budgeted(**changes: object) -> ModelState:
    made = state(Phase.TRAINING, follow=FOLLOW, recent_cycles=EARLIER)
    return with_cycle(made, compute_s=100.0, job_id=job_id(NAME, 7, Phase.TRAINING, 1), **changes)


def test_a_job_may_run_as_long_as_the_compute_budget_lasts() -> None:
    """600 s less 200 s of an earlier cycle inside the period, less 100 s of this one."""
    made = budgeted()
    assert compute_left_s(made, FOLLOW) == 300
    spec = wanted_job(made, FOLLOW, HOME)
    assert spec is not None
    assert spec.limits.timeout_s == 300


def test_a_persons_cycle_and_one_without_budget_are_not_bounded_by_it() -> None:
    """A budget bounds what happens by itself."""
    assert compute_left_s(budgeted(cause="person: ann, a test"), FOLLOW) == float("inf")
    assert compute_left_s(budgeted(), policy()) == float("inf")


def test_success_hands_the_outputs_on() -> None:
    """Each phase's job gets what the earlier ones gave."""
    made = asked(Phase.TUNING)
    trained = decide(look(made, job=succeeded(OUTPUTS["tuning"])), NOW).after
    trained = decide(look(trained), NOW).after
    spec = wanted_job(trained, ModelPolicy.model_validate_json(trained.policy), HOME)
    assert spec is not None
    assert (spec.inputs["prepared"], spec.inputs["tuned"]) == (OUTPUTS["preparing"], OUTPUTS["tuning"])
