"""Small data that looks real, and policies for it, for the tests of pipelines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.jobs.port import JobContext
from policies.schema import ModelPolicy, Spec

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def flights(rows: int = 600, *, seed: int = 0, every_s: int = 900) -> pd.DataFrame:
    """One flight every `every_s` seconds; late ones land 4 h after the scheduled time, others 2 h after."""
    rng = np.random.default_rng(seed)
    scheduled = pd.Series(pd.Timestamp(T0) + pd.to_timedelta(np.arange(rows) * every_s, unit="s"))
    frame = pd.DataFrame({"flight": np.arange(rows), "scheduled_at": scheduled})
    frame["carrier"] = rng.choice(["AA", "B6", "UA", "DL"], rows)
    frame["wind"] = rng.gamma(2.0, 5.0, rows).round(2)
    frame["hour"] = scheduled.dt.hour
    frame["storm"] = rng.random(rows) < 0.2
    strength = 0.25 * (frame["wind"] - 12) + 2.0 * frame["storm"] + (frame["carrier"] == "B6") + rng.normal(0, 1, rows)
    frame["late"] = (strength > 0).astype(int)
    frame["delay_min"] = (10 * strength).round(1)
    frame["arrived_at"] = scheduled + pd.to_timedelta(2 + 2 * frame["late"], unit="h")
    return frame


def policy_json(**sections: Any) -> dict[str, Any]:
    """A policy for `flights` in `flights.csv`; `data`, `train`, `task` … replace single keys of the spec's sections."""
    spec: dict[str, Any] = {
        "task": "binary",
        "data": {
            "source": {"kind": "csv", "path": "flights.csv"},
            "label": "late",
            "time": "scheduled_at",
            "label_time": "arrived_at",
            "exclude": ["delay_min", "flight"],
            "min_rows": 50,
        },
        "train": {"component": "sklearn.hist_gradient_boosting", "parameters": {"max_iter": 10}},
        "objective": {"metric": "roc_auc"},
    }
    for name, value in sections.items():
        merged = {**spec.get(name, {}), **value} if isinstance(value, dict) else value
        spec[name] = {k: v for k, v in merged.items() if v is not None} if isinstance(merged, dict) else merged
    return {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": "flight-late"}, "spec": spec}


def spec_of(**sections: Any) -> Spec:
    return ModelPolicy.model_validate(policy_json(**sections)).spec


def context(folder: Path) -> JobContext:
    return JobContext(job_id="test", workdir=folder, report_path=folder / "progress.json")


def end_of(frame: pd.DataFrame, after: timedelta = timedelta(days=1)) -> datetime:
    """A moment at which all rows of `flights` are mature."""
    end: datetime = frame["scheduled_at"].max().to_pydatetime() + after
    return end
