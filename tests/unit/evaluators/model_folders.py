"""Model folders, policies and hold-out rows for the tests of the evaluators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.jobs.port import JobContext

FAKE_SERVING = """
import argparse, json, sys, time

parser = argparse.ArgumentParser()
for name in ("--model-dir", "--input", "--output"):
    parser.add_argument(name)
parser.add_argument("--latency-rows", type=int, default=0)
arguments = parser.parse_args()
ways = json.load(open(arguments.model_dir + "/model.json"))["parameters"]
if ways.get("exit"):
    print("first line", file=sys.stderr)
    sys.exit("ModuleNotFoundError: no module named 'lightning'")
if ways.get("refuse"):
    print("estimator.skops: is not a whole skops file", file=sys.stderr)
    sys.exit(2)
if ways.get("hang"):
    print("waiting for a GPU", file=sys.stderr, flush=True)
    time.sleep(600)
import numpy as np
import pyarrow.parquet as pq
table = pq.read_table(arguments.input)
scores = np.stack([table[c].to_numpy() for c in ways["columns"]], axis=1)
scores = scores[:, 0] if scores.shape[1] == 1 else scores
if ways.get("nan"):
    scores[3] = np.nan
if ways.get("short"):
    scores = scores[:-1]
if ways.get("silent"):
    sys.exit(0)
np.savez(arguments.output, scores=scores, latency_ms=np.full(arguments.latency_rows, 2.0))
"""
"""Stands for the serving code inside an image: answers with columns of the rows themselves, or misbehaves as `parameters` say."""


def model_folder(
    root: Path, *, task: str = "binary", classes: Sequence[Any] | None = (0, 1), fake: bool = True, **parameters: Any
) -> Path:
    """`root/model` (returned), and `root/app` with the stand-in for serving code unless `fake` is False."""
    folder = root / "model"
    folder.mkdir(parents=True)
    described = {
        "format": 1, "model": "flights", "task": task, "label": "late", "threshold": 0.5,
        "classes": None if classes is None else list(classes), "component": "fake", "parameters": parameters,
        "features": [{"name": "x", "kind": "numeric"}, {"name": "origin", "kind": "categorical"}],
        "predictor": {"kind": "sklearn", "file": "estimator.skops"}, "requirements": {},
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(described, sort_keys=True))
    if fake:
        (root / "app" / "serving").mkdir(parents=True)
        (root / "app" / "serving" / "__init__.py").touch()
        (root / "app" / "serving" / "predict.py").write_text(FAKE_SERVING)
    return folder


def policy(*gates: dict[str, Any], task: str = "binary", metric: str = "roc_auc", **data: Any) -> dict[str, Any]:
    """A policy as JSON."""
    return {
        "apiVersion": "ratchet.dev/v1",
        "kind": "ModelPolicy",
        "metadata": {"name": "flights"},
        "spec": {
            "task": task,
            "data": {"source": {"kind": "prediction-log"}, "label": "late", "time": "at", **data},
            "train": {"component": "sklearn.logistic_regression"},
            "objective": {"metric": metric},
            "gates": list(gates),
        },
    }


def hold_out(path: Path, rows: int = 1_500, seed: int = 0) -> dict[str, Any]:
    """Rows whose columns `good` and `bad` are the scores of a better and a worse model; the output of prepare."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    late = (rng.random(rows) < 1 / (1 + np.exp(-2 * x))).astype(int)
    frame = pd.DataFrame(
        {
            "x": x,
            "origin": rng.choice(["EWR", "JFK", "LGA"], rows),
            "late": late,
            "good": 1 / (1 + np.exp(-2 * x)),
            "bad": 1 / (1 + np.exp(-(x + rng.normal(0, 2, rows)))),
        }
    )
    frame.to_parquet(path)
    return {"holdout": str(path), "rows_holdout": rows, "classes": [0, 1]}


def context(folder: Path) -> JobContext:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    return JobContext(job_id="job", workdir=folder / "work", report_path=folder / "progress.json")
