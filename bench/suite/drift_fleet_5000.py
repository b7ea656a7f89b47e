"""Seconds that two processes take to check a window of 1,000 rows of 20 features for each of 5,000 models.

Included: opening, mapping and verifying each model's profile, and the whole comparison. Not included: reading the window from the
prediction log; each window is in memory. A profile of 20,000 rows and 20 numbers takes 3.5 MB, those of 5,000 models 17 GB; so `PROFILES`
of them lie on the disk, each is opened anew for every tenth model, and together they are far larger than any processor's cache, as the
others would be.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.drifting import FEATURES, REFERENCE_ROWS, frame, report
from bench.harness import Bench, Sides
from pipelines.data.profile import profile_rows, read_profile, write_profile

MODELS, PROFILES, ROWS, PROCESSES = 5_000, 500, 1_000, 2
AIM_S = 5.0


def check(models: range, folder: Path) -> float:
    """Check these models one after the other; the sum of their shares of drifted features."""
    windows = [frame(ROWS, seed, shift=0.5) for seed in range(8)]
    _ready(folder, windows)
    began = time.perf_counter()
    for model in models:
        profile = read_profile(folder / str(model % PROFILES))
        assert profile is not None
        report(profile, windows[model % len(windows)])
    return time.perf_counter() - began


def _ready(folder: Path, windows: list[object]) -> None:
    """What a process does once: import, and touch its code."""
    profile = read_profile(folder / "0")
    for window in windows:
        report(profile, window)


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    base = frame(REFERENCE_ROWS, seed=0)
    numbers = [f["name"] for f in FEATURES if f["kind"] == "numeric"]
    for i in range(PROFILES):
        rows = base.copy()
        rows[numbers] = rows[numbers] * (1 + i / PROFILES) + i / 50
        (folder / str(i)).mkdir()
        write_profile(folder / str(i), profile_rows(rows, FEATURES))

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:

        def ours() -> float:
            """The slower of the two; both begin when their windows are made."""
            shares = [pool.submit(check, range(i, MODELS, PROCESSES), folder) for i in range(PROCESSES)]
            return max(share.result() for share in shares)

        yield Sides(
            ours=ours,
            note=lambda value: f"{1000 * value * PROCESSES / MODELS:.2f} ms of a core a model; aim {AIM_S:g} s",
        )


BENCH = Bench(name="drift_fleet_5000", unit="s", better="lower", peer="", runs=3, setup=_setup)
