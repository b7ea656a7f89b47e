"""Is the challenger worse than the champion on live traffic? A test that stays valid however often one looks.

A rollout looks at the data all the time and acts on the first look that convinces, so a test with a fixed number of rows would raise
false alarms far more often than its level says. Here evidence is the wealth of a gambler who bets, before each outcome, that the
challenger is worse, at odds that would be fair if it were just not worse by more than the margin. If it is not, that wealth ever
reaches 1 / alpha with probability at most alpha, whenever one stops (Ville's inequality).

    outcome    d_i in [-1, 1]: loss of the challenger - loss of the champion;   x_i = (1 + d_i) / 2,   m = (1 + margin) / 2
    worse      H0: E[d_i | past] <= margin   W_t = mean over f in BETS of  prod (1 + f (x_i / m - 1))
    no worse   H0: E[d_i | past] >= margin   V_t = the same of 1 - x_i and 1 - m

`worse` is shown once W_t >= 1 / alpha for some t, `no worse` likewise by V_t; where both happen (the world changed) `worse` holds.

Each of a few gamblers stakes the same share f of what they have on every outcome, and the wealth is their mean: whatever the size of the
difference and the spread of the outcomes, one of them bets nearly as well as somebody who knew both. The wealth is a function of the
outcomes alone, in any order, falls as m grows, and so turns into an interval by asking which m it does not refute.

Source: I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting, J. Royal Statistical Society B 86 (2024) 1-27,
with a mixture of constant bets instead of a predicted one (T. Cover, Universal portfolios, Mathematical Finance 1 (1991) 1-29). Everything
is a function of the outcomes, so recomputing at each look continues one and the same process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluators.wording import count, number, percent
from policies.signals import Estimate

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
State: TypeAlias = Literal["worse", "no_worse", "undecided"]

BETS = (0.04, 0.1, 0.25, 0.5, 0.9)
"""The share of the wealth that the worst outcome costs each gambler: all below 1, so that nobody is ever ruined."""
_BISECTIONS = 22
"""Halvings of [0, 1] that place a bound: to 1e-6."""


def log_wealth(x: Floats, null_mean: float) -> Floats:
    """ln of the wealth after each outcome, betting that the mean of `x` exceeds `null_mean`; last axis is time, same shape as `x`.

    `x` in [0, 1]; 0 < null_mean < 1.

    >>> log_wealth(np.array([1.0, 1.0, 0.0]), 0.5).round(3).tolist()   # means of 1 + f, (1 + f)^2, (1 + f)^2 (1 - f)
    [0.306, 0.664, -0.044]
    """
    gamblers = _each_log_wealth(x, null_mean, np.cumsum)
    wealth: Floats = np.logaddexp.reduce(gamblers, axis=0) - math.log(len(BETS))
    return wealth


def _each_log_wealth(x: Floats, null_mean: float, total: Callable[..., Floats]) -> Floats:
    """ln of what each gambler has, (gamblers, ...): after each outcome if `total` is `np.cumsum`, at the end if it is `np.sum`."""
    gain = x / null_mean - 1
    return np.stack([total(np.log1p(bet * gain), axis=-1) for bet in BETS])


def log_wealth_from(x: Floats, null_mean: float, starts: Sequence[int]) -> Floats:
    """`log_wealth` of a purse shared among gamblers who begin at different outcomes and hold their share until then.

    A gambler who begins anew notices within few outcomes that a model which was fine has broken; one who has seen its long good past
    must first lose that. Each start (an index into the outcomes, fixed by what was known by then) costs ln(number of starts).

    >>> x = np.concatenate([np.full(500, 0.4), np.full(60, 0.7)])
    >>> [bool(wealth[-1] > math.log(20)) for wealth in (log_wealth(x, 0.51), log_wealth_from(x, 0.51, [0, 500]))]
    [False, True]
    """
    shares = [
        np.concatenate([np.zeros_like(x[..., :start]), log_wealth(x[..., start:], null_mean)], axis=-1)
        for start in starts
    ]
    shared: Floats = np.logaddexp.reduce(np.stack(shares), axis=0) - math.log(len(starts))
    return shared


def interval(differences: Floats, *, alpha: float) -> tuple[float, float]:
    """Bounds of the mean of d, (n,) in [-1, 1], that hold together with confidence 1 - alpha at every time of looking.

        {m : W_n(m) < 2 / alpha  and  V_n(m) < 2 / alpha}

    The sample's mean is always inside (no gambler wins against it). Without outcomes nothing is known: (-1, 1).
    Source: as above, section 4.

    >>> [round(bound, 3) for bound in interval(np.tile([0.3, -0.2], 200), alpha=0.05)]
    [0.011, 0.089]
    >>> interval(np.zeros(0), alpha=0.05)
    (-1.0, 1.0)
    """
    if not len(differences):
        return -1.0, 1.0
    x, limit = (1 + differences) / 2, math.log(2 / alpha)
    mean = float(np.mean(x))
    low = _refuted_below(x, mean, limit)
    high = 1 - _refuted_below(1 - x, 1 - mean, limit)
    return 2 * low - 1, 2 * high - 1


def _refuted_below(x: Floats, mean: float, limit: float) -> float:
    """The largest null mean, to 1e-6, that is refuted from above: wealth falls as the null mean rises."""
    low, high = 0.0, mean
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ends = _each_log_wealth(x, middle, np.sum) if middle > 0 else np.full(len(BETS), math.inf)
        refuted = float(np.logaddexp.reduce(ends)) - math.log(len(BETS)) >= limit
        low, high = (middle, high) if refuted else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the outcomes so far show."""

    state: State
    outcomes: int
    """Matured ones."""
    mean_difference: float
    """Mean of d, challenger less champion; more is worse. nan without outcomes."""
    log_e_worse: float
    """Highest ln wealth so far against "not worse than the margin"."""
    log_e_no_worse: float
    """The same against "worse than the margin, or just as bad as it"."""
    low: float
    """With `high`: the interval of the true mean difference, see `interval`."""
    high: float

    @property
    def estimate(self) -> Estimate | None:
        """The difference for the record; None without outcomes."""
        if not self.outcomes:
            return None
        return Estimate(value=self.mean_difference, low=self.low, high=self.high, outcomes=self.outcomes)


