"""A search whose answer is known: rows y = 2 x, and a component that answers slope * x, so that the error is |slope - 2| * mean |x|."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tuners.tune
from pipelines.components.base import ParameterRange, ParameterValue
from pipelines.jobs.port import JobContext, PermanentJobError
from policies.metrics import Task
from policies.schema import FloatRange

BEST_SLOPE = 2.0


@dataclass(frozen=True)
class FittedLine:
    slope: float

    def predict(self, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.slope * frame["x"].to_numpy()

    def save(self, model_dir: Path) -> Any:
        raise NotImplementedError("nobody saves what only a test fits")


@dataclass(frozen=True)
class Line:
    """`mishap` happens to slopes above 3: `raise`, `die`, `nan`; `slow` makes every fit take a while. Every fit is noted in `fits`."""

    fits: str
    mishap: str = ""
    slow_s: float = 0.0
    name: str = "test.line"
    tasks: frozenset[Task] = frozenset({Task.REGRESSION})

    def space(self) -> Mapping[str, ParameterRange]:
        return {"slope": FloatRange(low=0, high=4)}

    def defaults(self) -> dict[str, ParameterValue]:
        return {"slope": 0.5, "shift": 0}

    def fit(
        self, frame: pd.DataFrame, target: pd.Series, *, parameters: Mapping[str, Any], seed: int, **_: Any
    ) -> FittedLine:
        with open(self.fits, "a") as file:
            file.write(f"{os.getpid()} {parameters['slope']} {len(frame)}\n")
        assert len(frame) == len(target)
        time.sleep(self.slow_s)
        if self.mishap and (parameters["slope"] > 3 or self.mishap.startswith("always")):
            if self.mishap.endswith("raise"):
                raise PermanentJobError("test.line: slope is too steep")
            if self.mishap.endswith("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            return FittedLine(slope=float("nan"))
        return FittedLine(slope=parameters["slope"])


def prepared(folder: Path, rows: int = 200) -> dict[str, Any]:
    """What the prepare job would have written: x, label y, time at, an hour between rows."""
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=rows)
    at = pd.date_range("2026-01-01", periods=rows, freq="h", tz="UTC")
    pd.DataFrame({"x": x, "y": BEST_SLOPE * x, "at": at}).to_parquet(folder / "train.parquet")
    return {
        "fingerprint": "sha256:rows",
        "train": str(folder / "train.parquet"),
        "holdout": str(folder / "holdout.parquet"),
        "features": [{"name": "x", "kind": "numeric"}],
        "classes": None,
    }


def inputs(
    folder: Path, *, tune: Mapping[str, Any], train: Mapping[str, Any] | None = None, champion: Any = None,
    component: Mapping[str, Any] | None = None, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    data = {"source": {"kind": "csv", "path": "x"}, "label": "y", "time": "at"}
    spec = {"task": "regression", "data": data, "objective": {"metric": "mae"}, "tune": dict(tune)}
    return {
        "policy": {
            "apiVersion": "ratchet.dev/v1",
            "kind": "ModelPolicy",
            "metadata": {"name": "m"},
            "spec": {**spec, "train": {"component": "test.line", **(train or {})}},
        },
        "policy_dir": str(folder),
        "home": str(folder),
        "prepared": prepared(folder),
        "champion": champion,
        "seed": seed,
        "component": {"fits": str(folder / "fits"), **(component or {})},
    }


def run(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The tune job with the component of this module in place of the registered ones."""
    line = Line(**inputs["component"])

    def only_line(*_: Any) -> Sequence[Line]:
        return (line,)

    before = tuners.tune.candidates
    tuners.tune.candidates = only_line  # type: ignore[assignment]
    try:
        return tuners.tune.run(inputs, context)
    finally:
        tuners.tune.candidates = before
