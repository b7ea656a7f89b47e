"""The tune job on a problem with a known answer: what it finds, what it spends, and what a kill does to it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import tune_bench
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, create_trial
from tune_bench import BEST_SLOPE, inputs

import tuners.tune
from pipelines.jobs.files import read_json
from pipelines.jobs.local import LocalJobRunner
from pipelines.jobs.port import JobContext, JobSpec, JobState, Limits, PermanentJobError
from pipelines.jobs.records import JobFolder
from policies.metrics import METRICS
from tuners.study import JOURNAL, LOST, STUDY
from tuners.trials import LOSSES

CHAMPION = {"number": 4, "component": "test.line", "parameters": {"slope": 1.5, "shift": 0}, "window_s": None}


def context(folder: Path) -> JobContext:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    return JobContext(job_id="tune", workdir=folder / "work", report_path=folder / "progress.json")


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    return tune_bench.run(inputs(folder, **settings), context(folder))


def fits(folder: Path) -> list[tuple[int, float, int]]:
    """(pid, slope, rows) of each fit, in order."""
    path = folder / "fits"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(p), float(s), int(n)) for p, s, n in map(str.split, lines)]


# ---------------------------------------------------------------- what it finds
def test_finds_the_best_and_starts_at_the_champion(tmp_path: Path) -> None:
    """The first trial is the champion's point, the second the defaults, and the best found is near the known best."""
    out = run(tmp_path, tune={"trials": 25}, champion=CHAMPION)
    slopes = [s for _, s, _ in fits(tmp_path)]
    assert slopes[:5] == [1.5, 1.5, 1.5, 1.5, 0.5]
    assert out["component"] == "test.line"
    assert out["parameters"]["slope"] == pytest.approx(BEST_SLOPE, abs=0.3)
    assert out["parameters"]["shift"] == 0
    assert out["window_s"] is None
    assert (out["trials"], out["failed"], out["stopped_by"], out["metric"]) == (25, 0, "trials", "mae")
    assert out["best"] < out["champion_start"]
    assert out["compute_s"] > 0
    assert "better than the champion's parameters" in out["sentence"]


def test_same_inputs_same_result(tmp_path: Path) -> None:
    """One process, same seed: the same search; another seed: another one."""
    first = run(tmp_path / "a", tune={"trials": 12})
    again = run(tmp_path / "b", tune={"trials": 12})
    other = run(tmp_path / "c", tune={"trials": 12}, seed=2)
    assert first["parameters"] == again["parameters"]
    assert first["best"] == again["best"]
    assert other["parameters"] != first["parameters"]


def test_hopeless_trials_are_pruned(tmp_path: Path) -> None:
    """A trial worse than the median after a fold is not fitted on the rest, and is reported as pruned."""
    out = run(tmp_path, tune={"trials": 25})
    assert out["pruned"] > 0
    assert len(fits(tmp_path)) <= 4 * 25 - out["pruned"]


def test_folds_grow_and_windows_limit_them(tmp_path: Path) -> None:
    """Each fold is fitted on more rows than the one before; with a window on no more than it spans."""
    run(tmp_path / "all", tune={"trials": 1})
    assert [n for _, _, n in fits(tmp_path / "all")] == [110, 132, 155, 178]
    out = run(tmp_path / "window", tune={"trials": 1}, train={"window": "1d"})
    assert [n for _, _, n in fits(tmp_path / "window")] == [24, 24, 24, 24]
    assert out["window_s"] == 86400.0


def test_without_a_time_rows_follow_each_other_a_second_apart(tmp_path: Path) -> None:
    """The same folds, and a window of 30 s is 30 rows."""
    given = inputs(tmp_path, tune={"trials": 1}, train={"window": "30s"})
    del given["policy"]["spec"]["data"]["time"]
    out = tune_bench.run(given, context(tmp_path))
    assert [n for _, _, n in fits(tmp_path)] == [30, 30, 30, 30]
    assert out["window_s"] == 30.0


def test_folds_are_as_long_as_the_hold_out(tmp_path: Path) -> None:
    """A candidate is scored on as many rows as it will be judged on."""
    given = inputs(tmp_path, tune={"trials": 1})
    given["prepared"] = tune_bench.prepared(tmp_path, rows=1000) | {"rows_holdout": 110}
    tune_bench.run(given, context(tmp_path))
    assert [n for _, _, n in fits(tmp_path)] == [560, 670, 780, 890]


