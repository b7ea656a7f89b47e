"""Seconds that two processes take to check a window of 1,000 rows of 20 features for each of 5,000 models.

Included: reading and verifying each model's profile, and the whole comparison. Not included: reading the window from the
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
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.drifting import FEATURES, REFERENCE_ROWS, frame, report
from bench.harness import Bench, Sides
from pipelines.data.profile import profile_rows, read_profile, write_profile

MODELS, PROFILES, ROWS, PROCESSES = 5_000, 500, 1_000, 2
AIM_S = 5.0
_start: list[Barrier] = []
"""Where the processes wait for one another, so that each has the other beside it all the while."""


def _meet_at(barrier: Barrier) -> None:
    _start.append(barrier)


def check(models: range, folder: Path) -> tuple[float, float]:
    """Check these models one after the other: seconds that passed, and seconds of processor time, which others on the machine do not
    lengthen."""
    windows = [frame(ROWS, seed, shift=0.5) for seed in range(8)]
    _ready(folder, windows)
    _start[0].wait()
    began, worked = time.perf_counter(), time.process_time()
    for model in models:
        profile = read_profile(folder / str(model % PROFILES))
        assert profile is not None
        report(profile, windows[model % len(windows)])
    return time.perf_counter() - began, time.process_time() - worked


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
    start = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_meet_at, initargs=(start,)) as pool:
        worked: list[float] = []

        def ours() -> float:
            """The slower of the two."""
            found = [pool.submit(check, range(i, MODELS, PROCESSES), folder) for i in range(PROCESSES)]
            results = [one.result() for one in found]
            worked.append(sum(cpu_s for _, cpu_s in results))
            return max(passed_s for passed_s, _ in results)

        def note(_: float) -> str:
            busy_s = sorted(worked)[len(worked) // 2]
            return f"{busy_s:.1f} s of processor time in all, {1000 * busy_s / MODELS:.2f} ms a model; aim {AIM_S:g} s"

        yield Sides(ours=ours, note=note)


BENCH = Bench(name="drift_fleet_5000", unit="s", better="lower", peer="", runs=3, setup=_setup)
