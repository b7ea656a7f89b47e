"""The arithmetic of `pipelines.scores`, held to scikit-learn's."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipelines.scores import decide, encode, row_values, score
from policies.metrics import METRICS, Task

BINARY = {
    "accuracy": lambda y, p: sk.accuracy_score(y, p >= 0.5),
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p >= 0.5),
    "precision": lambda y, p: sk.precision_score(y, p >= 0.5, zero_division=np.nan),
    "recall": lambda y, p: sk.recall_score(y, p >= 0.5, zero_division=np.nan),
    "f1": lambda y, p: sk.f1_score(y, p >= 0.5),
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "log_loss": lambda y, p: sk.log_loss(y, p, labels=[0, 1]),
    "brier": sk.brier_score_loss,
}
MULTI = {
    "accuracy": lambda y, p: sk.accuracy_score(y, p.argmax(axis=1)),
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.argmax(axis=1)),
    "f1_macro": lambda y, p: sk.f1_score(y, p.argmax(axis=1), average="macro"),
    "log_loss": lambda y, p: sk.log_loss(y, p, labels=[0, 1, 2]),
}
REGRESSION = {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "r2": sk.r2_score}


def test_reference_covers_every_metric() -> None:
    """No metric that a policy may name for a task goes without a comparison to scikit-learn."""
    for task, reference in ((Task.BINARY, BINARY), (Task.MULTICLASS, MULTI), (Task.REGRESSION, REGRESSION)):
        assert set(reference) == {m.name for m in METRICS.values() if task in m.tasks}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40))
def test_binary_agrees_with_sklearn(rows: list[tuple[bool, int]]) -> None:
    """On any rows with both classes, ties included, each binary metric is scikit-learn's."""
    rows = [*rows, (True, 5), (False, 2)]
    y = np.array([r[0] for r in rows], dtype=int)
    p = np.array([r[1] / 8 for r in rows])
    for name, reference in BINARY.items():
        assert score(name, y, p, classes=[0, 1]) == pytest.approx(reference(y, p), nan_ok=True), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 50))
def test_multiclass_agrees_with_sklearn(seed: int, rows: int) -> None:
    """Each multiclass metric is scikit-learn's, whatever the names of the classes."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1, 2], rng.integers(0, 3, rows)])
    p = rng.dirichlet([1, 1, 1], len(y))
    names = np.array(["a", "b", "c"], dtype=object)[y]
    for name, reference in MULTI.items():
        assert score(name, names, p, classes=["a", "b", "c"]) == pytest.approx(reference(y, p)), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 50))
def test_regression_agrees_with_sklearn(seed: int, rows: int) -> None:
    """Each regression metric is scikit-learn's."""
    rng = np.random.default_rng(seed)
    y, p = rng.normal(size=rows), rng.normal(size=rows)
    for name, reference in REGRESSION.items():
        assert score(name, y, p) == pytest.approx(reference(y, p)), name


@pytest.mark.parametrize("name", sorted(METRICS))
def test_no_rows_is_undefined(name: str) -> None:
    """No rows: no score, rather than 0 or a warning."""
    classes = None if METRICS[name].tasks == {Task.REGRESSION} else [0, 1]
    assert math.isnan(score(name, [], [], classes=classes))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_ranking(name: str, label: int) -> None:
    """With one class only there is nothing to rank."""
    assert math.isnan(score(name, [label] * 5, np.linspace(0, 1, 5), classes=[0, 1]))


def test_undefined_ratios_and_non_finite_scores_are_nan() -> None:
    """Precision without a positive decision, recall without a positive row, and nan predictions are all unknown."""
    assert math.isnan(score("precision", [0, 1], [0.1, 0.2], classes=[0, 1]))
    assert math.isnan(score("recall", [0, 0], [0.1, 0.9], classes=[0, 1]))
    assert math.isnan(score("accuracy", [0, 1], [0.1, math.nan], classes=[0, 1]))
    assert math.isnan(score("r2", [2.0, 2.0], [1.0, 2.0]))


def test_threshold_decides_binary_rows() -> None:
    """A probability at the threshold counts as positive."""
    assert score("recall", ["n", "y", "y"], [0.3, 0.3, 0.2], classes=["n", "y"], threshold=0.3) == 0.5
    assert decide(np.array([0.3, 0.29]), 0.3).tolist() == [1, 0]


def test_strangers() -> None:
    """An unseen class is simply predicted wrong among several, and an error where positive must be defined."""
    assert encode(["a", "z"], ["a", "b", "c"]).tolist() == [0, -1]
    assert score("accuracy", ["a", "z"], [[1, 0, 0], [1, 0, 0]], classes=["a", "b", "c"]) == 0.5
    assert row_values("log_loss", ["z"], [[1, 0, 0]], classes=["a", "b", "c"])[0] > 30
    with pytest.raises(ValueError, match="'z' is neither 'a' \\(negative\\) nor 'b'"):
        encode(["a", "z"], ["a", "b"])


def test_row_values_average_to_the_score() -> None:
    """For metrics said to be per row, the mean of the rows is the score."""
    y, p = [0, 1, 1, 0], [0.2, 0.9, 0.4, 0.6]
    for name in ("accuracy", "log_loss", "brier"):
        assert np.mean(row_values(name, y, p, classes=[0, 1])) == pytest.approx(score(name, y, p, classes=[0, 1]))
    with pytest.raises(ValueError, match="roc_auc"):
        row_values("roc_auc", y, p, classes=[0, 1])


def test_bad_arguments_are_named() -> None:
    """An unknown metric and different lengths are errors that say so."""
    with pytest.raises(ValueError, match="'auc' is not one of"):
        score("auc", [0], [0.1], classes=[0, 1])
    with pytest.raises(ValueError, match="1 labels but 2 predictions"):
        score("accuracy", [0], [0.1, 0.2], classes=[0, 1])


def test_large_inputs_are_fast() -> None:
    """Every binary metric of 100,000 rows together takes well under a second."""
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 100_000), rng.random(100_000)
    began = time.process_time()
    for name in BINARY:
        score(name, y, p, classes=[0, 1])
    assert time.process_time() - began < 1.0
