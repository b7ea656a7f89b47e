"""How the training rows are divided to score a candidate. Pure: arrays of row numbers, no models.

Always fit on the past and score on what came next, as in production: the newest part of the rows is cut into blocks in the order of time
(of the table, where rows have no time), and each block is scored by a model fitted on the rows before it (rolling origin; Tashman, 2000).
Random folds would let a model see next week's weather today, and prefer parameters that remember too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

FOLDS = 4
SCORED_SHARE = 0.45
"""Of the rows, at most the newest so many are scored; the first fold is then fitted on the other 55 %."""
BLOCK_ROWS_MIN = 100
"""However few rows are held out, that many are scored by a fold, where there are: fewer cannot tell one candidate from another."""


@dataclass(frozen=True, eq=False, slots=True)
class Fold:
    """Row numbers to fit on and to score, each ascending."""

    fit: Indices
    score: Indices


def make_folds(
    target: Floats,
    times: Floats,
    *,
    classification: bool,
    seed: int,
    folds: int = FOLDS,
    block: int | None = None,
) -> tuple[Fold, ...]:
    """Folds of n rows: by `times` (n,), ascending, oldest block first; where no block in time qualifies, random ones of equal shares of
    each class.

    `target` (n,): class index or value. What is fitted holds at least two classes, and so does what is scored (regression: two rows each).
    No fold at all comes back when there are not rows enough for that. `block`: rows that a fold in time scores, at most: as many as the
    holdout has (or BLOCK_ROWS_MIN), so that what is chosen is what is good for as long as a version will have to last.
    """
    share = SCORED_SHARE
    if block is not None:
        share = min(SCORED_SHARE, folds * max(block, BLOCK_ROWS_MIN) / max(len(target), 1))
    rolling = tuple(f for f in rolling_folds(times, folds, share) if _is_usable(f, target, classification))
    if rolling:
        return rolling
    shuffled = shuffled_folds(target, classification=classification, seed=seed, folds=folds)
    return tuple(f for f in shuffled if _is_usable(f, target, classification))


def block_after_change(times: Floats, since_change_s: float, folds: int = FOLDS) -> int:
    """Rows a fold scores, so that all folds lie in the newer half of the rows since the change: what is good now is asked now.

    >>> block_after_change(np.arange(1000.0), 400, folds=4)
    50
    """
    rows = int(np.count_nonzero(times > times[-1] - since_change_s)) if len(times) else 0
    return max(1, rows // (2 * folds))


def rolling_folds(times: Floats, folds: int = FOLDS, scored_share: float = SCORED_SHARE) -> tuple[Fold, ...]:
    """Blocks of about equal numbers of rows from the newest `scored_share`, each with all rows before it to fit on.

    A block never begins in the middle of rows of the same time, so what is fitted is strictly older than what is scored.

    >>> [(len(f.fit), f.score.tolist()) for f in rolling_folds(np.arange(10.0), folds=2, scored_share=0.4)]
    [(6, [6, 7]), (8, [8, 9])]
    """
    n = len(times)
    wanted = [round(n * (1 - scored_share * (folds - i) / folds)) for i in range(folds)]
    starts = [int(np.searchsorted(times, times[w], side="left")) if w < n else n for w in wanted]
    ends = [*starts[1:], n]
    rows = np.arange(n, dtype=np.int64)
    return tuple(Fold(rows[:a], rows[a:b]) for a, b in zip(starts, ends, strict=True) if 0 < a < b)


def shuffled_folds(target: Floats, *, classification: bool, seed: int, folds: int = FOLDS) -> tuple[Fold, ...]:
    """Each row is scored once; classes are dealt out to the folds in turn, so that each fold has its share (stratified k-fold)."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(target))
    if classification:
        order = order[np.argsort(target[order], kind="stable")]
    fold_of = np.empty(len(target), dtype=np.int64)
    fold_of[order] = np.arange(len(target)) % folds
    parts = [np.flatnonzero(fold_of == i).astype(np.int64) for i in range(folds)]
    others = [np.flatnonzero(fold_of != i).astype(np.int64) for i in range(folds)]
    return tuple(Fold(fit, score) for fit, score in zip(others, parts, strict=True))


def within_window(fold: Fold, times: Floats, window_s: float | None) -> Indices:
    """The fold's rows to fit on that are in the training window, counted back from the newest of them.

    The rule of `pipelines.training.windowed`, by which the final model is trained, so that the search compares windows fairly.
    """
    if window_s is None:
        return fold.fit
    of_rows = times[fold.fit]
    inside: Indices = fold.fit[of_rows > of_rows[-1] - window_s]
    return inside


def lacks(target: Floats, rows: Indices, classes: Sequence[object] | None) -> str:
    """Why a model cannot be fitted on these rows, or nothing. Of many classes some may be absent; of two neither, and two are needed."""
    if classes is None:
        return "" if len(rows) >= 2 else f"only {len(rows)} rows to fit on"
    present = np.unique(target[rows]).astype(int).tolist()
    if len(present) >= 2:
        return ""
    missing = min(set(range(len(classes))) - set(present))
    return f"no row of class {classes[missing]!r} to fit on"


def _is_usable(fold: Fold, target: Floats, classification: bool) -> bool:
    if not classification:
        return len(fold.fit) >= 2 and len(fold.score) >= 2
    return len(np.unique(target[fold.fit])) > 1 and len(np.unique(target[fold.score])) > 1
