"""The job that judges a challenger: both models answer the same matured hold-out rows, then the policy's gates are asked.

Entry `evaluators.judge:run`. A challenger that cannot be loaded or gives no usable answers is an error or a failure, never an exception:
the verdict is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import Answers, AnswersError, Asker, Floats, ModelFolder, WrongAnswersError, align, ask
from evaluators.estimate.fitting import keep_estimator
from evaluators.gates import Challenge, GateResult, Scored, Verdict, all_scores, judge_gate, worst
from evaluators.wording import count, number
from pipelines.data.labels import encode_labels
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError
from policies.metrics import Task
from policies.schema import Gate, LatencyGate, ModelPolicy, SlicesGate, Spec

if TYPE_CHECKING:
    import pandas as pd

SCORING_TIMEOUT_S = 600.0
"""For either process to load its model and answer all rows."""
LATENCY_ROWS = 200
"""Single-row answers that are timed: enough for a 95th percentile with ten above it."""
SMOKE = "loads and predicts"


@dataclass(frozen=True, kw_only=True, slots=True)
class _HoldOut:
    """The rows that both models answer."""

    path: Path
    rows: int
    usable: NDArray[np.bool_]
    """(rows,): whether the label is there and, in binary tasks, one of the classes."""
    labels: Floats
    """Of the usable rows."""
    classes: Sequence[Any] | None
    columns: Mapping[str, NDArray[Any]]
    """Of the usable rows: what slices are made by."""


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Judge. `inputs` and the result are as in the brief of the job (docs/statistics.md): verdict, sentence, gates, scores of both.

    `timeout_s` in the inputs replaces SCORING_TIMEOUT_S. Raises PermanentJobError if the policy or the hold-out file is no good, and
    RetryableJobError if the hold-out file is not there.
    """
    return judge(inputs, context, ask=ask)


def judge(inputs: Mapping[str, Any], context: JobContext, *, ask: Asker) -> dict[str, Any]:
    """The same with another way to a model's answers: a replay of history asks models that are loaded already."""
    spec = ModelPolicy.model_validate(inputs["policy"]).spec
    challenger_dir = Path(inputs["model_dir"])
    try:
        challenger = ModelFolder.read(challenger_dir)
    except AnswersError as error:
        return _only_smoke(Verdict.FAIL, f"the challenger's folder is no model: {error}")
    hold_out = _read_hold_out(inputs["prepared"], spec, challenger)
    if not len(hold_out.labels):
        return _no_rows(hold_out)
    context.report(text=f"scoring {count(hold_out.rows, 'hold-out row')}")
    answered = _ask_both(inputs, spec, challenger, hold_out, context.workdir, ask)
    if isinstance(answered.challenger, AnswersError):
        verdict = Verdict.FAIL if isinstance(answered.challenger, WrongAnswersError) else Verdict.ERROR
        return _only_smoke(verdict, f"the challenger does not work: {answered.challenger}", rows=len(hold_out.labels))
    context.report(text=f"asking {count(len(spec.gates), 'gate')}")
    challenge, latency_p95 = _challenge(spec, challenger, hold_out, answered, int(inputs.get("seed") or 0))
    result = _result(spec, challenge, hold_out, latency_p95)
    return {**result, **_estimator(result["verdict"], spec.task, challenger, hold_out, challenge, context.workdir)}


# ---------------------------------------------------------------- rows
def _read_hold_out(prepared: Mapping[str, Any], spec: Spec, challenger: ModelFolder) -> _HoldOut:
    import pandas as pd

    path = Path(prepared["holdout"])
    try:
        frame: pd.DataFrame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise RetryableJobError(f"the hold-out rows {path} are gone; prepare them again") from error
    except (OSError, ValueError) as error:
        raise PermanentJobError(f"the hold-out rows {path} cannot be read: {error}") from error
    if spec.data.label not in frame.columns:
        raise PermanentJobError(f"data.label: no column {spec.data.label!r} in the hold-out rows {path}")
    classes = challenger.classes if prepared.get("classes") is None else prepared["classes"]
    codes = encode_labels(frame[spec.data.label], classes)
    if spec.task is Task.MULTICLASS:
        codes = np.where(np.isnan(codes) & frame[spec.data.label].notna().to_numpy(), -1.0, codes)
    usable = np.isfinite(codes)
    wanted = {column for gate in spec.gates if isinstance(gate, SlicesGate) for column in gate.slices.by}
    columns = {c: frame[c].to_numpy(dtype=object)[usable] for c in sorted(wanted) if c in frame.columns}
    return _HoldOut(
        path=path, rows=len(frame), usable=usable, labels=codes[usable], classes=classes, columns=columns
    )  # fmt: skip


# ---------------------------------------------------------------- answers
@dataclass(frozen=True, kw_only=True, slots=True)
class _Answered:
    challenger: Answers | AnswersError
    champion: Floats | None
    champion_problem: str
    """Why an existing champion has no answers."""


