"""Differences of two models on the same rows: the intervals cover what they say, and agree with textbooks and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter
from scipy.stats import binom, binomtest, ks_2samp, norm

from evaluators.pairs import MeanDifference, PairedProportions, Resampled, compare, effective_rows, holm, rows_to_settle
from evaluators.resampling import resampled_differences
from pipelines.scores import score


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_tango_at_margin_zero(gained: int, lost: int, rest: int) -> None:
    """At a hypothesised difference of 0 Tango's statistic is McNemar's (b - c) / sqrt(b + c)."""
    z = PairedProportions(gained=gained, lost=lost, rows=gained + lost + rest).z(0.0)
    assert z == pytest.approx((gained - lost) / math.sqrt(gained + lost) if gained + lost else 0.0)


@pytest.mark.parametrize("delta", [-0.05, -0.01, 0.02, 0.1])
def test_lost_share_is_the_constrained_maximum_of_the_likelihood(delta: float) -> None:
    """The closed form of q in Tango's statistic is where the trinomial likelihood peaks, given the difference."""
    gained, lost, rows = 30, 45, 400

    def minus_log_likelihood(q: float) -> float:
        p, same = q + delta, 1 - 2 * q - delta
        return -(gained * math.log(p) + lost * math.log(q) + (rows - gained - lost) * math.log(same))

    low = max(0.0, -delta) + 1e-9
    q = minimize_scalar(
        minus_log_likelihood, bounds=(low, (1 - delta) / 2 - 1e-9), method="bounded", options={"xatol": 1e-12}
    ).x
    expected = (gained - lost - rows * delta) / math.sqrt(rows * (2 * q + delta * (1 - delta)))
    assert PairedProportions(gained=gained, lost=lost, rows=rows).z(delta) == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2000), st.floats(0.6, 0.995))
@settings(max_examples=100, deadline=None)
def test_bounds_of_proportions_enclose_and_invert_the_test(
    gained: int, lost: int, rest: int, confidence: float
) -> None:
    """The bounds lie around the difference inside [-1, 1], and the statistic there is the confidence's quantile."""
    rows = gained + lost + rest
    if rows == 0:
        return
    difference = PairedProportions(gained=gained, lost=lost, rows=rows)
    lower, upper = difference.bounds(confidence)
    assert -1 <= lower <= difference.value <= upper <= 1
    limit = float(norm.ppf(confidence))
    assert lower < -0.999999 or difference.z(lower) == pytest.approx(limit, abs=1e-3)
    assert upper > 0.999999 or difference.z(upper) == pytest.approx(-limit, abs=1e-3)


