"""From a model's scores to probabilities that can be believed: isotonic regression on rows whose labels have matured.

The method, its splits and its rule of when to leave scores alone are those of NannyML 0.13.1 (`nannyml/calibration.py`), so that the
two estimate alike; the tests hold ours to it. Fitting needs scikit-learn and happens once a version, in the judging job. Applying a
calibrator is one `np.interp`, because it is applied at every measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

SPLITS = 10
"""Random splits, of nine tenths to fit on and one to try, over which it is decided whether calibration helps."""
BINS = 10
"""Bins of equally many rows, over which the calibration error is summed."""
_SEED = 42
_SEPARATED = 0.999
"""From this ROC AUC on there is nothing between the classes that could be calibrated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrator:
    """A monotone function by its corners: linear between them, constant outside. Without corners it changes nothing."""

    at: Floats
    """(m,) scores, ascending."""
    probability: Floats
    """(m,) what they are worth, ascending, in [0, 1]."""

    @classmethod
    def none(cls) -> Self:
        """The scores are probabilities as they are."""
        return cls(at=np.zeros(0), probability=np.zeros(0))

    def __call__(self, scores: Floats) -> Floats:
        """Probabilities of (n,) scores.

        >>> step = Calibrator(at=np.array([0.25, 0.75]), probability=np.array([0.25, 0.75]))
        >>> step(np.array([0.0, 0.5, 0.9])).tolist(), Calibrator.none()(np.array([0.4])).tolist()
        ([0.25, 0.5, 0.75], [0.4])
        """
        if not len(self.at):
            return scores
        return np.asarray(np.interp(scores, self.at, self.probability), dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        return {"at": self.at.tolist(), "probability": self.probability.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError if it is something else."""
        at, probability = (np.asarray(value[key], dtype=np.float64) for key in ("at", "probability"))
        if at.shape != probability.shape or at.ndim != 1 or not np.isfinite([*at, *probability]).all():
            raise ValueError("a calibrator is two lists of equally many finite numbers")
        if (np.diff(at) < 0).any() or (np.diff(probability) < 0).any():
            raise ValueError("a calibrator's corners must ascend")
        return cls(at=at, probability=probability)


def fit_calibrator(scores: Floats, truth: NDArray[np.bool_]) -> Calibrator:
    """Isotonic, from (n,) scores and whether each row is of the class; `Calibrator.none()` where calibrating does not help.

    It helps if, over the rows held back by the splits, the expected calibration error is smaller with it than without. It is not tried
    with one class only, with a class of fewer than two rows, or where the classes are separated anyway.
    """
    if not _helps(scores, truth):
        return Calibrator.none()
    return _isotonic(scores, truth)


def _isotonic(scores: Floats, truth: NDArray[np.bool_]) -> Calibrator:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip", increasing=True).fit(scores, truth.astype(np.float64))
    return Calibrator(
        at=np.asarray(fitted.X_thresholds_, dtype=np.float64),
        probability=np.clip(np.asarray(fitted.y_thresholds_, dtype=np.float64), 0.0, 1.0),
    )


def _helps(scores: Floats, truth: NDArray[np.bool_]) -> bool:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedShuffleSplit

    if min(np.count_nonzero(truth), np.count_nonzero(~truth)) < 2 or len(scores) < 4 * SPLITS:
        return False
    if roc_auc_score(truth, scores) > _SEPARATED:
        return False
    held, before, after = [], [], []
    for train, test in StratifiedShuffleSplit(n_splits=SPLITS, test_size=0.1, random_state=_SEED).split(scores, truth):
        held.append(truth[test])
        before.append(scores[test])
        after.append(_isotonic(scores[train], truth[train])(scores[test]))
    outcomes = np.concatenate(held).astype(np.float64)
    return calibration_error(outcomes, np.concatenate(before)) > calibration_error(outcomes, np.concatenate(after))


def calibration_error(outcomes: Floats, probabilities: Floats, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of (share of the rows) x |mean probability - share of positives|, for (n,) arrays.

    Bins hold n // bins rows each in the order of the probabilities; the last one also takes what is left over. Source: Naeini, Cooper,
    Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI; binning as in NannyML.

    >>> calibration_error(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.4, 0.4, 0.9, 0.9]), bins=2)
    0.25
    """
    order = np.argsort(probabilities)
    gap = (probabilities - outcomes)[order]
    width = max(len(gap) // bins, 1)
    starts = np.arange(0, len(gap) - len(gap) % width, width)
    return float(np.abs(np.add.reduceat(gap, starts)).sum() / len(gap))
