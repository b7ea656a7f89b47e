"""The tune job: search component family, parameters and training window for the best score on rows that come later in time.

It starts from what serves now, so that a short search is never far behind, and it can be killed at any moment: the study's journal in the
job's workdir has every finished trial, and the next attempt goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from pipelines.components.entrypoint import check_pinned
from pipelines.components.registry import candidates
from pipelines.data.labels import encode_labels
from pipelines.data.sources import with_log_columns
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.prepare import changed_at, parse_policy
from pipelines.training import Prepared
from policies.metrics import METRICS, Metric, Task
from tuners import folds
from tuners.shared_study import AWAY, StudyPlace, away, disconnect
from tuners.space import Candidate, SearchSpace, build_space, window_since
from tuners.study import LOST, Budget, Tally, enqueue, failures
from tuners.trials import LOSSES, Problem, Search, resume, work, work_in_parallel

if TYPE_CHECKING:
    from pipelines.components.base import Component
    from policies.schema import ModelPolicy, Spec

_REPORT_EVERY_S = 0.25


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Job `tuners.tune:run`; inputs and output as ARCHITECTURE.md lists them.

    Raises PermanentJobError if the policy's parameters or ranges do not fit the components, if there are too few rows to divide, or if all
    trials failed.
    """
    policy = parse_policy(inputs["policy"])
    components = candidates(policy.spec.train, policy.spec.task, Path(inputs["policy_dir"]))
    for component in components:
        check_pinned(component, inputs.get("code"))
    champion: Mapping[str, Any] | None = inputs.get("champion")
    since_change = since_change_s(inputs, policy.spec)
    space = build_space(policy.spec, components, since_change)
    if trials_of(policy.spec, champion) == 0:
        return untuned(policy, space, champion)
    prepared = Prepared.from_json(inputs["prepared"])
    spec = policy.spec.model_copy(update={"data": with_log_columns(policy.spec.data)})
    problem = build_problem(spec, components, space, prepared, since_change)
    signature = sign(problem, prepared.fingerprint, champion, int(inputs["seed"]))
    search = Search(
        problem=problem, workdir=context.workdir, signature=signature, budget=_budget(policy, problem, trials_of(policy.spec, champion)),
        seed=int(inputs["seed"]), began=time.monotonic(), shared=StudyPlace.from_json(inputs.get("study")),
    )  # fmt: skip
    try:
        return _search(search, policy.spec.tune.parallel, champion, context)
    except AWAY as error:
        raise away(error) from None
    finally:
        disconnect()


def _search(search: Search, parallel: int, champion: Mapping[str, Any] | None, context: JobContext) -> dict[str, Any]:
    """Go on with the study until its budget is used up."""
    used_before_s = search.tally(search.open()).wall_s / parallel
    search = search.with_time_used(used_before_s)
    study = resume(search)
    space = search.problem.space
    enqueue(study, [space.encode(start) for start in space.starts(champion)][: search.budget.trials])
    report = _Reporter(context, search.budget.trials, search.problem.metric)
    report(search.tally(study))
    if parallel == 1:
        work(search, study, report)
    else:
        work_in_parallel(search, study, parallel, report)
    return output(search, study, champion)


