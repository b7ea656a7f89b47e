"""The phases in which a job does the work: what comes of each way a job can end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from controller_states import (
    HOUR,
    MINUTE,
    NAME,
    NOW,
    OUTPUTS,
    cycle,
    failed,
    look,
    policy,
    state,
    succeeded,
    version,
    with_cycle,
)

from controller.cycle import JOB_PHASES
from controller.decide import decide
from controller.draft import Decision
from controller.phases import MAX_ATTEMPTS, NEEDED, job_id, model_of_job
from controller.state import ModelState, Outcome, Phase, VersionStatus
from pipelines.jobs.port import JobState, JobStatus

JOBS = sorted(JOB_PHASES)
NEXT = {
    Phase.PREPARING: Phase.TUNING,
    Phase.TUNING: Phase.TRAINING,
    Phase.TRAINING: Phase.JUDGING,
    Phase.JUDGING: Phase.PACKAGING,
    Phase.PACKAGING: Phase.ROLLING_OUT,
}


def at_work(phase: Phase, attempt: int = 1, **changes: Any) -> ModelState:
    """The phase's job has been asked for."""
    return with_cycle(state(phase, **changes), job_id=job_id(NAME, 7, phase, attempt), attempt=attempt)


def ended(phase: Phase, **changes: Any) -> Decision:
    """The phase's job succeeded with its usual output, changed."""
    return decide(look(at_work(phase), job=succeeded({**OUTPUTS[phase.value], **changes})), NOW)


@pytest.mark.parametrize("phase", JOBS)
def test_a_phase_asks_for_its_job_under_one_name(phase: Phase) -> None:
    """The name is written down before the job is asked for, and looking again gives the same name."""
    first = decide(look(state(phase)), NOW).after
    assert first.cycle is not None
    assert first.cycle.job_id == f"{NAME}-c7-{phase}-1"
    assert not decide(look(first), NOW).changed


@pytest.mark.parametrize("phase", JOBS)
def test_success_leads_to_the_next_phase(phase: Phase) -> None:
    """Output and compute time are kept; the next phase begins afresh, from its first attempt."""
    decision = ended(phase)
    after = decision.after.cycle
    assert after is not None
    assert (after.phase, after.attempt, after.job_id, after.phase_since) == (NEXT[phase], 1, None, NOW)
    assert after.outputs[phase.value] == OUTPUTS[phase.value]
    assert after.compute_s == 10


@pytest.mark.parametrize("phase", JOBS)
@pytest.mark.parametrize("job", [None, JobStatus(state=JobState.RUNNING, progress={"text": "trial 3 of 9"})])
def test_a_job_that_runs_or_vanished_before_it_started_is_waited_for(phase: Phase, job: JobStatus | None) -> None:
    """Nothing is decided on no news: `work` asks for the job again, which starts it at most once."""
    decision = decide(look(at_work(phase), job=job), NOW)
    assert not decision.changed
    assert decision.sentence == (f"{phase}: trial 3 of 9" if job else f"{phase}")


