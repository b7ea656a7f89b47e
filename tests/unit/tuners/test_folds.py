"""How rows are divided to score a candidate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuners.folds import Fold, lacks, make_folds, rolling_folds, shuffled_folds, within_window


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(1, 5))
def test_rolling_folds_score_strictly_later_rows(moments: list[int], folds: int) -> None:
    """Whatever the times, ties included: a fold is fitted on rows strictly older than every row it scores, and no row is scored twice."""
    times = np.sort(np.array(moments, dtype=float))
    scored: list[int] = []
    for fold in rolling_folds(times, folds):
        assert len(fold.fit)
        assert len(fold.score)
        assert times[fold.fit].max() < times[fold.score].min()
        assert fold.fit.tolist() == list(range(int(fold.score[0])))
        scored += fold.score.tolist()
    assert scored == sorted(set(scored))


def test_rolling_folds_score_the_newest_rows_in_equal_blocks() -> None:
    """Three blocks of 15 % each, the newest row in the last one."""
    folds = rolling_folds(np.arange(100.0))
    assert [(len(f.fit), len(f.score)) for f in folds] == [(55, 15), (70, 15), (85, 15)]
    assert folds[-1].score[-1] == 99


@given(st.integers(3, 60), st.integers(0, 100))
def test_shuffled_folds_score_each_row_once(rows: int, seed: int) -> None:
    """Without time every row is scored once, by a model that was not fitted on it, the same way for the same seed."""
    target = (np.arange(rows) % 3 == 0).astype(float)
    folds = shuffled_folds(target, classification=True, seed=seed)
    assert np.sort(np.concatenate([f.score for f in folds])).tolist() == list(range(rows))
    for fold in folds:
        assert np.sort(np.concatenate([fold.fit, fold.score])).tolist() == list(range(rows))
    again = shuffled_folds(target, classification=True, seed=seed)
    assert all((a.score == b.score).all() for a, b in zip(folds, again, strict=True))


def test_shuffled_folds_share_out_the_classes() -> None:
    """A rare class is in every fold, if it has a row for each."""
    target = np.zeros(100)
    target[[3, 50, 97]] = 1
    assert [target[f.score].sum() for f in shuffled_folds(target, classification=True, seed=1)] == [1, 1, 1]


def test_folds_in_time_without_both_classes_are_left_out() -> None:
    """A block with one class only has no ranking score, so it is no fold."""
    target = np.zeros(100)
    target[:90:2] = 1
    folds = make_folds(target, np.arange(100.0), classification=True, seed=0)
    assert [int(f.score[0]) for f in folds] == [55, 70, 85]
    target[70:85] = 0
    folds = make_folds(target, np.arange(100.0), classification=True, seed=0)
    assert [int(f.score[0]) for f in folds] == [55, 85]


def test_no_block_in_time_falls_back_to_shuffled_ones() -> None:
    """When the only positives are old, no block in time can be scored, and random folds with a share of each class are taken."""
    target = np.zeros(60)
    target[:20] = 1
    folds = make_folds(target, np.arange(60.0), classification=True, seed=0)
    assert len(folds) == 3
    assert all(0 < target[f.score].sum() < len(f.score) for f in folds)


def test_too_few_rows_make_no_folds() -> None:
    """One row of a class cannot be both fitted on and scored."""
    assert make_folds(np.array([0.0, 1.0]), None, classification=True, seed=0) == ()
    assert make_folds(np.array([1.5]), np.array([0.0]), classification=False, seed=0) == ()


def test_regression_needs_only_rows() -> None:
    """Values that never change are still rows to fit and score on."""
    folds = make_folds(np.ones(40), np.arange(40.0), classification=False, seed=0)
    assert [len(f.fit) for f in folds] == [22, 28, 34]


@pytest.mark.parametrize(("window_s", "first"), [(None, 0), (10.0, 45), (1e9, 0)])
def test_window_counts_back_from_the_newest_row_fitted(window_s: float | None, first: int) -> None:
    """A window keeps the rows newer than that long before the newest one; none, or a very long one, keeps all."""
    fold = Fold(np.arange(55), np.arange(55, 70))
    kept = within_window(fold, np.arange(100.0), window_s)
    assert (kept[0], kept[-1]) == (first, 54)


def test_lacks_says_what_is_missing() -> None:
    """Rows without one of the classes cannot be fitted on, and the class is named."""
    target = np.array([0.0, 0.0, 1.0])
    assert lacks(target, np.array([0, 1]), ["no", "yes"]) == "no row of class 'yes' to fit on"
    assert lacks(target, np.array([0, 2]), ["no", "yes"]) == ""
    assert lacks(target, np.array([0]), None) == "only 1 rows to fit on"