def _ask_both(
    inputs: Mapping[str, Any], spec: Spec, challenger: ModelFolder, hold_out: _HoldOut, workdir: Path, ask: Asker
) -> _Answered:
    """Both at the same time; one after the other if latency is judged, so that neither slows the other down."""
    timed = any(isinstance(gate, LatencyGate) for gate in spec.gates)
    timeout_s = float(inputs.get("timeout_s") or SCORING_TIMEOUT_S)

    def answers(model: ModelFolder, name: str, latency_rows: int) -> Answers:
        own = ask(
            model, hold_out.path, task=spec.task, row_count=hold_out.rows, workdir=workdir / name, timeout_s=timeout_s,
            latency_rows=latency_rows,
        )  # fmt: skip
        return replace(own, scores=align(own.scores, model.classes, hold_out.classes))

    def champion_answers(model_dir: Path) -> Answers:
        return answers(ModelFolder.read(model_dir), "champion", 0)

    champion: Mapping[str, Any] | None = inputs.get("champion")
    with ThreadPoolExecutor(max_workers=1 if timed else 2) as pool:
        first = pool.submit(answers, challenger, "challenger", min(LATENCY_ROWS, hold_out.rows))
        if champion is None:
            return _Answered(challenger=_outcome(first), champion=None, champion_problem="")
        second = _outcome(pool.submit(champion_answers, Path(champion["model_dir"])))
    if isinstance(second, AnswersError):
        problem = f"champion v{champion['number']} could not answer the hold-out rows: {second}"
        return _Answered(challenger=_outcome(first), champion=None, champion_problem=problem)
    return _Answered(challenger=_outcome(first), champion=second.scores, champion_problem="")


def _outcome(future: Future[Answers]) -> Answers | AnswersError:
    try:
        return future.result()
    except AnswersError as error:
        return error


# ---------------------------------------------------------------- verdict
def _challenge(
    spec: Spec, challenger: ModelFolder, hold_out: _HoldOut, answered: _Answered, seed: int
) -> tuple[Challenge, float | None]:
    """What the gates decide on, and the 95th percentile of the latency."""
    assert isinstance(answered.challenger, Answers)
    scored = Scored(
        task=spec.task,
        labels=hold_out.labels,
        classes=None if hold_out.classes is None else len(hold_out.classes),
        threshold=spec.objective.threshold,
        challenger=answered.challenger.scores[hold_out.usable],
        champion=None if answered.champion is None else answered.champion[hold_out.usable],
        columns=hold_out.columns,
    )
    latency = answered.challenger.latency_ms
    challenge = Challenge(
        scored=scored,
        champion_problem=answered.champion_problem,
        latency_ms=latency,
        size_mb=challenger.size_mb,
        seed=seed,
    )
    return challenge, float(np.quantile(latency, 0.95)) if len(latency) else None


def _result(spec: Spec, challenge: Challenge, hold_out: _HoldOut, latency_p95: float | None) -> dict[str, Any]:
    scored = challenge.scored
    smoke = GateResult(
        gate=SMOKE,
        verdict=Verdict.PASS,
        sentence=f"loaded in a fresh process and answered {count(hold_out.rows, 'row')}",
    )
    gates = [smoke, *(judge_gate(gate, challenge) for gate in spec.gates)]
    verdict = worst([result.verdict for result in gates])
    scores = all_scores(scored, scored.challenger)
    champion_scores = None if scored.champion is None else all_scores(scored, scored.champion)
    return {
        "verdict": verdict.value,
        "sentence": _sentence(verdict, gates, spec.gates, spec.objective.metric, scores, champion_scores, scored.rows),
        "gates": [result.as_json() for result in gates],
        "scores": scores,
        "champion_scores": champion_scores,
        "rows": scored.rows,
        "latency_ms_p95": latency_p95,
        "size_mb": challenge.size_mb,
    }


def _estimator(
    verdict: str, task: Task, challenger: ModelFolder, hold_out: _HoldOut, challenge: Challenge, workdir: Path
) -> dict[str, Any]:
    """Where the file lies with which live answers of a version that passed can be scored before their labels are in; null if nowhere."""
    if verdict != Verdict.PASS:
        return {"estimator": None}
    if list(challenger.classes or ()) != list(hold_out.classes or ()):
        return {"estimator": None, "estimator_said": "the model's classes are not those of the hold-out rows"}
    path, said = keep_estimator(
        task, challenger, hold_out.path, hold_out.usable, hold_out.labels, challenge.scored.challenger, workdir
    )
    return {"estimator": None if path is None else str(path), "estimator_said": said}


def _sentence(
    verdict: Verdict,
    results: Sequence[GateResult],
    asked: Sequence[Gate],
    metric: str,
    scores: Mapping[str, float],
    champion_scores: Mapping[str, float] | None,
    rows: int,
) -> str:
    """Why the verdict is what it is: the gates that decided it, or the objective if all passed."""
    if verdict is not Verdict.PASS:
        deciding = [result.sentence for result in results if result.verdict is verdict]
        return f"{verdict.value}: " + "; ".join(deciding)
    passed = f"passed all {count(len(asked), 'gate')}" if asked else "passed; the policy asks for no gates"
    if metric not in scores:
        return f"{passed} on {count(rows, 'matured row')}"
    against = "no champion yet"
    if champion_scores is not None and metric in champion_scores:
        against = f"champion {number(champion_scores[metric])}"
    return f"{passed}; {metric}: challenger {number(scores[metric])}, {against}, on {count(rows, 'matured row')}"


def _only_smoke(verdict: Verdict, sentence: str, rows: int = 0) -> dict[str, Any]:
    """The result when nothing could be compared."""
    gate = GateResult(gate=SMOKE, verdict=verdict, sentence=sentence)
    return {
        "verdict": verdict.value,
        "sentence": f"{verdict.value}: {sentence}",
        "gates": [gate.as_json()],
        "scores": {},
        "champion_scores": None,
        "rows": rows,
        "latency_ms_p95": None,
        "size_mb": None,
    }


def _no_rows(hold_out: _HoldOut) -> dict[str, Any]:
    return _only_smoke(
        Verdict.INCONCLUSIVE,
        f"none of {count(hold_out.rows, 'hold-out row')} in {hold_out.path} has a matured label of a known class",
    )
