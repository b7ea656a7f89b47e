"""A backtest of elec2 (45,312 rows) with the policy that `ratchet init` prints: seconds on two cores, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Bench, Sides

DATA = Path(os.environ.get("RATCHET_TEST_DATA", "../shared/data")) / "elec2" / "elec2.csv.gz"
LIMIT_S = 300.0
_RATCHET = [sys.executable, "-m", "controller.cli.main"]


def _ratchet(*arguments: str) -> str:
    return subprocess.run([*_RATCHET, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    if not DATA.is_file():
        raise FileNotFoundError(f"{DATA} is not there; name the folder of the streams in RATCHET_TEST_DATA")
    policy = folder / "elec2.yaml"
    _ratchet(
        "init", "--from", str(DATA), "--label", "class", "--time", "t", "--metric", "accuracy", "--write", str(policy)
    )
    found: dict[str, Any] = {}

    def ours() -> float:
        began = time.monotonic()
        work = str(folder / "work")
        found.update(
            json.loads(_ratchet("backtest", str(policy), "--data", str(DATA), "--fresh", "--work", work, "-o", "json"))
        )
        return time.monotonic() - began

    def note(seconds: float) -> str:
        ratchet, rivals = found["ratchet"], found["baselines"]
        return (
            f"accuracy {ratchet['score']} with {ratchet['promotions']} promotions; periodic {rivals['periodic']['score']}, "
            f"static {rivals['static']['score']}, last label {rivals['last_label']['score']}; "
            f"{'within' if seconds <= LIMIT_S else 'over'} {LIMIT_S:.0f} s"
        )

    yield Sides(ours=ours, note=note)


BENCH = Bench(name="backtest_elec2", unit="s", better="lower", peer="", runs=1, setup=_setup)
