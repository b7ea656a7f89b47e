"""The live comparison: false alarms stay below alpha however often one looks, and real differences are found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from evaluators.sequential import (
    block_differences,
    interval,
    log_wealth,
    log_wealth_from,
    sentence,
    weigh,
)
from pipelines.losses import classification_losses, regression_losses

ALPHA = 0.05
SIMULATIONS = 2_000


def _brier_pairs(outcomes: int, seed: int, harm: float = 0.0) -> np.ndarray:
    """Differences of Brier losses in 2,000 simulated shadow comparisons, (2000, outcomes); `harm` blurs the challenger."""
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 4, (SIMULATIONS, outcomes))
    y = rng.random(p.shape) < p
    champion = np.clip(p + rng.normal(0, 0.1, p.shape), 0, 1)
    challenger = np.clip(p + rng.normal(0, 0.1, p.shape) + harm, 0, 1)
    return np.square(challenger - y) - np.square(champion - y)


def _ever_shown(differences: np.ndarray, margin: float) -> tuple[float, float]:
    """Shares of simulations in which `worse` and `no worse` are shown at some look, looking after every outcome."""
    x, null_mean = (1 + differences) / 2, (1 + margin) / 2
    limit = math.log(1 / ALPHA)
    worse = log_wealth(x, null_mean).max(axis=-1) >= limit
    no_worse = log_wealth(1 - x, 1 - null_mean).max(axis=-1) >= limit
    return float(worse.mean()), float(no_worse.mean())


def test_equal_models_are_called_worse_in_at_most_alpha_of_the_cases() -> None:
    """A/A at margin 0, the hardest case, looking after every one of 600 outcomes: false rollbacks stay within 5 %."""
    worse, _ = _ever_shown(_brier_pairs(600, seed=11), margin=0.0)
    assert worse <= ALPHA


def test_a_model_worse_by_exactly_the_margin_is_passed_in_at_most_alpha_of_the_cases() -> None:
    """At the edge of being too bad, `no worse` is shown wrongly in at most 5 % of the cases."""
    differences = np.random.default_rng(12).choice([-1.0, 0.0, 1.0], p=[0.14, 0.7, 0.16], size=(SIMULATIONS, 600))
    _, no_worse = _ever_shown(differences, margin=0.02)
    assert no_worse <= ALPHA


def test_unpaired_streams_of_equal_models_stay_within_alpha() -> None:
    """Canary at 10 % of the traffic with equal models at margin 0: false rollbacks stay within 5 %."""
    rng = np.random.default_rng(13)
    false_alarms = 0
    for _ in range(SIMULATIONS):
        losses = np.square(rng.beta(2, 4, 1_500) - (rng.random(1_500) < 0.33))
        d, _ = block_differences(losses, rng.random(1_500) < 0.1)
        false_alarms += log_wealth((1 + d) / 2, 0.5).max() >= math.log(1 / ALPHA)
    assert false_alarms / SIMULATIONS <= ALPHA


def test_intervals_hold_the_truth_at_every_look() -> None:
    """The 95 % interval misses the true difference at some look in at most 5 % of 2,000 runs, looking after every outcome."""
    x = (1 + np.random.default_rng(16).choice([-1.0, 0.0, 1.0], p=[0.1, 0.75, 0.15], size=(SIMULATIONS, 1_000))) / 2
    truth, limit = (1 + 0.05) / 2, math.log(2 / ALPHA)
    below, above = (w >= limit for w in (log_wealth(x, truth), log_wealth(1 - x, 1 - truth)))
    assert float((below | above).any(axis=-1).mean()) <= ALPHA
    for run, look in ((0, 999), (1, 300), (np.flatnonzero(below.any(axis=-1))[0], None)):
        at = int(np.flatnonzero(below[run])[0]) if look is None else look
        low, high = interval(2 * x[run, : at + 1] - 1, alpha=ALPHA)
        assert (low <= 0.05 <= high) == (not below[run, at] and not above[run, at])


# ---------------------------------------------------------------- power
def _right_or_wrong_pairs(outcomes: int, seed: int, disagree: float, drop: float = 0.05) -> np.ndarray:
    """Shadow: both answer; errors differ on `disagree` of the rows, and the challenger makes `drop` more."""
    odds = [(disagree - drop) / 2, 1 - disagree, (disagree + drop) / 2]
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], p=odds, size=(SIMULATIONS, outcomes))


def _right_or_wrong_blocks(outcomes: int, seed: int, drop: float = 0.05) -> np.ndarray:
    """A canary of 5 %: each block is one outcome of the challenger, wrong on 20 % + `drop`, against 19 of the champion, wrong on 20 %."""
    rng = np.random.default_rng(seed)
    shape = (SIMULATIONS, outcomes)
    return (rng.random(shape) < 0.2 + drop) - rng.binomial(19, 0.2, shape) / 19


def _median_stop(convinced: np.ndarray) -> float:
    """Median number of outcomes until the first look that convinces; infinite if most are never convinced."""
    stops = np.where(convinced.any(axis=-1), convinced.argmax(axis=-1) + 1.0, math.inf)
    return float(np.median(stops))


def _fixed_thresholds(d: np.ndarray) -> dict[str, float]:
    """Median stops of thresholds with the same promise: false alarms at most alpha, looking after each of N outcomes.

    - `z`: mean / standard error >= z(1 - alpha / N), each look a z-test, Bonferroni over looks (none before 30 outcomes).
    - `mean`: running mean >= c from n(c) = 2 ln(1 / alpha) / c^2 outcomes on (Hoeffding's maximal inequality), c chosen best for the
      drop that is there, which no owner knows.
    """
    times = np.arange(1, d.shape[1] + 1)
    mean = np.cumsum(d, axis=1) / times
    spread = np.sqrt(np.maximum(np.cumsum(np.square(d), axis=1) / times - np.square(mean), 1e-12))
    z = (times >= 30) & (mean * np.sqrt(times) / spread >= norm.ppf(1 - ALPHA / d.shape[1]))
    means = [
        _median_stop((mean >= c) & (times >= 2 * math.log(1 / ALPHA) / c**2)) for c in np.linspace(0.025, 0.049, 9)
    ]
    return {"z": _median_stop(z), "mean": min(means)}


@pytest.mark.parametrize(
    "differences",
    [
        pytest.param(lambda: _right_or_wrong_pairs(4_000, 21, disagree=0.15), id="shadow, models alike"),
        pytest.param(lambda: _right_or_wrong_pairs(4_000, 22, disagree=0.30), id="shadow, models unlike"),
        pytest.param(lambda: _right_or_wrong_blocks(4_000, 23), id="5 % canary"),
    ],
)
def test_a_drop_of_5_points_is_found_in_half_the_outcomes_of_a_fixed_threshold(
    differences: Callable[[], np.ndarray],
) -> None:
    """Median of 2,000 runs with a look after every outcome, against both fixed thresholds that keep the same promise."""
    d = differences()
    ours = _median_stop(log_wealth((1 + d) / 2, 0.5) >= math.log(1 / ALPHA))
    for name, peer in _fixed_thresholds(d).items():
        assert ours <= 0.5 * peer, (name, ours, peer)


@pytest.mark.parametrize("drawn", [_right_or_wrong_pairs, _right_or_wrong_blocks])
def test_equal_models_judged_right_or_wrong_stay_within_alpha(drawn: Callable[..., np.ndarray]) -> None:
    """The same 2,000 runs without a drop, margin 0: `worse` is shown at some look in at most 5 %, paired and unpaired."""
    more = {"disagree": 0.15} if drawn is _right_or_wrong_pairs else {}
    wealth = log_wealth_from((1 + drawn(4_000, 24, drop=0.0, **more)) / 2, 0.5, [0, 1_000])
    assert float((wealth.max(axis=-1) >= math.log(1 / ALPHA)).mean()) <= ALPHA


def test_a_harmful_challenger_is_found_in_time() -> None:
    """A challenger whose Brier loss is about .04 worse is called worse within 1,500 shadowed outcomes nearly always."""
    worse, no_worse = _ever_shown(_brier_pairs(1_500, seed=14, harm=0.25), margin=0.01)
    assert worse >= 0.95
    assert no_worse <= ALPHA


def test_an_equal_challenger_is_shown_no_worse_in_time() -> None:
    """With the policy's default margin of .02 an equal challenger is cleared within 2,000 shadowed outcomes nearly always."""
    worse, no_worse = _ever_shown(_brier_pairs(2_000, seed=15), margin=0.02)
    assert no_worse >= 0.95
    assert worse <= 0.001


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=60),
    st.lists(st.floats(-1, 1), max_size=20),
    st.floats(0, 0.5),
)
@settings(max_examples=150, deadline=None)
def test_later_outcomes_never_change_what_was_known_before(
    past: list[float], later: list[float], margin: float
) -> None:
    """The wealth after n outcomes depends on these n alone, so that each look continues one process."""
    null_mean = (1 + margin) / 2
    x = (1 + np.array(past + later)) / 2
    assert log_wealth(x, null_mean)[: len(past)] == pytest.approx(log_wealth(x[: len(past)], null_mean))
    before, after = (weigh(np.array(d), margin=margin, alpha=ALPHA) for d in (past, past + later))
    assert after.log_e_worse >= before.log_e_worse - 1e-9
    assert before.state != "worse" or after.state == "worse"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.floats(0.05, 0.95))
