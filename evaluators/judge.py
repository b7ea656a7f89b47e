"""The job that judges a challenger: both models answer the same matured hold-out rows, then the policy's gates are asked.

Entry `evaluators.judge:run`. A challenger that cannot be loaded or gives no usable answers is an error or a failure, never an exception:
the verdict is the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.answers import Answers, AnswersError, Asker, Floats, ModelFolder, WrongAnswersError, align, ask
from evaluators.baselines import NEVER, baselines
from evaluators.calibration import promised, usual_errors
from evaluators.estimate.fitting import keep_estimator
from evaluators.gates import all_scores, judge_gate
from evaluators.holdout import HoldOut, read_hold_out
from evaluators.probe import liken
from evaluators.refit import REFIT, judge_refit
from evaluators.reuse import Use, allowance, use_of
from evaluators.scored import Challenge, GateResult, Scored, Verdict, worst
from evaluators.wording import count, number
from pipelines.jobs.port import JobContext
from policies.metrics import METRICS, Task
from policies.schema import LatencyGate, ModelPolicy, Spec

SCORING_TIMEOUT_S = 600.0
"""For either process to load its model and answer all rows."""
LATENCY_ROWS = 200
"""Single-row answers that are timed: enough for a 95th percentile with ten above it."""
SMOKE = "loads and predicts"


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
    hold_out = read_hold_out(inputs["prepared"], spec, challenger.classes, _trained_to(inputs.get("champion")))
    if not len(hold_out.labels):
        return _no_rows(hold_out)
    context.report(text=f"scoring {count(hold_out.rows, 'hold-out row')}")
    answered = _ask_both(inputs, spec, challenger, hold_out, context.workdir, ask)
    if isinstance(answered.challenger, AnswersError):
        verdict = Verdict.FAIL if isinstance(answered.challenger, WrongAnswersError) else Verdict.ERROR
        return _only_smoke(verdict, f"the challenger does not work: {answered.challenger}", rows=len(hold_out.labels))
    context.report(text=f"asking {count(len(spec.gates), 'gate')}")
    challenge = _challenge(spec, challenger, hold_out, answered, inputs)
    gates = _ask_gates(inputs, spec, challenge, hold_out, ask, context.workdir)
    result = _result(spec, gates, challenge, hold_out)
    result |= _likeness(inputs, spec.task, challenger, hold_out, ask, context.workdir)
    return {
        **result,
        **_estimator(result["verdict"], spec.task, challenger, hold_out, challenge, inputs, context.workdir),
    }


def _trained_to(champion: Mapping[str, Any] | None) -> datetime | None:
    moment = champion.get("trained_to") if champion else None
    return datetime.fromisoformat(moment) if moment else None


# ---------------------------------------------------------------- answers
@dataclass(frozen=True, kw_only=True, slots=True)
class _Answered:
    challenger: Answers | AnswersError
    champion: Floats | None
    champion_problem: str
    """Why an existing champion has no answers."""


def _ask_both(
    inputs: Mapping[str, Any], spec: Spec, challenger: ModelFolder, hold_out: HoldOut, workdir: Path, ask: Asker
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
    spec: Spec, challenger: ModelFolder, hold_out: HoldOut, answered: _Answered, inputs: Mapping[str, Any]
) -> Challenge:
    """What the gates decide on."""
    assert isinstance(answered.challenger, Answers)
    classes = None if hold_out.classes is None else len(hold_out.classes)
    earlier = [Use.from_json(item) for item in inputs.get("earlier") or ()]
    return Challenge(
        scored=Scored(
            task=spec.task,
            labels=hold_out.labels,
            classes=classes,
            threshold=spec.objective.threshold,
            challenger=answered.challenger.scores[hold_out.usable],
            champion=None if answered.champion is None else answered.champion[hold_out.usable],
            columns=hold_out.columns,
        ),
        champion_problem=answered.champion_problem,
        latency_ms=answered.challenger.latency_ms,
        size_mb=challenger.size_mb,
        baselines={} if hold_out.before is None else baselines(hold_out.before, hold_out.known, classes),
        allowance=allowance(
            earlier, time_us=hold_out.known.time_us, rows=len(hold_out.labels), table_rows=hold_out.table_rows
        ),
        seed=int(inputs.get("seed") or 0),
    )


def _ask_gates(
    inputs: Mapping[str, Any], spec: Spec, challenge: Challenge, hold_out: HoldOut, ask: Asker, workdir: Path
) -> list[GateResult]:
    """That it works, the policy's gates, and where all passed, whether the refit that is to serve holds that too."""
    smoke = GateResult(
        gate=SMOKE,
        verdict=Verdict.PASS,
        sentence=f"loaded in a fresh process and answered {count(hold_out.rows, 'row')}",
    )
    gates = [smoke, *(judge_gate(gate, challenge) for gate in spec.gates)]
    refit_dir = inputs.get("refit_dir")
    if refit_dir is None or worst([result.verdict for result in gates]) is not Verdict.PASS:
        return gates
    refit = judge_refit(
        Path(refit_dir), spec.objective.metric, challenge, hold_out, ask, workdir=workdir / "refit",
        timeout_s=float(inputs.get("timeout_s") or SCORING_TIMEOUT_S),
    )  # fmt: skip
    return [*gates, refit]


