"""How good are predictions? The arithmetic behind every metric that a policy may name.

One place, so that the number a search maximises, the number a gate tests and the number a trigger watches are the same number.
Plain numpy: a score of 100,000 rows takes milliseconds, and what is undefined is nan (which the loop reads as *unknown*), where
scikit-learn would warn and give 0. Where scikit-learn defines the score, the two agree; the tests hold them to it.

Score convention: binary -> P(positive), shape (n,); multiclass -> (n, k) in the order of `classes`; regression -> (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.metrics import METRICS

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]

PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to this before a logarithm is taken, as in scikit-learn."""


def score(
    metric: str,
    y_true: ArrayLike,
    scores: ArrayLike,
    *,
    classes: Sequence[Any] | None = None,
    threshold: float = 0.5,
) -> float:
    """The value of `metric` (a name of `policies.metrics.METRICS`) for n predictions, in that metric's own direction.

    `y_true` (n,) are labels as they stand in the data; `classes` are the label values, binary [negative, positive], None for
    regression; a binary prediction is positive from `threshold` on. nan where the metric is undefined: no rows, non-finite scores,
    one class only for ranking metrics, nothing predicted positive for precision. Raises ValueError for an unknown metric, for arrays
    of different lengths, and for a binary label that is neither class.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {', '.join(sorted(METRICS))}")
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(np.asarray(y_true)):
        raise ValueError(f"{metric}: {len(np.asarray(y_true))} labels but {len(values)} predictions")
    if len(values) == 0 or not np.isfinite(values).all():
        return float("nan")
    if METRICS[metric].per_row:
        return float(np.mean(row_values(metric, y_true, values, classes=classes, threshold=threshold)))
    if classes is None:
        return _REGRESSION[metric](np.asarray(y_true, dtype=np.float64), values)
    truth = encode(y_true, classes)
    if metric in _RANKING:
        return _RANKING[metric](truth == 1, values)
    return _DECIDED[metric](truth, decide(values, threshold), len(classes))


def row_values(
    metric: str, y_true: ArrayLike, scores: ArrayLike, *, classes: Sequence[Any] | None = None, threshold: float = 0.5
) -> Floats:
    """One number a row, shape (n,), whose mean is the score: what a paired test of two models on the same rows compares.

    Only for metrics with `per_row` (accuracy, log_loss, brier, mae). Raises ValueError for the others.
    """
    values = np.asarray(scores, dtype=np.float64)
    if metric == "mae":
        errors: Floats = np.abs(np.asarray(y_true, dtype=np.float64) - values)
        return errors
    if metric not in ("accuracy", "log_loss", "brier") or classes is None:
        raise ValueError(f"metric {metric!r} is not a mean of one number a row for classes {classes!r}")
    truth = encode(y_true, classes)
    if metric == "accuracy":
        right: Floats = np.asarray(truth == decide(values, threshold), dtype=np.float64)
        return right
    if metric == "brier":
        squares: Floats = np.square(values - truth)
        return squares
    losses: Floats = -np.log(np.clip(_probability_of_truth(truth, values), PROBABILITY_FLOOR, 1.0))
    return losses


def encode(y_true: ArrayLike, classes: Sequence[Any]) -> Codes:
    """Each label's position in `classes`, shape (n,); -1 for a value that is no class (such a row is never predicted right).

    Raises ValueError if there are two classes and some label is neither: then "positive" is not defined for that row.
    """
    labels = np.asarray(y_true)
    codes = np.full(len(labels), -1, dtype=np.int64)
    for code, value in enumerate(classes):
        codes[labels == value] = code
    if len(classes) == 2 and (codes < 0).any():
        stranger = labels[codes < 0].tolist()[0]
        raise ValueError(f"label {stranger!r} is neither {classes[0]!r} (negative) nor {classes[1]!r} (positive)")
    return codes


def decide(scores: Floats, threshold: float = 0.5) -> Codes:
    """The class decided on, as its position: positive from `threshold` on for (n,) scores, the likeliest for (n, k)."""
    return (scores >= threshold).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1).astype(np.int64)


def _probability_of_truth(truth: Codes, scores: Floats) -> Floats:
    if scores.ndim == 1:
        return np.where(truth == 1, scores, 1.0 - scores)
    of_truth: Floats = scores[np.arange(len(truth)), np.maximum(truth, 0)]
    return np.where(truth >= 0, of_truth, 0.0)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def _count(rows: Codes) -> int:
    return int(np.count_nonzero(rows))


def _precision(truth: Codes, decided: Codes, _classes: int) -> float:
    """TP / (TP + FP)."""
    return _ratio(_count(truth & decided), _count(decided))


def _recall(truth: Codes, decided: Codes, _classes: int) -> float:
    """TP / (TP + FN)."""
    return _ratio(_count(truth & decided), _count(truth))


def _f1(truth: Codes, decided: Codes, _classes: int) -> float:
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall."""
    return _ratio(2 * _count(truth & decided), _count(truth) + _count(decided))