@settings(max_examples=150, deadline=None)
def test_wealth_is_never_lost_altogether(x: list[float], null_mean: float) -> None:
    """However the outcomes fall, wealth stays positive and finite, and one outcome costs at most nine tenths of it."""
    wealth = log_wealth(np.array(x), null_mean)
    assert np.isfinite(wealth).all()
    assert (np.diff(wealth, prepend=0.0) >= math.log(0.1) - 1e-9).all()


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=3),
    st.floats(0.05, 0.95),
    st.integers(1, 6),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_the_game_is_never_in_the_gamblers_favour(
    atoms: list[tuple[float, float]], null_mean: float, outcomes: int, second: int
) -> None:
    """Summed exactly over every history of a null distribution, expected wealth is at most 1 at every time, also with a second start."""
    values, weights = np.array([v for v, _ in atoms]), np.array([w for _, w in atoms])
    weights = weights / weights.sum()
    values = values * min(1.0, null_mean / max(float(values @ weights), 1e-12))  # mean at most the null's
    histories = np.array(list(itertools.product(range(len(values)), repeat=outcomes)))
    chances = np.prod(weights[histories], axis=1)
    starts = [0, min(second, outcomes)]
    expected = chances @ np.exp(log_wealth_from(values[histories], null_mean, starts))
    assert (expected <= 1 + 1e-9).all()
    assert (chances @ np.exp(log_wealth(values[histories], null_mean)) <= 1 + 1e-9).all()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_outcomes_that_came_together_does_not_matter(d: list[float], random: Random) -> None:
    """Labels that arrive at one moment have no order; wealth at the end and the interval are the same in each."""
    shuffled = random.sample(d, len(d))
    first, second = np.array(d), np.array(shuffled)
    assert log_wealth((1 + first) / 2, 0.51)[-1] == pytest.approx(log_wealth((1 + second) / 2, 0.51)[-1], abs=1e-9)
    assert interval(first, alpha=ALPHA) == pytest.approx(interval(second, alpha=ALPHA), abs=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.01, 0.4))
