"""Seconds that it takes to check a window of 10,000 rows of 20 features for drift, beside Evidently's DataDriftPreset in the same
process."""

from __future__ import annotations

from functools import partial

from bench.drifting import beside_evidently
from bench.harness import Bench

BENCH = Bench(
    name="drift_10000x20",
    unit="s",
    better="lower",
    peer="Evidently's DataDriftPreset on the same 20,000 reference rows (aim: 200 times)",
    runs=5,
    setup=partial(beside_evidently, rows=10000),
)
