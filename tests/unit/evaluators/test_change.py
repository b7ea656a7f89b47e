"""How sure a score is, and since when it is what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluators.change import BRIDGE_CRITICAL, ROWS_MIN, mean_loss, onset, rise, row_losses, standard_error
from pipelines.scores import score
from policies.metrics import Task

Floats = NDArray[np.float64]


# ---------------------------------------------------------------- standard error
@pytest.mark.parametrize("rows", [200, 1000, 1013])
def test_error_of_a_mean_is_the_textbook_one(rows: int) -> None:
    """Of independent rows, block jackknife and s / sqrt(n) agree on average (20 blocks: 16 % spread each; 400 draws: within 4 %)."""
    rng = np.random.default_rng(rows)
    values = rng.normal(size=(400, rows))
    found = [standard_error(lambda kept, row=row: float(row[kept].mean()), rows) for row in values]  # type: ignore[misc]
    expected = 1 / math.sqrt(rows)
    assert math.sqrt(float(np.mean(np.square(np.array(found, dtype=float))))) == pytest.approx(expected, rel=0.04)


def test_error_grows_where_rows_err_in_a_row() -> None:
    """Rows that come in runs of 25 equal ones are worth a 25th of their number, which the textbook formula does not see."""
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.normal(size=(200, 40)), 25, axis=1)
    found = [standard_error(lambda kept, row=row: float(row[kept].mean()), 1000) for row in runs]  # type: ignore[misc]
    true = 1 / math.sqrt(40)
    assert math.sqrt(float(np.mean(np.square(np.array(found, dtype=float))))) == pytest.approx(true, rel=0.1)


def test_error_is_unknown_with_few_rows_or_an_undefined_score() -> None:
    """No number rather than a bad one."""
    assert standard_error(lambda kept: float(kept.mean()), ROWS_MIN - 1) is None
    assert standard_error(lambda kept: float(kept.mean()), ROWS_MIN) is not None
    assert standard_error(lambda kept: math.nan if 0 in kept else 1.0, 100) is None


@given(st.integers(ROWS_MIN, 300))
def test_every_row_is_left_out_once(rows: int) -> None:
    """The blocks that are left out are the rows, each once."""
    left_out: list[int] = []

    def score(kept: NDArray[np.int64]) -> float:
        left_out.extend(set(range(rows)) - set(kept.tolist()))
        return 0.0

    assert standard_error(score, rows) == 0
    assert sorted(left_out) == list(range(rows))


# ---------------------------------------------------------------- since when
@pytest.mark.parametrize("kind", ["coins", "normal", "skewed"])
@pytest.mark.parametrize("rows", [60, 500])
def test_without_a_change_one_is_seen_in_at_most_one_of_twenty(kind: str, rows: int) -> None:
    """4,000 windows of rows that are all alike: false alarms at most at 5 %, give or take three standard errors; and not never."""
    rng = np.random.default_rng(rows)
    windows = {
        "coins": lambda: (rng.random((4000, rows)) < 0.2).astype(float),
        "normal": lambda: rng.normal(size=(4000, rows)),
        "skewed": lambda: rng.exponential(size=(4000, rows)),
    }[kind]()
    alarms = np.mean([rise(window) is not None for window in windows])
    assert 0.01 < alarms < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_a_rise_is_found_where_it_is() -> None:
    """Error 10 % until row 600 of 900 and 30 % from then on: seen in nearly every window, half of the places within 25 rows."""
    rng = np.random.default_rng(1)
    before, after = rng.random((500, 600)) < 0.1, rng.random((500, 300)) < 0.3
    found = [rise(window) for window in np.hstack([before, after]).astype(float)]
    seen = np.array([place for place in found if place is not None])
    assert len(seen) > 0.99 * 500
    assert np.median(np.abs(seen - 600)) <= 25


@given(st.integers(ROWS_MIN, 200), st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.floats(-10, 10))
def test_scale_and_place_of_losses_do_not_matter(rows: int, seed: int, scale: float, shift: float) -> None:
    """Losses in other units tell of the same change."""
    losses = np.random.default_rng(seed).normal(size=rows)
    losses[rows // 2 :] += 2
    assert rise(losses * scale + shift) == rise(losses) is not None


def test_what_got_better_is_no_rise() -> None:
    """Lower losses are no reason to forget the past."""
    assert rise(np.repeat([0.9, 0.1], 300) + np.tile([0.0, 0.1], 300)) is None
    assert rise(np.repeat([0.1, 0.9], 300) + np.tile([0.0, 0.1], 300)) == 300


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unknown_losses_tell_of_no_change(bad: float) -> None:
    """One loss that is no number, and nothing is said; nor is it of constant losses, or of few."""
    losses = np.repeat([0.1, 0.9], 300)
    assert rise(losses) == 300
    losses[5] = bad
    assert rise(losses) is None
    assert rise(np.ones(100)) is None
    assert rise(np.repeat([0.1, 0.9], ROWS_MIN // 2 - 1)) is None


def test_the_limit_is_that_of_a_bridge() -> None:
    """exp(-2 x^2) = 0.05."""
    assert math.exp(-2 * BRIDGE_CRITICAL**2) == pytest.approx(0.05, abs=2e-4)


def test_the_onset_of_a_change_from_a_known_mean() -> None:
    """10 % errors in better times, 30 % now: found within 25 rows in half of the windows; in windows bad throughout, near their start."""
    rng = np.random.default_rng(2)
    windows = (rng.random((500, 900)) < np.repeat([0.1, 0.3], [600, 300])).astype(float)
    found = np.array([onset(window, before=0.1) for window in windows], dtype=float)
    assert np.median(np.abs(found - 600)) <= 25
    throughout = np.array(
        [onset(window, before=0.1) for window in (rng.random((500, 900)) < 0.3).astype(float)], dtype=float
    )
    assert np.median(throughout) <= 25


def test_no_onset_where_nothing_is_worse_or_known() -> None:
    """The newest are no higher than in better times, there are few, or one is no number."""
    assert onset(np.full(100, 0.2), before=0.2) is None
    assert onset(np.repeat([0.9, 0.1], 200), before=0.2) is None
    assert onset(np.full(ROWS_MIN - 1, 0.9), before=0.1) is None
    losses = np.full(100, 0.9)
    assert onset(losses, before=0.1) == 0
    losses[3] = math.nan
    assert onset(losses, before=0.1) is None


@given(st.integers(ROWS_MIN, 300), st.integers(0, 2**32 - 1), st.floats(-1, 2))
def test_what_follows_the_onset_is_worse_than_what_came_before(rows: int, seed: int, before: float) -> None:
    """On average the rows from there on are nearer to the newest than to better times, and those before it are not."""
    losses = np.random.default_rng(seed).random(rows)
    place = onset(losses, before)
    recent = losses[-max(ROWS_MIN, rows // 4) :].mean()
    assert (place is None) == (recent <= before)
    if place is not None:
        middle = (before + recent) / 2
        assert losses[place:].mean() >= middle - 1e-9
        assert place == 0 or losses[:place].mean() <= middle + 1e-9


def test_the_mean_loss_is_that_of_the_rows() -> None:
    """What scores at promotion tell is the mean of the losses of those rows, in the same unit; where they do not tell, it is unknown."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 50).astype(float)
    answers = rng.random(50)
    for task, given_codes, given_answers, classes in (
        (Task.BINARY, codes, answers, [0, 1]),
        (Task.MULTICLASS, codes, np.stack([1 - answers, answers], axis=1), [0, 1]),
        (Task.REGRESSION, codes, answers, None),
    ):
        metric = {Task.BINARY: "brier", Task.MULTICLASS: "accuracy", Task.REGRESSION: "rmse"}[task]
        told = {metric: score(metric, given_codes, given_answers, classes=classes, threshold=0.5)}
        expected = mean_loss(task, told)
        assert expected == pytest.approx(row_losses(task, given_codes, given_answers).mean())
        assert mean_loss(task, {"r2": 0.5}) is None


def test_losses_of_a_row() -> None:
    """Squared errors, Brier's score of two classes, errors of many; all larger where the answer is worse."""
    assert row_losses(Task.REGRESSION, np.array([1.0, 2.0]), np.array([1.0, 5.0])).tolist() == [0, 9]
    assert row_losses(Task.BINARY, np.array([1.0, 0.0]), np.array([1.0, 0.5])).tolist() == [0, 0.25]
    assert row_losses(Task.MULTICLASS, np.array([0.0]), np.array([[0.0, 1.0]])).tolist() == [1.0]
