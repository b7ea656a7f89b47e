"""Training time until a search is as good as 100 plain random trials: warm-started from the champion and pruned, against random and whole.

Two streams, five seeds each. The champion's parameters come of a search on an earlier part of the stream. Both sides score the same folds
of the same rows, and only the seconds of trials count.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from bench.harness import Bench, Sides
from pipelines import prepare
from pipelines.components.registry import candidates
from pipelines.jobs.port import JobContext
from pipelines.training import Prepared
from policies.metrics import METRICS
from policies.schema import ModelPolicy
from tuners import tune
from tuners.space import SearchSpace, build_space
from tuners.study import WALL_S, Budget, enqueue
from tuners.trials import Problem, Search, resume, work

FOLDER = Path(os.environ.get("RATCHET_TEST_DATA", "../shared/data"))
RANDOM_TRIALS, OUR_TRIALS, SEEDS = 100, 100, 5
NEVER_REACHED = 10.0
"""Stands for a share of the random search's time that was not enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    name: str
    policy: ModelPolicy
    champion_at: str
    """The time up to which the champion knew the stream."""
    now: str


def _policy(path: Path, **spec: Any) -> ModelPolicy:
    document = {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": "tuning"}}
    data = {"source": {"kind": "csv", "path": str(path.absolute())}, "time": "t", **spec.pop("data")}
    train = {"component": "sklearn.hist_gradient_boosting", **spec.pop("train")}
    return ModelPolicy.model_validate({**document, "spec": {"data": data, "train": train, **spec}})


def _cases() -> tuple[_Case, ...]:
    elec2 = _policy(
        FOLDER / "elec2" / "elec2.csv.gz", task="binary", objective={"metric": "accuracy"},
        data={"label": "class", "exclude": ["date"], "holdout": "500s"}, train={"window": "2000s"},
    )  # fmt: skip
    bike = _policy(
        FOLDER / "bike_sharing_hourly" / "bike_sharing_hourly.csv.gz", task="regression", objective={"metric": "r2"},
        data={"label": "cnt", "exclude": ["casual", "registered"], "holdout": "21d"}, train={"window": "83d"},
    )  # fmt: skip
    return (
        _Case(name="elec2", policy=elec2, champion_at="1970-01-01T03:00:00+00:00", now="1970-01-01T06:00:00+00:00"),
        _Case(name="bike", policy=bike, champion_at="2011-10-01T00:00:00+00:00", now="2012-03-01T00:00:00+00:00"),
    )


def _problem(case: _Case, now: str, folder: Path) -> Problem:
    folder.mkdir(parents=True, exist_ok=True)
    context = JobContext(job_id="prepare", workdir=folder, report_path=folder / "progress.json")
    inputs = {
        "policy": case.policy.model_dump(mode="json", by_alias=True), "policy_dir": ".", "home": str(folder), "now": now,
        "model": "tuning",
    }  # fmt: skip
    prepared = Prepared.from_json(prepare.run(inputs, context))
    spec = case.policy.spec
    components = candidates(spec.train, spec.task, Path())
    return tune.build_problem(spec, components, build_space(spec, components), prepared)


def _random(problem: Problem, seed: int) -> tuple[float, float]:
    """Best score of the random trials, each fitted on all folds, and their seconds."""
    study = optuna.create_study(
        direction="maximize" if problem.maximize else "minimize", sampler=optuna.samplers.RandomSampler(seed=seed)
    )
    began = time.monotonic()
    for _ in range(RANDOM_TRIALS):
        trial = study.ask()
        candidate = problem.space.suggest(trial)
        study.tell(trial, statistics.fmean(problem.score(candidate, fold)[0] for fold in problem.folds))
    return study.best_value, time.monotonic() - began


def _ours(
    problem: Problem, seed: int, champion: Mapping[str, Any] | None, folder: Path, goal: float | None = None
) -> tuple[float, Mapping[str, Any]]:
    """Seconds of trials until one was as good as `goal`, and the best parameters in the end."""
    budget = Budget(trials=OUR_TRIALS)
    search = Search(
        problem=problem, workdir=folder, signature=str(seed), budget=budget, seed=seed, began=time.monotonic()
    )
    study = resume(search)
    enqueue(study, [problem.space.encode(start) for start in problem.space.starts(champion)])
    work(search, study, lambda known: None)
    seconds, reached = 0.0, math.inf
    for trial in study.get_trials(deepcopy=False):
        seconds += float(trial.user_attrs.get(WALL_S, 0.0))
        good = (
            trial.value is not None
            and goal is not None
            and (trial.value >= goal if problem.maximize else trial.value <= goal)
        )
        if good:
            reached = seconds
            break
    return reached, _recipe(problem.space, study.best_params)


def _recipe(space: SearchSpace, params: Mapping[str, Any]) -> Mapping[str, Any]:
    best = space.suggest(optuna.trial.FixedTrial(dict(params)))
    return {"number": 1, "component": best.component, "parameters": dict(best.parameters), "window_s": best.window_s}


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER} is not there; name the folder of the streams in RATCHET_TEST_DATA")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = iter(range(SEEDS))
    shares: dict[str, list[float]] = {case.name: [] for case in _cases()}
    state: dict[str, float] = {}

    def ours() -> float:
        seed = next(seeds)
        state.clear()
        for case in _cases():
            before = _problem(case, case.champion_at, folder / case.name / "before")
            _, champion = _ours(before, seed, None, folder / f"{case.name}-{seed}-champion")
            problem = _problem(case, case.now, folder / case.name / "now")
            goal, random_s = _random(problem, seed)
            ours_s, _ = _ours(problem, seed, champion, folder / f"{case.name}-{seed}", goal)
            state[case.name] = ours_s / random_s if math.isfinite(ours_s) else NEVER_REACHED
            shares[case.name].append(state[case.name])
        return max(state.values())

    def note(_: float) -> str:
        said = [
            f"{name} {statistics.median(found):.3f} ({', '.join(f'{s:.2f}' for s in found)})"
            for name, found in shares.items()
        ]
        metrics = ", ".join(METRICS[case.policy.spec.objective.metric].name for case in _cases())
        return f"share of the random search's time, median of seeds: {'; '.join(said)}; metrics {metrics}; aim 0.2"

    yield Sides(ours=ours, note=note)


BENCH = Bench(name="tuning_cost", unit="of random's time", better="lower", peer="", runs=SEEDS, setup=_setup)
