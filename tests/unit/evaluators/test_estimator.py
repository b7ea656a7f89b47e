"""Expected scores are the means of the real ones over labels drawn from the calibrated probabilities; what cannot be estimated says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import real_streams
from model_folders import context, hold_out, model_folder, policy

from evaluators.estimate.calibration import Calibrator, calibration_error, fit_calibrator
from evaluators.estimate.cbpe import expected_score
from evaluators.estimate.estimator import FILE, MIN_ROWS, EstimateError, Estimator, fit_estimator
from evaluators.judge import run as judge
from pipelines.data.features import Feature, FeatureKind
from pipelines.scores import score
from policies.metrics import METRICS, Task

BINARY = sorted(m.name for m in METRICS.values() if Task.BINARY in m.tasks)
MULTICLASS = sorted(m.name for m in METRICS.values() if Task.MULTICLASS in m.tasks)
X = Feature("x", FeatureKind.NUMERIC)


@pytest.mark.parametrize("metric", BINARY)
def test_binary_expectation_is_the_mean_over_drawn_labels(metric: str) -> None:
    """300 draws of 1,500 labels; scores are rounded, so that rankings have ties, and are no probabilities themselves."""
    rng = np.random.default_rng(3)
    probabilities = rng.beta(1.2, 2.0, 1_500)
    scores = np.round(np.sqrt(probabilities), 2)
    drawn = [
        score(metric, rng.random(1_500) < probabilities, scores, classes=[False, True], threshold=0.6)
        for _ in range(300)
    ]
    expected = expected_score(metric, scores, probabilities, threshold=0.6)
    assert expected == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(300) + 1e-3)


@pytest.mark.parametrize("metric", MULTICLASS)
def test_multiclass_expectation_is_the_mean_over_drawn_labels(metric: str) -> None:
    """The same with four classes."""
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet([0.6, 1.0, 0.4, 0.8], 1_500)
    scores = probabilities**1.7 / (probabilities**1.7).sum(axis=1, keepdims=True)
    edges = probabilities.cumsum(axis=1)
    labels = [np.minimum((rng.random((1_500, 1)) > edges).sum(axis=1), 3) for _ in range(200)]
    drawn = [score(metric, truth, scores, classes=[0, 1, 2, 3]) for truth in labels]
    assert expected_score(metric, scores, probabilities) == pytest.approx(
        np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(200) + 1e-3
    )


@pytest.mark.parametrize("metric", ["precision", "roc_auc", "average_precision"])
def test_undefined_expectations_are_unknown(metric: str) -> None:
    """Nothing decided positive, or one class only: there is no number, and the estimator says so."""
    nothing = np.zeros(300)
    assert np.isnan(expected_score(metric, nothing, nothing))
    with pytest.raises(EstimateError, match="is not defined"):
        Estimator(task=Task.BINARY, rows=300, calibrators=(Calibrator.none(),)).expected(metric, nothing)


def test_overconfident_scores_are_calibrated_and_honest_ones_are_left_alone() -> None:
    """A calibrator is kept if it lowers the calibration error on rows held back, and not otherwise."""
    rng = np.random.default_rng(5)
    probabilities = rng.random(4_000)
    truth = rng.random(4_000) < probabilities
    overconfident = probabilities**3 / (probabilities**3 + (1 - probabilities) ** 3)
    calibrate = fit_calibrator(overconfident, truth)
    outcomes = truth.astype(float)
    assert len(calibrate.at) > 5
    assert calibration_error(outcomes, calibrate(overconfident)) < 0.3 * calibration_error(outcomes, overconfident)
    draws = [np.random.default_rng(seed).random((2, 200)) for seed in range(8)]
    left_alone = [len(fit_calibrator(p, draw < p).at) == 0 for p, draw in draws]
    bent = [len(fit_calibrator(p**4 / (p**4 + (1 - p) ** 4), draw < p).at) == 0 for p, draw in draws]
    assert sum(left_alone) >= 3
    assert sum(bent) == 0
    assert fit_calibrator(truth.astype(float), truth).at.tolist() == [], "separated classes need none"
    assert fit_calibrator(probabilities, np.ones(4_000, dtype=bool)).at.tolist() == []


def test_regression_errors_are_estimated_where_rows_have_become_harder() -> None:
    """The loss model follows a shift to noisier rows; r2 is unknown, because the spread of the labels is."""
    rng = np.random.default_rng(6)
    x = rng.random(6_000)
    frame = pd.DataFrame({"x": np.where(rng.random(6_000) < 0.05, np.nan, x), "place": rng.choice(["a", "b"], 6_000)})
    answers = 10 * x
    truth = answers + rng.normal(0, 1 + 4 * x)
    features = [X, Feature("place", FeatureKind.CATEGORICAL)]
    estimator = fit_estimator(Task.REGRESSION, truth[:4_000], answers[:4_000], frame=frame[:4_000], features=features)
    hard = np.flatnonzero(x[4_000:] > 0.6) + 4_000
    for rows in (np.arange(4_000, 6_000), hard):
        for metric in ("mae", "rmse"):
            real = score(metric, truth[rows], answers[rows])
            assert estimator.expected(metric, answers[rows], features=frame.iloc[rows]) == pytest.approx(real, rel=0.08)
    with pytest.raises(EstimateError, match="r2 cannot be estimated"):
        estimator.expected("r2", answers, features=frame)
    with pytest.raises(EstimateError, match="not those that it was fitted on"):
        estimator.expected("mae", answers, features=frame[["x"]])


def test_regression_estimate_is_near_the_realised_error_on_bike_sharing() -> None:
    """Real hours of a year that grows: the estimate knows what is hard, not that the relation itself has moved."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    rows = real_streams.stream("bike_sharing_hourly")
    names = [
        c
        for c in rows.columns
        if c not in ("cnt", "casual", "registered", "t") and pd.api.types.is_numeric_dtype(rows[c])
    ]
    shuffled = rows.sample(frac=1, random_state=0)
    table, truth = shuffled[names], shuffled["cnt"].to_numpy(dtype=float)
    answers = (
        HistGradientBoostingRegressor(random_state=0, max_iter=60).fit(table[:5_000], truth[:5_000]).predict(table)
    )
    features = [Feature(name, FeatureKind.NUMERIC) for name in names]
    fit, asked = slice(5_000, 8_000), slice(8_000, None)
    estimator = fit_estimator(Task.REGRESSION, truth[fit], answers[fit], frame=table[fit], features=features)
    for metric in ("mae", "rmse"):
        real = score(metric, truth[asked], answers[asked])
        assert estimator.expected(metric, answers[asked], features=table[asked]) == pytest.approx(real, rel=0.05)


