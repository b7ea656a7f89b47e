"""Small streams for the tests of the backtest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd

from backtest.stream import Stream, read_stream
from policies.reading import parse_policy
from policies.schema import ModelPolicy


def policy(
    tmp_path: Path, *, task: str = "binary", metric: str = "", data: str = "", time: str = "time: t,"
) -> ModelPolicy:
    """Logistic regression (or ridge) on `rows.csv`."""
    metric = metric or ("r2" if task == "regression" else "accuracy")
    component = "sklearn.ridge" if task == "regression" else "sklearn.logistic_regression"
    text = f"""
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: toy}}
spec:
  task: {task}
  data: {{source: {{kind: csv, path: rows.csv}}, label: y, {time} holdout: 100s{data}}}
  train: {{component: {component}, window: [400s, all, since_change], refit: true}}
  tune: {{trials: 1}}
  objective: {{metric: {metric}}}
  triggers: {{any: [performance: {{metric: {metric}, drop: 0, confidence: 0.999, window: 120s}}]}}
  cooldown: 100s
  budget: {{cycles: 1000, per: 365d}}
  gates: [{{metric: {metric}, no_worse_than_champion: 0.01, confidence: 0.6}}]
  rollout: {{steps: [shadow: 0s, 100%: 0s], bake: 50s, min_labelled_rows: 50, deadline: 1000s, holdback: 0%}}
"""
    reading = parse_policy(text, file="toy.yaml", directory=tmp_path)
    assert reading.problems == ()
    return reading.policies[0].policy


def rows(count: int = 300, *, seed: int = 1, change: int | None = None, task: str = "binary") -> dict[str, list[Any]]:
    """`y` follows `a`, and from row `change` on its opposite."""
    draws = random.Random(seed)
    a, b = ([round(draws.random(), 4) for _ in range(count)] for _ in range(2))
    y: list[Any] = []
    for i in range(count):
        score = a[i] + 0.2 * (draws.random() - 0.5)
        score = 1 - score if change is not None and i >= change else score
        y.append(
            {"binary": int(score > 0.5), "multiclass": ["low", "mid", "high"][min(2, int(3 * max(score, 0)))]}.get(
                task, round(score, 4)
            )
        )
    return {"t": list(range(count)), "a": a, "b": b, "y": y}


def stream(tmp_path: Path, table: dict[str, list[Any]] | None = None, **options: Any) -> Stream:
    pd.DataFrame(rows(task=options.get("task", "binary")) if table is None else table).to_csv(
        tmp_path / "rows.csv", index=False
    )
    return read_stream(policy(tmp_path, **options), tmp_path, None, tmp_path / "log")
