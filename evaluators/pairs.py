"""Champion against challenger on the same rows: how large is the difference, and how sure is that?

Each comparison is a `Difference` D = goodness(challenger) - goodness(champion), turned so that more is better for every metric, with
one-sided confidence bounds and a p-value for "worse by more than a margin". Which method a metric gets:

- accuracy: Tango's score interval for a difference of paired proportions, which at margin 0 is McNemar's test;
- other means over rows (log_loss, brier, mae): the paired t interval;
- everything else: the paired percentile bootstrap.

Rules on what the bounds mean for a gate are in `evaluators.gates`; docs/statistics.md tells the whole story.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluators.resampling import DRAWS, resampled_differences
from pipelines.scores import row_values
from policies.metrics import METRICS

Floats: TypeAlias = NDArray[np.float64]

UNDEFINED_SHARE_MAX = 0.01
"""A bootstrap in which more of the draws than this have no defined metric says nothing."""
_TAIL_DRAWS = 20
"""Draws that must lie beyond a bound for their count to say where it is."""


class Difference(Protocol):
    """Challenger less champion, oriented so that more is better."""

    @property
    def value(self) -> float:
        """The difference on these rows."""

    @property
    def method(self) -> str:
        """Its name, in words."""

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Lower and upper bound; each alone holds with this confidence (together: 2 x confidence - 1). nan if unknown."""

    def p_worse(self, margin: float) -> float:
        """p-value of "not worse by more than `margin`" (H0: D >= -margin); small means shown worse. nan if unknown."""

    def evidence(self) -> Mapping[str, Any]:
        """What else people look at, as JSON: an effect size with its name, classical p-values. Decides nothing."""


@dataclass(frozen=True)
class MeanDifference:
    """Paired t: D = mean(d), with d the differences row by row.

        bounds = D -+ t(confidence; n - 1) * s / sqrt(n),   s^2 = sum (d - D)^2 / (n - 1)

    Source: any text on paired comparison; e.g. G. Snedecor, W. Cochran, Statistical Methods (1989), section 6.3.

    >>> d = MeanDifference(np.array([0.1, 0.3, 0.2, 0.0, 0.4]))
    >>> round(d.value, 3), [round(b, 3) for b in d.bounds(0.95)]   # s = .1581, t(.95; 4) = 2.132
    (0.2, [0.049, 0.351])
    """

    rows: Floats
    """One difference a row, shape (n,), n >= 2."""

    @property
    def value(self) -> float:
        return float(np.mean(self.rows))

    @property
    def method(self) -> str:
        return "paired t interval"

    @property
    def _standard_error(self) -> float:
        return float(np.std(self.rows, ddof=1) / math.sqrt(len(self.rows)))

    def bounds(self, confidence: float) -> tuple[float, float]:
        from scipy.stats import t

        reach = float(t.ppf(confidence, len(self.rows) - 1)) * self._standard_error
        return self.value - reach, self.value + reach

    def p_worse(self, margin: float) -> float:
        from scipy.stats import t

        if self._standard_error == 0:
            return 1.0 if self.value >= -margin else 0.0
        return float(t.cdf((self.value + margin) / self._standard_error, len(self.rows) - 1))

    def evidence(self) -> Mapping[str, Any]:
        """Cohen's d_z, the mean difference in its own standard deviations (J. Cohen, Statistical Power Analysis, 1988, section 2.3.5)."""
        deviation = float(np.std(self.rows, ddof=1))
        return {"effect": "Cohen's d_z", "effect_size": self.value / deviation if deviation else None}


