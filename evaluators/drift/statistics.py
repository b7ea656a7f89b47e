"""The distances and p-values of Evidently 0.7's default methods, from a profile of the reference rows and sorted columns of a window.

Equal to Evidently's scores (which are SciPy's) to 1e-9; `tests/unit/evaluators/test_drift_equality.py` holds them to it. Where SciPy's own
function is fast enough, on small references, it is SciPy's that is called.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from pipelines.data.profile import BLOCK, Floats, Numbers

Ints = NDArray[np.int64]


def wasserstein(numbers: Numbers, features: Ints, window: Floats) -> Floats:
    """(g,): Wasserstein distance, in standard deviations of the reference, of each of `features` (g,), which all have the same count.

    `window`: (g, m), each row ascending and finite, m > 0.

    With quantile functions R and W of the two samples the distance is the integral of |R - W| over (0, 1). W is constant on each of m
    steps, and on almost all of them it lies above or below all of R, so that there the integral is a difference of running sums of R; and
    where steps of one sign follow one another, the sums between them cancel. Only steps that R crosses are searched. So it costs the
    gathering of 2 m reference values and a few searches, however long the reference is.
    """
    n, m = int(numbers.counts[features[0]]), window.shape[1]
    edges = np.arange(m + 1, dtype=np.int64) * n
    low, part = np.divmod(
        edges, m
    )  # step k spans the reference values low[k] + part[k] / m to low[k + 1] + part[k + 1] / m
    first, last = low[:-1], (edges[1:] - 1) // m
    flat, start = numbers.values.ravel(), features[:, None] * numbers.values.shape[1]
    above = window >= flat.take(start + last)
    crossed = ~above & (window > flat.take(start + first))
    row, step = np.nonzero(crossed)
    sign = above.astype(np.int8) * np.int8(2) - np.int8(1)
    sign[row, step] = 0
    centred = window - numbers.centres[features][:, None]
    total = n / m * np.einsum("ij,ij->i", sign.astype(np.float64), centred)

    feature, value = features[row], window[row, step]
    at = _search(numbers.values, feature, first[step], last[step], value)
    middle = 2 * at - (edges[step] + edges[step + 1]) / m
    inside = (value - numbers.centres[feature]) * middle - 2 * _running(numbers, feature, at, np.zeros(len(at)))

    weight = np.zeros((len(features), m + 1), dtype=np.int8)  # of the running sum at each edge
    weight[:, :-1] = sign + crossed
    weight[:, 1:] += crossed - sign
    where, edge = np.nonzero(weight != 0)  # of truth values NumPy finds them much faster than of numbers
    outside = weight[where, edge] * _running(numbers, features[where], low[edge], part[edge] / m)
    total += np.bincount(row, inside, len(features)) + np.bincount(where, outside, len(features))
    return np.asarray(np.abs(total) / n / numbers.scales[features])


def _search(values: Floats, feature: Ints, low: Ints, high: Ints, wanted: Floats) -> Ints:
    """(p,): index of the first value of each feature that is not less than `wanted`, known to lie in (low, high]."""
    low, high = low + 1, high.copy()
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        less = values[feature, middle] < wanted
        low = np.where(less & (low < high), middle + 1, low)
        high = np.where(less, high, middle)
    return high


def _running(numbers: Numbers, feature: Ints, index: Ints, part: Floats) -> Floats:
    """(p,): sum of the first `index + part` centred values of each feature."""
    block = index // BLOCK
    offset = np.arange(BLOCK)
    place = np.minimum(block[:, None] * BLOCK + offset, numbers.values.shape[1] - 1)
    weight = np.where(offset < (index % BLOCK)[:, None], 1.0, 0.0)
    here = np.nonzero(part)[0]
    weight[here, index[here] % BLOCK] = part[here]
    centred = numbers.values[feature[:, None], place] - numbers.centres[feature][:, None]
    return np.asarray(numbers.sums[feature, block] + np.einsum("ij,ij->i", weight, centred))


def jensen_shannon(reference: Floats, current: Floats) -> float:
    """Jensen-Shannon distance, natural logarithm, of counts over the same values, each with a positive sum.

    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == math.sqrt(math.log(2))
    True
    """
    p, q = reference / reference.sum(), current / current.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = _relative_entropy(p, middle) + _relative_entropy(q, middle)
    return math.sqrt(max(divergence, 0.0) / 2)


def _relative_entropy(p: Floats, q: Floats) -> float:
    return float(np.where(p > 0, p * np.log(p / q), 0.0).sum())


def chi_square_p_value(reference: Floats, current: Floats) -> float:
    """Of the current counts, against those expected from the reference's shares. A value that the reference has not gives 0."""
    from scipy.stats import chisquare

    expected = reference * (current.sum() / reference.sum())
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(chisquare(current, expected).pvalue)


def z_p_value(reference: Floats, current: Floats) -> float:
    """Of two proportions, pooled and two-sided; counts over at most two values. Of one value only there is nothing to tell: 1."""
    from scipy.special import ndtr

    if len(reference) < 2:
        return 1.0
    n, m = reference.sum(), current.sum()
    p, q = reference[1] / n, current[1] / m
    pooled = (reference[1] + current[1]) / (n + m)
    z = abs(p - q) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return float(2 * (1 - ndtr(z)))


def ks_p_value(reference: Floats, current: Floats) -> float:
    """Two-sample Kolmogorov-Smirnov, two-sided, exact up to 10,000 rows a side."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # that the exact value could not be had, and an approximation is given
        return float(ks_2samp(reference, current).pvalue)
