"""How sure is a score, and since when is it what it is? Both from the rows of one window in the order of time. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.losses import classification_losses
from policies.metrics import Task

Floats: TypeAlias = NDArray[np.float64]

BLOCKS = 20
"""Blocks of the jackknife. Rows close in time are alike, and a block keeps what is alike together."""
BRIDGE_CRITICAL = 1.224
"""A Brownian bridge stays above minus this with probability 0.95: exp(-2 x^2) = 0.05 (Smirnov)."""
ROWS_MIN = 40
"""With fewer rows neither is told."""


def standard_error(score: Callable[[NDArray[np.int64]], float], rows: int) -> float | None:
    """Standard error of a score of n rows by the delete-a-block jackknife; `score` is given the rows to keep. None where it is not defined.

    Source: H. Künsch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17 (1989) 1217-1241.

    >>> values = np.tile([0.0, 1.0], 200)
    >>> standard_error(lambda kept: float(values[kept].mean()), 400)
    0.0
    """
    if rows < ROWS_MIN:
        return None
    everything = np.arange(rows, dtype=np.int64)
    left_out = np.array([score(np.delete(everything, block)) for block in np.array_split(everything, BLOCKS)])
    if not np.isfinite(left_out).all():
        return None
    return float(math.sqrt((BLOCKS - 1) / BLOCKS * np.sum(np.square(left_out - left_out.mean()))))


def rise(losses: Floats) -> int | None:
    """Index of the first row from which on losses (n,) are higher than before, or None if that may be chance or a loss is not finite.

    The place is where the cumulative sum of deviations from the mean is lowest, which is the least-squares estimate of one change of the
    mean; it stands out if that sum, as a bridge, falls lower than 95 % of bridges do. Sources: E. Page, Biometrika 41 (1954) 100-115;
    J. Bai, Journal of Time Series Analysis 15 (1994) 453-472.

    >>> rise(np.repeat([0.1, 0.9], [300, 100]) + np.tile([0.0, 0.1], 200))
    300
    >>> rise(np.tile([0.0, 1.0], 200)) is None
    True
    """
    n = len(losses)
    if n < ROWS_MIN or not np.isfinite(losses).all():
        return None
    deviation = losses - losses.mean()
    spread = float(deviation.std())
    if spread <= 0:
        return None
    bridge = np.cumsum(deviation)
    place = int(np.argmin(bridge[:-1]))
    if -bridge[place] / (spread * math.sqrt(n)) < BRIDGE_CRITICAL:
        return None
    return place + 1


def onset(losses: Floats, before: float) -> int | None:
    """Index of the first row from which on losses (n,) are rather like the newest than like `before`, their mean in better times.

    None if the newest are no higher, or a loss is not finite.

    The maximum-likelihood place of a change between two known means: D. Hinkley, Biometrika 57 (1970) 1-17. Unlike `rise` it also sees that
    the whole window is worse than it should be.

    >>> onset(np.repeat([0.1, 0.9], [300, 100]), before=0.1), onset(np.full(400, 0.9), before=0.1), onset(np.full(400, 0.1), before=0.1)
    (300, 0, None)
    """
    n = len(losses)
    if n < ROWS_MIN or not np.isfinite(losses).all():
        return None
    recent = float(losses[-max(ROWS_MIN, n // 4) :].mean())
    if recent <= before:
        return None
    since = np.cumsum((losses - (before + recent) / 2)[::-1])[::-1]
    return int(np.argmax(since))


def row_losses(task: Task, codes: Floats, answers: Floats) -> Floats:
    """A loss a row, (n,): squared error of a regression, Brier's score of two classes, error of many."""
    match task:
        case Task.REGRESSION:
            losses: Floats = np.square(codes - answers)
        case Task.MULTICLASS:
            losses = (np.argmax(answers, axis=1) != codes).astype(np.float64)
        case _:
            losses = classification_losses(codes, answers)
    return losses


def mean_loss(task: Task, scores: Mapping[str, float]) -> float | None:
    """The mean of `row_losses` on the rows that gave these scores; None if they do not tell."""
    match task:
        case Task.REGRESSION:
            return scores["rmse"] ** 2 if "rmse" in scores else None
        case Task.MULTICLASS:
            return 1.0 - scores["accuracy"] if "accuracy" in scores else None
        case _:
            return scores.get("brier")