def untuned(policy: ModelPolicy, space: SearchSpace, champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """The output when nothing is to be searched: the champion's parameters if its family is still listed, else the defaults."""
    inherited = space.like_champion(champion)
    chosen = inherited or space.default(space.families[0])
    limit = "trials" if champion is None or policy.spec.tune.warm_trials is None else "warm_trials"
    whose = f"the parameters of champion {champion['number']}" if champion and inherited else "its default parameters"
    return {
        **_candidate_json(chosen),
        "trials": 0,
        "pruned": 0,
        "failed": 0,
        "best": None,
        "champion_start": None,
        "compute_s": 0.0,
        "stopped_by": "none",
        "metric": policy.spec.objective.metric,
        "sentence": f"not tuned (tune.{limit} is 0): {chosen.component} with {whose}",
    }


def build_problem(
    spec: Spec,
    components: Sequence[Component],
    space: SearchSpace,
    prepared: Prepared,
    since_change: float | None = None,
) -> Problem:
    """The training rows in memory, divided into folds; `since_change`: seconds of the newest of them that the present world is made of.

    Raises PermanentJobError if there are too few.
    """
    frame = prepared.train_frame()
    labels = encode_labels(frame[spec.data.label], prepared.classes)
    times = _seconds(frame[spec.data.time]) if spec.data.time is not None else np.arange(len(frame), dtype=np.float64)
    classification = spec.task is not Task.REGRESSION
    block = prepared.rows_holdout
    if since_change is not None and block is not None:
        block = min(block, folds.block_after_change(times, since_change))
    divided = folds.make_folds(labels, times, classification=classification, seed=spec.train.seed, block=block)
    if not divided:
        raise PermanentJobError(
            f"tune: the {len(frame)} training rows are too few to divide into rows to fit on and rows to score with every class in each;"
            " set tune.trials: 0, or give more rows (data.min_rows, train.window)"
        )
    return Problem(
        frame=frame[[feature.name for feature in prepared.features]].reset_index(drop=True),
        target=pd.Series(labels.astype("int64") if classification else labels, name=spec.data.label),
        labels=labels,
        times=times,
        folds=divided,
        features=prepared.features,
        task=spec.task,
        classes=prepared.classes,
        metric=spec.objective.metric,
        threshold=spec.objective.threshold,
        fit_seed=spec.train.seed,
        components={component.name: component for component in components},
        space=space,
        since_change_s=since_change,
    )


def _seconds(moments: pd.Series) -> folds.Floats:
    return np.asarray(moments.dt.as_unit("us").astype("int64"), dtype=np.float64) / 1e6


def sign(problem: Problem, fingerprint: str, champion: Mapping[str, Any] | None, seed: int) -> str:
    """What a study is about. Trials of a study with another signature say nothing about this one."""
    about = {
        "champion": champion,
        "fingerprint": fingerprint,
        "folds": [[len(fold.fit), len(fold.score)] for fold in problem.folds],
        "metric": [problem.metric, problem.threshold],
        "seeds": [seed, problem.fit_seed],
        "space": problem.space.as_json(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def trials_of(spec: Spec, champion: Mapping[str, Any] | None) -> int:
    """How many trials the search may have: fewer are needed where it starts from a champion."""
    warm = spec.tune.warm_trials
    return spec.tune.trials if champion is None or warm is None else warm


def since_change_s(inputs: Mapping[str, Any], spec: Spec) -> float | None:
    """Seconds of the window from the change to the newest training row; None where no change is known, or nothing came after it."""
    moment, trained_to = changed_at(inputs, spec), inputs["prepared"].get("trained_to")
    if moment is None or trained_to is None:
        return None
    newest = datetime.fromisoformat(trained_to)
    return window_since(moment, newest) if newest > moment else None


def _budget(policy: ModelPolicy, problem: Problem, trials: int) -> Budget:
    tune = policy.spec.tune
    return Budget(
        trials=trials if problem.space.is_a_choice() else 1,
        timeout_s=tune.timeout.total_seconds(),
        compute_s=tune.compute.total_seconds() if tune.compute is not None else None,
    )


class _Reporter:
    """Tells how far the search is, a few times a second at the most."""

    def __init__(self, context: JobContext, trials: int, metric: str) -> None:
        self._context, self._trials, self._metric = context, trials, metric
        self._reported_at = float("-inf")

    def __call__(self, known: Tally) -> None:
        if time.monotonic() - self._reported_at < _REPORT_EVERY_S and known.ended < self._trials:
            return
        self._reported_at = time.monotonic()
        best = known.best.value if known.best else None
        text = f"trial {known.ended} of {self._trials}" + (
            f", best {self._metric} {best:.4f}" if best is not None else ""
        )
        self._context.report(done=known.ended, total=self._trials, best=best, text=text)


# ---------------------------------------------------------------- what came of it
def output(search: Search, study: optuna.Study, champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """The job's output. Raises PermanentJobError, with the reason, if no trial succeeded."""
    known = search.tally(study)
    trials = study.get_trials(deepcopy=False)
    if known.best is None or known.best.value is None:
        reasons = failures(trials) or ["no trial came to its end"]
        raise PermanentJobError(f"tune: all {known.ended} trials failed; the first: {reasons[0]}")
    space, metric = search.problem.space, search.problem.metric
    start = _incumbent(trials)
    best = _chosen(known.best, trials, start, METRICS[metric])
    start = start if space.like_champion(champion) else None
    chosen = space.suggest(optuna.trial.FixedTrial(best.params))
    return {
        **_candidate_json(chosen),
        "trials": known.ended,
        "pruned": known.pruned,
        "failed": known.failed,
        "best": best.value,
        "champion_start": start.value if start is not None else None,
        "compute_s": round(known.cpu_s, 3),
        "stopped_by": search.exhausted_by(known) or "none",
        "metric": metric,
        "sentence": _sentence(chosen, known, best, start, metric),
    }


def _incumbent(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial of the point that was put first in line, if it came to its end: the champion's recipe, or else the owner's first choice."""
    first = [t for t in trials if t.user_attrs.get("start") == 0 and LOST not in t.user_attrs]
    return next((t for t in first if t.state is TrialState.COMPLETE), None)


def _chosen(
    best: FrozenTrial, trials: Sequence[FrozenTrial], incumbent: FrozenTrial | None, metric: Metric
) -> FrozenTrial:
    """The best trial of those that beat the incumbent by more than noise, or the incumbent."""
    if incumbent is None or incumbent.value is None:
        return best
    sign = -1 if metric.higher_is_better else 1
    complete = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    better = [t for t in complete if sign * ((t.value or 0.0) - incumbent.value) < 0 and beyond_noise(t, incumbent)]
    return min(better, key=lambda t: (sign * (t.value or 0.0), t.number), default=incumbent)


def beyond_noise(trial: FrozenTrial, incumbent: FrozenTrial) -> bool:
    """Whether the trial's losses are lower than the incumbent's, block by block of the same rows, by a standard error.

    The best of several looks better than it is, and what works is not changed for that.
    Source: L. Breiman et al., Classification and Regression Trees (1984), 3.4.3.
    """
    gains = np.subtract(incumbent.user_attrs[LOSSES], trial.user_attrs[LOSSES])
    return bool(len(gains) > 1 and gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))


def _sentence(chosen: Candidate, known: Tally, best: FrozenTrial, start: FrozenTrial | None, metric: str) -> str:
    assert best.value is not None
    ended = f"{known.ended} trials" if known.ended != 1 else "1 trial"
    less = [f"{n} {word}" for n, word in ((known.pruned, "pruned"), (known.failed, "failed")) if n]
    text = f"tuned {chosen.component} in {ended}" + (f" ({', '.join(less)})" if less else "")
    text += f": {metric} {best.value:.4f} on later rows"
    if start is None or start.value is None:
        return text
    gain = (best.value - start.value) * (1 if METRICS[metric].higher_is_better else -1)
    return (
        f"{text}, {gain:.4f} better than the champion's parameters"
        if gain > 0
        else f"{text}, by the champion's parameters"
    )


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "component": candidate.component,
        "parameters": dict(candidate.parameters),
        "window_s": candidate.window_s,
    }
