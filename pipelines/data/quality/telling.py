"""How far one column alone tells the label: what finds a label that has leaked into a feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.data.quality.summary import Floats, label_codes, numbers_of

BINS = 64
BIN_ROWS_MIN = 8
VALUES_MAX = 64
"""Columns of fewer distinct values are taken value by value, others by quantiles."""
ROWS_MIN = 100


def lift(column: pd.Series, label: pd.Series, *, classes: bool) -> float | None:
    """Share of what the most frequent class (or the mean) gets wrong that knowing the column puts right; 0 to 1.

    Measured on other rows than it was learnt from: from the even rows a class (a mean) for each value or each of `BINS` ranges of the
    column, told for the odd rows, and the other way round. Missing values are one value. None if there are fewer than `ROWS_MIN` labelled
    rows, if the label is constant, or if the column is text of many values.

    >>> rows = pd.Series(range(200))
    >>> lift(rows, (rows >= 100).astype(int), classes=True) > 0.9, lift(rows % 7, (rows >= 100).astype(int), classes=True) < 0.2
    (True, True)
    """
    known = label.notna().to_numpy()
    if known.sum() < ROWS_MIN:
        return None
    if classes and _is_renaming(column[known], label[known]):
        return 1.0
    bins = _bins(column[known])
    if bins is None:
        return None
    if classes:
        codes, _ = label_codes(label[known])
        return _lift_of_classes(bins, codes)
    numbers = numbers_of(label[known])
    return None if numbers is None else _lift_of_numbers(bins, numbers)


def _is_renaming(column: pd.Series, label: pd.Series) -> bool:
    """Whether each value stands for one class and each class for one value, as in a copy of the label."""
    ours, values = pd.factorize(column)
    theirs, classes = pd.factorize(label)
    if len(values) != len(classes) or len(classes) < 2 or (ours < 0).any():
        return False
    return len(np.unique(ours.astype("int64") * len(classes) + theirs)) == len(classes)


def _bins(column: pd.Series) -> NDArray[np.int64] | None:
    codes, uniques = pd.factorize(column)
    if len(uniques) <= VALUES_MAX:
        return np.asarray(codes, dtype="int64") + 1
    numbers = numbers_of(column)
    if numbers is None:
        return None
    count = min(BINS, len(numbers) // BIN_ROWS_MIN)
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, count + 1)[1:-1]))
    return np.where(np.isnan(numbers), 0, np.searchsorted(edges, numbers, side="right") + 1)


def _lift_of_classes(bins: NDArray[np.int64], codes: NDArray[np.int64]) -> float | None:
    classes = int(codes.max()) + 1
    table = np.zeros((2, int(bins.max()) + 1, classes))
    half = np.arange(len(codes)) % 2
    np.add.at(table, (half, bins, codes), 1)
    right = wrong_base = 0.0
    for learn, tell in ((0, 1), (1, 0)):
        overall = int(table[learn].sum(axis=0).argmax())
        seen = table[learn].sum(axis=1) > 0
        told = np.where(seen, table[learn].argmax(axis=1), overall)
        right += table[tell][np.arange(len(told)), told].sum()
        wrong_base += table[tell].sum() - table[tell][:, overall].sum()
    if not wrong_base:
        return None
    return float(max(0.0, 1.0 - (len(codes) - right) / wrong_base))


def _lift_of_numbers(bins: NDArray[np.int64], label: Floats) -> float | None:
    half = np.arange(len(label)) % 2
    error = base = 0.0
    size = int(bins.max()) + 1
    for learn, tell in ((half == 0, half == 1), (half == 1, half == 0)):
        mean = float(label[learn].mean())
        count = np.bincount(bins[learn], minlength=size)
        total = np.bincount(bins[learn], weights=label[learn], minlength=size)
        told = np.where(count > 0, total / np.maximum(count, 1), mean)[bins[tell]]
        error += float(((label[tell] - told) ** 2).sum())
        base += float(((label[tell] - mean) ** 2).sum())
    if base <= 0:
        return None
    return max(0.0, 1.0 - error / base)


def trend(column: pd.Series, label: Floats) -> float | None:
    """Spearman's rank correlation of the column's numbers with a numeric label (n,); None if either is constant or hardly there."""
    numbers = numbers_of(column)
    if numbers is None:
        return None
    known = ~np.isnan(numbers) & ~np.isnan(label)
    if known.sum() < ROWS_MIN:
        return None
    a, b = pd.Series(numbers[known]).rank().to_numpy(), pd.Series(label[known]).rank().to_numpy()
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
