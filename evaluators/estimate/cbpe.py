"""Confidence-based performance estimation: the score to be expected if every answer is right as often as its calibrated probability says.

With p_i the calibrated probability that row i is positive, and d_i the decision, the confusion matrix is expected to be
TP = sum p_i d_i, FP = sum (1 - p_i) d_i, FN = sum p_i (1 - d_i), TN = sum (1 - p_i)(1 - d_i); the metrics follow from it. For the mean
of a number a row (accuracy, log loss, Brier score) this is the expectation itself; for ratios and rankings it is the ratio of
expectations, which differs from it by O(1/n). Source: NannyML 0.13.1 (`performance_estimation/confidence_based/metrics.py`) and its
documentation. It assumes that a score is worth as much as when the calibrator was fitted: it sees rows that have become harder
(covariate shift), and does not see labels that have come to mean something else (concept drift).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.scores import PROBABILITY_FLOOR, decide

Floats: TypeAlias = NDArray[np.float64]


def expected_score(metric: str, scores: Floats, calibrated: Floats, *, threshold: float = 0.5) -> float:
    """The expected value of a classification metric of `policies.metrics.METRICS` for n answers.

    `scores`: as the model gave them, (n,) binary or (n, k) multiclass, which decide and rank; `calibrated`: of the same shape, what they
    are worth. nan where `pipelines.scores.score` would be on all possible labels. Raises KeyError for another metric.

    >>> round(expected_score("accuracy", np.array([0.9, 0.4]), np.array([0.8, 0.3])), 3)
    0.75
    """
    if len(scores) == 0 or not (np.isfinite(scores).all() and np.isfinite(calibrated).all()):
        return float("nan")
    if metric in _RANKING:
        return _RANKING[metric](scores, calibrated)
    if metric in _ROW:
        return _ROW[metric](scores, calibrated)
    right, actual, decided = _counts(scores, calibrated, threshold)
    return _DECIDED[metric](right, actual, decided)


def _both(values: Floats) -> Floats:
    """(n, k): one column a class, negative first."""
    return values if values.ndim == 2 else np.stack([1.0 - values, values], axis=1)


def _counts(scores: Floats, calibrated: Floats, threshold: float) -> tuple[Floats, Floats, Floats]:
    """For each class, expected: rows decided right, rows of that class; and rows decided so. (k,) each."""
    probabilities = _both(calibrated)
    classes = probabilities.shape[1]
    decided = decide(scores, threshold)
    of_decided = probabilities[np.arange(len(decided)), decided]
    right: Floats = np.bincount(decided, weights=of_decided, minlength=classes).astype(np.float64)
    return right, probabilities.sum(axis=0), np.bincount(decided, minlength=classes).astype(np.float64)


def _accuracy(right: Floats, actual: Floats, decided: Floats) -> float:
    return float(right.sum() / decided.sum())


def _balanced_accuracy(right: Floats, actual: Floats, decided: Floats) -> float:
    occurs = actual > 0
    return float(np.mean(right[occurs] / actual[occurs]))


def _precision(right: Floats, actual: Floats, decided: Floats) -> float:
    return float(right[1] / decided[1]) if decided[1] else float("nan")


def _recall(right: Floats, actual: Floats, decided: Floats) -> float:
    return float(right[1] / actual[1]) if actual[1] else float("nan")


def _f1(right: Floats, actual: Floats, decided: Floats) -> float:
    total = actual[1] + decided[1]
    return float(2 * right[1] / total) if total else float("nan")


def _f1_macro(right: Floats, actual: Floats, decided: Floats) -> float:
    total = actual + decided
    return float(np.mean(2 * right[total > 0] / total[total > 0]))


def _ranked(scores: Floats, calibrated: Floats) -> tuple[Floats, Floats]:
    """Expected positives, and rows, among those scored at least as high as each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return np.cumsum(calibrated[order])[last_of_tie], (last_of_tie + 1).astype(np.float64)


def _roc_auc(scores: Floats, calibrated: Floats) -> float:
    hits, seen = _ranked(scores, calibrated)
    positives, negatives = hits[-1], seen[-1] - hits[-1]
    if positives <= 0 or negatives <= 0:
        return float("nan")
    true_rate = np.concatenate([[0.0], hits / positives])
    false_rate = np.concatenate([[0.0], (seen - hits) / negatives])
    return float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))


def _average_precision(scores: Floats, calibrated: Floats) -> float:
    hits, seen = _ranked(scores, calibrated)
    if hits[-1] <= 0 or hits[-1] >= seen[-1]:
        return float("nan")
    return float(np.sum(np.diff(hits, prepend=0.0) / hits[-1] * (hits / seen)))


def _log_loss(scores: Floats, calibrated: Floats) -> float:
    losses = -np.log(np.clip(_both(scores), PROBABILITY_FLOOR, 1.0))
    return float(np.mean(np.sum(_both(calibrated) * losses, axis=1)))


def _brier(scores: Floats, calibrated: Floats) -> float:
    return float(np.mean(calibrated * np.square(1.0 - scores) + (1.0 - calibrated) * np.square(scores)))


_DECIDED: Mapping[str, Callable[[Floats, Floats, Floats], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "f1_macro": _f1_macro,
}
_RANKING: Mapping[str, Callable[[Floats, Floats], float]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
}
_ROW: Mapping[str, Callable[[Floats, Floats], float]] = {"log_loss": _log_loss, "brier": _brier}