@pytest.mark.parametrize("phase", JOBS)
def test_a_failure_that_may_pass_is_tried_again_and_then_given_up(phase: Phase) -> None:
    """Three attempts, the last after a pause; then the cycle has failed and the champion serves."""
    made = at_work(phase)
    for attempt in range(1, MAX_ATTEMPTS):
        decision = decide(look(made, job=failed(retryable=True)), NOW)
        assert [e.kind for e in decision.events] == ["job.retried"]
        retry = decision.after.cycle
        assert retry is not None
        assert (retry.attempt, retry.job_id, retry.phase) == (attempt + 1, None, phase)
        made = at_work(phase, attempt + 1)
    decision = decide(look(made, job=failed(retryable=True)), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.FAILED
    assert decision.sentence == f"{phase} failed after 3 attempts: out of memory; v2 keeps serving"
    assert decision.after.plan == made.plan


def test_a_retry_waits_for_its_time() -> None:
    """Before `not_before` nothing is started."""
    made = with_cycle(state(Phase.TRAINING), attempt=3, not_before=NOW + MINUTE)
    assert not decide(look(made), NOW).changed
    after = decide(look(made), NOW + MINUTE).after.cycle
    assert after is not None
    assert after.job_id == f"{NAME}-c7-training-3"


@pytest.mark.parametrize("phase", JOBS)
def test_a_failure_for_good_ends_the_cycle_at_once(phase: Phase) -> None:
    """Bad input does not get better by trying again."""
    decision = decide(look(at_work(phase), job=failed("column 'late' is missing")), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.FAILED
    assert "column 'late' is missing" in decision.sentence
    assert [n.kind for n in decision.notices] == ["cycle.failed"]


@pytest.mark.parametrize("phase", JOBS)
def test_a_cancelled_job_is_tried_again(phase: Phase) -> None:
    """Nobody ordered it, or the cycle would be closed: somebody who led before may have cancelled it."""
    after = decide(look(at_work(phase), job=JobStatus(state=JobState.CANCELLED)), NOW).after.cycle
    assert after is not None
    assert after.attempt == 2


@pytest.mark.parametrize(("phase", "key"), [(p, k) for p in JOBS for k in sorted(NEEDED[p])])
def test_a_result_that_lacks_something_fails_the_cycle(phase: Phase, key: str) -> None:
    """A job of another release cannot wedge the loop: what it lacks is named."""
    output = {k: v for k, v in OUTPUTS[phase.value].items() if k != key}
    decision = decide(look(at_work(phase), job=succeeded(output)), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.FAILED
    assert f"the result of {phase} lacks {key}" in decision.sentence


# ---------------------------------------------------------------- training, judging
@pytest.mark.parametrize(
    ("twin", "words"),
    [
        (version(2, VersionStatus.CHAMPION, lineage={"model_digest": "sha256:new", "verdict": "pass"}), "serves already"),
        (version(1, VersionStatus.QUARANTINED, lineage={"model_digest": "sha256:new"}), "was refused before"),
    ],
)  # fmt: skip
def test_the_same_model_again_is_refused(twin: Any, words: str) -> None:
    """Retraining that gives the champion, or what was refused, goes no further (invariant 7)."""
    made = at_work(Phase.TRAINING)
    made = replace(made, versions={**made.versions, twin.number: twin})
    decision = decide(look(made, job=succeeded(OUTPUTS["training"])), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.REJECTED
    assert decision.sentence == f"the retrained model is the same as v{twin.number}, which {words}"


REFIT = {
    "model_dir": "/models/refit", "model_digest": "sha256:refit", "rows": 1200, "trained_to": NOW.isoformat(), "train_s": 1.0,
}  # fmt: skip


def test_a_refit_that_serves_already_is_the_same_model_again() -> None:
    """With a refit, what a version holds is the refit, so that is what a twin is known by; the model judged is nobody's."""
    made = at_work(Phase.TRAINING)
    trained = succeeded({**OUTPUTS["training"], "refit": REFIT})
    for digest, outcome in (("sha256:refit", Outcome.REJECTED), ("sha256:new", None)):
        champion = version(2, VersionStatus.CHAMPION, lineage={"model_digest": digest, "verdict": "pass"})
        decision = decide(look(replace(made, versions={**made.versions, 2: champion}), job=trained), NOW)
        assert (decision.closed.outcome if decision.closed else None) is outcome


def test_a_retired_twin_may_come_back() -> None:
    """The world may have gone back to what it was: that a model once retired is no reason to refuse it."""
    made = at_work(Phase.TRAINING)
    twin = version(1, lineage={"model_digest": "sha256:new"})
    made = replace(made, versions={**made.versions, 1: twin})
    after = decide(look(made, job=succeeded(OUTPUTS["training"])), NOW).after.cycle
    assert after is not None
    assert after.phase is Phase.JUDGING


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [("fail", Outcome.REJECTED), ("inconclusive", Outcome.INCONCLUSIVE), ("error", Outcome.FAILED), ("what?", Outcome.FAILED)],
)  # fmt: skip
def test_only_a_pass_passes(verdict: str, outcome: Outcome) -> None:
    """Failed, inconclusive and broken are three things, and none of them makes a version."""
    decision = ended(Phase.JUDGING, verdict=verdict)
    assert decision.closed is not None
    assert decision.closed.outcome is outcome
    assert decision.after.versions.keys() == {1, 2}
    assert decision.after.next_version == 4


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_what_a_verdict_used_of_the_hold_out_is_remembered_whatever_it_was(verdict: str) -> None:
    """The newest twenty, with the number of their cycle; a verdict that compared nothing used nothing."""
    used = {"oldest": None, "newest": None, "rows": 100, "table_rows": 500, "left": 0.2}
    before = tuple({**used, "cycle": n} for n in range(20))
    made = at_work(Phase.JUDGING, hold_out_uses=before)
    output = {**OUTPUTS["judging"], "verdict": verdict, "used": used}
    after = decide(look(made, job=succeeded(output)), NOW).after
    assert after.hold_out_uses == (*before[1:], {**used, "cycle": 7})
    nothing = decide(look(made, job=succeeded({**output, "used": None})), NOW).after
    assert nothing.hold_out_uses == before


def test_required_approval_stops_a_pass() -> None:
    """The owner wanted to be asked: a pass waits, and people are told."""
    follow = policy(approval="required")
    made = with_cycle(state(Phase.JUDGING, follow=follow), job_id=job_id(NAME, 7, Phase.JUDGING, 1))
    decision = decide(look(made, job=succeeded(OUTPUTS["judging"])), NOW)
    assert decision.after.cycle is not None
    assert decision.after.cycle.phase is Phase.AWAITING_APPROVAL
    assert [n.kind for n in decision.notices] == ["approval.requested"]


# ---------------------------------------------------------------- packaging
def test_packaging_takes_a_number_once() -> None:
    """The number is handed out with the job's name, and a second attempt keeps it (invariant 3)."""
    made = with_cycle(state(Phase.PACKAGING), challenger=None)
    first = decide(look(made), NOW).after
    assert first.cycle is not None
    assert (first.cycle.challenger, first.next_version) == (4, 5)
    again = decide(look(first, job=failed(retryable=True)), NOW).after
    second = decide(look(again), NOW + HOUR).after
    assert second.cycle is not None
    assert (second.cycle.challenger, second.cycle.attempt, second.next_version) == (4, 2, 5)


def test_a_packaged_version_carries_its_lineage() -> None:
    """From data to gates: enough to say later where a version comes from (invariant 9)."""
    made = ended(Phase.PACKAGING).after
    new = made.versions[3]
    assert (new.digest, new.status, new.scores) == ("sha256:image", VersionStatus.CANDIDATE, {"accuracy": 0.8})
    assert new.lineage["data"] == "sha256:data"
    assert new.lineage["verdict"] == "pass"
    assert new.lineage["model_digest"] == "sha256:new"
    assert made.champion == 2


@pytest.mark.parametrize(
    ("own", "before", "kept"),
    [
        ({"rows": 200}, {"rows": 900}, {"rows": 200}),
        ({"rows": 199}, {"rows": 900}, {"rows": 900}),
        ({"rows": 50}, None, {"rows": 50}),
        (None, {"rows": 900}, {"rows": 900}),
    ],
)
def test_a_short_hold_out_does_not_say_which_errors_are_usual(own: Any, before: Any, kept: Any) -> None:
    """Just after a change the champion's stay the measure, so that the next cycle still sees how far off the first answer to it is."""
    outputs = {**OUTPUTS, "judging": {**OUTPUTS["judging"], "usual_errors": own}}
    made = with_cycle(at_work(Phase.PACKAGING), outputs={k: v for k, v in outputs.items() if k != "packaging"})
    champion = replace(made.versions[2], lineage={**made.versions[2].lineage, "usual_errors": before})
    made = replace(made, versions={**made.versions, 2: champion})
    new = decide(look(made, job=succeeded(OUTPUTS["packaging"])), NOW).after.versions[3]
    assert new.lineage["usual_errors"] == kept


def test_a_version_is_the_refit_with_the_verdict_on_what_was_judged() -> None:
    """Its content, rows and newest row are the refit's; scores, and the rows they are of, those of the model judged."""
    outputs = {
        **OUTPUTS, "training": {**OUTPUTS["training"], "refit": REFIT}, "judging": {**OUTPUTS["judging"], "rows": 200},
    }  # fmt: skip
    made = with_cycle(at_work(Phase.PACKAGING), outputs={k: v for k, v in outputs.items() if k != "packaging"})
    new = decide(look(made, job=succeeded(OUTPUTS["packaging"])), NOW).after.versions[3]
    assert (new.lineage["model_digest"], new.lineage["rows"], new.trained_to) == ("sha256:refit", 1200, NOW)
    assert (new.lineage["component"], new.lineage["judged_rows"], new.scores) == ("c", 200, {"accuracy": 0.8})


# ---------------------------------------------------------------- compute
def test_no_job_starts_once_the_compute_budget_is_spent() -> None:
    """The cycle fails and says so, rather than run a job for a second (invariant 10)."""
    follow = policy(budget={"cycles": 3, "per": "2d", "compute": "10m"})
    made = state(Phase.TRAINING, follow=follow, recent_cycles=((NOW - 20 * HOUR, 550.0),))
    made = with_cycle(made, compute_s=50.0)
    decision = decide(look(made), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.FAILED
    assert "training does not start: the budget of 10m of compute per 2d is spent" in decision.sentence
    by_person = with_cycle(made, cause="person: ann, a test")
    assert decide(look(by_person), NOW).after.cycle is not None


def test_closing_writes_down_what_the_cycle_used() -> None:
    """The next cycle's budget counts the seconds of all attempts."""
    made = at_work(Phase.TRAINING, recent_cycles=((NOW - HOUR, 0.0),))
    made = with_cycle(made, compute_s=30.0)
    after = decide(look(made, job=failed("no")), NOW).after
    assert after.recent_cycles == ((NOW - HOUR, 40.0),)


def test_job_names_tell_their_model() -> None:
    """Even where a model's name looks like a job's."""
    tricky = "a-c1-training-1"
    assert model_of_job(job_id(tricky, 12, Phase.JUDGING, 2)) == tricky
    assert model_of_job("flight-late-observe-a1b2c3d4e5f6") is None
    assert cycle(Phase.QUEUED).number == 7