@dataclass(frozen=True, kw_only=True)
class PairedProportions:
    """Tango's score method for D = (gained - lost) / n.

    With b rows that only the challenger gets right and c that only the champion does, the hypothesis D = delta is tested by

        z(delta) = (b - c - n delta) / sqrt(n (2 q + delta (1 - delta)))
        q = (sqrt(B^2 - 4 A C) - B) / 2A,   A = 2n,   B = -b - c + (2n - b + c) delta,   C = -c delta (1 - delta)

    where q is the most likely share of lost rows given delta; the bounds are the delta at which z = +-z(confidence).
    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998) 891-908. At delta = 0, z^2 = (b - c)^2 / (b + c): McNemar (1947).

    >>> d = PairedProportions(gained=86, lost=150, rows=1600)   # approval of a prime minister, twice (Agresti, 2013, table 11.1)
    >>> d.value, round(d.z(0.0), 2), [round(x, 4) for x in d.bounds(0.975)]
    (-0.04, -4.17, [-0.059, -0.0214])
    """

    gained: int
    lost: int
    rows: int

    @property
    def value(self) -> float:
        return (self.gained - self.lost) / self.rows

    @property
    def method(self) -> str:
        return "Tango's interval (McNemar)"

    def z(self, delta: float) -> float:
        """The score statistic of D = delta."""
        b, c, n = self.gained, self.lost, self.rows
        a2, a1, a0 = 2 * n, -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        lost_share = (math.sqrt(max(a1 * a1 - 4 * a2 * a0, 0.0)) - a1) / (2 * a2)
        variance = n * (2 * lost_share + delta * (1 - delta))
        distance = b - c - n * delta
        if variance <= 0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)

    def bounds(self, confidence: float) -> tuple[float, float]:
        from scipy.optimize import brentq
        from scipy.stats import norm

        z_limit, edge = float(norm.ppf(confidence)), 1 - 1e-9

        def crossing(target: float, low: float, high: float, otherwise: float) -> float:
            """Where z falls through `target` between low and high; z is decreasing."""
            if low >= high or (self.z(low) - target) * (self.z(high) - target) > 0:
                return otherwise
            return float(brentq(lambda delta: self.z(delta) - target, low, high, xtol=1e-12))

        return crossing(z_limit, -edge, self.value, -1.0), crossing(-z_limit, self.value, edge, 1.0)

    def p_worse(self, margin: float) -> float:
        from scipy.stats import norm

        return float(norm.cdf(self.z(-min(margin, 1.0))))

    def mcnemar(self) -> tuple[float, float]:
        """Two-sided p-values of "gains and losses are equally likely": exact, and mid-p.

            exact = min(1, 2 P(X <= min(b, c))),   mid = 2 P(X < min(b, c)) + P(X = min(b, c))  [b = c: 1 - P(X = b) / 2],
            X ~ Binomial(b + c, 1/2)

        The exact one is too careful by about half the probability of what was seen; the mid-p hardly ever rejects too often. Source:
        M. Fagerland, S. Lydersen, P. Laake, The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than exact
        conditional, BMC Medical Research Methodology 13:91 (2013). Their example, airway hyper-responsiveness before and after:

        >>> [round(p, 4) for p in PairedProportions(gained=1, lost=7, rows=21).mcnemar()]
        [0.0703, 0.0391]
        """
        from scipy.stats import binom

        fewer, discordant = min(self.gained, self.lost), self.gained + self.lost
        if not discordant:
            return 1.0, 1.0
        exact = min(1.0, 2 * float(binom.cdf(fewer, discordant, 0.5)))
        seen = float(binom.pmf(fewer, discordant, 0.5))
        return exact, exact - seen if self.gained != self.lost else 1 - seen / 2

    def evidence(self) -> Mapping[str, Any]:
        """McNemar's p-values; Cohen's g = b / (b + c) - 1/2, from -.5 to .5 (J. Cohen, Statistical Power Analysis, 1988, chapter 5); and
        the odds that a row which one model alone gets right is the challenger's, b / c."""
        exact, mid = self.mcnemar()
        discordant = self.gained + self.lost
        return {
            "gained": self.gained,
            "lost": self.lost,
            "mcnemar_p": exact,
            "mcnemar_mid_p": mid,
            "effect": "Cohen's g",
            "effect_size": self.gained / discordant - 0.5 if discordant else 0.0,
            "odds_ratio": self.gained / self.lost if self.lost else None,
        }


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Percentile bootstrap: the bounds at confidence c are the (1 - c) and c points of the resampled differences.

        p(worse than margin) = (1 + #{D* >= -margin}) / (1 + #D*)

    Source: Efron, Tibshirani (1993), section 13.3; the 1 + is Davison, Hinkley, Bootstrap Methods (1997), section 4.2.

    >>> d = Resampled(observed=0.5, draws=np.linspace(0, 1, 1001))
    >>> [round(b, 2) for b in d.bounds(0.95)], round(d.p_worse(0.0), 2), round(d.p_worse(-0.9), 2)
    ([0.05, 0.95], 1.0, 0.1)
    """

    observed: float
    draws: Floats
    """Differences in each draw; nan where the metric was undefined."""

    @property
    def value(self) -> float:
        return self.observed

    @property
    def method(self) -> str:
        return f"paired bootstrap, {len(self.draws):,} draws"

    @cached_property
    def _defined(self) -> Floats:
        kept = self.draws[np.isfinite(self.draws)]
        return kept if len(kept) >= (1 - UNDEFINED_SHARE_MAX) * len(self.draws) else kept[:0]

    def bounds(self, confidence: float) -> tuple[float, float]:
        if not len(self._defined):
            return math.nan, math.nan
        # Beyond the last few draws there is nothing to count: the tail goes on there like a normal one.
        inner = min(confidence, max(0.75, 1 - _TAIL_DRAWS / len(self._defined)))
        lower, upper = np.quantile(self._defined, [1 - inner, inner])
        if inner == confidence:
            return float(lower), float(upper)
        from scipy.stats import norm

        stretch = float(norm.ppf(confidence) / norm.ppf(inner))
        middle = float(np.median(self._defined))
        return middle - stretch * (middle - float(lower)), middle + stretch * (float(upper) - middle)

    def p_worse(self, margin: float) -> float:
        if not len(self._defined):
            return math.nan
        return (1 + int(np.count_nonzero(self._defined >= -margin))) / (1 + len(self._defined))

    def evidence(self) -> Mapping[str, Any]:
        """The difference itself, in the metric's unit."""
        return {"effect": "difference", "effect_size": self.observed}


def compare(
    metric: str,
    y_true: ArrayLike,
    champion: Floats,
    challenger: Floats,
    *,
    champion_score: float,
    challenger_score: float,
    classes: Sequence[Any] | None,
    threshold: float,
    seed: int,
    draws: int = DRAWS,
) -> Difference:
    """The difference by the method that fits the metric. `*_score` are `pipelines.scores.score` on these rows, both finite.

    Arguments else as there; at least two rows.
    """
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    if METRICS[metric].per_row:
        old = row_values(metric, y_true, champion, classes=classes, threshold=threshold)
        new = row_values(metric, y_true, challenger, classes=classes, threshold=threshold)
        if metric == "accuracy":
            gained, lost = int(np.count_nonzero(new > old)), int(np.count_nonzero(new < old))
            return PairedProportions(gained=gained, lost=lost, rows=len(new))
        return MeanDifference(sign * (new - old))
    resampled = resampled_differences(
        metric, y_true, champion, challenger, classes=classes, threshold=threshold, seed=seed, draws=draws
    )
    return Resampled(observed=sign * (challenger_score - champion_score), draws=sign * resampled)


def effective_rows(differences: Floats) -> int:
    """How many independent rows would say as much about the mean as these, where rows in a row may err alike. Advice; decides nothing.

        n_eff = n * Var(d) / (b * Var(means of batches of b = sqrt(n) rows in a row)),   at most n

    Differences (n,) in the order of time, n >= 16; else n itself. Source: batch means, e.g. J. Flegal, G. Jones, Batch means and spectral
    variance estimators in Markov chain Monte Carlo, Annals of Statistics 38 (2010) 1034-1070.

    >>> d = np.random.default_rng(0).normal(size=900)
    >>> effective_rows(d) > 600, 50 < effective_rows(np.repeat(d[:90], 10)) < 160    # each row ten times over
    (True, True)
    """
    n, batch = len(differences), math.isqrt(len(differences))
    spread = float(np.var(differences))
    if n < 16 or spread == 0:
        return n
    means = differences[: n // batch * batch].reshape(-1, batch).mean(axis=1)
    of_batches = batch * float(np.var(means, ddof=1))
    return min(n, max(1, round(n * spread / of_batches))) if of_batches else n


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: rejecting those <= alpha keeps P(any false rejection) <= alpha.

        p~(i) = max over j <= i of min(1, (k - j + 1) p(j)),   p(1) <= ... <= p(k)

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J. of Statistics 6 (1979) 65-70.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def rows_to_settle(difference: Difference, margin: float, confidence: float, rows: int) -> int | None:
    """About how many rows would settle an undecided comparison, if the difference stayed what it is. Advice; decides nothing.

        n' = n * (h / |D + margin|)^2,   h = half the distance between the bounds (which shrinks like 1 / sqrt(n))

    >>> rows_to_settle(MeanDifference(np.array([0.1, 0.3, 0.2, 0.0, -0.4])), 0.0, 0.95, 5)   # D = .04, h = .258
    208
    """
    lower, upper = difference.bounds(confidence)
    distance = abs(difference.value + margin)
    if not distance or not math.isfinite(upper - lower):
        return None
    return math.ceil(rows * ((upper - lower) / 2 / distance) ** 2)
