"""Resident memory of the idle daemon, against a daemon that imports what it leaves to its jobs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.daemon import daemon
from bench.harness import Bench, Sides

SETTLE_S = 8.0
LIMIT_MB = 150
IMPORTS = "import controller.daemon, pandas, sklearn.ensemble, sklearn.pipeline, time; print('ready', flush=True); time.sleep(600)"


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    with (
        daemon(folder / "home") as running,
        subprocess.Popen([sys.executable, "-c", IMPORTS], stdout=subprocess.PIPE) as heavy,
    ):
        assert heavy.stdout is not None
        heavy.stdout.readline()
        time.sleep(SETTLE_S)
        yield Sides(
            ours=lambda: _rss_mb(running.pid),
            peer=lambda: _rss_mb(heavy.pid),
            note=lambda value: f"limit {LIMIT_MB} MB: {'kept' if value < LIMIT_MB else 'broken'}",
        )
        heavy.kill()


def _rss_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


BENCH = Bench(
    name="idle_rss",
    unit="MB",
    better="lower",
    peer="the same process with pandas and scikit-learn imported",
    runs=5,
    setup=_setup,
)
