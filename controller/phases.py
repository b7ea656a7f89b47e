"""The phases in which a job does the work: prepare, tune, train, judge, package. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from controller import quarantine
from controller.budget import compute_left_s, spent_words
from controller.cycle import JOB_PHASES, Move, final_model, served_model
from controller.draft import Draft, until
from controller.state import ModelState, Phase, Refused, Version, VersionStatus
from pipelines.jobs.port import JobState, JobStatus

MAX_ATTEMPTS = 3
"""Of one job, when it fails in a way that may pass."""
RETRY_AFTER = (timedelta(0), timedelta(seconds=30))
"""Pause before the second and the third attempt."""
USUAL_ROWS_MIN = 200
"""Rows of a hold-out from which on it says which errors of a regression are usual."""
USES_KEPT = 20
"""Verdicts whose rows are remembered. Hold-outs move on with time, so that rows older than the last twenty do not come back."""
NEEDED: Mapping[Phase, frozenset[str]] = {
    Phase.PREPARING: frozenset({"fingerprint"}),
    Phase.TUNING: frozenset(),
    Phase.TRAINING: frozenset({"model_dir", "model_digest", "component", "parameters", "window_s", "rows"}),
    Phase.JUDGING: frozenset({"verdict", "sentence"}),
    Phase.PACKAGING: frozenset({"digest"}),
}
"""Phase → keys of its job's output without which the cycle cannot go on."""
_JOB_ID = re.compile(rf"(.+)-c([0-9]+)-(?:{'|'.join(sorted(JOB_PHASES))})-[0-9]+")


def job_id(model: str, cycle: int, phase: Phase, attempt: int) -> str:
    """The name under which a phase's job runs at most once.

    >>> job_id("flight-late", 3, Phase.TRAINING, 1)
    'flight-late-c3-training-1'
    """
    return f"{model}-c{cycle}-{phase.value}-{attempt}"


def model_of_job(job_id: str) -> str | None:
    """The model whose cycle a job belongs to; None if it is no cycle's job.

    >>> model_of_job("flight-late-c3-training-1")
    'flight-late'
    """
    found = cycle_of_job(job_id)
    return found[0] if found else None


def cycle_of_job(job_id: str) -> tuple[str, int] | None:
    """Model and number of the cycle that a job belongs to; None if it is no cycle's job.

    >>> cycle_of_job("flight-late-c3-training-1")
    ('flight-late', 3)
    """
    match = _JOB_ID.fullmatch(job_id)
    return (match[1], int(match[2])) if match else None


def advance(draft: Draft, job: JobStatus | None) -> str:
    """One look at the job of the present phase."""
    cycle = draft.cycle
    wanted = job_id(draft.state.name, cycle.number, cycle.phase, cycle.attempt)
    if cycle.job_id != wanted:
        return _start_job(draft, wanted)
    if job is None or job.state is JobState.RUNNING:
        text = str(job.progress.get("text", "")) if job else ""
        return f"{cycle.phase}{': ' + text if text else ''}"
    if job.state is JobState.SUCCEEDED:
        assert job.output is not None
        return _succeeded(draft, job.output, job.seconds)
    return _failed(draft, job)


def _start_job(draft: Draft, wanted: str) -> str:
    cycle = draft.cycle
    if cycle.not_before is not None and draft.now < cycle.not_before:
        return f"{cycle.phase}: attempt {cycle.attempt} starts at {until(cycle.not_before)}, because {cycle.sentence}"
    if compute_left_s(draft.state, draft.policy) <= 0:
        return _give_up(draft, f"{cycle.phase} does not start: {spent_words(draft.policy)}")
    draft.set_cycle(job_id=wanted)
    if cycle.phase is Phase.PACKAGING and cycle.challenger is None:
        number = draft.state.next_version
        draft.set_cycle(challenger=number)
        draft.set(next_version=number + 1)
    return f"{cycle.phase}: starts"