def _counts(truth: Codes, decided: Codes, classes: int) -> tuple[Floats, Floats, Floats]:
    """For each class: rows decided right, rows of that class, rows decided so. Shape (k,) each; strangers count nowhere."""
    right = np.bincount(truth[truth == decided], minlength=classes)
    return (
        right.astype(np.float64),
        np.bincount(truth[truth >= 0], minlength=classes).astype(np.float64),
        np.bincount(decided, minlength=classes).astype(np.float64),
    )


def _balanced_accuracy(truth: Codes, decided: Codes, classes: int) -> float:
    """Mean recall of the classes that occur (Brodersen et al., 2010)."""
    right, actual, _ = _counts(truth, decided, classes)
    occurs = actual > 0
    return float(np.mean(right[occurs] / actual[occurs])) if occurs.any() else float("nan")


def _f1_macro(truth: Codes, decided: Codes, classes: int) -> float:
    """Mean F1 of the classes that occur or are decided on."""
    right, actual, predicted = _counts(truth, decided, classes)
    total = actual + predicted
    return float(np.mean(2 * right[total > 0] / total[total > 0]))


def _ranked(positive: NDArray[np.bool_], values: Floats) -> tuple[Codes, Codes]:
    """Counts (true positives, all) among the rows scored at least as high as each distinct score, from the highest down."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(positive[order], dtype=np.int64)[last_of_tie]
    return hits, (last_of_tie + 1).astype(np.int64)


def _roc_auc(positive: NDArray[np.bool_], values: Floats) -> float:
    """P(a positive is scored above a negative) + P(tie) / 2: the area under the ROC curve by trapezoids (Mann-Whitney U)."""
    positives = int(np.count_nonzero(positive))
    negatives = len(values) - positives
    if not positives or not negatives:
        return float("nan")
    hits, seen = _ranked(positive, values)
    true_rate = np.concatenate([[0.0], hits / positives])
    false_rate = np.concatenate([[0.0], (seen - hits) / negatives])
    return float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))


def _average_precision(positive: NDArray[np.bool_], values: Floats) -> float:
    """Sum over distinct scores of (recall gained) x (precision there); no interpolation."""
    positives = int(np.count_nonzero(positive))
    if not positives or positives == len(values):
        return float("nan")
    hits, seen = _ranked(positive, values)
    return float(np.sum(np.diff(hits, prepend=0) / positives * (hits / seen)))


def _rmse(truth: Floats, values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(truth - values))))


def _r2(truth: Floats, values: Floats) -> float:
    """1 - residual sum of squares / total sum of squares; undefined when the truth does not vary."""
    total = float(np.sum(np.square(truth - np.mean(truth))))
    return 1.0 - float(np.sum(np.square(truth - values))) / total if total else float("nan")


_DECIDED: Mapping[str, Callable[[Codes, Codes, int], float]] = {
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "balanced_accuracy": _balanced_accuracy,
}
_RANKING: Mapping[str, Callable[[NDArray[np.bool_], Floats], float]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
}
_REGRESSION: Mapping[str, Callable[[Floats, Floats], float]] = {"rmse": _rmse, "r2": _r2}