def _fitted(task: Task) -> Estimator:
    rng = np.random.default_rng(8)
    x = rng.random(600)
    if task is Task.REGRESSION:
        return fit_estimator(task, x + rng.normal(0, 0.1, 600), x, frame=pd.DataFrame({"x": x}), features=[X])
    if task is Task.BINARY:
        return fit_estimator(task, (rng.random(600) < x).astype(float), x**3)
    scores = rng.dirichlet([0.3, 0.3, 0.3], 600)
    return fit_estimator(task, rng.integers(-1, 3, 600).astype(float), scores)


@pytest.mark.parametrize("task", list(Task))
def test_estimator_survives_its_file(task: Task, tmp_path: Path) -> None:
    """What is read back estimates the same, and the same rows write the same bytes."""
    _fitted(task).write(tmp_path / FILE)
    once = (tmp_path / FILE).read_bytes()
    _fitted(task).write(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == once
    rng = np.random.default_rng(9)
    scores = rng.dirichlet([1.0, 1.0, 1.0], 50) if task is Task.MULTICLASS else rng.random(50)
    metric = {Task.BINARY: "roc_auc", Task.MULTICLASS: "f1_macro", Task.REGRESSION: "rmse"}[task]
    features = pd.DataFrame({"x": rng.random(50)})
    read = Estimator.read(tmp_path).expected(metric, scores, features=features)
    assert read == _fitted(task).expected(metric, scores, features=features)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "packaged without an estimator"),
        ("{", "cannot be read"),
        ('{"format": 2}', "format must be 1 but is 2"),
        ('{"format": 1, "task": "binary", "rows": 1, "losses": null, "calibrators": [{"at": [2, 1], "probability": [0, 1]}]}', "ascend"),
        ('{"format": 1, "task": "regression", "rows": 1, "losses": null, "calibrators": []}', "loss model"),
    ],
)  # fmt: skip
def test_missing_or_strange_estimator_is_a_reason(content: str | None, words: str, tmp_path: Path) -> None:
    """A version from before, or a damaged file, cannot be estimated; the reason is one sentence."""
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(EstimateError, match=words):
        Estimator.read(tmp_path)


def test_too_few_rows_or_one_class_fit_nothing() -> None:
    """Calibration needs rows of both kinds."""
    few = np.linspace(0, 1, MIN_ROWS - 1)
    with pytest.raises(EstimateError, match="200 matured rows or more, and there are 199"):
        fit_estimator(Task.BINARY, np.round(few), few)
    with pytest.raises(EstimateError, match="one class only"):
        fit_estimator(Task.BINARY, np.zeros(300), np.linspace(0, 1, 300))


@pytest.mark.parametrize(
    ("columns", "gates", "kept"), [("good", [], True), ("bad", [{"metric": "roc_auc", "at_least": 0.99}], False)]
)
def test_judge_leaves_an_estimator_of_what_passed(
    columns: str, gates: list[dict[str, Any]], kept: bool, tmp_path: Path
) -> None:
    """Fitted on the hold-out, whose score it expects again; a challenger that was refused is not packaged and needs none."""
    prepared = hold_out(tmp_path / "holdout.parquet")
    inputs = {"policy": policy(*gates), "home": str(tmp_path), "prepared": prepared, "champion": None, "seed": 1}
    result = judge({**inputs, "model_dir": str(model_folder(tmp_path / "8", columns=[columns]))}, context(tmp_path))
    json.dumps(result, allow_nan=False)
    assert (result["estimator"] is not None) is kept
    if kept:
        answers = pd.read_parquet(prepared["holdout"])[columns].to_numpy()
        expected = Estimator.read(Path(result["estimator"]).parent).expected("roc_auc", answers)
        assert expected == pytest.approx(result["scores"]["roc_auc"], abs=0.01)
