"""The paired bootstrap for metrics that are no mean over rows: areas, ratios of counts, roots of sums.

Rows are drawn with replacement, the same draw for champion and challenger, and the difference of the metric is computed anew for each
draw. A draw is a vector of *counts* (how often each row came up), so that one sort serves all draws, and rows that a metric cannot tell
apart are one *cell* with one count: a few dozen cells stand for any number of rows when only decisions count.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.scores import decide, encode

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Counts of m cells in b draws, (b, m) -> the metric in each draw, (b,); nan where it is undefined."""

DRAWS = 2_000
"""Draws of a comparison. The 5 % point of 2,000 draws has a standard error of half a percent point of coverage."""
_COUNTS_MAX, _DRAWS_MIN = 100_000_000, 500
_CHUNK_COUNTS = 200_000
"""Counts held at once: little enough (1.6 MB as floats) to stay in the processor's cache, which is what the time goes into."""
_FEW_CELLS = 1_000
"""Up to so many cells the counts are drawn as such, not row by row: the same distribution, and any number of rows costs nothing."""


def draws_for(rows: int, wanted: int = DRAWS) -> int:
    """Draws that `rows` rows are given: as many as wanted, but fewer of very many rows, where seconds become minutes.

    >>> draws_for(5_000), draws_for(100_000), draws_for(1_000_000)
    (2000, 1000, 500)
    """
    return min(wanted, max(_DRAWS_MIN, _COUNTS_MAX // max(rows, 1)))


def resampled_differences(
    metric: str,
    y_true: ArrayLike,
    champion: Floats,
    challenger: Floats,
    *,
    classes: Sequence[Any] | None,
    threshold: float,
    seed: int,
    draws: int = DRAWS,
) -> Floats:
    """metric(challenger) - metric(champion) in each of `draws_for(n, draws)` draws, in the metric's own direction; nan where undefined.

    Arguments are those of `pipelines.scores.score`. The same arguments give the same draws. Raises ValueError for a metric that has
    no resampled form (those that are a mean over rows).
    """
    cell_of_row, champion_metric, challenger_metric = _cells(metric, y_true, champion, challenger, classes, threshold)
    rows, cells = len(cell_of_row), int(cell_of_row.max()) + 1
    generator = np.random.default_rng(seed)
    draws, chunk = draws_for(rows, draws), max(1, _CHUNK_COUNTS // (cells if cells <= _FEW_CELLS else rows))
    differences = []
    for start in range(0, draws, chunk):
        counts = _draw(generator, cell_of_row, cells, min(chunk, draws - start))
        with np.errstate(divide="ignore", invalid="ignore"):
            differences.append(challenger_metric(counts) - champion_metric(counts))
    return np.concatenate(differences)


def _draw(generator: np.random.Generator, cell_of_row: Ints, cells: int, draws: int) -> Floats:
    """How often each cell comes up in samples of as many rows as there are, with replacement: (draws, cells)."""
    rows = len(cell_of_row)
    if cells <= _FEW_CELLS and cells < rows:
        shares = np.bincount(cell_of_row, minlength=cells) / rows
        return generator.multinomial(rows, shares, size=draws).astype(np.float64)
    counts = np.empty((draws, cells))
    for i in range(draws):
        drawn = generator.integers(0, rows, size=rows)
        counts[i] = np.bincount(drawn if cells == rows else cell_of_row[drawn], minlength=cells)
    return counts


def _cells(
    metric: str,
    y_true: ArrayLike,
    champion: Floats,
    challenger: Floats,
    classes: Sequence[Any] | None,
    threshold: float,
) -> tuple[Ints, Statistic, Statistic]:
    """The cell of each row, and the metric of either model as a function of the cells' counts."""
    if metric in ("rmse", "r2") and classes is None:
        truth = np.asarray(y_true, dtype=np.float64)
        form = _rmse if metric == "rmse" else _r2
        return np.arange(len(truth)), form(truth, champion), form(truth, challenger)
    if classes is None:
        raise ValueError(f"metric {metric!r} cannot be resampled for a regression")
    codes = encode(y_true, classes)
    if metric in ("roc_auc", "average_precision"):
        ranking = _roc_auc if metric == "roc_auc" else _average_precision
        return np.arange(len(codes)), ranking(codes == 1, champion), ranking(codes == 1, challenger)
    if metric not in _OF_COUNTS:
        raise ValueError(f"metric {metric!r} cannot be resampled")
    decisions = np.stack([codes, decide(champion, threshold), decide(challenger, threshold)], axis=1)
    kinds, cell_of_row = np.unique(decisions, axis=0, return_inverse=True)
    of_counts = _OF_COUNTS[metric]
    return (
        cell_of_row.reshape(-1).astype(np.int64),
        _decided(of_counts, kinds[:, 0], kinds[:, 1], len(classes)),
        _decided(of_counts, kinds[:, 0], kinds[:, 2], len(classes)),
    )


# ---------------------------------------------------------------- metrics of decisions
OfCounts: TypeAlias = Callable[[Floats, Floats, Floats], Floats]
"""(right, actual, decided) counts of each class, (b, k) each -> the metric, (b,)."""


def _decided(of_counts: OfCounts, truth: Ints, decided: Ints, classes: int) -> Statistic:
    actual_indicator = _indicator(truth, classes)
    decided_indicator = _indicator(decided, classes)
    right_indicator = actual_indicator * decided_indicator

    def statistic(counts: Floats) -> Floats:
        return of_counts(counts @ right_indicator, counts @ actual_indicator, counts @ decided_indicator)

    return statistic


def _indicator(codes: Ints, classes: int) -> Floats:
    """(m, k) of 0 and 1; a row of zeros for a code that is no class."""
    matches: Floats = (codes[:, None] == np.arange(classes)[None, :]).astype(np.float64)
    return matches


def _precision(right: Floats, _actual: Floats, decided: Floats) -> Floats:
    return right[:, 1] / decided[:, 1]


def _recall(right: Floats, actual: Floats, _decided: Floats) -> Floats:
    return right[:, 1] / actual[:, 1]


def _f1(right: Floats, actual: Floats, decided: Floats) -> Floats:
    return 2 * right[:, 1] / (actual[:, 1] + decided[:, 1])


def _balanced_accuracy(right: Floats, actual: Floats, _decided: Floats) -> Floats:
    return _mean_where(right / actual, actual > 0)


def _f1_macro(right: Floats, actual: Floats, decided: Floats) -> Floats:
    return _mean_where(2 * right / (actual + decided), actual + decided > 0)


def _mean_where(values: Floats, defined: NDArray[np.bool_]) -> Floats:
    mean: Floats = np.where(defined, values, 0.0).sum(axis=1) / defined.sum(axis=1)
    return mean


_OF_COUNTS: dict[str, OfCounts] = {
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _f1_macro,
}


# ---------------------------------------------------------------- metrics of rankings
def _from_the_top(positive: NDArray[np.bool_], scores: Floats) -> tuple[Ints, Ints, Floats, Floats]:
    """Positives and negatives from the highest score down, and their scores turned round (so ascending)."""
    places = [np.flatnonzero(of) for of in (positive, ~positive)]
    hits, misses = (place[np.argsort(-scores[place], kind="stable")] for place in places)
    return hits, misses, -scores[hits], -scores[misses]


def _running(counts: Floats, rows: Ints) -> Floats:
    """Of these rows in their order, how many were drawn among the first k, k = 0..m: (b, m + 1)."""
    sums = np.zeros((len(counts), len(rows) + 1))
    np.cumsum(np.take(counts, rows, axis=1), axis=1, out=sums[:, 1:])
    return sums


def _roc_auc(positive: NDArray[np.bool_], scores: Floats) -> Statistic:
    """P(positive above negative) + P(tie) / 2, with each row counted as often as it was drawn."""
    hits, misses, hit_scores, miss_scores = _from_the_top(positive, scores)
    above = np.searchsorted(hit_scores, miss_scores, side="left")
    not_below = np.searchsorted(hit_scores, miss_scores, side="right")
    ties = bool((above != not_below).any())

    def statistic(counts: Floats) -> Floats:
        found = _running(counts, hits)
        drawn = np.take(counts, misses, axis=1)
        beaten_by = np.take(found, above, axis=1)
        if ties:
            beaten_by = (beaten_by + np.take(found, not_below, axis=1)) / 2
        won: Floats = np.einsum("ij,ij->i", drawn, beaten_by)
        total: Floats = found[:, -1] * drawn.sum(axis=1)
        return won / total

    return statistic


def _average_precision(positive: NDArray[np.bool_], scores: Floats) -> Statistic:
    """Sum over distinct scores of (recall gained) x (precision there), with each row counted as often as it was drawn."""
    hits, misses, hit_scores, miss_scores = _from_the_top(positive, scores)
    hits_to_here = np.searchsorted(hit_scores, hit_scores, side="right")
    misses_to_here = np.searchsorted(miss_scores, hit_scores, side="right")

    def statistic(counts: Floats) -> Floats:
        found, missed = _running(counts, hits), _running(counts, misses)
        right = np.take(found, hits_to_here, axis=1)
        precision = right / np.maximum(right + np.take(missed, misses_to_here, axis=1), 1.0)
        gained: Floats = np.einsum("ij,ij->i", np.take(counts, hits, axis=1), precision)
        total = np.where(missed[:, -1] > 0, found[:, -1], np.nan)
        return gained / total

    return statistic


# ---------------------------------------------------------------- metrics of errors
def _rmse(truth: Floats, predictions: Floats) -> Statistic:
    squares = np.square(truth - predictions)

    def statistic(counts: Floats) -> Floats:
        roots: Floats = np.sqrt(counts @ squares / len(truth))
        return roots

    return statistic


def _r2(truth: Floats, predictions: Floats) -> Statistic:
    squares = np.square(truth - predictions)
    centred = truth - truth.mean()
    moments = np.stack([centred, np.square(centred), squares], axis=1)

    def statistic(counts: Floats) -> Floats:
        sums = counts @ moments
        total = sums[:, 1] - np.square(sums[:, 0]) / len(truth)
        explained: Floats = 1.0 - sums[:, 2] / np.where(total > 0, total, np.nan)
        return explained

    return statistic
