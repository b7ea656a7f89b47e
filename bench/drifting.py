"""Rows and profiles for the benches of drift."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Sides
from evaluators.drift.comparing import compare
from evaluators.drift.measuring import DriftReport
from evaluators.drift.preset import run_preset, verdicts
from pipelines.data.profile import profile_rows, read_profile, write_profile

NUMBERS, CATEGORIES = 16, 4
FEATURES = [{"name": f"x{i}", "kind": "numeric"} for i in range(NUMBERS)] + [
    {"name": f"k{i}", "kind": "categorical"} for i in range(CATEGORIES)
]
REFERENCE_ROWS = 20_000


def frame(rows: int, seed: int, shift: float = 0.0) -> Any:
    """16 columns of continuous numbers and 4 of 5 to 40 categories; each number is shifted a little more than the one before."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{i}": rng.normal(shift * i / NUMBERS, 1, rows) for i in range(NUMBERS)}
    columns |= {f"k{i}": rng.choice([f"value {j}" for j in range(5 * 2**i)], rows) for i in range(CATEGORIES)}
    return pd.DataFrame(columns)


def report(profile: Any, window: Any) -> DriftReport:
    """What a check comes to: every feature's verdict and the share."""
    found = compare(profile, window)
    return DriftReport(share=sum(one.drifted for one in found.values()) / len(FEATURES), found=found)


@contextmanager
def beside_evidently(folder: Path, rows: int) -> Iterator[Sides]:
    """Seconds from a window in memory to its verdicts: ours with the profile read beforehand, as Evidently has its reference beforehand.

    Both get new windows at every call; of ours, which is short, the median of 21. Before it is timed, they must agree.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    reference = frame(REFERENCE_ROWS, seed=0)
    write_profile(folder, profile_rows(reference, FEATURES))
    profile = read_profile(folder)
    assert profile is not None
    windows = [frame(rows, seed, shift=0.5) for seed in range(1, 22)]

    def ours() -> float:
        taken = []
        for window in windows:
            began = time.perf_counter()
            report(profile, window)
            taken.append(time.perf_counter() - began)
        return float(np.median(taken))

    def evidently() -> float:
        began = time.perf_counter()
        run_preset(reference, windows[0], FEATURES).dict()
        return time.perf_counter() - began

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = verdicts(run_preset(reference, windows[0], FEATURES))
    for name, found in report(profile, windows[0]).found.items():
        value, wanted = found.value, theirs[name].value
        assert value is not None, name
        assert wanted is not None, name
        assert abs(value - wanted) < 1e-9, name
        assert found.drifted == theirs[name].drifted, name
    yield Sides(ours=ours, peer=evidently)