@pytest.mark.parametrize(
    ("changed", "window_s"),
    [("2026-01-05T00:00:00+00:00", 103 * 3600.000001), (None, None), ("2027-01-01T00:00:00+00:00", None)],
)
def test_a_window_since_the_change(tmp_path: Path, changed: str | None, window_s: float | None) -> None:
    """The rows of the change and all after it; all rows where no change is known, or none came after it."""
    given = inputs(tmp_path, tune={"trials": 1}, train={"window": "since_change"})
    given["prepared"]["trained_to"] = "2026-01-09T07:00:00+00:00"
    given["changed_at"] = changed
    out = tune_bench.run(given, context(tmp_path))
    assert out["window_s"] == (pytest.approx(window_s, abs=1e-3) if window_s else None)
    last_fold = fits(tmp_path)[-1][2]
    assert last_fold == (82 if window_s else 178)  # its newer half is scored, in four folds


def _trial(number: int, value: float, losses: list[float]) -> FrozenTrial:
    return create_trial(value=value, user_attrs={"start": number, LOSSES: losses})


@pytest.mark.parametrize(
    ("losses", "beyond"),
    [
        ([0.18, 0.18, 0.17, 0.19], True),
        ([0.10, 0.30, 0.10, 0.29], False),
        ([0.20, 0.20, 0.20, 0.20], False),
        ([0.21, 0.20, 0.20, 0.20], False),
    ],
)
def test_what_works_is_changed_only_for_what_is_better_beyond_noise(losses: list[float], beyond: bool) -> None:
    """By a standard error of the difference of the losses, block by block."""
    incumbent = _trial(0, 0.80, [0.20, 0.20, 0.19, 0.20])
    assert tuners.tune.beyond_noise(_trial(1, 0.82, losses), incumbent) is beyond


def test_the_best_of_those_beyond_noise_is_chosen() -> None:
    """Not the best of all, if that may be luck; the owner's first choice has the same right where there is no champion yet."""
    incumbent = _trial(0, 0.80, [0.20, 0.20, 0.19, 0.20])
    lucky = _trial(1, 0.90, [0.10, 0.30, 0.10, 0.29])
    better = _trial(2, 0.82, [0.18, 0.18, 0.17, 0.19])
    chosen = tuners.tune._chosen(lucky, [incumbent, lucky, better], incumbent, METRICS["accuracy"])
    assert chosen is better
    assert tuners.tune._chosen(lucky, [incumbent, lucky], incumbent, METRICS["accuracy"]) is incumbent
    assert tuners.tune._chosen(lucky, [lucky], None, METRICS["accuracy"]) is lucky


def test_a_search_from_a_champion_may_be_shorter(tmp_path: Path) -> None:
    """`warm_trials` counts where there is a champion, `trials` where there is none; 0 keeps the champion's parameters."""
    tune = {"trials": 6, "warm_trials": 2}
    assert run(tmp_path / "cold", tune=tune)["trials"] == 6
    assert run(tmp_path / "warm", tune=tune, champion=CHAMPION)["trials"] == 2
    kept = run(tmp_path / "kept", tune={"trials": 6, "warm_trials": 0}, champion=CHAMPION)
    assert (kept["trials"], kept["parameters"]["slope"]) == (0, 1.5)
    assert fits(tmp_path / "kept") == []
    assert kept["sentence"].startswith("not tuned (tune.warm_trials is 0): test.line with the parameters of champion 4")


def test_no_trials_keeps_the_champions_parameters(tmp_path: Path) -> None:
    """tune.trials: 0 fits nothing and makes no study."""
    out = run(tmp_path, tune={"trials": 0}, champion=CHAMPION)
    assert out["parameters"] == {"slope": 1.5, "shift": 0}
    assert (out["trials"], out["stopped_by"], out["best"]) == (0, "none", None)
    assert "the parameters of champion 4" in out["sentence"]
    assert run(tmp_path, tune={"trials": 0})["parameters"] == {"slope": 0.5, "shift": 0}
    assert fits(tmp_path) == []
    assert not (tmp_path / "work" / JOURNAL).exists()


def test_nothing_to_choose_is_scored_once(tmp_path: Path) -> None:
    """When the owner fixes everything, one trial tells the score and no more are spent."""
    out = run(tmp_path, tune={"trials": 10}, train={"parameters": {"slope": 2.5}})
    assert (out["trials"], out["parameters"]["slope"]) == (1, 2.5)


