"""Scores of the year: what was served, and what the first version would have answered, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from demo.flights import LABEL, LABEL_TIME, TIME

BLOCK_DAYS = 14
MIN_ROWS = 200


@dataclass(frozen=True)
class Point:
    """One block of the year. Scores are NaN where there are too few rows."""

    middle: pd.Timestamp
    rows: int
    served: float
    first: float


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann and Whitney, 1947); NaN without both classes.

        AUC = (R₁ - n₁(n₁+1)/2) / (n₁ n₀),  R₁ the sum of the positives' ranks, ties averaged

    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    positive = labels == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return float("nan")
    ranks = pd.Series(scores).rank().to_numpy()
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def known(flights: pd.DataFrame, served: np.ndarray, now: pd.Timestamp) -> np.ndarray:
    """Rows that were served and whose label is known by `now`, as a mask."""
    return np.asarray(~np.isnan(served) & (flights[LABEL_TIME] <= now).to_numpy(), dtype=bool)


def by_block(
    flights: pd.DataFrame, served: np.ndarray, first: np.ndarray | None, now: pd.Timestamp, days: int = BLOCK_DAYS
) -> list[Point]:
    """Scores of blocks of `days` days, oldest first, of rows known by `now`."""
    mask = known(flights, served, now)
    if not mask.any():
        return []
    labels = flights[LABEL].to_numpy()
    start = flights[TIME][mask].iloc[0].floor("D")
    block = ((flights[TIME] - start).dt.days // days).to_numpy()
    points = []
    for number in range(int(block[mask].max()) + 1):
        inside = mask & (block == number)
        rows = int(inside.sum())
        if rows < MIN_ROWS:
            continue
        of_first = roc_auc(labels[inside], first[inside]) if first is not None else float("nan")
        middle = start + pd.Timedelta(days=days * number + days / 2)
        points.append(Point(middle, rows, roc_auc(labels[inside], served[inside]), of_first))
    return points
