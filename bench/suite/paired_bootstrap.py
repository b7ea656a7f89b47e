"""Seconds for a paired bootstrap of ROC AUC: 2,000 draws of 50,000 hold-out rows, two models.

The peer does what one would write with scikit-learn: draw rows, score both models, 2,000 times over (measured on 20 draws).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.harness import Bench, Sides
from evaluators.resampling import DRAWS, resampled_differences

ROWS = 50_000
PEER_DRAWS = 20
OTHERS = ("average_precision", "f1")


@contextmanager
def _setup(_: Path) -> Iterator[Sides]:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels = (rng.random(ROWS) < 0.3).astype(np.float64)
    signal = labels + rng.normal(0, 1, ROWS)
    old, new = (1 / (1 + np.exp(-(signal + rng.normal(0, 0.5, ROWS)))) for _ in range(2))

    def ours(metric: str = "roc_auc") -> float:
        started = time.perf_counter()
        resampled_differences(metric, labels, old, new, classes=[0, 1], threshold=0.5, seed=1)
        return time.perf_counter() - started

    def peer() -> float:
        started = time.perf_counter()
        for _ in range(PEER_DRAWS):
            rows = rng.integers(0, ROWS, size=ROWS)
            roc_auc_score(labels[rows], new[rows]) - roc_auc_score(labels[rows], old[rows])
        return (time.perf_counter() - started) * DRAWS / PEER_DRAWS

    yield Sides(ours=ours, peer=peer, note=lambda _: ", ".join(f"{metric}: {ours(metric):.2f} s" for metric in OTHERS))


BENCH = Bench(
    name="paired_bootstrap",
    unit="s",
    better="lower",
    peer="scikit-learn's roc_auc_score in a loop",
    runs=3,
    setup=_setup,
)