@settings(max_examples=100, deadline=None)
def test_the_interval_holds_the_mean_and_agrees_with_the_test(d: list[float], alpha: float) -> None:
    """The sample's mean is inside, and a margin below the interval is refuted at half the level by the same wealth."""
    outcomes = np.array(d)
    low, high = interval(outcomes, alpha=alpha)
    assert -1 <= low <= float(np.mean(outcomes)) + 1e-5
    assert float(np.mean(outcomes)) - 1e-5 <= high <= 1
    if low > 1e-4:
        assert weigh(outcomes, margin=low - 1e-4, alpha=alpha / 2).state == "worse"


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=80), st.lists(st.booleans(), max_size=10))
@settings(max_examples=150, deadline=None)
def test_blocks_are_means_of_what_arrived_and_stay(arrivals: list[tuple[float, bool]], later: list[bool]) -> None:
    """Block by block, the difference equals the plain definition; later arrivals leave earlier blocks as they were."""
    losses = np.array([loss for loss, _ in arrivals], dtype=float)
    mine = np.array([challenger for _, challenger in arrivals], dtype=bool)
    expected, sides = [], {True: [], False: []}
    for loss, challenger in arrivals:
        sides[challenger].append(loss)
        if sides[True] and sides[False]:
            expected.append(np.mean(sides[True]) - np.mean(sides[False]))
            sides = {True: [], False: []}
    found, _ = block_differences(losses, mine)
    assert found == pytest.approx(expected)
    more, _ = block_differences(
        np.concatenate([losses, np.ones(len(later))]), np.concatenate([mine, np.array(later, bool)])
    )
    assert more[: len(found)] == pytest.approx(found)


@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(-1, 1)), min_size=1, max_size=30))
def test_losses_lie_between_0_and_1(rows: list[tuple[float, int]]) -> None:
    """Whatever a model answers, and whatever the label, a loss is bounded: the test's validity rests on that."""
    scores, codes = np.array([s for s, _ in rows]), np.array([float(c) for _, c in rows])
    both = np.stack([scores, 1 - scores], axis=1)
    for losses in (
        classification_losses(codes, scores),
        classification_losses(codes, both),
        regression_losses(codes, scores, 0.5),
    ):
        assert ((losses >= 0) & (losses <= 1)).all()


def test_shown_worse_outweighs_shown_no_worse() -> None:
    """A challenger that was fine and then broke is worse, whatever was shown before."""
    d = np.concatenate([np.full(200, -0.2), np.full(2_000, 0.3)])
    assert weigh(d[:200], margin=0.02, alpha=ALPHA).state == "no_worse"
    assert weigh(d, margin=0.02, alpha=ALPHA).state == "worse"


def test_no_outcomes_are_undecided() -> None:
    """Nothing known is neither good nor bad, and the sentence says that outcomes are missing."""
    evidence = weigh(np.zeros(0), margin=0.02, alpha=ALPHA)
    assert evidence.state == "undecided"
    words = sentence(evidence, margin=0.02, alpha=ALPHA, loss="Brier", challenger="v8: 0 rows", champion="v7: 3 rows")
    assert words == "undecided: no labelled outcomes of both yet (v8: 0 rows, v7: 3 rows)"


@pytest.mark.parametrize(
    ("differences", "margin", "alpha"),
    [([1.5], 0.0, 0.05), ([math.nan], 0.0, 0.05), ([0.1], 1.0, 0.05), ([0.1], 0.0, 0.0)],
)
def test_impossible_arguments_are_refused(differences: list[float], margin: float, alpha: float) -> None:
    """Differences outside [-1, 1], margins and levels without meaning raise ValueError."""
    with pytest.raises(ValueError, match="must"):
        weigh(np.array(differences), margin=margin, alpha=alpha)
