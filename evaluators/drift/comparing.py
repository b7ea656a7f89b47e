"""Which features of a window have drifted from a profile, by which method and how far: Evidently's defaults, or a limit on distances.

Evidently's choice of method and its thresholds, for a feature with n values in the reference and u different ones on both sides together:

| | n > 1,000 | n <= 1,000 |
|---|---|---|
| numeric, u > 5 | normed Wasserstein distance >= 0.1 | Kolmogorov-Smirnov p <= 0.05 |
| numeric, u <= 5; categorical, boolean | Jensen-Shannon distance >= 0.1 | u > 2: chi-squared p < 0.05; else z-test p < 0.05 |

Infinite values count as missing, and missing ones are left out. Under a limit of the policy's the left column is used whatever n is,
because a p-value says how sure one may be that something moved, and not how far. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from evaluators.drift import statistics
from pipelines.data.profile import FEW, Floats, Numbers, Profile, counts_of, numbers_of

if TYPE_CHECKING:
    import pandas as pd

WASSERSTEIN = "Wasserstein distance (normed)"
JENSEN_SHANNON = "Jensen-Shannon distance"
KOLMOGOROV_SMIRNOV = "K-S p_value"
CHI_SQUARE = "chi-square p_value"
Z_TEST = "Z-test p_value"
ONE_SIDED = "values on one side only"
"""Methods under the names that Evidently gives them; the last is ours, for what Evidently refuses to compare."""
DISTANCE_MIN = 0.1
P_VALUE_MAX = 0.05
SMALL_ROWS_MAX = 1_000
Limits: TypeAlias = float | Mapping[str, float] | None
"""From which distance on a feature has drifted: one for all, one each (those without keep Evidently's), or None for Evidently's rules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureDrift:
    """What was found about one feature."""

    method: str
    value: float | None
    """Distance (more is drift) or p-value (less is); None where there is none."""
    threshold: float | None
    drifted: bool

    def as_json(self) -> dict[str, Any]:
        return {"method": self.method, "value": self.value, "threshold": self.threshold, "drifted": self.drifted}


def compare(profile: Profile, window: pd.DataFrame, limits: Limits = None) -> dict[str, FeatureDrift]:
    """Feature → what was found, for all but text features. A column that the window lacks has no values.

    A feature with values on one side only has drifted; one without any on either side is left out, as is one whose values are so great
    that their distance is not a number.
    """
    found = {
        **_compare_numbers(profile.numbers, _matrix(profile.numbers.names, window), limits),
        **_compare_categories(profile, window, limits),
    }
    return {name: drift for name, drift in found.items() if drift is not None}


def _matrix(names: Sequence[str], window: pd.DataFrame) -> Floats:
    """(f, m): a row a feature, ascending, what is not finite as NaN at the end."""
    places = {name: i for i, name in enumerate(window.columns.tolist())}
    matrix = np.full((len(names), len(window)), np.nan)
    if all(name in places for name in names):  # at once where it can be, since pandas takes 10 us for each column alone
        table = window.iloc[:, [places[name] for name in names]].to_numpy()
    else:
        table = np.empty(0, dtype=object)
    if table.dtype == np.float64:
        matrix[:] = table.T
    else:
        for row, name in zip(matrix, names, strict=True):
            if name in places:
                row[:] = numbers_of(window[name])
    matrix[~np.isfinite(matrix)] = np.nan
    matrix.sort(axis=1)
    return matrix


def _compare_numbers(numbers: Numbers, matrix: Floats, limits: Limits) -> dict[str, FeatureDrift | None]:
    sizes = np.count_nonzero(~np.isnan(matrix), axis=1)
    found: dict[str, FeatureDrift | None] = {}
    together: dict[
        tuple[int, int], list[int]
    ] = {}  # features by the counts of both sides, for one vectorised call each
    for i, (name, n, m) in enumerate(zip(numbers.names, numbers.counts.tolist(), sizes.tolist(), strict=True)):
        limit = _limit(limits, name)
        few = _few_values(numbers, i, matrix[i, :m]) if n and m else None
        if not (n and m):
            found[name] = _one_sided(n, m)
        elif few is not None:
            found[name] = _counted(*few, limit, small=n <= SMALL_ROWS_MAX and limits is None)
        elif n <= SMALL_ROWS_MAX and limits is None:
            p = statistics.ks_p_value(numbers.values[i, :n], matrix[i, :m])
            found[name] = FeatureDrift(
                method=KOLMOGOROV_SMIRNOV, value=p, threshold=P_VALUE_MAX, drifted=p <= P_VALUE_MAX
            )
        else:
            found[name] = None
            together.setdefault((n, m), []).append(i)
    for (_, m), indices in together.items():
        rows = np.array(indices, dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            distances = statistics.wasserstein(numbers, rows, matrix[rows, :m])
        for i, distance in zip(indices, distances.tolist(), strict=True):
            found[numbers.names[i]] = _distant(WASSERSTEIN, distance, _limit(limits, numbers.names[i]))
    return found


def _few_values(numbers: Numbers, index: int, ascending: Floats) -> tuple[Floats, Floats] | None:
    """How often each value occurs in the reference and in the window, if there are at most FEW values on both sides together."""
    few = numbers.few[index]
    if few is None:
        return None
    values, counts = np.unique(ascending, return_counts=True)
    every = np.union1d(few[0], values)
    if len(every) > FEW:
        return None
    reference, current = np.zeros(len(every)), np.zeros(len(every))
    reference[np.searchsorted(every, few[0])] = few[1]
    current[np.searchsorted(every, values)] = counts
    return reference, current


def _compare_categories(profile: Profile, window: pd.DataFrame, limits: Limits) -> dict[str, FeatureDrift | None]:
    found: dict[str, FeatureDrift | None] = {}
    booleans = profile.booleans
    for name, reference in profile.categories.items():
        kind = "boolean" if name in booleans else "categorical"
        current = counts_of(window[name], kind) if name in window.columns else {}
        n, m = sum(reference.values()), sum(current.values())
        if not (n and m):
            found[name] = _one_sided(n, m)
            continue
        every = sorted({**reference, **current})
        sides = [np.array([side.get(value, 0) for value in every], dtype=np.float64) for side in (reference, current)]
        small = n <= SMALL_ROWS_MAX and limits is None
        found[name] = _counted(sides[0], sides[1], _limit(limits, name), small=small)
    return found


def _counted(reference: Floats, current: Floats, limit: float, *, small: bool) -> FeatureDrift | None:
    if not small:
        return _distant(JENSEN_SHANNON, statistics.jensen_shannon(reference, current), limit)
    if len(reference) > 2:
        method, p = CHI_SQUARE, statistics.chi_square_p_value(reference, current)
    else:
        method, p = Z_TEST, statistics.z_p_value(reference, current)
    return FeatureDrift(method=method, value=p, threshold=P_VALUE_MAX, drifted=p < P_VALUE_MAX)


def _distant(method: str, distance: float, limit: float) -> FeatureDrift | None:
    if math.isnan(distance):
        return None
    value = distance if math.isfinite(distance) else None
    return FeatureDrift(method=method, value=value, threshold=limit, drifted=distance >= limit)


def _one_sided(n: int, m: int) -> FeatureDrift | None:
    return FeatureDrift(method=ONE_SIDED, value=None, threshold=None, drifted=True) if n or m else None


def _limit(limits: Limits, name: str) -> float:
    if limits is None:
        return DISTANCE_MIN
    return limits.get(name, DISTANCE_MIN) if isinstance(limits, Mapping) else limits
