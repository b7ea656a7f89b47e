"""Predictions without a model: they know what had matured, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.baselines import NEVER, PERIODS_US, Baseline, Labelled, baselines, last_label
from pipelines.scores import score

HOUR = 3_600_000_000


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.booleans()), min_size=1, max_size=40))
def test_last_label_is_the_newest_that_was_known(rows: list[tuple[int, int, bool]]) -> None:
    """Equals looking through all rows one by one: older than the row, known by then, and of these the newest."""
    at = np.array([r[0] for r in rows], dtype=np.int64)
    known = np.array([r[0] + r[1] if r[2] else NEVER for r in rows], dtype=np.int64)
    labels = np.arange(len(rows), dtype=float)
    found = last_label(Labelled(labels=labels, time_us=at, known_us=known))
    for i in range(len(rows)):
        candidates = [j for j in range(len(rows)) if at[j] < at[i] and known[j] <= at[i]]
        newest = max(candidates, key=lambda j: (at[j], j), default=None)
        assert np.isnan(found[i]) if newest is None else found[i] == newest


def _of_all(labels: np.ndarray, past: int, classes: int | None, **times: np.ndarray) -> dict[str, Baseline]:
    first = Labelled(labels=labels[:past], **{k: v[:past] for k, v in times.items()})
    return baselines(first, Labelled(labels=labels[past:], **{k: v[past:] for k, v in times.items()}), classes)


def test_labels_that_come_late_are_not_used_early() -> None:
    """A class that changes every 10 rows, told after 10 rows, is always guessed wrong; told at once it is nearly always right."""
    labels = (np.arange(1_000) // 10 % 2).astype(float)
    at = np.arange(1_000, dtype=np.int64)
    late = _of_all(labels, 500, 2, time_us=at, known_us=at + 10)["last_label"]
    assert score("accuracy", labels[500:], late.answers("accuracy"), classes=[0, 1]) == 0
    prompt = _of_all(labels, 500, 2, time_us=at, known_us=at)["last_label"]
    assert score("accuracy", labels[500:], prompt.answers("accuracy"), classes=[0, 1]) == pytest.approx(0.9)


def test_a_weekly_season_is_found_and_a_daily_one_too() -> None:
    """Hourly values: the season that fitted the rows before best is taken."""
    at = np.arange(24 * 7 * 6, dtype=np.int64) * HOUR
    hour, weekday = at // HOUR % 24, at // (24 * HOUR) % 7
    noise = np.random.default_rng(0).normal(0, 0.1, len(at))
    weekly = _of_all(hour + 50.0 * (weekday >= 5) + noise, 800, None, time_us=at)["seasonal_naive"]
    assert weekly.words == "same as a week before"
    daily = _of_all(hour + noise, 800, None, time_us=at)["seasonal_naive"]
    truth = (hour + noise)[800:]
    assert score("r2", truth, daily.answers("r2")) > 0.99


def test_a_season_must_be_supported_by_the_rows() -> None:
    """No season without times, on rows of two days, or where rows lie a day apart (which has no hours, but weeks)."""
    hourly = np.arange(48, dtype=np.int64) * HOUR
    assert "seasonal_naive" not in _of_all(np.arange(48.0), 30, None)
    assert "seasonal_naive" not in _of_all(np.arange(48.0), 30, None, time_us=hourly)
    daily = np.arange(100, dtype=np.int64) * PERIODS_US["day"]
    found = _of_all(np.arange(100.0) % 7, 60, None, time_us=daily)["seasonal_naive"]
    assert found.words == "same as a week before"
    assert found.answers("mae") == pytest.approx(np.arange(60.0, 100.0) % 7)


def test_a_season_of_late_labels_is_an_earlier_one() -> None:
    """Where labels take 30 hours, the day before is not known; the one before that is."""
    at = np.arange(24 * 20, dtype=np.int64) * HOUR
    found = _of_all((at // HOUR % 24).astype(float), 300, None, time_us=at, known_us=at + 30 * HOUR)["seasonal_naive"]
    assert found.words == "same as 2 days before"
    assert found.answers("mae") == pytest.approx((at // HOUR % 24)[300:].astype(float))


def test_majority_and_average() -> None:
    """The commonest class of the rows before, its frequency for metrics of chances; the mean, and the median for mae."""
    labels = np.array([0, 0, 0, 1, 2] * 20 + [1.0] * 10)
    found = _of_all(labels, 100, 3)["majority"]
    assert score("accuracy", labels[100:], found.answers("accuracy"), classes=[0, 1, 2]) == 0
    assert found.answers("log_loss")[0] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    values = np.array([1.0, 1.0, 10.0] * 10 + [0.0])
    average = _of_all(values, 30, None)["majority"]
    assert (average.answers("rmse")[0], average.answers("mae")[0]) == (4.0, 1.0)


def test_chances_after_a_label_beat_certainty() -> None:
    """Metrics of chances get how often each class followed: log_loss of labels that mostly stay is near their entropy, not infinite."""
    rng = np.random.default_rng(1)
    labels = (np.cumsum(rng.random(4_000) > 0.9) % 2).astype(float)
    found = _of_all(labels, 2_000, 2)["last_label"]
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert score("log_loss", labels[2_000:], found.answers("log_loss"), classes=[0, 1]) == pytest.approx(
        entropy, abs=0.04
    )
    assert score("roc_auc", labels[2_000:], found.answers("roc_auc"), classes=[0, 1]) > 0.85


def test_without_past_labels_there_are_no_baselines() -> None:
    """Nothing is known, so nothing is said; labels that are no class tell nothing either."""
    judged = Labelled(labels=np.array([0.0, 1.0]))
    assert baselines(Labelled(labels=np.array([])), judged, 2) == {}
    assert baselines(Labelled(labels=np.array([np.nan, -1.0])), judged, 2) == {}
