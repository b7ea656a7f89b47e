"""Losses of single rows, bounded where outcomes are compared by betting: what tells two models apart on few rows. Pure."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def classification_losses(codes: Floats, scores: Floats) -> Floats:
    """Brier's score of each row, in [0, 1]: (p - y)^2 for binary (n,) scores, half the squared distance for (n, k).

    `codes` (n,) are positions in the classes; a code below 0 is a label that is no class, and such a row counts as wholly missed by
    whatever probability was given away. Source: G. Brier, Monthly Weather Review 78 (1950) 1-3, scaled to [0, 1].

    >>> classification_losses(np.array([1.0, 0.0]), np.array([0.9, 0.5])).round(2).tolist()
    [0.01, 0.25]
    >>> classification_losses(np.array([2.0]), np.array([[0.5, 0.5, 0.0]])).tolist()
    [0.75]
    """
    probabilities = np.clip(scores, 0.0, 1.0)
    if probabilities.ndim == 1:
        losses: Floats = np.square(probabilities - codes)
        return np.clip(losses, 0.0, 1.0)
    truth = codes[:, None] == np.arange(probabilities.shape[1])[None, :]
    squares: Floats = np.square(probabilities - truth).sum(axis=1) / 2
    return np.clip(squares, 0.0, 1.0)


def regression_losses(truth: Floats, predictions: Floats, scale: float) -> Floats:
    """Absolute error in units of `scale` (> 0, such as the standard deviation of the labels), at most 1.

    >>> regression_losses(np.array([10.0, 10.0]), np.array([12.0, 99.0]), 20.0).tolist()
    [0.1, 1.0]
    """
    return np.minimum(np.abs(truth - predictions) / scale, 1.0)