def weigh(
    differences: Floats, *, margin: float, alpha: float, matured: Floats | None = None, anew_at: int | None = None
) -> Evidence:
    """Decide on the differences of losses d (n,) in [-1, 1], in the order in which they became known.

    `worse` rests on all of them; `no worse`, the mean and its interval on `matured` (k,), those that waited for the slow labels too (None:
    the same), because what is labelled early is no fair sample. `anew_at`: the outcome at which a second gambler begins to bet on
    `worse`, such as the first after a promotion. Raises ValueError for a difference outside [-1, 1] or not finite, a margin outside [0, 1)
    or an alpha outside (0, 1).

    >>> weigh(np.full(90, 0.2), margin=0.02, alpha=0.05).state, weigh(np.full(90, -0.2), margin=0.02, alpha=0.05).state
    ('worse', 'no_worse')
    >>> weigh(np.array([0.2, -0.1]), margin=0.02, alpha=0.05).state
    'undecided'
    """
    if not 0 <= margin < 1 or not 0 < alpha < 1:
        raise ValueError(f"margin must be in [0, 1) and alpha in (0, 1) but got margin {margin} and alpha {alpha}")
    matured = differences if matured is None else matured
    if not (np.abs(differences) <= 1).all() or not (np.abs(matured) <= 1).all():
        raise ValueError("differences of losses must lie in [-1, 1]")
    x, fair, null_mean = (1 + differences) / 2, (1 + matured) / 2, (1 + margin) / 2
    starts = [0] if anew_at is None else [0, min(anew_at, len(x))]
    worse = float(np.max(log_wealth_from(x, null_mean, starts), initial=0.0))
    no_worse = float(np.max(log_wealth(1 - fair, 1 - null_mean), initial=0.0))
    limit = -math.log(alpha)
    state: State = "worse" if worse >= limit else "no_worse" if no_worse >= limit else "undecided"
    low, high = interval(matured, alpha=alpha)
    return Evidence(
        state=state,
        outcomes=len(matured),
        mean_difference=float(np.mean(matured)) if len(matured) else math.nan,
        log_e_worse=worse,
        log_e_no_worse=no_worse,
        low=low,
        high=high,
    )