def _result(spec: Spec, gates: Sequence[GateResult], challenge: Challenge, hold_out: HoldOut) -> dict[str, Any]:
    scored, latency = challenge.scored, challenge.latency_ms
    verdict = worst([result.verdict for result in gates])
    use = use_of(challenge.allowance, time_us=hold_out.known.time_us, rows=scored.rows, table_rows=hold_out.table_rows)
    told = _baseline_scores(challenge, spec.objective.metric)
    return {
        "verdict": verdict.value,
        "sentence": _sentence(verdict, gates, challenge, spec.objective.metric)
        + _note(challenge, told, spec.objective.metric),
        "gates": [result.as_json() for result in gates],
        "scores": all_scores(scored, scored.challenger),
        "champion_scores": None if scored.champion is None else all_scores(scored, scored.champion),
        "promised": promised(spec.task, scored.labels, scored.challenger),
        "usual_errors": usual_errors(spec.task, scored.labels, scored.challenger),
        "baselines": told,
        "rows": scored.rows,
        "judged_to": _judged_to(hold_out),
        "used": use.as_json() if any(result.compared for result in gates) else None,
        "latency_ms_p95": None if latency is None or not len(latency) else float(np.quantile(latency, 0.95)),
        "size_mb": challenge.size_mb,
    }


def _likeness(
    inputs: Mapping[str, Any], task: Task, challenger: ModelFolder, hold_out: HoldOut, ask: Asker, workdir: Path
) -> dict[str, Any]:
    """The refused model that the challenger answers most like; null if there is none, or if it is not told which cycle this is."""
    if inputs.get("cycle") is None:
        return {"likeness": None, "likeness_said": ""}
    found, said = liken(
        challenger, hold_out, ask, home=Path(inputs["home"]), model=str(inputs["model"]), cycle=int(inputs["cycle"]),
        refused=[int(number) for number in inputs.get("refused") or ()], seed=int(inputs.get("seed") or 0), task=task,
        workdir=workdir, timeout_s=float(inputs.get("timeout_s") or SCORING_TIMEOUT_S),
    )  # fmt: skip
    return {"likeness": None if found is None else asdict(found), "likeness_said": said}


def _judged_to(hold_out: HoldOut) -> str | None:
    """Time of the newest hold-out row, ISO 8601; null where rows have none."""
    times = hold_out.known.time_us
    dated = None if times is None else times[times != NEVER]
    if dated is None or not len(dated):
        return None
    return datetime.fromtimestamp(int(dated.max()) / 1e6, UTC).isoformat()