def _failed(draft: Draft, job: JobStatus) -> str:
    cycle = draft.cycle
    reason = job.error or f"its job was {job.state}"
    draft.set_cycle(compute_s=cycle.compute_s + job.seconds)
    may_pass = job.retryable or job.state is JobState.CANCELLED
    if may_pass and cycle.attempt < MAX_ATTEMPTS:
        pause = RETRY_AFTER[cycle.attempt - 1]
        sentence = f"attempt {cycle.attempt} of {cycle.phase} failed: {reason}"
        draft.set_cycle(attempt=cycle.attempt + 1, not_before=draft.now + pause, job_id=None, sentence=sentence)
        draft.event("job.retried", sentence, error=reason, attempt=cycle.attempt)
        return sentence
    tries = f" after {cycle.attempt} attempts" if cycle.attempt > 1 else ""
    return _give_up(draft, f"{cycle.phase} failed{tries}: {reason}")


def _give_up(draft: Draft, reason: str) -> str:
    sentence = f"{reason}; {_who_serves(draft.state)}"
    draft.move(Move.GAVE_UP, sentence, kind="cycle.failed", notify=True, error=reason)
    return sentence


def _who_serves(state: ModelState) -> str:
    return f"v{state.champion} keeps serving" if state.champion is not None else "no version serves yet"


def _succeeded(draft: Draft, output: Mapping[str, Any], seconds: float) -> str:
    cycle = draft.cycle
    draft.set_cycle(outputs={**cycle.outputs, cycle.phase.value: output}, compute_s=cycle.compute_s + seconds)
    if cycle.phase is Phase.PREPARING:
        draft.see_prepared(output)
        if output.get("inconclusive"):
            return _nothing_to_learn_from(draft, output, seconds)
    if missing := sorted(NEEDED[cycle.phase] - output.keys()):
        return _give_up(draft, f"the result of {cycle.phase} lacks {', '.join(missing)}")
    said = str(output.get("sentence", ""))
    match cycle.phase:
        case Phase.PREPARING:
            draft.move(Move.PREPARED, said, kind="data.prepared", output=output, seconds=seconds)
            return said
        case Phase.TUNING:
            draft.move(Move.TUNED, said, kind="study.finished", output=output, seconds=seconds)
            return said
        case Phase.TRAINING:
            return _trained(draft, output, seconds)
        case Phase.JUDGING:
            return _judged(draft, output, seconds)
        case _:
            return _packaged(draft, output, seconds)


def _nothing_to_learn_from(draft: Draft, output: Mapping[str, Any], seconds: float) -> str:
    """So much of the data is held that nothing can be trained. Nothing has failed: the next cycle may find it mended."""
    sentence = f"{output['sentence']}; {_who_serves(draft.state)}"
    draft.move(
        Move.UNDECIDED, sentence, kind="cycle.ended_inconclusive", notify=True, output=output, seconds=seconds
    )  # fmt: skip
    return sentence


def _trained(draft: Draft, output: Mapping[str, Any], seconds: float) -> str:
    said = str(output.get("sentence", ""))
    digest, prepared = str(output["model_digest"]), draft.cycle.outputs[Phase.PREPARING.value]
    twin = _same_model(draft.state, str(served_model(output)["model_digest"]))
    refused = quarantine.same_content(draft.state, prepared, digest)
    if twin is None and refused is not None:
        which = f"that of cycle {refused.cycle}, which {refused.how}"
        sentence = f"the retrained model is the same as {which}: {quarantine.until_when(refused)}"
        draft.move(Move.REFUSED, sentence, kind="cycle.rejected", notify=True, output=output, twin_of=refused.cycle)
        return sentence
    if twin is None:
        draft.move(Move.TRAINED, said, kind="model.trained", output=output, seconds=seconds)
        return said
    what = "was refused before" if twin.status is VersionStatus.QUARANTINED else "serves already"
    sentence = f"the retrained model is the same as v{twin.number}, which {what}"
    draft.move(Move.REFUSED, sentence, kind="cycle.rejected", notify=True, output=output, twin=twin.number)
    return sentence


def _same_model(state: ModelState, digest: str) -> Version | None:
    """The champion or a quarantined version that has the same content, if there is one."""
    for version in state.versions.values():
        known = version.number == state.champion or version.status is VersionStatus.QUARANTINED
        if known and version.lineage.get("model_digest") == digest:
            return version
    return None


