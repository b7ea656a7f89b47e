"""Is the challenger worse than the champion on live traffic? A test that stays valid however often one looks.

A rollout looks at the data all the time and acts on the first look that convinces, so a test with a fixed number of rows would raise
false alarms far more often than its level says. Here evidence is the wealth of a gambler who bets, before each outcome, that the
challenger is worse, at odds that would be fair if it were just not worse by more than the margin. If it is not, that wealth ever
reaches 1 / alpha with probability at most alpha, whenever one stops (Ville's inequality).

    outcome    d_i in [-1, 1]: loss of the challenger - loss of the champion;   x_i = (1 + d_i) / 2,   m = (1 + margin) / 2
    worse      H0: E[d_i | past] <= margin   W_t = prod (1 + b_i (x_i - m)),   0 <= b_i <= c / m
    no worse   H0: E[d_i | past] >= margin   V_t = prod (1 + b_i (m - x_i)),   0 <= b_i <= c / (1 - m)

`worse` is shown once W_t >= 1 / alpha for some t, `no worse` likewise by V_t; where both happen (the world changed) `worse` holds.

Source: I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting, J. Royal Statistical Society B 86 (2024) 1-27;
bets by their aGRAPA (section B.3). Everything is a function of the outcomes in order, so recomputing at each look continues one and the
same process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluators.wording import count, number

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
State: TypeAlias = Literal["worse", "no_worse", "undecided"]

LARGEST_BET = 0.75
"""c: the largest share of the wealth that one outcome may cost (the paper's 1/2 to 3/4)."""
_PRIOR_MEAN, _PRIOR_VARIANCE = 0.5, 0.25
"""What the first bet believes, as one outcome's worth of data (Waudby-Smith & Ramdas)."""


def log_wealth(x: Floats, null_mean: float) -> Floats:
    """ln of the wealth after each outcome, betting that the mean of `x` exceeds `null_mean`; last axis is time, same shape as `x`.

    `x` in [0, 1]; 0 < null_mean < 1. The bet on an outcome uses only those before it (aGRAPA, truncated):

        b_i = min(max((mu - null) / (var + (mu - null)^2), 0), c / null)
        mu = (1/2 + x_1 + ... + x_(i-1)) / i,   var = (1/4 + sum (x_j - mu_j)^2) / i

    >>> log_wealth(np.array([1.0, 1.0, 0.0]), 0.5).round(3).tolist()   # bets 0, .25 / (.15625 + .0625) = 1.143, 1.484
    [0.0, 0.452, -0.904]
    """
    if x.shape[-1] == 0:
        return np.zeros_like(x)
    times = np.arange(1, x.shape[-1] + 1, dtype=np.float64)
    mean = (_PRIOR_MEAN + np.cumsum(x, axis=-1)) / (times + 1)
    variance = (_PRIOR_VARIANCE + np.cumsum(np.square(x - mean), axis=-1)) / (times + 1)
    past_mean = np.concatenate([np.full_like(x[..., :1], _PRIOR_MEAN), mean[..., :-1]], axis=-1)
    past_variance = np.concatenate([np.full_like(x[..., :1], _PRIOR_VARIANCE), variance[..., :-1]], axis=-1)
    edge = past_mean - null_mean
    bets = np.clip(edge / (past_variance + np.square(edge)), 0.0, LARGEST_BET / null_mean)
    wealth: Floats = np.cumsum(np.log1p(bets * (x - null_mean)), axis=-1)
    return wealth


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the outcomes so far show."""

    state: State
    outcomes: int
    mean_difference: float
    """Mean of d, challenger less champion; more is worse. nan without outcomes."""
    log_e_worse: float
    """Highest ln wealth so far against "not worse than the margin"."""
    log_e_no_worse: float
    """The same against "worse than the margin, or just as bad as it"."""


def weigh(differences: Floats, *, margin: float, alpha: float) -> Evidence:
    """Decide on the differences of losses d (n,) in [-1, 1], in the order in which they became known.

    Raises ValueError for a difference outside [-1, 1] or not finite, a margin outside [0, 1) or an alpha outside (0, 1).

    >>> weigh(np.full(60, 0.2), margin=0.02, alpha=0.05).state, weigh(np.full(60, -0.2), margin=0.02, alpha=0.05).state
    ('worse', 'no_worse')
    >>> weigh(np.array([0.2, -0.1]), margin=0.02, alpha=0.05).state
    'undecided'
    """
    if not 0 <= margin < 1 or not 0 < alpha < 1:
        raise ValueError(f"margin must be in [0, 1) and alpha in (0, 1) but got margin {margin} and alpha {alpha}")
    if not (np.abs(differences) <= 1).all():
        raise ValueError("differences of losses must lie in [-1, 1]")
    x, null_mean = (1 + differences) / 2, (1 + margin) / 2
    worse = float(np.max(log_wealth(x, null_mean), initial=0.0))
    no_worse = float(np.max(log_wealth(1 - x, 1 - null_mean), initial=0.0))
    limit = -math.log(alpha)
    state: State = "worse" if worse >= limit else "no_worse" if no_worse >= limit else "undecided"
    mean = float(np.mean(differences)) if len(differences) else math.nan
    return Evidence(
        state=state,
        outcomes=len(differences),
        mean_difference=mean,
        log_e_worse=worse,
        log_e_no_worse=no_worse,
    )


# ---------------------------------------------------------------- losses
def classification_losses(codes: Floats, scores: Floats) -> Floats:
    """Brier's score of each row, in [0, 1]: (p - y)^2 for binary (n,) scores, half the squared distance for (n, k).

    `codes` (n,) are positions in the classes; a code below 0 is a label that is no class, and such a row counts as wholly missed by
    whatever probability was given away. Source: G. Brier, Monthly Weather Review 78 (1950) 1-3, scaled to [0, 1].

    >>> classification_losses(np.array([1.0, 0.0]), np.array([0.9, 0.5])).round(2).tolist()
    [0.01, 0.25]
    >>> classification_losses(np.array([2.0]), np.array([[0.5, 0.5, 0.0]])).tolist()
    [0.75]
    """
    probabilities = np.clip(scores, 0.0, 1.0)
    if probabilities.ndim == 1:
        losses: Floats = np.square(probabilities - codes)
        return np.clip(losses, 0.0, 1.0)
    truth = codes[:, None] == np.arange(probabilities.shape[1])[None, :]
    squares: Floats = np.square(probabilities - truth).sum(axis=1) / 2
    return np.clip(squares, 0.0, 1.0)


def regression_losses(truth: Floats, predictions: Floats, scale: float) -> Floats:
    """Absolute error in units of `scale` (> 0, the spread of the champion's training labels), at most 1.

    >>> regression_losses(np.array([10.0, 10.0]), np.array([12.0, 99.0]), 20.0).tolist()
    [0.1, 1.0]
    """
    return np.minimum(np.abs(truth - predictions) / scale, 1.0)


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
    if not evidence.outcomes:
        return f"undecided: no labelled outcomes of both yet ({challenger}, {champion})"
    words = evidence.state.replace("_", " ")
    return (
        f"{words}: {loss} of {challenger} against {champion}; mean difference {number(evidence.mean_difference)} over "
        f"{count(evidence.outcomes, 'comparison')}, margin {number(margin)}; evidence for worse {_odds(evidence.log_e_worse)}, "
        f"for no worse {_odds(evidence.log_e_no_worse)}, of {1 / alpha:.4g} needed"
    )


def _odds(log_e: float) -> str:
    """
    >>> [_odds(math.log(e)) for e in (0.0123, 1.01, 168.2, 2834.0, 2e7)]
    ['0.0123', '1.01', '168', '2,834', 'over 1,000,000']
    """
    if log_e >= math.log(1e6):
        return "over 1,000,000"
    return f"{math.exp(log_e):.3g}" if log_e < math.log(999.5) else f"{math.exp(log_e):,.0f}"
