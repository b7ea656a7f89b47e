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
    """Four blocks of 11.25 %, rounded, the newest row in the last one."""
    folds = rolling_folds(np.arange(100.0))
    assert [(len(f.fit), len(f.score)) for f in folds] == [(55, 11), (66, 12), (78, 11), (89, 11)]
    assert folds[-1].score[-1] == 99


@given(st.integers(40, 900), st.one_of(st.none(), st.integers(0, 500)), st.integers(0, 99))
def test_folds_look_ahead_only(rows: int, block: int | None, seed: int) -> None:
    """However much is held out: what is fitted is strictly older than what is scored, and at most 45 % of all rows, each once."""
    times = np.cumsum(np.random.default_rng(seed).integers(1, 100, rows)).astype(float)
    folds = make_folds(times, times, classification=False, seed=seed, block=block)
    assert len(folds) == 4
    assert all(times[fold.fit].max() < times[fold.score].min() for fold in folds)
    scored = np.concatenate([fold.score for fold in folds])
    assert scored.tolist() == list(range(rows - len(scored), rows))
    assert len(scored) <= 0.45 * rows + 1


@pytest.mark.parametrize(
    ("rows", "block", "scored"),
    [
        (1000, 110, [110] * 4),
        (1000, None, [112, 113, 113, 112]),
        (1000, 500, [112, 113, 113, 112]),
        (1000, 5, [100] * 4),
        (1000, 0, [100] * 4),
        (60, 5, [7, 6, 7, 7]),
    ],
)
def test_a_fold_scores_as_many_rows_as_are_held_out(rows: int, block: int | None, scored: list[int]) -> None:
    """But at least 100, and all four together at most 45 % of the rows."""
    folds = make_folds(np.ones(rows), np.arange(float(rows)), classification=False, seed=0, block=block)
    assert [len(f.score) for f in folds] == scored
    assert folds[-1].score[-1] == rows - 1


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
    target[[3, 20, 50, 97]] = 1
    assert [target[f.score].sum() for f in shuffled_folds(target, classification=True, seed=1)] == [1, 1, 1, 1]


def test_folds_in_time_without_both_classes_are_left_out() -> None:
    """A block with one class only has no ranking score, so it is no fold."""
    target = np.zeros(100)
    target[:90:2] = 1
    folds = make_folds(target, np.arange(100.0), classification=True, seed=0)
    assert [int(f.score[0]) for f in folds] == [55, 66, 78]
    target[66:78] = 0
    folds = make_folds(target, np.arange(100.0), classification=True, seed=0)
    assert [int(f.score[0]) for f in folds] == [55, 78]


def test_folds_in_time_where_a_class_is_new_or_gone() -> None:
    """Of many classes some may be absent from what is fitted, or scored; two in each are enough."""
    target = np.repeat([0.0, 1.0, 2.0], [30, 30, 40])
    target[60::2] = 1
    folds = make_folds(target, np.arange(100.0), classification=True, seed=0)
    assert [int(f.score[0]) for f in folds] == [55, 66, 78, 89]
    assert set(target[folds[0].fit]) == {0, 1}
    assert set(target[folds[0].score]) == {1, 2}


def test_no_block_in_time_falls_back_to_shuffled_ones() -> None:
    """When the only positives are old, no block in time can be scored, and random folds with a share of each class are taken."""
    target = np.zeros(60)
    target[:20] = 1
    folds = make_folds(target, np.arange(60.0), classification=True, seed=0)
    assert len(folds) == 4
    assert all(0 < target[f.score].sum() < len(f.score) for f in folds)


def test_too_few_rows_make_no_folds() -> None:
    """One row of a class cannot be both fitted on and scored."""
    assert make_folds(np.array([0.0, 1.0]), np.arange(2.0), classification=True, seed=0) == ()
    assert make_folds(np.array([1.5]), np.array([0.0]), classification=False, seed=0) == ()


def test_regression_needs_only_rows() -> None:
    """Values that never change are still rows to fit and score on."""
    folds = make_folds(np.ones(40), np.arange(40.0), classification=False, seed=0)
    assert [len(f.fit) for f in folds] == [22, 26, 31, 36]


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
    assert lacks(target, np.array([0, 2]), ["no", "yes", "perhaps"]) == ""
    assert lacks(target, np.array([2]), ["no", "yes", "perhaps"]) == "no row of class 'no' to fit on"
    assert lacks(target, np.array([0]), None) == "only 1 rows to fit on"