def _judged(draft: Draft, output: Mapping[str, Any], seconds: float) -> str:
    said = str(output["sentence"])
    if output.get("used"):
        used = {**output["used"], "cycle": draft.cycle.number}
        draft.set(hold_out_uses=(*draft.state.hold_out_uses, used)[-USES_KEPT:])
    alike = quarantine.same_answers(draft.state, draft.cycle.outputs[Phase.PREPARING.value], output)
    if alike is not None and output["verdict"] in ("pass", "inconclusive"):
        return _answers_like_refused(draft, output, seconds, *alike)
    match output["verdict"]:
        case "pass" if draft.policy.spec.approval == "required":
            draft.move(
                Move.HELD_FOR_APPROVAL, said, kind="approval.requested", notify=True, output=output, seconds=seconds
            )
        case "pass":
            draft.move(Move.PASSED, said, kind="gates.passed", notify=True, output=output, seconds=seconds)
        case "fail":
            draft.move(Move.REFUSED, said, kind="cycle.rejected", notify=True, output=output, seconds=seconds)
        case "inconclusive":
            draft.move(
                Move.UNDECIDED, said, kind="cycle.ended_inconclusive", notify=True, output=output, seconds=seconds
            )
        case _:
            draft.move(Move.GAVE_UP, said, kind="cycle.failed", notify=True, output=output, seconds=seconds)
    return said


def _answers_like_refused(
    draft: Draft, output: Mapping[str, Any], seconds: float, refused: Refused, likeness: Mapping[str, Any]
) -> str:
    """Retraining made again what was refused: the rows that spoke against it are no older now, whatever the gates say."""
    sentence = (
        f"the retrained model answers like that of cycle {refused.cycle}, which {refused.how} (largest difference "
        f"{likeness['difference']:.3f} on {likeness['rows']} probe rows): {quarantine.until_when(refused)}"
    )
    draft.set_cycle(twin_of=refused.cycle)
    draft.move(Move.REFUSED, sentence, kind="cycle.rejected", notify=True, output=output, seconds=seconds)
    return sentence


def _packaged(draft: Draft, output: Mapping[str, Any], seconds: float) -> str:
    cycle = draft.cycle
    assert cycle.challenger is not None
    version = _new_version(draft, cycle.challenger, output)
    draft.set_version(version)
    sentence = f"v{version.number} is packaged as {version.digest[:19]}; rolling out"
    draft.move(Move.PACKAGED, sentence, kind="version.created", output=output, seconds=seconds)
    draft.set_cycle(step=0)
    return sentence


def _usual_errors(state: ModelState, judged: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of a regression's errors, by which later ones are called too large: those of the hold-out, unless it is too short to say.

    Then those of the champion hold on. Right after a change the first model that knows a little of it is promoted on a few rows, and misses
    most of them: if that became what is usual, nothing would ask for the better one that more rows allow."""
    errors: Mapping[str, Any] | None = judged.get("usual_errors")
    champion = state.versions.get(state.champion) if state.champion is not None else None
    before = champion.lineage.get("usual_errors") if champion is not None else None
    return before if before is not None and (errors is None or errors["rows"] < USUAL_ROWS_MIN) else errors


def _new_version(draft: Draft, number: int, packaged: Mapping[str, Any]) -> Version:
    outputs = draft.cycle.outputs
    trained, judged = final_model(outputs), outputs[Phase.JUDGING.value]
    prepared = outputs[Phase.PREPARING.value]
    trained_to = trained.get("trained_to")
    return Version(
        model=draft.state.name, number=number, digest=str(packaged["digest"]), status=VersionStatus.CANDIDATE,
        created_at=draft.now, cycle=draft.cycle.number,
        trained_to=datetime.fromisoformat(trained_to) if trained_to else None,
        scores=dict(judged.get("scores") or {}),
        lineage={
            "verdict": judged["verdict"], "gates": judged["sentence"], "model_digest": trained["model_digest"],
            "component": trained["component"], "parameters": trained["parameters"], "window_s": trained["window_s"],
            "rows": trained["rows"], "judged_rows": judged.get("rows"),
            "promised": judged.get("promised"), "usual_errors": _usual_errors(draft.state, judged),
            "data": prepared["fingerprint"], "code": trained.get("code"),
            "policy": draft.state.policy_digest, "policy_source": _policy_source(draft.state),
            "image": {key: packaged.get(key) for key in ("placement", "reference", "size_bytes", "bytes_sent")},
        },
    )  # fmt: skip


def _policy_source(state: ModelState) -> dict[str, str] | None:
    """Where the policy came from that the version was made by; None for a person's hand."""
    origin = state.origin
    if origin is None or origin.forced:
        return None
    return {"source": origin.where, "file": origin.file, "commit": origin.revision}