def test_a_point_tried_before_is_not_fitted_again(tmp_path: Path) -> None:
    """In a small space the search repeats itself; the score is taken from the trial before."""
    run(tmp_path, tune={"trials": 10, "space": {"slope": [1.0, 2.0]}})
    assert len(fits(tmp_path)) <= 8


def test_progress_is_reported(tmp_path: Path) -> None:
    """While it searches it says how far it is."""
    run(tmp_path, tune={"trials": 3})
    progress = read_json(tmp_path / "progress.json")
    assert progress is not None
    assert (progress["done"], progress["total"]) == (3, 3)
    assert progress["text"].startswith("trial 3 of 3, best mae 0.")


# ---------------------------------------------------------------- what goes wrong
def test_failing_trials_are_recorded_and_survived(tmp_path: Path) -> None:
    """Candidates that cannot be fitted fail with their reason, and the others decide."""
    out = run(tmp_path, tune={"trials": 25}, component={"mishap": "raise"})
    assert out["failed"] > 0
    assert out["parameters"]["slope"] <= 3
    assert f"{out['failed']} failed" in out["sentence"]


@pytest.mark.parametrize(
    ("mishap", "reason"),
    [("always raise", "test.line: slope is too steep"), ("always nan", "ValueError: mae of a fold is nan")],
)
def test_all_failing_is_a_permanent_error(tmp_path: Path, mishap: str, reason: str) -> None:
    """When nothing can be fitted the job says why, and does not spend the whole budget to find out."""
    with pytest.raises(PermanentJobError, match=f"tune: all 5 trials failed; the first: {reason}"):
        run(tmp_path, tune={"trials": 50}, component={"mishap": mishap})


def test_too_few_rows(tmp_path: Path) -> None:
    """Rows that cannot be divided are an error that says what to do."""
    given = inputs(tmp_path, tune={"trials": 3})
    tune_bench.prepared(tmp_path, rows=2)
    with pytest.raises(PermanentJobError, match="the 2 training rows are too few to divide"):
        tune_bench.run(given, context(tmp_path))


def test_time_budget(tmp_path: Path) -> None:
    """When the time is up no trial begins, and what was found is returned."""
    began = time.monotonic()
    out = run(tmp_path, tune={"trials": 1000, "timeout": "1s"}, component={"slow_s": 0.05})
    assert out["stopped_by"] == "timeout"
    assert 1 <= out["trials"] < 20
    assert time.monotonic() - began < 5


def test_time_budget_shorter_than_one_trial(tmp_path: Path) -> None:
    """Even then there is one result to train with."""
    out = run(tmp_path, tune={"trials": 10, "timeout": "0.001s"})
    assert (out["trials"], out["stopped_by"]) == (1, "timeout")


def test_compute_budget(tmp_path: Path) -> None:
    """CPU time of all trials together is bounded."""
    out = run(tmp_path, tune={"trials": 5000, "compute": "0.2s"})
    assert out["stopped_by"] == "compute"
    assert 0.2 <= out["compute_s"] < 0.5


# ---------------------------------------------------------------- several processes
def test_parallel_trials_share_one_budget(tmp_path: Path) -> None:
    """Several processes work, and together make exactly the trials that were asked for."""
    out = run(tmp_path, tune={"trials": 20, "parallel": 3}, component={"slow_s": 0.02})
    assert out["trials"] == 20
    pids = {pid for pid, _, _ in fits(tmp_path)}
    assert 2 <= len(pids) <= 4
    assert os.getpid() not in pids
    assert len(study_in(tmp_path).get_trials()) == 20


def test_dead_trial_process_costs_its_trial_only(tmp_path: Path) -> None:
    """A candidate that kills its process is recorded as failed, the process is replaced, and the search ends."""
    out = run(tmp_path, tune={"trials": 20, "parallel": 2}, component={"mishap": "die"})
    assert out["trials"] == 20
    assert out["failed"] > 0
    assert out["parameters"]["slope"] <= 3


def test_all_trial_processes_die(tmp_path: Path) -> None:
    """When every candidate kills its process the job fails with that as the reason."""
    with pytest.raises(PermanentJobError, match="the first: its process was killed by SIGKILL"):
        run(tmp_path, tune={"trials": 20, "parallel": 2}, component={"mishap": "always die"})