def _binary_pair(rows: int, seed: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and the scores of two models that see the same signal through different noise."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(float)
    signal = y + rng.normal(0, 1, rows)
    champion = 1 / (1 + np.exp(-(signal + rng.normal(0, 0.5, rows) - 0.8)))
    challenger = 1 / (1 + np.exp(-(signal + gain * y + rng.normal(0, 0.5, rows) - 0.8)))
    return y, champion, challenger


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw rows, not counts of cells, so that each draw can be made again by hand."""
    monkeypatch.setattr("evaluators.resampling._FEW_CELLS", 0)


@pytest.mark.usefixtures("row_by_row")
@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "precision", "recall", "f1", "balanced_accuracy"])
def test_resampled_metric_is_the_metric_of_the_resampled_rows(metric: str) -> None:
    """Each draw of the vectorised bootstrap equals scoring the drawn rows one by one (binary)."""
    rng = np.random.default_rng(7)
    y = (rng.random(60) < 0.4).astype(float)
    old, new = rng.random(60).round(1), rng.random(60).round(1)  # with ties
    fast = resampled_differences(metric, y, old, new, classes=[0, 1], threshold=0.5, seed=3, draws=40)
    again = np.random.default_rng(3).integers(0, 60, size=(40, 60))
    slow = [score(metric, y[i], new[i], classes=[0, 1]) - score(metric, y[i], old[i], classes=[0, 1]) for i in again]
    assert fast == pytest.approx(slow, nan_ok=True)


@pytest.mark.usefixtures("row_by_row")
@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1_macro"])
def test_resampled_multiclass_metric_is_the_metric_of_the_resampled_rows(metric: str) -> None:
    """The same for three classes, with labels that are none of them."""
    rng = np.random.default_rng(8)
    y = rng.integers(-1, 3, 50).astype(float)
    old, new = rng.dirichlet([1, 1, 1], 50), rng.dirichlet([1, 1, 1], 50)
    fast = resampled_differences(metric, y, old, new, classes=[0, 1, 2], threshold=0.5, seed=3, draws=40)
    again = np.random.default_rng(3).integers(0, 50, size=(40, 50))
    slow = [
        score(metric, y[i], new[i], classes=[0, 1, 2]) - score(metric, y[i], old[i], classes=[0, 1, 2]) for i in again
    ]
    assert fast == pytest.approx(slow)


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_resampled_regression_metric_is_the_metric_of_the_resampled_rows(metric: str) -> None:
    """The same for regressions."""
    rng = np.random.default_rng(9)
    y = rng.normal(100, 3, 50)
    old, new = y + rng.normal(0, 1, 50), y + rng.normal(0, 2, 50)
    fast = resampled_differences(metric, y, old, new, classes=None, threshold=0.5, seed=3, draws=40)
    again = np.random.default_rng(3).integers(0, 50, size=(40, 50))
    assert fast == pytest.approx([score(metric, y[i], new[i]) - score(metric, y[i], old[i]) for i in again])


@pytest.mark.parametrize("metric", ["precision", "f1", "balanced_accuracy"])
def test_counts_of_cells_are_drawn_as_rows_are(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where decisions make few cells their counts are drawn at once: the differences are spread as those of drawn rows."""
    y, old, new = _binary_pair(500, seed=2, gain=0.3)
    arguments = {"classes": [0, 1], "threshold": 0.5, "seed": 5, "draws": 4_000}
    counted = resampled_differences(metric, y, old, new, **arguments)
    monkeypatch.setattr("evaluators.resampling._FEW_CELLS", 0)
    drawn = resampled_differences(metric, y, old, new, **arguments)
    assert ks_2samp(counted, drawn).pvalue > 0.001
    assert np.std(counted) == pytest.approx(np.std(drawn), rel=0.05)


def test_draws_do_not_depend_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same draws however much memory a chunk may use."""
    y, old, new = _binary_pair(200, seed=1)
    arguments = {"classes": [0, 1], "threshold": 0.5, "seed": 5, "draws": 30}
    whole = resampled_differences("roc_auc", y, old, new, **arguments)
    monkeypatch.setattr("evaluators.resampling._CHUNK_COUNTS", 1_000)
    assert resampled_differences("roc_auc", y, old, new, **arguments) == pytest.approx(whole)


@pytest.mark.parametrize("metric", ["roc_auc", "f1", "accuracy", "log_loss"])
def test_one_sided_bounds_cover_as_often_as_they_say(metric: str) -> None:
    """Over 300 seeded samples of two equal models, each 95 % bound is on its side of 0 in about 95 % of them."""
    below = above = 0
    for seed in range(300):
        y, old, new = _binary_pair(250, seed)
        lower, upper = compare(
            metric, y, old, new,
            champion_score=score(metric, y, old, classes=[0, 1]), challenger_score=score(metric, y, new, classes=[0, 1]),
            classes=[0, 1], threshold=0.5, seed=seed, draws=300,
        ).bounds(0.95)  # fmt: skip
        below, above = below + (lower <= 0), above + (upper >= 0)
    assert 0.91 <= below / 300 <= 0.985
    assert 0.91 <= above / 300 <= 0.985


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "log_loss", "accuracy"])
def test_difference_is_positive_when_the_challenger_is_better(metric: str) -> None:
    """Whichever way a metric points, a better challenger has a positive difference, shown so on enough rows."""
    y, old, new = _binary_pair(3_000, seed=4, gain=1.5)
    difference = compare(
        metric, y, old, new,
        champion_score=score(metric, y, old, classes=[0, 1]), challenger_score=score(metric, y, new, classes=[0, 1]),
        classes=[0, 1], threshold=0.5, seed=0,
    )  # fmt: skip
    assert difference.bounds(0.99)[0] > 0
    assert difference.p_worse(0.0) > 0.99


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "recall"])
def test_equal_answers_differ_by_exactly_nothing(metric: str) -> None:
    """A model against itself has bounds of width 0, so that it passes at margin 0."""
    y, old, _ = _binary_pair(300, seed=2)
    value = score(metric, y, old, classes=[0, 1])
    difference = compare(
        metric, y, old, old, champion_score=value, challenger_score=value, classes=[0, 1], threshold=0.5, seed=0
    )
    assert difference.bounds(0.95) == (0.0, 0.0)
    assert difference.p_worse(0.0) == 1.0


def test_bootstrap_with_many_undefined_draws_says_nothing() -> None:
    """When more than a hundredth of the draws have no defined metric, bounds and p-value are unknown."""
    draws = np.concatenate([np.full(20, np.nan), np.zeros(980)])
    difference = Resampled(observed=0.0, draws=draws)
    assert all(map(math.isnan, (*difference.bounds(0.95), difference.p_worse(0.1))))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_the_raw_value_and_bonferroni(p_values: list[float]) -> None:
    """Holm's adjusted p-values are at least the raw ones, at most Bonferroni's, and in the same order."""
    adjusted = holm(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= min(1.0, len(p_values) * raw) + 1e-12
    by_raw = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert sorted(adjusted) == [adjusted[i] for i in by_raw]


def test_rows_to_settle_needs_a_distance_and_finite_bounds() -> None:
    """No number of rows settles a difference that lies exactly on the margin, nor one without bounds."""
    on_margin = MeanDifference(np.array([-0.5, 0.5]))
    assert rows_to_settle(on_margin, 0.0, 0.95, 2) is None
    assert rows_to_settle(Resampled(observed=0.1, draws=np.full(10, np.nan)), 0.0, 0.95, 2) is None


def test_metrics_that_are_means_are_not_resampled() -> None:
    """Asking the bootstrap for a metric that has a method of its own is an error."""
    y, old, new = _binary_pair(20, seed=2)
    with pytest.raises(ValueError, match="accuracy"):
        resampled_differences("accuracy", y, old, new, classes=[0, 1], threshold=0.5, seed=0)
    with pytest.raises(ValueError, match="mae"):
        resampled_differences("mae", y, old, new, classes=None, threshold=0.5, seed=0)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_mcnemar_agrees_with_the_binomial_test(gained: int, lost: int) -> None:
    """The exact p-value is SciPy's; the mid-p is that less half the chance of what was seen, on either side (Fagerland et al., 2013)."""
    exact, mid = PairedProportions(gained=gained, lost=lost, rows=100).mcnemar()
    if gained + lost == 0:
        assert (exact, mid) == (1.0, 1.0)
        return
    assert exact == pytest.approx(binomtest(gained, gained + lost).pvalue)
    seen = binom.pmf(gained, gained + lost, 0.5)
    assert mid == pytest.approx(exact - seen if gained != lost else 1 - seen / 2)


def test_bounds_beyond_the_draws_go_on_like_a_normal_tail() -> None:
    """2,000 draws cannot show a 99.99 % bound; it must lie where a normal tail would, not at the lowest draw."""
    draws = norm.ppf((np.arange(2_000) + 0.5) / 2_000)
    lower, upper = Resampled(observed=0.0, draws=draws).bounds(0.9999)
    assert lower == pytest.approx(norm.ppf(0.0001), rel=0.02)
    assert upper == pytest.approx(-lower, rel=0.02)
    inner = Resampled(observed=0.0, draws=draws)
    assert inner.bounds(0.9901)[0] < inner.bounds(0.99)[0] < inner.bounds(0.9899)[0]


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_effective_rows_of_an_autoregression(memory: float) -> None:
    """Rows that remember with coefficient r are worth (1 - r) / (1 + r) of independent ones; the estimate is at most half too hopeful."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40_000)
    d = lfilter([1.0], [1.0, -memory], noise)
    assert 0.8 < effective_rows(d) / (len(d) * (1 - memory) / (1 + memory)) < 1.5
    assert effective_rows(np.zeros(100)) == 100