# ---------------------------------------------------------------- from two streams to one
def block_differences(losses: Floats, from_challenger: NDArray[np.bool_]) -> tuple[Floats, Ints]:
    """Differences d of two streams of outcomes that answered different requests, in one order of arrival.

    Outcomes are gathered until both sides have at least one; then d = mean(challenger's) - mean(champion's) and the next block begins.
    Blocks end by who answered, never by how well, so E[d] is the difference of the mean losses; with 5 % of the traffic each d sets one
    outcome of the challenger against about 19 of the champion of the same time. An unfinished block is left out, so that later arrivals
    never change earlier differences. Returns d (b,) and the index (b,) of the outcome that completed each block.

    >>> losses, challenger = np.array([0.0, 1.0, 1.0, 0.5, 0.0]), np.array([False, False, True, True, False])
    >>> [each.tolist() for each in block_differences(losses, challenger)]    # 1 - (0 + 1)/2, then .5 - 0
    [[0.5, 0.5], [2, 4]]
    """
    ends = _block_ends(from_challenger)
    if not len(ends):
        return np.zeros(0), ends
    starts = np.concatenate([[0], ends[:-1] + 1])
    stop = int(ends[-1]) + 1
    losses, mine = losses[:stop], from_challenger[:stop]

    def means(of: NDArray[np.bool_]) -> Floats:
        total: Floats = np.add.reduceat(np.where(of, losses, 0.0), starts)
        return total / np.add.reduceat(of.astype(np.float64), starts)

    return np.clip(means(mine) - means(~mine), -1.0, 1.0), ends


def _block_ends(from_challenger: NDArray[np.bool_]) -> Ints:
    """Index of the last outcome of each whole block: the first one by the other side since the block began."""
    # Runs of one side: a block takes a run (or what is left of it) and the first outcome of the next run.
    run_starts = np.concatenate([[0], np.flatnonzero(np.diff(from_challenger.astype(np.int8))) + 1])
    ends: list[int] = []
    block_start = 0
    for run_start in run_starts[1:].tolist():
        if run_start > block_start:
            ends.append(run_start)
            block_start = run_start + 1
    return np.array(ends, dtype=np.int64)


def sentence(evidence: Evidence, *, margin: float, alpha: float, loss: str, challenger: str, champion: str) -> str:
    """The finding with its numbers, for people."""
    if not evidence.outcomes and evidence.state == "undecided":
        return f"undecided: no labelled outcomes of both yet ({challenger}, {champion})"
    words = evidence.state.replace("_", " ")
    return (
        f"{words}: {loss} of {challenger} against {champion}; {difference(evidence.estimate, alpha)}, "
        f"margin {number(margin)}; evidence for worse {_odds(evidence.log_e_worse)}, "
        f"for no worse {_odds(evidence.log_e_no_worse)}, of {1 / alpha:.4g} needed"
    )


def difference(estimate: Estimate | None, alpha: float) -> str:
    """An estimate in words.

    >>> difference(Estimate(value=-0.031, low=-0.05, high=-0.012, outcomes=4210), 0.05)
    'difference -.031, 95 % interval -.050 to -.012, over 4,210 matured comparisons'
    """
    if estimate is None:
        return "no comparison has matured yet"
    bounds = f"{percent(1 - alpha)} interval {number(estimate.low)} to {number(estimate.high)}"
    return f"difference {number(estimate.value)}, {bounds}, over {count(estimate.outcomes, 'matured comparison')}"


def _odds(log_e: float) -> str:
    """
    >>> [_odds(math.log(e)) for e in (0.0123, 1.01, 168.2, 2834.0, 2e7)]
    ['0.0123', '1.01', '168', '2,834', 'over 1,000,000']
    """
    if log_e >= math.log(1e6):
        return "over 1,000,000"
    return f"{math.exp(log_e):.3g}" if log_e < math.log(999.5) else f"{math.exp(log_e):,.0f}"
