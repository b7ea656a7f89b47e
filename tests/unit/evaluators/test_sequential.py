"""The live comparison: false alarms stay below alpha however often one looks, and real differences are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.sequential import (
    block_differences,
    classification_losses,
    log_wealth,
    regression_losses,
    sentence,
    weigh,
)

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
    """However the outcomes fall, wealth stays positive and finite, and one outcome costs at most three quarters of it."""
    wealth = log_wealth(np.array(x), null_mean)
    assert np.isfinite(wealth).all()
    assert (np.diff(wealth, prepend=0.0) >= math.log(0.25) - 1e-9).all()


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
