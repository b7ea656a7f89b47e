"""Labelled rows until a challenger that is wrong on 5 points more of them is found worse, with a look after every row.

Median of 2,000 simulated shadow rollouts, champion and challenger disagreeing on 15 % of the rows; a challenger just as good may be
found worse in 5 % of the rollouts at most. The peer keeps the same promise with a z-test at each look, Bonferroni over the looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from bench.harness import Bench, Sides
from evaluators.sequential import log_wealth

ALPHA, DROP, RUNS, LOOKS = 0.05, 0.05, 2_000, 4_000
FEWEST = 30
"""Rows before the z-test is trusted."""


def _shadow(rng: np.random.Generator, drop: float) -> NDArray[np.float64]:
    return rng.choice([-1.0, 0.0, 1.0], p=[(0.15 - drop) / 2, 0.85, (0.15 + drop) / 2], size=(RUNS, LOOKS))


def _canary(rng: np.random.Generator, drop: float) -> NDArray[np.float64]:
    """Blocks of one row of the challenger and 19 of the champion, wrong on 20 %."""
    return (rng.random((RUNS, LOOKS)) < 0.2 + drop) - rng.binomial(19, 0.2, (RUNS, LOOKS)) / 19


def _ours(d: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(log_wealth((1 + d) / 2, 0.5) >= math.log(1 / ALPHA))


def _z_tests(d: NDArray[np.float64]) -> NDArray[np.bool_]:
    times = np.arange(1, LOOKS + 1)
    mean = np.cumsum(d, axis=1) / times
    spread = np.sqrt(np.maximum(np.cumsum(np.square(d), axis=1) / times - np.square(mean), 1e-12))
    return np.asarray((times >= FEWEST) & (mean * np.sqrt(times) / spread >= norm.ppf(1 - ALPHA / LOOKS)))


def _median_stop(found: NDArray[np.bool_]) -> float:
    return float(np.median(np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, math.inf)))


@contextmanager
def _setup(_: Path) -> Iterator[Sides]:
    rng = np.random.default_rng(0)

    def note(_: float) -> str:
        canary = _canary(rng, DROP)
        alarms = [float(_ours(draw(rng, 0.0)).any(axis=1).mean()) for draw in (_shadow, _canary)]
        return (
            f"canary of 5 %: {_median_stop(_ours(canary)):.0f} blocks, peer {_median_stop(_z_tests(canary)):.0f}; false alarms "
            f"{100 * alarms[0]:.1f} % in shadow, {100 * alarms[1]:.1f} % in the canary"
        )

    yield Sides(
        ours=lambda: _median_stop(_ours(_shadow(rng, DROP))),
        peer=lambda: _median_stop(_z_tests(_shadow(rng, DROP))),
        note=note,
    )


BENCH = Bench(
    name="canary_rows",
    unit="rows",
    better="lower",
    peer="z-test at every look, Bonferroni",
    runs=3,
    setup=_setup,
)