def study_in(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "work" / JOURNAL)))
    return optuna.load_study(study_name=STUDY, storage=storage)


# ---------------------------------------------------------------- killed
@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalJobRunner]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    runner = LocalJobRunner(tmp_path / "home", preload=(), idle_s=20)
    yield runner
    for job_id in runner.active():
        runner.cancel(job_id)
    runner.stop_host()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_killed_search_goes_on_where_it_was(tmp_path: Path, runner: LocalJobRunner, parallel: int) -> None:
    """kill -9 in mid-search, twice: the next attempt repeats no finished trial, and the budget holds for all attempts together."""
    given = inputs(tmp_path, tune={"trials": 14, "parallel": parallel}, champion=CHAMPION, component={"slow_s": 0.03})
    for attempt in (1, 2):
        start(runner, given, attempt, tmp_path)
        wait_for(lambda a=attempt: (status(runner, a).progress.get("done") or 0) >= 4 * a)  # type: ignore[misc]
        os.kill(JobFolder(tmp_path / "home" / "jobs" / f"tune-{attempt}").pids()["nanny"], signal.SIGKILL)
        wait_for(lambda a=attempt: status(runner, a).state is JobState.FAILED)  # type: ignore[misc]
        assert status(runner, attempt).retryable
    start(runner, given, 3, tmp_path)
    wait_for(lambda: status(runner, 3).state is not JobState.RUNNING)
    output = status(runner, 3).output
    assert output is not None, status(runner, 3)
    assert output["trials"] == 14
    assert output["champion_start"] is not None
    study = study_in(tmp_path)
    finished = [t for t in study.get_trials() if LOST not in t.user_attrs]
    assert len(finished) == 14
    assert all(t.state.is_finished() for t in study.get_trials())
    assert len(fits(tmp_path)) <= 4 * len(study.get_trials())
    slopes = [s for _, s, _ in fits(tmp_path)]
    for trial in finished:
        done_over = sum(t.params == trial.params for t in study.get_trials())
        assert slopes.count(trial.params["test.line/slope"]) <= 4 * done_over


def start(runner: LocalJobRunner, given: dict[str, Any], attempt: int, folder: Path) -> None:
    limits = Limits(timeout_s=60, memory_mb=2048)
    workdir = str(folder / "work")
    runner.ensure(
        JobSpec(job_id=f"tune-{attempt}", entry="tune_bench:run", inputs=given, limits=limits, workdir=workdir)
    )


def status(runner: LocalJobRunner, attempt: int) -> Any:
    found = runner.poll(f"tune-{attempt}")
    assert found is not None
    return found


def wait_for(condition: Callable[[], bool], patience_s: float = 40.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.01)


# ---------------------------------------------------------------- real components
@pytest.mark.slow
def test_real_families_and_windows(tmp_path: Path) -> None:
    """Two scikit-learn families and two windows on classes that an interaction decides: the trees are found to be better."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    rows = pd.DataFrame(x, columns=["a", "b", "c"]).assign(
        late=np.where(x[:, 0] * x[:, 1] + rng.normal(scale=0.3, size=600) > 0, "yes", "no"),
        at=pd.date_range("2026-01-01", periods=600, freq="h", tz="UTC"),
        city=rng.choice(["x", "y"], 600),
    )
    rows.to_parquet(tmp_path / "train.parquet")
    given = inputs(tmp_path, tune={"trials": 8})
    rows.to_parquet(tmp_path / "train.parquet")
    spec = given["policy"]["spec"]
    spec["task"], spec["objective"], spec["data"]["label"] = "binary", {"metric": "roc_auc"}, "late"
    families = ["sklearn.logistic_regression", "sklearn.hist_gradient_boosting"]
    spec["train"] = {"component": families, "window": ["10d", "25d"]}
    kinds = {"a": "numeric", "b": "numeric", "c": "numeric", "city": "categorical"}
    given["prepared"]["features"] = [{"name": n, "kind": k} for n, k in kinds.items()]
    given["prepared"]["classes"] = ["no", "yes"]
    out = tuners.tune.run(given, context(tmp_path))
    assert out["component"] == "sklearn.hist_gradient_boosting"
    assert out["window_s"] in (864000.0, 2160000.0)
    assert out["best"] > 0.8