def _estimator(
    verdict: str,
    task: Task,
    challenger: ModelFolder,
    hold_out: HoldOut,
    challenge: Challenge,
    inputs: Mapping[str, Any],
    workdir: Path,
) -> dict[str, Any]:
    """Where the file lies with which live answers of a version that passed can be scored before their labels are in; null if nowhere.

    It is fitted on the answers of the model that was judged: those of a refit to rows that it knows are surer than its live ones."""
    if verdict != Verdict.PASS:
        return {"estimator": None}
    serving = ModelFolder.read(Path(inputs["refit_dir"])) if inputs.get("refit_dir") else challenger
    if any(list(model.classes or ()) != list(hold_out.classes or ()) for model in (challenger, serving)):
        return {"estimator": None, "estimator_said": "the model's classes are not those of the hold-out rows"}
    path, said = keep_estimator(
        task, challenger, hold_out.path, hold_out.usable, hold_out.labels, challenge.scored.challenger, workdir
    )
    return {"estimator": None if path is None else str(path), "estimator_said": said}


def _sentence(verdict: Verdict, results: Sequence[GateResult], challenge: Challenge, metric: str) -> str:
    """Why the verdict is what it is: the gates that decided it; if all passed, the comparison, of the objective if there is one."""
    if verdict is not Verdict.PASS:
        deciding = [result.sentence for result in results if result.verdict is verdict]
        return f"{verdict.value}: " + "; ".join(deciding)
    asked = sum(result.gate not in (SMOKE, REFIT) for result in results)
    passed = f"passed all {count(asked, 'gate')}" if asked else "passed; the policy asks for no gates"
    refit = "".join(f"; {result.sentence.removesuffix('; passed')}" for result in results if result.gate == REFIT)
    compared = [result.sentence for result in results if result.compared]
    if told := [sentence for sentence in compared if sentence.startswith(f"{metric}: ")] or compared:
        return f"{passed}; {told[0].removesuffix('; passed')}{refit}"
    scored = challenge.scored
    score = scored.score(metric, scored.challenger)
    if not math.isfinite(score):
        return f"{passed} on {count(scored.rows, 'matured row')}{refit}"
    against = "no champion yet"
    if scored.champion is not None and math.isfinite(champion := scored.score(metric, scored.champion)):
        against = f"champion {number(champion)}"
    return f"{passed}; {metric}: challenger {number(score)}, {against}, on {count(scored.rows, 'matured row')}{refit}"


def _baseline_scores(challenge: Challenge, metric: str) -> dict[str, dict[str, Any]]:
    """Baseline → what it is in words, and its score where the metric is defined for it."""
    found = {}
    for name, baseline in challenge.baselines.items():
        score = challenge.scored.score(metric, baseline.answers(metric))
        if math.isfinite(score):
            found[name] = {"words": baseline.words, "score": score}
    return found


def _note(challenge: Challenge, told: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """Said of every verdict: the best of the predictors without a model, if it beats the challenger."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    own = challenge.scored.score(metric, challenge.scored.challenger)
    best = max(told.values(), key=lambda each: sign * each["score"], default=None)
    if best is None or not sign * best["score"] > sign * own:
        return ""
    return f"; note: '{best['words']}' scores {number(best['score'])} ({metric})"


def _only_smoke(verdict: Verdict, sentence: str, rows: int = 0) -> dict[str, Any]:
    """The result when nothing could be compared."""
    gate = GateResult(gate=SMOKE, verdict=verdict, sentence=sentence)
    return {
        "verdict": verdict.value,
        "sentence": f"{verdict.value}: {sentence}",
        "gates": [gate.as_json()],
        "scores": {},
        "champion_scores": None,
        "promised": None,
        "usual_errors": None,
        "baselines": {},
        "rows": rows,
        "judged_to": None,
        "used": None,
        "latency_ms_p95": None,
        "size_mb": None,
    }


def _no_rows(hold_out: HoldOut) -> dict[str, Any]:
    return _only_smoke(
        Verdict.INCONCLUSIVE,
        f"none of {count(hold_out.rows, 'hold-out row')} in {hold_out.path} has a matured label of a known class",
    )
